//! The old process's side: offers connections, and handles the answers.

use std::os::fd::OwnedFd;

use rustix::{io::Errno, net::RecvFlags};

use super::{
    super::{connection::Connection, running::Running},
    offer::{OFFERED_MAX, TAKEN, send_offer},
    sockets::OutgoingSocket,
};
use crate::logging::event;

impl Running {
    /// Starts offering idle connections on these sockets.
    pub(in super::super) fn begin_hand_over(&mut self, sockets: Vec<OwnedFd>) {
        for socket in sockets {
            let token = match self.poll.watch_listener(&socket) {
                Ok(token) => token,
                Err(error) => {
                    event!(Warn, "hand_over_not_watched", error:% = error);
                    continue;
                }
            };
            self.offers.outgoing.sockets.push(OutgoingSocket {
                socket,
                token,
                ready: false,
                offered: Vec::new(),
            });
        }
        self.cx.closing.hands_over = !self.offers.outgoing.sockets.is_empty();
        for token in self.connections.tokens() {
            if let Some(connection) = self.connections.find(token) {
                connection.begin_hand_over(&mut self.cx);
            }
        }
    }

    /// Handles the answers to the last offers, and sends the next ones. Once a turn.
    pub(in super::super) fn hand_over(&mut self) {
        if self.offers.outgoing.sockets.is_empty() {
            return;
        }
        self.offers.outgoing.queue.extend(self.cx.closing.to_offer.drain(..));
        let mut sockets = std::mem::take(&mut self.offers.outgoing.sockets);
        sockets.retain_mut(|outgoing| {
            let is_open = !std::mem::take(&mut outgoing.ready) || self.receive_answer(outgoing);
            is_open && (!outgoing.offered.is_empty() || self.send_next_offer(outgoing))
        });
        self.offers.outgoing.sockets = sockets;
        if self.offers.outgoing.sockets.is_empty() {
            self.end_hand_over();
        }
    }

    /// Receives the answer to an offer. Returns whether the socket stays open.
    fn receive_answer(&mut self, outgoing: &mut OutgoingSocket) -> bool {
        let mut answer = [0; OFFERED_MAX + 1];
        let heard = rustix::io::retry_on_intr(|| {
            rustix::net::recv(&outgoing.socket, &mut answer[..], RecvFlags::DONTWAIT)
        });
        let answered = match heard {
            Ok((count, _)) if count > 0 && count == outgoing.offered.len() => &answer[..count],
            Err(Errno::AGAIN) => return true,
            // The other end is closed, or the answer makes no sense: none was taken.
            Ok(_) | Err(_) => &[],
        };
        let is_taken = |index: usize| answered.get(index) == Some(&TAKEN);
        for (index, token) in std::mem::take(&mut outgoing.offered).into_iter().enumerate() {
            if is_taken(index) {
                if let Some(connection) = self.connections.remove(token) {
                    self.cx.accounting.counts.handed_over += 1;
                    connection.leave(&mut self.cx);
                }
            } else {
                self.with_connection(token, Connection::on_declined);
            }
        }
        self.end_pauses();
        !answered.is_empty()
    }

    /// Offers the connections in the queue. Returns whether the socket stays open.
    fn send_next_offer(&mut self, outgoing: &mut OutgoingSocket) -> bool {
        for _ in 0..self.offers.outgoing.queue.len() {
            if outgoing.offered.len() == OFFERED_MAX {
                break;
            }
            let Some(token) = self.offers.outgoing.queue.pop_front() else { break };
            let Some(connection) = self.connections.find(token) else { continue };
            if connection.begin_offer(&self.cx) {
                outgoing.offered.push(token);
            }
        }
        if outgoing.offered.is_empty() {
            return true;
        }
        let offered = outgoing.offered.iter().filter_map(|token| self.connections.get(*token));
        let (facts, sockets): (Vec<_>, Vec<_>) =
            offered.map(|connection| connection.facts(&self.cx)).unzip();
        let Err(error) = send_offer(&outgoing.socket, facts, &sockets) else { return true };
        event!(Warn, "connections_not_offered", error:% = error);
        for token in std::mem::take(&mut outgoing.offered) {
            self.with_connection(token, Connection::on_declined);
        }
        false
    }

    /// No socket is left: the remaining connections stay until their client sends a request.
    fn end_hand_over(&mut self) {
        self.cx.closing.hands_over = false;
        self.offers.outgoing.queue.clear();
        self.cx.closing.to_offer.clear();
    }
}
