//! How the exchanges of one life ended: statuses and durations.
//!
//! Owns one block of 384 bytes for every loop that served the life; loops share no cache line. Each
//! block has one writer, its loop. Every number only grows, so every reader sees it grow; one
//! number may be ahead of another by the exchange that is being recorded.

use std::{
    array,
    sync::OnceLock,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use crossbeam_utils::CachePadded;

use super::histogram::{EXCHANGE_BOUNDS, Histogram, bucket_of};

/// The status under which a loop counts statuses that don't fit in its table.
pub(super) const OTHER: u16 = 0;

const BUCKETS: usize = EXCHANGE_BOUNDS.len();

/// A block has 48 words: this table, the count of other statuses, the buckets and the sum.
const STATUSES_MAX: usize = 26;

/// A word of the table: the status in the top ten bits, its count below.
const STATUS_SHIFT: u32 = 54;

/// The exchanges of one life, as counted by the loops.
#[derive(Debug)]
pub(crate) struct ExchangeCounters {
    /// A loop that never serves the life costs 16 bytes.
    loops: Box<[OnceLock<Box<LoopBlock>>]>,
}

type LoopBlock = CachePadded<LoopCounters>;

#[derive(Debug, Default)]
struct LoopCounters {
    /// In the order of their first use, so that common ones are found first.
    statuses: [AtomicU64; STATUSES_MAX],
    other: AtomicU64,
    /// The bits of a float.
    nanos: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

/// The sum of several counters.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ExchangeTotals {
    /// Sorted by status.
    pub(super) statuses: Vec<(u16, u64)>,
    pub(super) seconds: Histogram<BUCKETS>,
}

impl ExchangeCounters {
    /// Counters for this many loops.
    pub(crate) fn new(loops: usize) -> Self {
        Self { loops: (0..loops).map(|_| OnceLock::new()).collect() }
    }

    /// Records the end of an exchange with its duration. Call only from the loop with this index
    /// and before the guard drops, or the totals of a retired life would miss its last exchange.
    #[inline]
    pub(crate) fn record(&self, loop_index: usize, status: u16, nanos: u64) {
        self.record_all(loop_index, status, nanos, 1);
    }

    /// Records `count` exchanges with the same status and duration.
    #[inline]
    pub(crate) fn record_all(&self, loop_index: usize, status: u16, nanos: u64, count: u64) {
        let counters = self.loops[loop_index].get_or_init(Box::default);
        add_own(&counters.buckets[bucket_of(&EXCHANGE_BOUNDS, nanos)], count);
        let sum = f64::from_bits(counters.nanos.load(Relaxed)) + nanos as f64 * count as f64;
        counters.nanos.store(sum.to_bits(), Relaxed);
        add_own_status(counters, status, count);
    }

    /// The sum of all loops up to now.
    pub(crate) fn snapshot(&self) -> ExchangeTotals {
        let mut totals = ExchangeTotals::default();
        for counters in self.loops.iter().filter_map(OnceLock::get) {
            counters.add_to(&mut totals);
        }
        totals
    }
}

impl LoopCounters {
    fn add_to(&self, totals: &mut ExchangeTotals) {
        for word in &self.statuses {
            let word = word.load(Relaxed);
            totals.add_status((word >> STATUS_SHIFT) as u16, word & ((1 << STATUS_SHIFT) - 1));
        }
        totals.add_status(OTHER, self.other.load(Relaxed));
        let mut seconds = Histogram::new(&EXCHANGE_BOUNDS);
        seconds.buckets = array::from_fn(|index| self.buckets[index].load(Relaxed));
        seconds.nanos = f64::from_bits(self.nanos.load(Relaxed));
        totals.seconds.add(&seconds);
    }
}

impl ExchangeTotals {
    /// Adds other totals.
    pub(crate) fn add(&mut self, other: &Self) {
        for &(status, count) in &other.statuses {
            self.add_status(status, count);
        }
        self.seconds.add(&other.seconds);
    }

    fn add_status(&mut self, status: u16, count: u64) {
        if count == 0 {
            return;
        }
        match self.statuses.binary_search_by_key(&status, |(status, _)| *status) {
            Ok(found) => self.statuses[found].1 += count,
            Err(place) => self.statuses.insert(place, (status, count)),
        }
    }
}

impl Default for ExchangeTotals {
    fn default() -> Self {
        Self { statuses: Vec::new(), seconds: Histogram::new(&EXCHANGE_BOUNDS) }
    }
}

/// Adds to a counter that only the calling thread writes: a load and a store, no locked add.
fn add_own(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Relaxed) + count, Relaxed);
}

