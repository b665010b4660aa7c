//! The load: clients on one poll, which send each request when it is due.
//!
//! ```text
//! loop:  marks of actions ► requests that are due ► what waits for a time ► poll ► sockets
//! due:   an idle connection of its kind, else a new one, else the queue of its kind
//! think: each of these clients has a connection, and asks when it has thought
//! ```
//! - The plan never waits: a request that finds no connection is counted from when it was due.
//! - An outcome is booked only after all marks of actions that came before it.
//! - Ends when the actions are over and every request that was sent has ended, at the latest by its
//!   time-out.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    io::{self, ErrorKind},
    iter::Peekable,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use crossbeam_channel::Receiver;
use fastrand::Rng;
use mio::{Events, Poll, Token};
use slab::Slab;

use super::{
    actions::Mark,
    connection::{Batch, Connection, Leave, Progress, Then},
    ledger::{Ended, Ledger, Outcome, Phase, Story},
    plan::{ClientKind, Due, Requests, Target},
    timer::Timer,
};

/// How often time-outs are looked at.
const SWEEP: Duration = Duration::from_millis(50);

/// How long a server may take to close a connection that it said it would.
const CLOSING_MAX: Duration = Duration::from_secs(1);

const TIMER: Token = Token(usize::MAX);
const EVENTS: usize = 1024;
const SCRATCH_BYTES: usize = 256 << 10;

/// What the load is.
#[derive(Clone, Debug)]
pub(crate) struct LoadSettings {
    pub(crate) address: SocketAddr,
    pub(crate) targets: Vec<Target>,
    /// Requests in a second.
    pub(crate) rate: u32,
    /// The clients there are.
    pub(crate) kinds: Vec<ClientKind>,
    /// How long those think that do: at least, and at most.
    pub(crate) think: (Duration, Duration),
    pub(crate) seed: u64,
    /// Kept connections of each kind of client.
    pub(crate) connections: usize,
    /// How long a request on a kept connection is under way.
    pub(crate) distance: Duration,
    /// How long a request may take.
    pub(crate) timeout: Duration,
    /// How long the load goes on behind the last action.
    pub(crate) settle: Duration,
}

/// The load, and what it needs.
pub(super) struct Load<'a> {
    settings: &'a LoadSettings,
    epoch: Instant,
    now: Duration,
    poll: Poll,
    timer: Timer,
    plan: Peekable<Requests>,
    rng: Rng,
    pools: [Pool; ClientKind::ALL.len()],
    connections: Slab<Client>,
    wakes: BinaryHeap<Reverse<(Duration, usize)>>,
    /// When each client that thinks asks again, and on which connection.
    thinkers: BinaryHeap<Reverse<(Duration, Option<usize>)>>,
    leavers: u64,
    next_sweep: Duration,
    /// No request is due behind it.
    end: Option<Duration>,
    marks: Receiver<Mark>,
    ledger: Ledger,
    idle_closes: u64,
    scratch: Vec<u8>,
}

/// The connections of a kind of clients.
struct Pool {
    idle: Vec<usize>,
    /// Idle and busy ones.
    open: usize,
    max: usize,
    queue: VecDeque<Job>,
}

struct Client {
    connection: Connection,
    kind: ClientKind,
    work: Work,
}

enum Work {
    Idle,
    Job(Job),
    /// Since then it waits for the server's end.
    Closing(Duration),
}

/// A request that was sent.
#[derive(Clone, Copy, Debug)]
struct Job {
    due: Duration,
    /// When it came up; its time-out counts from then.
    started: Duration,
    /// When it was given a connection.
    begun: Duration,
    kind: ClientKind,
    target: usize,
    /// It and those sent with it that are not answered yet.
    left: usize,
    /// The connection of a client that thinks.
    own: Option<usize>,
}

/// What a load came to.
pub(crate) struct Loaded {
    pub(crate) ledger: Ledger,
    /// How long requests were due.
    pub(crate) time: Duration,
    /// Kept connections that the server closed while they were idle.
    pub(crate) idle_closes: u64,
}

