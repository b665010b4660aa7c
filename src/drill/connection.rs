//! One connection of a client: a request at a time, or several at once, and what became of each.
//! Never blocks.
//!
//! ```text
//! dial ► Connecting ──established──► Busy ──answer, kept──► Idle ──next request──► Busy
//!             │                        ├───answer, not kept──► Closing ──EOF──► dropped
//!             └──refused, no answer──► └───cut, reset, no answer──► dropped
//! Busy:  sending ──all written──► waiting ──first byte──► reading
//! ```
//! - A request is never sent twice: what a server loses is told, not mended.
//! - Before a kept connection is used again it is read: one that the server has closed by then is
//!   nobody's loss, and another one is used. A client that is far away knows of it later: its
//!   request is on its way for that long before anything is written or read.
//! - Whoever has an answer that ends its connection lets the server close first.
//! - Who pipelines writes all of its requests at once; each has an answer of its own, in order, and
//!   what the server has not answered when it closes is lost.
//! - Who leaves closes before the first byte of the answer, or behind it if there is more to come.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Read, Write},
    net::SocketAddr,
    time::Duration,
};

use mio::{Interest, Registry, Token, net::TcpStream};
use socket2::{Domain, Socket, Type};

use super::{
    ledger::{Outcome, Phase, Story},
    plan::{ClientKind, Target},
};
use crate::http::{
    Limits, RequestContent,
    h1::{self, ClientEvent, ClientRequest, FieldTable},
};

/// What an answer's head may measure.
const LIMITS: Limits = Limits { head_bytes: 64 << 10, fields: FieldTable::LEN, content_bytes: 0 };

/// Half of a POST's content.
const HALF: [u8; 4096] = [b'x'; 4096];

/// How long a POST pauses in the middle of its content.
const HALF_PAUSE: Duration = Duration::from_millis(5);

/// What a slow download reads at a time, and how often.
const PIECE_BYTES: usize = 64 << 10;
const PIECE_PAUSE: Duration = Duration::from_millis(4);

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    state: State,
    kind: ClientKind,
    /// Of the request that goes on, or the last one.
    exchange: h1::Client,
    /// Of the requests that were sent behind it.
    behind: VecDeque<h1::Client>,
    leaves: Option<Leave>,
    status: u16,
    out: Vec<u8>,
    written: usize,
    /// The server takes no more.
    write_error: Option<io::Error>,
    input: Vec<u8>,
    received: u64,
    served: u64,
    dialed: Duration,
    connected: Option<Duration>,
    /// When a request arrives that a client sends from far away.
    arrival: Duration,
    /// Nothing goes on before this moment.
    resume: Option<Duration>,
    /// What was paused so far.
    paused: Duration,
    port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Busy,
    Idle,
    Closing,
}

/// When a client leaves that does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    /// When its request is sent.
    BeforeAnswer,
    /// When the answer has begun; it may be whole by then.
    WithinAnswer,
}

/// Requests to be sent at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batch<'a> {
    pub(super) kind: ClientKind,
    pub(super) target: &'a Target,
    pub(super) leaves: Option<Leave>,
}

/// What advancing came to.
#[derive(Debug)]
pub(super) enum Progress {
    /// The socket has to be ready first.
    Waiting,
    /// It goes on at this moment.
    Until(Duration),
    /// The request has ended.
    Done(Outcome, Then),
    /// The connection has ended, outside of any request.
    Closed,
}

/// What becomes of a connection behind a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    Keep,
    /// The next answer is waited for.
    GoOn,
    /// The server may close first.
    Close,
    Drop,
}

