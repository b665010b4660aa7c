//! The stop of the server, as [`StopPlan`] says it, and the end after it.
//!
//! ```text
//! stop ──StopPlan──► over: the verdict is announced ──End──► loops ended, or END_GRACE ──► gone
//! ```
//! Handed over to a new process, the server lets go of what that serves, and stops likewise. From
//! then on a request to stop is about the new process: a signal's is passed on to it, an operator's
//! is refused with its pid, to be asked there. While the new process is about to serve, a request
//! is put off, and that process gets little more time.
//!
//! Admin connections outlive the public ones: their last answer is the verdict.

use std::time::{Duration, Instant};

use super::{
    control::Control,
    drain_view::{Cause, Verdict},
    input::{StopAsker, StopRequest},
    notices::notice,
    stop::Stop,
    stop_plan::{StopPlan, StopStep},
    upgrade::PassedStop,
};
use crate::{
    duration::milliseconds,
    message::{ControlEvent, LoopCommand},
};

impl Control {
    /// Begins to stop, or speeds up the stop that is under way. If another process serves, the
    /// stop is that one's too.
    pub(super) fn stop(&mut self, request: StopRequest, now: Instant) -> Option<Verdict> {
        let StopRequest { reason, timeout, by } = request;
        if !self.stopping.is_under_way() {
            let times = (self.stopping.shutdown_delay, timeout.unwrap_or(self.lives.drain_timeout));
            self.begin_stop(Cause::Stop, &reason, times, now);
        }
        self.succession.keep_none();
        let stop = self.stopping.stop.as_mut()?;
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
        if !matches!(by, StopAsker::Successor) {
            self.succession.pass_on(&self.cx, PassedStop { reason: reason.clone(), cut: cuts });
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
        let stop = self.stopping.stop.as_mut().filter(|stop| !stop.is_over())?;
        let step = stop.plan.cut(now);
        if step.is_some() {
            self.log_stop_cut(reason);
        }
        self.take_stop_step(step, now)
    }

    fn join_stop(
        &mut self,
        repeated: bool,
        timeout: Option<Duration>,
        now: Instant,
    ) -> Option<Verdict> {
        let stop = self.stopping.stop.as_mut().filter(|stop| !stop.is_over())?;
        if let (true, Some(timeout)) = (repeated, timeout)
            && stop.plan.set_drain_timeout(timeout, now)
            && let Some(view) = self.stop_view(now)
        {
            self.cx.drain_log.stop_deadline(&view);
        }
        self.on_stop_time(now)
    }

    /// A loop has failed: the server stops, as if it were asked to. No request was made, though:
    /// the first one cuts nothing.
    pub(super) fn stop_for_failed(&mut self, index: usize, now: Instant) -> Option<Verdict> {
        self.stopping.failed.insert(index);
        if self.stopping.is_under_way() {
            return None;
        }
        let times = (self.stopping.shutdown_delay, self.lives.drain_timeout);
        self.begin_stop(Cause::LoopFailed, "loop_failed", times, now);
        self.on_stop_time(now)
    }

    pub(super) fn begin_stop(
        &mut self,
        cause: Cause,
        reason: &str,
        (delay, timeout): (Duration, Duration),
        now: Instant,
    ) {
        if let Some(before) = &self.predecessor {
            before.say_goodbye();
        }
        let plan = StopPlan::begin(now, self.cx.loops.count(), delay, timeout);
        self.stopping.begin(Stop::begin(plan, cause, &self.lives, now));
        if let Some(view) = self.stop_view(now) {
            let times = (self.stopping.shutdown_delay, timeout);
            self.cx.drain_log.stop_started(&view, reason, times, now);
        }
        let status = self.service_status(now);
        self.service.stopping(status, now);
    }

    pub(super) fn on_stop_time(&mut self, now: Instant) -> Option<Verdict> {
        let stop = self.stopping.stop.as_mut()?;
        if stop.is_over() {
            return stop.last_verdict(now);
        }
        let step = stop.plan.on_time(now);
        if step == Some(StopStep::CutAll) {
            self.log_stop_cut("deadline");
        }
        self.take_stop_step(step, now)
    }

    /// Without anything in flight a cut only closes connections that are read out.
    fn log_stop_cut(&self, reason: &str) {
        let active = self.lives.active_connections();
        if active > 0 {
            self.cx.drain_log.stop_cut(reason, active);
        }
    }

    pub(super) fn on_stop_loop(
        &mut self,
        index: usize,
        event: &ControlEvent,
        now: Instant,
    ) -> Option<Verdict> {
        if self.succession.is_taking_up(index) {
            return None;
        }
        let stop = self.stopping.stop.as_mut()?;
        if stop.is_over() {
            if matches!(event, ControlEvent::Ended | ControlEvent::Died { .. }) {
                stop.loop_ended(index);
            }
            return stop.last_verdict(now);
        }
        let step = stop.plan.on_loop(index, event, now);
        self.take_stop_step(step, now)
    }

    fn take_stop_step(&mut self, step: Option<StopStep>, now: Instant) -> Option<Verdict> {
        let stop = self.stopping.stop.as_mut()?;
        match step? {
            StopStep::Gate => {
                self.listeners.leave_to_stop();
                let rules = stop.rules(now);
                self.cx.command(|| LoopCommand::Gate(rules));
            }
            StopStep::LookForHandshakes => {
                let pending = self.listeners.has_handshakes();
                let step = stop.plan.on_handshakes(pending, now);
                return self.take_stop_step(step, now);
            }
            StopStep::Finish => {
                self.cx.drain_log.stop_gated(self.lives.active_connections());
                self.cx.command(|| LoopCommand::Finish);
            }
            StopStep::CutAll => self.cx.command(|| LoopCommand::CutAll),
            StopStep::Over { cut, stuck } => {
                self.end_stop(cut, &stuck, now);
                // When every loop is stuck, no loop is left to wait for.
                return self.stopping.stop.as_ref()?.last_verdict(now);
            }
        }
        None
    }

    fn end_stop(&mut self, cut: u64, stuck: &[usize], now: Instant) {
        let (cx, lives) = (&mut self.cx, &mut self.lives);
        // What a stuck loop still holds ends with the process.
        let held = if stuck.is_empty() { 0 } else { lives.active_connections().max(1) };
        let verdict = Verdict::of(cut + held);
        let held_loops: Vec<_> =
            stuck.iter().map(|&index| self.watch.held(cx, lives, index, now)).collect();
        let Some(stop) = &mut self.stopping.stop else { return };
        stop.log_cut_apps(cx, lives);
        held_loops.iter().for_each(|held| cx.drain_log.loop_held(held));
        lives.end_all_drains(cx, now);
        let is_running = |index: &usize| !stuck.contains(index) && !self.watch.is_dead(*index);
        stop.end(verdict, (0..cx.loops.count()).filter(is_running).collect(), now);
        self.succession.keep_none();
        let view = self.stop_view(now);
        if let Some(view) = &view {
            let failed = self.stopping.failed.len();
            self.cx.drain_log.stop_ended(view, &held_loops, failed);
        }
        let uptime_ms = milliseconds(now.duration_since(self.cx.epoch));
        let requests = self.lives.totals().requests_total;
        let notices = &self.cx.notices;
        notice!(notices, Info, "server_stop", uptime_ms = uptime_ms, requests = requests);
        let status = self.service_status(now);
        self.service.stopped(status, now);
        if let Some(view) = &view {
            self.cx.watchers.show_end(view);
        }
        self.cx.notices.close();
        self.cx.command(|| LoopCommand::End);
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            change_error::ChangeError,
            input::HandedOver,
            test_support::{app, control, listener, report},
        },
        *,
    };
    use crate::{
        acknowledgement::acknowledgement,
        control::{Answer, Input, PutMode, RemoveApp, kept_sockets::KeptSockets},
        hosted::Origin,
    };

