//! The control thread: the one that changes the registry, and sees every drain to its end.
//!
//! Owns the drains and the stop; decides by the pure plans ([`drain_plan`], [`gate_plan`],
//! [`stop_plan`]) and carries their steps out. Waits only on its channel, never on a loop or a
//! disk, and touches no connection. It knows the loops only by [`crate::message`].
//!
//! More threads work for it. `admin` answers what only has to be looked up, and passes the rest
//! on; `operator` does what may wait for a disk (reading the config, loading apps), one after the
//! other, and gives control what is ready. [`upstreams`] has those that look after upstreams.

mod account;
mod admin;
mod answer;
mod change_error;
mod commands;
mod drain_log;
mod drain_plan;
mod drains;
mod emptied;
mod forecast;
mod gate_plan;
mod handshakes;
mod input;
mod listeners;
mod lives;
mod log_watch;
mod loops;
mod notices;
mod operator;
mod reload;
mod reloaded;
mod service_manager;
mod signals;
#[cfg(test)]
mod simulation;
mod stop_plan;
mod stopping;
mod taking_up;
mod tasks;
#[cfg(test)]
mod test_support;
mod upgrade;
mod upstream_drains;
mod upstreams;
mod views;
mod watchdog;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

pub(crate) use admin::{Admin, AdminApp, AdminRequest, Facts, HealthApp};
pub(crate) use answer::Answer;
pub use change_error::ChangeError;
pub(crate) use change_error::PutError;
pub(crate) use drains::{DrainName, DrainView};
pub use drains::{DrainTicket, Verdict};
pub use emptied::Emptied;
pub(crate) use input::{
    DrainApp, DrainUpstream, DrainWatch, Input, LifeView, LoopReport, Progress, PutApp,
    ReadyReload, RemoveApp, Report, ResumeApp, ResumeUpstream, StopAsker, StopRequest, ask, send,
};
pub(crate) use lives::{Begun, LifeChanges, LivesChanged, PutMode};
pub(crate) use loops::LoopThreads;
pub(crate) use notices::Notices;
pub(crate) use operator::{Host, Listening, Operator, RenewedAdmin, Sockets, load, unavailable};
pub(crate) use reloaded::Reloads;
pub use reloaded::{ReloadError, ReloadOptions, Reloaded};
pub(crate) use service_manager::{ServiceManager, is_stored};
pub use signals::{EarlySignals, SignalRequest, forward_signals, unblock_all};
pub(crate) use taking_up::KeptSockets;
pub(crate) use tasks::{Task, TaskReceiver, TaskSender, Tell, tasks};
pub(crate) use upgrade::{
    Generation, HandedAdmin, HandedHealth, Inherited, InheritedSockets, LAUNCH, NoTakeOver,
    PassedStop, Predecessor, StopRelay, TakeOver, Totals, UpgradeError, UpgradeOptions, Upgraded,
    Upgrader, launch,
};
pub(crate) use watchdog::StuckLoop;

use crate::{
    config::ServerConfig,
    hosted::Apps,
    logging::Logging,
    message::{ControlEvent, LoopCommand},
};
use account::{Account, Measured};
use drain_log::DrainLog;
use drain_plan::DrainStep;
use drains::Drains;
use handshakes::ArePending;
use listeners::ClosingListeners;
use lives::nanoseconds;
use log_watch::LogWatch;
use loops::Loops;
use notices::notice;
use service_manager::ServiceReports;
use stopping::Stop;
use tasks::Desk;
use upstreams::UpstreamWatch;
use watchdog::LoopWatch;

