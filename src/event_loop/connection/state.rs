//! What a connection is.

use std::os::fd::OwnedFd;

use mio::Token;
use smallvec::SmallVec;

use super::{
    super::{
        context::LoopContext,
        exchange::{Effect, Exchange, Forwarding, Outgoing},
        io::{Io, Ready},
        listener::ConnectionPermit,
    },
    turn::Turn,
    waits::{Wait, Waits},
};
use crate::{
    app::{OneUpstream, Peer},
    http::h1::{self, ServerPhase},
    logging::End,
    message::Class,
    registry::AppId,
};

/// A connection of one loop.
pub(in super::super) struct Connection {
    pub(in super::super) token: Token,
    pub(in super::super) class: Class,
    pub(in super::super) peer: Peer,
    pub(in super::super) io: Io,
    pub(super) state: State,
    /// Those whose answer is not all with the kernel, in the order of their answers.
    pub(in super::super) exchanges: SmallVec<[Exchange; 1]>,
    pub(super) waits: Waits,
    pub(super) turn: Turn,
    pub(super) hand_over: HandOver,
    pub(super) permit: ConnectionPermit,
}

/// What a connection is at.
pub(super) enum State {
    /// A PROXY header, which names the peer, comes first.
    Opening,
    /// Requests and their answers.
    Http(h1::Server),
    /// Our side is closed; the peer's is read out.
    Lingering {
        /// Windows of `linger_timeout` that have passed.
        windows: u8,
    },
}

/// Where a connection stands while its loop offers some to another process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum HandOver {
    /// This loop's, like any.
    #[default]
    Local,
    /// This loop's, and in the queue of those that are to be offered.
    Queued,
    /// Offered: no loop watches it until the answer is there.
    Offered,
    /// It was not taken, and stays until it speaks.
    Declined,
}

/// A connection as it was accepted.
pub(in super::super) struct Newcomer {
    pub(in super::super) class: Class,
    pub(in super::super) socket: OwnedFd,
    pub(in super::super) peer: Peer,
    pub(in super::super) permit: ConnectionPermit,
    /// It begins with a PROXY header.
    pub(in super::super) proxy_protocol: bool,
    /// What its peer sent first may have been dropped, and comes again.
    pub(in super::super) is_deaf: bool,
}

/// What the loop does with a connection that has worked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Next {
    /// It waits for its socket or its deadline.
    Wait,
    /// It has used up its turn and has more to do: another turn.
    Turn,
    /// It has a request for an upstream, which is held until the turn's other events are handled.
    Hold,
    /// It is dropped.
    Drop,
    /// It is dropped because a drain's patience has ended.
    Cut,
}

impl Connection {
    pub(in super::super) fn new(token: Token, newcomer: Newcomer, cx: &mut LoopContext) -> Self {
        let is_deaf = newcomer.is_deaf;
        let mut connection = Self::unwatched(token, newcomer);
        if connection.class == Class::Public {
            cx.counts.fresh += 1;
            cx.counts.accepted += 1;
        }
        connection.set_deadline(cx);
        if is_deaf {
            connection.wait_for_resent(cx);
        }
        connection.queue_for_offer(cx);
        connection
    }

    /// A connection that counts nowhere, and has no deadline.
    pub(super) fn unwatched(token: Token, newcomer: Newcomer) -> Self {
        let state = match newcomer.proxy_protocol {
            true => State::Opening,
            false => State::Http(h1::Server::new()),
        };
        Self {
            token,
            class: newcomer.class,
            peer: newcomer.peer,
            io: Io::new(newcomer.socket, Ready { writable: true, ..Ready::default() }),
            state,
            exchanges: SmallVec::new(),
            waits: Waits::new(Wait::Fresh),
            turn: Turn::default(),
            hand_over: HandOver::Local,
            permit: newcomer.permit,
        }
    }

    pub(in super::super) fn socket(&self) -> &OwnedFd {
        self.io.socket()
    }

    /// The protocol's part, while there is one.
    pub(super) fn protocol(&self) -> Option<&h1::Server> {
        match &self.state {
            State::Http(protocol) => Some(protocol),
            State::Opening | State::Lingering { .. } => None,
        }
    }

    pub(super) fn protocol_mut(&mut self) -> Option<&mut h1::Server> {
        match &mut self.state {
            State::Http(protocol) => Some(protocol),
            State::Opening | State::Lingering { .. } => None,
        }
    }

