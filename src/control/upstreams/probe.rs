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
    config::{HostPolicy, ProxyConfig},
};

/// More of an answer than this is not read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// A status line has come by then, or none does.
const STATUS_LINE_BYTES_MAX: usize = 16 * 1024;

/// A check that is under way.
pub(super) struct Probe {
    token: Token,
    stream: Stream,
    request: Vec<u8>,
    written: usize,
    answer: Vec<u8>,
    /// To be tried if this one cannot be connected to.
    more_addresses: VecDeque<SocketAddr>,
    /// Bytes read behind the status.
    rest: usize,
    status: Option<u16>,
}

/// What a check came to: a status, or what went wrong.
pub(super) type Outcome = Result<u16, String>;

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Probe {
    /// Connects. `first` is the address to begin with.
    pub(super) fn begin(
        endpoint: &Endpoint,
        first: usize,
        config: &ProxyConfig,
        path: &str,
        (token, registry): (Token, &Registry),
    ) -> Result<Self, String> {
        let mut addresses = VecDeque::from(endpoint.addresses());
        let count = addresses.len();
        addresses.rotate_left(first % count.max(1));
        let stream = match endpoint.unix_path() {
            Some(path) => Stream::unix(path, token, registry),
            None => Stream::first_of(&mut addresses, token, registry),
        };
        let host = match &config.host {
            HostPolicy::Fixed(host) => host,
            HostPolicy::Keep | HostPolicy::Upstream => endpoint.authority(),
        };
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: tidegate-health\r\n\
             Accept: */*\r\nConnection: close\r\n\r\n"
        );
        Ok(Self {
            token,
            stream: stream.map_err(|error| format!("connect: {error}"))?,
            request: request.into_bytes(),
            written: 0,
            answer: Vec::new(),
            more_addresses: addresses,
            rest: 0,
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

    /// Takes a piece of the answer in; whether that was enough.
    fn take(&mut self, piece: &[u8]) -> io::Result<bool> {
        if self.status.is_some() {
            self.rest += piece.len();
            return Ok(self.rest > ANSWER_BYTES_MAX);
        }
        self.answer.extend_from_slice(piece);
        self.status = status(&self.answer)?;
        if self.status.is_none() && self.answer.len() > STATUS_LINE_BYTES_MAX {
            return Err(io::Error::other("no status line"));
        }
        Ok(false)
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

/// The status of the final answer, if its line is there; interim ones are passed over.
fn status(mut answer: &[u8]) -> io::Result<Option<u16>> {
    let malformed = || io::Error::other("no HTTP answer");
    loop {
        let Some(end) = memchr::memchr(b'\n', answer) else { return Ok(None) };
        // The line as a whole head.
        let line = [&answer[..=end], b"\r\n"].concat();
        let mut response = httparse::Response::new(&mut []);
        match response.parse(&line) {
            Ok(httparse::Status::Complete(_)) => {}
            Ok(httparse::Status::Partial) | Err(_) => return Err(malformed()),
        }
        match response.code {
            Some(101) | None => return Err(malformed()),
            Some(100..=199) => {
                let head_end = memchr::memmem::find(answer, b"\r\n\r\n");
                let Some(end) = head_end else { return Ok(None) };
                answer = &answer[end + 4..];
            }
            code => return Ok(code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_final_status_is_found_in_any_pieces() {
        for (answer, found) in [
            ("HTTP/1.1 200 OK\r\n", Some(200)),
            ("HTTP/1.0 503\r\nX: y\r\n\r\n", Some(503)),
            ("HTTP/1.1 404 Not Found\n\n", Some(404)),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n", Some(204)),
            ("HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 500 x\r\n", Some(500)),
            ("HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 50", None),
            ("HTTP/1.1 200 OK", None),
            ("", None),
        ] {
            assert_eq!(status(answer.as_bytes()).unwrap(), found, "{answer:?}");
            for end in 0..answer.len() {
                status(&answer.as_bytes()[..end]).unwrap();
            }
        }
        for answer in ["hello\r\n", "HTTP/2 200 OK\r\n", "HTTP/1.1 101 x\r\n\r\n", "\r\n\r\n"] {
            assert!(status(answer.as_bytes()).is_err(), "{answer:?}");
        }
    }
}
