//! A turn of a loop: events, further turns of connections, accepts, timers, commands.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use mio::{Events, Token, event::Event};

use super::{
    accept::Acceptor,
    connection::{Connection, NewConnection, Next},
    context::LoopContext,
    listener::Listener,
    poll::LoopPoll,
    running::{RELEASE_IDLE_EVERY, Running},
    slots::Slots,
    tokens::{self, UPSTREAM_BIT, WAKER},
};
use crate::{
    duration::milliseconds,
    io::{BOTH_WAYS, Ready, watch},
    logging::event,
    message::{Class, ControlEvent},
};

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
            closed.iter().for_each(Listener::keep_gated);
            self.close_listeners(closed);
            // A deadline that passed while the kernel was asked, or since, waits for the next turn:
            // the process may have been suspended in between, and more events may be ready by now.
            let is_caught_up = self.is_caught_up();
            if is_caught_up {
                self.handle_timers(asked_ms);
            }
            if commanded || self.commands.has_cut() {
                self.obey(is_caught_up);
            }
            self.take_offers();
            self.hand_over();
            if self.end_turn() {
                self.cx.gauges.end_turn();
                self.cx.reports.send(ControlEvent::Ended);
                return Ok(());
            }
        }
    }

    /// Publishes the results of the turn. Returns whether the loop has ended.
    pub(super) fn end_turn(&mut self) -> bool {
        self.cx.accounting.publish(&self.cx.gauges);
        if !self.upstream_drains.is_empty() {
            self.report_left_upstreams();
        }
        self.cx.reports.send_deferred();
        let empty = self.acceptors[Class::Public].is_empty()
            && self.cx.accounting.public_connections() == 0;
        if empty && self.ending.note_emptied() {
            self.cx.reports.send(ControlEvent::Emptied { cut: self.ending.cut });
        }
        let Some(end_ms) = self.ending.end_ms else { return false };
        self.drop_settled();
        self.connections.is_empty() || self.cx.clock.now_ms() >= end_ms
    }

    /// How long the loop may sleep.
    pub(super) fn timeout(&self) -> Option<Duration> {
        let has_work = self.commands.has_cut() || !self.queue.is_empty() || self.offers.has_work();
        if has_work || self.acceptors.values().any(Acceptor::can_accept) {
            return Some(Duration::ZERO);
        }
        let mut next = self.release_idle_ms;
        let mut note = |due: Option<u64>| next = next.min(due.unwrap_or(u64::MAX));
        note(self.cx.timers.next());
        note(self.ending.end_ms);
        self.acceptors.values().for_each(|acceptor| note(acceptor.resume_ms()));
        Some(Duration::from_millis(next.saturating_sub(self.cx.clock.now_ms())))
    }

    /// Handles the kernel's events, and the connections that have work left from the last turn.
    /// Returns whether there are commands.
    pub(super) fn handle_events(&mut self, events: &Events) -> bool {
        self.queue.begin_round();
        self.cx.tls.begin_turn();
        let (mut commanded, mut count) = (false, 0);
        self.cx.upstreams.holds_requests = true;
        for event in events {
            count += 1;
            match event.token() {
                WAKER => commanded = true,
                listener if tokens::is_listener(listener) => {
                    self.acceptors.iter_mut().for_each(|(_, known)| known.on_ready(listener));
                    self.offers.on_ready(listener);
                }
                token => self.on_socket_event(token, event),
            }
            if self.queue.has_held_enough() {
                self.send_held();
                self.cx.upstreams.holds_requests = true;
            }
        }
        self.poll.note_events(count);
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

    /// Runs the connections with held-back requests.
    pub(super) fn send_held(&mut self) {
        self.cx.upstreams.holds_requests = false;
        let mut held = self.queue.take_held();
        for token in held.drain(..) {
            self.with_connection(token, Connection::work);
        }
        self.queue.reuse_held(held);
    }

    /// An event for a client's socket, or for its connection to an upstream.
    pub(super) fn on_socket_event(&mut self, token: Token, event: &Event) {
        let ready = Ready::from(event);
        if token.0 & UPSTREAM_BIT == 0 {
            return self.with_connection(token, |connection, cx| connection.on_ready(ready, cx));
        }
        if let Some(id) = self.cx.upstreams.on_event(token, ready, &mut self.cx.buffers) {
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
                let (options, is_deaf) = (listener.options(), listener.is_deaf());
                let accepted = NewConnection { class, socket, peer, permit, options, is_deaf };
                add_connection(poll, connections, accepted, cx);
            });
            // Idle connections to upstreams hold descriptors, but no places.
            if acceptor.take_exhausted() {
                cx.upstreams.close_idle(&mut cx.buffers);
            }
        }
    }

    /// Whether everything that was ready in time has had its turn. Only then may deadlines and cuts
    /// run.
    pub(super) fn is_caught_up(&self) -> bool {
        // Each connection may have one more to an upstream.
        let sockets = 2 * self.connections.len();
        self.queue.is_round_over() && !self.poll.has_unread_events(sockets)
    }

    /// Handles the deadlines up to this time.
    pub(super) fn handle_timers(&mut self, now: u64) {
        while let Some((check_at, token)) = self.cx.timers.pop_due(now) {
            self.with_connection(token, |connection, cx| {
                let is_due = connection.is_due(check_at, now, cx);
                if is_due { connection.on_deadline(cx) } else { Next::Wait }
            });
        }
        if now >= self.release_idle_ms {
            self.release_idle_ms = now + milliseconds(RELEASE_IDLE_EVERY);
            self.cx.upstreams.sweep(now, &mut self.cx.buffers);
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
    poll: &LoopPoll,
    connections: &mut Slots<Connection>,
    mut accepted: NewConnection,
    cx: &mut LoopContext,
) {
    // Behind a PROXY header the client isn't known yet.
    if !accepted.options.proxy_protocol && !accepted.permit.count_for(accepted.peer) {
        return cx.accounting.count_refused(accepted.peer, cx.clock.now_ms());
    }
    let inserted = connections.insert(|token| {
        let connection = Connection::new(token, accepted, cx);
        let watched = watch(poll.registry(), connection.socket(), token, BOTH_WAYS);
        watched.inspect_err(|_| connection.uncount(cx)).map(|()| connection)
    });
    if let Err(error) = inserted {
        event!(Warn, "connection_not_watched", error:% = error);
    }
}
