//! A message that two parsers could read differently is refused, and nothing after it is answered.
//!
//! Each row of a table is a part of a request, which the test completes. The request is sent to the
//! real server at once, byte by byte, and cut in two; the answers must have the same bytes.

use std::time::Duration;

use crate::support::{Client, End, Response, Server, Setup, find, give_way};

/// The smuggled request. The app redirects, so an answer shows which target was read.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: site.test\r\n\r\n";

/// A valid request that follows a request which leaves its connection open.
const AFTER: &str = "GET /after HTTP/1.1\r\nHost: other.test\r\nConnection: close\r\n\r\n";

/// Where [`AFTER`] is redirected to.
const AFTER_LOCATION: &str = "http://other.out/after";

/// How long a row may take. It is short, so that a table with many failing rows ends too.
const ROW_DEADLINE: Duration = Duration::from_secs(5);

/// A part of a request and the statuses it may be refused with.
type Refused = (&'static [u8], &'static [u16]);

/// A part of a request and where it is redirected to.
type Served = (&'static [u8], &'static str);

const BAD: &[u16] = &[400];
const VERSION: &[u16] = &[505];
const CODING: &[u16] = &[501];
const TOO_LARGE: &[u16] = &[413];
const BAD_OR_CODING: &[u16] = &[400, 501];
const BAD_OR_LARGE: &[u16] = &[400, 413];

/// Request lines; CRLF and a Host field follow (RFC 9112 §2.2, §2.3, §3).
const REQUEST_LINES: &[Refused] = &[
    (b"GET  /x HTTP/1.1", BAD),
    (b"GET /x  HTTP/1.1", BAD),
    (b" GET /x HTTP/1.1", BAD),
    (b"GET /x HTTP/1.1 ", BAD),
    (b"GET\t/x HTTP/1.1", BAD),
    (b"GET /x\tHTTP/1.1", BAD),
    (b"GET /x\x0bHTTP/1.1", BAD),
    (b"GET /x HTTP/1.1\r", BAD),
    (b"GET /x", BAD),
    (b"GET", BAD),
    (b"GET HTTP/1.1", BAD),
    (b"GET /a b HTTP/1.1", BAD),
    (b"/x HTTP/1.1", BAD),
    (b"\r\n\r\nGET /x HTTP/1.1", BAD),
    (b"\nGET /x HTTP/1.1", BAD),
    (b"\rGET /x HTTP/1.1", BAD),
    (b"G(T /x HTTP/1.1", BAD),
    (b"GET: /x HTTP/1.1", BAD),
    (b"GET\0 /x HTTP/1.1", BAD),
    (b"G\xc3\xa9T /x HTTP/1.1", BAD),
    // Versions.
    (b"GET /x HTTP/2.0", VERSION),
    (b"GET /x HTTP/3.0", VERSION),
    (b"GET /x HTTP/0.9", VERSION),
    (b"GET /x HTTP/9.9", VERSION),
    (b"GET /x HTTP/1.10", BAD),
    (b"GET /x HTTP/01.1", BAD),
    (b"GET /x HTTP/1.", BAD),
    (b"GET /x HTTP/.1", BAD),
    (b"GET /x HTTP/1", BAD),
    (b"GET /x HTTP/2", BAD),
    (b"GET /x HTTP/11", BAD),
    (b"GET /x HTTP/1.1.1", BAD),
    (b"GET /x HTTP/1,1", BAD),
    (b"GET /x HTTP/1.x", BAD),
    (b"GET /x HTTP/+1.1", BAD),
    (b"GET /x HTTP/ 1.1", BAD),
    (b"GET /x HTTP /1.1", BAD),
    (b"GET /x http/1.1", BAD),
    (b"GET /x Http/1.1", BAD),
    (b"GET /x HTTPS/1.1", BAD),
    (b"GET /x XTTP/1.1", BAD),
    // Targets.
    (b"GET /a\0b HTTP/1.1", BAD),
    (b"GET /a\x01b HTTP/1.1", BAD),
    (b"GET /a\x7fb HTTP/1.1", BAD),
    (b"GET /a\rb HTTP/1.1", BAD),
    (b"GET /a\nb HTTP/1.1", BAD),
    (b"GET /caf\xc3\xa9 HTTP/1.1", BAD),
    (b"GET /\xff HTTP/1.1", BAD),
    (b"GET /x#y HTTP/1.1", BAD),
    (b"GET http://site.test/x#y HTTP/1.1", BAD),
    (b"GET * HTTP/1.1", BAD),
    (b"POST * HTTP/1.1", BAD),
    (b"OPTIONS *x HTTP/1.1", BAD),
    (b"OPTIONS x HTTP/1.1", BAD),
    (b"GET x HTTP/1.1", BAD),
    (b"GET ?x HTTP/1.1", BAD),
    (b"GET site.test:80 HTTP/1.1", BAD),
    (b"GET http: HTTP/1.1", BAD),
    (b"GET http:/x HTTP/1.1", BAD),
    (b"GET http:// HTTP/1.1", BAD),
    (b"GET http:///x HTTP/1.1", BAD),
    (b"GET http://user@site.test/x HTTP/1.1", BAD),
    (b"GET http://site.test:99999/x HTTP/1.1", BAD),
    (b"GET http://site.test:x/x HTTP/1.1", BAD),
    (b"GET http://site,test/x HTTP/1.1", BAD),
    (b"GET http://[::1/x HTTP/1.1", BAD),
    (b"CONNECT site.test:80 HTTP/1.1", CODING),
];

