//! The protocol as a peer sees it: kept connections, answers without content, time-outs, routing,
//! and too many connections.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::support::{
    Client, End, Lost, PATIENCE, Response, Setup, Signal, get, get_and_close, wait_until,
};

const MIB: usize = 1024 * 1024;

fn one_app() -> Setup {
    Setup::new().app("app.test", "respond = { body = \"hello\" }")
}

#[test]
fn every_answer_carries_length_and_date() {
    let server = one_app().start();
    let response = server.connect().exchange(get("app.test", "/"));
    assert_eq!((response.status, response.text()), (200, "hello"));
    assert_eq!(response.field("Content-Length"), Some("5"));
    let date = response.field("Date").expect("Date");
    let sent = httpdate::parse_http_date(date).expect("a date");
    assert_eq!(httpdate::fmt_http_date(sent), date, "IMF-fixdate");
    let age = sent.elapsed().unwrap_or(Duration::ZERO);
    assert!(age < Duration::from_secs(5), "{age:?}");
    let second = server.connect().exchange(get("nobody.test", "/"));
    assert!(second.field("Date").is_some() && second.field("Content-Length").is_some());
}

#[test]
fn http_1_1_connections_stay_open() {
    let server = one_app().start();
    let mut client = server.connect();
    for _ in 0..3 {
        let response = client.exchange(get("app.test", "/"));
        assert_eq!((response.status, response.says_close()), (200, false));
    }
    let last = client.exchange(get_and_close("app.test", "/"));
    assert!(last.says_close());
    client.expect_end();
}

#[test]
fn an_answer_says_how_long_its_connection_may_be_idle_to_clients_that_ask_to_keep_it() {
    let asks = "GET / HTTP/1.1\r\nHost: app.test\r\nConnection: Keep-Alive\r\n\r\n";
    let hints = [("75s", Some(67)), ("10s", Some(9)), ("1500ms", None), ("1h", Some(67))];
    for (limit, seconds) in hints {
        let server = one_app().limits(&format!("keepalive_timeout = \"{limit}\"")).start();
        let mut client = server.connect();
        let response = client.exchange(asks);
        let hint = seconds.map(|seconds| format!("timeout={seconds}"));
        assert_eq!(response.field("Keep-Alive"), hint.as_deref(), "{limit}");
        assert_eq!(response.field("Connection"), Some("keep-alive"), "{limit}");
        // HTTP/1.1 needs no field to keep a connection, and these clients did not ask for one.
        let response = client.exchange(get("app.test", "/"));
        assert_eq!((response.field("Keep-Alive"), response.field("Connection")), (None, None));
        let last = server.connect().exchange(get_and_close("app.test", "/"));
        assert_eq!((last.field("Keep-Alive"), last.says_close()), (None, true));
    }
}

#[test]
fn http_1_0_connections_close_unless_kept_alive() {
    let server = one_app().start();
    let mut client = server.connect();
    let plain = "GET / HTTP/1.0\r\nHost: app.test\r\n\r\n";
    assert_eq!(client.exchange(plain).text(), "hello");
    client.expect_end();

    let mut client = server.connect();
    let kept = "GET / HTTP/1.0\r\nHost: app.test\r\nConnection: Keep-Alive\r\n\r\n";
    for _ in 0..2 {
        let response = client.exchange(kept);
        let connection = response.field("Connection").unwrap_or("");
        assert!(connection.eq_ignore_ascii_case("keep-alive"), "{}", response.head);
    }
    client.exchange(plain);
    client.expect_end();
}

#[test]
fn a_hundred_pipelined_requests_are_answered_in_order() {
    let server = Setup::new()
        .app("app.test", "redirect = { to = \"http://out.test\", status = 308 }")
        .start();
    let mut client = server.connect();
    let requests: String = (0..100).map(|n| get("app.test", &format!("/{n}"))).collect();
    client.send(requests);
    for n in 0..100 {
        let response = client.response();
        assert_eq!(response.field("Location"), Some(format!("http://out.test/{n}").as_str()));
    }
}

