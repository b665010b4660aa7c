//! From the bytes of a request head to a [`RequestHead`], or to the reason why it is refused.
//!
//! httparse checks the syntax of the field lines; what it lets through although two parsers could
//! read it in two ways is refused here: bare LF, several or odd Content-Lengths, Content-Length
//! beside Transfer-Encoding, a doubtful Host, targets of the wrong form. Holds no bytes: the caller
//! keeps the input until the head is complete.
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
    response::is_token_byte,
};

/// Room for the fields of one head; lives on the stack of whoever asks for events.
pub struct FieldTable<'a>([MaybeUninit<Header<'a>>; FieldTable::LEN]);

impl FieldTable<'_> {
    /// The most fields of a head; [`Limits::fields`] is at most this.
    pub const LEN: usize = 256;

    /// A table without fields.
    pub fn new() -> Self {
        Self([const { MaybeUninit::uninit() }; Self::LEN])
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
const BAD_TARGET: Refused = refused(400, "malformed request target");
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
pub(super) enum Scan {
    /// The head is not complete.
    NeedMore,
    /// One empty line before the request line, to be skipped (RFC 9112 §2.2).
    BlankLine,
    /// The head is complete and has this many bytes.
    Complete(usize),
}

impl HeadScan {
    /// Looks for the end of the head, from where the last look ended.
    pub(super) fn look(&mut self, input: &[u8], limits: &Limits) -> Result<Scan, Refused> {
        let window = &input[..input.len().min(limits.head_bytes)];
        match window {
            [] => return Ok(Scan::NeedMore),
            [b'\r'] if !self.blank_line_seen => return Ok(Scan::NeedMore),
            [b'\r', b'\n', ..] if !self.blank_line_seen => {
                *self = Self { blank_line_seen: true, ..Self::default() };
                return Ok(Scan::BlankLine);
            }
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

    /// The length of the request line, without its CRLF.
    pub(super) fn request_line_end(&self) -> usize {
        self.request_line_end
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

/// Reads the version at the end of the request line. A higher minor version is written over with
/// 1.1, as which it is read (RFC 9110 §2.5), so that there is one parser for all.
pub(super) fn check_version(request_line: &mut [u8]) -> Result<(), Refused> {
    let start = memchr::memrchr(b' ', request_line).ok_or(BAD_REQUEST_LINE)? + 1;
    match &mut request_line[start..] {
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0' | b'1'] => Ok(()),
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor @ b'2'..=b'9'] => {
            *minor = b'1';
            Ok(())
        }
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => {
            Err(refused(505, "only HTTP/1.1 and HTTP/1.0 are spoken here"))
        }
        _ => Err(BAD_REQUEST_LINE),
    }
}

/// Parses a complete head whose version was checked.
pub(super) fn parse<'h, 'b: 'h>(
    input: &'b [u8],
    fields: &'h mut FieldTable<'b>,
    limits: &Limits,
) -> Result<Parsed<'h>, Refused> {
    let mut request = httparse::Request::new(&mut []);
    let room = &mut fields.0[..limits.fields.min(FieldTable::LEN)];
    match request.parse_with_uninit_headers(input, room) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(BAD_FIELD),
        Err(error) => return Err(syntax_error(error)),
    }
    let (Some(method), Some(target)) = (request.method, request.path) else {
        return Err(BAD_REQUEST_LINE);
    };
    let version = if request.version == Some(0) { Version::Http10 } else { Version::Http11 };
    let fields: &'h [Header<'h>] = request.headers;
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

/// A request target in one of its forms (RFC 9112 §3.2).
struct TargetForm<'a> {
    path: &'a str,
    query: Option<&'a str>,
    authority: Option<Host<'a>>,
}

impl<'a> TargetForm<'a> {
    fn parse(method: Method<'_>, target: &'a str) -> Result<Self, Refused> {
        // A fragment never belongs on the wire, and who cuts it reads another target.
        if !target.is_ascii() || target.contains('#') {
            return Err(BAD_TARGET);
        }
        match (method, target) {
            (Method::Connect, authority) => {
                let host = Host::parse(authority.as_bytes()).ok_or(BAD_TARGET)?;
                host.port().ok_or(BAD_TARGET)?;
                Ok(Self { path: "", query: None, authority: Some(host) })
            }
            (_, target) if target.starts_with('/') => {
                let (path, query) = split_query(target);
                Ok(Self { path, query, authority: None })
            }
            (Method::Options, "*") => Ok(Self { path: "*", query: None, authority: None }),
            (_, target) => Self::absolute(target),
        }
    }

