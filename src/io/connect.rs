//! Opening a connection.

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

impl Io {
    /// Begins to connect. Also returns whether the handshake is already over.
    ///
    /// # Errors
    /// socket(2)'s and connect(2)'s.
    pub(crate) fn connect(address: ConnectAddress<'_>) -> io::Result<(Self, bool)> {
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
    pub(crate) fn begin_client_tls(
        &mut self,
        tls: &ClientTls,
        pool: &mut BufferPool,
    ) -> io::Result<()> {
        let session = Session::connect(tls).map_err(io::Error::other)?;
        self.begin_tls(session, None, pool);
        Ok(())
    }

    /// Goes on with the handshake of TLS, on a connection that is open. Returns whether it is over;
    /// without TLS, at once.
    ///
    /// # Errors
    /// When the handshake has failed: those of [`Io::receive`], and `UnexpectedEof` for an end.
    pub(crate) fn shake_hands(&mut self, pool: &mut BufferPool) -> io::Result<bool> {
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
    pub(crate) fn finish_connecting(&self) -> io::Result<bool> {
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
