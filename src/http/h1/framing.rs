//! The fields that frame a message and decide about its connection (RFC 9112 §6.3, §9.3), in
//! requests and responses.
//!
//! Strict: a message that two parsers could frame differently is refused, whichever side sent it.

use httparse::Header;

use super::parse::is_named;
use crate::http::message::{Refused, Version, refused};

/// How the end of a message's content is found (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// By its length in bytes; 0 without content.
    Length(u64),
    /// By a last chunk.
    Chunked,
}

/// What the fields of a head say about its content and its connection.
#[derive(Debug, Default)]
pub(super) struct FramingFields {
    content_length: Option<u64>,
    /// Whether the last transfer coding is `chunked`; `None` without `Transfer-Encoding`.
    chunked: Option<bool>,
    /// Whether there is a transfer coding other than `chunked`.
    unknown_coding: bool,
    close: bool,
    keep_alive: bool,
}

impl FramingFields {
    /// Adds a field, if it is one of these.
    #[inline(always)]
    pub(super) fn take(&mut self, field: &Header<'_>, version: Version) -> Result<(), Refused> {
        // By length first: most fields are none of these.
        match field.name.len() {
            10 if is_named(field, b"connection") => self.connection(field.value),
            14 if is_named(field, b"content-length") => {
                let length = parse_content_length(field.value)?;
                if self.content_length.replace(length).is_some() {
                    return Err(refused(400, "more than one Content-Length"));
                }
            }
            17 if is_named(field, b"transfer-encoding") => {
                if version == Version::Http10 {
                    return Err(refused(400, "Transfer-Encoding in an HTTP/1.0 message"));
                }
                self.transfer_encoding(field.value)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Collects these fields of a head.
    pub(super) fn collect(fields: &[Header<'_>], version: Version) -> Result<Self, Refused> {
        let mut framing = Self::default();
        fields.iter().try_for_each(|field| framing.take(field, version))?;
        Ok(framing)
    }

    /// How the content is framed (RFC 9112 §6.3); `None` if no field says so.
    pub(super) fn framing(&self) -> Result<Option<Framing>, Refused> {
        match (self.chunked, self.content_length) {
            (None, length) => Ok(length.map(Framing::Length)),
            (Some(_), Some(_)) => Err(refused(400, "Content-Length beside Transfer-Encoding")),
            (Some(false), None) => Err(refused(400, "the last transfer coding is not chunked")),
            (Some(true), None) if self.unknown_coding => {
                Err(refused(501, "unknown transfer coding"))
            }
            (Some(true), None) => Ok(Some(Framing::Chunked)),
        }
    }

    /// Whether the sender keeps the connection open (RFC 9112 §9.3).
    pub(super) fn keeps_alive(&self, version: Version) -> bool {
        !self.close && (version == Version::Http11 || self.keep_alive)
    }

    /// Whether `Connection` names `keep-alive`, which HTTP/1.1 does not need.
    pub(super) fn asks_keep_alive(&self) -> bool {
        self.keep_alive
    }

    /// RFC 9110 §7.6.1.
    fn connection(&mut self, value: &[u8]) {
        for option in value.split(|byte| *byte == b',') {
            let option = option.trim_ascii();
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    /// RFC 9112 §6.1: `chunked` may occur once, as the last coding. It is the only coding that is
    /// supported.
    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), Refused> {
        for coding in value.split(|byte| *byte == b',') {
            if self.chunked == Some(true) {
                return Err(refused(400, "chunked is not the last transfer coding"));
            }
            let coding = coding.trim_ascii();
            if coding.is_empty() {
                return Err(refused(400, "empty transfer coding"));
            }
            let chunked = coding.eq_ignore_ascii_case(b"chunked");
            self.chunked = Some(chunked);
            self.unknown_coding |= !chunked;
        }
        Ok(())
    }
}

fn parse_content_length(value: &[u8]) -> Result<u64, Refused> {
    const BAD: Refused = refused(400, "malformed Content-Length");
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(BAD);
    }
    value
        .iter()
        .try_fold(0u64, |length, digit| {
            length.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
        })
        .ok_or(BAD)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(lines: &[(&str, &str)]) -> Result<FramingFields, Refused> {
        let header = |(name, value)| Header { name, value: str::as_bytes(value) };
        let fields: Vec<_> = lines.iter().copied().map(header).collect();
        FramingFields::collect(&fields, Version::Http11)
    }

    /// Fields, and the framing that they announce.
    type Announced = (&'static [(&'static str, &'static str)], Result<Option<Framing>, u16>);

    #[test]
    fn framing_must_be_unambiguous() {
        const TE: &str = "Transfer-Encoding";
        const CL: &str = "content-length";
        let rows: &[Announced] = &[
            (&[], Ok(None)),
            (&[("Content-Lengths", "5")], Ok(None)),
            (&[(CL, "0")], Ok(Some(Framing::Length(0)))),
            (&[(CL, "007")], Ok(Some(Framing::Length(7)))),
            (&[(CL, "18446744073709551615")], Ok(Some(Framing::Length(u64::MAX)))),
            (&[(CL, "18446744073709551616")], Err(400)),
            (&[(CL, "")], Err(400)),
            (&[(CL, "5 ")], Err(400)),
            (&[(CL, "5"), (CL, "5")], Err(400)),
            (&[(TE, "chunked")], Ok(Some(Framing::Chunked))),
            (&[(TE, "\tCHUNKED ")], Ok(Some(Framing::Chunked))),
            (&[(TE, "chunked"), (CL, "5")], Err(400)),
            (&[(CL, "5"), (TE, "gzip")], Err(400)),
            (&[(TE, "gzip"), (TE, "chunked")], Err(501)),
            (&[(TE, "chunked"), (TE, "gzip")], Err(400)),
            (&[(TE, "gzip")], Err(400)),
            (&[(TE, "")], Err(400)),
        ];
        for (lines, framing) in rows {
            let seen = collect(lines).and_then(|fields| fields.framing());
            assert_eq!(seen.map_err(|refused| refused.status), *framing, "{lines:?}");
        }
    }

    #[test]
    fn connection_options_add_up() {
        for (values, close, keep_alive) in [
            (&["close"][..], true, false),
            (&["Keep-Alive"], false, true),
            (&["a,\tCLOSE ,", "keep-alive"], true, true),
            (&["closed", "keep alive", ""], false, false),
        ] {
            let lines: Vec<_> = values.iter().map(|value| ("Connection", *value)).collect();
            let fields = collect(&lines).expect("fields");
            assert_eq!((fields.close, fields.keep_alive), (close, keep_alive), "{values:?}");
            assert_eq!(fields.keeps_alive(Version::Http11), !close, "{values:?}");
            assert_eq!(fields.keeps_alive(Version::Http10), keep_alive && !close, "{values:?}");
        }
    }
}
