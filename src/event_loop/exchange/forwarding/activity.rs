//! When bytes last came or went.

/// When bytes last came or went, in milliseconds of the loop's clock.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Activity {
    /// Bytes came or went since `last_ms` was set.
    has_moved: bool,
    last_ms: u64,
}

impl Activity {
    pub(in super::super) fn new(now_ms: u64) -> Self {
        Self { has_moved: false, last_ms: now_ms }
    }

    /// Bytes came or went, if `has_moved`.
    pub(super) fn note(&mut self, has_moved: bool) {
        self.has_moved |= has_moved;
    }

    /// Returns whether bytes came or went since the last call.
    pub(in super::super) fn take(&mut self, now_ms: u64) -> bool {
        let has_moved = std::mem::take(&mut self.has_moved);
        if has_moved {
            self.last_ms = now_ms;
        }
        has_moved
    }

    /// How long nothing has come or gone.
    pub(in super::super) fn idle_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.last_ms)
    }
}
