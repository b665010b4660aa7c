//! One exchange with an upstream: a request is written, its response is read.
//!
//! ```text
//! writing:  begin ──content──► Content ──last byte──► Done
//!             └─────────no content─────────────────────▲
//! reading:  Head ──final──► Content ──last byte──► Done        Failed: refused or truncated
//!            ▲ └─1xx─┐  │└► UntilClose ──EOF───────▲            └─ from all but Done and Tunnel
//!            └───────┘  └─101──► Tunnel
//! ```
//! Reading and writing are independent: an upstream may answer before it has the request's content.
//! The connection can be reused when both sides are Done, both keep it alive, and no byte follows
//! the response. An unsolicited byte makes the connection unusable; it is never read as the next
//! response. In a tunnel the caller reads the bytes.
//!
//! - A connection is never reused after a doubtful message. A message that two parsers could frame
//!   differently is refused (RFC 9112 §6.3, §11.1). After a refusal the client gets a 502, or its
//!   connection is closed if the head of the response was already sent.
//! - Any split of the same bytes gives the same events, once adjacent pieces of content are joined.
//! - Holds none of the input. Adds nothing to a request but the framing.

use super::{
    body_decoder::{BodyDecoder, Piece},
    body_encoder::BodyEncoder,
    framing::Framing,
    head_scan::HeadScan,
    response_head::{self, ParsedResponse},
};
use crate::http::{
    field_table::FieldTable,
    message::{
        Fields, Limits, Refused, RequestContent, ResponseContent, ResponseHead, Trailers, Version,
        refused,
    },
};

/// The protocol state of one exchange with an upstream.
#[derive(Debug)]
pub struct Client {
    reading: Reading,
    writing: Writing,
    /// Whether the connection outlives this exchange, as far as is known.
    keep_alive: bool,
    /// Whether the content still waits for a 100.
    awaits_continue: bool,
    is_head: bool,
    upgrade: bool,
    /// Whether any byte of a response has come.
    answered: bool,
    trailers: Trailers,
}

