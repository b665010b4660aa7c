//! HTTP/1.1 and 1.0 (RFC 9110, RFC 9112), sans-IO: bytes in, bytes out.
//!
//! No sockets, no clock, no locks. What two parsers could read in two ways is refused.

mod body;
mod coding;
mod exchange;
mod fields;
mod head;
mod head_scan;
mod host;
mod method;
mod proxy_protocol;
mod request;
mod response;
mod target;
mod trailers;
mod upstream;

pub use exchange::{Event, Exchange, Phase};
pub use fields::FieldTable;
pub use head::{RequestContent, RequestHead, ResponseContent, ResponseHead, Version};
pub use host::{Host, is_host_name};
pub use method::Method;
pub use proxy_protocol::ProxyHeader;
pub use request::Refused;
pub use response::{
    Bytes, Opening, Response, is_field_name, is_field_value, is_framing_field, reason_phrase,
};
pub use trailers::Trailers;
pub use upstream::{UpstreamEvent, UpstreamExchange, UpstreamRequest};

/// What a message may measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a head.
    pub head_bytes: usize,
    /// Fields of a head; at most [`FieldTable::LEN`].
    pub fields: usize,
    /// Bytes of a request's content.
    pub content_bytes: u64,
}
