//! The server's own answers, without an app.

use crate::http::{Refused, RequestHead, Response};

/// Methods that an app may serve; `OPTIONS *` lists them.
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// For a request that can't be served.
pub(in super::super) fn refused(refused: Refused) -> Response<'static> {
    error(refused.status, refused.reason)
}

/// No app has this host (I10).
pub(in super::super) fn unknown_host() -> Response<'static> {
    error(404, "No app configured for this host")
}

/// The host is none that this TLS connection may serve (RFC 9110 §15.5.20, I12).
pub(in super::super) fn misdirected() -> Response<'static> {
    error(421, "This connection does not serve this host: open another one")
}

/// The app drains, for this many seconds more.
pub(in super::super) fn draining(retry_after_s: u64) -> Response<'static> {
    let document = format!("{{\"error\":\"Service draining\",\"retry_after_s\":{retry_after_s}}}");
    Response::json(503, document).with_field("Retry-After", &retry_after_s.to_string())
}

/// The app panicked.
pub(in super::super) fn internal_error() -> Response<'static> {
    error(500, "Internal server error")
}

/// `OPTIONS *` asks the server, not an app (RFC 9110 §9.3.7).
pub(in super::super) fn server_options() -> Response<'static> {
    Response::new(200).with_field("Allow", METHODS)
}

/// TRACE would echo credentials to any page that can make a browser send it.
pub(in super::super) fn trace() -> Response<'static> {
    error(405, "TRACE is not served").with_field("Allow", METHODS)
}

/// Whether the request addresses the server as a whole.
pub(in super::super) fn is_server_options(head: &RequestHead<'_>) -> bool {
    head.path() == "*"
}

/// Reasons are our own texts, which need no escaping.
fn error(status: u16, reason: &str) -> Response<'static> {
    Response::json(status, format!("{{\"error\":\"{reason}\"}}"))
}
