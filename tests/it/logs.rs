//! The logs: access lines and the ends of exchanges, rotation, JSON, and a full disk.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::support::{
    Client, End, PATIENCE, Server, Setup, Signal, get, get_and_close, pattern, wait_until,
};

/// More than all buffers between the server and a client that does not read.
const LARGE: usize = 16 * 1024 * 1024;

/// What an access line says, in either format.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Line {
    peer: String,
    request: String,
    status: u64,
    bytes: u64,
    host: String,
    app: String,
    end: String,
}

impl Line {
    /// Parses a line; its first byte shows its format.
    fn parse(line: &str) -> Self {
        if line.starts_with('{') { Self::parse_json(line) } else { Self::parse_combined(line) }
    }

    /// `peer - - [time] "request" status bytes "referer" "agent" key=value …`
    fn parse_combined(line: &str) -> Self {
        let parts: Vec<&str> = line.split('"').collect();
        let [front, request, numbers, _referer, _, _agent, tail] = parts[..] else {
            panic!("not the combined format: {line}");
        };
        let (peer, time) = front.split_once(" - - [").expect("a time");
        assert!(time.ends_with(" +0000] ") && time.contains('/'), "{line}");
        let (status, bytes) = numbers.trim().split_once(' ').expect("status and bytes");
        let field = |key: &str| {
            let mut fields = tail.split(' ').filter_map(|field| field.split_once('='));
            fields.find(|(own, _)| *own == key).expect(key).1.to_owned()
        };
        assert_eq!((status.len(), field("id").len()), (3, 16), "{line}");
        field("duration_us").parse::<u64>().expect("a number");
        Self {
            peer: peer.to_owned(),
            request: request.to_owned(),
            status: status.parse().expect("a status"),
            bytes: bytes.parse().expect("a number"),
            host: field("host"),
            app: field("app"),
            end: field("end"),
        }
    }

    fn parse_json(line: &str) -> Self {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        let text = |key: &str| line[key].as_str().unwrap_or("-").to_owned();
        let number = |key: &str| line[key].as_u64().expect(key);
        assert!(text("ts").ends_with('Z') && text("id").len() == 16, "{line}");
        number("duration_us");
        let request = ["method", "target", "protocol"].map(text).join(" ");
        Self {
            peer: text("peer"),
            request,
            status: number("status"),
            bytes: number("bytes"),
            host: text("host"),
            app: text("app"),
            end: text("end"),
        }
    }
}

/// The access line of a request to an existing app.
fn line(request: &str, host: &str, status: u64, bytes: u64, end: &str) -> Line {
    let peer = "127.0.0.1".to_owned();
    let (request, host) = (format!("{request} HTTP/1.1"), host.to_owned());
    Line { peer, request, status, bytes, app: host.clone(), host, end: end.to_owned() }
}

/// A server with one loop, a quick app, a slow app, a large file and an access log.
fn setup(format: &str) -> Setup {
    Setup::new()
        .server("threads = 1\nidle_grace = \"0s\"")
        .log(&format!("access = \"{format}\"\naccess_path = \"access.log\""))
        .named_app("app.test")
        .app("slow.test", "respond = { body = \"slow\", delay = \"60s\" }")
        .app("files.test", "files = { root = \"site\" }")
        .file("site/large", pattern(LARGE))
}

fn access_log(server: &Server) -> PathBuf {
    server.dir().join("access.log")
}

/// The lines of a log, as soon as it has this many.
fn wait_lines(path: &Path, count: usize) -> Vec<Line> {
    let read = || fs::read_to_string(path).unwrap_or_default();
    let whole = |text: &str| text.matches('\n').count() >= count;
    assert!(wait_until(PATIENCE, || whole(&read())), "{count} lines are not there: {}", read());
    let lines: Vec<Line> = read().lines().map(Line::parse).collect();
    assert_eq!(lines.len(), count, "{lines:#?}");
    lines
}

#[test]
fn access_lines_count_content_and_not_heads() {
    for format in ["combined", "json"] {
        let server = setup(format).start();
        let mut client = server.connect();
        client.exchange(get("app.test", "/a?b=%22"));
        client.send("HEAD / HTTP/1.1\r\nHost: app.test\r\n\r\n");
        client.response_to_head();
        // Answers that are sent in one write have a line each.
        client.send(get("app.test", "/1").repeat(3) + &get("none.test", "/"));
        let pipelined: Vec<_> = (0..4).map(|_| client.response()).collect();
        assert_eq!(client.exchange(get("files.test", "/large")).body.len(), LARGE);
        let content_bytes = "app.test".len() as u64;
        let hello = line("GET /1", "app.test", 200, content_bytes, "complete");
        let unknown_bytes = pipelined[3].body.len() as u64;
        let unknown = line("GET /", "none.test", 404, unknown_bytes, "complete");
        let expected = [
            line("GET /a?b=%22", "app.test", 200, content_bytes, "complete"),
            line("HEAD /", "app.test", 200, 0, "complete"),
            hello.clone(),
            hello.clone(),
            hello,
            Line { app: "-".to_owned(), ..unknown },
            line("GET /large", "files.test", 200, LARGE as u64, "complete"),
        ];
        assert_eq!(wait_lines(&access_log(&server), 7), expected, "{format}");
    }
}

