//! What a reload changes: settings by key, apps by host.
//!
//! Pure: compares, and knows which settings a running server can apply. Never applies anything.
//! Every setting is listed here, and the compiler reports a missing one.

use std::collections::{HashMap, HashSet};

use super::{AdminConfig, AppConfig, Config, Limits, LogConfig, ServerConfig, TlsConfig};

/// The dotted keys of the settings that differ, in the order of the sections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ChangedSettings {
    /// Settings that a running server can apply.
    pub(crate) live: Vec<&'static str>,
    /// Settings that need a new process.
    pub(crate) needs_restart: Vec<&'static str>,
}

/// What happens to each app.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ChangedApps<'a> {
    /// New hosts, in the order of the new list.
    pub(crate) added: Vec<&'a AppConfig>,
    /// Existing hosts with a different app, in the order of the new list.
    pub(crate) changed: Vec<&'a AppConfig>,
    /// Hosts with the same app, in the order of the new list.
    pub(crate) unchanged: Vec<&'a str>,
    /// Hosts that no longer exist, in the order of the current list.
    pub(crate) removed: Vec<&'a str>,
}

/// Pushes the key of each field that differs. Omitting a field is a compile error.
macro_rules! compare {
    ($section:literal, $old:expr, $new:expr, $type:ident:
        $($field:ident => $keys:expr),+ $(,)?
    ) => {{
        let ($type { $($field),+ }, new) = ($old, $new);
        $(if *$field != new.$field {
            $keys.push(concat!($section, ".", stringify!($field)));
        })+
    }};
}

/// Compares everything except the apps.
pub(crate) fn changed_settings(old: &Config, new: &Config) -> ChangedSettings {
    let mut changed = ChangedSettings::default();
    let ChangedSettings { live, needs_restart } = &mut changed;
    let Config { server, limits, log, admin, tls, apps: _ } = old;
    compare!("server", server, &new.server, ServerConfig:
        listen => live,
        user => needs_restart,
        group => needs_restart,
        threads => needs_restart,
        default_app => live,
        drain_timeout => live,
        idle_grace => live,
        shutdown_delay => live,
    );
    compare!("limits", limits, &new.limits, Limits:
        connections => live,
        connections_per_ip => live,
        head_bytes => live,
        headers => live,
        body_bytes => live,
        head_timeout => live,
        body_timeout => live,
        write_timeout => live,
        keepalive_timeout => live,
        linger_timeout => live,
    );
    compare!("log", log, &new.log, LogConfig:
        level => live,
        format => live,
        path => live,
        access => live,
        access_path => live,
    );
    compare!("admin", admin, &new.admin, AdminConfig:
        enabled => needs_restart,
        listen => needs_restart,
        token => needs_restart,
        token_file => needs_restart,
        mode => needs_restart,
        group => needs_restart,
        health_listen => needs_restart,
    );
    compare!("tls", tls, &new.tls, TlsConfig:
        min_version => live,
        certificates => live,
    );
    changed
}

