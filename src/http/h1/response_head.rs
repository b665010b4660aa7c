//! Reads a response head: the result is a [`ParsedResponse`] or the reason why it is refused.
//!
//! `parse` checks the syntax. This module refuses what has valid syntax: a status code out of
//! range, and a blank before the colon of a field that frames the message.

use std::mem::MaybeUninit;

use httparse::{Header, ParserConfig, Status};

use super::{
    framing::{Framing, FramingFields},
    head_scan::{HeadScan, LineFault},
    parse::{self, HeadSyntax, StartLine, is_named},
};
use crate::http::{
    field_table::FieldTable,
    message::{
        Limits, Refused, ResponseContent, ResponseHead, Version, refused, syntax::is_text_byte,
    },
};

const BAD_STATUS_LINE: Refused = refused(502, "malformed status line");

const FOLDED: Refused = refused(502, "a folded field line");

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
    /// The head, with this framing and content.
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
    match parse::read(scan, input, fields, limits)? {
        Some((len, syntax)) => Ok(Some((len, check(&syntax, input)?))),
        None => Ok(None),
    }
}

struct StatusLine<'b> {
    status: u16,
    reason: &'b str,
}

impl<'b> StartLine<'b> for StatusLine<'b> {
    const MALFORMED: Refused = BAD_STATUS_LINE;

    fn begins(input: &[u8]) -> bool {
        let begun = input.len().min(PROTOCOL.len());
        input[..begun] == PROTOCOL[..begun]
    }

    fn parse<'h>(
        head: &'b [u8],
        room: &'h mut [MaybeUninit<Header<'b>>],
    ) -> httparse::Result<(usize, HeadSyntax<'h, Self>)>
    where
        'b: 'h,
    {
        // RFC 9112 §5.1: a proxy removes blanks before a colon. `check` refuses them in the fields
        // that frame the message.
        let mut config = ParserConfig::default();
        config.allow_spaces_after_header_name_in_responses(true);
        let mut response = httparse::Response::new(&mut []);
        let parsed = config.parse_response_with_uninit_headers(&mut response, head, room)?;
        let Status::Complete(len) = parsed else { return Ok(Status::Partial) };
        let httparse::Response { version, code, reason, headers } = response;
        let start_line =
            Self { status: code.unwrap_or_default(), reason: reason.unwrap_or_default() };
        let version = parse::version(version);
        Ok(Status::Complete((len, HeadSyntax { start_line, version, fields: headers })))
    }

    fn of_later_version(line: &'b [u8]) -> Result<Option<Self>, Refused> {
        match line.strip_prefix(b"HTTP/1.") {
            Some([b'2'..=b'9', b' ', rest @ ..]) => Self::parse_by_hand(rest).map(Some),
            _ => Ok(None),
        }
    }

    fn special_error(error: httparse::Error, head: &[u8]) -> Option<Refused> {
        let is_folded = || head.windows(3).any(|bytes| matches!(bytes, b"\r\n " | b"\r\n\t"));
        match error {
            httparse::Error::HeaderName if is_folded() => Some(FOLDED),
            httparse::Error::Version => {
                Some(refused(502, "only HTTP/1.1 and HTTP/1.0 are supported"))
            }
            _ => None,
        }
    }

    fn fault(fault: LineFault) -> Refused {
        match fault {
            LineFault::BareLf => refused(502, "line not ended by CRLF"),
            LineFault::StartLineTooLong | LineFault::HeadTooLong => {
                refused(431, "response head longer than limits.head_bytes")
            }
        }
    }
}

impl<'b> StatusLine<'b> {
    fn parse_by_hand(code_and_reason: &'b [u8]) -> Result<Self, Refused> {
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
        Ok(Self { status, reason: reason.unwrap_or_default() })
    }
}

/// Checks what goes beyond syntax. The fields borrow from `head`.
fn check<'h>(
    syntax: &HeadSyntax<'h, StatusLine<'h>>,
    head: &[u8],
) -> Result<ParsedResponse<'h>, Refused> {
    let &HeadSyntax { start_line: StatusLine { status, reason }, version, fields } = syntax;
    // Other codes are invalid (RFC 9110 §15).
    if !(100..=599).contains(&status) {
        return Err(refused(502, "a status that is not 100 to 599"));
    }
    if fields.iter().any(|field| is_loose_framing(field, head)) {
        return Err(BLANK_BEFORE_COLON);
    }
    let framing = FramingFields::collect(fields, version)?;
    Ok(ParsedResponse { status, reason, version, framing, fields })
}

/// Whether a field frames the message and has a blank before its colon: some parsers take it for
/// another field.
fn is_loose_framing(field: &Header<'_>, head: &[u8]) -> bool {
    let end = field.name.as_ptr().addr() - head.as_ptr().addr() + field.name.len();
    head.get(end) != Some(&b':')
        && (is_named(field, b"content-length") || is_named(field, b"transfer-encoding"))
}
