//! `proxy = { … }`: where and how requests are forwarded.
//!
//! Owns every bound of this kind; [`ProxyConfig::new`] has the defaults. Knows the syntax of an
//! upstream, never whether it exists.

use std::{ops::RangeInclusive, path::Path, time::Duration};

use toml::de::DeValue;

use super::{
    Cidr,
    admin::socket_path,
    proxy_settings::{
        Balance, DrainTunnels, HashBy, HealthConfig, HostPolicy, ProxyConfig, ReadyConfig,
        UpstreamAddress, UpstreamConfig,
    },
    reader::{ANY_COUNT, Meant, Table, quoted},
    repeats::Repeats,
    sections::{TIME_MAX, timeout, wait},
    upstream_tls,
    values::{Fault, Value, boolean, choice, duration, integer, string},
};
use crate::http::{Host, is_field_name};

const UPSTREAMS_MAX: usize = 256;
const WEIGHT: RangeInclusive<u32> = 1..=256;
const IDLE_CONNECTIONS_MAX: usize = 10_000;
const RETRIES_MAX: u32 = 10;
const EJECT_AFTER_MAX: u32 = 1000;
const RESOLVE_EVERY_MIN: Duration = Duration::from_secs(1);
const HEALTH_INTERVAL_MIN: Duration = Duration::from_millis(100);
const READY_INTERVAL_MIN: Duration = Duration::from_millis(50);
const HEALTH_STATUS: RangeInclusive<u16> = 200..=599;
const HEALTH_RUN: RangeInclusive<u32> = 1..=100;

/// When `drain_tunnels = "cut"` cuts, unless `tunnel_cut_after` sets another time.
const TUNNEL_CUT_AFTER: Duration = Duration::from_secs(10);

impl UpstreamAddress {
    /// Reads an address outside a config: the path of a socket must be absolute.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let is_relative = text.strip_prefix("unix:").is_some_and(|path| !path.starts_with('/'));
        let address = (!is_relative).then(|| upstream_address(text, Path::new("/")));
        address?.ok()
    }
}

/// Reads `proxy`.
pub(super) fn read(table: &mut Table<'_, '_>, base: &Path) -> Option<ProxyConfig> {
    let upstreams = upstreams(table, base);
    let default = ProxyConfig::new(upstreams.unwrap_or_default());
    let trusted = table.list("trusted_proxies", ANY_COUNT, Cidr::parse).unwrap_or_default();
    let proxy = ProxyConfig {
        balance: balance(table, default.balance),
        host: table.or("host", default.host, |value| host_policy(string(value)?)),
        connect_timeout: table.or("connect_timeout", default.connect_timeout, timeout),
        answer_timeout: table.or("answer_timeout", default.answer_timeout, timeout),
        interim_timeout: table.or("interim_timeout", default.interim_timeout, timeout),
        slow_streams: table.or("slow_streams", default.slow_streams, boolean),
        idle_connections: table.or("idle_connections", default.idle_connections, |value| {
            integer(value, 0..=IDLE_CONNECTIONS_MAX)
        }),
        idle_timeout: table.or("idle_timeout", default.idle_timeout, timeout),
        retries: table.or("retries", default.retries, |value| integer(value, 0..=RETRIES_MAX)),
        eject_after: table
            .or("eject_after", default.eject_after, |value| integer(value, 0..=EJECT_AFTER_MAX)),
        eject_for: table.or("eject_for", default.eject_for, timeout),
        slow_start: table.or("slow_start", default.slow_start, wait),
        resolve_every: table.or("resolve_every", default.resolve_every, |value| {
            duration(value, RESOLVE_EVERY_MIN..=TIME_MAX)
        }),
        trusted_proxies: trusted.into_iter().map(|(network, _)| network).collect(),
        tunnel_idle_timeout: table.or("tunnel_idle_timeout", default.tunnel_idle_timeout, timeout),
        drain_tunnels: drain_tunnels(table, default.drain_tunnels),
        health: table.table_meant("health", meant_health, health).flatten(),
        ready: table.table_meant("ready", meant_ready, ready).unwrap_or_default(),
        tls: upstream_tls::read(table, base),
        upstreams: default.upstreams,
    };
    if !proxy.has_tls() && !proxy.upstreams.is_empty() {
        upstream_tls::report_unused(table);
    }
    (!proxy.upstreams.is_empty()).then_some(proxy)
}

