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
mod drain_log;
mod drain_plan;
mod drains;
mod emptied;
mod forecast;
mod gate_plan;
mod handshakes;
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
mod tasks;
mod upgrade;
mod upstream_drains;
mod upstreams;
mod views;
mod watchdog;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

pub(crate) use admin::{Admin, AdminApp, AdminRequest, Facts};
pub(crate) use drains::{DrainName, DrainView};
pub use drains::{DrainTicket, Verdict};
pub use emptied::Emptied;
pub use lives::ChangeError;
pub(crate) use lives::{Begun, LifeChanges, LivesChanged, PutMode};
pub(crate) use notices::Notices;
pub(crate) use operator::{Host, Listening, Operator, PutError, Sockets, load, unavailable};
pub(crate) use reload::Reloads;
pub use reload::{ReloadError, ReloadOptions, Reloaded};
pub(crate) use service_manager::ServiceManager;
pub use signals::{EarlySignals, SignalRequest, forward_signals};
pub(crate) use tasks::{Task, TaskReceiver, TaskSender, Tell, tasks};
pub(crate) use upgrade::{
    Generation, HandedAdmin, Inherited, InheritedSockets, LAUNCH, NoTakeOver, Predecessor,
    TakeOver, Totals, UpgradeError, UpgradeOptions, Upgraded, Upgrader, launch,
};
pub(crate) use watchdog::StuckLoop;

use crate::{
    config::ServerConfig,
    logging::{Logging, event},
    message::{AppLife, Apps, ControlEvent, HostedApp, LoopCommand, LoopConfig, LoopHandle},
    metrics::LoopGauges,
    registry::{AppId, NewApp},
};
use account::{Account, Measured};
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

/// Whoever asked may have gone; what was asked for is done all the same.
pub(crate) type Answer<T> = Sender<Result<T, ChangeError>>;

/// What reaches the control thread.
pub(crate) enum Input {
    /// A loop reports.
    Loop(usize, ControlEvent),
    /// A loop is dead, and its sockets are for another one.
    Orphaned(Sockets),
    /// The last exchange of a draining life has left.
    Drained(AppId),
    Put(NewApp<HostedApp>, PutMode, Answer<Begun>),
    Remove(String, Option<Duration>, Answer<DrainTicket>),
    Drain(String, Option<Duration>, Answer<DrainTicket>),
    Resume(String, Option<NewApp<HostedApp>>, Answer<Arc<AppLife>>),
    /// One upstream of an app, by its URL.
    DrainUpstream(String, String, Option<Duration>, Answer<DrainName>),
    ResumeUpstream(String, String, Answer<Arc<AppLife>>),
    Reload(Box<ReadyReload>, Answer<LivesChanged>),
    /// A new process is about to serve: from here on nothing changes until that has come about, or
    /// not. With the lives as they are.
    BeginHandOver(Answer<Vec<LifeView>>),
    /// Another process serves these addresses now, and the admin's if so. The sender is dropped
    /// when this one has let go of them.
    HandedOver {
        listeners: Arc<[SocketAddr]>,
        admin: bool,
        let_go: Sender<()>,
    },
    /// There is no other process.
    KeptOn,
    Stop {
        /// For the log.
        reason: String,
        /// Instead of `server.drain_timeout`.
        timeout: Option<Duration>,
        patience: Patience,
    },
    /// Tells the drain as soon as it has ended, at the latest then; none if there is no such drain.
    Watch(DrainName, Instant, Box<dyn FnOnce(Option<DrainView>) + Send>),
    Report(Answer<Report>),
    /// Lives that serve or drain, in the map or outside it.
    Lives(Answer<Vec<LifeView>>),
    Measure(Answer<Measured>),
}

/// What to do if a stop is under way already, and how long to wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Join the stop that is under way.
    Join,
    /// Cut if one is under way: a second signal.
    CutIfRepeated,
    /// Cut at once.
    CutNow,
}

/// A reload that is ready: whatever could fail has been done.
pub(crate) struct ReadyReload {
    pub(crate) lives: LifeChanges,
    pub(crate) server: ServerConfig,
    /// For each loop; empty if nothing changed that concerns them.
    pub(crate) loops: Vec<LoopConfig>,
    /// Dropped when all loops have taken theirs.
    pub(crate) configured: Sender<()>,
    /// Addresses to serve too: of each, a socket for every loop.
    pub(crate) listen: Vec<Sockets>,
    /// Addresses to serve no longer.
    pub(crate) close: Vec<SocketAddr>,
}

/// What control knows and nobody else does.
pub(crate) struct Report {
    /// The stop, if one has begun.
    pub(crate) stop: Option<DrainView>,
    /// Drains that are under way or remembered, the oldest first.
    pub(crate) drains: Vec<DrainView>,
    /// Where the loops listen.
    pub(crate) addresses: Vec<SocketAddr>,
    /// What this process counted.
    pub(crate) totals: Totals,
    /// Loops that make no progress.
    pub(crate) stuck_loops: Vec<StuckLoop>,
    /// Loops that have failed; the server stops for that.
    pub(crate) failed_loops: Vec<usize>,
}

