//! Upgrades: a new process that does at each message what its script says.
//!
//! The operator's own code decides what is handed over, and its [`HandOverPlan`] what to do; only
//! its thread, which waits, and the new process are scripted.
//!
//! ```text
//! Report, Lives ► HandOver ─► Ready ► BeginHandOver, Report ► Go ─► Serving ► HandedOver
//!                 └ at each message it answers, fails, speaks out of turn, closes or hangs
//! Serving ─► Closed, Goodbye, Cut, a word out of turn, and its end, in any order
//! ```

use std::time::{Duration, Instant};

use super::{
    super::{
        Input, LifeView, Report, StopAsker, StopRequest,
        input::HandedOver,
        upgrade::{FromNew, HandOverPlan, HandOverStep, input_of},
    },
    asked::{Question, QuestionOutcome},
    new_process::{Conduct, Expected, PID, Serving, Starting, Upgrade},
    oracle::LATE_MAX,
    world::World,
};
use crate::{
    acknowledgement::{Obeyed, acknowledgement},
    message::ControlEvent,
};

/// How long a stop may have to wait for a new process with the order to go.
const STOP_WAITS_MAX: Duration = Duration::from_secs(1);

/// How long a new process with the order to go may take.
const GOING_MAX: Duration = Duration::from_secs(10);

impl World {
    /// An operator asks for an upgrade.
    pub(super) fn begin_upgrade(&mut self) {
        if matches!(self.upgrade, Upgrade::None) {
            self.upgrade = Upgrade::Asked(None);
            let report = |report| QuestionOutcome::Report(Box::new(report));
            let answer = self.answer(Question::ReportForUpgrade, report);
            self.send(Input::Report(answer));
        }
    }

    /// Control has reported: for the begin of an upgrade, or while it holds everything.
    pub(super) fn on_report_for_upgrade(&mut self, report: Report) {
        match std::mem::take(&mut self.upgrade) {
            Upgrade::Asked(_) if report.refusal().is_some() => {
                assert!(self.oracle.stop.is_some(), "an upgrade is refused without a stop");
            }
            Upgrade::Asked(_) => {
                self.upgrade = Upgrade::Asked(Some(Box::new(report)));
                let answer = self.answer(Question::LivesForUpgrade, QuestionOutcome::Lives);
                self.send(Input::Lives(answer));
            }
            Upgrade::Starting(mut starting) => {
                let lives = starting.holding.take().expect("control has answered with the lives");
                let now = self.operator.what_is_handed_over(&lives, &report, false).0;
                let step = starting.plan.on_held(now == starting.handed, self.now);
                self.take_upgrade_step(starting, step);
            }
            Upgrade::None | Upgrade::Serving(_) => panic!("a report for no upgrade"),
        }
    }

    pub(super) fn start_new_process(&mut self, lives: &[LifeView]) {
        let Upgrade::Asked(Some(report)) = std::mem::take(&mut self.upgrade) else {
            panic!("lives for no upgrade");
        };
        if self.random.one_in(8) {
            return self.note(|| "the new process can't be started".to_owned());
        }
        let handed = self.operator.what_is_handed_over(lives, &report, false).0;
        let deadline = self.now + Duration::from_millis(200 + self.random.below(3000) as u64);
        let script = (self.conduct(), self.conduct());
        self.note(|| format!("a new process starts, and will {script:?}"));
        self.upgrade = Upgrade::Starting(Box::new(Starting {
            plan: HandOverPlan::begin(deadline),
            handed,
            script,
            holding: None,
            is_asked_to_hold: false,
            gone_at: None,
        }));
    }

    fn conduct(&mut self) -> Conduct {
        match self.random.below(16) {
            0 => Conduct::Fail,
            1 => Conduct::SpeakOutOfTurn,
            2 => Conduct::CloseChannel,
            3 => Conduct::Hang,
            _ => Conduct::Obey,
        }
    }

    /// When the new process has to have spoken.
    pub(super) fn upgrade_due(&mut self) -> Option<Instant> {
        let is_hurried = self.control.relay().is_hurried();
        let Upgrade::Starting(starting) = &mut self.upgrade else { return None };
        if is_hurried {
            starting.plan.hurry(self.now);
        }
        (!starting.is_asked_to_hold).then(|| starting.plan.deadline())
    }

