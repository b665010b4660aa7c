//! The old process's side: which connections are offered, and what becomes of them.

use std::os::fd::OwnedFd;

use mio::Interest;
use rustix::{io::Errno, net::RecvFlags};

use super::{
    super::{connection::Connection, io::watch, running::Running},
    lines::GivingLine,
    offer::{OFFERED_MAX, TAKEN, send_offer},
};
use crate::logging::event;

impl Running {
    /// From here on connections at rest are offered on these lines.
    pub(in super::super) fn begin_giving(&mut self, sockets: Vec<OwnedFd>) {
        for socket in sockets {
            let token = self.next_listener_token();
            if let Err(error) = watch(self.poll.registry(), &socket, token, Interest::READABLE) {
                event!(Warn, "line_not_watched", error:% = error);
                continue;
            }
            self.giving.lines.push(GivingLine { socket, token, ready: false, offered: Vec::new() });
        }
        self.cx.closing.gives = !self.giving.lines.is_empty();
        for token in self.connections.tokens() {
            if let Some(connection) = self.connections.find(token) {
                connection.begin_giving(&mut self.cx);
            }
        }
    }

    /// Hears what became of the last offers, and makes the next ones. Once a turn.
    pub(in super::super) fn give(&mut self) {
        if self.giving.lines.is_empty() {
            return;
        }
        self.giving.queue.extend(self.cx.closing.at_rest.drain(..));
        let mut lines = std::mem::take(&mut self.giving.lines);
        lines.retain_mut(|line| {
            let goes_on = !std::mem::take(&mut line.ready) || self.hear(line);
            goes_on && (!line.offered.is_empty() || self.offer(line))
        });
        self.giving.lines = lines;
        if self.giving.lines.is_empty() {
            self.end_giving();
        }
    }

    /// Takes the answer to an offer. Returns whether the line goes on.
    fn hear(&mut self, line: &mut GivingLine) -> bool {
        let mut answer = [0; OFFERED_MAX + 1];
        let heard = rustix::io::retry_on_intr(|| {
            rustix::net::recv(&line.socket, &mut answer[..], RecvFlags::DONTWAIT)
        });
        let answered = match heard {
            Ok((count, _)) if count > 0 && count == line.offered.len() => &answer[..count],
            Err(Errno::AGAIN) => return true,
            // The other end is gone, or speaks otherwise: what is not answered is not taken.
            Ok(_) | Err(_) => &[],
        };
        let is_taken = |index: usize| answered.get(index) == Some(&TAKEN);
        for (index, token) in std::mem::take(&mut line.offered).into_iter().enumerate() {
            if is_taken(index) {
                if let Some(connection) = self.connections.remove(token) {
                    self.cx.counts.handed_over += 1;
                    connection.leave(&mut self.cx);
                }
            } else {
                self.with_connection(token, Connection::stay);
            }
        }
        self.end_pauses();
        !answered.is_empty()
    }

    /// Offers what is at rest. Returns whether the line goes on.
    fn offer(&mut self, line: &mut GivingLine) -> bool {
        for _ in 0..self.giving.queue.len() {
            if line.offered.len() == OFFERED_MAX {
                break;
            }
            let Some(token) = self.giving.queue.pop_front() else { break };
            let Some(connection) = self.connections.find(token) else { continue };
            if connection.begin_offer(&self.cx) {
                line.offered.push(token);
            }
        }
        if line.offered.is_empty() {
            return true;
        }
        let offered = line.offered.iter().filter_map(|token| self.connections.get(*token));
        let (facts, sockets): (Vec<_>, Vec<_>) =
            offered.map(|connection| connection.handed(&self.cx)).unzip();
        let Err(error) = send_offer(&line.socket, facts, &sockets) else { return true };
        event!(Warn, "connections_not_offered", error:% = error);
        for token in std::mem::take(&mut line.offered) {
            self.with_connection(token, Connection::stay);
        }
        false
    }

    /// No line is left: what is here stays until it speaks.
    fn end_giving(&mut self) {
        self.cx.closing.gives = false;
        self.giving.queue.clear();
        self.cx.closing.at_rest.clear();
    }
}
