//! Heads as apps see them: checked, unambiguous, borrowed from the input.

use httparse::Header;

use super::{host::Host, method::Method};

/// The protocol version of a message. A higher minor version is read as 1.1 (RFC 9110 §2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
}

/// A complete request head that passed every check of RFC 9112.
#[derive(Clone, Debug)]
pub struct RequestHead<'a> {
    pub(crate) method: Method<'a>,
    pub(crate) target: &'a str,
    pub(crate) path: &'a str,
    pub(crate) query: Option<&'a str>,
    pub(crate) version: Version,
    pub(crate) host: Option<Host<'a>>,
    pub(crate) content: RequestContent,
    pub(crate) expects_continue: bool,
    pub(crate) fields: &'a [Header<'a>],
}

impl<'a> RequestHead<'a> {
    /// The method.
    pub fn method(&self) -> Method<'a> {
        self.method
    }

    /// The request target as it was sent.
    pub fn target(&self) -> &'a str {
        self.target
    }

    /// The path, still percent-encoded; it begins with a slash (or is `*`, for `OPTIONS *`).
    pub fn path(&self) -> &'a str {
        self.path
    }

    /// What follows the first question mark of the target.
    pub fn query(&self) -> Option<&'a str> {
        self.query
    }

    /// The protocol version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The host that the request names: the authority of an absolute-form target, else the Host
    /// field (RFC 9112 §3.2.2). Only an HTTP/1.0 request or `OPTIONS *` can be without one.
    pub fn host(&self) -> Option<Host<'a>> {
        self.host
    }

    /// The content that follows, as its fields announce it.
    pub fn content(&self) -> RequestContent {
        self.content
    }

    /// Whether the client waits for a 100 before it sends its content (RFC 9110 §10.1.1).
    pub fn expects_continue(&self) -> bool {
        self.expects_continue
    }

    /// The first field of this name.
    pub fn field(&self, name: &str) -> Option<&'a [u8]> {
        self.fields_named(name).next()
    }

    /// All fields of this name, in order.
    pub fn fields_named(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        named(self.fields, name)
    }

    /// All fields, as name and value, in order.
    pub fn fields(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + Clone {
        pairs(self.fields)
    }
}

/// What is known of a request's content when its head is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestContent {
    /// No content.
    None,
    /// This many bytes. 0 differs from `None`: some methods send `Content-Length: 0`
    /// (RFC 9110 §8.6).
    Length(u64),
    /// Chunked content, whose length is not known yet.
    Chunked,
}

impl RequestContent {
    /// Whether bytes of content, or their end, have to follow the head.
    pub fn follows(self) -> bool {
        !matches!(self, Self::None | Self::Length(0))
    }
}

/// A complete response head that passed every check of RFC 9112.
#[derive(Clone, Debug)]
pub struct ResponseHead<'a> {
    pub(crate) status: u16,
    pub(crate) reason: &'a str,
    pub(crate) version: Version,
    pub(crate) content: ResponseContent,
    pub(crate) content_length: Option<u64>,
    pub(crate) fields: &'a [Header<'a>],
}

/// How the end of a response's content is found (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseContent {
    /// There is no content, whatever the fields say.
    None,
    /// By its length.
    Length(u64),
    /// By a last chunk.
    Chunked,
    /// By the end of the connection.
    UntilClose,
}

impl<'a> ResponseHead<'a> {
    /// The status code, 100 to 599.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The reason phrase; empty also if it is not ASCII. A client should ignore it (RFC 9112 §4).
    pub fn reason(&self) -> &'a str {
        self.reason
    }

    /// The protocol version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The content that follows.
    pub fn content(&self) -> ResponseContent {
        self.content
    }

    /// The value of `Content-Length`. In an answer to HEAD, or a 304, no content follows: it is the
    /// length that the answer to a GET would have (RFC 9110 §8.6).
    pub fn content_length(&self) -> Option<u64> {
        self.content_length
    }

    /// Whether the connection becomes a tunnel: whether the status is 101.
    pub fn is_upgraded(&self) -> bool {
        self.status == 101
    }

    /// The first field of this name.
    pub fn field(&self, name: &str) -> Option<&'a [u8]> {
        self.fields_named(name).next()
    }

    /// All fields of this name, in order.
    pub fn fields_named(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        named(self.fields, name)
    }

    /// All fields, as name and value, in order.
    pub fn fields(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + Clone {
        pairs(self.fields)
    }
}

fn named<'a>(fields: &'a [Header<'a>], name: &str) -> impl Iterator<Item = &'a [u8]> {
    fields
        .iter()
        .filter(move |field| field.name.eq_ignore_ascii_case(name))
        .map(|field| field.value)
}

fn pairs<'a>(fields: &'a [Header<'a>]) -> impl Iterator<Item = (&'a str, &'a [u8])> + Clone {
    fields.iter().map(|field| (field.name, field.value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_name_in_any_case() {
        let header = |name, value: &'static str| Header { name, value: value.as_bytes() };
        let fields = [header("A", "1"), header("b", "2"), header("a", "")];
        let head = RequestHead {
            method: Method::Get,
            target: "/?q",
            path: "/",
            query: Some("q"),
            version: Version::Http11,
            host: None,
            content: RequestContent::None,
            expects_continue: false,
            fields: &fields,
        };
        assert_eq!(head.field("a"), Some(&b"1"[..]));
        assert_eq!(head.field("C"), None);
        assert_eq!(head.fields_named("a").collect::<Vec<_>>(), [&b"1"[..], b""]);
        assert_eq!(head.fields().map(|(name, _)| name).collect::<String>(), "Aba");
        assert!(Version::Http10 < Version::Http11);
    }
}
