//! A turn of a loop: events, further turns of connections, accepts, timers, commands.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use mio::{Events, Poll, Token, event::Event};

use super::{
    accept::Acceptor,
    clock::milliseconds,
    connection::{Connection, Newcomer, Next},
    context::LoopContext,
    io::{BOTH_WAYS, Ready, watch},
    listener::Listener,
    running::{RELEASE_IDLE_EVERY, Running},
    slots::Slots,
    tokens::{self, UPSTREAM_BIT, WAKER},
};
use crate::{
    logging::event,
    message::{Class, ControlEvent},
};

/// Events taken from the kernel at once.
pub(super) const EVENTS_MAX: usize = 1024;

impl Running {
    pub(super) fn take_turns(&mut self, events: &mut Events) -> io::Result<()> {
        loop {
            self.cx.gauges.end_turn();
            match self.poll.poll(events, self.timeout()) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            let asked_ms = self.cx.clock.now_ms();
            self.cx.clock.tick();
            self.cx.gauges.begin_turn(self.cx.clock.now_ns());
            let commanded = self.handle_events(events);
            self.accept_all();
            let closed = self.acceptors[Class::Public].take_empty();
            closed.iter().for_each(Listener::stay_gated);
            self.close_listeners(closed);
            // A deadline that came while the kernel was asked, or since, has to wait for the next
            // turn: this process may have stood still in between, with more to be told now.
            let is_caught_up = self.is_caught_up();
            if is_caught_up {
                self.handle_timers(asked_ms);
            }
            if commanded || self.cut_command.is_some() {
                self.obey(is_caught_up);
            }
            self.take_offers();
            self.give();
            if self.end_turn() {
                self.cx.gauges.end_turn();
                (self.report)(ControlEvent::Ended);
                return Ok(());
            }
        }
    }

    /// Says what came of the turn. Returns whether the loop is at its end.
    pub(super) fn end_turn(&mut self) -> bool {
        if let Some(access) = &mut self.cx.access {
            access.flush();
        }
        if self.cx.counts != self.published {
            self.published = self.cx.counts;
            self.cx.gauges.publish(&self.published);
        }
        if !self.watched.is_empty() {
            self.report_left_upstreams();
        }
        self.cx.reports.drain(..).for_each(&self.report);
        let empty = self.acceptors[Class::Public].is_empty() && self.cx.public_connections() == 0;
        if self.ending.finishing && empty && !self.ending.emptied {
            self.ending.emptied = true;
            (self.report)(ControlEvent::Emptied { cut: self.ending.cut });
        }
        let Some(end_ms) = self.ending.end_ms else { return false };
        self.drop_settled();
        self.connections.is_empty() || self.cx.clock.now_ms() >= end_ms
    }

    /// How long the loop may sleep.
    pub(super) fn timeout(&self) -> Option<Duration> {
        let moves = self.giving.has_work() || self.taking.has_work();
        let has_work = self.cut_command.is_some() || !self.queue.is_empty() || moves;
        if has_work || self.acceptors.values().any(Acceptor::somebody_waits) {
            return Some(Duration::ZERO);
        }
        let due = [self.cx.timers.next(), self.ending.end_ms, Some(self.release_idle_ms)];
        let pauses = self.acceptors.values().map(Acceptor::again_ms);
        let next = due.into_iter().chain(pauses).flatten().min()?;
        Some(Duration::from_millis(next.saturating_sub(self.cx.clock.now_ms())))
    }

    /// Handles what the kernel told, and who has work left from the last turn. Returns whether
    /// there are commands.
    pub(super) fn handle_events(&mut self, events: &Events) -> bool {
        self.queue.begin_round();
        let (mut commanded, mut count) = (false, 0);
        self.cx.holds_requests = true;
        for event in events {
            count += 1;
            match event.token() {
                WAKER => commanded = true,
                listener if tokens::is_listener(listener) => {
                    self.acceptors.iter_mut().for_each(|(_, known)| known.on_ready(listener));
                    self.giving.on_ready(listener);
                    self.taking.on_ready(listener);
                }
                token => self.on_socket_event(token, event),
            }
            if self.queue.holds_enough() {
                self.send_held();
                self.cx.holds_requests = true;
            }
        }
        self.full_turns = if count == EVENTS_MAX { self.full_turns + 1 } else { 0 };
        self.send_held();
        for _ in 0..self.queue.take_turns() {
            let Some(token) = self.queue.pop() else { break };
            self.with_connection(token, |connection, cx| {
                connection.replace_queued(false);
                connection.work(cx)
            });
        }
        commanded
    }

