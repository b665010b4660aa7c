//! HTTP/1.1 and 1.0 (RFC 9112), sans-IO: a [`Server`] reads requests and writes responses, a
//! [`Client`] writes a request and reads its response.
//!
//! No sockets, no clock, no locks. A message that two parsers could read differently is refused.

mod body_decoder;
mod body_encoder;
mod client;
mod framing;
mod head_scan;
mod head_template;
mod parse;
mod request_head;
mod response_head;
mod server;

pub use client::{Client, ClientEvent, ClientRequest};
pub use head_template::HeadTemplate;
pub use server::Server;

/// The name in TLS (ALPN, RFC 7301 §6).
pub const ALPN: &[u8] = b"http/1.1";
