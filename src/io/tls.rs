//! The TLS arm of a transport: a session between the socket and the connection's buffers.
//!
//! ```text
//!  socket ──recv──► wire ──open──► input        outbox ──seal one record──► out ──send──► socket
//!                                               └──── passed when out is empty ◄─────────┘
//! ```
//! - Never sealed ahead of the socket: a record is sealed when the one before it is with the
//!   kernel. Until then its content stays in the outbox, so that a mark passes when the kernel has
//!   the ciphertext of all bytes before it.
//! - What the session says by itself (handshake, alerts) is sent at once, in `receive`.
//! - `wire` and `out` are lent by the pool, and go back when they are empty: an idle connection
//!   holds the session alone. A half record holds `wire`.
//! - A close is close_notify, then shutdown(2); if the socket is full, both follow in `flush`.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{SendFlags, Shutdown},
};

use super::{
    buffers::{BufferPool, InputBuffer},
    outbox::{Flushed, Outbox, TURN_BYTES},
    ready::{Ready, Received},
};
use crate::tls::{Negotiated, SEALED_BYTES_MAX, Sealed, Served, Session, TlsError};

/// A session with what it has received and not read, or sealed and not sent.
pub(super) struct TlsTransport {
    session: Session,
    /// Of a client's connection.
    served: Option<Served>,
    wire: Option<InputBuffer>,
    out: Option<Sealed>,
    /// Bytes at the front of the outbox whose ciphertext is in `out`.
    sealed_bytes: usize,
    /// The session may have content for an input buffer with room.
    has_content: bool,
    /// Our side closes when `out` is sent.
    is_closing: bool,
    /// The peer's side ended without close_notify.
    is_truncated: bool,
}

impl TlsTransport {
    /// A transport; its first wire bytes may be here already.
    pub(super) fn new(session: Session, served: Option<Served>, wire: Option<InputBuffer>) -> Self {
        Self {
            session,
            served,
            wire,
            out: None,
            sealed_bytes: 0,
            // A client's session begins to speak by itself.
            has_content: true,
            is_closing: false,
            is_truncated: false,
        }
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.session.is_handshaking()
    }

