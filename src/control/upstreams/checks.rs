//! The thread that checks upstreams: one poll for the checks of all lives, so that none waits for
//! another.
//!
//! ```text
//! watched ──due──► check ──answer or time-out──► plan ──changed──► state of the upstream, log
//! ```
//! Numbers of lives and checks are never used twice, so what is late finds nothing. Due times are
//! nanoseconds of the epoch. What came in time counts before what is overdue.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    sync::{Arc, Weak},
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use mio::{Events, Poll, Token, Waker};

use super::{
    super::notices::{Notices, notice},
    probe::{self, Probe, ProbeResult, Question},
    watched::Watch,
};
use crate::{
    app::{Endpoint, HealthPlan, Upstreams},
    config::HostPolicy,
    duration::nanoseconds,
    io::{BufferPool, Ready},
    logging::event,
};

/// A way to the thread.
pub(super) struct ChecksHandle {
    /// None only while it is dropped.
    watches: Option<Sender<Watch>>,
    waker: Arc<Waker>,
}

impl ChecksHandle {
    pub(super) fn add(&self, watch: Watch) -> io::Result<()> {
        if let Some(watches) = &self.watches {
            drop(watches.send(watch));
        }
        self.waker.wake()
    }
}

impl Drop for ChecksHandle {
    fn drop(&mut self) {
        self.watches = None;
        // A poll that cannot be woken ends with the process.
        drop(self.waker.wake());
    }
}

/// The state of the thread.
pub(super) struct Checks {
    poll: Poll,
    buffers: BufferPool,
    epoch: Instant,
    notices: Arc<Notices>,
    watches: Receiver<Watch>,
    lives: HashMap<u64, Life>,
    running: HashMap<Token, Running>,
    due: BTreeSet<(u64, Due)>,
    next_number: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// The check of an upstream of a life begins.
    Begin(u64, usize),
    /// A check took too long.
    Timeout(Token),
}

struct Life {
    watch: Watch,
    /// One for each upstream.
    plans: Vec<Plan>,
}

struct Plan {
    health: HealthPlan,
    /// The address that checks begin with; the next one after a time-out without an answer.
    first_address: usize,
}

struct Running {
    life: u64,
    index: usize,
    deadline_ns: u64,
    probe: Probe,
}

const WAKER: Token = Token(0);

