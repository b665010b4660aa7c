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
mod notices;
mod operator;
mod reload;
mod service_manager;
mod signals;
mod stop_plan;
mod stopping;
mod taking_up;
mod tasks;
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
pub(crate) use drains::{DrainName, DrainView};
pub use drains::{DrainTicket, Verdict};
pub use emptied::Emptied;
pub(crate) use input::{
    Answer, Input, LifeView, Progress, ReadyReload, Report, StopAsker, StopRequest, ask, send,
};
pub use lives::ChangeError;
pub(crate) use lives::{Begun, LifeChanges, LivesChanged, PutMode};
pub(crate) use notices::Notices;
pub(crate) use operator::{
    Host, Listening, Operator, PutError, RenewedAdmin, Sockets, load, unavailable,
};
pub(crate) use reload::Reloads;
pub use reload::{ReloadError, ReloadOptions, Reloaded};
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
    logging::Logging,
    message::{Apps, ControlEvent, LoopCommand, LoopHandle},
    metrics::LoopGauges,
};
use account::Account;
use drain_log::DrainLog;
use drain_plan::DrainStep;
use drains::Drains;
use listeners::ClosingListeners;
use lives::nanoseconds;
use log_watch::LogWatch;
use notices::notice;
use service_manager::ServiceReports;
use stopping::Stop;
use tasks::Desk;
use upstreams::UpstreamWatch;
use views::Watcher;
use watchdog::LoopWatch;

