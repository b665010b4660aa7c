//! From the bytes of a response head to what it says, or to the reason why it is refused.
//!
//! As for requests, httparse checks the syntax of the lines, and what it lets through is refused
//! here: bare LF, an empty line before the status line, a status code that is none. A head that
//! came whole is parsed at once; the long way round alone refuses.

use std::mem::MaybeUninit;

use httparse::{Header, ParserConfig};

use super::{
    field_table::FieldTable,
    framing::{BAD_FIELD, Framing, FramingFields, field_error},
    head_scan::{Fault, HeadScan, Scan, has_strict_lines},
};
use crate::http::message::{
    Limits, Refused, ResponseContent, ResponseHead, Version, refused, syntax::is_text_byte,
};

const BAD_STATUS_LINE: Refused = refused(502, "malformed status line");

const FOLDED: Refused = refused(502, "a field line that is folded");

const BLANK_BEFORE_COLON: Refused =
    refused(502, "a blank before the colon of Content-Length or Transfer-Encoding");

/// What every response begins with.
const PROTOCOL: &[u8] = b"HTTP/";

/// A head and what it says about its message and connection.
#[derive(Debug)]
pub(super) struct ParsedResponse<'a> {
    pub(super) status: u16,
    reason: &'a str,
    pub(super) version: Version,
    pub(super) framing: FramingFields,
    fields: &'a [Header<'a>],
}

impl<'a> ParsedResponse<'a> {
    /// The head, for content that is framed so.
    pub(super) fn head(
        &self,
        framing: Option<Framing>,
        content: ResponseContent,
    ) -> ResponseHead<'a> {
        let content_length = match framing {
            Some(Framing::Length(length)) => Some(length),
            Some(Framing::Chunked) | None => None,
        };
        let &Self { status, reason, version, fields, .. } = self;
        ResponseHead { status, reason, version, content, content_length, fields }
    }

    /// Whether an `Upgrade` field names a protocol.
    pub(super) fn names_protocol(&self) -> bool {
        let is_upgrade = |field: &&Header<'_>| field.name.eq_ignore_ascii_case("upgrade");
        self.fields.iter().filter(is_upgrade).any(|field| !field.value.is_empty())
    }
}

/// Reads a head, if it is complete. Returns its length too.
pub(super) fn read<'h, 'b: 'h>(
    scan: &mut HeadScan,
    input: &'b [u8],
    fields: &'h mut FieldTable<'b>,
    limits: &Limits,
) -> Result<Option<(usize, ParsedResponse<'h>)>, Refused> {
    if scan.is_untouched()
        && let Some((len, syntax)) = parse_at_once(input, &mut fields.at_once, limits)
    {
        return Ok(Some((len, check(&syntax, input)?)));
    }
    let begun = input.len().min(PROTOCOL.len());
    if input[..begun] != PROTOCOL[..begun] {
        return Err(BAD_STATUS_LINE);
    }
    let Scan::Complete(len) = scan.look(input, limits).map_err(fault)? else { return Ok(None) };
    let head = &input[..len];
    let (status_line, lines) = scan.start_line_and_rest(head);
    let syntax = if let Some(rest) = later_version(status_line) {
        fields.later_version.resize(limits.fields, httparse::EMPTY_HEADER);
        parse_later_version(rest, (head, lines), &mut fields.later_version)?
    } else {
        let mut response = httparse::Response::new(&mut []);
        let room = &mut fields.in_pieces[..limits.fields.min(FieldTable::LEN)];
        match parse(&mut response, head, room) {
            Ok(httparse::Status::Complete(_)) => Syntax::of(response),
            Ok(httparse::Status::Partial) => return Err(BAD_FIELD),
            Err(error) => return Err(syntax_error(error, head)),
        }
    };
    Ok(Some((len, check(&syntax, head)?)))
}

/// Parses a head that came whole, if nothing has to be said about its syntax.
fn parse_at_once<'h, 'b: 'h>(
    input: &'b [u8],
    room: &'h mut [MaybeUninit<Header<'b>>],
    limits: &Limits,
) -> Option<(usize, Syntax<'h>)> {
    if !input.starts_with(PROTOCOL) {
        return None;
    }
    let mut response = httparse::Response::new(&mut []);
    let room = &mut room[..limits.fields.min(FieldTable::LEN)];
    let Ok(httparse::Status::Complete(len)) = parse(&mut response, input, room) else {
        return None;
    };
    let is_strict = len <= limits.head_bytes && has_strict_lines(&input[..len], response.headers);
    is_strict.then(|| (len, Syntax::of(response)))
}

