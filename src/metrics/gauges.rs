//! What a loop is doing now, published for whoever asks.
//!
//! A loop counts for itself and publishes a copy at the end of its turns. A reader may see one
//! number of a turn and another one of the turn before.

use std::{
    ops::AddAssign,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use crossbeam_utils::CachePadded;

/// A loop's counts, for others to read.
#[derive(Debug, Default)]
pub(crate) struct LoopGauges(CachePadded<Published>);

#[derive(Debug, Default)]
struct Published {
    fresh: AtomicU64,
    busy: AtomicU64,
    idle: AtomicU64,
    lingering: AtomicU64,
    accepted: AtomicU64,
    proxy_headers_refused: AtomicU64,
}

/// A loop's counts, or those of several added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LoopCounts {
    /// Connections that never sent a byte.
    pub(crate) fresh: u64,
    /// Connections within an exchange, from the first byte of its head.
    pub(crate) busy: u64,
    /// Connections between exchanges.
    pub(crate) idle: u64,
    /// Connections whose side of ours is closed.
    pub(crate) lingering: u64,
    /// Connections accepted so far.
    pub(crate) accepted: u64,
    /// Connections dropped so far for what they sent instead of a PROXY header.
    pub(crate) proxy_headers_refused: u64,
}

impl LoopGauges {
    /// Shows these from here on: only by the loop itself.
    pub(crate) fn publish(&self, counts: &LoopCounts) {
        self.0.fresh.store(counts.fresh, Relaxed);
        self.0.busy.store(counts.busy, Relaxed);
        self.0.idle.store(counts.idle, Relaxed);
        self.0.lingering.store(counts.lingering, Relaxed);
        self.0.accepted.store(counts.accepted, Relaxed);
        self.0.proxy_headers_refused.store(counts.proxy_headers_refused, Relaxed);
    }

    /// What was published last.
    pub(crate) fn snapshot(&self) -> LoopCounts {
        LoopCounts {
            fresh: self.0.fresh.load(Relaxed),
            busy: self.0.busy.load(Relaxed),
            idle: self.0.idle.load(Relaxed),
            lingering: self.0.lingering.load(Relaxed),
            accepted: self.0.accepted.load(Relaxed),
            proxy_headers_refused: self.0.proxy_headers_refused.load(Relaxed),
        }
    }
}

impl AddAssign for LoopCounts {
    fn add_assign(&mut self, other: Self) {
        self.fresh += other.fresh;
        self.busy += other.busy;
        self.idle += other.idle;
        self.lingering += other.lingering;
        self.accepted += other.accepted;
        self.proxy_headers_refused += other.proxy_headers_refused;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published_last_is_seen_and_adds_up() {
        let gauges = LoopGauges::default();
        assert_eq!(gauges.snapshot(), LoopCounts::default());
        let counts = LoopCounts {
            fresh: 1,
            busy: 2,
            idle: 3,
            lingering: 4,
            accepted: 10,
            proxy_headers_refused: 5,
        };
        gauges.publish(&LoopCounts { idle: 7, ..counts });
        gauges.publish(&counts);
        assert_eq!(gauges.snapshot(), counts);
        let mut all = gauges.snapshot();
        all += counts;
        let twice = LoopCounts {
            fresh: 2,
            busy: 4,
            idle: 6,
            lingering: 8,
            accepted: 20,
            proxy_headers_refused: 10,
        };
        assert_eq!(all, twice);
    }
}
