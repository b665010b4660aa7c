//! Answers on the wire: the head, and the content by length, by chunks, or until the end.
//!
//! Pure: from any reader. What is no HTTP gives `InvalidData` and what ends too early
//! `UnexpectedEof`. Never takes more of a head, a chunk's line or the trailers than their bounds.

use std::io::{self, BufRead, ErrorKind, Read};

use httparse::Header;

const HEAD_BYTES_MAX: u64 = 64 << 10;
const HEADERS_MAX: usize = 100;
/// Of a chunk's size with its extensions, and of a trailer.
const LINE_BYTES_MAX: u64 = 4 << 10;
const TRAILERS_MAX: usize = 100;

/// What the head of an answer says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: u16,
    pub(super) framing: Framing,
    /// Whether the connection can take another request.
    pub(super) is_kept: bool,
}

/// How the content ends (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// After so many bytes.
    Length(u64),
    /// With the last chunk; a chunk's size comes next.
    Chunks,
    /// With the last chunk; so many bytes of one are still to come, and its line end.
    Chunk(u64),
    /// With the connection.
    Close,
}

/// Reads the head of an answer.
pub(super) fn read_head(wire: &mut impl BufRead) -> io::Result<Head> {
    let mut bytes = Vec::new();
    let mut bounded = wire.take(HEAD_BYTES_MAX);
    // Either line end, also mixed, as the parser takes them.
    while !bytes.ends_with(b"\n\r\n") && !bytes.ends_with(b"\n\n") {
        let length = bounded.read_until(b'\n', &mut bytes)?;
        if !b"HTTP/".starts_with(&bytes[..bytes.len().min(5)]) {
            return Err(not_http("it does not speak HTTP"));
        }
        match (length, bounded.limit()) {
            (_, 0) => return Err(not_http("the head of its answer is too long")),
            (0, _) => return Err(ErrorKind::UnexpectedEof.into()),
            _ => {}
        }
    }
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(&bytes);
    let Some(status) = response.code.filter(|_| parsed.is_ok_and(|it| it.is_complete())) else {
        return Err(not_http("its answer is no HTTP"));
    };
    let framing = framing(status, response.headers)?;
    let closes = values(response.headers, "connection").any(|value| value == "close");
    let is_kept = response.version == Some(1) && !closes && framing != Framing::Close;
    Ok(Head { status, framing, is_kept })
}

/// Reads the content of an answer.
pub(super) struct Content<R> {
    wire: R,
    framing: Framing,
}

impl<R: BufRead> Content<R> {
    /// The content that stands next on the wire.
    pub(super) fn new(wire: R, framing: Framing) -> Self {
        Self { wire, framing }
    }

    /// Reads into `bytes`, at most `left`, which are certain to come.
    fn read_part(&mut self, bytes: &mut [u8], left: u64) -> io::Result<usize> {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        match self.wire.read(&mut bytes[..most])? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            length => Ok(length),
        }
    }

    fn read_line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        (&mut self.wire).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        match (line.pop(), line.len() as u64) {
            (Some(b'\n'), _) => {}
            (_, length) if length + 1 >= LINE_BYTES_MAX => {
                return Err(not_http("a line between its chunks is too long"));
            }
            _ => return Err(ErrorKind::UnexpectedEof.into()),
        }
        let text = String::from_utf8(line).map_err(|_| not_http("its chunks are broken"))?;
        Ok(text.trim().to_owned())
    }

    /// Reads a chunk's size; behind the last one, the trailers too.
    fn read_chunk_size(&mut self) -> io::Result<u64> {
        let line = self.read_line()?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let size =
            u64::from_str_radix(digits, 16).map_err(|_| not_http("its chunks are broken"))?;
        if size == 0 {
            let mut trailers = 0;
            while !self.read_line()?.is_empty() {
                trailers += 1;
                if trailers > TRAILERS_MAX {
                    return Err(not_http("its answer has too many trailers"));
                }
            }
        }
        Ok(size)
    }
}

impl<R: BufRead> Read for Content<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.framing {
                Framing::Length(0) => return Ok(0),
                Framing::Length(left) => {
                    let length = self.read_part(bytes, left)?;
                    self.framing = Framing::Length(left - length as u64);
                    return Ok(length);
                }
                Framing::Chunks => {
                    self.framing = match self.read_chunk_size()? {
                        0 => Framing::Length(0),
                        size => Framing::Chunk(size),
                    };
                }
                Framing::Chunk(0) => {
                    if !self.read_line()?.is_empty() {
                        return Err(not_http("its chunks are broken"));
                    }
                    self.framing = Framing::Chunks;
                }
                Framing::Chunk(left) => {
                    let length = self.read_part(bytes, left)?;
                    self.framing = Framing::Chunk(left - length as u64);
                    return Ok(length);
                }
                Framing::Close => return self.wire.read(bytes),
            }
        }
    }
}

