//! A small blocking HTTP/1.1 client for the admin listener.
//!
//! Owns one connection and keeps it for the next call as long as the server does: a server that
//! stops may take no new ones. Never waits without a limit; heads and contents have bounds.

use std::{
    error::Error,
    fmt::{self, Write as _},
    io::{self, BufReader, ErrorKind, Read, Write},
    mem::MaybeUninit,
    thread,
    time::{Duration, Instant},
};

use socket2::{Socket, Type};

use super::{
    address::Address,
    content::{Content, Head, read_head},
};

/// The largest answer that is taken: some hundred thousand connections.
const CONTENT_BYTES_MAX: u64 = 256 << 20;

/// How long an event stream may be silent; the server sends a comment every 15 s.
const SILENCE_MAX: Duration = Duration::from_secs(45);

/// How often a server that should end is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The connection to a server.
pub(super) struct Client {
    address: Address,
    wire: Option<Wire>,
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    pub(super) method: &'static str,
    pub(super) path: &'a str,
    pub(super) token: Option<&'a str>,
    pub(super) content: Option<&'a [u8]>,
}

/// The answer to a [`Call`].
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) content: Vec<u8>,
}

/// The content of an answer, as it comes.
pub(super) type Stream = BufReader<Content<Wire>>;

impl Client {
    /// A client that connects at the first call.
    pub(super) fn new(address: Address) -> Self {
        Self { address, wire: None }
    }

    /// Where it connects to.
    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// Sends a request and takes the whole answer, which may take `patience`.
    pub(super) fn call(
        &mut self,
        call: &Call<'_>,
        patience: Duration,
    ) -> Result<Answer, ClientError> {
        let Some(wire) = self.wire.take() else {
            let wire = self.connect(patience)?;
            return self.exchange(wire, call, patience);
        };
        let done = self.exchange(wire, call, patience);
        match &done {
            // A kept connection may be closed by the server at any time. Only what changes nothing
            // may be sent twice.
            Err(error) if matches!(error.trouble, Trouble::Lost) && call.method == "GET" => {
                let wire = self.connect(patience).map_err(|_| self.error(Trouble::Lost))?;
                self.exchange(wire, call, patience)
            }
            _ => done,
        }
    }

    /// Sends a request whose answer is held back for long, and asks `is_waited_for` every `tick`
    /// until it comes.
    pub(super) fn call_held(
        &mut self,
        call: &Call<'_>,
        tick: Duration,
        mut is_waited_for: impl FnMut() -> bool,
    ) -> Result<Answer, ClientError> {
        let mut wire = match self.wire.take() {
            Some(wire) => wire,
            None => self.connect(tick)?,
        };
        write(&mut wire, call, tick).map_err(|error| self.io(error))?;
        while !wire.get_mut().wait(tick).map_err(|error| self.io(error))? {
            if !is_waited_for() {
                return Err(self.error(Trouble::Silent));
            }
        }
        wire.get_mut().limit = Limit::Silence(SILENCE_MAX);
        let head = read_head(&mut wire).map_err(|error| self.io(error))?;
        self.take(wire, &head)
    }

    /// Forgets the kept connection: the next call makes a new one.
    pub(super) fn hang_up(&mut self) {
        self.wire = None;
    }

    /// Sends a request whose answer has no end. An answer other than 200 is taken whole.
    pub(super) fn stream(
        &mut self,
        call: &Call<'_>,
        patience: Duration,
    ) -> Result<Result<Stream, Answer>, ClientError> {
        let mut wire = self.connect(patience)?;
        let head = send(&mut wire, call, patience).map_err(|error| self.io(error))?;
        if head.status != 200 {
            return self.take(wire, &head).map(Err);
        }
        wire.get_mut().limit = Limit::Silence(SILENCE_MAX);
        Ok(Ok(BufReader::new(Content::new(wire, head.framing))))
    }