    pub(super) fn is_in_phase(&self, phase: ServerPhase) -> bool {
        self.protocol().is_some_and(|protocol| protocol.phase() == phase)
    }

    /// How its last exchange is with an upstream, if it was passed on to one.
    pub(in super::super) fn forwarding(&self) -> Option<&Forwarding> {
        self.exchanges.last().and_then(Exchange::forwarding)
    }

    /// Whether bytes go both ways as they come.
    pub(super) fn is_tunnel(&self) -> bool {
        self.forwarding().is_some_and(Forwarding::is_tunnel)
    }

    /// Whether another turn of it is queued; says whether that is so from here on.
    pub(in super::super) fn replace_queued(&mut self, is_queued: bool) -> bool {
        std::mem::replace(&mut self.turn.is_queued, is_queued)
    }

    /// Lets the last exchange act, if there is one, and does what it wants of its connection.
    pub(super) fn with_exchange<R: Default>(
        &mut self,
        act: impl FnOnce(&mut Exchange, &mut Outgoing<'_>) -> R,
    ) -> R {
        let (Some(exchange), State::Http(protocol)) = (self.exchanges.last_mut(), &mut self.state)
        else {
            return R::default();
        };
        let mut out = Outgoing {
            io: &mut self.io,
            protocol,
            token: self.token,
            class: self.class,
            peer: self.peer,
            has_next: self.turn.has_next,
            is_declined: self.hand_over == HandOver::Declined,
            effect: Effect::default(),
        };
        let result = act(exchange, &mut out);
        if out.effect.progressed {
            self.waits.end();
        }
        result
    }

    /// Whether no answer is on its way.
    pub(in super::super) fn is_settled(&self, cx: &LoopContext) -> bool {
        let is_awaited = self.exchanges.last().is_some_and(Exchange::awaits_delivery);
        // A peer that came just before another process took over has to be answered, too.
        let is_new = cx.closing.has_successor && self.is_new();
        self.io.outbox.is_empty() && !is_awaited && !is_new
    }

    /// Whether an exchange of this life is in flight here.
    pub(in super::super) fn has_exchange_of(&self, life: AppId) -> bool {
        self.exchanges.iter().any(|exchange| exchange.flight.life() == Some(life))
    }

    /// Whether its exchange is with this upstream.
    pub(in super::super) fn is_forwarding_to(&self, upstream: &OneUpstream) -> bool {
        self.exchanges.last().is_some_and(|exchange| exchange.is_forwarding_to(upstream))
    }

    /// Lets go of exchanges whose last byte is with the kernel.
    pub(super) fn end_sent_exchanges(&mut self, cx: &mut LoopContext) {
        let sent = self.io.outbox.sent();
        let ended = self.exchanges.iter().take_while(|exchange| exchange.flight.end <= sent);
        let ended = ended.count();
        if ended == 0 {
            return;
        }
        // About 25 ns for what a send(2) has sent, which takes a microsecond at least.
        let now_ns = cx.clock.read_ns();
        for exchange in self.exchanges.drain(..ended) {
            exchange.flight.end(sent, End::Complete, now_ns, cx);
        }
    }

    /// The connection is going: what is in flight does not reach its end.
    pub(in super::super) fn abort(self, cx: &mut LoopContext) {
        self.end_all(End::Aborted, cx);
    }

    /// Ends what is in flight because a deadline passed. Returns how many exchanges that cut; those
    /// of one app that wait on one connection are one.
    pub(in super::super) fn cut(self, cx: &mut LoopContext) -> u64 {
        if let Some(forwarding) = self.forwarding() {
            forwarding.count_cut();
        }
        self.end_all(End::Cut, cx)
    }

    /// Returns how many exchanges of a life that cut.
    fn end_all(mut self, how: End, cx: &mut LoopContext) -> u64 {
        let sent = self.io.outbox.sent();
        // First, so that no peer waits any more when the end is reported.
        self.with_exchange(|exchange, out| exchange.abandon(out, cx));
        let now_ns = cx.clock.read_ns();
        let ends =
            self.exchanges.drain(..).map(|exchange| exchange.flight.end(sent, how, now_ns, cx));
        let cut = ends.filter(|is_cut| *is_cut).count() as u64;
        self.uncount(cx);
        cut
    }
}