#[test]
fn pipelined_answers_wait_for_the_slow_one_before_them() {
    let server = Setup::new()
        .app("slow.test", "respond = { body = \"slow\", delay = \"200ms\" }")
        .named_app("fast.test")
        .start();
    let mut client = server.connect();
    client.send(get("slow.test", "/") + &get("fast.test", "/") + &get("slow.test", "/"));
    let order: Vec<String> = (0..3).map(|_| client.response().text().to_owned()).collect();
    assert_eq!(order, ["slow", "fast.test", "slow"]);
}

#[test]
fn more_is_pipelined_than_any_buffer_holds() {
    let body = "x".repeat(4000);
    let server =
        Setup::new().app("app.test", &format!("respond = {{ body = \"{body}\" }}")).start();
    let count = 3000;
    let mut client = Client::connect_narrow(server.address());
    let requests = get("app.test", "/").repeat(count) + &get_and_close("app.test", "/");
    // The server stops reading while its answers aren't read, so sending needs its own thread.
    let mut sender = client.second();
    let sending = std::thread::spawn(move || sender.send(requests));
    for _ in 0..=count {
        assert_eq!(client.response().body.len(), body.len());
    }
    client.expect_end();
    sending.join().expect("all is sent");
}

#[test]
fn head_is_answered_like_get_without_content() {
    let server = one_app().start();
    let mut client = server.connect();
    let by_get = client.exchange(get("app.test", "/"));
    client.send("HEAD / HTTP/1.1\r\nHost: app.test\r\n\r\n".to_owned() + &get("app.test", "/"));
    let by_head = client.response_to_head();
    assert_eq!((by_head.status, names(&by_head)), (200, names(&by_get)));
    assert_eq!(by_head.field("Content-Length"), Some("5"));
    assert_eq!(client.response().text(), "hello");
    client.send("HEAD / HTTP/1.1\r\nHost: nobody.test\r\n\r\n".to_owned() + &get("app.test", "/"));
    assert_eq!(client.response_to_head().status, 404);
    assert_eq!(client.response().text(), "hello");
}

