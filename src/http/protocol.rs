//! The server side of a connection, whatever its version of HTTP.
//!
//! Each event names the stream that it belongs to, and so does each call that writes. A connection
//! and its exchanges use only this type, so another version is another arm here.

use super::{
    event::{ServerEvent, ServerPhase, StreamId},
    field_table::FieldTable,
    h1::{self, HeadTemplate},
    message::{Fields, Limits, Refused, Response, Trailers},
};

/// The protocol state of one connection.
#[derive(Debug)]
pub enum Protocol {
    /// HTTP/1.1 and 1.0.
    H1(h1::Server),
}

/// What concerns the connection as a whole.
impl Protocol {
    /// The names in TLS (ALPN) of all versions, the preferred one first.
    pub const ALPN: &[&[u8]] = &[h1::ALPN];

    /// The state of a new HTTP/1 connection.
    pub fn h1() -> Self {
        Self::H1(h1::Server::new())
    }

    /// The state of a new connection that has agreed on this one of the [names](Self::ALPN) in TLS,
    /// or on none, as clients that know only HTTP/1.
    pub fn agreed(name: Option<&[u8]>) -> Self {
        debug_assert!(name.is_none_or(|name| Self::ALPN.contains(&name)), "it wasn't offered");
        Self::h1()
    }

    /// Reads the next event from `input`, which begins where the last event ended. Returns how many
    /// bytes were used. Call it until it returns [`ServerEvent::NeedMore`] or
    /// [`ServerEvent::Closed`].
    // Always inlined, like the functions it calls: `h1::request_head` says why.
    #[inline(always)]
    pub fn next_event<'h, 'b: 'h>(
        &mut self,
        input: &'b [u8],
        fields: &'h mut FieldTable<'b>,
        limits: &Limits,
    ) -> (usize, ServerEvent<'h>) {
        match self {
            Self::H1(server) => server.next_event(input, fields, limits),
        }
    }

    /// The peer has sent its last byte. A complete request still gets its answer.
    pub fn receive_eof(&mut self) -> ServerEvent<'static> {
        match self {
            Self::H1(server) => server.receive_eof(),
        }
    }

    /// The peer was too slow. Refuses its request with 408, if it can still be answered.
    pub fn time_out(&mut self) -> ServerEvent<'static> {
        match self {
            Self::H1(server) => server.time_out(),
        }
    }

    /// Closes a connection that waits for a request or reads its head.
    pub fn close_now(&mut self) {
        match self {
            Self::H1(server) => server.close_now(),
        }
    }

    /// Makes the exchanges that have begun the connection's last. Heads that are written from now
    /// on say so.
    #[inline]
    pub fn close_after(&mut self) {
        match self {
            Self::H1(server) => server.close_after(),
        }
    }

    /// What the connection is doing.
    #[inline]
    pub fn phase(&self) -> ServerPhase {
        match self {
            Self::H1(server) => server.phase(),
        }
    }

    /// Whether the protocol can read bytes of the peer now. `takes_content`: every exchange takes
    /// more of its request's content. HTTP/1 has no other way to slow down the peer than to leave
    /// its bytes in the socket.
    #[inline]
    pub fn wants_input(&self, takes_content: bool) -> bool {
        match self {
            Self::H1(server) => takes_content && server.wants_input(),
        }
    }

    /// Whether these unread bytes hold another complete request head.
    #[inline]
    pub fn has_request(&self, unread: &[u8]) -> bool {
        match self {
            Self::H1(_) => h1::Server::has_head(unread),
        }
    }

    /// Whether the peer said that it sends nothing more, and everything it sent was read.
    pub fn peer_is_done(&self) -> bool {
        match self {
            Self::H1(server) => server.peer_is_done(),
        }
    }

    /// Whether the connection has to end at once, without its unsent bytes.
    #[inline]
    pub fn is_aborted(&self) -> bool {
        match self {
            Self::H1(server) => server.is_aborted(),
        }
    }

    /// Whether the connection has to be reset after the last byte.
    pub fn ends_by_reset(&self) -> bool {
        match self {
            Self::H1(server) => server.ends_by_reset(),
        }
    }
}

/// What concerns the request of one stream.
impl Protocol {
    /// Whether the request's content is still coming.
    #[inline]
    pub fn reads_content(&self, stream: StreamId) -> bool {
        match self {
            Self::H1(server) => only(server, stream).reads_content(),
        }
    }

    /// Whether the client waits for a 100 before it sends its content.
    #[inline]
    pub fn awaits_continue(&self, stream: StreamId) -> bool {
        match self {
            Self::H1(server) => only(server, stream).awaits_continue(),
        }
    }