    fn absolute(target: &'a str) -> Result<Self, Refused> {
        let (scheme, rest) = target.split_once("://").ok_or(BAD_TARGET)?;
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return Err(BAD_TARGET);
        }
        let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (path, query) = split_query(rest);
        Ok(Self {
            path: if path.is_empty() { "/" } else { path },
            query,
            authority: Some(Host::parse(authority.as_bytes()).ok_or(BAD_TARGET)?),
        })
    }
}

fn split_query(target: &str) -> (&str, Option<&str>) {
    match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
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
            ("\r\nG", 2, Ok(Scan::BlankLine)),
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
        assert_eq!(scan.look(b"\r\n\r\nG", &LIMITS), Ok(Scan::BlankLine));
        assert_eq!(scan.look(b"", &LIMITS), Ok(Scan::NeedMore));
        assert_eq!(scan.look(b"\r\nG", &LIMITS), Err(BAD_REQUEST_LINE));
        let mut scan = HeadScan::default();
        assert_eq!(scan.look(b"\r\nGET\r\n\r\n", &LIMITS), Ok(Scan::BlankLine));
        assert_eq!(scan.look(b"GET\r\n\r\n", &LIMITS), Ok(Scan::Complete(7)));
        assert_eq!(scan.request_line_end(), 3);
    }

    #[test]
    fn versions_are_checked_and_brought_down_to_1_1() {
        for (line, checked) in [
            ("GET / HTTP/1.0", Ok("GET / HTTP/1.0")),
            ("GET / HTTP/1.1", Ok("GET / HTTP/1.1")),
            ("GET / HTTP/1.2", Ok("GET / HTTP/1.1")),
            ("GET /HTTP/1.5 HTTP/1.9", Ok("GET /HTTP/1.5 HTTP/1.1")),
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
            let mut bytes = line.as_bytes().to_vec();
            let result = check_version(&mut bytes).map_err(|refused| refused.status);
            let seen = result.map(|()| String::from_utf8(bytes).unwrap_or_default());
            assert_eq!(seen, checked.map(str::to_owned), "{line:?}");
        }
    }

    /// Path, query and authority.
    type Form = (&'static str, Option<&'static str>, Option<&'static str>);

    #[test]
    fn targets_have_a_form_for_their_method() {
        let forms: &[(&str, &str, Option<Form>)] = &[
            ("GET", "/", Some(("/", None, None))),
            ("GET", "//a?b?c", Some(("//a", Some("b?c"), None))),
            ("GET", "/?", Some(("/", Some(""), None))),
            ("GET", "/http://b/", Some(("/http://b/", None, None))),
            ("GET", "/%00\\\"<>", Some(("/%00\\\"<>", None, None))),
            ("OPTIONS", "*", Some(("*", None, None))),
            ("GET", "http://b", Some(("/", None, Some("b")))),
            ("GET", "http://b?c", Some(("/", Some("c"), Some("b")))),
            ("GET", "https://b:1/c?d", Some(("/c", Some("d"), Some("b")))),
            ("GET", "HTTP://[::1]/", Some(("/", None, Some("[::1]")))),
            ("GET", "http://b/http://c/", Some(("/http://c/", None, Some("b")))),
            ("CONNECT", "b:443", Some(("", None, Some("b")))),
            ("CONNECT", "b", None),
            ("CONNECT", "b:", None),
            ("CONNECT", "/", None),
            ("CONNECT", "http://b:443/", None),
            ("GET", "*", None),
            ("OPTIONS", "**", None),
            ("GET", "b:443", None),
            ("GET", "ftp://b/", None),
            ("GET", "http:/b", None),
            ("GET", "http:///", None),
            ("GET", "http://?b", None),
            ("GET", "http://u@b/", None),
            ("GET", "http://b\\c/", None),
            ("GET", "/#", None),
            ("GET", "/\u{fc}", None),
            ("GET", "", None),
        ];
        for (method, target, form) in forms {
            let parsed = TargetForm::parse(Method::from_token(method), target).ok();
            let parsed =
                parsed.map(|form| (form.path, form.query, form.authority.map(|host| host.name())));
            assert_eq!(parsed, *form, "{method} {target}");
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
