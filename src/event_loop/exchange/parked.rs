//! What an exchange waits for, where its answer waits for something other than a socket.

use crate::{
    app::{OnContent, Reply, Waiting},
    http::Response,
};

/// An exchange whose answer waits for something other than a socket.
pub(super) enum Parked {
    /// The answer is known, but the request's content is still coming: if that turns out broken,
    /// the request is refused, in whatever pieces it comes.
    Content(Reply<'static>),
    /// The app wants the request's content first; what came so far.
    Collect(Box<OnContent>, Vec<u8>),
    /// The app holds the answer back until this time of the loop's clock, in milliseconds.
    Until(u64, Response<'static>),
    /// The answer comes from outside the loop. When the exchange goes, its [`Later`] sees by this
    /// that no peer waits.
    ///
    /// [`Later`]: crate::app::Later
    Later(Waiting),
    /// The answer has begun; the rest of its content comes from outside the loop.
    Stream { _waiting: Waiting },
}

impl Parked {
    /// When the answer is due, in the loop's milliseconds.
    pub(super) fn due_ms(&self) -> Option<u64> {
        match self {
            Self::Until(due, _) => Some(*due),
            Self::Content(_) | Self::Collect(..) | Self::Later(_) | Self::Stream { .. } => None,
        }
    }

    /// Whether it is the app's turn, however long that takes.
    pub(super) fn waits_for_app(&self) -> bool {
        matches!(self, Self::Until(..) | Self::Later(_) | Self::Stream { .. })
    }
}
