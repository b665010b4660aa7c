//! The control thread: the one that changes the registry, and sees every drain to its end.
//!
//! Owns the drains and the stop; decides by the pure plans ([`drain_plan`], [`stop_plan`]) and
//! carries their steps out. Waits only on its channel, never on a loop, and touches no connection.
//! It knows the loops only by [`crate::message`].

mod drain_plan;
mod handshakes;
mod signals;
mod stop_plan;

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

pub use signals::{SignalRequest, forward_signals};

use crate::{
    app::App,
    logging::event,
    message::{AppLife, Apps, ControlEvent, LoopCommand, LoopHandle},
    registry::{AppId, NameTaken, NewApp},
};
use drain_plan::{DrainPlan, DrainStep};
use stop_plan::{StopPlan, StopStep};

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every exchange that was admitted ended by itself.
    Drained,
    /// The deadline, or somebody without patience, ended this many exchanges.
    Cut(u64),
}

impl Verdict {
    fn of(cut: u64) -> Self {
        if cut == 0 { Self::Drained } else { Self::Cut(cut) }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drained => f.write_str("drained"),
            Self::Cut(exchanges) => write!(f, "cut {exchanges}"),
        }
    }
}

/// A drain that is under way.
#[derive(Clone, Debug)]
#[must_use = "the ticket is how the drain's end is known"]
pub struct DrainTicket {
    verdict: Receiver<Verdict>,
}

impl DrainTicket {
    /// Waits for the end of the drain, at most this long; `None` when it is not over by then. The
    /// verdict is given once.
    pub fn wait(&self, timeout: Duration) -> Option<Verdict> {
        self.verdict.recv_timeout(timeout).ok()
    }
}

/// Why an app cannot be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoveError {
    /// No app has this host.
    UnknownHost,
    /// The app is being removed already.
    Draining,
    /// The server has ended.
    Ended,
}

impl fmt::Display for RemoveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownHost => "no app has this host",
            Self::Draining => "the app is being removed already",
            Self::Ended => "the server has ended",
        })
    }
}

impl std::error::Error for RemoveError {}

/// What reaches the control thread.
pub(crate) enum Input {
    /// A loop reports.
    Loop(usize, ControlEvent),
    /// The last exchange of a draining life has left.
    Drained(AppId),
    Add(NewApp<Arc<dyn App>>, Sender<Result<AppId, NameTaken>>),
    Remove(String, Sender<Result<DrainTicket, RemoveError>>),
    /// Stop; when stopping already, cut.
    Stop(String),
}

/// The state of the control thread.
pub(crate) struct Control {
    registry: Arc<Apps>,
    loops: Vec<LoopHandle>,
    inputs: Receiver<Input>,
    sender: Sender<Input>,
    epoch: Instant,
    shutdown_delay: Duration,
    drain_timeout: Duration,
    drains: HashMap<AppId, Drain>,
    /// Where the loops listen.
    addresses: Vec<SocketAddr>,
    stop: Option<Stop>,
    failed: bool,
    /// Requests of lives that have left the registry.
    requests_before: u64,
}

struct Drain {
    life: Arc<AppLife>,
    plan: DrainPlan,
    begun: Instant,
    /// Exchanges of this life that were cut before, with another app's on their connection.
    cut_before: u64,
    verdict: Sender<Verdict>,
}

struct Stop {
    plan: StopPlan,
    begun: Instant,
}

/// How a run of the control thread ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Stopped(Verdict),
    /// A loop failed; the others were drained.
    LoopFailed,
}

impl Control {
    /// `epoch` is where drain times count from; the loops' clocks begin there too.
    pub(crate) fn new(
        registry: Arc<Apps>,
        epoch: Instant,
        shutdown_delay: Duration,
        drain_timeout: Duration,
    ) -> Self {
        let (sender, inputs) = crossbeam_channel::unbounded();
        Self {
            registry,
            loops: Vec::new(),
            inputs,
            sender,
            epoch,
            shutdown_delay,
            drain_timeout,
            drains: HashMap::new(),
            addresses: Vec::new(),
            stop: None,
            failed: false,
            requests_before: 0,
        }
    }

    pub(crate) fn sender(&self) -> &Sender<Input> {
        &self.sender
    }

