//! A loop that fails: it panics outside of any connection, or epoll_wait(2) fails.
//!
//! ```text
//! serving ──fails──► recovers, and control begins a stop ──FAILURES_MAX times──► dead
//! ```
//! A failure is a bug that may have left anything half done, so the server drains. But sockets,
//! connections and exchanges are whole: a connection that is being ended is removed first. So the
//! loop recovers: it checks all of them again, because the failure may have lost edges, and takes
//! part in the stop like any other loop. A loop that keeps failing cuts its exchanges, counted, and
//! leaves its listening sockets to the other loops, backlog included (I6).

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
};

use mio::Events;

use super::{
    bind::ListenerSet,
    connection::{Connection, Next},
    context::LoopContext,
    listener::Listener,
    poll::EVENTS_MAX,
    running::Running,
};
use crate::message::{Class, ControlEvent};

/// A loop that has failed this often would fail at every turn.
const FAILURES_MAX: usize = 3;

/// What a dead loop leaves behind.
#[derive(Debug)]
pub(crate) struct DeadLoop {
    /// Why it died.
    pub(crate) error: String,
    /// Exchanges that it cut, earlier ones included.
    pub(crate) cut: u64,
    /// Its public sockets, open.
    pub(crate) listeners: ListenerSet,
}

impl DeadLoop {
    /// A loop of which nothing but the error is known.
    pub(super) fn of(error: String) -> Self {
        Self { error, cut: 0, listeners: Vec::new() }
    }

    /// A loop that panicked.
    pub(crate) fn panicked(panic: &(dyn Any + Send)) -> Self {
        Self::of(message(panic))
    }
}

impl Running {
    /// Runs until control ends the loop, or it fails too often.
    pub(super) fn run(mut self) -> Result<(), DeadLoop> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        for failures in 1.. {
            let run = AssertUnwindSafe(|| {
                if failures > 1 {
                    self.recover();
                }
                self.take_turns(&mut events)
            });
            let error = match catch_unwind(run) {
                Ok(Ok(())) => break,
                Ok(Err(error)) => error.to_string(),
                Err(panic) => message(&*panic),
            };
            if failures == FAILURES_MAX {
                return Err(self.die(error));
            }
            self.cx.reports.send(ControlEvent::Failed { error });
        }
        Ok(())
    }

    /// Checks everything again: events, pending work and commands may be lost.
    pub(super) fn recover(&mut self) {
        self.cx.clock.tick();
        self.queue.clear();
        self.cx.upstreams.holds_requests = false;
        self.cx.upstreams.close_idle(&mut self.cx.buffers);
        self.acceptors.iter_mut().for_each(|(_, acceptor)| acceptor.recover());
        self.offers.recover();
        self.cx.accounting.begin_recount();
        for token in self.connections.tokens() {
            self.with_connection(token, Connection::recover);
        }
        self.obey(false);
    }

    fn die(mut self, error: String) -> DeadLoop {
        // What can't be cut is dropped.
        let _ = catch_unwind(AssertUnwindSafe(|| self.ending.cut += self.cut_public()));
        let listeners = self.acceptors[Class::Public].take(|_| true);
        self.cx.accounting.publish(&self.cx.gauges);
        self.cx.gauges.end_turn();
        let listeners = listeners.into_iter().filter_map(Listener::into_public).collect();
        DeadLoop { error, cut: self.ending.cut, listeners }
    }
}

impl Connection {
    /// The loop has failed, and may have lost this connection's events.
    fn recover(&mut self, cx: &mut LoopContext) -> Next {
        self.count(cx);
        self.replace_queued(false);
        if self.is_offered() {
            return Next::Wait;
        }
        let watched = cx.upstreams.rewatch(self.socket(), self.token);
        let watched = watched.and_then(|()| self.forwardings().try_for_each(|to| to.rewatch(cx)));
        if watched.is_err() { Next::Drop } else { self.work(cx) }
    }
}

/// What a panic says.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panic: {}", text.unwrap_or("without a message"))
}
