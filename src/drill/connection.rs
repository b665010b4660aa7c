//! One connection of a client: sends requests, one or several at a time, and reports the outcome of
//! each. Never blocks.
//!
//! ```text
//! dial ► Connecting ──established──► Busy ──answer, kept──► Idle ──next request──► Busy
//!             │            │ ▲         ├───answer, not kept──► Closing ──EOF──► dropped
//!             │        TLS ▼ │ over    └───cut, reset, no answer──► dropped
//!             │          Handshaking ──failed──► dropped
//!             └──refused, no answer──► dropped
//! Busy:  sending ──all written──► waiting ──first byte──► reading
//! ```
//! - A request is never sent twice: a request that the server loses is reported as lost.
//! - A kept connection is read before it is used again. If the server has closed it by then,
//!   nothing is lost: the client uses another connection. A distant client learns of the close
//!   later: its request travels for `distance` before anything is written or read.
//! - After an answer that ends the connection, the client lets the server close first.
//! - A pipelining client writes all of its requests at once and gets the answers in order. Requests
//!   that are still unanswered when the server closes are lost.
//! - A leaving client closes before the first byte of the answer, or after it if more is to come.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Read, Write},
    net::SocketAddr,
    time::Duration,
};

use mio::{Interest, Registry, Token, net::TcpStream};
use socket2::{Domain, Socket, Type};

use super::{
    handshakes::EndedHandshake,
    outcome::{FailureDetails, RequestOutcome, RequestPhase},
    plan::ClientKind,
    request::{AfterRequest, Batch, HALF, LIMITS, LeaveAt, write_batch},
    wire::{Agreed, Wire, reason},
};
use crate::{
    http::{
        FieldTable,
        h1::{self, ClientEvent},
    },
    tls::ClientTls,
};

/// How long a POST pauses in the middle of its content.
const HALF_PAUSE: Duration = Duration::from_millis(5);

/// A slow download reads this many bytes at a time, at this interval.
const PIECE_BYTES: usize = 64 << 10;
const PIECE_PAUSE: Duration = Duration::from_millis(4);

/// A connection of a client.
pub(super) struct DrillConnection {
    wire: Wire<TcpStream>,
    state: ConnectionPhase,
    kind: ClientKind,
    /// The current request, or the last one.
    exchange: h1::Client,
    /// Requests sent after the current one (pipelining).
    behind: VecDeque<h1::Client>,
    leaves: Option<LeaveAt>,
    status: u16,
    out: Vec<u8>,
    written: usize,
    /// Set once a write has failed.
    write_error: Option<io::Error>,
    input: Vec<u8>,
    received: u64,
    served: u64,
    dialed: Duration,
    connected: Option<Duration>,
    /// What a handshake came to that isn't reported yet.
    agreed: Option<Agreed>,
    /// When a request that was sent from far away reaches the server.
    arrival: Duration,
    /// No reads or writes before this moment.
    resume: Option<Duration>,
    /// The time paused so far.
    paused: Duration,
    port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnectionPhase {
    Connecting,
    Handshaking,
    Busy,
    Idle,
    Closing,
}

/// The result of [`DrillConnection::advance`].
#[derive(Debug)]
pub(super) enum Progress {
    /// Waiting for the socket to become ready.
    Waiting,
    /// Paused until this moment.
    Until(Duration),
    /// A request has ended.
    Done(RequestOutcome, AfterRequest),
    /// The connection has closed between requests.
    Closed,
}

impl DrillConnection {
    /// Starts connecting, to send these requests.
    pub(super) fn dial(
        address: SocketAddr,
        tls: Option<&ClientTls>,
        batch: Batch<'_>,
        (registry, token): (&Registry, Token),
        now: Duration,
    ) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
        socket.set_tcp_nodelay(true)?;
        if batch.kind == ClientKind::Slow {
            // With a large buffer the kernel would take the whole answer at once.
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
        let (exchange, behind) = write_batch(batch.kind, batch.target, &mut out);
        Ok(Self {
            wire: Wire::new(stream, tls)?,
            state: ConnectionPhase::Connecting,
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
            agreed: None,
            arrival: Duration::ZERO,
            resume: None,
            paused: Duration::ZERO,
            port,
        })
    }

