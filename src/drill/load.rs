//! The load: clients on one poll, each sending its requests when they are due.
//!
//! ```text
//! loop:  marks of actions ► requests that are due ► expired pauses ► poll ► sockets
//! due:   an idle connection for its kind of client, else a new one, else that kind's queue
//! think: each thinking client has its own connection, and sends again after its pause
//! ```
//! - Without TLS a connection serves all hosts, with TLS only the host of its handshake. Every
//!   second handshake may resume an earlier session.
//! - The plan never waits: the latency of a request that finds no connection counts from its due
//!   time.
//! - An outcome is booked only after the marks of all earlier actions.
//! - The load ends when the actions are over and every request has ended, at the latest by
//!   time-out.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    io::{self, ErrorKind},
    iter::Peekable,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use crossbeam_channel::Receiver;
use fastrand::Rng;
use mio::{Events, Poll, Token};
use slab::Slab;

use super::{
    actions::Mark,
    connection::{DrillConnection, Progress},
    ledger::Ledger,
    outcome::{EndedRequest, FailureDetails, RequestOutcome, RequestPhase},
    plan::{ClientKind, PlannedRequest, Requests},
    pool::{Job, Pool, PooledConnection, Work},
    request::{AfterRequest, Batch, LeaveAt},
    settings::LoadSettings,
    timer::Timer,
};

/// How often time-outs are checked.
const SWEEP: Duration = Duration::from_millis(50);

/// How long a server may take to close a connection after it announced the close.
const CLOSING_MAX: Duration = Duration::from_secs(1);

const TIMER: Token = Token(usize::MAX);
const EVENTS: usize = 1024;
const SCRATCH_BYTES: usize = 256 << 10;

/// The running load.
pub(super) struct Load<'a> {
    settings: &'a LoadSettings,
    epoch: Instant,
    now: Duration,
    poll: Poll,
    timer: Timer,
    plan: Peekable<Requests>,
    rng: Rng,
    /// The host of each target, as [`LoadSettings::hosts`] numbers them.
    hosts: Vec<usize>,
    /// For each host, by kind of client.
    pools: Vec<[Pool; ClientKind::ALL.len()]>,
    connections: Slab<PooledConnection>,
    wakes: BinaryHeap<Reverse<(Duration, usize)>>,
    /// When each thinking client sends its next request, and on which connection.
    thinkers: BinaryHeap<Reverse<(Duration, Option<usize>)>>,
    leavers: u64,
    dials: u64,
    next_sweep: Duration,
    /// No request is due after this.
    end: Option<Duration>,
    marks: Receiver<Mark>,
    ledger: Ledger,
    idle_closes: u64,
    scratch: Vec<u8>,
}

/// The result of a load.
pub(crate) struct LoadResult {
    pub(crate) ledger: Ledger,
    /// The time during which requests were due.
    pub(crate) time: Duration,
    /// Kept connections that the server closed while idle.
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
        let hosts = settings.hosts();
        let count = hosts.iter().max().map_or(1, |last| last + 1);
        let pool = |kind| Pool::new(settings.connections_of(kind, count));
        let pools = (0..count).map(|_| ClientKind::ALL.map(pool)).collect();
        let mut rng = Rng::with_seed(!seed);
        let thinks = kinds.contains(&ClientKind::Thinking);
        let thinkers = if thinks { *connections } else { 0 };
        // They start at different times.
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
            dials: 0,
            hosts,
            pools,
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