/// Everything between the request line and the blank line, with malformed hosts (§3.2).
const HOSTS: &[Refused] = &[
    (b"Accept: */*", BAD),
    (b"Host: site.test\r\nHost: site.test", BAD),
    (b"Host: site.test\r\nHost: other.test", BAD),
    (b"Host: site.test\r\nAccept: */*\r\nhOST: site.test", BAD),
    (b"Host:\r\nHost: site.test", BAD),
    (b"Host:", BAD),
    (b"Host: \t ", BAD),
    (b"Host: site.test/x", BAD),
    (b"Host: /", BAD),
    (b"Host: http://site.test", BAD),
    (b"Host: user@site.test", BAD),
    (b"Host: @site.test", BAD),
    (b"Host: site.test,other.test", BAD),
    (b"Host: site.test, other.test", BAD),
    (b"Host: site.test other.test", BAD),
    (b"Host: site.test\tother.test", BAD),
    (b"Host: site.test:x", BAD),
    (b"Host: site.test:-1", BAD),
    (b"Host: site.test:+80", BAD),
    (b"Host: site.test:65536", BAD),
    (b"Host: site.test:99999999999999999999", BAD),
    (b"Host: site.test:80:80", BAD),
    (b"Host: site.test: 80", BAD),
    (b"Host: :80", BAD),
    (b"Host: [::1", BAD),
    (b"Host: [::1]x", BAD),
    (b"Host: [zz]", BAD),
    (b"Host: []", BAD),
    (b"Host: ::1", BAD),
    (b"Host: ..", BAD),
    (b"Host: site..test", BAD),
    (b"Host: .site.test", BAD),
    (b"Host: *.test", BAD),
    (b"Host: site.test#x", BAD),
    (b"Host: site.test?x", BAD),
    (b"Host: site.test\\x", BAD),
    (b"Host: site.test;x", BAD),
    (b"Host: site%2etest", BAD),
    (b"Host: sit\xc3\xa9.test", BAD),
    (b"Host: site\0.test", BAD),
    (b"Host: \"site.test\"", BAD),
    (b"Host : site.test", BAD),
    (b" Host: site.test", BAD),
    (b"X: y\r\n Host: site.test", BAD),
];

/// Field lines after a valid Host field (§2.2, §5).
const FIELDS: &[Refused] = &[
    (b"Name : v", BAD),
    (b"Name\t: v", BAD),
    (b" Name: v", BAD),
    (b"\tName: v", BAD),
    (b"A: b\r\n c: d", BAD),
    (b"A: b\r\n\tfold", BAD),
    (b"A: b\r\n ", BAD),
    (b"A: b\rc", BAD),
    (b"A: b\r", BAD),
    (b"A: b\nB: c", BAD),
    (b"A: b\n", BAD),
    (b"A: b\0c", BAD),
    (b"A: \x01", BAD),
    (b"A: \x7f", BAD),
    (b"A: b\x0bc", BAD),
    (b": v", BAD),
    (b"A", BAD),
    (b"A b: c", BAD),
    (b"A(: b", BAD),
    (b"A@b: c", BAD),
    (b"A,b: c", BAD),
    (b"\"A\": b", BAD),
    (b"=A: b", BAD),
    (b"A\0: b", BAD),
    (b"A\r: b", BAD),
    (b"Caf\xc3\xa9: b", BAD),
    (b"Content-Length : 40", BAD),
    (b"Transfer-Encoding : chunked", BAD),
    (b"Content-Length\0: 40", BAD),
];

