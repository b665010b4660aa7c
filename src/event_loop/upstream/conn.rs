//! A connection to an upstream that is in use.

use mio::Token;
use socket2::SockRef;

use super::super::io::Io;
use crate::app::{FailureCause, UpstreamFailure};

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
        let ready = self.io.ready;
        if !(ready.writable || ready.failed) {
            return Ok(false);
        }
        match SockRef::from(self.io.socket()).take_error() {
            Ok(None) if ready.writable => {
                self.is_open = true;
                Ok(true)
            }
            Ok(Some(error)) | Err(error) => Err(UpstreamFailure::connect(&error)),
            Ok(None) => {
                Err(UpstreamFailure::new(FailureCause::ConnectFailed, "the connection failed"))
            }
        }
    }
}
