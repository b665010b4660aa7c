//! Where a request comes from, and the fields that say so to the upstream.

use std::{io::Write as _, net::IpAddr};

use smallvec::SmallVec;

use super::line::{Text, write_field};
use crate::{
    app::{ClientCertificate, Scheme},
    config::Cidr,
    http::RequestHead,
    logging::RequestId,
};

/// Most bytes of an `X-Request-Id` that is forwarded.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct RequestSource<'a> {
    /// The address of the peer; `None` on a unix socket.
    pub(in super::super) peer: Option<IpAddr>,
    /// Whether the peer is a trusted proxy.
    pub(in super::super) is_trusted: bool,
    /// The scheme, unless a trusted peer says another one.
    pub(in super::super) scheme: Scheme,
    /// The certificate that the client has shown to this server.
    pub(in super::super) certificate: Option<&'a ClientCertificate>,
    /// The id of the request, unless a trusted peer sends a valid one.
    pub(in super::super) id: RequestId,
}

/// The client's address: the peer's, or the one that trusted peers report in `X-Forwarded-For`.
pub(in super::super) fn client_address(
    request: &RequestHead<'_>,
    peer: Option<IpAddr>,
    trusted: &[Cidr],
) -> Option<IpAddr> {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut client = peer?;
    if !is_trusted(client) {
        return Some(client);
    }
    let lines: SmallVec<[&[u8]; 4]> = request.fields_named("x-forwarded-for").collect();
    let hops = lines.iter().rev().flat_map(|line| line.rsplit(|byte| *byte == b','));
    for hop in hops {
        // Behind a hop that is no address, the list cannot be trusted.
        let Some(address) = parse_hop(hop) else { break };
        client = address;
        if !is_trusted(client) {
            break;
        }
    }
    Some(client)
}

/// Writes the fields that say which client sent the request, to which host and with which scheme.
pub(super) fn write_source(
    request: &RequestHead<'_>,
    source: &RequestSource<'_>,
    authority: Option<&[u8]>,
    out: &mut Vec<u8>,
) {
    let received = |name: &'static str| -> SmallVec<[&[u8]; 2]> {
        if !source.is_trusted {
            return SmallVec::new();
        }
        request.fields_named(name).filter(|value| !value.is_empty()).collect()
    };
    // A field that may occur once is ignored if it occurs more often.
    let single = |name: &'static str| match received(name)[..] {
        [value] => Some(value),
        _ => None,
    };
    let scheme = source.scheme.as_str().as_bytes();
    let peer = source.peer.map(|peer| peer.to_canonical());
    let peer_text = peer.map(address);

    if let Some(peer) = &peer_text {
        out.extend_from_slice(b"X-Forwarded-For: ");
        write_list(&received("x-forwarded-for"), out);
        out.extend_from_slice(peer);
        out.extend_from_slice(b"\r\n");
    }
    write_field("X-Forwarded-Proto", single("x-forwarded-proto").unwrap_or(scheme), out);
    if let Some(host) = single("x-forwarded-host").or(authority) {
        write_field("X-Forwarded-Host", host, out);
    }

    out.extend_from_slice(b"Forwarded: ");
    write_list(&received("forwarded"), out);
    let (before, after): (&[u8], &[u8]) = match peer {
        Some(IpAddr::V6(_)) => (b"for=\"[", b"]\""),
        _ => (b"for=", b""),
    };
    // An IPv6 address, and a host with a port, need quotes (RFC 7239 §4).
    for part in [before, peer_text.as_deref().unwrap_or(b"unknown"), after] {
        out.extend_from_slice(part);
    }
    if let Some(host) = authority {
        for part in [b";host=\"", host, b"\""] {
            out.extend_from_slice(part);
        }
    }
    for part in [b";proto=", scheme, b"\r\n"] {
        out.extend_from_slice(part);
    }
    if let Some(certificate) = source.certificate {
        write_certificate(certificate, out);
    }

    let is_id =
        |id: &&[u8]| id.len() <= REQUEST_ID_BYTES_MAX && id.iter().all(u8::is_ascii_graphic);
    match single("x-request-id").filter(is_id) {
        Some(id) => write_field("X-Request-Id", id, out),
        None => write_field("X-Request-Id", &source.id.digits(), out),
    }
}

/// Writes what the client's certificate says.
fn write_certificate(certificate: &ClientCertificate, out: &mut Vec<u8>) {
    let (subject, names) = (certificate.subject(), certificate.names());
    for (name, value) in [
        ("X-Client-Cert-Subject", subject),
        ("X-Client-Cert-San", names),
        ("X-Client-Cert-Fingerprint", certificate.fingerprint()),
    ] {
        write_field(name, value.as_bytes(), out);
    }
}

/// Writes each value with a separator behind it.
fn write_list(values: &[&[u8]], out: &mut Vec<u8>) {
    for value in values {
        out.extend_from_slice(value);
        out.extend_from_slice(b", ");
    }
}

/// The text of an address. Every request needs one, so IPv4 avoids `fmt`.
fn address(address: IpAddr) -> Text {
    let mut text = Text::new();
    match address {
        IpAddr::V4(address) => {
            let mut digits = itoa::Buffer::new();
            for (index, octet) in address.octets().into_iter().enumerate() {
                if index > 0 {
                    text.push(b'.');
                }
                text.extend_from_slice(digits.format(octet).as_bytes());
            }
        }
        IpAddr::V6(address) => {
            // Writing to memory cannot fail.
            let _ = write!(text, "{address}");
        }
    }
    text
}

/// The address of a hop, which may have a port.
fn parse_hop(hop: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(hop).ok()?.trim();
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok();
    let address = address.or_else(|| text.parse().ok().map(|it: std::net::SocketAddr| it.ip()));
    address.map(|address| address.to_canonical())
}
