//! The event loops: one thread each, sole owner of its sockets, buffers and timers.
//!
//! A turn handles I/O, then new connections, then timers, then commands: a command never frees what
//! an event still names. Nothing here waits but in epoll_wait(2), and no loop touches what another
//! one owns. It knows control only by [`crate::message`].
//!
//! ```text
//! serving ──Gate──► closing     gated; every answer says close; the idle end after the grace
//! closing ──Finish──► finishing accepts until nobody waits, closes the listeners
//! finishing ──last connection──► ended
//! any ──CutAll──► ended         drops everything
//! ```

mod answer;
mod buffers;
mod clock;
mod connection;
mod listener;
mod output;
mod own_answers;
mod slots;
#[cfg(test)]
mod test_support;
mod timers;

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::Receiver;
use mio::{Events, Interest, Poll, Token, Waker};

pub use listener::BindError;
pub(crate) use listener::{ConnectionBudget, ListenerSet, bind};

use crate::{
    app::App,
    config::{Limits, ServerConfig},
    http,
    logging::{AccessWriter, event},
    message::{Apps, ControlEvent, LoopCommand, LoopHandle},
    registry::RegistryView,
};
use buffers::BufferPool;
use clock::{Clock, milliseconds};
use connection::{Connection, Fate, Ready};
use listener::{Accepted, Listener};
use slots::Slots;
use timers::Timers;

/// What a loop needs to be made.
pub(crate) struct LoopSetup {
    /// The loop's number, from zero.
    pub(crate) index: usize,
    /// Where it looks hosts up.
    pub(crate) registry: Arc<Apps>,
    /// Its own listening sockets.
    pub(crate) listeners: ListenerSet,
    /// `[limits]`
    pub(crate) limits: Limits,
    /// `[server]`
    pub(crate) server: ServerConfig,
    /// The process's connections.
    pub(crate) budget: ConnectionBudget,
    /// Where its clock begins; the same for all that compare times.
    pub(crate) epoch: Instant,
    /// Where requests are written, if they are.
    pub(crate) access: Option<AccessWriter>,
    /// Called with what control is to know.
    pub(crate) report: Box<dyn Fn(ControlEvent) + Send>,
}

/// One event loop.
pub(crate) struct EventLoop {
    poll: Poll,
    commands: Receiver<LoopCommand>,
    setup: LoopSetup,
}

impl EventLoop {
    /// Makes a loop and the handle by which control reaches it.
    ///
    /// # Errors
    /// epoll's and eventfd's.
    pub(crate) fn new(setup: LoopSetup) -> io::Result<(Self, LoopHandle)> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let (sender, commands) = crossbeam_channel::unbounded();
        Ok((Self { poll, commands, setup }, LoopHandle::new(sender, waker)))
    }

    /// Runs on the calling thread until a stop has ended the last connection.
    ///
    /// # Errors
    /// When epoll_wait(2) fails or a listener cannot be watched.
    pub(crate) fn run(self) -> io::Result<()> {
        let Self { poll, commands, setup } = self;
        Running::new(poll, commands, setup)?.run()
    }
}

const WAKER: Token = Token(usize::MAX);

/// Tokens from here on up, below the waker's, are listeners; below are connections.
const LISTENERS: usize = usize::MAX - 1 - LISTENERS_MAX;
const LISTENERS_MAX: usize = 1 << 16;

/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 1024;

/// Connections accepted from one listener in a turn.
const ACCEPTS_PER_TURN: usize = 64;

/// How long accepting pauses when descriptors or places are used up and none gets free here.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How often a pause is logged at most: a machine out of descriptors has enough to do.
const ACCEPT_LOG_EVERY: Duration = Duration::from_secs(1);

/// How often apps are asked to let go of what they have not used.
const RELEASE_IDLE_EVERY: Duration = Duration::from_secs(10);

