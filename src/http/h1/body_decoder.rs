//! Reading a message's content as its head announced it (RFC 9112 §6, §7).
//!
//! Strict where parsers disagree: a chunk size is hexadecimal digits, lines end with CRLF,
//! extensions have no control characters and are bounded. Trailers must be field lines; they are
//! dropped unless the caller keeps them. Blanks are allowed between a size and its extension
//! (RFC 9112 §7.1.1: BWS). In a response they are also allowed after a size without extension,
//! because some servers pad sizes. A proxy writes its own size lines, so no other parser sees the
//! ones read here. The decoder keeps no bytes, so any split of the input reads the same.

use super::framing::Framing;
use crate::http::message::{
    Limits, Refused, Trailers, refused,
    syntax::{is_text_byte, is_token_byte},
};

/// Content that is being read.
#[derive(Debug)]
pub(super) struct BodyDecoder {
    state: Position,
    /// Whether blanks are allowed at the end of a size line.
    may_pad: bool,
    /// Bytes of content still to come: of the whole content, or of this chunk.
    left: u64,
    /// Bytes of extensions and trailers so far.
    overhead: usize,
    /// Trailer lines so far.
    trailers: usize,
}

/// What a step of reading found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// All of the input is read; more has to come.
    NeedMore,
    /// The last bytes that were read are content: this many.
    Content(usize),
    /// The content is complete.
    End,
}

/// Most digits of a chunk's size: as many as 64 bits hold.
const SIZE_DIGITS_MAX: u8 = 16;

/// Most blanks behind a chunk's size.
const SIZE_BLANKS_MAX: u8 = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    /// `Content-Length`: content until `left` is 0.
    Length,
    /// In a chunk's size, after this many digits.
    Size(u8),
    /// Behind this many blanks that follow a chunk's size.
    Blank(u8),
    /// In a chunk's extensions.
    Extension,
    /// Behind the CR of a size line.
    SizeLf,
    /// In a chunk's content.
    Data,
    /// Behind a chunk's content.
    DataCr,
    DataLf,
    /// At the beginning of a trailer line.
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    /// Behind the CR of the empty line that ends the message.
    EndLf,
    End,
}

impl BodyDecoder {
    pub(super) fn new(framing: Framing) -> Self {
        let (state, left) = match framing {
            Framing::Length(left) => (Position::Length, left),
            Framing::Chunked => (Position::Size(0), 0),
        };
        Self { state, may_pad: false, left, overhead: 0, trailers: 0 }
    }

    /// A decoder for a response, whose server may pad sizes with blanks.
    pub(super) fn of_response(framing: Framing) -> Self {
        Self { may_pad: true, ..Self::new(framing) }
    }

    /// Bytes of content that are announced and not yet read: of the whole content, or of this
    /// chunk.
    pub(super) fn left(&self) -> u64 {
        // A size counts when its line is complete. If it counted earlier, the split of the input
        // would decide whether a message is refused for the size or for the rest of the line.
        if matches!(self.state, Position::Length | Position::Data) { self.left } else { 0 }
    }

    /// Reads the next piece of the input. Returns how many bytes were read, and what they were.
    pub(super) fn read(
        &mut self,
        input: &[u8],
        limits: &Limits,
        mut trailers: Option<&mut Trailers>,
    ) -> Result<(usize, Piece), Refused> {
        let mut at = 0;
        loop {
            match self.state {
                Position::End => return Ok((at, Piece::End)),
                Position::Length if self.left == 0 => self.state = Position::End,
                Position::Data if self.left == 0 => self.state = Position::DataCr,
                _ if at == input.len() => return Ok((at, Piece::NeedMore)),
                Position::Length | Position::Data => {
                    let left = usize::try_from(self.left).unwrap_or(usize::MAX);
                    let len = left.min(input.len() - at);
                    self.left -= len as u64;
                    return Ok((at + len, Piece::Content(len)));
                }
                _ => {
                    let before = self.state;
                    self.state = self.framing_byte(input[at], limits)?;
                    if let Some(trailers) = &mut trailers
                        && (self.state.is_in_trailer() || before == Position::TrailerLf)
                    {
                        trailers.push(input[at]);
                    }
                    at += 1;
                }
            }
        }
    }

