//! When an upstream is checked, and how the results change its state. Pure:
//! `(event, now) → change`.
//!
//! ```text
//!        `fall` failed checks in a row (1 if none has passed yet)
//!   up ────────────────────────────────────────────────────────────► down
//!    ▲                                                                 │
//!    └── `rise` passed checks in a row (1 if none has passed yet) ─────┘
//! ```
//! An upstream counts as up until its first check. Until a check has passed, each result decides
//! alone: an upstream that starts together with the server fails a check or two and then passes.
//! The plan of a new life continues from the results of the previous one. Times are nanoseconds
//! since the process's epoch.

use super::balance::mix;
use crate::{config::HealthConfig, duration::nanoseconds};

/// What the checks of an upstream have found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KnownHealth {
    /// Whether it counts as up.
    pub(crate) is_up: bool,
    /// Whether any check has passed.
    pub(crate) has_passed: bool,
}

/// The checks of one upstream.
#[derive(Debug)]
pub(crate) struct HealthPlan {
    interval_ns: u64,
    rise: u32,
    fall: u32,
    known: KnownHealth,
    /// Results in a row that contradict the state.
    against: u32,
    due: CheckDue,
    random: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CheckDue {
    At(u64),
    /// A check that began at this time is under way.
    Running(u64),
}

/// Spreads the checks of upstreams: the first check begins within the first 1/16 of the interval,
/// and later intervals vary by as much.
const SPREAD: u64 = 16;

impl HealthPlan {
    /// A plan whose first check is due soon after `now_ns`. Plans with different seeds check at
    /// different times.
    pub(crate) fn new(config: &HealthConfig, known: KnownHealth, seed: u64, now_ns: u64) -> Self {
        let interval_ns = nanoseconds(config.interval);
        let mut plan = Self {
            interval_ns,
            rise: config.rise,
            fall: config.fall,
            known,
            against: 0,
            due: CheckDue::At(0),
            random: seed,
        };
        plan.due = CheckDue::At(now_ns.saturating_add(plan.spread_ns()));
        plan
    }

    /// Whether the upstream counts as up.
    pub(crate) fn is_up(&self) -> bool {
        self.known.is_up
    }

    /// When the next check is due; `None` while a check is under way.
    pub(crate) fn due_ns(&self) -> Option<u64> {
        match self.due {
            CheckDue::At(due) => Some(due),
            CheckDue::Running(_) => None,
        }
    }

    /// Returns whether a check has to begin now. If so, it counts as under way.
    pub(crate) fn begin_if_due(&mut self, now_ns: u64) -> bool {
        let begins = self.due_ns().is_some_and(|due| due <= now_ns);
        if begins {
            self.due = CheckDue::Running(now_ns);
        }
        begins
    }

    /// A check has ended. Returns whether the upstream is up from now on, if that changed.
    pub(crate) fn on_result(&mut self, passed: bool, now_ns: u64) -> Option<bool> {
        if let CheckDue::Running(began) = self.due {
            let half = self.interval_ns / SPREAD / 2;
            let step = self.interval_ns.saturating_sub(half).saturating_add(self.spread_ns());
            self.due = CheckDue::At(began.saturating_add(step).max(now_ns));
        }
        let is_first = !self.known.has_passed;
        self.known.has_passed |= passed;
        if passed == self.known.is_up {
            self.against = 0;
            return None;
        }
        self.against += 1;
        let needed = if is_first {
            1
        } else if self.known.is_up {
            self.fall
        } else {
            self.rise
        };
        if self.against < needed {
            return None;
        }
        (self.known.is_up, self.against) = (passed, 0);
        Some(passed)
    }

    fn spread_ns(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.random) % (self.interval_ns / SPREAD).max(1)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const INTERVAL: u64 = 1600;

    const NOTHING: KnownHealth = KnownHealth { is_up: true, has_passed: false };

    fn plan(rise: u32, fall: u32) -> HealthPlan {
        plan_from(NOTHING, rise, fall)
    }

