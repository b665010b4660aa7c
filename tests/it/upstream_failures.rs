//! Upstreams that fail: what the client gets, whose fault it is, and where the reason is reported.

use std::{fs, time::Duration};

use serde_json::{Value, json};

use crate::support::{
    self, Asked, Client, End, Gate, Line, PATIENCE, Response, Server, Setup, Upstream, get,
    get_and_close, wait_until,
};

const HOST: &str = "p.test";

const GET: &str = "GET / HTTP/1.1\r\nHost: p.test\r\n\r\n";

/// A server with one loop, and an access log in JSON.
fn setup(urls: &[&str], more: &str) -> Setup {
    let more = if more.is_empty() { String::new() } else { format!(", {more}") };
    Setup::new()
        .server("threads = 1")
        .server("idle_grace = \"0s\"")
        .log("access = \"json\"\naccess_path = \"access.log\"")
        .app(HOST, &format!("proxy = {{ upstreams = {urls:?}{more} }}"))
}

fn start(upstream: &Upstream, more: &str) -> Server {
    setup(&[upstream.url()], more).start()
}

fn upstream_row(server: &Server, index: usize) -> Value {
    server.admin().get(&format!("/apps/{HOST}"))["upstreams"][index].clone()
}

/// The lines of the access log, as soon as there are this many.
fn access_lines(server: &Server, count: usize) -> Vec<Value> {
    let path = server.dir().join("access.log");
    let read = || fs::read_to_string(&path).unwrap_or_default();
    let reached = wait_until(PATIENCE, || read().matches('\n').count() >= count);
    assert!(reached, "{count} lines are not there: {}", read());
    read().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// The value of a metric with these labels.
fn metric(server: &Server, name: &str, labels: &str) -> Option<u64> {
    let page = server.admin().call("GET", "/metrics", "").text;
    let line = format!("{name}{{{labels}}} ");
    let value = page.lines().find_map(|own| own.strip_prefix(&line))?;
    Some(value.parse().expect("a number"))
}

fn failures(server: &Server, url: &str, cause: &str) -> Option<u64> {
    let labels = format!("app=\"{HOST}\",upstream=\"{url}\",cause=\"{cause}\"");
    metric(server, "tidegate_upstream_failures_total", &labels)
}

/// Checks that every place names this cause for the only request, and that its answer is this.
fn check_cause(server: &Server, url: &str, response: &Response, (status, cause): (u16, &str)) {
    assert_eq!(response.status, status, "{cause}: {}", response.text());
    for secret in [url, cause, "os error"] {
        assert!(!response.text().contains(secret), "{cause}: {}", response.text());
    }
    let failed = server.wait_event("upstream_failed");
    assert_eq!(failed.level, "WARN");
    assert_eq!(failed.field("host"), Some(HOST));
    assert_eq!(failed.field("upstream"), Some(url));
    assert_eq!(
        (failed.field("reason"), failed.count("suppressed")),
        (Some(cause), 0),
        "{failed:?}"
    );
    let error = failed.field("error").expect("an error");
    let last = &upstream_row(server, 0)["last_failure"];
    assert_eq!((&last["cause"], &last["error"]), (&json!(cause), &json!(error)));
    assert!(last["age_ms"].as_u64().expect("an age") < 60_000, "{last}");
    assert!(last["at"].as_str().expect("a time").ends_with('Z'), "{last}");
    let line = &access_lines(server, 1)[0];
    let seen = [&line["upstream"], &line["reason"], &line["status"], &line["tries"]];
    assert_eq!(seen, [&json!(url), &json!(cause), &json!(status), &json!(1)]);
    assert!(line["upstream_us"].is_u64(), "{line}");
    assert_eq!(failures(server, url, cause), Some(1));
}

/// What an upstream does, the resulting status, the cause, and a part of the error.
type Way = (fn(&Asked, &mut Line), u16, &'static str, &'static str);

const WAYS: &[Way] = &[
    (|_, line| line.close(), 502, "closed_before_answer", "closed without an answer"),
    (
        |_, line| {
            line.send("HTTP/1.1 200 OK\r\nA: b");
            line.close();
        },
        502,
        "closed_before_answer",
        "within the head",
    ),
    (|_, line| line.reset(), 502, "reset_before_answer", "os error 104"),
    (|_, line| drop(line.read_to_end()), 504, "answer_timeout", "answer_timeout"),
    (
        |_, line| {
            line.send(format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "b".repeat(30_000)));
            line.read_to_end();
        },
        502,
        "head_too_large",
        "limits.head_bytes",
    ),
    (
        |_, line| {
            line.send(format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(101)));
            line.read_to_end();
        },
        502,
        "head_too_large",
        "limits.headers",
    ),
    (
        |_, line| {
            line.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx");
            line.read_to_end();
        },
        502,
        "bad_head",
        "more than one Content-Length",
    ),
    (
        |_, line| {
            line.send("HTTP/1.1 200 OK\nContent-Length: 1\n\nx");
            line.read_to_end();
        },
        502,
        "bad_head",
        "CRLF",
    ),
    (
        |_, line| {
            line.send("HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n");
            line.read_to_end();
        },
        502,
        "bad_head",
        "folded",
    ),
    (
        |_, line| {
            line.send("HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n");
            line.read_to_end();
        },
        502,
        "bad_head",
        "status",
    ),
    (
        |_, line| {
            line.send("SSH-2.0-OpenSSH_9.2\r\n");
            line.read_to_end();
        },
        502,
        "bad_head",
        "status line",
    ),
];

