//! Conditional requests (RFC 9110 §13), for GET and HEAD of a file that exists.
//!
//! Pure. A malformed date is ignored (§13.1.3, §13.1.4); a malformed entity tag matches nothing.

use std::time::UNIX_EPOCH;

use crate::http::RequestHead;

/// The validators of a representation (RFC 9110 §8.8).
#[derive(Clone, Copy, Debug)]
pub(super) struct Validators<'a> {
    /// The entity tag, with its quotes.
    pub(super) etag: &'a str,
    /// `Last-Modified` in seconds since 1970; `None` if it is not sent.
    pub(super) modified_s: Option<u64>,
}

/// The result of evaluating the preconditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Preconditions {
    /// The request proceeds.
    Proceed,
    /// The answer is 304.
    NotModified,
    /// The answer is 412.
    Failed,
}

impl Validators<'_> {
    /// Evaluates the preconditions in the order of RFC 9110 §13.2.2, without If-Range.
    pub(super) fn evaluate(&self, request: &RequestHead<'_>) -> Preconditions {
        match self.matches(request, "If-Match", Comparison::Strong) {
            Some(false) => return Preconditions::Failed,
            Some(true) => {}
            None => {
                if self
                    .compare_date(request, "If-Unmodified-Since", |modified, date| modified > date)
                {
                    return Preconditions::Failed;
                }
            }
        }
        let unchanged = match self.matches(request, "If-None-Match", Comparison::Weak) {
            Some(matches) => matches,
            None => {
                self.compare_date(request, "If-Modified-Since", |modified, date| modified <= date)
            }
        };
        if unchanged { Preconditions::NotModified } else { Preconditions::Proceed }
    }

    /// Whether If-Range permits a range (§13.1.5); true without that field. A weak tag never
    /// matches. Neither does a date: tools can set the file's time, so it is no strong validator
    /// (§8.8.2.2); and a client that has the tag must not use the date.
    pub(super) fn allow_range(&self, request: &RequestHead<'_>) -> bool {
        let mut lines = request.fields_named("If-Range");
        let Some(line) = lines.next() else { return true };
        lines.next().is_none() && !self.is_weak() && line == self.etag.as_bytes()
    }

    fn is_weak(&self) -> bool {
        self.etag.starts_with("W/")
    }

    /// Whether a list of entity tags has the current tag; `None` without such a field.
    fn matches(
        &self,
        request: &RequestHead<'_>,
        name: &str,
        comparison: Comparison,
    ) -> Option<bool> {
        let mut lines = request.fields_named(name).peekable();
        lines.peek()?;
        let opaque = self.etag.strip_prefix("W/").unwrap_or(self.etag);
        let has = |line| {
            !(self.is_weak() && comparison == Comparison::Strong)
                && list_has(line, opaque, comparison)
        };
        Some(lines.any(|line| line == b"*" || has(line)))
    }

    fn compare_date(
        &self,
        request: &RequestHead<'_>,
        name: &str,
        holds: impl Fn(u64, u64) -> bool,
    ) -> bool {
        let mut lines = request.fields_named(name);
        let date = lines.next().and_then(parse_date);
        let is_alone = lines.next().is_none();
        match (self.modified_s, date) {
            (Some(modified), Some(date)) if is_alone => holds(modified, date),
            _ => false,
        }
    }
}

/// RFC 9110 §8.8.3.2.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Strong,
    Weak,
}

/// Whether `etag` is in a list of entity tags. Reading stops at the first syntax error. Tags may
/// contain commas, so the list is read tag by tag.
fn list_has(list: &[u8], etag: &str, comparison: Comparison) -> bool {
    let mut rest = list;
    loop {
        while let [b' ' | b'\t' | b',', tail @ ..] = rest {
            rest = tail;
        }
        let is_weak = rest.starts_with(b"W/");
        let tag = if is_weak { &rest[2..] } else { rest };
        let [b'"', opaque @ ..] = tag else { return false };
        let Some(length) = memchr::memchr(b'"', opaque) else { return false };
        let (tag, tail) = tag.split_at(length + 2);
        let ends_well = matches!(tail.trim_ascii_start(), [] | [b',', ..]);
        if !ends_well || opaque[..length].iter().any(|byte| matches!(byte, 0..=b' ' | 0x7f)) {
            return false;
        }
        if tag == etag.as_bytes() && (!is_weak || comparison == Comparison::Weak) {
            return true;
        }
        rest = tail;
    }
}

