//! The stop of the server, as [`StopPlan`] says it, and the end after it.
//!
//! ```text
//! stop ──StopPlan──► over: verdict told to who waits ──End──► loops ended, or END_GRACE ──► gone
//! ```
//! Handed over to a new process, the server lets go of what that serves, and stops likewise. From
//! then on a request to stop is about the new process: a signal's is passed on to it, an operator's
//! is refused with its pid, to be asked there. While the new process is about to serve, a request
//! is put off, and that process gets little more time.
//! Admin connections outlive the public ones: their last answer is the verdict.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{
    ChangeError, Control, LifeView, StopAsker, StopRequest,
    drains::{Cause, DrainName, DrainView, Verdict},
    input::HandedOver,
    lives::milliseconds,
    notices::notice,
    stop_plan::{StopPlan, StopStep},
    upgrade::PassedStop,
};
use crate::{
    message::{ControlEvent, LoopCommand, StopRules},
    registry::AppId,
};

/// How long loops have to send the last answers to admin connections.
const END_GRACE: Duration = Duration::from_secs(3);

/// How long before its deadline a stop closes connections without a request: they are to be read
/// out then, and not cut.
const READ_OUT: Duration = Duration::from_secs(3);

/// A stop that has begun.
pub(super) struct Stop {
    plan: StopPlan,
    cause: Cause,
    begun: Instant,
    /// Somebody has asked this process to stop: the next one has it cut.
    asked: bool,
    /// Exchanges that were cut before: of each life that was there, and of all.
    cut_before: (HashMap<AppId, u64>, u64),
    /// The verdict, when it is over, and what is left to do then.
    over: Option<Over>,
}

struct Over {
    verdict: Verdict,
    at: Instant,
    /// Loops whose threads have not ended.
    running: Vec<usize>,
}

impl Stop {
    /// How connections end from this time on.
    fn rules(&self, from: Instant) -> StopRules {
        let has_successor = self.cause == Cause::Upgrade;
        let deadline = self.plan.deadline();
        let left = deadline.saturating_duration_since(from);
        let close_from = from + if has_successor { left / 2 } else { Duration::ZERO };
        StopRules { has_successor, close_from, idle_until: deadline - READ_OUT.min(left / 4) }
    }

    /// Whether it has its verdict: the process is about to end.
    pub(super) fn is_over(&self) -> bool {
        self.over.is_some()
    }

    /// When [`Control::on_stop_time`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        self.over.as_ref().map_or_else(|| self.plan.due(), |over| Some(over.at + END_GRACE))
    }
}

impl Control {
    /// Begins to stop, or has the stop that is under way go faster. If another process serves, the
    /// stop is that one's too.
    pub(super) fn stop(&mut self, request: StopRequest, now: Instant) -> Option<Verdict> {
        let StopRequest { reason, timeout, by } = request;
        if self.stop.is_none() {
            let timeout = timeout.unwrap_or(self.drain_timeout);
            self.begin_stop(Cause::Stop, &reason, (self.shutdown_delay, timeout), now);
        }
        self.keep_none();
        let stop = self.stop.as_mut()?;
        let repeated = match by {
            StopAsker::Signal | StopAsker::Admin { .. } => std::mem::replace(&mut stop.asked, true),
            StopAsker::Predecessor { .. } | StopAsker::Successor => stop.asked,
        };
        let cuts = match by {
            StopAsker::Signal => repeated,
            StopAsker::Admin { cuts, .. } => cuts,
            StopAsker::Predecessor { cut } => cut,
            StopAsker::Successor => true,
        };
        if let (Some(pid), false) = (self.handed_over, matches!(by, StopAsker::Successor)) {
            notice!(self.notices, Info, "stop_passed_on", pid = u64::from(pid), reason = &*reason);
            self.relay.pass_on(PassedStop { reason: reason.clone(), cut: cuts });
        }
        let stopped =
            if cuts { self.cut_stop(&reason, now) } else { self.join_stop(repeated, timeout, now) };
        if let (StopAsker::Admin { answer, .. }, Some(view)) = (by, self.stop_view(now)) {
            answer.give(Ok(view));
        }
        stopped
    }

