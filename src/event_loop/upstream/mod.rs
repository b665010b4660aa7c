//! A loop's connections to upstreams: one in use, and the pool of those that are kept.

mod conn;
mod pool;

pub(super) use conn::UpstreamConn;
pub(super) use pool::UpstreamPool;
