//! The upstream's part of an access line.
//!
//! It follows the outcome, so that lines without an upstream end as before.

use std::time::Duration;

use super::{
    escape,
    values::{push_json_value, push_number},
};
use crate::duration::microseconds;

/// The upstream of a forwarded request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UpstreamUse<'a> {
    /// The last upstream that was tried; empty if none was available.
    pub(crate) url: &'a str,
    /// The number of tries.
    pub(crate) tries: u32,
    /// From the last choice of an upstream to the end of its exchange.
    pub(crate) time: Duration,
    /// Why the last failed try failed.
    pub(crate) reason: Option<&'static str>,
}

impl UpstreamUse<'_> {
    pub(super) fn push_combined(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b" upstream=");
        // A socket path may contain blanks and quotes.
        escape::push_text_value(out, if self.url.is_empty() { "-" } else { self.url });
        out.extend_from_slice(b" tries=");
        push_number(out, self.tries);
        out.extend_from_slice(b" upstream_us=");
        push_number(out, microseconds(self.time));
        out.extend_from_slice(b" reason=");
        out.extend_from_slice(self.reason.unwrap_or("-").as_bytes());
    }

    pub(super) fn push_json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b",\"upstream\":");
        push_json_value(out, self.url.as_bytes());
        out.extend_from_slice(b",\"tries\":");
        push_number(out, self.tries);
        out.extend_from_slice(b",\"upstream_us\":");
        push_number(out, microseconds(self.time));
        out.extend_from_slice(b",\"reason\":");
        push_json_value(out, self.reason.unwrap_or_default().as_bytes());
    }
}
