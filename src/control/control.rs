//! The control thread: it alone changes the registry, and sees every drain to its end.
//!
//! It decides by the pure plans ([`drain_plan`], [`gate_plan`], [`stop_plan`]), and its parts carry
//! their steps out, through the [`Context`]. It waits only on its channel, never on a loop or a
//! disk, and touches no connection. It knows the loops only by [`crate::message`].
//!
//! [`drain_plan`]: super::drain_plan
//! [`gate_plan`]: super::gate_plan
//! [`stop_plan`]: super::stop_plan

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender};

use super::{
    change_error::ChangeError,
    changes::{Begun, PutMode},
    context::Context,
    drain_log::DrainLog,
    drain_view::{DrainName, DrainTicket, DrainView, Verdict},
    handshakes,
    input::{
        DrainApp, DrainUpstream, Input, LoopReport, PutApp, ReadyReload, RemoveApp, ResumeApp,
        ResumeUpstream,
    },
    listeners::{Listeners, listen_for_admin},
    listening::Listening,
    lives::Lives,
    log_watch::LogWatch,
    loops::{LoopThreads, Loops},
    notices::{Notices, notice},
    service_manager::{ServiceManager, ServiceReports, ServiceStatus},
    stop::Stopping,
    succession::Succession,
    tasks::Desk,
    totals::Totals,
    upgrade::{Predecessor, StopRelay},
    upstreams::{self, UpstreamWatch},
    views::Views,
    watchdog::LoopWatch,
};
use crate::{
    config::ServerConfig,
    hosted::{Apps, HostedApp},
    logging::Logging,
    message::{ControlEvent, LoopCommand},
    registry::NewApp,
};

