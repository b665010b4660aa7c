//! What is kept of lives and drains that are gone, for the totals and the metrics.

use std::sync::Arc;

use super::{drain_view::DrainView, totals::Totals};
use crate::{
    app::{EndpointRow, EndpointState, FailureCause},
    hosted::AppLife,
    metrics::{
        AnswerSeconds, DrainSeconds, FailureCounts, HostLedger, HostReading, LifeReading,
        UpstreamNow, UpstreamReading, UpstreamTotals,
    },
};

/// What was counted so far. Every life is begun here once, and retired once.
///
/// A life can be gone while a loop that is stuck still holds exchanges of it: what becomes of those
/// is counted when they end.
#[derive(Default)]
pub(super) struct History {
    /// Lives that are gone, with exchanges that loops still hold.
    held: Vec<Arc<AppLife>>,
    /// Requests of lives that are gone, and not held.
    requests: u64,
    /// Exchanges of theirs that were cut.
    cut: u64,
    ledger: HostLedger,
    drain_seconds: DrainSeconds,
}

/// What the metrics show of apps and drains.
pub(crate) struct Measured {
    pub(crate) hosts: Vec<HostReading>,
    pub(crate) drains_running: u64,
    pub(crate) drain_seconds: DrainSeconds,
}

impl History {
    /// Of lives that are gone.
    pub(super) fn totals(&self) -> Totals {
        let gone = Totals { requests_total: self.requests, cut_total: self.cut };
        self.held.iter().fold(gone, |sum, life| sum + Totals::of(life.drain()))
    }

    pub(super) fn begin(&mut self, life: &AppLife) {
        self.ledger.begin(life.host());
    }

    /// A life is gone: what it counted is kept.
    pub(super) fn retire(&mut self, life: &Arc<AppLife>) {
        self.held.push(Arc::clone(life));
        self.let_go_of_ended();
    }

    /// Forgets lives that are gone, as soon as no loop holds an exchange of them.
    pub(super) fn let_go_of_ended(&mut self) {
        let has_ended = |life: &mut Arc<AppLife>| life.drain().active_connections() == 0;
        for life in self.held.extract_if(.., has_ended) {
            let Totals { requests_total, cut_total } = Totals::of(life.drain());
            (self.requests, self.cut) = (self.requests + requests_total, self.cut + cut_total);
            // How its upstreams were is of no use any more.
            self.ledger.retire(&reading(&life, 0));
        }
    }

    /// A drain of an app has ended with a verdict.
    pub(super) fn drain_ended(&mut self, view: &DrainView) {
        self.drain_seconds.observe(view.elapsed);
        if let (Some(host), Some(verdict)) = (&view.host, view.verdict) {
            self.ledger.drain_ended(host, view.cause.name(), verdict.name());
        }
    }

    /// All of it, with the lives that are there, of each host the newest first.
    pub(super) fn measure(
        &self,
        lives: &[Arc<AppLife>],
        drains_running: u64,
        now_ns: u64,
    ) -> Measured {
        Measured {
            hosts: self.ledger.read(lives.iter().chain(&self.held).map(|it| reading(it, now_ns))),
            drains_running,
            drain_seconds: self.drain_seconds.clone(),
        }
    }
}

fn reading(life: &AppLife, now_ns: u64) -> LifeReading<'_> {
    let upstreams = life.app().app.upstreams();
    let rows = upstreams.into_iter().flat_map(|upstreams| upstreams.rows(now_ns));
    let unserved = upstreams.map(|upstreams| failure_counts(upstreams.unserved()));
    LifeReading {
        host: life.host(),
        active_connections: life.drain().active_connections(),
        exchanges: life.app().counters.snapshot(),
        refused: life.drain().refused(),
        cut: life.drain().cut(),
        unserved: unserved.unwrap_or_default(),
        upstreams: rows.map(upstream_reading).collect(),
    }
}

fn upstream_reading(row: EndpointRow) -> UpstreamReading {
    let states = EndpointState::ALL.map(|state| (state.name(), state == row.state));
    UpstreamReading {
        url: row.url,
        now: UpstreamNow { active: row.active, idle: row.idle, states: states.to_vec() },
        totals: UpstreamTotals {
            requests: row.requests,
            failures: failure_counts(row.causes),
            answer_seconds: AnswerSeconds::of(row.answers, row.latency),
        },
    }
}

fn failure_counts(causes: Vec<(FailureCause, u64)>) -> FailureCounts {
    FailureCounts(causes.into_iter().map(|(cause, count)| (cause.name(), count)).collect())
}
