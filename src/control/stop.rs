//! The stop of the server: its state, and how it looks as a drain.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    context::Context,
    drain_view::{Cause, DrainName, DrainView, Verdict},
    lives::Lives,
    stop_plan::StopPlan,
};
use crate::{message::StopRules, registry::AppId};

/// How long loops have to send the last answers to admin connections.
const END_GRACE: Duration = Duration::from_secs(3);

/// How long before its deadline a stop closes connections without a request: they are to be read
/// out then, and not cut.
const READ_OUT: Duration = Duration::from_secs(3);

/// Whether the server stops, and why it has to.
pub(super) struct Stopping {
    pub(super) stop: Option<Stop>,
    /// The last stop that was cancelled, for clients that still ask for it.
    pub(super) cancelled: Option<DrainView>,
    /// From the begin of a stop to its gate.
    pub(super) shutdown_delay: Duration,
    /// A stop has begun, for threads that only have to know that.
    has_begun: Arc<AtomicBool>,
    /// Loops that have failed.
    pub(super) failed: BTreeSet<usize>,
}

/// A stop that has begun.
pub(super) struct Stop {
    pub(super) plan: StopPlan,
    pub(super) cause: Cause,
    begun: Instant,
    /// This process was asked to stop: the next request cuts.
    pub(super) asked: bool,
    /// Exchanges that were cut before: of each life that was there, and of all.
    cut_before: (HashMap<AppId, u64>, u64),
    /// The verdict, when it is over, and what is left to do then.
    over: Option<Over>,
}

struct Over {
    verdict: Verdict,
    at: Instant,
    /// Loops whose threads have not ended.
    running: Vec<usize>,
}

impl Stopping {
    pub(super) fn new(shutdown_delay: Duration) -> Self {
        Self {
            stop: None,
            cancelled: None,
            shutdown_delay,
            has_begun: Arc::default(),
            failed: BTreeSet::new(),
        }
    }

    /// True from the first moment of a stop.
    pub(super) fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.has_begun)
    }

    /// A stop begins. In an upgrade the other process serves, and a probe that reaches this one is
    /// answered so.
    pub(super) fn begin(&mut self, stop: Stop) {
        let serves_elsewhere = stop.cause == Cause::Upgrade;
        self.has_begun.store(!serves_elsewhere, Ordering::Release);
        self.stop = Some(stop);
    }

    /// Whether a stop has begun.
    pub(super) fn is_under_way(&self) -> bool {
        self.stop.is_some()
    }

    /// Whether it has its verdict: the process is about to end.
    pub(super) fn is_over(&self) -> bool {
        self.stop.as_ref().is_some_and(|stop| stop.over.is_some())
    }

    /// When the stop has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        let stop = self.stop.as_ref()?;
        stop.over.as_ref().map_or_else(|| stop.plan.due(), |over| Some(over.at + END_GRACE))
    }
}

impl Stop {
    /// A stop that begins now.
    pub(super) fn begin(plan: StopPlan, cause: Cause, lives: &Lives, now: Instant) -> Self {
        let cut = lives.all().iter().map(|life| (life.id(), life.drain().cut())).collect();
        let cut_before = (cut, lives.totals().cut_total);
        Self { plan, cause, begun: now, asked: false, cut_before, over: None }
    }

    /// How connections end from this time on.
    pub(super) fn rules(&self, from: Instant) -> StopRules {
        let has_successor = self.cause == Cause::Upgrade;
        let deadline = self.plan.deadline();
        let left = deadline.saturating_duration_since(from);
        let close_from = from + if has_successor { left / 2 } else { Duration::ZERO };
        StopRules { has_successor, close_from, idle_until: deadline - READ_OUT.min(left / 4) }
    }

    /// It is over, and these loops have still to end.
    pub(super) fn end(&mut self, verdict: Verdict, running: Vec<usize>, now: Instant) {
        self.over = Some(Over { verdict, at: now, running });
    }

    /// Whether it has its verdict.
    pub(super) fn is_over(&self) -> bool {
        self.over.is_some()
    }

    /// A loop has ended, after the verdict.
    pub(super) fn loop_ended(&mut self, index: usize) {
        if let Some(over) = &mut self.over {
            over.running.retain(|&running| running != index);
        }
    }

    /// The verdict, when all loops have ended or have had their time: the process ends.
    pub(super) fn last_verdict(&self, now: Instant) -> Option<Verdict> {
        let over = self.over.as_ref()?;
        (over.running.is_empty() || now >= over.at + END_GRACE).then_some(over.verdict)
    }

    /// The stop as a drain.
    pub(super) fn view(&self, lives: &Lives, older: Option<Duration>, now: Instant) -> DrainView {
        let now = self.over.as_ref().map_or(now, |over| over.at);
        let verdict = self.over.as_ref().map(|over| over.verdict);
        let cut = match verdict {
            None => lives.totals().cut_total - self.cut_before.1,
            Some(Verdict::Cut(cut)) => cut,
            Some(_) => 0,
        };
        DrainView {
            name: DrainName::Stop,
            host: None,
            upstream: None,
            cause: self.cause,
            verdict,
            active_connections: if verdict.is_some() { 0 } else { lives.active_connections() },
            refused: 0,
            cut,
            elapsed: now.duration_since(self.begun),
            remaining: self.plan.deadline().saturating_duration_since(now),
            older,
        }
    }

    /// Logs each app whose exchanges the stop has cut, including those that a stuck loop holds.
    pub(super) fn log_cut_apps(&self, cx: &Context, lives: &Lives) {
        for life in lives.all() {
            let before = self.cut_before.0.get(&life.id()).copied().unwrap_or(0);
            let cut = life.drain().cut() - before + life.drain().active_connections();
            if cut > 0 {
                cx.drain_log.cut_by_stop(&life, cut);
            }
        }
    }
}
