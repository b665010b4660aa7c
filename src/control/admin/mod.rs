//! The admin API: what operators ask over HTTP on the admin listener.
//!
//! [`AdminApp`] runs on the loops, as any app: it checks the client, and passes requests on to the
//! `admin` thread, which owns the routes. Everything that takes time is a [`Later`]: no loop ever
//! waits. What only has to be looked up is answered here; changes go to control, and what may wait
//! for a disk to the operator.

mod answers;
mod call;
mod certificates;
mod changes;
mod connections;
mod deploys;
mod health;
mod look_up;
mod routes;
mod show;
mod thread;
mod upstreams;

use std::sync::{Arc, atomic::AtomicBool};

use crossbeam_channel::Sender;

use crate::{
    app::{App, Context, Later, Peer, Reply},
    http::{RequestHead, Response},
};

pub(crate) use health::HealthApp;
pub(crate) use thread::{Admin, Facts};

use answers::error;

/// A request for the admin thread.
#[derive(Debug)]
pub(crate) struct AdminRequest {
    method: String,
    path: String,
    query: String,
    accept: Option<String>,
    content: Vec<u8>,
    /// On the unix socket, which is for the server's user alone.
    is_by_owner: bool,
}

/// What the admin listener serves.
pub(crate) struct AdminApp {
    requests: Sender<(AdminRequest, Later)>,
    /// What a peer on TCP has to know; a unix socket is protected by its mode.
    token: Option<String>,
    /// A stop has begun.
    stopping: Arc<AtomicBool>,
}

/// The names by which a client on this machine reaches it. Any other is a web page that has its own
/// name resolve to this machine.
const HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

const BEARER: &[u8] = b"bearer";

impl AdminApp {
    /// Passes requests on by this channel.
    pub(crate) fn new(
        requests: Sender<(AdminRequest, Later)>,
        token: Option<String>,
        stopping: Arc<AtomicBool>,
    ) -> Self {
        Self { requests, token, stopping }
    }

    fn refusal(
        &self,
        request: &RequestHead<'_>,
        context: &Context<'_>,
    ) -> Option<Response<'static>> {
        let host = request.host().map(|host| host.name());
        if !host.is_none_or(|host| HOSTS.iter().any(|known| host.eq_ignore_ascii_case(known))) {
            return Some(error(421, "the admin API is asked by the host name localhost"));
        }
        if context.peer == Peer::Unix || self.knows_token(request) {
            return None;
        }
        let refusal = error(401, "send the config's admin.token: Authorization: Bearer TOKEN");
        Some(refusal.with_field("WWW-Authenticate", "Bearer"))
    }

    fn knows_token(&self, request: &RequestHead<'_>) -> bool {
        let mut fields = request.fields_named("authorization");
        let (Some(field), None, Some(token)) = (fields.next(), fields.next(), &self.token) else {
            return false;
        };
        // RFC 9110 §11.4: the scheme, one space or more, and the token.
        let (scheme, rest) = field.split_at_checked(BEARER.len()).unwrap_or_default();
        let sent = rest.trim_ascii_start();
        let is_apart = rest.first() == Some(&b' ');
        scheme.eq_ignore_ascii_case(BEARER) && is_apart && is_same(sent, token.as_bytes())
    }
}

impl App for AdminApp {
    fn handle<'a>(&'a self, request: &RequestHead<'_>, context: &Context<'_>) -> Reply<'a> {
        // Probes need no token: their answers hold no secret. They don't wait for the admin thread.
        let probe = health::probe(request, &self.stopping);
        let at_once = probe.or_else(|| self.refusal(request, context));
        if let Some(response) = at_once {
            return Reply::Full(response);
        }
        let requests = self.requests.clone();
        let mut request = AdminRequest {
            method: request.method().as_str().to_owned(),
            path: request.path().to_owned(),
            query: request.query().unwrap_or_default().to_owned(),
            accept: request
                .field("accept")
                .and_then(|field| str::from_utf8(field).ok())
                .map(Into::into),
            content: Vec::new(),
            is_by_owner: context.peer == Peer::Unix,
        };
        Reply::Collect(Box::new(move |content| {
            request.content = content.to_vec();
            // Without an admin thread the `Later` comes back, and is answered with 500.
            Reply::Later(Box::new(move |later| drop(requests.send((request, later)))))
        }))
    }

    fn kind(&self) -> &'static str {
        "admin"
    }
}

/// Compares in constant time for texts of one length, so that timing reveals nothing of a token.
fn is_same(sent: &[u8], token: &[u8]) -> bool {
    let differs = sent.iter().zip(token).fold(0, |differs, (a, b)| differs | (a ^ b));
    sent.len() == token.len() && differs == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::test_support::request;

    const TOKEN: &str = "0123456789abcdef";

    fn is_known(fields: &[(&str, &str)]) -> bool {
        let (requests, _) = crossbeam_channel::unbounded();
        let app = AdminApp::new(requests, Some(TOKEN.to_owned()), Arc::default());
        app.knows_token(&request("GET", "/status", fields))
    }

    #[test]
    fn the_token_is_told_once_and_whole() {
        let bearer = |token: &str| format!("Bearer {token}");
        assert!(is_known(&[("Authorization", &bearer(TOKEN))]));
        assert!(is_known(&[("authorization", &format!("bearer {TOKEN}"))]));
        assert!(is_known(&[("Authorization", &format!("Bearer   {TOKEN}"))]));
        assert!(!is_known(&[("Authorization", &format!("Bearer\t{TOKEN}"))]));
        assert!(!is_known(&[("Authorization", &format!("Bearer{TOKEN}"))]));
        for wrong in ["", "Bearer", TOKEN, &bearer("0123456789abcdeF"), &bearer(&TOKEN[..15])] {
            assert!(!is_known(&[("Authorization", wrong)]), "{wrong:?}");
        }
        assert!(!is_known(&[("Authorization", &bearer(TOKEN)), ("Authorization", &bearer(TOKEN))]));
        assert!(!is_known(&[]));
    }
}
