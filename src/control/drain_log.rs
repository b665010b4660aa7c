//! The log of drains: a line for each phase of each, so that the log has the whole of every drain.
//!
//! ```text
//! app_drain_start ► app_drain_progress … ► app_drain_cut ► app_drained │ app_drain_timeout
//!                                                           │ app_drain_cancelled
//! upstream_drain_start, and so on: the same
//! shutdown_graceful ► shutdown_gated ► shutdown_progress … ► shutdown_cut
//!   ► app_cut for each app, loop_held for each loop ► shutdown_drained │ shutdown_timeout_reached
//! ```
//! `drain` is the drain's name as the admin API has it: the life's number, `u` and a number, or
//! `stop`. Progress is logged at most every second, and only if the counts have changed; a moved
//! deadline by `…_deadline`. The end's line has the verdict and all counts again.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    drain_view::{DrainName, DrainView, Verdict},
    notices::{Notices, notice},
    stuck_loop::StuckLoop,
};
use crate::{duration::milliseconds, hosted::AppLife, registry::AppId};

/// Between two looks at drains that are under way.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Logs a phase of the drain of an app, or of one of its upstreams. A macro, for the names of
/// events are constants.
macro_rules! phase {
    (
        $notices:expr, $level:ident, $app:literal | $upstream:literal, $view:expr, $life:expr,
        $($key:ident = $value:expr),+ $(,)?
    ) => {{
        let (host, id) = ($view.host.as_deref(), $life.as_u64());
        let (drain, cause) = ($view.name.to_string(), $view.cause.name());
        match $view.upstream.as_deref() {
            None => notice!(
                $notices, $level, $app,
                host = host, id = id, drain = drain, cause = cause, $($key = $value),+
            ),
            Some(url) => notice!(
                $notices, $level, $upstream,
                host = host, id = id, upstream = url, drain = drain, cause = cause,
                $($key = $value),+
            ),
        }
    }};
}

/// The name of the stop's drain.
const STOP: &str = "stop";

/// The log of all drains.
#[derive(Debug)]
pub(super) struct DrainLog {
    notices: Arc<Notices>,
    /// The counts that were logged last, of each drain that is under way.
    logged: HashMap<DrainName, Counts>,
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
    pub(super) fn new(notices: Arc<Notices>) -> Self {
        Self { notices, logged: HashMap::new(), due: None }
    }

