//! The built-in error answers of apps.

use crate::http::{Bytes, Response};

/// The fields of an answer with a JSON document.
pub(super) const JSON_FIELDS: &[u8] = b"Content-Type: application/json\r\n";

/// The built-in answer with this error status. It does not allocate.
pub(super) fn error_response(status: u16) -> Response<'static> {
    let document: &[u8] = match status {
        400 => br#"{"error":"Bad request"}"#,
        403 => br#"{"error":"Forbidden"}"#,
        404 => br#"{"error":"Not found"}"#,
        405 => br#"{"error":"Method not allowed"}"#,
        412 => br#"{"error":"Precondition failed"}"#,
        416 => br#"{"error":"Range not satisfiable"}"#,
        503 => br#"{"error":"Service unavailable"}"#,
        _ => br#"{"error":"Internal server error"}"#,
    };
    Response::new(status)
        .with_encoded_fields(Bytes::Borrowed(JSON_FIELDS))
        .with_content_bytes(Bytes::Borrowed(document))
}
