//! One request to the admin listener and its answer, over a blocking socket.
//!
//! Every wait has a limit. The answer's head has a maximum size, and its content is passed on in
//! pieces. [`crate::http::h1`] parses the bytes. Invalid HTTP gives `InvalidData`, and a truncated
//! answer `UnexpectedEof`.

use std::{
    fmt::Write as _,
    io::{self, BufRead, ErrorKind, Read, Write},
    mem::MaybeUninit,
    time::{Duration, Instant},
};

use rustix::net::RecvFlags;
use socket2::Socket;

use crate::http::{
    FieldTable, Limits, Refused, RequestContent,
    h1::{self, ClientEvent, ClientRequest},
};

/// The longest silence of an event stream; the server sends a comment every 15 s.
const SILENCE_MAX: Duration = Duration::from_secs(45);

/// Limits for the head of an answer. The reader limits the content.
const LIMITS: Limits = Limits { head_bytes: 64 << 10, fields: 100, content_bytes: 0 };

/// Bytes that are read at once.
const READ_BYTES: usize = 64 << 10;

/// A request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    pub(super) method: &'static str,
    pub(super) path: &'a str,
    pub(super) token: Option<&'a str>,
    pub(super) content: Option<&'a [u8]>,
}

/// A connection on which a request was sent.
pub(super) struct Wire {
    socket: TimedSocket,
    exchange: h1::Client,
    /// The input; the bytes before `used` are consumed.
    input: Vec<u8>,
    used: usize,
}

/// A part of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// The head, with its status.
    Head(u16),
    Content,
    End,
}

impl Wire {
    /// Sends a request. `patience` covers reading the answer too.
    pub(super) fn send(
        mut socket: TimedSocket,
        call: &Call<'_>,
        patience: Duration,
    ) -> io::Result<Self> {
        let (request, exchange) = request(call);
        socket.limit = Limit::Until(Instant::now() + patience);
        socket.socket.set_write_timeout(Some(patience))?;
        if let Err(error) = socket.socket.write_all(&request) {
            // A server that refuses a request may answer and close before it has read all of it.
            let is_cut = matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset);
            if !is_cut {
                return Err(error);
            }
        }
        Ok(Self { socket, exchange, input: Vec::new(), used: 0 })
    }

    /// Whether a part of the answer, or its end, arrives within this time.
    pub(super) fn wait(&self, time: Duration) -> io::Result<bool> {
        self.socket.wait(time)
    }

    /// From now on the answer may take any time, but no silence may exceed the limit.
    pub(super) fn limit_silence(&mut self) {
        self.socket.limit = Limit::Silence(SILENCE_MAX);
    }

    /// Reads the head of the answer, and returns its status.
    pub(super) fn read_head(&mut self) -> io::Result<u16> {
        let part = self.read_part(&mut Vec::new());
        let is_foreign = !self.input[self.used..].starts_with(b"HTTP/");
        match part {
            Ok(Part::Head(status)) => Ok(status),
            Err(error) if error.kind() == ErrorKind::InvalidData && is_foreign => {
                Err(not_http("it does not speak HTTP"))
            }
            Ok(Part::Content | Part::End) => Err(not_http("its answer has no head")),
            Err(error) => Err(error),
        }
    }

    /// Appends a piece of the answer's content to `content`. Returns false at its end.
    pub(super) fn read_content(&mut self, content: &mut Vec<u8>) -> io::Result<bool> {
        Ok(self.read_part(content)? != Part::End)
    }

    /// The connection, if it can be used for another request.
    pub(super) fn into_kept(self) -> Option<TimedSocket> {
        self.exchange.reusable().then_some(self.socket)
    }

    fn read_part(&mut self, content: &mut Vec<u8>) -> io::Result<Part> {
        loop {
            let mut fields = FieldTable::new();
            let input = &self.input[self.used..];
            let (used, event) = self.exchange.next_event(input, &mut fields, &LIMITS);
            let part = match event {
                ClientEvent::NeedMore => None,
                ClientEvent::Interim(_) => {
                    self.used += used;
                    continue;
                }
                ClientEvent::Response(head) => Some(Part::Head(head.status())),
                ClientEvent::Content(piece) => {
                    content.extend_from_slice(piece);
                    Some(Part::Content)
                }
                ClientEvent::End | ClientEvent::Closed => Some(Part::End),
                ClientEvent::Refused(refused) => return Err(not_http(fault(refused))),
                ClientEvent::Truncated => return Err(ErrorKind::UnexpectedEof.into()),
            };
            self.used += used;
            match part {
                Some(part) => return Ok(part),
                None if self.receive()? => {}
                None => match self.exchange.receive_eof() {
                    ClientEvent::End => return Ok(Part::End),
                    _ => return Err(ErrorKind::UnexpectedEof.into()),
                },
            }
        }
    }

    /// Reads more of the answer. Returns false at EOF.
    fn receive(&mut self) -> io::Result<bool> {
        self.input.drain(..self.used);
        self.used = 0;
        let unread = self.input.len();
        self.input.resize(unread + READ_BYTES, 0);
        let read = loop {
            match self.socket.read(&mut self.input[unread..]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.input.truncate(unread + *read.as_ref().unwrap_or(&0));
        Ok(read? > 0)
    }
}

/// The content of an answer without an end.
pub(super) struct Stream {
    wire: Wire,
    piece: Vec<u8>,
    used: usize,
}

impl Stream {
    /// The content of an answer after its head was read.
    pub(super) fn new(wire: Wire) -> Self {
        Self { wire, piece: Vec::new(), used: 0 }
    }
}

impl BufRead for Stream {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.used == self.piece.len() {
            self.piece.clear();
            self.used = 0;
            self.wire.read_content(&mut self.piece)?;
        }
        Ok(&self.piece[self.used..])
    }

    fn consume(&mut self, bytes: usize) {
        self.used += bytes;
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(bytes)?;
        self.consume(read);
        Ok(read)
    }
}

