//! Bytes of a message: borrowed, owned or shared.

use std::sync::Arc;

/// Bytes that are borrowed from an app, owned by one answer, or shared between answers.
///
/// Loops that count references to the same `Shared` bytes contend for a cache line. So `Shared` is
/// meant for memory of one loop (a per-loop cache), and for content so large that sending it takes
/// far longer than counting.
#[derive(Clone, Debug)]
pub enum Bytes<'a> {
    /// Borrowed from the app that answers.
    Borrowed(&'a [u8]),
    /// Owned by this answer.
    Owned(Vec<u8>),
    /// Shared by a cache and this answer.
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

    /// The same bytes, independent of the app's lifetime. Copies borrowed bytes only.
    pub fn into_owned(self) -> Bytes<'static> {
        match self {
            Self::Borrowed(bytes) => Bytes::Owned(bytes.to_vec()),
            Self::Owned(bytes) => Bytes::Owned(bytes),
            Self::Shared(bytes) => Bytes::Shared(bytes),
        }
    }

    /// A view of these bytes; shared bytes stay shared.
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