    /// Lets those work whose requests were held.
    pub(super) fn send_held(&mut self) {
        self.cx.holds_requests = false;
        let mut held = self.queue.take_held();
        for token in held.drain(..) {
            self.with_connection(token, Connection::work);
        }
        self.queue.reuse_held(held);
    }

    /// A connection's socket, or one that it has to an upstream, told of changes.
    pub(super) fn on_socket_event(&mut self, token: Token, event: &Event) {
        let ready = Ready {
            // An error is told by the read that runs into it.
            readable: event.is_readable() || event.is_error(),
            writable: event.is_writable(),
            read_closed: event.is_read_closed(),
            // A process that closed its unix socket is gone, and no read tells.
            failed: event.is_error() || event.is_write_closed(),
        };
        if token.0 & UPSTREAM_BIT == 0 {
            return self.with_connection(token, |connection, cx| connection.on_ready(ready, cx));
        }
        if let Some(id) = self.cx.upstreams.on_event(token, ready) {
            self.with_connection(id.connection, |connection, cx| {
                connection.on_upstream_ready(id.number, token, ready, cx)
            });
        }
    }

    pub(super) fn accept_all(&mut self) {
        let Self { poll, acceptors, connections, cx, .. } = self;
        let now_ms = cx.clock.now_ms();
        for (class, acceptor) in acceptors.iter_mut() {
            acceptor.accept_all(now_ms, |socket, peer, permit, listener| {
                let (proxy_protocol, is_deaf) = (listener.proxy_protocol(), listener.is_deaf());
                let newcomer = Newcomer { class, socket, peer, permit, proxy_protocol, is_deaf };
                add_connection(poll, connections, newcomer, cx);
            });
            // Not where places ran out: an idle line has none of those.
            if acceptor.take_exhausted() {
                cx.upstreams.close_idle();
            }
        }
    }

    /// Whether all that was there in time has had its turn: only then a deadline or a cut may come.
    pub(super) fn is_caught_up(&self) -> bool {
        self.queue.is_round_over() && !self.has_unread_events()
    }

    /// Whether the kernel is likely to have events left of those that were there as it was asked. A
    /// deadline comes behind them: what was sent in time is not late because this process stood
    /// still, or is busy. It tells of the sockets in turn, so all have had theirs after a while.
    pub(super) fn has_unread_events(&self) -> bool {
        // Each may have one to an upstream too.
        let sockets = 2 * self.connections.len();
        (1..=sockets / EVENTS_MAX + 1).contains(&self.full_turns)
    }

    /// Handles what was due at that time.
    pub(super) fn handle_timers(&mut self, now: u64) {
        while let Some((look, token)) = self.cx.timers.pop_due(now) {
            self.with_connection(token, |connection, cx| {
                let is_due = connection.is_due(look, now, cx);
                if is_due { connection.on_deadline(cx) } else { Next::Wait }
            });
        }
        if now >= self.release_idle_ms {
            self.release_idle_ms = now + milliseconds(RELEASE_IDLE_EVERY);
            self.cx.upstreams.sweep(now);
            for life in self.cx.view.registry().entries() {
                self.cx.gauges.ask(life.id().as_u64());
                let (app, cx) = (&life.app().app, &self.cx);
                let release = || app.release_idle(cx.index, cx.clock.now());
                if catch_unwind(AssertUnwindSafe(release)).is_err() {
                    // A failure stays in its app (I8).
                    event!(Error, "app_panicked", host = life.host());
                }
            }
        }
    }
}

fn add_connection(
    poll: &Poll,
    connections: &mut Slots<Connection>,
    mut newcomer: Newcomer,
    cx: &mut LoopContext,
) {
    // Behind a PROXY header the client is known later.
    if !newcomer.proxy_protocol && !newcomer.permit.count_for(newcomer.peer) {
        return cx.count_refused(newcomer.peer);
    }
    let inserted = connections.insert(|token| {
        let connection = Connection::new(token, newcomer, cx);
        let watched = watch(poll.registry(), connection.socket(), token, BOTH_WAYS);
        watched.inspect_err(|_| connection.uncount(cx)).map(|()| connection)
    });
    if let Err(error) = inserted {
        event!(Warn, "connection_not_watched", error:% = error);
    }
}