/// The state of the control thread.
pub(crate) struct Control {
    registry: Arc<Apps>,
    loops: Box<dyn Loops>,
    /// Whether handshakes with these addresses are under way.
    handshakes: ArePending,
    watch: LoopWatch,
    service: ServiceReports,
    sender: Sender<Input>,
    notices: Arc<Notices>,
    epoch: Instant,
    shutdown_delay: Duration,
    drain_timeout: Duration,
    drains: Drains,
    drain_log: DrainLog,
    watchers: Vec<DrainWatch>,
    /// Where the loops listen.
    addresses: Vec<SocketAddr>,
    /// Listeners that are being closed.
    closing: Vec<ClosingListeners>,
    stop: Option<Stop>,
    /// The last stop that was cancelled, for those that still ask.
    cancelled_stop: Option<DrainView>,
    /// What another process serves now, as long as this one may take it up again.
    kept: Option<KeptSockets>,
    /// What has to wait until a hand-over is over; none while there is no such.
    put_off: Option<Vec<Input>>,
    /// The process that serves in the place of this one.
    handed_over: Option<u32>,
    /// Passes stops on to it.
    relay: StopRelay,
    /// The process before this one.
    pub(crate) predecessor: Option<Arc<Predecessor>>,
    /// A stop has begun; for who only has to know that.
    stopping: Arc<AtomicBool>,
    /// Loops that have failed.
    failed: BTreeSet<usize>,
    /// Loops that have not said yet that they serve again: what they report of a drain is of the
    /// cancelled one.
    taking_up: BTreeSet<usize>,
    /// The routes have changed since the loops were told to look again.
    routes_changed: bool,
    account: Account,
    upstreams: UpstreamWatch,
    logs: LogWatch,
    /// What the operator is at.
    desk: Arc<Desk>,
}

/// How a run of the control thread ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// With what this process counted.
    Stopped(Verdict, Totals),
    /// A loop failed; the server was drained for that.
    LoopFailed,
}

impl Control {
    /// The state before the first input, and where inputs arrive. `epoch` is where drain times
    /// count from; the loops' clocks begin there too.
    pub(crate) fn new(
        registry: Arc<Apps>,
        notices: Arc<Notices>,
        epoch: Instant,
        server: &ServerConfig,
        desk: Arc<Desk>,
    ) -> (Self, Receiver<Input>) {
        let (sender, inputs) = crossbeam_channel::unbounded();
        let control = Self {
            registry,
            loops: Box::<LoopThreads>::default(),
            handshakes: Box::new(handshakes::are_pending),
            watch: LoopWatch::default(),
            service: ServiceReports::default(),
            sender,
            notices: Arc::clone(&notices),
            epoch,
            shutdown_delay: server.shutdown_delay,
            drain_timeout: server.drain_timeout,
            drains: Drains::default(),
            drain_log: DrainLog::default(),
            watchers: Vec::new(),
            addresses: Vec::new(),
            closing: Vec::new(),
            stop: None,
            cancelled_stop: None,
            kept: None,
            put_off: None,
            handed_over: None,
            relay: StopRelay::default(),
            predecessor: None,
            stopping: Arc::default(),
            failed: BTreeSet::new(),
            taking_up: BTreeSet::new(),
            routes_changed: false,
            account: Account::default(),
            upstreams: UpstreamWatch::new(epoch, notices),
            logs: LogWatch::new(epoch),
            desk,
        };
        (control, inputs)
    }

    pub(crate) fn sender(&self) -> &Sender<Input> {
        &self.sender
    }

    /// Has operators told when these logs lose lines.
    pub(crate) fn watch_lines_of(&mut self, logging: Logging) {
        self.logs.logging = Some(logging);
    }

    /// Has the service manager told what happens here.
    pub(crate) fn notify(&mut self, manager: ServiceManager) {
        self.service.manager = Arc::new(manager);
    }

    pub(crate) fn service_manager(&self) -> &Arc<ServiceManager> {
        &self.service.manager
    }

