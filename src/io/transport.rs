//! The socket, its known readiness, and reading and writing, which are the same for every peer.
//!
//! Edge-triggered epoll(7) reports only changes, so readiness is remembered until a read or write
//! would block.

use std::{io, os::fd::OwnedFd, time::Duration};

use rustix::{
    io::Errno,
    net::{RecvFlags, Shutdown},
};
use socket2::SockRef;

use super::{
    buffers::{BufferPool, InputBuffer},
    outbox::{Flushed, Mark, Outbox},
    ready::{Ready, Received},
    tls::TlsTransport,
};
use crate::tls::{ClientCertificate, Negotiated, Served, Session};

/// One socket with its unread and unsent bytes.
pub(crate) struct Io {
    socket: OwnedFd,
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
    Plain,
    /// Sealed. Boxed, so that a plain connection has no room for it.
    Tls(Box<TlsTransport>),
}

impl Transport {
    fn tls(&self) -> Option<&TlsTransport> {
        match self {
            Self::Plain => None,
            Self::Tls(tls) => Some(tls),
        }
    }
}

/// A borrowed [`Io`] apart from its input, which can be read meanwhile.
pub(crate) struct Outward<'a> {
    socket: &'a OwnedFd,
    transport: &'a mut Transport,
    ready: &'a Ready,
    pub(crate) outbox: &'a mut Outbox,
}

impl Outward<'_> {
    pub(crate) fn reborrow(&mut self) -> Outward<'_> {
        let Self { socket, transport, ready, outbox } = self;
        Outward { socket, transport, ready, outbox }
    }

    /// What a client's TLS connection was made with.
    pub(crate) fn served(&self) -> Option<&Served> {
        self.transport.tls()?.served()
    }

    /// The same, to be changed.
    pub(crate) fn served_mut(&mut self) -> Option<&mut Served> {
        match self.transport {
            Transport::Plain => None,
            Transport::Tls(tls) => tls.served_mut(),
        }
    }

    /// Whether bytes are sealed.
    pub(crate) fn is_tls(&self) -> bool {
        self.transport.tls().is_some()
    }

    /// What both sides agreed on, once a TLS handshake is over.
    pub(crate) fn negotiated(&self) -> Option<Negotiated<'_>> {
        self.transport.tls()?.negotiated()
    }

    /// The certificate that a client has shown in a handshake that is over.
    pub(crate) fn client_certificate(&self) -> Option<&ClientCertificate> {
        self.served()?.client_certificate()
    }

    /// The position behind the last byte that can't be taken back from the outbox: the kernel has
    /// it, or it is sealed.
    pub(crate) fn committed(&self) -> Mark {
        let sealed_bytes = self.transport.tls().map_or(0, TlsTransport::sealed_bytes);
        self.outbox.sent().after(sealed_bytes)
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.ready.writable
    }

    /// Whether the peer has closed its side, and everything was read.
    pub(crate) fn has_ended(&self) -> bool {
        self.ready.has_ended()
    }

    /// Makes the next close a reset, which discards unsent bytes.
    pub(crate) fn reset_at_close(&self) {
        // If this fails, the socket closes without a reset.
        let _ = SockRef::from(self.socket).set_linger(Some(Duration::ZERO));
    }
}

impl Io {
    /// The input, and the rest.
    pub(crate) fn split(&mut self) -> (Option<&mut InputBuffer>, Outward<'_>) {
        let Self { socket, transport, ready, input, outbox, .. } = self;
        (input.as_mut(), Outward { socket, transport, ready, outbox })
    }

    pub(crate) fn new(socket: OwnedFd, ready: Ready) -> Self {
        Self {
            socket,
            transport: Transport::Plain,
            ready,
            input: None,
            outbox: Outbox::default(),
            received_total: 0,
        }
    }

    pub(crate) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// From here on bytes are sealed. What is received and unread is the beginning of that.
    pub(crate) fn begin_tls(
        &mut self,
        session: Session,
        served: Option<Served>,
        pool: &mut BufferPool,
    ) {
        let wire = self.input.take().map(|input| pool.wire_of(input));
        if let Some(wire) = &wire {
            self.uncount_received(wire.unread().len());
        }
        // The session has something to do that no event will report.
        self.ready.readable = true;
        self.transport = Transport::Tls(Box::new(TlsTransport::new(session, served, wire)));
    }

