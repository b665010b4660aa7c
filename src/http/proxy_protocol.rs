//! The PROXY protocol, versions 1 and 2 (haproxy.org, proxy-protocol.txt): a TCP proxy sends this
//! header before the first byte of its client, to pass the client's address on.
//!
//! A pure function of all bytes so far. Extensions (TLV) are skipped, and so is their checksum.
//!
//! - I9: the length of a header is bounded.
//! - Any result but [`ProxyHeader::NeedMore`] stays the same when more bytes come.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str,
};

use memchr::memmem;

/// What the first bytes of a connection hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyHeader {
    /// The beginning of a header.
    NeedMore,
    /// A complete header.
    Header {
        /// The client's address; `None` if the header names no client (LOCAL, UNKNOWN), or one
        /// without a TCP address.
        source: Option<SocketAddr>,
        /// The length of the header in bytes.
        used: usize,
    },
    /// Not a valid header, and why.
    Refused(&'static str),
}

/// The longest version 1 line in bytes, with its CRLF (§2.1).
const LINE_BYTES_MAX: usize = 107;

/// The longest version 2 header in bytes, with its extensions. A header should fit into one segment
/// (536 bytes); certificates among the extensions make it longer. The smallest input buffer holds
/// four headers of this length.
const BINARY_BYTES_MAX: usize = 4096;

const LINE_START: &[u8] = b"PROXY ";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Version 2 and its commands.
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;

/// Address families of version 2 with their transport protocols.
const UNSPEC: u8 = 0x00;
const TCP4: u8 = 0x11;
const UDP4: u8 = 0x12;
const TCP6: u8 = 0x21;
const UDP6: u8 = 0x22;
const UNIX_STREAM: u8 = 0x31;
const UNIX_DATAGRAM: u8 = 0x32;

impl ProxyHeader {
    /// Reads the header at the beginning of `bytes`, which are all bytes of a connection so far.
    pub fn read(bytes: &[u8]) -> Self {
        if may_begin_with(bytes, SIGNATURE) {
            read_binary(bytes)
        } else if may_begin_with(bytes, LINE_START) {
            read_line(bytes)
        } else {
            Self::Refused("no PROXY header")
        }
    }
}

/// Whether `bytes` begin with `start`, as far as they go.
fn may_begin_with(bytes: &[u8], start: &[u8]) -> bool {
    bytes.iter().zip(start).all(|(byte, wanted)| byte == wanted)
}

fn read_line(bytes: &[u8]) -> ProxyHeader {
    let longest = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    let Some(end) = memmem::find(longest, b"\r\n") else {
        let is_over = bytes.len() >= LINE_BYTES_MAX;
        return if is_over { ProxyHeader::Refused("no CRLF") } else { ProxyHeader::NeedMore };
    };
    let (line, used) = (&bytes[..end], end + 2);
    // The specification says to ignore everything behind UNKNOWN.
    if line == b"PROXY UNKNOWN" || line.starts_with(b"PROXY UNKNOWN ") {
        return ProxyHeader::Header { source: None, used };
    }
    match str::from_utf8(line).ok().and_then(source_of_line) {
        Some(source) => ProxyHeader::Header { source: Some(source), used },
        None => ProxyHeader::Refused("a malformed line"),
    }
}

fn source_of_line(line: &str) -> Option<SocketAddr> {
    let mut words = line.split(' ').skip(1);
    let address: fn(&str) -> Option<IpAddr> = match words.next()? {
        "TCP4" => |word| word.parse::<Ipv4Addr>().ok().map(IpAddr::from),
        "TCP6" => |word| word.parse::<Ipv6Addr>().ok().map(IpAddr::from),
        _ => return None,
    };
    let (source, _) = (address(words.next()?)?, address(words.next()?)?);
    let (source_port, _) = (port(words.next()?)?, port(words.next()?)?);
    words.next().is_none().then(|| SocketAddr::new(source, source_port))
}

/// A port without leading zeros or signs.
fn port(word: &str) -> Option<u16> {
    let is_plain = word.bytes().all(|byte| byte.is_ascii_digit());
    let is_shortest = word.len() == 1 || !word.starts_with('0');
    if is_plain && is_shortest { word.parse().ok() } else { None }
}

