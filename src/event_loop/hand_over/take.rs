//! The new process's side: what it takes of the connections that are offered.

use std::os::fd::OwnedFd;

use mio::Interest;
use rustix::net::SendFlags;

use super::{
    super::{
        connection::Connection,
        io::{BOTH_WAYS, watch},
        listener::ConnectionPermit,
        running::Running,
    },
    lines::TakingLine,
    offer::{Handed, NOT_TAKEN, TAKEN, receive_offer},
};
use crate::{app::Peer, logging::event, message::Class};

impl Running {
    /// From here on offers come by this line.
    pub(in super::super) fn begin_taking(&mut self, socket: OwnedFd) {
        let token = self.next_listener_token();
        match watch(self.poll.registry(), &socket, token, Interest::READABLE) {
            Ok(()) => self.taking.0.push(TakingLine { socket, token, ready: true }),
            // With the line the other side closes, and keeps what it has.
            Err(error) => event!(Warn, "line_not_watched", error:% = error),
        }
    }

    /// Takes one offer from each line that has one.
    pub(in super::super) fn take_offers(&mut self) {
        let mut lines = std::mem::take(&mut self.taking.0);
        lines.retain_mut(|line| !line.ready || self.take_offer(line));
        self.taking.0 = lines;
    }

    /// Returns whether the line goes on.
    fn take_offer(&mut self, line: &mut TakingLine) -> bool {
        let (connections, sockets) = match receive_offer(&line.socket) {
            Ok(offered) => offered,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                line.ready = false;
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
        let said =
            rustix::io::retry_on_intr(|| rustix::net::send(&line.socket, &answer, flags).map(drop));
        if let Err(errno) = said {
            // The old process has them still, if it is there.
            event!(Warn, "connections_not_taken", error:% = errno);
            return false;
        }
        for (facts, socket, permit) in taken {
            self.take_connection(&facts, socket, permit);
        }
        true
    }

    /// A place for an offered connection, if there is one.
    fn permit_for(&self, facts: &Handed) -> Option<ConnectionPermit> {
        let is_ending = self.ending.emptied || self.ending.end_ms.is_some();
        if is_ending || (self.cx.closing.begun && !self.cx.closing.gives) {
            return None;
        }
        let mut permit = self.acceptors[Class::Public].take_permit()?;
        let peer = facts.peer.map_or(Peer::Unix, Peer::Tcp);
        // Behind a PROXY header the client is known later.
        (facts.awaits_proxy_header || permit.count_for(peer)).then_some(permit)
    }

    fn take_connection(&mut self, facts: &Handed, socket: OwnedFd, permit: ConnectionPermit) {
        let Self { poll, connections, cx, .. } = self;
        let inserted = connections.insert(|token| {
            let connection = Connection::taken(token, facts, socket, permit, cx);
            let watched = watch(poll.registry(), connection.socket(), token, BOTH_WAYS);
            watched.inspect_err(|_| connection.uncount(cx)).map(|()| connection)
        });
        match inserted {
            Ok(_) => self.cx.counts.taken_over += 1,
            Err(error) => event!(Warn, "connection_not_watched", error:% = error),
        }
    }
}
