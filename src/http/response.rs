//! What a server says: status, fields and content, before framing.
//!
//! A [`Response`] carries no framing: `Content-Length`, `Date` and `Connection` are written by the
//! exchange, which alone knows the request it answers and the state of its connection.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use super::body::is_text_byte;

/// Bytes that are borrowed from an app, owned by one answer, or shared between answers.
///
/// `Shared` is meant for memory that one loop owns (a per-loop cache), and for content that takes
/// far longer to send than to count: counting references from several loops shares a cache line.
#[derive(Clone, Debug)]
pub enum Bytes<'a> {
    /// Borrowed from the app that answers.
    Borrowed(&'a [u8]),
    /// Made for this answer.
    Owned(Vec<u8>),
    /// Held by a cache and by this answer.
    Shared(Arc<[u8]>),
}

impl Bytes<'_> {
    /// The bytes themselves.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Owned(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }

    /// The same bytes, free of the app's lifetime; copies only what was borrowed.
    pub fn into_owned(self) -> Bytes<'static> {
        match self {
            Self::Borrowed(bytes) => Bytes::Owned(bytes.to_vec()),
            Self::Owned(bytes) => Bytes::Owned(bytes),
            Self::Shared(bytes) => Bytes::Shared(bytes),
        }
    }

    /// A view of these bytes; what is shared stays so.
    fn borrowed(&self) -> Bytes<'_> {
        match self {
            Self::Shared(bytes) => Bytes::Shared(Arc::clone(bytes)),
            other => Bytes::Borrowed(other.as_slice()),
        }
    }
}

impl From<Vec<u8>> for Bytes<'static> {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Owned(bytes)
    }
}

/// A response: status code, encoded field lines, content.
#[derive(Clone, Debug)]
pub struct Response<'a> {
    status: u16,
    /// Of a status without a name.
    reason: Cow<'a, str>,
    fields: Bytes<'a>,
    content: Bytes<'a>,
}

impl<'a> Response<'a> {
    /// An answer without fields or content.
    ///
    /// # Panics
    /// When `status` is no final status code (200 to 599).
    pub fn new(status: u16) -> Self {
        assert!((200..=599).contains(&status), "{status} is no final status code");
        Self {
            status,
            reason: Cow::Borrowed(""),
            fields: Bytes::Borrowed(b""),
            content: Bytes::Borrowed(b""),
        }
    }

    /// An answer with a JSON document as content.
    pub fn json(status: u16, document: impl Into<Vec<u8>>) -> Self {
        Self::new(status).with_field("Content-Type", "application/json").with_content(document)
    }

    /// Adds a field line.
    ///
    /// # Panics
    /// When the name is no token, the value holds a byte that may not stand in one (RFC 9110 §5.5),
    /// or the name is one that only the exchange writes (`Content-Length`, `Transfer-Encoding`,
    /// `Connection`, `Date`): a wrong field splits responses. Check text that comes from outside
    /// with [`is_field_name`] and [`is_field_value`] first.
    #[must_use]
    pub fn with_field(mut self, name: &str, value: &str) -> Self {
        assert!(is_field_name(name) && !is_framing_field(name), "bad field name {name:?}");
        assert!(is_field_value(value), "bad value for field {name:?}");
        let mut fields = match self.fields {
            Bytes::Owned(fields) => fields,
            other => other.as_slice().to_vec(),
        };
        fields.reserve(name.len() + value.len() + 4);
        for part in [name, ": ", value, "\r\n"] {
            fields.extend_from_slice(part.as_bytes());
        }
        self.fields = Bytes::Owned(fields);
        self
    }

    /// The reason phrase, where the status has no name of its own.
    ///
    /// # Panics
    /// When it holds a byte that may not stand in one (RFC 9112 §4).
    #[must_use]
    pub fn with_reason(mut self, reason: &'a str) -> Self {
        assert!(reason.bytes().all(is_text_byte), "bad reason phrase {reason:?}");
        self.reason = Cow::Borrowed(reason);
        self
    }

    /// Replaces the field lines by ones that were encoded before, each ended by CRLF.
    #[must_use]
    pub fn with_encoded_fields(mut self, fields: Bytes<'a>) -> Self {
        debug_assert!(fields.as_slice().is_empty() || fields.as_slice().ends_with(b"\r\n"));
        self.fields = fields;
        self
    }

