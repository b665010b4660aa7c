//! The old process's side: it starts the new one and hands over.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Weak},
    time::Instant,
};

use super::{
    super::{
        change_error::ChangeError,
        drain_view::Cause,
        input::{HandedOver, Input, LifeView, Report, ask},
        kept_sockets::KeptSockets,
        listening::Listening,
        notices::notice,
        operator::{Operator, await_loops},
    },
    channel::Channel,
    container,
    handed::HandedHealth,
    lines,
    messages::{HandOver, HandedListener, MESSAGES, TicketSecret},
    plan::{HandOverPlan, HandOverStep, Readiness},
    process::Process,
    start::NewProcess,
    successor::Follower,
    upgrader::{UpgradeError, UpgradeOptions, Upgraded, Upgrader},
};
use crate::{
    acknowledgement::acknowledgement,
    app::EndpointState,
    duration::milliseconds,
    hosted::{AppLife, Origin},
    logging::event,
};

impl Operator {
    /// Has a new process take this one's place. It returns when that serves, and this one drains.
    pub(in super::super) fn upgrade(
        &mut self,
        options: UpgradeOptions,
    ) -> Result<Upgraded, UpgradeError> {
        let named = options.binary.as_ref().map(|binary| binary.display().to_string());
        let timeout_ms = milliseconds(options.timeout);
        let named = named.as_deref();
        notice!(self.notices, Info, "upgrade_start", binary = named, timeout_ms = timeout_ms);
        self.desk.step("waiting for the new process");
        let upgraded = self.hand_over(options);
        if let Err(error) = &upgraded {
            notice!(self.notices, Error, "upgrade_failed", error = &*error.to_string());
        }
        upgraded
    }

    fn hand_over(&mut self, options: UpgradeOptions) -> Result<Upgraded, UpgradeError> {
        let UpgradeOptions { binary, timeout, allow_empty } = options;
        let deadline = Instant::now() + timeout;
        if self.upgrader.is_embedded {
            let reason = "the server is part of a program that cannot hand it over";
            return Err(UpgradeError::Failed(reason.to_owned()));
        }
        if let Some(reason) = container::why_no_successor() {
            return Err(UpgradeError::Failed(reason));
        }
        let report = ask(&self.control, Input::Report).map_err(UpgradeError::Change)?;
        if let Some(refusal) = report.refusal() {
            return Err(UpgradeError::Change(refusal));
        }
        let lives = ask(&self.control, Input::Lives).map_err(UpgradeError::Change)?;
        let (handed, descriptors) = self.what_is_handed_over(&lives, &report, allow_empty);
        let (channel, binary) = self.upgrader.start(binary).map_err(UpgradeError::Failed)?;
        let failed = |reason| UpgradeError::Failed(format!("{}: {reason}", binary.display()));
        let Upgrader { starting, relay, .. } = &self.upgrader;
        let mut new = NewProcess { starting, relay, channel };
        let mut plan = HandOverPlan::begin(deadline);
        let mut step = new.prepare(&mut plan, &handed, &descriptors);
        drop(descriptors);
        let mut process = None;
        loop {
            step = match step {
                HandOverStep::Hold(pid) => match Process::numbered(pid) {
                    Ok(numbered) => {
                        process = Some(numbered);
                        let is_same = self.hold(&handed, allow_empty);
                        let is_same = is_same.map_err(UpgradeError::Change)?;
                        plan.on_held(is_same, Instant::now())
                    }
                    Err(error) => plan.on_end(error.to_string()),
                },
                HandOverStep::Go => new.go(&mut plan),
                HandOverStep::HandOver(ready) => {
                    let channel = new.channel.clone();
                    // Before it is named the main process: a service manager waits only for its
                    // own children.
                    let leader = self.upgrader.starting.let_go();
                    let process = process.expect("it was opened before control was asked to hold");
                    return Ok(self.complete(&ready, process, leader, channel));
                }
                HandOverStep::GiveUp { reason, held_for } => {
                    // Before control goes on: it may stop the server.
                    drop(new);
                    self.go_on(held_for);
                    return Err(failed(reason));
                }
            };
        }
    }

    /// Has control put off what changes something. Whether what was handed over still holds.
    fn hold(&self, handed: &HandOver, allow_empty: bool) -> Result<bool, ChangeError> {
        let lives = ask(&self.control, Input::BeginHandOver)?;
        let report = ask(&self.control, Input::Report)?;
        Ok(self.what_is_handed_over(&lives, &report, allow_empty).0 == *handed)
    }

    /// There is no new process after all; control may hold everything for it.
    pub(in super::super) fn go_on(&self, held_for: Option<Readiness>) {
        if let Some(ready) = held_for {
            // It may have logged what it did.
            self.registry.skip_ids(ready.next_app_id);
            drop(self.control.send(Input::KeptOn));
        }
    }