fn names(response: &Response) -> Vec<&str> {
    response.fields.iter().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn no_content_and_not_modified_have_no_content() {
    let server = Setup::new()
        .app("none.test", "respond = { status = 204, body = \"\" }")
        .app("same.test", "respond = { status = 304, body = \"\" }")
        .named_app("app.test")
        .start();
    let mut client = server.connect();
    // The parser expects no content after either: a byte of it would break the next answer.
    for (host, status) in [("none.test", 204), ("same.test", 304), ("app.test", 200)] {
        assert_eq!(client.exchange(get(host, "/")).status, status);
    }
}

#[test]
fn a_half_closed_connection_still_gets_its_answer() {
    let server =
        one_app().app("slow.test", "respond = { body = \"slow\", delay = \"200ms\" }").start();
    for (host, body) in [("app.test", "hello"), ("slow.test", "slow")] {
        let mut client = server.connect();
        client.send(get(host, "/"));
        client.half_close();
        assert_eq!(client.response().text(), body);
        client.expect_end();
    }
}

#[test]
fn half_a_request_and_then_the_end_is_no_request() {
    let server = one_app().start();
    for part in ["", "GE", "GET / HTTP/1.1\r\nHost: app.test\r\n"] {
        let mut client = server.connect();
        client.send(part);
        client.half_close();
        let (answer, end) = client.read_to_end();
        assert_eq!(end, End::Eof, "{part:?}");
        let answers = Client::parse_all(&answer);
        assert!(answers.iter().all(|one| one.status == 400), "{part:?}: {answers:?}");
    }
}

#[test]
fn an_error_answer_is_not_lost_to_a_reset() {
    let server =
        one_app().limits("body_bytes = \"1KiB\"").limits("linger_timeout = \"10s\"").start();
    for _ in 0..5 {
        let mut client = server.connect();
        let head = format!("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: {}", 4 * MIB);
        client.send(head + "\r\n\r\n");
        for _ in 0..64 {
            client.send(vec![b'x'; 64 * 1024]);
        }
        let response = client.response();
        assert_eq!((response.status, response.says_close()), (413, true));
        client.expect_end();
    }
}

#[test]
fn a_lingering_connection_ends_by_its_own_limit() {
    let server = one_app().limits("linger_timeout = \"200ms\"").start();
    let before = server.sockets();
    let mut client = server.connect();
    client.send("BAD\r\n\r\n");
    assert_eq!(client.response().status, 400);
    client.expect_eof();
    // The client keeps its side open.
    assert!(wait_until(PATIENCE, || server.sockets() == before), "{}", server.sockets());
}

#[test]
fn an_expected_continue_is_sent_before_the_content() {
    let server = one_app().start();
    for expectation in ["100-continue", "100-Continue"] {
        let mut client = server.connect();
        let head = "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 5";
        client.send(format!("{head}\r\nExpect: {expectation}\r\n\r\n"));
        let mut response = client.response();
        if response.status == 100 {
            client.send("12345");
            response = client.response();
            assert!(!response.says_close(), "{}", response.head);
        } else {
            // The server may answer without asking for the content (RFC 9110 §10.1.1).
            let _ = client.try_send(b"12345");
        }
        assert_eq!((response.status, response.text()), (200, "hello"));
        if response.says_close() {
            client.expect_end();
        } else {
            assert_eq!(client.exchange(get("app.test", "/")).text(), "hello");
        }
    }
}

#[test]
fn no_continue_is_sent_to_http_1_0() {
    let server = one_app().start();
    let mut client = server.connect();
    let head = "POST / HTTP/1.0\r\nHost: app.test\r\nContent-Length: 5\r\nExpect: 100-continue";
    client.send(head.to_owned() + "\r\n\r\n12345");
    assert_eq!(client.response().status, 200);
    client.expect_end();
}

#[test]
fn a_slow_head_is_answered_408() {
    let server = one_app().limits("head_timeout = \"300ms\"").start();
    let started = Instant::now();
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\nHost: ");
    let response = client.response();
    assert_eq!((response.status, response.says_close()), (408, true));
    assert!(started.elapsed() >= Duration::from_millis(290), "{:?}", started.elapsed());
    client.expect_end();
}

#[test]
fn a_head_that_trickles_is_answered_408_too() {
    let server = one_app().limits("head_timeout = \"300ms\"").start();
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\nX: ");
    let answered = wait_until(PATIENCE, || client.try_send(b"x").is_err() || client.is_readable());
    assert!(answered, "the head may take for ever");
    assert_eq!(client.response().status, 408);
}

#[test]
fn the_second_head_of_a_connection_has_its_own_time() {
    let server = one_app().limits("head_timeout = \"300ms\"").start();
    let mut client = server.connect();
    client.exchange(get("app.test", "/"));
    // An idle connection is no slow head: it has another time-out.
    assert!(client.stays_silent(Duration::from_millis(500)));
    client.send("GET");
    assert_eq!(client.response().status, 408);
}

#[test]
fn slow_content_ends_its_connection() {
    let server = one_app().limits("body_timeout = \"300ms\"").start();
    let before = server.sockets();
    for framing in ["Content-Length: 100\r\n\r\nsome", "Transfer-Encoding: chunked\r\n\r\n5\r\nso"]
    {
        let mut client = server.connect();
        client.send(format!("POST / HTTP/1.1\r\nHost: app.test\r\n{framing}"));
        let (answer, end) = client.read_to_end();
        assert_eq!(end, End::Eof, "{framing:?}");
        let answers = Client::parse_all(&answer);
        let good = answers.len() == 1 && [200, 408].contains(&answers[0].status);
        assert!(good, "{framing:?}: {answers:?}");
    }
    assert!(wait_until(PATIENCE, || server.sockets() == before));
}

#[test]
fn a_slow_reader_is_cut_and_its_count_comes_back() {
    let length = 32 * MIB;
    let mut server = Setup::new()
        .limits("write_timeout = \"300ms\"")
        .app("files.test", "files = { root = \"site\" }")
        .file("site/large.bin", vec![b'x'; length])
        .start();
    let before = server.sockets();
    let mut client = Client::connect_narrow(server.address());
    client.send(get("files.test", "/large.bin"));
    client.buffer_at_least(1);
    assert!(wait_until(PATIENCE, || server.sockets() == before), "the reader isn't cut");
    let (received, end) = client.read_to_end();
    assert_ne!(end, End::Open);
    assert!(received.len() < length, "the whole file came");
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit().code(), Some(0));
    assert_eq!(server.wait_event("shutdown_graceful").count("active_connections"), 0);
}

