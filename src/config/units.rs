//! Durations and sizes as people write them: `30s`, `1m30s`, `16KiB`.
//!
//! Pure text → number. Never guesses a unit: a number without a unit is an error with a suggestion.

use crate::duration::milliseconds;
use std::{error::Error, fmt, time::Duration};

/// Why a text is not a duration or size. `Display` gives a suggestion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitError {
    help: String,
}

impl fmt::Display for UnitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.help)
    }
}

impl Error for UnitError {}

/// Units of a duration in milliseconds, the largest first.
const DURATION_UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Units of a size in bytes, the largest first.
const SIZE_UNITS: [(&str, u64); 4] =
    [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Reads `500ms`, `30s`, `2m`, `1h`, or several of them in descending order: `1m30s`.
///
/// # Errors
/// If a unit is missing, unknown or out of order, or the number is too large.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let fail = || {
        Err(UnitError {
            help: match meant_duration(text) {
                Some(meant) => format!("write \"{}\"", show_duration(meant)),
                None => r#"write a duration such as "500ms", "30s", "1m30s" or "2h""#.to_owned(),
            },
        })
    };
    let mut units = DURATION_UNITS.iter();
    let mut rest = text;
    let mut total_ms: u64 = 0;
    loop {
        let (count, unit, behind) = split_number(rest);
        // Searching only the remaining units rejects "30s1m" and "1s1s".
        let Some((_, unit_ms)) = units.find(|(name, _)| *name == unit) else { return fail() };
        let part = count.and_then(|count| count.checked_mul(*unit_ms));
        let Some(sum) = part.and_then(|part| part.checked_add(total_ms)) else { return fail() };
        if behind.is_empty() {
            return Ok(Duration::from_millis(sum));
        }
        (total_ms, rest) = (sum, behind);
    }
}

/// Reads `1y` (365 days), `180d`, or what [`parse_duration`] reads.
pub(super) fn parse_long_duration(text: &str) -> Option<Duration> {
    let (count, unit, rest) = split_number(text);
    let days = match unit {
        "y" if rest.is_empty() => 365,
        "d" if rest.is_empty() => 1,
        _ => return parse_duration(text).ok(),
    };
    count?.checked_mul(days * 24)?.checked_mul(3600).map(Duration::from_secs)
}

/// The probable meaning of a duration with other units, blanks or a fraction: `5 min`, `1d`,
/// `1.5s`. A number without a unit means seconds.
fn meant_duration(text: &str) -> Option<Duration> {
    let text = text.trim().to_ascii_lowercase();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit_ms = match unit.trim() {
        "ms" | "msec" | "msecs" | "millis" | "millisecond" | "milliseconds" => 1.0,
        "" | "s" | "sec" | "secs" | "second" | "seconds" => 1000.0,
        "m" | "min" | "mins" | "minute" | "minutes" => 60_000.0,
        "h" | "hr" | "hrs" | "hour" | "hours" => 3_600_000.0,
        "d" | "day" | "days" => 86_400_000.0,
        "w" | "week" | "weeks" => 604_800_000.0,
        _ => return None,
    };
    let ms = number.parse::<f64>().ok()? * unit_ms;
    // No key accepts a year.
    (ms.fract() == 0.0 && ms < 366.0 * 86_400_000.0).then(|| Duration::from_millis(ms as u64))
}

/// Reads `512B`, `16KiB`, `1MiB` or `2GiB` as bytes.
///
/// # Errors
/// If the unit is missing or unknown, or the number is too large.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let blank_free = text.replace(' ', "");
    let (count, unit, rest) = split_number(text);
    let known = SIZE_UNITS.iter().find(|(name, _)| *name == unit).filter(|_| rest.is_empty());
    let bytes = known.and_then(|(_, unit_bytes)| count?.checked_mul(*unit_bytes));
    bytes.ok_or_else(|| {
        let (count, unit, rest) = split_number(&blank_free);
        let meant = match (unit.to_ascii_lowercase().as_str(), rest) {
            ("" | "b", "") => Some("B"),
            ("k" | "kb" | "kib", "") => Some("KiB"),
            ("m" | "mb" | "mib", "") => Some("MiB"),
            ("g" | "gb" | "gib", "") => Some("GiB"),
            _ => None,
        };
        let help = match (meant, count) {
            (Some(meant), Some(count)) if known.is_none() => format!("write \"{count}{meant}\""),
            _ => r#"write a size such as "512B", "16KiB", "1MiB" or "2GiB""#.to_owned(),
        };
        UnitError { help }
    })
}