    /// Runs until the load is over.
    pub(super) fn run(mut self, interrupted: &AtomicBool) -> io::Result<LoadResult> {
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
        Ok(LoadResult { ledger: self.ledger, time, idle_closes: self.idle_closes })
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
        let is_busy = |(_, client): (usize, &PooledConnection)| matches!(client.work, Work::Job(_));
        self.end.is_some_and(|end| end <= self.now)
            && self.pools.iter().flatten().all(|pool| pool.queue.is_empty())
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
            let PlannedRequest { at, kind, target } = due;
            self.send(kind, target, at, None);
        }
    }

    /// Sends the requests of clients that have finished thinking.
    fn send_thought(&mut self) {
        let end = self.end.unwrap_or(Duration::MAX);
        while let Some(Reverse((at, own))) = self.thinkers.peek().copied()
            && at <= self.now
            && at < end
        {
            self.thinkers.pop();
            let target = self.thinking_target(own);
            self.send(ClientKind::Thinking, target, at, own);
        }
    }

    /// The target of a thinking client, which `own` serves if that is still open.
    fn thinking_target(&mut self, own: Option<usize>) -> usize {
        let targets = &self.settings.targets;
        let host = own.and_then(|at| self.connections.get(at)).map(|own| own.host);
        let is_served = |at: usize| host.is_none_or(|host| self.hosts[at] == host);
        let is_small = |at: &usize| !targets[*at].is_large && is_served(*at);
        let small: Vec<usize> = (0..targets.len()).filter(is_small).collect();
        // Large answers are for slow downloads, unless all targets are large.
        let any = (0..targets.len()).find(|at| is_served(*at));
        self.rng.choice(small).or(any).unwrap_or(0)
    }

    fn send(&mut self, kind: ClientKind, target: usize, due: Duration, own: Option<usize>) {
        let now = self.epoch.elapsed();
        for _ in 0..kind.batch() {
            self.ledger.send(kind, now.saturating_sub(due));
        }
        let left = kind.batch();
        self.start(Job { due, started: now, begun: now, kind, target, left, own });
    }

    /// Sends a request on a connection for its kind of client.
    fn start(&mut self, mut job: Job) {
        job.begun = self.epoch.elapsed();
        let batch = self.batch(&job);
        let host = self.hosts[job.target];
        while let Some(at) = self.pools[host][job.kind as usize].pick(&job, &mut self.rng) {
            let client = &mut self.connections[at];
            if client.connection.is_open() {
                client.connection.begin(batch, job.begun, self.settings.distance);
                client.work = Work::Job(job);
                return self.advance(at);
            }
            self.idle_closes += 1;
            self.pools[host][job.kind as usize].open -= 1;
            self.connections.remove(at);
        }
        let pool = &mut self.pools[host][job.kind as usize];
        if pool.open == pool.max {
            pool.queue.push_back(job);
            return;
        }
        let tls = self.settings.tls.as_ref().map(|tls| tls.of(job.target));
        self.dials += 1;
        let is_full = self.dials.is_multiple_of(2);
        let tls = tls.map(|tls| if is_full { &tls.full } else { &tls.resuming });
        let entry = self.connections.vacant_entry();
        let place = (self.poll.registry(), Token(entry.key()));
        match DrillConnection::dial(self.settings.address, tls, batch, place, job.begun) {
            Ok(connection) => {
                pool.open += 1;
                let (kind, work) = (job.kind, Work::Job(job));
                entry.insert(PooledConnection { connection, kind, host, work });
            }
            Err(error) => {
                let details = details(RequestPhase::Connecting, &error.to_string());
                self.record_all(job, Duration::ZERO, &RequestOutcome::NotAccepted(details), None);
            }
        }
    }

    fn batch(&mut self, job: &Job) -> Batch<'a> {
        let Job { kind, target, .. } = *job;
        let leaves = (kind == ClientKind::Leaving).then(|| {
            self.leavers += 1;
            // The two ways of leaving alternate.
            if self.leavers.is_multiple_of(2) {
                LeaveAt::BeforeAnswer
            } else {
                LeaveAt::WithinAnswer
            }
        });
        Batch { kind, target: &self.settings.targets[target], leaves }
    }

    /// Continues a connection, if it still exists.
    fn advance(&mut self, at: usize) {
        let Some(client) = self.connections.get_mut(at) else { return };
        let progress = client.connection.advance(self.now, &mut self.scratch);
        if let Some(handshake) = client.connection.take_handshake(self.epoch.elapsed()) {
            self.take_marks();
            self.ledger.shake(&handshake);
        }
        let Some(client) = self.connections.get_mut(at) else { return };
        match progress {
            Progress::Waiting => {}
            Progress::Until(moment) => self.wakes.push(Reverse((moment, at))),
            Progress::Done(outcome, then) => self.finish(at, outcome, then),
            Progress::Closed => {
                if let Work::Idle = client.work {
                    self.idle_closes += 1;
                    let pool = &mut self.pools[client.host][client.kind as usize];
                    pool.idle.retain(|idle| *idle != at);
                    pool.open -= 1;
                }
                self.connections.remove(at);
            }
        }
    }

    /// Handles the end of a connection's request.
    fn finish(&mut self, at: usize, outcome: RequestOutcome, then: AfterRequest) {
        if let RequestOutcome::FailedHandshake(details) = &outcome {
            let begun = self.connections[at].connection.handshake_begun();
            self.take_marks();
            self.ledger.fail_handshake(begun, &details.said);
        }
        let client = &mut self.connections[at];
        let (kind, host, pause) = (client.kind, client.host, client.connection.paused());
        if let (AfterRequest::GoOn, Work::Job(job)) = (then, &mut client.work) {
            job.left -= 1;
            let job = *job;
            self.record(job, pause, outcome);
            return self.advance(at);
        }
        let work = match then {
            AfterRequest::Keep => Work::Idle,
            AfterRequest::GoOn | AfterRequest::Close | AfterRequest::Drop => {
                Work::Closing(self.now)
            }
        };
        if let Work::Job(job) = std::mem::replace(&mut client.work, work) {
            let own = (then == AfterRequest::Keep).then_some(at);
            self.record_all(job, pause, &outcome, own);
        }
        let pool = &mut self.pools[host][kind as usize];
        if then == AfterRequest::Keep {
            pool.idle.push(at);
        } else {
            pool.open -= 1;
        }
        match then {
            AfterRequest::Keep | AfterRequest::GoOn => {}
            AfterRequest::Close => {
                self.connections[at].connection.close();
                self.advance(at);
            }
            AfterRequest::Drop => drop(self.connections.remove(at)),
        }
        if let Some(job) = self.pools[host][kind as usize].queue.pop_front() {
            self.start(job);
        }
    }

    /// Records the end of a request and of all those pipelined after it. A thinking client starts
    /// its pause here; `own` is its connection.
    fn record_all(
        &mut self,
        job: Job,
        pause: Duration,
        first: &RequestOutcome,
        own: Option<usize>,
    ) {
        self.record(job, pause, first.clone());
        let behind = match first {
            // No byte of the later answers has arrived.
            RequestOutcome::Truncated(details) => RequestOutcome::Lost(FailureDetails {
                phase: RequestPhase::Waiting,
                received: 0,
                ..details.clone()
            }),
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

    fn record(&mut self, job: Job, pause: Duration, outcome: RequestOutcome) {
        self.take_marks();
        let Job { due, begun, kind, target, .. } = job;
        let ended = self.epoch.elapsed();
        self.ledger.record(EndedRequest { due, begun, ended, pause, kind, target, outcome });
    }

    /// Continues the connections with expired pauses.
    fn wake(&mut self) {
        while let Some(Reverse((moment, at))) = self.wakes.peek().copied()
            && moment <= self.now
        {
            self.wakes.pop();
            self.advance(at);
        }
    }

    /// Ends requests and connections that have timed out.
    fn sweep(&mut self) {
        if self.now < self.next_sweep {
            return;
        }
        self.next_sweep = self.now + SWEEP;
        let (now, timeout) = (self.now, self.settings.timeout);
        let late = |(at, client): (usize, &PooledConnection)| match client.work {
            Work::Job(job) => (job.begun + timeout <= now).then_some(at),
            Work::Closing(since) => (since + CLOSING_MAX <= now).then_some(at),
            Work::Idle => None,
        };
        let late: Vec<usize> = self.connections.iter().filter_map(late).collect();
        for at in late {
            if let Work::Job(_) = self.connections[at].work {
                let outcome = self.connections[at].connection.time_out(timeout);
                self.finish(at, outcome, AfterRequest::Drop);
            } else {
                self.connections.remove(at);
            }
        }
        let places =
            (0..self.pools.len()).flat_map(|host| ClientKind::ALL.map(|kind| (host, kind)));
        for (host, kind) in places {
            let is_late = |job: &mut Job| job.started + timeout <= now;
            while let Some(job) = self.pools[host][kind as usize].queue.pop_front_if(is_late) {
                let details =
                    details(RequestPhase::Queued, "all connections of its kind are in use");
                self.record_all(job, Duration::ZERO, &RequestOutcome::NotAccepted(details), None);
            }
        }
    }
}

/// The failure of a request that has no connection.
fn details(phase: RequestPhase, said: &str) -> FailureDetails {
    let said = said.to_owned();
    FailureDetails { phase, sent: 0, received: 0, served: 0, connecting: None, said, port: 0 }
}
