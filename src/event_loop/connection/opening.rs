//! What precedes the first request: a PROXY header, which names the client, and a TLS handshake.
//!
//! ```text
//!  ProxyHeader ──header──► Hello ──its name chooses the site──► Handshake ──over──► Http
//!     │   └─────no TLS──────────────────────────────────────────────────────────────►┘
//!     │                      │ no TLS: 400 │ unknown name: alert    │ failed: alert
//!     └─refused─► closed     └─────────────┴────────────────────────┴─────► Lingering
//! ```
//! - A connection with a refused header is dropped without an answer, counted, and logged at a
//!   limited rate. So is a connection of a client at its limit.
//! - No byte of the header, and none of the handshake, reaches the protocol.
//! - `head_timeout` covers all of it: the connection is fresh until its first request begins. It
//!   holds one input buffer at most.
//! - Each handshake is counted once, when it is over. It begins with the first byte of the hello,
//!   and ends when it leaves `Hello` or `Handshake` for `Http` or `Lingering`, or is closed there.
//! - The hello is read where it lies, before there is a session. The session then reads it again.

use std::{io, sync::Arc};

use super::{
    super::{context::LoopContext, handshakes::FailedHandshake},
    state::{Connection, Next, Opening, State},
};
use crate::{
    app::Peer,
    config::ListenOptions,
    http::{Protocol, ProxyHeader},
    metrics::HandshakeEnd,
    tls::{Hello, HelloRead, Served, Session, TlsError, UNRECOGNIZED_NAME},
};

/// For a client that speaks HTTP where TLS is spoken.
const PLAIN_HTTP: &str = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\
    Content-Length: 56\r\nConnection: close\r\n\r\n\
    This port speaks TLS: use https:// instead of http:// .\n";

impl Connection {
    /// Reads what is here of what precedes the first request. `Next::Wait`: go on with what the
    /// state is then.
    pub(super) fn open(&mut self, cx: &mut LoopContext) -> Next {
        if let State::Opening(Opening::ProxyHeader(options)) = self.state
            && self.read_proxy_header(options, cx) == Next::Drop
        {
            return Next::Drop;
        }
        if let State::Opening(Opening::Hello) = self.state {
            let next = self.read_hello(cx);
            if next != Next::Wait {
                return next;
            }
        }
        if let State::Opening(Opening::Handshake) = self.state
            && self.count_finished_handshake(cx)
        {
            self.io.keep_client_certificate();
            let agreed = self.io.negotiated().and_then(|negotiated| negotiated.protocol);
            self.state = State::Http(Protocol::agreed(agreed));
        }
        Next::Wait
    }

    /// Counts the handshake, if it is over.
    fn count_finished_handshake(&self, cx: &LoopContext) -> bool {
        let Some(negotiated) = self.io.negotiated() else { return false };
        let (is_tls13, is_resumed) = (negotiated.is_tls13(), negotiated.is_resumed);
        cx.gauges.count_handshake(HandshakeEnd::Finished { is_tls13, is_resumed });
        true
    }

    /// The handshake has failed, and nothing more is expected. A connection that never sent a byte
    /// has begun none.
    pub(super) fn fail_handshake(&mut self, failed: FailedHandshake<'_>, cx: &mut LoopContext) {
        match self.state {
            State::Opening(Opening::Handshake) => {}
            State::Opening(Opening::Hello) if self.io.received_total() > 0 => {}
            _ => return,
        }
        let failed = FailedHandshake { name: failed.name.or(self.io.server_name()), ..failed };
        cx.tls.on_failed(&failed, self.peer, &cx.gauges, cx.clock.now_ms());
        self.state = State::Lingering { windows: 0 };
    }

    /// Receiving has failed: if that is within a handshake, the handshake has failed.
    pub(super) fn fail_handshake_by(&mut self, error: &io::Error, cx: &mut LoopContext) {
        let failed = TlsError::behind(error).map(FailedHandshake::of);
        self.fail_handshake(failed.unwrap_or(FailedHandshake::CLIENT_GONE), cx);
    }

    /// The connection ends. A handshake that isn't over has failed.
    pub(super) fn end_handshake(&mut self, cx: &mut LoopContext) {
        let State::Opening(_) = self.state else { return };
        // It may be over since the last step.
        if !self.count_finished_handshake(cx) {
            let is_gone = self.io.ready.failed || self.io.ready.read_closed;
            let (gone, closed) = (FailedHandshake::CLIENT_GONE, FailedHandshake::CLOSED);
            self.fail_handshake(if is_gone { gone } else { closed }, cx);
        }
    }

