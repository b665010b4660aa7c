//! What a stop or an upgrade asks of public connections, and how far it is.

use mio::Token;

use super::clock::Clock;
use crate::message::StopRules;

/// How public connections end; nothing, as long as there is no stop.
#[derive(Default)]
pub(super) struct Closing {
    /// A stop has begun.
    pub(super) begun: bool,
    /// It is an upgrade's: connections without a request are not closed for their silence alone.
    pub(super) has_successor: bool,
    /// Connections at rest are offered to another process: answers need not say close.
    pub(super) gives: bool,
    /// Connections that have come to rest, for the queue of those to offer.
    pub(super) at_rest: Vec<Token>,
    /// From then on answers say close all the same, for whoever is never at rest.
    pub(super) close_from_ms: u64,
    /// No connection without a request stays longer: it is to be read out before the deadline.
    pub(super) idle_until_ms: u64,
}

impl Closing {
    /// A stop begins.
    pub(super) fn begin(&mut self, rules: StopRules, clock: &Clock) {
        (self.begun, self.has_successor) = (true, rules.has_successor);
        self.close_from_ms = clock.ms_at(rules.close_from);
        self.idle_until_ms = clock.ms_at(rules.idle_until);
    }
}

/// How far the end of a loop's public connections is.
#[derive(Default)]
pub(super) struct Ending {
    /// No further connection is waited for.
    pub(super) finishing: bool,
    /// Exchanges that were cut meanwhile.
    pub(super) cut: u64,
    /// The last public connection is gone, and control knows.
    pub(super) emptied: bool,
    /// The loop ends; what is owed may take until then.
    pub(super) end_ms: Option<u64>,
}
