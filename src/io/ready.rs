//! What is known of a socket, and what a read has found.

use std::{io, os::fd::OwnedFd};

use mio::event::Event;
use rustix::{io::Errno, net::RecvFlags};

/// A socket's known readiness.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ready {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The peer has closed its side; the end may still have to be read.
    pub(crate) read_closed: bool,
    /// The connection is reset or lost.
    pub(crate) failed: bool,
}

impl From<&Event> for Ready {
    fn from(event: &Event) -> Self {
        Self {
            // The next read returns the error.
            readable: event.is_readable() || event.is_error(),
            writable: event.is_writable(),
            read_closed: event.is_read_closed(),
            // Write closed: the peer of a unix socket has closed it. A read would report only the
            // end of its input, as after a shutdown(2).
            failed: event.is_error() || event.is_write_closed(),
        }
    }
}

impl Ready {
    /// Adds what an event reported.
    pub(crate) fn add(&mut self, ready: Self) {
        self.readable |= ready.readable;
        self.writable |= ready.writable;
        self.read_closed |= ready.read_closed;
        self.failed |= ready.failed;
    }

    /// Whether the peer has closed its side, and everything was read.
    pub(super) fn has_ended(self) -> bool {
        self.read_closed && !self.readable
    }

    /// Receives once from this socket, into room for at least one byte.
    ///
    /// # Errors
    /// recv(2)'s: the connection is reset, or lost.
    #[inline]
    pub(super) fn receive(&mut self, socket: &OwnedFd, room: &mut [u8]) -> io::Result<Received> {
        let len = loop {
            match rustix::net::recv(socket, &mut *room, RecvFlags::empty()) {
                Ok((len, _)) => break len,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.readable = false;
                    return Ok(Received::Nothing);
                }
                Err(errno) => return Err(errno.into()),
            }
        };
        if len == 0 {
            (self.readable, self.read_closed) = (false, true);
            return Ok(Received::End);
        }
        // epoll(7): a short read means that the socket is empty, unless the peer has closed its
        // side: then the end is still to be read.
        self.readable = len == room.len() || self.read_closed;
        Ok(Received::Bytes(len))
    }
}

/// The result of one read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// This many bytes, at least one.
    Bytes(usize),
    /// Nothing to read now.
    Nothing,
    /// The peer has closed its side.
    End,
    /// The input buffer is full: nothing was read.
    Full,
}