    /// The error of reading a stream.
    pub(super) fn io(&self, error: io::Error) -> ClientError {
        self.error(match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Trouble::Silent,
            ErrorKind::UnexpectedEof
            | ErrorKind::BrokenPipe
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted => Trouble::Lost,
            ErrorKind::InvalidData => Trouble::NotHttp(error.to_string()),
            _ => Trouble::Io(error),
        })
    }

    /// Waits until the server has closed the kept connection and `is_gone` holds, or nobody listens
    /// any more; false when `patience` is over first.
    pub(super) fn wait_for_end(&mut self, patience: Duration, is_gone: impl Fn() -> bool) -> bool {
        let deadline = Instant::now() + patience;
        if let Some(mut wire) = self.wire.take() {
            wire.get_mut().limit = Limit::Until(deadline);
            // However it ends, the look at the process below decides.
            let _ = io::copy(&mut wire.take(CONTENT_BYTES_MAX), &mut io::sink());
        }
        loop {
            let listens = || !self.connect(patience).is_err_and(|error| error.is_gone());
            if is_gone() || !listens() {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    fn exchange(
        &mut self,
        mut wire: Wire,
        call: &Call<'_>,
        patience: Duration,
    ) -> Result<Answer, ClientError> {
        let head = send(&mut wire, call, patience).map_err(|error| self.io(error))?;
        self.take(wire, &head)
    }

    /// Takes an answer's content, and keeps the connection if the server does.
    fn take(&mut self, mut wire: Wire, head: &Head) -> Result<Answer, ClientError> {
        let mut content = Vec::new();
        let reader = Content::new(&mut wire, head.framing);
        let mut bounded = reader.take(CONTENT_BYTES_MAX + 1);
        let length = bounded.read_to_end(&mut content).map_err(|error| self.io(error))?;
        if length as u64 > CONTENT_BYTES_MAX {
            return Err(self.error(Trouble::TooLarge));
        }
        self.wire = head.is_kept.then_some(wire);
        Ok(Answer { status: head.status, content })
    }

    fn connect(&self, patience: Duration) -> Result<Wire, ClientError> {
        let connect = || {
            let (domain, address) = self.address.socket_address()?;
            let socket = Socket::new(domain, Type::STREAM, None)?;
            // It holds for connect too, in which a unix socket waits for room in the queue.
            socket.set_write_timeout(Some(patience))?;
            socket.connect(&address)?;
            Ok(Wire::with_capacity(64 << 10, TimedSocket::new(socket)))
        };
        connect().map_err(|error: io::Error| {
            self.error(match error.kind() {
                ErrorKind::NotFound => Trouble::Missing,
                ErrorKind::ConnectionRefused if self.address.is_no_socket() => Trouble::NoSocket,
                ErrorKind::ConnectionRefused => Trouble::Refused,
                ErrorKind::PermissionDenied => Trouble::Denied,
                // EINPROGRESS is what a TCP connect gives that takes too long.
                _ if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
                    Trouble::Silent
                }
                _ => return self.io(error),
            })
        })
    }

    fn error(&self, trouble: Trouble) -> ClientError {
        ClientError { address: self.address.clone(), trouble }
    }
}

/// What went wrong between us and the server.
#[derive(Debug)]
pub(super) struct ClientError {
    address: Address,
    trouble: Trouble,
}

#[derive(Debug)]
enum Trouble {
    Missing,
    NoSocket,
    Refused,
    Denied,
    Silent,
    Lost,
    NotHttp(String),
    TooLarge,
    Io(io::Error),
}

impl ClientError {
    /// Whether nobody listens at the address.
    pub(super) fn is_absent(&self) -> bool {
        matches!(self.trouble, Trouble::Missing | Trouble::Refused)
    }

    /// Whether there is no server behind the address (any more).
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.trouble, Trouble::Missing | Trouble::Refused | Trouble::Lost)
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, trouble } = self;
        match (trouble, address) {
            (Trouble::Missing, _) | (Trouble::Refused, Address::Tcp(_)) => {
                write!(f, "no server is listening on {address}; is it running?")
            }
            (Trouble::NoSocket, _) => {
                write!(f, "what is at {address} is no socket; check the path")
            }
            (Trouble::Refused, Address::Unix(_)) => write!(
                f,
                "no server is listening on {address}; the socket is stale, left by one that was \
                 killed: start the server again"
            ),
            (Trouble::Denied, _) => write!(
                f,
                "permission denied on {address}; only the user that runs the server, and root, may \
                 use it"
            ),
            (Trouble::Silent, _) => write!(
                f,
                "the server on {address} does not answer in time; it may be overloaded or \
                 suspended: look at its process and its log"
            ),
            (Trouble::Lost, _) => write!(
                f,
                "the connection to {address} was lost before the answer; has the server ended? \
                 `tidegate status` and its log say more"
            ),
            (Trouble::NotHttp(what), _) => {
                write!(f, "what listens on {address} is no Tidegate: {what}; check the address")
            }
            (Trouble::TooLarge, _) => {
                write!(
                    f,
                    "the answer from {address} is larger than {} MiB",
                    CONTENT_BYTES_MAX >> 20
                )
            }
            (Trouble::Io(error), _) => write!(f, "{address}: {error}"),
        }
    }
}