#[test]
fn every_502_and_504_says_its_cause_everywhere() {
    for &(script, status, cause, error) in WAYS {
        let upstream = Upstream::tcp(script);
        let server = start(&upstream, "answer_timeout = \"300ms\"");
        let response = server.connect().exchange(GET);
        check_cause(&server, upstream.url(), &response, (status, cause));
        let failed = server.wait_event("upstream_failed");
        let said = failed.field("error").expect("an error");
        assert!(said.contains(error), "{cause}: {said}");
    }
}

#[test]
fn an_upstream_that_cannot_be_connected_to_says_why() {
    let url = Upstream::refusing();
    let server = setup(&[&url], "").start();
    let response = server.connect().exchange(GET);
    check_cause(&server, &url, &response, (502, "connect_refused"));
    let table = support::run(&["app", HOST, "--admin", &admin_of(&server)]).1;
    assert!(table.contains("connect_refused") && table.contains("os error 111"), "{table}");

    let url = "unix:/nonexistent/app.sock";
    let server = setup(&[url], "").start();
    let response = server.connect().exchange(GET);
    check_cause(&server, url, &response, (502, "connect_failed"));
}

fn admin_of(server: &Server) -> String {
    format!("unix:{}", server.admin().path().display())
}

#[test]
fn a_request_that_finds_no_upstream_says_why() {
    let upstream = Upstream::tcp(|_, line| line.answer(500, ""));
    let health = "health = { path = \"/\", interval = \"100ms\" }";
    let unknown = "http://no-such-host.invalid:1";
    for (url, more, cause) in
        [(upstream.url(), health, "no_upstream_up"), (unknown, "", "resolve_failed")]
    {
        let server = setup(&[url], more).start();
        let is_down = || upstream_row(&server, 0)["state"] == "down";
        assert!(wait_until(PATIENCE, is_down), "{}", upstream_row(&server, 0));
        let response = server.connect().exchange(GET);
        assert_eq!(
            (response.status, response.text()),
            (503, r#"{"error":"All upstreams are down"}"#)
        );
        let failed = server.wait_event("upstream_failed");
        assert_eq!((failed.field("reason"), failed.field("upstream")), (Some(cause), Some("-")));
        let line = &access_lines(&server, 1)[0];
        assert_eq!((&line["reason"], &line["upstream"]), (&json!(cause), &Value::Null));
        assert_eq!(failures(&server, "", cause), Some(1));
    }
    let server = setup(&[unknown], "").start();
    let event = server.wait_event("upstream_unresolved");
    assert_eq!((event.field("upstream"), event.field("host")), (Some(unknown), Some(HOST)));
    assert!(event.field("error").is_some_and(|error| !error.is_empty()), "{event:?}");
}

#[test]
fn failures_are_logged_once_a_second_and_the_others_counted() {
    let upstream = Upstream::tcp(|_, line| line.reset());
    let server = start(&upstream, "");
    let ask = || assert_eq!(server.connect().exchange(GET).status, 502);
    (0..5).for_each(|_| ask());
    let logged = || -> Vec<_> {
        let events = server.events().into_iter();
        events.filter(|event| event.name == "upstream_failed").collect()
    };
    let grew = wait_until(PATIENCE, || {
        ask();
        logged().len() >= 2
    });
    assert!(grew, "a second later the next one is logged");
    let events = logged();
    let row = upstream_row(&server, 0);
    let reported: usize = events.iter().map(|event| 1 + event.count("suppressed")).sum();
    assert!(events[1].count("suppressed") >= 4, "{events:?}");
    // Failures after the last line are only in the count.
    assert!(reported as u64 <= row["failures"].as_u64().expect("a number"), "{reported} {row}");
    assert_eq!(failures(&server, upstream.url(), "reset_before_answer"), row["failures"].as_u64());
}

#[test]
fn a_try_that_failed_is_in_the_line_of_the_one_that_worked() {
    let (bad, good) = (Upstream::refusing(), Upstream::tcp(|_, line| line.answer(200, "ok")));
    for format in ["json", "combined"] {
        let server = Setup::new()
            .server("threads = 1")
            .log(&format!("access = \"{format}\"\naccess_path = \"access.log\""))
            .app(HOST, &format!("proxy = {{ upstreams = [{bad:?}, {:?}] }}", good.url()))
            .start();
        let mut client = server.connect();
        assert_eq!((0..2).filter(|_| client.exchange(GET).status == 200).count(), 2);
        let path = server.dir().join("access.log");
        let read = || fs::read_to_string(&path).unwrap_or_default();
        assert!(wait_until(PATIENCE, || read().lines().count() == 2), "{}", read());
        let url = good.url();
        for (tries, reason) in [(1, None), (2, Some("connect_refused"))] {
            let tail = if format == "json" {
                let reason = reason.map_or("null".to_owned(), |reason| format!("\"{reason}\""));
                (
                    format!("\"upstream\":\"{url}\",\"tries\":{tries},"),
                    format!("\"reason\":{reason}}}"),
                )
            } else {
                let reason = reason.unwrap_or("-");
                (format!(" upstream={url} tries={tries} upstream_us="), format!(" reason={reason}"))
            };
            let found = read()
                .lines()
                .filter(|line| line.contains(&tail.0) && line.ends_with(&tail.1))
                .count();
            assert_eq!(found, 1, "{tail:?} in {}", read());
        }
    }
}

// Answers that break off.

/// An upstream that sends the head and a part of the content in one piece, and closes.
fn breaks_off(_: &Asked, line: &mut Line) {
    line.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{}", "x".repeat(300)));
    line.close();
}

#[test]
fn an_answer_that_breaks_off_in_one_piece_is_a_502_or_comes_as_far_as_it_went() {
    let upstream = Upstream::tcp(breaks_off);
    let server = start(&upstream, "");
    for _ in 0..20 {
        let mut client = server.connect();
        client.send(get_and_close(HOST, "/"));
        let (bytes, end) = client.read_to_end();
        let text = String::from_utf8_lossy(&bytes);
        let is_502 = text.starts_with("HTTP/1.1 502 ");
        let is_part = text.starts_with("HTTP/1.1 200 ") && text.ends_with(&"x".repeat(300));
        assert!(is_502 || (is_part && end == End::Eof), "{end:?} {text}");
    }
    assert_eq!(failures(&server, upstream.url(), "body_broke_off"), Some(20));
    for line in access_lines(&server, 20) {
        assert_eq!(line["reason"], "body_broke_off");
        let end = if line["status"] == 502 { "complete" } else { "upstream_broke" };
        assert_eq!(line["end"], end, "{line}");
    }
}

#[test]
fn an_answer_that_breaks_off_later_sends_what_is_queued_and_blames_the_upstream() {
    const PART: usize = 600_000;
    for framing in ["Content-Length: 1000000", "Transfer-Encoding: chunked"] {
        let gate = Gate::default();
        let upstream = Upstream::tcp({
            let gate = gate.clone();
            move |_, line| {
                let content = "x".repeat(PART);
                let size = if framing.starts_with('T') { "f4240\r\n" } else { "" };
                line.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n{size}{content}"));
                gate.pass();
                line.close();
            }
        });
        let server = start(&upstream, "");
        // The client reads nothing before the upstream is gone.
        let mut client = Client::connect_narrow(server.address());
        client.send(GET);
        upstream.wait_asked(1);
        gate.open();
        client.buffer_at_least(1);
        let (bytes, end) = client.read_to_end();
        let content = bytes.iter().filter(|byte| **byte == b'x').count();
        assert_eq!((content, end), (PART, End::Eof), "{framing}");
        let line = &access_lines(&server, 1)[0];
        assert_eq!((&line["end"], &line["status"]), (&json!("upstream_broke"), &json!(200)));
        assert_eq!(line["reason"], "body_broke_off");
        let failed = server.wait_event("upstream_failed");
        assert_eq!(failed.field("error"), Some("closed within the content"));
        assert_eq!(upstream_row(&server, 0)["failures"], 1);
        let active = || server.admin().get(&format!("/apps/{HOST}"))["active_connections"] == 0;
        assert!(wait_until(PATIENCE, active), "the exchange has ended");
    }
}

#[test]
fn an_upstream_that_breaks_every_answer_off_is_ejected() {
    let bad = Upstream::tcp(breaks_off);
    let good = Upstream::tcp(|_, line| line.answer(200, "good"));
    let server = setup(&[bad.url(), good.url()], "eject_after = 3, eject_for = \"1h\"").start();
    for _ in 0..6 {
        let mut client = server.connect();
        client.send(get_and_close(HOST, "/"));
        client.read_to_end();
    }
    let ejected = server.wait_event("upstream_ejected");
    assert_eq!(ejected.field("upstream"), Some(bad.url()));
    assert_eq!(ejected.field("reason"), Some("body_broke_off"));
    assert_eq!(bad.asked().len(), 3);
}

#[test]
fn the_answer_before_one_that_breaks_off_is_whole() {
    let upstream = Upstream::tcp(|asked, line| match asked.target() {
        "/bad" => breaks_off(asked, line),
        _ => line.answer(200, "whole"),
    });
    let server = start(&upstream, "");
    let mut client = server.connect();
    client.send(get(HOST, "/") + &get_and_close(HOST, "/bad"));
    let first = client.response();
    assert_eq!((first.status, first.text()), (200, "whole"));
    let (bytes, _) = client.read_to_end();
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.starts_with("HTTP/1.1 502 ") || text.ends_with('x'), "{text}");
}

