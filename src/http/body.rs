//! The framing of a request's content (RFC 9112 §6, §7), and reading it.
//!
//! Strict where readers disagree: a chunk's size is hexadecimal digits and nothing else, lines end
//! by CRLF, extensions hold no control characters and are bounded, trailers have to be field lines
//! and are dropped. Keeps no bytes, so any split of the input reads the same.

use super::{
    Limits,
    request::{Refused, refused},
    response::is_token_byte,
};

/// How the end of a request's content is told (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// This many bytes; without content 0.
    Length(u64),
    /// By a last chunk.
    Chunked,
}

/// Content that is being read.
#[derive(Debug)]
pub(super) struct Body {
    state: State,
    /// Bytes of content that are left: of the whole, or of this chunk.
    left: u64,
    /// Bytes that are neither content nor needed to frame it: extensions and trailers.
    overhead: usize,
    trailers: usize,
}

/// What a step of reading found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Everything that was given is read; more has to come.
    NeedMore,
    /// This many bytes of content stand at the end of what was read.
    Content(usize),
    /// The content is complete.
    End,
}

/// Digits of a chunk's size: what 64 bits hold.
const SIZE_DIGITS_MAX: u8 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// `Content-Length`: content until `left` is 0.
    Length,
    /// In a chunk's size, after this many digits.
    Size(u8),
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

impl Body {
    pub(super) fn new(framing: Framing) -> Self {
        let (state, left) = match framing {
            Framing::Length(left) => (State::Length, left),
            Framing::Chunked => (State::Size(0), 0),
        };
        Self { state, left, overhead: 0, trailers: 0 }
    }

    /// Bytes of content that are announced and not read: of the whole, or of this chunk.
    pub(super) fn left(&self) -> u64 {
        // The number is not complete before its line is.
        if matches!(self.state, State::Size(_)) { 0 } else { self.left }
    }

    /// Reads on. Returns how many bytes were read and what they came to.
    pub(super) fn read(
        &mut self,
        input: &[u8],
        limits: &Limits,
    ) -> Result<(usize, Piece), Refused> {
        let mut at = 0;
        loop {
            match self.state {
                State::End => return Ok((at, Piece::End)),
                State::Length if self.left == 0 => self.state = State::End,
                State::Data if self.left == 0 => self.state = State::DataCr,
                _ if at == input.len() => return Ok((at, Piece::NeedMore)),
                State::Length | State::Data => {
                    let left = usize::try_from(self.left).unwrap_or(usize::MAX);
                    let len = left.min(input.len() - at);
                    self.left -= len as u64;
                    return Ok((at + len, Piece::Content(len)));
                }
                _ => {
                    self.state = self.framing_byte(input[at], limits)?;
                    at += 1;
                }
            }
        }
    }

    /// One byte of what stands around the chunks' content.
    fn framing_byte(&mut self, byte: u8, limits: &Limits) -> Result<State, Refused> {
        const BAD_SIZE: Refused = refused(400, "malformed chunk size");
        const BAD_CHUNK: Refused = refused(400, "malformed chunk");
        const BAD_TRAILER: Refused = refused(400, "malformed trailer");
        Ok(match (self.state, byte) {
            (State::Size(SIZE_DIGITS_MAX..), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                return Err(BAD_SIZE);
            }
            (State::Size(digits), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).map_or(0, u64::from);
                self.left = self.left << 4 | digit;
                State::Size(digits + 1)
            }
            (State::Size(1..), b'\r') => State::SizeLf,
            (State::Size(1..), b';') => State::Extension,
            (State::Size(_), _) => return Err(BAD_SIZE),
            (State::Extension, b'\r') => State::SizeLf,
            (State::Extension, byte) if is_text_byte(byte) => {
                self.count_overhead(limits)?;
                State::Extension
            }
            (State::SizeLf, b'\n') if self.left == 0 => State::TrailerStart,
            (State::SizeLf, b'\n') => State::Data,
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size(0),
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::TrailerStart, byte) if is_token_byte(byte) => {
                self.trailers += 1;
                if self.trailers > limits.fields {
                    return Err(refused(431, "more trailers than limits.headers"));
                }
                State::TrailerName
            }
            (State::TrailerName, byte) if is_token_byte(byte) => {
                self.count_overhead(limits)?;
                State::TrailerName
            }
            (State::TrailerName, b':') => State::TrailerValue,
            (State::TrailerValue, b'\r') => State::TrailerLf,
            (State::TrailerValue, byte) if is_text_byte(byte) => {
                self.count_overhead(limits)?;
                State::TrailerValue
            }
            (State::TrailerLf, b'\n') => State::TrailerStart,
            (State::EndLf, b'\n') => State::End,
            (
                State::TrailerStart | State::TrailerName | State::TrailerValue | State::TrailerLf,
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

/// What may stand in a field's value or an extension: no control characters but the tab.
fn is_text_byte(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}