fn upstreams(table: &mut Table<'_, '_>, base: &Path) -> Option<Vec<UpstreamConfig>> {
    let of_url = |text| Ok(UpstreamConfig { address: upstream_address(text, base)?, weight: 1 });
    let of_table = |table: &mut Table<'_, '_>| {
        let address = table.required("url", |value| upstream_address(string(value)?, base));
        let weight = table.or("weight", 1, |value| integer(value, WEIGHT));
        Some(UpstreamConfig { address: address?, weight })
    };
    table.require("upstreams");
    let found =
        table.strings_or_tables("upstreams", 1..=UPSTREAMS_MAX, of_url, of_table, |port| {
            format!("write [\"http://127.0.0.1:{port}\"]")
        })?;
    let mut seen = Repeats::default();
    for (upstream, span) in &found {
        let repeat = seen.add(&upstream.address.to_string(), span.clone());
        repeat.into_iter().for_each(|finding| table.report(finding));
    }
    Some(found.into_iter().map(|(upstream, _)| upstream).collect())
}

fn upstream_address(text: &str, base: &Path) -> Result<UpstreamAddress, Fault> {
    const HELP: &str = r#"write "http://127.0.0.1:9000" or "unix:/run/app.sock""#;
    if let Some(path) = text.strip_prefix("unix:") {
        let path = socket_path(path, base)?;
        return Ok(UpstreamAddress::Unix(path));
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        let fault = Fault::new("is not an upstream");
        let is_authority = text.contains(':') && Host::parse(text.as_bytes()).is_some();
        return Err(match text {
            text if is_authority => fault.help(format!("write \"http://{text}\"")),
            text if text.starts_with('/') && text.ends_with(".sock") => {
                fault.help(format!("write \"unix:{}\"", text.escape_debug()))
            }
            _ => fault.help(HELP),
        });
    };
    let tls = scheme.eq_ignore_ascii_case("https");
    if !tls && !scheme.eq_ignore_ascii_case("http") {
        return Err(Fault::new("must begin with http://, https:// or unix:").help(HELP));
    }
    let scheme = if tls { "https" } else { "http" };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#']) {
        let fault = Fault::new("must not have a path: requests keep their own path");
        let end = authority.find(['/', '?', '#']).unwrap_or_default();
        let url = format!("{scheme}://{}", authority[..end].escape_debug());
        return Err(fault.help(format!("write \"{url}\"")));
    }
    let host = Host::parse(authority.as_bytes());
    let host = host.ok_or_else(|| Fault::new("has no valid host").help(HELP))?;
    let port = host.port().unwrap_or(if tls { 443 } else { 80 });
    if port == 0 {
        return Err(Fault::new("has port 0, on which no server can listen").help(HELP));
    }
    Ok(UpstreamAddress::Tcp { tls, host: host.name().to_ascii_lowercase(), port })
}

fn balance(table: &mut Table<'_, '_>, default: Balance) -> Balance {
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Way {
        RoundRobin,
        LeastActive,
        Hash,
    }
    let ways =
        [("round_robin", Way::RoundRobin), ("least_active", Way::LeastActive), ("hash", Way::Hash)];
    let way = table.optional("balance", |value| choice(value, &ways));
    let hash_by = table.optional("hash_by", |value| hash_by(string(value)?));
    let unused = way != Some(Way::Hash) && (way.is_some() || table.key_span("balance").is_none());
    if let (true, Some(span)) = (unused, table.key_span("hash_by")) {
        let fault = Fault::new("is for `balance = \"hash\"` only").fragile();
        table.report(
            fault
                .help("remove it, or set `balance = \"hash\"`")
                .into_finding(&table.path_of("hash_by"), span),
        );
    }
    match way {
        None => default,
        Some(Way::RoundRobin) => Balance::RoundRobin,
        Some(Way::LeastActive) => Balance::LeastActive,
        Some(Way::Hash) => Balance::Hash(hash_by.unwrap_or(HashBy::Client)),
    }
}

