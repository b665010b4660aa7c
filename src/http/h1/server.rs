//! The server side of one connection: its protocol state, which changes only here and in
//! [`answer`].
//!
//! ```text
//! reading:  Head ──complete──► Content ──last byte──► Done      Closed: nothing more is read as
//!             └───────no content───────────────────────▲        a request (refused, not kept, EOF)
//! writing:  Idle ──head──► Owed ──respond────────────────────────────────► Done
//!                            └──begin_response──► Content ──end_response──▲
//! ```
//! The content of a response may be written in pieces. If the head does not give its length, the
//! last chunk ends it in HTTP/1.1, and the end of the connection in HTTP/1.0 (RFC 9112 §6.3). A
//! tunnel is a response in pieces after a 101: the peer's bytes are no requests any more, and stay
//! in the caller's input.
//!
//! When both sides are Done, the next exchange begins if the connection is kept alive; else reading
//! is Closed. Reading and writing are independent: content that the app does not want is read and
//! dropped, so that it is never taken for a request. Sans-IO: the caller owns the bytes, the socket
//! and the clock. It reads events with [`Server::next_event`] and answers with [`Server::respond`].
//!
//! - After a refusal nothing is read as a request (RFC 9112 §11.2).
//! - Every request gets exactly one response, in the order of the requests.
//! - Any split of the same bytes gives the same events.

mod answer;

use memchr::memmem;

use super::{
    body_decoder::{BodyDecoder, Piece},
    body_encoder::BodyEncoder,
    framing::Framing,
    head_scan::HeadScan,
    request_head,
};
use crate::http::{
    event::{ServerEvent, ServerPhase, StreamId},
    field_table::FieldTable,
    message::{Limits, Method, Refused, RequestContent, Trailers, Version, refused},
};

/// The protocol state of one connection.
#[derive(Debug)]
pub struct Server {
    reading: Reading,
    writing: Writing,
    /// Whether the connection outlives this exchange.
    keep_alive: bool,
    /// Whether the request's `Connection` names `keep-alive`.
    asks_keep_alive: bool,
    /// Whether the last response is incomplete, and only a reset can show that.
    ends_by_reset: bool,
    /// Whether the connection ends at once.
    is_aborted: bool,
    /// Whether the peer said that this request is its last.
    peer_closes: bool,
    /// Whether the client waits for a 100 before it sends its content.
    awaits_continue: bool,
    is_head: bool,
    is_http10: bool,
    /// Bytes of content read in this exchange.
    content_read: u64,
    /// The request's trailers, if the caller wants them.
    trailers: Option<Box<Trailers>>,
}

#[derive(Debug)]
enum Reading {
    Head(HeadScan),
    Content(BodyDecoder),
    Done,
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writing {
    Idle,
    Owed,
    Content(BodyEncoder),
    Done,
}

const CONTENT_TOO_LARGE: Refused = refused(413, "content longer than limits.body_bytes");

impl Default for Server {
    fn default() -> Self {
        Self::new()
    }
}

impl Server {
    /// The state of a new connection.
    pub fn new() -> Self {
        Self {
            reading: Reading::Head(HeadScan::default()),
            writing: Writing::Idle,
            keep_alive: true,
            asks_keep_alive: false,
            ends_by_reset: false,
            is_aborted: false,
            peer_closes: false,
            awaits_continue: false,
            is_head: false,
            is_http10: false,
            content_read: 0,
            trailers: None,
        }
    }

