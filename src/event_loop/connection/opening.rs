//! What precedes the first request: a PROXY header, which names the client.
//!
//! - A connection with a refused header is dropped without an answer, counted, and logged at a
//!   limited rate. So is a connection of a client at its limit.
//! - No byte of the header reaches the protocol.

use super::{
    super::context::LoopContext,
    state::{Connection, Next, State},
};
use crate::{
    app::Peer,
    http::{Protocol, ProxyHeader},
};

impl Connection {
    /// Reads the header if it is complete. From then on the peer is the client that it names.
    pub(super) fn read_proxy_header(&mut self, cx: &mut LoopContext) -> Next {
        let Some(input) = &mut self.io.input else { return Next::Wait };
        match ProxyHeader::read(input.unread()) {
            ProxyHeader::NeedMore => {}
            ProxyHeader::Header { source, used } => {
                input.consume(used);
                self.io.uncount_received(used);
                self.state = State::Http(Protocol::h1());
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
