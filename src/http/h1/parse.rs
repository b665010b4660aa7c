//! Parses a head into its start line and fields, for requests and responses.
//!
//! httparse checks the syntax of the lines. A complete and valid head is parsed at once (the fast
//! path). Every other head takes the slow path: [`HeadScan`] finds its end, then the whole head is
//! parsed. Only the slow path refuses, so the result does not depend on how the bytes were split.
//!
//! `request_head` and `response_head` check what goes beyond syntax. Holds no bytes: the caller
//! keeps the input until the head is complete.

use std::mem::MaybeUninit;

use httparse::{Header, Status};

use super::head_scan::{HeadScan, LineFault, Scan};
use crate::http::{
    field_table::FieldTable,
    message::{Limits, Refused, Version, refused},
};

const BAD_FIELD: Refused = refused(400, "malformed header field");

/// A request line or a status line, and what differs between their heads.
pub(super) trait StartLine<'b>: Sized {
    /// The answer to a start line that cannot be read.
    const MALFORMED: Refused;

    /// Whether a head can begin with these bytes.
    fn begins(input: &[u8]) -> bool;

    /// Parses a head with httparse. Returns its length too.
    fn parse<'h>(
        head: &'b [u8],
        room: &'h mut [MaybeUninit<Header<'b>>],
    ) -> httparse::Result<(usize, HeadSyntax<'h, Self>)>
    where
        'b: 'h;

    /// Reads the start line of a later minor version of 1, which httparse does not know and which
    /// is read as 1.1 (RFC 9110 §2.5). `None` for a version that httparse knows.
    fn of_later_version(line: &'b [u8]) -> Result<Option<Self>, Refused>;

    /// The answer to an error of httparse that has a meaning of its own in this kind of head.
    fn special_error(_error: httparse::Error, _head: &[u8]) -> Option<Refused> {
        None
    }

    /// The answer to a fault of the lines.
    fn fault(fault: LineFault) -> Refused;
}

/// A head with valid syntax.
pub(super) struct HeadSyntax<'h, L> {
    pub(super) start_line: L,
    pub(super) version: Version,
    pub(super) fields: &'h [Header<'h>],
}

/// Reads a head, if it is complete. Returns its length too.
// Always inlined, like the functions it calls: `request_head` says why.
#[inline(always)]
pub(super) fn read<'h, 'b: 'h, L: StartLine<'b>>(
    scan: &mut HeadScan,
    input: &'b [u8],
    fields: &'h mut FieldTable<'b>,
    limits: &Limits,
) -> Result<Option<(usize, HeadSyntax<'h, L>)>, Refused> {
    let FieldTable { at_once, in_pieces, later_version } = fields;
    if scan.is_untouched()
        && let Some(parsed) = parse_at_once(input, at_once, limits)
    {
        return Ok(Some(parsed));
    }
    read_the_long_way(scan, input, (in_pieces, later_version), limits)
}

/// The slow path: reads a head that is incomplete, or may have to be refused.
// Cold, so that the code of the fast path stays together.
#[cold]
#[inline(never)]
fn read_the_long_way<'h, 'b: 'h, L: StartLine<'b>>(
    scan: &mut HeadScan,
    input: &'b [u8],
    (room, later_version): (&'h mut [MaybeUninit<Header<'b>>], &'h mut Vec<Header<'b>>),
    limits: &Limits,
) -> Result<Option<(usize, HeadSyntax<'h, L>)>, Refused> {
    if !input.is_empty() && !L::begins(input) {
        return Err(L::MALFORMED);
    }
    let Scan::Complete(len) = scan.look(input, limits).map_err(L::fault)? else { return Ok(None) };
    let head = &input[..len];
    let (start_line, lines) = scan.start_line_and_rest(head);
    let syntax = match L::of_later_version(start_line)? {
        None => parse_whole(head, room, limits)?,
        Some(start_line) => {
            later_version.resize(limits.fields, httparse::EMPTY_HEADER);
            parse_fields(start_line, (head, lines), later_version)?
        }
    };
    Ok(Some((len, syntax)))
}

