//! HTTP/1.1 and 1.0 (RFC 9110, RFC 9112), sans-IO: bytes in, bytes out.
//!
//! No sockets, no clock, no locks. What two parsers could read in two ways is refused.

mod head;
mod host;
mod method;
mod response;

pub use head::{RequestHead, Version};
pub use host::{Host, is_host_name};
pub use method::Method;
pub use response::{
    Bytes, Response, is_field_name, is_field_value, is_framing_field, reason_phrase,
};
