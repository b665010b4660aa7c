//! Byte transcripts of the HTTP/1 server protocol: its input and output, in every split.
//!
//! Each transcript is run at once, byte by byte, cut in two at every offset, and in random pieces;
//! all runs must give the same trace. The notation of a trace:
//!
//! ```text
//! [GET /x a]   a request: method, path, host, and the version if it is 1.0
//! +hello .     content, and its end
//! !400         refused
//! <200 close>  output: status, `Connection` if written, `bare` without its content, `chunked`,
//!              `until` or `sized` for the head of a stream
//! =2\r\nok     the bytes of a piece of a stream, or of its end
//! Head         the phase at the end: Head, Content, Answer, Closed
//! ```

use tidegate::http::{
    FieldTable, Fields, Limits, RequestContent, Response, ServerEvent, h1, reason_phrase,
};

use crate::exchange_support::{DATE, Moment, Random, Step, Talk, opening, pieces};

use Moment::{AfterContent, AtOnce, WhenTold, WhenWaiting};
use Step::{
    Answer, Begin, BeginSized, CloseAfter, CloseNow, End, EndWith, Eof, In, Interim, Piece,
    TimeOut, Tunnel,
};

/// The input; its trace when the app answers at once, empty if it is equal to the next; and its
/// trace when the app answers after the content.
type Transcript = (&'static str, &'static str, &'static str);

/// When the app answers, what happens, and its trace.
type Scene = (Moment, &'static [Step], &'static str);

const LIMITS: Limits = Limits { head_bytes: 256, fields: 8, content_bytes: 16 };

/// A request head of HTTP/1.1 for the host `a`: request line without version, more fields.
macro_rules! head {
    ($line:literal $(, $field:literal)*) => {
        concat!($line, " HTTP/1.1\r\nHost: a\r\n", $($field, "\r\n",)* "\r\n")
    };
}

macro_rules! chunked {
    ($($content:tt)*) => {
        concat!(head!("POST /x", "Transfer-Encoding: chunked"), $($content)*)
    };
}

const CONTENT: &[Transcript] = &[
    ("", "", "Head"),
    (head!("GET /x?y=z"), "", "[GET /x?y=z a] <200> Head"),
    (head!("POST /x", "Content-Length: 0"), "", "[POST /x a] <200> Head"),
    (
        concat!(head!("POST /x", "Content-Length: 5"), "hello", head!("GET /y")),
        "[POST /x a] <200> +hello . [GET /y a] <200> Head",
        "[POST /x a] +hello . <200> [GET /y a] <200> Head",
    ),
    (
        concat!(head!("POST /x", "Content-Length: 16"), "GET / HTTP/1.1\r\n", head!("GET /y")),
        "[POST /x a] <200> +GET / HTTP/1.1\\r\\n . [GET /y a] <200> Head",
        "[POST /x a] +GET / HTTP/1.1\\r\\n . <200> [GET /y a] <200> Head",
    ),
    (
        concat!(head!("GET /x", "Content-Length: 2"), "hi"),
        "[GET /x a] <200> +hi . Head",
        "[GET /x a] +hi . <200> Head",
    ),
    (
        concat!(head!("POST /x", "Content-Length: 5"), "hel"),
        "[POST /x a] <200> +hel Content",
        "[POST /x a] +hel Content",
    ),
    (
        chunked!("5\r\nhello\r\n0\r\n\r\n", head!("GET /y")),
        "[POST /x a] <200> +hello . [GET /y a] <200> Head",
        "[POST /x a] +hello . <200> [GET /y a] <200> Head",
    ),
    (
        chunked!("0\r\n\r\n", head!("GET /y")),
        "[POST /x a] <200> . [GET /y a] <200> Head",
        "[POST /x a] . <200> [GET /y a] <200> Head",
    ),
    (
        chunked!(
            "2\r\n\r\n\r\n0001;a=\"b\"\r\n0\r\nA;\r\n0123456789\r\n00;z\r\nT: u\r\nV:\r\n\r\n"
        ),
        "[POST /x a] <200> +\\r\\n00123456789 . Head",
        "[POST /x a] +\\r\\n00123456789 . <200> Head",
    ),
    (
        chunked!("5\r\nhello\r\n0\r\nHost: b\r\nConnection: close\r\n\r\n", head!("GET /y")),
        "[POST /x a] <200> +hello . [GET /y a] <200> Head",
        "[POST /x a] +hello . <200> [GET /y a] <200> Head",
    ),
    (
        chunked!("5\r\nhello\r\n0\r\nT: u\r\n"),
        "[POST /x a] <200> +hello Content",
        "[POST /x a] +hello Content",
    ),
];

const PIPELINES: &[Transcript] = &[
    (
        concat!(head!("GET /1"), head!("GET /2"), head!("GET /3")),
        "",
        "[GET /1 a] <200> [GET /2 a] <200> [GET /3 a] <200> Head",
    ),
    (
        concat!(
            head!("PUT /1", "Content-Length: 1"),
            "1",
            head!("PUT /2", "transfer-encoding:Chunked"),
            "1\r\n2\r\n0\r\n\r\n",
            head!("HEAD /3"),
            head!("PUT /4", "Content-Length: 1"),
            "4",
        ),
        "[PUT /1 a] <200> +1 . [PUT /2 a] <200> +2 . [HEAD /3 a] <200 bare> \
         [PUT /4 a] <200> +4 . Head",
        "[PUT /1 a] +1 . <200> [PUT /2 a] +2 . <200> [HEAD /3 a] <200 bare> \
         [PUT /4 a] +4 . <200> Head",
    ),
    // One empty line is skipped before each request (RFC 9112 §2.2), and no more.
    (concat!("\r\n", head!("GET /1"), "\r\n"), "", "[GET /1 a] <200> Head"),
    (
        concat!("\r\n", head!("GET /1"), "\r\n", head!("GET /2")),
        "",
        "[GET /1 a] <200> [GET /2 a] <200> Head",
    ),
    (concat!("\r\n\r\n", head!("GET /1")), "", "!400 <400 close> Closed"),
    (
        concat!(head!("GET /1"), "\n", head!("GET /2")),
        "",
        "[GET /1 a] <200> !400 <400 close> Closed",
    ),
    (
        concat!(head!("GET /1"), head!("GET /2", "Connection: close"), head!("GET /3")),
        "",
        "[GET /1 a] <200> [GET /2 a] <200 close> Closed",
    ),
];

const VERSIONS: &[Transcript] = &[
    ("GET /x HTTP/1.0\r\n\r\n", "", "[GET /x - 1.0] <200 close> Closed"),
    (
        "GET /x HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\nGET /y HTTP/1.0\r\n\r\n",
        "",
        "[GET /x a 1.0] <200 keep-alive> [GET /y - 1.0] <200 close> Closed",
    ),
    (
        "POST /x HTTP/1.0\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nhi",
        "[POST /x - 1.0] <200 keep-alive> +hi . Head",
        "[POST /x - 1.0] +hi . <200 keep-alive> Head",
    ),
    (
        "POST /x HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi",
        "[POST /x - 1.0] <200 close> Closed",
        "[POST /x - 1.0] +hi . <200 close> Closed",
    ),
    (
        "GET /x HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n",
        "",
        "[GET /x - 1.0] <200 close> Closed",
    ),
    (
        concat!(
            "GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            head!("GET /y", "Connection: keep-alive"),
        ),
        "",
        "[GET /x - 1.0] <200 keep-alive> [GET /y a] <200 keep-alive> Head",
    ),
    // A higher minor version is read as 1.1.
    ("GET /x HTTP/1.2\r\nHost: a\r\n\r\n", "", "[GET /x a] <200> Head"),
    (
        concat!("GET / HTTP/1.9\r\nHost: a\r\n\r\n", "GET /HTTP/1.2 HTTP/1.2\r\nHost: a\r\n\r\n"),
        "",
        "[GET / a] <200> [GET /HTTP/1.2 a] <200> Head",
    ),
    ("GET /x HTTP/1.2\r\n\r\n", "", "!400 <400 close> Closed"),
    ("GET /x HTTP/2.0\r\nHost: a\r\n\r\n", "", "!505 <505 close> Closed"),
    ("GET /x HTTP/1.10\r\nHost: a\r\n\r\n", "", "!400 <400 close> Closed"),
];

const CONNECTIONS: &[Transcript] = &[
    (head!("GET /x", "Connection: close"), "", "[GET /x a] <200 close> Closed"),
    (head!("GET /x", "Connection: a, Close ,b"), "", "[GET /x a] <200 close> Closed"),
    (
        concat!(head!("GET /x", "Connection: upgrade", "Connection: x"), head!("GET /y")),
        "",
        "[GET /x a] <200> [GET /y a] <200> Head",
    ),
    (
        concat!(head!("POST /x", "Connection: close", "Content-Length: 5"), "hello"),
        "[POST /x a] <200 close> Closed",
        "[POST /x a] +hello . <200 close> Closed",
    ),
    (
        concat!(
            head!("POST /x", "Connection: close", "Transfer-Encoding: chunked"),
            "1\r\nx\r\n0\r\n\r\n",
            head!("GET /y"),
        ),
        "[POST /x a] <200 close> Closed",
        "[POST /x a] +x . <200 close> Closed",
    ),
];

const TARGETS: &[Transcript] = &[
    (head!("GET http://b/x?y"), "", "[GET /x?y b] <200> Head"),
    (head!("GET HTTPS://b:81"), "", "[GET / b] <200> Head"),
    (head!("GET http://b?y"), "", "[GET /?y b] <200> Head"),
    (head!("OPTIONS http://b"), "", "[OPTIONS / b] <200> Head"),
    (head!("OPTIONS *"), "", "[OPTIONS * a] <200> Head"),
    ("OPTIONS * HTTP/1.1\r\nHost:\r\n\r\n", "", "[OPTIONS * -] <200> Head"),
    ("OPTIONS * HTTP/1.0\r\n\r\n", "", "[OPTIONS * - 1.0] <200 close> Closed"),
    ("GET http://b/ HTTP/1.1\r\n\r\n", "", "!400 <400 close> Closed"),
    ("GET /x HTTP/1.1\r\nHost:\r\n\r\n", "", "!400 <400 close> Closed"),
    (head!("GET *"), "", "!400 <400 close> Closed"),
    (head!("CONNECT b:443"), "", "!501 <501 close> Closed"),
    (head!("BREW //x"), "", "[BREW //x a] <200> Head"),
];

const EXPECTATIONS: &[Transcript] = &[
    // A client that is answered without a 100 may send its content or not.
    (
        concat!(
            head!("POST /x", "Expect: 100-continue", "Content-Length: 5"),
            "hello",
            head!("GET /y")
        ),
        "[POST /x a] <200 close> Closed",
        "[POST /x a] <100> +hello . <200> [GET /y a] <200> Head",
    ),
    (
        concat!(
            head!("POST /x", "Expect: 100-Continue", "Transfer-Encoding: chunked"),
            "0\r\n\r\n"
        ),
        "[POST /x a] <200 close> Closed",
        "[POST /x a] <100> . <200> Head",
    ),
    (
        head!("POST /x", "Expect: 100-continue", "Content-Length: 5"),
        "[POST /x a] <200 close> Closed",
        "[POST /x a] <100> Content",
    ),
    (head!("POST /x", "Expect: 100-continue", "Content-Length: 0"), "", "[POST /x a] <200> Head"),
    (
        concat!(
            "POST /x HTTP/1.0\r\nConnection: keep-alive\r\nExpect: 100-continue\r\n",
            "Content-Length: 2\r\n\r\nhi"
        ),
        "[POST /x - 1.0] <200 keep-alive> +hi . Head",
        "[POST /x - 1.0] +hi . <200 keep-alive> Head",
    ),
    (
        concat!(
            head!("POST /1", "Expect: 100-continue", "Content-Length: 1"),
            "1",
            head!("POST /2", "Content-Length: 1"),
            "2"
        ),
        "[POST /1 a] <200 close> Closed",
        "[POST /1 a] <100> +1 . <200> [POST /2 a] +2 . <200> Head",
    ),
    (head!("GET /x", "Expect: 200-ok"), "", "!417 <417 close> Closed"),
    (head!("POST /x", "Expect: 100-continue", "Content-Length: 17"), "", "!413 <413 close> Closed"),
];

const STATUSES: &[Transcript] = &[
    (
        concat!(head!("HEAD /x"), head!("GET /x")),
        "",
        "[HEAD /x a] <200 bare> [GET /x a] <200> Head",
    ),
    (head!("GET /202"), "", "[GET /202 a] <202> Head"),
    (head!("HEAD /202"), "", "[HEAD /202 a] <202> Head"),
    (
        concat!(head!("GET /204"), head!("HEAD /204")),
        "",
        "[GET /204 a] <204> [HEAD /204 a] <204> Head",
    ),
    (
        concat!(head!("GET /304"), head!("HEAD /304")),
        "",
        "[GET /304 a] <304> [HEAD /304 a] <304> Head",
    ),
    (head!("HEAD /404", "Connection: close"), "", "[HEAD /404 a] <404 close bare> Closed"),
    ("HEAD /x HTTP/1.0\r\n\r\n", "", "[HEAD /x - 1.0] <200 close bare> Closed"),
    // A response to HEAD has no content (RFC 9110 §9.3.2), whatever it says.
    (head!("HEAD /x", "Content-Length: 17"), "", "!413 <413 close bare> Closed"),
    (head!("HEAD /x", "Expect: x"), "", "!417 <417 close bare> Closed"),
    ("HEAD /x HTTP/1.1\r\n\r\n", "", "!400 <400 close bare> Closed"),
    ("\r\nHEAD /x HTTP/1.1\n\r\n", "", "!400 <400 close bare> Closed"),
    ("HEAD /x HTTP/3.0\r\n\r\n", "", "!505 <505 close bare> Closed"),
    (concat!(head!("HEAD /1"), "\n"), "", "[HEAD /1 a] <200 bare> !400 <400 close> Closed"),
    ("HEADER /x HTTP/1.1\r\n\r\n", "", "!400 <400 close> Closed"),
];

/// Refusals in each state; nothing after them is read.
const REFUSALS: &[Transcript] = &[
    (concat!("\0", head!("GET /y")), "", "!400 <400 close> Closed"),
    (concat!("GET /x\n", head!("GET /y")), "", "!400 <400 close> Closed"),
    (concat!("GET /x HTTP/1.1\r\nHost: a\r\n\n", head!("GET /y")), "", "!400 <400 close> Closed"),
    (concat!(head!("GET /x", "A : b"), head!("GET /y")), "", "!400 <400 close> Closed"),
    (
        concat!(head!("GET /1"), head!("GET /2", "Host: a"), head!("GET /3")),
        "",
        "[GET /1 a] <200> !400 <400 close> Closed",
    ),
    (
        concat!(head!("POST /x", "Transfer-Encoding: x, chunked"), "0\r\n\r\n", head!("GET /y")),
        "",
        "!501 <501 close> Closed",
    ),
    // After the answer, malformed content can only end the connection.
    (
        chunked!("x\r\n", head!("GET /y")),
        "[POST /x a] <200> Closed",
        "[POST /x a] !400 <400 close> Closed",
    ),
    (
        chunked!("5\r\nhelloX\r\n0\r\n\r\n", head!("GET /y")),
        "[POST /x a] <200> +hello Closed",
        "[POST /x a] +hello !400 <400 close> Closed",
    ),
    (
        chunked!("5\r\nhello\r\n0\r\nT u\r\n\r\n", head!("GET /y")),
        "[POST /x a] <200> +hello Closed",
        "[POST /x a] +hello !400 <400 close> Closed",
    ),
    (
        chunked!("5\r\nhello\r\n0\r\n\rX", head!("GET /y")),
        "[POST /x a] <200> +hello Closed",
        "[POST /x a] +hello !400 <400 close> Closed",
    ),
];

/// More than sixteen bytes of content.
const TOO_MUCH: &[Transcript] = &[
    (concat!(head!("POST /x", "Content-Length: 17"), "hello"), "", "!413 <413 close> Closed"),
    (head!("POST /x", "Content-Length: 18446744073709551615"), "", "!413 <413 close> Closed"),
    (
        chunked!("10\r\n0123456789abcdef\r\n0\r\n\r\n"),
        "[POST /x a] <200> +0123456789abcdef . Head",
        "[POST /x a] +0123456789abcdef . <200> Head",
    ),
    (chunked!("11\r\n"), "[POST /x a] <200> Closed", "[POST /x a] !413 <413 close> Closed"),
    (
        chunked!("ffffffffffffffff\r\nhello"),
        "[POST /x a] <200> Closed",
        "[POST /x a] !413 <413 close> Closed",
    ),
    (
        chunked!("8\r\n01234567\r\n9\r\n0"),
        "[POST /x a] <200> +01234567 Closed",
        "[POST /x a] +01234567 !413 <413 close> Closed",
    ),
    (
        chunked!("1\r\n0\r\nffffffffffffffff\r\n"),
        "[POST /x a] <200> +0 Closed",
        "[POST /x a] +0 !413 <413 close> Closed",
    ),
    (
        chunked!("11111111111111111\r\n"),
        "[POST /x a] <200> Closed",
        "[POST /x a] !400 <400 close> Closed",
    ),
];

/// A size that is too large counts when its line is complete. Once, the split decided between 413
/// and 400.
const BROKEN_SIZE_LINES: &[Transcript] = &[
    (chunked!("ff;\n\r\n"), "[POST /x a] <200> Closed", "[POST /x a] !400 <400 close> Closed"),
    (chunked!("ff\r\r\n"), "[POST /x a] <200> Closed", "[POST /x a] !400 <400 close> Closed"),
    (chunked!("ff;x"), "[POST /x a] <200> Content", "[POST /x a] Content"),
    (chunked!("ff;x\r\n"), "[POST /x a] <200> Closed", "[POST /x a] !413 <413 close> Closed"),
];

const HALF: &str = concat!(head!("POST /x", "Content-Length: 5"), "he");
const HALF_EXPECTED: &str = head!("POST /x", "Expect: 100-continue", "Content-Length: 5");

const ENDS_OF_INPUT: &[Scene] = &[
    (AtOnce, &[Eof], "Closed"),
    (AtOnce, &[In("\r"), Eof], "Closed"),
    (AtOnce, &[In("GET /x HT"), Eof], "Closed"),
    (AtOnce, &[In(head!("GET /x")), Eof, Eof], "[GET /x a] <200> Closed"),
    (AfterContent, &[In(HALF), Eof, Eof], "[POST /x a] +he !400 <400 close> Closed"),
    (AfterContent, &[In(HALF_EXPECTED), Eof], "[POST /x a] <100> !400 <400 close> Closed"),
    (AtOnce, &[In(HALF), Eof], "[POST /x a] <200> +he Closed"),
    (AtOnce, &[In(chunked!("5\r\nhe")), Eof], "[POST /x a] <200> +he Closed"),
    // A request that is complete gets its answer, and the last one says so.
    (WhenTold, &[In(head!("GET /x")), Eof], "[GET /x a] Answer"),
    (WhenTold, &[In(head!("GET /x")), Eof, Answer], "[GET /x a] <200 close> Closed"),
    (WhenTold, &[In(chunked!("0\r\n\r\n")), Eof, Answer], "[POST /x a] . <200 close> Closed"),
    (WhenTold, &[In("\0"), Eof], "!400 Answer"),
    (WhenTold, &[In("\0"), Eof, Answer, Eof], "!400 <400 close> Closed"),
    (WhenTold, &[In(HALF), Eof, Answer], "[POST /x a] +he !400 <400 close> Closed"),
];

const TIMES_OUT: &[Scene] = &[
    (AtOnce, &[TimeOut], "!408 <408 close> Closed"),
    (AtOnce, &[In("GET /x HT"), TimeOut, TimeOut], "!408 <408 close> Closed"),
    (AtOnce, &[In(head!("GET /x")), In("G"), TimeOut], "[GET /x a] <200> !408 <408 close> Closed"),
    (
        AfterContent,
        &[In(HALF), TimeOut, In("llo"), In(head!("GET /y"))],
        "[POST /x a] +he !408 <408 close> Closed",
    ),
    (AfterContent, &[In(HALF_EXPECTED), TimeOut], "[POST /x a] <100> !408 <408 close> Closed"),
    (AtOnce, &[In(HALF), TimeOut, In("llo")], "[POST /x a] <200> +he Closed"),
    (AtOnce, &[In(chunked!("0\r\n")), TimeOut], "[POST /x a] <200> Closed"),
    (WhenTold, &[In(head!("GET /x")), TimeOut, Answer], "[GET /x a] !408 <408 close> Closed"),
    (WhenTold, &[In("\0"), TimeOut, Answer], "!400 <400 close> Closed"),
    (AtOnce, &[In(head!("GET /x", "Connection: close")), TimeOut], "[GET /x a] <200 close> Closed"),
    (AtOnce, &[CloseNow, TimeOut], "Closed"),
    (AtOnce, &[Eof, TimeOut], "Closed"),
];

const CLOSES: &[Scene] = &[
    (AtOnce, &[CloseNow, In(head!("GET /x"))], "Closed"),
    (AtOnce, &[In("GET /x HT"), CloseNow, In("TP/1.1\r\nHost: a\r\n\r\n")], "Closed"),
    (AtOnce, &[In(head!("GET /x")), CloseNow, In(head!("GET /y"))], "[GET /x a] <200> Closed"),
    // Within an exchange, `CloseNow` ends nothing.
    (AfterContent, &[In(HALF), CloseNow, In("llo")], "[POST /x a] +hello . <200> Head"),
    (WhenTold, &[In(head!("GET /x")), CloseNow, Answer], "[GET /x a] <200> Head"),
    (AtOnce, &[CloseAfter], "Head"),
    (
        AtOnce,
        &[CloseAfter, In(head!("GET /x")), In(head!("GET /y"))],
        "[GET /x a] <200 close> Closed",
    ),
    (
        AtOnce,
        &[In(head!("GET /1")), In("GET"), CloseAfter, In(" /2 HTTP/1.0\r\n\r\n")],
        "[GET /1 a] <200> [GET /2 - 1.0] <200 close> Closed",
    ),
    (AfterContent, &[In(HALF), CloseAfter, In("llo")], "[POST /x a] +hello . <200 close> Closed"),
    (
        WhenTold,
        &[In(head!("GET /x")), CloseAfter, Answer, In(head!("GET /y"))],
        "[GET /x a] <200 close> Closed",
    ),
    // Too late to be said in the answer: the content is still read to its end.
    (
        AtOnce,
        &[In(HALF), CloseAfter, In("llo"), In(head!("GET /y"))],
        "[POST /x a] <200> +hello . Closed",
    ),
    (WhenTold, &[In("\0"), CloseNow, CloseAfter, Answer], "!400 <400 close> Closed"),
];

/// Answers within the content, of which the rest is read.
const ANSWERED_WITHIN: &[Scene] = &[
    (
        WhenTold,
        &[In(HALF), Answer, In("llo"), In(head!("GET /y")), Answer],
        "[POST /x a] +he <200> +llo . [GET /y a] <200> Head",
    ),
    (WhenTold, &[In(chunked!("2\r\nhe")), Answer, In("\n")], "[POST /x a] +he <200> Closed"),
    (
        WhenTold,
        &[In(chunked!("2\r\nhe\r\n0\r\n")), Answer, In("\r\n"), In(head!("GET /y"))],
        "[POST /x a] +he <200> . [GET /y a] Answer",
    ),
    // Nothing is read while an answer is owed, and all of it afterwards.
    (
        WhenTold,
        &[In(head!("GET /1")), In(head!("GET /2")), Answer, Answer, In(head!("GET /3")), Answer],
        "[GET /1 a] <200> [GET /2 a] <200> [GET /3 a] <200> Head",
    ),
];

/// Answers whose length is not known when the head is written.
const STREAMS: &[Scene] = &[
    (
        WhenTold,
        &[In(head!("GET /1")), Begin, Piece("ok"), Piece(""), Piece("0123456789abcdef"), End],
        "[GET /1 a] <200 chunked> =2\\r\\nok\\r\\n = =10\\r\\n0123456789abcdef\\r\\n \
         =0\\r\\n\\r\\n \
         Head",
    ),
    (WhenTold, &[In(head!("GET /1")), Begin], "[GET /1 a] <200 chunked> Answer"),
    (WhenTold, &[In(head!("GET /1")), Begin, End], "[GET /1 a] <200 chunked> =0\\r\\n\\r\\n Head"),
    // A pipelined request waits for the last chunk.
    (
        WhenTold,
        &[In(head!("GET /1")), Begin, In(head!("GET /2")), Piece("ok"), End, Answer],
        "[GET /1 a] <200 chunked> =2\\r\\nok\\r\\n =0\\r\\n\\r\\n [GET /2 a] <200> Head",
    ),
    // Content-Length and chunks exclude each other, and an answer without content has no chunks.
    (
        WhenTold,
        &[In(head!("HEAD /1")), Begin, Piece("ok"), End, In(head!("GET /2")), Answer],
        "[HEAD /1 a] <200 chunked> = = [GET /2 a] <200> Head",
    ),
    (
        WhenTold,
        &[In(head!("GET /204")), Begin, Piece("ok"), End, In(head!("GET /2")), Answer],
        "[GET /204 a] <204> = = [GET /2 a] <200> Head",
    ),
    (
        WhenTold,
        &[In(head!("GET /304")), Begin, Piece("ok"), End, In(head!("GET /2")), Answer],
        "[GET /304 a] <304> = = [GET /2 a] <200> Head",
    ),
    // HTTP/1.0 knows no chunks: the end of the connection is the end of the content.
    (
        WhenTold,
        &[In("GET /1 HTTP/1.0\r\n\r\n"), Begin, Piece("ok"), Piece(""), End],
        "[GET /1 - 1.0] <200 until close> =ok = = Closed",
    ),
    (
        WhenTold,
        &[In("GET /1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"), Begin, Piece("ok"), End],
        "[GET /1 - 1.0] <200 until close> =ok = Closed",
    ),
    (
        WhenTold,
        &[In("HEAD /1 HTTP/1.0\r\n\r\n"), Begin, Piece("ok"), End],
        "[HEAD /1 - 1.0] <200 until close> = = Closed",
    ),
    (
        WhenTold,
        &[In("GET /204 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"), Begin, End],
        "[GET /204 - 1.0] <204 keep-alive> = Head",
    ),
    // The connection ends with the stream, whether its head could say so or not.
    (
        WhenTold,
        &[In(head!("GET /1", "Connection: close")), Begin, Piece("ok"), End],
        "[GET /1 a] <200 chunked close> =2\\r\\nok\\r\\n =0\\r\\n\\r\\n Closed",
    ),
    (
        WhenTold,
        &[In(head!("GET /1")), CloseAfter, Begin, End],
        "[GET /1 a] <200 chunked close> =0\\r\\n\\r\\n Closed",
    ),
    (
        WhenTold,
        &[In(head!("GET /1")), Begin, CloseAfter, Piece("ok"), End, In(head!("GET /2"))],
        "[GET /1 a] <200 chunked> =2\\r\\nok\\r\\n =0\\r\\n\\r\\n Closed",
    ),
    (
        WhenTold,
        &[In(head!("GET /1")), Begin, Eof, Piece("ok"), End],
        "[GET /1 a] <200 chunked> =2\\r\\nok\\r\\n =0\\r\\n\\r\\n Closed",
    ),
    // Content is read during the stream; malformed or late content ends reading, not the answer.
    (
        WhenTold,
        &[In(HALF), Begin, Piece("ok"), In("llo"), End, In(head!("GET /2")), Answer],
        "[POST /x a] +he <200 chunked> =2\\r\\nok\\r\\n +llo . =0\\r\\n\\r\\n [GET /2 a] <200> \
         Head",
    ),
    (
        WhenTold,
        &[In(HALF), Begin, End, In("llo"), In(head!("GET /2")), Answer],
        "[POST /x a] +he <200 chunked> =0\\r\\n\\r\\n +llo . [GET /2 a] <200> Head",
    ),
    (
        WhenTold,
        &[In(HALF), Begin, TimeOut, Piece("ok"), End],
        "[POST /x a] +he <200 chunked> =2\\r\\nok\\r\\n =0\\r\\n\\r\\n Closed",
    ),
    (
        WhenTold,
        &[In(chunked!("2\r\nhe")), Begin, In("x"), Piece("ok"), End],
        "[POST /x a] +he <200 chunked> =2\\r\\nok\\r\\n =0\\r\\n\\r\\n Closed",
    ),
];

/// Streams of a known length, and trailers of streams without.
const FORWARDED: &[Scene] = &[
    // A pipelined request waits for the last byte.
    (
        WhenTold,
        &[
            In(head!("GET /1")),
            In(head!("GET /2")),
            BeginSized(2),
            Piece("o"),
            Piece("k"),
            End,
            Answer,
        ],
        "[GET /1 a] <200 sized> =o =k = [GET /2 a] <200> Head",
    ),
    (
        WhenTold,
        &[In(head!("GET /202")), BeginSized(0), Piece(""), End],
        "[GET /202 a] <202> = = Head",
    ),
    (
        WhenTold,
        &[In(head!("HEAD /1")), BeginSized(2), Piece("ok"), End],
        "[HEAD /1 a] <200 sized> = = Head",
    ),
    (WhenTold, &[In(head!("GET /304")), BeginSized(2), End], "[GET /304 a] <304> = Head"),
    (
        WhenTold,
        &[In("GET /1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"), BeginSized(2), Piece("ok"), End],
        "[GET /1 - 1.0] <200 sized keep-alive> =ok = Head",
    ),
    (
        WhenTold,
        &[In(HALF), BeginSized(2), Piece("ok"), In("llo"), End, In(head!("GET /2")), Answer],
        "[POST /x a] +he <200 sized> =ok +llo . = [GET /2 a] <200> Head",
    ),
    // Only chunked content has trailers.
    (
        WhenTold,
        &[In(head!("GET /1")), Begin, Piece("ok"), EndWith("A: b\r\n")],
        "[GET /1 a] <200 chunked> =2\\r\\nok\\r\\n =0\\r\\nA: b\\r\\n\\r\\n Head",
    ),
    (
        WhenTold,
        &[In(head!("GET /1")), BeginSized(2), Piece("ok"), EndWith("A: b\r\n")],
        "[GET /1 a] <200 sized> =ok = Head",
    ),
    (
        WhenTold,
        &[In("GET /1 HTTP/1.0\r\n\r\n"), Begin, Piece("ok"), EndWith("A: b\r\n")],
        "[GET /1 - 1.0] <200 until close> =ok = Closed",
    ),
    (
        WhenTold,
        &[In(head!("HEAD /1")), Begin, EndWith("A: b\r\n")],
        "[HEAD /1 a] <200 chunked> = Head",
    ),
];

/// Interim responses: before the final head, and only for HTTP/1.1.
const INTERIM: &[Scene] = &[
    (
        WhenTold,
        &[In(head!("GET /1")), Interim(103), Interim(103), Answer, Interim(103)],
        "[GET /1 a] =HTTP/1.1 103 Early Hints\\r\\nX: y\\r\\n\\r\\n \
         =HTTP/1.1 103 Early Hints\\r\\nX: y\\r\\n\\r\\n <200> = Head",
    ),
    (
        WhenTold,
        &[Interim(103), In("GET /1 HTTP/1.0\r\n\r\n"), Interim(103)],
        "= [GET /1 - 1.0] = Answer",
    ),
    (WhenTold, &[In(head!("GET /1")), Begin, Interim(103)], "[GET /1 a] <200 chunked> = Answer"),
];

/// A 101 makes a tunnel: bytes after the request are not another request.
const TUNNELS: &[Scene] = &[
    (
        WhenTold,
        &[In(head!("GET /1")), In(head!("GET /2")), Tunnel, Piece("\0\r\n"), In("x"), Interim(103)],
        "[GET /1 a] =HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: z\\r\\n\
         Connection: upgrade\\r\\n\\r\\n =\\x00\\r\\n = Answer",
    ),
    (
        WhenTold,
        &[In(head!("GET /1")), Tunnel, Eof, Piece("x"), End, In(head!("GET /2"))],
        "[GET /1 a] =HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: z\\r\\n\
         Connection: upgrade\\r\\n\\r\\n =x = Closed",
    ),
];

#[test]
fn forwarded_answers_end_as_they_were_announced() {
    check_scenes(FORWARDED);
}

#[test]
fn interim_responses_come_before_the_final_head() {
    check_scenes(INTERIM);
}

#[test]
fn a_tunnel_reads_no_requests() {
    check_scenes(TUNNELS);
}

#[test]
fn a_100_that_is_passed_on_lets_the_client_go_on() {
    let input = head!("PUT /x", "Expect: 100-continue", "Content-Length: 5");
    for interim in [100, 103] {
        let (mut exchange, mut fields) = (h1::Server::new(), FieldTable::new());
        let (used, event) = exchange.next_event(input.as_bytes(), &mut fields, &LIMITS);
        let ServerEvent::Request(_, head, None) = event else { panic!("{event:?}") };
        assert!(used == input.len() && head.expects_continue());
        assert_eq!(head.content(), RequestContent::Length(5));
        let mut out = Vec::new();
        exchange.write_interim(interim, &Fields::NONE, &mut out);
        // A client that waits for a 100 gets exactly one.
        exchange.send_continue(&mut out);
        exchange.send_continue(&mut out);
        assert_eq!(out.windows(3).filter(|word| word == b"100").count(), 1);
        exchange.respond(&Response::new(204), 0, &opening(), &mut out);
        assert!(exchange.reads_content() && !out.ends_with(b"close\r\n\r\n"));
    }
    // After the answer it is too late for a 100.
    let (mut exchange, mut fields, mut out) = (h1::Server::new(), FieldTable::new(), Vec::new());
    exchange.next_event(input.as_bytes(), &mut fields, &LIMITS);
    exchange.respond(&Response::new(204), 0, &opening(), &mut out);
    exchange.send_continue(&mut out);
    assert!(out.ends_with(b"Connection: close\r\n\r\n") && !exchange.reads_content());
}

#[test]
fn trailers_of_a_request_are_kept_for_apps_that_want_them() {
    let head = head!("PUT /x", "Transfer-Encoding: chunked");
    let content = "2\r\nhi\r\n0\r\nA: b\r\nHost: c\r\nD:\r\n\r\n";
    for (keeps, kept) in [(true, Some("A: b\r\nD:\r\n")), (false, None)] {
        for cut in 1..content.len() {
            let (mut exchange, mut ended) = (h1::Server::new(), false);
            let mut fields = FieldTable::new();
            exchange.next_event(head.as_bytes(), &mut fields, &LIMITS);
            if keeps {
                exchange.keep_trailers();
            }
            for mut piece in pieces(content.as_bytes(), &[cut]) {
                while !ended && !piece.is_empty() {
                    let mut fields = FieldTable::new();
                    let (used, event) = exchange.next_event(piece, &mut fields, &LIMITS);
                    ended = matches!(event, ServerEvent::ContentEnd(_));
                    piece = &piece[used..];
                }
            }
            let trailers = exchange.trailers().map(|trailers| trailers.lines().to_vec());
            assert_eq!(trailers.as_deref(), kept.map(str::as_bytes), "cut at {cut}");
            assert!(ended, "cut at {cut}");
            // The next request has none.
            exchange.respond(&Response::new(204), 0, &opening(), &mut Vec::new());
            assert!(exchange.trailers().is_none());
        }
    }
}

#[test]
fn a_stream_ends_by_its_own_framing() {
    check_scenes(STREAMS);
}

#[test]
fn content_is_read_to_its_end() {
    check(CONTENT);
}

#[test]
fn pipelined_requests_come_out_one_by_one() {
    check(PIPELINES);
}

#[test]
fn versions_decide_how_it_goes_on() {
    check(VERSIONS);
}

#[test]
fn the_connection_field_decides_how_it_goes_on() {
    check(CONNECTIONS);
}

#[test]
fn targets_are_split_into_path_and_query() {
    check(TARGETS);
}

#[test]
fn expectations_are_met_or_refused() {
    check(EXPECTATIONS);
}

#[test]
fn content_of_answers_follows_method_and_status() {
    check(STATUSES);
}

#[test]
fn nothing_is_read_after_a_refusal() {
    check(REFUSALS);
}

#[test]
fn too_much_content_is_refused_when_it_is_announced() {
    check(TOO_MUCH);
}

#[test]
fn a_broken_size_line_is_refused_alike_in_every_split() {
    check(BROKEN_SIZE_LINES);
}

#[test]
fn the_end_of_the_input_ends_each_state() {
    check_scenes(ENDS_OF_INPUT);
}

#[test]
fn a_time_out_ends_each_state() {
    check_scenes(TIMES_OUT);
}

#[test]
fn closing_waits_for_the_exchange() {
    check_scenes(CLOSES);
}

#[test]
fn an_answer_may_come_within_the_content() {
    check_scenes(ANSWERED_WITHIN);
}

#[test]
fn a_head_may_be_as_long_as_its_limit() {
    for (start, head, served) in [
        ("", head!("GET /x"), "[GET /x a] <200> Head"),
        ("\r\n", head!("GET /x", "A: b", "C: d"), "[GET /x a] <200> Head"),
        ("", "GET /x HTTP/1.0\r\n\r\n", "[GET /x - 1.0] <200 close> Closed"),
    ] {
        let limits = |head_bytes| Limits { head_bytes, ..LIMITS };
        let input = format!("{start}{head}");
        check_bytes(AtOnce, limits(head.len()), input.as_bytes(), served);
        let line = head.find('\n').unwrap_or(0) + 1;
        for (head_bytes, refused) in [
            (head.len() - 1, "!431 <431 close> Closed"),
            (line, "!431 <431 close> Closed"),
            (line - 1, "!414 <414 close> Closed"),
            (3, "!414 <414 close> Closed"),
        ] {
            check_bytes(AtOnce, limits(head_bytes), input.as_bytes(), refused);
        }
    }
}

#[test]
fn a_head_may_have_as_many_fields_as_its_limit() {
    let input = head!("GET /x", "A: b", "C: d");
    for (fields, trace) in [
        (3, "[GET /x a] <200> Head"),
        (2, "!431 <431 close> Closed"),
        (0, "!431 <431 close> Closed"),
    ] {
        check_bytes(AtOnce, Limits { fields, ..LIMITS }, input.as_bytes(), trace);
    }
}

#[test]
fn content_may_be_as_long_as_its_limit() {
    for input in [
        concat!(head!("PUT /x", "Content-Length: 5"), "hello"),
        concat!(head!("PUT /x", "Transfer-Encoding: chunked"), "5\r\nhello\r\n0\r\n\r\n"),
        concat!(head!("PUT /x", "Transfer-Encoding: chunked"), "5;a\r\nhello\r\n0\r\nT: u\r\n\r\n"),
    ] {
        let limits = Limits { content_bytes: 5, ..LIMITS };
        check_bytes(AfterContent, limits, input.as_bytes(), "[PUT /x a] +hello . <200> Head");
        let limits = Limits { content_bytes: 4, ..LIMITS };
        let begun = if input.contains("Length") { "" } else { "[PUT /x a] " };
        let trace = format!("{begun}!413 <413 close> Closed");
        check_bytes(AfterContent, limits, input.as_bytes(), &trace);
    }
}

#[test]
fn extensions_and_trailers_are_limited() {
    let ninety = "x".repeat(90);
    let head = head!("PUT /x", "Transfer-Encoding: chunked");
    for content in [
        format!("0;{ninety}\r\n\r\n"),
        format!("0\r\nT:{ninety}\r\n\r\n"),
        format!("0\r\nT{ninety}:\r\n\r\n"),
        format!(
            "1;{}\r\nx\r\n0;{}\r\nTtt: {}\r\n\r\n",
            &ninety[..20],
            &ninety[..30],
            &ninety[..37]
        ),
    ] {
        let served = if content.starts_with('1') { "+x " } else { "" };
        for (head_bytes, end) in [(90, ". <200> Head"), (89, "!431 <431 close> Closed")] {
            let limits = Limits { head_bytes, ..LIMITS };
            let trace = format!("[PUT /x a] {served}{end}");
            check_bytes(AfterContent, limits, format!("{head}{content}").as_bytes(), &trace);
        }
    }
    for (trailers, end) in
        [("A: b\r\nC:\r\n", ". <200> Head"), ("A:\r\nB:\r\nC:\r\n", "!431 <431 close> Closed")]
    {
        let input = format!("{head}0\r\n{trailers}\r\n");
        let limits = Limits { fields: 2, ..LIMITS };
        check_bytes(AfterContent, limits, input.as_bytes(), &format!("[PUT /x a] {end}"));
    }
}

fn check(transcripts: &[Transcript]) {
    for (input, at_once, after) in transcripts {
        let at_once = if at_once.is_empty() { after } else { at_once };
        for (moment, trace) in [(AtOnce, at_once), (AfterContent, after), (WhenWaiting, after)] {
            check_bytes(moment, LIMITS, input.as_bytes(), trace);
        }
    }
}

fn check_bytes(moment: Moment, limits: Limits, input: &[u8], trace: &str) {
    check_splits(moment, limits, input, &[], &written_out(trace));
}

fn check_scenes(scenes: &[Scene]) {
    for (moment, steps, trace) in scenes {
        let mut input = Vec::new();
        let mut signals = Vec::new();
        for step in *steps {
            match step {
                In(bytes) => input.extend_from_slice(bytes.as_bytes()),
                signal => signals.push((input.len(), *signal)),
            }
        }
        check_splits(*moment, LIMITS, &input, &signals, &written_out(trace));
    }
}

/// Runs the input in all splits. `signals` have their offsets in the input.
fn check_splits(
    moment: Moment,
    limits: Limits,
    input: &[u8],
    signals: &[(usize, Step)],
    trace: &str,
) {
    let run_cut = |cuts: &[usize]| {
        let mut talk = Talk::new(moment, limits);
        let mut fed = 0;
        let mut signals = signals.iter().peekable();
        for piece in pieces(input, cuts) {
            let end = fed + piece.len();
            while let Some((at, signal)) = signals.next_if(|(at, _)| *at <= end) {
                talk.feed(&input[fed..*at]);
                fed = *at;
                talk.step(*signal);
            }
            talk.feed(&input[fed..end]);
            fed = end;
        }
        talk.trace()
    };
    let check = |cuts: &[usize]| {
        let seen = run_cut(cuts);
        let input = input.escape_ascii();
        assert!(seen == trace, "{input}\n{moment:?} {signals:?}, cut at {cuts:?}\n{seen}\n{trace}");
    };
    check(&[]);
    check(&(1..input.len()).collect::<Vec<_>>());
    (1..input.len()).for_each(|at| check(&[at]));
    let mut random = Random::new(input.len() as u64);
    (0..32).for_each(|_| check(&random.cuts(input.len())));
}

/// The trace, with answers as their bytes.
fn written_out(trace: &str) -> String {
    let mut written = String::new();
    let mut rest = trace;
    while let Some((before, behind)) = rest.split_once('<') {
        let (answer, behind) = behind.split_once('>').expect("an answer's end");
        written += &format!("{before}<{}>", answer_bytes(answer).escape_ascii());
        rest = behind;
    }
    written + rest
}

fn answer_bytes(answer: &str) -> Vec<u8> {
    if answer == "100" {
        return b"HTTP/1.1 100 Continue\r\n\r\n".to_vec();
    }
    let mut words = answer.split(' ').peekable();
    let status = words.next().unwrap_or_default();
    let reason = reason_phrase(status.parse().expect("a status"));
    let mut text = format!("HTTP/1.1 {status} {reason}\r\nDate: {DATE}\r\nX: y\r\n");
    let mut content = "ok";
    let stream = words.next_if(|word| ["chunked", "until", "sized"].contains(word));
    match status {
        _ if stream == Some("chunked") => {
            text += "Transfer-Encoding: chunked\r\n";
            content = "";
        }
        _ if stream == Some("until") => content = "",
        _ if stream == Some("sized") => {
            text += "Content-Length: 2\r\n";
            content = "";
        }
        "204" | "304" => content = "",
        "202" => {
            text += "Content-Length: 0\r\n";
            content = "";
        }
        _ => text += "Content-Length: 2\r\n",
    }
    for word in words {
        match word {
            "bare" => content = "",
            connection => text += &format!("Connection: {connection}\r\n"),
        }
    }
    format!("{text}\r\n{content}").into_bytes()
}