    fn plan_from(known: KnownHealth, rise: u32, fall: u32) -> HealthPlan {
        let config = HealthConfig {
            interval: Duration::from_nanos(INTERVAL),
            rise,
            fall,
            ..HealthConfig::new("/".to_owned())
        };
        HealthPlan::new(&config, known, 7, 1000)
    }

    /// Runs a check for each result: `+` passes, `-` fails. Returns `U` for a change to up, `D` for
    /// a change to down, else `.`.
    fn run(plan: &mut HealthPlan, results: &str) -> String {
        let change = |result| {
            let due = plan.due_ns().expect("a check is due");
            assert!(plan.begin_if_due(due));
            match plan.on_result(result == '+', due) {
                None => '.',
                Some(true) => 'U',
                Some(false) => 'D',
            }
        };
        results.chars().map(change).collect()
    }

    #[test]
    fn rise_and_fall_count_results_in_a_row() {
        for (rise, fall, results, changes) in [
            (2, 3, "+---", "...D"),
            (2, 3, "+--+--+---", ".........D"),
            (2, 3, "+-----", "...D.."),
            (2, 3, "+---+-+-++", "...D.....U"),
            (2, 3, "+---++---", "...D.U..D"),
            (1, 1, "+-+-", ".DUD"),
            (1, 1, "++++", "...."),
            // Until a check has passed, each result decides alone.
            (2, 3, "-", "D"),
            (2, 3, "-+", "DU"),
            (2, 3, "---+", "D..U"),
            (2, 3, "-+---", "DU..D"),
            (2, 3, "-+---+-++", "DU..D...U"),
        ] {
            assert_eq!(run(&mut plan(rise, fall), results), changes, "{rise} {fall} {results}");
        }
    }

    #[test]
    fn a_plan_goes_on_from_what_is_known() {
        for (is_up, has_passed, results, changes) in [
            (true, true, "---", "..D"),
            (true, false, "-+", "DU"),
            (false, true, "-+-++", "....U"),
            (false, false, "-+---", ".U..D"),
        ] {
            let known = KnownHealth { is_up, has_passed };
            let mut plan = plan_from(known, 2, 3);
            assert_eq!(run(&mut plan, results), changes, "{known:?} {results}");
            assert_eq!(plan.is_up(), !changes.ends_with('D'));
        }
    }

    #[test]
    fn checks_are_an_interval_apart_and_never_two_at_once() {
        let mut plan = plan(1, 1);
        let spread = INTERVAL / SPREAD;
        let mut due = plan.due_ns().unwrap();
        assert!((1000..1000 + spread).contains(&due), "{due}");
        let mut steps = std::collections::HashSet::new();
        for _ in 0..1000 {
            assert!(!plan.begin_if_due(due - 1));
            assert!(plan.begin_if_due(due));
            assert_eq!(plan.due_ns(), None);
            assert!(!plan.begin_if_due(u64::MAX));
            plan.on_result(true, due + 5);
            let step = plan.due_ns().unwrap() - due;
            assert!((INTERVAL - spread / 2..INTERVAL + spread).contains(&step), "{step}");
            steps.insert(step);
            due += step;
        }
        assert!(steps.len() > 50, "{}", steps.len());
    }

    #[test]
    fn a_check_that_outlasts_the_interval_is_followed_at_once() {
        let mut plan = plan(1, 1);
        let due = plan.due_ns().unwrap();
        assert!(plan.begin_if_due(due));
        plan.on_result(false, due + 10 * INTERVAL);
        assert_eq!(plan.due_ns(), Some(due + 10 * INTERVAL));
    }

    #[test]
    fn plans_of_different_seeds_are_out_of_step() {
        let config = HealthConfig::new("/".to_owned());
        let due = |seed| HealthPlan::new(&config, NOTHING, seed, 0).due_ns();
        let all: std::collections::HashSet<_> = (0..100).map(due).collect();
        assert!(all.len() > 90);
    }
}
