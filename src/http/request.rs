//! From the bytes of a request head to a [`RequestHead`], or to the reason why it is refused.
//!
//! httparse checks the syntax of the field lines; what it lets through although two parsers could
//! read it in two ways is refused here: bare LF, several or odd Content-Lengths, Content-Length
//! beside Transfer-Encoding, a doubtful Host, targets of the wrong form. Holds no bytes: the caller
//! keeps the input until the head is complete.
//!
//! From [`read`] to the app a head goes through five functions. They are inlined by force: moved
//! through memory at each, it cost a third of the time of a pipelined request.
//!
//! What is found early (a bare LF, a byte that begins no request) is found by its position alone,
//! everything else when the head is complete: so any split of the same bytes ends the same way.

use std::mem::MaybeUninit;

use httparse::Header;

use super::{
    Limits,
    body::Framing,
    head::{RequestHead, Version},
    host::Host,
    method::Method,
    response::{is_field_name, is_token_byte},
    target::TargetForm,
};

/// Room for the fields of one head; lives on the stack of whoever asks for events. Nothing of it is
/// written before it is needed.
pub struct FieldTable<'a> {
    at_once: [MaybeUninit<Header<'a>>; FieldTable::LEN],
    in_pieces: [MaybeUninit<Header<'a>>; FieldTable::LEN],
    /// For a head of a later minor version; empty, and without memory, for all others.
    later_version: Vec<Header<'a>>,
}

impl FieldTable<'_> {
    /// The most fields of a head; [`Limits::fields`] is at most this.
    pub const LEN: usize = 256;

    /// A table without fields.
    pub fn new() -> Self {
        Self {
            at_once: [const { MaybeUninit::uninit() }; Self::LEN],
            in_pieces: [const { MaybeUninit::uninit() }; Self::LEN],
            later_version: Vec::new(),
        }
    }
}

impl Default for FieldTable<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// Why a request is refused. The connection is closed after the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The status of the answer.
    pub status: u16,
    /// What is wrong, for the answer's content.
    pub reason: &'static str,
}

pub(super) const fn refused(status: u16, reason: &'static str) -> Refused {
    Refused { status, reason }
}

const BAD_REQUEST_LINE: Refused = refused(400, "malformed request line");
const BAD_HOST: Refused = refused(400, "malformed Host");
const BAD_FIELD: Refused = refused(400, "malformed header field");
const BARE_LF: Refused = refused(400, "line not ended by CRLF");

/// How far a head that is still coming was looked at.
#[derive(Debug, Default)]
pub(super) struct HeadScan {
    scanned: usize,
    line_start: usize,
    request_line_end: usize,
    blank_line_seen: bool,
}

/// What a look at the input found.
#[derive(Debug, PartialEq, Eq)]
enum Scan {
    /// The head is not complete.
    NeedMore,
    /// The head is complete and has this many bytes.
    Complete(usize),
}

impl HeadScan {
    /// The length of an empty line before the request line, which is to be skipped; one is
    /// (RFC 9112 §2.2).
    pub(super) fn blank_line(&mut self, input: &[u8]) -> usize {
        if self.blank_line_seen || !input.starts_with(b"\r\n") {
            return 0;
        }
        *self = Self { blank_line_seen: true, ..Self::default() };
        2
    }

