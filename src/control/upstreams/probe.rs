//! One check of one upstream: a request, and the status that comes back. Never blocks.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Read, Write},
    net::SocketAddr,
    path::Path,
};

use mio::{
    Interest, Registry, Token,
    event::Source,
    net::{TcpStream, UnixStream},
};

use crate::{
    app::Endpoint,
    config::{HealthConfig, HostPolicy},
    http::{
        Limits, RequestContent,
        h1::{self, ClientEvent, ClientRequest, FieldTable},
    },
};

/// More of an answer than this is not read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Of an answer's head.
const LIMITS: Limits =
    Limits { head_bytes: 16 * 1024, fields: FieldTable::LEN, content_bytes: u64::MAX };

/// A check that is under way.
pub(super) struct Probe {
    token: Token,
    stream: Stream,
    request: Vec<u8>,
    written: usize,
    exchange: h1::Client,
    /// What the exchange has not taken yet.
    answer: Vec<u8>,
    /// To be tried if this one cannot be connected to.
    more_addresses: VecDeque<SocketAddr>,
    /// Bytes of the answer so far.
    read: usize,
    status: Option<u16>,
}

/// What a check came to: a status, or what went wrong.
pub(super) type Outcome = Result<u16, String>;

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Probe {
    /// Connects. `first` is the address to begin with; `policy` is what requests get as their Host.
    pub(super) fn begin(
        endpoint: &Endpoint,
        first: usize,
        (policy, health): (&HostPolicy, &HealthConfig),
        (token, registry): (Token, &Registry),
    ) -> Result<Self, String> {
        let mut addresses = VecDeque::from(endpoint.addresses());
        let count = addresses.len();
        addresses.rotate_left(first % count.max(1));
        let stream = match endpoint.unix_path() {
            Some(path) => Stream::unix(path, token, registry),
            None => Stream::first_of(&mut addresses, token, registry),
        };
        let host = match (&health.host, policy) {
            (Some(host), _) | (None, HostPolicy::Fixed(host)) => host,
            (None, HostPolicy::Keep | HostPolicy::Upstream) => endpoint.authority(),
        };
        let path = &health.path;
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: tidegate-health\r\n\
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
        let exchange = h1::Client::begin(&framing, &mut request);
        Ok(Self {
            token,
            stream: stream.map_err(|error| format!("connect: {error}"))?,
            request,
            written: 0,
            exchange,
            answer: Vec::new(),
            more_addresses: addresses,
            read: 0,
            status: None,
        })
    }

    /// Goes on as far as the socket lets it. The outcome comes with the end of the answer: who is
    /// checked shall not find its connection reset.
    pub(super) fn advance(&mut self, registry: &Registry) -> Option<Outcome> {
        loop {
            let error = match self.exchange() {
                Ok(true) => return Some(self.outcome("connection closed without an answer")),
                Ok(false) => return None,
                Err(error) => error,
            };
            // What was never written to was never open.
            if self.written > 0 || self.status.is_some() {
                return Some(self.outcome(&error.to_string()));
            }
            match Stream::first_of(&mut self.more_addresses, self.token, registry) {
                Ok(stream) => self.stream = stream,
                Err(_) => return Some(Err(format!("connect: {error}"))),
            }
        }
    }

    /// What is known so far; without a status, that this went wrong.
    pub(super) fn outcome(&self, fault: &str) -> Outcome {
        self.status.ok_or_else(|| fault.to_owned())
    }

    /// Whether the answer is at its end; not while the socket has no more.
    fn exchange(&mut self) -> io::Result<bool> {
        while self.written < self.request.len() {
            match self.stream.write(&self.request[self.written..]) {
                Ok(written) => self.written += written,
                Err(error) if is_to_wait(&error) => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(true),
                Ok(read) if self.take(&buffer[..read])? => return Ok(true),
                Ok(_) => {}
                Err(error) if is_to_wait(&error) => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes a piece of the answer in; whether that was the last one, or enough.
    fn take(&mut self, piece: &[u8]) -> io::Result<bool> {
        self.answer.extend_from_slice(piece);
        self.read += piece.len();
        loop {
            let mut fields = FieldTable::new();
            let (used, event) = self.exchange.next_event(&self.answer, &mut fields, &LIMITS);
            match event {
                ClientEvent::Interim(_) | ClientEvent::Content(_) => {}
                ClientEvent::Response(head) => self.status = Some(head.status()),
                ClientEvent::NeedMore => {
                    self.answer.drain(..used);
                    return Ok(self.read > ANSWER_BYTES_MAX);
                }
                ClientEvent::End | ClientEvent::Truncated | ClientEvent::Closed => {
                    return Ok(true);
                }
                ClientEvent::Refused(refused) => {
                    return Err(io::Error::other(format!("no HTTP answer: {}", refused.reason)));
                }
            }
            self.answer.drain(..used);
        }
    }
}

impl Stream {
    fn unix(path: &Path, token: Token, registry: &Registry) -> io::Result<Self> {
        let mut stream = UnixStream::connect(path)?;
        register(&mut stream, token, registry)?;
        Ok(Self::Unix(stream))
    }

    /// Begins to connect to the first address that does not fail at once.
    fn first_of(
        addresses: &mut VecDeque<SocketAddr>,
        token: Token,
        registry: &Registry,
    ) -> io::Result<Self> {
        let mut last = io::Error::new(ErrorKind::NotFound, "no address");
        while let Some(address) = addresses.pop_front() {
            let stream = TcpStream::connect(address).and_then(|mut stream| {
                register(&mut stream, token, registry)?;
                Ok(stream)
            });
            match stream {
                Ok(stream) => return Ok(Self::Tcp(stream)),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

fn register(source: &mut impl Source, token: Token, registry: &Registry) -> io::Result<()> {
    registry.register(source, token, Interest::READABLE | Interest::WRITABLE)
}

fn is_to_wait(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected)
}
