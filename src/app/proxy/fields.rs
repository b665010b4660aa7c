//! Which fields go on, in both directions, and which are written anew.
//!
//! The head of a request is written from what was parsed, never copied through. What only concerns
//! one connection stays on it (RFC 9110 §7.6.1), and so does what `Connection` names, but for the
//! fields that are written here. What says who the client is comes from a trusted peer or from
//! here. Never writes framing: content length, transfer coding and `Connection` belong to whoever
//! knows content and connection, and with them `Expect`.

mod rules;

use std::{io::Write as _, net::IpAddr};

use smallvec::SmallVec;

use crate::{
    config::{Cidr, HostPolicy},
    http::{Host, Method, RequestContent, RequestHead, Version},
    logging::RequestId,
};
use rules::{Rule, is_like};

/// How this server calls itself in `Via` (RFC 9110 §7.6.3).
const PSEUDONYM: &[u8] = b"tidegate";

/// How often a request may have gone through servers like this one.
const PASSES_MAX: usize = 10;

/// The most options of a request's `Connection`.
const NAMED_MAX: usize = 64;

/// Bytes of an `X-Request-Id` that is passed on.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// The fields that `Connection` names.
#[derive(Default)]
struct ConnectionOptions<'a> {
    names: SmallVec<[&'a [u8]; 4]>,
    /// Options, empty ones too.
    options: usize,
}

impl<'a> ConnectionOptions<'a> {
    fn add(&mut self, value: &'a [u8]) {
        for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            self.options += 1;
            if !option.is_empty() && self.options <= NAMED_MAX {
                self.names.push(option);
            }
        }
    }

    fn has(&self, name: &str) -> bool {
        self.names.iter().any(|named| named.eq_ignore_ascii_case(name.as_bytes()))
    }
}

/// What is known of where a request comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestSource {
    /// The address of the peer; none on a unix socket.
    pub(super) peer: Option<IpAddr>,
    /// Whether the peer is a trusted proxy.
    pub(super) is_trusted: bool,
    /// The id of the request, if its peer gives none that counts.
    pub(super) id: RequestId,
}

/// The fields of a request, each looked up once, and what they say together.
pub(super) struct RequestFields<'a> {
    request: &'a RequestHead<'a>,
    /// One for each field.
    rules: SmallVec<[Rule; 32]>,
    named: ConnectionOptions<'a>,
    /// What `Upgrade` asks for, if it stands once.
    upgrade: Option<&'a [u8]>,
    /// How often servers like this one had the request.
    passes: usize,
}

impl<'a> RequestFields<'a> {
    pub(super) fn of(request: &'a RequestHead<'a>) -> Self {
        let mut upgrades = 0;
        let (rules, named) = (SmallVec::new(), ConnectionOptions::default());
        let mut survey = Self { request, rules, named, upgrade: None, passes: 0 };
        for (name, value) in request.fields() {
            let rule = rules::of_request(name);
            match rule {
                Rule::Connection => survey.named.add(value),
                Rule::Upgrade => {
                    upgrades += 1;
                    survey.upgrade = (upgrades == 1).then_some(value);
                }
                Rule::Via => survey.passes += own_passes(value),
                _ => {}
            }
            survey.rules.push(rule);
        }
        survey
    }

    /// Whether `Connection` names more than any client has reason to: each is compared with each
    /// field.
    pub(super) fn names_too_many(&self) -> bool {
        self.named.options > NAMED_MAX
    }

    /// Whether the request has gone in circles.
    pub(super) fn is_looping(&self) -> bool {
        self.passes >= PASSES_MAX
    }

    /// Whether the request asks for a WebSocket (RFC 6455 §4.1): the one upgrade that goes on.
    pub(super) fn asks_for_websocket(&self) -> bool {
        self.upgrade.is_some_and(|protocol| protocol.eq_ignore_ascii_case(b"websocket"))
            && self.named.has("upgrade")
            && self.request.method() == Method::Get
            && self.request.version() == Version::Http11
            && !self.request.content().follows()
    }

