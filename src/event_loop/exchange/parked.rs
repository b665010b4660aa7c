//! What an exchange waits for when its answer doesn't wait for a socket.

use crate::{
    app::{OnContent, Reply, Waiting},
    http::Response,
};

/// The state of an exchange that waits for something other than a socket.
pub(super) enum Parked {
    /// The answer is known, but the request's content is still coming. If the content proves
    /// broken, the request is refused.
    Content(Reply<'static>),
    /// The app wants the whole content first; this is the content so far.
    Collect(Box<OnContent>, Vec<u8>),
    /// The app holds the answer back until this time of the loop's clock, in milliseconds.
    Until(u64, Response<'static>),
    /// The answer comes from outside the loop. Dropping this shows its [`Later`] that the client
    /// has left.
    ///
    /// [`Later`]: crate::app::Later
    Later(Waiting),
    /// The answer has begun; the rest of its content comes from outside the loop.
    Stream { _waiting: Waiting },
}

impl Parked {
    /// When the answer is due, in milliseconds of the loop's clock.
    pub(super) fn due_ms(&self) -> Option<u64> {
        match self {
            Self::Until(due, _) => Some(*due),
            Self::Content(_) | Self::Collect(..) | Self::Later(_) | Self::Stream { .. } => None,
        }
    }

    /// Whether it waits for the app, however long that takes.
    pub(super) fn waits_for_app(&self) -> bool {
        matches!(self, Self::Until(..) | Self::Later(_) | Self::Stream { .. })
    }
}