/// A life as it is at one moment.
pub(crate) struct LifeView {
    pub(crate) life: Arc<AppLife>,
    /// How it drains, or drained; none while it serves.
    pub(crate) drain: Option<DrainView>,
}

/// Asks control, and waits for its answer; control waits for nobody, so that is soon. But for what
/// changes something while a new process is about to serve: that is put off until it does or not.
pub(crate) fn ask<T>(
    control: &Sender<Input>,
    input: impl FnOnce(Answer<T>) -> Input,
) -> Result<T, ChangeError> {
    let (sender, answer) = crossbeam_channel::bounded(1);
    control.send(input(sender)).map_err(|_| ChangeError::Ended)?;
    answer.recv().map_err(|_| ChangeError::Ended)?
}

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
    /// What has to wait until a hand-over is over; none while there is no such.
    put_off: Option<Vec<Input>>,
    /// The process before this one.
    pub(crate) predecessor: Option<Arc<Predecessor>>,
    /// A stop has begun; for who only has to know that.
    stopping: Arc<AtomicBool>,
    /// Loops that have failed.
    failed: BTreeSet<usize>,
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
            notices,
            epoch,
            shutdown_delay: server.shutdown_delay,
            drain_timeout: server.drain_timeout,
            drains: Drains::default(),
            drain_log: DrainLog::default(),
            watchers: Vec::new(),
            addresses: Vec::new(),
            closing: Vec::new(),
            stop: None,
            put_off: None,
            predecessor: None,
            stopping: Arc::default(),
            failed: BTreeSet::new(),
            routes_changed: false,
            account: Account::default(),
            upstreams: UpstreamWatch::new(epoch),
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
                let totals = self.totals();
                return if self.failed.is_empty() {
                    Ended::Stopped(verdict, totals)
                } else {
                    Ended::LoopFailed
                };
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
            put_off.push(input);
            return None;
        }
        match input {
            Input::Loop(index, event) => return self.on_loop(index, &event),
            Input::Orphaned(sockets) => self.give_orphans_away(sockets),
            Input::Drained(life) => self.end_drain(life.into()),
            Input::Put(app, mode, answer) => drop(answer.send(self.put_app(app, mode))),
            Input::Remove(host, timeout, answer) => {
                drop(answer.send(self.remove_app(&host, timeout)));
            }
            Input::Drain(host, timeout, answer) => {
                drop(answer.send(self.drain_app(&host, timeout)));
            }
            Input::Resume(host, app, answer) => drop(answer.send(self.resume_app(&host, app))),
            Input::DrainUpstream(host, url, timeout, answer) => {
                drop(answer.send(self.drain_upstream(&host, &url, timeout)));
            }
            Input::ResumeUpstream(host, url, answer) => {
                drop(answer.send(self.resume_upstream(&host, &url)));
            }
            Input::Reload(reload, answer) => drop(answer.send(self.reload(*reload))),
            Input::Stop { reason, timeout, patience } => {
                return self.stop(&reason, timeout, patience);
            }
            Input::Watch(drain, until, tell) => self.watch(Watcher { drain, until, tell }),
            Input::BeginHandOver(answer) => drop(answer.send(self.begin_hand_over())),
            Input::HandedOver { listeners, admin, let_go } => {
                return self.hand_over(&listeners, admin, &let_go);
            }
            Input::KeptOn => return self.make_up_for(|_| true),
            Input::Report(answer) => drop(answer.send(Ok(self.report()))),
            Input::Lives(answer) => drop(answer.send(Ok(self.life_views()))),
            Input::Measure(answer) => {
                let running = self.drains.running().count() as u64;
                let now_ns = nanoseconds(self.epoch.elapsed());
                drop(answer.send(Ok(self.account.measure(&self.all_lives(), running, now_ns))));
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
        self.desk.refuse_overdue(now);
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

    /// The deadline of a drain has come.
    fn cut_drain(&mut self, name: DrainName) {
        let Some(drain) = self.drains.find(name) else { return };
        let view = (!drain.cancelled).then(|| drain.view(Instant::now()));
        let (life, upstream) = (drain.life.id(), drain.upstream().cloned());
        if let Some(view) = view {
            self.say_drain_cut(&view, life);
        }
        self.command(|| match &upstream {
            Some(upstream) => LoopCommand::CutUpstream(upstream.clone()),
            None => LoopCommand::Cut(life),
        });
    }

    fn command(&self, command: impl Fn() -> LoopCommand) {
        for index in 0..self.loops.len() {
            self.command_one(index, command());
        }
    }

    /// Whether the loop is there to obey.
    fn command_one(&self, index: usize, command: LoopCommand) -> bool {
        self.loops[index].send(command).unwrap_or_else(|error| {
            event!(Error, "loop_not_woken", loop_index = index, error:% = error);
            true
        })
    }

    fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Release);
    }
}
