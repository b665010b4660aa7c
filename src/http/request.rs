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