    /// Whether it speaks TLS, or will.
    pub(super) fn is_tls(&self) -> bool {
        let will = match self.state {
            State::Opening(Opening::ProxyHeader(options)) => options.tls,
            State::Opening(Opening::Hello) => true,
            _ => false,
        };
        will || self.io.is_tls()
    }

    /// Begins the session that the hello asks for, if that is complete.
    fn read_hello(&mut self, cx: &mut LoopContext) -> Next {
        let Some(input) = &self.io.input else { return Next::Wait };
        let hello = match Hello::read(input.unread()) {
            HelloRead::NeedMore => return Next::Wait,
            HelloRead::Hello(hello) => hello,
            HelloRead::PlainHttp => {
                self.fail_handshake(FailedHandshake::PLAIN_HTTP, cx);
                return self.end_opening(PLAIN_HTTP.as_bytes(), cx);
            }
            HelloRead::Refused { error, alert } => {
                self.fail_handshake(FailedHandshake::of(&error), cx);
                return self.end_opening(&alert, cx);
            }
        };
        let site = cx.tls.view.table().choose(hello.server_name.as_deref());
        let Some(site) = site.map(Arc::clone) else {
            let name = hello.server_name.as_deref();
            self.fail_handshake(FailedHandshake { name, ..FailedHandshake::UNKNOWN_NAME }, cx);
            return self.end_opening(UNRECOGNIZED_NAME, cx);
        };
        let Ok(session) = Session::accept(&site) else { return Next::Drop };
        self.io.begin_tls(session, Some(Served::new(site, hello.server_name)), &mut cx.buffers);
        self.state = State::Opening(Opening::Handshake);
        Next::Wait
    }

    /// Says a last word, and closes.
    fn end_opening(&mut self, last: &[u8], cx: &mut LoopContext) -> Next {
        self.io.outbox.buffer(&mut cx.buffers).extend_from_slice(last);
        // What a new connection can't take at once is not worth waiting for.
        if self.io.flush(&mut cx.buffers).is_err() || self.begin_linger(cx) == Next::Drop {
            return Next::Drop;
        }
        Next::Turn
    }

