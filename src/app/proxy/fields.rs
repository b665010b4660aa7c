//! Which fields go on, in both directions, and which are written anew.
//!
//! The head of a request is written from what was parsed, never copied through. What only concerns
//! one connection stays on it (RFC 9110 §7.6.1), and so does what `Connection` names, but for the
//! fields that are written here. What says who the client is comes from a trusted peer or from
//! here. Never writes framing: content length, transfer coding and `Connection` belong to whoever
//! knows content and connection, and with them `Expect`.
//!
//! Names are compared with `_` as `-`: CGI and its kin read both as one. A known field that is
//! written so is dropped, whoever sent it.

use std::{io::Write as _, net::IpAddr};

use smallvec::SmallVec;

use crate::{
    config::{Cidr, HostPolicy},
    http::{Host, Method, RequestHead, Version},
    logging::RequestId,
};

/// How this server calls itself in `Via` (RFC 9110 §7.6.3).
const PSEUDONYM: &[u8] = b"tidegate";

/// How often a request may have gone through servers like this one.
const PASSES_MAX: usize = 10;

/// The most options of a request's `Connection`.
const NAMED_MAX: usize = 64;

/// Bytes of an `X-Request-Id` that is passed on.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// Goes on, unless `Connection` names it.
    Pass,
    /// Goes on, whatever `Connection` names.
    Keep,
    /// Goes on from a trusted peer.
    Identity,
    /// Belongs to one connection, or is written by somebody else.
    Drop,
    Date,
    MaxForwards,
    Forwarded,
    ForwardedFor,
    ForwardedHost,
    ForwardedProto,
    RequestId,
}

/// By length first: most fields are none of these.
fn rule(name: &str) -> Rule {
    let known: &[(&str, Rule)] = match name.len() {
        2 => &[("te", Rule::Drop)],
        3 => &[("via", Rule::Keep)],
        4 => &[("host", Rule::Drop), ("date", Rule::Date)],
        // CGI makes HTTP_PROXY of `Proxy`, which clients there take for their own.
        5 => &[("proxy", Rule::Drop)],
        6 => &[("expect", Rule::Drop)],
        7 => &[("trailer", Rule::Drop), ("upgrade", Rule::Drop)],
        9 => &[("forwarded", Rule::Forwarded), ("x-real-ip", Rule::Identity)],
        10 => &[("connection", Rule::Drop), ("keep-alive", Rule::Drop)],
        12 => &[("x-request-id", Rule::RequestId), ("max-forwards", Rule::MaxForwards)],
        14 => &[("content-length", Rule::Drop), ("http2-settings", Rule::Drop)],
        15 => &[("x-forwarded-for", Rule::ForwardedFor)],
        16 => &[("x-forwarded-host", Rule::ForwardedHost)],
        17 => &[("x-forwarded-proto", Rule::ForwardedProto), ("transfer-encoding", Rule::Drop)],
        _ => &[],
    };
    let found = known.iter().find(|(known, _)| is_like(name, known)).map(|(_, rule)| *rule);
    let rule = found.unwrap_or_else(|| {
        let begins = |start: &str| name.get(..start.len()).is_some_and(|it| is_like(it, start));
        if begins("proxy-") {
            Rule::Drop
        } else if begins("x-forwarded-") {
            Rule::Identity
        } else {
            Rule::Pass
        }
    });
    if rule != Rule::Pass && name.contains('_') { Rule::Drop } else { rule }
}

/// Whether a name is `known`, which is in lower case and has `-`.
fn is_like(name: &str, known: &str) -> bool {
    let same = |(a, b): (u8, u8)| a.to_ascii_lowercase() == b || (a == b'_' && b == b'-');
    name.len() == known.len() && name.bytes().zip(known.bytes()).all(same)
}

/// The fields that `Connection` names.
#[derive(Default)]
struct Named<'a>(SmallVec<[&'a [u8]; 4]>);

impl<'a> Named<'a> {
    fn add(&mut self, value: &'a [u8]) {
        let options = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        self.0.extend(options.filter(|option| !option.is_empty()));
    }

    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|named| named.eq_ignore_ascii_case(name.as_bytes()))
    }
}

