//! A small blocking HTTP/1.1 client for the admin listener.
//!
//! Owns one connection and keeps it for the next call as long as the server does, because a
//! stopping server may refuse new ones. Every wait has a limit, and every answer a maximum size.

use std::{
    error::Error,
    fmt,
    io::{self, ErrorKind, Read},
    thread,
    time::{Duration, Instant},
};

use socket2::{Socket, Type};

use super::{
    address::Address,
    wire::{Call, Stream, TimedSocket, Wire},
};

/// The largest accepted answer; enough for some hundred thousand connections.
const CONTENT_BYTES_MAX: usize = 256 << 20;

/// How often a stopping server is checked.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The connection to a server.
pub(super) struct Client {
    address: Address,
    /// A kept connection for the next call.
    kept: Option<TimedSocket>,
}

/// The answer to a [`Call`].
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) content: Vec<u8>,
}

impl Client {
    /// A client that connects on the first call.
    pub(super) fn new(address: Address) -> Self {
        Self { address, kept: None }
    }

    /// The server's address.
    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// Sends a request and reads the whole answer, within `patience`.
    pub(super) fn call(
        &mut self,
        call: &Call<'_>,
        patience: Duration,
    ) -> Result<Answer, ClientError> {
        let Some(kept) = self.take_kept()? else {
            let socket = self.connect(patience)?;
            return self.exchange(socket, call, patience);
        };
        let done = self.exchange(kept, call, patience);
        match &done {
            // The server may close a kept connection at any time. Only a request that changes
            // nothing may be sent again.
            Err(error) if matches!(error.trouble, Trouble::Lost) && call.method == "GET" => {
                let socket = self.connect(patience).map_err(|_| self.error(Trouble::Lost))?;
                self.exchange(socket, call, patience)
            }
            _ => done,
        }
    }

    /// Sends a request whose answer is held back for a long time. Calls `is_waited_for` every
    /// `tick` until the answer comes.
    pub(super) fn call_held(
        &mut self,
        call: &Call<'_>,
        tick: Duration,
        mut is_waited_for: impl FnMut() -> bool,
    ) -> Result<Answer, ClientError> {
        let socket = match self.take_kept()? {
            Some(kept) => kept,
            None => self.connect(tick)?,
        };
        let mut wire = Wire::send(socket, call, tick).map_err(|error| self.io(error))?;
        while !wire.wait(tick).map_err(|error| self.io(error))? {
            if !is_waited_for() {
                return Err(self.error(Trouble::Silent));
            }
        }
        wire.limit_silence();
        let status = wire.read_head().map_err(|error| self.io(error))?;
        self.take(wire, status)
    }

    /// Drops the kept connection; the next call opens a new one.
    pub(super) fn hang_up(&mut self) {
        self.kept = None;
    }

    /// Sends a request whose answer never ends. An answer other than 200 is read in full.
    pub(super) fn stream(
        &mut self,
        call: &Call<'_>,
        patience: Duration,
    ) -> Result<Result<Stream, Answer>, ClientError> {
        let socket = self.connect(patience)?;
        let (mut wire, status) = send(socket, call, patience).map_err(|error| self.io(error))?;
        if status != 200 {
            return self.take(wire, status).map(Err);
        }
        wire.limit_silence();
        Ok(Ok(Stream::new(wire)))
    }

    /// An I/O error while reading a stream.
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

