//! One check of one upstream: a request and the status that comes back, or only a connection that
//! opens, with its TLS handshake. Never blocks.

use std::{collections::VecDeque, io, net::SocketAddr};

use mio::{Registry, Token};

use crate::{
    app::{ConnectAddress, Endpoint, UpstreamFailure},
    http::{
        FieldTable, Limits, RequestContent,
        h1::{self, ClientEvent, ClientRequest},
    },
    io::{BOTH_WAYS, BufferPool, Flushed, Io, Mark, OpenError, Opening, Ready, Received, watch},
    tls::{ClientTls, TlsError},
};

/// More of an answer than this is not read.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Of an answer's head.
const LIMITS: Limits =
    Limits { head_bytes: HEAD_BYTES_MAX, fields: FieldTable::LEN, content_bytes: u64::MAX };

const HEAD_BYTES_MAX: usize = 16 * 1024;

/// So many bytes of an answer's content are kept, to be shown.
const SHOWN_BYTES_MAX: usize = 100;

/// The buffers of checks: a head fits in.
pub(in super::super) fn buffers() -> BufferPool {
    BufferPool::new(HEAD_BYTES_MAX + 2)
}

/// What a check asks an upstream.
#[derive(Clone, Copy)]
pub(in super::super) struct Question<'a> {
    /// The path and query. Without one, nothing is sent.
    pub(in super::super) path: Option<&'a str>,
    /// The Host field.
    pub(in super::super) host: &'a str,
    /// The User-Agent field.
    pub(in super::super) agent: &'a str,
}

/// What an upstream answered, beside the status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Seen {
    /// The first bytes of its content.
    pub(in super::super) first: Vec<u8>,
    /// Where it redirects to.
    pub(in super::super) location: Option<Vec<u8>>,
}

/// A check that is under way.
pub(in super::super) struct Probe {
    token: Token,
    io: Io,
    opening: Opening,
    /// How to speak TLS, if the upstream speaks it. Nothing is resumed: each check checks the
    /// certificate.
    tls: Option<ClientTls>,
    /// Empty if only a connection is wanted.
    request: Vec<u8>,
    client: h1::Client,
    /// To be tried if this one cannot be connected to.
    more_addresses: VecDeque<SocketAddr>,
    status: Option<u16>,
    pub(in super::super) seen: Seen,
}

/// What a check came to: a status (0 if nothing was asked), or what went wrong.
pub(in super::super) type ProbeResult = Result<u16, String>;

impl Probe {
    /// Connects. `first` is the address to begin with.
    pub(in super::super) fn begin(
        endpoint: &Endpoint,
        first: usize,
        question: Question<'_>,
        (token, registry): (Token, &Registry),
        buffers: &mut BufferPool,
    ) -> Result<Self, String> {
        let tls = endpoint.tls().cloned();
        let mut place = Place { token, registry, tls: tls.as_ref(), buffers };
        let mut addresses = VecDeque::from(endpoint.addresses());
        let count = addresses.len();
        addresses.rotate_left(first % count.max(1));
        let opened = match endpoint.unix_path() {
            Some(path) => place.open(ConnectAddress::Unix(path)),
            None => place.open_first(&mut addresses),
        };
        let (io, opening) = opened.map_err(|error| format!("connect: {error}"))?;
        let Question { path, host, agent } = question;
        let path_or_root = path.unwrap_or("/");
        let head = format!(
            "GET {path_or_root} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {agent}\r\n\
             Accept: */*\r\n"
        );
        let mut request = head.into_bytes();
        let framing = ClientRequest {
            content: RequestContent::None,
            is_head: false,
            upgrade: false,
            expects_continue: false,
            close: true,
        };
        let client = h1::Client::begin(&framing, &mut request);
        if path.is_none() {
            request.clear();
        }
        let (more_addresses, status, seen) = (addresses, None, Seen::default());
        Ok(Self { token, io, opening, tls, request, client, more_addresses, status, seen })
    }

    /// Goes on as far as the socket lets it. The outcome comes with the end of the answer, so that
    /// the upstream does not find its connection reset.
    pub(in super::super) fn advance(
        &mut self,
        ready: Ready,
        buffers: &mut BufferPool,
        registry: &Registry,
    ) -> Option<ProbeResult> {
        self.io.ready.add(ready);
        loop {
            let fault = match self.exchange(buffers) {
                Ok(true) => return Some(self.outcome("connection closed without an answer")),
                Ok(false) => return None,
                Err(fault) => fault,
            };
            // Without a byte of the request sent the connection was never open.
            if self.io.outbox.sent() > Mark::START || self.status.is_some() {
                return Some(self.outcome(&fault));
            }
            let (token, tls) = (self.token, self.tls.as_ref());
            let mut place = Place { token, registry, tls, buffers };
            match place.open_first(&mut self.more_addresses) {
                Ok(opened) => (self.io, self.opening) = opened,
                Err(_) => return Some(Err(fault)),
            }
        }
    }

