//! `[server]`, `[limits]` and `[log]`.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    AccessFormat, Limits, ListenConfig, ListenOptions, LogConfig, LogFormat, ServerConfig,
    error::Span,
    hosts::host_pattern,
    reader::Table,
    repeats::Repeats,
    values::{Fault, Value, boolean, choice, duration, integer, size, string},
};

/// The maximum number of loops.
const THREADS_MAX: usize = 1024;

/// The maximum number of open connections.
const CONNECTIONS_MAX: usize = 10_000_000;

/// The range of `head_bytes`.
const HEAD_BYTES: RangeInclusive<u64> = 1 << 10..=1 << 20;

/// The maximum of `body_bytes`.
const BODY_BYTES_MAX: u64 = 1 << 40;

/// The longest duration of any key: a week. Deadlines are sums of durations and must not overflow.
pub(crate) const TIME_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// The range of durations that may be zero.
const WAIT: RangeInclusive<Duration> = Duration::ZERO..=TIME_MAX;

/// The range of durations that must leave a peer a chance.
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=TIME_MAX;

/// Reads `[server]`. The default app is returned separately with its position, because the apps are
/// not known yet.
pub(super) fn server(table: &mut Table<'_, '_>) -> (ServerConfig, Option<(String, Span)>) {
    let default = ServerConfig::default();
    let listen = listen(table).unwrap_or(default.listen);
    let default_app =
        table.optional("default_app", |value| Ok((host_pattern(string(value)?)?, value.span())));
    let user = table.optional("user", |value| string(value).map(str::to_owned));
    let group = table.optional("group", |value| string(value).map(str::to_owned));
    if let (None, Some(span)) = (table.key_span("user"), table.key_span("group")) {
        let fault = Fault::new("is for `server.user` only").fragile();
        table.report(fault.help("add `user`").into_finding(&table.path_of("group"), span));
    }
    let server = ServerConfig {
        listen,
        user,
        group,
        threads: table.or("threads", default.threads, |value| integer(value, 0..=THREADS_MAX)),
        default_app: None,
        drain_timeout: table.or("drain_timeout", default.drain_timeout, wait),
        idle_grace: table.or("idle_grace", default.idle_grace, wait),
        shutdown_delay: table.or("shutdown_delay", default.shutdown_delay, wait),
    };
    (server, default_app)
}

/// Reads `[limits]`.
pub(super) fn limits(table: &mut Table<'_, '_>) -> Limits {
    let default = Limits::default();
    Limits {
        connections: table
            .or("connections", default.connections, |value| integer(value, 1..=CONNECTIONS_MAX)),
        connections_per_ip: table
            .optional("connections_per_ip", |value| integer(value, 1..=CONNECTIONS_MAX)),
        head_bytes: table.or("head_bytes", default.head_bytes, |value| {
            let bytes = size(value, HEAD_BYTES)?;
            Ok(usize::try_from(bytes).expect("the bound fits"))
        }),
        headers: table
            .or("headers", default.headers, |value| integer(value, 1..=Limits::HEADERS_MAX)),
        body_bytes: table
            .or("body_bytes", default.body_bytes, |value| size(value, 0..=BODY_BYTES_MAX)),
        head_timeout: table.or("head_timeout", default.head_timeout, timeout),
        body_timeout: table.or("body_timeout", default.body_timeout, timeout),
        write_timeout: table.or("write_timeout", default.write_timeout, timeout),
        keepalive_timeout: table.or("keepalive_timeout", default.keepalive_timeout, timeout),
        linger_timeout: table.or("linger_timeout", default.linger_timeout, timeout),
    }
}

/// Reads `[log]`.
pub(super) fn log(table: &mut Table<'_, '_>, base: &Path) -> LogConfig {
    use log::LevelFilter;
    let levels = [
        ("off", LevelFilter::Off),
        ("error", LevelFilter::Error),
        ("warn", LevelFilter::Warn),
        ("info", LevelFilter::Info),
        ("debug", LevelFilter::Debug),
        ("trace", LevelFilter::Trace),
    ];
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let access_formats = [
        ("off", AccessFormat::Off),
        ("combined", AccessFormat::Combined),
        ("json", AccessFormat::Json),
    ];
    let default = LogConfig::default();
    LogConfig {
        level: table.or("level", default.level, |value| choice(value, &levels)),
        format: table.or("format", default.format, |value| choice(value, &formats)),
        path: table.optional("path", |value| absolute_path(string(value)?, base)),
        access: table.or("access", default.access, |value| choice(value, &access_formats)),
        access_path: table.optional("access_path", |value| absolute_path(string(value)?, base)),
    }
}

