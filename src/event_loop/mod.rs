//! The event loops: one thread each, sole owner of its sockets, buffers and timers.
//!
//! A turn handles I/O, then new connections, then timers, then commands: a command never frees what
//! an event still names, and no deadline or cut comes before what was in time. Requests for
//! upstreams go out together, behind the events: a send to a process that sleeps has to wake it,
//! and one that has work does not sleep. Nothing here waits but in epoll_wait(2), and no loop
//! touches what another one owns. It knows control only by [`crate::message`].
//!
//! ```text
//! serving ──Gate──► closing     gated; every answer says close; the idle end after the grace
//! closing ──Finish──► finishing accepts until nobody waits, closes the listeners
//! finishing ──last public connection──► emptied
//! any ──CutAll──► emptied       drops everything public
//! any of these ──TakeUp──► serving  the process that had the sockets has died
//! any ──End──► ended            with the last answer to an admin, or after END_GRACE
//! any ──fails──► the same       control begins a stop; or dead, in `failure`
//! ```
//! An upgrade is a stop before which `LetGo` takes the listeners away that another process serves.
//! Connections are of three classes ([`Class`]). All of this is about public ones. Those of
//! operators and of probes have a listener, an app, a budget and limits of their own ([`class`]),
//! and go on until the end: they tell of the stop.

mod accept;
mod bind;
mod class;
mod clock;
mod closing;
mod connection;
mod exchange;
mod failure;
mod gate;
mod hand_over;
mod io;
mod listener;
mod obey;
mod slots;
#[cfg(test)]
mod test_support;
#[cfg(test)]
mod tests;
mod timers;
mod upstream;