/// The state of the control thread.
pub(crate) struct Control {
    pub(super) cx: Context,
    pub(super) lives: Lives,
    pub(super) listeners: Listeners,
    pub(super) stopping: Stopping,
    pub(super) succession: Succession,
    /// The process before this one.
    pub(crate) predecessor: Option<Arc<Predecessor>>,
    pub(super) watch: LoopWatch,
    logs: LogWatch,
    pub(super) service: ServiceReports,
    /// What the operator is at.
    desk: Arc<Desk>,
    inputs: Sender<Input>,
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
        let upstreams = UpstreamWatch::new(epoch, Arc::clone(&notices));
        let cx = Context {
            loops: Box::<LoopThreads>::default(),
            notices: Arc::clone(&notices),
            epoch,
            drain_log: DrainLog::new(notices),
            watchers: Default::default(),
        };
        let control = Self {
            cx,
            lives: Lives::new(registry, upstreams, sender.clone(), server.drain_timeout),
            listeners: Listeners::new(Box::new(handshakes::are_pending)),
            stopping: Stopping::new(server.shutdown_delay),
            succession: Succession::default(),
            predecessor: None,
            watch: LoopWatch::default(),
            logs: LogWatch::new(epoch),
            service: ServiceReports::default(),
            desk,
            inputs: sender,
        };
        (control, inputs)
    }

    pub(crate) fn sender(&self) -> &Sender<Input> {
        &self.inputs
    }

    /// Reports to operators when these logs lose lines.
    pub(crate) fn watch_lines_of(&mut self, logging: Logging) {
        self.logs.logging = Some(logging);
    }

    /// Reports to the service manager what happens here.
    pub(crate) fn notify(&mut self, manager: ServiceManager) {
        self.service.manager = Arc::new(manager);
    }

    pub(crate) fn service_manager(&self) -> &Arc<ServiceManager> {
        &self.service.manager
    }

    /// True from the first moment of a stop.
    pub(crate) fn stopping(&self) -> Arc<AtomicBool> {
        self.stopping.flag()
    }

    /// Passes stops on to the process after this one.
    pub(crate) fn relay(&self) -> &StopRelay {
        &self.succession.relay
    }

    /// How many loops apps are loaded for.
    pub(crate) fn loop_count(&self) -> usize {
        self.lives.loops()
    }

    /// Why the app of this host could not be loaded, if so.
    pub(crate) fn load_error_of(&self, host: &str) -> Option<String> {
        self.lives.load_error_of(host)
    }

    /// Registers an app, alone or in the place of the app with its host. It is served at once.
    pub(crate) fn put_app(
        &mut self,
        app: NewApp<HostedApp>,
        mode: PutMode,
        now: Instant,
    ) -> Result<Begun, ChangeError> {
        self.lives.put_app(&mut self.cx, app, mode, None, now)
    }

    /// Registers an app of the config that the server starts with.
    pub(crate) fn load_app(&mut self, app: NewApp<HostedApp>) {
        self.lives.load_app(&self.cx, app);
    }

    /// Begins the drain of an app that leaves. It keeps its names until the end, for its 503.
    pub(crate) fn remove_app(
        &mut self,
        host: &str,
        timeout: Option<Duration>,
        now: Instant,
    ) -> Result<DrainTicket, ChangeError> {
        self.lives.remove_app(&mut self.cx, host, timeout, now)
    }

    /// Begins the drain of an app that stays, drained, until it is resumed.
    pub(crate) fn drain_app(
        &mut self,
        host: &str,
        timeout: Option<Duration>,
        now: Instant,
    ) -> Result<DrainTicket, ChangeError> {
        self.lives.drain_app(&mut self.cx, host, timeout, now)
    }

    /// Begins the drain of one upstream of an app.
    pub(super) fn drain_upstream(
        &mut self,
        host: &str,
        url: &str,
        timeout: Option<Duration>,
        now: Instant,
    ) -> Result<DrainName, ChangeError> {
        self.lives.drain_upstream(&mut self.cx, host, url, timeout, now)
    }

    /// Names of upstreams' drains go on behind those of the process before this one.
    pub(super) fn skip_upstream_drains(&mut self, used: u64) {
        self.lives.skip_upstream_drains(used);
    }

    /// Runs until a stop is over: the thread around control. It waits, and knows the time.
    pub(crate) fn run(
        mut self,
        inputs: &Receiver<Input>,
        loops: LoopThreads,
        listening: &[Listening],
    ) -> Ended {
        let addresses = self.listeners.know(listening);
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
                // It is time: the channel can't be closed, for control holds a sender itself.
                Err(_) => self.on_time(Instant::now()),
            };
            if let Some(verdict) = ended {
                self.pass_unread_stops_on(inputs);
                return self.ended(verdict);
            }
        }
    }

    /// The loops run: begins to watch them, and reports that the server serves.
    pub(super) fn begin(
        &mut self,
        loops: Box<dyn Loops>,
        addresses: Vec<SocketAddr>,
        now: Instant,
    ) {
        self.watch = LoopWatch::begin(loops.count());
        (self.cx.loops, self.listeners.addresses) = (loops, addresses);
        let status = self.service_status(now);
        self.service.ready(status, now);
    }

    /// Sends the loops to look at the routes again, if these changed. Called when no input waits,
    /// so that many changes are one look.
    pub(super) fn refresh_routes(&mut self) {
        if self.lives.take_routes_changed() {
            self.cx.command(|| LoopCommand::Refresh);
        }
    }

    fn ended(&self, verdict: Verdict) -> Ended {
        if self.stopping.failed.is_empty() {
            Ended::Stopped(verdict, self.lives.totals())
        } else {
            Ended::LoopFailed
        }
    }

    /// The process that serves is to stop, if a signal has asked for that too late for control.
    pub(super) fn pass_unread_stops_on(&self, inputs: &Receiver<Input>) {
        self.succession.relay.leave_unread();
        self.succession.pass_unread_on(inputs.try_iter());
    }

    /// When [`Control::on_time`] has something to do.
    pub(super) fn due(&self) -> Instant {
        let parts = [
            self.lives.drains.due(),
            self.cx.drain_log.due(),
            self.cx.watchers.due(),
            self.service.due(),
            self.stopping.due(),
            self.listeners.due(),
        ];
        parts.into_iter().flatten().fold(self.watch.due(self.cx.epoch), Instant::min)
    }

    /// Takes an input in, and answers it if it is a question. With a verdict the server is over.
    pub(super) fn on_input(&mut self, input: Input, now: Instant) -> Option<Verdict> {
        let input = self.succession.admit(input)?;
        if self.stopping.is_over() && input.is_change() {
            // A drain that began now would have no end.
            input.refuse(&ChangeError::Ended);
            return None;
        }
        let (lives, cx) = (&mut self.lives, &mut self.cx);
        match input {
            Input::Loop(report) => return self.on_loop(report, now),
            Input::Stop(request) => return self.stop(request, now),
            Input::HandedOver(handed) => return self.hand_over(handed, now),
            Input::KeptOn => return self.make_up_for(now),
            Input::Drained(life) => lives.end_drain(cx, life.into(), now),
            Input::Orphaned(sockets) => {
                self.listeners.adopt(cx, sockets, self.watch.first_alive());
            }
            Input::KeepFewer(addresses) => self.succession.keep_fewer(&addresses),
            Input::KeepNone => self.succession.keep_none(),
            Input::SuccessorGone => self.take_up_again(now),
            Input::ListenForAdmin(socket) => listen_for_admin(cx, &socket),
            Input::Reload(reload) => self.reload(*reload, now),
            Input::BeginHandOver(answer) => answer.give(self.begin_hand_over(now)),
            Input::Watch(watch) => {
                let view = self.views(now).drain(watch.drain);
                self.cx.watchers.add(watch, view, now);
            }
            Input::Report(answer) => answer.give(Ok(self.views(now).report())),
            Input::Progress(answer) => answer.give(Ok(self.views(now).progress())),
            Input::Lives(answer) => answer.give(Ok(lives.views(now))),
            Input::Measure(answer) => answer.give(Ok(lives.measure(cx.nanoseconds(now)))),
            Input::Put(PutApp { app, mode, certificates, answer }) => {
                answer.give(lives.put_app(cx, app, mode, certificates, now));
            }
            Input::Remove(RemoveApp { host, timeout, answer }) => {
                answer.give(lives.remove_app(cx, &host, timeout, now));
            }
            Input::Drain(DrainApp { host, timeout, answer }) => {
                answer.give(lives.drain_app(cx, &host, timeout, now));
            }
            Input::Resume(ResumeApp { host, app, answer }) => {
                answer.give(lives.resume_app(cx, &host, app, now));
            }
            Input::DrainUpstream(DrainUpstream { host, url, timeout, answer }) => {
                answer.give(lives.drain_upstream(cx, &host, &url, timeout, now));
            }
            Input::ResumeUpstream(ResumeUpstream { host, url, answer }) => {
                answer.give(lives.resume_upstream(cx, &host, &url, now));
            }
        }
        None
    }

    pub(super) fn on_time_if_due(&mut self, now: Instant) -> Option<Verdict> {
        if self.due() <= now { self.on_time(now) } else { None }
    }

    /// Does what is due. With a verdict the server is over.
    pub(super) fn on_time(&mut self, now: Instant) -> Option<Verdict> {
        self.lives.on_time(&mut self.cx, now);
        self.listeners.on_time(&self.cx, now);
        self.watch.on_time(&self.cx, &self.lives, now);
        self.logs.on_time(&self.cx.notices, now);
        self.desk.on_time(&self.cx.notices, now);
        self.log_progress(now);
        if self.service.due().is_some_and(|due| due <= now) {
            let status = self.service_status(now);
            self.service.on_time(status, now);
        }
        for watch in self.cx.watchers.take_due(now) {
            let view = self.views(now).drain(watch.drain);
            (watch.show)(view);
        }
        self.on_stop_time(now)
    }

    /// Logs how far the drains are that are under way.
    fn log_progress(&mut self, now: Instant) {
        if self.cx.drain_log.due().is_none_or(|due| now < due) {
            return;
        }
        let drains = self.lives.running_drains(now).map(|(view, life)| (view, Some(life)));
        let stop = self.stop_view(now).filter(|view| view.verdict.is_none());
        let running = drains.chain(stop.map(|view| (view, None))).collect();
        self.cx.drain_log.progress(running, now);
    }

    fn on_loop(&mut self, report: LoopReport, now: Instant) -> Option<Verdict> {
        let LoopReport { index, event } = report;
        let notices = &self.cx.notices;
        let mut stopped = None;
        match &event {
            ControlEvent::ListenersGated(gated) => self.listeners.on_gated(index, gated, now),
            ControlEvent::UpstreamLeft(drain) => {
                self.lives.on_upstream_left(&mut self.cx, *drain, now);
            }
            ControlEvent::UpstreamFailed(report) => upstreams::tell_failure(notices, report),
            ControlEvent::Failed { error } => {
                notice!(notices, Error, "loop_failed", loop_index = index, error = &**error);
                stopped = self.stop_for_failed(index, now);
            }
            ControlEvent::Died { error, cut } => {
                notice!(
                    notices,
                    Error,
                    "loop_died",
                    loop_index = index,
                    error = &**error,
                    cut = *cut
                );
                self.watch.on_died(index);
                self.succession.took_up(index);
                self.listeners.on_died(index, now);
                stopped = self.stop_for_failed(index, now);
            }
            ControlEvent::TookUp => self.succession.took_up(index),
            ControlEvent::Gated | ControlEvent::Emptied { .. } | ControlEvent::Ended => {}
        }
        self.on_stop_loop(index, &event, now).or(stopped)
    }

    fn reload(&mut self, reload: ReadyReload, now: Instant) {
        let ReadyReload { changes, configured, answer } = reload;
        if self.stopping.is_under_way() {
            return answer.give(Err(ChangeError::Stopping));
        }
        self.stopping.shutdown_delay = changes.server.shutdown_delay;
        self.lives.drain_timeout = changes.server.drain_timeout;
        // First: an app that demands more of TLS gets no request of an older connection (I12).
        changes.certificates.publish();
        let changed = self.lives.reload(&mut self.cx, changes.lives, now);
        for (index, config) in changes.loops.into_iter().enumerate() {
            let command = LoopCommand::Configure(Box::new(config), configured.clone());
            self.cx.command_one(index, command);
        }
        drop(configured);
        for sockets in changes.listen {
            self.listeners.listen(&self.cx, sockets);
        }
        if let (Some(before), false) = (&self.predecessor, changes.close.is_empty()) {
            before.say_closed(&changes.close);
        }
        self.listeners.close(&self.cx, changes.close, now);
        answer.give(Ok(changed));
    }

    pub(super) fn stop_view(&self, now: Instant) -> Option<DrainView> {
        self.views(now).stop()
    }

    fn views(&self, now: Instant) -> Views<'_> {
        Views {
            cx: &self.cx,
            lives: &self.lives,
            listeners: &self.listeners,
            stopping: &self.stopping,
            succession: &self.succession,
            watch: &self.watch,
            desk: &self.desk,
            older: self.predecessor.as_ref().and_then(|before| before.time_left()),
            now,
        }
    }

    /// What the service manager is to know, if there is one.
    pub(super) fn service_status(&self, now: Instant) -> Option<ServiceStatus> {
        self.service.is_read().then(|| self.views(now).service_status())
    }
}
