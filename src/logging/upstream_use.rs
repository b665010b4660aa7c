//! What the access line of a proxied request says of its upstream.
//!
//! Stands behind the outcome, so that lines of other requests end as they did.

use std::time::Duration;

use super::{
    escape,
    values::{micros, push_json_value, push_number},
};

/// The upstream of a request that was passed on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UpstreamUse<'a> {
    /// The upstream that was asked last; empty if there was none to ask.
    pub(crate) url: &'a str,
    /// How many were asked, each try counted.
    pub(crate) tries: u32,
    /// From the last choice of an upstream to the end of its part.
    pub(crate) time: Duration,
    /// Why the last try failed that did.
    pub(crate) reason: Option<&'static str>,
}

impl UpstreamUse<'_> {
    pub(super) fn push_combined(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b" upstream=");
        // A path of a socket may have blanks and quotes.
        escape::push_text_value(out, if self.url.is_empty() { "-" } else { self.url });
        out.extend_from_slice(b" tries=");
        push_number(out, self.tries);
        out.extend_from_slice(b" upstream_us=");
        push_number(out, micros(self.time));
        out.extend_from_slice(b" reason=");
        out.extend_from_slice(self.reason.unwrap_or("-").as_bytes());
    }

    pub(super) fn push_json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b",\"upstream\":");
        push_json_value(out, self.url.as_bytes());
        out.extend_from_slice(b",\"tries\":");
        push_number(out, self.tries);
        out.extend_from_slice(b",\"upstream_us\":");
        push_number(out, micros(self.time));
        out.extend_from_slice(b",\"reason\":");
        push_json_value(out, self.reason.unwrap_or_default().as_bytes());
    }
}
