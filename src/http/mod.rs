//! HTTP/1.1 and 1.0 (RFC 9110, RFC 9112), sans-IO: bytes in, bytes out.
//!
//! No sockets, no clock, no locks. What two parsers could read in two ways is refused.

mod body;
mod exchange;
mod head;
mod host;
mod method;
mod request;
mod response;
mod target;

pub use exchange::{Event, Exchange, Phase};
pub use head::{RequestHead, Version};
pub use host::{Host, is_host_name};
pub use method::Method;
pub use request::{FieldTable, Refused};
pub use response::{
    Bytes, Opening, Response, is_field_name, is_field_value, is_framing_field, reason_phrase,
};

/// What a request may measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a head.
    pub head_bytes: usize,
    /// Fields of a head; at most [`FieldTable::LEN`].
    pub fields: usize,
    /// Bytes of content.
    pub content_bytes: u64,
}
