//! How large a message may be.

/// The limits of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of a head.
    pub head_bytes: usize,
    /// Most fields of a head; at most [`Limits::FIELDS_MAX`].
    pub fields: usize,
    /// Most bytes of a request's content.
    pub content_bytes: u64,
}

impl Limits {
    /// The largest value of `fields`.
    pub const FIELDS_MAX: usize = 256;
}
