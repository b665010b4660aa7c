//! The cases: the request, the number of connections, and the servers.

use std::io;

use crate::kind::Kind;
use crate::tls::{Key, Secured, Sessions};

/// Bytes of the two files that are served.
pub(crate) const FILES: [(&str, usize); 2] = [("1k.txt", 1024), ("128k.txt", 128 * 1024)];
/// The small answer's body.
pub(crate) const SMALL_BODY: &str = "Hello, World!";
/// Host whose app gives the small answer.
pub(crate) const SMALL_HOST: &str = "bench.localhost";
/// Host whose app serves the files.
pub(crate) const FILES_HOST: &str = "files.localhost";

/// What a browser sends beside `Host`: about 600 bytes.
const BROWSER_FIELDS: &str = "Connection: keep-alive\r\n\
    sec-ch-ua: \"Chromium\";v=\"140\", \"Not=A?Brand\";v=\"24\"\r\n\
    sec-ch-ua-mobile: ?0\r\n\
    sec-ch-ua-platform: \"Linux\"\r\n\
    Upgrade-Insecure-Requests: 1\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) \
    Chrome/140.0.0.0 Safari/537.36\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,\
    */*;q=0.8\r\n\
    Sec-Fetch-Site: none\r\n\
    Sec-Fetch-Mode: navigate\r\n\
    Sec-Fetch-User: ?1\r\n\
    Sec-Fetch-Dest: document\r\n\
    Accept-Language: en-GB,en;q=0.9\r\n";

/// One kind of load.
#[derive(Debug)]
pub(crate) struct Case {
    /// Its name on the command line and in the table.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) host: &'static str,
    pub(crate) path: &'static str,
    /// More header fields, each with its line end.
    pub(crate) fields: &'static str,
    pub(crate) connections: usize,
    /// This many of the connections have a batch under way, in turns; the others are idle.
    pub(crate) busy: usize,
    /// The default number of cores that make the load: the fewest that keep the floor busy.
    pub(crate) load_cores: usize,
    /// Requests that are sent at once; the next ones follow when all are answered.
    pub(crate) pipeline: usize,
    /// Whether requests come at a fixed rate and their latency is measured.
    pub(crate) paced: bool,
    /// Whether every request has a new connection.
    pub(crate) close: bool,
    /// Whether it is over TLS: the server's key, and whether sessions are resumed.
    pub(crate) tls: Option<(Key, Sessions)>,
    /// The length of the expected body, in bytes.
    pub(crate) body_bytes: usize,
    /// Whether the servers forward the request to an upstream.
    pub(crate) proxied: bool,
    /// The server the ratios are relative to.
    pub(crate) base: Kind,
    /// The servers that take part.
    pub(crate) peers: &'static [Kind],
}

impl Case {
    /// Whether the case is about idle connections.
    pub(crate) fn is_mostly_idle(&self) -> bool {
        self.busy < self.connections
    }

    /// What its connections are made with, if it is over TLS.
    pub(crate) fn secured(&self) -> io::Result<Option<Secured>> {
        self.tls.map(|(_, sessions)| Secured::new(self.host, sessions)).transpose()
    }

    /// One request to `host` of a server on `port`.
    pub(crate) fn request(&self, host: &str, port: u16) -> String {
        let Case { path, fields, .. } = self;
        format!("GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n{fields}\r\n")
    }
}

const EVERY: &[Kind] = &[
    Kind::Floor,
    Kind::Tidegate,
    Kind::Before,
    Kind::Nginx,
    Kind::H2o,
    Kind::Haproxy,
    Kind::Caddy,
    Kind::Hyper,
];
const FILE: &[Kind] =
    &[Kind::Floor, Kind::Tidegate, Kind::Before, Kind::Nginx, Kind::H2o, Kind::Caddy];
/// Without the floor, which writes from memory: a server can send a file without a copy.
const LARGE_FILE: &[Kind] = &[Kind::Tidegate, Kind::Before, Kind::Nginx, Kind::H2o, Kind::Caddy];

/// Without the floor, which is the upstream of all.
const PROXIES: &[Kind] =
    &[Kind::Tidegate, Kind::Before, Kind::Nginx, Kind::H2o, Kind::Haproxy, Kind::Caddy];

/// Servers that speak TLS; the floor doesn't.
const SECURED: &[Kind] =
    &[Kind::Tidegate, Kind::Before, Kind::Nginx, Kind::H2o, Kind::Haproxy, Kind::Caddy];

const SMALL: Case = Case {
    name: "small",
    title: "Small answer, keep-alive, 64 connections",
    host: SMALL_HOST,
    path: "/",
    fields: "",
    connections: 64,
    busy: 64,
    load_cores: 1,
    pipeline: 1,
    paced: false,
    close: false,
    tls: None,
    proxied: false,
    body_bytes: SMALL_BODY.len(),
    base: Kind::Floor,
    peers: EVERY,
};