    /// Writes the head that the upstream gets, but for the framing: the request line and the
    /// fields, each line ended by CRLF. Returns where Host belongs, if it depends on the upstream.
    pub(super) fn write_head(
        &self,
        source: &RequestSource,
        host: &HostPolicy,
        is_websocket: bool,
        out: &mut Vec<u8>,
    ) -> Option<usize> {
        let request = self.request;
        let authority = request.host().map(authority);
        write_request_line(request, out);
        let host_gap = write_host(authority.as_deref(), host, out);
        for ((name, value), rule) in request.fields().zip(&self.rules) {
            match rule {
                Rule::Pass | Rule::Trailer if self.named.has(name) => {}
                Rule::Pass | Rule::Via | Rule::Date => write_field(name, value, out),
                Rule::Trailer if request.content() == RequestContent::Chunked => {
                    write_field(name, value, out);
                }
                Rule::Identity if source.is_trusted => write_field(name, value, out),
                Rule::MaxForwards => write_max_forwards(request.method(), value, out),
                _ => {}
            }
        }
        if is_websocket {
            out.extend_from_slice(b"Upgrade: websocket\r\n");
        }
        write_via(request.version(), out);
        write_source(request, source, authority.as_deref(), out);
        host_gap
    }
}

/// How often a `Via` names this server.
fn own_passes(via: &[u8]) -> usize {
    let hops = via.split(|byte| *byte == b',');
    let by = |hop: &[u8]| hop.trim_ascii().split(|byte| *byte == b' ').nth(1) == Some(PSEUDONYM);
    hops.filter(|hop| by(hop)).count()
}

/// Whether this server is the last to get the request (RFC 9110 §7.6.2).
pub(super) fn ends_here(request: &RequestHead<'_>) -> bool {
    request.method() == Method::Options && request.field("max-forwards") == Some(b"0")
}

/// Writes the fields of a response, interim or final, that go on to the client; those of 101 with
/// their `Upgrade`, those of 426 with our own, for that response has to have one (RFC 9110
/// §15.5.22). Says whether there is a `Date` among them.
#[must_use = "a response without Date gets one, and one with Date gets no second"]
pub(crate) fn write_response_fields<'a>(
    fields: impl Iterator<Item = (&'a str, &'a [u8])> + Clone,
    version: Version,
    status: u16,
    out: &mut Vec<u8>,
) -> bool {
    let mut named = ConnectionOptions::default();
    for (_, value) in fields.clone().filter(|(name, _)| is_like(name, "connection")) {
        named.add(value);
    }
    let (mut has_date, mut offers_websocket) = (false, false);
    for (name, value) in fields {
        match rules::of_response(name) {
            Rule::Upgrade if status == 101 => write_field(name, value, out),
            Rule::Upgrade if status == 426 => offers_websocket |= names_websocket(value),
            Rule::Drop | Rule::Connection | Rule::Upgrade => {}
            Rule::Date if has_date => {}
            Rule::Date => {
                has_date = true;
                write_field(name, value, out);
            }
            Rule::Via => write_field(name, value, out),
            _ if named.has(name) => {}
            _ => write_field(name, value, out),
        }
    }
    if offers_websocket {
        out.extend_from_slice(b"Upgrade: websocket\r\nConnection: upgrade\r\n");
    }
    write_via(version, out);
    has_date
}

/// Whether an `Upgrade` offers the one protocol that passes through here.
fn names_websocket(value: &[u8]) -> bool {
    let mut protocols = value.split(|byte| *byte == b',');
    protocols.any(|protocol| protocol.trim_ascii().eq_ignore_ascii_case(b"websocket"))
}

/// Writes the trailer fields of a request that go on. Some merge them into the head: what has a
/// rule there has no place here.
pub(crate) fn write_request_trailers<'a>(
    fields: impl Iterator<Item = (&'a str, &'a [u8])>,
    out: &mut Vec<u8>,
) {
    write_trailers(fields, rules::of_request, out);
}

