//! The old process's side of an upgrade until the new process serves, as a pure machine:
//! (word, now) → step.
//!
//! ```text
//! preparing ──Ready──► holding ──control holds, nothing changed──► going ──Serving──► over
//! any of them ──Failed, another word, the end of the channel, the deadline──► given up
//! holding ──something was changed, or control refuses──► given up
//! ```
//! While it is prepared, the new process has the operator's time; from `Go` on it has GO_TIMEOUT,
//! and HURRIED_TIMEOUT from the moment on when a stop waits for it. Every phase but holding has a
//! deadline, and control answers at once: so an upgrade ends.

use std::time::{Duration, Instant};

use super::messages::FromNew;

/// How long a new process that is ready may take to say that it serves. Nothing is changed
/// meanwhile, so this is no part of its time to get ready.
const GO_TIMEOUT: Duration = Duration::from_secs(10);

/// How long it may take when a stop waits for it: the server isn't stopped before.
const HURRIED_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a new process is given up that says nothing.
pub(super) const NOT_IN_TIME: &str = "it was not ready in time";

/// An upgrade that is under way.
#[derive(Debug)]
pub(in super::super) struct HandOverPlan {
    phase: HandOverPhase,
    deadline: Instant,
    is_hurried: bool,
}

#[derive(Debug)]
enum HandOverPhase {
    Preparing,
    Holding(Readiness),
    Going(Readiness),
    Over,
}

/// What a new process says of itself when it can serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Readiness {
    /// Those of the listeners that it is going to serve.
    pub(in super::super) listeners: Vec<usize>,
    /// It takes the admin's socket.
    pub(in super::super) admin: bool,
    /// How many of its loops take connections.
    pub(in super::super) loops: usize,
    pub(in super::super) pid: u32,
    /// It has used the ids before this one.
    pub(in super::super) next_app_id: u64,
}

/// What has to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum HandOverStep {
    /// Ask control to postpone changes for the process of this id, and report by
    /// [`HandOverPlan::on_held`] whether the settings that it started with still hold.
    Hold(u32),
    /// Order the new process to serve.
    Go,
    /// It serves: hand over.
    HandOver(Readiness),
    /// End it: this process goes on.
    GiveUp {
        reason: String,
        /// The process for which control postpones changes, if it does: control has to end that.
        held_for: Option<Readiness>,
    },
}

impl HandOverPlan {
    /// A new process has started, and has until the deadline to get ready.
    pub(in super::super) fn begin(deadline: Instant) -> Self {
        Self { phase: HandOverPhase::Preparing, deadline, is_hurried: false }
    }

    /// When [`HandOverPlan::on_silence`] has to be called, if the new process says nothing.
    pub(in super::super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// A stop waits for the end of the hand-over.
    pub(in super::super) fn hurry(&mut self, now: Instant) {
        if matches!(self.phase, HandOverPhase::Going(_)) && !self.is_hurried {
            self.is_hurried = true;
            self.deadline = self.deadline.min(now + HURRIED_TIMEOUT);
        }
    }

    /// The new process says something.
    pub(in super::super) fn on_word(&mut self, word: FromNew) -> HandOverStep {
        match (std::mem::replace(&mut self.phase, HandOverPhase::Over), word) {
            (
                HandOverPhase::Preparing,
                FromNew::Ready { listeners, admin, pid, taking_loops: loops, next_app_id },
            ) => {
                let ready = Readiness { listeners, admin, loops, pid, next_app_id };
                let pid = ready.pid;
                self.phase = HandOverPhase::Holding(ready);
                HandOverStep::Hold(pid)
            }
            (HandOverPhase::Going(ready), FromNew::Serving) => HandOverStep::HandOver(ready),
            (phase, FromNew::Failed(reason)) => give_up(phase, reason),
            (phase, _) => give_up(phase, "it speaks out of turn".to_owned()),
        }
    }

    /// Control holds everything. Whether the new process knows all as it is.
    pub(in super::super) fn on_held(&mut self, is_same: bool, now: Instant) -> HandOverStep {
        match std::mem::replace(&mut self.phase, HandOverPhase::Over) {
            HandOverPhase::Holding(ready) if is_same => {
                self.phase = HandOverPhase::Going(ready);
                self.deadline = now + GO_TIMEOUT;
                HandOverStep::Go
            }
            phase => give_up(phase, "the apps were changed while it started; try again".to_owned()),
        }
    }

    /// The new process can't be reached any more.
    pub(in super::super) fn on_end(&mut self, reason: String) -> HandOverStep {
        give_up(std::mem::replace(&mut self.phase, HandOverPhase::Over), reason)
    }

    /// Whether the new process has the order to serve, and hasn't reported that it serves.
    pub(super) fn is_going(&self) -> bool {
        matches!(self.phase, HandOverPhase::Going(_))
    }

    /// The deadline has passed, and what came before it is heard.
    pub(in super::super) fn on_silence(&mut self) -> HandOverStep {
        self.on_end(NOT_IN_TIME.to_owned())
    }
}

fn give_up(phase: HandOverPhase, reason: String) -> HandOverStep {
    let held_for = match phase {
        HandOverPhase::Holding(ready) | HandOverPhase::Going(ready) => Some(ready),
        HandOverPhase::Preparing | HandOverPhase::Over => None,
    };
    HandOverStep::GiveUp { reason, held_for }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready() -> FromNew {
        let (listeners, taking_loops) = (vec![0], 2);
        FromNew::Ready { listeners, admin: false, pid: 7, taking_loops, next_app_id: 3 }
    }

    #[test]
    fn a_stop_that_waits_leaves_a_new_process_one_second_from_then_on() {
        let now = Instant::now();
        let mut plan = HandOverPlan::begin(now + Duration::from_secs(30));
        plan.hurry(now);
        assert_eq!(plan.deadline(), now + Duration::from_secs(30), "it has no order to serve yet");
        assert_eq!(plan.on_word(ready()), HandOverStep::Hold(7));
        assert_eq!(plan.on_held(true, now), HandOverStep::Go);
        assert_eq!(plan.deadline(), now + GO_TIMEOUT);
        let later = now + Duration::from_secs(2);
        plan.hurry(later);
        plan.hurry(later + Duration::from_millis(500));
        assert_eq!(plan.deadline(), later + HURRIED_TIMEOUT);
    }

    #[test]
    fn control_is_told_of_a_hand_over_that_fails_only_if_it_was_asked_to_hold() {
        let now = Instant::now();
        let held_for = |step| match step {
            HandOverStep::GiveUp { held_for, .. } => held_for.map(|ready| ready.pid),
            other => panic!("{other:?}"),
        };
        assert_eq!(held_for(HandOverPlan::begin(now).on_silence()), None);
        assert_eq!(held_for(HandOverPlan::begin(now).on_word(FromNew::Serving)), None);
        let mut changed = HandOverPlan::begin(now);
        changed.on_word(ready());
        assert_eq!(held_for(changed.on_held(false, now)), Some(7));
        let mut failed = HandOverPlan::begin(now);
        failed.on_word(ready());
        failed.on_held(true, now);
        assert_eq!(held_for(failed.on_word(FromNew::Failed("no".to_owned()))), Some(7));
    }
}
