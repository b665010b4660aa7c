//! The interface of a stage: what a filter does to the content of one answer.

use crate::http::Fields;

/// Changes the content of one answer on its way to the client. Made by
/// [`Filter::stage`](super::contract::Filter::stage) for one request.
pub(crate) trait Stage: Send {
    /// The answer's head is about to be written, with this status. Returns whether the stage
    /// changes the content; then it changes the fields to fit. The length of changed content isn't
    /// announced: it is framed in pieces.
    fn begin(&mut self, status: u16, fields: &mut Fields<'_>) -> bool;

    /// Takes a piece of the content, of at most 16 KiB, and appends what is ready to `out`.
    fn write(&mut self, piece: &[u8], out: &mut Vec<u8>);

    /// The content is complete: appends the rest to `out`.
    fn end(&mut self, out: &mut Vec<u8>);
}
