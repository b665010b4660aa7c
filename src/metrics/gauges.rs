//! The current state of a loop, published for other threads.
//!
//! A loop counts for itself and publishes a copy at the end of its turns. A reader may see one
//! number of the latest turn and another of the turn before. The beginning of a turn is published
//! too: a loop that an app blocks can't report, but its mark grows old.

use std::{
    ops::AddAssign,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use crossbeam_utils::CachePadded;

use super::{
    ExchangeCounters, ExchangeTotals, HandshakeCounts, HandshakeEnd, handshakes::HandshakeCounters,
};

/// The published counts of a loop.
#[derive(Debug)]
pub(crate) struct LoopGauges(
    CachePadded<Published>,
    ExchangeCounters,
    CachePadded<HandshakeCounters>,
);

impl Default for LoopGauges {
    fn default() -> Self {
        Self(CachePadded::default(), ExchangeCounters::new(1), CachePadded::default())
    }
}

#[derive(Debug, Default)]
struct Published {
    fresh: AtomicU64,
    busy: AtomicU64,
    idle: AtomicU64,
    lingering: AtomicU64,
    accepted: AtomicU64,
    handed_over: AtomicU64,
    taken_over: AtomicU64,
    proxy_headers_refused: AtomicU64,
    connections_refused: AtomicU64,
    /// When the turn began; 0 between turns.
    turn_since_ns: AtomicU64,
    /// The life whose app was called last in this turn; 0 if none was.
    asked_life: AtomicU64,
}

/// A turn in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    /// When it began, in nanoseconds of the loops' epoch.
    pub(crate) since_ns: u64,
    /// The number of the life whose app was called last.
    pub(crate) life: Option<u64>,
}

/// The counts of a loop, or the sum of several loops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LoopCounts {
    /// Connections that never sent a byte.
    pub(crate) fresh: u64,
    /// Connections with an exchange in flight, counted from the first byte of its head.
    pub(crate) busy: u64,
    /// Connections between exchanges.
    pub(crate) idle: u64,
    /// Connections that we have closed on our side.
    pub(crate) lingering: u64,
    /// Connections accepted so far.
    pub(crate) accepted: u64,
    /// Connections handed over to the next process.
    pub(crate) handed_over: u64,
    /// Connections taken over from the previous process.
    pub(crate) taken_over: u64,
    /// Connections dropped so far because of an invalid PROXY header.
    pub(crate) proxy_headers_refused: u64,
    /// Connections closed so far because their client had too many.
    pub(crate) connections_refused: u64,
}

impl LoopGauges {
    /// Publishes these counts. Call only from the loop itself.
    pub(crate) fn publish(&self, counts: &LoopCounts) {
        self.0.fresh.store(counts.fresh, Relaxed);
        self.0.busy.store(counts.busy, Relaxed);
        self.0.idle.store(counts.idle, Relaxed);
        self.0.lingering.store(counts.lingering, Relaxed);
        self.0.accepted.store(counts.accepted, Relaxed);
        self.0.handed_over.store(counts.handed_over, Relaxed);
        self.0.taken_over.store(counts.taken_over, Relaxed);
        self.0.proxy_headers_refused.store(counts.proxy_headers_refused, Relaxed);
        self.0.connections_refused.store(counts.connections_refused, Relaxed);
    }

    /// Records an exchange that was refused before it had an app. Call only from the loop itself.
    pub(crate) fn count_unrouted(&self, status: u16, nanos: u64) {
        self.1.record(0, status, nanos);
    }

    /// The exchanges that were refused before they had an app.
    pub(crate) fn unrouted(&self) -> ExchangeTotals {
        self.1.snapshot()
    }

    /// Counts a client's TLS handshake that is over. Call only from the loop itself.
    pub(crate) fn count_handshake(&self, end: HandshakeEnd) {
        self.2.count(end);
    }

    /// The TLS handshakes of clients so far.
    pub(crate) fn handshakes(&self) -> HandshakeCounts {
        self.2.snapshot()
    }

    /// Marks the beginning of a turn. Call this and the next two only from the loop itself.
    pub(crate) fn begin_turn(&self, now_ns: u64) {
        self.0.asked_life.store(0, Relaxed);
        self.0.turn_since_ns.store(now_ns.max(1), Relaxed);
    }

    /// Marks the end of a turn: the loop sleeps or ends.
    pub(crate) fn end_turn(&self) {
        self.0.turn_since_ns.store(0, Relaxed);
    }

    /// Marks a call to the app of this life. Done for each request: one store to a cache line that
    /// belongs to the loop, which is cheap beside the call itself.
    pub(crate) fn ask(&self, life: u64) {
        self.0.asked_life.store(life, Relaxed);
    }

    /// The turn in progress; none while the loop sleeps. Just after the beginning of a turn, the
    /// life may still be that of the previous turn.
    pub(crate) fn turn(&self) -> Option<Turn> {
        let since_ns = self.0.turn_since_ns.load(Relaxed);
        let life = Some(self.0.asked_life.load(Relaxed)).filter(|life| *life != 0);
        (since_ns != 0).then_some(Turn { since_ns, life })
    }

    /// The counts that were published last.
    pub(crate) fn snapshot(&self) -> LoopCounts {
        LoopCounts {
            fresh: self.0.fresh.load(Relaxed),
            busy: self.0.busy.load(Relaxed),
            idle: self.0.idle.load(Relaxed),
            lingering: self.0.lingering.load(Relaxed),
            accepted: self.0.accepted.load(Relaxed),
            handed_over: self.0.handed_over.load(Relaxed),
            taken_over: self.0.taken_over.load(Relaxed),
            proxy_headers_refused: self.0.proxy_headers_refused.load(Relaxed),
            connections_refused: self.0.connections_refused.load(Relaxed),
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
        self.handed_over += other.handed_over;
        self.taken_over += other.taken_over;
        self.proxy_headers_refused += other.proxy_headers_refused;
        self.connections_refused += other.connections_refused;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_shows_the_last_called_app_until_it_ends() {
        let gauges = LoopGauges::default();
        assert_eq!(gauges.turn(), None);
        gauges.begin_turn(0);
        assert_eq!(gauges.turn(), Some(Turn { since_ns: 1, life: None }), "0 means asleep");
        gauges.ask(7);
        assert_eq!(gauges.turn(), Some(Turn { since_ns: 1, life: Some(7) }));
        gauges.begin_turn(20);
        assert_eq!(gauges.turn(), Some(Turn { since_ns: 20, life: None }));
        gauges.end_turn();
        assert_eq!(gauges.turn(), None);
    }

    #[test]
    fn the_last_published_counts_are_seen_and_add_up() {
        let gauges = LoopGauges::default();
        assert_eq!(gauges.snapshot(), LoopCounts::default());
        let counts = LoopCounts {
            fresh: 1,
            busy: 2,
            idle: 3,
            lingering: 4,
            accepted: 10,
            handed_over: 8,
            taken_over: 9,
            proxy_headers_refused: 5,
            connections_refused: 6,
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
            handed_over: 16,
            taken_over: 18,
            proxy_headers_refused: 10,
            connections_refused: 12,
        };
        assert_eq!(all, twice);
    }
}
