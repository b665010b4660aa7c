//! A connection to an upstream that is in use.

use mio::Token;

use crate::{app::UpstreamFailure, io::Io};

/// A connection to an upstream that is in use.
pub(in super::super) struct UpstreamConn {
    pub(in super::super) token: Token,
    pub(in super::super) io: Io,
    /// An exchange has used it before.
    pub(in super::super) is_used: bool,
    /// The handshake is over.
    pub(in super::super) is_open: bool,
}

impl UpstreamConn {
    /// Checks whether the handshake is over.
    ///
    /// # Errors
    /// When it has failed.
    pub(in super::super) fn finish_opening(&mut self) -> Result<bool, UpstreamFailure> {
        self.is_open =
            self.io.finish_connecting().map_err(|error| UpstreamFailure::connect(&error))?;
        Ok(self.is_open)
    }
}
