//! A loop's connections to upstreams: connections in use, the pool of idle ones, and upstreams that
//! drain.

mod conn;
mod drains;
mod pool;

pub(super) use conn::UpstreamConn;
pub(super) use drains::UpstreamDrains;
pub(super) use pool::UpstreamPool;
