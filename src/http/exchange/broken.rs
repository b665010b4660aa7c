//! Streams that have no end: what the server has of one was not all.

use super::{Coding, Exchange, Reading, Writing};

impl Exchange {
    /// Takes back the head of a stream, of which the peer has no byte: the response is owed again.
    ///
    /// # Panics
    /// In debug builds, when there is no stream.
    pub fn take_back(&mut self) {
        debug_assert!(matches!(self.writing, Writing::Stream(_)), "the head of no stream");
        self.writing = Writing::Owed;
    }

    /// Gives a stream up that has no end: nothing more is read or written. Returns whether the end
    /// of the connection shows that the response is not whole (RFC 9112 §8). Otherwise only a reset
    /// does.
    ///
    /// # Panics
    /// In debug builds, when there is no stream.
    pub fn break_off(&mut self) -> bool {
        debug_assert!(matches!(self.writing, Writing::Stream(_)), "the end of no stream");
        let shows = matches!(self.writing, Writing::Stream(Coding::Chunked | Coding::Length(1..)));
        self.writing = Writing::Done;
        self.reading = Reading::Closed;
        (self.keep_alive, self.peer_closes) = (false, false);
        shows
    }
}