    /// What is known so far; without a status, that this went wrong.
    pub(in super::super) fn outcome(&self, fault: &str) -> ProbeResult {
        self.status.ok_or_else(|| fault.to_owned())
    }

    /// Whether the answer is at its end; not while the socket has no more.
    fn exchange(&mut self, buffers: &mut BufferPool) -> Result<bool, String> {
        let opened = self.io.finish_opening(&mut self.opening, buffers);
        let is_open = opened.map_err(|error| match error {
            OpenError::Connect(error) => format!("connect: {error}"),
            OpenError::Handshake(error) => format!("TLS: {}", UpstreamFailure::handshake(&error)),
        })?;
        if !is_open {
            return Ok(false);
        }
        if self.request.is_empty() {
            self.status = Some(0);
            return Ok(true);
        }
        if self.io.outbox.end() == Mark::START {
            self.io.outbox.buffer(buffers).extend_from_slice(&self.request);
        }
        if self.io.flush(buffers).map_err(|error| fault(&error))? != Flushed::All {
            return Ok(false);
        }
        while self.io.ready.readable {
            match self.io.receive(buffers).map_err(|error| fault(&error))? {
                Received::Bytes(_) if self.take(buffers)? => return Ok(true),
                Received::Bytes(_) => {}
                Received::Nothing => break,
                Received::End => return Ok(true),
                Received::Full => return Err("the head of the answer is too long".to_owned()),
            }
        }
        Ok(false)
    }

    /// Takes what came of the answer; whether that was the last of it, or enough.
    fn take(&mut self, buffers: &mut BufferPool) -> Result<bool, String> {
        let is_over = self.read_events()?;
        if let Some(input) = self.io.input.take_if(|input| input.is_empty()) {
            buffers.give_input(input);
        }
        Ok(is_over)
    }

    fn read_events(&mut self) -> Result<bool, String> {
        let received = self.io.received_total();
        let Some(input) = &mut self.io.input else { return Ok(false) };
        loop {
            let mut fields = FieldTable::new();
            let (used, event) = self.client.next_event(input.unread(), &mut fields, &LIMITS);
            let is_over = match event {
                ClientEvent::Interim(_) => None,
                ClientEvent::Content(content) => {
                    let room = SHOWN_BYTES_MAX.saturating_sub(self.seen.first.len());
                    self.seen.first.extend(content.iter().take(room));
                    None
                }
                ClientEvent::Response(head) => {
                    self.status = Some(head.status());
                    self.seen.location = head.field("location").map(<[u8]>::to_vec);
                    None
                }
                ClientEvent::NeedMore => Some(received > ANSWER_BYTES_MAX),
                ClientEvent::End | ClientEvent::Truncated | ClientEvent::Closed => Some(true),
                ClientEvent::Refused(refused) => {
                    return Err(format!("no HTTP answer: {}", refused.reason));
                }
            };
            input.consume(used);
            if let Some(is_over) = is_over {
                return Ok(is_over);
            }
        }
    }
}

/// What went wrong on an open connection. In TLS 1.3 an upstream that wants a certificate of ours
/// says so only then.
fn fault(error: &io::Error) -> String {
    match TlsError::behind(error) {
        Some(error) => format!("TLS: {}", error.reason()),
        None => error.to_string(),
    }
}

/// Where a check connects from.
struct Place<'a> {
    token: Token,
    registry: &'a Registry,
    tls: Option<&'a ClientTls>,
    buffers: &'a mut BufferPool,
}

impl Place<'_> {
    /// Begins to connect to the first address that does not fail at once.
    fn open_first(&mut self, addresses: &mut VecDeque<SocketAddr>) -> io::Result<(Io, Opening)> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "no address");
        while let Some(address) = addresses.pop_front() {
            match self.open(ConnectAddress::Tcp(address)) {
                Ok(opened) => return Ok(opened),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn open(&mut self, address: ConnectAddress<'_>) -> io::Result<(Io, Opening)> {
        let (io, opening) = Io::open(address, self.tls, self.buffers)?;
        watch(self.registry, io.socket(), self.token, BOTH_WAYS)?;
        Ok((io, opening))
    }
}
