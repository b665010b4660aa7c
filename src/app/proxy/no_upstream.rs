//! Why there is no upstream for a request.

use super::failure::{FailureCause, UpstreamFailure};

/// Why there is no upstream for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoUpstream {
    /// All are down, or some are and the others are drained.
    Down,
    /// As `Down`, and none of those that are not drained has an address.
    Unresolved,
    /// All are drained.
    Drained,
    /// All that can be used were already tried for this request.
    Tried,
}

impl NoUpstream {
    /// The failure of a request that reached no upstream.
    pub(crate) fn failure(self) -> UpstreamFailure {
        match self {
            Self::Down | Self::Tried => {
                UpstreamFailure::new(FailureCause::NoUpstreamUp, "all upstreams are down")
            }
            Self::Unresolved => UpstreamFailure::new(
                FailureCause::ResolveFailed,
                "no name of an upstream has an address",
            ),
            Self::Drained => {
                UpstreamFailure::new(FailureCause::AllDrained, "all upstreams are drained")
            }
        }
    }
}
