//! Which bytes a token, a field name and a field value may have (RFC 9110 §5), and which fields
//! only the protocol writes.

/// Whether `name` is a token (RFC 9110 §5.6.2).
pub fn is_field_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(is_token_byte)
}

/// Whether `value` is a valid field value: visible characters and bytes above ASCII, with spaces
/// and tabs between them but not around them (RFC 9110 §5.5).
pub fn is_field_value(value: &str) -> bool {
    value.bytes().all(is_text_byte) && value.trim_ascii() == value
}

/// Whether only the protocol may write this field: `Content-Length`, `Transfer-Encoding`,
/// `Connection`, `Date`, `Keep-Alive` and `Upgrade`.
pub fn is_framing_field(name: &str) -> bool {
    ["content-length", "transfer-encoding", "connection", "date", "keep-alive", "upgrade"]
        .iter()
        .any(|own| name.eq_ignore_ascii_case(own))
}

/// Whether a byte may stand in a token (RFC 9110 §5.6.2).
pub(crate) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether a byte may stand in a field value, a reason phrase or a chunk extension: all but control
/// characters; tabs may.
pub(crate) fn is_text_byte(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}