#[test]
fn a_reader_that_takes_its_time_but_reads_is_not_cut() {
    let length = 12 * MIB;
    let server = Setup::new()
        .limits("write_timeout = \"1s\"")
        .app("files.test", "files = { root = \"site\" }")
        .file("site/large.bin", vec![b'x'; length])
        .start();
    let mut client = Client::connect_narrow(server.address());
    client.send(get("files.test", "/large.bin"));
    let started = Instant::now();
    let mut wanted = 0;
    // Reads a little at a time, for longer than the time-out.
    wait_until(Duration::from_millis(1800), || {
        wanted += 1000;
        client.buffer_at_least(wanted);
        false
    });
    assert!(started.elapsed() > Duration::from_secs(1));
    assert_eq!(client.response().body.len(), length);
}

#[test]
fn an_idle_connection_is_closed_silently() {
    let server = one_app().limits("keepalive_timeout = \"300ms\"").start();
    let mut client = server.connect();
    client.exchange(get("app.test", "/"));
    let idle = Instant::now();
    client.expect_end();
    assert!(idle.elapsed() >= Duration::from_millis(250), "{:?}", idle.elapsed());
}

#[test]
fn idle_connections_keep_no_memory_of_the_requests_they_pipelined() {
    const CONNECTIONS: usize = 100;
    // They fit into one read, so all are in flight at the same time.
    const PIPELINED: usize = 300;
    const KIB_PER_CONNECTION_MAX: usize = 6;
    let server = one_app()
        .server("threads = 1")
        .log("access = \"combined\"\naccess_path = \"/dev/null\"")
        .start();
    let pipeline = |client: &mut Client| {
        client.send(get("app.test", "/").repeat(PIPELINED));
        for _ in 0..PIPELINED {
            assert_eq!(client.response().status, 200);
        }
    };
    let mut clients: Vec<Client> = (0..CONNECTIONS).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.exchange(get("app.test", "/"));
    }
    // After as many requests on one connection, shared memory (such as the log's queue) has grown.
    let mut one = server.connect();
    (0..CONNECTIONS).for_each(|_| pipeline(&mut one));
    let before_kib = server.resident_kib();
    clients.iter_mut().for_each(pipeline);
    let grown_kib = || server.resident_kib().saturating_sub(before_kib);
    let most_kib = CONNECTIONS * KIB_PER_CONNECTION_MAX;
    assert!(wait_until(PATIENCE, || grown_kib() <= most_kib), "{} KiB more", grown_kib());
}