    /// Looks for the end of the head, from where the last look ended.
    fn look(&mut self, input: &[u8], limits: &Limits) -> Result<Scan, Refused> {
        let window = &input[..input.len().min(limits.head_bytes)];
        match window {
            [] => return Ok(Scan::NeedMore),
            [b'\r'] if !self.blank_line_seen => return Ok(Scan::NeedMore),
            [first, ..] if !is_token_byte(*first) => return Err(BAD_REQUEST_LINE),
            _ => {}
        }
        while let Some(at) = memchr::memchr(b'\n', &window[self.scanned..]) {
            let lf = self.scanned + at;
            if lf == 0 || window[lf - 1] != b'\r' {
                return Err(BARE_LF);
            }
            if self.line_start == 0 {
                self.request_line_end = lf - 1;
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
        Err(match self.line_start {
            0 => refused(414, "request line longer than limits.head_bytes"),
            _ => refused(431, "request head longer than limits.head_bytes"),
        })
    }

    fn is_untouched(&self) -> bool {
        self.scanned == 0 && !self.blank_line_seen
    }
}

/// A head and what it says about its message and connection.
#[derive(Debug)]
pub(super) struct Parsed<'a> {
    pub(super) head: RequestHead<'a>,
    pub(super) framing: Framing,
    pub(super) keep_alive: bool,
    pub(super) expects_continue: bool,
}

/// Reads a head, if it is complete. Returns its length too.
#[inline(always)]
pub(super) fn read<'h, 'b: 'h>(
    scan: &mut HeadScan,
    input: &'b [u8],
    fields: &'h mut FieldTable<'b>,
    limits: &Limits,
) -> Result<Option<(usize, Parsed<'h>)>, Refused> {
    if scan.is_untouched()
        && let Some((len, syntax)) = parse_at_once(input, &mut fields.at_once, limits)
    {
        return Ok(Some((len, check(&syntax)?)));
    }
    let Scan::Complete(len) = scan.look(input, limits)? else { return Ok(None) };
    let head = &input[..len];
    let (request_line, lines) =
        (&head[..scan.request_line_end], &head[scan.request_line_end + 2..]);
    let syntax = match version(request_line)? {
        Announced::Known => {
            let mut request = httparse::Request::new(&mut []);
            let room = &mut fields.in_pieces[..limits.fields.min(FieldTable::LEN)];
            match request.parse_with_uninit_headers(head, room) {
                Ok(httparse::Status::Complete(_)) => Syntax::of(request),
                Ok(httparse::Status::Partial) => return Err(BAD_FIELD),
                Err(error) => return Err(syntax_error(error)),
            }
        }
        Announced::Later => {
            fields.later_version.resize(limits.fields, httparse::EMPTY_HEADER);
            parse_later_version(request_line, lines, &mut fields.later_version)?
        }
    };
    Ok(Some((len, check(&syntax)?)))
}

/// Parses a head that came whole, if nothing has to be said about its syntax; `None` sends the
/// caller the long way round, which alone refuses.
///
/// httparse takes a bare LF for a line's end. Where lines begin tells: each has to stand behind a
/// CRLF. Leading empty lines, which it skips, are left to the long way.
#[inline(always)]
fn parse_at_once<'h, 'b: 'h>(
    input: &'b [u8],
    room: &'h mut [MaybeUninit<Header<'b>>],
    limits: &Limits,
) -> Option<(usize, Syntax<'h>)> {
    if !input.first().copied().is_some_and(is_token_byte) {
        return None;
    }
    let mut request = httparse::Request::new(&mut []);
    let room = &mut room[..limits.fields.min(FieldTable::LEN)];
    let Ok(httparse::Status::Complete(len)) = request.parse_with_uninit_headers(input, room) else {
        return None;
    };
    let head = &input[..len];
    let is_behind_crlf = |field: &Header<'_>| {
        let start = field.name.as_ptr().addr() - head.as_ptr().addr();
        head[..start].ends_with(b"\r\n")
    };
    let is_strict = len <= limits.head_bytes
        && head.ends_with(b"\r\n\r\n")
        && request.headers.iter().all(is_behind_crlf);
    is_strict.then(|| (len, Syntax::of(request)))
}

/// What a request line says of its version.
enum Announced {
    /// 1.1 or 1.0, as the parser knows them.
    Known,
    /// A later minor version of 1, which is read as 1.1 (RFC 9110 §2.5).
    Later,
}

fn version(request_line: &[u8]) -> Result<Announced, Refused> {
    match request_line {
        [.., b' ', b'H', b'T', b'T', b'P', b'/', major, b'.', minor] => match (major, minor) {
            (b'1', b'0' | b'1') => Ok(Announced::Known),
            (b'1', b'2'..=b'9') => Ok(Announced::Later),
            (b'0'..=b'9', b'0'..=b'9') => {
                Err(refused(505, "only HTTP/1.1 and HTTP/1.0 are spoken here"))
            }
            _ => Err(BAD_REQUEST_LINE),
        },
        _ => Err(BAD_REQUEST_LINE),
    }
}