/// A socket whose reads have a limit.
pub(super) struct TimedSocket {
    socket: Socket,
    limit: Limit,
}

enum Limit {
    /// Everything must arrive by then.
    Until(Instant),
    /// No silence may be longer.
    Silence(Duration),
}

impl TimedSocket {
    /// Whether unsolicited bytes have arrived.
    pub(super) fn has_unasked(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        rustix::net::recv(&self.socket, &mut [0], flags).is_ok_and(|(count, _)| count > 0)
    }

    /// Wraps a connected socket.
    pub(super) fn new(socket: Socket) -> Self {
        Self { socket, limit: Limit::Silence(SILENCE_MAX) }
    }

    /// From now on everything must arrive by then.
    pub(super) fn limit_until(&mut self, deadline: Instant) {
        self.limit = Limit::Until(deadline);
    }

    /// Whether data or EOF arrives within this time.
    fn wait(&self, time: Duration) -> io::Result<bool> {
        self.socket.set_read_timeout(Some(time))?;
        match self.socket.peek(&mut [MaybeUninit::uninit()]) {
            Ok(_) => Ok(true),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => Ok(false),
                _ => Err(error),
            },
        }
    }
}

impl Read for TimedSocket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let left = match self.limit {
            Limit::Until(deadline) => deadline.saturating_duration_since(Instant::now()),
            Limit::Silence(longest) => longest,
        };
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        self.socket.set_read_timeout(Some(left))?;
        self.socket.read(bytes)
    }
}

/// The bytes of a request, and the parser for its answer.
fn request(call: &Call<'_>) -> (Vec<u8>, h1::Client) {
    let Call { method, path, token, content } = call;
    let agent = concat!("tidegate/", env!("CARGO_PKG_VERSION"));
    let mut head =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: {agent}\r\n");
    if let Some(token) = token {
        let _ = write!(head, "Authorization: Bearer {token}\r\n");
    }
    if content.is_some() {
        head += "Content-Type: application/json\r\n";
    }
    let content = content.unwrap_or_default();
    let framing = ClientRequest {
        content: match *method {
            "GET" => RequestContent::None,
            _ => RequestContent::Length(content.len() as u64),
        },
        is_head: false,
        upgrade: false,
        expects_continue: false,
        close: false,
    };
    let mut request = head.into_bytes();
    let mut exchange = h1::Client::begin(&framing, &mut request);
    exchange.write_content(content, &mut request);
    (request, exchange)
}

/// The error in an answer. The limits that `refused` names are those of a server's config.
fn fault(refused: Refused) -> &'static str {
    match refused.status {
        431 => "its answer has too many fields, or too long ones",
        _ => refused.reason,
    }
}

fn not_http(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}