#[test]
fn a_client_that_leaves_is_aborted_in_the_access_log() {
    for format in ["combined", "json"] {
        let server = setup(format).start();
        let mut waiting = server.connect();
        waiting.send(get("slow.test", "/"));
        server.wait_read([&waiting]);
        waiting.reset();
        let slow = line("GET /", "slow.test", 0, 0, "aborted");
        assert_eq!(wait_lines(&access_log(&server), 1), [slow], "{format}");
        let mut reading = Client::connect_narrow(server.address());
        reading.send(get("files.test", "/large"));
        reading.buffer_at_least(32 * 1024);
        reading.reset();
        assert_part_sent(&wait_lines(&access_log(&server), 2)[1], "aborted");
    }
}

#[test]
fn a_cut_exchange_is_cut_in_the_access_log() {
    for format in ["combined", "json"] {
        let mut server = setup(format).server("drain_timeout = \"100ms\"").start();
        let mut waiting = server.connect();
        waiting.send(get("slow.test", "/"));
        let mut reading = Client::connect_narrow(server.address());
        reading.send(get("files.test", "/large"));
        reading.buffer_at_least(32 * 1024);
        server.wait_read([&waiting]);
        server.signal(Signal::TERM);
        assert_eq!(server.wait_exit().code(), Some(3));
        // At the end of the process all lines are in the file.
        let mut lines = wait_lines(&access_log(&server), 2);
        lines.sort_by_key(|line| line.bytes);
        assert_eq!(lines[0], line("GET /", "slow.test", 0, 0, "cut"), "{format}");
        assert_part_sent(&lines[1], "cut");
    }
}

/// A download that ended early has sent some of its content.
fn assert_part_sent(found: &Line, end: &str) {
    assert!((1024..LARGE as u64).contains(&found.bytes), "{found:?}");
    assert_eq!(*found, line("GET /large", "files.test", 200, found.bytes, end));
}

#[test]
fn sigusr1_goes_on_in_a_new_access_log_after_a_rename() {
    let mut server = setup("combined").start();
    let mut client = server.connect();
    client.exchange(get("app.test", "/before"));
    let (path, old) = (access_log(&server), server.dir().join("access.log.1"));
    wait_lines(&path, 1);
    fs::rename(&path, &old).expect("rename");
    client.exchange(get("app.test", "/between"));
    wait_lines(&old, 2);
    server.signal(Signal::USR1);
    assert!(wait_until(PATIENCE, || path.exists()), "the log is not opened again");
    client.exchange(get_and_close("app.test", "/after"));
    client.expect_end();
    assert_eq!(wait_lines(&path, 1)[0].request, "GET /after HTTP/1.1");
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit().code(), Some(0));
    let old: Vec<String> = wait_lines(&old, 2).into_iter().map(|line| line.request).collect();
    assert_eq!(old, ["GET /before HTTP/1.1", "GET /between HTTP/1.1"]);
    wait_lines(&path, 1);
}

#[test]
fn every_line_of_a_json_log_is_json() {
    let mut server = setup("off")
        .log("format = \"json\"\nlevel = \"debug\"")
        .app("broken.test", "files = { root = \"no \\\"such\\\" folder\" }")
        .start();
    server.connect().exchange(get_and_close("app.test", "/"));
    server.signal(Signal::USR1);
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit().code(), Some(0));
    let lines = server.log_lines();
    let names: Vec<String> = lines.iter().map(|line| json_event(line)).collect();
    for name in ["app_loaded", "app_load_failed", "multi_app_ready", "server_stop"] {
        assert!(names.iter().any(|own| own == name), "{name}: {lines:#?}");
    }
    assert_eq!(server.wait_event("app_load_failed").field("host"), Some("broken.test"));
}

/// The name of an event, whose line must be a JSON object with all members.
fn json_event(line: &str) -> String {
    let event: Value = serde_json::from_str(line).unwrap_or_else(|why| panic!("{why}: {line}"));
    for key in ["ts", "level", "event"] {
        assert!(event[key].is_string(), "{key}: {line}");
    }
    assert!(event.get("fields").is_none_or(Value::is_object), "{line}");
    event["event"].as_str().expect("a string").to_owned()
}