/// Framing fields of a POST; no content follows (§6).
const FRAMING: &[Refused] = &[
    (b"Content-Length: +5", BAD),
    (b"Content-Length: -5", BAD),
    (b"Content-Length: 5,6", BAD),
    (b"Content-Length: 5, 5", BAD),
    (b"Content-Length: 5,", BAD),
    (b"Content-Length: 5;", BAD),
    (b"Content-Length: 5 5", BAD),
    (b"Content-Length: 0x5", BAD),
    (b"Content-Length: 5.0", BAD),
    (b"Content-Length: 5e1", BAD),
    (b"Content-Length: five", BAD),
    (b"Content-Length: \"5\"", BAD),
    (b"Content-Length:", BAD),
    (b"Content-Length: \t", BAD),
    (b"Content-Length: \xd9\xa5", BAD),
    (b"Content-Length: 5\r\n 0", BAD),
    (b"Content-Length: 5\r\nContent-Length: 5", BAD),
    (b"Content-Length: 0\r\nContent-Length: 0", BAD),
    (b"Content-Length: 5\r\ncontent-length: 6", BAD),
    (b"Content-Length: 99999999999999999999", BAD_OR_LARGE),
    (b"Content-Length: 18446744073709551616", BAD_OR_LARGE),
    (b"Content-Length: 18446744073709551615", TOO_LARGE),
    (b"Content-Length: 9223372036854775808", TOO_LARGE),
    (b"Content-Length: 1048577", TOO_LARGE),
    (b"Content-Length: 1048577\r\nExpect: 100-continue", TOO_LARGE),
    (b"Content-Length: 5\r\nTransfer-Encoding: chunked", BAD),
    (b"Transfer-Encoding: chunked\r\nContent-Length: 5", BAD),
    (b"Content-Length: 0\r\nTransfer-Encoding: chunked", BAD),
    (b"Content-Length: 5\r\nTransfer-Encoding: identity", BAD_OR_CODING),
    (b"Transfer-Encoding:", BAD_OR_CODING),
    (b"Transfer-Encoding: chunked, chunked", BAD),
    (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", BAD),
    (b"Transfer-Encoding: chunked, gzip", BAD_OR_CODING),
    (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip", BAD_OR_CODING),
    (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", BAD_OR_CODING),
    (b"Transfer-Encoding: gzip", BAD),
    (b"Transfer-Encoding: gzip, chunked", CODING),
    (b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", CODING),
    (b"Transfer-Encoding: identity", BAD),
    (b"Transfer-Encoding: identity, chunked", CODING),
    (b"Transfer-Encoding: xchunked", BAD),
    (b"Transfer-Encoding: chunkedx", BAD),
    (b"Transfer-Encoding: chunked;q=1", BAD_OR_CODING),
    (b"Transfer-Encoding: \"chunked\"", BAD_OR_CODING),
    (b"Transfer-Encoding: chun ked", BAD_OR_CODING),
    (b"Transfer-Encoding: chunked,", BAD_OR_CODING),
    (b"Transfer-Encoding: , chunked", BAD_OR_CODING),
    (b"Transfer-Encoding: chunked\0", BAD),
    (b"Transfer-Encoding: \x0bchunked", BAD),
    (b"Transfer-Encoding: chunked\xa0", BAD_OR_CODING),
    (b"Transfer-Encoding:\r\n chunked", BAD),
    (b"Transfer-Encoding: chunked\nX: y", BAD),
];

/// Chunked content of a POST (§7.1).
const CHUNKS: &[Refused] = &[
    (b"+5\r\nhello\r\n0\r\n\r\n", BAD),
    (b"-5\r\nhello\r\n0\r\n\r\n", BAD),
    (b"-0\r\n\r\n", BAD),
    (b"0x5\r\nhello\r\n0\r\n\r\n", BAD),
    (b"0X5\r\nhello\r\n0\r\n\r\n", BAD),
    (b"5h\r\nhello\r\n0\r\n\r\n", BAD),
    (b"g\r\nhello\r\n0\r\n\r\n", BAD),
    (b"5_0\r\nhello\r\n0\r\n\r\n", BAD),
    (b"\r\nhello\r\n0\r\n\r\n", BAD),
    (b";a=b\r\nhello\r\n0\r\n\r\n", BAD),
    (b" 5\r\nhello\r\n0\r\n\r\n", BAD),
    (b"5 \r\nhello\r\n0\r\n\r\n", BAD),
    (b"\t5\r\nhello\r\n0\r\n\r\n", BAD),
    (b"5\t\r\nhello\r\n0\r\n\r\n", BAD),
    (b"5 5\r\nhello\r\n0\r\n\r\n", BAD),
    (b"5,\r\nhello\r\n0\r\n\r\n", BAD),
    (b"5\0\r\nhello\r\n0\r\n\r\n", BAD),
    (b"10000000000000000\r\nhello\r\n0\r\n\r\n", BAD_OR_LARGE),
    (b"10000000000000005\r\nhello\r\n0\r\n\r\n", BAD_OR_LARGE),
    (b"ffffffffffffffff\r\nhello\r\n0\r\n\r\n", BAD_OR_LARGE),
    (b"fffffffffffffffe\r\nhello\r\n0\r\n\r\n", BAD_OR_LARGE),
    (b"7fffffffffffffff\r\nhello\r\n0\r\n\r\n", BAD_OR_LARGE),
    (b"5\nhello\r\n0\r\n\r\n", BAD),
    (b"5\rhello\r\n0\r\n\r\n", BAD),
    (b"5\r\r\nhello\r\n0\r\n\r\n", BAD),
    (b"5\r\nhello0\r\n\r\n", BAD),
    (b"5\r\nhello\n0\r\n\r\n", BAD),
    (b"5\r\nhello\r0\r\n\r\n", BAD),
    (b"5\r\nhelloXX0\r\n\r\n", BAD),
    (b"5\r\nhello!\r\n0\r\n\r\n", BAD),
    (b"5;a\nb\r\nhello\r\n0\r\n\r\n", BAD),
    (b"5;a\rb\r\nhello\r\n0\r\n\r\n", BAD),
    (b"5;a\0b\r\nhello\r\n0\r\n\r\n", BAD),
    (b"5;a=\"b\nc\"\r\nhello\r\n0\r\n\r\n", BAD),
    (b"0\n\r\n", BAD),
    (b"0\r\n\n", BAD),
    (b"0\n\n", BAD),
    (b"0\r\n\rX", BAD),
    (b"0\r\nX: y\nZ: w\r\n\r\n", BAD),
    (b"0\r\nX : y\r\n\r\n", BAD),
    (b"0\r\n X: y\r\n\r\n", BAD),
    (b"0\r\nX: y\r\n z\r\n\r\n", BAD),
    (b"0\r\nX\r\n\r\n", BAD),
    (b"0\r\n: y\r\n\r\n", BAD),
    (b"0\r\nX: a\0b\r\n\r\n", BAD),
    (b"0\r\nX: a\rb\r\n\r\n", BAD),
];

/// Complete requests that are served and leave their connection open.
const SERVED: &[Served] = &[
    (b"GET /x HTTP/1.1\r\nHost: site.test\r\n\r\n", "http://site.out/x"),
    (b"GET /x?a=b&c=%2f HTTP/1.1\r\nHost: site.test\r\n\r\n", "http://site.out/x?a=b&c=%2f"),
    (b"\r\nGET /x HTTP/1.1\r\nHost: site.test\r\n\r\n", "http://site.out/x"),
    (b"GET /x HTTP/1.2\r\nHost: site.test\r\n\r\n", "http://site.out/x"),
    (b"GET /x HTTP/1.9\r\nHost: site.test\r\n\r\n", "http://site.out/x"),
    (b"GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "http://default.out/x"),
    // An absolute-form target replaces Host.
    (b"GET http://other.test/x HTTP/1.1\r\nHost: site.test\r\n\r\n", "http://other.out/x"),
    (b"GET HTTP://OTHER.test:80/x?y HTTP/1.1\r\nHost: site.test\r\n\r\n", "http://other.out/x?y"),
    (b"GET http://other.test HTTP/1.1\r\nHost: other.test\r\n\r\n", "http://other.out/"),
    // Hosts.
    (b"GET /x HTTP/1.1\r\nHost: SITE.test\r\n\r\n", "http://site.out/x"),
    (b"GET /x HTTP/1.1\r\nHost: site.TEST.:80\r\n\r\n", "http://site.out/x"),
    (b"GET /x HTTP/1.1\r\nHost: site.test:\r\n\r\n", "http://site.out/x"),
    (b"GET /x HTTP/1.1\r\nHost: site.test.\r\n\r\n", "http://site.out/x"),
    (b"GET /x HTTP/1.1\r\nHost:site.test\r\n\r\n", "http://site.out/x"),
    (b"GET /x HTTP/1.1\r\nhost: \t site.test \t \r\n\r\n", "http://site.out/x"),
    (b"GET /x HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "http://default.out/x"),
    (b"GET /x HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n", "http://default.out/x"),
    // Fields.
    (b"GET /x HTTP/1.1\r\nHost: site.test\r\nX: caf\xc3\xa9 \xff\r\n\r\n", "http://site.out/x"),
    (b"GET /x HTTP/1.1\r\nHost: site.test\r\nX:\r\nY: a\tb\r\n\r\n", "http://site.out/x"),
    (b"GET /x HTTP/1.1\r\nHost: site.test\r\n!#$%&'*+-.^_`|~9: x\r\n\r\n", "http://site.out/x"),
    (b"GET /x HTTP/1.1\r\nHost: site.test\r\nX: a: b;c=\"d\"\r\n\r\n", "http://site.out/x"),
    // Content by length.
    (b"POST /x HTTP/1.1\r\nHost: site.test\r\n\r\n", "http://site.out/x"),
    (b"POST /x HTTP/1.1\r\nHost: site.test\r\nContent-Length: 0\r\n\r\n", "http://site.out/x"),
    (b"POST /x HTTP/1.1\r\nHost: site.test\r\nContent-Length: 5\r\n\r\nhello", "http://site.out/x"),
    (
        b"POST /x HTTP/1.1\r\nHost: site.test\r\nContent-Length: 005\r\n\r\nhello",
        "http://site.out/x",
    ),
    (
        b"POST /x HTTP/1.1\r\nHost: site.test\r\nContent-Length: \t5 \r\n\r\nhello",
        "http://site.out/x",
    ),
    (
        b"POST /x HTTP/1.1\r\nHost: site.test\r\nContent-Length: 43\r\n\r\n\
        GET /smuggled HTTP/1.1\r\nHost: site.test\r\n\r\n",
        "http://site.out/x",
    ),
    (
        b"GET /x HTTP/1.1\r\nHost: site.test\r\nContent-Length: 43\r\n\r\n\
        GET /smuggled HTTP/1.1\r\nHost: site.test\r\n\r\n",
        "http://site.out/x",
    ),
    (
        b"POST /x HTTP/1.0\r\nHost: site.test\r\nConnection: Keep-Alive\r\n\
        Content-Length: 5\r\n\r\nhello",
        "http://site.out/x",
    ),
];

/// Valid chunked content of a POST.
const CHUNKS_SERVED: &[&[u8]] = &[
    b"0\r\n\r\n",
    b"000\r\n\r\n",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"0005\r\nhello\r\n0\r\n\r\n",
    b"a\r\nhellohello\r\n0\r\n\r\n",
    b"A\r\nhellohello\r\n0\r\n\r\n",
    b"1\r\nh\r\n1\r\ni\r\n0\r\n\r\n",
    b"5;a\r\nhello\r\n0\r\n\r\n",
    b"5;a=b;c=d\r\nhello\r\n0\r\n\r\n",
    b"5;a=\"b c;d\"\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhello\r\n0;last\r\n\r\n",
    b"5\r\nhello\r\n0\r\nX-Sum: 42\r\n\r\n",
    b"5\r\nhello\r\n0\r\nX-Sum: 42\r\nY:\r\n\r\n",
    b"2b\r\nGET /smuggled HTTP/1.1\r\nHost: site.test\r\n\r\n\r\n0\r\n\r\n",
    b"2B\r\nGET /smuggled HTTP/1.1\r\nHost: site.test\r\n\r\n\r\n0\r\n\r\n",
    b"2\r\n\r\n\r\n2\r\n0\r\r\n0\r\n\r\n",
];

/// Three apps whose answers show the host and the target that were read.
fn setup() -> Setup {
    Setup::new()
        .server("default_app = \"default.test\"")
        .limits("linger_timeout = \"10s\"")
        .app("site.test", "redirect = { to = \"http://site.out\", status = 308 }")
        .app("other.test", "redirect = { to = \"http://other.out\", status = 308 }")
        .app("default.test", "redirect = { to = \"http://default.out\", status = 308 }")
}

#[test]
fn request_lines_are_read_strictly() {
    let mut table = Table::new(setup());
    for (line, statuses) in REQUEST_LINES {
        table.refuse(&[line, b"\r\nHost: site.test\r\n\r\n"], statuses);
    }
    table.end();
}

#[test]
fn a_host_is_named_exactly_once() {
    let mut table = Table::new(setup());
    for (fields, statuses) in HOSTS {
        table.refuse(&[b"GET /x HTTP/1.1\r\n", fields, b"\r\n\r\n"], statuses);
    }
    table.end();
}

#[test]
fn a_bad_host_is_refused_beside_an_absolute_target_too() {
    let mut table = Table::new(setup());
    for (fields, statuses) in HOSTS {
        let line = b"GET http://site.test/x HTTP/1.1\r\n";
        table.refuse(&[line, fields, b"\r\n\r\n"], statuses);
    }
    table.end();
}

#[test]
fn a_bad_host_is_refused_in_http_1_0_too() {
    let mut table = Table::new(setup());
    // The first row is the missing host, which 1.0 allows.
    for (fields, statuses) in &HOSTS[1..] {
        table.refuse(&[b"GET /x HTTP/1.0\r\n", fields, b"\r\n\r\n"], statuses);
    }
    table.end();
}

#[test]
fn field_lines_are_read_strictly() {
    let mut table = Table::new(setup());
    for (field, statuses) in FIELDS {
        let head = b"GET /x HTTP/1.1\r\nHost: site.test\r\n";
        table.refuse(&[head, field, b"\r\n\r\n"], statuses);
    }
    table.end();
}

#[test]
fn bare_line_feeds_end_no_line() {
    let mut table = Table::new(setup());
    for request in [
        "GET /x HTTP/1.1\nHost: site.test\n\n",
        "GET /x HTTP/1.1\r\nHost: site.test\n\n",
        "GET /x HTTP/1.1\r\nHost: site.test\r\n\n",
        "GET /x HTTP/1.1\nHost: site.test\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: site.test\n\r\n",
        "GET /x HTTP/1.1\r\n\nHost: site.test\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: site.test\r\n\rX",
    ] {
        table.refuse(&[request.as_bytes()], BAD);
    }
    table.end();
}

#[test]
fn content_is_framed_in_one_way_only() {
    let mut table = Table::new(setup());
    for (fields, statuses) in FRAMING {
        let head = b"POST /x HTTP/1.1\r\nHost: site.test\r\n";
        table.refuse(&[head, fields, b"\r\n\r\n"], statuses);
    }
    table.end();
}

#[test]
fn framing_is_checked_for_every_method() {
    let mut table = Table::new(setup());
    for method in ["GET", "DELETE", "OPTIONS", "BREW"] {
        let head = format!("{method} /x HTTP/1.1\r\nHost: site.test\r\n");
        for fields in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Content-Length: 5\r\nContent-Length: 6",
            "Content-Length: +5",
            "Transfer-Encoding: chunked, chunked",
        ] {
            table.refuse(&[head.as_bytes(), fields.as_bytes(), b"\r\n\r\n"], BAD);
        }
    }
    table.end();
}

#[test]
fn transfer_encoding_is_refused_in_http_1_0() {
    let mut table = Table::new(setup());
    for fields in [
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nConnection: keep-alive",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
    ] {
        let head = b"POST /x HTTP/1.0\r\nHost: site.test\r\n";
        table.refuse(&[head, fields.as_bytes(), b"\r\n\r\n0\r\n\r\n"], BAD);
    }
    table.end();
}

#[test]
fn chunks_are_read_strictly() {
    let mut table = Table::new(setup());
    for (content, statuses) in CHUNKS {
        let head = b"POST /x HTTP/1.1\r\nHost: site.test\r\nTransfer-Encoding: chunked\r\n\r\n";
        table.refuse(&[head, content], statuses);
    }
    table.end();
}

#[test]
fn a_request_that_is_too_large_is_refused() {
    let mut table = Table::new(setup());
    let long = "a".repeat(20_000);
    let host = "Host: site.test\r\n";
    let many: String = (0..100).map(|n| format!("X-{n}: y\r\n")).collect();
    let heavy: String = (0..60).map(|n| format!("X-{n}: {}\r\n", &long[..300])).collect();
    for (request, statuses) in [
        (format!("GET /{long} HTTP/1.1\r\n{host}\r\n"), &[414][..]),
        (format!("GET /?{long} HTTP/1.1\r\n{host}\r\n"), &[414]),
        (format!("{long} / HTTP/1.1\r\n{host}\r\n"), &[414]),
        (format!("GET /x HTTP/1.1\r\n{host}X: {long}\r\n\r\n"), &[431]),
        (format!("GET /x HTTP/1.1\r\n{host}{long}: x\r\n\r\n"), &[431]),
        (format!("GET /x HTTP/1.1\r\n{host}X:{}\r\n\r\n", " ".repeat(20_000)), &[431]),
        (format!("GET /x HTTP/1.1\r\n{host}{heavy}\r\n"), &[431]),
        (format!("GET /x HTTP/1.1\r\n{host}{many}\r\n"), &[431]),
    ] {
        table.refuse(&[request.as_bytes()], statuses);
    }
    let chunked = format!("POST /x HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n");
    for content in [
        format!("5;{long}\r\nhello\r\n0\r\n\r\n"),
        format!("{}5\r\nhello\r\n0\r\n\r\n", "0".repeat(20_000)),
        format!("0\r\nX: {long}\r\n\r\n"),
    ] {
        table.refuse(&[chunked.as_bytes(), content.as_bytes()], &[400, 413, 431]);
    }
    table.end();
}

#[test]
fn many_small_chunk_extensions_are_refused_at_some_point() {
    let server = setup().start();
    let head = "POST /x HTTP/1.1\r\nHost: site.test\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunks = format!("1;{}\r\nx\r\n", "a".repeat(200)).repeat(20_000);
    let mut client = server.connect();
    // The server may stop reading before all is sent.
    let _ = client.try_send(format!("{head}{chunks}0\r\n\r\n{SMUGGLED}").as_bytes());
    let (answer, _) = client.read_to_end();
    assert_eq!(find(&answer, b"smuggled"), None);
    let first = Client::parse_all(&answer).remove(0);
    assert!([400, 413, 431].contains(&first.status), "{first:?}");
}

#[test]
fn content_in_chunks_is_held_to_the_limit() {
    let server = setup().start();
    let head = "POST /x HTTP/1.1\r\nHost: site.test\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = format!("8000\r\n{}\r\n", "x".repeat(0x8000));
    let request = format!("{head}{}1\r\nx\r\n0\r\n\r\n{SMUGGLED}", chunk.repeat(32));
    let mut client = server.connect();
    client.send(request);
    let (answer, end) = client.read_to_end();
    let answers = Client::parse_all(&answer);
    assert_eq!((answers.len(), answers[0].status, end), (1, 413, End::Eof));
}

#[test]
fn valid_requests_are_served() {
    let mut table = Table::new(setup());
    for (request, location) in SERVED {
        table.serve(request, location);
    }
    table.end();
}

#[test]
fn valid_chunks_are_read_to_their_end() {
    let mut table = Table::new(setup());
    for coding in ["chunked", "Chunked", "CHUNKED", " \t chunked \t "] {
        let head = format!("POST /x HTTP/1.1\r\nHost: site.test\r\nTransfer-Encoding:{coding}");
        for content in CHUNKS_SERVED {
            let request = [head.as_bytes(), b"\r\n\r\n", content].concat();
            table.serve(&request, "http://site.out/x");
        }
    }
    table.end();
}

#[test]
fn heads_within_the_limits_are_served() {
    let mut table = Table::new(setup());
    let many: String = (0..99).map(|n| format!("X-{n}: y\r\n")).collect();
    let request = format!("GET /x HTTP/1.1\r\nHost: site.test\r\n{many}\r\n");
    table.serve(request.as_bytes(), "http://site.out/x");
    let long = "a".repeat(8000);
    let request = format!("GET /{long} HTTP/1.1\r\nHost: site.test\r\n\r\n");
    table.serve(request.as_bytes(), &format!("http://site.out/{long}"));
    let request = format!("GET /x HTTP/1.1\r\nHost: site.test\r\nX: {long}\r\n\r\n");
    table.serve(request.as_bytes(), "http://site.out/x");
    table.end();
}

#[test]
fn nothing_is_read_after_a_request_that_says_close() {
    let server = setup().start();
    for request in [
        "GET /x HTTP/1.1\r\nHost: site.test\r\nConnection: close\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: site.test\r\nConnection: Close\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: site.test\r\nConnection: close, TE\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: site.test\r\nConnection: keep-alive, close\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: site.test\r\nConnection: TE\r\nConnection: close\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: site.test\r\nConnection: ,close ,\r\n\r\n",
        "GET /x HTTP/1.0\r\nHost: site.test\r\n\r\n",
        "GET /x HTTP/1.0\r\nHost: site.test\r\nConnection: keep-alive, close\r\n\r\n",
    ] {
        let request_len = request.len();
        let request = [request.as_bytes(), SMUGGLED.as_bytes()].concat();
        // Split within the request only: bytes after the answer give a reset (RFC 9112 §9.6).
        for at in (1..request_len).step_by(7) {
            let answer = answer_to(&server, &request, &[at]).unwrap_or_else(|why| panic!("{why}"));
            let answers = Client::parse_all(&answer);
            assert_eq!(answers.len(), 1, "{}", show(&request));
            let location = answers[0].field("Location");
            assert_eq!(location, Some("http://site.out/x"), "{}", show(&request));
            assert!(answers[0].says_close(), "{}: {:?}", show(&request), answers[0]);
        }
    }
}

#[test]
fn trailers_never_become_headers() {
    let server = setup().start();
    let head = "POST /x HTTP/1.1\r\nHost: site.test\r\nTransfer-Encoding: chunked\r\n\r\n";
    for trailer in [
        "Host: other.test",
        "Content-Length: 43",
        "Transfer-Encoding: chunked",
        "Connection: close",
        "Expect: 100-continue",
    ] {
        let request = format!("{head}5\r\nhello\r\n0\r\n{trailer}\r\n\r\n{AFTER}");
        let answers = answers_or_fail(&server, request.as_bytes());
        // A field that is not allowed as a trailer is dropped, or the message is refused.
        if answers[0].status == 400 {
            assert_eq!(answers.len(), 1, "{trailer}");
        } else {
            let locations: Vec<_> = answers.iter().map(|one| one.field("Location")).collect();
            assert_eq!(locations, [Some("http://site.out/x"), Some(AFTER_LOCATION)], "{trailer}");
        }
    }
}

#[test]
fn other_expectations_than_100_continue_are_417() {
    let server = setup().start();
    for expectation in ["foo", "100-continue, foo", "100", "200-ok", "100-continue=1"] {
        let fields = format!("Host: site.test\r\nExpect: {expectation}");
        either(&server, &format!("GET /x HTTP/1.1\r\n{fields}\r\n\r\n"), 417);
        let with_content = format!("{fields}\r\nContent-Length: 43\r\n\r\n{SMUGGLED}");
        either(&server, &format!("POST /x HTTP/1.1\r\n{with_content}"), 417);
    }
}

#[test]
fn trace_is_405_and_says_what_is_allowed() {
    let server = setup().start();
    let answers = either(&server, "TRACE /x HTTP/1.1\r\nHost: site.test\r\n\r\n", 405);
    let allow = answers[0].field("Allow").expect("Allow");
    assert!(allow.contains("GET") && !allow.contains("TRACE"), "{allow}");
    assert_eq!(find(&answers[0].body, b"site.test"), None, "a TRACE is not echoed");
}

#[test]
fn options_of_the_server_itself_are_answered() {
    let server = setup().start();
    let request = format!("OPTIONS * HTTP/1.1\r\nHost: site.test\r\n\r\n{AFTER}");
    let answers = answers_or_fail(&server, request.as_bytes());
    assert_eq!(answers.len(), 2);
    assert!([200, 204].contains(&answers[0].status), "{:?}", answers[0]);
    let allow = answers[0].field("Allow").expect("Allow");
    assert!(allow.contains("GET") && allow.contains("HEAD"), "{allow}");
    assert!(answers[0].body.is_empty());
}

#[test]
fn an_http_2_preface_is_refused() {
    let mut table = Table::new(setup());
    table.refuse(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"], &[400, 505]);
    table.end();
}

#[test]
fn a_tls_hello_is_refused() {
    let mut table = Table::new(setup());
    table.refuse(&[b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"], BAD);
    table.end();
}

#[test]
fn unread_content_is_never_the_next_request() {
    let server = Setup::new()
        .limits("linger_timeout = \"10s\"")
        .app("other.test", "redirect = { to = \"http://other.out\", status = 308 }")
        .app("files.test", "files = { root = \"site\" }")
        .file("site/index.html", "index")
        .start();
    let chunked = format!("2b\r\n{SMUGGLED}\r\n0\r\n\r\n");
    let by_length = "Content-Length: 43";
    for (host, status) in [("nobody.test", 404), ("files.test", 405)] {
        for (framing, content) in
            [(by_length, SMUGGLED), ("Transfer-Encoding: chunked", chunked.as_str())]
        {
            let head = format!("POST /x HTTP/1.1\r\nHost: {host}\r\n{framing}\r\n\r\n");
            either(&server, &format!("{head}{content}"), status);
        }
    }
}

#[test]
fn pipelined_requests_before_a_bad_one_are_answered() {
    let server = setup().start();
    let good = "GET /good HTTP/1.1\r\nHost: site.test\r\n\r\n";
    let request = format!("{good}{good}GET /bad HTTP/1.1\r\n\r\n{SMUGGLED}");
    let answers = answers_or_fail(&server, request.as_bytes());
    let statuses: Vec<_> = answers.iter().map(|one| one.status).collect();
    assert_eq!(statuses, [308, 308, 400]);
}

/// A server and its failures so far: a test runs its whole table before it fails.
struct Table {
    server: Server,
    rows: usize,
    complaints: Vec<String>,
}

impl Table {
    fn new(setup: Setup) -> Self {
        Self { server: setup.start(), rows: 0, complaints: Vec::new() }
    }

    /// Checks that the request is refused with one of the statuses, that the connection ends, and
    /// that nothing after the request is answered.
    fn refuse(&mut self, parts: &[&[u8]], statuses: &[u16]) {
        let request = parts.concat();
        let bytes = [&request, SMUGGLED.as_bytes()].concat();
        let verdict =
            answers_in_any_split(&self.server, &bytes).and_then(|answers| match &answers[..] {
                [answer] if !statuses.contains(&answer.status) => {
                    Err(format!("{} instead of {statuses:?}", answer.status))
                }
                [answer] if !answer.says_close() => Err("the answer doesn't say close".to_owned()),
                [_] => Ok(()),
                _ => Err(format!("{} answers, the last: {:?}", answers.len(), answers.last())),
            });
        self.judge(&request, verdict);
    }

    /// Checks that the request is redirected to `location`, and that the next one is served.
    fn serve(&mut self, request: &[u8], location: &str) {
        let bytes = [request, AFTER.as_bytes()].concat();
        let verdict = answers_in_any_split(&self.server, &bytes).and_then(|answers| {
            let found: Vec<_> = answers.iter().map(|one| one.field("Location")).collect();
            if found != [Some(location), Some(AFTER_LOCATION)] {
                return Err(format!("{} to {found:?}, not {location}", answers[0].status));
            }
            if answers[0].says_close() {
                return Err("the answer says close".to_owned());
            }
            Ok(())
        });
        self.judge(request, verdict);
    }

    fn judge(&mut self, request: &[u8], verdict: Result<(), String>) {
        self.rows += 1;
        if let Err(complaint) = verdict {
            self.complaints.push(format!("{}\n    {complaint}", show(request)));
        }
    }

    fn end(self) {
        let (rows, wrong) = (self.rows, self.complaints.len());
        assert!(wrong == 0, "{wrong} of {rows} rows\n{}", self.complaints.join("\n"));
    }
}

/// Checks that the request is answered with this status, and that the connection then ends or goes
/// on with the next request.
fn either(server: &Server, request: &str, status: u16) -> Vec<Response> {
    let answers = answers_or_fail(server, format!("{request}{AFTER}").as_bytes());
    assert_eq!(answers[0].status, status, "{request:?}: {:?}", answers[0].head);
    if answers[0].says_close() {
        assert_eq!(answers.len(), 1, "{request:?}: {answers:?}");
    } else {
        assert_eq!(answers.len(), 2, "{request:?}: {answers:?}");
        assert_eq!(answers[1].field("Location"), Some(AFTER_LOCATION), "{request:?}");
    }
    answers
}

fn answers_or_fail(server: &Server, request: &[u8]) -> Vec<Response> {
    answers_in_any_split(server, request).unwrap_or_else(|why| panic!("{}: {why}", show(request)))
}

/// The final responses to `request`, at least one. They must have the same bytes in every split.
fn answers_in_any_split(server: &Server, request: &[u8]) -> Result<Vec<Response>, String> {
    let whole = answer_to(server, request, &[])?;
    let small = (request.len() / 256).max(1);
    let each: Vec<usize> = (1..request.len()).step_by(small).collect();
    let middle = request.len() / 2;
    let behind_cr: Vec<usize> =
        (1..request.len()).filter(|at| request[at - 1] == b'\r').take(3).collect();
    let mut splits = vec![each, vec![middle]];
    splits.extend(behind_cr.into_iter().map(|at| vec![at]));
    for split in splits {
        let answer = answer_to(server, request, &split)?;
        if answer != whole {
            let (pieces, first) = (split.len() + 1, split[0]);
            let (now, before) = (show(&answer), show(&whole));
            return Err(format!("in {pieces} pieces, cut at {first}: {now}\n    whole: {before}"));
        }
    }
    if find(&whole, b"smuggled").is_some() {
        return Err(format!("smuggled: {}", show(&whole)));
    }
    let answers = Client::parse_all(&whole);
    if answers.is_empty() { Err("no answer".to_owned()) } else { Ok(answers) }
}

/// All bytes of the answer to `request`, sent in pieces, without their dates.
fn answer_to(server: &Server, request: &[u8], cuts: &[usize]) -> Result<Vec<u8>, String> {
    let mut client = server.connect();
    let mut start = 0;
    for &cut in cuts.iter().chain([&request.len()]) {
        if let Err(error) = client.try_send(&request[start..cut]) {
            return Err(format!("no more is taken after {start} bytes: {error}"));
        }
        start = cut;
        if cut < request.len() {
            give_way();
        }
    }
    let (mut answer, end) = client.read_to_end_within(ROW_DEADLINE);
    if end != End::Eof {
        return Err(format!("{end:?} after {}", show(&answer)));
    }
    while let Some(at) = find(&answer, b"\r\nDate: ") {
        let length = find(&answer[at + 2..], b"\r\n").map_or(answer.len() - at, |end| end + 2);
        answer.drain(at..at + length);
    }
    Ok(answer)
}

/// Bytes as text; of a long text, both ends.
fn show(bytes: &[u8]) -> String {
    if bytes.len() <= 400 {
        return bytes.escape_ascii().to_string();
    }
    let (front, back) = (&bytes[..200], &bytes[bytes.len() - 200..]);
    format!("{} … {}", front.escape_ascii(), back.escape_ascii())
}