    /// Reads the header if it is complete. From then on the peer is the client that it names.
    fn read_proxy_header(&mut self, options: ListenOptions, cx: &mut LoopContext) -> Next {
        let Some(input) = &mut self.io.input else { return Next::Wait };
        match ProxyHeader::read(input.unread()) {
            ProxyHeader::NeedMore => {}
            ProxyHeader::Header { source, used } => {
                input.consume(used);
                self.io.uncount_received(used);
                self.state = State::behind_proxy_header(options);
                // Without a source address the peer stays: it is the proxy itself, or an unknown
                // client.
                if let Some(source) = source {
                    self.peer = Peer::Tcp(source);
                    if !self.permit.count_for(self.peer) {
                        cx.accounting.count_refused(self.peer, cx.clock.now_ms());
                        return Next::Drop;
                    }
                }
            }
            ProxyHeader::Refused(reason) => {
                cx.accounting.count_refused_header(self.peer, reason, cx.clock.now_ms());
                return Next::Drop;
            }
        }
        Next::Wait
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::{super::waits::Wait, *};
    use crate::event_loop::{
        ConnectionBudget,
        test_support::{self, wait_readable},
    };
    use crate::io::Ready;

    const READABLE: Ready =
        Ready { readable: true, writable: true, read_closed: false, failed: false };

    const LINE: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n";

    fn receive(
        connection: &mut Connection,
        peer: &mut std::net::TcpStream,
        bytes: &[u8],
        cx: &mut LoopContext,
    ) -> Next {
        peer.write_all(bytes).unwrap();
        wait_readable(connection.io.socket());
        connection.on_ready(READABLE, cx)
    }

    #[test]
    fn a_connection_is_fresh_until_a_byte_follows_its_proxy_header() {
        let mut running = test_support::running(Vec::new(), None);
        let cx = &mut running.cx;
        let (mut connection, mut peer) = test_support::proxied_connection(cx);
        let due = connection.waits.deadline.at();
        for piece in [&LINE[..20], &LINE[20..]] {
            assert_eq!(receive(&mut connection, &mut peer, piece, cx), Next::Wait);
            assert_eq!(
                (connection.waits.current(), connection.waits.deadline.at()),
                (Wait::Fresh, due)
            );
        }
        assert_eq!(connection.peer, Peer::Tcp("192.0.2.7:56324".parse().unwrap()));
        assert_eq!((cx.accounting.counts.fresh, cx.accounting.counts.busy), (1, 0));
        assert!(connection.io.input.is_none(), "it holds no buffer");
        assert_eq!(receive(&mut connection, &mut peer, b"G", cx), Next::Wait);
        assert_eq!(connection.waits.current(), Wait::Head);
        let request = b"ET / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(receive(&mut connection, &mut peer, request, cx), Next::Wait);
        assert_eq!(connection.waits.current(), Wait::Idle);
    }

    #[test]
    fn the_rest_of_a_proxy_header_and_the_peers_end_may_come_in_one_turn() {
        for request in ["", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"] {
            let mut running = test_support::running(Vec::new(), None);
            let cx = &mut running.cx;
            let (mut connection, mut peer) = test_support::proxied_connection(cx);
            assert_eq!(receive(&mut connection, &mut peer, &LINE[..20], cx), Next::Wait);
            peer.write_all(&LINE[20..]).unwrap();
            peer.write_all(request.as_bytes()).unwrap();
            peer.shutdown(std::net::Shutdown::Write).unwrap();
            wait_readable(connection.io.socket());
            let ready = Ready { read_closed: true, ..READABLE };
            assert_eq!(connection.on_ready(ready, cx), Next::Drop);
            assert_eq!(connection.io.received_total(), request.len() as u64, "without the header");
            connection.abort(cx);
            let mut answer = String::new();
            peer.read_to_string(&mut answer).unwrap();
            assert_eq!(answer.matches("HTTP/1.1 404").count(), usize::from(!request.is_empty()));
        }
    }

    #[test]
    fn an_incomplete_proxy_header_gets_one_last_read_at_its_deadline() {
        let mut running = test_support::running(Vec::new(), None);
        let cx = &mut running.cx;
        let (mut connection, mut peer) = test_support::proxied_connection(cx);
        assert_eq!(receive(&mut connection, &mut peer, &LINE[..20], cx), Next::Wait);
        peer.write_all(&LINE[20..30]).unwrap();
        wait_readable(connection.io.socket());
        assert_eq!(connection.on_deadline(cx), Next::Wait);
        assert!(connection.waits.current() == Wait::Lingering && connection.io.input.is_none());
        assert_eq!(peer.read(&mut [0]).unwrap(), 0, "closed without an answer");
    }

    #[test]
    fn the_last_read_may_complete_the_proxy_header_and_bring_a_request() {
        let mut running = test_support::running(Vec::new(), None);
        let cx = &mut running.cx;
        let (mut connection, mut peer) = test_support::proxied_connection(cx);
        assert_eq!(receive(&mut connection, &mut peer, &LINE[..20], cx), Next::Wait);
        peer.write_all(&[&LINE[20..], b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"].concat()).unwrap();
        wait_readable(connection.io.socket());
        assert_eq!(connection.on_deadline(cx), Next::Wait);
        assert_eq!(connection.waits.current(), Wait::Idle);
        assert!(peer.read(&mut [0; 1024]).unwrap() > 0, "it is answered");
    }

    #[test]
    fn a_client_at_its_limit_is_dropped_when_its_proxy_header_names_it() {
        let mut running = test_support::running(Vec::new(), None);
        let cx = &mut running.cx;
        let budget = ConnectionBudget::new(10, 10);
        budget.set_max_per_ip(Some(1));
        let mut connect = || {
            let (mut connection, mut peer) = test_support::proxied_connection(cx);
            connection.permit = budget.take().unwrap();
            let next = receive(&mut connection, &mut peer, LINE, cx);
            (next, connection, cx.accounting.counts.connections_refused)
        };
        let (next, first, refused) = connect();
        assert_eq!((next, refused), (Next::Wait, 0));
        let (next, second, refused) = connect();
        assert_eq!((next, refused), (Next::Drop, 1));
        drop((first, second));
        assert_eq!(connect().0, Next::Wait);
    }

    #[test]
    fn an_invalid_proxy_header_is_dropped_and_counted_also_at_the_deadline() {
        let mut running = test_support::running(Vec::new(), None);
        let cx = &mut running.cx;
        let (mut connection, mut peer) = test_support::proxied_connection(cx);
        assert_eq!(receive(&mut connection, &mut peer, b"GET /", cx), Next::Drop);
        assert_eq!(cx.accounting.counts.proxy_headers_refused, 1);
        let (mut connection, mut peer) = test_support::proxied_connection(cx);
        assert_eq!(receive(&mut connection, &mut peer, b"PRO", cx), Next::Wait);
        peer.write_all(b"XX").unwrap();
        wait_readable(connection.io.socket());
        assert_eq!(connection.on_deadline(cx), Next::Drop);
        assert_eq!(cx.accounting.counts.proxy_headers_refused, 2);
    }
}