fn add_own_status(counters: &LoopCounters, status: u16, count: u64) {
    for word in &counters.statuses {
        let value = word.load(Relaxed);
        if value >> STATUS_SHIFT == u64::from(status) {
            return word.store(value + count, Relaxed);
        }
        if value == 0 && status < 1 << (64 - STATUS_SHIFT) {
            return word.store((u64::from(status) << STATUS_SHIFT) + count, Relaxed);
        }
    }
    add_own(&counters.other, count);
}

#[cfg(test)]
mod tests {
    use std::{mem::size_of, sync::Barrier, thread};

    use super::*;

    const SHORT: u64 = 20_000;

    #[test]
    fn a_snapshot_adds_up_all_loops() {
        let counters = ExchangeCounters::new(3);
        assert_eq!(counters.snapshot(), ExchangeTotals::default());
        counters.record(0, 200, SHORT);
        counters.record(2, 404, 250_000_000);
        counters.record(2, 200, 61_000_000_000);
        let totals = counters.snapshot();
        assert_eq!(totals.statuses, [(200, 2), (404, 1)]);
        assert_eq!(totals.seconds.count(), 3);
        for bucket in [0, 11, 19] {
            assert_eq!(totals.seconds.buckets[bucket], 1, "bucket {bucket}");
        }
        assert!((totals.seconds.seconds() - 61.250_02).abs() < 1e-9);
        assert!(counters.loops[1].get().is_none(), "loop 1 served nothing");
        let mut twice = totals.clone();
        twice.add(&totals);
        assert_eq!(twice.statuses, [(200, 4), (404, 2)]);
        assert_eq!(twice.seconds.count(), 6);
    }

    #[test]
    fn statuses_beyond_the_table_are_counted_as_other() {
        let counters = ExchangeCounters::new(1);
        for status in 400..400 + STATUSES_MAX as u16 + 2 {
            counters.record(0, status, SHORT);
        }
        for status in [400, 1024, u16::MAX] {
            counters.record(0, status, SHORT);
        }
        let totals = counters.snapshot();
        assert_eq!(totals.statuses[..2], [(OTHER, 4), (400, 2)]);
        assert_eq!(totals.statuses.len(), 1 + STATUSES_MAX);
        let requests: u64 = totals.statuses.iter().map(|(_, count)| count).sum();
        assert_eq!(requests, totals.seconds.count());
    }

    #[test]
    fn statuses_out_of_range_take_no_place_in_the_table() {
        let counters = ExchangeCounters::new(1);
        for status in [1024, u16::MAX, 1023] {
            counters.record(0, status, SHORT);
        }
        assert_eq!(counters.snapshot().statuses, [(OTHER, 2), (1023, 1)]);
        assert_eq!(counters.loops[0].get().unwrap().statuses[0].load(Relaxed) & 0xFFFF, 1);
    }

    #[test]
    fn a_loop_costs_384_bytes_once_it_served_and_16_before() {
        assert_eq!(size_of::<LoopBlock>(), 384);
        assert_eq!(size_of::<OnceLock<Box<LoopBlock>>>(), 16);
    }

    #[test]
    fn readers_see_every_number_grow() {
        const EXCHANGES: u64 = 20_000;
        let counters = ExchangeCounters::new(2);
        let begin = Barrier::new(3);
        thread::scope(|scope| {
            let (counters, begin) = (&counters, &begin);
            for loop_index in 0..2 {
                scope.spawn(move || {
                    begin.wait();
                    for n in 0..EXCHANGES {
                        let status = if n % 3 == 0 { 404 } else { 200 };
                        counters.record(loop_index, status, n * 1000);
                    }
                });
            }
            begin.wait();
            let mut before = counters.snapshot();
            while before.seconds.count() < 2 * EXCHANGES {
                let now = counters.snapshot();
                for (bucket, earlier) in now.seconds.buckets.iter().zip(&before.seconds.buckets) {
                    assert!(bucket >= earlier);
                }
                for &(status, earlier) in &before.statuses {
                    assert!(now.statuses.iter().any(|&(s, count)| s == status && count >= earlier));
                }
                assert!(now.seconds.nanos >= before.seconds.nanos);
                before = now;
            }
        });
        let third = EXCHANGES.div_ceil(3);
        let totals = counters.snapshot();
        assert_eq!(totals.statuses, [(200, 2 * (EXCHANGES - third)), (404, 2 * third)]);
    }
}
