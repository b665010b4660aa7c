//! A config file, or an app as JSON (what begins with a brace): it is read alike each time, what is
//! wrong has its place in the text, and what is accepted keeps to what is promised of it.

use std::{collections::HashSet, path::Path};

use serde_json::Value;
use tidegate::config::{AppConfig, AppKind, Config, ConfigError, Limits};

const BASE: &str = "/etc/tidegate";

pub fn check(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    if text.starts_with('{') {
        return check_json(text);
    }
    let parsed = parse(text);
    assert_eq!(parsed, parse(text), "read in two ways");
    match parsed {
        Ok(config) => {
            check_config(&config);
            let with_comment = parse(&format!("{text}\n# a comment\n"));
            assert_eq!(with_comment.as_ref(), Ok(&config), "a comment changes it");
        }
        Err(error) => check_error(&error, text),
    }
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("config.toml"), Path::new(BASE))
}

fn check_json(text: &str) {
    let Ok(table) = serde_json::from_str::<Value>(text) else { return };
    let read = || AppConfig::from_json("a.test", &table, Path::new(BASE));
    let app = read();
    assert_eq!(app, read(), "read in two ways");
    match app {
        Ok(app) => {
            assert_eq!(app.host, "a.test");
            check_app(&app);
        }
        Err(problems) => {
            assert!(!problems.is_empty());
            for problem in problems {
                assert_eq!((problem.line, problem.column), (0, 0), "{problem:?}");
                assert!(!problem.message.is_empty());
            }
        }
    }
}

fn check_error(error: &ConfigError, text: &str) {
    let lines: Vec<&str> = text.split('\n').collect();
    let mut before = (1, 1);
    assert!(!error.problems().is_empty());
    for problem in error.problems() {
        let place = (problem.line, problem.column);
        assert!(place >= before, "{place:?} is shown behind {before:?}");
        let line = problem.line.checked_sub(1).and_then(|index| lines.get(index));
        let columns = line.map_or(0, |line| line.chars().count() + 1);
        assert!((1..=columns).contains(&problem.column), "{problem:?} is not in the text");
        assert!(!problem.message.is_empty());
        before = place;
    }
    let shown = error.to_string();
    assert!(!shown.is_empty());
    if let Some(token) = token(text) {
        assert!(!shown.contains(&token), "the token is shown: {shown}");
    }
}

/// The admin token of a text, if it stands there once and as it is.
fn token(text: &str) -> Option<String> {
    let table: toml::Table = toml::from_str(text).ok()?;
    let token = table.get("admin")?.get("token")?.as_str()?;
    let is_secret = token.len() >= 16 && token.bytes().all(|byte| byte.is_ascii_graphic());
    (is_secret && text.matches(token).count() == 1).then(|| token.to_owned())
}

/// What [`Config`] promises, where it is cheap to see.
fn check_config(config: &Config) {
    let server = &config.server;
    let addresses: HashSet<_> = server.listen.iter().map(|listen| listen.address).collect();
    assert!(!addresses.is_empty() && addresses.len() == server.listen.len());
    assert!(server.threads <= 1024);
    let limits = &config.limits;
    assert!((1..=10_000_000).contains(&limits.connections));
    assert!((1 << 10..=1 << 20).contains(&limits.head_bytes));
    assert!((1..=Limits::HEADERS_MAX).contains(&limits.headers));
    assert!(limits.body_bytes <= 1 << 40);
    for path in [&config.log.path, &config.log.access_path].into_iter().flatten() {
        assert!(path.is_absolute(), "{path:?}");
    }
    let mut names = HashSet::new();
    for app in &config.apps {
        for name in [&app.host].into_iter().chain(&app.aliases) {
            assert!(names.insert(name), "{name} is two apps'");
        }
        check_app(app);
    }
    if let Some(host) = &server.default_app {
        assert!(config.apps.iter().any(|app| app.host == *host), "{host} is no app");
    }
}

fn check_app(app: &AppConfig) {
    for name in [&app.host].into_iter().chain(&app.aliases) {
        assert!(!name.is_empty() && !name.ends_with('.'), "{name}");
        let may_stand = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
        let is_literal = name.starts_with('[') && name.ends_with(']');
        let rest = name.strip_prefix("*.").unwrap_or(name);
        assert!(is_literal || rest.bytes().all(may_stand), "{name}");
    }
    match &app.kind {
        AppKind::Respond(respond) => {
            assert!((200..=599).contains(&respond.status));
            assert!(!matches!(respond.status, 204 | 205 | 304) || respond.body.is_empty());
            let in_lines = respond.headers.iter().flat_map(|(name, value)| [name, value]);
            let in_lines = in_lines.chain([&respond.content_type]);
            in_lines.for_each(|text| assert_one_line(text));
        }
        AppKind::Redirect(redirect) => {
            assert!([301, 302, 303, 307, 308].contains(&redirect.status));
            assert!(redirect.to.starts_with("http://") || redirect.to.starts_with("https://"));
            assert!(!redirect.to.contains(['?', '#']) && !redirect.to.ends_with('/'));
            assert_one_line(&redirect.to);
        }
        AppKind::Files(files) => {
            assert!(files.root.is_absolute());
            files.cache_control.iter().for_each(|value| assert_one_line(value));
            files.types.iter().for_each(|(_, value)| assert_one_line(value));
        }
        AppKind::Proxy(proxy) => assert!(!proxy.upstreams.is_empty()),
    }
}

/// No text that is sent may end its line (RFC 9110 §5.5).
fn assert_one_line(text: &str) {
    assert!(!text.contains(['\r', '\n', '\0']), "{text:?}");
}
