//! What is counted over all processes of an upgrade.

use serde::{Deserialize, Serialize};

use crate::registry::AppDrainState;

/// Exchanges of all lives, also of those that are gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Totals {
    /// Exchanges admitted.
    pub(crate) requests_total: u64,
    /// Exchanges that a deadline ended.
    pub(crate) cut_total: u64,
}

impl Totals {
    /// What one life counted.
    pub(super) fn of(life: &AppDrainState) -> Self {
        Self { requests_total: life.requests(), cut_total: life.cut() }
    }
}

impl std::ops::Add for Totals {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            requests_total: self.requests_total + other.requests_total,
            cut_total: self.cut_total + other.cut_total,
        }
    }
}
