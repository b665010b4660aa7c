//! One connection's protocol state: the only place where it changes.
//!
//! ```text
//! reading:  Head ──complete──► Content ──last byte──► Done      Closed: nothing more is read as
//!             └───────no content───────────────────────▲        a request (refused, not kept, EOF)
//! writing:  Idle ──head──► Owed ──respond──────────────────► Done
//!                            └──begin_stream──► Stream ──end_stream──▲
//! ```
//! A stream is a response whose content is written in pieces. Where its length is not known at its
//! head, HTTP/1.1 is told its end by the last chunk, HTTP/1.0 by the end of the connection
//! (RFC 9112 §6.3). A tunnel is a stream in both directions, behind a 101: from then on the peer's
//! bytes are no requests, and stay in the caller's input.
//!
//! With both sides Done the next exchange begins, if the connection is kept, else it is Closed.
//! Reading goes on beside writing: content that the app does not want is read and dropped, so that
//! it can never be taken for a request. Sans-IO: the caller owns the bytes, the socket and the
//! clock; it takes events out with [`Exchange::next_event`] and puts answers in with
//! [`Exchange::respond`].
//!
//! - After a refusal nothing is read as a request again (RFC 9112 §11.2).
//! - Every head that comes out is owed exactly one response, and they are written in order.
//! - The same bytes in any split give the same events.

mod broken;

use super::{
    FieldTable, Limits, Opening, Refused, RequestContent, RequestHead, Response, Trailers,
    body::{Body, Framing, Piece},
    coding::Coding,
    head::Version,
    head_scan::HeadScan,
    method::Method,
    request::{self, refused},
    response::{write_content_length, write_status_line},
};

/// The protocol state of one connection.
#[derive(Debug)]
pub struct Exchange {
    reading: Reading,
    writing: Writing,
    /// Whether the connection outlives this exchange.
    keep_alive: bool,
    /// The peer said that this request is its last.
    peer_closes: bool,
    /// The client waits for 100 before it sends its content.
    awaits_continue: bool,
    is_head: bool,
    is_http10: bool,
    /// Bytes of content read in this exchange.
    content_read: u64,
    /// The request's trailers, if somebody wants them.
    trailers: Option<Box<Trailers>>,
}

#[derive(Debug)]
enum Reading {
    Head(HeadScan),
    Content(Body),
    Done,
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writing {
    Idle,
    Owed,
    Stream(Coding),
    Done,
}

/// What the input came to.
#[derive(Debug)]
pub enum Event<'a> {
    /// Nothing, until more bytes come or the response is done.
    NeedMore,
    /// A request whose head is complete and valid. It has to be answered with
    /// [`Exchange::respond`]: with this status, if it cannot be served.
    Request(RequestHead<'a>, Option<Refused>),
    /// A piece of the request's content.
    Content(&'a [u8]),
    /// The request's content is complete.
    ContentEnd,
    /// What cannot be served; it has to be answered with this status.
    Refused(Refused),
    /// Nothing more is read on this connection.
    Closed,
}

/// Where a connection is between and within exchanges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for a request, or reading its head.
    Head,
    /// Waiting for the request's content, before or after the answer.
    Content,
    /// The request is read, and its response is owed.
    Answer,
    /// Nothing more is read, and nothing is owed.
    Closed,
}

const CONTENT_TOO_LARGE: Refused = refused(413, "content longer than limits.body_bytes");

impl Default for Exchange {
    fn default() -> Self {
        Self::new()
    }
}

impl Exchange {
    /// The state of a new connection.
    pub fn new() -> Self {
        Self {
            reading: Reading::Head(HeadScan::default()),
            writing: Writing::Idle,
            keep_alive: true,
            peer_closes: false,
            awaits_continue: false,
            is_head: false,
            is_http10: false,
            content_read: 0,
            trailers: None,
        }
    }