#[test]
fn slow_readers_of_a_large_answer_share_its_memory() {
    const CONNECTIONS: usize = 50;
    const CONTENT_KIB: usize = 8 * 1024;
    let content = "content ".repeat(CONTENT_KIB * 1024 / 8);
    let server = one_app()
        .app("large.test", &format!("respond = {{ body = \"{content}\" }}"))
        .app("late.test", &format!("respond = {{ body = \"{content}\", delay = \"10ms\" }}"))
        .start();
    for host in ["large.test", "late.test"] {
        assert!(server.connect().exchange(get(host, "/")).text() == content);
        let before_kib = server.resident_kib();
        let mut clients: Vec<Client> = (0..CONNECTIONS).map(|_| server.connect()).collect();
        clients.iter_mut().for_each(|client| client.send(get(host, "/")));
        let are_sent = || clients.iter_mut().all(Client::is_readable);
        assert!(wait_until(PATIENCE, are_sent));
        let grown_kib = server.resident_kib().saturating_sub(before_kib);
        assert!(grown_kib < 4 * CONTENT_KIB, "{grown_kib} KiB more");
        assert!(clients[0].response().text() == content);
    }
}

#[test]
fn a_fresh_connection_that_says_nothing_is_closed_silently() {
    let server = one_app().limits("head_timeout = \"300ms\"").start();
    server.connect().expect_end();
}

#[test]
fn a_reset_connection_affects_no_other() {
    let server =
        one_app().app("slow.test", "respond = { body = \"slow\", delay = \"50ms\" }").start();
    let before = server.sockets();
    for host in ["app.test", "slow.test"] {
        for request in [get(host, "/"), get(host, "/").repeat(50), "GET".to_owned()] {
            let mut client = server.connect();
            client.send(request);
            client.reset();
        }
    }
    assert!(wait_until(PATIENCE, || server.sockets() == before));
    assert_eq!(server.connect().exchange(get("app.test", "/")).text(), "hello");
}

#[test]
fn an_unknown_host_is_404() {
    let server = one_app().start();
    let mut client = server.connect();
    for host in ["nobody.test", "pp.test", "app.test.test", "127.0.0.1", "[::1]"] {
        let response = client.exchange(get(host, "/"));
        assert_eq!(response.status, 404, "{host}");
        assert_eq!(response.text(), "{\"error\":\"No app configured for this host\"}", "{host}");
        let kind = response.field("Content-Type").unwrap_or("");
        assert!(kind.starts_with("application/json"), "{kind}");
    }
    assert_eq!(client.exchange("GET / HTTP/1.0\r\n\r\n").status, 404);
}

#[test]
fn hosts_aliases_and_wildcards_find_their_app() {
    let server = Setup::new()
        .app(
            "www.example.com",
            "aliases = [\"example.com\", \"*.example.com\"]\nrespond = { body = \"www\" }",
        )
        .app("api.example.com", "respond = { body = \"api\" }")
        .app("*.deep.example.com", "respond = { body = \"deep\" }")
        .app("other.test", "aliases = [\"second.test\"]\nrespond = { body = \"other\" }")
        .start();
    let mut client = server.connect();
    for (host, body) in [
        ("www.example.com", "www"),
        ("example.com", "www"),
        ("EXAMPLE.com.:80", "www"),
        ("Any.Example.Com", "www"),
        ("api.example.com", "api"),
        ("API.EXAMPLE.COM:8080", "api"),
        ("x.deep.example.com", "deep"),
        ("deep.example.com", "www"),
        ("other.test", "other"),
        ("second.test.", "other"),
    ] {
        assert_eq!(client.exchange(get(host, "/")).text(), body, "{host}");
    }
    for host in ["notexample.com", "www.other.test", "com"] {
        assert_eq!(client.exchange(get(host, "/")).status, 404, "{host}");
    }
}

#[test]
fn the_default_app_answers_unknown_hosts() {
    let server =
        one_app().server("default_app = \"fallback.test\"").named_app("fallback.test").start();
    let mut client = server.connect();
    for (host, body) in [
        ("app.test", "hello"),
        ("nobody.test", "fallback.test"),
        ("127.0.0.1:80", "fallback.test"),
        ("[::1]", "fallback.test"),
    ] {
        assert_eq!(client.exchange(get(host, "/")).text(), body, "{host}");
    }
    assert_eq!(client.exchange("GET / HTTP/1.0\r\n\r\n").text(), "fallback.test");
}

