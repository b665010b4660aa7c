//! Opening a connection.
//!
//! ```text
//!  Connecting ──TCP──► Securing ──TLS, if it is spoken──► Open
//! ```

use std::{io, os::fd::OwnedFd};

use rustix::io::Errno;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use super::{
    buffers::BufferPool,
    ready::{Ready, Received},
    transport::Io,
};
use crate::{
    app::ConnectAddress,
    tls::{ClientTls, Session},
};

/// The error of connect(2) while the handshake is under way.
const IN_PROGRESS: i32 = Errno::INPROGRESS.raw_os_error();

/// How far the handshakes of a connection have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// That of TCP isn't over.
    Connecting,
    /// That of TLS isn't over.
    Securing,
    /// All are over.
    Open,
}

/// Which handshake has failed, and why.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// That of TCP.
    Connect(io::Error),
    /// That of TLS.
    Handshake(io::Error),
}

impl Io {
    /// Begins to connect, and to speak TLS if it is spoken. [`Io::finish_opening`] goes on.
    ///
    /// # Errors
    /// socket(2)'s and connect(2)'s; the TLS library refuses its configuration.
    pub(crate) fn open(
        address: ConnectAddress<'_>,
        tls: Option<&ClientTls>,
        pool: &mut BufferPool,
    ) -> io::Result<(Self, Opening)> {
        let (mut io, is_connected) = Self::connect(address)?;
        if let Some(tls) = tls {
            io.begin_client_tls(tls, pool)?;
        }
        let opening = match (is_connected, io.is_tls()) {
            (false, _) => Opening::Connecting,
            (true, true) => Opening::Securing,
            (true, false) => Opening::Open,
        };
        Ok((io, opening))
    }

    /// Goes on with the handshakes, as far as the socket lets it. Returns whether they are over.
    ///
    /// # Errors
    /// When one has failed.
    pub(crate) fn finish_opening(
        &mut self,
        opening: &mut Opening,
        pool: &mut BufferPool,
    ) -> Result<bool, OpenError> {
        if *opening == Opening::Connecting {
            if !self.finish_connecting().map_err(OpenError::Connect)? {
                return Ok(false);
            }
            *opening = Opening::Securing;
        }
        if self.shake_hands(pool).map_err(OpenError::Handshake)? {
            *opening = Opening::Open;
        }
        Ok(*opening == Opening::Open)
    }

    /// Begins to connect. Also returns whether the handshake is already over.
    fn connect(address: ConnectAddress<'_>) -> io::Result<(Self, bool)> {
        let (domain, address) = match address {
            ConnectAddress::Tcp(address) => (Domain::for_address(address), SockAddr::from(address)),
            ConnectAddress::Unix(path) => (Domain::UNIX, SockAddr::unix(path)?),
        };
        let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None)?;
        if domain != Domain::UNIX {
            socket.set_tcp_nodelay(true)?;
        }
        let is_open = match socket.connect(&address) {
            Ok(()) => true,
            Err(error) if error.raw_os_error() == Some(IN_PROGRESS) => false,
            Err(error) => return Err(error),
        };
        let ready = Ready { writable: is_open, ..Ready::default() };
        Ok((Self::new(OwnedFd::from(socket), ready), is_open))
    }

    /// Begins TLS as the client. Nothing is sent before [`Io::shake_hands`].
    ///
    /// # Errors
    /// The library refuses its configuration.
    fn begin_client_tls(&mut self, tls: &ClientTls, pool: &mut BufferPool) -> io::Result<()> {
        let session = Session::connect(tls).map_err(io::Error::other)?;
        self.begin_tls(session, None, pool);
        Ok(())
    }

    /// Goes on with the handshake of TLS, on a connection that is open. Returns whether it is over;
    /// without TLS, at once.
    ///
    /// # Errors
    /// When the handshake has failed: those of [`Io::receive`], and `UnexpectedEof` for an end.
    fn shake_hands(&mut self, pool: &mut BufferPool) -> io::Result<bool> {
        while self.is_handshaking() {
            match self.receive(pool)? {
                Received::Bytes(_) => {}
                Received::Nothing | Received::Full => break,
                Received::End => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let is_over = !self.is_handshaking();
        if is_over {
            self.release(pool);
        }
        Ok(is_over)
    }

    /// Whether the handshake of TCP is over.
    ///
    /// # Errors
    /// When the handshake has failed.
    fn finish_connecting(&self) -> io::Result<bool> {
        if !(self.ready.writable || self.ready.failed) {
            return Ok(false);
        }
        match SockRef::from(self.socket()).take_error()? {
            Some(error) => Err(error),
            None if self.ready.writable => Ok(true),
            None => Err(io::Error::other("the connection failed")),
        }
    }
}
