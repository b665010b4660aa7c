//! A loop's connections to upstreams: connections in use, and the pool of idle ones.

mod conn;
mod pool;

pub(super) use conn::UpstreamConn;
pub(super) use pool::UpstreamPool;