    /// Whether a TLS handshake isn't over.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.tls().is_some_and(TlsTransport::is_handshaking)
    }

    /// Whether bytes are sealed.
    pub(crate) fn is_tls(&self) -> bool {
        self.tls().is_some()
    }

    /// Whether the peer's end came without the close_notify that TLS demands: something may be
    /// missing before it.
    pub(crate) fn is_truncated(&self) -> bool {
        self.tls().is_some_and(TlsTransport::is_truncated)
    }

    /// What both sides agreed on, once a TLS handshake is over.
    pub(crate) fn negotiated(&self) -> Option<Negotiated<'_>> {
        self.tls()?.negotiated()
    }

    /// The name that a client's TLS connection asked for (SNI).
    pub(crate) fn server_name(&self) -> Option<&str> {
        self.tls()?.served()?.name()
    }

    /// A client's handshake is over: keeps what it has shown.
    pub(crate) fn keep_client_certificate(&mut self) {
        if let Transport::Tls(tls) = &mut self.transport {
            tls.keep_client_certificate();
        }
    }

    /// Whether the kernel doesn't have all that is to be sent.
    pub(crate) fn has_unsent(&self) -> bool {
        !self.outbox.is_empty() || self.tls().is_some_and(TlsTransport::has_unsent)
    }

    /// Whether nothing came on an idle connection that ends it: neither bytes nor the end. Under
    /// TLS records without content, such as a ticket, are read; they don't count.
    pub(crate) fn is_silent(&mut self, pool: &mut BufferPool) -> bool {
        if let Transport::Plain = self.transport {
            let peeked = rustix::net::recv(&self.socket, &mut [0], RecvFlags::PEEK);
            return matches!(peeked, Err(Errno::AGAIN));
        }
        let received = self.receive(pool);
        self.release(pool);
        matches!(received, Ok(Received::Nothing))
    }

    fn tls(&self) -> Option<&TlsTransport> {
        self.transport.tls()
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
        self.ready.has_ended()
    }

    /// Reads once; under TLS until there is content.
    ///
    /// # Errors
    /// recv(2)'s: the connection is reset, or lost. `InvalidData`: the TLS session has failed.
    pub(crate) fn receive(&mut self, pool: &mut BufferPool) -> io::Result<Received> {
        let input = self.input.get_or_insert_with(|| pool.take_input());
        if input.is_full() {
            pool.enlarge(input);
        }
        let room = input.room();
        if room.is_empty() {
            return Ok(Received::Full);
        }
        if let Transport::Tls(tls) = &mut self.transport {
            let (ready, outbox) = (&mut self.ready, &mut self.outbox);
            let received = tls.receive(&self.socket, ready, input, outbox, pool)?;
            if let Received::Bytes(len) = received {
                self.received_total += len as u64;
            }
            return Ok(received);
        }
        let received = self.ready.receive(&self.socket, room)?;
        if let Received::Bytes(len) = received {
            input.fill(len);
            self.received_total += len as u64;
        }
        Ok(received)
    }

    /// Sends from the outbox, as far as the kernel takes it and the turn allows.
    ///
    /// # Errors
    /// Those of [`Outbox::flush`]. `InvalidData`: the TLS session has failed.
    pub(crate) fn flush(&mut self, pool: &mut BufferPool) -> io::Result<Flushed> {
        if let Transport::Tls(tls) = &mut self.transport {
            return tls.flush(&self.socket, &mut self.ready, &mut self.outbox, pool);
        }
        if self.outbox.is_empty() {
            return Ok(Flushed::All);
        }
        if !self.ready.writable {
            return Ok(Flushed::Blocked);
        }
        let flushed = self.outbox.flush(&self.socket)?;
        self.ready.writable = flushed != Flushed::Blocked;
        Ok(flushed)
    }

    /// Closes our side: the peer reads the end after all sent bytes. Under TLS close_notify comes
    /// first; a full socket delays both until a flush.
    ///
    /// # Errors
    /// shutdown(2)'s: the connection is lost.
    pub(crate) fn shutdown_write(&mut self, pool: &mut BufferPool) -> io::Result<()> {
        if let Transport::Tls(tls) = &mut self.transport {
            return tls.shutdown_write(&self.socket, &mut self.ready, &mut self.outbox, pool);
        }
        Ok(rustix::net::shutdown(self.socket(), Shutdown::Write)?)
    }

    /// Whether TLS holds no buffer.
    #[cfg(test)]
    pub(super) fn holds_no_tls_buffer(&self) -> bool {
        self.tls().is_some_and(TlsTransport::holds_no_buffer)
    }

    /// Makes the next close a reset, which discards unsent bytes.
    pub(crate) fn reset_at_close(&mut self) {
        self.split().1.reset_at_close();
    }

    /// Returns empty buffers to the pool.
    pub(crate) fn release(&mut self, pool: &mut BufferPool) {
        if let Some(input) = self.input.take_if(|input| input.is_empty()) {
            pool.give_input(input);
        }
        self.outbox.release(pool);
        if let Transport::Tls(tls) = &mut self.transport {
            tls.release(pool);
        }
    }
}
