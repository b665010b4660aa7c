//! The stop of the server, as a pure machine: (event, now) → steps.
//!
//! ```text
//! delay ──shutdown_delay──► gating ──all gated──► settling ──no handshake──► draining
//! draining ──all ended──► over
//! any but cutting ──deadline, second signal──► cutting ──all ended, or CUT_GRACE──► over
//! ```
//! The deadline counts from the gate. No listener is closed before all of them are gated, for a SYN
//! may be for any of them, nor while a handshake that began before the gate is under way: its
//! client would be reset. Handshakes that never end hold the stop up for SETTLE_MAX.

use std::time::{Duration, Instant};

use super::drain_plan::CUT_GRACE;
use crate::message::ControlEvent;

/// The stop of a server.
#[derive(Debug)]
pub(super) struct StopPlan {
    phase: Phase,
    deadline: Instant,
    drain_timeout: Duration,
    loops: Vec<LoopState>,
}

/// What has to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
        stuck: usize,
    },
}

/// Between two looks for handshakes; the first one lets packets end that were on their way through
/// the kernel when the gate fell.
const SETTLE: Duration = Duration::from_millis(2);

/// How long handshakes may take. The third packet comes a round trip after the second; one that was
/// lost comes again with the request, after a second at the earliest.
const SETTLE_MAX: Duration = Duration::from_millis(1500);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Delay { until: Instant },
    Gating,
    Settling { look: Instant, give_up: Instant },
    Draining,
    Cutting { until: Instant },
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LoopState {
    Running,
    Gated,
    Ended { cut: u64 },
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
            phase: Phase::Delay { until: now + shutdown_delay },
            deadline: now + shutdown_delay + drain_timeout,
            drain_timeout,
            loops: vec![LoopState::Running; loops],
        }
    }

    /// When [`StopPlan::on_time`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.phase {
            Phase::Delay { until } | Phase::Cutting { until } => Some(until),
            Phase::Settling { look, .. } => Some(look.min(self.deadline)),
            Phase::Gating | Phase::Draining => Some(self.deadline),
            Phase::Over => None,
        }
    }

    /// Time has passed.
    pub(super) fn on_time(&mut self, now: Instant) -> Option<StopStep> {
        if self.due().is_none_or(|due| now < due) {
            return None;
        }
        match self.phase {
            Phase::Delay { .. } => {
                self.deadline = now + self.drain_timeout;
                self.phase = Phase::Gating;
                Some(StopStep::Gate)
            }
            Phase::Settling { .. } if now < self.deadline => Some(StopStep::LookForHandshakes),
            Phase::Gating | Phase::Settling { .. } | Phase::Draining => self.cut(now),
            Phase::Cutting { .. } => Some(self.over()),
            Phase::Over => None,
        }
    }

    /// Whether handshakes are under way.
    pub(super) fn on_handshakes(&mut self, pending: bool, now: Instant) -> Option<StopStep> {
        let Phase::Settling { give_up, .. } = self.phase else { return None };
        if pending && now < give_up {
            self.phase = Phase::Settling { look: now + SETTLE, give_up };
            return None;
        }
        self.phase = Phase::Draining;
        Some(StopStep::Finish)
    }

    /// A loop has something to say.
    pub(super) fn on_loop(
        &mut self,
        index: usize,
        event: ControlEvent,
        now: Instant,
    ) -> Option<StopStep> {
        self.loops[index] = match (event, self.loops[index]) {
            (_, ended @ LoopState::Ended { .. }) => ended,
            (ControlEvent::Gated, _) => LoopState::Gated,
            (ControlEvent::Ended { cut }, _) => LoopState::Ended { cut },
            (ControlEvent::Failed, _) => LoopState::Ended { cut: 0 },
        };
        let is_ended = |state: &LoopState| matches!(state, LoopState::Ended { .. });
        if self.phase == Phase::Over {
            return None;
        }
        if self.loops.iter().all(is_ended) {
            return Some(self.over());
        }
        if self.phase == Phase::Gating && !self.loops.contains(&LoopState::Running) {
            self.phase = Phase::Settling { look: now + SETTLE, give_up: now + SETTLE_MAX };
        }
        None
    }

    /// Somebody has no more patience: a second signal, or the deadline.
    pub(super) fn cut(&mut self, now: Instant) -> Option<StopStep> {
        if matches!(self.phase, Phase::Cutting { .. } | Phase::Over) {
            return None;
        }
        self.phase = Phase::Cutting { until: now + CUT_GRACE };
        Some(StopStep::CutAll)
    }

    fn over(&mut self) -> StopStep {
        self.phase = Phase::Over;
        let (mut total, mut stuck) = (0, 0);
        for state in &self.loops {
            match state {
                LoopState::Ended { cut } => total += cut,
                LoopState::Running | LoopState::Gated => stuck += 1,
            }
        }
        StopStep::Over { cut: total, stuck }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAIN: Duration = Duration::from_secs(30);
    const ENDED: ControlEvent = ControlEvent::Ended { cut: 0 };

    fn begin(delay: Duration) -> (StopPlan, Instant) {
        let now = Instant::now();
        (StopPlan::begin(now, 2, delay, DRAIN), now)
    }

    #[test]
    fn no_listener_is_closed_before_all_are_gated() {
        let (mut plan, now) = begin(Duration::ZERO);
        assert_eq!(plan.on_time(now), Some(StopStep::Gate));
        assert_eq!(plan.on_loop(0, ControlEvent::Gated, now), None);
        assert_eq!(plan.on_time(now + SETTLE * 2), None, "loop 1 is not gated");
        assert_eq!(plan.on_loop(1, ControlEvent::Gated, now), None);
        assert_eq!(plan.on_time(now), None, "packets may be on their way");
        assert_eq!(plan.on_time(now + SETTLE), Some(StopStep::LookForHandshakes));
        assert_eq!(plan.on_handshakes(false, now + SETTLE), Some(StopStep::Finish));
        assert_eq!(plan.on_loop(1, ENDED, now), None);
        assert_eq!(plan.on_loop(0, ENDED, now), Some(StopStep::Over { cut: 0, stuck: 0 }));
        assert_eq!(plan.on_loop(0, ENDED, now), None, "I2: over once");
        assert_eq!(plan.due(), None);
    }

    #[test]
    fn listeners_stay_open_while_handshakes_are_under_way_but_not_for_ever() {
        let (mut plan, now) = begin(Duration::ZERO);
        plan.on_time(now);
        for index in 0..2 {
            plan.on_loop(index, ControlEvent::Gated, now);
        }
        let late = now + SETTLE_MAX / 2;
        assert_eq!(plan.on_time(late), Some(StopStep::LookForHandshakes));
        assert_eq!(plan.on_handshakes(true, late), None);
        assert_eq!(plan.due(), Some(late + SETTLE));
        let end = now + SETTLE_MAX;
        assert_eq!(plan.on_time(end), Some(StopStep::LookForHandshakes));
        assert_eq!(plan.on_handshakes(true, end), Some(StopStep::Finish));
        assert_eq!(plan.on_handshakes(false, end), None, "once");
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
            plan.on_loop(index, ControlEvent::Gated, now);
        }
        plan.on_time(now + SETTLE);
        plan.on_handshakes(false, now + SETTLE);
        assert_eq!(plan.on_time(now + DRAIN), Some(StopStep::CutAll));
        assert_eq!(plan.on_loop(0, ControlEvent::Ended { cut: 2 }, now), None);
        let over = plan.on_loop(1, ControlEvent::Ended { cut: 3 }, now);
        assert_eq!(over, Some(StopStep::Over { cut: 5, stuck: 0 }));
    }

    #[test]
    fn a_second_signal_cuts_in_any_phase_and_a_loop_that_hangs_holds_nobody_up() {
        let (mut plan, now) = begin(Duration::from_secs(5));
        assert_eq!(plan.cut(now), Some(StopStep::CutAll));
        assert_eq!(plan.cut(now), None);
        assert_eq!(plan.on_loop(0, ControlEvent::Ended { cut: 1 }, now), None);
        assert_eq!(plan.on_time(now + CUT_GRACE), Some(StopStep::Over { cut: 1, stuck: 1 }));
        assert_eq!(plan.on_time(now + CUT_GRACE), None);
    }
}
