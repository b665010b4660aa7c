//! A loop that makes no progress, as operators see it.

use std::time::Duration;

/// What is known of it.
#[derive(Clone, Debug)]
pub(crate) struct StuckLoop {
    pub(crate) index: usize,
    /// The host of the app that it asked last; none if the turn asked none.
    pub(crate) host: Option<String>,
    pub(crate) life: Option<u64>,
    /// Since the turn began.
    pub(crate) time: Duration,
}