fn read_binary(bytes: &[u8]) -> ProxyHeader {
    let Some((fixed, addresses)) = bytes.split_first_chunk::<16>() else {
        return ProxyHeader::NeedMore;
    };
    let [.., command, family, length_high, length_low] = *fixed;
    let least = match (command, family) {
        (LOCAL, _) | (PROXY, UNSPEC) => 0,
        (PROXY, TCP4 | UDP4) => 12,
        (PROXY, TCP6 | UDP6) => 36,
        (PROXY, UNIX_STREAM | UNIX_DATAGRAM) => 216,
        (PROXY, _) => return ProxyHeader::Refused("an unknown address family"),
        _ => return ProxyHeader::Refused("an unknown version or command"),
    };
    let length = usize::from(u16::from_be_bytes([length_high, length_low]));
    let used = fixed.len() + length;
    if length < least {
        return ProxyHeader::Refused("too short for its addresses");
    }
    if used > BINARY_BYTES_MAX {
        return ProxyHeader::Refused("too long");
    }
    if bytes.len() < used {
        return ProxyHeader::NeedMore;
    }
    let source = if command == PROXY { source_of_addresses(family, addresses) } else { None };
    ProxyHeader::Header { source, used }
}

/// The client's address; `None` unless it is a TCP address.
fn source_of_addresses(family: u8, addresses: &[u8]) -> Option<SocketAddr> {
    let (ip, ports) = match family {
        TCP4 => {
            let (ip, rest) = addresses.split_first_chunk::<4>()?;
            (IpAddr::from(*ip), &rest[4..])
        }
        TCP6 => {
            let (ip, rest) = addresses.split_first_chunk::<16>()?;
            (IpAddr::from(*ip), &rest[16..])
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes(*ports.first_chunk()?)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{ProxyHeader::*, *};

    /// Version 2 with this command and family, and these bytes behind the length.
    fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family], &length, rest].concat()
    }

    /// The addresses of version 2: source, destination, and the same port for both.
    fn addresses(source: &[u8], destination: &[u8], port: u16) -> Vec<u8> {
        [source, destination, &port.to_be_bytes(), &443_u16.to_be_bytes()].concat()
    }

    fn v4(port: u16) -> Vec<u8> {
        addresses(&[192, 0, 2, 7], &[198, 51, 100, 1], port)
    }

    fn v6(port: u16) -> Vec<u8> {
        let source: Ipv6Addr = "2001:db8::7".parse().unwrap();
        addresses(&source.octets(), &Ipv6Addr::LOCALHOST.octets(), port)
    }

    /// Complete headers, and the source that each names.
    fn headers() -> Vec<(Vec<u8>, &'static str)> {
        let unix = [b'/'; 216];
        let with_extensions = |addresses: Vec<u8>, len: usize| [addresses, vec![4; len]].concat();
        let longest = BINARY_BYTES_MAX - 16 - 12;
        let unknown = [&b"PROXY UNKNOWN "[..], &[0xff; LINE_BYTES_MAX - 16], b"\r\n"].concat();
        let lines: [(&[u8], &str); 11] = [
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n", "192.0.2.7:56324"),
            (
                b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
                "255.255.255.255:65535",
            ),
            (b"PROXY TCP4 0.0.0.0 10.0.0.1 0 0\r\n", "0.0.0.0:0"),
            (b"PROXY TCP6 2001:db8::7 ::1 56324 443\r\n", "[2001:db8::7]:56324"),
            (b"PROXY TCP6 2001:DB8:0:0:0:0:0:7 :: 1 443\r\n", "[2001:db8::7]:1"),
            // As inet_ntop(3) writes a mapped address.
            (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 1 443\r\n", "[::ffff:192.0.2.7]:1"),
            (b"PROXY UNKNOWN\r\n", ""),
            (b"PROXY UNKNOWN \r\n", ""),
            (b"PROXY UNKNOWN ::1 ::1 1 1\r\n", ""),
            (b"PROXY UNKNOWN  a\rb\nc\r\n", ""),
            (&unknown, ""),
        ];
        let mut headers: Vec<_> =
            lines.iter().map(|&(line, source)| (line.to_vec(), source)).collect();
        headers.extend([
            (binary(PROXY, TCP4, &v4(56324)), "192.0.2.7:56324"),
            (binary(PROXY, TCP6, &v6(56324)), "[2001:db8::7]:56324"),
            (binary(PROXY, TCP4, &with_extensions(v4(1), 7)), "192.0.2.7:1"),
            (binary(PROXY, TCP6, &with_extensions(v6(1), 300)), "[2001:db8::7]:1"),
            (binary(PROXY, TCP4, &with_extensions(v4(1), longest)), "192.0.2.7:1"),
            (binary(PROXY, UDP4, &v4(1)), ""),
            (binary(PROXY, UDP6, &v6(1)), ""),
            (binary(PROXY, UNIX_STREAM, &unix), ""),
            (binary(PROXY, UNIX_DATAGRAM, &unix), ""),
            (binary(PROXY, UNSPEC, &[]), ""),
            (binary(PROXY, UNSPEC, &v4(1)), ""),
            (binary(LOCAL, UNSPEC, &[]), ""),
            (binary(LOCAL, TCP4, &v4(1)), ""),
            (binary(LOCAL, 0xff, &[1, 2, 3]), ""),
        ]);
        headers
    }

    #[test]
    fn a_header_is_complete_with_its_last_byte_and_does_not_use_the_bytes_behind_it() {
        for (header, source) in headers() {
            let source = (!source.is_empty()).then(|| source.parse().unwrap());
            for len in 0..header.len() {
                assert_eq!(ProxyHeader::read(&header[..len]), NeedMore, "{len} of {header:?}");
            }
            let whole = Header { source, used: header.len() };
            for behind in ["", "G", "\r\n", "PROXY TCP4 ", "GET / HTTP/1.1\r\n\r\n"] {
                let bytes = [&header, behind.as_bytes()].concat();
                assert_eq!(ProxyHeader::read(&bytes), whole, "{header:?} and {behind:?}");
            }
        }
    }

    #[test]
    fn a_malformed_line_is_refused() {
        for line in [
            "PROXY TCP4 192.0.2.7 198.51.100.1 56324",
            "PROXY TCP4 192.0.2.7 198.51.100.1 56324 443 ",
            "PROXY TCP4 192.0.2.7 198.51.100.1 56324 443 1",
            "PROXY  TCP4 192.0.2.7 198.51.100.1 56324 443",
            "PROXY TCP4  192.0.2.7 198.51.100.1 56324 443",
            "PROXY TCP4 192.0.2.7  198.51.100.1 56324 443",
            "PROXY TCP4 192.0.2.7 198.51.100.1  56324 443",
            "PROXY TCP4\t192.0.2.7 198.51.100.1 56324 443",
            "PROXY tcp4 192.0.2.7 198.51.100.1 56324 443",
            "PROXY TCP5 192.0.2.7 198.51.100.1 56324 443",
            "PROXY TCP4 192.0.2.07 198.51.100.1 56324 443",
            "PROXY TCP4 192.0.2.7 198.51.100.01 56324 443",
            "PROXY TCP4 192.0.2.256 198.51.100.1 56324 443",
            "PROXY TCP4 192.0.2 198.51.100.1 56324 443",
            "PROXY TCP4 0x7f.0.0.1 198.51.100.1 56324 443",
            "PROXY TCP4 2001:db8::7 ::1 56324 443",
            "PROXY TCP4 192.0.2.7 ::1 56324 443",
            "PROXY TCP4 192.0.2.7 198.51.100.1 056324 443",
            "PROXY TCP4 192.0.2.7 198.51.100.1 00 443",
            "PROXY TCP4 192.0.2.7 198.51.100.1 56324 0443",
            "PROXY TCP4 192.0.2.7 198.51.100.1 65536 443",
            "PROXY TCP4 192.0.2.7 198.51.100.1 56324 65536",
            "PROXY TCP4 192.0.2.7 198.51.100.1 +1 443",
            "PROXY TCP4 192.0.2.7 198.51.100.1 -1 443",
            "PROXY TCP4 192.0.2.7 198.51.100.1  443",
            "PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r",
            "PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\nGET / HTTP/1.1",
            "PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\rGET / HTTP/1.1",
            "PROXY TCP6 192.0.2.7 198.51.100.1 56324 443",
            "PROXY TCP6 2001:db8::7 198.51.100.1 56324 443",
            "PROXY TCP6 [2001:db8::7] ::1 56324 443",
            "PROXY TCP6 2001:db8::7%eth0 ::1 56324 443",
            "PROXY TCP6 2001:db8::00007 ::1 56324 443",
            "PROXY TCP6 1::2::3 ::1 56324 443",
            "PROXY TCP6 1:2:3:4:5:6:7 ::1 56324 443",
            "PROXY TCP6 1:2:3:4:5:6:7:8:9 ::1 56324 443",
            "PROXY UNKNOWNS",
            "PROXY UNKNOW",
            "PROXY unknown",
            "PROXY ",
            "PROXY TCP4",
            "PROXY \u{fc}",
        ] {
            let read = ProxyHeader::read(format!("{line}\r\n").as_bytes());
            assert!(matches!(read, Refused(_)), "{line:?}: {read:?}");
        }
    }

    #[test]
    fn a_line_without_an_end_is_refused_when_it_is_too_long() {
        let line = |len| [&b"PROXY UNKNOWN "[..], &vec![b'a'; len - 14]].concat();
        assert_eq!(ProxyHeader::read(&line(LINE_BYTES_MAX - 1)), NeedMore);
        // The CRLF ends one byte past the longest line.
        for end in ["\r", "\r\n", "\r\r\n"] {
            let read = ProxyHeader::read(&[&line(LINE_BYTES_MAX - 1), end.as_bytes()].concat());
            assert!(matches!(read, Refused(_)), "{end:?}: {read:?}");
        }
        let used = LINE_BYTES_MAX;
        let bytes = [&line(used - 2), &b"\r\n"[..]].concat();
        assert_eq!(ProxyHeader::read(&bytes), Header { source: None, used });
    }

    #[test]
    fn a_malformed_binary_header_is_refused() {
        let too_long = vec![4; BINARY_BYTES_MAX - 15];
        for bytes in [
            binary(0x11, TCP4, &v4(1)),
            binary(0x31, TCP4, &v4(1)),
            binary(0x01, TCP4, &v4(1)),
            binary(0x22, TCP4, &v4(1)),
            binary(0x2f, TCP4, &v4(1)),
            binary(PROXY, 0x01, &v4(1)),
            binary(PROXY, 0x10, &v4(1)),
            binary(PROXY, 0x13, &v4(1)),
            binary(PROXY, 0x20, &v6(1)),
            binary(PROXY, 0x30, &[0; 216]),
            binary(PROXY, 0x41, &v4(1)),
            binary(PROXY, 0xff, &v4(1)),
            binary(PROXY, TCP4, &v4(1)[..11]),
            binary(PROXY, UDP4, &[]),
            binary(PROXY, TCP6, &v6(1)[..35]),
            binary(PROXY, TCP6, &v4(1)),
            binary(PROXY, UNIX_STREAM, &[0; 215]),
            binary(PROXY, TCP4, &too_long),
            binary(LOCAL, UNSPEC, &too_long),
        ] {
            let read = ProxyHeader::read(&bytes);
            assert!(matches!(read, Refused(_)), "{bytes:?}: {read:?}");
            // The fixed part is enough to refuse it, before any address came.
            assert_eq!(ProxyHeader::read(&bytes[..16]), read, "{bytes:?}");
        }
    }

    #[test]
    fn anything_else_is_refused_at_the_first_byte_that_differs() {
        for (bytes, refused_at) in [
            (&b"GET / HTTP/1.1\r\n"[..], 1),
            (b"PUT / HTTP/1.1\r\n", 2),
            (b"PROXYTCP4", 6),
            (b"proxy TCP4", 1),
            (b" PROXY TCP4", 1),
            (b"\r\nGET / HTTP/1.1\r\n", 3),
            (b"\r\n\r\n\0\r\nQUIT\r", 12),
            (b"\0", 1),
            (b"\x16\x03\x01", 1),
        ] {
            assert_eq!(ProxyHeader::read(&bytes[..refused_at - 1]), NeedMore, "{bytes:?}");
            let read = ProxyHeader::read(&bytes[..refused_at]);
            assert!(matches!(read, Refused(_)), "{bytes:?}: {read:?}");
        }
    }

    /// A header with other bytes behind it, perhaps with some bytes replaced; or random bytes.
    fn input() -> impl Strategy<Value = Vec<u8>> {
        let header = (proptest::sample::select(headers()), any::<Vec<u8>>());
        let changed = header.prop_flat_map(|((header, _), behind)| {
            let bytes = [header, behind].concat();
            let change = (0..bytes.len(), any::<u8>());
            (Just(bytes), proptest::collection::vec(change, 0..3))
        });
        let changed = changed.prop_map(|(mut bytes, changes)| {
            changes.into_iter().for_each(|(at, byte)| bytes[at] = byte);
            bytes
        });
        prop_oneof![8 => changed, 1 => any::<Vec<u8>>()]
    }

    proptest! {
        /// No input panics, and the result does not depend on how the input is split.
        #[test]
        fn any_bytes_read_the_same_in_any_split(bytes in input()) {
            let whole = ProxyHeader::read(&bytes);
            let splits = (0..=bytes.len()).map(|len| ProxyHeader::read(&bytes[..len]));
            let first = splits.into_iter().find(|read| *read != NeedMore);
            prop_assert_eq!(first.unwrap_or(NeedMore), whole);
            match whole {
                Header { used, .. } => prop_assert!(used <= bytes.len()),
                NeedMore => prop_assert!(bytes.len() < BINARY_BYTES_MAX),
                Refused(_) => {}
            }
        }
    }
}
