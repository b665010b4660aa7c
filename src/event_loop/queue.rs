//! Connections with work left, and those with requests that are held back for further events.

use std::collections::VecDeque;

use mio::Token;

/// Connections that get a further turn before the kernel is asked again, so that a small request
/// needn't wait for all the large ones.
pub(super) const QUEUED_TURNS_MAX: usize = 64;

/// Requests for upstreams that are held back for further events, at most.
const HELD_MAX: usize = 64;

/// Connections in the order of their next turns.
#[derive(Default)]
pub(super) struct TurnQueue {
    queue: VecDeque<Token>,
    /// The first connections of the queue that were there when the round began, and haven't had
    /// their turn yet.
    owed: usize,
    /// Connections with requests for upstreams that are held back until the events are handled.
    held: Vec<Token>,
}

impl TurnQueue {
    /// Begins a round if the last one is over.
    pub(super) fn begin_round(&mut self) {
        if self.owed == 0 {
            self.owed = self.queue.len();
        }
    }

    pub(super) fn push(&mut self, token: Token) {
        self.queue.push_back(token);
    }

    /// How many connections get a turn before the kernel is asked again.
    pub(super) fn take_turns(&mut self) -> usize {
        let turns = self.owed.min(QUEUED_TURNS_MAX);
        self.owed -= turns;
        turns
    }

    pub(super) fn pop(&mut self) -> Option<Token> {
        self.queue.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether every connection of the round has had its turn.
    pub(super) fn is_round_over(&self) -> bool {
        self.owed == 0
    }

    pub(super) fn hold(&mut self, token: Token) {
        self.held.push(token);
    }

    /// Whether no further request may be held back.
    pub(super) fn has_held_enough(&self) -> bool {
        self.held.len() >= HELD_MAX
    }

    pub(super) fn take_held(&mut self) -> Vec<Token> {
        std::mem::take(&mut self.held)
    }

    /// Returns the allocation of the held requests.
    pub(super) fn reuse_held(&mut self, room: Vec<Token>) {
        debug_assert!(room.is_empty() && self.held.is_empty());
        self.held = room;
    }

    /// Forgets all connections.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
