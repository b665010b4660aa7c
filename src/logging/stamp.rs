//! Times in log lines, in UTC.
//!
//! Caches the text of one second, so that the calendar is computed once per second and not once per
//! line. Never reads a clock.

use std::{
    fmt::Write as _,
    time::{SystemTime, UNIX_EPOCH},
};

use time::OffsetDateTime;

/// A time as text. Setting it again within the same second is cheap.
#[derive(Clone, Debug, Default)]
pub(super) struct Stamp {
    /// The second (since the epoch) of the texts; none before the first `set`.
    second: Option<u64>,
    millisecond: u32,
    /// `2026-11-22T21:30:00`
    date_time: String,
    /// `22/Nov/2026:21:30:00 +0000`
    common: String,
}

/// RFC 3339 with milliseconds, in UTC: `2026-11-22T21:30:00.123Z`.
pub(crate) fn rfc3339(at: SystemTime) -> String {
    let mut text = Vec::new();
    Stamp::of(at).push_rfc3339(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

impl Stamp {
    /// The stamp of `now`. Times before 1970 and after 9999 appear as 1970.
    pub(super) fn of(now: SystemTime) -> Self {
        let mut stamp = Self::default();
        stamp.set(now);
        stamp
    }

    /// Moves the stamp to `now`.
    pub(super) fn set(&mut self, now: SystemTime) {
        let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.millisecond = since_epoch.subsec_millis();
        if self.second != Some(since_epoch.as_secs()) {
            self.second = Some(since_epoch.as_secs());
            self.write_second(since_epoch.as_secs());
        }
    }

    /// Appends RFC 3339 with milliseconds: `2026-11-22T21:30:00.123Z`.
    pub(super) fn push_rfc3339(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.date_time.as_bytes());
        let digit = |value: u32| b'0' + (value % 10) as u8;
        let millis = self.millisecond;
        out.push(b'.');
        out.extend([digit(millis / 100), digit(millis / 10), digit(millis), b'Z']);
    }

    /// The time in the Common Log Format, without its brackets.
    pub(super) fn common(&self) -> &str {
        &self.common
    }

    fn write_second(&mut self, second: u64) {
        let at = i64::try_from(second)
            .ok()
            .and_then(|second| OffsetDateTime::from_unix_timestamp(second).ok())
            .unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let (year, month, day) = at.to_calendar_date();
        let (hour, minute, second) = at.to_hms();
        self.date_time.clear();
        self.common.clear();
        // Writing to a String can't fail.
        let _ = write!(
            self.date_time,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}",
            month = u8::from(month),
        );
        let month = MONTHS[usize::from(u8::from(month)) - 1];
        let _ = write!(
            self.common,
            "{day:02}/{month}/{year:04}:{hour:02}:{minute:02}:{second:02} +0000",
        );
    }
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn texts(stamp: &Stamp) -> (String, String) {
        let mut rfc3339 = Vec::new();
        stamp.push_rfc3339(&mut rfc3339);
        (String::from_utf8(rfc3339).unwrap(), stamp.common().to_owned())
    }

    #[test]
    fn known_instants() {
        for (millis, rfc3339, common) in [
            (0, "1970-01-01T00:00:00.000Z", "01/Jan/1970:00:00:00 +0000"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z", "28/Feb/2000:23:59:59 +0000"),
            (951_782_400_007, "2000-02-29T00:00:00.007Z", "29/Feb/2000:00:00:00 +0000"),
            (1_795_383_000_123, "2026-11-22T21:30:00.123Z", "22/Nov/2026:21:30:00 +0000"),
        ] {
            let stamp = Stamp::of(UNIX_EPOCH + Duration::from_millis(millis));
            assert_eq!(texts(&stamp), (rfc3339.to_owned(), common.to_owned()));
        }
    }

    #[test]
    fn a_reused_stamp_equals_a_new_one() {
        let mut kept = Stamp::default();
        for step in [0, 1, 999, 1000, 1001, 500, 86_400_000, 3] {
            let now = UNIX_EPOCH + Duration::from_millis(1_795_383_000_000 + step);
            kept.set(now);
            assert_eq!(texts(&kept), texts(&Stamp::of(now)));
        }
    }

    #[test]
    fn a_wrong_clock_does_no_harm() {
        let before = UNIX_EPOCH - Duration::from_secs(1);
        let after = UNIX_EPOCH + Duration::from_secs(1 << 40);
        for now in [before, after] {
            assert!(texts(&Stamp::of(now)).0.starts_with("1970-01-01T00:00:00"));
        }
    }
}
