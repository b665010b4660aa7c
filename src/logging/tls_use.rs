//! What an access line says of TLS.
//!
//! It follows the outcome, so that lines of plain connections end as before.

use super::values::push_json_value;

/// The TLS of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TlsUse<'a> {
    /// `TLSv1.3` or `TLSv1.2`.
    pub(crate) version: &'static str,
    /// The suite's name, as IANA has it.
    pub(crate) cipher: &'static str,
    /// The name that the client asked for (SNI): letters, digits, hyphens, underscores and dots.
    pub(crate) name: Option<&'a str>,
    /// An earlier session went on.
    pub(crate) is_resumed: bool,
}

impl TlsUse<'_> {
    pub(super) fn push_combined(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b" tls=");
        out.extend_from_slice(self.version.as_bytes());
        out.extend_from_slice(b" cipher=");
        out.extend_from_slice(self.cipher.as_bytes());
        out.extend_from_slice(b" sni=");
        out.extend_from_slice(self.name.unwrap_or("-").as_bytes());
        out.extend_from_slice(b" resumed=");
        out.extend_from_slice(self.resumed());
    }

    pub(super) fn push_json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b",\"tls\":");
        push_json_value(out, self.version.as_bytes());
        out.extend_from_slice(b",\"cipher\":");
        push_json_value(out, self.cipher.as_bytes());
        out.extend_from_slice(b",\"sni\":");
        push_json_value(out, self.name.unwrap_or_default().as_bytes());
        out.extend_from_slice(b",\"resumed\":");
        out.extend_from_slice(self.resumed());
    }

    fn resumed(&self) -> &'static [u8] {
        if self.is_resumed { b"true" } else { b"false" }
    }
}