    /// Reads one byte of size lines, line ends and trailers.
    fn framing_byte(&mut self, byte: u8, limits: &Limits) -> Result<Position, Refused> {
        const BAD_SIZE: Refused = refused(400, "malformed chunk size");
        const BAD_CHUNK: Refused = refused(400, "malformed chunk");
        const BAD_TRAILER: Refused = refused(400, "malformed trailer");
        Ok(match (self.state, byte) {
            (Position::Size(SIZE_DIGITS_MAX..), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                return Err(BAD_SIZE);
            }
            (Position::Size(digits), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).map_or(0, u64::from);
                self.left = self.left << 4 | digit;
                Position::Size(digits + 1)
            }
            (Position::Size(1..), b'\r') => Position::SizeLf,
            (Position::Size(1..), b';') => Position::Extension,
            (Position::Size(1..), b' ' | b'\t') => Position::Blank(1),
            (Position::Blank(blanks @ ..SIZE_BLANKS_MAX), b' ' | b'\t') => {
                Position::Blank(blanks + 1)
            }
            (Position::Blank(_), b';') => Position::Extension,
            (Position::Blank(_), b'\r') if self.may_pad => Position::SizeLf,
            (Position::Size(_) | Position::Blank(_), _) => return Err(BAD_SIZE),
            (Position::Extension, b'\r') => Position::SizeLf,
            (Position::Extension, byte) if is_text_byte(byte) => {
                self.count_overhead(limits)?;
                Position::Extension
            }
            (Position::SizeLf, b'\n') if self.left == 0 => Position::TrailerStart,
            (Position::SizeLf, b'\n') => Position::Data,
            (Position::DataCr, b'\r') => Position::DataLf,
            (Position::DataLf, b'\n') => Position::Size(0),
            (Position::TrailerStart, b'\r') => Position::EndLf,
            (Position::TrailerStart, byte) if is_token_byte(byte) => {
                self.trailers += 1;
                if self.trailers > limits.fields {
                    return Err(refused(431, "more trailers than limits.headers"));
                }
                Position::TrailerName
            }
            (Position::TrailerName, byte) if is_token_byte(byte) => {
                self.count_overhead(limits)?;
                Position::TrailerName
            }
            (Position::TrailerName, b':') => Position::TrailerValue,
            (Position::TrailerValue, b'\r') => Position::TrailerLf,
            (Position::TrailerValue, byte) if is_text_byte(byte) => {
                self.count_overhead(limits)?;
                Position::TrailerValue
            }
            (Position::TrailerLf, b'\n') => Position::TrailerStart,
            (Position::EndLf, b'\n') => Position::End,
            (
                Position::TrailerStart
                | Position::TrailerName
                | Position::TrailerValue
                | Position::TrailerLf,
                _,
            ) => return Err(BAD_TRAILER),
            _ => return Err(BAD_CHUNK),
        })
    }

    fn count_overhead(&mut self, limits: &Limits) -> Result<(), Refused> {
        self.overhead += 1;
        if self.overhead > limits.head_bytes {
            return Err(refused(431, "extensions and trailers longer than limits.head_bytes"));
        }
        Ok(())
    }
}