#[test]
fn the_line_names_the_upstream_whichever_side_ends_the_exchange() {
    let upstream = Upstream::tcp(|asked, line| {
        if asked.target() == "/tunnel" {
            line.send("HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\nhi");
            line.read(2);
            line.reset_now();
        }
        line.read_to_end();
    });
    let server = start(&upstream, "eject_after = 1");
    let mut client = server.connect();
    client.send(format!(
        "GET /tunnel HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"
    ));
    client.buffer_at_least(60);
    client.send("go");
    let (bytes, end) = client.read_to_end();
    assert!(bytes.ends_with(b"hi") && end == End::Reset, "{end:?}");
    let line = &access_lines(&server, 1)[0];
    assert_eq!(
        (&line["end"], &line["reason"]),
        (&json!("upstream_broke"), &json!("tunnel_broke_off"))
    );
    // A client that leaves is no failure of the upstream.
    let mut client = server.connect();
    client.send(GET);
    upstream.wait_asked(2);
    client.reset();
    let line = &access_lines(&server, 2)[1];
    assert_eq!((&line["end"], &line["reason"]), (&json!("aborted"), &Value::Null));
    assert_eq!((&line["upstream"], &line["tries"]), (&json!(upstream.url()), &json!(1)));
    assert_eq!(upstream_row(&server, 0)["failures"], 1);
}

