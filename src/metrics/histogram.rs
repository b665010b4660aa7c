//! Histograms of durations with fixed bounds, as plain numbers with one owner.

use crate::duration::nanoseconds;
use std::time::Duration;

/// The durations of drains.
pub(crate) type DrainSeconds = Histogram<15>;

/// The times until upstreams answer: only their number and sum.
pub(crate) type AnswerSeconds = Histogram<1>;

const MICRO: u64 = 1_000;
const MILLI: u64 = 1_000 * MICRO;
const SECOND: u64 = 1_000 * MILLI;

/// Upper bounds of exchange durations in nanoseconds; the last bucket has no bound.
pub(super) static EXCHANGE_BOUNDS: [u64; 20] = [
    MICRO * 50,
    MICRO * 100,
    MICRO * 250,
    MICRO * 500,
    MILLI,
    MILLI * 5 / 2,
    MILLI * 5,
    MILLI * 10,
    MILLI * 25,
    MILLI * 50,
    MILLI * 100,
    MILLI * 250,
    MILLI * 500,
    SECOND,
    SECOND * 5 / 2,
    SECOND * 5,
    SECOND * 10,
    SECOND * 30,
    SECOND * 60,
    u64::MAX,
];

/// Upper bounds of drain durations: most drains end at once, and some take minutes.
static DRAIN_BOUNDS: [u64; 15] = [
    MILLI,
    MILLI * 5,
    MILLI * 10,
    MILLI * 50,
    MILLI * 100,
    MILLI * 500,
    SECOND,
    SECOND * 5 / 2,
    SECOND * 5,
    SECOND * 10,
    SECOND * 30,
    SECOND * 60,
    SECOND * 120,
    SECOND * 300,
    u64::MAX,
];

static ANSWER_BOUNDS: [u64; 1] = [u64::MAX];

/// How many durations fell into each bucket, and their sum.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Histogram<const N: usize> {
    bounds: &'static [u64; N],
    /// Not cumulative.
    pub(super) buckets: [u64; N],
    /// Nanoseconds. A float does not overflow, and counts the first 104 days exactly.
    pub(super) nanos: f64,
}

impl<const N: usize> Histogram<N> {
    pub(super) const fn new(bounds: &'static [u64; N]) -> Self {
        Self { bounds, buckets: [0; N], nanos: 0.0 }
    }

    /// Counts one duration.
    pub(crate) fn observe(&mut self, duration: Duration) {
        let nanos = nanoseconds(duration);
        self.buckets[bucket_of(self.bounds, nanos)] += 1;
        self.nanos += nanos as f64;
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (bucket, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *bucket += more;
        }
        self.nanos += other.nanos;
    }

    /// The number of durations, by definition the cumulative value of the last bucket.
    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The sum in seconds.
    pub(super) fn seconds(&self) -> f64 {
        self.nanos / SECOND as f64
    }

    /// The upper bounds in seconds, the last one infinite, each with the count of its own bucket.
    pub(super) fn bounded(&self) -> [(f64, u64); N] {
        std::array::from_fn(|index| (seconds_of(self.bounds[index]), self.buckets[index]))
    }
}

impl Default for DrainSeconds {
    fn default() -> Self {
        Self::new(&DRAIN_BOUNDS)
    }
}

impl AnswerSeconds {
    /// This many durations with this sum.
    pub(crate) fn of(count: u64, sum: Duration) -> Self {
        Self { buckets: [count], nanos: nanoseconds(sum) as f64, ..Self::default() }
    }
}

impl Default for AnswerSeconds {
    fn default() -> Self {
        Self::new(&ANSWER_BOUNDS)
    }
}

/// The first bucket whose bound is at least the duration.
pub(super) fn bucket_of(bounds: &[u64], nanos: u64) -> usize {
    bounds.iter().position(|bound| nanos <= *bound).unwrap_or(bounds.len() - 1)
}

fn seconds_of(bound: u64) -> f64 {
    if bound == u64::MAX { f64::INFINITY } else { bound as f64 / SECOND as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_the_bucket_below_it() {
        for (nanos, bucket) in
            [(0, 0), (MILLI, 4), (MILLI + 1, 5), (SECOND * 60, 18), (SECOND * 60 + 1, 19)]
        {
            assert_eq!(bucket_of(&EXCHANGE_BOUNDS, nanos), bucket, "{nanos}");
        }
        assert_eq!(bucket_of(&EXCHANGE_BOUNDS, u64::MAX), 19);
    }

    #[test]
    fn bounds_are_the_documented_seconds() {
        let bounds = |histogram: &[(f64, u64)]| -> Vec<f64> {
            histogram.iter().map(|(bound, _)| *bound).collect()
        };
        let exchanges = [
            0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
            0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
        ];
        let shown = bounds(&Histogram::new(&EXCHANGE_BOUNDS).bounded());
        assert_eq!(shown[..19], exchanges);
        assert_eq!(shown[19], f64::INFINITY);
        let drains = bounds(&DrainSeconds::default().bounded());
        assert!(drains.is_sorted());
        assert_eq!((drains[0], drains[13], drains[14]), (0.001, 300.0, f64::INFINITY));
    }

    #[test]
    fn very_long_durations_are_counted_too() {
        let mut drains = DrainSeconds::default();
        drains.observe(Duration::from_millis(1500));
        assert_eq!((drains.count(), drains.seconds()), (1, 1.5));
        drains.observe(Duration::MAX);
        drains.observe(Duration::MAX);
        assert_eq!((drains.count(), drains.buckets[14]), (3, 2));
        assert!(drains.seconds() > 1e10);
    }
}