use std::{
    collections::VecDeque,
    os::fd::{AsRawFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::Receiver;
use mio::{Events, Interest, Poll, Registry, Token, Waker, event::Event, unix::SourceFd};

pub use bind::BindError;
pub(crate) use bind::{
    ListenerSet, UnixAccess, UnixSocketFile, adopt, bind_address, bind_one, bind_quietly, bind_unix,
};
pub(crate) use class::SideSetup;
pub(crate) use failure::DeadLoop;
pub(crate) use listener::ConnectionBudget;

use crate::{
    app::{App, OneUpstream},
    config,
    hosted::{Apps, HostedApp},
    http,
    logging::{AccessWriter, event},
    message::{
        Class, ControlEvent, ExchangeNumber, LoopCommand, LoopConfig, LoopHandle, PublicSocket,
        UpstreamDrainId,
    },
    metrics::{LoopCounts, LoopGauges},
    registry::RegistryView,
};
use accept::{Acceptor, watch};
use class::{ClassLimits, PerClass};
use clock::{Clock, milliseconds};
use closing::Closing;
use connection::{Connection, Newcomer, Next};
use hand_over::{Giving, Taking};
use io::{BufferPool, Ready};
use listener::Listener;
use slots::Slots;
use timers::Timers;
use upstream::{UPSTREAM_BIT, UpstreamPool};

/// What a loop needs to be made.
pub(crate) struct LoopSetup {
    /// The loop's number, from zero.
    pub(crate) index: usize,
    /// Where it looks hosts up.
    pub(crate) registry: Arc<Apps>,
    /// Its own public sockets.
    pub(crate) listeners: ListenerSet,
    /// The classes beside the public one, those that are on.
    pub(crate) beside: Vec<SideSetup>,
    /// What can change while it runs.
    pub(crate) config: LoopConfig,
    /// The process's public connections.
    pub(crate) budget: ConnectionBudget,
    /// Where its clock begins; the same for all that compare times.
    pub(crate) epoch: Instant,
    /// Where it shows what it is doing.
    pub(crate) gauges: Arc<LoopGauges>,
    /// Called with what control is to know.
    pub(crate) report: Box<dyn Fn(ControlEvent) + Send>,
}

/// One event loop.
pub(crate) struct EventLoop {
    poll: Poll,
    /// For the sockets of upstreams.
    registry: Registry,
    commands: Receiver<LoopCommand>,
    handle: LoopHandle,
    setup: LoopSetup,
}

impl EventLoop {
    /// Makes a loop and the handle by which control reaches it.
    ///
    /// # Errors
    /// epoll's and eventfd's.
    pub(crate) fn new(setup: LoopSetup) -> std::io::Result<(Self, LoopHandle)> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        // All descriptors are taken here: a loop that has started needs none to go on.
        let registry = poll.registry().try_clone()?;
        let (sender, commands) = crossbeam_channel::unbounded();
        let handle = LoopHandle::new(sender, waker);
        Ok((Self { poll, registry, commands, handle: handle.clone(), setup }, handle))
    }

    /// Has its public sockets listen that do not yet.
    ///
    /// # Errors
    /// listen(2)'s.
    pub(crate) fn begin_listening(&self) -> std::io::Result<()> {
        bind::begin_listening(&self.setup.listeners)
    }

    /// Runs on the calling thread until it is told to end.
    ///
    /// # Errors
    /// When it fails again and again, or a listener cannot be watched.
    pub(crate) fn run(self) -> Result<(), DeadLoop> {
        let Self { poll, registry, commands, handle, setup } = self;
        let upstreams = UpstreamPool::new(registry, setup.budget.clone());
        let running = Running::new(poll, upstreams, commands, handle, setup);
        running.map_err(|error| DeadLoop::of(error.to_string()))?.run()
    }
}

const WAKER: Token = Token(usize::MAX);

/// The bit that listeners' tokens have and connections' have not.
const LISTENER_BIT: usize = UPSTREAM_BIT << 1;

/// What a connection is watched for.
const BOTH_WAYS: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 1024;

/// Connections that get a further turn before the kernel is asked again: who asks little does not
/// wait for all who take much.
const AGAIN_PER_TURN: usize = 64;

/// Requests for upstreams that wait for further events of their turn, at most.
const HELD_REQUESTS_MAX: usize = 64;

/// How often apps are asked to let go of what they have not used.
const RELEASE_IDLE_EVERY: Duration = Duration::from_secs(10);

/// How long admin peers may take for the answers that are owed to them at the end.
const END_GRACE: Duration = Duration::from_secs(2);

/// What connections of one loop share.
struct LoopContext {
    index: usize,
    view: RegistryView<HostedApp>,
    buffers: BufferPool,
    clock: Clock,
    timers: Timers,
    limits: PerClass<ClassLimits>,
    /// None for the public, and for what is off.
    side_apps: PerClass<Option<Arc<dyn App>>>,
    idle_grace: Duration,
    closing: Closing,
    access: Option<AccessWriter>,
    /// Public connections by state. Plain numbers: a turn that changed them shows them at its end.
    counts: LoopCounts,
    gauges: Arc<LoopGauges>,
    /// When a PROXY header that was refused may be logged again.
    proxy_header_log_ms: u64,
    /// When it may be logged again that a client has as many connections as it may.
    refused_log_ms: u64,
    /// The last number that an exchange was given.
    last_number: u64,
    /// By which the loop is told what comes from outside.
    handle: LoopHandle,
    upstreams: UpstreamPool,
    /// What control is to know of upstreams, sent at the end of the turn.
    reports: Vec<ControlEvent>,
    /// Events are being handled: a request for an upstream waits for the others.
    holds_requests: bool,
    /// For answers that bring their own date.
    dateless: http::h1::HeadTemplate,
}

struct Running {
    poll: Poll,
    commands: Receiver<LoopCommand>,
    acceptors: PerClass<Acceptor>,
    /// Listeners there have been: tokens are not used again, for events can be late.
    listener_count: usize,
    connections: Slots<Connection>,
    /// Connections that have used up their turn, in the order of their next ones.
    again: VecDeque<Token>,
    /// So many of them, the first ones, have not had the turn that they were owed when this round
    /// of turns began.
    owed_turns: usize,
    /// Connections whose requests for upstreams wait for the events of this turn.
    held: Vec<Token>,
    /// Upstreams that drain, and with which exchanges of this loop may be.
    watched: Vec<(UpstreamDrainId, OneUpstream)>,
    release_idle_ms: u64,
    /// Turns up to now with as many events as the kernel tells at once.
    full_turns: usize,
    /// A command to cut, which waits for what was there or due before it.
    cut_command: Option<LoopCommand>,
    report: Box<dyn Fn(ControlEvent) + Send>,
    published: LoopCounts,
    finishing: bool,
    cut: u64,
    /// The last public connection is gone, and control knows.
    emptied: bool,
    /// The end has come; what is owed may take until then.
    end_ms: Option<u64>,
    giving: Giving,
    taking: Taking,
    cx: LoopContext,
}

impl Running {
    fn new(
        poll: Poll,
        upstreams: UpstreamPool,
        commands: Receiver<LoopCommand>,
        handle: LoopHandle,
        setup: LoopSetup,
    ) -> std::io::Result<Self> {
        let LoopSetup { config, beside, .. } = setup;
        let of = |class| beside.iter().find(|side| side.class == class);
        let acceptors = PerClass::new(|class| match (class, of(class)) {
            (Class::Public, _) => Acceptor::new(setup.budget.clone()),
            (_, Some(side)) => Acceptor::new(side.budget.clone()),
            // Nothing ever takes a place of it.
            (_, None) => Acceptor::new(ConnectionBudget::new(0, 0)),
        });
        let mut cx = LoopContext {
            index: setup.index,
            view: RegistryView::new(setup.registry, setup.index),
            buffers: BufferPool::new(input_bytes(&config.limits)),
            clock: Clock::new(setup.epoch),
            timers: Timers::default(),
            limits: PerClass::new(|class| ClassLimits::of(class, &config.limits)),
            side_apps: PerClass::new(|class| of(class).map(|side| Arc::clone(&side.app))),
            idle_grace: config.idle_grace,
            closing: Closing::default(),
            access: config.access,
            counts: LoopCounts::default(),
            gauges: setup.gauges,
            proxy_header_log_ms: 0,
            refused_log_ms: 0,
            last_number: 0,
            handle,
            upstreams,
            reports: Vec::new(),
            holds_requests: false,
            dateless: http::h1::HeadTemplate::dateless(),
        };
        cx.tell_idle_time();
        let mut running = Self {
            poll,
            commands,
            acceptors,
            listener_count: 0,
            connections: Slots::new(),
            again: VecDeque::new(),
            owed_turns: 0,
            held: Vec::new(),
            watched: Vec::new(),
            release_idle_ms: milliseconds(RELEASE_IDLE_EVERY),
            full_turns: 0,
            cut_command: None,
            report: setup.report,
            published: LoopCounts::default(),
            finishing: false,
            cut: 0,
            emptied: false,
            end_ms: None,
            giving: Giving::default(),
            taking: Taking::default(),
            cx,
        };
        for socket in setup.listeners {
            running.add_public(socket)?;
        }
        for SideSetup { class, listener, .. } in beside {
            running.add_beside(class, listener)?;
        }
        Ok(running)
    }

    fn take_turns(&mut self, events: &mut Events) -> std::io::Result<()> {
        loop {
            self.cx.gauges.end_turn();
            match self.poll.poll(events, self.timeout()) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
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
    fn end_turn(&mut self) -> bool {
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
        if self.finishing && empty && !self.emptied {
            self.emptied = true;
            (self.report)(ControlEvent::Emptied { cut: self.cut });
        }
        let Some(end_ms) = self.end_ms else { return false };
        self.drop_settled();
        self.connections.is_empty() || self.cx.clock.now_ms() >= end_ms
    }

    /// How long the loop may sleep.
    fn timeout(&self) -> Option<Duration> {
        let moves = self.giving.has_work() || self.taking.has_work();
        let has_work = self.cut_command.is_some() || !self.again.is_empty() || moves;
        if has_work || self.acceptors.values().any(Acceptor::somebody_waits) {
            return Some(Duration::ZERO);
        }
        let due = [self.cx.timers.next(), self.end_ms, Some(self.release_idle_ms)];
        let pauses = self.acceptors.values().map(Acceptor::again_ms);
        let next = due.into_iter().chain(pauses).flatten().min()?;
        Some(Duration::from_millis(next.saturating_sub(self.cx.clock.now_ms())))
    }

    /// Handles what the kernel told, and who has work left from the last turn. Returns whether
    /// there are commands.
    fn handle_events(&mut self, events: &Events) -> bool {
        if self.owed_turns == 0 {
            self.owed_turns = self.again.len();
        }
        let (mut commanded, mut count) = (false, 0);
        self.cx.holds_requests = true;
        for event in events {
            count += 1;
            match event.token() {
                WAKER => commanded = true,
                listener if listener.0 & LISTENER_BIT != 0 => {
                    self.acceptors.iter_mut().for_each(|(_, known)| known.on_ready(listener));
                    self.giving.on_ready(listener);
                    self.taking.on_ready(listener);
                }
                token => self.on_socket_event(token, event),
            }
            if self.held.len() >= HELD_REQUESTS_MAX {
                self.send_held();
                self.cx.holds_requests = true;
            }
        }
        self.full_turns = if count == EVENTS_MAX { self.full_turns + 1 } else { 0 };
        self.send_held();
        let turns = self.owed_turns.min(AGAIN_PER_TURN);
        self.owed_turns -= turns;
        for _ in 0..turns {
            let Some(token) = self.again.pop_front() else { break };
            self.with_connection(token, |connection, cx| {
                connection.replace_queued(false);
                connection.work(cx)
            });
        }
        commanded
    }

    /// Lets those work whose requests were held.
    fn send_held(&mut self) {
        self.cx.holds_requests = false;
        let mut held = std::mem::take(&mut self.held);
        for token in held.drain(..) {
            self.with_connection(token, Connection::work);
        }
        // Nobody was added meanwhile; the room is kept.
        self.held = held;
    }

    /// A connection's socket, or one that it has to an upstream, told of changes.
    fn on_socket_event(&mut self, token: Token, event: &Event) {
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
        if let Some(client) = self.cx.upstreams.on_event(token, ready) {
            self.with_connection(client, |connection, cx| {
                connection.on_upstream_ready(token, ready, cx)
            });
        }
    }

    /// Lets a connection work, and does with it what comes of that. One that panics is dropped: a
    /// bug in one exchange ends no other.
    fn with_connection(
        &mut self,
        token: Token,
        work: impl FnOnce(&mut Connection, &mut LoopContext) -> Next,
    ) {
        let Some(connection) = self.connections.find(token) else { return };
        let cx = &mut self.cx;
        let worked = catch_unwind(AssertUnwindSafe(|| work(connection, cx)));
        match worked {
            Ok(Next::Wait) => {}
            Ok(Next::Hold) => self.held.push(token),
            Ok(Next::Turn) => {
                if !connection.replace_queued(true) {
                    self.again.push_back(token);
                }
            }
            Ok(Next::Drop) => self.drop_connection(token),
            Ok(Next::Cut) => {
                if let Some(connection) = self.connections.remove(token) {
                    connection.cut(&mut self.cx);
                    self.end_pauses();
                }
            }
            Err(_) => {
                event!(Error, "connection_panicked", loop_index = self.cx.index);
                self.drop_connection(token);
            }
        }
    }

    fn drop_connection(&mut self, token: Token) {
        if let Some(connection) = self.connections.remove(token) {
            connection.abort(&mut self.cx);
            self.end_pauses();
        }
    }

    /// A place or a descriptor has become free, whose ever it was.
    fn end_pauses(&mut self) {
        self.acceptors.iter_mut().for_each(|(_, acceptor)| acceptor.end_pause());
    }

    fn accept_all(&mut self) {
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
    fn is_caught_up(&self) -> bool {
        self.owed_turns == 0 && !self.has_unread_events()
    }

    /// Whether the kernel is likely to have events left of those that were there as it was asked. A
    /// deadline comes behind them: what was sent in time is not late because this process stood
    /// still, or is busy. It tells of the sockets in turn, so all have had theirs after a while.
    fn has_unread_events(&self) -> bool {
        // Each may have one to an upstream too.
        let sockets = 2 * self.connections.len();
        (1..=sockets / EVENTS_MAX + 1).contains(&self.full_turns)
    }

    /// Handles what was due at that time.
    fn handle_timers(&mut self, now: u64) {
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

    /// Closes them. Others may hold the same sockets, so closing does not end the watch.
    fn close_listeners(&self, listeners: Vec<Listener>) {
        for listener in listeners {
            let mut source = SourceFd(&listener.socket.as_raw_fd());
            drop(self.poll.registry().deregister(&mut source));
        }
    }

    fn add_public(&mut self, socket: PublicSocket) -> std::io::Result<()> {
        let listener = Listener::public(socket, self.next_listener_token());
        watch(self.poll.registry(), &listener.socket, listener.token, Interest::READABLE)?;
        self.acceptors[Class::Public].add(listener);
        Ok(())
    }

    /// Connections of a class beside the public one come on this socket; on no other any more.
    fn add_beside(&mut self, class: Class, socket: OwnedFd) -> std::io::Result<()> {
        let listener = Listener::new(Arc::new(socket), self.next_listener_token());
        watch(self.poll.registry(), &listener.socket, listener.token, Interest::READABLE)?;
        let before = self.acceptors[class].take(|_| true);
        self.close_listeners(before);
        self.acceptors[class].add(listener);
        Ok(())
    }

    fn next_listener_token(&mut self) -> Token {
        self.listener_count += 1;
        Token((self.listener_count - 1) << (slots::KEY_BITS + 2) | LISTENER_BIT)
    }
}

impl LoopContext {
    fn limits(&self, class: Class) -> &ClassLimits {
        &self.limits[class]
    }

    fn public_connections(&self) -> u64 {
        let counts = &self.counts;
        counts.fresh + counts.busy + counts.idle + counts.lingering
    }

    /// Has answers say how long a connection may be idle: nine tenths of it, for a request takes
    /// its time. Both classes say the same, so it is no more than the admin's.
    fn tell_idle_time(&mut self) {
        let most = config::Limits::default().keepalive_timeout;
        let hint_s =
            self.limits[Class::Public].times.keepalive_timeout.min(most).as_secs() * 9 / 10;
        self.clock.set_idle_hint(hint_s);
        self.dateless = http::h1::HeadTemplate::dateless().with_idle_hint(hint_s);
    }

    /// A name for an exchange that is parked.
    fn next_number(&mut self) -> ExchangeNumber {
        self.last_number += 1;
        ExchangeNumber(self.last_number)
    }

    /// What a new config says holds from here on.
    fn configure(&mut self, config: LoopConfig) {
        self.buffers.set_input_bytes(input_bytes(&config.limits));
        self.limits[Class::Public] = ClassLimits::new(config.limits);
        self.idle_grace = config.idle_grace;
        self.tell_idle_time();
        // The old one hands its lines over when it is dropped; the new one finishes the records.
        self.access = config.access;
    }
}

/// A blank line before a head of the largest size has to fit too, and so have the admin's heads.
fn input_bytes(limits: &config::Limits) -> usize {
    limits.head_bytes.max(config::Limits::default().head_bytes) + 2
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
