//! The log of drains: a line for each phase of each, from which any drain can be told afterwards.
//!
//! ```text
//! app_drain_start ► app_drain_progress … ► app_drain_cut ► app_drained │ app_drain_timeout
//!                                                           │ app_drain_cancelled
//! shutdown_graceful ► shutdown_gated ► shutdown_progress … ► shutdown_cut
//!   ► app_cut for each app, loop_held for each loop ► shutdown_drained │ shutdown_timeout_reached
//! ```
//! `id` is the drain's as the admin API has it: the life's number, or `stop`. Progress is logged at
//! most every second, and only if the counts have changed; a moved deadline by `…_deadline`. The
//! end's line has the verdict and all counts again.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{
    Control,
    drains::{DrainName, DrainView, Verdict},
    lives::milliseconds,
    notices::notice,
    watchdog::StuckLoop,
};
use crate::{logging::event, message::AppLife};

/// Between two looks at drains that are under way.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// The drain of the server among those of lives.
const STOP: &str = "stop";

/// What was logged last of each drain that is under way.
#[derive(Debug, Default)]
pub(super) struct DrainLog {
    told: HashMap<DrainName, Counts>,
    due: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counts {
    active: u64,
    refused: u64,
    cut: u64,
}

impl Counts {
    fn of(view: &DrainView) -> Self {
        Self { active: view.active_connections, refused: view.refused, cut: view.cut }
    }
}

impl DrainLog {
    /// When [`Control::log_progress`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    fn begin(&mut self, view: &DrainView, now: Instant) {
        self.told.insert(view.name, Counts::of(view));
        self.due.get_or_insert(now + PROGRESS_EVERY);
    }

    /// Of the drains that are under way, those that have something new to tell.
    fn news(&mut self, mut running: Vec<DrainView>, now: Instant) -> Vec<DrainView> {
        self.due = (!running.is_empty()).then_some(now + PROGRESS_EVERY);
        let counts = running.iter().map(|view| (view.name, Counts::of(view))).collect();
        let before = std::mem::replace(&mut self.told, counts);
        running.retain(|view| before.get(&view.name) != Some(&Counts::of(view)));
        running
    }
}

impl Control {
    /// A drain of a life begins, with its deadline still whole.
    pub(super) fn say_drain_started(&mut self, view: &DrainView) {
        self.drain_log.begin(view, Instant::now());
        let DrainName::App(id) = view.name else { return };
        notice!(
            self.notices,
            Info,
            "app_drain_start",
            host = view.host.as_deref(),
            id = id.as_u64(),
            cause = view.cause.name(),
            active_connections = view.active_connections,
            timeout_ms = milliseconds(view.remaining),
        );
    }

    /// A drain goes on with another cause and deadline.
    pub(super) fn say_drain_deadline(&self, view: &DrainView) {
        let DrainName::App(id) = view.name else { return };
        notice!(
            self.notices,
            Info,
            "app_drain_deadline",
            host = view.host.as_deref(),
            id = id.as_u64(),
            cause = view.cause.name(),
            active_connections = view.active_connections,
            remaining_ms = milliseconds(view.remaining),
        );
    }

    /// The deadline of a drain has passed.
    pub(super) fn say_drain_cut(&self, view: &DrainView) {
        let DrainName::App(id) = view.name else { return };
        notice!(
            self.notices,
            Warn,
            "app_drain_cut",
            host = view.host.as_deref(),
            id = id.as_u64(),
            active_connections = view.active_connections,
            elapsed_ms = milliseconds(view.elapsed),
        );
    }

    /// A drain of a life has its verdict.
    pub(super) fn say_drain_ended(&self, view: &DrainView) {
        let (DrainName::App(id), Some(verdict)) = (view.name, view.verdict) else { return };
        // A macro, for a record's level and name are constants.
        macro_rules! ended {
            ($level:ident, $name:literal) => {
                notice!(
                    self.notices,
                    $level,
                    $name,
                    host = view.host.as_deref(),
                    id = id.as_u64(),
                    cause = view.cause.name(),
                    verdict = verdict.name(),
                    elapsed_ms = milliseconds(view.elapsed),
                    refused = view.refused,
                    cut = view.cut,
                )
            };
        }
        match verdict {
            Verdict::Drained => ended!(Info, "app_drained"),
            Verdict::Cut(_) => ended!(Warn, "app_drain_timeout"),
            Verdict::Cancelled => ended!(Info, "app_drain_cancelled"),
        }
    }

