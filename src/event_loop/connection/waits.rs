//! What a connection waits for, and until when.

use mio::Token;

use super::super::timers::{Deadline, Timers};
use crate::metrics::LoopCounts;

/// What has to move within a time-out for it to begin again: less is a peer that trickles.
const WINDOW_BYTES_MIN: u64 = 1024;

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    Fresh,
    Idle,
    Head,
    Content,
    App,
    Upstream,
    /// For an answer of which the peer may read nothing: it has closed its side.
    HalfClosed,
    Sending,
    Lingering,
}

/// The wait of one connection, and its deadline.
pub(super) struct Waits {
    current: Wait,
    pub(super) deadline: Deadline,
    /// What was waited for has come: the same wait, if it follows, is a new one.
    is_over: bool,
    /// The total of bytes in the wait's direction when its window began.
    window_start: u64,
}

impl Waits {
    /// The wait of a connection that begins so; its deadline is to be set.
    pub(super) fn new(current: Wait) -> Self {
        Self { current, deadline: Deadline::never(), is_over: true, window_start: 0 }
    }

    pub(super) fn current(&self) -> Wait {
        self.current
    }

    /// What was waited for has come, or its deadline has.
    pub(super) fn end(&mut self) {
        self.is_over = true;
    }

    /// Whether this is a wait that has its deadline already.
    pub(super) fn is_current(&self, wait: Wait) -> bool {
        wait == self.current && !self.is_over
    }

    /// Begins a wait in which the total of its direction is this.
    pub(super) fn begin(&mut self, wait: Wait, total: u64) {
        (self.current, self.is_over, self.window_start) = (wait, false, total);
    }

    /// Whether enough moved in this window of the wait, where the total is this now.
    pub(super) fn has_progressed(&self, total: u64) -> bool {
        total - self.window_start >= WINDOW_BYTES_MIN
    }

    /// Sets the deadline.
    pub(super) fn set(&mut self, at: u64, token: Token, timers: &mut Timers) {
        timers.set(&mut self.deadline, token, at);
    }
}

impl Wait {
    /// The count of the connections that wait so.
    pub(super) fn count(self, counts: &mut LoopCounts) -> &mut u64 {
        match self {
            Self::Fresh => &mut counts.fresh,
            Self::Idle => &mut counts.idle,
            Self::Lingering => &mut counts.lingering,
            Self::Head
            | Self::Content
            | Self::App
            | Self::Upstream
            | Self::HalfClosed
            | Self::Sending => &mut counts.busy,
        }
    }
}
