//! What the threads look after.

use std::sync::Weak;

use crate::app::Upstreams;

/// The upstreams of one life, for as long as it lasts.
pub(super) struct Watch {
    /// The app's, for the log.
    pub(super) host: String,
    pub(super) upstreams: Weak<Upstreams>,
}
