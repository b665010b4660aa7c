//! What control shows of its parts, as they are at one moment.

use std::time::{Duration, Instant};

use super::{
    context::Context,
    drain_view::{DrainName, DrainView},
    input::{Progress, Report},
    listeners::Listeners,
    lives::Lives,
    service_manager::ServiceStatus,
    stop::Stopping,
    stuck_loop::StuckLoop,
    succession::Succession,
    tasks::Desk,
    watchdog::LoopWatch,
};

/// The parts of control.
pub(super) struct Views<'a> {
    pub(super) cx: &'a Context,
    pub(super) lives: &'a Lives,
    pub(super) listeners: &'a Listeners,
    pub(super) stopping: &'a Stopping,
    pub(super) succession: &'a Succession,
    pub(super) watch: &'a LoopWatch,
    pub(super) desk: &'a Desk,
    /// How long older processes may stay.
    pub(super) older: Option<Duration>,
    pub(super) now: Instant,
}

impl Views<'_> {
    /// The stop as a drain.
    pub(super) fn stop(&self) -> Option<DrainView> {
        let stop = self.stopping.stop.as_ref()?;
        Some(stop.view(self.lives, self.older, self.now))
    }

    /// A drain as it is now, or as it ended.
    pub(super) fn drain(&self, name: DrainName) -> Option<DrainView> {
        match name {
            DrainName::App(_) | DrainName::Upstream(_) => self.lives.drains.view(name, self.now),
            DrainName::Stop => self.stop().or_else(|| self.stopping.cancelled.clone()),
        }
    }

    pub(super) fn report(&self) -> Report {
        Report {
            stop: self.stop(),
            handed_over: self.succession.handed_over,
            drains: self.lives.drains.views(self.now),
            upstream_drains: self.lives.drains.upstream_drains(),
            listen: self.listeners.with_options(),
            totals: self.lives.totals(),
            stuck_loops: self.stuck_loops(),
            failed_loops: self.stopping.failed.iter().copied().collect(),
        }
    }

    pub(super) fn progress(&self) -> Progress {
        let (totals, active_connections, busy) = self.lives.busy(self.now);
        Progress { stop: self.stop(), totals, active_connections, busy }
    }

    /// For the service manager.
    pub(super) fn service_status(&self) -> ServiceStatus {
        ServiceStatus {
            line: self.status_line(),
            is_stopping: self.stopping.is_under_way(),
            makes_progress: self.stuck_loops().is_empty(),
        }
    }

    fn stuck_loops(&self) -> Vec<StuckLoop> {
        self.watch.stuck(self.cx, self.lives, self.now)
    }

    fn status_line(&self) -> String {
        let counts = self.cx.loops.connections();
        let connections = counts.fresh + counts.busy + counts.idle + counts.lingering;
        let active = self.lives.active_connections();
        let mut line = match self.stop() {
            None => {
                let apps = self.lives.app_count();
                format!("serving {apps} apps: {connections} connections, {active} active")
            }
            Some(DrainView { verdict: None, remaining, .. }) => {
                let left = remaining.as_secs();
                format!("stopping: {connections} connections, {active} active, {left} s left")
            }
            Some(DrainView { verdict: Some(verdict), .. }) => format!("stopped: {verdict}"),
        };
        let mut running: Vec<_> =
            self.lives.running_drains(self.now).map(|(view, _)| view).collect();
        running.sort_by_key(|view| view.remaining);
        if let Some(DrainView { host, active_connections, remaining, .. }) = running.first() {
            let (host, left) = (host.as_deref().unwrap_or_default(), remaining.as_secs());
            line += &format!("; draining {host}: {active_connections} active, {left} s left");
        }
        if running.len() > 1 {
            line += &format!("; {} more drains", running.len() - 1);
        }
        for StuckLoop { index, host, .. } in self.stuck_loops() {
            let host = host.map(|host| format!(" in {host}")).unwrap_or_default();
            line += &format!("; loop {index} is stuck{host}");
        }
        for index in &self.stopping.failed {
            line += &format!("; loop {index} has failed");
        }
        if let Some(busy) = self.desk.slow(self.now) {
            line += &format!("; changes wait for {}", busy.with);
        }
        line
    }
}