fn parse<'h, 'b>(
    response: &mut httparse::Response<'h, 'b>,
    input: &'b [u8],
    room: &'h mut [MaybeUninit<Header<'b>>],
) -> httparse::Result<usize> {
    // RFC 9112 §5.1: a proxy removes blanks before a colon. Where that frames, it is refused.
    let mut config = ParserConfig::default();
    config.allow_spaces_after_header_name_in_responses(true);
    config.parse_response_with_uninit_headers(response, input, room)
}

/// What stands behind a later minor version of 1, which the parser does not know.
fn later_version(status_line: &[u8]) -> Option<&[u8]> {
    match status_line.strip_prefix(b"HTTP/1.") {
        Some([b'2'..=b'9', b' ', rest @ ..]) => Some(rest),
        _ => None,
    }
}

/// Such a response is read as 1.1 (RFC 9110 §2.5); its status line is taken apart by hand.
fn parse_later_version<'h, 'b: 'h>(
    code_and_reason: &'b [u8],
    (head, lines): (&'b [u8], &'b [u8]),
    room: &'h mut [Header<'b>],
) -> Result<Syntax<'h>, Refused> {
    let (code, reason) = code_and_reason.split_at_checked(3).ok_or(BAD_STATUS_LINE)?;
    let reason = match reason {
        [] => reason,
        [b' ', reason @ ..] => reason,
        _ => return Err(BAD_STATUS_LINE),
    };
    if !code.iter().all(u8::is_ascii_digit) || !reason.iter().copied().all(is_text_byte) {
        return Err(BAD_STATUS_LINE);
    }
    let status = code.iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
    let reason = std::str::from_utf8(reason).ok().filter(|reason| reason.is_ascii());
    let reason = reason.unwrap_or_default();
    match httparse::parse_headers(lines, room) {
        Ok(httparse::Status::Complete((_, fields))) => {
            Ok(Syntax { status, reason, version: Version::Http11, fields })
        }
        Ok(httparse::Status::Partial) => Err(BAD_FIELD),
        Err(error) => Err(syntax_error(error, head)),
    }
}

/// A head whose syntax stands.
struct Syntax<'a> {
    status: u16,
    reason: &'a str,
    version: Version,
    fields: &'a [Header<'a>],
}

impl<'h> Syntax<'h> {
    /// What a parse that was completed found.
    fn of<'b: 'h>(response: httparse::Response<'h, 'b>) -> Self {
        let httparse::Response { version, code, reason, headers } = response;
        Self {
            status: code.unwrap_or_default(),
            reason: reason.unwrap_or_default(),
            version: if version == Some(0) { Version::Http10 } else { Version::Http11 },
            fields: headers,
        }
    }
}

/// Checks what the syntax leaves open. The fields lie in `head`.
fn check<'h>(syntax: &Syntax<'h>, head: &[u8]) -> Result<ParsedResponse<'h>, Refused> {
    let &Syntax { status, reason, version, fields } = syntax;
    // Beyond these no status has a meaning (RFC 9110 §15).
    if !(100..=599).contains(&status) {
        return Err(refused(502, "a status that is not 100 to 599"));
    }
    if fields.iter().any(|field| is_loose_framing(field, head)) {
        return Err(BLANK_BEFORE_COLON);
    }
    let framing = FramingFields::collect(fields, version)?;
    Ok(ParsedResponse { status, reason, version, framing, fields })
}

/// Whether a field frames the message, and a blank stands before its colon: some readers take it
/// for another field.
fn is_loose_framing(field: &Header<'_>, head: &[u8]) -> bool {
    let frames = match field.name.len() {
        14 => field.name.eq_ignore_ascii_case("content-length"),
        17 => field.name.eq_ignore_ascii_case("transfer-encoding"),
        _ => false,
    };
    let end = || field.name.as_ptr().addr() - head.as_ptr().addr() + field.name.len();
    frames && head.get(end()) != Some(&b':')
}

fn syntax_error(error: httparse::Error, head: &[u8]) -> Refused {
    let is_folded = || head.windows(3).any(|bytes| matches!(bytes, b"\r\n " | b"\r\n\t"));
    match error {
        httparse::Error::HeaderName if is_folded() => FOLDED,
        httparse::Error::Version => refused(502, "only HTTP/1.1 and HTTP/1.0 are spoken here"),
        error => field_error(error).unwrap_or(BAD_STATUS_LINE),
    }
}

fn fault(fault: Fault) -> Refused {
    match fault {
        Fault::BareLf => refused(502, "line not ended by CRLF"),
        Fault::StartLineTooLong | Fault::HeadTooLong => {
            refused(431, "response head longer than limits.head_bytes")
        }
    }
}