    /// Starts requests on a kept connection. They travel for `distance` first.
    pub(super) fn begin(&mut self, batch: Batch<'_>, now: Duration, distance: Duration) {
        self.out.clear();
        (self.exchange, self.behind) = write_batch(batch.kind, batch.target, &mut self.out);
        (self.written, self.received, self.resume) = (0, 0, None);
        (self.arrival, self.paused) = (now + distance, distance);
        self.state = ConnectionPhase::Busy;
    }

    /// Whether a kept connection is still open, as far as the client can know.
    pub(super) fn is_open(&mut self) -> bool {
        let read = self.wire.read(&mut [0; 1]);
        read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    /// The handshake, if it has succeeded since the last call. It ends now: a busy machine may
    /// answer within one call of [`DrillConnection::advance`].
    pub(super) fn take_handshake(&mut self, now: Duration) -> Option<EndedHandshake> {
        let Agreed { is_resumed, version, cipher, .. } = self.agreed.take()?;
        let begun = self.handshake_begun();
        Some(EndedHandshake { begun, ended: now, is_resumed, version, cipher })
    }

    /// When the handshake began, or would have begun.
    pub(super) fn handshake_begun(&self) -> Duration {
        self.connected.unwrap_or(self.dialed)
    }

    /// How long the client has paused within the request.
    pub(super) fn paused(&self) -> Duration {
        self.paused
    }

    /// Waits only for the server's EOF from now on.
    pub(super) fn close(&mut self) {
        self.state = ConnectionPhase::Closing;
    }

    /// Continues as far as the socket allows. `scratch` is the read buffer.
    pub(super) fn advance(&mut self, now: Duration, scratch: &mut [u8]) -> Progress {
        match self.state {
            ConnectionPhase::Busy | ConnectionPhase::Handshaking => {}
            ConnectionPhase::Connecting => match self.established() {
                Ok(true) => {
                    self.connected = Some(now);
                    self.state = ConnectionPhase::Handshaking;
                }
                Ok(false) => return Progress::Waiting,
                Err(error) => {
                    let reset = error.kind() == ErrorKind::ConnectionReset;
                    return Progress::Done(
                        self.failure(&error.to_string(), reset),
                        AfterRequest::Drop,
                    );
                }
            },
            ConnectionPhase::Idle | ConnectionPhase::Closing => return self.read_out(scratch),
        }
        if self.state == ConnectionPhase::Handshaking
            && let Some(progress) = self.shake_hands()
        {
            return progress;
        }
        if now < self.arrival {
            return Progress::Until(self.arrival);
        }
        self.write(now);
        let is_written = self.exchange.request_done() && self.written == self.out.len();
        let is_sent = is_written && self.wire.is_flushed();
        if self.leaves == Some(LeaveAt::BeforeAnswer) && is_sent {
            return Progress::Done(RequestOutcome::Left, AfterRequest::Drop);
        }
        // The last read may have brought the next answer too.
        if !self.input.is_empty()
            && let Some(done) = self.receive(&[])
        {
            return done;
        }
        self.read_answer(now, scratch)
    }

    /// Reads as much of the answer as the socket has; a slow client pauses between pieces.
    fn read_answer(&mut self, now: Duration, scratch: &mut [u8]) -> Progress {
        let paces = self.kind == ClientKind::Slow;
        let piece = if paces { PIECE_BYTES.min(scratch.len()) } else { scratch.len() };
        // A record of TLS is smaller than a piece.
        let mut left = piece;
        loop {
            if paces && let Some(at) = self.resume.filter(|at| *at > now) {
                return Progress::Until(at);
            }
            match self.wire.read(&mut scratch[..left]) {
                Ok(0) => return self.receive_eof(),
                Ok(read) => {
                    if let Some(done) = self.receive(&scratch[..read]) {
                        return done;
                    }
                    if paces {
                        left -= read;
                        self.resume = (left == 0).then_some(now + PIECE_PAUSE);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if left < piece {
                        self.resume = Some(now + PIECE_PAUSE);
                    }
                    return match (self.write_error.take(), self.resume) {
                        // After a failed write and a drained socket, no answer can follow.
                        (Some(error), _) => self.fail(&reason(&error)),
                        (None, Some(at)) if at > now => Progress::Until(at),
                        _ => Progress::Waiting,
                    };
                }
                Err(error) => return self.fail(&reason(&error)),
            }
        }
    }

    /// Goes on with the handshake, if there is one. `None`: requests can be sent.
    fn shake_hands(&mut self) -> Option<Progress> {
        match self.wire.shake_hands() {
            Ok(agreed) => {
                self.state = ConnectionPhase::Busy;
                self.agreed = agreed;
                None
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Some(Progress::Waiting),
            Err(error) => Some(self.fail(&reason(&error))),
        }
    }

    /// The outcome of a request that has timed out.
    pub(super) fn time_out(&self, timeout: Duration) -> RequestOutcome {
        self.failure(&format!("nothing for {} s", timeout.as_secs_f64()), false)
    }

    /// Reads while no request is in flight.
    fn read_out(&mut self, scratch: &mut [u8]) -> Progress {
        loop {
            match self.wire.read(scratch) {
                // Surplus bytes are ignored after the final answer; on an idle connection they end
                // it.
                Ok(1..) if self.state == ConnectionPhase::Closing => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Progress::Waiting,
                Ok(_) | Err(_) => return Progress::Closed,
            }
        }
    }

    fn established(&mut self) -> io::Result<bool> {
        let socket = self.wire.socket();
        if let Some(error) = socket.take_error()? {
            return Err(error);
        }
        match socket.peer_addr() {
            Ok(_) => {
                // The kernel may choose the port only while connecting.
                self.port = socket.local_addr().map_or(self.port, |own| own.port());
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes pending bytes, and a POST's second half once its pause is over.
    fn write(&mut self, now: Duration) {
        loop {
            while self.written < self.out.len() && self.write_error.is_none() {
                match self.wire.write(&self.out[self.written..]) {
                    Ok(written) => self.written += written,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                    // The server may have answered before it failed.
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

    /// Handles a piece of the answer. Returns how the request ended, if it did.
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
        let leaves = self.leaves == Some(LeaveAt::WithinAnswer) && self.received > 0;
        leaves.then_some(Progress::Done(RequestOutcome::Left, AfterRequest::Drop))
    }

    fn receive_eof(&mut self) -> Progress {
        match self.exchange.receive_eof() {
            ClientEvent::End => self.answered(),
            _ => self.fail("closed"),
        }
    }

    fn answered(&mut self) -> Progress {
        let outcome = match self.status {
            503 => RequestOutcome::Refused,
            status => RequestOutcome::Answered(status),
        };
        self.served += 1;
        if let Some(next) = self.behind.pop_front() {
            self.exchange = next;
            self.received = self.input.len() as u64;
            return Progress::Done(outcome, AfterRequest::GoOn);
        }
        let then = if self.exchange.reusable() { AfterRequest::Keep } else { AfterRequest::Close };
        self.input.clear();
        self.state = ConnectionPhase::Idle;
        Progress::Done(outcome, then)
    }

    fn fail(&self, said: &str) -> Progress {
        Progress::Done(self.failure(said, false), AfterRequest::Drop)
    }

    /// The failure of the current request. `reset`: the peer reset the connection while connecting.
    fn failure(&self, said: &str, reset: bool) -> RequestOutcome {
        let phase = match self.state {
            ConnectionPhase::Connecting => RequestPhase::Connecting,
            ConnectionPhase::Handshaking => RequestPhase::Handshaking,
            _ if self.received > 0 => RequestPhase::Reading,
            _ if self.exchange.request_done() && self.written == self.out.len() => {
                RequestPhase::Waiting
            }
            _ => RequestPhase::Sending,
        };
        let details = FailureDetails {
            phase,
            sent: self.written as u64,
            received: self.received,
            served: self.served,
            connecting: self.connected.map(|at| at.saturating_sub(self.dialed)),
            said: said.to_owned(),
            port: self.port,
        };
        match phase {
            // A reset shows that a connection existed.
            RequestPhase::Connecting if !reset => RequestOutcome::NotAccepted(details),
            RequestPhase::Connecting if self.wire.is_tls() => {
                RequestOutcome::FailedHandshake(details)
            }
            RequestPhase::Handshaking => RequestOutcome::FailedHandshake(details),
            RequestPhase::Reading => RequestOutcome::Truncated(details),
            _ => RequestOutcome::Lost(details),
        }
    }
}
