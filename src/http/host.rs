//! The host that a request names (RFC 9112 §3.2, RFC 3986 §3.2.2).

use std::net::{Ipv4Addr, Ipv6Addr};

/// A checked `host [ ":" port ]`, with one trailing dot cut; in the case in which it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host<'a> {
    name: &'a str,
    port: Option<u16>,
}

/// The longest name of a host in bytes (RFC 1035 §2.3.4), which holds a literal address too.
pub(crate) const HOST_BYTES_MAX: usize = 255;

impl<'a> Host<'a> {
    /// Checks an authority without userinfo. `None` when it is empty or no `uri-host [":" port]`.
    ///
    /// Names are held to what stands in the DNS and in real hosts' names: letters, digits, `-`, `_`
    /// and single dots. The rest of `reg-name` (percent-encodings, sub-delims) has no use in HTTP
    /// and is read differently by different parsers.
    pub fn parse(authority: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(authority).ok()?;
        if text.starts_with('[') {
            let end = text.find(']')? + 1;
            let (literal, rest) = text.split_at(end);
            literal[1..end - 1].parse::<Ipv6Addr>().ok()?;
            return Some(Self { name: literal, port: parse_port(rest)? });
        }
        let (name, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
        let name = name.strip_suffix('.').unwrap_or(name);
        let port = parse_port(rest)?;
        is_host_name(name).then_some(Self { name, port })
    }

    /// The name, or the IPv6 literal in its brackets.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// The port, if one is named.
    pub fn port(&self) -> Option<u16> {
        self.port
    }
}

/// Whether `name` is a host name or an IPv4 address, without a trailing dot.
pub fn is_host_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    let mut label_len = 0;
    for &byte in bytes {
        match byte {
            b'.' if label_len == 0 => return false,
            b'.' => label_len = 0,
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => label_len += 1,
            _ => return false,
        }
        if label_len > 63 {
            return false;
        }
    }
    if last.is_ascii_digit() && first.is_ascii_digit() && looks_like_ipv4(bytes) {
        return name.parse::<Ipv4Addr>().is_ok();
    }
    first != b'-' && last != b'.' && bytes.len() <= HOST_BYTES_MAX
}

/// Digits and dots alone: it has to be an address, or two resolvers would read it in two ways.
fn looks_like_ipv4(name: &[u8]) -> bool {
    name.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.')
}

/// `Some(None)` without a port; `None` for anything that is no port. An empty port is allowed
/// (RFC 3986 §3.2.3) and means none.
fn parse_port(rest: &str) -> Option<Option<u16>> {
    match rest.strip_prefix(':') {
        None => rest.is_empty().then_some(None),
        Some("") => Some(None),
        Some(digits) => {
            let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| digits.parse().ok().map(Some)).flatten()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_stand() {
        for (text, name, port) in [
            ("example.com", "example.com", None),
            ("Example.COM.", "Example.COM", None),
            ("example.com:8080", "example.com", Some(8080)),
            ("example.com.:80", "example.com", Some(80)),
            ("example.com:", "example.com", None),
            ("127.0.0.1:65535", "127.0.0.1", Some(65535)),
            ("[::1]:80", "[::1]", Some(80)),
            ("[2001:db8::1]", "[2001:db8::1]", None),
            ("my_app.internal", "my_app.internal", None),
            ("xn--bcher-kva.example", "xn--bcher-kva.example", None),
            ("1e100.net", "1e100.net", None),
        ] {
            let host = Host::parse(text.as_bytes()).unwrap_or_else(|| panic!("{text}"));
            assert_eq!((host.name(), host.port()), (name, port), "{text}");
        }
    }

    #[test]
    fn hosts_that_are_refused() {
        let long = "a".repeat(64);
        for text in [
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "a b",
            "a,b",
            "a/b",
            "user@a",
            "a:b",
            "a:-1",
            "a:+1",
            "a:65536",
            "a:80:80",
            "a:8 0",
            "[::1",
            "[::1]x",
            "[zz]",
            "[]",
            "::1",
            "1.2.3",
            "256.1.1.1",
            "a%2e",
            "-a",
            "a#b",
            "a?b",
            "a\\b",
            "b\u{fc}cher",
            "*.a",
            "a;b",
            "a=b",
            "[v1.x]",
            &long,
        ] {
            assert_eq!(Host::parse(text.as_bytes()), None, "{text:?}");
        }
    }
}
