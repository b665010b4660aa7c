//! The socket, its known readiness, and reading and writing, which are the same for every peer.
//!
//! Edge-triggered epoll(7) reports only changes, so readiness is remembered until a read or write
//! would block.

use std::{io, os::fd::OwnedFd, time::Duration};

use mio::event::Event;
use rustix::{
    io::Errno,
    net::{RecvFlags, Shutdown},
};
use socket2::SockRef;

use super::{
    buffers::{BufferPool, InputBuffer},
    outbox::{Flushed, Outbox},
};

/// One socket with its unread and unsent bytes.
pub(crate) struct Io {
    transport: Transport,
    pub(crate) ready: Ready,
    /// Received bytes that aren't read yet; a buffer of the pool, as long as there are any.
    pub(crate) input: Option<InputBuffer>,
    pub(crate) outbox: Outbox,
    /// Bytes ever received.
    received_total: u64,
}

/// How bytes reach the peer.
enum Transport {
    /// As they are.
    Plain(OwnedFd),
}

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

impl Io {
    pub(crate) fn new(socket: OwnedFd, ready: Ready) -> Self {
        Self {
            transport: Transport::Plain(socket),
            ready,
            input: None,
            outbox: Outbox::default(),
            received_total: 0,
        }
    }

    pub(crate) fn socket(&self) -> &OwnedFd {
        let Transport::Plain(socket) = &self.transport;
        socket
    }

    /// Bytes ever received.
    pub(crate) fn received_total(&self) -> u64 {
        self.received_total
    }

    /// Starts the total at the bytes that another process has received.
    pub(crate) fn set_received_total(&mut self, received_total: u64) {
        self.received_total = received_total;
    }

    /// Subtracts bytes that the total should not count.
    pub(crate) fn uncount_received(&mut self, bytes: usize) {
        self.received_total -= bytes as u64;
    }

    pub(crate) fn has_input(&self) -> bool {
        self.input.as_ref().is_some_and(|input| !input.is_empty())
    }

    /// Whether the peer has closed its side, and everything was read.
    pub(crate) fn has_ended(&self) -> bool {
        self.ready.read_closed && !self.ready.readable
    }

    /// Reads once.
    ///
    /// # Errors
    /// recv(2)'s: the connection is reset, or lost.
    pub(crate) fn receive(&mut self, pool: &mut BufferPool) -> io::Result<Received> {
        let input = self.input.get_or_insert_with(|| pool.take_input());
        if input.is_full() {
            pool.enlarge(input);
        }
        let room = input.room();
        let room_len = room.len();
        if room_len == 0 {
            return Ok(Received::Full);
        }
        let Transport::Plain(socket) = &self.transport;
        let len = loop {
            match rustix::net::recv(socket, &mut *room, RecvFlags::empty()) {
                Ok((len, _)) => break len,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.ready.readable = false;
                    return Ok(Received::Nothing);
                }
                Err(errno) => return Err(errno.into()),
            }
        };
        if len == 0 {
            (self.ready.readable, self.ready.read_closed) = (false, true);
            return Ok(Received::End);
        }
        input.fill(len);
        self.received_total += len as u64;
        // epoll(7): a short read means that the socket is empty, unless the peer has closed its
        // side: then the end is still to be read.
        self.ready.readable = len == room_len || self.ready.read_closed;
        Ok(Received::Bytes(len))
    }

    /// Sends from the outbox, as far as the kernel takes it and the turn allows.
    ///
    /// # Errors
    /// Those of [`Outbox::flush`].
    pub(crate) fn flush(&mut self) -> io::Result<Flushed> {
        if self.outbox.is_empty() {
            return Ok(Flushed::All);
        }
        if !self.ready.writable {
            return Ok(Flushed::Blocked);
        }
        let Transport::Plain(socket) = &self.transport;
        let flushed = self.outbox.flush(socket)?;
        self.ready.writable = flushed != Flushed::Blocked;
        Ok(flushed)
    }

    /// Closes our side: the peer reads the end after all sent bytes.
    ///
    /// # Errors
    /// shutdown(2)'s: the connection is lost.
    pub(crate) fn shutdown_write(&self) -> io::Result<()> {
        Ok(rustix::net::shutdown(self.socket(), Shutdown::Write)?)
    }

    /// Makes the next close a reset, which discards unsent bytes.
    pub(crate) fn reset_at_close(&self) {
        // If this fails, the socket closes without a reset.
        let _ = SockRef::from(self.socket()).set_linger(Some(Duration::ZERO));
    }

    /// Returns empty buffers to the pool.
    pub(crate) fn release(&mut self, pool: &mut BufferPool) {
        if let Some(input) = self.input.take_if(|input| input.is_empty()) {
            pool.give_input(input);
        }
        self.outbox.release(pool);
    }
}
