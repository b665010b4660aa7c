//! What operators look up: status, apps, drains, metrics.

use std::{
    collections::HashMap,
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

use super::{
    super::{ChangeError, Generation, Input, LifeView, ask},
    Admin,
    answers::{Answered, SERVER, ok, refused, refused_app},
    show::{self, Row},
};
use crate::{
    duration::milliseconds,
    hosted::AppLife,
    http::Response,
    logging::Logging,
    metrics::{
        self, ExchangeTotals, Exposition, HandshakeCounts, HostReading, LoopCounts, ProcessUsage,
        Scrape,
    },
};

impl Admin {
    pub(super) fn status(&self) -> Answered {
        let (lives, report, counts) = (self.lives()?, self.report()?, self.loop_counts());
        let sum =
            |count: fn(&AppLife) -> u64| lives.iter().map(|view| count(&view.life)).sum::<u64>();
        let lost = self.logging.as_ref().map(Logging::lost).unwrap_or_default();
        let running = report.drains.iter().filter(|drain| drain.verdict.is_none());
        let running = running.chain(&report.stop);
        let before = self.predecessor.as_ref().map(|before| before.totals()).unwrap_or_default();
        let previous = self.previous().into_iter().map(|mut generation| {
            generation.apps.clear();
            generation
        });
        ok(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "state": if report.stop.is_some() { "stopping" } else { "serving" },
            "uptime_ms": milliseconds(self.facts.started.elapsed()),
            "config": self.facts.config.as_ref().map(|path| path.display().to_string()),
            "listen": report.listen.iter().map(|(address, _)| address).collect::<Vec<_>>(),
            "listeners": report.listen.iter().map(show::listener).collect::<Vec<_>>(),
            "certificates": self.certificate_summary(),
            "threads": self.loops.len(),
            "apps": self.registry.entries().len(),
            "active_connections": sum(|life| life.drain().active_connections()),
            "connections": connections(&counts),
            "requests_total": report.totals.requests_total + before.requests_total,
            "cut_total": report.totals.cut_total + before.cut_total,
            "previous": previous.collect::<Vec<_>>(),
            "drains": running.map(show::Drain::new).collect::<Vec<_>>(),
            "operator": show::operator(&self.tasks.desk),
            "stuck_loops": report.stuck_loops.iter().map(show::stuck_loop).collect::<Vec<_>>(),
            "failed_loops": report.failed_loops,
            "last_reload": self.reloads.counts().last.map(|last| json!({
                "at": show::time(last.at),
                "ok": last.error.is_none(),
                "error": last.error,
            })),
            "log_lines_lost": { "events": lost.events, "access": lost.access },
        }))
    }

    pub(super) fn apps(&self) -> Answered {
        let mut lives = self.lives()?;
        lives.sort_by(|a, b| (a.life.host(), a.life.id()).cmp(&(b.life.host(), b.life.id())));
        let now_ns = self.facts.now_ns();
        let rows = lives.iter().map(|view| json!(Row::new(view, now_ns)));
        let previous = self.previous().into_iter().flat_map(|before| {
            let pid = before.pid;
            before.apps.into_iter().map(move |mut row| {
                row["pid"] = json!(pid);
                row
            })
        });
        ok(&HashMap::from([("apps", rows.chain(previous).collect::<Vec<_>>())]))
    }

    pub(super) fn drains(&self) -> Answered {
        let report = self.report()?;
        let drains: Vec<_> = report.drains.iter().map(show::Drain::new).collect();
        ok(&HashMap::from([("drains", drains)]))
    }

    /// Earlier processes that still drain.
    fn previous(&self) -> Vec<Generation> {
        self.predecessor.as_ref().map(|before| before.generations()).unwrap_or_default()
    }

    /// This process, for the one after it. Of its apps, those with something in flight.
    pub(crate) fn generation(&self) -> Option<Generation> {
        let progress = ask(&self.control, Input::Progress).ok()?;
        let now_ns = self.facts.now_ns();
        let before = self.predecessor.as_ref().map(|before| before.totals()).unwrap_or_default();
        let times = progress.stop.map(|stop| (stop.elapsed, stop.remaining)).unwrap_or_default();
        Some(Generation {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            active_connections: progress.active_connections,
            connections: connections(&self.loop_counts()),
            elapsed_ms: milliseconds(times.0),
            remaining_ms: milliseconds(times.1),
            silent_ms: None,
            totals: progress.totals + before,
            apps: progress.busy.iter().map(|view| json!(Row::new(view, now_ns))).collect(),
            previous: self.previous(),
        })
    }

    pub(super) fn app(&self, host: &str) -> Answered {
        let (lives, now_ns) = (self.lives_of(host)?, self.facts.now_ns());
        let rows: Vec<_> = lives.iter().map(|view| Row::new(view, now_ns)).collect();
        let mut answer = json!(rows[0]);
        answer["lives"] = json!(rows);
        ok(&answer)
    }

    /// The life that has this name, and behind it the older ones of its app; at least one.
    pub(super) fn lives_of(&self, name: &str) -> Result<Vec<LifeView>, Response<'static>> {
        let host = self.host_named(name);
        let mut lives = self.lives()?;
        lives.retain(|view| view.life.host() == host);
        lives.sort_by_key(|view| std::cmp::Reverse(view.life.id()));
        if lives.is_empty() {
            return Err(refused_app(&self.registry, name, &ChangeError::UnknownHost));
        }
        Ok(lives)
    }

    /// The host of the app that has this name, which may be an alias; as requests name it: case and
    /// a trailing dot do not matter. Else the name in that form.
    pub(super) fn host_named(&self, name: &str) -> String {
        let mut name = name.to_ascii_lowercase();
        if name.len() > 1 && name.ends_with('.') {
            name.pop();
        }
        self.registry.find(&name).map_or(name, |life| life.host().to_owned())
    }

    pub(super) fn metrics(&self, accept: Option<&str>) -> Answered {
        let mut measured =
            ask(&self.control, Input::Measure).map_err(|reason| refused(SERVER, &reason))?;
        let mut unrouted = ExchangeTotals::default();
        self.gauges.iter().for_each(|gauges| unrouted.add(&gauges.unrouted()));
        measured.hosts.push(HostReading::unrouted(unrouted));
        let stuck = self.report()?.stuck_loops;
        let is_stuck = |index| stuck.iter().any(|stuck| stuck.index == index);
        let lost = self.logging.as_ref().map(Logging::lost).unwrap_or_default();
        let reloads = self.reloads.counts();
        let since_1970 = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let certificates = self.certificates.list().ends_by_name().into_iter();
        let uptime = self.facts.started.elapsed();
        let exposition = Exposition::accepted(accept);
        let page = metrics::render(
            Scrape {
                hosts: measured.hosts,
                connections: self.loop_counts(),
                handshakes: self.handshakes(),
                certificates: certificates
                    .map(|(name, end)| (name, since_1970(end).as_secs()))
                    .collect(),
                loops_stuck: (0..self.loops.len()).map(is_stuck).collect(),
                start_time: since_1970(SystemTime::now()).saturating_sub(uptime),
                uptime,
                version: env!("CARGO_PKG_VERSION"),
                events_lost: lost.events,
                access_lost: lost.access,
                reloads_ok: reloads.ok,
                reloads_failed: reloads.failed,
                last_reload_success: reloads.last_ok_at.map(since_1970),
                drains_running: measured.drains_running,
                drain_seconds: measured.drain_seconds,
                process: ProcessUsage::read(),
            },
            exposition,
        );
        let response = Response::new(200).with_field("Content-Type", exposition.content_type());
        Ok(response.with_content(page))
    }

    fn handshakes(&self) -> HandshakeCounts {
        let mut sum = HandshakeCounts::default();
        self.gauges.iter().for_each(|gauges| sum += gauges.handshakes());
        sum
    }

    fn loop_counts(&self) -> LoopCounts {
        let mut sum = LoopCounts::default();
        self.gauges.iter().for_each(|gauges| sum += gauges.snapshot());
        sum
    }
}

fn connections(counts: &LoopCounts) -> Value {
    json!({
        "fresh": counts.fresh,
        "busy": counts.busy,
        "idle": counts.idle,
        "lingering": counts.lingering,
    })
}