/// What is known of where a request comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    /// The address of the peer; none on a unix socket.
    pub(super) peer: Option<IpAddr>,
    /// Whether the peer is a trusted proxy.
    pub(super) is_trusted: bool,
    /// The id of the request, if its peer gives none that counts.
    pub(super) id: RequestId,
}

/// A request head that was written anew.
#[derive(Debug)]
pub(super) struct WrittenHead {
    /// The request line and the fields, each line ended by CRLF.
    pub(super) bytes: Vec<u8>,
    /// Where Host belongs, if it depends on the upstream.
    pub(super) host_gap: Option<usize>,
}

/// Whether the request asks for a WebSocket (RFC 6455 §4.1): the one upgrade that goes on.
pub(super) fn asks_for_websocket(request: &RequestHead<'_>) -> bool {
    let mut upgrades = request.fields_named("upgrade");
    let (Some(protocol), None) = (upgrades.next(), upgrades.next()) else { return false };
    let mut named = Named::default();
    request.fields_named("connection").for_each(|value| named.add(value));
    let has_content = request.field("transfer-encoding").is_some()
        || request.field("content-length").is_some_and(|length| length != b"0");
    request.method() == Method::Get
        && request.version() == Version::Http11
        && protocol.eq_ignore_ascii_case(b"websocket")
        && named.has("upgrade")
        && !has_content
}

/// Whether `Connection` names more than any client has reason to: each is compared with each field.
pub(super) fn names_too_many(request: &RequestHead<'_>) -> bool {
    let commas = |value: &[u8]| memchr::memchr_iter(b',', value).count();
    request.fields_named("connection").map(|value| commas(value) + 1).sum::<usize>() > NAMED_MAX
}

/// Whether the request has gone in circles.
pub(super) fn is_looping(request: &RequestHead<'_>) -> bool {
    let hops = request.fields_named("via").flat_map(|via| via.split(|byte| *byte == b','));
    let is_own = |hop: &&[u8]| {
        let by = hop.trim_ascii().split(|byte| *byte == b' ').nth(1);
        by == Some(PSEUDONYM)
    };
    hops.filter(is_own).count() >= PASSES_MAX
}

/// Whether this server is the last to get the request (RFC 9110 §7.6.2).
pub(super) fn ends_here(request: &RequestHead<'_>) -> bool {
    request.method() == Method::Options && request.field("max-forwards") == Some(b"0")
}

/// Writes the head that the upstream gets, but for the framing.
pub(super) fn request_head(
    request: &RequestHead<'_>,
    origin: &Origin,
    host: &HostPolicy,
    is_websocket: bool,
) -> WrittenHead {
    let mut named = Named::default();
    let mut length = request.target().len() + request.method().as_str().len() + 384;
    for (name, value) in request.fields() {
        length += name.len() + value.len() + 4;
        if is_like(name, "connection") {
            named.add(value);
        }
    }
    let mut out = Vec::with_capacity(length);
    write_request_line(request, &mut out);
    let host_gap = write_host(request, host, &mut out);
    for (name, value) in request.fields() {
        match rule(name) {
            Rule::Pass if named.has(name) => {}
            Rule::Pass | Rule::Keep | Rule::Date => write_field(name, value, &mut out),
            Rule::Identity if origin.is_trusted => write_field(name, value, &mut out),
            Rule::MaxForwards => write_max_forwards(request.method(), value, &mut out),
            _ => {}
        }
    }
    if is_websocket {
        out.extend_from_slice(b"Upgrade: websocket\r\n");
    }
    write_via(request.version(), &mut out);
    write_origin(request, origin, &mut out);
    WrittenHead { bytes: out, host_gap }
}

