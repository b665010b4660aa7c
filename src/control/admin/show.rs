//! How lives, drains and reloads look as JSON.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::Serialize;
use serde_json::{Value, json};

use super::super::{
    DrainName, DrainView, Emptied, LifeView, Reloaded, StuckLoop, Verdict, tasks::Desk,
};
use crate::{
    app::{EndpointRow, EndpointState, LastFailure, Peer},
    config::{ConfigError, Problem},
    duration::{microseconds, milliseconds},
    hosted::{AppLife, Origin},
    logging::rfc3339,
    message::{BusyConnection, BusyPhase, LiveListenOptions},
};

/// A life as it is.
#[derive(Serialize)]
pub(super) struct Row<'a> {
    host: &'a str,
    aliases: &'a [String],
    id: u64,
    kind: &'static str,
    origin: &'static str,
    state: &'static str,
    active_connections: u64,
    requests_total: u64,
    refused: u64,
    cut: u64,
    /// What the app's filters count, by name.
    #[serde(flatten)]
    filters: BTreeMap<&'static str, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    /// Why no request can be answered as it should.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    #[serde(flatten)]
    drain: Option<RowDrain>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstreams: Option<Vec<Upstream>>,
}

/// An upstream of a proxy app.
#[derive(Serialize)]
pub(super) struct Upstream {
    url: String,
    weight: u64,
    state: &'static str,
    reason: Option<String>,
    active: u64,
    idle: u64,
    requests: u64,
    failures: u64,
    latency_us: Option<u64>,
    last_failure: Option<Failed>,
}

/// The failure of an upstream that came last.
#[derive(Serialize)]
struct Failed {
    cause: &'static str,
    error: String,
    at: String,
    age_ms: u64,
}

/// The upstreams of an app, if it has any.
pub(super) fn upstreams(life: &AppLife, now_ns: u64) -> Option<Vec<Upstream>> {
    let rows = life.app().app.upstreams()?.rows(now_ns).into_iter();
    let upstream = |row: EndpointRow| Upstream {
        latency_us: row.latency_mean().map(microseconds),
        url: row.url,
        weight: row.weight,
        state: row.state.name(),
        reason: row.reason,
        active: row.active,
        idle: row.idle,
        requests: row.requests,
        failures: row.failures,
        last_failure: row.last_failure.map(|last| failed(&last, now_ns)),
    };
    Some(rows.map(upstream).collect())
}

fn failed(last: &LastFailure, now_ns: u64) -> Failed {
    let age = Duration::from_nanos(now_ns.saturating_sub(last.at_ns));
    Failed {
        cause: last.failure.cause.name(),
        error: last.failure.to_string(),
        at: rfc3339(SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH)),
        age_ms: milliseconds(age),
    }
}

#[derive(Serialize)]
struct RowDrain {
    cause: &'static str,
    elapsed_ms: u64,
    remaining_ms: u64,
}

impl<'a> Row<'a> {
    pub(super) fn new(LifeView { life, drain }: &'a LifeView, now_ns: u64) -> Self {
        Self {
            state: match drain {
                None => "serving",
                Some(drain) if drain.verdict.is_none() => "draining",
                Some(_) => "drained",
            },
            drain: drain.as_ref().map(|drain| RowDrain {
                cause: drain.cause.name(),
                elapsed_ms: milliseconds(drain.elapsed),
                remaining_ms: milliseconds(drain.remaining),
            }),
            ..Self::serving(life, now_ns)
        }
    }

    /// A life that has just begun.
    pub(super) fn serving(life: &'a AppLife, now_ns: u64) -> Self {
        let (state, hosted) = (life.drain(), life.app());
        let upstreams = upstreams(life, now_ns);
        Self {
            host: life.host(),
            aliases: life.aliases(),
            id: life.id().as_u64(),
            kind: hosted.app.kind(),
            origin: match hosted.origin {
                Origin::Config => "config",
                Origin::Admin => "admin",
                Origin::Embedder => "embedder",
            },
            state: "serving",
            active_connections: state.active_connections(),
            requests_total: state.requests(),
            refused: state.refused(),
            cut: state.cut(),
            filters: hosted.filters.counts().collect(),
            error: hosted.load_error.as_deref(),
            problem: hosted
                .load_error
                .clone()
                .or_else(|| upstreams.as_deref().and_then(none_is_up)),
            drain: None,
            upstreams,
        }
    }
}

/// What is wrong with an app none of whose upstreams is up: the state of the first one, and why.
fn none_is_up(upstreams: &[Upstream]) -> Option<String> {
    let is_up = |upstream: &Upstream| upstream.state == EndpointState::Up.name();
    let first = upstreams.first().filter(|_| !upstreams.iter().any(is_up))?;
    let why = first.reason.as_deref().unwrap_or(first.state);
    let more = match upstreams.len() - 1 {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    Some(format!("no upstream is up: {}: {why}{more}", first.url))
}

/// A drain as it is, or as it ended.
#[derive(Serialize)]
pub(super) struct Drain<'a> {
    id: Value,
    host: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream: Option<&'a str>,
    cause: &'static str,
    state: &'static str,
    verdict: Option<&'static str>,
    active_connections: u64,
    refused: u64,
    cut: u64,
    elapsed_ms: u64,
    remaining_ms: u64,
    /// Of a stop: the process that stops.
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    /// How long it may stay for processes before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    older_ms: Option<u64>,
}