    /// Cuts what is in flight, in the process before this one too: this one ends after it.
    fn cut_stop(&mut self, reason: &str, now: Instant) -> Option<Verdict> {
        if let Some(before) = &self.predecessor {
            before.cut();
        }
        let stop = self.stop.as_mut()?;
        if stop.over.is_some() {
            return None;
        }
        let step = stop.plan.cut(now);
        if step.is_some() && self.active_connections() > 0 {
            self.say_stop_cut(reason);
        }
        self.take_stop_step(step, now)
    }

    fn join_stop(
        &mut self,
        repeated: bool,
        timeout: Option<Duration>,
        now: Instant,
    ) -> Option<Verdict> {
        let stop = self.stop.as_mut()?;
        if stop.over.is_some() {
            return None;
        }
        if let (true, Some(timeout)) = (repeated, timeout)
            && stop.plan.set_drain_timeout(timeout, now)
        {
            self.say_stop_deadline(now);
        }
        self.on_stop_time(now)
    }

    /// A loop has failed: the server stops, as if it were asked to. Nobody has asked, though: the
    /// first who does cuts nothing.
    pub(super) fn stop_for_failed(&mut self, index: usize, now: Instant) -> Option<Verdict> {
        self.failed.insert(index);
        if self.stop.is_some() {
            return None;
        }
        let times = (self.shutdown_delay, self.drain_timeout);
        self.begin_stop(Cause::LoopFailed, "loop_failed", times, now);
        self.on_stop_time(now)
    }

    /// Puts off what changes something, until a new process serves or does not. A stop that has
    /// begun comes first: it gates the very sockets that the new process would serve.
    pub(super) fn begin_hand_over(&mut self, now: Instant) -> Result<Vec<LifeView>, ChangeError> {
        if self.stop.is_some() {
            return Err(ChangeError::Stopping);
        }
        self.relay.begin();
        self.put_off = Some(Vec::new());
        Ok(self.life_views(now))
    }

    /// A new process serves these sockets: lets go of them, and stops. What was put off is that
    /// process's to do: a stop is passed on, and an operator is told.
    pub(super) fn hand_over(&mut self, handed: HandedOver, now: Instant) -> Option<Verdict> {
        let HandedOver { kept, let_go, lines } = handed;
        let (listeners, beside) = (kept.addresses(), kept.classes());
        self.handed_over = Some(kept.pid);
        self.command(|| LoopCommand::LetGo(Arc::clone(&listeners), beside.clone(), let_go.clone()));
        self.addresses.retain(|address| !listeners.contains(address));
        self.give_connections(lines);
        if self.stop.is_none() {
            self.begin_stop(Cause::Upgrade, "upgrade", (Duration::ZERO, self.drain_timeout), now);
            self.kept = Some(*kept);
        }
        let stopped = self.make_up_for(now);
        stopped.or_else(|| self.on_stop_time(now))
    }

    /// Has each loop offer its connections on its share of the lines.
    fn give_connections(&self, lines: Vec<OwnedFd>) {
        let loops = self.loops.count();
        let mut shares: Vec<_> = (0..loops).map(|_| Vec::new()).collect();
        for (index, line) in lines.into_iter().enumerate() {
            shares[index % loops].push(line);
        }
        for (index, lines) in shares.into_iter().enumerate().filter(|(_, lines)| !lines.is_empty())
        {
            self.command_one(index, LoopCommand::Give(lines));
        }
    }

    /// Does what was put off.
    pub(super) fn make_up_for(&mut self, now: Instant) -> Option<Verdict> {
        let put_off = self.put_off.take().unwrap_or_default();
        put_off.into_iter().fold(None, |stopped, input| stopped.or(self.on_input(input, now)))
    }

