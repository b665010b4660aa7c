//! Field lines, and the texts in them.

use smallvec::SmallVec;

/// A short text that is written several times into one head. It is built once, usually without an
/// allocation.
pub(super) type Text = SmallVec<[u8; 64]>;

/// Writes `name: value` and CRLF.
pub(super) fn write_field(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}