    /// When [`DrainLog::progress`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    fn begin(&mut self, view: &DrainView, now: Instant) {
        self.logged.insert(view.name, Counts::of(view));
        self.due.get_or_insert(now + PROGRESS_EVERY);
    }

    /// Of the drains that are under way, those whose counts have changed.
    fn changed<T>(
        &mut self,
        mut running: Vec<(DrainView, T)>,
        now: Instant,
    ) -> Vec<(DrainView, T)> {
        self.due = (!running.is_empty()).then_some(now + PROGRESS_EVERY);
        let counts = running.iter().map(|(view, _)| (view.name, Counts::of(view))).collect();
        let before = std::mem::replace(&mut self.logged, counts);
        running.retain(|(view, _)| before.get(&view.name) != Some(&Counts::of(view)));
        running
    }

    /// A drain begins.
    pub(super) fn drain_started(&mut self, view: &DrainView, life: AppId, now: Instant) {
        self.begin(view, now);
        phase!(
            self.notices,
            Info,
            "app_drain_start" | "upstream_drain_start",
            view,
            life,
            active_connections = view.active_connections,
            timeout_ms = milliseconds(view.remaining),
        );
    }

    /// A drain goes on with another cause and deadline.
    pub(super) fn drain_deadline(&self, view: &DrainView, life: AppId) {
        phase!(
            self.notices,
            Info,
            "app_drain_deadline" | "upstream_drain_deadline",
            view,
            life,
            active_connections = view.active_connections,
            remaining_ms = milliseconds(view.remaining),
        );
    }

    /// The deadline of a drain has passed.
    pub(super) fn drain_cut(&self, view: &DrainView, life: AppId) {
        phase!(
            self.notices,
            Warn,
            "app_drain_cut" | "upstream_drain_cut",
            view,
            life,
            active_connections = view.active_connections,
            elapsed_ms = milliseconds(view.elapsed),
        );
    }

    /// A drain has its verdict.
    pub(super) fn drain_ended(&self, view: &DrainView, life: AppId) {
        let Some(verdict) = view.verdict else { return };
        macro_rules! ended {
            ($level:ident, $app:literal | $upstream:literal) => {
                phase!(
                    self.notices,
                    $level,
                    $app | $upstream,
                    view,
                    life,
                    verdict = verdict.name(),
                    elapsed_ms = milliseconds(view.elapsed),
                    refused = view.refused,
                    cut = view.cut,
                )
            };
        }
        match verdict {
            Verdict::Drained => ended!(Info, "app_drained" | "upstream_drained"),
            Verdict::Cut(_) => ended!(Warn, "app_drain_timeout" | "upstream_drain_timeout"),
            Verdict::Cancelled => {
                ended!(Info, "app_drain_cancelled" | "upstream_drain_cancelled");
            }
        }
    }

    /// Logs how far these drains are, each with the life that drains; the stop has none.
    pub(super) fn progress(&mut self, running: Vec<(DrainView, Option<AppId>)>, now: Instant) {
        for (view, life) in self.changed(running, now) {
            let elapsed_ms = milliseconds(view.elapsed);
            let remaining_ms = milliseconds(view.remaining);
            match life {
                Some(life) => phase!(
                    self.notices,
                    Info,
                    "app_drain_progress" | "upstream_drain_progress",
                    view,
                    life,
                    active_connections = view.active_connections,
                    refused = view.refused,
                    cut = view.cut,
                    elapsed_ms = elapsed_ms,
                    remaining_ms = remaining_ms,
                ),
                None => notice!(
                    self.notices,
                    Info,
                    "shutdown_progress",
                    drain = STOP,
                    active_connections = view.active_connections,
                    refused = view.refused,
                    cut = view.cut,
                    elapsed_ms = elapsed_ms,
                    remaining_ms = remaining_ms,
                ),
            }
        }
    }

    /// A stop begins; its deadline is this long after the delay.
    pub(super) fn stop_started(
        &mut self,
        view: &DrainView,
        reason: &str,
        (delay, timeout): (Duration, Duration),
        now: Instant,
    ) {
        self.begin(view, now);
        notice!(
            self.notices,
            Info,
            "shutdown_graceful",
            drain = STOP,
            reason = reason,
            active_connections = view.active_connections,
            drain_timeout_ms = milliseconds(timeout),
            delay_ms = milliseconds(delay),
        );
    }

    /// All listeners are gated, and the connections come to their ends.
    pub(super) fn stop_gated(&self, active: u64) {
        let notices = &self.notices;
        notice!(notices, Info, "shutdown_gated", drain = STOP, active_connections = active);
    }

    /// The deadline of a stop has moved.
    pub(super) fn stop_deadline(&self, view: &DrainView) {
        notice!(
            self.notices,
            Info,
            "shutdown_deadline",
            drain = STOP,
            active_connections = view.active_connections,
            remaining_ms = milliseconds(view.remaining),
        );
    }

    /// What is in flight is cut.
    pub(super) fn stop_cut(&self, reason: &str, active: u64) {
        notice!(
            self.notices,
            Warn,
            "shutdown_cut",
            drain = STOP,
            reason = reason,
            active_connections = active,
        );
    }

    /// A stop has cut exchanges of this life, or a loop that is stuck holds them.
    pub(super) fn cut_by_stop(&self, life: &AppLife, cut: u64) {
        let (host, id) = (life.host(), life.id().as_u64());
        notice!(self.notices, Warn, "app_cut", host = host, id = id, drain = STOP, cut = cut);
    }

    /// A stop is over, and this loop has not obeyed.
    pub(super) fn loop_held(&self, held: &StuckLoop) {
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

    /// A stop is over, with these stuck loops and so many that failed.
    pub(super) fn stop_ended(&self, view: &DrainView, held: &[StuckLoop], failed: usize) {
        let Some(verdict) = view.verdict else { return };
        let elapsed_ms = milliseconds(view.elapsed);
        let hosts: Vec<_> = held.iter().filter_map(|held| held.host.as_deref()).collect();
        if failed > 0 {
            notice!(
                self.notices,
                Error,
                "shutdown_incomplete",
                drain = STOP,
                verdict = verdict.name(),
                elapsed_ms = elapsed_ms,
                refused = view.refused,
                cut = view.cut,
                stuck_loops = held.len(),
                failed_loops = failed,
            );
        } else if verdict == Verdict::Drained {
            notice!(
                self.notices,
                Info,
                "shutdown_drained",
                drain = STOP,
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
                drain = STOP,
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