impl<'a> Drain<'a> {
    pub(super) fn new(view: &'a DrainView) -> Self {
        Self {
            id: match view.name {
                DrainName::App(id) => json!(id.as_u64()),
                name => json!(name.to_string()),
            },
            host: view.host.as_deref(),
            upstream: view.upstream.as_deref(),
            cause: view.cause.name(),
            state: if view.verdict.is_some() { "ended" } else { "draining" },
            verdict: view.verdict.map(Verdict::name),
            active_connections: view.active_connections,
            refused: view.refused,
            cut: view.cut,
            elapsed_ms: milliseconds(view.elapsed),
            remaining_ms: milliseconds(view.remaining),
            pid: (view.name == DrainName::Stop).then(std::process::id),
            older_ms: view.older.map(milliseconds),
        }
    }
}

pub(super) fn reload(done: &Reloaded) -> Value {
    let failed = done.failed.iter().map(|(host, error)| json!({ "host": host, "error": error }));
    let not_listening = done.not_listening.iter();
    let not_listening =
        not_listening.map(|(address, error)| json!({ "address": address, "error": error }));
    json!({
        "dry_run": done.dry_run,
        "added": done.added,
        "changed": done.changed,
        "removed": done.removed,
        "unchanged": done.unchanged,
        "failed": failed.collect::<Vec<_>>(),
        "drains": done.drains.iter().map(|id| id.as_u64()).collect::<Vec<_>>(),
        "listeners": {
            "added": done.listening,
            "removed": done.closed,
            "failed": not_listening.collect::<Vec<_>>(),
        },
        "certificate_errors": done.certificate_errors,
        "log_errors": done.log_errors,
        "settings": done.settings,
        "needs_restart": done.needs_restart,
    })
}

/// A reload that would leave nothing.
pub(super) fn emptied(lost: &Emptied, file: Option<&Path>) -> Value {
    let problem = Problem {
        line: 0,
        column: 0,
        message: lost.to_string(),
        help: Some("`tidegate reload --allow-empty` if that is meant".to_owned()),
    };
    let error_text = "the config would leave nothing to serve, and nothing changed";
    json!({ "error": error_text, "problems": problems(&[problem], file) })
}

pub(super) fn config_error(error: &ConfigError, file: Option<&Path>) -> Value {
    let error_text = "the config is wrong, and nothing changed";
    json!({ "error": error_text, "problems": problems(error.problems(), file) })
}

/// What is wrong in a config, or with an app's JSON, which is no file.
pub(super) fn problems(problems: &[Problem], file: Option<&Path>) -> Value {
    // 0 says that there is no line.
    let place = |place: usize| Some(place).filter(|place| *place > 0);
    let problem = |problem: &Problem| {
        json!({
            "file": file.map(|file| file.display().to_string()),
            "line": place(problem.line),
            "column": place(problem.column),
            "message": problem.message,
            "help": problem.help,
        })
    };
    problems.iter().map(problem).collect()
}

pub(super) fn connection(busy: &BusyConnection) -> Value {
    let (method, target) = busy.request.clone().unzip();
    json!({
        "id": format!("{}-{:x}", busy.loop_index, busy.token.0),
        "app": busy.life.as_u64(),
        "peer": match busy.peer {
            Peer::Tcp(address) => address.to_string(),
            Peer::Unix => "unix".to_owned(),
        },
        "method": method,
        "target": target,
        "age_ms": milliseconds(busy.age),
        "phase": match busy.phase {
            BusyPhase::ReadingBody => "reading body",
            BusyPhase::WaitingForApp => "waiting for the app",
            BusyPhase::Sending => "sending",
        },
        "bytes_sent": busy.bytes_sent,
        "tunnel": busy.is_tunnel,
        "tls": busy.tls.as_ref().map(|tls| json!({
            "version": tls.version,
            "cipher": tls.cipher,
            "server_name": tls.server_name,
            "resumed": tls.is_resumed,
        })),
    })
}

/// A public address, and how connections begin there.
pub(super) fn listener((address, options): &(SocketAddr, Arc<LiveListenOptions>)) -> Value {
    let mut row = json!({ "address": address });
    options.load().by_key().into_iter().for_each(|(key, value)| row[key] = json!(value));
    row
}

pub(super) fn stuck_loop(stuck: &StuckLoop) -> Value {
    json!({
        "loop": stuck.index,
        "host": stuck.host,
        "app": stuck.life,
        "for_ms": milliseconds(stuck.time),
    })
}

pub(super) fn operator(desk: &Desk) -> Value {
    let (busy, waiting) = desk.busy();
    json!({
        "busy_with": busy.as_ref().map(|busy| &busy.with),
        "since": busy.as_ref().map(|busy| time(busy.since)),
        "for_ms": busy.as_ref().map(|busy| milliseconds(busy.time)),
        "waiting": waiting,
    })
}

pub(super) fn time(at: SystemTime) -> Value {
    json!(rfc3339(at))
}
