//! The table of each key, to give advice about a key in the wrong table or under another server's
//! name. A test compares the list with the parser.

/// The tables of a config and their keys. Tables inside an app are named relative to it.
const TABLES: [(&str, &[&str]); 13] = [
    (
        "server",
        &[
            "listen",
            "default_app",
            "user",
            "group",
            "threads",
            "drain_timeout",
            "idle_grace",
            "shutdown_delay",
        ],
    ),
    (
        "limits",
        &[
            "connections",
            "connections_per_ip",
            "head_bytes",
            "headers",
            "body_bytes",
            "head_timeout",
            "body_timeout",
            "write_timeout",
            "keepalive_timeout",
            "linger_timeout",
        ],
    ),
    ("log", &["level", "format", "path", "access", "access_path"]),
    ("admin", &["enabled", "listen", "token", "token_file", "mode", "group", "health_listen"]),
    ("tls", &["min_version", "certificates"]),
    (
        APP,
        &["aliases", "drain_timeout", "rate_limit", "tls", "respond", "redirect", "files", "proxy"],
    ),
    ("respond", &["status", "body", "content_type", "headers", "delay"]),
    ("redirect", &["to", "status"]),
    ("files", &["root", "index", "try", "not_found", "precompressed", "cache_control", "types"]),
    (
        "proxy",
        &[
            "upstreams",
            "ca",
            "server_name",
            "client_cert",
            "client_key",
            "insecure_skip_verify",
            "trusted_proxies",
            "balance",
            "hash_by",
            "host",
            "connect_timeout",
            "answer_timeout",
            "interim_timeout",
            "slow_streams",
            "idle_connections",
            "idle_timeout",
            "retries",
            "eject_after",
            "eject_for",
            "slow_start",
            "resolve_every",
            "tunnel_idle_timeout",
            "drain_tunnels",
            "tunnel_cut_after",
            "health",
            "ready",
        ],
    ),
    ("health", &["path", "host", "interval", "timeout", "status", "rise", "fall"]),
    ("ready", &["path", "status", "timeout", "interval", "rise"]),
    ("rate_limit", &["requests", "per", "burst"]),
];

/// The table of an app.
const APP: &str = "apps.\"HOST\"";

/// The top-level tables.
const TOP: [&str; 5] = ["server", "limits", "log", "admin", "tls"];

/// Names of keys in other servers.
const OTHER_NAMES: [(&str, &str); 20] = [
    ("address", "listen"),
    ("addr", "listen"),
    ("bind", "listen"),
    ("port", "listen"),
    ("ports", "listen"),
    ("workers", "threads"),
    ("worker_processes", "threads"),
    ("server_name", "aliases"),
    ("names", "aliases"),
    ("hosts", "aliases"),
    ("backend", "upstreams"),
    ("backends", "upstreams"),
    ("servers", "upstreams"),
    ("upstream", "upstreams"),
    ("dir", "root"),
    ("directory", "root"),
    ("folder", "root"),
    ("content", "body"),
    ("code", "status"),
    ("keepalive", "keepalive_timeout"),
];

/// Features that this version lacks, with an alternative.
const NOT_YET: [(&str, &str); 4] = [
    ("ssl", "TLS is `tls = true` of an address of `server.listen`, and `tls` of an app"),
    ("acme", "ACME is not in this version: `tls = { cert = \"…\", key = \"…\" }` has files"),
    ("include", "a config is one file in this version"),
    ("compress", "compression on the fly is not in this version: see `files.precompressed`"),
];

/// The keys of an app's table.
pub(super) fn of_app() -> impl Iterator<Item = &'static str> {
    TABLES.into_iter().filter(|(name, _)| *name == APP).flat_map(|(_, keys)| keys.iter().copied())
}

/// Whether an app's table has this key.
pub(super) fn is_of_app(key: &str) -> bool {
    of_app().any(|known| known == key)
}