/// Writes the fields of a response, interim or final, that go on to the client; those of 101 with
/// their `Upgrade`. Says whether there is a `Date` among them.
#[must_use = "a response without Date gets one, and one with Date gets no second"]
pub(crate) fn write_response_fields<'a>(
    fields: impl Iterator<Item = (&'a str, &'a [u8])> + Clone,
    version: Version,
    status: u16,
    out: &mut Vec<u8>,
) -> bool {
    let mut named = Named::default();
    for (_, value) in fields.clone().filter(|(name, _)| is_like(name, "connection")) {
        named.add(value);
    }
    let mut has_date = false;
    for (name, value) in fields {
        match rule(name) {
            Rule::Drop if status == 101 && name.eq_ignore_ascii_case("upgrade") => {
                write_field(name, value, out);
            }
            Rule::Drop => {}
            Rule::Date if has_date => {}
            Rule::Date => {
                has_date = true;
                write_field(name, value, out);
            }
            Rule::Keep => write_field(name, value, out),
            _ if named.has(name) => {}
            _ => write_field(name, value, out),
        }
    }
    write_via(version, out);
    has_date
}

/// Writes the trailer fields that go on, in either direction. Some merge them into the head: what
/// has a rule there has no place here.
pub(crate) fn write_trailer_fields<'a>(
    fields: impl Iterator<Item = (&'a str, &'a [u8])>,
    out: &mut Vec<u8>,
) {
    for (name, value) in fields.filter(|(name, _)| rule(name) == Rule::Pass) {
        write_field(name, value, out);
    }
}

/// The client's address: the peer's, or what trusted peers say of it.
pub(super) fn client_address(
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
        // Who cannot be read was said by the one before.
        let Some(address) = parse_hop(hop) else { break };
        client = address;
        if !is_trusted(client) {
            break;
        }
    }
    Some(client)
}

/// The cookie of this name (RFC 6265 §4.2.1).
pub(super) fn cookie<'a>(request: &RequestHead<'a>, name: &str) -> Option<&'a [u8]> {
    let pairs = request.fields_named("cookie").flat_map(|line| line.split(|byte| *byte == b';'));
    for pair in pairs {
        let mut parts = pair.trim_ascii().splitn(2, |byte| *byte == b'=');
        if parts.next() == Some(name.as_bytes()) {
            return parts.next();
        }
    }
    None
}

/// In origin-form, or `*` (RFC 9112 §3.2).
fn write_request_line(request: &RequestHead<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(request.method().as_str().as_bytes());
    out.push(b' ');
    if is_server_wide(request) {
        out.push(b'*');
    } else {
        out.extend_from_slice(request.path().as_bytes());
        if let Some(query) = request.query() {
            out.push(b'?');
            out.extend_from_slice(query.as_bytes());
        }
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
}

/// Writes Host, or says where it belongs when the upstream is known. The authority of an
/// absolute-form target has won over the field already (RFC 9112 §3.2.2).
fn write_host(request: &RequestHead<'_>, policy: &HostPolicy, out: &mut Vec<u8>) -> Option<usize> {
    match (policy, request.host()) {
        (HostPolicy::Keep, Some(host)) => {
            out.extend_from_slice(b"Host: ");
            write_authority(host, out);
            out.extend_from_slice(b"\r\n");
            None
        }
        (HostPolicy::Fixed(host), _) => {
            write_field("Host", host.as_bytes(), out);
            None
        }
        (HostPolicy::Upstream, _) | (HostPolicy::Keep, None) => Some(out.len()),
    }
}

/// An absolute-form target of OPTIONS that has neither path nor query is `*` for the last server
/// (RFC 9112 §3.2.4).
fn is_server_wide(request: &RequestHead<'_>) -> bool {
    let (target, path) = (request.target(), request.path());
    path == "*"
        || (request.method() == Method::Options
            && !target.starts_with('/')
            && request.query().is_none()
            && target.split_once("://").is_some_and(|(_, rest)| !rest.contains('/')))
}

fn write_field(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// The message that came had this version (RFC 9110 §7.6.3).
fn write_via(version: Version, out: &mut Vec<u8>) {
    out.extend_from_slice(match version {
        Version::Http10 => b"Via: 1.0 tidegate\r\n",
        Version::Http11 => b"Via: 1.1 tidegate\r\n",
    });
}

/// One less, where it counts (RFC 9110 §7.6.2).
fn write_max_forwards(method: Method<'_>, value: &[u8], out: &mut Vec<u8>) {
    let number = str::from_utf8(value).ok().and_then(|text| text.parse::<u32>().ok());
    match number {
        Some(number) if method == Method::Options => {
            let mut digits = itoa::Buffer::new();
            write_field("Max-Forwards", digits.format(number.saturating_sub(1)).as_bytes(), out);
        }
        _ => write_field("Max-Forwards", value, out),
    }
}

/// Writes who asks, for which host and by which scheme.
fn write_origin(request: &RequestHead<'_>, origin: &Origin, out: &mut Vec<u8>) {
    let trusted = |name: &'static str| {
        let fields = origin.is_trusted.then(|| request.fields_named(name));
        fields.into_iter().flatten().filter(|value| !value.is_empty())
    };
    // Several of what can only be one say nothing.
    let single = |name: &'static str| {
        let mut values = trusted(name);
        values.next().filter(|_| values.next().is_none())
    };
    let peer = origin.peer.map(|peer| peer.to_canonical());

    if let Some(peer) = peer {
        out.extend_from_slice(b"X-Forwarded-For: ");
        write_list(trusted("x-forwarded-for"), out);
        write_address(peer, out);
        out.extend_from_slice(b"\r\n");
    }
    write_field("X-Forwarded-Proto", single("x-forwarded-proto").unwrap_or(b"http"), out);
    if let Some(host) = single("x-forwarded-host") {
        write_field("X-Forwarded-Host", host, out);
    } else if let Some(host) = request.host() {
        out.extend_from_slice(b"X-Forwarded-Host: ");
        write_authority(host, out);
        out.extend_from_slice(b"\r\n");
    }

    out.extend_from_slice(b"Forwarded: ");
    write_list(trusted("forwarded"), out);
    write_forwarded_element(peer, request.host(), out);
    out.extend_from_slice(b"\r\n");

    let is_id =
        |id: &&[u8]| id.len() <= REQUEST_ID_BYTES_MAX && id.iter().all(u8::is_ascii_graphic);
    match single("x-request-id").filter(is_id) {
        Some(id) => write_field("X-Request-Id", id, out),
        None => write_field("X-Request-Id", &origin.id.digits(), out),
    }
}