impl Connection {
    /// Begins to connect, for these requests.
    pub(super) fn dial(
        address: SocketAddr,
        batch: Batch<'_>,
        (registry, token): (&Registry, Token),
        now: Duration,
    ) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
        socket.set_tcp_nodelay(true)?;
        if batch.kind == ClientKind::Slow {
            // A large buffer would be read slowly by us, and not by the kernel.
            socket.set_recv_buffer_size(PIECE_BYTES)?;
        }
        if let Err(error) = socket.connect(&address.into())
            && error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error())
        {
            return Err(error);
        }
        let mut stream = TcpStream::from_std(socket.into());
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        let port = stream.local_addr().map_or(0, |own| own.port());
        let mut out = Vec::new();
        let (exchange, behind) = write_batch(batch, &mut out);
        Ok(Self {
            stream,
            state: State::Connecting,
            kind: batch.kind,
            exchange,
            behind,
            leaves: batch.leaves,
            status: 0,
            out,
            written: 0,
            write_error: None,
            input: Vec::new(),
            received: 0,
            served: 0,
            dialed: now,
            connected: None,
            arrival: Duration::ZERO,
            resume: None,
            paused: Duration::ZERO,
            port,
        })
    }

    /// Begins requests on a kept connection; they are under way for `distance`.
    pub(super) fn begin(&mut self, batch: Batch<'_>, now: Duration, distance: Duration) {
        self.out.clear();
        (self.exchange, self.behind) = write_batch(batch, &mut self.out);
        (self.written, self.received, self.resume) = (0, 0, None);
        (self.arrival, self.paused) = (now + distance, distance);
        self.state = State::Busy;
    }

    /// Whether a kept connection can be used again, as far as anybody can know.
    pub(super) fn is_open(&mut self) -> bool {
        let read = self.stream.read(&mut [0; 1]);
        read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    /// How long the client itself has paused within the request.
    pub(super) fn paused(&self) -> Duration {
        self.paused
    }

    /// From now on only the server's end is waited for.
    pub(super) fn close(&mut self) {
        self.state = State::Closing;
    }

    /// Goes on as far as the socket lets it. `scratch` is room for what is read.
    pub(super) fn advance(&mut self, now: Duration, scratch: &mut [u8]) -> Progress {
        match self.state {
            State::Busy => {}
            State::Connecting => match self.established() {
                Ok(true) => {
                    self.connected = Some(now);
                    self.state = State::Busy;
                }
                Ok(false) => return Progress::Waiting,
                Err(error) => {
                    let reset = error.kind() == ErrorKind::ConnectionReset;
                    return Progress::Done(self.failure(&error.to_string(), reset), Then::Drop);
                }
            },
            State::Idle | State::Closing => return self.read_out(scratch),
        }
        if now < self.arrival {
            return Progress::Until(self.arrival);
        }
        self.write(now);
        let is_sent = self.exchange.request_done() && self.written == self.out.len();
        if self.leaves == Some(Leave::BeforeAnswer) && is_sent {
            return Progress::Done(Outcome::Left, Then::Drop);
        }
        // The next answer may have come with the last one.
        if !self.input.is_empty()
            && let Some(done) = self.receive(&[])
        {
            return done;
        }
        let paces = self.kind == ClientKind::Slow;
        let piece = if paces { PIECE_BYTES.min(scratch.len()) } else { scratch.len() };
        loop {
            if paces && let Some(at) = self.resume.filter(|at| *at > now) {
                return Progress::Until(at);
            }
            match self.stream.read(&mut scratch[..piece]) {
                Ok(0) => return self.receive_eof(),
                Ok(read) => {
                    if let Some(done) = self.receive(&scratch[..read]) {
                        return done;
                    }
                    if paces {
                        self.resume = Some(now + PIECE_PAUSE);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return match (self.write_error.take(), self.resume) {
                        // With nothing left to be read, the answer does not come any more.
                        (Some(error), _) => self.fail(&error.to_string()),
                        (None, Some(at)) if at > now => Progress::Until(at),
                        _ => Progress::Waiting,
                    };
                }
                Err(error) => return self.fail(&error.to_string()),
            }
        }
    }

    /// How the request ends that has taken too long.
    pub(super) fn time_out(&self, timeout: Duration) -> Outcome {
        self.failure(&format!("nothing for {} s", timeout.as_secs_f64()), false)
    }

    /// Reads outside of a request.
    fn read_out(&mut self, scratch: &mut [u8]) -> Progress {
        loop {
            match self.stream.read(scratch) {
                // What nobody asked for is read out behind an answer, and else ends a connection.
                Ok(1..) if self.state == State::Closing => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Progress::Waiting,
                Ok(_) | Err(_) => return Progress::Closed,
            }
        }
    }

    fn established(&mut self) -> io::Result<bool> {
        if let Some(error) = self.stream.take_error()? {
            return Err(error);
        }
        match self.stream.peer_addr() {
            Ok(_) => {
                // A port that is bound late is known now.
                self.port = self.stream.local_addr().map_or(self.port, |own| own.port());
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes what there is; a POST's second half when its pause is over.
    fn write(&mut self, now: Duration) {
        loop {
            while self.written < self.out.len() && self.write_error.is_none() {
                match self.stream.write(&self.out[self.written..]) {
                    Ok(written) => self.written += written,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                    // It may have answered before.
                    Err(error) => self.write_error = Some(error),
                }
            }
            if self.write_error.is_some() || self.exchange.request_done() {
                return;
            }
            match self.resume {
                None => {
                    self.resume = Some(now + HALF_PAUSE);
                    return;
                }
                Some(at) if at > now => return,
                Some(_) => {
                    self.exchange.write_content(&HALF, &mut self.out);
                    self.paused += HALF_PAUSE;
                    self.resume = None;
                }
            }
        }
    }

    /// Takes a piece of the answer; how the request ended, if it did.
    fn receive(&mut self, piece: &[u8]) -> Option<Progress> {
        self.received += piece.len() as u64;
        self.input.extend_from_slice(piece);
        let mut at = 0;
        loop {
            let mut fields = FieldTable::new();
            let (used, event) = self.exchange.next_event(&self.input[at..], &mut fields, &LIMITS);
            at += used;
            match event {
                ClientEvent::NeedMore | ClientEvent::Closed => break,
                ClientEvent::Response(head) => self.status = head.status,
                ClientEvent::Interim(_) | ClientEvent::Content(_) => {}
                ClientEvent::End => {
                    self.input.drain(..at);
                    return Some(self.answered());
                }
                ClientEvent::Truncated => return Some(self.fail("closed")),
                ClientEvent::Refused(refused) => {
                    let said = format!("not HTTP/1.1: {}", refused.reason);
                    return Some(self.fail(&said));
                }
            }
        }
        self.input.drain(..at);
        let leaves = self.leaves == Some(Leave::WithinAnswer) && self.received > 0;
        leaves.then_some(Progress::Done(Outcome::Left, Then::Drop))
    }

    fn receive_eof(&mut self) -> Progress {
        match self.exchange.receive_eof() {
            ClientEvent::End => self.answered(),
            _ => self.fail("closed"),
        }
    }

    fn answered(&mut self) -> Progress {
        let outcome = match self.status {
            503 => Outcome::Refused,
            status => Outcome::Answered(status),
        };
        self.served += 1;
        if let Some(next) = self.behind.pop_front() {
            self.exchange = next;
            self.received = self.input.len() as u64;
            return Progress::Done(outcome, Then::GoOn);
        }
        let then = if self.exchange.reusable() { Then::Keep } else { Then::Close };
        self.input.clear();
        self.state = State::Idle;
        Progress::Done(outcome, then)
    }

    fn fail(&self, said: &str) -> Progress {
        Progress::Done(self.failure(said, false), Then::Drop)
    }

    /// Where the request stands, as a failure. `reset`: by the peer, while connecting.
    fn failure(&self, said: &str, reset: bool) -> Outcome {
        let phase = match self.state {
            State::Connecting => Phase::Connecting,
            _ if self.received > 0 => Phase::Reading,
            _ if self.exchange.request_done() && self.written == self.out.len() => Phase::Waiting,
            _ => Phase::Sending,
        };
        let story = Story {
            phase,
            sent: self.written as u64,
            received: self.received,
            served: self.served,
            connecting: self.connected.map(|at| at.saturating_sub(self.dialed)),
            said: said.to_owned(),
            port: self.port,
        };
        match phase {
            // Only who was connected can be reset.
            Phase::Connecting if !reset => Outcome::NotAccepted(story),
            Phase::Reading => Outcome::Truncated(story),
            _ => Outcome::Lost(story),
        }
    }
}

/// Writes requests: the exchange of the first, and of those behind it.
fn write_batch(
    Batch { kind, target, .. }: Batch<'_>,
    out: &mut Vec<u8>,
) -> (h1::Client, VecDeque<h1::Client>) {
    let mut write = || {
        let mut one = Vec::new();
        let exchange = write_head(kind, target, &mut one);
        out.append(&mut one);
        exchange
    };
    (write(), (1..kind.batch()).map(|_| write()).collect())
}

/// Writes the head of a request, and of a POST the first half of its content.
fn write_head(kind: ClientKind, target: &Target, out: &mut Vec<u8>) -> h1::Client {
    let is_post = kind == ClientKind::Post;
    let method = if is_post { "POST" } else { "GET" };
    let Target { host, path, .. } = target;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: tidegate-drill\r\n\
         Accept: */*\r\n"
    );
    out.extend_from_slice(head.as_bytes());
    let length = 2 * HALF.len() as u64;
    let request = ClientRequest {
        content: if is_post { RequestContent::Length(length) } else { RequestContent::None },
        is_head: false,
        upgrade: false,
        expects_continue: false,
        close: matches!(kind, ClientKind::Fresh | ClientKind::Leaving),
    };
    let mut exchange = h1::Client::begin(&request, out);
    if is_post {
        exchange.write_content(&HALF, out);
    }
    exchange
}
