//! The server's answers, as far as commands use them. Unknown members are ignored.

use std::fmt;

use serde::Deserialize;

use super::deploy_check::DeployCheck;

/// `GET /status`
#[derive(Debug, Deserialize)]
pub(super) struct ServerStatus {
    pub(super) version: String,
    pub(super) pid: i32,
    pub(super) state: String,
    pub(super) uptime_ms: u64,
    pub(super) config: Option<String>,
    pub(super) listen: Vec<String>,
    /// Absent in answers of older servers.
    #[serde(default)]
    pub(super) listeners: Vec<ListenerRow>,
    #[serde(default)]
    pub(super) certificates: CertificateCounts,
    pub(super) threads: u64,
    pub(super) apps: u64,
    pub(super) active_connections: u64,
    pub(super) connections: ConnectionCounts,
    pub(super) requests_total: u64,
    pub(super) cut_total: u64,
    /// Absent in answers of servers before upgrades existed.
    #[serde(default)]
    pub(super) previous: Vec<Generation>,
    pub(super) drains: Vec<Drain>,
    /// Absent in answers of older servers.
    #[serde(default)]
    pub(super) operator: Operator,
    #[serde(default)]
    pub(super) stuck_loops: Vec<StuckLoop>,
    #[serde(default)]
    pub(super) failed_loops: Vec<u64>,
    pub(super) last_reload: Option<LastReload>,
    pub(super) log_lines_lost: LostLines,
}

/// A public address of the server.
#[derive(Debug, Deserialize)]
pub(super) struct ListenerRow {
    pub(super) address: String,
    pub(super) tls: bool,
}

/// The server's certificates in short.
#[derive(Debug, Default, Deserialize)]
pub(super) struct CertificateCounts {
    pub(super) in_use: u64,
    pub(super) rejected: u64,
    pub(super) next_expiry: Option<NextExpiry>,
}

/// The certificate that expires first.
#[derive(Debug, Deserialize)]
pub(super) struct NextExpiry {
    pub(super) names: Vec<String>,
    pub(super) days_left: i64,
}

/// What the server's operator thread is doing.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Operator {
    pub(super) busy_with: Option<String>,
    pub(super) since: Option<String>,
    pub(super) for_ms: Option<u64>,
    pub(super) waiting: u64,
}

/// An earlier process that still drains after an upgrade.
#[derive(Debug, Deserialize)]
pub(super) struct Generation {
    pub(super) pid: u32,
    pub(super) version: String,
    pub(super) active_connections: u64,
    pub(super) elapsed_ms: u64,
    pub(super) remaining_ms: u64,
    /// How long the process hasn't reported, if that is suspicious.
    pub(super) silent_ms: Option<u64>,
}

/// `POST /upgrade`
#[derive(Debug, Deserialize)]
pub(super) struct UpgradeAnswer {
    pub(super) pid: u32,
    pub(super) old_pid: u32,
    /// The old process's drain, if the request waited for it.
    #[serde(flatten)]
    pub(super) drain: Option<Drain>,
}

#[derive(Debug, Deserialize)]
pub(super) struct ConnectionCounts {
    pub(super) fresh: u64,
    pub(super) busy: u64,
    pub(super) idle: u64,
    pub(super) lingering: u64,
}

