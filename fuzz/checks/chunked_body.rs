//! Chunked content: requests and responses read it alike but for padded sizes, in any split, and as
//! a plain reader does; and what is passed on of it is the same again.

use std::time::UNIX_EPOCH;

use tidegate::http::{
    Bytes, FieldTable, Fields, Limits, Refused, RequestContent, Response, ServerEvent,
    h1::{self, ClientEvent, ClientRequest, HeadTemplate},
};

use super::{
    in_any_split,
    oracle::{Chunked, ChunkedEnd},
};

const REQUEST: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

pub fn check(data: &[u8]) {
    let Some((&[limits, a, b, c, d], wire)) = data.split_first_chunk() else { return };
    let limits = super::limits(limits);
    let read = in_any_split(wire, [a, b, c, d], |pieces| as_request(pieces, &limits));
    let again = in_any_split(wire, [a, b, c, d], |pieces| as_response(pieces, &limits));
    let plain = Chunked::read(wire);
    compare(&read, &plain, wire, &limits);
    let padded = Chunked::read_response(wire);
    // The limit of content is the requests' alone, and its status the requests' too.
    match (&read.end, &again.end) {
        // A server may pad its sizes, a client may not.
        (End::Refused(_), other) if plain.end != padded.end => match other {
            End::Whole(end) => {
                assert_eq!(
                    (padded.end, &padded.content),
                    (ChunkedEnd::Whole(*end), &again.content)
                );
            }
            End::NeedMore => assert_eq!(padded.end, ChunkedEnd::Partial),
            End::Refused(_) => {}
        },
        (End::Refused(Refused { status: 413, .. }), _) => {}
        // Behind a padded size a response is read on, and may be refused for something else.
        (End::Refused(one), End::Refused(other)) => {
            assert!(one.reason == other.reason || one.reason == "malformed chunk size");
        }
        _ => assert_eq!(read, again),
    }
    if matches!(read.end, End::Whole(_)) {
        let written = write_on(&read);
        let plain = Chunked::read(&written);
        assert_eq!(plain.end, ChunkedEnd::Whole(written.len()));
        assert_eq!((&plain.content, lines(&plain)), (&read.content, read.trailers));
    }
}

#[derive(Debug, PartialEq)]
struct Read {
    content: Vec<u8>,
    /// The trailer lines that are kept, each with its CRLF; of whole content alone.
    trailers: Vec<u8>,
    end: End,
}

#[derive(Debug, PartialEq)]
enum End {
    NeedMore,
    /// With the bytes up to it.
    Whole(usize),
    Refused(Refused),
}

fn as_request(pieces: &[&[u8]], limits: &Limits) -> Read {
    let (mut exchange, mut fields) = (h1::Server::new(), FieldTable::new());
    let head = Limits { head_bytes: REQUEST.len(), fields: 2, ..*limits };
    let (used, event) = exchange.next_event(REQUEST, &mut fields, &head);
    assert!(matches!(event, ServerEvent::Request(_, _, None)) && used == REQUEST.len());
    exchange.keep_trailers();
    let (mut content, mut done) = (Vec::new(), 0);
    let end = 'end: {
        for mut piece in pieces.iter().copied() {
            loop {
                let mut fields = FieldTable::new();
                let (used, event) = exchange.next_event(piece, &mut fields, limits);
                piece = &piece[used..];
                done += used;
                match event {
                    ServerEvent::NeedMore => break,
                    ServerEvent::Content(_, bytes) => content.extend_from_slice(bytes),
                    ServerEvent::ContentEnd(_) => break 'end End::Whole(done),
                    ServerEvent::Refused(_, refused) => break 'end End::Refused(refused),
                    event => panic!("{event:?} within content"),
                }
            }
            assert!(piece.is_empty(), "{} bytes are left unread", piece.len());
        }
        End::NeedMore
    };
    assert_eq!(exchange.reads_content(), end == End::NeedMore);
    let is_whole = matches!(end, End::Whole(_));
    let trailers = exchange.trailers().filter(|_| is_whole).map(|kept| kept.lines().to_vec());
    // Whether it keeps the connection hangs on the content alone.
    let mut out = Vec::new();
    exchange.respond(&Response::new(204), 0, &HeadTemplate::at(UNIX_EPOCH), &mut out);
    let closes = out.ends_with(b"Connection: close\r\n\r\n");
    assert_eq!(closes, matches!(end, End::Refused(_)));
    Read { content, trailers: trailers.unwrap_or_default(), end }
}

