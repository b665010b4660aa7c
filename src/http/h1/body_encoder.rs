//! Writing a message's content as its head announced it (RFC 9112 §6.3, §7).
//!
//! Content that is longer or shorter than its announced length is a bug of ours. What exceeds the
//! length is not written: the peer would read it as the next message.

use std::io::Write as _;

/// How the content of a message is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyEncoder {
    /// As it is; this many bytes are still to be written.
    Length(u64),
    Chunked,
    /// As it is, until the connection ends.
    UntilClose,
    /// Not at all: an answer to HEAD, a 204 or 304, a request without content.
    Omitted,
}

impl BodyEncoder {
    /// Writes the field that says how the content is framed.
    pub(super) fn write_field(self, out: &mut Vec<u8>) {
        match self {
            Self::Length(length) => write_content_length(length, out),
            Self::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
            Self::UntilClose | Self::Omitted => {}
        }
    }

    /// Writes a piece of the content. An empty piece writes nothing: an empty chunk would end the
    /// content.
    pub(super) fn write(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        match self {
            Self::Length(left) => {
                debug_assert!(piece.len() as u64 <= *left, "content longer than its length");
                let len = usize::try_from(*left).unwrap_or(usize::MAX).min(piece.len());
                *left -= len as u64;
                out.extend_from_slice(&piece[..len]);
            }
            Self::Chunked => {
                if !piece.is_empty() && write!(out, "{:x}\r\n", piece.len()).is_ok() {
                    out.extend_from_slice(piece);
                    out.extend_from_slice(b"\r\n");
                }
            }
            Self::UntilClose => out.extend_from_slice(piece),
            Self::Omitted => {}
        }
    }

    /// Writes the end of the content. `trailers` are field lines, each ended by CRLF; only chunked
    /// content can carry them. Returns whether the content has its announced length.
    pub(super) fn end(self, trailers: &[u8], out: &mut Vec<u8>) -> bool {
        debug_assert!(trailers.is_empty() || trailers.ends_with(b"\r\n"), "no trailer lines");
        match self {
            Self::Length(left) => {
                debug_assert_eq!(left, 0, "content shorter than its length");
                left == 0
            }
            Self::Chunked => {
                out.extend_from_slice(b"0\r\n");
                out.extend_from_slice(trailers);
                out.extend_from_slice(b"\r\n");
                true
            }
            Self::UntilClose | Self::Omitted => true,
        }
    }
}

pub(super) fn write_content_length(length: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"Content-Length: ");
    out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_coding_writes_its_pieces_and_its_end() {
        for (mut encoder, written) in [
            (BodyEncoder::Length(12), "Content-Length: 12\r\n|0123456789ab|"),
            (
                BodyEncoder::Chunked,
                "Transfer-Encoding: chunked\r\n|c\r\n0123456789ab\r\n|0\r\nA: b\r\n\r\n",
            ),
            (BodyEncoder::UntilClose, "|0123456789ab|"),
            (BodyEncoder::Omitted, "||"),
        ] {
            let mut out = Vec::new();
            encoder.write_field(&mut out);
            out.push(b'|');
            encoder.write(b"", &mut out);
            encoder.write(b"0123456789ab", &mut out);
            out.push(b'|');
            assert!(encoder.end(b"A: b\r\n", &mut out));
            assert_eq!(out.escape_ascii().to_string(), written.escape_default().to_string());
        }
    }
}
