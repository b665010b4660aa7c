//! How much one connection does before others get their turn.
//!
//! A read holds hundreds of small requests, and a peer that sends without end always has more: a
//! turn is over after [`REQUESTS_PER_TURN`], or when [`TURN_INPUT_BYTES`] are read or
//! [`TURN_BYTES`] of answers are sent, and the loop's other connections come before the rest.

use super::super::io::{Mark, TURN_BYTES};

/// Requests that one connection begins in a turn: about 30 microseconds.
pub(super) const REQUESTS_PER_TURN: u32 = 32;

/// Bytes that one connection reads in a turn: about as long, for large heads.
pub(super) const TURN_INPUT_BYTES: u64 = 64 * 1024;

/// What a connection has done since its turn began.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Turn {
    /// It waits in the loop's queue for its next turn.
    pub(super) is_queued: bool,
    /// A whole head is behind what is being read; only looked for while the server stops.
    pub(super) has_next: bool,
    requests: u32,
    received: u64,
    /// What the kernel had taken of the answers before.
    sent_before: Mark,
}

impl Turn {
    /// Begins a turn, with the answers sent up to this mark.
    pub(super) fn begin(&mut self, sent: Mark) {
        *self = Self { is_queued: self.is_queued, sent_before: sent, ..Self::default() };
    }

    pub(super) fn count_request(&mut self) {
        self.requests += 1;
    }

    pub(super) fn count_received(&mut self, bytes: usize) {
        self.received += bytes as u64;
    }

    /// Whether no further request is begun in this turn.
    pub(super) fn has_begun_enough(&self) -> bool {
        self.requests >= REQUESTS_PER_TURN
    }

    /// Whether the next turn has to read on; what was read is not kept for it.
    pub(super) fn has_read_enough(&self) -> bool {
        self.received >= TURN_INPUT_BYTES
    }

    /// Whether all that is left has to wait for the next turn.
    pub(super) fn is_over(&self, sent: Mark) -> bool {
        self.has_begun_enough() || sent.bytes_since(self.sent_before) >= TURN_BYTES
    }
}
