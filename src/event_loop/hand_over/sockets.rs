//! A loop's hand-over sockets, on which it offers connections or receives offers.

use std::{collections::VecDeque, os::fd::OwnedFd};

use mio::Token;

/// The old process's side of one loop.
#[derive(Default)]
pub(in super::super) struct OutgoingOffers {
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
    pub(in super::super) fn on_ready(&mut self, token: Token) {
        if let Some(socket) = self.sockets.iter_mut().find(|socket| socket.token == token) {
            socket.ready = true;
        }
    }

    /// Edges may be lost: an answer may be there.
    pub(in super::super) fn recover(&mut self) {
        self.sockets.iter_mut().for_each(|socket| socket.ready = true);
    }

    /// Whether there is work to do at once.
    pub(in super::super) fn has_work(&self) -> bool {
        let is_free = |socket: &OutgoingSocket| socket.offered.is_empty() && !self.queue.is_empty();
        self.sockets.iter().any(|socket| socket.ready || is_free(socket))
    }
}

/// The new process's side of one loop.
#[derive(Default)]
pub(in super::super) struct IncomingOffers(pub(super) Vec<IncomingSocket>);

/// A socket on which offers come.
pub(super) struct IncomingSocket {
    pub(super) socket: OwnedFd,
    pub(super) token: Token,
    /// An edge came: an offer, or the end.
    pub(super) ready: bool,
}

impl IncomingOffers {
    /// An edge came for this token, which may not be one of these.
    pub(in super::super) fn on_ready(&mut self, token: Token) {
        if let Some(socket) = self.0.iter_mut().find(|socket| socket.token == token) {
            socket.ready = true;
        }
    }

    /// Edges may be lost: an offer may be there.
    pub(in super::super) fn recover(&mut self) {
        self.0.iter_mut().for_each(|socket| socket.ready = true);
    }

    /// Whether there is work to do at once.
    pub(in super::super) fn has_work(&self) -> bool {
        self.0.iter().any(|socket| socket.ready)
    }
}
