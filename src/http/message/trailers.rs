//! The trailer fields of chunked content (RFC 9110 §6.5, RFC 9112 §7.1.2), for a proxy.
//!
//! They are kept apart from the fields of the head, and never decide how a message is read. A field
//! that is not allowed in a trailer section is dropped: it would mislead a recipient that merges
//! trailers into the head. The body decoder bounds their size.

use super::{
    fields::{decode_line, decode_lines},
    syntax::is_framing_field,
};

/// The trailer fields of one message.
#[derive(Debug, Default)]
pub struct Trailers {
    /// Field lines, each ended by CRLF; the last line may be incomplete.
    lines: Vec<u8>,
    line_start: usize,
}

impl Trailers {
    /// The field lines, each ended by CRLF.
    pub fn lines(&self) -> &[u8] {
        &self.lines[..self.line_start]
    }

    /// All fields, as name and value, in order.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &[u8])> {
        decode_lines(self.lines())
    }

    /// Adds the next byte of the trailer section.
    pub(crate) fn push(&mut self, byte: u8) {
        self.lines.push(byte);
        if byte != b'\n' {
            return;
        }
        match decode_line(&self.lines[self.line_start..]) {
            Some((name, _)) if is_trailer_field(name) => self.line_start = self.lines.len(),
            _ => self.lines.truncate(self.line_start),
        }
    }
}

/// Whether a field may stand in a trailer section: fields for framing, routing, authentication,
/// request modifiers, and the format of the content may not (RFC 9110 §6.5.1).
fn is_trailer_field(name: &str) -> bool {
    const NEVER: &[&str] = &[
        "authorization",
        "cache-control",
        "content-encoding",
        "content-range",
        "content-type",
        "cookie",
        "expect",
        "forwarded",
        "host",
        "max-forwards",
        "proxy-authorization",
        "set-cookie",
        "te",
        "trailer",
    ];
    !is_framing_field(name) && !NEVER.iter().any(|never| name.eq_ignore_ascii_case(never))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_complete_lines_of_allowed_fields_are_kept() {
        let mut trailers = Trailers::default();
        let section = b"A: b\r\nHost: c\r\nTransfer-Encoding:chunked\r\nd:\t\xff e \r\nF:\r\nG: h";
        section.iter().for_each(|byte| trailers.push(*byte));
        assert_eq!(trailers.lines(), b"A: b\r\nd:\t\xff e \r\nF:\r\n");
        let fields: Vec<_> = trailers.fields().collect();
        assert_eq!(fields, [("A", &b"b"[..]), ("d", b"\xff e"), ("F", b"")]);
    }
}