#[test]
fn events_of_upstreams_reach_the_stream_of_operators() {
    let is_good = Gate::default();
    let upstream = Upstream::tcp({
        let is_good = is_good.clone();
        move |_, line| {
            let status = if is_good.passes_within(Duration::ZERO) { 200 } else { 500 };
            line.answer(status, "");
        }
    });
    let bad = Upstream::refusing();
    let more = "health = { path = \"/\", interval = \"200ms\", fall = 1, rise = 1 }";
    let server = setup(&[upstream.url(), &bad], more).start();
    let is_down = || upstream_row(&server, 0)["state"] == "down";
    assert!(wait_until(PATIENCE, is_down), "{}", upstream_row(&server, 0));
    let mut events = server.admin().events();
    is_good.open();
    let up = events.wait("upstream_up");
    assert_eq!(up["fields"]["upstream"], upstream.url());
    assert_eq!(up["fields"]["before"], "status 500");
    upstream.kill();
    let down = events.wait("upstream_down");
    assert!(down["fields"]["reason"].as_str().is_some_and(|it| it.contains("refused")), "{down}");
    let good = Upstream::tcp(|_, line| line.answer(200, ""));
    let urls = [&*bad, good.url()];
    let server = setup(&urls, "eject_after = 1, eject_for = \"1h\"").start();
    let mut events = server.admin().events();
    let mut client = server.connect();
    (0..2).for_each(|_| drop(client.exchange(GET)));
    let failed = events.wait("upstream_failed");
    assert_eq!(failed["fields"]["reason"], "connect_refused");
    let ejected = events.wait("upstream_ejected");
    assert_eq!(ejected["fields"]["reason"], "connect_refused");
    assert_eq!(ejected["fields"]["upstream"], *bad);
}

