//! Range requests (RFC 9110 §14) on a representation of known length.
//!
//! Pure. The parts together are never longer than the whole. A `Range` is ignored, as §14.2 allows,
//! if it has more than [`RANGES_MAX`] ranges, or overlapping ranges that add up to more than the
//! whole. It is also ignored if it is malformed, has another unit, or the file is empty.

use smallvec::SmallVec;

/// Most ranges of one request.
pub(super) const RANGES_MAX: usize = 16;

/// A part of a representation, within its length and never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ByteRange {
    /// Where it begins, in bytes.
    pub(super) offset: u64,
    /// Its length in bytes.
    pub(super) length: u64,
}

impl ByteRange {
    /// The value of `Content-Range` for this part of `complete_length` bytes (RFC 9110 §14.4).
    pub(super) fn content_range(&self, complete_length: u64) -> String {
        let last = self.offset + self.length - 1;
        format!("bytes {}-{last}/{complete_length}", self.offset)
    }
}

/// What a `Range` field asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ranges {
    /// Nothing, or something that is ignored: the whole is sent.
    Ignored,
    /// The answer is 416.
    Unsatisfiable,
    /// The answer is 206: the satisfiable ranges, at least one, in the order of the request.
    Parts(SmallVec<[ByteRange; 1]>),
}

impl Ranges {
    /// Reads the value of a `Range` field for a representation of `length` bytes.
    pub(super) fn parse(value: &[u8], length: u64) -> Self {
        let Some(set) = value
            .split_at_checked(6)
            .and_then(|(unit, set)| unit.eq_ignore_ascii_case(b"bytes=").then_some(set))
        else {
            return Self::Ignored;
        };
        let mut parts = SmallVec::<[ByteRange; 1]>::new();
        let mut count = 0;
        for spec in set.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if spec.is_empty() {
                continue;
            }
            count += 1;
            match parse_spec(spec, length) {
                _ if count > RANGES_MAX => return Self::Ignored,
                None => return Self::Ignored,
                Some(None) => {}
                Some(Some(part)) => parts.push(part),
            }
        }
        let total = parts.iter().fold(0, |sum: u64, part| sum.saturating_add(part.length));
        if count == 0 || length == 0 || total > length {
            Self::Ignored
        } else if parts.is_empty() {
            Self::Unsatisfiable
        } else {
            Self::Parts(parts)
        }
    }
}

/// `None` for a malformed range, `Some(None)` for a range that cannot be satisfied.
fn parse_spec(spec: &[u8], length: u64) -> Option<Option<ByteRange>> {
    let dash = memchr::memchr(b'-', spec)?;
    let (first, last) = (&spec[..dash], &spec[dash + 1..]);
    if first.is_empty() {
        let length_wanted = parse_number(last)?.min(length);
        let part = ByteRange { offset: length - length_wanted, length: length_wanted };
        return Some((length_wanted > 0).then_some(part));
    }
    let first = parse_number(first)?;
    let last = if last.is_empty() { u64::MAX } else { parse_number(last)? };
    if last < first {
        return None;
    }
    let end = last.saturating_add(1).min(length);
    Some((first < end).then(|| ByteRange { offset: first, length: end - first }))
}

/// Parses digits. A number that is too large becomes the largest `u64`.
fn parse_number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        Some(number.saturating_mul(10).saturating_add(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parts(value: &str, length: u64) -> String {
        match Ranges::parse(value.as_bytes(), length) {
            Ranges::Ignored => "ignored".to_owned(),
            Ranges::Unsatisfiable => "416".to_owned(),
            Ranges::Parts(parts) => parts
                .iter()
                .map(|part| part.content_range(length)["bytes ".len()..].to_owned())
                .collect::<Vec<_>>()
                .join(" "),
        }
    }

    #[test]
    fn ranges_of_ten_bytes() {
        for (value, expected) in [
            ("bytes=0-0", "0-0/10"),
            ("bytes=0-9", "0-9/10"),
            ("bytes=0-", "0-9/10"),
            ("bytes=9-", "9-9/10"),
            ("bytes=2-100", "2-9/10"),
            ("Bytes=2-3", "2-3/10"),
            ("bytes=-1", "9-9/10"),
            ("bytes=-10", "0-9/10"),
            ("bytes=-11", "0-9/10"),
            ("bytes=-99999999999999999999999", "0-9/10"),
            ("bytes=0-99999999999999999999999", "0-9/10"),
            ("bytes=5-18446744073709551615", "5-9/10"),
            ("bytes=0-0,9-9", "0-0/10 9-9/10"),
            ("bytes=9-9, 0-0", "9-9/10 0-0/10"),
            ("bytes=,, 1-1 ,", "1-1/10"),
            ("bytes=1-1,10-", "1-1/10"),
            ("bytes=0-4,5-", "0-4/10 5-9/10"),
            ("bytes=10-", "416"),
            ("bytes=10-20", "416"),
            ("bytes=-0", "416"),
            ("bytes=-0,10-", "416"),
            ("bytes=99999999999999999999999-", "416"),
            ("bytes=18446744073709551615-18446744073709551615", "416"),
            ("bytes=0-,0-", "ignored"),
            ("bytes=0-9,0-0", "ignored"),
            ("bytes=", "ignored"),
            ("bytes=,", "ignored"),
            ("bytes=-", "ignored"),
            ("bytes=2-1", "ignored"),
            ("bytes=0-0,2-1", "ignored"),
            ("bytes=a-b", "ignored"),
            ("bytes=0-0x", "ignored"),
            ("bytes=+1-2", "ignored"),
            ("bytes=1", "ignored"),
            ("bytes=1-2-3", "ignored"),
            ("bytes=--1", "ignored"),
            ("bytes =0-0", "ignored"),
            ("bytes= 0-0", "0-0/10"),
            ("bytes=0 - 1", "ignored"),
            ("lines=0-0", "ignored"),
            ("0-0", "ignored"),
            ("", "ignored"),
        ] {
            assert_eq!(parts(value, 10), expected, "{value}");
        }
    }

    #[test]
    fn an_empty_file_has_no_parts() {
        for value in ["bytes=0-", "bytes=0-0", "bytes=-1", "bytes=-0"] {
            assert_eq!(parts(value, 0), "ignored", "{value}");
        }
    }

    #[test]
    fn too_many_ranges_are_ignored() {
        let ranges = |count: usize| {
            let specs: Vec<_> = (0..count).map(|i| format!("{i}-{i}")).collect();
            format!("bytes={}", specs.join(","))
        };
        assert_eq!(parts(&ranges(RANGES_MAX), 100).split(' ').count(), RANGES_MAX);
        assert_eq!(parts(&ranges(RANGES_MAX + 1), 100), "ignored");
    }

    proptest! {
        #[test]
        fn parts_lie_within_the_whole(value in "bytes=[-0-9,]{0,40}", length in any::<u64>()) {
            if let Ranges::Parts(parts) = Ranges::parse(value.as_bytes(), length) {
                let mut total = 0_u128;
                for part in parts {
                    prop_assert!(part.length > 0);
                    prop_assert!(part.offset.checked_add(part.length).unwrap() <= length);
                    total += u128::from(part.length);
                }
                prop_assert!(total <= u128::from(length));
            }
        }
    }
}