fn as_response(pieces: &[&[u8]], limits: &Limits) -> Read {
    let mut exchange = begin(RequestContent::None, &mut Vec::new());
    let mut fields = FieldTable::new();
    let head = Limits { head_bytes: RESPONSE.len(), fields: 2, ..*limits };
    let (used, event) = exchange.next_event(RESPONSE, &mut fields, &head);
    assert!(matches!(event, ClientEvent::Response(_)) && used == RESPONSE.len());
    let (mut content, mut done) = (Vec::new(), 0);
    let end = 'end: {
        for mut piece in pieces.iter().copied() {
            loop {
                let mut fields = FieldTable::new();
                let (used, event) = exchange.next_event(piece, &mut fields, limits);
                piece = &piece[used..];
                done += used;
                match event {
                    ClientEvent::NeedMore => break,
                    ClientEvent::Content(bytes) => content.extend_from_slice(bytes),
                    ClientEvent::End => break 'end End::Whole(done),
                    ClientEvent::Refused(refused) => break 'end End::Refused(refused),
                    event => panic!("{event:?} within content"),
                }
            }
            assert!(piece.is_empty(), "{} bytes are left unread", piece.len());
        }
        End::NeedMore
    };
    let is_whole = matches!(end, End::Whole(_));
    assert_eq!(exchange.response_done(), is_whole);
    let trailers = if is_whole { exchange.trailers().lines().to_vec() } else { Vec::new() };
    Read { content, trailers, end }
}

/// What was read, beside what the plain reader has.
fn compare(read: &Read, plain: &Chunked, wire: &[u8], limits: &Limits) {
    let is_too_much = plain.announced > u128::from(limits.content_bytes);
    match &read.end {
        End::NeedMore => {
            assert_eq!((plain.end, &plain.content), (ChunkedEnd::Partial, &read.content));
            assert!(!is_too_much);
        }
        End::Whole(used) => {
            assert_eq!((plain.end, &plain.content), (ChunkedEnd::Whole(*used), &read.content));
            assert!(!is_too_much && plain.trailers.len() <= limits.fields);
            check_trailers(&read.trailers, plain);
        }
        End::Refused(Refused { status: 413, .. }) => assert!(is_too_much),
        End::Refused(Refused { status: 431, .. }) => {
            let lines = wire.iter().filter(|byte| **byte == b'\n').count();
            assert!(
                wire.len() > limits.head_bytes || lines >= limits.fields,
                "no limit is reached"
            );
        }
        End::Refused(Refused { status, reason }) => {
            assert_eq!((*status, plain.end), (400, ChunkedEnd::Malformed), "{reason}");
        }
    }
    assert!(plain.content.starts_with(&read.content));
}

/// None is added or changed, and none is dropped that means nothing here.
fn check_trailers(kept: &[u8], plain: &Chunked) {
    let mut kept = kept.split_inclusive(|byte| *byte == b'\n').peekable();
    for line in &plain.trailers {
        let is_kept = kept.next_if(|other| other.strip_suffix(b"\r\n") == Some(line)).is_some();
        assert!(is_kept || line[1] != b':', "a field of one letter is dropped");
    }
    assert_eq!(kept.next(), None);
}

/// The content and its trailers, as they are sent to an upstream.
fn write_on(read: &Read) -> Vec<u8> {
    let mut out = Vec::new();
    let mut exchange = begin(RequestContent::Chunked, &mut out);
    out.clear();
    let (one, other) = read.content.split_at(read.content.len() / 2);
    exchange.write_content(one, &mut out);
    exchange.write_content(other, &mut out);
    exchange.end_content(&Fields::from_lines(Bytes::Borrowed(&read.trailers)), &mut out);
    assert!(exchange.request_done());
    out
}

fn begin(content: RequestContent, out: &mut Vec<u8>) -> h1::Client {
    out.extend_from_slice(b"PUT / HTTP/1.1\r\nHost: a\r\n");
    let request = ClientRequest {
        content,
        is_head: false,
        upgrade: false,
        expects_continue: false,
        close: false,
    };
    h1::Client::begin(&request, out)
}

fn lines(plain: &Chunked) -> Vec<u8> {
    plain.trailers.iter().flat_map(|line| [line, &b"\r\n"[..]].concat()).collect()
}