    fn begin_stop(
        &mut self,
        cause: Cause,
        reason: &str,
        (shutdown_delay, timeout): (Duration, Duration),
        now: Instant,
    ) {
        // In an upgrade the other process serves: a probe that reaches this one is told so.
        self.stopping.store(!matches!(cause, Cause::Upgrade), Ordering::Release);
        if let Some(before) = &self.predecessor {
            before.say_goodbye();
        }
        let plan = StopPlan::begin(now, self.loops.count(), shutdown_delay, timeout);
        let cut = self.all_lives().iter().map(|life| (life.id(), life.drain().cut())).collect();
        let cut_before = (cut, self.totals().cut_total);
        self.stop = Some(Stop { plan, cause, begun: now, asked: false, cut_before, over: None });
        self.say_stop_started(reason, timeout, now);
        self.report_stopping(now);
    }

    pub(super) fn on_stop_time(&mut self, now: Instant) -> Option<Verdict> {
        let stop = self.stop.as_mut()?;
        if let Some(over) = &stop.over {
            return (now >= over.at + END_GRACE).then_some(over.verdict);
        }
        let step = stop.plan.on_time(now);
        // Without anything in flight the deadline only closes connections that are read out.
        if step == Some(StopStep::CutAll) && self.active_connections() > 0 {
            self.say_stop_cut("deadline");
        }
        self.take_stop_step(step, now)
    }

    pub(super) fn on_stop_loop(
        &mut self,
        index: usize,
        event: &ControlEvent,
        now: Instant,
    ) -> Option<Verdict> {
        if self.taking_up.contains(&index) {
            return None;
        }
        let stop = self.stop.as_mut()?;
        if let Some(over) = &mut stop.over {
            if matches!(event, ControlEvent::Ended | ControlEvent::Died { .. }) {
                over.running.retain(|&running| running != index);
            }
            return over.running.is_empty().then_some(over.verdict);
        }
        let step = stop.plan.on_loop(index, event, now);
        self.take_stop_step(step, now)
    }

    /// The stop as a drain.
    pub(super) fn stop_view(&self, now: Instant) -> Option<DrainView> {
        let stop = self.stop.as_ref()?;
        let now = stop.over.as_ref().map_or(now, |over| over.at);
        let verdict = stop.over.as_ref().map(|over| over.verdict);
        let cut = match verdict {
            None => self.totals().cut_total - stop.cut_before.1,
            Some(Verdict::Cut(cut)) => cut,
            Some(_) => 0,
        };
        Some(DrainView {
            name: DrainName::Stop,
            host: None,
            upstream: None,
            cause: stop.cause,
            verdict,
            active_connections: if verdict.is_some() { 0 } else { self.active_connections() },
            refused: 0,
            cut,
            elapsed: now.duration_since(stop.begun),
            remaining: stop.plan.deadline().saturating_duration_since(now),
            older: self.predecessor.as_ref().and_then(|before| before.time_left()),
        })
    }

    fn take_stop_step(&mut self, step: Option<StopStep>, now: Instant) -> Option<Verdict> {
        match step? {
            StopStep::Gate => {
                // The stop's gate is for all listeners.
                self.closing.clear();
                let rules = self.stop.as_ref()?.rules(now);
                self.command(|| LoopCommand::Gate(rules));
            }
            StopStep::LookForHandshakes => {
                let pending = (self.handshakes)(&self.addresses);
                let step = self.stop.as_mut()?.plan.on_handshakes(pending, now);
                return self.take_stop_step(step, now);
            }
            StopStep::Finish => {
                self.say_stop_gated();
                self.command(|| LoopCommand::Finish);
            }
            StopStep::CutAll => self.command(|| LoopCommand::CutAll),
            StopStep::Over { cut, stuck } => {
                self.end_stop(cut, &stuck, now);
                // Nobody is left to wait for when every loop is stuck.
                let over = self.stop.as_ref()?.over.as_ref()?;
                return over.running.is_empty().then_some(over.verdict);
            }
        }
        None
    }