    /// Whether a new process is under way that does not serve.
    pub(super) fn is_upgrade_under_way(&self) -> bool {
        matches!(self.upgrade, Upgrade::Asked(_) | Upgrade::Starting(_))
    }

    /// The new process does something, or is silent for too long.
    pub(super) fn go_on_with_upgrade(&mut self) {
        let is_late = self.upgrade_due().is_some_and(|due| due <= self.now);
        match std::mem::take(&mut self.upgrade) {
            Upgrade::Starting(mut starting) if !starting.is_asked_to_hold => {
                if let Some(step) = self.speak(&mut starting, is_late) {
                    self.take_upgrade_step(starting, step);
                } else {
                    self.upgrade = Upgrade::Starting(starting);
                }
            }
            Upgrade::Serving(serving) => self.serve_on(serving),
            Upgrade::None if !self.is_over && self.random.one_in(2) => self.begin_upgrade(),
            waits => self.upgrade = waits,
        }
    }

    /// What the new process says to its last message, and what the plan makes of that.
    fn speak(&mut self, starting: &mut Starting, is_late: bool) -> Option<HandOverStep> {
        let plan = &mut starting.plan;
        if is_late {
            return Some(plan.on_silence());
        }
        let is_going = starting.gone_at.is_some();
        let conduct = if is_going { starting.script.1 } else { starting.script.0 };
        if matches!(conduct, Conduct::Hang) || self.random.one_in(3) {
            return None;
        }
        let ready = FromNew::Ready {
            listeners: if self.random.one_in(6) { Vec::new() } else { vec![0] },
            admin: false,
            pid: PID,
            taking_loops: 0,
            next_app_id: self.registry.next_id() + self.random.below(3) as u64,
        };
        let (right, wrong) =
            if is_going { (FromNew::Serving, ready) } else { (ready, FromNew::Serving) };
        Some(match conduct {
            Conduct::Obey => plan.on_word(right),
            Conduct::Fail => plan.on_word(FromNew::Failed("a bug".to_owned())),
            Conduct::SpeakOutOfTurn => plan.on_word(wrong),
            Conduct::CloseChannel => plan.on_end("it closed the channel".to_owned()),
            Conduct::Hang => return None,
        })
    }

    fn take_upgrade_step(&mut self, mut starting: Box<Starting>, step: HandOverStep) {
        self.note(|| format!("the upgrade goes on: {step:?}"));
        match step {
            HandOverStep::Hold(_) => {
                starting.is_asked_to_hold = true;
                self.upgrade = Upgrade::Starting(starting);
                let answer = self.answer(Question::BeginHandOver, QuestionOutcome::HandOverBegun);
                self.send(Input::BeginHandOver(answer));
            }
            HandOverStep::Go => {
                assert!(starting.gone_at.is_none(), "a new process is told to go twice");
                starting.is_asked_to_hold = false;
                starting.gone_at = Some(self.now);
                self.upgrade = Upgrade::Starting(starting);
            }
            HandOverStep::HandOver(ready) => {
                assert!(starting.gone_at.is_some(), "it serves, and was not told to");
                let (let_go, all_let_go) = acknowledgement();
                let stops = self.control.relay().open();
                self.upgrade =
                    Upgrade::Serving(Serving { stops, let_go: all_let_go, is_unheard: false });
                let (kept, lines) = (self.operator.kept_sockets(&ready), Vec::new());
                self.send(Input::HandedOver(HandedOver { kept: Box::new(kept), let_go, lines }));
            }
            HandOverStep::GiveUp { held_for, .. } => self.operator.go_on(held_for),
        }
    }

    /// Control holds everything.
    pub(super) fn on_held(&mut self, lives: Vec<LifeView>) {
        self.way_back.is_held = true;
        let Upgrade::Starting(starting) = &mut self.upgrade else { panic!("no new process") };
        starting.holding = Some(lives);
        let report = |report| QuestionOutcome::Report(Box::new(report));
        let answer = self.answer(Question::ReportForUpgrade, report);
        self.send(Input::Report(answer));
    }

