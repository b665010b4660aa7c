//! Latency over time, in columns of equal width, and the times of losses.
//!
//! Pure. The number of columns is bounded: when a drill needs more, the columns become twice as
//! wide.

use std::time::Duration;

use crate::duration::microseconds;
use hdrhistogram::Histogram;

/// The most columns that a picture can show.
const COLUMNS_MAX: usize = 1200;

/// The most losses that a picture can show.
const LOSSES_MAX: usize = 2000;

/// Longer latencies are recorded as this one.
pub(super) const LATENCY_MAX_US: u64 = 600_000_000;

/// The columns.
#[derive(Debug)]
pub(crate) struct Timeline {
    width: Duration,
    columns: Vec<Histogram<u32>>,
    losses: Vec<Duration>,
}

/// One column: latencies, in microseconds, of the requests that were due in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) at: Duration,
    pub(crate) median_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) max_us: u64,
}

impl Timeline {
    pub(crate) fn new(width: Duration) -> Self {
        Self { width, columns: Vec::new(), losses: Vec::new() }
    }

    /// Adds a request that was due at `at`.
    pub(crate) fn add(&mut self, at: Duration, latency_us: u64) {
        let mut place = self.place(at);
        while place >= COLUMNS_MAX {
            self.widen();
            place = self.place(at);
        }
        if place >= self.columns.len() {
            self.columns.resize_with(place + 1, column);
        }
        self.columns[place].saturating_record(latency_us);
    }

    /// Adds a loss.
    pub(crate) fn add_loss(&mut self, at: Duration) {
        if self.losses.len() < LOSSES_MAX {
            self.losses.push(at);
        }
    }

    /// The columns with at least one due request, in order.
    pub(crate) fn columns(&self) -> impl Iterator<Item = Column> {
        let filled = self.columns.iter().enumerate().filter(|(_, column)| !column.is_empty());
        filled.map(|(place, column)| Column {
            at: self.width * u32::try_from(place).unwrap_or(u32::MAX),
            median_us: column.value_at_quantile(0.5),
            p99_us: column.value_at_quantile(0.99),
            max_us: column.max(),
        })
    }

    /// The width of a column.
    pub(crate) fn width(&self) -> Duration {
        self.width
    }

    pub(crate) fn losses(&self) -> &[Duration] {
        &self.losses
    }

    fn place(&self, at: Duration) -> usize {
        let place = microseconds(at) / microseconds(self.width).max(1);
        usize::try_from(place).unwrap_or(usize::MAX)
    }

    fn widen(&mut self) {
        self.width *= 2;
        let pairs = self.columns.chunks(2);
        self.columns = pairs
            .map(|pair| {
                let mut sum = pair[0].clone();
                if let Some(second) = pair.get(1) {
                    sum.add(second).expect("columns are alike");
                }
                sum
            })
            .collect();
    }
}

/// Two significant digits are enough for a picture.
fn column() -> Histogram<u32> {
    Histogram::new_with_bounds(1, LATENCY_MAX_US, 2).expect("bounds of a histogram")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn columns_hold_what_was_due_in_them() {
        let mut timeline = Timeline::new(100 * MS);
        for (at, latency) in [(0, 100), (99, 200), (350, 4000)] {
            timeline.add(at * MS, latency);
        }
        let columns: Vec<Column> = timeline.columns().collect();
        assert_eq!(columns.len(), 2);
        assert_eq!((columns[0].at, columns[1].at), (Duration::ZERO, 300 * MS));
        assert!(columns[0].median_us <= 101 && columns[0].max_us >= 200, "{columns:?}");
        assert!((3950..4050).contains(&columns[1].p99_us), "{columns:?}");
    }

    #[test]
    fn a_long_drill_widens_its_columns() {
        let mut timeline = Timeline::new(MS);
        let count = u32::try_from(COLUMNS_MAX).expect("small") * 5;
        for at in 0..count {
            timeline.add(at * MS, u64::from(at));
        }
        assert!(timeline.columns().count() <= COLUMNS_MAX);
        assert_eq!(timeline.width, 8 * MS);
        let requests: u64 = timeline.columns.iter().map(Histogram::len).sum();
        assert_eq!(requests, u64::from(count), "widening loses no request");
    }
}
