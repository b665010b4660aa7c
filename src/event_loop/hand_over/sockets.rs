//! A loop's hand-over sockets, on which it offers connections or receives offers.

use std::{collections::VecDeque, os::fd::OwnedFd};

use mio::Token;

/// A loop's hand-over sockets: a process may take over connections, and offer them on.
#[derive(Default)]
pub(in super::super) struct Offers {
    pub(super) outgoing: OutgoingOffers,
    pub(super) incoming: IncomingOffers,
}

impl Offers {
    /// An edge came for this token, which may not be one of these.
    pub(in super::super) fn on_ready(&mut self, token: Token) {
        self.outgoing.on_ready(token);
        self.incoming.on_ready(token);
    }

    /// Edges may be lost: on each socket something may have come.
    pub(in super::super) fn recover(&mut self) {
        self.outgoing.sockets.iter_mut().for_each(|socket| socket.ready = true);
        self.incoming.0.iter_mut().for_each(|socket| socket.ready = true);
    }

    /// Whether there is work to do at once.
    pub(in super::super) fn has_work(&self) -> bool {
        self.outgoing.has_work() || self.incoming.0.iter().any(|socket| socket.ready)
    }
}

/// The old process's side of one loop.
#[derive(Default)]
pub(super) struct OutgoingOffers {
    pub(super) sockets: Vec<OutgoingSocket>,
    /// Connections that were idle when they were queued.
    pub(super) queue: VecDeque<Token>,
}

/// A socket on which connections are offered.
pub(super) struct OutgoingSocket {
    pub(super) socket: OwnedFd,
    pub(super) token: Token,
    /// An edge came: an answer, or the end.
    pub(super) ready: bool,
    /// The connections of the unanswered offer.
    pub(super) offered: Vec<Token>,
}

impl OutgoingOffers {
    /// An edge came for this token, which may not be one of these.
    fn on_ready(&mut self, token: Token) {
        if let Some(socket) = self.sockets.iter_mut().find(|socket| socket.token == token) {
            socket.ready = true;
        }
    }

    /// Whether there is work to do at once.
    fn has_work(&self) -> bool {
        let is_free = |socket: &OutgoingSocket| socket.offered.is_empty() && !self.queue.is_empty();
        self.sockets.iter().any(|socket| socket.ready || is_free(socket))
    }
}

/// The new process's side of one loop.
#[derive(Default)]
pub(super) struct IncomingOffers(pub(super) Vec<IncomingSocket>);

/// A socket on which offers come.
pub(super) struct IncomingSocket {
    pub(super) socket: OwnedFd,
    pub(super) token: Token,
    /// An edge came: an offer, or the end.
    pub(super) ready: bool,
}

impl IncomingOffers {
    /// An edge came for this token, which may not be one of these.
    fn on_ready(&mut self, token: Token) {
        if let Some(socket) = self.0.iter_mut().find(|socket| socket.token == token) {
            socket.ready = true;
        }
    }
}
