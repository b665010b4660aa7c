//! HTTP, sans-IO: bytes in, bytes out.
//!
//! `message` has what all versions share, [`h1`] is HTTP/1.1 and 1.0, and [`Protocol`] is the
//! server side of a connection of any version. `proxy_protocol` reads the PROXY header that may
//! come before the first request. No sockets, no clock, no locks.

mod event;
mod field_table;
pub mod h1;
mod message;
mod protocol;
mod proxy_protocol;

pub use event::{ServerEvent, ServerPhase, StreamId};
pub use field_table::FieldTable;
pub use message::{
    Bytes, Fields, Host, Limits, Method, Refused, RequestContent, RequestHead, Response,
    ResponseContent, ResponseHead, Trailers, Version, is_field_name, is_field_value,
    is_framing_field, is_host_name, reason_phrase,
};
pub use protocol::Protocol;
pub use proxy_protocol::ProxyHeader;
