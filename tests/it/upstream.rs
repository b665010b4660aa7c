//! Byte transcripts of exchanges with an upstream: how its response is read, in every split.
//!
//! Each transcript is run at once, byte by byte, cut in two at every offset, and in random pieces;
//! all runs must give the same trace. The notation of a trace:
//!
//! ```text
//! (103)         an interim response
//! [200 length]  a response: status, and its content: none, length, chunked or close
//! +hello        content, its blanks as `_`
//! .             its end, with its trailers: `.{A: b}`
//! !what         refused, and why
//! ~             truncated
//! kept, lost    at the end: whether the connection can be reused
//! ```

use proptest::prelude::*;
use tidegate::http::{
    FieldTable, Fields, Limits, RequestContent, Response, ResponseContent, ServerEvent, Version,
    h1::{self, ClientEvent, ClientRequest},
};

use crate::exchange_support::{Random, fields, opening, pieces};

use Asked::{Get, Head, Put, Upgrade};

const LIMITS: Limits = Limits { head_bytes: 256, fields: 8, content_bytes: 4 };

/// The request to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Get,
    Head,
    Upgrade,
    /// A PUT whose content waits for a 100 and was not sent.
    Put,
}

impl Asked {
    fn begin(self, out: &mut Vec<u8>) -> h1::Client {
        out.extend_from_slice(b"X / HTTP/1.1\r\nHost: a\r\n");
        let request = ClientRequest {
            content: if self == Put { RequestContent::Length(5) } else { RequestContent::None },
            is_head: self == Head,
            upgrade: self == Upgrade,
            expects_continue: self == Put,
            close: false,
        };
        h1::Client::begin(&request, out)
    }
}

/// The request, the response, and its trace. `EOF` at its end is the end of the connection.
type Transcript = (Asked, &'static str, &'static str);

macro_rules! chunked {
    ($($content:tt)*) => {
        concat!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", $($content)*)
    };
}

