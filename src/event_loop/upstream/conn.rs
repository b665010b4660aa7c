//! A connection to an upstream that is in use.
//!
//! ```text
//!  Connecting ──TCP──► Securing ──TLS, if the upstream speaks it──► Open
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
    stage: ConnStage,
}

/// How far its handshakes have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnStage {
    /// That of TCP isn't over.
    Connecting,
    /// That of TLS isn't over.
    Securing,
    /// All are over.
    Open,
}

impl UpstreamConn {
    /// A new connection. `is_connected`: the handshake of TCP is over already.
    pub(super) fn opening(token: Token, io: Io, is_connected: bool) -> Self {
        let stage = match (is_connected, io.is_tls()) {
            (false, _) => ConnStage::Connecting,
            (true, true) => ConnStage::Securing,
            (true, false) => ConnStage::Open,
        };
        Self { token, io, is_used: false, stage }
    }

    /// A connection that was kept.
    pub(super) fn kept(token: Token, io: Io) -> Self {
        Self { token, io, is_used: true, stage: ConnStage::Open }
    }

    pub(in super::super) fn is_open(&self) -> bool {
        self.stage == ConnStage::Open
    }

    /// Whether only the handshake of TLS isn't over.
    pub(in super::super) fn is_securing(&self) -> bool {
        self.stage == ConnStage::Securing
    }

    /// Goes on with the handshakes, as far as the socket lets it. Returns whether they are over.
    ///
    /// # Errors
    /// When one has failed.
    pub(in super::super) fn finish_opening(
        &mut self,
        buffers: &mut BufferPool,
    ) -> Result<bool, UpstreamFailure> {
        if self.stage == ConnStage::Connecting {
            let connected = self.io.finish_connecting();
            if !connected.map_err(|error| UpstreamFailure::connect(&error))? {
                return Ok(false);
            }
            self.stage = ConnStage::Securing;
        }
        let shaken = self.io.shake_hands(buffers);
        if shaken.map_err(|error| UpstreamFailure::handshake(&error))? {
            self.stage = ConnStage::Open;
        }
        Ok(self.is_open())
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