/// What connections of one loop share.
struct LoopContext {
    index: usize,
    view: RegistryView<Arc<dyn App>>,
    buffers: BufferPool,
    clock: Clock,
    timers: Timers,
    http_limits: http::Limits,
    limits: Limits,
    idle_grace: Duration,
    /// A stop has begun.
    closing: bool,
    access: Option<AccessWriter>,
}

struct Running {
    poll: Poll,
    commands: Receiver<LoopCommand>,
    /// By token; one that is closed leaves its place.
    listeners: Vec<Option<Listener>>,
    connections: Slots<Connection>,
    /// Connections that have used up their turn.
    again: Vec<Token>,
    /// The listener that accepts first.
    accept_first: usize,
    /// When accepting, which had to pause, is tried again; in the loop's milliseconds.
    accept_again_ms: Option<u64>,
    /// When a pause may be logged again.
    accept_log_ms: u64,
    release_idle_ms: u64,
    budget: ConnectionBudget,
    report: Box<dyn Fn(ControlEvent) + Send>,
    finishing: bool,
    cut: u64,
    cx: LoopContext,
}

impl Running {
    fn new(poll: Poll, commands: Receiver<LoopCommand>, setup: LoopSetup) -> io::Result<Self> {
        let limits = setup.limits;
        let cx = LoopContext {
            index: setup.index,
            view: RegistryView::new(setup.registry, setup.index),
            // A blank line before a head of the largest size has to fit too.
            buffers: BufferPool::new(limits.head_bytes.max(16 * 1024) + 2),
            clock: Clock::new(setup.epoch),
            timers: Timers::default(),
            http_limits: http::Limits {
                head_bytes: limits.head_bytes,
                fields: limits.headers,
                content_bytes: limits.body_bytes,
            },
            limits,
            idle_grace: setup.server.idle_grace,
            closing: false,
            access: setup.access,
        };
        let mut listeners = Vec::new();
        for (index, socket) in setup.listeners.into_iter().enumerate() {
            let mut listener = Listener::new(socket);
            let token = Token(LISTENERS + index);
            poll.registry().register(&mut listener.socket, token, Interest::READABLE)?;
            listeners.push(Some(listener));
        }
        Ok(Self {
            poll,
            commands,
            listeners,
            connections: Slots::new(),
            again: Vec::new(),
            accept_first: 0,
            accept_again_ms: None,
            accept_log_ms: 0,
            release_idle_ms: milliseconds(RELEASE_IDLE_EVERY),
            budget: setup.budget,
            report: setup.report,
            finishing: false,
            cut: 0,
            cx,
        })
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        loop {
            match self.poll.poll(&mut events, self.timeout()) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            self.cx.clock.tick();
            let commanded = self.handle_events(&events);
            self.accept_all();
            if self.finishing {
                self.close_empty_listeners();
            }
            self.handle_timers();
            if commanded {
                self.obey();
            }
            if let Some(access) = &mut self.cx.access {
                access.flush();
            }
            let listening = self.listeners.iter().any(Option::is_some);
            if self.finishing && !listening && self.connections.is_empty() {
                (self.report)(ControlEvent::Ended { cut: self.cut });
                return Ok(());
            }
        }
    }

    /// How long the loop may sleep.
    fn timeout(&self) -> Option<Duration> {
        let accepting = self.accept_again_ms.is_none();
        let somebody_waits = self.listeners.iter().flatten().any(|listener| listener.ready);
        if !self.again.is_empty() || (accepting && somebody_waits) {
            return Some(Duration::ZERO);
        }
        let due = [self.cx.timers.next(), self.accept_again_ms, Some(self.release_idle_ms)];
        let next = due.into_iter().flatten().min()?;
        Some(Duration::from_millis(next.saturating_sub(self.cx.clock.now_ms())))
    }

