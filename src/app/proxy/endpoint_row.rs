//! One upstream at one moment, for the admin API, metrics and logs.

use std::time::Duration;

use super::failure::{FailureCause, LastFailure};

/// One upstream, as operators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EndpointRow {
    pub(crate) url: String,
    pub(crate) weight: u64,
    pub(crate) state: EndpointState,
    /// Why it is down.
    pub(crate) reason: Option<String>,
    /// Exchanges under way.
    pub(crate) active: u64,
    /// Idle connections that are kept for reuse.
    pub(crate) idle: u64,
    /// Exchanges so far; each attempt counts.
    pub(crate) requests: u64,
    /// Failures that were the upstream's fault.
    pub(crate) failures: u64,
    /// The failures by cause, including those that were this machine's fault.
    pub(crate) causes: Vec<(FailureCause, u64)>,
    pub(crate) last_failure: Option<LastFailure>,
    pub(crate) answers: u64,
    /// The time from the choice of the upstream to the head of its answer, summed over all answers.
    pub(crate) latency: Duration,
}

impl EndpointRow {
    /// The mean time from the choice of the upstream to the head of its answer.
    pub(crate) fn latency_mean(&self) -> Option<Duration> {
        let nanos = self.latency.as_nanos().checked_div(u128::from(self.answers))?;
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }
}

/// Whether an upstream gets requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndpointState {
    Up,
    /// Checks found it down, or its name has no address.
    Down,
    /// Gets no requests for a while, after failures in a row.
    Ejected,
    /// Drained by an operator; some exchanges are still under way.
    Draining,
    /// Drained by an operator, without exchanges.
    Drained,
}

impl EndpointState {
    /// All states.
    pub(crate) const ALL: [Self; 5] =
        [Self::Up, Self::Down, Self::Ejected, Self::Draining, Self::Drained];

    /// The name in admin answers and metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Ejected => "ejected",
            Self::Draining => "draining",
            Self::Drained => "drained",
        }
    }
}
