//! What a stop or an upgrade asks of public connections.

use mio::Token;

use super::LoopContext;
use crate::message::{Class, StopRules};

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
    close_from_ms: u64,
    /// No connection without a request stays longer: it is to be read out before the deadline.
    pub(super) idle_until_ms: u64,
}

impl LoopContext {
    /// A stop begins.
    pub(super) fn begin_closing(&mut self, rules: StopRules) {
        let (clock, closing) = (&self.clock, &mut self.closing);
        (closing.begun, closing.has_successor) = (true, rules.has_successor);
        closing.close_from_ms = clock.ms_at(rules.close_from);
        closing.idle_until_ms = clock.ms_at(rules.idle_until);
    }

    /// Whether a stop asks connections of this class to end.
    pub(super) fn is_closing(&self, class: Class) -> bool {
        self.closing.begun && class == Class::Public
    }

    /// Whether a connection that comes to rest may be another process's then.
    pub(super) fn gives_on(&self) -> bool {
        self.closing.gives && self.clock.now_ms() < self.closing.close_from_ms
    }
}
