//! The stop of the server, as a pure machine: (event, now) → steps.
//!
//! ```text
//! delay ──shutdown_delay──► gating ──all gated──► settling ──no handshake──► draining
//! draining ──all ended──► over
//! any but cutting ──deadline, second signal──► cutting ──all ended, or CUT_GRACE──► over
//! ```
//! The deadline counts from the gate. What gating and settling wait for is in [`gate_plan`].
//!
//! [`gate_plan`]: super::gate_plan

use std::time::{Duration, Instant};

use super::{drain_plan::CUT_GRACE, gate_plan::GatePlan};
use crate::message::ControlEvent;

/// The stop of a server.
#[derive(Debug)]
pub(super) struct StopPlan {
    phase: StopPhase,
    gate: GatePlan,
    deadline: Instant,
    drain_timeout: Duration,
    /// Of each loop that has ended, how many exchanges it cut.
    ended: Vec<Option<u64>>,
}

/// What has to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StopStep {
    /// Tell all loops to gate.
    Gate,
    /// Look whether handshakes are under way, and say so by [`StopPlan::on_handshakes`].
    LookForHandshakes,
    /// Tell all loops to finish.
    Finish,
    /// Tell all loops to cut everything.
    CutAll,
    /// The stop is over.
    Over {
        /// Exchanges that were cut, as the loops counted.
        cut: u64,
        /// Loops that did not obey.
        stuck: Vec<usize>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StopPhase {
    Delay { until: Instant },
    Gating,
    Draining,
    Cutting { until: Instant },
    Over,
}

impl StopPlan {
    /// A stop of this many loops that begins now.
    pub(super) fn begin(
        now: Instant,
        loops: usize,
        shutdown_delay: Duration,
        drain_timeout: Duration,
    ) -> Self {
        Self {
            phase: StopPhase::Delay { until: now + shutdown_delay },
            gate: GatePlan::begin(loops),
            deadline: now + shutdown_delay + drain_timeout,
            drain_timeout,
            ended: vec![None; loops],
        }
    }

    /// When what is in flight is cut.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Moves the deadline to this long after now, or after the gate; false if everything is being
    /// cut already.
    pub(super) fn set_drain_timeout(&mut self, drain_timeout: Duration, now: Instant) -> bool {
        let from = match self.phase {
            StopPhase::Delay { until } => until,
            StopPhase::Gating | StopPhase::Draining => now,
            StopPhase::Cutting { .. } | StopPhase::Over => return false,
        };
        (self.drain_timeout, self.deadline) = (drain_timeout, from + drain_timeout);
        true
    }

    /// When [`StopPlan::on_time`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.phase {
            StopPhase::Delay { until } | StopPhase::Cutting { until } => Some(until),
            StopPhase::Gating => self.gate.look().into_iter().chain([self.deadline]).min(),
            StopPhase::Draining => Some(self.deadline),
            StopPhase::Over => None,
        }
    }

    /// Time has passed.
    pub(super) fn on_time(&mut self, now: Instant) -> Option<StopStep> {
        if self.due().is_none_or(|due| now < due) {
            return None;
        }
        match self.phase {
            StopPhase::Delay { .. } => {
                self.deadline = now + self.drain_timeout;
                self.phase = StopPhase::Gating;
                Some(StopStep::Gate)
            }
            StopPhase::Gating if now < self.deadline => Some(StopStep::LookForHandshakes),
            StopPhase::Gating | StopPhase::Draining => self.cut(now),
            StopPhase::Cutting { .. } => Some(self.over()),
            StopPhase::Over => None,
        }
    }

    /// Whether handshakes are under way.
    pub(super) fn on_handshakes(&mut self, pending: bool, now: Instant) -> Option<StopStep> {
        if self.phase != StopPhase::Gating || !self.gate.on_handshakes(pending, now) {
            return None;
        }
        self.phase = StopPhase::Draining;
        Some(StopStep::Finish)
    }

    /// A loop has something to say.
    pub(super) fn on_loop(
        &mut self,
        index: usize,
        event: &ControlEvent,
        now: Instant,
    ) -> Option<StopStep> {
        if self.phase == StopPhase::Over {
            return None;
        }
        let ended = &mut self.ended[index];
        match event {
            ControlEvent::Gated => {}
            ControlEvent::Emptied { cut } => *ended = ended.or(Some(*cut)),
            ControlEvent::Died { cut, .. } => *ended = ended.or(Some(*cut)),
            ControlEvent::UpstreamFailed(_)
            | ControlEvent::UpstreamLeft(_)
            | ControlEvent::ListenersGated(_)
            | ControlEvent::Failed { .. }
            | ControlEvent::TookUp
            | ControlEvent::Ended => return None,
        }
        if !self.ended.contains(&None) {
            return Some(self.over());
        }
        self.gate.on_gated(index, now);
        None
    }

    /// A second signal, or the deadline, has come.
    pub(super) fn cut(&mut self, now: Instant) -> Option<StopStep> {
        if matches!(self.phase, StopPhase::Cutting { .. } | StopPhase::Over) {
            return None;
        }
        self.phase = StopPhase::Cutting { until: now + CUT_GRACE };
        Some(StopStep::CutAll)
    }

    fn over(&mut self) -> StopStep {
        self.phase = StopPhase::Over;
        StopStep::Over {
            cut: self.ended.iter().flatten().sum(),
            stuck: (0..self.ended.len()).filter(|&index| self.ended[index].is_none()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::gate_plan::SETTLE;

    const DRAIN: Duration = Duration::from_secs(30);
    const ENDED: ControlEvent = ControlEvent::Emptied { cut: 0 };

    fn begin(delay: Duration) -> (StopPlan, Instant) {
        let now = Instant::now();
        (StopPlan::begin(now, 2, delay, DRAIN), now)
    }

    #[test]
    fn no_listener_is_closed_before_all_are_gated() {
        let (mut plan, now) = begin(Duration::ZERO);
        assert_eq!(plan.on_time(now), Some(StopStep::Gate));
        assert_eq!(plan.on_loop(0, &ControlEvent::Gated, now), None);
        assert_eq!(plan.on_time(now + SETTLE * 2), None, "loop 1 is not gated");
        assert_eq!(plan.on_loop(1, &ControlEvent::Gated, now), None);
        assert_eq!(plan.on_time(now), None, "packets may be on their way");
        assert_eq!(plan.on_time(now + SETTLE), Some(StopStep::LookForHandshakes));
        assert_eq!(plan.on_handshakes(false, now + SETTLE), Some(StopStep::Finish));
        assert_eq!(plan.on_loop(1, &ENDED, now), None);
        assert_eq!(plan.on_loop(0, &ENDED, now), Some(StopStep::Over { cut: 0, stuck: vec![] }));
        assert_eq!(plan.on_loop(0, &ENDED, now), None, "I2: over once");
        assert_eq!(plan.due(), None);
    }

    #[test]
    fn the_delay_comes_before_the_gate_and_the_deadline_counts_from_it() {
        let delay = Duration::from_secs(5);
        let (mut plan, now) = begin(delay);
        assert_eq!(plan.on_time(now), None);
        assert_eq!(plan.on_time(now + delay), Some(StopStep::Gate));
        assert_eq!(plan.due(), Some(now + delay + DRAIN));
    }

    #[test]
    fn the_deadline_cuts_what_is_left_and_counts_it() {
        let (mut plan, now) = begin(Duration::ZERO);
        plan.on_time(now);
        for index in 0..2 {
            plan.on_loop(index, &ControlEvent::Gated, now);
        }
        plan.on_time(now + SETTLE);
        plan.on_handshakes(false, now + SETTLE);
        assert_eq!(plan.on_time(now + DRAIN), Some(StopStep::CutAll));
        assert_eq!(plan.on_loop(0, &ControlEvent::Emptied { cut: 2 }, now), None);
        let over = plan.on_loop(1, &ControlEvent::Emptied { cut: 3 }, now);
        assert_eq!(over, Some(StopStep::Over { cut: 5, stuck: vec![] }));
    }

    #[test]
    fn a_second_signal_cuts_in_any_phase_and_a_loop_that_hangs_holds_nobody_up() {
        let (mut plan, now) = begin(Duration::from_secs(5));
        assert_eq!(plan.cut(now), Some(StopStep::CutAll));
        assert_eq!(plan.cut(now), None);
        assert!(!plan.set_drain_timeout(DRAIN * 2, now), "nothing is left to wait for");
        assert_eq!(plan.on_loop(0, &ControlEvent::Emptied { cut: 1 }, now), None);
        assert_eq!(plan.on_time(now + CUT_GRACE), Some(StopStep::Over { cut: 1, stuck: vec![1] }));
        assert_eq!(plan.on_time(now + CUT_GRACE), None);
    }
}