/// Advice about a key that the table `path` doesn't have, if there is any.
pub(super) fn advice(path: &str, key: &str) -> Option<String> {
    if let Some((_, why)) = NOT_YET.iter().find(|(name, _)| *name == key) {
        return Some((*why).to_owned());
    }
    let own = table_of(path)?;
    let meant = OTHER_NAMES.iter().find(|(name, _)| *name == key).map(|(_, meant)| *meant);
    if let Some(meant) = meant.filter(|meant| has(own, meant)) {
        return Some(format!("did you mean `{meant}`?"));
    }
    let key = meant.unwrap_or(key);
    let owners = TABLES.iter().filter(|(_, keys)| keys.contains(&key)).map(|(name, _)| *name);
    let owners: Vec<&str> = owners.collect();
    // The closest owner first: this table's own subtables, then the top level, then all.
    let inner = owners.iter().filter(|name| has(own, name)).copied();
    let inner: Vec<String> = inner.map(|name| format!("`{name}`")).collect();
    let top: Vec<String> =
        owners.iter().filter(|name| TOP.contains(name)).map(|name| format!("[{name}]")).collect();
    let all: Vec<String> = owners.iter().map(|name| format!("`{name}`")).collect();
    let owners = [inner, top, all].into_iter().find(|names| !names.is_empty())?;
    Some(format!("`{key}` belongs in {}", owners.join(" or ")))
}

/// The listed table for a dotted path; none for an entry of an array.
fn table_of(path: &str) -> Option<&str> {
    let Some(app) = path.strip_prefix("apps.") else {
        let known = TOP.contains(&path) || path.is_empty();
        return known.then_some(path);
    };
    // The host is quoted, or has no dots.
    let inner = match app.strip_prefix('"') {
        Some(quoted) => quoted.split_once('"').map_or("", |(_, inner)| inner),
        None => app.find('.').map_or("", |dot| &app[dot..]),
    };
    match inner.rsplit('.').next().unwrap_or_default() {
        "" => Some(APP),
        name => TABLES.iter().map(|(table, _)| *table).find(|table| *table == name),
    }
}

fn has(table: &str, key: &str) -> bool {
    TABLES.iter().any(|(name, keys)| *name == table && keys.contains(&key))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    use super::*;
    use crate::config::Config;

    #[test]
    fn the_list_has_the_keys_that_the_parser_knows() {
        for (table, keys) in TABLES {
            let header = match table {
                APP => "apps.a".to_owned(),
                table if TOP.contains(&table) => table.to_owned(),
                "health" | "ready" => format!("apps.a.proxy.{table}"),
                kind => format!("apps.a.{kind}"),
            };
            let text = format!("[{header}]\nzzzzzzzzzzzzzzzzzzzz = 1\n");
            let error = Config::parse(&text, Path::new("c"), Path::new("/")).expect_err(&text);
            let help = error.problems().iter().filter_map(|problem| problem.help.as_deref());
            let known = help.filter_map(|help| help.strip_prefix("known keys: ")).next();
            let known: BTreeSet<&str> = known.expect(table).split(", ").collect();
            assert_eq!(known, keys.iter().copied().collect(), "{table}");
        }
    }

    #[test]
    fn a_key_in_the_wrong_table_gets_the_right_table() {
        for (path, key, expected) in [
            ("apps.\"a.test\"", "root", "`root` belongs in `files`"),
            ("apps.\"a.test\"", "upstreams", "`upstreams` belongs in `proxy`"),
            ("apps.\"a.test\"", "listen", "`listen` belongs in [server] or [admin]"),
            ("apps.a", "threads", "`threads` belongs in [server]"),
            ("apps.a", "status", "`status` belongs in `respond` or `redirect`"),
            ("apps.a", "backend", "`upstreams` belongs in `proxy`"),
            ("apps.a.proxy", "path", "`path` belongs in `health` or `ready`"),
            ("apps.a.files", "headers", "`headers` belongs in [limits]"),
            ("apps.a.files", "dir", "did you mean `root`?"),
            ("server", "body_bytes", "`body_bytes` belongs in [limits]"),
            ("server", "port", "did you mean `listen`?"),
            ("server", "upstreams", "`upstreams` belongs in `proxy`"),
            ("apps.files", "root", "`root` belongs in `files`"),
            ("apps.proxy.proxy", "root", "`root` belongs in `files`"),
            ("", "threads", "`threads` belongs in [server]"),
            ("", "port", "`listen` belongs in [server] or [admin]"),
            ("apps.a", "min_version", "`min_version` belongs in `tls`"),
        ] {
            assert_eq!(advice(path, key).as_deref(), Some(expected), "{path} {key}");
        }
        assert_eq!(advice("server", "nothing"), None);
        assert_eq!(advice("server.listen[0]", "proxy"), None);
    }
}
