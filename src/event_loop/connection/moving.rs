//! Moving a connection to another process, or taking one; `hand_over` has the protocol.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use mio::Token;

use super::{
    super::{context::LoopContext, hand_over::ConnectionFacts, listener::ConnectionPermit},
    state::{Connection, HandOver, NewConnection, Next, State},
    waits::{Wait, Waits},
};
use crate::{app::Peer, config::ListenOptions, message::Class};

impl Connection {
    /// A connection that another process has handed over.
    pub(in super::super) fn from_offer(
        token: Token,
        facts: &ConnectionFacts,
        socket: OwnedFd,
        permit: ConnectionPermit,
        cx: &mut LoopContext,
    ) -> Self {
        let peer = facts.peer.map_or(Peer::Unix, Peer::Tcp);
        let proxy_protocol = facts.awaits_proxy_header;
        let options = ListenOptions { proxy_protocol, ..ListenOptions::default() };
        let (class, is_deaf) = (Class::Public, false);
        let new = NewConnection { class, socket, peer, permit, options, is_deaf };
        let mut connection = Self::unwatched(token, new);
        connection.io.set_received_total(facts.received);
        connection.waits = Waits::new(connection.waits_for());
        connection.count(cx);
        connection.set_deadline(cx);
        let at = cx.clock.now_ms().saturating_add(facts.left_ms);
        connection.shorten_to(at, cx);
        connection.queue_for_offer(cx);
        connection
    }

    /// Its loop starts offering connections, not necessarily for the first time.
    pub(in super::super) fn begin_hand_over(&mut self, cx: &mut LoopContext) {
        if self.hand_over != HandOver::Offered {
            self.hand_over = HandOver::Local;
            self.queue_for_offer(cx);
        }
    }

    /// Queues the connection for an offer, if its loop hands connections over and it is idle.
    pub(super) fn queue_for_offer(&mut self, cx: &mut LoopContext) {
        let waits = matches!(self.waits.current(), Wait::Fresh | Wait::Idle);
        if cx.closing.hands_over
            && waits
            && self.class == Class::Public
            && self.hand_over == HandOver::Local
        {
            if self.is_tls() {
                // A session can't move: it stays until it speaks.
                self.hand_over = HandOver::Declined;
                return;
            }
            self.hand_over = HandOver::Queued;
            cx.closing.to_offer.push(self.token);
        }
    }

    /// Takes the connection off the queue and unwatches it, if it can still be offered.
    pub(in super::super) fn begin_offer(&mut self, cx: &LoopContext) -> bool {
        if self.hand_over != HandOver::Queued {
            return false;
        }
        self.hand_over = HandOver::Local;
        let is_unwatched = self.can_be_offered() && cx.upstreams.unwatch(self.io.socket()).is_ok();
        if is_unwatched {
            self.hand_over = HandOver::Offered;
        }
        is_unwatched
    }

    /// Whether no byte of a request or an answer is in this process.
    fn can_be_offered(&self) -> bool {
        let waits = matches!(self.waits_for(), Wait::Fresh | Wait::Idle);
        let holds_no_request =
            !self.io.has_input() && self.exchanges.is_empty() && !self.turn.is_queued;
        // If the peer has closed, the connection ends here.
        waits && holds_no_request && !self.io.ready.read_closed && !self.io.ready.failed
    }

    /// What another process has to know about it.
    pub(in super::super) fn facts(&self, cx: &LoopContext) -> (ConnectionFacts, BorrowedFd<'_>) {
        let peer = match self.peer {
            Peer::Tcp(address) => Some(address),
            Peer::Unix => None,
        };
        let facts = ConnectionFacts {
            peer,
            awaits_proxy_header: matches!(self.state, State::Opening(_)),
            received: self.io.received_total(),
            left_ms: self.waits.deadline.at().saturating_sub(cx.clock.now_ms()),
        };
        (facts, self.io.socket().as_fd())
    }

    /// Whether another process may have it.
    pub(in super::super) fn is_offered(&self) -> bool {
        self.hand_over == HandOver::Offered
    }

    /// Another process has taken it.
    pub(in super::super) fn leave(self, cx: &mut LoopContext) {
        self.uncount(cx);
    }

    /// The other process didn't take it. epoll reports what has arrived since.
    pub(in super::super) fn on_declined(&mut self, cx: &mut LoopContext) -> Next {
        self.hand_over = HandOver::Declined;
        if cx.upstreams.watch(self.io.socket(), self.token).is_err() {
            return Next::Drop;
        }
        // A check of its deadline may have been missed.
        let at = self.waits.deadline.at();
        self.waits.set(at, self.token, &mut cx.timers);
        Next::Wait
    }
}