/// The state of the control thread.
pub(crate) struct Control {
    registry: Arc<Apps>,
    loops: Vec<LoopHandle>,
    /// Where each loop shows what it is doing.
    gauges: Vec<Arc<LoopGauges>>,
    watch: LoopWatch,
    service: ServiceReports,
    inputs: Receiver<Input>,
    sender: Sender<Input>,
    notices: Arc<Notices>,
    epoch: Instant,
    shutdown_delay: Duration,
    drain_timeout: Duration,
    drains: Drains,
    drain_log: DrainLog,
    watchers: Vec<Watcher>,
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
    /// `epoch` is where drain times count from; the loops' clocks begin there too.
    pub(crate) fn new(
        registry: Arc<Apps>,
        notices: Arc<Notices>,
        epoch: Instant,
        server: &ServerConfig,
        desk: Arc<Desk>,
    ) -> Self {
        let (sender, inputs) = crossbeam_channel::unbounded();
        Self {
            registry,
            loops: Vec::new(),
            gauges: Vec::new(),
            watch: LoopWatch::default(),
            service: ServiceReports::default(),
            inputs,
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
        }
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

    /// Runs until a stop is over.
    pub(crate) fn run(
        mut self,
        loops: Vec<LoopHandle>,
        gauges: Vec<Arc<LoopGauges>>,
        addresses: Vec<SocketAddr>,
    ) -> Ended {
        self.watch = LoopWatch::begin(loops.len());
        (self.loops, self.gauges, self.addresses) = (loops, gauges, addresses);
        self.report_ready(Instant::now());
        loop {
            if self.routes_changed && self.inputs.is_empty() {
                self.routes_changed = false;
                self.command(|| LoopCommand::Refresh);
            }
            let ended = match self.inputs.recv_deadline(self.due()) {
                // Deadlines hold however much there is to do (I5).
                Ok(input) => self.on_input(input).or_else(|| self.on_time_if_due()),
                // Disconnected cannot be: the control thread holds a sender itself.
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => self.on_time(),
            };
            if let Some(verdict) = ended {
                self.pass_unread_stops_on();
                let totals = self.totals();
                return if self.failed.is_empty() {
                    Ended::Stopped(verdict, totals)
                } else {
                    Ended::LoopFailed
                };
            }
        }
    }

    /// The process that serves is to stop, if a signal has asked for that too late for control.
    fn pass_unread_stops_on(&self) {
        self.relay.leave_unread();
        for input in self.inputs.try_iter() {
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

    fn on_input(&mut self, input: Input) -> Option<Verdict> {
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
        match input {
            Input::Loop(index, event) => return self.on_loop(index, &event),
            Input::Orphaned(sockets) => self.give_orphans_away(sockets),
            Input::Drained(life) => self.end_drain(life.into()),
            Input::Put(app, mode, answer) => answer(self.put_app(app, mode)),
            Input::Remove(host, timeout, answer) => answer(self.remove_app(&host, timeout)),
            Input::Drain(host, timeout, answer) => answer(self.drain_app(&host, timeout)),
            Input::Resume(host, app, answer) => answer(self.resume_app(&host, app)),
            Input::DrainUpstream(host, url, timeout, answer) => {
                answer(self.drain_upstream(&host, &url, timeout));
            }
            Input::ResumeUpstream(host, url, answer) => answer(self.resume_upstream(&host, &url)),
            Input::Reload(reload, answer) => answer(self.reload(*reload)),
            Input::Stop(request) => return self.stop(request),
            Input::Watch(drain, until, tell) => self.watch(Watcher { drain, until, tell }),
            Input::BeginHandOver(answer) => answer(self.begin_hand_over()),
            Input::HandedOver { kept, let_go, lines } => {
                return self.hand_over(*kept, &let_go, lines);
            }
            Input::KeepFewer(addresses) => self.keep_fewer(&addresses),
            Input::KeepNone => self.keep_none(),
            Input::SuccessorGone => self.take_up_again(),
            Input::KeptOn => return self.make_up_for(),
            Input::ListenForAdmin(socket) => self.listen_for_admin(&socket),
            Input::Report(answer) => answer(Ok(self.report())),
            Input::Progress(answer) => answer(Ok(self.progress())),
            Input::Lives(answer) => answer(Ok(self.life_views())),
            Input::Measure(answer) => {
                let running = self.drains.running().count() as u64;
                let now_ns = nanoseconds(self.epoch.elapsed());
                answer(Ok(self.account.measure(&self.all_lives(), running, now_ns)));
            }
        }
        None
    }

    fn on_time_if_due(&mut self) -> Option<Verdict> {
        if self.due() <= Instant::now() { self.on_time() } else { None }
    }

    fn on_time(&mut self) -> Option<Verdict> {
        let now = Instant::now();
        for (name, step) in self.drains.on_time(now) {
            match step {
                DrainStep::Cut => self.cut_drain(name),
                DrainStep::End => self.end_drain(name),
            }
        }
        self.close_gated_listeners(now);
        self.watch_loops(now);
        self.watch_logs(now);
        self.watch_operator(now);
        self.log_progress(now);
        self.report_to_manager(now);
        let (due, waiting) = self.watchers.drain(..).partition(|watcher| watcher.until <= now);
        self.watchers = waiting;
        self.tell(due);
        self.on_stop_time(now)
    }

    fn on_loop(&mut self, index: usize, event: &ControlEvent) -> Option<Verdict> {
        let mut stopped = None;
        let now = Instant::now();
        match event {
            ControlEvent::ListenersGated(gated) => self.on_listeners_gated(index, gated),
            ControlEvent::UpstreamLeft(drain) => self.on_upstream_left(*drain),
            ControlEvent::UpstreamFailed(report) => {
                upstreams::tell_failure(&self.notices, report);
            }
            ControlEvent::Failed { error } => {
                notice!(self.notices, Error, "loop_failed", loop_index = index, error = &**error);
                stopped = self.stop_for_failed(index);
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
                self.gate_for_dead(index);
                stopped = self.stop_for_failed(index);
            }
            ControlEvent::TookUp => self.on_took_up(index),
            ControlEvent::Gated | ControlEvent::Emptied { .. } | ControlEvent::Ended => {}
        }
        self.on_stop_loop(index, event, now).or(stopped)
    }

    fn reload(&mut self, reload: ReadyReload) -> Result<LivesChanged, ChangeError> {
        if self.stop.is_some() {
            return Err(ChangeError::Stopping);
        }
        self.shutdown_delay = reload.server.shutdown_delay;
        self.drain_timeout = reload.server.drain_timeout;
        let changed = self.change_lives(reload.lives);
        for (index, config) in reload.loops.into_iter().enumerate() {
            let done = reload.configured.clone();
            self.command_one(index, LoopCommand::Configure(Box::new(config), done));
        }
        for sockets in reload.listen {
            self.addresses.extend(sockets.first().map(|socket| socket.address));
            for (index, socket) in sockets.into_iter().enumerate() {
                self.command_one(index, LoopCommand::Listen(vec![socket]));
            }
        }
        self.close_listeners(reload.close);
        Ok(changed)
    }
}
