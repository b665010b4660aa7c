//! The settings of the sections, with their defaults.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

/// `[server]`: addresses, threads and the times of a stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Where to listen: at least one address, all different. Default: `127.0.0.1:8080`.
    pub listen: Vec<ListenConfig>,
    /// The user to run as after giving up root; never a user with root's rights. A program that
    /// embeds the server must switch the user itself. Default: none.
    pub user: Option<String>,
    /// The group to run as; only with `user`. Default: the user's group.
    pub group: Option<String>,
    /// The number of loops; 0 means one per core; at most 1024. Default: 0.
    pub threads: usize,
    /// The app for hosts that no app names: a host of one of the apps, in lower case. Default:
    /// none, such hosts get 404.
    pub default_app: Option<String>,
    /// How long a drain may take before it cuts exchanges. Default: 30 s.
    pub drain_timeout: Duration,
    /// How long an idle connection may still send a request after a stop began. Default: 1 s.
    pub idle_grace: Duration,
    /// How long a stop keeps serving after readiness turned 503 and before the gate closes.
    /// Default: 0 s.
    pub shutdown_delay: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)).into()],
            user: None,
            group: None,
            threads: 0,
            default_app: None,
            drain_timeout: Duration::from_secs(30),
            idle_grace: Duration::from_secs(5),
            shutdown_delay: Duration::ZERO,
        }
    }
}

/// An entry of `listen`: an address, or `{ address = "…", … }`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenConfig {
    /// The address.
    pub address: SocketAddr,
    /// How its connections begin.
    pub options: ListenOptions,
}

/// How the connections of an address begin: the further keys of an entry of `listen`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListenOptions {
    /// Whether connections begin with a PROXY header, version 1 or 2, which names the client. A
    /// connection without it is closed. Default: false.
    pub proxy_protocol: bool,
    /// Whether connections speak TLS. Plain HTTP there is answered with 400. Default: false.
    pub tls: bool,
}

impl From<SocketAddr> for ListenConfig {
    fn from(address: SocketAddr) -> Self {
        Self { address, options: ListenOptions::default() }
    }
}

impl ListenOptions {
    /// The options by their keys.
    pub(crate) fn by_key(self) -> [(&'static str, bool); 2] {
        [("proxy_protocol", self.proxy_protocol), ("tls", self.tls)]
    }
}

/// `[limits]`: sizes, counts and durations that no peer can exceed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open connections of the process, 1 to 10,000,000. Default: 100,000.
    pub connections: usize,
    /// Open connections per client (IPv4 address or IPv6 /64), 1 to 10,000,000. Default: no limit.
    pub connections_per_ip: Option<usize>,
    /// Bytes of a request head, 1 KiB to 1 MiB. Default: 16 KiB.
    pub head_bytes: usize,
    /// Header fields of a request, 1 to [`Limits::HEADERS_MAX`]. Default: 100.
    pub headers: usize,
    /// Bytes of a request's content, 0 to 1 TiB. Default: 1 MiB.
    pub body_bytes: u64,
    /// The longest time from the first to the last byte of a head, and the longest silence of a
    /// fresh connection. Default: 10 s.
    pub head_timeout: Duration,
    /// How long a request's content may make no real progress. Default: 30 s.
    pub body_timeout: Duration,
    /// How long an answer may make no real progress. Default: 30 s.
    pub write_timeout: Duration,
    /// How long a connection may be idle between exchanges. Default: 75 s.
    pub keepalive_timeout: Duration,
    /// How long input is read and discarded after our side has closed (RFC 9112 §9.6). Default: 2
    /// s.
    pub linger_timeout: Duration,
}

impl Limits {
    /// The highest value of `headers`.
    pub const HEADERS_MAX: usize = 256;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 100_000,
            connections_per_ip: None,
            head_bytes: 16 << 10,
            headers: 100,
            body_bytes: 1 << 20,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(75),
            linger_timeout: Duration::from_secs(2),
        }
    }
}

/// `[log]`: where and how events and requests are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The lowest level that is logged. Default: info.
    pub level: log::LevelFilter,
    /// The format of events. Default: text.
    pub format: LogFormat,
    /// The file for events, made absolute. Default: none, standard error.
    pub path: Option<PathBuf>,
    /// The format of the access log. Default: off.
    pub access: AccessFormat,
    /// The file for the access log, made absolute. Default: none, standard output.
    pub access_path: Option<PathBuf>,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: log::LevelFilter::Info,
            format: LogFormat::Text,
            path: None,
            access: AccessFormat::Off,
            access_path: None,
        }
    }
}

/// The format of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// `time LEVEL event key=value …`
    Text,
    /// One JSON object per line.
    Json,
}

/// The format of the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessFormat {
    /// No access log.
    Off,
    /// The Combined Log Format, followed by host, app, duration and request id.
    Combined,
    /// One JSON object per line.
    Json,
}
