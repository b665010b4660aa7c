//! Opening a connection.

use std::{io, os::fd::OwnedFd};

use rustix::io::Errno;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use super::{ready::Ready, transport::Io};
use crate::app::ConnectAddress;

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

    /// Whether the handshake is over.
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
