//! The host that a request names (RFC 9112 §3.2, RFC 3986 §3.2.2).

use std::{net::Ipv6Addr, str::FromStr};

/// A checked `host [ ":" port ]`. One trailing dot is removed; upper and lower case stay as sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host<'a> {
    /// ASCII. Kept as bytes: routing needs no `str`.
    name: &'a [u8],
    port: Option<u16>,
}

/// The longest name of a host, and of one of its labels, in bytes (RFC 1035 §2.3.4).
const HOST_BYTES_MAX: usize = 255;
const LABEL_BYTES_MAX: usize = 63;

impl<'a> Host<'a> {
    /// Checks an authority without userinfo. `None` if it is not `uri-host [":" port]`.
    ///
    /// A name may have what names in the DNS have: letters, digits, `-`, `_` and single dots. The
    /// rest of `reg-name` (percent-encodings, sub-delims) has no use in HTTP, and parsers disagree
    /// about it.
    pub fn parse(authority: &'a [u8]) -> Option<Self> {
        if authority.first() == Some(&b'[') {
            return Self::parse_ipv6(authority);
        }
        let scan = NameScan::until_colon(authority);
        let (name, rest) = authority.split_at(scan.len);
        let port = parse_port(rest)?;
        if scan.is_host_name(name) {
            return Some(Self { name, port });
        }
        let name = name.strip_suffix(b".")?;
        is_host_name(name).then_some(Self { name, port })
    }

    fn parse_ipv6(authority: &'a [u8]) -> Option<Self> {
        let end = memchr::memchr(b']', authority)?;
        let (name, rest) = authority.split_at(end + 1);
        Ipv6Addr::from_str(std::str::from_utf8(&name[1..end]).ok()?).ok()?;
        Some(Self { name, port: parse_port(rest)? })
    }

    /// The name, or the IPv6 literal in its brackets.
    pub fn name(&self) -> &'a str {
        std::str::from_utf8(self.name).unwrap_or_default()
    }

    /// The bytes of the name, which are ASCII.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.name
    }

    /// The port, if there is one.
    pub fn port(&self) -> Option<u16> {
        self.port
    }
}

/// Whether `name` is a host name or an IPv4 address, without a trailing dot.
pub fn is_host_name(name: impl AsRef<[u8]>) -> bool {
    let name = name.as_ref();
    let scan = NameScan::until_colon(name);
    scan.len == name.len() && scan.is_host_name(name)
}

/// What a name consists of, found in one pass, because every request's Host is checked.
struct NameScan {
    /// Bytes before the first colon.
    len: usize,
    /// The classes of these bytes, as bits.
    seen: u8,
    /// Whether the last label is empty.
    ends_open: bool,
    /// Whether another label is empty.
    has_gap: bool,
}

/// Classes of bytes in a host name, as bits.
const REFUSED: u8 = 1;
const DOT: u8 = 2;
const DIGIT: u8 = 4;
const LETTER: u8 = 8;
const COLON: u8 = 16;

const CLASSES: [u8; 256] = {
    let mut classes = [REFUSED; 256];
    let mut byte = 0;
    while byte < 256 {
        classes[byte] = match byte as u8 {
            b'.' => DOT,
            b'0'..=b'9' => DIGIT,
            b':' => COLON,
            b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'_' => LETTER,
            _ => REFUSED,
        };
        byte += 1;
    }
    classes
};

impl NameScan {
    fn until_colon(bytes: &[u8]) -> Self {
        let (mut len, mut seen, mut last, mut gaps) = (0, 0, DOT, 0);
        for byte in bytes {
            let class = CLASSES[usize::from(*byte)];
            if class == COLON {
                break;
            }
            seen |= class;
            gaps |= class & last;
            last = class & DOT;
            len += 1;
        }
        Self { len, seen, ends_open: last == DOT, has_gap: gaps != 0 }
    }

    fn is_host_name(&self, name: &[u8]) -> bool {
        let is_name = self.seen & REFUSED == 0 && !self.has_gap && !self.ends_open;
        // A name of digits and dots must be an IPv4 address in its usual form: resolvers disagree
        // about all others.
        is_name
            && name[0] != b'-'
            && (self.seen & LETTER != 0 || is_ipv4_address(name))
            && (name.len() <= LABEL_BYTES_MAX || has_short_labels(name))
    }
}

fn has_short_labels(name: &[u8]) -> bool {
    name.len() <= HOST_BYTES_MAX
        && name.split(|byte| *byte == b'.').all(|label| label.len() <= LABEL_BYTES_MAX)
}

/// Four decimal numbers up to 255, without leading zeros, between dots (RFC 3986 §3.2.2).
fn is_ipv4_address(name: &[u8]) -> bool {
    let mut numbers = 0;
    for number in name.split(|byte| *byte == b'.') {
        if number.len() > 3 || (number.len() > 1 && number[0] == b'0') {
            return false;
        }
        let value = number.iter().fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
        if value > 255 {
            return false;
        }
        numbers += 1;
    }
    numbers == 4
}

/// `Some(None)` without a port; `None` if `rest` is not a port. An empty port is allowed and means
/// no port (RFC 3986 §3.2.3).
fn parse_port(rest: &[u8]) -> Option<Option<u16>> {
    let digits = match rest {
        [] | [b':'] => return Some(None),
        [b':', digits @ ..] if digits.len() <= 5 => digits,
        _ => return None,
    };
    let (mut port, mut is_number) = (0, true);
    for digit in digits {
        is_number &= digit.is_ascii_digit();
        port = port * 10 + u32::from(digit.wrapping_sub(b'0'));
    }
    if !is_number {
        return None;
    }
    u16::try_from(port).ok().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_hosts_are_parsed() {
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
    fn malformed_hosts_are_refused() {
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
            // More than 32 bits.
            "4294967296",
            "1.2.3.42949672960",
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
