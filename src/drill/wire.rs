//! A client's socket, with or without TLS. Reads and writes content.
//!
//! ```text
//! read:   socket ──► wire ──open──► content        write:  content ──seal──► out ──► socket
//! ```
//! - The socket may block or not: an error `WouldBlock` (or a time-out) leaves everything as it
//!   was, and the same call may be made again.
//! - A write may leave sealed bytes behind; each read and write sends them first.
//! - An end of the socket without close_notify is an error: the content may be incomplete.

use std::io::{self, ErrorKind, Read, Write};

use crate::tls::{ClientTls, SEALED_BYTES_MAX, Sealed, Session, TlsError, WIRE_BYTES};

/// A client's socket.
pub(super) enum Wire<S> {
    Plain(S),
    Tls(Box<TlsWire<S>>),
}

/// A socket with a session.
pub(super) struct TlsWire<S> {
    socket: S,
    session: Session,
    /// What was received and isn't read yet.
    wire: Vec<u8>,
    out: Sealed,
    /// A write has failed; what the server said before may still be read.
    write_error: Option<io::Error>,
}

/// What the client and the server agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Agreed {
    pub(super) is_resumed: bool,
    pub(super) version: &'static str,
    pub(super) cipher: &'static str,
    /// The server's certificate.
    pub(super) certificate: Vec<u8>,
}

impl<S: Read + Write> Wire<S> {
    /// # Errors
    /// If the configuration of TLS is refused.
    pub(super) fn new(socket: S, tls: Option<&ClientTls>) -> io::Result<Self> {
        let Some(tls) = tls else { return Ok(Self::Plain(socket)) };
        let session = Session::connect(tls).map_err(broken)?;
        let (wire, out) = (Vec::new(), Sealed::default());
        Ok(Self::Tls(Box::new(TlsWire { socket, session, wire, out, write_error: None })))
    }

    /// A server's side, for tests.
    #[cfg(test)]
    pub(super) fn accept(socket: S, site: &crate::tls::SiteTls) -> Self {
        let session = Session::accept(site).unwrap();
        let (wire, out) = (Vec::new(), Sealed::default());
        Self::Tls(Box::new(TlsWire { socket, session, wire, out, write_error: None }))
    }

    pub(super) fn socket(&self) -> &S {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => &tls.socket,
        }
    }

    pub(super) fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Whether the kernel has everything that was written.
    pub(super) fn is_flushed(&self) -> bool {
        match self {
            Self::Plain(_) => true,
            Self::Tls(tls) => tls.out.is_empty(),
        }
    }

    /// Goes on with the handshake, until it is over. `None` without TLS.
    ///
    /// # Errors
    /// `WouldBlock` if it isn't over yet; otherwise it has failed.
    pub(super) fn shake_hands(&mut self) -> io::Result<Option<Agreed>> {
        match self {
            Self::Plain(_) => Ok(None),
            Self::Tls(tls) => tls.shake_hands().map(Some),
        }
    }
}

impl<S: Read + Write> TlsWire<S> {
    fn shake_hands(&mut self) -> io::Result<Agreed> {
        loop {
            self.open(&mut [])?;
            if !self.session.is_handshaking() {
                break;
            }
            self.receive()?;
        }
        let agreed = self.session.negotiated().ok_or_else(ended)?;
        Ok(Agreed {
            is_resumed: agreed.is_resumed,
            version: agreed.version,
            cipher: agreed.cipher,
            certificate: agreed.peer_certificate.unwrap_or_default().to_vec(),
        })
    }

    /// Opens what was received, and sends what the session says. `None`: no content came of it.
    fn open(&mut self, content: &mut [u8]) -> io::Result<Option<usize>> {
        let window = self.wire.len().min(WIRE_BYTES);
        let opened = self.session.receive(&mut self.wire[..window], content, &mut self.out);
        match self.send() {
            Err(error) if error.kind() != ErrorKind::WouldBlock => self.write_error = Some(error),
            _ => {}
        }
        let progress = opened.map_err(broken)?;
        self.wire.drain(..progress.consumed);
        let is_over = progress.produced > 0 || progress.is_end;
        Ok(is_over.then_some(progress.produced))
    }

    /// Receives from the socket what makes a record whole, at most.
    fn receive(&mut self) -> io::Result<()> {
        let held = self.wire.len();
        self.wire.resize(WIRE_BYTES, 0);
        let received = self.socket.read(&mut self.wire[held..]);
        self.wire.truncate(held + received.as_ref().map_or(0, |len| *len));
        match (received, self.write_error.take()) {
            (Ok(1..), write_error) => {
                self.write_error = write_error;
                Ok(())
            }
            (Ok(0), None) => Err(ended()),
            (Err(error), None) => Err(error),
            (Ok(0) | Err(_), Some(write_error)) => Err(write_error),
        }
    }

    /// Sends what is sealed.
    fn send(&mut self) -> io::Result<()> {
        while !self.out.is_empty() {
            match self.socket.write(self.out.unsent()) {
                Ok(len) => self.out.consume(len),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl<S: Read + Write> Read for Wire<S> {
    fn read(&mut self, content: &mut [u8]) -> io::Result<usize> {
        let tls = match self {
            Self::Plain(socket) => return socket.read(content),
            Self::Tls(tls) => tls,
        };
        loop {
            if let Some(produced) = tls.open(content)? {
                return Ok(produced);
            }
            tls.receive()?;
        }
    }
}

impl<S: Read + Write> Write for Wire<S> {
    fn write(&mut self, content: &[u8]) -> io::Result<usize> {
        let tls = match self {
            Self::Plain(socket) => return socket.write(content),
            Self::Tls(tls) => tls,
        };
        tls.send()?;
        let content = &content[..content.len().min(SEALED_BYTES_MAX)];
        let consumed = tls.session.send(content, &mut tls.wire, &mut tls.out).map_err(broken)?;
        tls.wire.drain(..consumed);
        match tls.send() {
            // The rest is sent by the next call.
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(content.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Tls(tls) => tls.send(),
        }
    }
}

/// Why an operation failed: words for an operator if the session is the reason.
pub(super) fn reason(error: &io::Error) -> String {
    TlsError::behind(error).map_or_else(|| error.to_string(), |failed| failed.reason().to_owned())
}

fn broken(error: TlsError) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}

fn ended() -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, "closed without close_notify")
}
