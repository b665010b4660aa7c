//! What is kept of lives and drains that are gone, for the totals and the metrics.

use std::sync::Arc;

use super::drains::DrainView;
use crate::{
    message::AppLife,
    metrics::{DrainSeconds, HostLedger, HostReading, LifeReading},
};

/// What was counted so far. Every life is begun here once, and retired once.
#[derive(Default)]
pub(super) struct Account {
    /// Requests of lives that are gone.
    pub(super) requests: u64,
    /// Exchanges that were cut of lives that are gone.
    pub(super) cut: u64,
    ledger: HostLedger,
    drain_seconds: DrainSeconds,
}

/// What the metrics show of apps and drains.
pub(crate) struct Measured {
    pub(crate) hosts: Vec<HostReading>,
    pub(crate) drains_running: u64,
    pub(crate) drain_seconds: DrainSeconds,
}

impl Account {
    pub(super) fn begin(&mut self, life: &AppLife) {
        self.ledger.begin(life.host());
    }

    /// A life is gone: what it counted is kept.
    pub(super) fn retire(&mut self, life: &AppLife) {
        self.requests += life.drain().requests();
        self.cut += life.drain().cut();
        self.ledger.retire(&reading(life));
    }

    /// A drain of an app has ended with a verdict.
    pub(super) fn drain_ended(&mut self, view: &DrainView) {
        self.drain_seconds.observe(view.elapsed);
        if let (Some(host), Some(verdict)) = (&view.host, view.verdict) {
            self.ledger.drain_ended(host, view.cause.name(), verdict.name());
        }
    }

    /// All of it, with the lives that are there.
    pub(super) fn measure(&self, lives: &[Arc<AppLife>], drains_running: u64) -> Measured {
        Measured {
            hosts: self.ledger.read(lives.iter().map(|life| reading(life))),
            drains_running,
            drain_seconds: self.drain_seconds.clone(),
        }
    }
}

fn reading(life: &AppLife) -> LifeReading<'_> {
    LifeReading {
        host: life.host(),
        active_connections: life.drain().active_connections(),
        exchanges: life.app().counters.snapshot(),
        refused: life.drain().refused(),
        cut: life.drain().cut(),
    }
}