    /// Handles what the kernel told, and who has work left from the last turn. Returns whether
    /// there are commands.
    fn handle_events(&mut self, events: &Events) -> bool {
        let again = std::mem::take(&mut self.again);
        let mut commanded = false;
        for event in events {
            match event.token() {
                WAKER => commanded = true,
                Token(listener @ LISTENERS..) => {
                    if let Some(listener) = &mut self.listeners[listener - LISTENERS] {
                        listener.ready = true;
                    }
                }
                token => {
                    let ready = Ready {
                        // An error is told by the read that runs into it.
                        readable: event.is_readable() || event.is_error(),
                        writable: event.is_writable(),
                        read_closed: event.is_read_closed(),
                        failed: event.is_error(),
                    };
                    self.with_connection(token, |connection, cx| connection.on_ready(ready, cx));
                }
            }
        }
        for token in again {
            self.with_connection(token, |connection, cx| {
                connection.queued = false;
                connection.work(cx)
            });
        }
        commanded
    }

    /// Lets a connection work, and does with it what comes of that. One that panics is dropped: a
    /// bug in one exchange ends no other.
    fn with_connection(
        &mut self,
        token: Token,
        work: impl FnOnce(&mut Connection, &mut LoopContext) -> Fate,
    ) {
        let Some(connection) = self.connections.find(token) else { return };
        let cx = &mut self.cx;
        let worked = catch_unwind(AssertUnwindSafe(|| work(connection, cx)));
        match worked {
            Ok(Fate::Keep) => {}
            Ok(Fate::Again) => {
                if !std::mem::replace(&mut connection.queued, true) {
                    self.again.push(token);
                }
            }
            Ok(Fate::Gone) => self.drop_connection(token),
            Err(_) => {
                event!(Error, "connection_panicked", loop_index = self.cx.index);
                self.drop_connection(token);
            }
        }
    }

    fn drop_connection(&mut self, token: Token) {
        if let Some(connection) = self.connections.remove(token) {
            connection.abort(&mut self.cx);
            if self.accept_again_ms.is_some() {
                self.accept_again_ms = Some(0);
            }
        }
    }

    /// Accepts from every listener that has somebody waiting, a turn's worth from each.
    fn accept_all(&mut self) {
        if let Some(again_ms) = self.accept_again_ms {
            if again_ms > self.cx.clock.now_ms() {
                return;
            }
            self.accept_again_ms = None;
        }
        let (first, count) = (self.accept_first, self.listeners.len());
        for index in (first..first + count).map(|index| index % count) {
            for _ in 0..ACCEPTS_PER_TURN {
                if !self.accept_one(index) {
                    break;
                }
            }
            if self.accept_again_ms.is_some() {
                // The next place is for the others first: else a busy address takes every one.
                self.accept_first = index + 1;
                break;
            }
        }
    }

    /// Accepts once. Returns whether it makes sense to go on.
    fn accept_one(&mut self, index: usize) -> bool {
        let Some(listener) = self.listeners[index].as_mut().filter(|listener| listener.ready)
        else {
            return false;
        };
        let Some(permit) = self.budget.take() else {
            self.pause_accepting();
            return false;
        };
        match listener.accept() {
            Accepted::Empty => false,
            Accepted::Vanished => true,
            Accepted::Exhausted(error) => {
                self.pause_accepting();
                let now = self.cx.clock.now_ms();
                if now >= self.accept_log_ms {
                    self.accept_log_ms = now + milliseconds(ACCEPT_LOG_EVERY);
                    event!(Warn, "accept_paused", error:% = error);
                }
                false
            }
            Accepted::Connection(socket, peer) => {
                let (cx, poll) = (&mut self.cx, &self.poll);
                let inserted = self.connections.insert(|token| {
                    let mut connection = Connection::new(token, socket, peer, permit, cx);
                    let interest = Interest::READABLE | Interest::WRITABLE;
                    poll.registry().register(connection.socket_mut(), token, interest)?;
                    Ok::<_, io::Error>(connection)
                });
                if let Err(error) = inserted {
                    event!(Warn, "connection_not_watched", error:% = error);
                }
                true
            }
        }
    }

    fn pause_accepting(&mut self) {
        self.accept_again_ms = Some(self.cx.clock.now_ms() + milliseconds(ACCEPT_PAUSE));
    }

