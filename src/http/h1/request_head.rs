//! Reads a request head: the result is a [`RequestHead`] or the reason why it is refused.
//!
//! `parse` checks the syntax. This module refuses what has valid syntax but could be read
//! differently by two parsers: several or malformed Content-Lengths, Content-Length beside
//! Transfer-Encoding, a malformed Host, a target of the wrong form.
//!
//! From [`read`] to the app a head passes through eight functions. They are always inlined: when
//! each of them copied the head, that took a third of the time of a pipelined request.

use std::mem::MaybeUninit;

use httparse::{Header, Status};

use super::{
    framing::{Framing, FramingFields},
    head_scan::{HeadScan, LineFault},
    parse::{self, HeadSyntax, StartLine, is_named},
};
use crate::http::{
    field_table::FieldTable,
    message::{
        Host, Limits, Method, Refused, RequestContent, RequestHead, TargetForm, Version, refused,
        syntax::{is_field_name, is_token_byte},
    },
};

const BAD_REQUEST_LINE: Refused = refused(400, "malformed request line");
const BAD_HOST: Refused = refused(400, "malformed Host");

/// A head and what it says about its connection.
#[derive(Debug)]
pub(super) struct ParsedRequest<'a> {
    pub(super) head: RequestHead<'a>,
    pub(super) keep_alive: bool,
    pub(super) asks_keep_alive: bool,
}

/// Reads a head, if it is complete. Returns its length too.
#[inline(always)]
pub(super) fn read<'h, 'b: 'h>(
    scan: &mut HeadScan,
    input: &'b [u8],
    fields: &'h mut FieldTable<'b>,
    limits: &Limits,
) -> Result<Option<(usize, ParsedRequest<'h>)>, Refused> {
    // This CR may begin the empty line that is skipped.
    if matches!(input, [b'\r']) && !scan.blank_line_seen() {
        return Ok(None);
    }
    match parse::read(scan, input, fields, limits)? {
        Some((len, syntax)) => Ok(Some((len, check(&syntax)?))),
        None => Ok(None),
    }
}

struct RequestLine<'b> {
    method: &'b str,
    target: &'b str,
}

impl<'b> StartLine<'b> for RequestLine<'b> {
    const MALFORMED: Refused = BAD_REQUEST_LINE;

    #[inline(always)]
    fn begins(input: &[u8]) -> bool {
        input.first().copied().is_some_and(is_token_byte)
    }

    #[inline(always)]
    fn parse<'h>(
        head: &'b [u8],
        room: &'h mut [MaybeUninit<Header<'b>>],
    ) -> httparse::Result<(usize, HeadSyntax<'h, Self>)>
    where
        'b: 'h,
    {
        let mut request = httparse::Request::new(&mut []);
        let Status::Complete(len) = request.parse_with_uninit_headers(head, room)? else {
            return Ok(Status::Partial);
        };
        let httparse::Request { method, path, version, headers } = request;
        let start_line =
            Self { method: method.unwrap_or_default(), target: path.unwrap_or_default() };
        let version = parse::version(version);
        Ok(Status::Complete((len, HeadSyntax { start_line, version, fields: headers })))
    }

    fn of_later_version(line: &'b [u8]) -> Result<Option<Self>, Refused> {
        match announced_version(line)? {
            Announced::Known => Ok(None),
            Announced::Later => Self::parse_by_hand(line).map(Some),
        }
    }

    fn fault(fault: LineFault) -> Refused {
        match fault {
            LineFault::BareLf => refused(400, "line not ended by CRLF"),
            LineFault::StartLineTooLong => {
                refused(414, "request line longer than limits.head_bytes")
            }
            LineFault::HeadTooLong => refused(431, "request head longer than limits.head_bytes"),
        }
    }
}

impl<'b> RequestLine<'b> {
    fn parse_by_hand(line: &'b [u8]) -> Result<Self, Refused> {
        let text = std::str::from_utf8(line).map_err(|_| BAD_REQUEST_LINE)?;
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
        Ok(Self { method, target })
    }
}

/// The version that a request line announces.
enum Announced {
    /// 1.1 or 1.0, which httparse knows.
    Known,
    /// A later minor version of 1.
    Later,
}

fn announced_version(request_line: &[u8]) -> Result<Announced, Refused> {
    match request_line {
        [.., b' ', b'H', b'T', b'T', b'P', b'/', major, b'.', minor] => match (major, minor) {
            (b'1', b'0' | b'1') => Ok(Announced::Known),
            (b'1', b'2'..=b'9') => Ok(Announced::Later),
            (b'0'..=b'9', b'0'..=b'9') => {
                Err(refused(505, "only HTTP/1.1 and HTTP/1.0 are supported"))
            }
            _ => Err(BAD_REQUEST_LINE),
        },
        _ => Err(BAD_REQUEST_LINE),
    }
}

/// Checks what goes beyond syntax.
#[inline(always)]
fn check<'h>(syntax: &HeadSyntax<'h, RequestLine<'h>>) -> Result<ParsedRequest<'h>, Refused> {
    let &HeadSyntax { start_line: RequestLine { method, target }, version, fields } = syntax;
    let known = KnownFields::collect(fields, version)?;
    let method = Method::from_token(method);
    let form = TargetForm::parse(method, target)?;
    if method == Method::Connect {
        return Err(refused(501, "CONNECT is not implemented"));
    }
    let host = known.checked_host(version, &form)?;
    let content = match known.framing.framing()? {
        None => RequestContent::None,
        Some(Framing::Length(length)) => RequestContent::Length(length),
        Some(Framing::Chunked) => RequestContent::Chunked,
    };
    let head = RequestHead {
        method,
        target,
        path: form.path,
        query: form.query,
        version,
        host: form.authority.or(host),
        content,
        expects_continue: known.expects_continue && content.follows(),
        fields,
    };
    Ok(ParsedRequest {
        head,
        keep_alive: known.framing.keeps_alive(version),
        asks_keep_alive: known.framing.asks_keep_alive(),
    })
}