// Checks.

#[test]
fn the_reason_of_a_failing_check_is_the_newest_one() {
    let address = support::free_port();
    let url = format!("http://{address}");
    let more = "health = { path = \"/\", interval = \"100ms\", fall = 2 }";
    let server = setup(&[&url], more).start();
    let reason = || upstream_row(&server, 0)["reason"].clone();
    let says = |what: &str| {
        let newest = wait_until(PATIENCE, || reason().as_str().is_some_and(|it| it.contains(what)));
        assert!(newest, "{what}: {}", reason());
    };
    says("refused");
    let upstream = Upstream::at(address, |_, line| line.answer(302, ""));
    says("status 302");
    let still = server.wait_event("upstream_still_down");
    assert_eq!(still.field("upstream"), Some(upstream.url()));
    assert_eq!(still.field("reason"), Some("status 302"));
    assert!(still.field("before").is_some_and(|it| it.contains("refused")), "{still:?}");
    // The same reason is not reported again.
    let checks = upstream.asked().len();
    upstream.wait_asked(checks + 3);
    let reported = server.events().iter().filter(|it| it.name == "upstream_still_down").count();
    assert_eq!(reported, 1);
}

// Slow upstreams.

/// Sends piece after piece, with a pause before each, until the connection is gone.
fn trickle(line: &mut Line, piece: &str) {
    let pause = Gate::default();
    while line.send(piece) {
        pause.passes_within(Duration::from_millis(60));
    }
}

#[test]
fn an_upstream_that_trickles_is_ended() {
    let heads: [fn(&Asked, &mut Line); 2] = [
        |_, line| {
            line.send("HTTP/1.1 200 OK\r\nA: ");
            trickle(line, "b");
        },
        |_, line| trickle(line, "HTTP/1.1 102 Processing\r\n\r\n"),
    ];
    for script in heads {
        let upstream = Upstream::tcp(script);
        let server = start(&upstream, "answer_timeout = \"400ms\", interim_timeout = \"1s\"");
        let mut client = server.connect();
        client.send(get_and_close(HOST, "/"));
        let (bytes, _) = client.read_to_end();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("HTTP/1.1 504 "), "{text}");
        assert_eq!(failures(&server, upstream.url(), "answer_too_slow"), Some(1));
        upstream.wait_left(1);
    }
    for (framing, more) in
        [("Content-Length: 1000", ""), ("Transfer-Encoding: chunked", ", slow_streams = false")]
    {
        let upstream = Upstream::tcp(move |_, line| {
            line.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n"));
            trickle(line, if more.is_empty() { "x" } else { "1\r\nx\r\n" });
        });
        let server = start(&upstream, &format!("answer_timeout = \"400ms\"{more}"));
        let mut client = server.connect();
        client.send(GET);
        assert_eq!(client.read_to_end().1, End::Eof);
        assert_eq!(access_lines(&server, 1)[0]["end"], "upstream_broke");
        assert_eq!(failures(&server, upstream.url(), "answer_too_slow"), Some(1));
    }
}

#[test]
fn a_slow_stream_and_a_slow_client_are_no_trickling_upstream() {
    let gate = Gate::default();
    let upstream = Upstream::tcp({
        let gate = gate.clone();
        move |asked, line| match asked.target() {
            "/events" => {
                line.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n");
                for _ in 0..10 {
                    Gate::default().passes_within(Duration::from_millis(100));
                    line.send(":\n\n");
                }
                line.close();
            }
            _ => {
                line.answer(200, "x".repeat(8 << 20));
                gate.open();
            }
        }
    });
    let server = start(&upstream, "answer_timeout = \"300ms\"");
    assert_eq!(server.connect().exchange(get(HOST, "/events")).text(), ":\n\n".repeat(10));
    // The client reads a little from time to time, for longer than the time-out.
    let mut client = Client::connect_narrow(server.address());
    client.send(get(HOST, "/large"));
    for count in 1..=10 {
        client.buffer_at_least(count * 100);
        Gate::default().passes_within(Duration::from_millis(80));
    }
    assert_eq!(client.response().body.len(), 8 << 20);
    gate.pass();
    assert_eq!(upstream_row(&server, 0)["failures"], 0);
}