const PROXY: Case = Case {
    name: "proxy",
    title: "Small answer of an upstream, keep-alive on both sides, 64 connections",
    proxied: true,
    base: Kind::Haproxy,
    peers: PROXIES,
    ..SMALL
};

const TLS: Case = Case {
    name: "tls",
    title: "Small answer over TLS, keep-alive, 64 connections",
    tls: Some((Key::P256, Sessions::New)),
    base: Kind::Nginx,
    peers: SECURED,
    ..SMALL
};

const HANDSHAKE: Case = Case {
    name: "tls-handshake",
    title: "Full TLS handshake (P-256), small answer, close; 64 at a time",
    fields: "Connection: close\r\n",
    close: true,
    ..TLS
};

/// Every case, in the order of the report.
pub(crate) const CASES: [Case; 21] = [
    SMALL,
    Case {
        name: "browser",
        title: "Small answer, a browser's header fields, 64 connections",
        fields: BROWSER_FIELDS,
        ..SMALL
    },
    Case {
        name: "pipelined",
        title: "Small answer, 16 pipelined, 64 connections",
        pipeline: 16,
        ..SMALL
    },
    Case {
        name: "file-1k",
        title: "1 KiB file, keep-alive, 64 connections",
        host: FILES_HOST,
        path: "/files/1k.txt",
        body_bytes: FILES[0].1,
        peers: FILE,
        ..SMALL
    },
    Case {
        name: "file-128k",
        title: "128 KiB file, keep-alive, 64 connections",
        host: FILES_HOST,
        path: "/files/128k.txt",
        body_bytes: FILES[1].1,
        base: Kind::Nginx,
        peers: LARGE_FILE,
        ..SMALL
    },
    Case {
        name: "close",
        title: "Small answer, a new connection for every request, 64 at a time",
        fields: "Connection: close\r\n",
        load_cores: 2,
        close: true,
        ..SMALL
    },
    Case {
        name: "many",
        title: "Small answer, keep-alive, 8,000 connections, 64 of them busy in turns",
        connections: 8000,
        ..SMALL
    },
    PROXY,
    Case {
        name: "proxy-64k",
        title: "64 KiB of an upstream, keep-alive on both sides, 64 connections",
        body_bytes: 64 * 1024,
        ..PROXY
    },
    TLS,
    Case {
        name: "tls-many",
        title: "Small answer over TLS, keep-alive, 2,000 connections, 64 of them busy in turns",
        connections: 2000,
        ..TLS
    },
    Case {
        name: "tls-128k",
        title: "128 KiB file over TLS, keep-alive, 64 connections",
        host: FILES_HOST,
        path: "/files/128k.txt",
        body_bytes: FILES[1].1,
        peers: LARGE_FILE,
        ..TLS
    },
    Case {
        name: "tls-proxy",
        title: "Small answer of an upstream over TLS to the client, 64 connections",
        proxied: true,
        base: Kind::Haproxy,
        ..TLS
    },
    HANDSHAKE,
    Case {
        name: "tls-handshake-rsa",
        title: "Full TLS handshake (RSA-2048), small answer, close; 64 at a time",
        tls: Some((Key::Rsa2048, Sessions::New)),
        ..HANDSHAKE
    },
    Case {
        name: "tls-resumed",
        title: "Resumed TLS handshake, small answer, close; 64 at a time",
        tls: Some((Key::P256, Sessions::Resumed)),
        ..HANDSHAKE
    },
    Case {
        name: "latency",
        title: "Latency of a small answer at a fixed rate, 64 connections",
        paced: true,
        ..SMALL
    },
    Case {
        name: "latency-proxy",
        title: "Latency of a small answer of an upstream at a fixed rate, 64 connections",
        paced: true,
        ..PROXY
    },
    Case {
        name: "access-log",
        title: "Small answer with and without an access log, 64 connections",
        base: Kind::Tidegate,
        peers: &[Kind::Tidegate, Kind::Logging],
        ..SMALL
    },
    Case {
        name: "apps",
        title: "Small answer of one of many apps, by chance, 64 connections",
        base: Kind::Apps(1),
        peers: &[Kind::Apps(1), Kind::Apps(100), Kind::Apps(10_000), Kind::Apps(100_000)],
        ..SMALL
    },
    Case {
        name: "loops",
        title: "Small answer, 16 pipelined, of several loops, 64 connections",
        pipeline: 16,
        base: Kind::Loops(1),
        peers: &[Kind::Loops(1), Kind::Loops(2), Kind::Loops(4), Kind::Loops(8)],
        ..SMALL
    },
];
