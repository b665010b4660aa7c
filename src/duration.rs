//! Durations as whole numbers of 64 bits, of which the longest saturate.

use std::time::Duration;

/// Whole milliseconds. Computed in 64 bits, where `as_millis` computes in 128.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1000).saturating_add(u64::from(duration.subsec_millis()))
}

/// Whole microseconds.
pub(crate) fn microseconds(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000).saturating_add(u64::from(duration.subsec_micros()))
}

/// Nanoseconds: up to 584 years.
pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    duration
        .as_secs()
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::from(duration.subsec_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_cut_to_whole_units_and_saturate() {
        let duration = Duration::new(3, 4_005_006);
        assert_eq!(milliseconds(duration), 3004);
        assert_eq!(microseconds(duration), 3_004_005);
        assert_eq!(nanoseconds(duration), 3_004_005_006);
        for convert in [milliseconds, microseconds, nanoseconds] {
            assert_eq!((convert(Duration::ZERO), convert(Duration::MAX)), (0, u64::MAX));
        }
    }
}