    fn end_stop(&mut self, cut: u64, stuck: &[usize], now: Instant) {
        // What a stuck loop still holds ends with the process.
        let held = if stuck.is_empty() { 0 } else { self.active_connections().max(1) };
        let verdict = Verdict::of(cut + held);
        let held_loops: Vec<_> = stuck.iter().map(|&index| self.held_loop(index, now)).collect();
        self.say_whom_the_stop_cut();
        held_loops.iter().for_each(|held| self.say_loop_held(held));
        // I2: drains that a stuck loop holds up end with the server.
        for name in self.drains.running().map(|drain| drain.name).collect::<Vec<_>>() {
            self.end_drain(name, now);
        }
        let is_running = |index: &usize| !stuck.contains(index) && !self.watch.is_dead(*index);
        let running = (0..self.loops.count()).filter(is_running).collect();
        self.keep_none();
        let Some(stop) = &mut self.stop else { return };
        stop.over = Some(Over { verdict, at: now, running });
        if let Some(view) = self.stop_view(now) {
            self.say_stop_ended(&view, &held_loops);
        }
        let uptime_ms = milliseconds(now.duration_since(self.epoch));
        let requests = self.totals().requests_total;
        notice!(self.notices, Info, "server_stop", uptime_ms = uptime_ms, requests = requests);
        self.report_stopped(now);
        self.tell_watchers(DrainName::Stop, now);
        self.notices.close();
        self.command(|| LoopCommand::End);
    }

