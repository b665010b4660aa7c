//! What a stop or an upgrade asks of public connections, and how far it has come.

use std::time::Duration;

use mio::Token;

use super::clock::Clock;
use crate::message::{Class, StopRules};

/// How public connections end.
pub(super) struct Closing {
    /// How long a connection without a request may stay once a stop has begun.
    pub(super) idle_grace: Duration,
    /// A stop has begun.
    pub(super) begun: bool,
    /// A successor serves: connections without a request don't close merely for being idle.
    pub(super) has_successor: bool,
    /// Idle connections are offered to another process, so answers needn't say close.
    pub(super) hands_over: bool,
    /// Connections that have become idle, to be offered next.
    pub(super) to_offer: Vec<Token>,
    /// From then on answers say close, for connections that are never idle.
    pub(super) close_from_ms: u64,
    /// Connections without a request close by then, so that lingering ends before the deadline.
    pub(super) idle_until_ms: u64,
}

impl Closing {
    /// No stop has begun.
    pub(super) fn new(idle_grace: Duration) -> Self {
        Self {
            idle_grace,
            begun: false,
            has_successor: false,
            hands_over: false,
            to_offer: Vec::new(),
            close_from_ms: 0,
            idle_until_ms: 0,
        }
    }

    /// A stop begins.
    pub(super) fn begin(&mut self, rules: StopRules, clock: &Clock) {
        (self.begun, self.has_successor) = (true, rules.has_successor);
        self.close_from_ms = clock.ms_at(rules.close_from);
        self.idle_until_ms = clock.ms_at(rules.idle_until);
    }

    /// The stop is cancelled.
    pub(super) fn cancel(&mut self) {
        *self = Self::new(self.idle_grace);
    }

    /// Whether a stop asks connections of this class to end.
    pub(super) fn applies_to(&self, class: Class) -> bool {
        self.begun && class == Class::Public
    }

    /// Whether a connection that becomes idle may go to another process.
    pub(super) fn can_hand_over(&self, clock: &Clock) -> bool {
        self.hands_over && clock.now_ms() < self.close_from_ms
    }
}

/// How far the end of a loop's public connections has come.
#[derive(Default)]
pub(super) struct Ending {
    stage: EndStage,
    /// Exchanges that were cut meanwhile.
    pub(super) cut: u64,
    /// The loop ends; answers that are owed may take until then.
    pub(super) end_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum EndStage {
    /// The loop accepts connections.
    #[default]
    Accepting,
    /// Accepting is over; the loop waits for the last public connection.
    Finishing,
    /// The last public connection has ended, and control knows.
    Emptied,
}

impl Ending {
    /// Accepting is over.
    pub(super) fn begin(&mut self) {
        if self.stage == EndStage::Accepting {
            self.stage = EndStage::Finishing;
        }
    }

    pub(super) fn has_begun(&self) -> bool {
        self.stage != EndStage::Accepting
    }

    /// No public connection is left. Returns whether control has to know.
    pub(super) fn note_emptied(&mut self) -> bool {
        let is_new = self.stage == EndStage::Finishing;
        if is_new {
            self.stage = EndStage::Emptied;
        }
        is_new
    }

    pub(super) fn is_emptied(&self) -> bool {
        self.stage == EndStage::Emptied
    }
}