    /// Sets the content.
    #[must_use]
    pub fn with_content(mut self, content: impl Into<Vec<u8>>) -> Self {
        self.content = Bytes::Owned(content.into());
        self
    }

    /// Sets content that is borrowed from the app, or shared by its cache.
    #[must_use]
    pub fn with_content_bytes(mut self, content: Bytes<'a>) -> Self {
        self.content = content;
        self
    }

    /// The status code.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The encoded field lines, each ended by CRLF.
    pub fn fields(&self) -> &[u8] {
        self.fields.as_slice()
    }

    /// The content.
    pub fn content(&self) -> &[u8] {
        self.content.as_slice()
    }

    /// The content, for who sends it.
    pub fn into_content(self) -> Bytes<'a> {
        self.content
    }

    /// A view of this response that borrows its fields, and content that is not shared.
    pub fn borrowed(&self) -> Response<'_> {
        Response {
            status: self.status,
            reason: Cow::Borrowed(&self.reason),
            fields: Bytes::Borrowed(self.fields()),
            content: self.content.borrowed(),
        }
    }

    /// The same response, free of the app's lifetime.
    pub fn into_owned(self) -> Response<'static> {
        Response {
            status: self.status,
            reason: Cow::Owned(self.reason.into_owned()),
            fields: self.fields.into_owned(),
            content: self.content.into_owned(),
        }
    }
}

/// What opens every response of one second: status line and `Date` (RFC 9110 §6.6.1).
#[derive(Clone, Debug)]
pub struct Opening {
    /// For 200, the most common status, both lines in one piece.
    ok: Vec<u8>,
    /// How a head ends whose connection goes on, if that tells a time.
    kept: Vec<u8>,
}

const OK_LINE: &[u8] = b"HTTP/1.1 200 OK\r\n";

impl Opening {
    /// The opening at a time of day. Before 1970 and after 9999 there is no such date; a clock that
    /// says so is answered with 1970.
    pub fn at(wall: SystemTime) -> Self {
        const YEAR_10000_S: u64 = 253_402_300_800;
        let since = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = if since.as_secs() < YEAR_10000_S { UNIX_EPOCH + since } else { UNIX_EPOCH };
        let date = httpdate::fmt_http_date(wall);
        Self { ok: [OK_LINE, b"Date: ", date.as_bytes(), b"\r\n"].concat(), kept: Vec::new() }
    }

    /// An opening without a date, for a response that brings its own.
    pub fn dateless() -> Self {
        Self { ok: OK_LINE.to_vec(), kept: Vec::new() }
    }

    /// Has answers say that the connection goes on for so many seconds without a request
    /// (RFC 2068 §19.7.1.1); 0 says nothing. `Connection` names the field, which is for the next
    /// hop (RFC 9110 §7.6.1).
    #[must_use]
    pub fn with_idle_hint(mut self, seconds: u64) -> Self {
        self.kept = if seconds == 0 {
            Vec::new()
        } else {
            format!("Connection: keep-alive\r\nKeep-Alive: timeout={seconds}\r\n\r\n").into()
        };
        self
    }

    /// How a head ends whose connection goes on.
    #[inline]
    pub(super) fn end_of_kept(&self, is_http10: bool) -> &[u8] {
        match (self.kept.is_empty(), is_http10) {
            (false, _) => &self.kept,
            (true, false) => b"\r\n",
            (true, true) => b"Connection: keep-alive\r\n\r\n",
        }
    }

    #[inline]
    pub(super) fn write(&self, response: &Response<'_>, out: &mut Vec<u8>) {
        if response.status == 200 {
            out.extend_from_slice(&self.ok);
        } else {
            self.write_other(response, out);
        }
    }

    fn write_other(&self, response: &Response<'_>, out: &mut Vec<u8>) {
        write_status_line(response.status, &response.reason, out);
        out.extend_from_slice(&self.ok[OK_LINE.len()..]);
    }
}

/// `reason` is for a status without a name.
pub(super) fn write_status_line(status: u16, reason: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
    out.push(b' ');
    let name = reason_phrase(status);
    out.extend_from_slice(if name.is_empty() { reason } else { name }.as_bytes());
    out.extend_from_slice(b"\r\n");
}