    /// Runs until a stop is over.
    pub(crate) fn run(mut self, loops: Vec<LoopHandle>, addresses: Vec<SocketAddr>) -> Ended {
        (self.loops, self.addresses) = (loops, addresses);
        loop {
            let input = match self.due() {
                Some(due) => self.inputs.recv_deadline(due),
                None => self.inputs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            let ended = match input {
                Ok(input) => self.on_input(input),
                // Disconnected cannot be: the control thread holds a sender itself.
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => self.on_time(),
            };
            if let Some(verdict) = ended {
                return if self.failed { Ended::LoopFailed } else { Ended::Stopped(verdict) };
            }
        }
    }

    fn due(&self) -> Option<Instant> {
        let drains = self.drains.values().map(|drain| drain.plan.due());
        drains.chain(self.stop.as_ref().and_then(|stop| stop.plan.due())).min()
    }

    fn on_input(&mut self, input: Input) -> Option<Verdict> {
        match input {
            Input::Loop(index, event) => return self.on_loop(index, event),
            Input::Drained(life) => self.end_drain(life),
            // Whoever asked may have gone; what was asked for is done all the same.
            Input::Add(app, reply) => drop(reply.send(self.add_app(app))),
            Input::Remove(host, reply) => drop(reply.send(self.remove_app(&host))),
            Input::Stop(reason) => return self.stop(&reason),
        }
        None
    }

    /// Registers an app; it is served at once.
    pub(crate) fn add_app(&self, app: NewApp<Arc<dyn App>>) -> Result<AppId, NameTaken> {
        let life = self.registry.insert(app)?;
        let kind = life.app().kind();
        event!(Info, "app_added", host = life.host(), id:% = life.id(), kind = kind);
        Ok(life.id())
    }

    /// Begins the drain of an app that leaves. It keeps its names until the end, for its 503.
    pub(crate) fn remove_app(&mut self, host: &str) -> Result<DrainTicket, RemoveError> {
        let found = self.registry.find(&host.to_ascii_lowercase());
        let life = found.filter(|life| life.host().eq_ignore_ascii_case(host));
        let life = life.ok_or(RemoveError::UnknownHost)?;
        let now = Instant::now();
        let timeout = life.drain_timeout();
        let start_ns = now.duration_since(self.epoch).as_nanos() as u64;
        let deadline_ns = start_ns.saturating_add(timeout.as_nanos() as u64);
        let cut_before = life.drain().cut();
        let (id, sender) = (life.id(), self.sender.clone());
        let announce = Box::new(move || drop(sender.send(Input::Drained(id))));
        let begun = life.drain().begin_drain(start_ns, deadline_ns, announce);
        begun.map_err(|_| RemoveError::Draining)?;
        event!(
            Info,
            "app_drain_start",
            host = life.host(),
            id:% = life.id(),
            cause = "remove",
            active_connections = life.drain().active_connections(),
            timeout_ms = timeout.as_millis() as u64,
        );
        let (verdict, ticket) = crossbeam_channel::bounded(1);
        let plan = DrainPlan::begin(now, timeout);
        // In time, also if nothing was in flight: the announcement is a message to this thread.
        self.drains.insert(id, Drain { life, plan, begun: now, cut_before, verdict });
        Ok(DrainTicket { verdict: ticket })
    }

    fn on_time(&mut self) -> Option<Verdict> {
        let now = Instant::now();
        let due: Vec<_> = self
            .drains
            .iter_mut()
            .filter_map(|(id, drain)| drain.plan.on_time(now).map(|step| (*id, step)))
            .collect();
        for (id, step) in due {
            match step {
                DrainStep::Cut => self.command(LoopCommand::Cut(id)),
                DrainStep::End => self.end_drain(id),
            }
        }
        let step = self.stop.as_mut().and_then(|stop| stop.plan.on_time(now));
        self.take_stop_step(step)
    }

    /// Ends a drain, once (I2): what comes after finds no drain of this life.
    fn end_drain(&mut self, id: AppId) {
        let Some(drain) = self.drains.remove(&id) else { return };
        let Drain { life, begun, cut_before, verdict, .. } = drain;
        // A loop that is stuck in the app holds its exchange still: cut, as far as anybody can.
        let state = life.drain();
        let (refused, elapsed_ms) = (state.refused(), begun.elapsed().as_millis() as u64);
        let end = Verdict::of(state.cut() - cut_before + state.active_connections());
        match end {
            Verdict::Drained => event!(
                Info,
                "app_drained",
                host = life.host(),
                id:% = id,
                elapsed_ms = elapsed_ms,
                refused = refused,
            ),
            Verdict::Cut(cut) => event!(
                Warn,
                "app_drain_timeout",
                host = life.host(),
                id:% = id,
                elapsed_ms = elapsed_ms,
                refused = refused,
                cut = cut,
            ),
        }
        self.registry.forget(&life);
        self.requests_before += state.requests();
        self.command(LoopCommand::Refresh);
        event!(Info, "app_removed", host = life.host(), id:% = id, requests = state.requests());
        // Nobody has to wait for the verdict: a ticket can be dropped.
        let _ = verdict.send(end);
    }

    fn on_loop(&mut self, index: usize, event: ControlEvent) -> Option<Verdict> {
        let mut stopped = None;
        if event == ControlEvent::Failed {
            event!(Error, "loop_failed", loop_index = index);
            self.failed = true;
            if self.stop.is_none() {
                stopped = self.stop("loop_failed");
            }
        }
        let now = Instant::now();
        let step = self.stop.as_mut().and_then(|stop| stop.plan.on_loop(index, event, now));
        self.take_stop_step(step).or(stopped)
    }

    fn stop(&mut self, reason: &str) -> Option<Verdict> {
        let now = Instant::now();
        if let Some(stop) = &mut self.stop {
            let step = stop.plan.cut(now);
            event!(Warn, "shutdown_cut", reason = reason);
            return self.take_stop_step(step);
        }
        event!(
            Info,
            "shutdown_graceful",
            reason = reason,
            active_connections = self.active_connections(),
            drain_timeout_ms = self.drain_timeout.as_millis() as u64,
        );
        let plan = StopPlan::begin(now, self.loops.len(), self.shutdown_delay, self.drain_timeout);
        self.stop = Some(Stop { plan, begun: now });
        self.on_time()
    }

    fn take_stop_step(&mut self, step: Option<StopStep>) -> Option<Verdict> {
        match step? {
            StopStep::Gate => self.command(LoopCommand::Gate),
            StopStep::LookForHandshakes => {
                let pending = handshakes::pending(&self.addresses).unwrap_or_else(|error| {
                    event!(Warn, "handshakes_unknown", error:% = error);
                    false
                });
                let now = Instant::now();
                let stop = self.stop.as_mut()?;
                let step = stop.plan.on_handshakes(pending, now);
                return self.take_stop_step(step);
            }
            StopStep::Finish => {
                event!(Info, "shutdown_gated", active_connections = self.active_connections());
                self.command(LoopCommand::Finish);
            }
            StopStep::CutAll => self.command(LoopCommand::CutAll),
            StopStep::Over { cut, stuck } => return Some(self.end_stop(cut, stuck)),
        }
        None
    }

    fn end_stop(&mut self, cut: u64, stuck: usize) -> Verdict {
        // What a stuck loop still holds ends with the process.
        let held = if stuck > 0 { self.active_connections().max(1) } else { 0 };
        let verdict = Verdict::of(cut + held);
        // I2: drains that a stuck loop holds up end with the server.
        for id in self.drains.keys().copied().collect::<Vec<_>>() {
            self.end_drain(id);
        }
        let begun = self.stop.as_ref().map_or(self.epoch, |stop| stop.begun);
        let elapsed_ms = begun.elapsed().as_millis() as u64;
        match verdict {
            // What the loop that failed had in flight was lost, and nobody knows how much that was.
            _ if self.failed => event!(Error, "shutdown_incomplete", elapsed_ms = elapsed_ms),
            Verdict::Drained => {
                event!(Info, "shutdown_drained", elapsed_ms = elapsed_ms, cut = 0u64);
            }
            Verdict::Cut(cut) => event!(
                Warn,
                "shutdown_timeout_reached",
                elapsed_ms = elapsed_ms,
                cut = cut,
                stuck_loops = stuck as u64,
            ),
        }
        let lives = self.registry.entries();
        let requests: u64 = lives.iter().map(|life| life.drain().requests()).sum();
        let uptime_ms = self.epoch.elapsed().as_millis() as u64;
        let requests = requests + self.requests_before;
        event!(Info, "server_stop", uptime_ms = uptime_ms, requests = requests);
        verdict
    }

    fn active_connections(&self) -> u64 {
        let in_map = self.registry.entries();
        let outside = self.drains.values().map(|drain| &drain.life);
        // A life that is being removed is in the map too, unless its names were taken over.
        let outside = outside.filter(|life| !in_map.iter().any(|entry| entry.id() == life.id()));
        in_map.iter().chain(outside).map(|life| life.drain().active_connections()).sum()
    }

    fn command(&self, command: LoopCommand) {
        for (index, handle) in self.loops.iter().enumerate() {
            if let Err(error) = handle.send(command) {
                event!(Error, "loop_not_woken", loop_index = index, error:% = error);
            }
        }
    }
}
