//! A connection to an upstream that is in use.
//!
//! ```text
//!  opening ──TCP──► connected ──TLS, if the upstream speaks it──► open
//! ```
//! Until it is open, no byte of a request is sent.

use mio::Token;

use crate::{
    app::UpstreamFailure,
    io::{BufferPool, Io},
};

/// A connection to an upstream that is in use.
pub(in super::super) struct UpstreamConn {
    pub(in super::super) token: Token,
    pub(in super::super) io: Io,
    /// An exchange has used it before.
    pub(in super::super) is_used: bool,
    /// The handshake of TCP is over.
    pub(in super::super) is_connected: bool,
    /// All handshakes are over.
    pub(in super::super) is_open: bool,
}

impl UpstreamConn {
    /// A new connection. `is_connected`: the handshake of TCP is over already.
    pub(super) fn opening(token: Token, io: Io, is_connected: bool) -> Self {
        let is_open = is_connected && !io.is_tls();
        Self { token, io, is_used: false, is_connected, is_open }
    }

    /// A connection that was kept.
    pub(super) fn kept(token: Token, io: Io) -> Self {
        Self { token, io, is_used: true, is_connected: true, is_open: true }
    }

    /// Goes on with the handshakes, as far as the socket lets it. Returns whether they are over.
    ///
    /// # Errors
    /// When one has failed.
    pub(in super::super) fn finish_opening(
        &mut self,
        buffers: &mut BufferPool,
    ) -> Result<bool, UpstreamFailure> {
        if !self.is_connected {
            let connected = self.io.finish_connecting();
            self.is_connected = connected.map_err(|error| UpstreamFailure::connect(&error))?;
        }
        if self.is_connected {
            let shaken = self.io.shake_hands(buffers);
            self.is_open = shaken.map_err(|error| UpstreamFailure::handshake(&error))?;
        }
        Ok(self.is_open)
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