    /// The new process, which serves, says something or ends.
    fn serve_on(&mut self, mut serving: Serving) {
        let word = match self.random.below(7) {
            0 => Some(FromNew::Closed(self.sockets.clone())),
            1 => Some(FromNew::Goodbye),
            2 => Some(FromNew::Cut),
            3 => Some(FromNew::Serving),
            _ => None,
        };
        self.note(|| format!("the new process says {word:?}"));
        let Some(word) = word else {
            self.received_stops += serving.stops.try_iter().count();
            // What is passed on to it from here on is lost with it.
            self.lost_successor = Some(serving.stops);
            return self.send(Input::SuccessorGone);
        };
        if !serving.is_unheard {
            match input_of(word) {
                Some(input) => self.send(input),
                None => serving.is_unheard = true,
            }
        }
        self.upgrade = Upgrade::Serving(serving);
    }

    /// The sockets that another process serves are let go of by all loops that have obeyed.
    pub(super) fn check_let_go(&self) {
        if let Upgrade::Serving(serving) = &self.upgrade {
            assert_eq!(serving.let_go.wait(Duration::ZERO), Obeyed::ByAll, "let go is lost");
        }
    }

    /// A stop does not wait for a new process for long, nor does anything else.
    pub(super) fn check_upgrade_in_time(&self) {
        let Upgrade::Starting(starting) = &self.upgrade else { return };
        let Some(gone_at) = starting.gone_at else { return };
        let late = 2 * LATE_MAX;
        assert!(self.now <= gone_at + GOING_MAX + late, "I5: a new process goes on for ever");
        if let Some((since, _)) = self.way_back.stop_waits {
            let latest = since.max(gone_at) + STOP_WAITS_MAX + late;
            assert!(self.now <= latest, "I5: a stop waits for a new process");
        }
    }

    /// Control is about to take this in: what has to come of it.
    pub(super) fn before_input(&mut self, input: &Input) -> Expected {
        let passed_stops = self.passed_stops;
        let way_back = &mut self.way_back;
        match input {
            Input::Loop(report) => {
                way_back.has_failed_loop |=
                    matches!(report.event, ControlEvent::Failed { .. } | ControlEvent::Died { .. });
            }
            Input::HandedOver(_) => {
                let waits = way_back.stop_waits.take();
                let is_passed_on = waits.is_some_and(|(_, is_by_operator)| !is_by_operator);
                way_back.keeps = self.oracle.stop.is_none() && !is_passed_on;
                (way_back.is_held, self.handed_over) = (false, true);
                if is_passed_on {
                    return Expected::PassedOn(passed_stops);
                }
            }
            Input::KeptOn => {
                way_back.is_held = false;
                if way_back.stop_waits.take().is_some() {
                    return Expected::Stop;
                }
            }
            Input::KeepNone => way_back.keeps = false,
            Input::Stop(StopRequest { by, .. }) => {
                let is_by_operator = matches!(by, StopAsker::Admin { .. });
                if way_back.is_held {
                    let (since, was) = way_back.stop_waits.unwrap_or((self.now, true));
                    way_back.stop_waits = Some((since, was && is_by_operator));
                    return Expected::Nothing;
                }
                if !self.handed_over {
                    return Expected::Stop;
                }
                if !is_by_operator {
                    way_back.keeps = false;
                }
                if matches!(by, StopAsker::Signal | StopAsker::Predecessor { .. }) {
                    return Expected::PassedOn(passed_stops);
                }
            }
            Input::SuccessorGone => {
                let takes_up = way_back.keeps && !way_back.has_failed_loop && !self.is_over;
                return if takes_up { Expected::TakenUp } else { Expected::HandedOver };
            }
            _ => {}
        }
        Expected::Nothing
    }

    /// Control has taken it in.
    pub(super) fn check_expected(&self, expected: &Expected) {
        match *expected {
            Expected::Nothing => {}
            Expected::Stop => assert!(self.oracle.stop.is_some(), "a stop is lost"),
            Expected::PassedOn(before) => {
                assert!(self.passed_stops > before, "a stop is not passed on");
            }
            Expected::TakenUp => {
                assert!(!self.handed_over, "the new process is dead, and nothing is served");
            }
            Expected::HandedOver => assert!(self.handed_over, "it takes up what it gave away"),
        }
    }
}
