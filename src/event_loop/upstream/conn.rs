//! A connection to an upstream that is in use. Until it is open, no byte of a request is sent.

use mio::Token;

use crate::{
    app::UpstreamFailure,
    io::{BufferPool, Io, OpenError, Opening},
};

/// A connection to an upstream that is in use.
pub(in super::super) struct UpstreamConn {
    pub(in super::super) token: Token,
    pub(in super::super) io: Io,
    /// An exchange has used it before.
    pub(in super::super) is_used: bool,
    opening: Opening,
}

impl UpstreamConn {
    /// A new connection.
    pub(super) fn new(token: Token, io: Io, opening: Opening) -> Self {
        Self { token, io, is_used: false, opening }
    }

    /// A connection that was kept.
    pub(super) fn kept(token: Token, io: Io) -> Self {
        Self { token, io, is_used: true, opening: Opening::Open }
    }

    pub(in super::super) fn is_open(&self) -> bool {
        self.opening == Opening::Open
    }

    /// Whether only the handshake of TLS isn't over.
    pub(in super::super) fn is_securing(&self) -> bool {
        self.opening == Opening::Securing
    }

    /// Goes on with the handshakes, as far as the socket lets it. Returns whether they are over.
    ///
    /// # Errors
    /// When one has failed.
    pub(in super::super) fn finish_opening(
        &mut self,
        buffers: &mut BufferPool,
    ) -> Result<bool, UpstreamFailure> {
        let finished = self.io.finish_opening(&mut self.opening, buffers);
        finished.map_err(|error| match error {
            OpenError::Connect(error) => UpstreamFailure::connect(&error),
            OpenError::Handshake(error) => UpstreamFailure::handshake(&error),
        })
    }

    /// Whether it can be kept for another exchange: nothing is left of this one, and nothing came
    /// behind it.
    pub(in super::super) fn is_clean(&mut self, buffers: &mut BufferPool) -> bool {
        let io = &mut self.io;
        let is_clean = !io.has_unsent() && io.input.is_none() && !io.ready.read_closed;
        // An end that TLS has read already is reported by no event.
        is_clean && (!io.is_tls() || !io.ready.readable || io.is_silent(buffers))
    }
}