    #[test]
    fn a_loop_that_fails_in_a_hand_over_gates_nothing_that_another_process_serves() {
        let (mut control, commands) = control();
        let now = Instant::now();
        control.begin_hand_over(now).unwrap();
        let failed = ControlEvent::Failed { error: "panic: a bug".to_owned() };
        control.on_input(report(1, failed), now);
        assert!(commands.is_empty() && control.stopping.stop.is_none());
        let (let_go, _all_let_go) = acknowledgement();
        let listeners = vec![vec![listener()]];
        let kept = Box::new(KeptSockets { listeners, admin: None, health: None, pid: 7 });
        let handed = HandedOver { kept, let_go, lines: Vec::new() };
        control.on_input(Input::HandedOver(handed), now);
        let commands: Vec<_> = commands.try_iter().collect();
        let is_let_go = |command: &LoopCommand| matches!(command, LoopCommand::LetGo(..));
        assert!(commands[..2].iter().all(is_let_go));
        assert!(matches!(commands[2..4], [LoopCommand::Gate(_), LoopCommand::Gate(_)]));
        assert!(control.stopping.failed.contains(&1));
    }

    #[test]
    fn a_dead_loop_s_listeners_go_to_one_that_lives_and_its_cuts_into_the_verdict() {
        let (mut control, commands) = control();
        let now = Instant::now();
        let open = listener();
        control.listeners.addresses = vec![open.address];
        let died = || ControlEvent::Died { error: "panic: a bug".to_owned(), cut: 3 };
        control.on_input(report(0, died()), now);
        assert!(matches!(commands.try_recv(), Ok(LoopCommand::Gate(_))));
        commands.try_iter().for_each(drop);
        control.on_input(Input::Orphaned(vec![open, listener()]), now);
        let Ok(LoopCommand::Listen(sockets)) = commands.try_recv() else { panic!("none listens") };
        assert_eq!(sockets.len(), 1, "the other one is dropped");
        assert!(
            !control.stopping.stop.as_ref().is_some_and(|stop| stop.asked),
            "no request was made"
        );
        let over = control.on_input(report(1, died()), now);
        assert_eq!((over, control.stopping.failed.len()), (Some(Verdict::Cut(6)), 2));
        control.on_input(Input::Orphaned(vec![listener()]), now);
        assert!(!commands.try_iter().any(|command| matches!(command, LoopCommand::Listen(_))));
    }