#[test]
fn one_connection_may_ask_for_many_hosts() {
    let server = one_app().named_app("a.test").named_app("b.test").start();
    let mut client = server.connect();
    for _ in 0..3 {
        assert_eq!(client.exchange(get("a.test", "/")).text(), "a.test");
        assert_eq!(client.exchange(get("b.test", "/")).text(), "b.test");
        assert_eq!(client.exchange(get("nobody.test", "/")).status, 404);
    }
}

#[test]
fn a_redirect_keeps_path_and_query() {
    let server = Setup::new()
        .app("a.test", "redirect = { to = \"https://example.com\", status = 301 }")
        .app("b.test", "redirect = { to = \"https://example.com/base\", status = 308 }")
        .start();
    let mut client = server.connect();
    for (host, path, status, location) in [
        ("a.test", "/", 301, "https://example.com/"),
        ("a.test", "/x/y?z=1&w=%20", 301, "https://example.com/x/y?z=1&w=%20"),
        ("a.test", "/?", 301, "https://example.com/?"),
        ("b.test", "/x", 308, "https://example.com/base/x"),
        ("b.test", "//evil.test/x", 308, "https://example.com/base//evil.test/x"),
    ] {
        let response = client.exchange(get(host, path));
        assert_eq!((response.status, response.field("Location")), (status, Some(location)));
    }
}

#[test]
fn a_fixed_answer_is_as_configured() {
    let server = Setup::new()
        .app(
            "app.test",
            "respond = { status = 418, body = \"teapot\\n\", content_type = \"text/html\", \
             headers = { X-Tea = \"green\" } }",
        )
        .start();
    let response = server.connect().exchange(get("app.test", "/any/path?x"));
    assert_eq!((response.status, response.text()), (418, "teapot\n"));
    let kind = response.field("Content-Type").unwrap_or("");
    assert!(kind.starts_with("text/html"), "{kind}");
    assert_eq!(response.field("X-Tea"), Some("green"));
}

#[test]
fn a_delayed_answer_blocks_no_other_client() {
    let server = one_app()
        .server("threads = 1")
        .app("slow.test", "respond = { body = \"slow\", delay = \"400ms\" }")
        .start();
    let mut slow = server.connect();
    let started = Instant::now();
    slow.send(get("slow.test", "/"));
    server.wait_read([&slow]);
    let mut fast = server.connect();
    for _ in 0..10 {
        assert_eq!(fast.exchange(get("app.test", "/")).text(), "hello");
    }
    let early = started.elapsed() < Duration::from_millis(300);
    assert!(!early || !slow.is_readable());
    assert_eq!(slow.response().text(), "slow");
    assert!(started.elapsed() >= Duration::from_millis(400), "{:?}", started.elapsed());
}

#[test]
fn many_delayed_answers_wait_side_by_side() {
    let server =
        Setup::new().app("slow.test", "respond = { body = \"slow\", delay = \"300ms\" }").start();
    let started = Instant::now();
    let mut clients: Vec<Client> = (0..50).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send(get("slow.test", "/"));
    }
    for client in &mut clients {
        assert_eq!(client.response().text(), "slow");
    }
    assert!(started.elapsed() < Duration::from_secs(10), "one after the other");
}

#[test]
fn one_connection_too_many_waits_its_turn() {
    let server = one_app().limits("connections = 2").start();
    let mut first = server.connect();
    let mut second = server.connect();
    first.exchange(get("app.test", "/"));
    second.exchange(get("app.test", "/"));
    let mut third = server.connect();
    third.send(get("app.test", "/"));
    assert!(third.stays_silent(Duration::from_millis(300)));
    assert_eq!(second.exchange(get("app.test", "/")).text(), "hello");
    drop(first);
    assert_eq!(third.response().text(), "hello");
}