    /// The sockets that the new process serves, and this one keeps.
    pub(in super::super) fn kept_sockets(&self, ready: &Readiness) -> KeptSockets {
        let listeners = &ready.listeners;
        let listening = listeners.iter().filter_map(|index| self.listening.get(*index));
        let has_health = listeners.contains(&self.listening.len());
        let health = self.upgrader.health.as_ref().filter(|_| has_health);
        KeptSockets {
            listeners: listening.map(Listening::sockets).collect(),
            admin: self.upgrader.admin.clone().filter(|_| ready.admin),
            health: health.map(|health| Arc::clone(&health.socket)),
            pid: ready.pid,
        }
    }

    /// The new process serves. Returns when this one lets go and drains.
    fn complete(
        &self,
        ready: &Readiness,
        process: Process,
        leader: Option<u32>,
        mut channel: Channel,
    ) -> Upgraded {
        let (kept, pid) = (self.kept_sockets(ready), ready.pid);
        kept.leave_admin_file(true);
        // Before the drain, whose begin would be the service's end. A wrapper is what the service
        // manager can wait for.
        self.service.hand_over(leader.unwrap_or(pid));
        notice!(self.notices, Info, "upgrade_handed_over", pid = u64::from(pid));
        let (let_go, all_let_go) = acknowledgement();
        // A server that has ended has nothing to let go of.
        let stops = self.upgrader.relay.open();
        let lines = lines::open(&mut channel, self.registry.loops(), ready.loops);
        let handed = HandedOver { kept: Box::new(kept), let_go, lines };
        drop(self.control.send(Input::HandedOver(handed)));
        let follower = Follower {
            channel,
            process,
            control: self.control.clone(),
            stops,
            predecessor: self.upgrader.predecessor.clone(),
            generation: Arc::clone(&self.upgrader.generation),
        };
        if let Err(error) = self.upgrader.successor.follow(follower) {
            // The drain goes on, and is reported to no process.
            event!(Error, "successor_not_notified", error:% = error);
        }
        // The client that asked for the upgrade meets the new process from here on.
        await_loops(&all_let_go);
        Upgraded { pid }
    }

    /// What the new process has to know, and the sockets, in that order.
    pub(in super::super) fn what_is_handed_over(
        &self,
        lives: &[LifeView],
        report: &Report,
        allow_empty: bool,
    ) -> (HandOver, Vec<Arc<OwnedFd>>) {
        let mut handed = HandOver {
            messages: MESSAGES,
            pid: std::process::id(),
            listeners: Vec::new(),
            admin: None,
            admin_file: None,
            next_app_id: self.registry.next_id(),
            upstream_drains: report.upstream_drains,
            apps: Vec::new(),
            drained: Vec::new(),
            drained_upstreams: Vec::new(),
            serving: Vec::new(),
            allow_empty,
            ticket_keys: TicketSecret(self.certificates.export_tickets()),
            certificates: self.certificates.export(),
        };
        let mut descriptors = Vec::new();
        for listening in &self.listening {
            let sockets = listening.sockets.iter().filter_map(Weak::upgrade);
            let before = descriptors.len();
            descriptors.extend(sockets);
            handed.listeners.push(HandedListener {
                configured: listening.configured,
                bound: listening.bound,
                is_kept: listening.is_kept,
                sockets: descriptors.len() - before,
                is_health: false,
            });
        }
        if let Some(HandedHealth { configured, bound, socket }) = &self.upgrader.health {
            let (configured, bound) = (*configured, *bound);
            let (is_kept, sockets, is_health) = (false, 1, true);
            handed.listeners.push(HandedListener {
                configured,
                bound,
                is_kept,
                sockets,
                is_health,
            });
            descriptors.push(Arc::clone(socket));
        }
        if let Some(admin) = &self.upgrader.admin {
            (handed.admin, handed.admin_file) = (Some(admin.configured.clone()), admin.file);
            descriptors.push(Arc::clone(&admin.socket));
        }
        for view in lives {
            let cause = view.drain.as_ref().map(|drain| drain.cause);
            let is_current = |life: &AppLife| {
                self.registry.find(life.host()).is_some_and(|found| found.id() == life.id())
            };
            if is_current(&view.life) && matches!(cause, None | Some(Cause::Drain)) {
                handed.add_app(&view.life, cause.is_some());
            }
        }
        // Two that say the same are the same.
        handed.apps.sort_by(|(a, _), (b, _)| a.cmp(b));
        handed.drained.sort_unstable();
        handed.drained_upstreams.sort_unstable();
        handed.serving.sort_unstable();
        (handed, descriptors)
    }
}

impl HandOver {
    fn add_app(&mut self, life: &AppLife, is_drained: bool) {
        let (host, hosted) = (life.host(), life.app());
        if let (Origin::Admin, Some(definition)) = (hosted.origin, &hosted.definition) {
            self.apps.push((host.to_owned(), (**definition).clone()));
        }
        if is_drained {
            self.drained.push(host.to_owned());
        } else if hosted.load_error.is_none() {
            self.serving.push(host.to_owned());
        }
        let rows = hosted.app.upstreams().map(|upstreams| upstreams.rows(0)).unwrap_or_default();
        for row in rows.into_iter().filter(|row| row.state == EndpointState::Drained) {
            self.drained_upstreams.push((host.to_owned(), row.url));
        }
    }
}
