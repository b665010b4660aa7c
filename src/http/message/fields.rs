//! The fields of a message, stored as encoded field lines.
//!
//! HTTP/1 copies the lines as they are; [`Fields::iter`] decodes them.

use super::{
    bytes::Bytes,
    syntax::{is_field_name, is_field_value, is_framing_field},
};

/// Fields in order, encoded as lines `name: value`, each ended by CRLF.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    lines: Bytes<'a>,
}

impl<'a> Fields<'a> {
    /// No fields.
    pub const NONE: Fields<'static> = Fields { lines: Bytes::Borrowed(b"") };

    /// Fields from encoded lines, each ended by CRLF.
    pub fn from_lines(lines: Bytes<'a>) -> Self {
        debug_assert!(lines.as_slice().is_empty() || lines.as_slice().ends_with(b"\r\n"));
        Self { lines }
    }

    /// Adds a field.
    ///
    /// # Panics
    /// When the name is not a token, the value holds a byte that no field value may hold
    /// (RFC 9110 §5.5), or only the protocol may write the field ([`is_framing_field`]): such a
    /// field could split a message. Check text from outside with [`is_field_name`],
    /// [`is_field_value`] and [`is_framing_field`] first.
    pub fn push(&mut self, name: &str, value: &str) {
        assert!(is_field_name(name) && !is_framing_field(name), "bad field name {name:?}");
        assert!(is_field_value(value), "bad value for field {name:?}");
        let mut lines = match std::mem::replace(&mut self.lines, Bytes::Borrowed(b"")) {
            Bytes::Owned(lines) => lines,
            other => other.as_slice().to_vec(),
        };
        lines.reserve(name.len() + value.len() + 4);
        for part in [name, ": ", value, "\r\n"] {
            lines.extend_from_slice(part.as_bytes());
        }
        self.lines = Bytes::Owned(lines);
    }

    /// The encoded lines, each ended by CRLF.
    #[inline]
    pub fn lines(&self) -> &[u8] {
        self.lines.as_slice()
    }

    /// The fields as name and value, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> + Clone {
        decode_lines(self.lines())
    }

    /// A view of these fields.
    pub fn borrowed(&self) -> Fields<'_> {
        Fields { lines: Bytes::Borrowed(self.lines()) }
    }

    /// The same fields, independent of the app's lifetime. Copies borrowed lines only.
    pub fn into_owned(self) -> Fields<'static> {
        Fields { lines: self.lines.into_owned() }
    }
}

/// The fields of encoded lines, as name and value, in order.
pub(super) fn decode_lines(lines: &[u8]) -> impl Iterator<Item = (&str, &[u8])> + Clone {
    lines.split_inclusive(|byte| *byte == b'\n').filter_map(decode_line)
}

/// The name and the value of a field line; `None` if it has no name.
pub(super) fn decode_line(line: &[u8]) -> Option<(&str, &[u8])> {
    let colon = memchr::memchr(b':', line)?;
    Some((std::str::from_utf8(&line[..colon]).ok()?, line[colon + 1..].trim_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_out_as_they_were_put_in() {
        let mut fields = Fields::from_lines(Bytes::Borrowed(b"A: b\r\nc:\td:e \xff \r\n"));
        fields.push("A", "");
        assert_eq!(fields.lines(), b"A: b\r\nc:\td:e \xff \r\nA: \r\n");
        for fields in [fields.borrowed(), fields.clone().into_owned()] {
            let decoded: Vec<_> = fields.iter().collect();
            assert_eq!(decoded, [("A", &b"b"[..]), ("c", b"d:e \xff"), ("A", b"")]);
        }
        assert_eq!(Fields::NONE.iter().count(), 0);
    }
}
