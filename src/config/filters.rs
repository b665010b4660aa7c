//! The filters of an app: their keys, types and reading.
//!
//! A new filter's key is added here and in the list of `keys`.

use std::{ops::RangeInclusive, time::Duration};

use toml::de::DeValue;

use super::{
    reader::{Meant, Table, quoted},
    values::{duration, integer},
};

/// The filters of an app, one per key in the app's table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterConfig {
    /// The rate limit for each client. Default: none.
    pub rate_limit: Option<RateLimit>,
}

/// `rate_limit = { … }`: a token bucket for each IPv4 address and IPv6 /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Requests per `per`, 1 to 1,000,000.
    pub requests: u32,
    /// 1 ms to 1 h.
    pub per: Duration,
    /// How many requests may come at once, 1 to 1,000,000. Default: `requests`.
    pub burst: u32,
}

/// The range of `requests`. Even with the longest `per`, calculations can't overflow.
const RATE_REQUESTS: RangeInclusive<u32> = 1..=1_000_000;

/// The range of `per`.
const RATE_PER: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);

/// Reads the filters in an app's table.
pub(super) fn read(table: &mut Table<'_, '_>) -> FilterConfig {
    FilterConfig {
        rate_limit: table.table_meant("rate_limit", meant_rate_limit, rate_limit).flatten(),
    }
}

fn rate_limit(table: &mut Table<'_, '_>) -> Option<RateLimit> {
    let requests = table.required("requests", |value| integer(value, RATE_REQUESTS));
    let per = table.required("per", |value| duration(value, RATE_PER));
    let burst = table.optional("burst", |value| integer(value, RATE_REQUESTS));
    let (requests, per) = (requests?, per?);
    Some(RateLimit { requests, per, burst: burst.unwrap_or(requests) })
}

/// `rate_limit = "100/s"`, or a number.
fn meant_rate_limit(value: &DeValue<'_>) -> Option<Meant> {
    let (requests, per) = match value {
        DeValue::Integer(integer) => (integer.as_str(), "s"),
        DeValue::String(text) => text.split_once('/').unwrap_or((text, "s")),
        _ => return None,
    };
    let digits = requests.trim().trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
    let requests = digits.parse::<u32>().ok()?;
    let per = match per.trim() {
        "s" | "sec" | "second" => "1s",
        "m" | "min" | "minute" => "1m",
        "h" | "hour" => "1h",
        other => other,
    };
    Some(vec![("requests", requests.to_string()), ("per", quoted(per))])
}
