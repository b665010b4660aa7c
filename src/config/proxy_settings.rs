//! The settings of a `proxy` app, with their defaults.

use std::{fmt, ops::RangeInclusive, path::PathBuf, time::Duration};

use super::Cidr;

/// `proxy = { … }`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyConfig {
    /// Where requests go: 1 to 256, all different.
    pub upstreams: Vec<UpstreamConfig>,
    /// How an upstream is chosen. Default: round robin.
    pub balance: Balance,
    /// The Host field of requests to upstreams. Default: keep.
    pub host: HostPolicy,
    /// How long a connection to an upstream may take to open. Default: 2 s.
    pub connect_timeout: Duration,
    /// How long an upstream may be silent, before the first byte of its answer and between any two
    /// bytes. Default: 60 s.
    pub answer_timeout: Duration,
    /// How long interim responses (1xx) may delay an answer. Default: 1 h.
    pub interim_timeout: Duration,
    /// Whether content without an announced length may be slow. Default: true.
    pub slow_streams: bool,
    /// How many idle connections to an upstream each loop keeps, 0 to 10,000. Default: 64.
    pub idle_connections: usize,
    /// How long an idle connection is kept. Default: 50 s.
    pub idle_timeout: Duration,
    /// How often a request that is safe to send again is retried, 0 to 10. Default: 2.
    pub retries: u32,
    /// Consecutive failures that eject an upstream, 0 to 1000; 0 means never. Default: 3.
    pub eject_after: u32,
    /// How long an upstream stays ejected. Default: 10 s.
    pub eject_for: Duration,
    /// How long a returning upstream takes to reach its full share. Default: 0 s.
    pub slow_start: Duration,
    /// How often the names of upstreams are resolved, at least 1 s. Default: 30 s.
    pub resolve_every: Duration,
    /// Peers whose `X-Forwarded-*`, `Forwarded` and `X-Request-Id` are trusted. Default: none.
    pub trusted_proxies: Vec<Cidr>,
    /// How long a tunnel (WebSocket) may be idle. Default: 1 h.
    pub tunnel_idle_timeout: Duration,
    /// What a drain does to tunnels. Default: keep.
    pub drain_tunnels: DrainTunnels,
    /// Active checks. Default: none.
    pub health: Option<HealthConfig>,
    /// How a deploy finds out whether the upstreams are ready.
    pub ready: ReadyConfig,
    /// How to speak TLS to `https://` upstreams.
    pub tls: UpstreamTlsConfig,
}

/// How to speak TLS to upstreams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamTlsConfig {
    /// The authorities that upstreams' certificates are checked against, in PEM. Default: those of
    /// the system.
    pub ca: Option<PathBuf>,
    /// The name that certificates are checked for and that is sent as SNI: a host name, or an
    /// address without brackets, which is not sent. Default: the host of the upstream's URL.
    pub server_name: Option<String>,
    /// The certificate that upstreams are shown, and its key. Default: none.
    pub client_cert: Option<ClientCertConfig>,
    /// Whether upstreams' certificates are not checked. Default: false.
    pub insecure_skip_verify: bool,
}

/// The files of a client certificate, in PEM. They can be one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertConfig {
    /// The certificate, with the certificates that issued it behind it.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// One upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// Where it listens.
    pub address: UpstreamAddress,
    /// Its share relative to the others, 1 to 256. Default: 1.
    pub weight: u32,
}

/// Where an upstream listens. `Display` gives the form used in a config.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamAddress {
    /// `http://host:port`, or `https://host:port`
    Tcp {
        /// Whether it speaks TLS: `https`.
        tls: bool,
        /// A name in lower case, an IPv4 address, or an IPv6 literal in brackets.
        host: String,
        /// Default: 80; with TLS 443.
        port: u16,
    },
    /// `unix:path`, made absolute from the config file's folder.
    Unix(PathBuf),
}