/// A duration that may be zero.
pub(super) fn wait(value: Value<'_>) -> Result<Duration, Fault> {
    duration(value, WAIT)
}

/// A path, made absolute from `base`.
pub(super) fn absolute_path(text: &str, base: &Path) -> Result<PathBuf, Fault> {
    if text.is_empty() || text.contains('\0') {
        return Err(Fault::new("is not a path").help("write a path, relative to the config file"));
    }
    Ok(base.join(text))
}

/// A duration that must leave a peer a chance.
pub(super) fn timeout(value: Value<'_>) -> Result<Duration, Fault> {
    duration(value, TIMEOUT)
}

fn listen(table: &mut Table<'_, '_>) -> Option<Vec<ListenConfig>> {
    let of_text = |text| address(text).map(ListenConfig::from);
    let of_table = |table: &mut Table<'_, '_>| {
        let address = table.required("address", |value| address(string(value)?));
        let proxy_protocol = table.or("proxy_protocol", false, boolean);
        let tls = table.or("tls", false, boolean);
        Some(ListenConfig { address: address?, options: ListenOptions { proxy_protocol, tls } })
    };
    let found = table.strings_or_tables("listen", 1..=usize::MAX, of_text, of_table, of_port)?;
    let mut seen = Repeats::default();
    for (ListenConfig { address, .. }, span) in &found {
        // An IPv4-mapped IPv6 address takes the same port as the IPv4 address.
        let canonical = SocketAddr::new(address.ip().to_canonical(), address.port());
        let repeat = seen.add(&canonical.to_string(), span.clone());
        repeat.into_iter().for_each(|finding| table.report(finding));
    }
    Some(found.into_iter().map(|(listen, _)| listen).collect())
}

fn address(text: &str) -> Result<SocketAddr, Fault> {
    text.parse().map_err(|_| no_address(text))
}

/// Suggestions for a port without an address.
fn of_port(port: u16) -> String {
    format!(
        "write \"0.0.0.0:{port}\" for all IPv4 addresses, \"[::]:{port}\" for all IPv6 addresses, \
         or both; \"127.0.0.1:{port}\" for this machine only"
    )
}

/// Suggests what was probably meant.
fn no_address(text: &str) -> Fault {
    let fault = Fault::new("is not an IP address with a port");
    if text.split_whitespace().any(|word| ["ssl", "tls", "http2", "quic"].contains(&word)) {
        return fault.help("write { address = \"0.0.0.0:443\", tls = true }");
    }
    if text.starts_with("unix:") {
        return fault.help("a socket file for clients is not in this version: listen on 127.0.0.1");
    }
    let text = text.split_once("://").map_or(text, |(_, rest)| rest.trim_end_matches('/'));
    let write = |address: SocketAddr| format!("write \"{address}\"");
    if let Ok(address) = text.parse::<SocketAddr>() {
        return fault.help(write(address));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse::<u16>().ok()),
        None => ("", text.parse::<u16>().ok()),
    };
    let unbracketed = text.trim_start_matches('[').trim_end_matches(']');
    match (host, port, host.parse::<Ipv6Addr>(), unbracketed.parse::<IpAddr>()) {
        ("" | "*", Some(port), ..) => fault.help(of_port(port)),
        ("localhost", Some(port), ..) => fault.help(format!("write \"127.0.0.1:{port}\"")),
        // `::1:80` is a valid address, but hardly meant as one.
        (_, Some(port), Ok(ip), _) if !text.starts_with('[') && port >= 10 => {
            fault.help(write(SocketAddr::new(ip.into(), port)))
        }
        (_, _, _, Ok(ip)) => fault.help(write(SocketAddr::new(ip, 8080))),
        _ => fault.help(r#"write an address such as "127.0.0.1:8080" or "[::1]:8080""#),
    }
}