/// Formats a duration in the largest unit that gives a whole number. Fractions of a millisecond are
/// cut.
pub(super) fn show_duration(duration: Duration) -> String {
    let ms = milliseconds(duration);
    if ms == 0 { "0s".to_owned() } else { show(ms, &DURATION_UNITS) }
}

/// Formats a size in the largest unit that gives a whole number.
pub(super) fn show_size(bytes: u64) -> String {
    if bytes == 0 { "0B".to_owned() } else { show(bytes, &SIZE_UNITS) }
}

fn show(amount: u64, units: &[(&str, u64)]) -> String {
    let whole = units.iter().find(|(_, size)| amount.is_multiple_of(*size));
    whole.map_or_else(String::new, |(unit, size)| format!("{}{unit}", amount / size))
}

/// The leading digits as a number, the letters after them, and the rest.
fn split_number(text: &str) -> (Option<u64>, &str, &str) {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(digits);
    let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(letters);
    (number.parse().ok(), unit, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_durations() {
        for (text, ms) in [
            ("0s", 0),
            ("0ms", 0),
            ("0h0m0s", 0),
            ("500ms", 500),
            ("30s", 30_000),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("1m30s", 90_000),
            ("1h2m3s4ms", 3_723_004),
            ("007s", 7000),
            ("90m", 5_400_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn invalid_durations() {
        for text in [
            "",
            "s",
            "30",
            "30 s",
            " 30s",
            "30s ",
            "1.5s",
            "-1s",
            "+1s",
            "30S",
            "30sec",
            "1d",
            "1s1s",
            "30s1m",
            "1m30",
            "1µs",
            "99999999999999999999s",
            "9999999999999999999h",
        ] {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
        for (text, help) in [
            ("30", "write \"30s\""),
            ("10 sec", "write \"10s\""),
            ("30S", "write \"30s\""),
            ("5min", "write \"5m\""),
            ("2 hours", "write \"2h\""),
            ("1d", "write \"24h\""),
            ("1w", "write \"168h\""),
            ("1.5s", "write \"1500ms\""),
            ("250 ms", "write \"250ms\""),
            ("0.0001s", "write a duration such as"),
            ("soon", "write a duration such as"),
            ("1.2.3s", "write a duration such as"),
            ("999999999999999d", "write a duration such as"),
        ] {
            let error = parse_duration(text).expect_err(text).to_string();
            assert!(error.starts_with(help), "{text:?}: {error}");
        }
    }

    #[test]
    fn days_and_years_are_long_durations() {
        for (text, hours) in [("1y", 8760), ("180d", 4320), ("24h", 24), ("0d", 0), ("60m", 1)] {
            assert_eq!(parse_long_duration(text), Some(Duration::from_hours(hours)), "{text}");
        }
        for text in ["1", "y", "1.5y", "1y1d", "99999999999999999y", "1Y", ""] {
            assert_eq!(parse_long_duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("0B", 0), ("512B", 512), ("16KiB", 16 << 10), ("1MiB", 1 << 20), ("2GiB", 2 << 30)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for (text, help) in [
            ("16KB", "write \"16KiB\""),
            ("16k", "write \"16KiB\""),
            ("1mb", "write \"1MiB\""),
            ("2G", "write \"2GiB\""),
            ("512", "write \"512B\""),
            ("", "write a size such as"),
            ("1.5MiB", "write a size such as"),
            ("1KiB1B", "write a size such as"),
            ("16 KiB", "write \"16KiB\""),
            ("10 MB", "write \"10MiB\""),
            ("99999999999999999GiB", "write a size such as"),
        ] {
            let error = parse_size(text).expect_err(text).to_string();
            assert!(error.starts_with(help), "{text:?}: {error}");
        }
    }

    #[test]
    fn shown_units_can_be_read_back() {
        for ms in [0, 1, 999, 1000, 90_000, 3_600_000, 604_800_000] {
            let duration = Duration::from_millis(ms);
            assert_eq!(parse_duration(&show_duration(duration)), Ok(duration));
        }
        for bytes in [0, 1, 1000, 1024, 1 << 20, 3 << 30] {
            assert_eq!(parse_size(&show_size(bytes)), Ok(bytes));
        }
    }
}