    /// True from the first moment of a stop.
    pub(crate) fn stopping(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stopping)
    }

    /// Passes stops on to the process after this one.
    pub(crate) fn relay(&self) -> &StopRelay {
        &self.relay
    }

    /// Runs until a stop is over: the thread around control. It waits, and knows the time.
    pub(crate) fn run(
        mut self,
        inputs: &Receiver<Input>,
        loops: LoopThreads,
        addresses: Vec<SocketAddr>,
    ) -> Ended {
        self.begin(Box::new(loops), addresses, Instant::now());
        loop {
            if inputs.is_empty() {
                self.refresh_routes();
            }
            let ended = match inputs.recv_deadline(self.due()) {
                Ok(input) => {
                    let now = Instant::now();
                    // Deadlines hold however much there is to do (I5).
                    self.on_input(input, now).or_else(|| self.on_time_if_due(Instant::now()))
                }
                // Disconnected cannot be: control holds a sender itself.
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    self.on_time(Instant::now())
                }
            };
            if let Some(verdict) = ended {
                self.pass_unread_stops_on(inputs);
                return self.ended(verdict);
            }
        }
    }

    /// The loops run: begins to watch them, and reports that the server serves.
    fn begin(&mut self, loops: Box<dyn Loops>, addresses: Vec<SocketAddr>, now: Instant) {
        self.watch = LoopWatch::begin(loops.count());
        (self.loops, self.addresses) = (loops, addresses);
        self.report_ready(now);
    }

    /// Has the loops look at the routes again, if those have changed. Called when no input waits,
    /// so that many changes are one look.
    fn refresh_routes(&mut self) {
        if std::mem::take(&mut self.routes_changed) {
            self.command(|| LoopCommand::Refresh);
        }
    }

    fn ended(&self, verdict: Verdict) -> Ended {
        if self.failed.is_empty() {
            Ended::Stopped(verdict, self.totals())
        } else {
            Ended::LoopFailed
        }
    }

    /// The process that serves is to stop, if a signal has asked for that too late for control.
    fn pass_unread_stops_on(&self, inputs: &Receiver<Input>) {
        self.relay.leave_unread();
        for input in inputs.try_iter() {
            if let Input::Stop(StopRequest { reason, by: StopAsker::Signal, .. }) = input {
                self.relay.pass_on(PassedStop { reason, cut: false });
            } else {
                input.refuse(&ChangeError::Ended);
            }
        }
    }

    fn due(&self) -> Instant {
        let stop = self.stop.as_ref().and_then(Stop::due);
        let closing = self.closing.iter().map(ClosingListeners::due);
        let watchers = self.watchers.iter().map(|watcher| watcher.until);
        let due =
            self.drains.due().into_iter().chain(self.drain_log.due()).chain(self.service.due());
        let due = due.chain(stop).chain(closing).chain(watchers);
        due.fold(self.watch_due(), Instant::min)
    }

    /// Takes an input in, and answers it if it is a question. With a verdict the server is over.
    fn on_input(&mut self, input: Input, now: Instant) -> Option<Verdict> {
        match self.unless_put_off(input)? {
            Input::Loop(report) => return self.on_loop(report.index, &report.event, now),
            Input::Stop(request) => return self.stop(request, now),
            Input::HandedOver(handed) => return self.hand_over(handed, now),
            Input::KeptOn => return self.make_up_for(now),
            Input::Drained(life) => self.end_drain(life.into(), now),
            Input::Orphaned(sockets) => self.give_orphans_away(sockets),
            Input::KeepFewer(addresses) => self.keep_fewer(&addresses),
            Input::KeepNone => self.keep_none(),
            Input::SuccessorGone => self.take_up_again(now),
            Input::ListenForAdmin(socket) => self.listen_for_admin(&socket),
            Input::Watch(watch) => self.watch(watch, now),
            Input::Put(PutApp { app, mode, answer }) => answer.give(self.put_app(app, mode, now)),
            Input::Remove(RemoveApp { host, timeout, answer }) => {
                answer.give(self.remove_app(&host, timeout, now));
            }
            Input::Drain(DrainApp { host, timeout, answer }) => {
                answer.give(self.drain_app(&host, timeout, now));
            }
            Input::Resume(ResumeApp { host, app, answer }) => {
                answer.give(self.resume_app(&host, app, now));
            }
            Input::DrainUpstream(DrainUpstream { host, url, timeout, answer }) => {
                answer.give(self.drain_upstream(&host, &url, timeout, now));
            }
            Input::ResumeUpstream(ResumeUpstream { host, url, answer }) => {
                answer.give(self.resume_upstream(&host, &url, now));
            }
            Input::Reload(reload) => self.reload(*reload, now),
            Input::BeginHandOver(answer) => answer.give(self.begin_hand_over(now)),
            Input::Report(answer) => answer.give(Ok(self.report(now))),
            Input::Progress(answer) => answer.give(Ok(self.progress(now))),
            Input::Lives(answer) => answer.give(Ok(self.life_views(now))),
            Input::Measure(answer) => answer.give(Ok(self.measure(now))),
        }
        None
    }

    /// The input, if it is for now and for this process. While a hand-over is under way, changes
    /// wait for its end; after it, they are the new process's.
    fn unless_put_off(&mut self, input: Input) -> Option<Input> {
        if let Some(put_off) = &mut self.put_off
            && input.changes_something()
        {
            if matches!(input, Input::Stop(_)) {
                self.relay.hurry();
            }
            put_off.push(input);
            return None;
        }
        if let Some(successor) = self.handed_over
            && input.is_for_successor()
        {
            input.refuse(&ChangeError::HandedOver(successor));
            return None;
        }
        if self.stop.as_ref().is_some_and(Stop::is_over) && input.is_change() {
            // A drain that began now would have no end.
            input.refuse(&ChangeError::Ended);
            return None;
        }
        Some(input)
    }

    fn on_time_if_due(&mut self, now: Instant) -> Option<Verdict> {
        if self.due() <= now { self.on_time(now) } else { None }
    }

    /// Does what is due. With a verdict the server is over.
    fn on_time(&mut self, now: Instant) -> Option<Verdict> {
        for (name, step) in self.drains.on_time(now) {
            match step {
                DrainStep::Cut => self.cut_drain(name, now),
                DrainStep::End => self.end_drain(name, now),
            }
        }
        self.account.let_go_of_ended();
        self.close_gated_listeners(now);
        self.watch_loops(now);
        self.watch_logs(now);
        self.watch_operator(now);
        self.log_progress(now);
        self.report_to_manager(now);
        let (due, waiting) = self.watchers.drain(..).partition(|watcher| watcher.until <= now);
        self.watchers = waiting;
        self.tell(due, now);
        self.on_stop_time(now)
    }

    fn on_loop(&mut self, index: usize, event: &ControlEvent, now: Instant) -> Option<Verdict> {
        let mut stopped = None;
        match event {
            ControlEvent::ListenersGated(gated) => self.on_listeners_gated(index, gated, now),
            ControlEvent::UpstreamLeft(drain) => self.on_upstream_left(*drain, now),
            ControlEvent::UpstreamFailed(report) => {
                upstreams::tell_failure(&self.notices, report);
            }
            ControlEvent::Failed { error } => {
                notice!(self.notices, Error, "loop_failed", loop_index = index, error = &**error);
                stopped = self.stop_for_failed(index, now);
            }
            ControlEvent::Died { error, cut } => {
                let notices = &self.notices;
                notice!(
                    notices,
                    Error,
                    "loop_died",
                    loop_index = index,
                    error = &**error,
                    cut = *cut
                );
                self.watch.on_died(index);
                // It serves no more, and a stop has not to wait until it does.
                self.taking_up.remove(&index);
                self.gate_for_dead(index, now);
                stopped = self.stop_for_failed(index, now);
            }
            ControlEvent::TookUp => self.on_took_up(index),
            ControlEvent::Gated | ControlEvent::Emptied { .. } | ControlEvent::Ended => {}
        }
        self.on_stop_loop(index, event, now).or(stopped)
    }

    fn measure(&self, now: Instant) -> Measured {
        let running = self.drains.running().count() as u64;
        let now_ns = nanoseconds(now.duration_since(self.epoch));
        self.account.measure(&self.all_lives(), running, now_ns)
    }

    fn reload(&mut self, reload: ReadyReload, now: Instant) {
        let ReadyReload { changes, configured, answer } = reload;
        if self.stop.is_some() {
            return answer.give(Err(ChangeError::Stopping));
        }
        self.shutdown_delay = changes.server.shutdown_delay;
        self.drain_timeout = changes.server.drain_timeout;
        let changed = self.change_lives(changes.lives, now);
        for (index, config) in changes.loops.into_iter().enumerate() {
            self.command_one(index, LoopCommand::Configure(Box::new(config), configured.clone()));
        }
        drop(configured);
        for sockets in changes.listen {
            self.addresses.extend(sockets.first().map(|socket| socket.address));
            for (index, socket) in sockets.into_iter().enumerate() {
                self.command_one(index, LoopCommand::Listen(vec![socket]));
            }
        }
        self.close_listeners(changes.close, now);
        answer.give(Ok(changed));
    }
}
