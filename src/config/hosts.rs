//! The names of apps: host names, IPv6 literals and wildcards, in their normal form.
//!
//! Decides which names a config may contain. The registry decides which app a request's host finds.

use crate::http::{Host, is_host_name};

use super::{punycode, values::Fault};

/// Checks a host or wildcard. Returns its normal form: lower case, without a trailing dot.
pub(super) fn host_pattern(text: &str) -> Result<String, Fault> {
    let lower = text.to_ascii_lowercase();
    let literal = lower.starts_with('[');
    let name = lower.strip_suffix('.').filter(|_| !literal).unwrap_or(&lower);
    let stands = match name.strip_prefix("*.") {
        // An IP address has no subdomains.
        Some(parent) => is_host_name(parent) && parent.parse::<std::net::Ipv4Addr>().is_err(),
        None if literal => Host::parse(name.as_bytes()).is_some_and(|host| host.name() == name),
        None => is_host_name(name),
    };
    if stands { Ok(name.to_owned()) } else { Err(explain(&lower)) }
}

/// Suggests what was probably meant.
fn explain(text: &str) -> Fault {
    let fault = Fault::new("is not a host name");
    if let Some((_, rest)) = text.split_once("://") {
        let host = rest.split('/').next().unwrap_or_default();
        return fault.help(format!("write the host alone: \"{host}\""));
    }
    let bare = text.strip_prefix("*.").unwrap_or(text);
    if let Some(host) = Host::parse(bare.as_bytes())
        && host.name().len() < bare.trim_end_matches('.').len()
    {
        let host = text.strip_suffix(&bare[host.name().len()..]).unwrap_or(host.name());
        return Fault::new("must not have a port")
            .help(format!("write \"{host}\"; ports are set by `server.listen`"));
    }
    if text.parse::<std::net::Ipv6Addr>().is_ok() {
        return fault.help(format!("write \"[{text}]\""));
    }
    if !text.is_ascii() {
        return fault.help(match ascii_name(text) {
            Some(name) => format!("write its ASCII form, \"{name}\""),
            None => "write an international name in its ASCII form, \"xn--…\"".to_owned(),
        });
    }
    if text == "*" {
        return fault.help("set `server.default_app` to the app for all other hosts");
    }
    if text.contains('*') {
        return fault.help("a `*` stands for whole labels at the start: \"*.example.com\"");
    }
    if let Some((host, path)) = text.split_once('/')
        && is_host_name(host)
        && !path.is_empty()
    {
        let fault = Fault::new("has a path: this version has no apps for a part of a host");
        return fault.help(format!("write \"{host}\""));
    }
    fault.help(r#"write a name such as "www.example.com", "*.example.com" or "[::1]""#)
}

/// The ASCII form of an international name (RFC 5890 §2.3.2.1), if it is certain.
fn ascii_name(text: &str) -> Option<String> {
    let (wildcard, name) = match text.strip_prefix("*.") {
        Some(name) => ("*.", name),
        None => ("", text),
    };
    let label = |label: &str| {
        if label.is_ascii() { Some(label.to_owned()) } else { punycode::a_label(label) }
    };
    let labels: Option<Vec<String>> = name.trim_end_matches('.').split('.').map(label).collect();
    let name = labels?.join(".");
    is_host_name(&name).then(|| format!("{wildcard}{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_hosts_and_wildcards() {
        for (text, kept) in [
            ("www.example.com", "www.example.com"),
            ("WWW.Example.COM.", "www.example.com"),
            ("localhost", "localhost"),
            ("my_app.internal", "my_app.internal"),
            ("127.0.0.1", "127.0.0.1"),
            ("[::1]", "[::1]"),
            ("[2001:DB8::1]", "[2001:db8::1]"),
            ("*.Example.com", "*.example.com"),
            ("*.com", "*.com"),
            ("*.example.com.", "*.example.com"),
        ] {
            assert_eq!(host_pattern(text).expect(text), kept);
        }
    }

    #[test]
    fn an_invalid_host_gets_a_suggestion() {
        for (text, message) in [
            ("", "such as"),
            (".", "such as"),
            ("a b", "such as"),
            ("a..b", "such as"),
            ("a..", "such as"),
            ("-a", "such as"),
            ("256.1.1.1", "such as"),
            ("*.", "whole labels"),
            ("*", "default_app"),
            ("**.a", "whole labels"),
            ("*.*.a", "whole labels"),
            ("a.*.b", "whole labels"),
            ("*a.b", "whole labels"),
            ("*.127.0.0.1", "whole labels"),
            ("example.com:8080", "write \"example.com\";"),
            ("example.com.:8080", "write \"example.com\";"),
            ("*.example.com:80", "write \"*.example.com\";"),
            ("[::1]:80", "write \"[::1]\";"),
            ("example.com:", "write \"example.com\";"),
            ("::1", "write \"[::1]\""),
            ("http://Example.com/", "alone: \"example.com\""),
            ("b\u{fc}cher.example", "\"xn--bcher-kva.example\""),
            ("*.B\u{dc}CHER.example", "\"*.xn--bcher-kva.example\""),
            ("bu\u{308}cher.example", "\"xn--…\""),
            ("a.test/path", "write \"a.test\""),
            ("[zz]", "such as"),
            ("[::1].", "such as"),
        ] {
            let fault = host_pattern(text).expect_err(text);
            let shown = format!("{fault:?}").replace("\\\"", "\"");
            assert!(shown.contains(message), "{text:?}: {shown}");
        }
    }
}