#[test]
fn a_busy_address_does_not_take_every_place_that_gets_free() {
    let server = one_app()
        .listen(&["127.0.0.1:0", "127.0.0.2:0"])
        .server("threads = 1")
        .limits("connections = 2")
        .start();
    let [busy, quiet] = server.addresses() else { panic!("two addresses") };
    // The first address always has a waiting client.
    let mut waiting: VecDeque<Client> = (0..10).map(|_| Client::connect(*busy)).collect();
    waiting.iter_mut().for_each(|client| client.send(get("app.test", "/")));
    let mut patient = Client::connect(*quiet);
    patient.send(get("app.test", "/"));
    for served in 1.. {
        if patient.is_readable() {
            break;
        }
        assert!(served < 200, "{served} came first");
        let mut next = Client::connect(*busy);
        next.send(get("app.test", "/"));
        waiting.push_back(next);
        let mut first = waiting.pop_front().expect("a client");
        assert_eq!(first.response().text(), "hello");
    }
    assert_eq!(patient.response().text(), "hello");
}

#[test]
fn out_of_descriptors_it_waits_without_spinning() {
    let server = one_app().descriptors(40).start();
    let mut clients: Vec<Client> = (0..60).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send(get("app.test", "/"));
    }
    // As many as there are descriptors for are answered; the rest wait. It is at rest when nothing
    // changes for a hundred checks.
    let (mut answered, mut unchanged) = (0, 0);
    let at_rest = wait_until(PATIENCE, || {
        let now = clients.iter_mut().filter_map(|one| one.is_readable().then_some(())).count();
        unchanged = if now == answered && now > 0 { unchanged + 1 } else { 0 };
        answered = now;
        unchanged > 100
    });
    assert!(at_rest, "{answered} are answered, and it goes on");
    let position = clients.iter_mut().position(|client| !client.is_readable());
    let waiting = position.expect("forty descriptors are not enough for sixty connections");
    let (cpu_before, started) = (server.cpu_time(), Instant::now());
    let silent = clients[waiting].stays_silent(Duration::from_millis(1000));
    let (cpu, time) = (server.cpu_time() - cpu_before, started.elapsed());
    assert!(cpu < time * 3 / 10, "{cpu:?} of processor time in {time:?}");
    // It may close idle connections to make room, but every request must get an answer.
    let mut open = clients;
    if !silent {
        assert_eq!(open.remove(waiting).response().text(), "hello");
    }
    let all_answered = wait_until(PATIENCE, || {
        open.retain_mut(|client| {
            !client.is_readable() || {
                assert_eq!(client.response().text(), "hello");
                false
            }
        });
        open.is_empty()
    });
    assert!(all_answered, "{} are never answered", open.len());
    assert_eq!(server.connect().exchange(get("app.test", "/")).text(), "hello");
}

#[test]
fn several_addresses_are_served() {
    // IPv6 is tested if the machine has it.
    let six = std::net::TcpListener::bind("[::1]:0").is_ok();
    let second = if six { "[::1]:0" } else { "127.0.0.2:0" };
    let server = one_app().listen(&["127.0.0.1:0", second]).start();
    assert_eq!(server.wait_event("multi_app_ready").count("app_count"), 1);
    assert_eq!(server.addresses().len(), 2);
    for address in server.addresses() {
        let mut client = Client::connect(*address);
        assert_eq!(client.exchange(get("app.test", "/")).text(), "hello", "{address}");
    }
}

#[test]
fn a_lost_answer_differs_from_a_late_one() {
    // Checks the client of these tests.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let mut client = Client::connect(listener.local_addr().expect("address"));
    let (mut peer, _) = listener.accept().expect("accept");
    assert!(client.stays_silent(Duration::from_millis(20)));
    std::io::Write::write_all(&mut peer, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel")
        .expect("write");
    client.buffer_at_least(1);
    drop(peer);
    let lost = client.try_response(false).expect_err("two bytes are missing");
    assert!(matches!(lost, Lost::Ended(End::Eof, 41)), "{lost:?}");
}