impl<'a> Load<'a> {
    pub(super) fn new(
        settings: &'a LoadSettings,
        epoch: Instant,
        marks: Receiver<Mark>,
        ledger: Ledger,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let timer = Timer::new(poll.registry(), TIMER)?;
        let LoadSettings { seed, rate, targets, connections, kinds, .. } = settings;
        let pool = |kind| {
            // Whoever does not keep connections may need many at once.
            let is_fresh = matches!(kind, ClientKind::Fresh | ClientKind::Leaving);
            let max = if is_fresh { 8 * connections } else { *connections };
            Pool { idle: Vec::new(), open: 0, max, queue: VecDeque::new() }
        };
        let mut rng = Rng::with_seed(!seed);
        let thinks = kinds.contains(&ClientKind::Thinking);
        let thinkers = if thinks { *connections } else { 0 };
        // They begin one by one.
        let thinkers =
            (0..thinkers).map(|_| Reverse((settings.think.1.mul_f64(rng.f64()), None))).collect();
        Ok(Self {
            settings,
            epoch,
            now: epoch.elapsed(),
            poll,
            timer,
            plan: Requests::new(*seed, *rate, targets, kinds).peekable(),
            rng,
            thinkers,
            leavers: 0,
            pools: ClientKind::ALL.map(pool),
            connections: Slab::new(),
            wakes: BinaryHeap::new(),
            next_sweep: Duration::ZERO,
            end: None,
            marks,
            ledger,
            idle_closes: 0,
            scratch: vec![0; SCRATCH_BYTES],
        })
    }