    /// Logs how far the drains are that are under way.
    pub(super) fn log_progress(&mut self, now: Instant) {
        if self.drain_log.due.is_none_or(|due| now < due) {
            return;
        }
        let drains = self.drains.running().filter(|drain| !drain.cancelled);
        let drains = drains.map(|drain| drain.view(now));
        let stop = self.stop_view().filter(|view| view.verdict.is_none());
        let running = drains.chain(stop).collect();
        for view in self.drain_log.news(running, now) {
            macro_rules! progress {
                ($name:literal, $id:expr) => {
                    event!(
                        Info,
                        $name,
                        host = view.host.as_deref(),
                        id = $id,
                        active_connections = view.active_connections,
                        refused = view.refused,
                        cut = view.cut,
                        elapsed_ms = milliseconds(view.elapsed),
                        remaining_ms = milliseconds(view.remaining),
                    )
                };
            }
            match view.name {
                DrainName::App(id) => progress!("app_drain_progress", id.as_u64()),
                DrainName::Stop => progress!("shutdown_progress", STOP),
            }
        }
    }

    /// A stop begins.
    pub(super) fn say_stop_started(&mut self, reason: &str, timeout: Duration) {
        let Some(view) = self.stop_view() else { return };
        self.drain_log.begin(&view, Instant::now());
        notice!(
            self.notices,
            Info,
            "shutdown_graceful",
            id = STOP,
            reason = reason,
            active_connections = view.active_connections,
            drain_timeout_ms = milliseconds(timeout),
            delay_ms = milliseconds(self.shutdown_delay),
        );
    }

    /// All listeners are gated, and the connections come to their ends.
    pub(super) fn say_stop_gated(&self) {
        event!(Info, "shutdown_gated", id = STOP, active_connections = self.active_connections());
    }

    /// The deadline of a stop has moved.
    pub(super) fn say_stop_deadline(&self) {
        let Some(view) = self.stop_view() else { return };
        notice!(
            self.notices,
            Info,
            "shutdown_deadline",
            id = STOP,
            active_connections = view.active_connections,
            remaining_ms = milliseconds(view.remaining),
        );
    }

    /// What is in flight is cut.
    pub(super) fn say_stop_cut(&self, reason: &str) {
        notice!(
            self.notices,
            Warn,
            "shutdown_cut",
            id = STOP,
            reason = reason,
            active_connections = self.active_connections(),
        );
    }

    /// A stop has cut exchanges of this life, or a loop that is stuck holds them.
    pub(super) fn say_cut_by_stop(&self, life: &AppLife, cut: u64) {
        let (host, id) = (life.host(), life.id().as_u64());
        notice!(self.notices, Warn, "app_cut", host = host, id = id, drain = STOP, cut = cut);
    }

    /// A stop is over, and this loop has not obeyed.
    pub(super) fn say_loop_held(&self, held: &StuckLoop) {
        notice!(
            self.notices,
            Error,
            "loop_held",
            loop_index = held.index,
            host = held.host.as_deref(),
            id = held.life,
            for_ms = milliseconds(held.time),
            drain = STOP,
        );
    }

    /// A stop is over.
    pub(super) fn say_stop_ended(&self, view: &DrainView, held: &[StuckLoop]) {
        let Some(verdict) = view.verdict else { return };
        let elapsed_ms = milliseconds(view.elapsed);
        let hosts: Vec<_> = held.iter().filter_map(|held| held.host.as_deref()).collect();
        if self.failed {
            // What the loop that failed had in flight was lost; nobody knows how much that was.
            notice!(
                self.notices,
                Error,
                "shutdown_incomplete",
                id = STOP,
                elapsed_ms = elapsed_ms,
                cut = view.cut,
            );
        } else if verdict == Verdict::Drained {
            notice!(
                self.notices,
                Info,
                "shutdown_drained",
                id = STOP,
                verdict = verdict.name(),
                elapsed_ms = elapsed_ms,
                refused = view.refused,
                cut = view.cut,
            );
        } else {
            notice!(
                self.notices,
                Warn,
                "shutdown_timeout_reached",
                id = STOP,
                verdict = verdict.name(),
                elapsed_ms = elapsed_ms,
                refused = view.refused,
                cut = view.cut,
                stuck_loops = held.len(),
                held_by = (!hosts.is_empty()).then(|| hosts.join(",")).as_deref(),
            );
        }
    }
}