fn framing(status: u16, headers: &[Header<'_>]) -> io::Result<Framing> {
    if matches!(status, 204 | 304) {
        return Ok(Framing::Length(0));
    }
    match values(headers, "transfer-encoding").next().as_deref() {
        Some("chunked") => return Ok(Framing::Chunks),
        Some(_) => return Err(not_http("its answer has an unknown coding")),
        None => {}
    }
    match values(headers, "content-length").next() {
        Some(length) => {
            let length = length.parse().map_err(|_| not_http("its answer has no valid length"))?;
            Ok(Framing::Length(length))
        }
        None => Ok(Framing::Close),
    }
}

/// The values of a field, in lower case, one for each element of a list.
fn values<'a>(headers: &'a [Header<'_>], name: &'a str) -> impl Iterator<Item = String> + 'a {
    let named = headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
    named.flat_map(|header| {
        let value = String::from_utf8_lossy(header.value).to_ascii_lowercase();
        value.split(',').map(|element| element.trim().to_owned()).collect::<Vec<_>>()
    })
}

fn not_http(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// Pieces of answers, and bytes that are none.
    fn fragment() -> impl Strategy<Value = Vec<u8>> {
        let known = [
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.0 204 \n",
            "Content-Length: 5\r\n",
            "Content-Length: 18446744073709551615\n",
            "Transfer-Encoding: chunked\r\n",
            "Transfer-Encoding: x, chunked\r\n",
            "Connection: close, x\n",
            "\r\n",
            "\n",
            "5\r\nhello\r\n",
            "ffffffffffffffff\r\n",
            "0;a=b\r\n",
            "0\r\n\r\n",
            "hello",
        ];
        let known =
            prop::sample::select(known.to_vec()).prop_map(|text| text.as_bytes().to_owned());
        prop_oneof![8 => known, 1 => vec(any::<u8>(), 0..6)]
    }

    /// What an answer says in pieces of `piece` bytes, and how many bytes are left.
    fn outcome(bytes: &[u8], piece: usize) -> (Result<(Head, Vec<u8>), String>, usize) {
        let mut rest = bytes;
        let mut wire = io::BufReader::with_capacity(piece, &mut rest);
        let answer = read_head(&mut wire).and_then(|head| {
            let mut content = Vec::new();
            Content::new(&mut wire, head.framing).read_to_end(&mut content)?;
            Ok((head, content))
        });
        let buffered = wire.buffer().len();
        (answer.map_err(|error| format!("{error:?}")), rest.len() + buffered)
    }

    proptest! {
        #[test]
        fn any_bytes_are_the_same_answer_in_any_pieces(
            fragments in vec(fragment(), 0..12),
            is_headed in any::<bool>(),
            piece in 1..40_usize,
        ) {
            let start: &[u8] = if is_headed { b"HTTP/1.1 200 OK\r\n" } else { b"" };
            let bytes = [start, &fragments.concat()].concat();
            let (whole, left) = outcome(&bytes, 1 << 20);
            if let Ok((_, content)) = &whole {
                prop_assert!(content.len() <= bytes.len());
            }
            let in_pieces = outcome(&bytes, piece);
            prop_assert_eq!(in_pieces, (whole, left));
        }
    }

    #[test]
    fn a_head_ends_with_an_empty_line_whatever_its_line_ends_are() {
        for end in ["\n\n", "\r\n\r\n", "\n\r\n", "\r\n\n"] {
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 5{end}hello");
            for piece in 1..answer.len() {
                let (_, text) = read(answer.as_bytes(), piece).expect(end);
                assert_eq!(text, "hello", "{end:?}");
            }
        }
    }

    /// Reads an answer that comes in pieces of `piece` bytes.
    fn read(bytes: &[u8], piece: usize) -> io::Result<(Head, String)> {
        let mut wire = io::BufReader::with_capacity(piece, bytes);
        let head = read_head(&mut wire)?;
        let mut text = String::new();
        Content::new(&mut wire, head.framing).read_to_string(&mut text)?;
        Ok((head, text))
    }

    #[test]
    fn content_ends_by_length_by_chunks_or_with_the_connection() {
        let table = [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, and more", true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: x, Close\r\n\r\nhello", false),
            ("HTTP/1.0 200 OK\ncontent-length: 5\n\nhello", false),
            ("HTTP/1.1 200 OK\r\n\r\nhello", false),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n\
                 2;x=y\r\nhe\r\n03\r\nllo\r\n0\r\nA: b\r\n\r\nmore",
                true,
            ),
        ];
        for (answer, is_kept) in table {
            for piece in 1..answer.len() {
                let (head, text) = read(answer.as_bytes(), piece).expect(answer);
                assert_eq!((head.status, head.is_kept), (200, is_kept), "{answer}");
                assert_eq!(text, "hello", "{answer}");
            }
        }
    }

    #[test]
    fn an_answer_that_ends_too_early_is_lost() {
        let whole = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
        for end in 0..whole.len() {
            let error = read(&whole.as_bytes()[..end], 4096).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{end}: {error}");
        }
        let error = read(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", 4096).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_is_no_http_is_refused_with_bounds() {
        let long_head = format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(100_000));
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let long_line = format!("{head}1;{}", "x".repeat(10_000));
        let endless_trailers = format!("{head}0\r\n{}", "A: b\r\n".repeat(1_000));
        let texts = [
            "SSH-2.0-OpenSSH_9.6\r\n",
            "HTTP/1.1 2x0 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
            &long_head,
            &long_line,
            &endless_trailers,
        ];
        for text in texts {
            let error = read(text.as_bytes(), 4096).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{text:.60}: {error}");
        }
    }
}
