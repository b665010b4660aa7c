//! Heads and chunked content, read once more: whole, strictly, and in the plainest way.
//!
//! Independent of the product: what this has to say comes from RFC 9112 alone.

use tidegate::http::RequestContent;

/// A whole head, taken apart.
#[derive(Debug)]
pub struct Head<'a> {
    pub start_line: &'a [u8],
    pub fields: Vec<(&'a str, &'a [u8])>,
}

impl<'a> Head<'a> {
    /// Reads what was taken for a head.
    ///
    /// # Panics
    /// When it is none: bytes behind it, bare CR or LF, control characters, folded lines (§2.2,
    /// §5).
    pub fn read(bytes: &'a [u8]) -> Self {
        Self::read_with(bytes, field)
    }

    /// The same of a response, in which a blank may stand before a colon but where it frames
    /// (RFC 9112 §5.1).
    pub fn read_response(bytes: &'a [u8]) -> Self {
        Self::read_with(bytes, loose_field)
    }

    fn read_with(bytes: &'a [u8], field: fn(&'a [u8]) -> (&'a str, &'a [u8])) -> Self {
        let lines = bytes.strip_suffix(b"\r\n\r\n").expect("an empty line at the end");
        let mut rest = lines;
        let mut split = Vec::new();
        while let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") {
            split.push(&rest[..end]);
            rest = &rest[end + 2..];
        }
        split.push(rest);
        for line in &split {
            assert!(!line.is_empty(), "an empty line within a head");
            assert!(line.iter().copied().all(is_text), "a control character in a line");
        }
        let fields = split[1..].iter().map(|line| field(line)).collect();
        Self { start_line: split[0], fields }
    }

    /// The values of all fields of this name, in lower case.
    pub fn all(&self, name: &str) -> Vec<&'a [u8]> {
        let named = self.fields.iter().filter(|(other, _)| other.to_ascii_lowercase() == name);
        named.map(|(_, value)| *value).collect()
    }

    /// The members of a field that is a list, in lower case (RFC 9110 §5.6.1).
    pub fn list(&self, name: &str) -> Vec<Vec<u8>> {
        let members =
            self.all(name).into_iter().flat_map(|value| value.split(|byte| *byte == b','));
        members.map(|member| blanks_trimmed(member).to_ascii_lowercase()).collect()
    }

    /// The content that the fields announce.
    ///
    /// # Panics
    /// When they do it in a doubtful way (§6.1, §6.2, §6.3).
    pub fn framing(&self, is_http10: bool) -> RequestContent {
        let (lengths, codings) = (self.all("content-length"), self.list("transfer-encoding"));
        assert!(lengths.len() <= 1, "more than one Content-Length");
        assert!(lengths.is_empty() || codings.is_empty(), "Content-Length beside a coding");
        if !codings.is_empty() {
            assert!(!is_http10, "a transfer coding in HTTP/1.0");
            assert_eq!(codings, [b"chunked"], "a coding that is not just chunked");
            return RequestContent::Chunked;
        }
        let Some(length) = lengths.first() else { return RequestContent::None };
        assert!(length.iter().all(u8::is_ascii_digit), "a Content-Length that is no number");
        let length = str::from_utf8(length).ok().and_then(|length| length.parse().ok());
        RequestContent::Length(length.expect("a Content-Length"))
    }

    /// Whether the sender keeps the connection (§9.3).
    pub fn keeps_connection(&self, is_http10: bool) -> bool {
        let options = self.list("connection");
        let says = |option: &[u8]| options.iter().any(|other| other == option);
        !says(b"close") && (!is_http10 || says(b"keep-alive"))
    }
}

/// What a peer's bytes are, read as chunked content.
#[derive(Debug)]
pub struct Chunked {
    pub end: ChunkedEnd,
    pub content: Vec<u8>,
    /// The trailer lines that are whole, without their CRLF.
    pub trailers: Vec<Vec<u8>>,
    /// The sizes of all chunks that were announced.
    pub announced: u128,
    /// Blanks may stand at the end of a size line.
    may_pad: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkedEnd {
    /// The content ended here.
    Whole(usize),
    /// More has to come.
    Partial,
    Malformed,
}

impl Chunked {
    pub fn read(bytes: &[u8]) -> Self {
        Self::read_from(bytes, false)
    }

    /// The same for a response, whose server may pad its sizes.
    pub fn read_response(bytes: &[u8]) -> Self {
        Self::read_from(bytes, true)
    }