/// The parser knows two versions, so this one's request line is taken apart by hand.
fn parse_later_version<'h, 'b: 'h>(
    request_line: &'b [u8],
    lines: &'b [u8],
    room: &'h mut [Header<'b>],
) -> Result<Syntax<'h>, Refused> {
    let text = std::str::from_utf8(request_line).map_err(|_| BAD_REQUEST_LINE)?;
    let mut parts = text.split(' ');
    let (Some(method), Some(target), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(BAD_REQUEST_LINE);
    };
    let is_target = !target.is_empty() && target.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_field_name(method) || !is_target {
        return Err(BAD_REQUEST_LINE);
    }
    match httparse::parse_headers(lines, room) {
        Ok(httparse::Status::Complete((_, fields))) => {
            Ok(Syntax { method, target, version: Version::Http11, fields })
        }
        Ok(httparse::Status::Partial) => Err(BAD_FIELD),
        Err(error) => Err(syntax_error(error)),
    }
}

/// A head whose syntax stands.
struct Syntax<'a> {
    method: &'a str,
    target: &'a str,
    version: Version,
    fields: &'a [Header<'a>],
}

impl<'h> Syntax<'h> {
    /// What a parse that was completed found.
    fn of<'b: 'h>(request: httparse::Request<'h, 'b>) -> Self {
        let httparse::Request { method, path, version, headers } = request;
        Self {
            method: method.unwrap_or_default(),
            target: path.unwrap_or_default(),
            version: if version == Some(0) { Version::Http10 } else { Version::Http11 },
            fields: headers,
        }
    }
}

/// Checks what the syntax leaves open.
#[inline(always)]
fn check<'h>(syntax: &Syntax<'h>) -> Result<Parsed<'h>, Refused> {
    let &Syntax { method, target, version, fields } = syntax;
    let known = KnownFields::collect(fields, version)?;
    let method = Method::from_token(method);
    let form = TargetForm::parse(method, target)?;
    if method == Method::Connect {
        return Err(refused(501, "CONNECT is not implemented"));
    }
    let host = known.checked_host(version, &form)?;
    let head = RequestHead {
        method,
        target,
        path: form.path,
        query: form.query,
        version,
        host: form.authority.or(host),
        fields,
    };
    let framing = known.framing()?;
    let keep_alive = !known.close && (version == Version::Http11 || known.keep_alive);
    let expects_continue = known.expects_continue && framing != Framing::Length(0);
    Ok(Parsed { head, framing, keep_alive, expects_continue })
}

fn syntax_error(error: httparse::Error) -> Refused {
    match error {
        httparse::Error::TooManyHeaders => refused(431, "more fields than limits.headers"),
        httparse::Error::HeaderName | httparse::Error::HeaderValue => BAD_FIELD,
        _ => BAD_REQUEST_LINE,
    }
}

/// The fields that decide about the message and the connection.
#[derive(Default)]
struct KnownFields<'a> {
    host: Option<&'a [u8]>,
    content_length: Option<u64>,
    chunked: Option<bool>,
    unknown_coding: bool,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
}

