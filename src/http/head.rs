//! A request head as apps see it: checked, unambiguous, borrowed from the input.

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
    pub(crate) fields: &'a [httparse::Header<'a>],
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

    /// What stands behind the first question mark.
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

    /// The first field of this name.
    pub fn field(&self, name: &str) -> Option<&'a [u8]> {
        self.fields_named(name).next()
    }

    /// All fields of this name, in order.
    pub fn fields_named(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.fields
            .iter()
            .filter(move |field| field.name.eq_ignore_ascii_case(name))
            .map(|field| field.value)
    }

    /// All fields, as name and value, in order.
    pub fn fields(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        self.fields.iter().map(|field| (field.name, field.value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_name_in_any_case() {
        let header = |name, value: &'static str| httparse::Header { name, value: value.as_bytes() };
        let fields = [header("A", "1"), header("b", "2"), header("a", "")];
        let head = RequestHead {
            method: Method::Get,
            target: "/?q",
            path: "/",
            query: Some("q"),
            version: Version::Http11,
            host: None,
            fields: &fields,
        };
        assert_eq!(head.field("a"), Some(&b"1"[..]));
        assert_eq!(head.field("C"), None);
        assert_eq!(head.fields_named("a").collect::<Vec<_>>(), [&b"1"[..], b""]);
        assert_eq!(head.fields().map(|(name, _)| name).collect::<String>(), "Aba");
        assert!(Version::Http10 < Version::Http11);
    }
}