    /// Of which apps the stop has cut exchanges, with those that a stuck loop holds.
    fn say_whom_the_stop_cut(&self) {
        let Some(stop) = &self.stop else { return };
        for life in self.all_lives() {
            let before = stop.cut_before.0.get(&life.id()).copied().unwrap_or(0);
            let cut = life.drain().cut() - before + life.drain().active_connections();
            if cut > 0 {
                self.say_cut_by_stop(&life, cut);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::test_support::{app, control, listener, report},
        *,
    };
    use crate::{
        acknowledgement::acknowledgement,
        control::{Answer, Input, KeptSockets, PutMode, RemoveApp},
        hosted::Origin,
    };

    #[test]
    fn a_loop_that_fails_in_a_hand_over_gates_nothing_that_another_process_serves() {
        let (mut control, commands) = control();
        let now = Instant::now();
        control.begin_hand_over(now).unwrap();
        let failed = ControlEvent::Failed { error: "panic: a bug".to_owned() };
        control.on_input(report(1, failed), now);
        assert!(commands.is_empty() && control.stop.is_none());
        let (let_go, _all_let_go) = acknowledgement();
        let listeners = vec![vec![listener()]];
        let kept = Box::new(KeptSockets { listeners, admin: None, health: None, pid: 7 });
        let handed = HandedOver { kept, let_go, lines: Vec::new() };
        control.on_input(Input::HandedOver(handed), now);
        let commands: Vec<_> = commands.try_iter().collect();
        let is_let_go = |command: &LoopCommand| matches!(command, LoopCommand::LetGo(..));
        assert!(commands[..2].iter().all(is_let_go));
        assert!(matches!(commands[2..4], [LoopCommand::Gate(_), LoopCommand::Gate(_)]));
        assert!(control.failed.contains(&1));
    }

    #[test]
    fn a_dead_loop_s_listeners_go_to_one_that_lives_and_its_cuts_into_the_verdict() {
        let (mut control, commands) = control();
        let now = Instant::now();
        let open = listener();
        control.addresses = vec![open.address];
        let died = || ControlEvent::Died { error: "panic: a bug".to_owned(), cut: 3 };
        control.on_input(report(0, died()), now);
        assert!(matches!(commands.try_recv(), Ok(LoopCommand::Gate(_))));
        commands.try_iter().for_each(drop);
        control.on_input(Input::Orphaned(vec![open, listener()]), now);
        let Ok(LoopCommand::Listen(sockets)) = commands.try_recv() else { panic!("none listens") };
        assert_eq!(sockets.len(), 1, "one is nobody's any more");
        assert!(!control.stop.as_ref().is_some_and(|stop| stop.asked), "nobody has asked");
        let over = control.on_input(report(1, died()), now);
        assert_eq!((over, control.failed.len()), (Some(Verdict::Cut(6)), 2));
        control.on_input(Input::Orphaned(vec![listener()]), now);
        assert!(!commands.try_iter().any(|command| matches!(command, LoopCommand::Listen(_))));
    }

    #[test]
    fn a_signal_to_stop_that_comes_too_late_for_control_stops_the_new_process() {
        let (control, _commands) = control();
        let passed = control.relay.open();
        let (relay, (inputs, unread)) = (control.relay().clone(), crossbeam_channel::unbounded());
        let reason = "SIGTERM".to_owned();
        let stop = StopRequest { reason: reason.clone(), timeout: None, by: StopAsker::Signal };
        inputs.send(Input::Stop(stop)).unwrap();
        assert!(!relay.is_unread());
        control.pass_unread_stops_on(&unread);
        assert!(relay.is_unread(), "the next one is passed on by its sender");
        assert_eq!(passed.try_iter().collect::<Vec<_>>(), [PassedStop { reason, cut: false }]);
    }

    #[test]
    fn a_change_that_comes_after_the_end_of_a_stop_is_refused_for_it_would_have_no_end() {
        let (mut control, _commands) = control();
        let now = Instant::now();
        let stop = |control: &mut Control| {
            let (reason, by) = ("SIGTERM".to_owned(), StopAsker::Signal);
            control.on_input(Input::Stop(StopRequest { reason, timeout: None, by }), now)
        };
        control.put_app(app("a.test", Origin::Admin), PutMode::Add, now).unwrap();
        assert_eq!((stop(&mut control), stop(&mut control)), (None, None));
        for index in 0..2 {
            control.on_input(report(index, ControlEvent::Emptied { cut: 0 }), now);
        }
        assert!(control.stop.as_ref().is_some_and(Stop::is_over));
        let (sender, answers) = crossbeam_channel::unbounded();
        let answer = Answer::new(move |begun: Result<_, _>| sender.send(begun.map(drop)).unwrap());
        let remove = RemoveApp { host: "a.test".to_owned(), timeout: None, answer };
        control.on_input(Input::Remove(remove), now);
        assert_eq!(answers.try_iter().collect::<Vec<_>>(), [Err(ChangeError::Ended)]);
    }
    #[test]
    fn a_stop_does_not_wait_for_a_loop_that_died_before_it_took_up_again() {
        let (mut control, _commands) = control();
        let now = Instant::now();
        control.begin_hand_over(now).unwrap();
        let (let_go, _all_let_go) = acknowledgement();
        let listeners = vec![vec![listener(), listener()]];
        let kept = Box::new(KeptSockets { listeners, admin: None, health: None, pid: 7 });
        let handed = HandedOver { kept, let_go, lines: Vec::new() };
        control.on_input(Input::HandedOver(handed), now);
        control.on_input(Input::SuccessorGone, now);
        assert!(control.stop.is_none(), "taken up again");
        control.on_input(report(1, ControlEvent::TookUp), now);
        let died = ControlEvent::Died { error: "panic: a bug".to_owned(), cut: 0 };
        control.on_input(report(0, died), now);
        assert!(control.stop.is_some(), "it stops for the dead loop");
        control.on_input(report(1, ControlEvent::Emptied { cut: 0 }), now);
        let view = control.stop_view(now).unwrap();
        assert_eq!(view.verdict, Some(Verdict::Drained));
    }
    #[test]
    fn a_stop_that_cuts_already_gets_no_later_deadline() {
        let (mut control, _commands) = control();
        let now = Instant::now();
        let stop = |control: &mut Control, timeout, by| {
            let reason = "test".to_owned();
            control.on_input(Input::Stop(StopRequest { reason, timeout, by }), now);
        };
        for _ in 0..2 {
            stop(&mut control, None, StopAsker::Signal);
        }
        let deadline = control.stop.as_ref().unwrap().plan.deadline();
        let answer = Answer::new(|_| ());
        let by = StopAsker::Admin { cuts: false, answer };
        stop(&mut control, Some(Duration::from_secs(600)), by);
        assert_eq!(control.stop.as_ref().unwrap().plan.deadline(), deadline);
    }
}