    /// Runs to the end.
    pub(super) fn run(mut self, interrupted: &AtomicBool) -> io::Result<Loaded> {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            self.now = self.epoch.elapsed();
            self.take_marks();
            if interrupted.load(Ordering::Relaxed) {
                self.end_at(self.now);
            }
            self.send_due();
            self.send_thought();
            self.wake();
            self.sweep();
            if self.is_over() {
                break;
            }
            let wait = self.next_moment().saturating_sub(self.now);
            self.timer.set(wait)?;
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                polled => polled?,
            }
            self.now = self.epoch.elapsed();
            for event in events.iter().filter(|event| event.token() != TIMER) {
                self.advance(event.token().0);
            }
        }
        self.ledger.assert_sums();
        let time = self.end.unwrap_or(self.now);
        Ok(Loaded { ledger: self.ledger, time, idle_closes: self.idle_closes })
    }

    fn take_marks(&mut self) {
        while let Ok(mark) = self.marks.try_recv() {
            match mark {
                Mark::Begin(action, at) => self.ledger.begin(action, at),
                Mark::End(at, error) => self.ledger.end(at, error),
                Mark::Over => self.end_at(self.now + self.settings.settle),
            }
        }
    }

    fn end_at(&mut self, at: Duration) {
        self.end = Some(self.end.map_or(at, |end| end.min(at)));
    }

    fn is_over(&self) -> bool {
        let is_busy = |(_, client): (usize, &Client)| matches!(client.work, Work::Job(_));
        self.end.is_some_and(|end| end <= self.now)
            && self.pools.iter().all(|pool| pool.queue.is_empty())
            && !self.connections.iter().any(is_busy)
    }

    fn next_moment(&mut self) -> Duration {
        let due = self.plan.peek().map(|due| due.at).filter(|at| self.end.is_none_or(|e| *at < e));
        let wake = self.wakes.peek().map(|Reverse((at, _))| *at);
        let thought = self.thinkers.peek().map(|Reverse((at, _))| *at);
        let thought = thought.filter(|at| self.end.is_none_or(|end| *at < end));
        [due, wake, thought].into_iter().flatten().fold(self.next_sweep, Duration::min)
    }

    fn send_due(&mut self) {
        let end = self.end.unwrap_or(Duration::MAX);
        while let Some(due) = self.plan.next_if(|due| due.at <= self.now && due.at < end) {
            let Due { at, kind, target } = due;
            self.send(kind, target, at, None);
        }
    }

    /// Of clients that have thought.
    fn send_thought(&mut self) {
        let end = self.end.unwrap_or(Duration::MAX);
        while let Some(Reverse((at, own))) = self.thinkers.peek().copied()
            && at <= self.now
            && at < end
        {
            self.thinkers.pop();
            let target = self.thinking_target();
            self.send(ClientKind::Thinking, target, at, own);
        }
    }

    fn thinking_target(&mut self) -> usize {
        let targets = &self.settings.targets;
        let is_small = |at: &usize| !targets[*at].is_large;
        let small: Vec<usize> = (0..targets.len()).filter(is_small).collect();
        // Large answers are for who reads slowly, unless there are no others.
        self.rng.choice(small).unwrap_or(0)
    }

    fn send(&mut self, kind: ClientKind, target: usize, due: Duration, own: Option<usize>) {
        let now = self.epoch.elapsed();
        for _ in 0..kind.batch() {
            self.ledger.send(kind, now.saturating_sub(due));
        }
        let left = kind.batch();
        self.start(Job { due, started: now, begun: now, kind, target, left, own });
    }

    /// Sends a request on a connection of its kind.
    fn start(&mut self, mut job: Job) {
        job.begun = self.epoch.elapsed();
        let batch = self.batch(&job);
        while let Some(at) = self.pools[job.kind as usize].pick(&job, &mut self.rng) {
            let client = &mut self.connections[at];
            if client.connection.is_open() {
                client.connection.begin(batch, job.begun, self.settings.distance);
                client.work = Work::Job(job);
                return self.advance(at);
            }
            self.idle_closes += 1;
            self.pools[job.kind as usize].open -= 1;
            self.connections.remove(at);
        }
        let pool = &mut self.pools[job.kind as usize];
        if pool.open == pool.max {
            pool.queue.push_back(job);
            return;
        }
        let entry = self.connections.vacant_entry();
        let place = (self.poll.registry(), Token(entry.key()));
        match Connection::dial(self.settings.address, batch, place, job.begun) {
            Ok(connection) => {
                pool.open += 1;
                entry.insert(Client { connection, kind: job.kind, work: Work::Job(job) });
            }
            Err(error) => {
                let story = story(Phase::Connecting, &error.to_string());
                self.record_all(job, Duration::ZERO, &Outcome::NotAccepted(story), None);
            }
        }
    }

    fn batch(&mut self, job: &Job) -> Batch<'a> {
        let Job { kind, target, .. } = *job;
        let leaves = (kind == ClientKind::Leaving).then(|| {
            self.leavers += 1;
            // Half of them each.
            if self.leavers.is_multiple_of(2) { Leave::BeforeAnswer } else { Leave::WithinAnswer }
        });
        Batch { kind, target: &self.settings.targets[target], leaves }
    }

    /// Lets a connection go on that may be gone already.
    fn advance(&mut self, at: usize) {
        let Some(client) = self.connections.get_mut(at) else { return };
        match client.connection.advance(self.now, &mut self.scratch) {
            Progress::Waiting => {}
            Progress::Until(moment) => self.wakes.push(Reverse((moment, at))),
            Progress::Done(outcome, then) => self.finish(at, outcome, then),
            Progress::Closed => {
                if let Work::Idle = client.work {
                    self.idle_closes += 1;
                    let pool = &mut self.pools[client.kind as usize];
                    pool.idle.retain(|idle| *idle != at);
                    pool.open -= 1;
                }
                self.connections.remove(at);
            }
        }
    }

    /// A request of a connection has ended.
    fn finish(&mut self, at: usize, outcome: Outcome, then: Then) {
        let client = &mut self.connections[at];
        let (kind, pause) = (client.kind, client.connection.paused());
        if let (Then::GoOn, Work::Job(job)) = (then, &mut client.work) {
            job.left -= 1;
            let job = *job;
            self.record(job, pause, outcome);
            return self.advance(at);
        }
        let work = match then {
            Then::Keep => Work::Idle,
            Then::GoOn | Then::Close | Then::Drop => Work::Closing(self.now),
        };
        if let Work::Job(job) = std::mem::replace(&mut client.work, work) {
            let own = (then == Then::Keep).then_some(at);
            self.record_all(job, pause, &outcome, own);
        }
        let pool = &mut self.pools[kind as usize];
        if then == Then::Keep {
            pool.idle.push(at);
        } else {
            pool.open -= 1;
        }
        match then {
            Then::Keep | Then::GoOn => {}
            Then::Close => {
                self.connections[at].connection.close();
                self.advance(at);
            }
            Then::Drop => drop(self.connections.remove(at)),
        }
        if let Some(job) = self.pools[kind as usize].queue.pop_front() {
            self.start(job);
        }
    }

    /// A request has ended, and with it those that were sent behind it. A client that thinks does
    /// so from here on, with its `own` connection.
    fn record_all(&mut self, job: Job, pause: Duration, first: &Outcome, own: Option<usize>) {
        self.record(job, pause, first.clone());
        let behind = match first {
            // Of theirs not a byte has come.
            Outcome::Truncated(story) => {
                Outcome::Lost(Story { phase: Phase::Waiting, received: 0, ..story.clone() })
            }
            other => other.clone(),
        };
        for _ in 1..job.left {
            self.record(job, pause, behind.clone());
        }
        if job.kind == ClientKind::Thinking {
            let (least, most) = self.settings.think;
            let think = least + most.saturating_sub(least).mul_f64(self.rng.f64());
            self.thinkers.push(Reverse((self.epoch.elapsed() + think, own)));
        }
    }

    fn record(&mut self, job: Job, pause: Duration, outcome: Outcome) {
        self.take_marks();
        let Job { due, begun, kind, target, .. } = job;
        let ended = self.epoch.elapsed();
        self.ledger.record(Ended { due, begun, ended, pause, kind, target, outcome });
    }

    /// What waited for its moment.
    fn wake(&mut self) {
        while let Some(Reverse((moment, at))) = self.wakes.peek().copied()
            && moment <= self.now
        {
            self.wakes.pop();
            self.advance(at);
        }
    }

    /// What has taken too long.
    fn sweep(&mut self) {
        if self.now < self.next_sweep {
            return;
        }
        self.next_sweep = self.now + SWEEP;
        let (now, timeout) = (self.now, self.settings.timeout);
        let late = |(at, client): (usize, &Client)| match client.work {
            Work::Job(job) => (job.started + timeout <= now).then_some(at),
            Work::Closing(since) => (since + CLOSING_MAX <= now).then_some(at),
            Work::Idle => None,
        };
        let late: Vec<usize> = self.connections.iter().filter_map(late).collect();
        for at in late {
            if let Work::Job(_) = self.connections[at].work {
                let outcome = self.connections[at].connection.time_out(timeout);
                self.finish(at, outcome, Then::Drop);
            } else {
                self.connections.remove(at);
            }
        }
        for kind in ClientKind::ALL {
            let is_late = |job: &mut Job| job.started + timeout <= now;
            while let Some(job) = self.pools[kind as usize].queue.pop_front_if(is_late) {
                let story = story(Phase::Queued, "all connections of its kind are in use");
                self.record_all(job, Duration::ZERO, &Outcome::NotAccepted(story), None);
            }
        }
    }
}

impl Pool {
    /// Takes an idle connection out. Who pauses lets all of its connections rest alike, who thinks
    /// has one of its own.
    fn pick(&mut self, job: &Job, rng: &mut Rng) -> Option<usize> {
        match job.kind {
            ClientKind::Paused => {}
            ClientKind::Thinking => {
                let own = self.idle.iter().position(|at| Some(*at) == job.own)?;
                return Some(self.idle.swap_remove(own));
            }
            _ => return self.idle.pop(),
        }
        let is_full = self.open == self.max && !self.idle.is_empty();
        is_full.then(|| self.idle.swap_remove(rng.usize(..self.idle.len())))
    }
}

/// Of a request without a connection.
fn story(phase: Phase, said: &str) -> Story {
    let said = said.to_owned();
    Story { phase, sent: 0, received: 0, served: 0, connecting: None, said, port: 0 }
}