/// An HTTP date in any of its three formats (RFC 9110 §5.6.7), in seconds since 1970.
fn parse_date(value: &[u8]) -> Option<u64> {
    let time = httpdate::parse_http_date(std::str::from_utf8(value).ok()?).ok()?;
    time.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::test_support::request;

    const ETAG: &str = "\"a,b\"";
    /// Sun, 06 Nov 1994 08:49:37 GMT
    const MODIFIED_S: u64 = 784_111_777;
    const SAME: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const LATER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    const FILE: Validators<'_> = Validators { etag: ETAG, modified_s: Some(MODIFIED_S) };

    #[test]
    fn preconditions_are_evaluated_in_order() {
        use Preconditions::{Failed, NotModified, Proceed};
        for (fields, outcome) in [
            (&[][..], Proceed),
            (&[("If-Match", "*")], Proceed),
            (&[("If-Match", ETAG)], Proceed),
            (&[("If-Match", "\"x\", \"a,b\"")], Proceed),
            (&[("If-Match", "\"x\""), ("if-match", ETAG)], Proceed),
            (&[("If-Match", "W/\"a,b\"")], Failed),
            (&[("If-Match", "\"x\"")], Failed),
            (&[("If-Match", "")], Failed),
            (&[("If-Match", "a,b")], Failed),
            (&[("If-Match", "\"x\" \"a,b\"")], Failed),
            (&[("If-Match", "\"a,b")], Failed),
            (&[("If-Match", "w/\"a,b\"")], Failed),
            (&[("If-Match", ETAG), ("If-Unmodified-Since", BEFORE)], Proceed),
            (&[("If-Match", ETAG), ("If-None-Match", ETAG)], NotModified),
            (&[("If-Match", "\"x\""), ("If-None-Match", ETAG)], Failed),
            (&[("If-Unmodified-Since", SAME)], Proceed),
            (&[("If-Unmodified-Since", LATER)], Proceed),
            (&[("If-Unmodified-Since", BEFORE)], Failed),
            (&[("If-Unmodified-Since", "yesterday")], Proceed),
            (&[("If-Unmodified-Since", BEFORE), ("If-Unmodified-Since", BEFORE)], Proceed),
            (&[("If-None-Match", "*")], NotModified),
            (&[("If-None-Match", ETAG)], NotModified),
            (&[("If-None-Match", "W/\"a,b\"")], NotModified),
            (&[("If-None-Match", ",, \"x\" ,\tW/\"a,b\",")], NotModified),
            (&[("If-None-Match", "\"x\""), ("If-None-Match", ETAG)], NotModified),
            (&[("If-None-Match", "\"a\", \"b\"")], Proceed),
            (&[("If-None-Match", "\"x\", *")], Proceed),
            (&[("If-None-Match", "\"x \", \"a,b\"")], Proceed),
            (&[("If-None-Match", "\"x\""), ("If-Modified-Since", SAME)], Proceed),
            (&[("If-None-Match", ETAG), ("If-Modified-Since", BEFORE)], NotModified),
            (&[("If-Modified-Since", SAME)], NotModified),
            (&[("If-Modified-Since", LATER)], NotModified),
            (&[("If-Modified-Since", BEFORE)], Proceed),
            (&[("If-Modified-Since", "Sunday, 06-Nov-94 08:49:37 GMT")], NotModified),
            (&[("If-Modified-Since", "Sun Nov  6 08:49:37 1994")], NotModified),
            (&[("If-Modified-Since", "784111777")], Proceed),
            (&[("If-Modified-Since", "Thu, 01 Jan 1960 00:00:00 GMT")], Proceed),
            (&[("If-Modified-Since", "")], Proceed),
        ] {
            let request = request("GET", "/", fields);
            assert_eq!(FILE.evaluate(&request), outcome, "{fields:?}");
        }
    }

    #[test]
    fn without_a_date_only_tags_count() {
        let undated = Validators { modified_s: None, ..FILE };
        for name in ["If-Modified-Since", "If-Unmodified-Since"] {
            assert_eq!(
                undated.evaluate(&request("GET", "/", &[(name, SAME)])),
                Preconditions::Proceed
            );
        }
        assert!(!undated.allow_range(&request("GET", "/", &[("If-Range", SAME)])));
        assert!(!undated.allow_range(&request("GET", "/", &[("If-Range", "no date")])));
    }

    #[test]
    fn a_weak_tag_matches_if_none_match_and_permits_no_range() {
        let weak = Validators { etag: "W/\"a,b\"", ..FILE };
        for (name, value, outcome) in [
            ("If-None-Match", "W/\"a,b\"", Preconditions::NotModified),
            ("If-None-Match", ETAG, Preconditions::NotModified),
            ("If-None-Match", "\"a\"", Preconditions::Proceed),
            ("If-Match", "W/\"a,b\"", Preconditions::Failed),
            ("If-Match", ETAG, Preconditions::Failed),
            ("If-Match", "*", Preconditions::Proceed),
        ] {
            let request = request("GET", "/", &[(name, value)]);
            assert_eq!(weak.evaluate(&request), outcome, "{name}: {value}");
        }
        for tag in ["W/\"a,b\"", ETAG] {
            assert!(!weak.allow_range(&request("GET", "/", &[("If-Range", tag)])), "{tag}");
        }
    }

    #[test]
    fn if_range_needs_the_exact_tag() {
        for (fields, allowed) in [
            (&[][..], true),
            (&[("If-Range", ETAG)], true),
            (&[("If-Range", SAME)], false),
            (&[("If-Range", "W/\"a,b\"")], false),
            (&[("If-Range", "\"x\"")], false),
            (&[("If-Range", LATER)], false),
            (&[("If-Range", BEFORE)], false),
            (&[("If-Range", "*")], false),
            (&[("If-Range", "\"x\", \"a,b\"")], false),
            (&[("If-Range", ETAG), ("If-Range", ETAG)], false),
        ] {
            assert_eq!(FILE.allow_range(&request("GET", "/", fields)), allowed, "{fields:?}");
        }
    }
}