fn hash_by(text: &str) -> Result<HashBy, Fault> {
    match text.split_once(':') {
        None if text == "client" => return Ok(HashBy::Client),
        Some(("header", name)) if is_field_name(name) => {
            return Ok(HashBy::Header(name.to_owned()));
        }
        // A cookie name is a token, like a field name (RFC 6265 §4.1.1).
        Some(("cookie", name)) if is_field_name(name) => {
            return Ok(HashBy::Cookie(name.to_owned()));
        }
        _ => {}
    }
    let fault = Fault::new("must be \"client\", \"header:NAME\" or \"cookie:NAME\"");
    Err(fault.help("for example \"header:X-User\" or \"cookie:session\""))
}

fn host_policy(text: &str) -> Result<HostPolicy, Fault> {
    match text {
        "keep" => return Ok(HostPolicy::Keep),
        "upstream" => return Ok(HostPolicy::Upstream),
        _ => {}
    }
    host_field(text, "must be \"keep\", \"upstream\" or a host name").map(HostPolicy::Fixed)
}

/// A valid value of the Host field, with or without a port.
fn host_field(text: &str, wrong: &str) -> Result<String, Fault> {
    let host = Host::parse(text.as_bytes()).ok_or_else(|| {
        let help = "write a name such as \"app.internal\" or \"app.internal:8080\"";
        Fault::new(wrong).help(help)
    })?;
    let name = host.name();
    Ok(match host.port() {
        Some(port) => format!("{name}:{port}"),
        None => name.to_owned(),
    })
}

fn drain_tunnels(table: &mut Table<'_, '_>, default: DrainTunnels) -> DrainTunnels {
    let cuts =
        table.optional("drain_tunnels", |value| choice(value, &[("keep", false), ("cut", true)]));
    let after = table.optional("tunnel_cut_after", wait);
    let unused =
        cuts != Some(true) && (cuts.is_some() || table.key_span("drain_tunnels").is_none());
    if let (true, Some(span)) = (unused, table.key_span("tunnel_cut_after")) {
        let fault = Fault::new("is for `drain_tunnels = \"cut\"` only").fragile();
        let fault = fault.help("remove it, or set `drain_tunnels = \"cut\"`");
        table.report(fault.into_finding(&table.path_of("tunnel_cut_after"), span));
    }
    match cuts {
        None => default,
        Some(false) => DrainTunnels::Keep,
        Some(true) => DrainTunnels::CutAfter(after.unwrap_or(TUNNEL_CUT_AFTER)),
    }
}

/// `health = "/up"`
fn meant_health(value: &DeValue<'_>) -> Option<Meant> {
    let path = value.as_str().filter(|path| path.starts_with('/'));
    Some(vec![("path", quoted(path.unwrap_or("/healthz")))])
}

fn health(table: &mut Table<'_, '_>) -> Option<HealthConfig> {
    let path = table.required("path", |value| health_path(string(value)?));
    let default = HealthConfig::new(path.clone().unwrap_or_default());
    let health = HealthConfig {
        host: table.optional("host", |value| health_host(string(value)?)),
        interval: table.or("interval", default.interval, |value| {
            duration(value, HEALTH_INTERVAL_MIN..=TIME_MAX)
        }),
        timeout: table.or("timeout", default.timeout, timeout),
        status: table.or("status", default.status, health_status),
        rise: table.or("rise", default.rise, |value| integer(value, HEALTH_RUN)),
        fall: table.or("fall", default.fall, |value| integer(value, HEALTH_RUN)),
        path: default.path,
    };
    path.map(|_| health)
}

/// `ready = "/up"`
fn meant_ready(value: &DeValue<'_>) -> Option<Meant> {
    let path = value.as_str().filter(|path| path.starts_with('/'));
    Some(vec![("path", quoted(path.unwrap_or("/healthz")))])
}

fn ready(table: &mut Table<'_, '_>) -> ReadyConfig {
    let default = ReadyConfig::default();
    ReadyConfig {
        path: table.optional("path", |value| health_path(string(value)?)),
        status: table.or("status", default.status, health_status),
        timeout: table.or("timeout", default.timeout, timeout),
        interval: table.or("interval", default.interval, |value| {
            duration(value, READY_INTERVAL_MIN..=TIME_MAX)
        }),
        rise: table.or("rise", default.rise, |value| integer(value, HEALTH_RUN)),
    }
}