    /// Keeps the request's trailers, which are dropped otherwise.
    pub fn keep_trailers(&mut self, stream: StreamId) {
        match self {
            Self::H1(server) => only(server, stream).keep_trailers(),
        }
    }

    /// The trailers that were kept. They are complete after [`ServerEvent::ContentEnd`], and
    /// dropped with the exchange.
    #[inline]
    pub fn trailers(&self, stream: StreamId) -> Option<&Trailers> {
        match self {
            Self::H1(server) => only(server, stream).trailers(),
        }
    }

    /// Refuses what is being read. Returns [`ServerEvent::Refused`] if it can still be answered,
    /// else [`ServerEvent::Closed`].
    pub fn refuse(&mut self, stream: StreamId, refused: Refused) -> ServerEvent<'static> {
        match self {
            Self::H1(server) => only(server, stream).refuse(refused),
        }
    }
}

/// What concerns the response of one stream. In debug builds, these functions panic when no such
/// response is owed or under way; only those for interim responses then write nothing.
impl Protocol {
    /// Writes a 100 if the client waits for it before it sends its content (RFC 9110 §10.1.1).
    pub fn send_continue(&mut self, stream: StreamId, out: &mut Vec<u8>) {
        match self {
            Self::H1(server) => only(server, stream).send_continue(out),
        }
    }

    /// Writes an interim response with these fields (RFC 9110 §15.2), if the client can read one.
    pub fn write_interim(
        &mut self,
        stream: StreamId,
        status: u16,
        fields: &Fields<'_>,
        out: &mut Vec<u8>,
    ) {
        match self {
            Self::H1(server) => only(server, stream).write_interim(status, fields, out),
        }
    }

    /// Writes a 101 with these fields (RFC 9110 §7.8): the stream becomes a tunnel.
    pub fn begin_tunnel(&mut self, stream: StreamId, fields: &Fields<'_>, out: &mut Vec<u8>) {
        match self {
            Self::H1(server) => only(server, stream).begin_tunnel(fields, out),
        }
    }

    /// Writes the head of a response whose content has this length and is there. Returns whether
    /// the caller has to send the content behind it.
    #[inline]
    pub fn respond(
        &mut self,
        stream: StreamId,
        response: &Response<'_>,
        content_length: u64,
        template: &HeadTemplate,
        out: &mut Vec<u8>,
    ) -> bool {
        match self {
            Self::H1(server) => {
                only(server, stream).respond(response, content_length, template, out)
            }
        }
    }

    /// Writes the head of a response whose content follows in pieces: of this length, if it is
    /// known. Each piece is written with [`Protocol::write_piece`]; [`Protocol::end_response`] ends
    /// the content. Returns whether the client gets the content.
    #[inline]
    pub fn begin_response(
        &mut self,
        stream: StreamId,
        response: &Response<'_>,
        content_length: Option<u64>,
        template: &HeadTemplate,
        out: &mut Vec<u8>,
    ) -> bool {
        match self {
            Self::H1(server) => {
                only(server, stream).begin_response(response, content_length, template, out)
            }
        }
    }

    /// Writes a piece of the response's content, or of a tunnel. An empty piece writes nothing.
    #[inline]
    pub fn write_piece(&mut self, stream: StreamId, piece: &[u8], out: &mut Vec<u8>) {
        match self {
            Self::H1(server) => only(server, stream).write_piece(piece, out),
        }
    }

    /// Ends the content: the response is complete. Chunked content gets these trailers.
    #[inline]
    pub fn end_response(&mut self, stream: StreamId, trailers: &Fields<'_>, out: &mut Vec<u8>) {
        match self {
            Self::H1(server) => only(server, stream).end_response(trailers, out),
        }
    }

    /// Takes back the head of a response, none of which was sent: the response is owed again.
    pub fn take_back(&mut self, stream: StreamId) {
        match self {
            Self::H1(server) => only(server, stream).take_back(),
        }
    }

    /// Gives up the stream at once: nothing more of its request is read, and nothing more of its
    /// response is written. In HTTP/1 that aborts the connection.
    pub fn abort(&mut self, stream: StreamId) {
        match self {
            Self::H1(server) => only(server, stream).abort(),
        }
    }

    /// Gives up a response that breaks off, so that the client sees that it is incomplete.
    pub fn break_off(&mut self, stream: StreamId) {
        match self {
            Self::H1(server) => only(server, stream).break_off(),
        }
    }
}

/// Checks the stream: HTTP/1 has only one.
#[inline]
fn only<S>(server: S, stream: StreamId) -> S {
    debug_assert_eq!(stream, StreamId::H1, "a stream that HTTP/1 doesn't have");
    server
}
