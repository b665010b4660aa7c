//! The `proxy` kind: passes requests on to other servers.
//!
//! Owns what can be known without a socket: the choice of an upstream, the fields in both
//! directions, the state of upstreams, and the plan of their checks. Opens no connection: a
//! [`Forward`] tells the loop all that it needs to.

mod addresses;
mod balance;
mod endpoint;
mod failure;
mod fields;
mod health;
mod one_upstream;
#[cfg(test)]
mod tests;
mod upstreams;

use std::{net::IpAddr, sync::Arc};

use crate::{
    config::{Balance, HashBy, ProxyConfig},
    http::{Method, RequestHead, Response, ResponseHead},
};

use super::{App, Context, Peer, Reply, error_response};

pub(crate) use endpoint::{Endpoint, EndpointRow, EndpointState};
pub(crate) use failure::{FailureCause, LastFailure, UpstreamFailure};
pub(crate) use fields::{write_request_trailers, write_response_fields, write_response_trailers};
pub(crate) use health::HealthPlan;
pub(crate) use one_upstream::OneUpstream;
pub use upstreams::Upstreams;
pub(crate) use upstreams::{Address, Chosen, KeptLine, NoUpstream, PoolKey};

use fields::{Origin, Survey};
use upstreams::Seat;

/// An app that passes requests on.
#[derive(Debug)]
pub struct Proxy {
    upstreams: Arc<Upstreams>,
    /// One for each loop, so that no count of references is shared on the request path.
    seats: Box<[Arc<Seat>]>,
}

impl Proxy {
    /// An app that passes on as `config` says, for this many loops. It resolves the names of the
    /// upstreams, and waits for that; one whose name has no address is down.
    pub fn open(config: ProxyConfig, loops: usize) -> Self {
        Self::of(Upstreams::open(config, loops), loops)
    }

    /// The field lines of an upstream's response, interim or final, that go on to a client, each
    /// ended by CRLF; and whether there is a `Date` among them. Framing is not.
    pub fn response_fields(head: &ResponseHead<'_>) -> (Vec<u8>, bool) {
        let mut lines = Vec::new();
        let has_date =
            write_response_fields(head.fields(), head.version(), head.status(), &mut lines);
        (lines, has_date)
    }

    fn of(upstreams: Upstreams, loops: usize) -> Self {
        let upstreams = Arc::new(upstreams);
        let seat = |loop_index| Arc::new(Seat::new(Arc::clone(&upstreams), loop_index));
        Self { seats: (0..loops).map(seat).collect(), upstreams }
    }

    fn forward(
        &self,
        survey: &Survey<'_>,
        request: &RequestHead<'_>,
        context: &Context,
    ) -> Forward {
        let seat = Arc::clone(&self.seats[context.loop_index]);
        let config = self.upstreams.config();
        let peer = match context.peer {
            Peer::Tcp(peer) => Some(peer.ip()),
            Peer::Unix => None,
        };
        let is_trusted = |peer| config.trusted_proxies.iter().any(|net| net.contains(peer));
        let origin = Origin {
            peer,
            is_trusted: peer.is_some_and(is_trusted),
            id: context.request_id.unwrap_or_else(|| seat.next_id()),
        };
        let asks_upgrade = survey.asks_for_websocket();
        let mut head = seat.take_head();
        let host_gap = survey.write_head(&origin, &config.host, asks_upgrade, &mut head);
        Forward {
            head,
            host_gap,
            key: key(config, request, peer),
            is_head: request.method() == Method::Head,
            is_idempotent: is_idempotent(request.method()),
            asks_upgrade,
            seat,
        }
    }
}

impl App for Proxy {
    fn handle<'a>(&'a self, request: &RequestHead<'_>, context: &Context) -> Reply<'a> {
        let survey = Survey::of(request);
        if survey.names_too_many() {
            return Reply::Full(error_response(400));
        }
        if survey.is_looping() {
            return Reply::Full(Response::json(508, r#"{"error":"Loop detected"}"#));
        }
        if fields::ends_here(request) {
            return Reply::Full(Response::new(204));
        }
        Reply::Forward(self.forward(&survey, request, context))
    }

    fn kind(&self) -> &'static str {
        "proxy"
    }

    fn upstreams(&self) -> Option<&Arc<Upstreams>> {
        Some(&self.upstreams)
    }

    fn again(&self) -> Option<Arc<dyn App>> {
        Some(Arc::new(Self::of(self.upstreams.again(self.seats.len()), self.seats.len())))
    }
}

/// A request that is to be passed on: what the loop needs for that.
#[derive(Debug)]
pub struct Forward {
    seat: Arc<Seat>,
    head: Vec<u8>,
    host_gap: Option<usize>,
    key: Option<u64>,
    is_head: bool,
    is_idempotent: bool,
    asks_upgrade: bool,
}

impl Forward {
    /// What the app was configured as: times and counts for the loop.
    pub(crate) fn config(&self) -> &ProxyConfig {
        self.seat.upstreams().config()
    }