impl Error for ClientError {}

/// A buffered connection.
pub(super) type Wire = BufReader<TimedSocket>;

/// Sends a request and reads the head of the answer; both may take `patience`.
fn send(wire: &mut Wire, call: &Call<'_>, patience: Duration) -> io::Result<Head> {
    write(wire, call, patience)?;
    read_head(wire)
}

/// Sends a request within this time, which holds for reading too.
fn write(wire: &mut Wire, call: &Call<'_>, patience: Duration) -> io::Result<()> {
    let timed = wire.get_mut();
    timed.limit = Limit::Until(Instant::now() + patience);
    timed.socket.set_write_timeout(Some(patience))?;
    if let Err(error) = timed.socket.write_all(&request(call)) {
        // Who refuses a request may answer and close before all of it came.
        let is_cut = matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset);
        if !is_cut {
            return Err(error);
        }
    }
    Ok(())
}

/// A socket that is read within a limit.
pub(super) struct TimedSocket {
    socket: Socket,
    limit: Limit,
}

enum Limit {
    /// All must have come by then.
    Until(Instant),
    /// Something must come every so often.
    Silence(Duration),
}

impl TimedSocket {
    fn new(socket: Socket) -> Self {
        Self { socket, limit: Limit::Silence(SILENCE_MAX) }
    }

    /// Whether there is something to read, be it the end, within this time.
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

/// The bytes of a request.
fn request(call: &Call<'_>) -> Vec<u8> {
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
    if *method != "GET" {
        let _ = write!(head, "Content-Length: {}\r\n", content.map_or(0, <[u8]>::len));
    }
    head += "\r\n";
    [head.as_bytes(), content.unwrap_or_default()].concat()
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, path::Path};

    use proptest::{collection::vec, prelude::*};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(15);

    /// What the client makes of a server that sends these bytes in such pieces, and closes.
    fn outcome(folder: &Path, bytes: &[u8], piece: usize) -> Result<(u16, Vec<u8>), String> {
        let path = folder.join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let answer = thread::scope(|scope| {
            scope.spawn(|| {
                let (mut peer, _) = listener.accept().unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut some = [0; 512];
                    let length = peer.read(&mut some).unwrap();
                    request.extend_from_slice(&some[..length]);
                }
                // The client may be gone behind what it does not take.
                bytes.chunks(piece).try_for_each(|piece| peer.write_all(piece)).ok();
            });
            let call = Call { method: "POST", path: "/x", token: None, content: None };
            Client::new(Address::Unix(path.clone())).call(&call, PATIENCE)
        });
        std::fs::remove_file(path).unwrap();
        answer.map(|it| (it.status, it.content)).map_err(|error| error.to_string())
    }

    /// Parts of answers, and bytes that are none.
    fn part() -> impl Strategy<Value = Vec<u8>> {
        let known = [
            "HTTP/1.1 200 OK\r\n",
            "Content-Length: 3\r\n",
            "Content-Length: 18446744073709551615\r\n",
            "Transfer-Encoding: chunked\r\n",
            "\r\n",
            "3\r\nabc\r\n",
            "0\r\n\r\n",
            "abc",
        ];
        let known = prop::sample::select(known.to_vec()).prop_map(|text| text.as_bytes().to_vec());
        prop_oneof![8 => known, 1 => vec(any::<u8>(), 0..5)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_bytes_of_a_server_are_the_same_answer_or_error_in_any_pieces(
            parts in vec(part(), 0..8),
            is_headed in any::<bool>(),
            piece in 1..30_usize,
        ) {
            let start: &[u8] = if is_headed { b"HTTP/1.1 200 OK\r\n" } else { b"" };
            let bytes = [start, &parts.concat()].concat();
            let folder = tempfile::tempdir().unwrap();
            let whole = outcome(folder.path(), &bytes, bytes.len().max(1));
            let in_pieces = outcome(folder.path(), &bytes, piece);
            if let Ok((_, content)) = &whole {
                prop_assert!(content.len() <= bytes.len());
            }
            prop_assert_eq!(in_pieces, whole);
        }
    }
}