impl UpstreamAddress {
    /// The Host field of a request to this address (RFC 9112 §3.2); a socket has no name.
    pub fn authority(&self) -> String {
        match self {
            Self::Tcp { tls: false, host, port: 80 } | Self::Tcp { tls: true, host, port: 443 } => {
                host.clone()
            }
            Self::Tcp { host, port, .. } => format!("{host}:{port}"),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }
}

impl fmt::Display for UpstreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { tls: false, host, port } => write!(f, "http://{host}:{port}"),
            Self::Tcp { tls: true, host, port } => write!(f, "https://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// How an upstream is chosen for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Balance {
    /// In turn, by weight.
    RoundRobin,
    /// The upstream with the fewest exchanges in flight, by weight.
    LeastActive,
    /// The same upstream for the same key.
    Hash(HashBy),
}

/// The key of `balance = "hash"`. A request without it is balanced round robin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashBy {
    /// The client's address.
    Client,
    /// The first header field with this name.
    Header(String),
    /// The cookie with this name.
    Cookie(String),
}

/// The Host field of requests to upstreams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPolicy {
    /// The client's Host.
    Keep,
    /// The upstream's own host and port.
    Upstream,
    /// This host, with or without a port.
    Fixed(String),
}

/// What a drain does to tunnels, which may never end by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainTunnels {
    /// They last until they are closed or the drain's deadline cuts them.
    Keep,
    /// They are cut this long after the drain begins.
    CutAfter(Duration),
}

/// `health = { … }`: active checks of upstreams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthConfig {
    /// The path and query to request.
    pub path: String,
    /// The Host field. Default: the proxy's `host` if that is a name, else the upstream's own.
    pub host: Option<String>,
    /// The time between two checks of an upstream, at least 100 ms. Default: 5 s.
    pub interval: Duration,
    /// The time-out of a check.
    pub timeout: Duration,
    /// The statuses of a healthy upstream, from 200 to 599. Default: 200 to 299.
    pub status: RangeInclusive<u16>,
    /// Successful checks in a row that bring an upstream back, 1 to 100. Default: 2.
    pub rise: u32,
    /// Failed checks in a row that take it out, 1 to 100. Default: 3.
    pub fall: u32,
}

/// `ready = { … }`: the checks that upstreams have to pass before a deploy routes requests to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadyConfig {
    /// The path and query to request. Default: none; a connection that opens is enough.
    pub path: Option<String>,
    /// The statuses of an upstream that is ready, from 200 to 599. Default: 200 to 299.
    pub status: RangeInclusive<u16>,
    /// How long all of the checks may take. Default: 30 s.
    pub timeout: Duration,
    /// The time between two checks of an upstream, at least 50 ms. Default: 250 ms.
    pub interval: Duration,
    /// Successful checks in a row that an upstream needs, 1 to 100. Default: 1.
    pub rise: u32,
}

impl Default for ReadyConfig {
    fn default() -> Self {
        Self {
            path: None,
            status: 200..=299,
            timeout: Duration::from_secs(30),
            interval: Duration::from_millis(250),
            rise: 1,
        }
    }
}

impl ProxyConfig {
    /// A proxy to these upstreams; everything else has its default.
    pub fn new(upstreams: Vec<UpstreamConfig>) -> Self {
        Self {
            upstreams,
            balance: Balance::RoundRobin,
            host: HostPolicy::Keep,
            connect_timeout: Duration::from_secs(2),
            answer_timeout: Duration::from_secs(60),
            interim_timeout: Duration::from_secs(3600),
            slow_streams: true,
            idle_connections: 64,
            idle_timeout: Duration::from_secs(50),
            retries: 2,
            eject_after: 3,
            eject_for: Duration::from_secs(10),
            slow_start: Duration::ZERO,
            resolve_every: Duration::from_secs(30),
            trusted_proxies: Vec::new(),
            tunnel_idle_timeout: Duration::from_secs(3600),
            drain_tunnels: DrainTunnels::Keep,
            health: None,
            ready: ReadyConfig::default(),
            tls: UpstreamTlsConfig::default(),
        }
    }

    /// Whether an upstream speaks TLS.
    pub fn has_tls(&self) -> bool {
        let is_tls = |upstream: &UpstreamConfig| {
            matches!(upstream.address, UpstreamAddress::Tcp { tls: true, .. })
        };
        self.upstreams.iter().any(is_tls)
    }
}

impl HealthConfig {
    /// Checks of this path; everything else has its default.
    pub fn new(path: String) -> Self {
        Self {
            path,
            host: None,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            status: 200..=299,
            rise: 2,
            fall: 3,
        }
    }
}