    fn read_from(bytes: &[u8], may_pad: bool) -> Self {
        let mut chunked = Self {
            end: ChunkedEnd::Partial,
            content: Vec::new(),
            trailers: Vec::new(),
            announced: 0,
            may_pad,
        };
        let end = chunked.chunks(bytes);
        chunked.end =
            end.map_or_else(|end| end, |rest| ChunkedEnd::Whole(bytes.len() - rest.len()));
        chunked
    }

    /// What stands behind the last chunk and its trailers.
    fn chunks<'a>(&mut self, mut bytes: &'a [u8]) -> Result<&'a [u8], ChunkedEnd> {
        loop {
            let (line, end) = line(bytes)?;
            let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
            let behind = &line[digits..];
            let blanks = behind.iter().take_while(|byte| b" \t".contains(byte)).count();
            let behind = &behind[blanks..];
            let pads = blanks == 0 || self.may_pad || end == LineEnd::Open;
            let stands = digits <= 16
                && blanks <= 32
                && (digits > 0 || (line.is_empty() && end == LineEnd::Open))
                && ((behind.is_empty() && pads) || behind.starts_with(b";"));
            bytes = end.rest(stands)?;
            let text = str::from_utf8(&line[..digits]).expect("digits");
            let size = u64::from_str_radix(text, 16).expect("a size");
            if size == 0 {
                return self.trailers(bytes);
            }
            self.announced += u128::from(size);
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            self.content.extend_from_slice(&bytes[..size.min(bytes.len())]);
            bytes = match bytes.get(size..) {
                None | Some([] | [b'\r']) => return Err(ChunkedEnd::Partial),
                Some([b'\r', b'\n', rest @ ..]) => rest,
                Some(_) => return Err(ChunkedEnd::Malformed),
            };
        }
    }

    fn trailers<'a>(&mut self, mut bytes: &'a [u8]) -> Result<&'a [u8], ChunkedEnd> {
        loop {
            let (line, end) = line(bytes)?;
            let name = line.iter().take_while(|byte| is_token(**byte)).count();
            let stands = match line.get(name) {
                Some(byte) => name > 0 && *byte == b':',
                None => line.is_empty() || end == LineEnd::Open,
            };
            bytes = end.rest(stands)?;
            if line.is_empty() {
                return Ok(bytes);
            }
            self.trailers.push(line.to_vec());
        }
    }
}

/// How a line ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LineEnd<'a> {
    /// Not yet.
    Open,
    /// By a CR, so far.
    Cr,
    /// By CRLF; this stands behind it.
    Crlf(&'a [u8]),
}

impl<'a> LineEnd<'a> {
    /// What stands behind a line that `stands`, as far as it goes.
    fn rest(self, stands: bool) -> Result<&'a [u8], ChunkedEnd> {
        match self {
            _ if !stands => Err(ChunkedEnd::Malformed),
            Self::Open | Self::Cr => Err(ChunkedEnd::Partial),
            Self::Crlf(rest) => Ok(rest),
        }
    }
}

/// The bytes up to the first control character, which has to end the line.
fn line(bytes: &[u8]) -> Result<(&[u8], LineEnd<'_>), ChunkedEnd> {
    let len = bytes.iter().take_while(|byte| is_text(**byte)).count();
    let end = match &bytes[len..] {
        [] => LineEnd::Open,
        [b'\r'] => LineEnd::Cr,
        [b'\r', b'\n', rest @ ..] => LineEnd::Crlf(rest),
        _ => return Err(ChunkedEnd::Malformed),
    };
    Ok((&bytes[..len], end))
}

fn field(line: &[u8]) -> (&str, &[u8]) {
    let colon = line.iter().position(|byte| *byte == b':').expect("a colon");
    let name = &line[..colon];
    assert!(!name.is_empty() && name.iter().copied().all(is_token), "a name that is no token");
    (str::from_utf8(name).expect("a token"), blanks_trimmed(&line[colon + 1..]))
}

fn loose_field(line: &[u8]) -> (&str, &[u8]) {
    let colon = line.iter().position(|byte| *byte == b':').expect("a colon");
    let blanks = line[..colon].iter().rev().take_while(|byte| b" \t".contains(byte)).count();
    let name = &line[..colon - blanks];
    assert!(!name.is_empty() && name.iter().copied().all(is_token), "a name that is no token");
    let name = str::from_utf8(name).expect("a token");
    let frames = ["content-length", "transfer-encoding"].contains(&&*name.to_ascii_lowercase());
    assert!(blanks == 0 || !frames, "a blank before the colon of {name}");
    (name, blanks_trimmed(&line[colon + 1..]))
}

fn blanks_trimmed(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// RFC 9110 §5.6.2.
pub fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// No control character but the tab (RFC 9110 §5.5).
pub fn is_text(byte: u8) -> bool {
    byte == b'\t' || !byte.is_ascii_control()
}
