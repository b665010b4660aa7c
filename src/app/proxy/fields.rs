//! Which fields a proxy forwards, in both directions, and which it writes itself.
//!
//! The head of a request is written from the parsed request, never copied. Hop-by-hop fields are
//! not forwarded (RFC 9110 §7.6.1). Neither are the fields that `Connection` names, unless they are
//! written here. Fields that identify the client come from a trusted peer or are written here.
//! Framing is not written here: `h1::Client` writes `Content-Length`, `Transfer-Encoding`,
//! `Connection` and `Expect`.

mod line;
mod rules;
mod source;

use smallvec::SmallVec;

use crate::{
    config::HostPolicy,
    http::{Host, Method, RequestContent, RequestHead, Version},
};
use line::{Text, write_field};
use rules::{Rule, is_like};
use source::write_source;
pub(super) use source::{RequestSource, client_address};

/// The name of this server in `Via` (RFC 9110 §7.6.3).
const PSEUDONYM: &[u8] = b"tidegate";

/// A request that passed servers of this kind so often is in a loop.
const PASSES_MAX: usize = 10;

/// Most options of a request's `Connection`.
const NAMED_MAX: usize = 64;

/// The fields that `Connection` names.
#[derive(Default)]
struct ConnectionOptions<'a> {
    names: SmallVec<[&'a [u8]; 4]>,
    /// The number of options, including empty ones.
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

/// The fields of a request, each with its rule, and what they say together.
pub(super) struct RequestFields<'a> {
    request: &'a RequestHead<'a>,
    /// The rule of each field, in order.
    rules: SmallVec<[Rule; 32]>,
    named: ConnectionOptions<'a>,
    /// The value of `Upgrade`, if there is exactly one.
    upgrade: Option<&'a [u8]>,
    /// How often the request passed servers of this kind.
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

    /// Whether `Connection` has more options than any client needs. Each is compared with each
    /// field, so their number is bounded.
    pub(super) fn names_too_many(&self) -> bool {
        self.named.options > NAMED_MAX
    }

    /// Whether the request is in a loop of proxies.
    pub(super) fn is_looping(&self) -> bool {
        self.passes >= PASSES_MAX
    }

    /// Whether the request asks for a WebSocket (RFC 6455 §4.1), the only upgrade that is
    /// forwarded.
    pub(super) fn asks_for_websocket(&self) -> bool {
        self.upgrade.is_some_and(|protocol| protocol.eq_ignore_ascii_case(b"websocket"))
            && self.named.has("upgrade")
            && self.request.method() == Method::Get
            && self.request.version() == Version::Http11
            && !self.request.content().follows()
    }

    /// Writes the head for the upstream without the framing: the request line and the fields, each
    /// line ended by CRLF. If Host depends on the upstream, returns where it has to be inserted.
    pub(super) fn write_head(
        &self,
        source: &RequestSource<'_>,
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
                Rule::Certificate if source.is_trusted && source.certificate.is_none() => {
                    write_field(name, value, out);
                }
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

/// How often a `Via` names servers of this kind.
fn own_passes(via: &[u8]) -> usize {
    let hops = via.split(|byte| *byte == b',');
    let by = |hop: &[u8]| hop.trim_ascii().split(|byte| *byte == b' ').nth(1) == Some(PSEUDONYM);
    hops.filter(|hop| by(hop)).count()
}

/// Whether `Max-Forwards` says that this server must answer the request itself (RFC 9110 §7.6.2).
pub(super) fn ends_here(request: &RequestHead<'_>) -> bool {
    request.method() == Method::Options && request.field("max-forwards") == Some(b"0")
}

/// Writes the fields of an interim or final response that are forwarded to the client. A 101 keeps
/// its `Upgrade`. A 426 must have one (RFC 9110 §15.5.22) and gets our own. Returns whether there
/// is a `Date` among the fields.
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

/// Whether an `Upgrade` offers WebSocket, the only protocol that is forwarded.
fn names_websocket(value: &[u8]) -> bool {
    let mut protocols = value.split(|byte| *byte == b',');
    protocols.any(|protocol| protocol.trim_ascii().eq_ignore_ascii_case(b"websocket"))
}

/// Writes the trailer fields of a request that are forwarded. Some recipients merge them into the
/// head, so fields that have a rule there are dropped.
pub(crate) fn write_request_trailers<'a>(
    fields: impl Iterator<Item = (&'a str, &'a [u8])>,
    out: &mut Vec<u8>,
) {
    write_trailers(fields, rules::of_request, out);
}

/// Writes the trailer fields of a response that are forwarded, like those of a request.
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

/// Writes the request line, with the target in origin-form or `*` (RFC 9112 §3.2).
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

/// Writes Host, or returns where it has to be inserted when the upstream is known. The authority of
/// an absolute-form target replaced the field before (RFC 9112 §3.2.2).
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

/// Whether the target becomes `*`: for OPTIONS, an absolute-form target without path and query does
/// (RFC 9112 §3.2.4).
fn is_server_wide(request: &RequestHead<'_>) -> bool {
    let (target, path) = (request.target(), request.path());
    path == "*"
        || (request.method() == Method::Options
            && !target.starts_with('/')
            && request.query().is_none()
            && target.split_once("://").is_some_and(|(_, rest)| !rest.contains('/')))
}

/// Writes `Via` with the version of the received message (RFC 9110 §7.6.3).
fn write_via(version: Version, out: &mut Vec<u8>) {
    out.extend_from_slice(match version {
        Version::Http10 => b"Via: 1.0 tidegate\r\n",
        Version::Http11 => b"Via: 1.1 tidegate\r\n",
    });
}

/// Writes `Max-Forwards`, less 1 for OPTIONS (RFC 9110 §7.6.2).
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

fn authority(host: Host<'_>) -> Text {
    let mut text = Text::from_slice(host.as_bytes());
    if let Some(port) = host.port() {
        text.push(b':');
        text.extend_from_slice(itoa::Buffer::new().format(port).as_bytes());
    }
    text
}