    /// Waits until the server has closed the kept connection and `is_gone` holds, or until nothing
    /// listens any more. Returns false if `patience` runs out first.
    pub(super) fn wait_for_end(&mut self, patience: Duration, is_gone: impl Fn() -> bool) -> bool {
        let deadline = Instant::now() + patience;
        if let Some(mut kept) = self.kept.take() {
            kept.limit_until(deadline);
            // The check of the process below decides, so an error here doesn't matter.
            let _ = io::copy(&mut kept.take(CONTENT_BYTES_MAX as u64), &mut io::sink());
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

    /// The kept connection for the next request. What the server has sent on it since the last
    /// answer would be read as the next one.
    fn take_kept(&mut self) -> Result<Option<TimedSocket>, ClientError> {
        let Some(kept) = self.kept.take() else { return Ok(None) };
        if kept.has_unasked() {
            return Err(self.error(Trouble::NotHttp("it sends more than an answer".to_owned())));
        }
        Ok(Some(kept))
    }

    fn exchange(
        &mut self,
        socket: TimedSocket,
        call: &Call<'_>,
        patience: Duration,
    ) -> Result<Answer, ClientError> {
        let (wire, status) = send(socket, call, patience).map_err(|error| self.io(error))?;
        self.take(wire, status)
    }

    /// Reads an answer's content, and keeps the connection if the server does.
    fn take(&mut self, mut wire: Wire, status: u16) -> Result<Answer, ClientError> {
        let mut content = Vec::new();
        while wire.read_content(&mut content).map_err(|error| self.io(error))? {
            if content.len() > CONTENT_BYTES_MAX {
                return Err(self.error(Trouble::TooLarge));
            }
        }
        self.kept = wire.into_kept();
        Ok(Answer { status, content })
    }

    fn connect(&self, patience: Duration) -> Result<TimedSocket, ClientError> {
        let connect = || {
            let (domain, address) = self.address.socket_address()?;
            let socket = Socket::new(domain, Type::STREAM, None)?;
            // This also limits connect: on a unix socket it waits for room in the backlog.
            socket.set_write_timeout(Some(patience))?;
            socket.connect(&address)?;
            Ok(TimedSocket::new(socket))
        };
        connect().map_err(|error: io::Error| {
            self.error(match error.kind() {
                ErrorKind::NotFound => Trouble::Missing,
                ErrorKind::ConnectionRefused if self.address.is_no_socket() => Trouble::NoSocket,
                ErrorKind::ConnectionRefused => Trouble::Refused,
                ErrorKind::PermissionDenied => Trouble::Denied,
                // A TCP connect that times out fails with EINPROGRESS.
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

/// A failure in the communication with the server.
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
    /// Whether nothing listens at the address.
    pub(super) fn is_absent(&self) -> bool {
        matches!(self.trouble, Trouble::Missing | Trouble::Refused)
    }

    /// Whether the address has no server (any more).
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
                write!(f, "{address} is not a socket; check the path")
            }
            (Trouble::Refused, Address::Unix(_)) => write!(
                f,
                "no server is listening on {address}; the socket file was left behind by a server \
                 that was killed: start the server again"
            ),
            (Trouble::Denied, _) => write!(
                f,
                "permission denied on {address}; only root and the user that runs the server may \
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
                write!(f, "the server on {address} is not a Tidegate: {what}; check the address")
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

/// Sends a request and reads the head of the answer, within `patience`.
fn send(socket: TimedSocket, call: &Call<'_>, patience: Duration) -> io::Result<(Wire, u16)> {
    let mut wire = Wire::send(socket, call, patience)?;
    let status = wire.read_head()?;
    Ok((wire, status))
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::unix::net::UnixListener, path::Path};

    use proptest::{collection::vec, prelude::*};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(15);

    /// The client's result for a server that sends these bytes in pieces and closes, and whether
    /// the client keeps the connection.
    fn answer(folder: &Path, bytes: &[u8], piece: usize) -> (Result<(u16, Vec<u8>), String>, bool) {
        let path = folder.join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let mut client = Client::new(Address::Unix(path.clone()));
        let answer = thread::scope(|scope| {
            scope.spawn(|| {
                let (mut peer, _) = listener.accept().unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut some = [0; 512];
                    let length = peer.read(&mut some).unwrap();
                    request.extend_from_slice(&some[..length]);
                }
                // The client may close before it has read everything.
                bytes.chunks(piece).try_for_each(|piece| peer.write_all(piece)).ok();
            });
            let call = Call { method: "POST", path: "/x", token: None, content: None };
            client.call(&call, PATIENCE)
        });
        std::fs::remove_file(path).unwrap();
        let answer = answer.map(|it| (it.status, it.content)).map_err(|error| error.to_string());
        (answer, client.kept.is_some())
    }

    fn outcome(folder: &Path, bytes: &[u8], piece: usize) -> Result<(u16, Vec<u8>), String> {
        answer(folder, bytes, piece).0
    }

    /// Parts of answers, and invalid bytes.
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

    #[test]
    fn content_ends_by_length_or_last_chunk_or_close() {
        let folder = tempfile::tempdir().unwrap();
        for (bytes, is_kept) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, and more", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: x, Close\r\n\r\nhello", false),
            ("HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello", false),
            ("HTTP/1.1 200 OK\r\n\r\nhello", false),
            ("HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\n\r\nhello", false),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n\
                 2;x=y\r\nhe\r\n03\r\nllo\r\n0\r\nA: b\r\n\r\n",
                true,
            ),
        ] {
            for piece in [1, 7, bytes.len()] {
                let (answer, keeps) = answer(folder.path(), bytes.as_bytes(), piece);
                assert_eq!(answer, Ok((200, b"hello".to_vec())), "{bytes}");
                // Bytes after the answer may arrive once the client has read it.
                let may_keep = bytes.ends_with("more") && piece < bytes.len();
                assert!(keeps == is_kept || may_keep, "{bytes} by {piece}");
            }
        }
    }

    #[test]
    fn what_a_server_sends_unasked_is_no_answer_to_the_next_request() {
        const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let mut client = Client::new(Address::Unix(path));
        let call = Call { method: "GET", path: "/x", token: None, content: None };
        let (mut peer, first) = thread::scope(|scope| {
            let peer = scope.spawn(|| {
                let (mut peer, _) = listener.accept().unwrap();
                assert!(peer.read(&mut [0; 512]).unwrap() > 0);
                peer.write_all(&[ANSWER, b"right"].concat()).unwrap();
                peer
            });
            let first = client.call(&call, PATIENCE).unwrap();
            (peer.join().unwrap(), first)
        });
        assert_eq!(first.content, b"right");
        peer.write_all(&[ANSWER, b"wrong"].concat()).unwrap();
        let error = client.call(&call, PATIENCE).unwrap_err().to_string();
        assert!(error.contains("it sends more than an answer"), "{error}");
    }

    #[test]
    fn a_truncated_answer_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let whole = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
        let short = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell";
        for bytes in (0..whole.len()).map(|end| &whole[..end]).chain([short]) {
            let error = outcome(folder.path(), bytes.as_bytes(), 4096).unwrap_err();
            assert!(error.contains("was lost before the answer"), "{bytes:?}: {error}");
        }
    }

    #[test]
    fn invalid_http_is_refused_within_limits() {
        let folder = tempfile::tempdir().unwrap();
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        for (bytes, fault) in [
            ("SSH-2.0-OpenSSH_9.6\r\n", "it does not speak HTTP"),
            ("HTTP/1.1 2x0 OK\r\n\r\n", "malformed status line"),
            ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "malformed Content-Length"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "transfer coding"),
            (&format!("{head}xyz\r\n"), "malformed chunk size"),
            (&format!("{head}1\r\nab\r\n"), "malformed chunk"),
            (&format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(100_000)), "too long"),
            (&format!("{head}1;{}", "x".repeat(100_000)), "too long"),
            (&format!("{head}0\r\n{}", "A: b\r\n".repeat(1_000)), "too many fields"),
        ] {
            let error = outcome(folder.path(), bytes.as_bytes(), 4096).unwrap_err();
            let is_right = error.contains("is not a Tidegate") && error.contains(fault);
            assert!(is_right, "{bytes:.60}: {error}");
        }
    }
}
