//! The socket, what it is known to be ready for, and reading and writing, which are the same for
//! every peer.
//!
//! Edges of epoll(7) tell of changes only, so readiness is remembered, and a read or write that
//! finds nothing to do takes it back.

use std::{io, os::fd::OwnedFd, time::Duration};

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
pub(in super::super) struct Io {
    transport: Transport,
    pub(in super::super) ready: Ready,
    /// What came and is not read yet; a buffer of the pool's, as long as there is something.
    pub(in super::super) input: Option<InputBuffer>,
    pub(in super::super) outbox: Outbox,
    /// Bytes that ever came.
    received_total: u64,
}

/// How bytes get to the peer.
enum Transport {
    /// As they are.
    Plain(OwnedFd),
}

/// What a socket is known to be ready for.
#[derive(Clone, Copy, Debug, Default)]
pub(in super::super) struct Ready {
    pub(in super::super) readable: bool,
    pub(in super::super) writable: bool,
    /// The peer has closed its side; the end is still to be read.
    pub(in super::super) read_closed: bool,
    /// The connection is reset, or lost.
    pub(in super::super) failed: bool,
}

impl Ready {
    /// Remembers what an event told.
    pub(in super::super) fn add(&mut self, ready: Self) {
        self.readable |= ready.readable;
        self.writable |= ready.writable;
        self.read_closed |= ready.read_closed;
        self.failed |= ready.failed;
    }
}

/// What reading once came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Received {
    /// So many bytes, one at least.
    Bytes(usize),
    /// There is nothing now.
    Nothing,
    /// The end of the peer's bytes.
    End,
    /// The input buffer has no room: nothing was read.
    Full,
}

impl Io {
    pub(in super::super) fn new(socket: OwnedFd, ready: Ready) -> Self {
        Self {
            transport: Transport::Plain(socket),
            ready,
            input: None,
            outbox: Outbox::default(),
            received_total: 0,
        }
    }

    pub(in super::super) fn socket(&self) -> &OwnedFd {
        let Transport::Plain(socket) = &self.transport;
        socket
    }

    /// Bytes that ever came.
    pub(in super::super) fn received_total(&self) -> u64 {
        self.received_total
    }

    /// So many bytes came before the socket came here.
    pub(in super::super) fn begin_at(&mut self, received_total: u64) {
        self.received_total = received_total;
    }

    /// So many bytes came before what the total counts.
    pub(in super::super) fn discount(&mut self, bytes: usize) {
        self.received_total -= bytes as u64;
    }

    pub(in super::super) fn has_input(&self) -> bool {
        self.input.as_ref().is_some_and(|input| !input.is_empty())
    }

    /// Whether the peer has sent its last byte, and it was read.
    pub(in super::super) fn has_ended(&self) -> bool {
        self.ready.read_closed && !self.ready.readable
    }

    /// Reads once.
    ///
    /// # Errors
    /// recv(2)'s: the connection is reset, or lost.
    pub(in super::super) fn receive(&mut self, pool: &mut BufferPool) -> io::Result<Received> {
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
        // epoll(7): a short read means that the socket is read empty; only a peer that has closed
        // has still its end to tell.
        self.ready.readable = len == room_len || self.ready.read_closed;
        Ok(Received::Bytes(len))
    }

    /// Sends what is in the outbox, as far as the kernel takes it and the turn allows.
    ///
    /// # Errors
    /// Those of [`Outbox::flush`].
    pub(in super::super) fn flush(&mut self) -> io::Result<Flushed> {
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

    /// Closes our side: the peer reads its end behind what was sent.
    ///
    /// # Errors
    /// shutdown(2)'s: the connection is gone.
    pub(in super::super) fn shutdown_write(&self) -> io::Result<()> {
        Ok(rustix::net::shutdown(self.socket(), Shutdown::Write)?)
    }

    /// Has the socket reset when it is closed, whatever is unsent.
    pub(in super::super) fn reset_at_close(&self) {
        // The socket is closed in any case.
        let _ = SockRef::from(self.socket()).set_linger(Some(Duration::ZERO));
    }

    /// Gives back the buffers in which nothing is.
    pub(in super::super) fn release(&mut self, pool: &mut BufferPool) {
        if let Some(input) = self.input.take_if(|input| input.is_empty()) {
            pool.give_input(input);
        }
        self.outbox.release(pool);
    }
}
