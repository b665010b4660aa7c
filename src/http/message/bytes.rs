//! Bytes of a message, by who holds them.

use std::sync::Arc;

/// Bytes that are borrowed from an app, owned by one answer, or shared between answers.
///
/// `Shared` is meant for memory that one loop owns (a per-loop cache), and for content that takes
/// far longer to send than to count: counting references from several loops shares a cache line.
#[derive(Clone, Debug)]
pub enum Bytes<'a> {
    /// Borrowed from the app that answers.
    Borrowed(&'a [u8]),
    /// Made for this answer.
    Owned(Vec<u8>),
    /// Held by a cache and by this answer.
    Shared(Arc<[u8]>),
}

impl Bytes<'_> {
    /// The bytes themselves.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Owned(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }

    /// The same bytes, free of the app's lifetime; copies only what was borrowed.
    pub fn into_owned(self) -> Bytes<'static> {
        match self {
            Self::Borrowed(bytes) => Bytes::Owned(bytes.to_vec()),
            Self::Owned(bytes) => Bytes::Owned(bytes),
            Self::Shared(bytes) => Bytes::Shared(bytes),
        }
    }

    /// A view of these bytes; what is shared stays so.
    pub(super) fn borrowed(&self) -> Bytes<'_> {
        match self {
            Self::Shared(bytes) => Bytes::Shared(Arc::clone(bytes)),
            other => Bytes::Borrowed(other.as_slice()),
        }
    }
}

impl From<Vec<u8>> for Bytes<'static> {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Owned(bytes)
    }
}
