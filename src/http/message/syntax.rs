//! What may stand in a token, in a field's name and in its value (RFC 9110 §5), and which fields
//! only the protocol writes.

/// Whether `name` is a token (RFC 9110 §5.6.2).
pub fn is_field_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(is_token_byte)
}

/// Whether `value` may stand in a field line: visible characters, spaces and tabs inside, and
/// bytes above ASCII (RFC 9110 §5.5).
pub fn is_field_value(value: &str) -> bool {
    value.bytes().all(is_text_byte) && value.trim_ascii() == value
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

/// What may stand in a field's value, a reason phrase or an extension: no control characters but
/// the tab.
pub(crate) fn is_text_byte(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}
