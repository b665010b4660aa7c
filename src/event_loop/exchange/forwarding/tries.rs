//! The upstreams that a request was tried with, and how many more it may be tried with.

use smallvec::SmallVec;

use crate::app::FailureCause;

/// The tries of one request.
#[derive(Debug)]
pub(in super::super) struct Tries {
    /// How often an upstream was asked.
    pub(in super::super) count: u32,
    retries_left: u32,
    /// Upstreams that have failed.
    failed: SmallVec<[usize; 4]>,
    /// The last failure, if any.
    pub(in super::super) last_cause: Option<FailureCause>,
}

impl Tries {
    /// No upstream was tried yet.
    pub(in super::super) fn new(retries: u32) -> Self {
        Self { count: 0, retries_left: retries, failed: SmallVec::new(), last_cause: None }
    }

    /// This upstream has failed.
    pub(in super::super) fn note_failed(&mut self, upstream: usize, cause: FailureCause) {
        self.last_cause = Some(cause);
        self.failed.push(upstream);
    }

    /// The next retry isn't counted.
    pub(in super::super) fn excuse_one(&mut self) {
        self.retries_left += 1;
    }

    /// Uses up a retry, if one is left. Returns the upstreams that have failed.
    pub(in super::super) fn retry(&mut self) -> Option<&[usize]> {
        self.retries_left = self.retries_left.checked_sub(1)?;
        Some(&self.failed)
    }
}