impl<'a> KnownFields<'a> {
    #[inline(always)]
    fn collect(fields: &'a [Header<'a>], version: Version) -> Result<Self, Refused> {
        let mut known = Self::default();
        for field in fields {
            // By length first: most fields are none of these.
            match field.name.len() {
                4 if field.name.eq_ignore_ascii_case("host") => known.host(field.value)?,
                6 if field.name.eq_ignore_ascii_case("expect") => {
                    known.expect(field.value, version)?;
                }
                10 if field.name.eq_ignore_ascii_case("connection") => {
                    known.connection(field.value);
                }
                14 if field.name.eq_ignore_ascii_case("content-length") => {
                    let length = parse_content_length(field.value)?;
                    if known.content_length.replace(length).is_some() {
                        return Err(refused(400, "more than one Content-Length"));
                    }
                }
                17 if field.name.eq_ignore_ascii_case("transfer-encoding") => {
                    if version == Version::Http10 {
                        return Err(refused(400, "Transfer-Encoding in an HTTP/1.0 request"));
                    }
                    known.transfer_encoding(field.value)?;
                }
                _ => {}
            }
        }
        Ok(known)
    }

    /// RFC 9112 §3.2: also twice the same is one too many.
    fn host(&mut self, value: &'a [u8]) -> Result<(), Refused> {
        match self.host.replace(value) {
            None => Ok(()),
            Some(_) => Err(refused(400, "more than one Host")),
        }
    }

    /// RFC 9110 §10.1.1; a 1.0 client's expectation is ignored.
    fn expect(&mut self, value: &[u8], version: Version) -> Result<(), Refused> {
        if version == Version::Http10 {
            return Ok(());
        }
        if !value.eq_ignore_ascii_case(b"100-continue") {
            return Err(refused(417, "only 100-continue can be expected"));
        }
        self.expects_continue = true;
        Ok(())
    }

    /// RFC 9110 §7.6.1.
    fn connection(&mut self, value: &[u8]) {
        for option in value.split(|byte| *byte == b',') {
            let option = option.trim_ascii();
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    /// RFC 9112 §6.1: `chunked` is the last coding, once, and the only one known here.
    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), Refused> {
        for coding in value.split(|byte| *byte == b',') {
            if self.chunked == Some(true) {
                return Err(refused(400, "chunked is not the last transfer coding"));
            }
            let coding = coding.trim_ascii();
            if coding.is_empty() {
                return Err(refused(400, "empty transfer coding"));
            }
            let chunked = coding.eq_ignore_ascii_case(b"chunked");
            self.chunked = Some(chunked);
            self.unknown_coding |= !chunked;
        }
        Ok(())
    }

    /// RFC 9112 §6.3.
    fn framing(&self) -> Result<Framing, Refused> {
        match (self.chunked, self.content_length) {
            (None, length) => Ok(Framing::Length(length.unwrap_or(0))),
            (Some(_), Some(_)) => Err(refused(400, "Content-Length beside Transfer-Encoding")),
            (Some(false), None) => Err(refused(400, "the last transfer coding is not chunked")),
            (Some(true), None) if self.unknown_coding => {
                Err(refused(501, "unknown transfer coding"))
            }
            (Some(true), None) => Ok(Framing::Chunked),
        }
    }

    /// RFC 9112 §3.2. The field has to stand also where an absolute-form target wins over it.
    fn checked_host(
        &self,
        version: Version,
        form: &TargetForm<'_>,
    ) -> Result<Option<Host<'a>>, Refused> {
        match self.host {
            None if version == Version::Http10 => Ok(None),
            None => Err(refused(400, "no Host")),
            // A target without authority may say so by an empty Host (§3.2).
            Some([]) if form.path == "*" => Ok(None),
            Some(value) => Ok(Some(Host::parse(value).ok_or(BAD_HOST)?)),
        }
    }
}

