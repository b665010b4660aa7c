//! A connection that moves to another process, or comes from one; `hand_over` has the protocol.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use mio::Token;

use super::{
    super::{context::LoopContext, hand_over::Handed, listener::ConnectionPermit},
    state::{Connection, Newcomer, Next, Place, State},
    waits::{Wait, Waits},
};
use crate::{app::Peer, message::Class};

impl Connection {
    /// A connection that another process had.
    pub(in super::super) fn taken(
        token: Token,
        facts: &Handed,
        socket: OwnedFd,
        permit: ConnectionPermit,
        cx: &mut LoopContext,
    ) -> Self {
        let peer = facts.peer.map_or(Peer::Unix, Peer::Tcp);
        let proxy_protocol = facts.awaits_proxy_header;
        let (class, is_deaf) = (Class::Public, false);
        let newcomer = Newcomer { class, socket, peer, permit, proxy_protocol, is_deaf };
        let mut connection = Self::unwatched(token, newcomer);
        connection.io.begin_at(facts.received);
        connection.waits = Waits::new(connection.waits_for());
        connection.count(cx);
        connection.set_deadline(cx);
        let at = cx.clock.now_ms().saturating_add(facts.left_ms);
        connection.shorten_to(at, cx);
        connection.queue_at_rest(cx);
        connection
    }

    /// Its loop begins to offer connections to another process, perhaps not the first one.
    pub(in super::super) fn begin_giving(&mut self, cx: &mut LoopContext) {
        if self.place != Place::Offered {
            self.place = Place::Ours;
            self.queue_at_rest(cx);
        }
    }

    /// Has it offered, if its loop offers connections, when its turn comes.
    pub(super) fn queue_at_rest(&mut self, cx: &mut LoopContext) {
        let waits = matches!(self.waits.current(), Wait::Fresh | Wait::Idle);
        if cx.closing.gives && waits && self.class == Class::Public && self.place == Place::Ours {
            self.place = Place::Queued;
            cx.closing.at_rest.push(self.token);
        }
    }

    /// Takes it from the queue, and from its loop's watch, if it is still at rest.
    pub(in super::super) fn begin_offer(&mut self, cx: &LoopContext) -> bool {
        if self.place != Place::Queued {
            return false;
        }
        self.place = Place::Ours;
        let is_watched = self.is_at_rest() && cx.upstreams.watch_no_more(self.io.socket()).is_ok();
        if is_watched {
            self.place = Place::Offered;
        }
        is_watched
    }

    /// Whether nothing of a request or of an answer is in this process.
    fn is_at_rest(&self) -> bool {
        let waits = matches!(self.waits_for(), Wait::Fresh | Wait::Idle);
        let is_bare = !self.io.has_input() && self.exchanges.is_empty() && !self.turn.is_queued;
        // One whose peer has closed ends here.
        waits && is_bare && !self.io.ready.read_closed && !self.io.ready.failed
    }

    /// What another process has to know.
    pub(in super::super) fn handed(&self, cx: &LoopContext) -> (Handed, BorrowedFd<'_>) {
        let peer = match self.peer {
            Peer::Tcp(address) => Some(address),
            Peer::Unix => None,
        };
        let handed = Handed {
            peer,
            awaits_proxy_header: matches!(self.state, State::Opening),
            received: self.io.received_total(),
            left_ms: self.waits.deadline.at().saturating_sub(cx.clock.now_ms()),
        };
        (handed, self.io.socket().as_fd())
    }

    /// Whether another process may have it.
    pub(in super::super) fn is_offered(&self) -> bool {
        self.place == Place::Offered
    }

    /// Another process has it.
    pub(in super::super) fn leave(self, cx: &mut LoopContext) {
        self.uncount(cx);
    }

    /// It was not taken: what came meanwhile is reported when it is watched.
    pub(in super::super) fn stay(&mut self, cx: &mut LoopContext) -> Next {
        self.place = Place::Kept;
        if cx.upstreams.watch_again(self.io.socket(), self.token).is_err() {
            return Next::Drop;
        }
        // A look at its deadline may have passed.
        let at = self.waits.deadline.at();
        self.waits.set(at, self.token, &mut cx.timers);
        Next::Wait
    }
}
