//! Recognises files of other programs, to report that once instead of an error for each line.
//!
//! Only for text that isn't valid TOML.

use super::error::Finding;

/// What this text seems to be, if it isn't TOML but looks like a known format.
pub(super) fn finding(text: &str) -> Option<Finding> {
    let looks_like = looks_like(text)?;
    let start = text.len() - text.trim_start().len();
    let end = text[start..].find('\n').map_or(text.len(), |length| start + length);
    let message = format!("this looks like {looks_like}, but the config must be TOML");
    let help = "`tidegate init` writes a first config; `tidegate man toml` has every key";
    Some(Finding::new(start..end, message).help(help))
}

fn looks_like(text: &str) -> Option<&'static str> {
    let lines = text.lines().map(str::trim);
    let lines: Vec<&str> =
        lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let first = *lines.first()?;
    // Lines that begin with `[table]` or `key = value` are TOML with a mistake.
    let is_toml = |line: &&str| {
        let key = line.split('=').next().unwrap_or_default().trim();
        let is_key = |c: char| c.is_ascii_alphanumeric() || "_-.\"'".contains(c);
        let is_pair = key.len() < line.len() && !key.is_empty() && key.chars().all(is_key);
        is_pair || line.starts_with('[') && line.len() > 2 && !line.starts_with("[{")
    };
    let first_word = first.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next()?;
    let nginx = ["server", "http", "events", "user", "worker_processes", "upstream", "location"];
    let haproxy = ["global", "defaults", "frontend", "backend"];
    if first.starts_with('<') {
        return Some("XML or HTML");
    }
    if serde_json::from_str::<serde_json::Value>(text).is_ok_and(|json| !json.is_string())
        || first.starts_with('{') && lines.get(1).is_some_and(|line| line.starts_with('"'))
    {
        return Some("JSON");
    }
    if nginx.contains(&first_word)
        && (first.ends_with(['{', ';']))
        && lines.iter().any(|line| line.ends_with(';'))
    {
        return Some("a config of nginx");
    }
    if lines.iter().any(is_toml) {
        return None;
    }
    if haproxy.contains(&first_word) && !first.contains(['=', ':', '{']) {
        return Some("a config of HAProxy");
    }
    if first.ends_with('{') {
        return Some("a Caddyfile");
    }
    let is_yaml = |line: &&str| {
        let line = line.trim_start_matches("- ");
        line.split_once(':').is_some_and(|(key, rest)| {
            !key.is_empty() && !key.contains(' ') && (rest.is_empty() || rest.starts_with(' '))
        })
    };
    (first == "---" || lines.iter().all(|line| is_yaml(line) || line.starts_with("- ")))
        .then_some("YAML")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_other_programs_are_recognised_but_not_toml_with_a_mistake() {
        for (text, expected) in [
            ("server {\n  listen 80;\n  root /srv;\n}\n", Some("a config of nginx")),
            ("worker_processes 4;\nhttp {\n}\n", Some("a config of nginx")),
            ("# comment\nuser www-data;\nevents { }\n", Some("a config of nginx")),
            ("example.com {\n  root * /srv\n  file_server\n}\n", Some("a Caddyfile")),
            (":8080 {\n\treverse_proxy 127.0.0.1:9000\n}\n", Some("a Caddyfile")),
            ("{\n\tadmin off\n}\nexample.com {\n\trespond hi\n}\n", Some("a Caddyfile")),
            ("server:\n  listen: 127.0.0.1:8080\napps:\n  - a\n", Some("YAML")),
            ("---\nserver: {}\n", Some("YAML")),
            ("{\n  \"server\": {\n    \"threads\": 1\n  }\n}\n", Some("JSON")),
            ("[{\"a\": 1}]", Some("JSON")),
            ("{\n  \"server\": {,\n", Some("JSON")),
            ("global\n  maxconn 100\nfrontend x\n  bind :80\n", Some("a config of HAProxy")),
            ("<html>\n<body>\n", Some("XML or HTML")),
            ("[server]\nlisten: 80\n", None),
            ("[apps.a]\nrespond = {\n", None),
            ("threads 4\n", None),
            ("server.threads = \n", None),
            ("", None),
        ] {
            assert_eq!(looks_like(text), expected, "{text}");
        }
    }
}