/// The same for those of a response.
pub(crate) fn write_response_trailers<'a>(
    fields: impl Iterator<Item = (&'a str, &'a [u8])>,
    out: &mut Vec<u8>,
) {
    write_trailers(fields, rules::of_response, out);
}

fn write_trailers<'a>(
    fields: impl Iterator<Item = (&'a str, &'a [u8])>,
    rule: fn(&str) -> Rule,
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
fn write_host(authority: Option<&[u8]>, policy: &HostPolicy, out: &mut Vec<u8>) -> Option<usize> {
    match (policy, authority) {
        (HostPolicy::Keep, Some(authority)) => {
            write_field("Host", authority, out);
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
fn write_source(
    request: &RequestHead<'_>,
    source: &RequestSource,
    authority: Option<&[u8]>,
    out: &mut Vec<u8>,
) {
    let told = |name: &'static str| -> SmallVec<[&[u8]; 2]> {
        if !source.is_trusted {
            return SmallVec::new();
        }
        request.fields_named(name).filter(|value| !value.is_empty()).collect()
    };
    // Several of what can only be one say nothing.
    let single = |name: &'static str| match told(name)[..] {
        [value] => Some(value),
        _ => None,
    };
    let peer = source.peer.map(|peer| peer.to_canonical());
    let peer_text = peer.map(address);

    if let Some(peer) = &peer_text {
        out.extend_from_slice(b"X-Forwarded-For: ");
        write_list(&told("x-forwarded-for"), out);
        out.extend_from_slice(peer);
        out.extend_from_slice(b"\r\n");
    }
    write_field("X-Forwarded-Proto", single("x-forwarded-proto").unwrap_or(b"http"), out);
    if let Some(host) = single("x-forwarded-host").or(authority) {
        write_field("X-Forwarded-Host", host, out);
    }

    out.extend_from_slice(b"Forwarded: ");
    write_list(&told("forwarded"), out);
    let (before, after): (&[u8], &[u8]) = match peer {
        Some(IpAddr::V6(_)) => (b"for=\"[", b"]\""),
        _ => (b"for=", b""),
    };
    // RFC 7239 §4. An IPv6 address and a host with its port need quotes.
    for part in [before, peer_text.as_deref().unwrap_or(b"unknown"), after] {
        out.extend_from_slice(part);
    }
    if let Some(host) = authority {
        for part in [b";host=\"", host, b"\""] {
            out.extend_from_slice(part);
        }
    }
    out.extend_from_slice(b";proto=http\r\n");

    let is_id =
        |id: &&[u8]| id.len() <= REQUEST_ID_BYTES_MAX && id.iter().all(u8::is_ascii_graphic);
    match single("x-request-id").filter(is_id) {
        Some(id) => write_field("X-Request-Id", id, out),
        None => write_field("X-Request-Id", &source.id.digits(), out),
    }
}

/// Each value with a separator behind it.
fn write_list(values: &[&[u8]], out: &mut Vec<u8>) {
    for value in values {
        out.extend_from_slice(value);
        out.extend_from_slice(b", ");
    }
}

/// A short text that is written several times into one head; made once, without an allocation.
type Text = SmallVec<[u8; 64]>;

fn authority(host: Host<'_>) -> Text {
    let mut text = Text::from_slice(host.as_bytes());
    if let Some(port) = host.port() {
        text.push(b':');
        text.extend_from_slice(itoa::Buffer::new().format(port).as_bytes());
    }
    text
}

/// Every request has one: what is common goes without the machinery of formatting.
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
            // Memory takes whatever it is given.
            let _ = write!(text, "{address}");
        }
    }
    text
}

/// An address with a port or without.
fn parse_hop(hop: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(hop).ok()?.trim();
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok();
    let address = address.or_else(|| text.parse().ok().map(|it: std::net::SocketAddr| it.ip()));
    address.map(|address| address.to_canonical())
}
