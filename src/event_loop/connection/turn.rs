//! How much one connection does before others get a turn.
//!
//! One read can hold hundreds of small requests, and a peer that never stops sending always has
//! more. So a turn ends after [`REQUESTS_PER_TURN`], [`TURN_INPUT_BYTES`] read or [`TURN_BYTES`]
//! sent, and the loop's other connections run before the rest.

use crate::io::{Mark, TURN_BYTES};

/// Requests that one connection begins in a turn: about 30 microseconds.
pub(super) const REQUESTS_PER_TURN: u16 = 32;

/// Bytes that one connection reads in a turn: about as long, for large heads.
pub(super) const TURN_INPUT_BYTES: u32 = 64 * 1024;

/// What a connection has done since its turn began.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Turn {
    /// It is in the loop's queue for its next turn.
    pub(super) is_queued: bool,
    requests: u16,
    received: u32,
    /// The bytes of answers that the kernel had taken before the turn.
    sent_before: Mark,
}

impl Turn {
    /// Begins a turn, with the answers sent up to this mark.
    pub(super) fn begin(&mut self, sent: Mark) {
        (self.requests, self.received, self.sent_before) = (0, 0, sent);
    }

    pub(super) fn count_request(&mut self) {
        self.requests += 1;
    }

    pub(super) fn count_received(&mut self, bytes: usize) {
        self.received = self.received.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// Whether no further request begins in this turn.
    pub(super) fn has_begun_enough(&self) -> bool {
        self.requests >= REQUESTS_PER_TURN
    }

    /// Whether reading has to wait for the next turn; input isn't kept for it.
    pub(super) fn has_read_enough(&self) -> bool {
        self.received >= TURN_INPUT_BYTES
    }

    /// Whether everything left waits for the next turn.
    pub(super) fn is_over(&self, sent: Mark) -> bool {
        self.has_begun_enough() || sent.bytes_since(self.sent_before) >= TURN_BYTES
    }
}