#[test]
fn interim_answers_extend_the_time_for_the_answer_but_a_flood_of_them_is_refused() {
    let upstream = Upstream::tcp(|asked, line| {
        if asked.target() == "/flood" {
            line.send("HTTP/1.1 103 Early Hints\r\n\r\n".repeat(2000));
        } else {
            for _ in 0..40 {
                line.send("HTTP/1.1 102 Processing\r\n\r\n");
                Gate::default().passes_within(Duration::from_millis(20));
            }
        }
        line.answer(200, "done");
    });
    // Together they take longer than an upstream may be silent.
    let server = start(&upstream, "answer_timeout = \"400ms\"");
    let mut client = server.connect();
    client.send(get_and_close(HOST, "/"));
    let (bytes, _) = client.read_to_end();
    let text = String::from_utf8_lossy(&bytes);
    assert_eq!(text.matches("HTTP/1.1 102 Processing\r\n").count(), 40, "{text}");
    assert!(text.ends_with("done"), "{text}");
    let mut client = server.connect();
    client.send(get_and_close(HOST, "/flood"));
    let (bytes, _) = client.read_to_end();
    assert!(String::from_utf8_lossy(&bytes).contains("HTTP/1.1 502 "));
    assert_eq!(failures(&server, upstream.url(), "head_too_large"), Some(1));
}

// Unusual answers that are passed on.

#[test]
fn unusual_but_unambiguous_answers_are_passed_on_in_canonical_form() {
    let answers: &[(&str, &[&str], &str)] = &[
        (
            "HTTP/1.1 200 OK\r\nName : value\r\nContent-Length: 2\r\n\r\nok",
            &["HTTP/1.1 200 OK", "Name: value"],
            "ok",
        ),
        (
            "HTTP/1.1 299 Fine Indeed\r\nContent-Length: 0\r\n\r\n",
            &["HTTP/1.1 299 Fine Indeed"],
            "",
        ),
        ("HTTP/1.1 423 x\r\nContent-Length: 0\r\n\r\n", &["HTTP/1.1 423 Locked"], ""),
        (
            "HTTP/1.1 426 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nContent-Length: 0\r\n\r\n",
            &["Upgrade: websocket", "Connection: upgrade", "Sec-WebSocket-Version: 13"],
            "",
        ),
        (
            "HTTP/1.1 407 X\r\nProxy-Authenticate: Basic\r\nProxy-Status: a; error=b\r\n\
             Proxy-Connection: close\r\nContent-Length: 0\r\n\r\n",
            &["Proxy-Authenticate: Basic", "Proxy-Status: a; error=b"],
            "",
        ),
        (
            "HTTP/1.1 200 OK\r\nTrailer: Server-Timing\r\nTransfer-Encoding: chunked\r\n\r\n\
             2 ; a = b\r\nok\r\n0   \r\nServer-Timing: x\r\n\r\n",
            &["Trailer: Server-Timing"],
            "2\r\nok\r\n0\r\nServer-Timing: x\r\n\r\n",
        ),
    ];
    for &(answer, lines, content) in answers {
        let upstream = Upstream::tcp(move |_, line| {
            line.send(answer);
        });
        let server = start(&upstream, "");
        let mut client = server.connect();
        client.send(get_and_close(HOST, "/"));
        let (bytes, _) = client.read_to_end();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        for line in lines {
            assert!(head.split("\r\n").any(|own| own == *line), "{line}: {text}");
        }
        assert!(!head.contains("Proxy-Connection"), "{text}");
        assert_eq!(body, content, "{answer:?}");
    }
}

#[test]
fn uploads_with_trailers_and_blanks_in_their_size_lines_pass() {
    let upstream = Upstream::tcp(|_, line| line.answer(200, ""));
    let server = start(&upstream, "");
    let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n");
    let mut client = server.connect();
    let request = head.clone() + "Trailer: X-Sum\r\n\r\n3 ; a=b\r\nabc\r\n0\t;\r\nX-Sum: 6\r\n\r\n";
    assert_eq!(client.exchange(request).status, 200);
    let asked = upstream.last();
    assert_eq!((&*asked.content, &*asked.trailers), (&b"abc"[..], "X-Sum: 6\r\n"));
    assert_eq!(asked.all("trailer"), ["X-Sum"]);
    for bad in ["3 \r\nabc\r\n0\r\n\r\n", " 3\r\nabc\r\n0\r\n\r\n", "1 1\r\nabc\r\n"] {
        let request = format!("{head}\r\n{bad}");
        assert_eq!(server.connect().exchange(request).status, 400, "{bad:?}");
    }
}
