//! Finding the end of a head by its line ends.
//!
//! Holds no bytes: the caller keeps the input until the head is complete. A bare LF, and a line or
//! head that is too long, is found at the same position whatever the split of the input.

use crate::http::message::Limits;

/// How far an incomplete head was scanned.
#[derive(Debug, Default)]
pub(super) struct HeadScan {
    scanned: usize,
    line_start: usize,
    start_line_end: usize,
    blank_line_seen: bool,
}

/// The result of a scan.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Scan {
    /// The head is not complete.
    NeedMore,
    /// The head is complete and has this many bytes.
    Complete(usize),
}

/// What is wrong with a head's lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineFault {
    BareLf,
    StartLineTooLong,
    HeadTooLong,
}

impl HeadScan {
    /// The length of an empty line before the request line, which the caller skips. Only the first
    /// empty line is skipped (RFC 9112 §2.2).
    pub(super) fn blank_line(&mut self, input: &[u8]) -> usize {
        if self.blank_line_seen || !input.starts_with(b"\r\n") {
            return 0;
        }
        *self = Self { blank_line_seen: true, ..Self::default() };
        2
    }

    /// Whether an empty line was skipped.
    pub(super) fn blank_line_seen(&self) -> bool {
        self.blank_line_seen
    }

    /// Looks for the end of the head, from where the last scan ended.
    pub(super) fn look(&mut self, input: &[u8], limits: &Limits) -> Result<Scan, LineFault> {
        let window = &input[..input.len().min(limits.head_bytes)];
        while let Some(at) = memchr::memchr(b'\n', &window[self.scanned..]) {
            let lf = self.scanned + at;
            if lf == 0 || window[lf - 1] != b'\r' {
                return Err(LineFault::BareLf);
            }
            if self.line_start == 0 {
                self.start_line_end = lf - 1;
            } else if lf - 1 == self.line_start {
                return Ok(Scan::Complete(lf + 1));
            }
            self.line_start = lf + 1;
            self.scanned = lf + 1;
        }
        self.scanned = window.len();
        if input.len() < limits.head_bytes {
            return Ok(Scan::NeedMore);
        }
        Err(if self.line_start == 0 { LineFault::StartLineTooLong } else { LineFault::HeadTooLong })
    }

    /// The first line of a complete head, and what stands behind it.
    pub(super) fn start_line_and_rest<'b>(&self, head: &'b [u8]) -> (&'b [u8], &'b [u8]) {
        (&head[..self.start_line_end], &head[self.start_line_end + 2..])
    }

    /// Whether nothing was scanned yet.
    pub(super) fn is_untouched(&self) -> bool {
        self.scanned == 0 && !self.blank_line_seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { head_bytes: 24, fields: 4, content_bytes: 0 };

    /// Scans prefixes of the input, each one byte longer, until the result is known. Returns the
    /// length of the last prefix too.
    fn scan(input: &str) -> (usize, Result<Scan, LineFault>) {
        let mut scan = HeadScan::default();
        for len in 0..=input.len() {
            match scan.look(&input.as_bytes()[..len], &LIMITS) {
                Ok(Scan::NeedMore) => {}
                other => return (len, other),
            }
        }
        (input.len(), Ok(Scan::NeedMore))
    }

    #[test]
    fn the_end_of_a_head_is_found_as_soon_as_it_is_there() {
        for (input, looked_at, found) in [
            ("", 0, Ok(Scan::NeedMore)),
            ("\n", 1, Err(LineFault::BareLf)),
            ("G\n", 2, Err(LineFault::BareLf)),
            ("G\rX\n", 4, Err(LineFault::BareLf)),
            ("G\r\n\n", 4, Err(LineFault::BareLf)),
            ("G\r\n\r\r\n", 6, Ok(Scan::NeedMore)),
            ("G\r\nA\r\n\r", 7, Ok(Scan::NeedMore)),
            ("G\r\n\r\nX", 5, Ok(Scan::Complete(5))),
            ("G\r\nA: b\r\n\r\n", 11, Ok(Scan::Complete(11))),
            ("G /23456789012345678\r\n\r\n", 24, Ok(Scan::Complete(24))),
            ("G /234567890123456789\r\n\r\n", 24, Err(LineFault::HeadTooLong)),
            ("G /2345678901234567890123\r\n", 24, Err(LineFault::StartLineTooLong)),
        ] {
            assert_eq!(scan(input), (looked_at, found), "{input:?}");
        }
    }

    #[test]
    fn one_empty_line_is_skipped_before_a_head() {
        let mut scan = HeadScan::default();
        assert_eq!(scan.blank_line(b"\r\n\r\nG"), 2);
        assert_eq!(scan.blank_line(b"\r\nG"), 0);
        assert!(scan.blank_line_seen() && !scan.is_untouched());
        let mut scan = HeadScan::default();
        assert_eq!(scan.blank_line(b"\r\nGET\r\nA:\r\n\r\n"), 2);
        let head = b"GET\r\nA:\r\n\r\n";
        assert_eq!(scan.look(head, &LIMITS), Ok(Scan::Complete(head.len())));
        assert_eq!(scan.start_line_and_rest(head), (&b"GET"[..], &b"A:\r\n\r\n"[..]));
    }
}