    /// What both sides agreed on, once the handshake is over.
    pub(super) fn negotiated(&self) -> Option<Negotiated<'_>> {
        self.session.negotiated()
    }

    pub(super) fn served(&self) -> Option<&Served> {
        self.served.as_ref()
    }

    /// The handshake is over: keeps what the client has shown.
    pub(super) fn keep_client_certificate(&mut self) {
        let shown = self.session.peer_certificate();
        if let (Some(served), Some(der)) = (&mut self.served, shown) {
            served.set_client_certificate(der);
        }
    }

    pub(super) fn served_mut(&mut self) -> Option<&mut Served> {
        self.served.as_mut()
    }

    pub(super) fn is_truncated(&self) -> bool {
        self.is_truncated
    }

    pub(super) fn sealed_bytes(&self) -> u64 {
        self.sealed_bytes as u64
    }

    /// Whether something is sealed, or a close is due, that the kernel doesn't have.
    pub(super) fn has_unsent(&self) -> bool {
        self.is_closing || self.out.as_ref().is_some_and(|out| !out.is_empty())
    }

    /// Reads until there is content, the peer's end, or nothing more on the socket. The input has
    /// room.
    pub(super) fn receive(
        &mut self,
        socket: &OwnedFd,
        ready: &mut Ready,
        input: &mut InputBuffer,
        outbox: &mut Outbox,
        pool: &mut BufferPool,
    ) -> io::Result<Received> {
        if self.session.has_failed() {
            return self.discard(socket, ready, pool);
        }
        let mut may_read = true;
        loop {
            if self.has_content {
                if let Some(received) = self.open(socket, ready, input, outbox, pool)? {
                    return Ok(received);
                }
            } else if may_read {
                match self.read(socket, ready, pool)? {
                    Received::Bytes(_) => may_read = ready.readable,
                    other => return Ok(other),
                }
            } else {
                return Ok(Received::Nothing);
            }
        }
    }

    /// Reads and drops what a peer still sends to a session that has failed: closing with unread
    /// bytes would reset the alert.
    fn discard(
        &mut self,
        socket: &OwnedFd,
        ready: &mut Ready,
        pool: &mut BufferPool,
    ) -> io::Result<Received> {
        if let Some(wire) = &mut self.wire {
            wire.clear();
        }
        let received = self.read(socket, ready, pool);
        if let Some(wire) = &mut self.wire {
            wire.clear();
        }
        received
    }

    /// Reads ciphertext once from the socket.
    fn read(
        &mut self,
        socket: &OwnedFd,
        ready: &mut Ready,
        pool: &mut BufferPool,
    ) -> io::Result<Received> {
        let wire = self.wire.get_or_insert_with(|| pool.take_wire());
        // A buffer that is full, and makes no record, has failed the session.
        let received = ready.receive(socket, wire.room())?;
        match received {
            Received::Bytes(len) => {
                wire.fill(len);
                self.has_content = true;
            }
            Received::End => self.is_truncated = !self.session.peer_has_closed(),
            Received::Nothing | Received::Full => {}
        }
        Ok(received)
    }

    /// Opens records. `None`: there was no content in them.
    fn open(
        &mut self,
        socket: &OwnedFd,
        ready: &mut Ready,
        input: &mut InputBuffer,
        outbox: &mut Outbox,
        pool: &mut BufferPool,
    ) -> io::Result<Option<Received>> {
        let out = self.out.get_or_insert_with(|| pool.take_sealed());
        let wire = unread(&mut self.wire);
        let opened = self.session.receive(wire, input.room(), out);
        let sent = self.send(socket, ready, outbox);
        // A peer that is gone takes no alert: the session's error says why it is.
        let progress = opened.map_err(broken)?;
        sent?;
        consume(&mut self.wire, progress.consumed);
        input.fill(progress.produced);
        // What has no room yet is to be received as if the socket had it, and so is an end behind
        // content: the peer may leave its socket open until we close.
        self.has_content = progress.is_full || (progress.is_end && progress.produced > 0);
        ready.readable |= self.has_content;
        if progress.produced > 0 {
            return Ok(Some(Received::Bytes(progress.produced)));
        }
        if progress.is_end {
            (ready.readable, ready.read_closed) = (false, true);
            return Ok(Some(Received::End));
        }
        Ok(None)
    }

    /// Seals and sends record by record, as long as the socket takes them.
    pub(super) fn flush(
        &mut self,
        socket: &OwnedFd,
        ready: &mut Ready,
        outbox: &mut Outbox,
        pool: &mut BufferPool,
    ) -> io::Result<Flushed> {
        let mut scratch = None;
        let flushed = self.flush_through(socket, ready, outbox, pool, &mut scratch);
        if let Some(scratch) = scratch {
            pool.give_input(scratch);
        }
        flushed
    }

    fn flush_through(
        &mut self,
        socket: &OwnedFd,
        ready: &mut Ready,
        outbox: &mut Outbox,
        pool: &mut BufferPool,
        scratch: &mut Option<InputBuffer>,
    ) -> io::Result<Flushed> {
        let mut turn_left = TURN_BYTES;
        loop {
            if !self.send(socket, ready, outbox)? {
                return Ok(Flushed::Blocked);
            }
            if outbox.is_empty() {
                return Ok(Flushed::All);
            }
            if !self.session.is_open() {
                // The rest of the handshake has to be received first.
                return Ok(Flushed::Blocked);
            }
            if turn_left == 0 {
                return Ok(Flushed::TurnOver);
            }
            if !ready.writable {
                return Ok(Flushed::Blocked);
            }
            let sealed = self.seal(outbox, pool, scratch)?;
            turn_left = turn_left.saturating_sub(sealed);
        }
    }

    /// Seals the content at the front of the outbox, as much as one record holds.
    fn seal(
        &mut self,
        outbox: &Outbox,
        pool: &mut BufferPool,
        scratch: &mut Option<InputBuffer>,
    ) -> io::Result<u64> {
        let content = if outbox.has_segments() {
            let scratch = scratch.get_or_insert_with(|| pool.take_wire());
            outbox.front(&mut scratch.room()[..SEALED_BYTES_MAX])?
        } else {
            let waiting = outbox.waiting();
            &waiting[..waiting.len().min(SEALED_BYTES_MAX)]
        };
        let out = self.out.get_or_insert_with(|| pool.take_sealed());
        let wire = unread(&mut self.wire);
        let consumed = self.session.send(content, wire, out).map_err(broken)?;
        self.sealed_bytes = content.len();
        self.has_content |= self.session.has_leftover();
        consume(&mut self.wire, consumed);
        Ok(self.sealed_bytes as u64)
    }

    /// Sends what is sealed. Returns whether the kernel has all of it.
    fn send(
        &mut self,
        socket: &OwnedFd,
        ready: &mut Ready,
        outbox: &mut Outbox,
    ) -> io::Result<bool> {
        if let Some(out) = &mut self.out {
            while !out.is_empty() {
                if !ready.writable {
                    return Ok(false);
                }
                match rustix::net::send(socket, out.unsent(), SendFlags::NOSIGNAL) {
                    Ok(len) => out.consume(len),
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => ready.writable = false,
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        outbox.pass(std::mem::take(&mut self.sealed_bytes));
        if std::mem::take(&mut self.is_closing) {
            rustix::net::shutdown(socket.as_fd(), Shutdown::Write)?;
        }
        Ok(true)
    }

    /// Says that nothing more comes, and closes our side; later, if the socket is full.
    pub(super) fn shutdown_write(
        &mut self,
        socket: &OwnedFd,
        ready: &mut Ready,
        outbox: &mut Outbox,
        pool: &mut BufferPool,
    ) -> io::Result<()> {
        let out = self.out.get_or_insert_with(|| pool.take_sealed());
        let wire = unread(&mut self.wire);
        let consumed = self.session.close(wire, out).map_err(broken)?;
        consume(&mut self.wire, consumed);
        self.is_closing = true;
        self.send(socket, ready, outbox).map(|_| ())
    }

    #[cfg(test)]
    pub(super) fn holds_no_buffer(&self) -> bool {
        self.wire.is_none() && self.out.is_none()
    }

    /// Returns empty buffers to the pool.
    pub(super) fn release(&mut self, pool: &mut BufferPool) {
        if let Some(wire) = self.wire.take_if(|wire| wire.is_empty()) {
            pool.give_input(wire);
        }
        if let Some(out) = self.out.take_if(|out| out.is_empty()) {
            pool.give_sealed(out);
        }
    }
}

fn unread(wire: &mut Option<InputBuffer>) -> &mut [u8] {
    wire.as_mut().map_or(&mut [], InputBuffer::unread_mut)
}

fn consume(wire: &mut Option<InputBuffer>, len: usize) {
    if let Some(wire) = wire {
        wire.consume(len);
    }
}

/// The session has failed. What it had to say was sent, as far as the kernel took it.
fn broken(error: TlsError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests;