    /// Reads the next event from `input`, which begins where the last event ended. Returns how many
    /// bytes were used. Call it until it returns [`ServerEvent::NeedMore`] or
    /// [`ServerEvent::Closed`].
    // Always inlined, like the functions it calls: `request_head` says why.
    #[inline(always)]
    pub fn next_event<'h, 'b: 'h>(
        &mut self,
        input: &'b [u8],
        fields: &'h mut FieldTable<'b>,
        limits: &Limits,
    ) -> (usize, ServerEvent<'h>) {
        match &mut self.reading {
            Reading::Head(_) => self.read_head(input, fields, limits),
            Reading::Content(body) => {
                match body.read(input, limits, self.trailers.as_deref_mut()) {
                    Ok((used, piece)) => {
                        let left = body.left();
                        (used, self.content_event(&input[..used], piece, left, limits))
                    }
                    Err(refused) => (0, self.refuse(refused)),
                }
            }
            Reading::Done => (0, ServerEvent::NeedMore),
            Reading::Closed => {
                self.peer_closes &= input.is_empty();
                (0, ServerEvent::Closed)
            }
        }
    }

    #[inline(always)]
    fn read_head<'h, 'b: 'h>(
        &mut self,
        input: &'b [u8],
        fields: &'h mut FieldTable<'b>,
        limits: &Limits,
    ) -> (usize, ServerEvent<'h>) {
        let Reading::Head(scan) = &mut self.reading else { return (0, ServerEvent::NeedMore) };
        let skipped = scan.blank_line(input);
        let input = &input[skipped..];
        let (used, parsed) = match request_head::read(scan, input, fields, limits) {
            Ok(Some((len, parsed))) => (skipped + len, parsed),
            Ok(None) => return (skipped, ServerEvent::NeedMore),
            Err(refused) => {
                // An answer to HEAD has no content, not even a refusal (RFC 9110 §9.3.2).
                self.is_head = input.starts_with(b"HEAD ");
                return (0, self.refuse(refused));
            }
        };
        self.is_head = parsed.head.method == Method::Head;
        self.is_http10 = parsed.head.version == Version::Http10;
        self.peer_closes = !parsed.keep_alive;
        self.keep_alive &= parsed.keep_alive;
        self.asks_keep_alive = parsed.asks_keep_alive;
        let body = BodyDecoder::new(match parsed.head.content {
            RequestContent::None => Framing::Length(0),
            RequestContent::Length(length) => Framing::Length(length),
            RequestContent::Chunked => Framing::Chunked,
        });
        let is_too_large = body.left() > limits.content_bytes;
        self.writing = Writing::Owed;
        self.awaits_continue = parsed.head.expects_continue;
        let follows = parsed.head.content.follows();
        self.reading = if follows { Reading::Content(body) } else { Reading::Done };
        if is_too_large {
            self.read_no_more();
        }
        // The only place that builds this event: with a second one, the compiler copies the head.
        let refused = is_too_large.then_some(CONTENT_TOO_LARGE);
        (used, ServerEvent::Request(StreamId::H1, parsed.head, refused))
    }

    fn content_event<'a>(
        &mut self,
        read: &'a [u8],
        piece: Piece,
        left: u64,
        limits: &Limits,
    ) -> ServerEvent<'a> {
        if let Piece::Content(len) = piece {
            self.content_read += len as u64;
        }
        // A chunk's announced size counts at once: content that is too large is refused before it
        // is sent.
        if self.content_read.saturating_add(left) > limits.content_bytes {
            return self.refuse(CONTENT_TOO_LARGE);
        }
        match piece {
            Piece::NeedMore => ServerEvent::NeedMore,
            Piece::Content(len) => {
                self.awaits_continue = false;
                ServerEvent::Content(StreamId::H1, &read[read.len() - len..])
            }
            Piece::End => {
                self.awaits_continue = false;
                self.reading = Reading::Done;
                self.settle();
                ServerEvent::ContentEnd(StreamId::H1)
            }
        }
    }

    /// Refuses what is being read. Returns [`ServerEvent::Refused`] if it can still be answered,
    /// else [`ServerEvent::Closed`].
    pub fn refuse(&mut self, refused: Refused) -> ServerEvent<'static> {
        let answerable = matches!(self.writing, Writing::Idle | Writing::Owed)
            && !matches!(self.reading, Reading::Closed);
        self.read_no_more();
        if answerable {
            self.writing = Writing::Owed;
            return ServerEvent::Refused(StreamId::H1, refused);
        }
        ServerEvent::Closed
    }

    /// From now on nothing on this connection is read as a request.
    fn read_no_more(&mut self) {
        self.reading = Reading::Closed;
        self.keep_alive = false;
        self.peer_closes = false;
    }

    /// The peer has sent its last byte. A complete request still gets its answer.
    pub fn receive_eof(&mut self) -> ServerEvent<'static> {
        match (&self.reading, self.writing) {
            (Reading::Content(_), Writing::Owed) => {
                self.refuse(refused(400, "the connection was closed within the content"))
            }
            _ => {
                self.keep_alive = false;
                if !matches!(self.reading, Reading::Done) {
                    self.reading = Reading::Closed;
                }
                ServerEvent::Closed
            }
        }
    }

    /// Keeps the trailers of the current request, which are dropped otherwise.
    pub fn keep_trailers(&mut self) {
        self.trailers.get_or_insert_default();
    }

    /// The trailers that were kept. They are complete after [`ServerEvent::ContentEnd`], and
    /// dropped with the exchange.
    pub fn trailers(&self) -> Option<&Trailers> {
        self.trailers.as_deref()
    }

    /// The peer was too slow. Refuses its request with 408, if it can still be answered.
    pub fn time_out(&mut self) -> ServerEvent<'static> {
        self.refuse(refused(408, "the request did not come in time"))
    }

    /// Closes a connection that waits for a request or reads its head.
    pub fn close_now(&mut self) {
        if matches!(self.reading, Reading::Head(_)) {
            self.reading = Reading::Closed;
        }
    }

    /// Gives up the current exchange at once. Only the end of the connection can show that.
    pub fn abort(&mut self) {
        self.read_no_more();
        self.writing = Writing::Done;
        self.is_aborted = true;
    }

    /// Whether the connection has to end at once.
    pub fn is_aborted(&self) -> bool {
        self.is_aborted
    }

    /// Makes this exchange the connection's last. A head that is written from now on says so.
    pub fn close_after(&mut self) {
        self.keep_alive = false;
    }

    /// Whether the client waits for a 100 before it sends its content.
    pub fn awaits_continue(&self) -> bool {
        self.awaits_continue
    }

    /// Whether these bytes begin with a complete head.
    pub fn has_head(unread: &[u8]) -> bool {
        memmem::find(unread.trim_ascii_start(), b"\r\n\r\n").is_some()
    }

    /// What the connection is doing.
    pub fn phase(&self) -> ServerPhase {
        match (&self.reading, self.writing) {
            (Reading::Closed, Writing::Idle | Writing::Done) => ServerPhase::Closed,
            (Reading::Head(_), _) => ServerPhase::Head,
            (Reading::Content(_), _) => ServerPhase::Content,
            (Reading::Done | Reading::Closed, _) => ServerPhase::Answer,
        }
    }

    /// Whether the peer said that it sends nothing more, and everything it sent was read. Only such
    /// a connection can be closed at once; any other needs a lingering close (RFC 9112 §9.6).
    pub fn peer_is_done(&self) -> bool {
        self.peer_closes && matches!(self.reading, Reading::Done | Reading::Closed)
    }

    /// Whether the protocol can read bytes of the peer now.
    pub fn wants_input(&self) -> bool {
        matches!(self.reading, Reading::Head(_) | Reading::Content(_))
    }

    /// Whether the request's content is still coming.
    pub fn reads_content(&self) -> bool {
        matches!(self.reading, Reading::Content(_))
    }

    fn settle(&mut self) {
        if self.writing != Writing::Done {
            return;
        }
        match self.reading {
            Reading::Done if self.keep_alive => *self = Self::new(),
            Reading::Done => self.reading = Reading::Closed,
            Reading::Head(_) | Reading::Content(_) | Reading::Closed => {}
        }
    }
}