#[derive(Debug)]
enum Reading {
    Head(HeadScan),
    Content(BodyDecoder),
    UntilClose,
    Done,
    Tunnel,
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writing {
    Content(BodyEncoder),
    Done,
}

/// What a request asks of the protocol, without its request line and its fields.
#[derive(Clone, Copy, Debug)]
pub struct ClientRequest {
    /// The content that follows.
    pub content: RequestContent,
    /// Whether the method is HEAD, whose response has no content.
    pub is_head: bool,
    /// Whether a 101 is accepted. If so, the head must have an `Upgrade` field.
    pub upgrade: bool,
    /// Whether the content waits for a 100 (RFC 9110 §10.1.1).
    pub expects_continue: bool,
    /// Whether the request asks the upstream to close the connection after its response.
    pub close: bool,
}

/// What was read from the input.
#[derive(Debug)]
pub enum ClientEvent<'a> {
    /// More bytes are needed.
    NeedMore,
    /// An interim response (1xx but not 101), to be passed on. There can be any number of them: the
    /// caller limits how many may come in what time.
    Interim(ResponseHead<'a>),
    /// The head of the response. After a 101 the connection is a tunnel: no [`Self::End`] follows.
    Response(ResponseHead<'a>),
    /// A piece of the response's content.
    Content(&'a [u8]),
    /// The response and [`Client::trailers`] are complete.
    End,
    /// The response cannot be passed on. The status is 431 if it exceeds a limit, else 502.
    Refused(Refused),
    /// The connection ended before the response did.
    Truncated,
    /// The exchange reads nothing more.
    Closed,
}

impl Client {
    /// Begins an exchange: adds the last fields and the empty line to `head`. `head` has the
    /// request line and the other fields, each line ended by CRLF. It must not have the fields that
    /// this function writes: `Content-Length`, `Transfer-Encoding`, `Connection`, `Expect`.
    ///
    /// # Panics
    /// In debug builds, when a line of the head has no CRLF, or the head has one of these fields.
    pub fn begin(request: &ClientRequest, head: &mut Vec<u8>) -> Self {
        debug_assert!(head.ends_with(b"\r\n") && !head.ends_with(b"\r\n\r\n"), "no lines");
        debug_assert!(!has_framing(head), "framed twice: {}", head.escape_ascii());
        let awaits_continue = request.expects_continue && request.content.follows();
        let encoder = match request.content {
            RequestContent::None => BodyEncoder::Omitted,
            RequestContent::Length(length) => BodyEncoder::Length(length),
            RequestContent::Chunked => BodyEncoder::Chunked,
        };
        encoder.write_field(head);
        for (line, applies) in [
            (&b"Expect: 100-continue\r\n"[..], awaits_continue),
            (b"Connection: upgrade\r\n", request.upgrade),
            (b"Connection: close\r\n", request.close),
            (b"\r\n", true),
        ] {
            if applies {
                head.extend_from_slice(line);
            }
        }
        Self {
            reading: Reading::Head(HeadScan::default()),
            writing: if request.content.follows() {
                Writing::Content(encoder)
            } else {
                Writing::Done
            },
            keep_alive: !request.close,
            awaits_continue,
            is_head: request.is_head,
            upgrade: request.upgrade,
            answered: false,
            trailers: Trailers::default(),
        }
    }

    /// Takes over how far an earlier attempt wrote the content of the same request. No byte of it
    /// was sent, so the content that it wrote goes behind the head of this attempt.
    pub fn go_on_from(&mut self, earlier: &Self) {
        self.writing = earlier.writing;
    }

    /// Writes a piece of the request's content. An empty piece writes nothing.
    ///
    /// # Panics
    /// In debug builds, when the content is complete, or longer than its length.
    pub fn write_content(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        self.awaits_continue &= piece.is_empty();
        match &mut self.writing {
            Writing::Content(encoder) => {
                encoder.write(piece, out);
                if *encoder == BodyEncoder::Length(0) {
                    self.writing = Writing::Done;
                }
            }
            Writing::Done => debug_assert!(piece.is_empty(), "content behind its end"),
        }
    }

    /// Ends the request's content; chunked content gets these trailer fields. Content of a known
    /// length also ends with its last byte. A caller whose content breaks off drops the exchange,
    /// or reads the answer that comes nevertheless.
    ///
    /// # Panics
    /// In debug builds, when the content is shorter than its length.
    pub fn end_content(&mut self, trailers: &Fields<'_>, out: &mut Vec<u8>) {
        self.awaits_continue = false;
        if let Writing::Content(encoder) = self.writing
            && encoder.end(trailers.lines(), out)
        {
            self.writing = Writing::Done;
        }
    }

    /// Reads the next event from `input`, which begins where the last event ended. Returns how many
    /// bytes were used. Call it until it returns [`ClientEvent::NeedMore`] or
    /// [`ClientEvent::Closed`], also with empty input: a response without content ends without
    /// another byte.
    pub fn next_event<'h, 'b: 'h>(
        &mut self,
        input: &'b [u8],
        fields: &'h mut FieldTable<'b>,
        limits: &Limits,
    ) -> (usize, ClientEvent<'h>) {
        match &mut self.reading {
            Reading::Head(scan) => {
                self.answered |= !input.is_empty();
                match response_head::read(scan, input, fields, limits) {
                    Ok(Some((used, parsed))) => match self.begin_response(&parsed) {
                        Ok(event) => (used, event),
                        Err(refused) => (0, self.refuse(refused)),
                    },
                    Ok(None) => (0, ClientEvent::NeedMore),
                    Err(refused) => (0, self.refuse(refused)),
                }
            }
            Reading::Content(body) => match body.read(input, limits, Some(&mut self.trailers)) {
                Ok((used, Piece::NeedMore)) => (used, ClientEvent::NeedMore),
                Ok((used, Piece::Content(len))) => {
                    (used, ClientEvent::Content(&input[used - len..used]))
                }
                Ok((used, Piece::End)) => {
                    self.reading = Reading::Done;
                    self.keep_alive &= used == input.len();
                    (used, ClientEvent::End)
                }
                Err(refused) => (0, self.refuse(refused)),
            },
            Reading::UntilClose if input.is_empty() => (0, ClientEvent::NeedMore),
            Reading::UntilClose => (input.len(), ClientEvent::Content(input)),
            Reading::Done => {
                self.keep_alive &= input.is_empty();
                (0, ClientEvent::Closed)
            }
            Reading::Tunnel | Reading::Failed => (0, ClientEvent::Closed),
        }
    }

    /// The upstream has sent its last byte, and all events before it were read. Not to be called
    /// for a connection that was reset: a reset is no end of a response.
    pub fn receive_eof(&mut self) -> ClientEvent<'static> {
        self.keep_alive = false;
        match self.reading {
            Reading::UntilClose => {
                self.reading = Reading::Done;
                ClientEvent::End
            }
            Reading::Head(_) | Reading::Content(_) => {
                self.reading = Reading::Failed;
                ClientEvent::Truncated
            }
            Reading::Done | Reading::Tunnel | Reading::Failed => ClientEvent::Closed,
        }
    }

    /// The trailers of the response; complete after [`ClientEvent::End`].
    pub fn trailers(&self) -> &Trailers {
        &self.trailers
    }

    /// Whether the content still waits for a 100. The caller decides how long; the first piece that
    /// is written ends the wait.
    pub fn awaits_continue(&self) -> bool {
        self.awaits_continue
    }

    /// Whether any byte of a response has come. If not, the request may be sent again if its method
    /// allows that (RFC 9110 §9.2.2).
    pub fn answered(&self) -> bool {
        self.answered
    }

    /// Whether the request is completely written.
    pub fn request_done(&self) -> bool {
        self.writing == Writing::Done
    }

    /// Whether the response is completely read.
    pub fn response_done(&self) -> bool {
        matches!(self.reading, Reading::Done)
    }

    /// Whether the connection can serve another exchange now.
    pub fn reusable(&self) -> bool {
        self.request_done() && self.response_done() && self.keep_alive
    }

    fn begin_response<'h>(
        &mut self,
        parsed: &ParsedResponse<'h>,
    ) -> Result<ClientEvent<'h>, Refused> {
        let framing = parsed.framing.framing()?;
        match parsed.status {
            101 => return self.begin_tunnel(parsed, framing),
            status @ 100..=199 => {
                refuse_content(framing)?;
                self.awaits_continue &= status != 100;
                self.reading = Reading::Head(HeadScan::default());
                return Ok(ClientEvent::Interim(parsed.head(framing, ResponseContent::None)));
            }
            _ => {}
        }
        // The upstream answered without asking for the content. It may read the next bytes as that
        // content or as the next request, and we cannot know which.
        self.keep_alive &= parsed.framing.keeps_alive(parsed.version) && !self.awaits_continue;
        let content = match (parsed.status, framing) {
            // Bytes behind a 204 belong to no message (RFC 9110 §8.6, RFC 9112 §6.1).
            (204, framing) => {
                self.keep_alive &= refuse_content(framing).is_ok();
                ResponseContent::None
            }
            (304, _) => ResponseContent::None,
            _ if self.is_head => ResponseContent::None,
            (_, Some(Framing::Length(length))) => ResponseContent::Length(length),
            (_, Some(Framing::Chunked)) => ResponseContent::Chunked,
            (_, None) => ResponseContent::UntilClose,
        };
        self.reading = match content {
            ResponseContent::None => Reading::Content(BodyDecoder::of_response(Framing::Length(0))),
            ResponseContent::Length(length) => {
                Reading::Content(BodyDecoder::of_response(Framing::Length(length)))
            }
            ResponseContent::Chunked => {
                Reading::Content(BodyDecoder::of_response(Framing::Chunked))
            }
            ResponseContent::UntilClose => Reading::UntilClose,
        };
        Ok(ClientEvent::Response(parsed.head(framing, content)))
    }

    /// RFC 9110 §7.8: an upstream may switch protocols only if the request asked for it and is
    /// complete, and it must name the new protocol.
    fn begin_tunnel<'h>(
        &mut self,
        parsed: &ParsedResponse<'h>,
        framing: Option<Framing>,
    ) -> Result<ClientEvent<'h>, Refused> {
        if !self.upgrade || !self.request_done() {
            return Err(refused(502, "an unsolicited 101"));
        }
        if parsed.version == Version::Http10 || !parsed.names_protocol() {
            return Err(refused(502, "a 101 without Upgrade"));
        }
        refuse_content(framing)?;
        self.keep_alive = false;
        self.reading = Reading::Tunnel;
        Ok(ClientEvent::Response(parsed.head(framing, ResponseContent::None)))
    }

    fn refuse(&mut self, refused: Refused) -> ClientEvent<'static> {
        self.reading = Reading::Failed;
        self.keep_alive = false;
        let status = if refused.status == 431 { 431 } else { 502 };
        ClientEvent::Refused(Refused { status, ..refused })
    }
}

/// Whether a request's head has a field that only [`Client::begin`] may write.
fn has_framing(head: &[u8]) -> bool {
    const OWN: [&[u8]; 4] = [b"content-length", b"transfer-encoding", b"connection", b"expect"];
    head.split(|byte| *byte == b'\n').any(|line| {
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        OWN.iter().any(|own| name.eq_ignore_ascii_case(own))
    })
}

/// A response that cannot have content must not announce any (RFC 9110 §8.6, RFC 9112 §6.1): one
/// parser would read the next bytes as content, another as the next response.
fn refuse_content(framing: Option<Framing>) -> Result<(), Refused> {
    match framing {
        None | Some(Framing::Length(0)) => Ok(()),
        Some(_) => Err(refused(502, "content announced by a status without content")),
    }
}