impl Position {
    fn is_in_trailer(self) -> bool {
        matches!(self, Self::TrailerName | Self::TrailerValue | Self::TrailerLf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { head_bytes: 8, fields: 2, content_bytes: 0 };

    /// Reads the input in pieces of `step` bytes. Returns the content and the end: the number of
    /// bytes left unread (`None` if more input is needed), or the status of the refusal.
    fn read(framing: Framing, input: &str, step: usize) -> (String, Result<Option<usize>, u16>) {
        let mut body = BodyDecoder::new(framing);
        let mut content = Vec::new();
        let (mut at, mut end) = (0, 0);
        loop {
            match body.read(&input.as_bytes()[at..end], &LIMITS, None) {
                Ok((used, piece)) => {
                    at += used;
                    match piece {
                        Piece::Content(len) => {
                            content.extend_from_slice(&input.as_bytes()[at - len..at]);
                        }
                        Piece::End => return (text(content), Ok(Some(input.len() - at))),
                        Piece::NeedMore if end == input.len() => return (text(content), Ok(None)),
                        Piece::NeedMore => {
                            assert_eq!(at, end, "all input is read");
                            end = (end + step).min(input.len());
                        }
                    }
                }
                Err(refused) => return (text(content), Err(refused.status)),
            }
        }
    }

    fn text(content: Vec<u8>) -> String {
        String::from_utf8(content).unwrap_or_default()
    }

    #[test]
    fn content_ends_where_its_framing_says() {
        let length = Framing::Length;
        for (framing, input, content, end) in [
            (length(0), "x", "", Ok(Some(1))),
            (length(3), "abc", "abc", Ok(Some(0))),
            (length(3), "abcd", "abc", Ok(Some(1))),
            (length(3), "ab", "ab", Ok(None)),
            (length(u64::MAX), "ab", "ab", Ok(None)),
            (Framing::Chunked, "0\r\n\r\nx", "", Ok(Some(1))),
            (Framing::Chunked, "0\r\n\r", "", Ok(None)),
            (Framing::Chunked, "3\r\nabc\r\n", "abc", Ok(None)),
            (Framing::Chunked, "3\r\nabc\r\n02;x\r\nde\r\n0\r\n\r\nx", "abcde", Ok(Some(1))),
            (
                Framing::Chunked,
                "b\r\n0\r\n\r\n0\r\n\r\n0\r\n0\r\n\r\n",
                "0\r\n\r\n0\r\n\r\n0",
                Ok(Some(0)),
            ),
            (Framing::Chunked, "000000000000000a\r\n0123456789", "0123456789", Ok(None)),
            (Framing::Chunked, "2 ;a= b\r\nde\r\n0\t;\r\n\r\n", "de", Ok(Some(0))),
            (Framing::Chunked, "0000000000000000a", "", Err(400)),
            (Framing::Chunked, "0\r\nA: b\r\nC:\r\n\r\n", "", Ok(Some(0))),
        ] {
            for step in 1..=input.len() {
                assert_eq!(read(framing, input, step), (content.to_owned(), end), "{input:?}");
            }
        }
    }

    #[test]
    fn each_state_refuses_bytes_that_it_does_not_allow() {
        for (input, status) in [
            ("\r", 400),
            (";", 400),
            (" 1", 400),
            ("1 \r", 400),
            ("1\t\r", 400),
            ("1 1", 400),
            ("1 \n", 400),
            ("1\t \t;\n", 400),
            ("g", 400),
            ("1\n", 400),
            ("1;\n", 400),
            ("1;\x7f", 400),
            ("1\rX", 400),
            ("1\r\nab", 400),
            ("1\r\na\n", 400),
            ("1\r\na\rX", 400),
            ("1\r\na\r\n\r\n", 400),
            ("0\r\n\n", 400),
            ("0\r\n:", 400),
            ("0\r\n A", 400),
            ("0\r\nA\r", 400),
            ("0\r\nA :", 400),
            ("0\r\nA:\n", 400),
            ("0\r\nA:\rX", 400),
            ("0\r\n\rX", 400),
            ("0;12345678\r\n\r", 0),
            ("0;123456789", 431),
            ("1;1234\r\na\r\n1;5678\r\nb\r\n0;9", 431),
            ("0;1234\r\nA:5678\r\n\r", 0),
            ("0;1234\r\nA:56789", 431),
            ("0\r\nA:\r\nB:\r\nC", 431),
        ] {
            for step in 1..=input.len() {
                let (_, end) = read(Framing::Chunked, input, step);
                let refused = (status != 0).then_some(status);
                assert_eq!(end.err(), refused, "{input:?} by {step}");
            }
        }
    }

    #[test]
    fn a_size_counts_when_its_line_is_complete() {
        let mut body = BodyDecoder::new(Framing::Chunked);
        for (input, left) in
            [("f", 0), ("f;", 0), ("x", 0), ("\r", 0), ("\n", 255), ("ab", 253), ("c", 252)]
        {
            let read = body.read(input.as_bytes(), &LIMITS, None);
            assert!(read.is_ok_and(|(used, _)| used == input.len()), "{input:?}");
            assert_eq!(body.left(), left, "{input:?}");
        }
        assert_eq!(BodyDecoder::new(Framing::Length(5)).left(), 5);
    }
}
