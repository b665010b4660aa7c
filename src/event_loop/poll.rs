//! A loop's poll(7): what it watches, and whether the kernel is likely to hold more events.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use mio::{Events, Interest, Poll, Registry, Token, unix::SourceFd};

use super::tokens;
use crate::io::watch;

/// Events taken from the kernel at once.
pub(super) const EVENTS_MAX: usize = 1024;

/// The poll of one loop.
pub(super) struct LoopPoll {
    poll: Poll,
    /// Listeners so far. Tokens aren't reused, because events can arrive late.
    listener_count: usize,
    /// Consecutive polls in which the kernel filled the whole event buffer.
    full_polls: usize,
}

impl LoopPoll {
    pub(super) fn new(poll: Poll) -> Self {
        Self { poll, listener_count: 0, full_polls: 0 }
    }

    pub(super) fn registry(&self) -> &Registry {
        self.poll.registry()
    }

    /// Waits for events.
    ///
    /// # Errors
    /// epoll_wait(2)'s.
    pub(super) fn poll(
        &mut self,
        events: &mut Events,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        self.poll.poll(events, timeout)
    }

    /// Notes how many events the last poll took.
    pub(super) fn note_events(&mut self, count: usize) {
        self.full_polls = if count == EVENTS_MAX { self.full_polls + 1 } else { 0 };
    }

    /// Whether the kernel is likely to hold more of the events that were ready at the last poll.
    /// Deadlines run behind them: bytes that came in time aren't late because this process was
    /// suspended or busy. epoll(7) reports ready sockets in turn, so a few full polls cover them
    /// all.
    pub(super) fn has_unread_events(&self, sockets: usize) -> bool {
        (1..=sockets / EVENTS_MAX + 1).contains(&self.full_polls)
    }

    /// Watches a listener or a hand-over socket.
    ///
    /// # Errors
    /// epoll_ctl(2)'s.
    pub(super) fn watch_listener(&mut self, socket: &OwnedFd) -> io::Result<Token> {
        let token = tokens::listener(self.listener_count);
        self.listener_count += 1;
        watch(self.registry(), socket, token, Interest::READABLE)?;
        Ok(token)
    }

    /// Stops watching a socket. Other processes may hold it too, so closing it here wouldn't do
    /// that.
    pub(super) fn unwatch(&self, socket: &OwnedFd) {
        drop(self.registry().deregister(&mut SourceFd(&socket.as_raw_fd())));
    }
}
