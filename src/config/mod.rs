//! The configuration: text → `RawConfig` → [`Config`].
//!
//! A [`Config`] can only be made by parsing, and what it holds is valid: nothing is checked later.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// A whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[server]`
    pub server: ServerConfig,
    /// `[limits]`
    pub limits: Limits,
    /// `[log]`
    pub log: LogConfig,
    /// `[apps."host"]`, in the order of the file.
    pub apps: Vec<AppConfig>,
}

/// `[server]`: addresses, threads and the times of a stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Addresses to listen on, at least one, no two alike.
    pub listen: Vec<SocketAddr>,
    /// Number of loops; 0 means one per core.
    pub threads: usize,
    /// The app that answers hosts no app names; lower case, one of the apps' hosts.
    pub default_app: Option<String>,
    /// How long a drain may take before it cuts.
    pub drain_timeout: Duration,
    /// How long an idle connection may still speak after a stop began.
    pub idle_grace: Duration,
    /// How long a stop waits, serving as before, between readiness 503 and the gate.
    pub shutdown_delay: Duration,
}

/// `[limits]`: sizes, counts and times that no peer can exceed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open connections of the process.
    pub connections: usize,
    /// Bytes of a request head.
    pub head_bytes: usize,
    /// Fields of a request head; at most [`Limits::HEADERS_MAX`].
    pub headers: usize,
    /// Bytes of a request's content.
    pub body_bytes: u64,
    /// From the first byte of a head to its last; also how long a fresh connection may be silent.
    pub head_timeout: Duration,
    /// How long a request's content may make no real progress.
    pub body_timeout: Duration,
    /// How long an answer may make no real progress.
    pub write_timeout: Duration,
    /// How long a connection may be idle between exchanges.
    pub keepalive_timeout: Duration,
    /// How long a closed connection is read out before it is forgotten (RFC 9112 §9.6).
    pub linger_timeout: Duration,
}

impl Limits {
    /// The most fields a head can be configured to have.
    pub const HEADERS_MAX: usize = 256;
}

/// `[log]`: where and how events and requests are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The lowest level that is written.
    pub level: log::LevelFilter,
    /// How events are written.
    pub format: LogFormat,
    /// The file for events; none: standard error.
    pub path: Option<PathBuf>,
    /// How requests are written.
    pub access: AccessFormat,
    /// The file for requests; none: standard output.
    pub access_path: Option<PathBuf>,
}

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// `time LEVEL event key=value …`
    Text,
    /// One JSON object a line.
    Json,
}

/// How requests are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessFormat {
    /// Not at all.
    Off,
    /// The Combined Log Format, with host, app, duration and request id behind it.
    Combined,
    /// One JSON object a line.
    Json,
}

/// One app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppConfig {
    /// The host as in the table's name, lower case; a name or a wildcard `*.example.com`.
    pub host: String,
    /// Further names and wildcards, lower case.
    pub aliases: Vec<String>,
    /// Overrides `server.drain_timeout`.
    pub drain_timeout: Option<Duration>,
    /// What the app does.
    pub kind: AppKind,
}

/// What an app does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppKind {
    /// A fixed answer.
    Respond(RespondConfig),
    /// A redirect to another place.
    Redirect(RedirectConfig),
    /// A folder of files.
    Files(FilesConfig),
}

/// `respond = { … }`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RespondConfig {
    /// Status code, 200 to 599.
    pub status: u16,
    /// The content.
    pub body: String,
    /// The content's media type.
    pub content_type: String,
    /// Further fields; valid, and none that the server writes itself.
    pub headers: Vec<(String, String)>,
    /// How long the answer is held back.
    pub delay: Duration,
}

/// `redirect = { … }`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectConfig {
    /// An absolute `http` or `https` URL without query and fragment, without a slash at its end;
    /// the request's path and query are put behind it.
    pub to: String,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// `files = { … }`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilesConfig {
    /// The folder, made absolute from the place of the config file. It may not exist: that is found
    /// when the app is loaded.
    pub root: PathBuf,
    /// Names tried in a directory, in order.
    pub index: Vec<String>,
    /// The page for 404, relative to the root.
    pub not_found: Option<String>,
    /// Whether precompressed neighbours (`.br`, `.zst`, `.gz`) are sent to who accepts them.
    pub precompressed: bool,
    /// `Cache-Control` for every file.
    pub cache_control: Option<String>,
    /// Media types by extension (lower case, no dot), before the built-in ones.
    pub types: Vec<(String, String)>,
}
