//! A connection's state.

use std::os::fd::OwnedFd;

use mio::Token;
use smallvec::SmallVec;

use super::{
    super::{
        context::LoopContext,
        exchange::{Exchange, Forwarding},
        listener::ConnectionPermit,
    },
    turn::Turn,
    waits::{Wait, Waits},
};
use crate::{
    app::Peer,
    config::ListenOptions,
    http::{Protocol, ServerPhase},
    io::{Io, Ready},
    logging::End,
    message::Class,
};

/// A connection of one loop.
pub(in super::super) struct Connection {
    pub(in super::super) token: Token,
    pub(in super::super) class: Class,
    pub(in super::super) peer: Peer,
    pub(in super::super) io: Io,
    pub(super) state: State,
    /// Exchanges in flight, in the order of their answers.
    pub(in super::super) exchanges: SmallVec<[Exchange; 1]>,
    pub(super) waits: Waits,
    pub(super) turn: Turn,
    pub(super) hand_over: HandOver,
    pub(super) permit: ConnectionPermit,
}

/// The stage of a connection.
pub(super) enum State {
    /// Something comes before the first request.
    Opening(Opening),
    /// Requests and their answers.
    Http(Protocol),
    /// Our side is closed; the peer's bytes are read and dropped.
    Lingering {
        /// Windows of `linger_timeout` that have passed.
        windows: u8,
    },
}

impl State {
    /// What a connection of a listener with these options begins with.
    pub(super) fn first(options: ListenOptions) -> Self {
        match options.proxy_protocol {
            true => Self::Opening(Opening::ProxyHeader(options)),
            false => Self::behind_proxy_header(options),
        }
    }

    /// What comes behind the PROXY header, or without one.
    pub(super) fn behind_proxy_header(options: ListenOptions) -> Self {
        if options.tls { Self::Opening(Opening::Hello) } else { Self::Http(Protocol::h1()) }
    }
}

/// What comes next of what precedes the first request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Opening {
    /// A PROXY header, and then TLS or a request.
    ProxyHeader(ListenOptions),
    /// The first message of a TLS handshake.
    Hello,
    /// The rest of it.
    Handshake,
}

/// How far the hand-over of a connection to another process has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum HandOver {
    /// Not offered.
    #[default]
    Local,
    /// In the queue for an offer.
    Queued,
    /// Offered: no loop watches it until the answer arrives.
    Offered,
    /// The other process didn't take it: it stays until its next request.
    Declined,
}

/// A newly accepted connection.
pub(in super::super) struct NewConnection {
    pub(in super::super) class: Class,
    pub(in super::super) socket: OwnedFd,
    pub(in super::super) peer: Peer,
    pub(in super::super) permit: ConnectionPermit,
    /// Those of its listener.
    pub(in super::super) options: ListenOptions,
    /// The gate may have dropped its first bytes, which the peer retransmits.
    pub(in super::super) is_deaf: bool,
}

/// What the loop does with a connection after it has run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Next {
    /// It waits for its socket or its deadline.
    Wait,
    /// It has used up its turn and has more to do: queue another turn.
    Turn,
    /// It has a request for an upstream, held back until the turn's other events are handled.
    Hold,
    /// Drop it.
    Drop,
    /// Cut it: a tunnel has outlasted a drain.
    Cut,
}

impl Connection {
    pub(in super::super) fn new(
        token: Token,
        accepted: NewConnection,
        cx: &mut LoopContext,
    ) -> Self {
        let is_deaf = accepted.is_deaf;
        let mut connection = Self::unwatched(token, accepted);
        if connection.class == Class::Public {
            cx.accounting.counts.fresh += 1;
            cx.accounting.counts.accepted += 1;
        }
        connection.set_deadline(cx);
        if is_deaf {
            connection.wait_for_resent(cx);
        }
        connection.queue_for_offer(cx);
        connection
    }

    /// A connection that isn't counted yet and has no deadline.
    pub(super) fn unwatched(token: Token, accepted: NewConnection) -> Self {
        Self {
            token,
            class: accepted.class,
            peer: accepted.peer,
            io: Io::new(accepted.socket, Ready { writable: true, ..Ready::default() }),
            state: State::first(accepted.options),
            exchanges: SmallVec::new(),
            waits: Waits::new(Wait::Fresh),
            turn: Turn::default(),
            hand_over: HandOver::Local,
            permit: accepted.permit,
        }
    }

    pub(in super::super) fn socket(&self) -> &OwnedFd {
        self.io.socket()
    }

    /// The protocol's state, if it has reached that.
    pub(super) fn protocol(&self) -> Option<&Protocol> {
        match &self.state {
            State::Http(protocol) => Some(protocol),
            State::Opening(_) | State::Lingering { .. } => None,
        }
    }

    pub(super) fn is_in_phase(&self, phase: ServerPhase) -> bool {
        self.protocol().is_some_and(|protocol| protocol.phase() == phase)
    }

    /// What is forwarded to upstreams, exchange by exchange.
    pub(in super::super) fn forwardings(&self) -> impl Iterator<Item = &Forwarding> {
        self.exchanges.iter().filter_map(Exchange::forwarding)
    }

    /// Sets whether another turn is queued. Returns the previous value.
    pub(in super::super) fn replace_queued(&mut self, is_queued: bool) -> bool {
        std::mem::replace(&mut self.turn.is_queued, is_queued)
    }

    /// Whether no answer is pending.
    pub(in super::super) fn is_settled(&self, cx: &LoopContext) -> bool {
        let is_awaited = self.exchanges.iter().any(Exchange::awaits_delivery);
        // A peer that connected just before another process took over is owed an answer, too.
        let is_new = cx.closing.has_successor && self.is_new();
        self.io.outbox.is_empty() && !is_awaited && !is_new
    }

    /// Ends exchanges when the kernel has their last byte.
    pub(super) fn end_sent_exchanges(&mut self, cx: &mut LoopContext) {
        let sent = self.io.outbox.sent();
        let mut now_ns = None;
        self.exchanges.retain(|exchange| {
            let is_over = exchange.flight.is_sent(sent);
            if is_over {
                // About 25 ns, beside a send(2) that takes a microsecond at least.
                let now_ns = *now_ns.get_or_insert_with(|| cx.clock.read_ns());
                exchange.flight.end(sent, End::Complete, now_ns, cx);
            }
            !is_over
        });
    }

    /// The connection ends before its exchanges have completed.
    pub(in super::super) fn abort(self, cx: &mut LoopContext) {
        self.end_all(End::Aborted, cx);
    }

    /// Ends the exchanges because a deadline has passed. Returns how many were cut; exchanges of
    /// one app that wait on the connection together count as one.
    pub(in super::super) fn cut(self, cx: &mut LoopContext) -> u64 {
        self.forwardings().for_each(Forwarding::count_cut);
        self.end_all(End::Cut, cx)
    }

    /// Returns how many exchanges of a life were cut.
    fn end_all(mut self, how: End, cx: &mut LoopContext) -> u64 {
        self.end_handshake(cx);
        let sent = self.io.outbox.sent();
        // First, so that no `Later` still sees a waiting peer when the end is reported.
        for place in 0..self.exchanges.len() {
            self.with_exchange_at(place, |exchange, out| exchange.abandon(out, cx));
        }
        let now_ns = cx.clock.read_ns();
        let ends =
            self.exchanges.iter_mut().map(|exchange| exchange.flight.end(sent, how, now_ns, cx));
        let cut = ends.filter(|is_cut| *is_cut).count() as u64;
        self.uncount(cx);
        cut
    }
}