/// A loop that makes no progress.
#[derive(Debug, Deserialize)]
pub(super) struct StuckLoop {
    #[serde(rename = "loop")]
    pub(super) index: u64,
    pub(super) host: Option<String>,
    pub(super) for_ms: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct LastReload {
    pub(super) at: String,
    pub(super) ok: bool,
    pub(super) error: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct LostLines {
    pub(super) events: u64,
    pub(super) access: u64,
}

/// `GET /apps`
#[derive(Debug, Deserialize)]
pub(super) struct Apps {
    pub(super) apps: Vec<Row>,
}

/// A life of an app.
#[derive(Debug, Deserialize)]
pub(super) struct Row {
    pub(super) host: String,
    pub(super) aliases: Vec<String>,
    pub(super) id: u64,
    pub(super) kind: String,
    pub(super) origin: String,
    pub(super) state: String,
    pub(super) active_connections: u64,
    pub(super) requests_total: u64,
    pub(super) refused: u64,
    pub(super) cut: u64,
    /// Absent without a rate limit.
    pub(super) limited: Option<u64>,
    pub(super) cause: Option<String>,
    pub(super) elapsed_ms: Option<u64>,
    pub(super) remaining_ms: Option<u64>,
    pub(super) error: Option<String>,
    /// Why the app can't answer requests properly.
    pub(super) problem: Option<String>,
    pub(super) upstreams: Option<Vec<Upstream>>,
    /// The earlier process that runs this life.
    pub(super) pid: Option<u32>,
}

/// An upstream of a proxy app.
#[derive(Debug, Deserialize)]
pub(super) struct Upstream {
    pub(super) url: String,
    pub(super) weight: u64,
    pub(super) state: String,
    pub(super) reason: Option<String>,
    pub(super) active: u64,
    pub(super) idle: u64,
    pub(super) requests: u64,
    pub(super) failures: u64,
    pub(super) latency_us: Option<u64>,
    pub(super) last_failure: Option<LastFailure>,
}

/// The upstream's most recent failure.
#[derive(Debug, Deserialize)]
pub(super) struct LastFailure {
    pub(super) cause: String,
    pub(super) error: String,
    pub(super) age_ms: u64,
}

/// `POST /apps/{host}/upstreams/resume`
#[derive(Debug, Deserialize)]
pub(super) struct Upstreams {
    pub(super) upstreams: Vec<Upstream>,
}

/// `GET /apps/{host}`
#[derive(Debug, Deserialize)]
pub(super) struct App {
    #[serde(flatten)]
    pub(super) row: Row,
    pub(super) lives: Vec<Row>,
}

/// `GET /apps/{host}/connections`
#[derive(Debug, Deserialize)]
pub(super) struct Connections {
    pub(super) connections: Vec<Connection>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Connection {
    pub(super) id: String,
    pub(super) app: u64,
    pub(super) peer: String,
    pub(super) method: Option<String>,
    pub(super) target: Option<String>,
    pub(super) age_ms: u64,
    pub(super) phase: String,
    pub(super) bytes_sent: u64,
    pub(super) tunnel: bool,
    /// Absent without TLS.
    pub(super) tls: Option<ConnectionTls>,
}

/// The TLS of a connection.
#[derive(Debug, Deserialize)]
pub(super) struct ConnectionTls {
    pub(super) version: String,
    pub(super) cipher: String,
    pub(super) server_name: Option<String>,
}

impl Connection {
    /// Method and target, as far as known.
    pub(super) fn request(&self) -> String {
        let parts = [&self.method, &self.target].into_iter().flatten();
        parts.map(String::as_str).collect::<Vec<_>>().join(" ")
    }
}

/// `GET /certificates`
#[derive(Debug, Deserialize)]
pub(super) struct Certificates {
    pub(super) certificates: Vec<Certificate>,
    pub(super) rejected: Vec<RejectedCertificate>,
}

/// A certificate in use.
#[derive(Debug, Deserialize)]
pub(super) struct Certificate {
    pub(super) names: Vec<String>,
    pub(super) issuer: String,
    pub(super) not_after: String,
    pub(super) days_left: i64,
    /// Absent if the server made it.
    pub(super) file: Option<String>,
    pub(super) apps: Vec<String>,
    pub(super) in_use_since: String,
}

/// A certificate that can't be used.
#[derive(Debug, Deserialize)]
pub(super) struct RejectedCertificate {
    /// Absent if it isn't an app's own.
    pub(super) host: Option<String>,
    pub(super) error: String,
    pub(super) kept: bool,
}

/// `POST /apps/{host}/deploy`
#[derive(Debug, Deserialize)]
pub(super) struct Deployed {
    #[serde(flatten)]
    pub(super) change: Changed,
    pub(super) checks: Vec<DeployCheck>,
}

/// `GET /apps/{host}/deploy`
#[derive(Debug, Deserialize)]
pub(super) struct DeployProgress {
    pub(super) host: String,
    pub(super) elapsed_ms: u64,
    pub(super) checks: Vec<DeployCheck>,
}

/// `PUT /apps/{host}` and `POST /apps/{host}/resume`
#[derive(Debug, Deserialize)]
pub(super) struct Changed {
    pub(super) result: String,
    pub(super) app: Row,
    pub(super) drain: Option<DrainId>,
}

/// `DELETE /connections/{id}`
#[derive(Debug, Deserialize)]
pub(super) struct CutAnswer {
    pub(super) cut: u64,
}

/// A drain.
#[derive(Debug, Deserialize)]
pub(super) struct Drain {
    pub(super) id: DrainId,
    pub(super) host: Option<String>,
    pub(super) upstream: Option<String>,
    pub(super) cause: String,
    pub(super) state: DrainState,
    pub(super) verdict: Option<Verdict>,
    pub(super) active_connections: u64,
    pub(super) refused: u64,
    pub(super) cut: u64,
    pub(super) elapsed_ms: u64,
    pub(super) remaining_ms: u64,
    /// For a stop: the process that stops. Absent in answers of older servers.
    pub(super) pid: Option<i32>,
    /// For a stop: how long that process may wait for earlier processes that still drain.
    pub(super) older_ms: Option<u64>,
}

impl Drain {
    /// The name of what drains.
    pub(super) fn name(&self) -> String {
        let parts = [Some(self.host.as_deref().unwrap_or("server")), self.upstream.as_deref()];
        parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }
}

/// A life's id, the name of an upstream's drain, or `stop`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum DrainId {
    /// The drain of one life.
    Life(u64),
    /// The drain of an upstream or of the whole server.
    Named(String),
}

impl fmt::Display for DrainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Life(id) => id.fmt(f),
            Self::Named(name) => name.fmt(f),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum DrainState {
    Draining,
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Drained,
    Cut,
    Cancelled,
}

/// `POST /reload`
#[derive(Debug, Deserialize)]
pub(super) struct ReloadAnswer {
    #[serde(default)]
    pub(super) dry_run: bool,
    pub(super) added: Vec<String>,
    pub(super) changed: Vec<String>,
    pub(super) removed: Vec<String>,
    pub(super) unchanged: u64,
    pub(super) failed: Vec<FailedApp>,
    pub(super) drains: Vec<DrainId>,
    pub(super) listeners: Listeners,
    pub(super) settings: Vec<String>,
    pub(super) needs_restart: Vec<String>,
    /// Absent in answers of older servers.
    #[serde(default)]
    pub(super) certificate_errors: Vec<String>,
    /// Absent in answers of older servers.
    #[serde(default)]
    pub(super) log_errors: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct FailedApp {
    pub(super) host: String,
    pub(super) error: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Listeners {
    pub(super) added: Vec<String>,
    pub(super) removed: Vec<String>,
    pub(super) failed: Vec<FailedListener>,
}

#[derive(Debug, Deserialize)]
pub(super) struct FailedListener {
    pub(super) address: String,
    pub(super) error: String,
}

/// An event of `GET /events`.
#[derive(Debug, Deserialize)]
pub(super) struct Event {
    pub(super) ts: String,
    pub(super) level: String,
    pub(super) event: String,
    pub(super) fields: serde_json::Map<String, serde_json::Value>,
}
