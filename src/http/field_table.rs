//! Room for the fields of a head.

use std::mem::MaybeUninit;

use httparse::Header;

use super::message::Limits;

/// Room for the fields of one head, on the stack of the caller of `next_event`. It starts out
/// uninitialised, so an unused table costs nothing.
pub struct FieldTable<'a> {
    pub(in crate::http) at_once: [MaybeUninit<Header<'a>>; FieldTable::LEN],
    pub(in crate::http) in_pieces: [MaybeUninit<Header<'a>>; FieldTable::LEN],
    /// For a head of a later minor version; for all others it stays empty and allocates nothing.
    pub(in crate::http) later_version: Vec<Header<'a>>,
}

impl FieldTable<'_> {
    /// The most fields of a head.
    pub const LEN: usize = Limits::FIELDS_MAX;

    /// A table without fields.
    pub fn new() -> Self {
        Self {
            at_once: [const { MaybeUninit::uninit() }; Self::LEN],
            in_pieces: [const { MaybeUninit::uninit() }; Self::LEN],
            later_version: Vec::new(),
        }
    }
}

impl Default for FieldTable<'_> {
    fn default() -> Self {
        Self::new()
    }
}
