//! How large a message may be.

/// What a message may measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a head.
    pub head_bytes: usize,
    /// Fields of a head; at most [`Limits::FIELDS_MAX`].
    pub fields: usize,
    /// Bytes of a request's content.
    pub content_bytes: u64,
}

impl Limits {
    /// The most fields that a head can be allowed to have.
    pub const FIELDS_MAX: usize = 256;
}
