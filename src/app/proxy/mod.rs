//! The `proxy` kind: forwards requests to other servers.
//!
//! Owns everything that needs no socket: the choice of an upstream, the fields in both directions,
//! the state of upstreams, and the plan of their checks. Opens no connection: the loop does, with a
//! [`Forward`].

mod addresses;
mod balance;
mod endpoint;
mod endpoint_row;
mod failure;
mod fields;
mod forward;
mod health;
mod no_upstream;
mod one_upstream;
#[cfg(test)]
mod tests;
mod upstream_tls;
mod upstreams;

use std::{net::IpAddr, sync::Arc};

use crate::{
    config::{Balance, HashBy, ProxyConfig},
    http::{Method, RequestHead, Response, ResponseHead},
};

use super::{App, Context, LoadError, Peer, Reply, error_response};

pub(crate) use endpoint::Endpoint;
pub(crate) use endpoint_row::{EndpointRow, EndpointState};
pub(crate) use failure::{FailureCause, LastFailure, UpstreamFailure};
pub(crate) use fields::{write_request_trailers, write_response_fields, write_response_trailers};
pub use forward::Forward;
pub(crate) use health::HealthPlan;
pub(crate) use one_upstream::OneUpstream;
pub(crate) use upstream_tls::UpstreamTls;
pub use upstreams::Upstreams;
pub(crate) use upstreams::{ChosenUpstream, ConnectAddress, KeptConn, PoolKey};

use fields::{RequestFields, RequestSource};
use upstreams::LoopShare;

/// An app that forwards requests.
#[derive(Debug)]
pub struct Proxy {
    upstreams: Arc<Upstreams>,
    /// One share per loop, so that loops don't contend for a reference count on the request path.
    shares: Box<[Arc<LoopShare>]>,
}

impl Proxy {
    /// An app that forwards as `config` says, for this many loops. Resolves the names of the
    /// upstreams, which blocks. An upstream whose name has no address is down.
    ///
    /// # Errors
    /// When a file for TLS to upstreams cannot be used.
    pub fn open(config: ProxyConfig, loops: usize) -> Result<Self, LoadError> {
        let tls = UpstreamTls::load(&config)?;
        Ok(Self::of(Upstreams::open(config, tls, loops), loops))
    }

    /// The field lines of an upstream's interim or final response that are forwarded to a client,
    /// each ended by CRLF, without framing; and whether there is a `Date` among them.
    pub fn response_fields(head: &ResponseHead<'_>) -> (Vec<u8>, bool) {
        let mut lines = Vec::new();
        let has_date =
            write_response_fields(head.fields(), head.version(), head.status(), &mut lines);
        (lines, has_date)
    }

    fn of(upstreams: Upstreams, loops: usize) -> Self {
        let upstreams = Arc::new(upstreams);
        let share = |loop_index| Arc::new(LoopShare::new(Arc::clone(&upstreams), loop_index));
        Self { shares: (0..loops).map(share).collect(), upstreams }
    }

    fn forward(
        &self,
        fields: &RequestFields<'_>,
        request: &RequestHead<'_>,
        context: &Context<'_>,
    ) -> Forward {
        let share = Arc::clone(&self.shares[context.loop_index]);
        let config = self.upstreams.config();
        let peer = match context.peer {
            Peer::Tcp(peer) => Some(peer.ip()),
            Peer::Unix => None,
        };
        let is_trusted = |peer| config.trusted_proxies.iter().any(|net| net.contains(peer));
        let source = RequestSource {
            peer,
            is_trusted: peer.is_some_and(is_trusted),
            scheme: context.scheme,
            certificate: context.client_certificate,
            id: context.request_id.unwrap_or_else(|| share.next_id()),
        };
        let asks_upgrade = fields.asks_for_websocket();
        let mut head = share.take_head();
        let host_gap = fields.write_head(&source, &config.host, asks_upgrade, &mut head);
        Forward {
            head,
            host_gap,
            key: key(config, request, peer),
            is_head: request.method() == Method::Head,
            is_idempotent: is_idempotent(request.method()),
            asks_upgrade,
            share,
        }
    }
}

impl App for Proxy {
    fn handle<'a>(&'a self, request: &RequestHead<'_>, context: &Context<'_>) -> Reply<'a> {
        let fields = RequestFields::of(request);
        if fields.names_too_many() {
            return Reply::Full(error_response(400));
        }
        if fields.is_looping() {
            return Reply::Full(Response::json(508, r#"{"error":"Loop detected"}"#));
        }
        if fields::ends_here(request) {
            return Reply::Full(Response::new(204));
        }
        Reply::Forward(self.forward(&fields, request, context))
    }

    fn kind(&self) -> &'static str {
        "proxy"
    }

    fn upstreams(&self) -> Option<&Arc<Upstreams>> {
        Some(&self.upstreams)
    }

    fn again(&self) -> Option<Arc<dyn App>> {
        Some(Arc::new(Self::of(self.upstreams.again(self.shares.len()), self.shares.len())))
    }
}

/// The key of a request for `balance = "hash"`; `None` for another balance, or a request without
/// the header or cookie.
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
