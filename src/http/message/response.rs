//! The response of an app: status, fields and content, without framing.
//!
//! The exchange writes `Content-Length`, `Date` and `Connection`: only it knows the request and the
//! state of the connection.

use std::borrow::Cow;

use super::{bytes::Bytes, fields::Fields, syntax::is_text_byte};

/// A response: status code, encoded field lines, content.
#[derive(Clone, Debug)]
pub struct Response<'a> {
    status: u16,
    /// The reason phrase of a status that the registry does not name.
    reason: Cow<'a, str>,
    fields: Fields<'a>,
    content: Bytes<'a>,
}

impl<'a> Response<'a> {
    /// A response without fields or content.
    ///
    /// # Panics
    /// When `status` is not a final status code (200 to 599).
    pub fn new(status: u16) -> Self {
        assert!((200..=599).contains(&status), "{status} is no final status code");
        Self {
            status,
            reason: Cow::Borrowed(""),
            fields: Fields::NONE,
            content: Bytes::Borrowed(b""),
        }
    }

    /// A response with a JSON document as content.
    pub fn json(status: u16, document: impl Into<Vec<u8>>) -> Self {
        Self::new(status).with_field("Content-Type", "application/json").with_content(document)
    }

    /// Adds a field.
    ///
    /// # Panics
    /// As [`Fields::push`].
    #[must_use]
    pub fn with_field(mut self, name: &str, value: &str) -> Self {
        self.fields.push(name, value);
        self
    }

    /// Sets the reason phrase. It is sent only if [`crate::http::reason_phrase`] has none for the
    /// status.
    ///
    /// # Panics
    /// When it holds a byte that no reason phrase may hold (RFC 9112 §4).
    #[must_use]
    pub fn with_reason(mut self, reason: &'a str) -> Self {
        assert!(reason.bytes().all(is_text_byte), "bad reason phrase {reason:?}");
        self.reason = Cow::Borrowed(reason);
        self
    }

    /// Replaces the fields.
    #[must_use]
    pub fn with_fields(mut self, fields: Fields<'a>) -> Self {
        self.fields = fields;
        self
    }

    /// Replaces the fields by encoded field lines, each ended by CRLF.
    #[must_use]
    pub fn with_encoded_fields(self, fields: Bytes<'a>) -> Self {
        self.with_fields(Fields::from_lines(fields))
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

    /// The reason phrase for a status that the registry does not name.
    pub(crate) fn reason(&self) -> &str {
        &self.reason
    }

    /// The fields.
    pub fn fields(&self) -> &Fields<'a> {
        &self.fields
    }

    /// The fields, to change them.
    pub fn fields_mut(&mut self) -> &mut Fields<'a> {
        &mut self.fields
    }

    /// The content.
    pub fn content(&self) -> &[u8] {
        self.content.as_slice()
    }

    /// The content, taken out of the response.
    pub fn into_content(self) -> Bytes<'a> {
        self.content
    }

    /// A view of this response that borrows its fields, and content that is not shared.
    pub fn borrowed(&self) -> Response<'_> {
        Response {
            status: self.status,
            reason: Cow::Borrowed(&self.reason),
            fields: self.fields.borrowed(),
            content: self.content.borrowed(),
        }
    }

    /// The same response, independent of the app's lifetime.
    pub fn into_owned(self) -> Response<'static> {
        Response {
            status: self.status,
            reason: Cow::Owned(self.reason.into_owned()),
            fields: self.fields.into_owned(),
            content: self.content.into_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::syntax::{is_field_name, is_field_value, is_framing_field},
        *,
    };

    #[test]
    fn field_lines_are_encoded_in_order() {
        let response = Response::json(404, "{}").with_field("A", "b\tc").with_field("A", "");
        assert_eq!(
            response.fields().lines(),
            b"Content-Type: application/json\r\nA: b\tc\r\nA: \r\n"
        );
        assert_eq!((response.status(), response.content()), (404, &b"{}"[..]));
        let owned = response.borrowed().into_owned();
        assert_eq!(
            (owned.fields().lines(), owned.content()),
            (response.fields().lines(), response.content())
        );
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
    }
}