    #[test]
    fn a_signal_to_stop_that_comes_too_late_for_control_stops_the_new_process() {
        let (control, _commands) = control();
        let passed = control.succession.relay.open();
        let (relay, (inputs, unread)) = (control.relay().clone(), crossbeam_channel::unbounded());
        let reason = "SIGTERM".to_owned();
        let stop = StopRequest { reason: reason.clone(), timeout: None, by: StopAsker::Signal };
        inputs.send(Input::Stop(stop)).unwrap();
        assert!(!relay.is_unread());
        control.pass_unread_stops_on(&unread);
        assert!(relay.is_unread(), "the next one is passed on by its sender");
        let passed = passed.try_iter().map(|on_its_way| on_its_way.stop);
        assert_eq!(passed.collect::<Vec<_>>(), [PassedStop { reason, cut: false }]);
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
        assert!(control.stopping.stop.as_ref().is_some_and(Stop::is_over));
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
        assert!(control.stopping.stop.is_none(), "taken up again");
        control.on_input(report(1, ControlEvent::TookUp), now);
        let died = ControlEvent::Died { error: "panic: a bug".to_owned(), cut: 0 };
        control.on_input(report(0, died), now);
        assert!(control.stopping.stop.is_some(), "it stops for the dead loop");
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
        let deadline = control.stopping.stop.as_ref().unwrap().plan.deadline();
        let answer = Answer::new(|_| ());
        let by = StopAsker::Admin { cuts: false, answer };
        stop(&mut control, Some(Duration::from_secs(600)), by);
        assert_eq!(control.stopping.stop.as_ref().unwrap().plan.deadline(), deadline);
    }
}