fn health_path(text: &str) -> Result<String, Fault> {
    let is_path =
        text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if !is_path {
        return Err(Fault::new("is not a path").help("write a path such as \"/healthz\""));
    }
    Ok(text.to_owned())
}

fn health_host(text: &str) -> Result<String, Fault> {
    // `host` of the proxy accepts these words, but a check has no client, and the upstream's name
    // is the default.
    if matches!(text, "keep" | "upstream") {
        return Err(
            Fault::new("must be a host name").help("remove it to use the upstream's own name")
        );
    }
    host_field(text, "must be a host name")
}

fn health_status(value: Value<'_>) -> Result<RangeInclusive<u16>, Fault> {
    let help = "write [200, 299]";
    let DeValue::Array(ends) = value.get_ref() else {
        let fault = Fault::wrong_type("an array of two statuses", value.get_ref());
        return Err(fault.help(help));
    };
    let [from, to] = &ends[..] else {
        return Err(Fault::new("must have two statuses, the first and the last").help(help));
    };
    let (from, to) = (integer(from, HEALTH_STATUS)?, integer(to, HEALTH_STATUS)?);
    if from > to {
        return Err(Fault::new("ends before it begins").help(format!("write [{to}, {from}]")));
    }
    Ok(from..=to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AppConfig, AppKind, Config, Problem, UpstreamTlsConfig};

    const BASE: &str = "/etc/tidegate";

    fn parse(proxy: &str) -> Result<ProxyConfig, Vec<String>> {
        let text = format!("[apps.a.proxy]\n{proxy}");
        let config = Config::parse(&text, Path::new("config.toml"), Path::new(BASE));
        match config.map(|mut config| config.apps.remove(0).kind) {
            Ok(AppKind::Proxy(proxy)) => Ok(*proxy),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.problems().iter().map(show).collect()),
        }
    }

    fn show(problem: &Problem) -> String {
        let help = problem.help.as_ref().map_or(String::new(), |help| format!(" ({help})"));
        format!("{}:{} {}{help}", problem.line, problem.column, problem.message)
    }

    fn tcp(host: &str, port: u16, weight: u32) -> UpstreamConfig {
        let address = UpstreamAddress::Tcp { tls: false, host: host.to_owned(), port };
        UpstreamConfig { address, weight }
    }

    #[test]
    fn upstreams_alone_are_enough() {
        let proxy = parse(
            "upstreams = ['http://127.0.0.1:9000', 'unix:run/app.sock', 'HTTP://B.example./', \
             { url = 'http://[::1]', weight = 256 }, { url = 'unix:/run/b.sock' }]",
        )
        .unwrap();
        let unix =
            |path: &str| UpstreamConfig { address: UpstreamAddress::Unix(path.into()), weight: 1 };
        let upstreams = vec![
            tcp("127.0.0.1", 9000, 1),
            unix("/etc/tidegate/run/app.sock"),
            tcp("b.example", 80, 1),
            tcp("[::1]", 80, 256),
            unix("/run/b.sock"),
        ];
        assert_eq!(proxy, ProxyConfig::new(upstreams));
        let shown: Vec<_> = proxy.upstreams.iter().map(|it| it.address.to_string()).collect();
        assert_eq!(shown[2..4], ["http://b.example:80", "http://[::1]:80"]);
        let hosts: Vec<_> = proxy.upstreams.iter().map(|it| it.address.authority()).collect();
        assert_eq!(hosts, ["127.0.0.1:9000", "localhost", "b.example", "[::1]", "localhost"]);
    }

    const ALL: &str = r#"
