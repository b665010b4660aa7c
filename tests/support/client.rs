//! A client at the level of bytes: split writes, half-close, slow reads; it tells a reset from an
//! orderly end.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use socket2::{Domain, SockRef, Socket, Type};

use super::{
    response::{Parsed, Response},
    wait::{PATIENCE, give_way},
};

/// A connection, and the bytes that were read but not yet returned.
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
    ended: bool,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The server closed its side in order.
    Eof,
    /// The server cut the connection.
    Reset,
    /// It was still open at the deadline.
    Open,
}

/// Why no response came.
#[derive(Debug)]
#[allow(dead_code, reason = "a failing test shows it")]
pub enum Lost {
    /// The connection ended after this many bytes of a response.
    Ended(End, usize),
    /// The deadline passed with this many bytes of a response.
    Late(usize),
    /// The bytes are not a response.
    Malformed(String),
}

impl Client {
    /// Connects, or fails the test.
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).expect("connect");
        Self::over(stream)
    }

    /// Connects within `deadline`.
    pub fn try_connect(address: SocketAddr, deadline: Duration) -> io::Result<Self> {
        TcpStream::connect_timeout(&address, deadline).map(Self::over)
    }

    /// Connects with a small receive buffer, so that a large answer has to wait for its reader, and
    /// with segments of Ethernet's size: with those of the loopback, the sender's kernel accepts
    /// 2.6 MiB ahead.
    pub fn connect_narrow(address: SocketAddr) -> Self {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("socket");
        socket.set_recv_buffer_size(16 * 1024).expect("SO_RCVBUF");
        socket.set_tcp_mss(1460).expect("TCP_MAXSEG");
        socket.connect_timeout(&address.into(), PATIENCE).expect("connect");
        Self::over(socket.into())
    }

    /// Connects from this address of the machine.
    pub fn connect_from(ip: IpAddr, address: SocketAddr) -> Self {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("socket");
        socket.bind(&SocketAddr::new(ip, 0).into()).expect("bind");
        socket.connect_timeout(&address.into(), PATIENCE).expect("connect");
        Self::over(socket.into())
    }

    /// Connects, but delays the last packet of the handshake, as a large distance would: for the
    /// client the connection is open. The packet is sent with the first bytes, or after 0.2 s.
    pub fn connect_late(address: SocketAddr) -> Self {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("socket");
        socket.set_tcp_quickack(false).expect("TCP_QUICKACK");
        socket.connect_timeout(&address.into(), PATIENCE).expect("connect");
        Self::over(socket.into())
    }

    pub(super) fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("TCP_NODELAY");
        stream.set_write_timeout(Some(PATIENCE)).expect("SO_SNDTIMEO");
        Self { stream, buffer: Vec::new(), ended: false }
    }

    /// The client's own port, which identifies the connection.
    pub fn port(&self) -> u16 {
        self.stream.local_addr().expect("local address").port()
    }

    /// The port that it is connected to.
    pub fn server_port(&self) -> u16 {
        self.stream.peer_addr().expect("peer address").port()
    }

    /// Sends all of `bytes`, or fails the test.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes.as_ref()).expect("send");
    }

    /// Sends all of `bytes`.
    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends `bytes` in pieces of `size`, each a segment of its own.
    pub fn send_in_pieces(&mut self, bytes: &[u8], size: usize) -> io::Result<()> {
        for piece in bytes.chunks(size) {
            self.try_send(piece)?;
            give_way();
        }
        Ok(())
    }

    /// Closes the sending side.
    pub fn half_close(&mut self) {
        self.stream.shutdown(Shutdown::Write).expect("half-close");
    }

    /// Cuts the connection.
    pub fn reset(self) {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    }

    /// A second client of the same connection, to send while the first one reads.
    pub fn second(&self) -> Self {
        Self::over(self.stream.try_clone().expect("a second descriptor"))
    }

    /// Sends a request and reads its response.
    pub fn exchange(&mut self, request: impl AsRef<[u8]>) -> Response {
        self.send(request);
        self.response()
    }

    /// The next response, or fails the test.
    pub fn response(&mut self) -> Response {
        self.try_response(false).unwrap_or_else(|lost| panic!("no response: {lost:?}"))
    }

    /// The next response, which answers a HEAD request.
    pub fn response_to_head(&mut self) -> Response {
        self.try_response(true).unwrap_or_else(|lost| panic!("no response to HEAD: {lost:?}"))
    }

    /// The next response.
    pub fn try_response(&mut self, to_head: bool) -> Result<Response, Lost> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Response::parse(&self.buffer, to_head, self.ended) {
                Parsed::Whole(response, length) => {
                    self.buffer.drain(..length);
                    return Ok(response);
                }
                Parsed::Malformed(why) => return Err(Lost::Malformed(why)),
                Parsed::Partial if self.ended => {
                    return Err(Lost::Ended(End::Eof, self.buffer.len()));
                }
                Parsed::Partial => {}
            }
            match self.fill(deadline) {
                Ok(_) => {}
                Err(error) if is_late(&error) => return Err(Lost::Late(self.buffer.len())),
                Err(_) => return Err(Lost::Ended(End::Reset, self.buffer.len())),
            }
        }
    }

    /// Reads until the connection ends.
    pub fn read_to_end(&mut self) -> (Vec<u8>, End) {
        self.read_to_end_within(PATIENCE)
    }

    /// Reads until the connection ends or the deadline comes.
    pub fn read_to_end_within(&mut self, deadline: Duration) -> (Vec<u8>, End) {
        let deadline = Instant::now() + deadline;
        let end = loop {
            if self.ended {
                break End::Eof;
            }
            match self.fill(deadline) {
                Ok(_) => {}
                Err(error) if is_late(&error) => break End::Open,
                Err(_) => break End::Reset,
            }
        };
        (std::mem::take(&mut self.buffer), end)
    }

    /// Fails the test unless the server ends the connection in order with nothing more sent. Then
    /// the client ends it too, so that the server needn't linger.
    pub fn expect_end(mut self) {
        self.expect_eof();
    }

    /// Like [`Self::expect_end`], but the client keeps its side open.
    pub fn expect_eof(&mut self) {
        let (rest, end) = self.read_to_end();
        assert_eq!((lossy(&rest).as_str(), end), ("", End::Eof));
    }

    /// Whether nothing comes for `time`, neither bytes nor the end.
    pub fn stays_silent(&mut self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        self.buffer.is_empty() && self.fill(deadline).is_err_and(|error| is_late(&error))
    }

    /// How the connection ended; does not wait.
    pub fn peek_end(&mut self) -> End {
        match self.peek() {
            Ok(0) => End::Eof,
            Ok(_) => End::Open,
            Err(error) if is_late(&error) => End::Open,
            Err(_) => End::Reset,
        }
    }

    /// Whether bytes or the end can be read without waiting.
    pub fn is_readable(&mut self) -> bool {
        !self.buffer.is_empty() || !self.peek().is_err_and(|error| is_late(&error))
    }

    fn peek(&mut self) -> io::Result<usize> {
        self.stream.set_nonblocking(true)?;
        let peeked = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false)?;
        peeked
    }

    /// Reads until the buffer has at least `count` bytes, which stay in it.
    pub fn buffer_at_least(&mut self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.buffer.len() < count {
            let read = self.fill(deadline).expect("read");
            assert!(read > 0, "the connection ended after {} bytes", self.buffer.len());
        }
    }

    /// All final responses in `bytes`. Fails the test if there is anything else in them.
    pub fn parse_all(mut bytes: &[u8]) -> Vec<Response> {
        let mut responses = Vec::new();
        while !bytes.is_empty() {
            match Response::parse(bytes, false, true) {
                Parsed::Whole(response, length) => {
                    bytes = &bytes[length..];
                    if response.status >= 200 {
                        responses.push(response);
                    }
                }
                other => panic!("no response: {other:?} in {:?}", lossy(bytes)),
            }
        }
        responses
    }

    /// One read into the buffer.
    fn fill(&mut self, deadline: Instant) -> io::Result<usize> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.stream.set_read_timeout(Some(left.max(Duration::from_micros(1))))?;
        let start = self.buffer.len();
        self.buffer.resize(start + 64 * 1024, 0);
        let read = loop {
            match self.stream.read(&mut self.buffer[start..]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.buffer.truncate(start + read.as_ref().map_or(0, |read| *read));
        self.ended |= matches!(read, Ok(0));
        read
    }
}

fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(400)]).into_owned()
}