pub(super) fn write_content_length(length: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"Content-Length: ");
    out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Whether `name` is a token (RFC 9110 §5.6.2).
pub fn is_field_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(is_token_byte)
}

/// Whether `value` may stand in a field line: visible characters, spaces and tabs inside, and
/// bytes above ASCII (RFC 9110 §5.5).
pub fn is_field_value(value: &str) -> bool {
    value.bytes().all(|b| b == b'\t' || (b >= b' ' && b != 0x7f)) && value.trim_ascii() == value
}

/// Whether only the exchange may write this field.
pub fn is_framing_field(name: &str) -> bool {
    ["content-length", "transfer-encoding", "connection", "date", "keep-alive", "upgrade"]
        .iter()
        .any(|own| name.eq_ignore_ascii_case(own))
}

/// Whether a byte may stand in a token (RFC 9110 §5.6.2).
pub(crate) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The reason phrase of a status code, by the registry (RFC 9110 §16.2.1); empty for one that is
/// not in it.
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        102 => "Processing",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        207 => "Multi-Status",
        208 => "Already Reported",
        226 => "IM Used",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        305 => "Use Proxy",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        _ => reason_phrase_of_error(status),
    }
}

fn reason_phrase_of_error(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        418 => "I'm a teapot",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        423 => "Locked",
        424 => "Failed Dependency",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        506 => "Variant Also Negotiates",
        507 => "Insufficient Storage",
        508 => "Loop Detected",
        510 => "Not Extended",
        511 => "Network Authentication Required",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_lines_are_encoded_in_order() {
        let response = Response::json(404, "{}").with_field("A", "b\tc").with_field("A", "");
        assert_eq!(response.fields(), b"Content-Type: application/json\r\nA: b\tc\r\nA: \r\n");
        assert_eq!((response.status(), response.content()), (404, &b"{}"[..]));
        let owned = response.borrowed().into_owned();
        assert_eq!((owned.fields(), owned.content()), (response.fields(), response.content()));
    }

    #[test]
    fn every_status_of_the_registry_has_its_name() {
        let registered = (100..=103)
            .chain(200..=208)
            .chain([226])
            .chain((300..=308).filter(|status| *status != 306))
            .chain(400..=418)
            .chain((421..=431).filter(|status| ![427, 430].contains(status)))
            .chain([451])
            .chain((500..=511).filter(|status| *status != 509));
        for status in registered {
            assert!(!reason_phrase(status).is_empty(), "{status}");
        }
        for unknown in [99, 104, 209, 299, 306, 419, 499, 509, 599] {
            assert_eq!(reason_phrase(unknown), "", "{unknown}");
        }
    }

    #[test]
    fn fields_that_would_split_a_response_are_refused() {
        for (name, value) in [
            ("", "x"),
            ("A b", "x"),
            ("A:", "x"),
            ("A\r\nB", "x"),
            ("\u{fc}", "x"),
            ("A", "x\r\nB: y"),
            ("A", "x\ny"),
            ("A", "x\0"),
            ("A", "\x7f"),
            ("A", " x"),
            ("A", "x\t"),
            ("content-length", "5"),
            ("Transfer-Encoding", "chunked"),
            ("CONNECTION", "close"),
            ("Date", "now"),
            ("Keep-Alive", "5"),
            ("Upgrade", "h2c"),
        ] {
            let usable = is_field_name(name) && is_field_value(value) && !is_framing_field(name);
            assert!(!usable, "{name:?}: {value:?}");
            let built = std::panic::catch_unwind(|| Response::new(200).with_field(name, value));
            assert!(built.is_err(), "{name:?}: {value:?}");
        }
        assert!(is_field_value("caf\u{e9} \"x\"; y") && !is_framing_field("Dates"));
    }

    #[test]
    fn only_final_statuses_are_answers() {
        for status in [0, 100, 199, 600] {
            assert!(std::panic::catch_unwind(|| Response::new(status)).is_err(), "{status}");
        }
        assert_eq!((reason_phrase(200), reason_phrase(299)), ("OK", ""));
    }
}