    /// Chooses an upstream, none of those that failed for this request. `now_ns`: nanoseconds of
    /// the process's epoch, as everywhere here.
    pub(crate) fn choose(&self, now_ns: u64, tried: &[usize]) -> Result<Chosen, NoUpstream> {
        self.seat.choose(self.key, now_ns, tried)
    }

    /// There was no upstream to ask. If it is to be logged: how many were not since the last one.
    pub(crate) fn note_unserved(&self, failure: UpstreamFailure, now_ns: u64) -> Option<u64> {
        self.seat.note_unserved(failure, now_ns)
    }

    /// Method and target, as the upstream gets them.
    pub(crate) fn request(&self) -> Option<(&str, &str)> {
        let line = self.head.split(|byte| *byte == b'\r').next()?;
        let (method, rest) = str::from_utf8(line).ok()?.split_once(' ')?;
        Some((method, rest.split_once(' ')?.0))
    }

    /// Writes request line and fields for this upstream, each line ended by CRLF. What is missing
    /// is the framing (`Content-Length` or `Transfer-Encoding`), `Connection`, `Expect`, and the
    /// empty line.
    pub(crate) fn write_head(&self, chosen: &Chosen, out: &mut Vec<u8>) {
        let Some(gap) = self.host_gap else { return out.extend_from_slice(&self.head) };
        let authority = chosen.endpoint().authority().as_bytes();
        for part in [&self.head[..gap], b"Host: ", authority, b"\r\n", &self.head[gap..]] {
            out.extend_from_slice(part);
        }
    }

    /// Request line and fields as the first upstream would get them, each line ended by CRLF:
    /// without the framing, `Connection`, `Expect` and the empty line.
    pub fn upstream_head(&self) -> Vec<u8> {
        let Some(gap) = self.host_gap else { return self.head.clone() };
        let endpoints = self.seat.upstreams().endpoints();
        let authority = endpoints.first().map_or("", Endpoint::authority).as_bytes();
        [&self.head[..gap], b"Host: ", authority, b"\r\n", &self.head[gap..]].concat()
    }

    /// Whether the answer has no content, whatever it says (RFC 9110 §9.3.2).
    pub(crate) fn is_head(&self) -> bool {
        self.is_head
    }

    /// Whether the request may be sent twice without harm (RFC 9110 §9.2.2), as far as its method
    /// says; one of which content is gone may not.
    pub(crate) fn is_idempotent(&self) -> bool {
        self.is_idempotent
    }

    /// Whether 101 may be the answer; the head has an `Upgrade` then.
    pub fn asks_upgrade(&self) -> bool {
        self.asks_upgrade
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.seat.give_head(std::mem::take(&mut self.head));
    }
}

/// What `balance = "hash"` goes by.
fn key(config: &ProxyConfig, request: &RequestHead<'_>, peer: Option<IpAddr>) -> Option<u64> {
    let Balance::Hash(by) = &config.balance else { return None };
    match by {
        HashBy::Client => match fields::client_address(request, peer, &config.trusted_proxies)? {
            IpAddr::V4(client) => Some(balance::hash(&client.octets())),
            IpAddr::V6(client) => Some(balance::hash(&client.octets())),
        },
        HashBy::Header(name) => request.field(name).map(balance::hash),
        HashBy::Cookie(name) => fields::cookie(request, name).map(balance::hash),
    }
}

fn is_idempotent(method: Method<'_>) -> bool {
    match method {
        Method::Get
        | Method::Head
        | Method::Options
        | Method::Trace
        | Method::Put
        | Method::Delete => true,
        Method::Post | Method::Connect | Method::Patch | Method::Other(_) => false,
    }
}
