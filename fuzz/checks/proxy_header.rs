//! The PROXY header in the front of any bytes: what is said of them holds in every split, and a
//! header that is taken names what its text or its bytes name.

use std::net::{IpAddr, SocketAddr};

use tidegate::http::ProxyHeader;

pub fn check(data: &[u8]) {
    let whole = ProxyHeader::read(data);
    // It is known with the first byte that tells, and no byte behind changes it.
    let mut reads = (0..=data.len()).map(|len| (len, ProxyHeader::read(&data[..len])));
    let first = reads.find(|(_, read)| *read != ProxyHeader::NeedMore);
    assert_eq!(first.map_or(ProxyHeader::NeedMore, |(_, read)| read), whole);
    match whole {
        ProxyHeader::NeedMore => assert!(data.len() < 4096, "a header without a bound"),
        ProxyHeader::Header { source, used } => {
            assert_eq!(first, Some((used, whole)), "whole with another than its last byte");
            let named = if data[0] == b'P' { line(&data[..used]) } else { binary(&data[..used]) };
            assert_eq!(source, named);
        }
        ProxyHeader::Refused(reason) => assert!(!reason.is_empty()),
    }
}

/// The client of a version 1 line.
fn line(header: &[u8]) -> Option<SocketAddr> {
    assert!(header.len() <= 107);
    let line = header.strip_suffix(b"\r\n").expect("a line");
    if line.starts_with(b"PROXY UNKNOWN") {
        return None;
    }
    let line = str::from_utf8(line).expect("ASCII");
    let [proxy, family, source, destination, source_port, destination_port] =
        line.split(' ').collect::<Vec<_>>()[..]
    else {
        panic!("{line}")
    };
    let ips = [source, destination].map(|ip| ip.parse::<IpAddr>().expect("an address"));
    assert_eq!((proxy, family == "TCP6"), ("PROXY", ips[0].is_ipv6()), "{line}");
    assert!(["TCP4", "TCP6"].contains(&family) && ips[0].is_ipv4() == ips[1].is_ipv4(), "{line}");
    let ports = [source_port, destination_port].map(|port| {
        let number: u16 = port.parse().expect("a port");
        assert_eq!(number.to_string(), port);
        number
    });
    Some(SocketAddr::new(ips[0], ports[0]))
}

/// The client of a version 2 header.
fn binary(header: &[u8]) -> Option<SocketAddr> {
    let (fixed, addresses) = header.split_first_chunk::<16>().expect("the fixed part");
    assert_eq!(fixed[..12], *b"\r\n\r\n\0\r\nQUIT\n");
    assert_eq!(usize::from(u16::from_be_bytes([fixed[14], fixed[15]])), addresses.len());
    assert!(matches!(fixed[12], 0x20 | 0x21), "a version or command that is unknown");
    let (ip, port_at) = match (fixed[12], fixed[13]) {
        (0x21, 0x11) => (IpAddr::from(*addresses.first_chunk::<4>().expect("an address")), 8),
        (0x21, 0x21) => (IpAddr::from(*addresses.first_chunk::<16>().expect("an address")), 32),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes([addresses[port_at], addresses[port_at + 1]])))
}