/// RFC 7239 §4. An IPv6 address and a host with its port need quotes.
fn write_forwarded_element(peer: Option<IpAddr>, host: Option<Host<'_>>, out: &mut Vec<u8>) {
    match peer {
        None => out.extend_from_slice(b"for=unknown"),
        Some(peer @ IpAddr::V4(_)) => {
            out.extend_from_slice(b"for=");
            write_address(peer, out);
        }
        Some(peer @ IpAddr::V6(_)) => {
            out.extend_from_slice(b"for=\"[");
            write_address(peer, out);
            out.extend_from_slice(b"]\"");
        }
    }
    if let Some(host) = host {
        out.extend_from_slice(b";host=\"");
        write_authority(host, out);
        out.push(b'"');
    }
    out.extend_from_slice(b";proto=http");
}

/// Each value with a separator behind it.
fn write_list<'a>(values: impl Iterator<Item = &'a [u8]>, out: &mut Vec<u8>) {
    for value in values {
        out.extend_from_slice(value);
        out.extend_from_slice(b", ");
    }
}

fn write_authority(host: Host<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(host.as_bytes());
    if let Some(port) = host.port() {
        out.push(b':');
        out.extend_from_slice(itoa::Buffer::new().format(port).as_bytes());
    }
}

/// Every request has one: what is common goes without the machinery of formatting.
fn write_address(address: IpAddr, out: &mut Vec<u8>) {
    match address {
        IpAddr::V4(address) => {
            let mut digits = itoa::Buffer::new();
            for (index, octet) in address.octets().into_iter().enumerate() {
                if index > 0 {
                    out.push(b'.');
                }
                out.extend_from_slice(digits.format(octet).as_bytes());
            }
        }
        IpAddr::V6(address) => {
            // Memory takes whatever it is given.
            let _ = write!(out, "{address}");
        }
    }
}

/// An address with a port or without.
fn parse_hop(hop: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(hop).ok()?.trim();
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok();
    let address = address.or_else(|| text.parse().ok().map(|it: std::net::SocketAddr| it.ip()));
    address.map(|address| address.to_canonical())
}
