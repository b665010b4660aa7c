//! The new process's side: takes the connections that it has room for.

use std::os::fd::OwnedFd;

use rustix::net::SendFlags;

use super::{
    super::{connection::Connection, listener::ConnectionPermit, running::Running},
    offer::{ConnectionFacts, NOT_TAKEN, TAKEN, receive_offer},
    sockets::IncomingSocket,
};
use crate::{
    app::Peer,
    io::{BOTH_WAYS, watch},
    logging::event,
    message::Class,
};

impl Running {
    /// Starts receiving offers on this socket.
    pub(in super::super) fn begin_taking_over(&mut self, socket: OwnedFd) {
        match self.poll.watch_listener(&socket) {
            Ok(token) => self.offers.incoming.0.push(IncomingSocket { socket, token, ready: true }),
            // This closes the socket, so the other side keeps its connections.
            Err(error) => event!(Warn, "hand_over_not_watched", error:% = error),
        }
    }

    /// Takes one offer from each socket that has one.
    pub(in super::super) fn take_offers(&mut self) {
        let mut sockets = std::mem::take(&mut self.offers.incoming.0);
        sockets.retain_mut(|incoming| !incoming.ready || self.take_offer(incoming));
        self.offers.incoming.0 = sockets;
    }

    /// Returns whether the socket stays open.
    fn take_offer(&mut self, incoming: &mut IncomingSocket) -> bool {
        let (connections, sockets) = match receive_offer(&incoming.socket) {
            Ok(offered) => offered,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                incoming.ready = false;
                return true;
            }
            Err(error) => {
                if error.kind() != std::io::ErrorKind::UnexpectedEof {
                    event!(Warn, "connections_not_taken", error:% = error);
                }
                return false;
            }
        };
        let mut answer = vec![NOT_TAKEN; connections.len()];
        let mut taken = Vec::new();
        for (index, (facts, socket)) in connections.into_iter().zip(sockets).enumerate() {
            if let Some(permit) = self.permit_for(&facts) {
                answer[index] = TAKEN;
                taken.push((facts, socket, permit));
            }
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let said = rustix::io::retry_on_intr(|| {
            rustix::net::send(&incoming.socket, &answer, flags).map(drop)
        });
        if let Err(errno) = said {
            // The old process still has the connections, if it lives.
            event!(Warn, "connections_not_taken", error:% = errno);
            return false;
        }
        for (facts, socket, permit) in taken {
            self.take_connection(&facts, socket, permit);
        }
        true
    }

    /// A place for an offered connection, if there is one.
    fn permit_for(&self, facts: &ConnectionFacts) -> Option<ConnectionPermit> {
        let is_ending = self.ending.is_emptied() || self.ending.end_ms.is_some();
        if is_ending || (self.cx.closing.begun && !self.cx.closing.hands_over) {
            return None;
        }
        let mut permit = self.acceptors[Class::Public].take_permit()?;
        let peer = facts.peer.map_or(Peer::Unix, Peer::Tcp);
        // Behind a PROXY header the client isn't known yet.
        (facts.awaits_proxy_header || permit.count_for(peer)).then_some(permit)
    }

    fn take_connection(
        &mut self,
        facts: &ConnectionFacts,
        socket: OwnedFd,
        permit: ConnectionPermit,
    ) {
        let Self { poll, connections, cx, .. } = self;
        let inserted = connections.insert(|token| {
            let connection = Connection::from_offer(token, facts, socket, permit, cx);
            let watched = watch(poll.registry(), connection.socket(), token, BOTH_WAYS);
            watched.inspect_err(|_| connection.uncount(cx)).map(|()| connection)
        });
        match inserted {
            Ok(_) => self.cx.accounting.counts.taken_over += 1,
            Err(error) => event!(Warn, "connection_not_watched", error:% = error),
        }
    }
}