    /// Gated, a listener without anybody waiting can be closed: that resets nobody. While accepting
    /// is paused the listener is asked itself, for accept(2) runs out of descriptors before it
    /// finds nobody.
    fn close_empty_listeners(&mut self) {
        let paused = self.accept_again_ms.is_some();
        for place in &mut self.listeners {
            place.take_if(|listener| !listener.ready || (paused && !listener.has_waiting()));
        }
    }

    fn handle_timers(&mut self) {
        let now = self.cx.clock.now_ms();
        while let Some((look, token)) = self.cx.timers.pop_due(now) {
            self.with_connection(token, |connection, cx| {
                let mut deadline = *connection.deadline_mut();
                let due = cx.timers.is_due(&mut deadline, token, look, now);
                *connection.deadline_mut() = deadline;
                if due { connection.on_deadline(cx) } else { Fate::Keep }
            });
        }
        if now >= self.release_idle_ms {
            self.release_idle_ms = now + milliseconds(RELEASE_IDLE_EVERY);
            for life in self.cx.view.registry().entries() {
                life.app().release_idle(self.cx.index, self.cx.clock.now());
            }
        }
    }

    fn obey(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                LoopCommand::Gate => self.gate(),
                LoopCommand::Finish => self.finish(),
                LoopCommand::Cut(life) => {
                    self.cut(|connection| connection.serves(life));
                }
                LoopCommand::CutAll => {
                    self.cut += self.cut(|_| true);
                    self.listeners.clear();
                    self.finishing = true;
                }
                LoopCommand::Refresh => self.cx.view.refresh(),
            }
        }
    }

    fn gate(&mut self) {
        for listener in self.listeners.iter().flatten() {
            if let Err(error) = listener.gate() {
                // Without the filter a connection that comes while the listener closes is reset.
                event!(Warn, "gate_failed", error:% = error);
            }
        }
        self.cx.closing = true;
        for token in self.connections.tokens() {
            self.with_connection(token, |connection, cx| {
                connection.begin_closing(cx);
                Fate::Keep
            });
        }
        (self.report)(ControlEvent::Gated);
    }

    fn finish(&mut self) {
        for listener in self.listeners.iter_mut().flatten() {
            listener.ready = true;
        }
        self.accept_again_ms = None;
        self.finishing = true;
    }

    fn cut(&mut self, which: impl Fn(&Connection) -> bool) -> u64 {
        let mut cut = 0;
        for token in self.connections.tokens() {
            if self.connections.find(token).is_some_and(|connection| which(connection))
                && let Some(connection) = self.connections.remove(token)
            {
                cut += connection.cut(&mut self.cx);
            }
        }
        cut
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    /// More than a turn's worth, so that the first listeners are closed before the last one.
    const QUEUED: usize = 3 * ACCEPTS_PER_TURN;

    #[test]
    fn a_late_event_of_a_listener_whose_neighbours_are_closed_finds_it() {
        let mut sets = bind(&[([127, 0, 0, 1], 0).into(); 3], 1).unwrap();
        let sockets = sets.remove(0);
        let last = sockets[2].local_addr().unwrap();
        let mut running = test_support::running(sockets, None);
        let mut peers: Vec<_> = (0..QUEUED).map(|_| TcpStream::connect(last).unwrap()).collect();
        running.finish();
        running.accept_all();
        running.close_empty_listeners();
        assert_eq!(running.listeners.iter().flatten().count(), 1, "the others have nobody waiting");
        // A handshake that ends only now.
        peers.push(TcpStream::connect(last).unwrap());
        let mut events = Events::with_capacity(EVENTS_MAX);
        while running.connections.tokens().len() < peers.len() {
            running.poll.poll(&mut events, Some(Duration::from_secs(15))).unwrap();
            assert!(!events.is_empty(), "{} accepted", running.connections.tokens().len());
            running.handle_events(&events);
            while running.listeners.iter().flatten().any(|listener| listener.ready) {
                running.accept_all();
            }
        }
        running.close_empty_listeners();
        assert!(running.listeners.iter().all(Option::is_none));
    }
}