    /// Takes the next event out of `input`, which begins where the last one ended. Returns how many
    /// bytes are done with. To be called until it says [`Event::NeedMore`] or [`Event::Closed`].
    // By force, as what it calls: `request` says why.
    #[inline(always)]
    pub fn next_event<'h, 'b: 'h>(
        &mut self,
        input: &'b [u8],
        fields: &'h mut FieldTable<'b>,
        limits: &Limits,
    ) -> (usize, Event<'h>) {
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
            Reading::Done => (0, Event::NeedMore),
            Reading::Closed => {
                self.peer_closes &= input.is_empty();
                (0, Event::Closed)
            }
        }
    }

    #[inline(always)]
    fn read_head<'h, 'b: 'h>(
        &mut self,
        input: &'b [u8],
        fields: &'h mut FieldTable<'b>,
        limits: &Limits,
    ) -> (usize, Event<'h>) {
        let Reading::Head(scan) = &mut self.reading else { return (0, Event::NeedMore) };
        let skipped = scan.blank_line(input);
        let input = &input[skipped..];
        let (used, parsed) = match request::read(scan, input, fields, limits) {
            Ok(Some((len, parsed))) => (skipped + len, parsed),
            Ok(None) => return (skipped, Event::NeedMore),
            Err(refused) => {
                // Its refusal has no content either (RFC 9110 §9.3.2).
                self.is_head = input.starts_with(b"HEAD ");
                return (0, self.refuse(refused));
            }
        };
        self.is_head = parsed.head.method == Method::Head;
        self.is_http10 = parsed.head.version == Version::Http10;
        self.peer_closes = !parsed.keep_alive;
        self.keep_alive &= parsed.keep_alive;
        let body = Body::new(match parsed.head.content {
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
        // The event is made in this place alone: with a second one, the head is copied at each.
        (used, Event::Request(parsed.head, is_too_large.then_some(CONTENT_TOO_LARGE)))
    }

    fn content_event<'a>(
        &mut self,
        read: &'a [u8],
        piece: Piece,
        left: u64,
        limits: &Limits,
    ) -> Event<'a> {
        if let Piece::Content(len) = piece {
            self.content_read += len as u64;
        }
        // What a chunk announces counts at once: nobody has to send it to hear that it is too much.
        if self.content_read.saturating_add(left) > limits.content_bytes {
            return self.refuse(CONTENT_TOO_LARGE);
        }
        match piece {
            Piece::NeedMore => Event::NeedMore,
            Piece::Content(len) => {
                self.awaits_continue = false;
                Event::Content(&read[read.len() - len..])
            }
            Piece::End => {
                self.awaits_continue = false;
                self.reading = Reading::Done;
                self.settle();
                Event::ContentEnd
            }
        }
    }

    /// Refuses what is being read. An answer can be written unless one is under way already.
    pub fn refuse(&mut self, refused: Refused) -> Event<'static> {
        let answerable = matches!(self.writing, Writing::Idle | Writing::Owed)
            && !matches!(self.reading, Reading::Closed);
        self.read_no_more();
        if answerable {
            self.writing = Writing::Owed;
            return Event::Refused(refused);
        }
        Event::Closed
    }

    /// Nothing of this connection is read as a request again.
    fn read_no_more(&mut self) {
        self.reading = Reading::Closed;
        self.keep_alive = false;
        self.peer_closes = false;
    }

    /// The peer has sent its last byte. A request that is complete still gets its answer.
    pub fn receive_eof(&mut self) -> Event<'static> {
        match (&self.reading, self.writing) {
            (Reading::Content(_), Writing::Owed) => {
                self.refuse(refused(400, "the connection was closed within the content"))
            }
            _ => {
                self.keep_alive = false;
                if !matches!(self.reading, Reading::Done) {
                    self.reading = Reading::Closed;
                }
                Event::Closed
            }
        }
    }

    /// Keeps the trailers of the request that came out last, which are dropped otherwise.
    pub fn keep_trailers(&mut self) {
        self.trailers.get_or_insert_default();
    }

    /// The trailers that were kept: complete with [`Event::ContentEnd`], there until the exchange
    /// ends.
    pub fn trailers(&self) -> Option<&Trailers> {
        self.trailers.as_deref()
    }

    /// Lets the client send the content that it holds back (RFC 9110 §10.1.1), if it does.
    pub fn send_continue(&mut self, out: &mut Vec<u8>) {
        if self.awaits_continue {
            self.write_interim(100, b"", out);
        }
    }

    /// Writes an interim response with these field lines, each ended by CRLF (RFC 9110 §15.2).
    /// Writes nothing to HTTP/1.0, which knows none, and when no response is owed any more.
    ///
    /// # Panics
    /// In debug builds, when `status` is not interim, or 101.
    pub fn write_interim(&mut self, status: u16, fields: &[u8], out: &mut Vec<u8>) {
        debug_assert!(matches!(status, 100 | 102..=199), "{status} is no interim response");
        if self.is_http10 || self.writing != Writing::Owed {
            return;
        }
        self.awaits_continue &= status != 100;
        write_status_line(status, "", out);
        out.extend_from_slice(fields);
        out.extend_from_slice(b"\r\n");
    }

    /// Writes a 101 with these field lines, of which one is `Upgrade` (RFC 9110 §7.8): the
    /// connection is a tunnel. What the peer sent behind its request stays in the input; bytes for
    /// it go through [`Exchange::write_piece`] or past it, until [`Exchange::end_stream`].
    ///
    /// # Panics
    /// In debug builds, when no response is owed, or the request is not complete.
    pub fn begin_tunnel(&mut self, fields: &[u8], out: &mut Vec<u8>) {
        debug_assert!(matches!(self.reading, Reading::Done), "a tunnel within a request");
        debug_assert_eq!(self.writing, Writing::Owed, "a tunnel that nobody asked for");
        self.keep_alive = false;
        write_status_line(101, "", out);
        out.extend_from_slice(fields);
        out.extend_from_slice(b"Connection: upgrade\r\n\r\n");
        self.writing = Writing::Stream(Coding::UntilClose);
    }

    /// Writes the head of the response that is owed, for content of this length. Returns whether
    /// the content has to follow. From here on the response counts as written: the next request may
    /// come out, and its answer belongs behind the content of this one.
    ///
    /// # Panics
    /// In debug builds, when no response is owed.
    pub fn respond(
        &mut self,
        response: &Response<'_>,
        content_length: u64,
        opening: &Opening,
        out: &mut Vec<u8>,
    ) -> bool {
        self.begin_answer();
        let has_content = has_content(response.status());
        opening.write(response, out);
        out.extend_from_slice(response.fields());
        if has_content {
            write_content_length(content_length, out);
        }
        self.end_head(opening, out);
        let send_content = has_content && content_length > 0 && !self.is_head;
        self.writing = Writing::Done;
        self.settle();
        send_content
    }

    /// Writes the head of the response that is owed, for content whose length is not known. The
    /// content follows by [`Exchange::write_piece`], until [`Exchange::end_stream`]; no request
    /// comes out before that.
    ///
    /// # Panics
    /// In debug builds, when no response is owed.
    pub fn begin_stream(&mut self, response: &Response<'_>, opening: &Opening, out: &mut Vec<u8>) {
        let coding = if self.is_http10 { Coding::UntilClose } else { Coding::Chunked };
        self.begin_coded(response, coding, opening, out);
    }

    /// Like [`Exchange::begin_stream`], for content of this length.
    ///
    /// # Panics
    /// In debug builds, when no response is owed.
    pub fn begin_sized_stream(
        &mut self,
        response: &Response<'_>,
        content_length: u64,
        opening: &Opening,
        out: &mut Vec<u8>,
    ) {
        self.begin_coded(response, Coding::Length(content_length), opening, out);
    }

    fn begin_coded(
        &mut self,
        response: &Response<'_>,
        coding: Coding,
        opening: &Opening,
        out: &mut Vec<u8>,
    ) {
        let has_content = has_content(response.status());
        self.keep_alive &= !(has_content && coding == Coding::UntilClose);
        self.begin_answer();
        opening.write(response, out);
        out.extend_from_slice(response.fields());
        if has_content {
            coding.write_field(out);
        }
        self.end_head(opening, out);
        let sends_content = has_content && !self.is_head;
        self.writing = Writing::Stream(if sends_content { coding } else { Coding::Left });
    }

    /// Writes a piece of a stream's content. An empty one writes nothing.
    ///
    /// # Panics
    /// In debug builds, when there is no stream, or it is longer than it said.
    pub fn write_piece(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        match &mut self.writing {
            Writing::Stream(coding) => coding.write(piece, out),
            _ => debug_assert!(false, "a piece of content without a stream"),
        }
    }

    /// Ends a stream: the response is complete, and the next request may come out. Whoever cannot
    /// end it closes the connection instead.
    ///
    /// # Panics
    /// In debug builds, when there is no stream, or it is shorter than it said.
    pub fn end_stream(&mut self, out: &mut Vec<u8>) {
        self.end_stream_with(b"", out);
    }

    /// Ends a stream with these trailer fields, each ended by CRLF, where its coding has room for
    /// them (RFC 9110 §6.5.1).
    ///
    /// # Panics
    /// In debug builds, when there is no stream, or it is shorter than it said.
    pub fn end_stream_with(&mut self, trailers: &[u8], out: &mut Vec<u8>) {
        match self.writing {
            Writing::Stream(coding) => self.keep_alive &= coding.end(trailers, out),
            _ => debug_assert!(false, "the end of no stream"),
        }
        self.writing = Writing::Done;
        self.settle();
    }

    /// Decides what the answer that begins now means for what is read.
    fn begin_answer(&mut self) {
        debug_assert_eq!(self.writing, Writing::Owed, "a response that nobody asked for");
        // Answered before it was told to go on, the client may send its content or not: nobody
        // could tell what comes next.
        self.keep_alive &= !self.awaits_continue;
        if !self.keep_alive && !matches!(self.reading, Reading::Done) {
            self.reading = Reading::Closed;
            self.peer_closes = false;
        }
    }

    fn end_head(&self, opening: &Opening, out: &mut Vec<u8>) {
        let end: &[u8] = if self.keep_alive {
            opening.end_of_kept(self.is_http10)
        } else {
            b"Connection: close\r\n\r\n"
        };
        out.extend_from_slice(end);
    }

    /// The peer was too slow: refused with 408 if that can be said.
    pub fn time_out(&mut self) -> Event<'static> {
        self.refuse(refused(408, "the request did not come in time"))
    }

    /// Ends a connection that is between exchanges.
    pub fn close_now(&mut self) {
        if matches!(self.reading, Reading::Head(_)) {
            self.reading = Reading::Closed;
        }
    }

    /// This exchange is the connection's last; its answer says so, if it is not written yet.
    pub fn close_after(&mut self) {
        self.keep_alive = false;
    }

    /// Whether the client waits for a 100 before it sends its content.
    pub fn awaits_continue(&self) -> bool {
        self.awaits_continue
    }

    /// Where the connection is.
    pub fn phase(&self) -> Phase {
        match (&self.reading, self.writing) {
            (Reading::Closed, Writing::Idle | Writing::Done) => Phase::Closed,
            (Reading::Head(_), _) => Phase::Head,
            (Reading::Content(_), _) => Phase::Content,
            (Reading::Done | Reading::Closed, _) => Phase::Answer,
        }
    }

    /// Whether the peer said that it sends nothing more, and all that it sent was of use: then the
    /// connection can be closed at once. Any other has to be read out first (RFC 9112 §9.6).
    pub fn peer_is_done(&self) -> bool {
        self.peer_closes && matches!(self.reading, Reading::Done | Reading::Closed)
    }

    /// Whether bytes of the peer are of use now.
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

/// Whether a response of this status can have content (RFC 9110 §15.3.5, §15.4.5).
fn has_content(status: u16) -> bool {
    !matches!(status, 204 | 304)
}
