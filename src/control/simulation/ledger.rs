//! What the oracle keeps of lives, drains and stops, and the form in which control speaks to it.

use std::{sync::Weak, time::Instant};

use serde_json::Value;

use super::{super::DrainView, asked::QuestionOutcome};
use crate::hosted::AppLife;

/// What control says, in its order.
pub(super) enum Said {
    Notice(&'static str, Value),
    Answer(usize, QuestionOutcome),
    Shown(usize, Option<DrainView>),
}

/// What a name of the registry stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) life: u64,
    pub(super) state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Serving,
    /// Drains, or is drained, until it is resumed.
    Paused,
    Removing,
}

/// The ledger of one life.
#[derive(Default)]
pub(super) struct Ledger {
    pub(super) life: Weak<AppLife>,
    pub(super) host: String,
    pub(super) admitted: u64,
    pub(super) ended: u64,
    pub(super) cut: u64,
    pub(super) refused: u64,
    pub(super) is_draining: bool,
}

impl Ledger {
    /// Admitted, and not over.
    pub(super) fn in_flight(&self) -> u64 {
        self.admitted - self.ended - self.cut
    }
}

/// One drain of an app or an upstream.
pub(super) struct Drain {
    pub(super) life: u64,
    pub(super) deadline: Instant,
    /// Exchanges of it that had been cut when it began.
    pub(super) cut_before: u64,
    /// The upstream and the lives whose exchanges with it are waited for.
    pub(super) upstream: Option<(String, Vec<u64>)>,
    pub(super) verdict: Option<String>,
    pub(super) ended_at: Option<Instant>,
    /// A drain of the same name had been given up before, and what it left may be held still.
    pub(super) is_again: bool,
}

/// The stop that is under way.
pub(super) struct Stop {
    pub(super) deadline: Instant,
    /// What each loop has reported of it: how many exchanges it cut.
    pub(super) reported: Vec<Option<u64>>,
    pub(super) cut_by_all: u64,
    pub(super) over: Option<(Instant, String)>,
}