upstreams = ["http://a:1"]
balance = "hash"
hash_by = "cookie:sid"
host = "App.internal:8080"
connect_timeout = "1s"
answer_timeout = "3s"
interim_timeout = "10s"
slow_streams = false
idle_connections = 0
idle_timeout = "4s"
retries = 0
eject_after = 0
eject_for = "5s"
slow_start = "6s"
resolve_every = "7s"
trusted_proxies = ["10.0.0.0/8", "::1"]
tunnel_idle_timeout = "8s"
drain_tunnels = "cut"
tunnel_cut_after = "9s"
[apps.a.proxy.health]
path = "/h?x"
host = "Check.internal:81"
interval = "100ms"
timeout = "1s"
status = [200, 399]
rise = 4
fall = 5
[apps.a.proxy.ready]
path = "/up"
status = [200, 204]
timeout = "9s"
interval = "50ms"
rise = 6
"#;

    fn other_ready() -> ReadyConfig {
        ReadyConfig {
            path: Some("/up".to_owned()),
            status: 200..=204,
            timeout: Duration::from_secs(9),
            interval: Duration::from_millis(50),
            rise: 6,
        }
    }

    #[test]
    fn every_key_is_read_from_toml_and_json() {
        let secs = Duration::from_secs;
        let expected = ProxyConfig {
            upstreams: vec![tcp("a", 1, 1)],
            balance: Balance::Hash(HashBy::Cookie("sid".to_owned())),
            host: HostPolicy::Fixed("App.internal:8080".to_owned()),
            connect_timeout: secs(1),
            answer_timeout: secs(3),
            interim_timeout: secs(10),
            slow_streams: false,
            idle_connections: 0,
            idle_timeout: secs(4),
            retries: 0,
            eject_after: 0,
            eject_for: secs(5),
            slow_start: secs(6),
            resolve_every: secs(7),
            trusted_proxies: vec![
                Cidr::parse("10.0.0.0/8").unwrap(),
                Cidr::parse("::1/128").unwrap(),
            ],
            tunnel_idle_timeout: secs(8),
            drain_tunnels: DrainTunnels::CutAfter(secs(9)),
            health: Some(HealthConfig {
                path: "/h?x".to_owned(),
                host: Some("Check.internal:81".to_owned()),
                interval: Duration::from_millis(100),
                timeout: secs(1),
                status: 200..=399,
                rise: 4,
                fall: 5,
            }),
            ready: other_ready(),
            tls: UpstreamTlsConfig::default(),
        };
        assert_eq!(parse(ALL).unwrap(), expected);
        let json = serde_json::json!({"proxy": {
            "upstreams": ["http://a:1"], "balance": "hash", "hash_by": "cookie:sid",
            "host": "App.internal:8080", "connect_timeout": "1s", "answer_timeout": "3s",
            "interim_timeout": "10s", "slow_streams": false,
            "idle_connections": 0, "idle_timeout": "4s", "retries": 0, "eject_after": 0,
            "eject_for": "5s", "slow_start": "6s", "resolve_every": "7s",
            "trusted_proxies": ["10.0.0.0/8", "::1"], "tunnel_idle_timeout": "8s",
            "drain_tunnels": "cut", "tunnel_cut_after": "9s",
            "health": {
                "path": "/h?x", "host": "Check.internal:81", "interval": "100ms",
                "timeout": "1s", "status": [200, 399], "rise": 4, "fall": 5,
            },
                "ready": {
                    "path": "/up", "status": [200, 204], "timeout": "9s", "interval": "50ms",
                    "rise": 6,
                },
        }});
        let app = AppConfig::from_json("a", &json, Path::new(BASE)).unwrap();
        assert_eq!(app.kind, AppKind::Proxy(Box::new(expected)));
        let json = serde_json::json!({"proxy": {"upstreams": [{"url": "unix:x", "weight": 2}]}});
        let app = AppConfig::from_json("a", &json, Path::new(BASE)).unwrap();
        let AppKind::Proxy(proxy) = app.kind else { panic!("{app:?}") };
        assert_eq!(proxy.upstreams[0].address.to_string(), "unix:/etc/tidegate/x");
        assert_eq!(proxy.upstreams[0].weight, 2);
        let json = serde_json::json!({"proxy": {"upstreams": [{"url": "http://a", "x": 1}, 2]}});
        let found = AppConfig::from_json("a", &json, Path::new(BASE)).unwrap_err();
        let found: Vec<_> = found.into_iter().map(|problem| problem.message).collect();
        let expected = [
            "unknown key `proxy.upstreams[0].x`",
            "`proxy.upstreams[1]` must be a string or a table, not an integer",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn choices_have_their_defaults() {
        for (lines, balance, host, tunnels) in [
            ("balance = 'round_robin'", Balance::RoundRobin, HostPolicy::Keep, DrainTunnels::Keep),
            (
                "balance = 'least_active'\nhost = 'upstream'\ndrain_tunnels = 'keep'",
                Balance::LeastActive,
                HostPolicy::Upstream,
                DrainTunnels::Keep,
            ),
            (
                "balance = 'hash'\nhost = 'keep'\ndrain_tunnels = 'cut'",
                Balance::Hash(HashBy::Client),
                HostPolicy::Keep,
                DrainTunnels::CutAfter(Duration::from_secs(10)),
            ),
            (
                "balance = 'hash'\nhash_by = 'header:X-User'\nhost = '[::1]:8'",
                Balance::Hash(HashBy::Header("X-User".to_owned())),
                HostPolicy::Fixed("[::1]:8".to_owned()),
                DrainTunnels::Keep,
            ),
        ] {
            let proxy = parse(&format!("upstreams = ['http://a']\n{lines}")).unwrap();
            assert_eq!((proxy.balance, proxy.host, proxy.drain_tunnels), (balance, host, tunnels));
        }
        let proxy = parse("upstreams = ['http://a']\nhealth = { path = '/' }").unwrap();
        assert_eq!(proxy.health, Some(HealthConfig::new("/".to_owned())));
    }

    #[test]
    fn mistakes_in_upstreams_have_a_place_and_a_suggestion() {
        let long = format!("['unix:{}']", "x".repeat(100));
        for (value, place, words) in [
            ("[]", "2:13", "`apps.a.proxy.upstreams` must have at least 1 entry"),
            ("'http://a'", "2:13", "not a string (write [\"http://a\"])"),
            ("[1]", "2:14", "`apps.a.proxy.upstreams[0]` must be a string or a table"),
            ("['https://a', 'HTTPS://A:443/']", "2:27", "`https://a:443` is repeated"),
            ("['https://a/b']", "2:14", "requests keep their own path (write \"https://a\")"),
            ("['ftp://a']", "2:14", "must begin with http://, https:// or unix:"),
            ("['127.0.0.1:9000']", "2:14", "(write \"http://127.0.0.1:9000\")"),
            ("['/run/app.sock']", "2:14", "(write \"unix:/run/app.sock\")"),
            ("['a']", "2:14", "is not an upstream (write \"http://127.0.0.1:9000\" or"),
            ("['unix:']", "2:14", "`apps.a.proxy.upstreams[0]` is not a path"),
            (&long, "2:14", "is too long for a socket"),
            ("['http://']", "2:14", "has no valid host"),
            ("['http://u@a']", "2:14", "has no valid host"),
            ("['http://a:99999']", "2:14", "has no valid host"),
            ("['http://a:0']", "2:14", "has port 0"),
            (
                "['http://a/b']",
                "2:14",
                "must not have a path: requests keep their own path (write \"h",
            ),
            ("['http://a/?q']", "2:14", "(write \"http://a\")"),
            ("['http://a//']", "2:14", "(write \"http://a\")"),
            ("['http://a', 'http://A:80/']", "2:26", "`http://a:80` is repeated"),
            ("[{ url = 'unix:x' }, 'unix:./x', 'unix:x']", "2:46", "is repeated"),
            ("[{ weight = 1 }]", "2:14", "`apps.a.proxy.upstreams[0].url` is missing (add `url`)"),
            ("[{ url = 'http://a', weight = 0 }]", "2:43", "must be an integer from 1 to 256"),
            ("[{ url = 'http://a', weight = 257 }]", "2:43", "must be an integer from 1 to 256"),
            ("[{ url = 'http://a', wieght = 1 }]", "2:34", "(did you mean `weight`?)"),
        ] {
            let found = parse(&format!("upstreams = {value}")).unwrap_err();
            let right = found.len() == 1
                && found[0].split(' ').next() == Some(place)
                && found[0].contains(words);
            assert!(right, "{value}\nexpected {place} {words}\nfound {found:#?}");
        }
        let many = format!("upstreams = [{}]", "'http://a',".repeat(257));
        assert!(parse(&many).unwrap_err()[0].contains("must have at most 256 entries"));
        let found = parse("").unwrap_err();
        assert_eq!(found, ["1:9 `apps.a.proxy.upstreams` is missing (add `upstreams`)"]);
    }

    #[test]
    fn other_mistakes_have_a_place_and_a_suggestion() {
        for (line, place, words) in [
            ("balance = 'random'", "3:11", "one of \"round_robin\", \"least_active\", \"hash\""),
            ("hash_by = 'client'", "3:1", "is for `balance = \"hash\"` only (remove it, or"),
            ("balance = 'hash'\nhash_by = 'header:'", "4:11", "must be \"client\", \"header:N"),
            ("balance = 'hash'\nhash_by = 'cookie:a b'", "4:11", "(for example \"header:X-Us"),
            ("balance = 'hash'\nhash_by = 'ip'", "4:11", "must be \"client\", \"header:NAME\""),
            ("host = 'a b'", "3:8", "must be \"keep\", \"upstream\" or a host name"),
            ("host = \"a\\r\\nX: y\"", "3:8", "must be \"keep\", \"upstream\" or a host name"),
            ("connect_timeout = '0s'", "3:19", "must be from 1ms to 168h"),
            ("answer_timeout = 60", "3:18", "(write \"60s\")"),
            ("idle_connections = 10001", "3:20", "must be an integer from 0 to 10000"),
            ("idle_timeout = '0s'", "3:16", "must be from 1ms to 168h"),
            ("retries = 11", "3:11", "must be an integer from 0 to 10"),
            ("eject_after = -1", "3:15", "must be an integer from 0 to 1000"),
            ("eject_for = '0s'", "3:13", "must be from 1ms to 168h"),
            ("resolve_every = '999ms'", "3:17", "must be from 1s to 168h"),
            ("trusted_proxies = '10.0.0.0/8'", "3:19", "(write [\"10.0.0.0/8\"])"),
            ("trusted_proxies = ['10.0.0.1/8']", "3:20", "(write \"10.0.0.0/8\")"),
            ("tunnel_cut_after = '1s'", "3:1", "is for `drain_tunnels = \"cut\"` only"),
            ("drain_tunnels = 'drop'", "3:17", "must be one of \"keep\", \"cut\""),
            ("health = {}", "3:1", "`apps.a.proxy.health.path` is missing (add `path`)"),
            (
                "health = { path = 'x' }",
                "3:19",
                "is not a path (write a path such as \"/healthz\")",
            ),
            ("health = { path = '/a b' }", "3:19", "is not a path"),
            ("health.path = '/'\nhealth.host = 'a b'", "4:15", "be a host name (write a name such"),
            ("health.path = '/'\nhealth.host = 'keep'", "4:15", "be a host name (remove it to use"),
            ("health.path = '/'\nhealth.host = 1", "4:15", "must be a string, not an integer"),
            ("health.path = '/'\nhealth.interval = '99ms'", "4:19", "must be from 100ms to"),
            ("health.path = '/'\nhealth.status = 200", "4:17", "an array of two statuses, not an"),
            ("health.path = '/'\nhealth.status = [200]", "4:17", "(write [200, 299])"),
            ("health.path = '/'\nhealth.status = [299, 200]", "4:17", "(write [200, 299])"),
            ("health.path = '/'\nhealth.status = [100, 200]", "4:17", "from 200 to 599"),
            ("health.path = '/'\nhealth.rise = 0", "4:15", "must be an integer from 1 to 100"),
            ("ready = '/up'", "3:9", "(write ready = { path = \"/up\" })"),
            ("ready = { path = 'up' }", "3:18", "is not a path"),
            ("ready.interval = '49ms'", "3:18", "must be from 50ms to"),
            ("upstreem = 1", "3:1", "(did you mean `upstreams`?)"),
        ] {
            let found = parse(&format!("upstreams = ['http://a']\n{line}")).unwrap_err();
            let right = found.len() == 1
                && found[0].split(' ').next() == Some(place)
                && found[0].contains(words);
            assert!(right, "{line}\nexpected {place} {words}\nfound {found:#?}");
        }
    }

    #[test]
    fn all_mistakes_are_found_in_one_pass() {
        let found = parse(
            "upstreams = ['ftp://a', 1, { url = '' }]\nbalance = 'x'\nhost = ''\nretries = 99\n\
             trusted_proxies = ['x']\nhealth = { path = '', rise = 0 }\nx = 1",
        );
        let places: Vec<_> = found
            .unwrap_err()
            .iter()
            .map(|line| line.split(' ').next().unwrap().to_owned())
            .collect();
        let expected =
            ["2:14", "2:25", "2:36", "3:11", "4:8", "5:11", "6:20", "7:19", "7:30", "8:1"];
        assert_eq!(places, expected);
    }
}
