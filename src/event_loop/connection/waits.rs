//! What a connection waits for, and until when.

use mio::Token;

use super::super::timers::{Deadline, Timers};
use crate::metrics::LoopCounts;

/// Bytes that must move within a time-out to restart it: a peer with fewer trickles.
const WINDOW_BYTES_MIN: u64 = 1024;

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    Fresh,
    Idle,
    Head,
    Content,
    /// For what its exchanges wait for. Each of them has its own deadline.
    Answer,
    /// For an answer that the peer may never read: it has closed its side.
    HalfClosed,
    Sending,
    Lingering,
}

/// A connection's current wait, and its deadline.
pub(super) struct Waits {
    current: Wait,
    pub(super) deadline: Deadline,
    /// The wait has ended: if the same wait follows, it is a new one.
    is_over: bool,
    /// The byte total of the wait's direction when its window began.
    window_start: u64,
}

impl Waits {
    /// The first wait of a connection; its deadline isn't set yet.
    pub(super) fn new(current: Wait) -> Self {
        Self { current, deadline: Deadline::never(), is_over: true, window_start: 0 }
    }

    pub(super) fn current(&self) -> Wait {
        self.current
    }

    /// Ends the wait, because its event or its deadline has come.
    pub(super) fn end(&mut self) {
        self.is_over = true;
    }

    /// Whether this wait already has its deadline.
    pub(super) fn is_current(&self, wait: Wait) -> bool {
        wait == self.current && !self.is_over
    }

    /// Begins a wait, at this byte total of its direction.
    pub(super) fn begin(&mut self, wait: Wait, total: u64) {
        (self.current, self.is_over, self.window_start) = (wait, false, total);
    }

    /// Whether enough bytes moved in this window, at this byte total.
    pub(super) fn has_progressed(&self, total: u64) -> bool {
        total - self.window_start >= WINDOW_BYTES_MIN
    }

    /// Sets the deadline.
    pub(super) fn set(&mut self, at: u64, token: Token, timers: &mut Timers) {
        timers.set(&mut self.deadline, token, at);
    }
}

impl Wait {
    /// The count of connections in this wait.
    pub(super) fn count(self, counts: &mut LoopCounts) -> &mut u64 {
        match self {
            Self::Fresh => &mut counts.fresh,
            Self::Idle => &mut counts.idle,
            Self::Lingering => &mut counts.lingering,
            Self::Head | Self::Content | Self::Answer | Self::HalfClosed | Self::Sending => {
                &mut counts.busy
            }
        }
    }
}