fn parse_content_length(value: &[u8]) -> Result<u64, Refused> {
    const BAD: Refused = refused(400, "malformed Content-Length");
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(BAD);
    }
    value
        .iter()
        .try_fold(0u64, |length, digit| {
            length.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
        })
        .ok_or(BAD)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { head_bytes: 24, fields: 4, content_bytes: 0 };

    /// Looks at ever more of the input, one byte after the other: how far it had to look.
    fn scan(input: &str) -> (usize, Result<Scan, u16>) {
        let mut scan = HeadScan::default();
        for len in 0..=input.len() {
            match scan.look(&input.as_bytes()[..len], &LIMITS) {
                Ok(Scan::NeedMore) => {}
                other => return (len, other.map_err(|refused| refused.status)),
            }
        }
        (input.len(), Ok(Scan::NeedMore))
    }

    #[test]
    fn the_end_of_a_head_is_found_as_soon_as_it_is_there() {
        for (input, looked_at, found) in [
            ("", 0, Ok(Scan::NeedMore)),
            ("\r", 1, Ok(Scan::NeedMore)),
            ("\r\nG", 2, Err(400)),
            ("\rG", 2, Err(400)),
            ("\n", 1, Err(400)),
            (" G", 1, Err(400)),
            ("\x16\x03\x01", 1, Err(400)),
            ("G\n", 2, Err(400)),
            ("G\rX\n", 4, Err(400)),
            ("G\r\n\n", 4, Err(400)),
            ("G\r\n\r\r\n", 6, Ok(Scan::NeedMore)),
            ("G\r\nA\r\n\r", 7, Ok(Scan::NeedMore)),
            ("G\r\n\r\nX", 5, Ok(Scan::Complete(5))),
            ("G\r\nA: b\r\n\r\n", 11, Ok(Scan::Complete(11))),
            ("G /23456789012345678\r\n\r\n", 24, Ok(Scan::Complete(24))),
            ("G /234567890123456789\r\n\r\n", 24, Err(431)),
            ("G /2345678901234567890123\r\n", 24, Err(414)),
        ] {
            assert_eq!(scan(input), (looked_at, found), "{input:?}");
        }
    }

    #[test]
    fn one_empty_line_is_skipped_before_a_head() {
        let mut scan = HeadScan::default();
        assert_eq!(scan.look(b"\r", &LIMITS), Ok(Scan::NeedMore));
        assert_eq!(scan.blank_line(b"\r\n\r\nG"), 2);
        assert_eq!(scan.blank_line(b"\r\nG"), 0);
        assert_eq!(scan.look(b"\r\nG", &LIMITS), Err(BAD_REQUEST_LINE));
        let mut scan = HeadScan::default();
        assert_eq!(scan.blank_line(b"\r\nGET\r\n\r\n"), 2);
        assert_eq!(scan.look(b"GET\r\n\r\n", &LIMITS), Ok(Scan::Complete(7)));
        assert_eq!(scan.request_line_end, 3);
    }

    #[test]
    fn versions_are_known_later_or_refused() {
        for (line, is_later) in [
            ("GET / HTTP/1.0", Ok(false)),
            ("GET / HTTP/1.1", Ok(false)),
            ("GET / HTTP/1.2", Ok(true)),
            ("GET /HTTP/1.5 HTTP/1.9", Ok(true)),
            ("GET / HTTP/0.9", Err(505)),
            ("GET / HTTP/2.0", Err(505)),
            ("GET / HTTP/9.9", Err(505)),
            ("GET / HTTP/1.10", Err(400)),
            ("GET / HTTP/1.x", Err(400)),
            ("GET / HTTP/2", Err(400)),
            ("GET / http/1.1", Err(400)),
            ("GET / HTTP/1.1 ", Err(400)),
            ("GET / HTTP/1.1\r", Err(400)),
            ("GET /", Err(400)),
            ("GET", Err(400)),
            ("", Err(400)),
        ] {
            let found = version(line.as_bytes()).map_err(|refused| refused.status);
            assert_eq!(found.map(|found| matches!(found, Announced::Later)), is_later, "{line:?}");
        }
    }

    /// The same head by each way through the parser.
    fn by_each_way(head: &str) -> [Result<String, u16>; 2] {
        let limits = Limits { head_bytes: 1000, fields: 8, content_bytes: 0 };
        let read_on = |scan: &mut HeadScan| {
            let mut fields = FieldTable::new();
            let parsed = read(scan, head.as_bytes(), &mut fields, &limits)?;
            Ok::<_, Refused>(format!("{parsed:?}"))
        };
        let in_pieces = || {
            let mut scan = HeadScan::default();
            scan.look(&head.as_bytes()[..1], &limits)?;
            read_on(&mut scan)
        };
        let at_once = || read_on(&mut HeadScan::default());
        [in_pieces(), at_once()].map(|outcome| outcome.map_err(|refused| refused.status))
    }

    #[test]
    fn every_way_through_the_parser_ends_alike() {
        for head in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\n",
            "GET / HTTP/1.1\r\nA: b \nHost: a\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n\r\n",
        ] {
            let [in_pieces, at_once] = by_each_way(head);
            assert_eq!(in_pieces, at_once, "{head:?}");
        }
        // A later version is read as 1.1, by a way of its own.
        for (target, lines) in [
            ("/", "Host: a\r\n"),
            ("/ä", "Host: a\r\n"),
            ("/", "Host : a\r\n"),
            ("", "Host: a\r\n"),
        ] {
            let known = by_each_way(&format!("GET {target} HTTP/1.1\r\n{lines}\r\n"));
            let later = by_each_way(&format!("GET {target} HTTP/1.7\r\n{lines}\r\n"));
            assert_eq!(known, later, "{target} {lines:?}");
        }
    }

    fn known<'a>(fields: &'a [Header<'a>], version: Version) -> Result<KnownFields<'a>, u16> {
        KnownFields::collect(fields, version).map_err(|refused| refused.status)
    }

    fn headers<'a>(lines: &[(&'a str, &'a str)]) -> Vec<Header<'a>> {
        lines.iter().map(|(name, value)| Header { name, value: value.as_bytes() }).collect()
    }

    /// Fields, and the framing they tell.
    type Told = (&'static [(&'static str, &'static str)], Result<Framing, u16>);

    #[test]
    fn framing_is_told_in_one_way() {
        const TE: &str = "Transfer-Encoding";
        const CL: &str = "content-length";
        let rows: &[Told] = &[
            (&[], Ok(Framing::Length(0))),
            (&[("Content-Lengths", "5")], Ok(Framing::Length(0))),
            (&[(CL, "0")], Ok(Framing::Length(0))),
            (&[(CL, "007")], Ok(Framing::Length(7))),
            (&[(CL, "18446744073709551615")], Ok(Framing::Length(u64::MAX))),
            (&[(CL, "18446744073709551616")], Err(400)),
            (&[(CL, "")], Err(400)),
            (&[(CL, "5 ")], Err(400)),
            (&[(CL, "5"), (CL, "5")], Err(400)),
            (&[(TE, "chunked")], Ok(Framing::Chunked)),
            (&[(TE, "\tCHUNKED ")], Ok(Framing::Chunked)),
            (&[(TE, "chunked"), (CL, "5")], Err(400)),
            (&[(CL, "5"), (TE, "gzip")], Err(400)),
            (&[(TE, "gzip"), (TE, "chunked")], Err(501)),
            (&[(TE, "chunked"), (TE, "gzip")], Err(400)),
            (&[(TE, "gzip")], Err(400)),
            (&[(TE, "")], Err(400)),
        ];
        for (lines, framing) in rows {
            let fields = headers(lines);
            let seen = known(&fields, Version::Http11)
                .and_then(|known| known.framing().map_err(|refused| refused.status));
            assert_eq!(seen, *framing, "{lines:?}");
        }
    }

    #[test]
    fn old_clients_have_neither_codings_nor_expectations() {
        let fields = headers(&[("Transfer-Encoding", "chunked")]);
        assert_eq!(known(&fields, Version::Http10).err(), Some(400));
        let fields = headers(&[("Expect", "anything")]);
        assert_eq!(known(&fields, Version::Http11).err(), Some(417));
        assert!(known(&fields, Version::Http10).is_ok_and(|known| !known.expects_continue));
    }

    #[test]
    fn connection_options_add_up() {
        for (values, close, keep_alive) in [
            (&["close"][..], true, false),
            (&["Keep-Alive"], false, true),
            (&["a,\tCLOSE ,", "keep-alive"], true, true),
            (&["closed", "keep alive", ""], false, false),
        ] {
            let lines: Vec<_> = values.iter().map(|value| ("Connection", *value)).collect();
            let fields = headers(&lines);
            let known = known(&fields, Version::Http11).expect("fields");
            assert_eq!((known.close, known.keep_alive), (close, keep_alive), "{values:?}");
        }
    }
}