impl Checks {
    /// Begins the thread; it ends when the handle is dropped.
    pub(super) fn spawn(epoch: Instant, notices: Arc<Notices>) -> io::Result<ChecksHandle> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let (sender, watches) = crossbeam_channel::unbounded();
        let checks = Self {
            poll,
            buffers: probe::buffers(),
            epoch,
            notices,
            watches,
            lives: HashMap::new(),
            running: HashMap::new(),
            due: BTreeSet::new(),
            next_number: 1,
        };
        thread::Builder::new().name("checks".into()).spawn(move || checks.run())?;
        Ok(ChecksHandle { watches: Some(sender), waker })
    }

    fn run(mut self) {
        let mut events = Events::with_capacity(256);
        loop {
            let timeout = self
                .due
                .first()
                .map(|(due, _)| Duration::from_nanos(due.saturating_sub(self.now_ns())));
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    event!(Error, "checks_failed", error:% = error);
                    return;
                }
            }
            for event in &events {
                if event.token() != WAKER {
                    self.advance(event.token(), Ready::from(event));
                } else if !self.take_watches() {
                    return;
                }
            }
            let now_ns = self.now_ns();
            while let Some((due_ns, due)) = self.due.first().copied()
                && due_ns <= now_ns
            {
                self.due.pop_first();
                match due {
                    Due::Begin(life, index) => self.begin(life, index, now_ns),
                    Due::Timeout(token) => self.time_out(token),
                }
            }
        }
    }

    /// Takes up new lives; false when there will be none any more.
    fn take_watches(&mut self) -> bool {
        loop {
            match self.watches.try_recv() {
                Ok(watch) => self.add(watch),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn add(&mut self, watch: Watch) {
        // An app of an embedder may go on with the upstreams of its life before.
        let is_same = |life: &Life| Weak::ptr_eq(&life.watch.upstreams, &watch.upstreams);
        let Some(upstreams) = watch.upstreams.upgrade() else { return };
        let Some(config) = &upstreams.config().health else { return };
        if self.lives.values().any(is_same) {
            return;
        }
        let (now_ns, number) = (self.now_ns(), self.next_number());
        let plan = |(index, endpoint): (usize, &Endpoint)| {
            let (known, seed) = (endpoint.known_health(), number << 16 | index as u64);
            Plan { health: HealthPlan::new(config, known, seed, now_ns), first_address: 0 }
        };
        let plans: Vec<_> = upstreams.endpoints().iter().enumerate().map(plan).collect();
        for (index, plan) in plans.iter().enumerate() {
            self.due.extend(plan.health.due_ns().map(|due| (due, Due::Begin(number, index))));
        }
        self.lives.insert(number, Life { watch, plans });
    }

    fn begin(&mut self, number: u64, index: usize, now_ns: u64) {
        let token = Token(self.next_number() as usize);
        let Some(life) = self.lives.get_mut(&number) else { return };
        let Some(upstreams) = life.watch.upstreams.upgrade() else {
            self.lives.remove(&number);
            return;
        };
        let Some(health) = &upstreams.config().health else { return };
        let plan = &mut life.plans[index];
        if !plan.health.begin_if_due(now_ns) {
            return;
        }
        let endpoint = &upstreams.endpoints()[index];
        let place = (token, self.poll.registry());
        let host = match (&health.host, &upstreams.config().host) {
            (Some(host), _) | (None, HostPolicy::Fixed(host)) => host,
            (None, HostPolicy::Keep | HostPolicy::Upstream) => endpoint.authority(),
        };
        let question = Question { path: Some(&health.path), host, agent: "tidegate-health" };
        let begun = Probe::begin(endpoint, plan.first_address, question, place, &mut self.buffers);
        match begun {
            Ok(probe) => {
                let timeout = nanoseconds(health.timeout);
                let deadline_ns = now_ns.saturating_add(timeout);
                self.due.insert((deadline_ns, Due::Timeout(token)));
                self.running.insert(token, Running { life: number, index, deadline_ns, probe });
                // A socket that is open at once may have no further event.
                self.advance(token, Ready::default());
            }
            Err(fault) => self.end(number, index, Err(fault)),
        }
    }

    fn advance(&mut self, token: Token, ready: Ready) {
        let Self { poll, buffers, running, .. } = self;
        let Some(checked) = running.get_mut(&token) else { return };
        let advanced = checked.probe.advance(ready, buffers, poll.registry());
        let Some(outcome) = advanced else { return };
        let Some(Running { life, index, deadline_ns, .. }) = self.running.remove(&token) else {
            return;
        };
        self.due.remove(&(deadline_ns, Due::Timeout(token)));
        self.end(life, index, outcome);
    }

    fn time_out(&mut self, token: Token) {
        let Some(Running { life, index, probe, .. }) = self.running.remove(&token) else { return };
        let outcome = probe.outcome("timeout");
        if let (Err(_), Some(life)) = (&outcome, self.lives.get_mut(&life)) {
            life.plans[index].first_address += 1;
        }
        self.end(life, index, outcome);
    }

    /// A check has ended: what the upstream is from now on, and when the next one is.
    fn end(&mut self, number: u64, index: usize, outcome: ProbeResult) {
        let now_ns = self.now_ns();
        let Some(life) = self.lives.get_mut(&number) else { return };
        let Some(upstreams) = life.watch.upstreams.upgrade() else {
            self.lives.remove(&number);
            return;
        };
        let fault = fault_of(&upstreams, outcome);
        let endpoint = &upstreams.endpoints()[index];
        let plan = &mut life.plans[index].health;
        let change = plan.on_result(fault.is_none(), now_ns);
        self.due.extend(plan.due_ns().map(|due| (due, Due::Begin(number, index))));
        let (host, url, notices) = (&*life.watch.host, endpoint.url(), &self.notices);
        match (change, fault) {
            (Some(false), Some(fault)) => {
                let reason = &*fault;
                notice!(
                    notices,
                    Warn,
                    "upstream_down",
                    host = host,
                    upstream = url,
                    reason = reason
                );
                upstreams.set_health(index, Some(fault), now_ns);
            }
            // It is down for another reason than before.
            (_, Some(fault)) if !plan.is_up() => {
                let before = endpoint.down_reason();
                if before.as_ref() != Some(&fault) {
                    notice!(
                        notices,
                        Warn,
                        "upstream_still_down",
                        host = host,
                        upstream = url,
                        reason = &*fault,
                        before = before.as_deref(),
                    );
                    upstreams.set_health(index, Some(fault), now_ns);
                }
            }
            // Also without a change: a later life goes on from there.
            (change, None) if plan.is_up() => {
                if change.is_some() {
                    let before = endpoint.down_reason();
                    notice!(
                        notices,
                        Info,
                        "upstream_up",
                        host = host,
                        upstream = url,
                        before = before.as_deref(),
                    );
                }
                upstreams.set_health(index, None, now_ns);
            }
            _ => {}
        }
    }

    fn now_ns(&self) -> u64 {
        nanoseconds(self.epoch.elapsed())
    }

    fn next_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }
}

/// What is wrong with the outcome of a check, if anything is.
fn fault_of(upstreams: &Upstreams, outcome: ProbeResult) -> Option<String> {
    let good = upstreams.config().health.as_ref().map(|health| health.status.clone());
    match outcome {
        Ok(status) if good.is_some_and(|good| good.contains(&status)) => None,
        Ok(status) => Some(format!("status {status}")),
        Err(fault) => Some(fault),
    }
}