const FRAMINGS: &[Transcript] = &[
    (Get, "", "lost"),
    (Get, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "[200 length] +hello . kept"),
    (Get, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "[200 length] . kept"),
    (Get, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", "[200 length] +hel lost"),
    (Get, chunked!("5\r\nhello\r\n0\r\n\r\n"), "[200 chunked] +hello . kept"),
    (Get, chunked!("2;a=\"b\"\r\nhe\r\n03\r\nllo\r\n0\r\n\r\n"), "[200 chunked] +hello . kept"),
    // Blanks behind a size, with an extension (RFC 9112 §7.1.1) or as padding.
    (Get, chunked!("2 ; a = b\r\nhe\r\n03\t;\r\nllo\r\n0\r\n\r\n"), "[200 chunked] +hello . kept"),
    (Get, chunked!("5   \r\nhello\r\n0 \t \r\n\r\n"), "[200 chunked] +hello . kept"),
    // A blank before a colon is removed (RFC 9112 §5.1).
    (Get, "HTTP/1.1 200 OK\r\nA : b\r\nContent-Length: 0\r\n\r\n", "[200 length] . kept"),
    (
        Get,
        "HTTP/1.1 200 OK\r\nConnection\t: close\r\nContent-Length: 0\r\n\r\n",
        "[200 length] . lost",
    ),
    (Get, chunked!("5\r\nhello\r\n0\r\n"), "[200 chunked] +hello lost"),
    (
        Get,
        chunked!("1\r\nx\r\n0\r\nA: b\r\nContent-Length: 5\r\nC:\r\n\r\n"),
        "[200 chunked] +x .{A: b, C: } kept",
    ),
    (Get, "HTTP/1.1 200 OK\r\n\r\nhello", "[200 close] +hello lost"),
    (Get, "HTTP/1.1 200 OK\r\n\r\nhelloEOF", "[200 close] +hello . lost"),
    (Get, "HTTP/1.1 200 OK\r\n\r\nEOF", "[200 close] . lost"),
    (Get, "HTTP/1.0 200 OK\r\n\r\nHTTP/1.1 200EOF", "[200 close] +HTTP/1.1_200 . lost"),
    // Without content whatever the fields say (RFC 9112 §6.3).
    (Head, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "[200 none 5] . kept"),
    (Head, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "[200 none] . kept"),
    (Head, "HTTP/1.1 200 OK\r\n\r\n", "[200 none] . kept"),
    (Get, "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", "[304 none 5] . kept"),
    (Get, "HTTP/1.1 304 Not Modified\r\n\r\n", "[304 none] . kept"),
    (Get, "HTTP/1.1 204 No Content\r\n\r\n", "[204 none] . kept"),
    (Get, "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", "[204 none 0] . kept"),
    // A 204 must not announce content; if it does, the connection is not reused.
    (Get, "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", "[204 none 5] . lost"),
    (
        Get,
        "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "[204 none] . lost",
    ),
    (Get, "HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n", "[205 length] . kept"),
    // The limit on content applies only to requests.
    (Get, "HTTP/1.1 599 X\r\nContent-Length: 9\r\n\r\n123456789", "[599 length] +123456789 . kept"),
];

const STATUS_LINES: &[Transcript] = &[
    (Get, "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", "[200 length] . kept"),
    (Get, "HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", "[200 length] . kept"),
    (Get, "HTTP/1.1 200  a\tb\r\nContent-Length: 0\r\n\r\n", "[200 length] . kept"),
    (Get, "HTTP/1.1 404 Pas trouv\u{e9}\r\nContent-Length: 0\r\n\r\n", "[404 length] . kept"),
    (Get, "HTTP/1.7 200 OK\r\nContent-Length: 2\r\n\r\nok", "[200 length] +ok . kept"),
    (Get, "HTTP/1.2 404\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "[404 chunked] . kept"),
    (Get, "HTTP/1.9 200 \u{e9}\r\n\r\n", "[200 close] lost"),
];

const CONNECTIONS: &[Transcript] = &[
    (
        Get,
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: Close\r\n\r\n",
        "[200 length] . lost",
    ),
    (
        Get,
        "HTTP/1.1 200\r\nConnection: keep-alive\r\nConnection:x,close\r\nContent-Length: 0\r\n\r\n",
        "[200 length] . lost",
    ),
    (Get, "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", "[200 length] +ok . lost"),
    (
        Get,
        "HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nok",
        "[200 length] +ok . kept",
    ),
    // Unsolicited bytes are never the next response.
    (Get, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok\r\n", "[200 length] +ok . lost"),
    (
        Get,
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        "[200 length] . lost",
    ),
    (Get, "HTTP/1.1 304 Not Modified\r\n\r\nx", "[304 none] . lost"),
    (Head, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "[200 none 5] . lost"),
    (Get, chunked!("0\r\n\r\n0\r\n\r\n"), "[200 chunked] . lost"),
    // The end of the connection.
    (Get, "EOF", "~ lost"),
    (Get, "HTTP/1.1 200 OKEOF", "~ lost"),
    (Get, "HTTP/1.1 100 Continue\r\n\r\nEOF", "(100) ~ lost"),
    (Get, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelEOF", "[200 length] +hel ~ lost"),
    (Get, chunked!("3\r\nhelEOF"), "[200 chunked] +hel ~ lost"),
    (Get, chunked!("3\r\nhel\r\n0\r\nEOF"), "[200 chunked] +hel ~ lost"),
    (Get, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokEOF", "[200 length] +ok . lost"),
];

const INTERIM: &[Transcript] = &[
    (
        Get,
        "HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\nHTTP/1.1 200\r\nContent-Length: 0\r\n\r\n",
        "(103) [200 length] . kept",
    ),
    (
        Get,
        "HTTP/1.1 100\r\n\r\nHTTP/1.1 102\r\nContent-Length: 0\r\n\r\nHTTP/1.1 204\r\n\r\n",
        "(100) (102) [204 none] . kept",
    ),
    // An early answer: it is unknown how the upstream reads the content.
    (Put, "HTTP/1.1 417 X\r\nContent-Length: 0\r\n\r\n", "[417 length] . lost"),
    (
        Put,
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 413 X\r\nContent-Length: 0\r\n\r\n",
        "(100) [413 length] . lost",
    ),
    // After a 101 nothing is read.
    (
        Upgrade,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        "[101 none] lost",
    ),
    (Upgrade, "HTTP/1.1 101 X\r\nUpgrade: websocket\r\n\r\nEOF", "[101 none] lost"),
    (
        Upgrade,
        "HTTP/1.1 100 X\r\n\r\nHTTP/1.1 426 X\r\nUpgrade: a\r\nContent-Length: 0\r\n\r\n",
        "(100) [426 length] . kept",
    ),
];

const BAD_LINE: &str = "malformed status line";
const BAD_VERSION: &str = "only HTTP/1.1 and HTTP/1.0 are supported";
const BAD_STATUS: &str = "a status that is not 100 to 599";
const FOLDED: &str = "a folded field line";
const BLANK: &str = "a blank before the colon of Content-Length or Transfer-Encoding";
const BAD_FIELD: &str = "malformed header field";
const LF: &str = "line not ended by CRLF";
const TWO_LENGTHS: &str = "more than one Content-Length";
const BAD_LENGTH: &str = "malformed Content-Length";
const BESIDE: &str = "Content-Length beside Transfer-Encoding";
const NOT_CHUNKED: &str = "the last transfer coding is not chunked";
const NOT_LAST: &str = "chunked is not the last transfer coding";
const UNKNOWN_CODING: &str = "unknown transfer coding";
const OLD_CODING: &str = "Transfer-Encoding in an HTTP/1.0 message";
const ANNOUNCED: &str = "content announced by a status without content";
const UNASKED: &str = "an unsolicited 101";
const NO_UPGRADE: &str = "a 101 without Upgrade";
const TOO_LONG: &str = "response head longer than limits.head_bytes";

/// A response head and why it is refused. Nothing behind it is read.
const REFUSED_HEADS: &[(Asked, &str, &str)] = &[
    // Status lines (RFC 9112 §4). Only a request may follow an empty line (§2.2).
    (Get, "\r\nHTTP/1.1 200 OK\r\n\r\n", BAD_LINE),
    (Get, " HTTP/1.1 200 OK\r\n\r\n", BAD_LINE),
    (Get, "HTTQ", BAD_LINE),
    (Get, "http/1.1 200 OK\r\n\r\n", BAD_LINE),
    (Get, "ICY 200 OK\r\n\r\n", BAD_LINE),
    (Get, "SSH-2.0-x\r\n", BAD_LINE),
    (Get, "\x15\x03\x01\x00\x02\x02\x46", BAD_LINE),
    (Get, "\0", BAD_LINE),
    (Get, "HTTP/1.1 20 OK\r\n\r\n", BAD_LINE),
    (Get, "HTTP/1.1 2000 OK\r\n\r\n", BAD_LINE),
    (Get, "HTTP/1.1 2x0 OK\r\n\r\n", BAD_LINE),
    (Get, "HTTP/1.1 -20 OK\r\n\r\n", BAD_LINE),
    (Get, "HTTP/1.1 099 OK\r\n\r\n", BAD_STATUS),
    (Get, "HTTP/1.1 600 OK\r\n\r\n", BAD_STATUS),
    (Get, "HTTP/1.1 999 OK\r\n\r\n", BAD_STATUS),
    (Get, "HTTP/1.1  200 OK\r\n\r\n", BAD_LINE),
    (Get, "HTTP/1.1\t200 OK\r\n\r\n", BAD_VERSION),
    (Get, "HTTP/1.1 200\tOK\r\n\r\n", BAD_LINE),
    (Get, "HTTP/1.1 200 O\0K\r\n\r\n", BAD_LINE),
    (Get, "HTTP/1.1 200 O\x7fK\r\n\r\n", BAD_LINE),
    (Get, "HTTP/1.1 200 O\rK\r\n\r\n", BAD_LINE),
    (Get, "HTTP/1.1\r\n\r\n", BAD_VERSION),
    (Get, "HTTP/1.1 \r\n\r\n", BAD_LINE),
    (Get, "HTTP/2.0 200 OK\r\n\r\n", BAD_VERSION),
    (Get, "HTTP/2 200 OK\r\n\r\n", BAD_VERSION),
    (Get, "HTTP/0.9 200 OK\r\n\r\n", BAD_VERSION),
    (Get, "HTTP/1.10 200 OK\r\n\r\n", BAD_VERSION),
    (Get, "HTTP/1.2 20 OK\r\n\r\n", BAD_LINE),
    (Get, "HTTP/1.2 2000 OK\r\n\r\n", BAD_LINE),
    (Get, "HTTP/1.2 +20 OK\r\n\r\n", BAD_LINE),
    (Get, "HTTP/1.2 200 \0\r\n\r\n", BAD_LINE),
    (Get, "HTTP/1.2 \r\n\r\n", BAD_LINE),
    (Get, "HTTP/1.2 200 OK\r\nA : b\r\n\r\n", BAD_FIELD),
    // Field lines (RFC 9112 §5).
    (Get, "HTTP/1.1 200 OK\n\n", LF),
    (Get, "HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n", LF),
    (Get, "HTTP/1.1 200 OK\r\nContent-Length: 0\n\r\n", LF),
    (Get, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\n", LF),
    (Get, "HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n", BLANK),
    (Get, "HTTP/1.1 200 OK\r\nTransfer-Encoding\t: chunked\r\n\r\n", BLANK),
    (Get, "HTTP/1.1 200 OK\r\nA b: c\r\n\r\n", BAD_FIELD),
    (Get, "HTTP/1.1 200 OK\r\nA \r\n: c\r\n\r\n", BAD_FIELD),
    (Get, "HTTP/1.1 200 OK\r\n Content-Length: 0\r\n\r\n", FOLDED),
    (Get, "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", FOLDED),
    (Get, "HTTP/1.1 200 OK\r\nA: b\r\n\tc\r\n\r\n", FOLDED),
    (Get, "HTTP/1.1 200 OK\r\nA: b\0\r\n\r\n", BAD_FIELD),
    (Get, "HTTP/1.1 200 OK\r\nA: b\rContent-Length: 5\r\n\r\n", BAD_FIELD),
    (Get, "HTTP/1.1 200 OK\r\nA\0: b\r\n\r\n", BAD_FIELD),
    (Get, "HTTP/1.1 200 OK\r\nA\r\n\r\n", BAD_FIELD),
    (Get, "HTTP/1.1 200 OK\r\n: b\r\n\r\n", BAD_FIELD),
    // Framing (RFC 9112 §6.1, §6.3), with and without content.
    (Get, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", TWO_LENGTHS),
    (Get, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", TWO_LENGTHS),
    (Head, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", TWO_LENGTHS),
    (Get, "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n", BAD_LENGTH),
    (Get, "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n", BAD_LENGTH),
    (Get, "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", BAD_LENGTH),
    (Get, "HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\n", BAD_LENGTH),
    (Get, "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n", BAD_LENGTH),
    (Get, "HTTP/1.1 304 X\r\nContent-Length: x\r\n\r\n", BAD_LENGTH),
    (Get, "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\n", BAD_LENGTH),
    (Get, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", BESIDE),
    (Get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n", BESIDE),
    (Get, "HTTP/1.1 204 X\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n", BESIDE),
    (Get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", NOT_CHUNKED),
    (Get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n", NOT_CHUNKED),
    (Get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n", NOT_CHUNKED),
    (Get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked;q=1\r\n\r\n", NOT_CHUNKED),
    (Get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", UNKNOWN_CODING),
    (Get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n", NOT_LAST),
    (Get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", NOT_LAST),
    (
        Get,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        NOT_LAST,
    ),
    (Get, "HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\n\r\n", "empty transfer coding"),
    (Get, "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", OLD_CODING),
    (Get, "HTTP/1.1 100 X\r\nContent-Length: 5\r\n\r\n", ANNOUNCED),
    (Get, "HTTP/1.1 103 X\r\nTransfer-Encoding: chunked\r\n\r\n", ANNOUNCED),
    // Tunnels (RFC 9110 §7.8).
    (Get, "HTTP/1.1 101 X\r\nUpgrade: websocket\r\n\r\n", UNASKED),
    (Put, "HTTP/1.1 101 X\r\nUpgrade: websocket\r\n\r\n", UNASKED),
    (Upgrade, "HTTP/1.1 101 X\r\n\r\n", NO_UPGRADE),
    (Upgrade, "HTTP/1.1 101 X\r\nUpgrade: \r\n\r\n", NO_UPGRADE),
    (Upgrade, "HTTP/1.0 101 X\r\nUpgrade: websocket\r\n\r\n", NO_UPGRADE),
    (Upgrade, "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nContent-Length: 5\r\n\r\n", ANNOUNCED),
];

/// Chunked content and why it is refused.
const REFUSED_CHUNKS: &[(&str, &str)] = &[
    ("x\r\n", "malformed chunk size"),
    ("\r\n", "malformed chunk size"),
    (" 1\r\n", "malformed chunk size"),
    ("0x1\r\n", "malformed chunk size"),
    ("+1\r\n", "malformed chunk size"),
    ("1 1\r\n", "malformed chunk size"),
    ("1 \n", "malformed chunk size"),
    ("1                                 \r\n", "malformed chunk size"),
    ("1\n", "malformed chunk size"),
    ("10000000000000000\r\n", "malformed chunk size"),
    ("1;\n", "malformed chunk"),
    ("1;a\0\r\n", "malformed chunk"),
    ("1\rx", "malformed chunk"),
    ("1\r\nab", "malformed chunk"),
    ("1\r\na\n", "malformed chunk"),
    ("1\r\na\r\r", "malformed chunk"),
    ("0\r\nA: b\n", "malformed trailer"),
    ("0\r\n A: b\r\n", "malformed trailer"),
    ("0\r\nA : b\r\n", "malformed trailer"),
    ("0\r\nA: b\r\n c\r\n", "malformed trailer"),
    ("0\r\nA: \0\r\n", "malformed trailer"),
    ("0\r\n\n", "malformed trailer"),
    ("0\r\n\rx", "malformed chunk"),
];

#[test]
fn content_ends_where_its_framing_says() {
    check(FRAMINGS);
}

#[test]
fn status_lines_say_status_and_version() {
    check(STATUS_LINES);
}

#[test]
fn a_connection_is_kept_only_without_a_doubt() {
    check(CONNECTIONS);
}

#[test]
fn interim_responses_come_before_the_final_one() {
    check(INTERIM);
}

#[test]
fn ambiguous_heads_are_refused() {
    for (asked, head, reason) in REFUSED_HEADS {
        let trace = format!("!{reason} lost");
        check_splits(*asked, LIMITS, head.as_bytes(), false, &trace);
        let smuggling = format!("{head}HTTP/1.1 200 OK\r\n\r\nsmuggled");
        check_splits(*asked, LIMITS, smuggling.as_bytes(), true, &trace);
    }
}

#[test]
fn ambiguous_chunks_are_refused() {
    for (content, reason) in REFUSED_CHUNKS {
        for before in ["1\r\nx\r\n", ""] {
            let input = format!("{}{before}{content}", chunked!(""));
            let trace = trace_of(Get, LIMITS, input.as_bytes(), &[], false);
            assert!(trace.ends_with(&format!("!{reason} lost")), "{content:?}: {trace}");
            check_splits(Get, LIMITS, input.as_bytes(), false, &trace);
        }
    }
}

#[test]
fn heads_and_trailers_are_limited() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nA: b\r\n\r\n";
    let limits = |head_bytes, fields| Limits { head_bytes, fields, ..LIMITS };
    for (limits, trace) in [
        (limits(head.len(), 2), "[200 length] . kept".to_owned()),
        (limits(head.len() - 1, 2), format!("!{TOO_LONG} lost")),
        (limits(10, 2), format!("!{TOO_LONG} lost")),
        (limits(head.len(), 1), "!more fields than limits.headers lost".to_owned()),
    ] {
        check_splits(Get, limits, head.as_bytes(), false, &trace);
    }
    let trailers = chunked!("0\r\nA: b\r\nC: d\r\nE: f\r\n\r\n");
    let trace = "[200 chunked] !more trailers than limits.headers lost";
    check_splits(Get, limits(256, 2), trailers.as_bytes(), false, trace);
    let long = format!("{}0\r\nA: {}", chunked!(""), "b".repeat(300));
    let trace = "[200 chunked] !extensions and trailers longer than limits.head_bytes lost";
    check_splits(Get, LIMITS, long.as_bytes(), false, trace);
}

#[test]
fn any_number_of_interim_responses_comes_before_the_final_one() {
    let hints = |count| "HTTP/1.1 103 X\r\n\r\n".repeat(count) + "HTTP/1.1 204 X\r\n\r\n";
    let trace = "(103) ".repeat(40);
    check_splits(Get, LIMITS, hints(40).as_bytes(), false, &format!("{trace}[204 none] . kept"));
}

#[test]
fn a_request_is_written_with_its_framing_alone() {
    let head: &[u8] = b"PUT / HTTP/1.1\r\nHost: a\r\n";
    let request = ClientRequest {
        content: RequestContent::None,
        is_head: false,
        upgrade: false,
        expects_continue: true,
        close: false,
    };
    let (length, chunked) = (RequestContent::Length(5), RequestContent::Chunked);
    for (request, written) in [
        (request, "\r\n"),
        (
            ClientRequest { content: RequestContent::Length(0), ..request },
            "Content-Length: 0\r\n\r\n",
        ),
        (
            ClientRequest { content: length, ..request },
            "Content-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
        ),
        (
            ClientRequest { content: chunked, expects_continue: false, ..request },
            "Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\nA: b\r\n\r\n",
        ),
        (ClientRequest { upgrade: true, ..request }, "Connection: upgrade\r\n\r\n"),
        (ClientRequest { close: true, ..request }, "Connection: close\r\n\r\n"),
    ] {
        let mut out = head.to_vec();
        let mut exchange = h1::Client::begin(&request, &mut out);
        let has_content = request.content.follows();
        assert_eq!(exchange.request_done(), !has_content);
        assert_eq!(exchange.awaits_continue(), has_content && request.expects_continue);
        if has_content {
            for piece in ["", "he", "", "llo"] {
                exchange.write_content(piece.as_bytes(), &mut out);
            }
        }
        exchange.end_content(&fields("A: b\r\n"), &mut out);
        assert!(exchange.request_done() && !exchange.awaits_continue() && !exchange.answered());
        let written = [head, written.as_bytes()].concat();
        assert_eq!(out.escape_ascii().to_string(), written.escape_ascii().to_string());
        // A connection whose request asked for a close is not reused.
        let ended = b"HTTP/1.1 204 X\r\n\r\n";
        take(&mut exchange, ended, LIMITS);
        assert!(exchange.answered() && exchange.response_done());
        assert_eq!(exchange.reusable(), !request.close);
    }
}

#[test]
#[cfg(debug_assertions)]
fn a_request_that_would_be_framed_twice_is_a_bug_of_ours() {
    for field in
        ["Content-Length: 5\r\n", "transfer-encoding:chunked\r\n", "Connection: x\r\n", "\r\n", "A"]
    {
        let begun = std::panic::catch_unwind(|| {
            let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{field}");
            let request = ClientRequest {
                content: RequestContent::None,
                is_head: false,
                upgrade: false,
                expects_continue: false,
                close: false,
            };
            h1::Client::begin(&request, &mut head.into_bytes())
        });
        assert!(begun.is_err(), "{field:?}");
    }
}

#[test]
fn after_an_early_answer_the_connection_is_kept_if_the_rest_is_sent() {
    let early = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    for (says_close, kept) in [(true, true), (false, false)] {
        let mut out = Vec::new();
        let mut exchange = Put.begin(&mut out);
        if says_close {
            take(&mut exchange, b"HTTP/1.1 100 X\r\n\r\n", LIMITS);
            assert!(!exchange.awaits_continue());
        }
        take(&mut exchange, early, LIMITS);
        assert!(exchange.response_done() && !exchange.request_done() && !exchange.reusable());
        exchange.write_content(b"hello", &mut out);
        assert_eq!((exchange.request_done(), exchange.reusable()), (true, kept));
    }
}

#[test]
fn bytes_after_a_101_belong_to_the_tunnel() {
    let mut exchange = Upgrade.begin(&mut Vec::new());
    let input = b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n\x81\x00";
    let (rest, trace) = take(&mut exchange, input, LIMITS);
    assert_eq!((&*rest, &*trace), (&b"\x81\x00"[..], "[101 none] "));
    assert!(!exchange.response_done() && !exchange.reusable());
    assert!(matches!(exchange.receive_eof(), ClientEvent::Closed));
}

/// The meaning of a response.
#[derive(Clone, Debug)]
struct Meant {
    status: u16,
    fields: Vec<(String, String)>,
    pieces: Vec<Vec<u8>>,
    is_sized: bool,
    is_http10: bool,
    hints: usize,
}

fn meant() -> impl Strategy<Value = Meant> {
    let name = "[A-Za-z!#$%&'*+.^_`|~-]{1,12}".prop_map(|name| format!("X-{name}"));
    let value = "([!-~\u{e9}]([ \t!-~\u{e9}]{0,20}[!-~\u{e9}])?)?";
    let piece = prop::collection::vec(any::<u8>(), 0..40);
    (
        prop_oneof![200u16..=599, Just(200u16), Just(204u16), Just(304u16)],
        prop::collection::vec((name, value), 0..6),
        prop::collection::vec(piece, 0..5),
        any::<bool>(),
        any::<bool>(),
        0usize..3,
    )
        .prop_map(|(status, fields, pieces, is_sized, is_http10, hints)| Meant {
            status,
            fields,
            pieces,
            is_sized,
            is_http10,
            hints,
        })
}

impl Meant {
    /// The bytes that our server side writes for it, for a client of this version.
    fn write(&self, is_head: bool) -> Vec<u8> {
        let method = if is_head { "HEAD" } else { "GET" };
        let version = if self.is_http10 { "1.0" } else { "1.1" };
        let request = format!("{method} / HTTP/{version}\r\nHost: a\r\n\r\n");
        let mut exchange = h1::Server::new();
        let mut table = FieldTable::new();
        let (_, event) = exchange.next_event(request.as_bytes(), &mut table, &LIMITS);
        assert!(matches!(event, ServerEvent::Request(_, _, None)), "{event:?}");
        let mut response = Response::new(self.status);
        for (name, value) in &self.fields {
            response = response.with_field(name, value);
        }
        let mut out = Vec::new();
        for _ in 0..self.hints {
            exchange.write_interim(103, &fields("Link: </x>\r\n"), &mut out);
        }
        let length = self.pieces.iter().map(|piece| piece.len() as u64).sum();
        let length = self.is_sized.then_some(length);
        exchange.begin_response(&response, length, &opening(), &mut out);
        exchange.write_interim(103, &Fields::NONE, &mut out);
        self.pieces.iter().for_each(|piece| exchange.write_piece(piece, &mut out));
        exchange.end_response(&fields("X-Sum: 5\r\n"), &mut out);
        out
    }

    /// The trace that it must give.
    fn trace(&self, is_head: bool) -> String {
        let mut trace = "(103) ".repeat(if self.is_http10 { 0 } else { self.hints });
        let content = self.pieces.concat();
        let has_content = !is_head && !matches!(self.status, 204 | 304);
        let announced = !matches!(self.status, 204 | 304) && self.is_sized;
        trace += &match (has_content, self.is_sized, self.is_http10) {
            (false, ..) if announced => format!("[{} none {}] ", self.status, content.len()),
            (false, ..) => format!("[{} none] ", self.status),
            (true, true, _) => format!("[{} length] ", self.status),
            (true, false, false) => format!("[{} chunked] ", self.status),
            (true, false, true) => format!("[{} close] ", self.status),
        };
        if has_content && !content.is_empty() {
            trace += &format!("+{} ", show(&content));
        }
        let is_chunked = has_content && !self.is_sized && !self.is_http10;
        trace += if is_chunked { ".{X-Sum: 5} " } else { ". " };
        trace + if self.is_http10 { "lost" } else { "kept" }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_our_client_side_writes_is_what_an_upstreams_response_says(
        meant in meant(),
        is_head: bool,
        seed: u64,
    ) {
        let limits = Limits { head_bytes: 4096, fields: 16, content_bytes: 0 };
        let wire = meant.write(is_head);
        let asked = if is_head { Head } else { Get };
        let closes = meant.is_http10;
        let mut random = Random::new(seed);
        for cuts in [vec![], random.cuts(wire.len()), random.cuts(wire.len())] {
            let trace = trace_of(asked, limits, &wire, &cuts, closes);
            prop_assert_eq!(trace, meant.trace(is_head), "{}", wire.escape_ascii());
        }
        let mut exchange = asked.begin(&mut Vec::new());
        let (mut at, mut seen) = (0, Vec::new());
        loop {
            let mut table = FieldTable::new();
            let (used, event) = exchange.next_event(&wire[at..], &mut table, &limits);
            at += used;
            if let ClientEvent::Response(head) = event {
                prop_assert_eq!(head.version(), Version::Http11);
                let own = |name: &str| name.starts_with("X-");
                let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
                let fields = head.fields().filter(|(name, _)| own(name));
                seen.extend(fields.map(|(name, value)| (name.to_owned(), text(value))));
                break;
            }
        }
        prop_assert_eq!(seen, meant.fields);
    }

    #[test]
    fn a_request_that_is_forwarded_is_read_as_it_was_meant(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..5),
        is_sized: bool,
        seed: u64,
    ) {
        let content = pieces.concat();
        let request = ClientRequest {
            content: match is_sized {
                true => RequestContent::Length(content.len() as u64),
                false => RequestContent::Chunked,
            },
            is_head: false,
            upgrade: false,
            expects_continue: false,
            close: false,
        };
        let mut wire = b"PUT /x HTTP/1.1\r\nHost: a\r\n".to_vec();
        let mut upstream = h1::Client::begin(&request, &mut wire);
        pieces.iter().for_each(|piece| upstream.write_content(piece, &mut wire));
        upstream.end_content(&fields("X-Sum: 5\r\nHost: b\r\n"), &mut wire);
        prop_assert!(upstream.request_done());
        let (mut exchange, mut input, mut seen) = (h1::Server::new(), Vec::new(), Vec::new());
        for piece in self::pieces(&wire, &Random::new(seed).cuts(wire.len())) {
            input.extend_from_slice(piece);
            loop {
                let mut table = FieldTable::new();
                let limits = Limits { content_bytes: 1000, ..LIMITS };
                let (used, event) = exchange.next_event(&input, &mut table, &limits);
                match event {
                    ServerEvent::NeedMore => {
                        input.drain(..used);
                        break;
                    }
                    ServerEvent::Request(_, head, None) => {
                        prop_assert_eq!(head.content(), request.content);
                        prop_assert!(!head.expects_continue());
                        exchange.keep_trailers();
                    }
                    ServerEvent::Content(_, piece) => seen.extend_from_slice(piece),
                    ServerEvent::ContentEnd(_) => {}
                    ServerEvent::Refused(..)
                    | ServerEvent::Request(_, _, Some(_))
                    | ServerEvent::Closed => {
                        prop_assert!(false, "{event:?}");
                    }
                }
                input.drain(..used);
            }
        }
        prop_assert!(!exchange.reads_content() && input.is_empty());
        prop_assert_eq!(seen, content);
        let trailers = exchange.trailers().map(|trailers| trailers.lines().to_vec());
        let kept = if is_sized { "" } else { "X-Sum: 5\r\n" };
        prop_assert_eq!(trailers.as_deref(), Some(kept.as_bytes()));
    }

    #[test]
    fn no_bytes_of_an_upstream_do_harm(
        asked in prop::sample::select(&[Get, Head, Upgrade, Put][..]),
        beginning in prop::sample::select(BEGINNINGS),
        words in prop::collection::vec(prop::sample::select(WORDS), 0..12),
        noise in prop::collection::vec(any::<u8>(), 0..8),
        ends: bool,
        seed: u64,
    ) {
        let wire = [beginning.as_bytes(), words.concat().as_bytes(), &noise].concat();
        let whole = trace_of(asked, LIMITS, &wire, &[], ends);
        let bytewise: Vec<_> = (1..wire.len()).collect();
        let random = Random::new(seed).cuts(wire.len());
        for cuts in [bytewise, random] {
            let trace = trace_of(asked, LIMITS, &wire, &cuts, ends);
            prop_assert_eq!(&trace, &whole, "{} cut at {:?}", wire.escape_ascii(), cuts);
        }
    }
}

const BEGINNINGS: &[&str] =
    &["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 ", "HTTP/1.1 200 OK\r\n\r\n", chunked!("")];

const WORDS: &[&str] = &[
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 100 X\r\n\r\n",
    "HTTP/1.1 101 X\r\nUpgrade: a\r\n\r\n",
    "HTTP/1.0 ",
    "HTTP/1.4 ",
    "204 ",
    "Content-Length: 3\r\n",
    "Content-Length: 0\r\n\r\n",
    "Transfer-Encoding: chunked\r\n\r\n",
    "Connection: close\r\n",
    "A: b\r\n",
    "abc",
    "3\r\nabc\r\n",
    "3\r\n",
    "0\r\n",
    "0\r\n\r\n",
    ";x",
    " ",
    "\r",
    "\n",
    "\r\n",
    "\r\n\r\n",
    "\0",
];

fn check(transcripts: &[Transcript]) {
    for (asked, input, trace) in transcripts {
        let (input, ends) = match input.strip_suffix("EOF") {
            Some(input) => (input, true),
            None => (*input, false),
        };
        check_splits(*asked, LIMITS, input.as_bytes(), ends, trace);
    }
}

fn check_splits(asked: Asked, limits: Limits, input: &[u8], ends: bool, trace: &str) {
    let check = |cuts: &[usize]| {
        let seen = trace_of(asked, limits, input, cuts, ends);
        assert!(seen == trace, "{}, cut at {cuts:?}\n{seen}\n{trace}", input.escape_ascii());
    };
    check(&[]);
    check(&(1..input.len()).collect::<Vec<_>>());
    (1..input.len()).for_each(|at| check(&[at]));
    let mut random = Random::new(input.len() as u64);
    (0..16).for_each(|_| check(&random.cuts(input.len())));
}

/// The trace of this input, cut at these offsets; `ends`: the connection ends after it.
fn trace_of(asked: Asked, limits: Limits, input: &[u8], cuts: &[usize], ends: bool) -> String {
    let mut exchange = asked.begin(&mut Vec::new());
    let (mut unread, mut trace) = (Vec::new(), String::new());
    for piece in pieces(input, cuts) {
        unread.extend_from_slice(piece);
        let (rest, more) = take(&mut exchange, &unread, limits);
        match more.strip_prefix('+') {
            // Adjacent pieces of content are joined.
            Some(more) if ends_in_content(&trace) => {
                trace.pop();
                trace += more;
            }
            _ => trace += &more,
        }
        unread = rest;
    }
    if ends {
        trace += match exchange.receive_eof() {
            ClientEvent::End => ". ",
            ClientEvent::Truncated => "~ ",
            ClientEvent::Closed => "",
            other => panic!("{other:?}"),
        };
    }
    let kept = exchange.reusable();
    // After the end or a failure, nothing more is read.
    let failed = trace.split(' ').any(|item| item.starts_with(['!', '~']));
    if failed || exchange.response_done() {
        unread.extend_from_slice(b"HTTP/1.1 200 OK\r\n\r\n");
        assert_eq!(take(&mut exchange, &unread, limits), (unread, String::new()));
        assert!(!exchange.reusable(), "used again with unread bytes");
    }
    trace + if kept { "kept" } else { "lost" }
}

fn show(content: &[u8]) -> String {
    content.escape_ascii().to_string().replace(' ', "_")
}

fn ends_in_content(trace: &str) -> bool {
    trace.trim_end().rsplit(' ').next().is_some_and(|last| last.starts_with('+'))
}

/// Reads all events. Returns the bytes that were left, and the trace of the events.
fn take(exchange: &mut h1::Client, input: &[u8], limits: Limits) -> (Vec<u8>, String) {
    let (mut rest, mut trace) = (input, String::new());
    for _ in 0..2 * input.len() + 4 {
        let mut fields = FieldTable::new();
        let (used, event) = exchange.next_event(rest, &mut fields, &limits);
        assert!(used <= rest.len());
        match event {
            ClientEvent::NeedMore | ClientEvent::Closed => {
                return (rest[used..].to_vec(), trace);
            }
            ClientEvent::Interim(head) => trace += &format!("({}) ", head.status()),
            ClientEvent::Response(head) => {
                assert_eq!(head.is_upgraded(), head.status() == 101);
                trace += &match (head.content(), head.content_length()) {
                    (ResponseContent::None, Some(len)) => {
                        format!("[{} none {len}] ", head.status())
                    }
                    (ResponseContent::None, None) => format!("[{} none] ", head.status()),
                    (ResponseContent::Length(_), _) => format!("[{} length] ", head.status()),
                    (ResponseContent::Chunked, _) => format!("[{} chunked] ", head.status()),
                    (ResponseContent::UntilClose, _) => format!("[{} close] ", head.status()),
                };
            }
            ClientEvent::Content(content) => {
                assert!(!content.is_empty());
                if ends_in_content(&trace) {
                    trace.pop();
                } else {
                    trace.push('+');
                }
                trace += &format!("{} ", show(content));
            }
            ClientEvent::End => {
                let trailers = exchange.trailers().fields();
                let trailers: Vec<_> = trailers
                    .map(|(name, value)| format!("{name}: {}", value.escape_ascii()))
                    .collect();
                trace += &match trailers.is_empty() {
                    true => ". ".to_owned(),
                    false => format!(".{{{}}} ", trailers.join(", ")),
                };
            }
            ClientEvent::Refused(refused) => {
                assert!([431, 502].contains(&refused.status), "{refused:?}");
                trace += &format!("!{} ", refused.reason);
            }
            ClientEvent::Truncated => panic!("cut off without an end"),
        }
        rest = &rest[used..];
    }
    panic!("events without end: {trace}");
}
