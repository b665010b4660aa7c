//! Accepting: the listeners of one class, and the places they share.
//!
//! Owns the listening sockets. A turn accepts some connections from each listener with a backlog.
//! Without a place or a descriptor it pauses, for this class alone: the admin still gets in when
//! public connections use up their places.

use std::{net::SocketAddr, os::fd::OwnedFd, time::Duration};

use mio::Token;

use super::{
    clock::Throttle,
    listener::{Accepted, ConnectionBudget, ConnectionPermit, Listener},
};
use crate::{app::Peer, duration::milliseconds, logging::event, message::PublicSocket};

/// Connections accepted from one listener in a turn.
pub(super) const ACCEPTS_PER_TURN: usize = 64;

/// How long accepting pauses when it has run out of descriptors or places, unless one becomes free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Shortest time between two log lines about pauses: a machine out of descriptors is busy enough.
const ACCEPT_LOG_EVERY: Duration = Duration::from_secs(1);

/// The listeners of one class. Times are milliseconds of the loop's clock.
pub(super) struct Acceptor {
    listeners: Vec<Listener>,
    budget: ConnectionBudget,
    /// The listener that accepts first.
    first: usize,
    /// When a pause ends and accepting is tried again.
    resume_ms: Option<u64>,
    /// The pause is for want of a descriptor, and hasn't been reported yet.
    exhausted: bool,
    /// For pauses.
    log: Throttle,
}

impl Acceptor {
    pub(super) fn new(budget: ConnectionBudget) -> Self {
        let (listeners, first, resume_ms) = (Vec::new(), 0, None);
        Self { listeners, budget, first, resume_ms, exhausted: false, log: Throttle::default() }
    }

    pub(super) fn add(&mut self, listener: Listener) {
        self.listeners.push(listener);
    }

    /// An edge came for this token, which may belong to another class or to a closed listener.
    pub(super) fn on_ready(&mut self, token: Token) {
        if let Some(listener) = self.listeners.iter_mut().find(|known| known.token == token) {
            listener.ready = true;
        }
    }

    /// Edges may be lost, so every listener may have a backlog.
    pub(super) fn recover(&mut self) {
        self.listeners.iter_mut().for_each(|listener| listener.ready = true);
    }

    /// Whether connections can be accepted at once.
    pub(super) fn can_accept(&self) -> bool {
        self.resume_ms.is_none() && self.listeners.iter().any(|listener| listener.ready)
    }

    /// When a pause ends.
    pub(super) fn resume_ms(&self) -> Option<u64> {
        self.resume_ms
    }

    /// Whether accepting ran out of descriptors since the last call.
    pub(super) fn take_exhausted(&mut self) -> bool {
        std::mem::take(&mut self.exhausted)
    }

    /// A place or a descriptor has become free.
    pub(super) fn end_pause(&mut self) {
        if self.resume_ms.is_some() {
            self.resume_ms = Some(0);
        }
    }

    /// A place for a connection that another process hands over, if there is one.
    pub(super) fn take_permit(&self) -> Option<ConnectionPermit> {
        self.budget.take()
    }

    /// Accepts from every listener with a backlog, at most a turn's worth from each.
    pub(super) fn accept_all(
        &mut self,
        now_ms: u64,
        mut take: impl FnMut(OwnedFd, Peer, ConnectionPermit, &Listener),
    ) {
        match self.resume_ms {
            Some(resume_ms) if resume_ms > now_ms => return,
            Some(_) => self.resume_ms = None,
            None if !self.can_accept() => return,
            None => {}
        }
        let (first, count) = (self.first, self.listeners.len());
        for index in (first..first + count).map(|index| index % count) {
            for _ in 0..ACCEPTS_PER_TURN {
                if !self.accept_one(index, now_ms, &mut take) {
                    break;
                }
            }
            if self.resume_ms.is_some() {
                // The other listeners come first next time, or one busy address would take every
                // place.
                self.first = index + 1;
                break;
            }
        }
    }

    /// Accepts once. Returns whether to go on.
    fn accept_one(
        &mut self,
        index: usize,
        now_ms: u64,
        take: &mut impl FnMut(OwnedFd, Peer, ConnectionPermit, &Listener),
    ) -> bool {
        let listener = &mut self.listeners[index];
        if !listener.ready {
            return false;
        }
        let pause_until = now_ms + milliseconds(ACCEPT_PAUSE);
        let Some(permit) = self.budget.take() else {
            self.resume_ms = Some(pause_until);
            return false;
        };
        match listener.accept() {
            Accepted::Empty => false,
            Accepted::Vanished => true,
            Accepted::Exhausted(error) => {
                (self.resume_ms, self.exhausted) = (Some(pause_until), true);
                if self.log.passes(now_ms, ACCEPT_LOG_EVERY) {
                    event!(Warn, "accept_paused", error:% = error);
                }
                false
            }
            Accepted::Connection(socket, peer) => {
                take(socket, peer, permit, listener);
                true
            }
        }
    }

    /// Gates the listeners of these addresses. Returns the sinks, which have to be served.
    pub(super) fn gate(&mut self, which: impl Fn(SocketAddr) -> bool) -> Vec<PublicSocket> {
        let mut sinks = Vec::new();
        for listener in self.listeners.iter_mut().filter(|listener| is_selected(listener, &which)) {
            match listener.gate() {
                Ok(sink) => sinks.extend(sink),
                Err(error) => event!(
                    Warn,
                    "gate_failed",
                    error:% = error,
                    hint = "this kernel has no IP_MINTTL: a stop resets connections that come \
                            while the listeners close",
                ),
            }
        }
        sinks
    }

    /// The listeners of these addresses are gated on every loop: they close when their queues are
    /// empty.
    pub(super) fn begin_closing(&mut self, which: impl Fn(SocketAddr) -> bool) {
        for listener in self.listeners.iter_mut().filter(|listener| is_selected(listener, &which)) {
            (listener.ready, listener.closing) = (true, true);
            self.resume_ms = None;
        }
    }

    /// Takes out the listeners that can close: gated, and with an empty queue, closing resets no
    /// peer. The kernel is asked right before the close, because accept(2) may have run out of
    /// descriptors before the queue was empty, and some peers pass the gate.
    pub(super) fn take_empty(&mut self) -> Vec<Listener> {
        let is_empty = |listener: &mut Listener| {
            let is_done = listener.closing && !listener.has_backlog();
            // No further edge comes for this backlog.
            listener.ready |= listener.closing && !is_done;
            is_done
        };
        self.listeners.extract_if(.., is_empty).collect()
    }

    /// Takes the listeners of these addresses out.
    pub(super) fn take(&mut self, which: impl Fn(Option<SocketAddr>) -> bool) -> Vec<Listener> {
        self.listeners.extract_if(.., |listener| which(listener.address)).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.listeners.is_empty()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.listeners.len()
    }
}

fn is_selected(listener: &Listener, which: &impl Fn(SocketAddr) -> bool) -> bool {
    listener.address.is_some_and(which)
}