/// The fields that decide about the message and the connection.
#[derive(Default)]
struct KnownFields<'a> {
    host: Option<&'a [u8]>,
    expects_continue: bool,
    framing: FramingFields,
}

impl<'a> KnownFields<'a> {
    #[inline(always)]
    fn collect(fields: &'a [Header<'a>], version: Version) -> Result<Self, Refused> {
        let mut known = Self::default();
        for field in fields {
            // By length first: most fields are none of these.
            match field.name.len() {
                4 if is_named(field, b"host") => known.host(field.value)?,
                6 if is_named(field, b"expect") => {
                    known.expect(field.value, version)?;
                }
                _ => known.framing.take(field, version)?,
            }
        }
        Ok(known)
    }

    /// RFC 9112 §3.2: a second Host is refused even if it is equal to the first.
    fn host(&mut self, value: &'a [u8]) -> Result<(), Refused> {
        match self.host.replace(value) {
            None => Ok(()),
            Some(_) => Err(refused(400, "more than one Host")),
        }
    }

    /// RFC 9110 §10.1.1: the expectation of an HTTP/1.0 client is ignored.
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

    /// RFC 9112 §3.2: HTTP/1.1 needs a Host field also when the target is in absolute form, whose
    /// authority then counts.
    #[inline(always)]
    fn checked_host(
        &self,
        version: Version,
        form: &TargetForm<'_>,
    ) -> Result<Option<Host<'a>>, Refused> {
        match self.host {
            None if version == Version::Http10 => Ok(None),
            None => Err(refused(400, "no Host")),
            // The Host is empty if the target URI has no authority (§3.2).
            Some([]) if form.path == "*" => Ok(None),
            Some(value) => Ok(Some(Host::parse(value).ok_or(BAD_HOST)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let found = announced_version(line.as_bytes()).map_err(|refused| refused.status);
            assert_eq!(found.map(|found| matches!(found, Announced::Later)), is_later, "{line:?}");
        }
    }

    /// The result for the same head on the fast path and on the slow path.
    fn by_each_way(head: &str) -> [Result<String, u16>; 2] {
        let limits = Limits { head_bytes: 1000, fields: 8, content_bytes: 0 };
        let read_on = |scan: &mut HeadScan| {
            let mut fields = FieldTable::new();
            let parsed = read(scan, head.as_bytes(), &mut fields, &limits)?;
            Ok::<_, Refused>(format!("{parsed:?}"))
        };
        let in_pieces = || {
            let mut scan = HeadScan::default();
            scan.look(&head.as_bytes()[..1], &limits).map_err(RequestLine::fault)?;
            read_on(&mut scan)
        };
        let at_once = || read_on(&mut HeadScan::default());
        [in_pieces(), at_once()].map(|outcome| outcome.map_err(|refused| refused.status))
    }

    #[test]
    fn the_fast_and_the_slow_path_give_the_same_result() {
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
        // A later version is read as 1.1, by code of its own.
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

    #[test]
    fn bytes_that_cannot_begin_a_request_are_refused_at_once() {
        let read = |input: &str| {
            let limits = Limits { head_bytes: 24, fields: 4, content_bytes: 0 };
            let mut scan = HeadScan::default();
            let skipped = scan.blank_line(input.as_bytes());
            let mut fields = FieldTable::new();
            let read = read(&mut scan, &input.as_bytes()[skipped..], &mut fields, &limits);
            read.map(|parsed| parsed.is_some()).map_err(|refused| refused.status)
        };
        for input in ["", "\r", "\r\n", "G", "\r\nG"] {
            assert_eq!(read(input), Ok(false), "{input:?}");
        }
        for input in ["\rG", "\n", " G", "\x16\x03\x01", "\r\n\r", "\r\n\n"] {
            assert_eq!(read(input), Err(400), "{input:?}");
        }
    }

    #[test]
    fn content_is_announced_by_the_fields() {
        const EXPECT: &str = "Expect: 100-continue\r\n";
        for (version, lines, content, expects) in [
            ("1.1", EXPECT.to_owned(), RequestContent::None, false),
            ("1.1", format!("{EXPECT}Content-Length: 0\r\n"), RequestContent::Length(0), false),
            ("1.1", format!("{EXPECT}Content-Length: 5\r\n"), RequestContent::Length(5), true),
            ("1.0", format!("{EXPECT}Content-Length: 5\r\n"), RequestContent::Length(5), false),
            ("1.1", "Transfer-Encoding: chunked\r\n".into(), RequestContent::Chunked, false),
        ] {
            let head = format!("POST / HTTP/{version}\r\nHost: a\r\n{lines}\r\n");
            let limits = Limits { head_bytes: 1000, fields: 8, content_bytes: 0 };
            let mut fields = FieldTable::new();
            let read = read(&mut HeadScan::default(), head.as_bytes(), &mut fields, &limits);
            let (_, ParsedRequest { head, .. }) = read.unwrap().expect("a complete head");
            assert_eq!((head.content(), head.expects_continue()), (content, expects), "{lines:?}");
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
}