/// The fast path: parses a complete head with valid syntax. `None` for every other head, and for
/// one behind empty lines: the slow path handles them.
#[inline(always)]
fn parse_at_once<'h, 'b: 'h, L: StartLine<'b>>(
    input: &'b [u8],
    room: &'h mut [MaybeUninit<Header<'b>>],
    limits: &Limits,
) -> Option<(usize, HeadSyntax<'h, L>)> {
    if input.is_empty() || !L::begins(input) {
        return None;
    }
    let room = &mut room[..limits.fields.min(FieldTable::LEN)];
    let Ok(Status::Complete((len, syntax))) = L::parse(input, room) else { return None };
    let is_strict = len <= limits.head_bytes && has_strict_lines(&input[..len], syntax.fields);
    is_strict.then_some((len, syntax))
}

/// Parses a complete head.
fn parse_whole<'h, 'b: 'h, L: StartLine<'b>>(
    head: &'b [u8],
    room: &'h mut [MaybeUninit<Header<'b>>],
    limits: &Limits,
) -> Result<HeadSyntax<'h, L>, Refused> {
    let room = &mut room[..limits.fields.min(FieldTable::LEN)];
    match L::parse(head, room) {
        Ok(Status::Complete((_, syntax))) => Ok(syntax),
        Ok(Status::Partial) => Err(BAD_FIELD),
        Err(error) => Err(refusal::<L>(error, head)),
    }
}

/// Parses the field lines behind a start line of a later version.
fn parse_fields<'h, 'b: 'h, L: StartLine<'b>>(
    start_line: L,
    (head, lines): (&'b [u8], &'b [u8]),
    room: &'h mut [Header<'b>],
) -> Result<HeadSyntax<'h, L>, Refused> {
    match httparse::parse_headers(lines, room) {
        Ok(Status::Complete((_, fields))) => {
            Ok(HeadSyntax { start_line, version: Version::Http11, fields })
        }
        Ok(Status::Partial) => Err(BAD_FIELD),
        Err(error) => Err(refusal::<L>(error, head)),
    }
}

/// The answer to a head that httparse rejects.
fn refusal<'b, L: StartLine<'b>>(error: httparse::Error, head: &[u8]) -> Refused {
    L::special_error(error, head).unwrap_or(match error {
        httparse::Error::TooManyHeaders => refused(431, "more fields than limits.headers"),
        httparse::Error::HeaderName | httparse::Error::HeaderValue => BAD_FIELD,
        _ => L::MALFORMED,
    })
}

/// Whether a field has this name, which is in lower case. Names are tokens, and in those bit 5 is
/// all that a letter of a name and its upper case differ in.
#[inline(always)]
pub(super) fn is_named<const N: usize>(field: &Header<'_>, name: &[u8; N]) -> bool {
    let Ok(field_name) = <&[u8; N]>::try_from(field.name.as_bytes()) else { return false };
    let differences = field_name.iter().zip(name).map(|(a, b)| (a | 0x20) ^ b);
    differences.fold(0, |all, difference| all | difference) == 0
}

/// The version of a message that httparse parsed.
pub(super) fn version(minor: Option<u8>) -> Version {
    if minor == Some(0) { Version::Http10 } else { Version::Http11 }
}

/// Whether every line of a head ends with CRLF. httparse also accepts a bare LF, so this looks for
/// a CRLF before each field.
#[inline(always)]
fn has_strict_lines(head: &[u8], fields: &[Header<'_>]) -> bool {
    // A plain loop: `Iterator::all` isn't always inlined.
    for field in fields {
        let start = field.name.as_ptr().addr() - head.as_ptr().addr();
        if !head[..start].ends_with(b"\r\n") {
            return false;
        }
    }
    head.ends_with(b"\r\n\r\n")
}
