//! The drain of one app, as a pure machine: (event, now) → step.
//!
//! ```text
//! running ──announced──► ended
//! running ──deadline──► cutting ──announced──► ended
//!                       cutting ──a loop hangs: CUT_GRACE──► ended
//! ```
//! I2: it ends once. I5: it ends by its deadline, give or take the grace that the loops get to
//! obey the cut.

use std::time::{Duration, Instant};

/// How long loops have to obey a cut; a loop that does not is stuck in an app.
pub(super) const CUT_GRACE: Duration = Duration::from_secs(1);

/// One app's drain.
#[derive(Debug)]
pub(super) struct DrainPlan {
    /// When the plan wants to be asked again.
    due: Instant,
    cutting: bool,
}

/// What has to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DrainStep {
    /// Tell the loops to cut what is in flight.
    Cut,
    /// The drain is over.
    End,
}

impl DrainPlan {
    pub(super) fn begin(deadline: Instant) -> Self {
        Self { due: deadline, cutting: false }
    }

    /// When [`DrainPlan::on_time`] has something to do.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Moves the deadline, unless it has passed: then it stays, and this is false.
    pub(super) fn set_deadline(&mut self, deadline: Instant) -> bool {
        if !self.cutting {
            self.due = deadline;
        }
        !self.cutting
    }

    /// Time has passed.
    pub(super) fn on_time(&mut self, now: Instant) -> Option<DrainStep> {
        if now < self.due {
            return None;
        }
        if self.cutting {
            return Some(DrainStep::End);
        }
        self.cutting = true;
        self.due = now + CUT_GRACE;
        Some(DrainStep::Cut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deadline_cuts_and_the_grace_ends() {
        let start = Instant::now();
        let mut plan = DrainPlan::begin(start + Duration::from_secs(30));
        assert_eq!(plan.on_time(start + Duration::from_secs(29)), None);
        let deadline = plan.due();
        assert_eq!(plan.on_time(deadline), Some(DrainStep::Cut));
        assert_eq!(plan.on_time(deadline), None);
        assert_eq!(plan.on_time(deadline + CUT_GRACE), Some(DrainStep::End));
    }
}