/// Compares the apps. `current` lists each host once, with the config its app was made from. `None`
/// counts as changed: the app was made in another way or must be made again.
pub(crate) fn changed_apps<'a>(
    current: &[(&'a str, Option<&AppConfig>)],
    new: &'a [AppConfig],
) -> ChangedApps<'a> {
    let by_host: HashMap<&str, Option<&AppConfig>> = current.iter().copied().collect();
    let mut changed = ChangedApps::default();
    for app in new {
        match by_host.get(app.host.as_str()) {
            None => changed.added.push(app),
            Some(Some(old)) if *old == app => changed.unchanged.push(&app.host),
            Some(_) => changed.changed.push(app),
        }
    }
    let kept: HashSet<&str> = new.iter().map(|app| app.host.as_str()).collect();
    let hosts = current.iter().map(|(host, _)| *host);
    changed.removed = hosts.filter(|host| !kept.contains(host)).collect();
    changed
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(text, Path::new("config.toml"), Path::new("/etc/tidegate"))
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// A setting for every key, none of them the default.
    const ALL: [(&str, &str, &str); 27] = [
        ("server", "listen", "['127.0.0.1:1']"),
        ("server", "user", "'a'"),
        ("server", "group", "'a'"),
        ("server", "threads", "1"),
        ("server", "default_app", "'a'"),
        ("server", "drain_timeout", "'9s'"),
        ("server", "idle_grace", "'9s'"),
        ("server", "shutdown_delay", "'9s'"),
        ("limits", "connections", "1"),
        ("limits", "connections_per_ip", "1"),
        ("limits", "head_bytes", "'1KiB'"),
        ("limits", "headers", "1"),
        ("limits", "body_bytes", "'1KiB'"),
        ("limits", "head_timeout", "'9s'"),
        ("limits", "body_timeout", "'9s'"),
        ("limits", "write_timeout", "'9s'"),
        ("limits", "keepalive_timeout", "'9s'"),
        ("limits", "linger_timeout", "'9s'"),
        ("log", "level", "'off'"),
        ("log", "format", "'json'"),
        ("log", "path", "'a'"),
        ("log", "access", "'json'"),
        ("log", "access_path", "'a'"),
        ("admin", "enabled", "false"),
        ("admin", "listen", "'[::1]:1'"),
        ("admin", "token", "'0123456789abcdef'"),
        ("admin", "health_listen", "'[::1]:2'"),
    ];

    const APP: &str = "[apps.a]\nrespond = {}\n";

    #[test]
    fn exactly_the_settings_that_differ_are_named() {
        let old = config(APP);
        let mut all = String::new();
        for (section, key, value) in ALL {
            let line = format!("{section}.{key} = {value}\n");
            all.push_str(&line);
            // A TCP address needs a token, and a group needs a user.
            if ["listen", "token"].contains(&key) && section == "admin" || key == "group" {
                continue;
            }
            let ChangedSettings { live, needs_restart } =
                changed_settings(&old, &config(&(line + APP)));
            let name = format!("{section}.{key}");
            let restarts = section == "admin" || ["user", "threads"].contains(&key);
            let (named, other) =
                if restarts { (needs_restart, live) } else { (live, needs_restart) };
            assert_eq!((named, other), (vec![name.as_str()], vec![]));
        }
        let changed = changed_settings(&old, &config(&(all + APP)));
        let named: HashSet<&str> = changed.live.into_iter().chain(changed.needs_restart).collect();
        let names = ALL.map(|(section, key, _)| format!("{section}.{key}"));
        assert_eq!(named, names.iter().map(String::as_str).collect());
    }

    #[test]
    fn the_same_file_changes_nothing() {
        assert_eq!(changed_settings(&config(APP), &config(APP)), ChangedSettings::default());
    }

    #[test]
    fn apps_are_compared_by_host_in_any_order() {
        let old = config(
            "[apps.gone]\nrespond = {}\n[apps.same]\nrespond = {}\n[apps.other]\nrespond = {}\n\
             [apps.alias]\nrespond = {}\n[apps.made]\nrespond = {}\n[apps.past]\nrespond = {}\n",
        );
        let new = config(
            "[apps.new]\nrespond = {}\n[apps.made]\nrespond = {}\n[apps.same]\nrespond = {}\n\
             [apps.alias]\naliases = ['past']\nrespond = {}\n[apps.other]\nfiles.root = '.'\n",
        );
        let current: Vec<(&str, Option<&AppConfig>)> = old
            .apps
            .iter()
            .map(|app| (app.host.as_str(), Some(app).filter(|app| app.host != "made")))
            .collect();
        let changed = changed_apps(&current, &new.apps);
        let hosts =
            |apps: &[&AppConfig]| apps.iter().map(|app| app.host.clone()).collect::<Vec<_>>();
        assert_eq!(hosts(&changed.added), ["new"]);
        assert_eq!(hosts(&changed.changed), ["made", "alias", "other"]);
        assert_eq!(changed.unchanged, ["same"]);
        assert_eq!(changed.removed, ["gone", "past"]);
    }

    #[test]
    fn ten_thousand_apps_are_compared_by_look_up() {
        let text: String = (0..10_000).map(|n| format!("[apps.a{n}]\nrespond = {{}}\n")).collect();
        let (old, new) = (config(&text), config(&text.replace("a99]", "b99]")));
        let current: Vec<_> = old.apps.iter().map(|app| (app.host.as_str(), Some(app))).collect();
        let changed = changed_apps(&current, &new.apps);
        assert_eq!(changed.unchanged.len(), 9_999);
        assert_eq!((changed.added.len(), changed.removed), (1, vec!["a99"]));
    }
}