#[test]
fn an_access_log_on_a_full_disk_does_not_stop_serving() {
    let mut server = Setup::new()
        .server("idle_grace = \"0s\"")
        .log("access = \"combined\"\naccess_path = \"/dev/full\"")
        .named_app("app.test")
        .start();
    for _ in 0..20 {
        // Every batch is a write that fails.
        let mut client = server.connect();
        client.send(get("app.test", "/").repeat(50) + &get_and_close("app.test", "/"));
        let (bytes, end) = client.read_to_end();
        let answers = Client::parse_all(&bytes);
        assert_eq!((answers.len(), end), (51, End::Eof));
        assert!(answers.iter().all(|answer| answer.text() == "app.test"));
    }
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit().code(), Some(0));
    server.wait_event("shutdown_drained");
}

/// The value of a series on the page of metrics; 0 if it is not there.
fn metric(server: &Server, series: &str) -> f64 {
    let page = server.admin().call("GET", "/metrics", "").text;
    let mut lines = page.lines().filter_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    lines.next().map_or(0.0, |value| value.parse().expect("a number"))
}

#[test]
fn refused_requests_are_counted_and_logged_with_all_that_is_known() {
    let server = Setup::new()
        .named_app("a.test")
        .limits("body_bytes = \"1KiB\"")
        .limits("head_bytes = \"2KiB\"")
        .limits("head_timeout = \"300ms\"")
        .log("access = \"json\"")
        .log("access_path = \"access.log\"")
        .start();
    let long = "x".repeat(4096);
    let upload = |host: &str| {
        format!("POST /up?x HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2000000\r\n\r\n")
    };
    let chunked = "POST /up HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n\
                   1000\r\n";
    let known = "POST /up?x HTTP/1.1";
    let refused = [
        (upload("a.test"), 413, "a.test", "a.test", known),
        (chunked.to_owned(), 413, "a.test", "a.test", "POST /up HTTP/1.1"),
        (upload("who.test"), 413, "who.test", "", known),
        (get("who.test", "/x"), 404, "who.test", "", "GET /x HTTP/1.1"),
        (
            "TRACE / HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned(),
            405,
            "a.test",
            "",
            "TRACE / HTTP/1.1",
        ),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400, "-", "", "- - -"),
        (get("a.test", &format!("/{long}")), 414, "-", "", "- - -"),
        (format!("GET / HTTP/1.1\r\nHost: a.test\r\nX: {long}\r\n\r\n"), 431, "-", "", "- - -"),
        ("GET / HTTP/2.0\r\nHost: a.test\r\n\r\n".to_owned(), 505, "-", "", "- - -"),
        ("GET / HT".to_owned(), 408, "-", "", "- - -"),
    ];
    for (index, (request, status, host, app, line)) in refused.into_iter().enumerate() {
        let series = format!("tidegate_requests_total{{app=\"{app}\",status=\"{status}\"}}");
        let before = metric(&server, &series);
        let mut client = server.connect();
        client.send(&request);
        assert_eq!(client.response().status, status, "{request:.60}");
        drop(client);
        assert!(wait_until(PATIENCE, || metric(&server, &series) == before + 1.0), "{series}");
        let last = wait_lines(&access_log(&server), index + 1).pop().expect("a line");
        assert_eq!((last.status, last.request.as_str()), (u64::from(status), line));
        let app = if app.is_empty() { "-" } else { app };
        assert_eq!((last.host.as_str(), last.app.as_str()), (host, app), "{request:.60}");
    }
    let page = server.admin().call("GET", "/metrics", "").text;
    assert!(page.contains("tidegate_request_seconds_count{app=\"\"} 8"), "{page}");
}

#[test]
fn requests_of_one_turn_have_their_time() {
    let server = Setup::new().named_app("a.test").start();
    let mut client = server.connect();
    for _ in 0..10 {
        assert_eq!(client.exchange(get("a.test", "/")).status, 200);
    }
    let seconds = |name: &str| metric(&server, &format!("tidegate_request_seconds_{name}"));
    let sum = || seconds("sum{app=\"a.test\"}");
    let single = sum();
    assert!((1e-6..10.0).contains(&single), "{single} s");
    // Each request of a pipeline is counted, with its own time.
    client.send(get("a.test", "/").repeat(20));
    for _ in 0..20 {
        assert_eq!(client.response().status, 200);
    }
    assert_eq!(seconds("count{app=\"a.test\"}"), 30.0);
    assert!(sum() > single, "{} s", sum());
    assert_eq!(metric(&server, "tidegate_requests_total{app=\"a.test\",status=\"200\"}"), 30.0);
    let page = server.admin().call("GET", "/metrics", "").text;
    let bounds = page.lines().filter_map(|line| {
        line.strip_prefix("tidegate_request_seconds_bucket{le=\"")?.split('"').next()
    });
    let first: Vec<f64> = bounds.take(4).map(|bound| bound.parse().expect("a number")).collect();
    assert_eq!(first, [0.000_05, 0.000_1, 0.000_25, 0.000_5]);
}
