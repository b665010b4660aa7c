//! A proxy app between clients and upstreams that see every byte: framing, failures, clients that
//! leave, fields, drains, tunnels.

use std::{
    collections::HashSet,
    fmt::Write as _,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::{
    Asked, Client, End, Gate, Line, Load, LoadKind, Lost, PATIENCE, Response, Server, Setup,
    Signal, Upstream, find, get, get_and_close, give_way, pattern, wait_until,
};

const HOST: &str = "p.test";
const MIB: usize = 1024 * 1024;

/// More bytes than all sockets between a client and an upstream can hold.
const HUGE: usize = 40 * MIB;

/// What an exchange of `HUGE` may add to the memory of the process.
const BOUND_KIB: usize = 4 * 1024;

/// How long to watch a side to see that it is held back.
const HELD: Duration = Duration::from_millis(400);

const GET: &str = "GET / HTTP/1.1\r\nHost: p.test\r\n\r\n";

/// `HUGE` bytes, made once because that is slow.
fn huge() -> &'static [u8] {
    static CONTENT: OnceLock<Vec<u8>> = OnceLock::new();
    CONTENT.get_or_init(|| pattern(HUGE))
}

/// The line of an app with these upstreams, and more keys.
fn proxy(urls: &[&str], more: &str) -> String {
    let more = if more.is_empty() { String::new() } else { format!(", {more}") };
    format!("proxy = {{ upstreams = {urls:?}{more} }}")
}

/// A server with one loop, so that the reuse of connections is predictable.
fn setup(urls: &[&str], more: &str) -> Setup {
    Setup::new()
        .server("threads = 1")
        .server("idle_grace = \"0s\"")
        .limits("body_bytes = \"100MiB\"")
        .app(HOST, &proxy(urls, more))
}

fn start(upstream: &Upstream, more: &str) -> Server {
    setup(&[upstream.url()], more).start()
}

fn post(content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n");
    [head.as_bytes(), content].concat()
}

/// Content in chunks of different sizes, and its end.
fn chunks(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let (mut rest, mut size) = (content, 1);
    while !rest.is_empty() {
        let chunk;
        (chunk, rest) = rest.split_at(size.min(rest.len()));
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
        size = size * 7 % 50_021;
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

/// Answers with the content of the request, framed as the path says. A request without content gets
/// as many bytes as its query says.
fn echo(asked: &Asked, line: &mut Line) {
    let (path, query) = asked.target().split_once('?').unwrap_or((asked.target(), ""));
    let wanted = query.parse().map(pattern);
    let content = wanted.unwrap_or_else(|_| asked.content.clone());
    let length = content.len();
    match path {
        "/chunked" => {
            line.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            line.send(chunks(&content));
        }
        "/close" => {
            line.send("HTTP/1.0 200 OK\r\n\r\n");
            line.send(content);
            line.close();
        }
        _ => {
            line.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"));
            line.send(content);
        }
    }
}

/// Answers every request with this name.
fn named(name: &'static str) -> impl Fn(&Asked, &mut Line) + Send + Sync {
    move |_, line| line.answer(200, name)
}

fn row(server: &Server) -> Value {
    server.admin().get(&format!("/apps/{HOST}"))
}

fn wait_active(server: &Server, count: usize) {
    let reached = wait_until(PATIENCE, || row(server)["active_connections"] == json!(count));
    assert!(reached, "{}", row(server));
}

/// Sends a request, and checks the status of its answer, the last of the connection or not.
fn status_of(server: &Server, request: impl AsRef<[u8]>) -> u16 {
    server.connect().exchange(request).status
}

/// Fails the test unless the answer breaks off visibly.
fn expect_torn(client: &mut Client) -> usize {
    match client.try_response(false) {
        Err(Lost::Ended(_, bytes)) => bytes,
        other => panic!("no broken answer: {other:?}"),
    }
}

/// The lines of a head that begin with this.
fn lines<'a>(head: &'a str, name: &'a str) -> Vec<&'a str> {
    let is_named = |line: &&str| {
        line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
            && line[name.len()..].starts_with(':')
    };
    head.lines().filter(is_named).collect()
}

// Framing.

/// Each way of a client to send content, with whether it reuses its connection.
fn requests(path: &str, content: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let length = content.len();
    let post = |version: &str, framing: &str, content: &[u8]| {
        let head = format!("POST {path} HTTP/{version}\r\nHost: {HOST}\r\n{framing}\r\n\r\n");
        [head.as_bytes(), content].concat()
    };
    let get = |version: &str| {
        format!("GET {path}?{length} HTTP/{version}\r\nHost: {HOST}\r\n\r\n").into_bytes()
    };
    let with_length = format!("Content-Length: {length}");
    vec![
        ("length", post("1.1", &with_length, content)),
        ("chunked", post("1.1", "Transfer-Encoding: chunked", &chunks(content))),
        ("none", get("1.1")),
        ("1.0 length", post("1.0", &with_length, content)),
        ("1.0 none", get("1.0")),
    ]
}

fn check_matrix(path: &str, is_reused: bool) {
    let upstream = Upstream::tcp(echo);
    let server = start(&upstream, "");
    let mut count = 0;
    for size in [0, 10, 300 * 1024] {
        let content = pattern(size);
        for (kind, request) in requests(path, &content) {
            let mut client = server.connect();
            let mut sender = client.second();
            let sending = thread::spawn(move || sender.try_send(&request));
            let response = client.response();
            sending.join().expect("no panic").expect("sent");
            let case = format!("{kind} {path} {size}: {}", response.head);
            assert_eq!(response.status, 200, "{case}");
            assert!(response.body == content, "{} bytes came: {case}", response.body.len());
            assert_eq!(response.says_close(), kind.starts_with("1.0"), "{case}");
            assert!(!(kind.starts_with("1.0") && response.field("transfer-encoding").is_some()));
            count += 1;
            assert_eq!(upstream.asked().len(), count, "{case}");
            let asked = upstream.last();
            let sent = if kind.ends_with("none") { &[][..] } else { &content };
            assert!(asked.content == sent, "{} bytes went: {case}", asked.content.len());
            let connections = if is_reused { 1 } else { count };
            assert_eq!(upstream.connections(), connections, "{case}");
        }
    }
}

#[test]
fn contents_pass_whole_to_an_upstream_that_answers_with_a_length() {
    check_matrix("/length", true);
}

#[test]
fn contents_pass_whole_to_an_upstream_that_answers_in_chunks() {
    check_matrix("/chunked", true);
}

#[test]
fn contents_pass_whole_to_an_upstream_that_answers_until_it_closes() {
    check_matrix("/close", false);
}

#[test]
fn one_client_connection_takes_all_kinds_of_answers_in_turn() {
    let upstream = Upstream::tcp(echo);
    let server = start(&upstream, "");
    let mut client = server.connect();
    for size in [1, 70_000, 0, 16_384, 200_000] {
        for path in ["/length", "/chunked", "/close"] {
            let response = client.exchange(get(HOST, &format!("{path}?{size}")));
            assert!(response.body == pattern(size), "{path} {size}: {}", response.head);
        }
    }
}

#[test]
fn contents_pass_whole_in_any_pieces() {
    let upstream = Upstream::tcp(|asked, line| {
        let coded = chunks(&asked.content);
        let answer = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", &coded[..]];
        for piece in answer.concat().chunks(3) {
            line.send(piece);
            give_way();
        }
    });
    let server = start(&upstream, "");
    let content = pattern(2000);
    let head = "POST / HTTP/1.1\r\nHost: p.test\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut client = server.connect();
    let request = [head.as_bytes(), &chunks(&content)].concat();
    client.send_in_pieces(&request, 1).expect("sent");
    assert!(client.response().body == content);
    assert!(upstream.last().content == content);
}

#[test]
fn an_upstream_on_a_unix_socket_is_asked() {
    let dir = tempfile::tempdir().expect("a folder");
    let upstream = Upstream::unix(&dir.path().join("up.sock"), echo);
    let server = start(&upstream, "");
    let content = pattern(300 * 1024);
    let mut client = server.connect();
    for _ in 0..3 {
        assert!(client.exchange(post(&content)).body == content);
    }
    assert_eq!((upstream.asked().len(), upstream.connections()), (3, 1));
}

#[test]
fn answers_without_content_end_with_their_head() {
    let upstream = Upstream::tcp(|asked, line| {
        line.send(match asked.target() {
            "/length" => "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: \"e\"\r\n\r\n",
            "/chunked" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nETag: \"e\"\r\n\r\n",
            "/none" => "HTTP/1.1 200 OK\r\nETag: \"e\"\r\n\r\n",
            "/204" => "HTTP/1.1 204 No Content\r\nETag: \"e\"\r\n\r\n",
            "/304" => "HTTP/1.1 304 Not Modified\r\nETag: \"e\"\r\n\r\n",
            // The client already has the content (RFC 9110 §15.4.5).
            _ => "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: \"e\"\r\n\r\n",
        });
    });
    let server = start(&upstream, "");
    let mut client = server.connect();
    for (path, length) in [("/length", Some("5")), ("/chunked", None), ("/none", None)] {
        client.send(format!("HEAD {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
        let response = client.response_to_head();
        assert_eq!((response.status, response.field("Content-Length")), (200, length), "{path}");
        assert_eq!(response.field("ETag"), Some("\"e\""));
    }
    for (path, status) in [("/204", 204), ("/304", 304), ("/304-5", 304)] {
        let response = client.exchange(get(HOST, path));
        assert_eq!(response.status, status);
        assert_eq!(response.field("Transfer-Encoding"), None, "{}", response.head);
    }
    assert!(!client.is_readable(), "bytes behind the last head");
    assert_eq!((upstream.asked().len(), upstream.connections()), (6, 1));
}

#[test]
fn trailers_pass_both_ways() {
    let upstream = Upstream::tcp(|_, line| {
        line.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n");
        line.send("3\r\nabc\r\n0\r\nX-Sum: 6\r\nContent-Length: 9\r\n\r\n");
    });
    let server = start(&upstream, "");
    let mut client = server.connect();
    client.send("POST / HTTP/1.1\r\nHost: p.test\r\nTE: trailers\r\nConnection: close, TE\r\n");
    client
        .send("Transfer-Encoding: chunked\r\n\r\n2\r\nxy\r\n0\r\nX-Mine: 1\r\nHost: evil\r\n\r\n");
    let (bytes, end) = client.read_to_end();
    let text = String::from_utf8(bytes).expect("text");
    assert_eq!(end, End::Eof);
    assert!(text.ends_with("\r\n3\r\nabc\r\n0\r\nX-Sum: 6\r\n\r\n"), "{text}");
    assert_eq!(
        (upstream.last().content, &*upstream.last().trailers),
        (b"xy".to_vec(), "X-Mine: 1\r\n")
    );
}

#[test]
fn early_hints_pass_to_clients_of_1_1_alone() {
    let upstream = Upstream::tcp(|_, line| {
        line.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: close\r\n\r\n");
        line.send("HTTP/1.1 102 Processing\r\n\r\n");
        line.answer(200, "late");
    });
    let server = start(&upstream, "");
    let mut client = server.connect();
    client.send(GET);
    let hints = client.response();
    assert_eq!((hints.status, hints.field("Link")), (103, Some("</a>")));
    assert!(!hints.says_close(), "{}", hints.head);
    assert_eq!(client.response().status, 102);
    assert_eq!(client.response().text(), "late");
    client.send(format!("GET / HTTP/1.0\r\nHost: {HOST}\r\n\r\n"));
    assert_eq!(client.response().text(), "late");
    assert_eq!(upstream.connections(), 1);
}

const EXPECTING: &str =
    "POST / HTTP/1.1\r\nHost: p.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";

#[test]
fn an_upstream_asks_for_the_content_that_a_client_holds_back() {
    let upstream = Upstream::by_head(|asked, line| {
        assert_eq!(asked.all("expect"), ["100-continue"]);
        line.send("HTTP/1.1 100 Continue\r\n\r\n");
        let mut asked = asked.clone();
        line.read_content(&mut asked);
        echo(&asked, line);
    });
    let server = start(&upstream, "");
    let mut client = server.connect();
    for _ in 0..2 {
        client.send(EXPECTING);
        assert_eq!(client.response().status, 100);
        client.send("hello");
        let response = client.response();
        assert_eq!((response.status, response.text()), (200, "hello"), "100 comes once");
    }
    // Content that does not wait for a 100 is passed on nevertheless.
    client.send([EXPECTING, "hello"].concat());
    let response = client.response();
    assert_eq!((response.status, response.text()), (200, "hello"), "no side waits for a 100");
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn an_upstream_may_refuse_content_before_it_is_sent() {
    let upstream = Upstream::by_head(|_, line| line.answer(413, "too much"));
    let server = start(&upstream, "");
    for connection in 1..=2 {
        let mut client = server.connect();
        client.send(EXPECTING);
        let response = client.response();
        assert_eq!((response.status, response.text()), (413, "too much"));
        // Content could not be distinguished from another request.
        assert!(response.says_close(), "{}", response.head);
        client.expect_end();
        assert_eq!(upstream.connections(), connection);
    }
}

#[test]
fn a_client_gets_a_100_when_its_upstream_is_silent() {
    // It reads the content before it sends anything.
    let upstream = Upstream::tcp(echo);
    let server = start(&upstream, "");
    let mut client = server.connect();
    client.send(EXPECTING);
    upstream.wait_heads(1);
    assert_eq!(client.response().status, 100);
    client.send("hello");
    assert_eq!(client.response().text(), "hello");
    assert_eq!(client.exchange(GET).status, 200);
    assert_eq!(upstream.connections(), 1);
}

// Failures.

#[test]
fn connections_to_upstreams_have_descriptors_besides_those_of_clients() {
    const CLIENTS: usize = 60;
    let gate = Gate::default();
    let entrance = gate.clone();
    let upstream = Upstream::tcp(move |asked, line| {
        if asked.target() == "/" {
            entrance.pass();
        }
        line.answer(200, "late");
    });
    let server = setup(&[upstream.url()], "").descriptors(60).start();
    assert_eq!(server.connect().exchange(get_and_close(HOST, "/first")).text(), "late");
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send(get_and_close(HOST, "/"));
    }
    upstream.wait_heads(10);
    gate.open();
    for client in &mut clients {
        let response = client.response();
        assert_eq!((response.status, response.text()), (200, "late"));
    }
}

#[test]
fn a_connection_without_a_descriptor_is_a_503_and_no_fault_of_the_upstream() {
    let gate = Gate::default();
    let entrance = gate.clone();
    let upstream = Upstream::tcp(move |asked, line| {
        if asked.target() == "/held" {
            entrance.pass();
        }
        line.answer(200, "here");
    });
    let server = start(&upstream, "eject_after = 1");
    let (mut first, mut second) = (server.connect(), server.connect());
    assert_eq!(first.exchange(GET).text(), "here");
    assert_eq!(second.exchange(GET).text(), "here");
    server.lower_descriptor_limit(5);
    first.send(get(HOST, "/held"));
    upstream.wait_heads(3);
    let response = second.exchange(GET);
    assert_eq!((response.status, response.field("Retry-After")), (503, Some("1")));
    let failed = server.wait_event("upstream_failed");
    assert_eq!(failed.field("reason"), Some("no_descriptors"));
    gate.open();
    assert_eq!(first.response().text(), "here");
    // It does not count as failed, and a kept connection needs no descriptor.
    assert_eq!(second.exchange(GET).text(), "here");
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn an_idle_connection_makes_room_for_a_needed_one() {
    let upstreams = [(); 2].map(|()| Upstream::tcp(|_, line| line.answer(200, "here")));
    let server = setup(&[upstreams[0].url()], "")
        .app("other.test", &proxy(&[upstreams[1].url()], ""))
        .start();
    let mut client = server.connect();
    assert_eq!(client.exchange(GET).text(), "here");
    // A new descriptor gets the lowest free number.
    let open = std::fs::read_dir(format!("/proc/{}/fd", server.pid().as_raw_pid()));
    let number = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.expect("an entry").file_name().to_str()?.parse::<u64>().ok()
    };
    let numbers: HashSet<u64> = open.expect("descriptors").filter_map(number).collect();
    let most = (0..).find(|number| !numbers.contains(number));
    server.lower_descriptor_limit(most.expect("a free one"));
    assert_eq!(client.exchange(get("other.test", "/")).text(), "here");
    upstreams[0].wait_left(1);
    assert_eq!(client.exchange(GET).text(), "here");
    upstreams[1].wait_left(1);
}

#[test]
fn clients_that_wait_for_a_place_close_no_idle_connection() {
    let upstream = Upstream::tcp(|_, line| line.answer(200, "here"));
    let server = setup(&[upstream.url()], "").limits("connections = 1").start();
    let mut client = server.connect();
    assert_eq!(client.exchange(GET).text(), "here");
    let mut waiting = server.connect();
    waiting.send(get_and_close(HOST, "/"));
    for _ in 0..5 {
        assert_eq!(client.exchange(GET).text(), "here");
    }
    drop(client);
    assert_eq!(waiting.response().text(), "here");
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn a_refused_connection_is_a_502_at_once() {
    let server = setup(&[&Upstream::refusing(), "unix:/nonexistent/up.sock"], "").start();
    let began = Instant::now();
    let mut client = server.connect();
    for request in [GET.as_bytes(), &post(b"hello"), &post(&pattern(300 * 1024))] {
        let response = client.exchange(request);
        assert_eq!(response.status, 502);
        if response.says_close() {
            client = server.connect();
        }
    }
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[test]
fn the_other_upstream_is_asked_when_one_does_not_listen() {
    for refusing in [Upstream::refusing(), "unix:/nonexistent/up.sock".to_owned()] {
        let upstream = Upstream::tcp(echo);
        let server = setup(&[&refusing, upstream.url()], "eject_after = 0").start();
        for size in [5, 300 * 1024] {
            let content = pattern(size);
            for _ in 0..4 {
                let response = server.connect().exchange(post(&content));
                assert_eq!(response.status, 200, "{size} {refusing}");
                assert!(response.body == content, "{size} {refusing}: {}", response.body.len());
                assert!(upstream.last().content == content);
                assert_eq!(status_of(&server, GET), 200);
            }
        }
        assert_eq!(upstream.asked().len(), 16);
    }
}

#[test]
fn every_address_of_a_name_is_tried() {
    let upstream = Upstream::tcp(named("here"));
    let url = format!("http://localhost:{}", upstream.address().port());
    let server = setup(&[&url], "retries = 0").start();
    for _ in 0..4 {
        assert_eq!(server.connect().exchange(GET).text(), "here");
    }
}

#[test]
fn a_request_that_was_sent_is_retried_only_if_that_is_safe() {
    for resets in [false, true] {
        let bad = Upstream::tcp(move |_, line| if resets { line.reset() } else { line.close() });
        let good = Upstream::tcp(named("good"));
        let server = setup(&[bad.url(), good.url()], "eject_after = 0").start();
        for _ in 0..4 {
            assert_eq!(server.connect().exchange(GET).text(), "good");
        }
        assert!(!bad.asked().is_empty(), "the choice is in turn");
        let before = bad.asked().len() + good.asked().len();
        let bad_before = bad.asked().len();
        let statuses: Vec<u16> = (0..4).map(|_| status_of(&server, post(b"once"))).collect();
        assert_eq!(bad.asked().len() + good.asked().len() - before, 4, "{statuses:?}");
        let refused = statuses.iter().filter(|status| **status == 502).count();
        assert_eq!(refused, bad.asked().len() - bad_before, "{statuses:?}");
        assert!(refused > 0 && refused < 4, "{statuses:?}");
    }
}

/// Answers only the first request of each connection.
fn once_each(asked: &Asked, line: &mut Line) {
    if asked.nth == 0 { line.answer(200, "ok") } else { line.close() }
}

#[test]
fn a_kept_connection_that_is_closed_under_a_get_is_replaced() {
    let upstream = Upstream::tcp(once_each);
    let server = start(&upstream, "");
    let mut client = server.connect();
    for _ in 0..5 {
        assert_eq!(client.exchange(GET).text(), "ok");
    }
    assert!(upstream.connections() > 1);
}

#[test]
fn a_kept_connection_that_is_closed_under_a_post_is_a_502() {
    let upstream = Upstream::tcp(once_each);
    let server = start(&upstream, "");
    let mut client = server.connect();
    assert_eq!(client.exchange(GET).text(), "ok");
    assert_eq!(client.exchange(post(b"once")).status, 502);
    let posts = upstream.asked().iter().filter(|asked| asked.content == b"once").count();
    assert_eq!(posts, 1, "not sent twice");
    assert_eq!(client.exchange(post(b"more")).text(), "ok");
}

/// The server notices the reset when it writes: no byte of the request is sent.
#[test]
fn a_request_that_was_not_sent_is_retried() {
    for request in [GET.as_bytes().to_vec(), post(b"hello"), post(&pattern(300 * 1024))] {
        let (gate, over) = (Gate::default(), Gate::default());
        let upstream = Upstream::tcp({
            let (gate, over) = (gate.clone(), over.clone());
            move |asked, line| {
                line.answer(200, "ok");
                if asked.connection == 0 {
                    gate.pass();
                    line.reset_now();
                    over.open();
                }
            }
        });
        let server = start(&upstream, "answer_timeout = \"1s\"");
        let mut client = server.connect();
        assert_eq!(client.exchange(GET).text(), "ok");
        server.pause();
        let mut sender = client.second();
        let sending = thread::spawn(move || sender.try_send(&request));
        assert!(wait_until(PATIENCE, || sending.is_finished()));
        sending.join().expect("no panic").expect("sent");
        gate.open();
        over.pass();
        server.resume();
        let response = client.response();
        assert_eq!((response.status, response.text()), (200, "ok"));
        assert_eq!((upstream.asked().len(), upstream.connections()), (2, 2));
    }
}

#[test]
fn a_kept_connection_that_was_closed_before_is_not_used() {
    let upstream = Upstream::tcp(|_, line| {
        line.answer(200, "ok");
        line.close();
    });
    let server = start(&upstream, "retries = 0");
    let sockets = server.sockets();
    let mut client = server.connect();
    for nth in 1..=5 {
        assert_eq!(client.exchange(post(b"x")).text(), "ok", "{nth}");
        // Only the client's connection is left.
        assert!(wait_until(PATIENCE, || server.sockets() == sockets + 1), "{nth}");
    }
    assert_eq!(upstream.asked().len(), 5);
}

#[test]
fn an_answer_that_breaks_off_is_never_whole_for_the_client() {
    let answers = [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    ];
    for answer in answers {
        for resets in [false, true] {
            let upstream = Upstream::tcp(move |_, line| {
                line.send(answer);
                if resets { line.reset() } else { line.close() }
            });
            let server = start(&upstream, "");
            let mut client = server.connect();
            client.send(GET);
            match client.try_response(false) {
                Err(Lost::Ended(..)) => {}
                Ok(response) if response.status == 502 => {}
                other => panic!("{answer:?}: {other:?}"),
            }
            // For HTTP/1.0 without a length, the end of the connection is the end of the content.
            let mut client = server.connect();
            client.send(format!("GET / HTTP/1.0\r\nHost: {HOST}\r\n\r\n"));
            let (bytes, end) = client.read_to_end();
            let text = String::from_utf8_lossy(&bytes);
            let shows = text.starts_with("HTTP/1.1 502 ") || text.contains("Content-Length: 100");
            assert_eq!(end, if shows { End::Eof } else { End::Reset }, "{answer:?} {text}");
            assert_eq!(upstream.asked().len(), 2, "a request with an answer is not sent again");
        }
    }
}

#[test]
fn an_answer_until_close_that_is_reset_is_never_whole_for_the_client() {
    let gate = Gate::default();
    let upstream = Upstream::tcp({
        let gate = gate.clone();
        move |_, line| {
            line.send("HTTP/1.1 200 OK\r\n\r\nhello");
            gate.pass();
            line.reset();
        }
    });
    let server = start(&upstream, "");
    let mut client = server.connect();
    client.send(GET);
    client.buffer_at_least(20);
    gate.open();
    expect_torn(&mut client);
}

#[test]
fn an_answer_that_breaks_off_after_a_head_that_was_read_ends_short() {
    let gate = Gate::default();
    let upstream = Upstream::tcp({
        let gate = gate.clone();
        move |_, line| {
            line.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello");
            gate.pass();
            line.close();
        }
    });
    let server = start(&upstream, "");
    let mut client = server.connect();
    client.send(GET);
    client.buffer_at_least(20);
    gate.open();
    let (bytes, end) = client.read_to_end();
    assert!(bytes.ends_with(b"hello"));
    assert_eq!(end, End::Eof);
}

#[test]
fn a_silent_upstream_is_a_504() {
    let upstream = Upstream::tcp(|_, line| drop(line.read_to_end()));
    let server = start(&upstream, "answer_timeout = \"200ms\"");
    for request in [GET.as_bytes().to_vec(), post(b"hello"), post(&pattern(300 * 1024))] {
        let before = upstream.left();
        let began = Instant::now();
        assert_eq!(status_of(&server, &request), 504);
        assert!(began.elapsed() >= Duration::from_millis(190), "{:?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        upstream.wait_left(before + 1);
    }
}

#[test]
fn an_upstream_that_falls_silent_within_its_answer_breaks_it_off() {
    let upstream = Upstream::tcp(|_, line| {
        line.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello");
        line.read_to_end();
    });
    let server = start(&upstream, "answer_timeout = \"200ms\"");
    let mut client = server.connect();
    client.send(GET);
    expect_torn(&mut client);
    upstream.wait_left(1);
}

#[test]
fn an_answer_that_asks_for_no_content_may_be_silent_no_longer_than_others() {
    let upstream = Upstream::by_head(|_, line| {
        line.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello");
        line.read_to_end();
    });
    let server = start(&upstream, "answer_timeout = \"1s\"");
    let (mut expecting, mut other) = (server.connect(), server.connect());
    expecting.send(EXPECTING);
    expecting.buffer_at_least(1);
    other.send(GET);
    expect_torn(&mut other);
    let (bytes, end) = expecting.read_to_end_within(Duration::from_millis(300));
    assert!(bytes.ends_with(b"hello") && end == End::Eof, "{end:?}");
}

#[test]
fn a_slow_upstream_that_goes_on_is_waited_for() {
    let pause = Gate::default();
    let upstream = Upstream::tcp(move |_, line| {
        line.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        for _ in 0..8 {
            pause.passes_within(Duration::from_millis(120));
            line.send("1\r\nx\r\n");
        }
        line.send("0\r\n\r\n");
    });
    let server = start(&upstream, "answer_timeout = \"500ms\"");
    assert_eq!(server.connect().exchange(GET).text(), "xxxxxxxx");
}

/// Answers that two parsers could read differently.
const AMBIGUOUS: &[&str] = &[
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nsecret",
    "HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nsecret",
    "HTTP/1.1 200 OK\r\nContent-Length: +6\r\n\r\nsecret",
    "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\
     Transfer-Encoding: chunked\r\n\r\n6\r\nsecret\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n6\r\nsecret\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n6\r\nsecret\r\n0\r\n\r\n",
    "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nsecret\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\nContent-Length: 6\n\nsecret",
    "HTTP/1.1 200 OK\r\nContent-Length : 6\r\n\r\nsecret",
    "HTTP/1.1 200 OK\r\n Content-Length: 6\r\n\r\nsecret",
    "HTTP/1.1 200 OK\r\nX: a\r\n secret: b\r\nContent-Length: 0\r\n\r\n",
    "HTTP/2.0 200 OK\r\nContent-Length: 6\r\n\r\nsecret",
    "HTTP/1.1 99 Low\r\nContent-Length: 6\r\n\r\nsecret",
    "HTTP/1.1 20 Low\r\nContent-Length: 6\r\n\r\nsecret",
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nsecret",
    "secret garbage\r\n\r\n",
    "\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret",
    "\0\0\0secret",
];

#[test]
fn an_ambiguous_answer_is_a_502_and_nothing_of_it_passes() {
    for answer in AMBIGUOUS {
        let upstream = Upstream::tcp(move |_, line| {
            line.send(answer);
            line.read_to_end();
        });
        let server = start(&upstream, "");
        let mut client = server.connect();
        client.send(get_and_close(HOST, "/"));
        let (bytes, _) = client.read_to_end();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with("HTTP/1.1 502 "), "{answer:?}: {text}");
        assert!(!text.contains("secret"), "{answer:?}: {text}");
        upstream.wait_left(1);
        assert_eq!(upstream.asked().len(), 1, "not asked again: {answer:?}");
    }
}

#[test]
fn a_bad_chunk_breaks_the_answer_off() {
    for chunk in
        ["xyz\r\nsecret\r\n", "6;\nsecret\r\n", "6\nsecret\r\n", "5\r\nsecret\r\n0\r\n\r\n"]
    {
        let upstream = Upstream::tcp(move |_, line| {
            line.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            line.send(chunk);
            line.read_to_end();
        });
        let server = start(&upstream, "");
        let mut client = server.connect();
        client.send(GET);
        match client.try_response(false) {
            Err(Lost::Ended(..)) => {}
            Ok(response) if response.status == 502 => {}
            other => panic!("{chunk:?}: {other:?}"),
        }
        upstream.wait_left(1);
    }
}

#[test]
fn bytes_after_an_answer_answer_no_request() {
    let upstream = Upstream::tcp(|_, line| {
        line.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n");
        line.send("Content-Length: 6\r\n\r\nsecret");
    });
    let server = start(&upstream, "");
    let mut client = server.connect();
    for _ in 0..3 {
        assert_eq!(client.exchange(GET).text(), "ok");
    }
    assert_eq!(upstream.connections(), 3);
}

#[test]
fn an_answer_that_comes_before_the_content_passes() {
    for closes in [false, true] {
        let upstream = Upstream::by_head(move |_, line| {
            line.answer(413, "too much");
            if closes {
                line.close();
            } else {
                line.read_to_end();
            }
        });
        let server = start(&upstream, "");
        let mut client = server.connect();
        client.send("POST / HTTP/1.1\r\nHost: p.test\r\nContent-Length: 1000000\r\n\r\nbegin");
        let response = client.response();
        assert_eq!((response.status, response.text()), (413, "too much"));
        upstream.wait_left(usize::from(!closes));
        // A client that sends all of it nevertheless gets the same.
        let mut client = server.connect();
        let mut sender = client.second();
        let sending = thread::spawn(move || sender.try_send(&post(&pattern(4 * MIB))));
        let response = client.response();
        assert_eq!((response.status, response.text()), (413, "too much"));
        drop(client);
        drop(sending.join().expect("no panic"));
    }
}

#[test]
fn a_connection_that_stays_after_an_early_answer_is_in_step() {
    let upstream = Upstream::by_head(|asked, line| {
        line.answer(413, asked.target());
        if asked.head.starts_with("POST") {
            line.read_to_end();
        }
    });
    let server = start(&upstream, "");
    let mut client = server.connect();
    client.send("POST /post HTTP/1.1\r\nHost: p.test\r\nContent-Length: 95\r\n\r\nbegin");
    let response = client.response();
    assert_eq!((response.status, response.text()), (413, "/post"));
    if !response.says_close() {
        client.send("GET / HTTP/1.1\r\n\r\n".repeat(5));
        let response = client.exchange(get(HOST, "/next"));
        assert_eq!((response.status, response.text()), (413, "/next"));
    }
}

#[test]
fn unsolicited_bytes_of_an_upstream_answer_no_request() {
    let gate = Gate::default();
    let upstream = Upstream::tcp({
        let gate = gate.clone();
        move |asked, line| {
            line.answer(200, "ok");
            if asked.connection == 0 {
                gate.pass();
                line.answer(408, "unasked");
                line.read_to_end();
            }
        }
    });
    let server = start(&upstream, "");
    let mut client = server.connect();
    assert_eq!(client.exchange(GET).text(), "ok");
    gate.open();
    upstream.wait_left(1);
    assert_eq!(client.exchange(GET).text(), "ok");
}

#[test]
fn a_kept_connection_that_ended_is_not_used_for_a_post_that_came_before() {
    let (gate, over) = (Gate::default(), Gate::default());
    let upstream = Upstream::tcp({
        let (gate, over) = (gate.clone(), over.clone());
        move |asked, line| {
            line.answer(200, "ok");
            if asked.connection == 0 {
                gate.pass();
                line.half_close();
                over.open();
                line.read_to_end();
            }
        }
    });
    let server = start(&upstream, "");
    let mut client = server.connect();
    assert_eq!(client.exchange(GET).text(), "ok");
    server.pause();
    client.send(post(b"once"));
    gate.open();
    over.pass();
    server.resume();
    // The loop handles the client first: the POST came before the end.
    let status = client.response().status;
    let posts = upstream.asked().iter().filter(|asked| asked.content == b"once").count();
    assert_eq!((status, posts), (200, 1));
}

#[test]
fn an_answer_that_begins_before_the_content_ends_goes_on_beside_it() {
    let upstream = Upstream::by_head(|asked, line| {
        line.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n");
        let mut asked = asked.clone();
        let is_whole = line.read_content(&mut asked);
        line.send(format!("5\r\n{is_whole:<5}\r\n0\r\n\r\n"));
    });
    let server = start(&upstream, "");
    let mut client = server.connect();
    for _ in 0..2 {
        client.send("POST / HTTP/1.1\r\nHost: p.test\r\nContent-Length: 10\r\n\r\nhello");
        client.buffer_at_least(60);
        client.send("world");
        assert_eq!(client.response().text(), "hitrue ");
    }
    assert_eq!(upstream.connections(), 1);
}

// Clients that leave, and slow clients.

#[test]
fn a_client_that_resets_leaves_no_connection_behind() {
    let upstream = Upstream::tcp(|_, line| drop(line.read_to_end()));
    let server = start(&upstream, "");
    let mut client = server.connect();
    client.send(GET);
    upstream.wait_asked(1);
    client.reset();
    upstream.wait_left(1);
    wait_active(&server, 0);
}

/// Until it is answered, a client that has left looks like a client that half-closed and waits.
#[test]
fn a_client_that_closes_before_its_answer_begins_frees_the_upstream() {
    let gate = Gate::default();
    let upstream = Upstream::tcp({
        let gate = gate.clone();
        move |_, line| {
            gate.pass();
            line.read_to_end();
        }
    });
    let server = start(&upstream, "");
    let mut client = server.connect();
    client.send(GET);
    upstream.wait_asked(1);
    drop(client);
    wait_active(&server, 0);
    gate.open();
    upstream.wait_left(1);
}

#[test]
fn a_client_that_closes_within_its_answer_frees_the_upstream() {
    let gate = Gate::default();
    let upstream = Upstream::tcp({
        let gate = gate.clone();
        move |_, line| {
            line.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            gate.pass();
            while line.send("1\r\nx\r\n") {}
            line.read_to_end();
        }
    });
    let server = start(&upstream, "");
    let mut client = server.connect();
    client.send(GET);
    client.buffer_at_least(1);
    drop(client);
    gate.open();
    upstream.wait_left(1);
    wait_active(&server, 0);
}

#[test]
fn a_client_that_leaves_within_its_content_breaks_the_request_off() {
    for resets in [false, true] {
        let upstream = Upstream::tcp(named("never"));
        let server = start(&upstream, "");
        let mut client = server.connect();
        client.send("POST / HTTP/1.1\r\nHost: p.test\r\nContent-Length: 10\r\n\r\nhello");
        upstream.wait_heads(1);
        if resets {
            client.reset();
        } else {
            client.half_close();
        }
        upstream.wait_left(1);
        assert_eq!(upstream.asked().len(), 0);
    }
}

#[test]
fn a_clients_broken_chunk_is_its_400_and_breaks_the_request_off() {
    for chunk in ["xyz\r\nhello", "5\nhello\r\n", "4\r\nhello\r\n0\r\n\r\n"] {
        for together in [false, true] {
            let upstream = Upstream::tcp(named("never"));
            let server = start(&upstream, "");
            let mut client = server.connect();
            let head = "POST / HTTP/1.1\r\nHost: p.test\r\nTransfer-Encoding: chunked\r\n\r\n";
            let begin = format!("{head}2\r\nab\r\n");
            if together {
                client.send(begin + chunk);
            } else {
                client.send(begin);
                upstream.wait_heads(1);
                client.send(chunk);
            }
            let response = client.response();
            assert_eq!((response.status, response.says_close()), (400, true), "{chunk:?}");
            client.expect_end();
            upstream.wait_left(upstream.connections());
            assert_eq!(upstream.asked().len(), 0, "{chunk:?} {together}");
        }
    }
}

/// Runs `step` until it returns false. Returns the server's highest memory meanwhile, in KiB.
fn memory_while(server: &Server, mut step: impl FnMut() -> bool) -> usize {
    let mut most = server.resident_kib();
    while step() {
        most = most.max(server.resident_kib());
    }
    most
}

#[test]
fn a_slow_client_holds_the_upstream_back() {
    huge();
    for framing in ["length", "chunked", "close"] {
        let sent = Gate::default();
        let upstream = Upstream::tcp({
            let sent = sent.clone();
            move |_, line| {
                line.send(match framing {
                    "length" => format!("HTTP/1.1 200 OK\r\nContent-Length: {HUGE}\r\n\r\n"),
                    "chunked" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
                    _ => "HTTP/1.1 200 OK\r\n\r\n".to_owned(),
                });
                if framing == "chunked" {
                    line.send(chunks(huge()));
                } else {
                    line.send(huge());
                }
                sent.open();
                line.close();
            }
        });
        let server = start(&upstream, "");
        assert_eq!(status_of(&server, get("other.test", "/")), 404);
        let before = server.resident_kib();
        let mut client = Client::connect_narrow(server.address());
        client.send(GET);
        client.buffer_at_least(1);
        assert!(!sent.passes_within(HELD), "the upstream is not held back");
        let mut read = 0;
        let most = memory_while(&server, || {
            read += 4 * MIB;
            client.buffer_at_least(read.min(HUGE));
            read < HUGE
        });
        assert!(most < before + BOUND_KIB, "{framing}: {before} KiB, then {most} KiB");
        assert!(client.response().body == huge(), "{framing}");
    }
}

#[test]
fn a_slow_upstream_holds_the_client_back() {
    for framing in ["length", "chunked"] {
        let (gate, sent) = (Gate::default(), Gate::default());
        let upstream = Upstream::by_head({
            let gate = gate.clone();
            move |asked, line| {
                gate.pass();
                let mut asked = asked.clone();
                let is_whole = line.read_content(&mut asked) && asked.content == huge();
                line.answer(200, is_whole.to_string());
            }
        });
        let server = start(&upstream, "");
        let mut client = server.connect();
        assert_eq!(client.exchange(get("other.test", "/")).status, 404);
        let before = server.resident_kib();
        let mut sender = client.second();
        let begun = Gate::default();
        let sending = thread::spawn({
            let (begun, sent) = (begun.clone(), sent.clone());
            move || {
                let request = if framing == "length" {
                    post(huge())
                } else {
                    let head = "POST / HTTP/1.1\r\nHost: p.test\r\nTransfer-Encoding: chunked\r\n";
                    [head.as_bytes(), b"\r\n", &chunks(huge())].concat()
                };
                begun.open();
                sender.try_send(&request).expect("sent");
                sent.open();
            }
        });
        begun.pass();
        upstream.wait_heads(1);
        assert!(!sent.passes_within(HELD), "the client is not held back");
        let held = server.resident_kib();
        gate.open();
        assert_eq!(client.response().text(), "true");
        sending.join().expect("no panic");
        let most = held.max(server.resident_kib());
        assert!(most < before + BOUND_KIB, "{framing}: {before} KiB, then {most} KiB");
    }
}

#[test]
fn an_upstream_that_reads_slowly_is_waited_for_as_long_as_it_reads() {
    let pause = Gate::default();
    let upstream = Upstream::by_head(move |asked, line| {
        let length = asked.all("content-length")[0].parse().expect("a length");
        let mut content = Vec::new();
        while content.len() < length {
            pause.passes_within(Duration::from_millis(100));
            content.extend(line.read((2 * MIB).min(length - content.len())));
        }
        line.answer(200, (content == huge()).to_string());
    });
    let server = start(&upstream, "answer_timeout = \"1s\"");
    let request = post(huge());
    let mut client = server.connect();
    let mut sender = client.second();
    let sending = thread::spawn(move || sender.try_send(&request));
    assert_eq!(client.response().text(), "true");
    sending.join().expect("no panic").expect("sent");
}

#[test]
fn content_beyond_the_limit_is_a_413_and_breaks_the_request_off() {
    let upstream = Upstream::tcp(named("never"));
    let app = proxy(&[upstream.url()], "");
    let server = Setup::new().limits("body_bytes = \"1KiB\"").app(HOST, &app).start();
    let mut client = server.connect();
    client.send("POST / HTTP/1.1\r\nHost: p.test\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send("3e8\r\n".to_owned() + &"x".repeat(1000) + "\r\n");
    upstream.wait_heads(1);
    client.send("3e8\r\n".to_owned() + &"x".repeat(1000) + "\r\n0\r\n\r\n");
    assert_eq!(client.response().status, 413);
    upstream.wait_left(1);
    assert_eq!(upstream.asked().len(), 0);
}

#[test]
fn a_client_that_stops_within_its_content_is_a_408() {
    let upstream = Upstream::tcp(named("never"));
    let app = proxy(&[upstream.url()], "");
    let server = Setup::new().limits("body_timeout = \"200ms\"").app(HOST, &app).start();
    let mut client = server.connect();
    client.send("POST / HTTP/1.1\r\nHost: p.test\r\nContent-Length: 10\r\n\r\nhello");
    assert_eq!(client.response().status, 408);
    upstream.wait_left(1);
    assert_eq!(upstream.asked().len(), 0);
}

#[test]
fn a_client_that_does_not_read_is_left_and_so_is_the_upstream() {
    huge();
    let upstream = Upstream::tcp(|_, line| {
        line.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {HUGE}\r\n\r\n"));
        line.send(huge());
        line.read_to_end();
    });
    let app = proxy(&[upstream.url()], "");
    let server = Setup::new().limits("write_timeout = \"300ms\"").app(HOST, &app).start();
    let mut client = Client::connect_narrow(server.address());
    client.send(GET);
    client.buffer_at_least(1);
    upstream.wait_left(1);
    wait_active(&server, 0);
}

// Fields.

#[test]
fn requests_keep_only_their_end_to_end_fields() {
    let upstream = Upstream::tcp(named("ok"));
    let server = start(&upstream, "");
    let mut client = server.connect();
    client.send(
        "GET /a%20b?c=d&e HTTP/1.1\r\nHost: P.test:8080\r\nConnection: close, X-Secret\r\n\
         X-Secret: s\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\nProxy-Authorization: p\r\n\
         Proxy-Connection: close\r\nUpgrade: h2c\r\nX-Forwarded-For: 6.6.6.6\r\n\
         X-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nForwarded: for=6.6.6.6\r\n\
         X-Real-IP: 6.6.6.6\r\nX-Request-Id: forged\r\nVia: 1.0 fred\r\nCookie: a=b\r\n\
         Accept: */*\r\nX-Twice: 1\r\nX-Twice: 2\r\n\r\n",
    );
    assert_eq!(client.response().text(), "ok");
    let asked = upstream.last();
    assert!(asked.head.starts_with("GET /a%20b?c=d&e HTTP/1.1\r\n"), "{}", asked.head);
    for dropped in [
        "X-Secret",
        "Keep-Alive",
        "Proxy-Authorization",
        "Proxy-Connection",
        "Upgrade",
        "X-Real-IP",
    ] {
        assert_eq!(asked.all(dropped), [""; 0], "{dropped}: {}", asked.head);
    }
    for framing in ["Connection", "Content-Length", "Transfer-Encoding", "TE"] {
        assert_eq!(asked.all(framing), [""; 0], "{framing}: {}", asked.head);
    }
    assert_eq!(asked.all("Host"), ["P.test:8080"]);
    assert_eq!(asked.all("X-Forwarded-For"), ["127.0.0.1"]);
    assert_eq!(asked.all("X-Forwarded-Proto"), ["http"]);
    assert_eq!(asked.all("X-Forwarded-Host"), ["P.test:8080"]);
    assert_eq!(asked.all("Forwarded"), ["for=127.0.0.1;host=\"P.test:8080\";proto=http"]);
    assert_eq!(asked.all("Via"), ["1.0 fred", "1.1 tidegate"]);
    assert_eq!((asked.all("Cookie"), asked.all("Accept")), (vec!["a=b"], vec!["*/*"]));
    assert_eq!(asked.all("X-Twice"), ["1", "2"]);
    let ids = asked.all("X-Request-Id");
    assert!(ids.len() == 1 && ids[0] != "forged" && !ids[0].is_empty(), "{ids:?}");
}

#[test]
fn trusted_proxies_are_believed() {
    let upstream = Upstream::tcp(named("ok"));
    let server = start(&upstream, "trusted_proxies = [\"127.0.0.0/8\"]");
    let request = "GET / HTTP/1.0\r\nHost: p.test\r\nX-Forwarded-For: 6.6.6.6\r\n\
                   X-Forwarded-Proto: https\r\nX-Request-Id: theirs\r\n\r\n";
    assert_eq!(server.connect().exchange(request).text(), "ok");
    let asked = upstream.last();
    assert_eq!(asked.all("X-Forwarded-For"), ["6.6.6.6, 127.0.0.1"]);
    assert_eq!(asked.all("X-Forwarded-Proto"), ["https"]);
    assert_eq!(asked.all("X-Request-Id"), ["theirs"]);
    assert_eq!(asked.all("Via"), ["1.0 tidegate"]);
}

#[test]
fn the_host_is_the_upstreams_if_the_app_says_so() {
    let upstream = Upstream::tcp(named("ok"));
    let server = start(&upstream, "host = \"upstream\"");
    assert_eq!(status_of(&server, GET), 200);
    assert_eq!(upstream.last().all("Host"), [upstream.address().to_string()]);
}

#[test]
fn answers_keep_only_their_end_to_end_fields() {
    let upstream = Upstream::tcp(|asked, line| {
        let dates = if asked.target() == "/dated" {
            "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\nDate: Sun, 06 Nov 1994 08:49:38 GMT\r\n"
        } else {
            ""
        };
        line.send(format!(
            "HTTP/1.1 201 Made\r\n{dates}Connection: close, X-Secret\r\nX-Secret: s\r\n\
             Keep-Alive: timeout=5\r\nProxy-Authenticate: p\r\nUpgrade: h2c\r\nServer: up\r\n\
             Set-Cookie: a=b\r\nSet-Cookie: c=d\r\nTransfer-Encoding: chunked\r\n\r\n"
        ));
        line.send(chunks(b"made"));
        line.close();
    });
    let server = start(&upstream, "");
    let mut client = server.connect();
    for path in ["/", "/dated"] {
        let response = client.exchange(get(HOST, path));
        let head = &*response.head;
        assert_eq!((response.status, response.text()), (201, "made"));
        assert_eq!(lines(head, "Proxy-Authenticate"), ["Proxy-Authenticate: p"]);
        for dropped in ["X-Secret", "Upgrade"] {
            assert_eq!(response.field(dropped), None, "{head}");
        }
        // These fields concern the upstream's connection, not the client's.
        assert_eq!((response.field("Connection"), response.field("Keep-Alive")), (None, None));
        assert_eq!(lines(head, "Set-Cookie"), ["Set-Cookie: a=b", "Set-Cookie: c=d"]);
        assert_eq!(lines(head, "Via"), ["Via: 1.1 tidegate"]);
        assert_eq!(lines(head, "Transfer-Encoding"), ["Transfer-Encoding: chunked"]);
        assert_eq!(lines(head, "Date").len(), 1, "{head}");
        assert_eq!(lines(head, "Server"), ["Server: up"]);
        assert_eq!(head.contains("1994"), path == "/dated", "{head}");
    }
}

#[test]
fn a_loop_of_proxies_ends_with_an_error() {
    let server = setup(&["unix:/nonexistent/up.sock"], "").start();
    let own = format!("http://{}", server.address());
    let app = json!({ "proxy": { "upstreams": [own] } });
    assert_eq!(server.admin().put(&format!("/apps/{HOST}"), &app).status / 100, 2);
    for request in [GET.as_bytes(), &post(b"hello")] {
        let response = server.connect().exchange(request);
        assert!(response.head.starts_with("HTTP/1.1 508 Loop Detected\r\n"), "{}", response.head);
    }
    wait_active(&server, 0);
}

#[test]
fn pipelined_answers_come_in_order() {
    let gate = Gate::default();
    let upstream = Upstream::tcp({
        let gate = gate.clone();
        move |asked, line| {
            if asked.target() == "/slow" {
                gate.pass();
            }
            line.answer(200, asked.target());
        }
    });
    let server = start(&upstream, "");
    let mut client = server.connect();
    let paths = ["/slow", "/1", "/2", "/3"];
    client.send(paths.map(|path| get(HOST, path)).concat());
    upstream.wait_asked(1);
    assert!(client.stays_silent(Duration::from_millis(100)));
    gate.open();
    for path in paths {
        assert_eq!(client.response().text(), path);
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn a_pipeline_of_posts_and_own_answers_comes_in_order() {
    let upstream = Upstream::tcp(echo);
    let server = start(&upstream, "");
    let mut client = server.connect();
    let mut pipeline = Vec::new();
    for nth in 0..50 {
        pipeline.extend(post(format!("post {nth}").as_bytes()));
        pipeline.extend(get("other.test", "/").into_bytes());
        pipeline.extend(get(HOST, "/chunked?20000").into_bytes());
    }
    let mut sender = client.second();
    let sending = thread::spawn(move || sender.try_send(&pipeline));
    for nth in 0..50 {
        assert_eq!(client.response().text(), format!("post {nth}"));
        assert_eq!(client.response().status, 404);
        assert!(client.response().body == pattern(20_000));
    }
    sending.join().expect("no panic").expect("sent");
}

// Drains.

/// An upstream that answers when the gate is open.
fn gated(gate: &Gate, name: &'static str) -> Upstream {
    let gate = gate.clone();
    Upstream::tcp(move |_, line| {
        gate.pass();
        line.answer(200, name);
    })
}

#[test]
fn a_drain_waits_for_the_upstreams_answer() {
    let gate = Gate::default();
    let upstream = gated(&gate, "answered");
    let server = start(&upstream, "");
    let mut client = server.connect();
    client.send(GET);
    upstream.wait_asked(1);
    wait_active(&server, 1);
    let drain = server.admin().call("DELETE", "/apps/p.test", "").json();
    assert_eq!(drain["state"], "draining");
    assert_eq!(status_of(&server, GET), 503);
    gate.open();
    assert_eq!(client.response().text(), "answered");
    assert_eq!(server.admin().wait_drain(&drain["id"])["verdict"], "drained");
    upstream.wait_left(1);
}

#[test]
fn the_deadline_of_a_drain_cuts_the_exchange_and_its_connection() {
    let upstream = Upstream::tcp(|_, line| drop(line.read_to_end()));
    let server = start(&upstream, "");
    let mut client = server.connect();
    client.send(GET);
    upstream.wait_asked(1);
    let drain = server.admin().call("DELETE", "/apps/p.test?timeout=50ms", "").json();
    let ended = server.admin().wait_drain(&drain["id"]);
    assert_eq!((&ended["verdict"], &ended["cut"]), (&json!("cut"), &json!(1)));
    let (bytes, _) = client.read_to_end();
    assert_eq!(bytes, b"");
    upstream.wait_left(1);
}

#[test]
fn active_exchanges_are_counted_until_their_last_byte() {
    let gate = Gate::default();
    let upstream = gated(&gate, "ok");
    let server = start(&upstream, "");
    assert_eq!(row(&server)["active_connections"], 0);
    let mut clients: Vec<Client> = (0..5).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(|client| client.send(GET));
    upstream.wait_asked(5);
    wait_active(&server, 5);
    clients.pop().expect("a client").reset();
    wait_active(&server, 4);
    gate.open();
    for client in &mut clients {
        assert_eq!(client.response().text(), "ok");
    }
    wait_active(&server, 0);
    assert_eq!(upstream.connections(), 5);
}

#[test]
fn a_reload_leaves_the_exchange_with_its_upstream() {
    let gate = Gate::default();
    let (old, new) = (gated(&gate, "old"), Upstream::tcp(named("new")));
    let first = setup(&[old.url()], "");
    let second = setup(&[new.url()], "").text();
    let server = first.start();
    let mut client = server.connect();
    client.send(GET);
    old.wait_asked(1);
    server.rewrite(&second);
    assert_eq!(server.admin().call("POST", "/reload", "").status / 100, 2);
    assert_eq!(server.connect().exchange(GET).text(), "new");
    gate.open();
    assert_eq!(client.response().text(), "old");
    old.wait_left(1);
    assert_eq!(client.exchange(GET).text(), "new");
    assert_eq!((old.asked().len(), new.asked().len()), (1, 2));
}

#[test]
fn idle_connections_to_an_old_upstream_are_closed_after_a_reload() {
    let (old, new) = (Upstream::tcp(named("old")), Upstream::tcp(named("new")));
    let first = setup(&[old.url()], "");
    let second = setup(&[new.url()], "").text();
    let server = first.start();
    let mut client = server.connect();
    assert_eq!(client.exchange(GET).text(), "old");
    assert_eq!(old.left(), 0, "it is kept");
    server.rewrite(&second);
    assert_eq!(server.admin().call("POST", "/reload", "").status / 100, 2);
    old.wait_left(1);
    assert_eq!(client.exchange(GET).text(), "new");
}

#[test]
fn idle_connections_end_by_their_timeout() {
    let upstream = Upstream::tcp(named("ok"));
    let server = start(&upstream, "idle_timeout = \"300ms\"");
    let mut client = server.connect();
    assert_eq!(client.exchange(GET).text(), "ok");
    upstream.wait_left(1);
    assert_eq!(client.exchange(GET).text(), "ok");
    assert_eq!(upstream.connections(), 2);
}

#[test]
fn a_slow_answer_survives_sigterm() {
    let gate = Gate::default();
    let upstream = gated(&gate, "answered");
    let mut server = start(&upstream, "");
    let mut client = server.connect();
    let mut idle = server.connect();
    client.send(GET);
    upstream.wait_asked(1);
    assert_eq!(idle.exchange(get("other.test", "/")).status, 404);
    server.signal(Signal::TERM);
    server.wait_event("shutdown_graceful");
    idle.expect_end();
    gate.open();
    let response = client.response();
    assert_eq!((response.text(), response.says_close()), ("answered", true));
    client.expect_end();
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn an_answer_that_a_drain_cuts_is_not_whole_for_a_client_of_1_0() {
    let upstream = Upstream::tcp(|_, line| {
        line.send("HTTP/1.1 200 OK\r\n\r\nonly this");
        line.read_to_end();
    });
    let server = start(&upstream, "");
    let mut client = server.connect();
    client.send(format!("GET / HTTP/1.0\r\nHost: {HOST}\r\n\r\n"));
    client.buffer_at_least(1);
    server.admin().call("DELETE", &format!("/apps/{HOST}?timeout=10ms"), "");
    let (_, end) = client.read_to_end();
    assert_eq!(end, End::Reset);
}

#[test]
fn an_upload_under_way_survives_sigterm() {
    let upstream = Upstream::tcp(echo);
    let mut server = start(&upstream, "");
    let mut client = server.connect();
    client.send("POST / HTTP/1.1\r\nHost: p.test\r\nContent-Length: 10\r\n\r\nhello");
    upstream.wait_heads(1);
    server.signal(Signal::TERM);
    server.wait_event("shutdown_gated");
    client.send("world");
    let response = client.response();
    assert_eq!((response.text(), response.says_close()), ("helloworld", true));
    client.expect_end();
    assert_eq!(server.wait_exit().code(), Some(0));
}

// Tunnels.

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: p.test\r\nConnection: Upgrade\r\n\
                       Upgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                      Upgrade: websocket\r\nSec-WebSocket-Accept: a\r\n\r\n";

/// Switches, and sends back every byte that comes, until the end.
fn mirror(_: &Asked, line: &mut Line) {
    line.send(SWITCH);
    loop {
        let bytes = line.read(1);
        if bytes.is_empty() || !line.send(bytes) {
            break;
        }
    }
    line.close();
}

fn expect_switch(client: &mut Client) -> Response {
    let switch = client.response();
    assert_eq!(switch.status, 101);
    assert_eq!(switch.field("Upgrade"), Some("websocket"), "{}", switch.head);
    assert_eq!(switch.field("Sec-WebSocket-Accept"), Some("a"));
    assert!(switch.field("Connection").is_some_and(|it| it.eq_ignore_ascii_case("upgrade")));
    switch
}

#[test]
fn a_tunnel_carries_bytes_both_ways_until_the_client_closes() {
    let upstream = Upstream::tcp(mirror);
    let server = start(&upstream, "");
    let mut client = server.connect();
    client.send(UPGRADE);
    expect_switch(&mut client);
    wait_active(&server, 1);
    let asked = upstream.last();
    assert_eq!(asked.all("Upgrade"), ["websocket"]);
    assert_eq!(asked.all("Connection").join("").to_lowercase(), "upgrade");
    for piece in ["a", "GET / HTTP/1.1\r\n\r\n", "\0\x01"] {
        client.send(piece);
        client.buffer_at_least(piece.len());
        let (bytes, end) = client.read_to_end_within(Duration::ZERO);
        assert_eq!((&*bytes, end), (piece.as_bytes(), End::Open));
    }
    assert_eq!(row(&server)["active_connections"], 1);
    client.half_close();
    upstream.wait_left(1);
    client.expect_end();
    wait_active(&server, 0);
}

#[test]
fn bytes_sent_together_with_the_heads_go_through() {
    let upstream = Upstream::tcp(|_, line| {
        line.send(format!("{SWITCH}welcome"));
        let bytes = line.read(5);
        line.send([b"<", &bytes[..], b">"].concat());
        line.close();
    });
    let server = start(&upstream, "");
    let mut client = server.connect();
    client.send(format!("{UPGRADE}early"));
    expect_switch(&mut client);
    let (bytes, end) = client.read_to_end();
    assert_eq!((String::from_utf8_lossy(&bytes).as_ref(), end), ("welcome<early>", End::Eof));
    wait_active(&server, 0);
}

#[test]
fn a_tunnel_that_the_upstream_closes_is_closed_for_the_client() {
    for resets in [false, true] {
        let gate = Gate::default();
        let upstream = Upstream::tcp({
            let gate = gate.clone();
            move |_, line| {
                line.send(SWITCH);
                gate.pass();
                line.send("bye");
                if resets { line.reset() } else { line.close() }
            }
        });
        let server = start(&upstream, "");
        let mut client = server.connect();
        client.send(UPGRADE);
        expect_switch(&mut client);
        wait_active(&server, 1);
        gate.open();
        let (bytes, end) = client.read_to_end();
        assert!(resets || (&*bytes, end) == (b"bye", End::Eof), "{bytes:?} {end:?}");
        assert!(end != End::Open);
        wait_active(&server, 0);
    }
}

#[test]
fn a_client_that_resets_its_tunnel_ends_it_at_the_upstream() {
    let upstream = Upstream::tcp(mirror);
    let server = start(&upstream, "");
    let mut client = server.connect();
    client.send(UPGRADE);
    expect_switch(&mut client);
    client.reset();
    upstream.wait_left(1);
    wait_active(&server, 0);
}

#[test]
fn the_end_of_one_side_of_a_tunnel_lets_the_other_finish() {
    let upstream = Upstream::tcp(|_, line| {
        line.send(SWITCH);
        let bytes = line.read_to_end();
        line.send([&bytes[..], &pattern(300 * 1024)].concat());
        line.close();
    });
    let server = start(&upstream, "");
    let mut client = server.connect();
    client.send(UPGRADE);
    expect_switch(&mut client);
    let content = pattern(500_000);
    client.send(&content);
    client.half_close();
    let (bytes, end) = client.read_to_end();
    assert_eq!(end, End::Eof);
    assert!(bytes == [content, pattern(300 * 1024)].concat(), "{} bytes", bytes.len());
}

#[test]
fn large_contents_go_through_a_tunnel_whole() {
    let upstream = Upstream::tcp(|_, line| {
        line.send(SWITCH);
        let bytes = line.read(4 * MIB);
        line.send(bytes);
        line.close();
    });
    let server = start(&upstream, "");
    let mut client = server.connect();
    client.send(UPGRADE);
    expect_switch(&mut client);
    client.send(pattern(4 * MIB));
    let (bytes, end) = client.read_to_end();
    assert_eq!(end, End::Eof);
    assert!(bytes == pattern(4 * MIB), "{} bytes", bytes.len());
}

#[test]
fn a_slow_upstream_holds_the_client_of_a_tunnel_back() {
    huge();
    let (gate, sent) = (Gate::default(), Gate::default());
    let upstream = Upstream::tcp({
        let gate = gate.clone();
        move |_, line| {
            line.send(SWITCH);
            gate.pass();
            let bytes = line.read(HUGE);
            line.send((bytes == huge()).to_string());
            line.close();
        }
    });
    let server = start(&upstream, "");
    let mut client = server.connect();
    client.send(UPGRADE);
    expect_switch(&mut client);
    let before = server.resident_kib();
    let mut sender = client.second();
    let sending = thread::spawn({
        let sent = sent.clone();
        move || {
            let done = sender.try_send(huge());
            sent.open();
            done
        }
    });
    let is_held = !sent.passes_within(HELD);
    let most = server.resident_kib();
    gate.open();
    let (bytes, _) = client.read_to_end();
    assert_eq!(String::from_utf8_lossy(&bytes), "true");
    sending.join().expect("no panic").expect("sent");
    assert!(is_held, "the client is not held back: {before} KiB, then {most} KiB");
    assert!(most < before + BOUND_KIB, "{before} KiB, then {most} KiB");
}

#[test]
fn a_slow_client_holds_the_upstream_of_a_tunnel_back() {
    huge();
    let sent = Gate::default();
    let upstream = Upstream::tcp({
        let sent = sent.clone();
        move |_, line| {
            line.send(SWITCH);
            line.send(huge());
            sent.open();
            line.close();
        }
    });
    let server = start(&upstream, "");
    let mut client = Client::connect_narrow(server.address());
    client.send(UPGRADE);
    expect_switch(&mut client);
    let before = server.resident_kib();
    assert!(!sent.passes_within(HELD), "the upstream is not held back");
    let most = server.resident_kib();
    assert!(most < before + BOUND_KIB, "{before} KiB, then {most} KiB");
    let (bytes, end) = client.read_to_end();
    assert!(bytes == huge(), "{} bytes, {end:?}", bytes.len());
}

#[test]
fn an_upgrade_that_is_declined_is_an_ordinary_answer() {
    let upstream = Upstream::tcp(named("no"));
    let server = start(&upstream, "");
    let mut client = server.connect();
    client.send(UPGRADE);
    assert_eq!(client.response().text(), "no");
    assert_eq!(client.exchange(GET).text(), "no");
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn the_deadline_of_a_drain_cuts_a_tunnel() {
    let upstream = Upstream::tcp(mirror);
    let server = start(&upstream, "");
    let mut client = server.connect();
    client.send(UPGRADE);
    expect_switch(&mut client);
    let drain = server.admin().call("DELETE", "/apps/p.test?timeout=300ms", "").json();
    client.send("still");
    client.buffer_at_least(5);
    let ended = server.admin().wait_drain(&drain["id"]);
    assert_eq!((&ended["verdict"], &ended["cut"]), (&json!("cut"), &json!(1)));
    upstream.wait_left(1);
    assert_ne!(client.read_to_end().1, End::Open);
}

#[test]
fn a_drain_cuts_tunnels_early_if_the_app_says_so() {
    let upstream = Upstream::tcp(mirror);
    let server = start(&upstream, "drain_tunnels = \"cut\", tunnel_cut_after = \"100ms\"");
    let mut client = server.connect();
    client.send(UPGRADE);
    expect_switch(&mut client);
    let began = Instant::now();
    server.admin().call("DELETE", "/apps/p.test?timeout=10s", "");
    assert_ne!(client.read_to_end().1, End::Open);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    upstream.wait_left(1);
}

#[test]
fn an_idle_tunnel_ends_by_its_timeout() {
    let upstream = Upstream::tcp(mirror);
    let server = start(&upstream, "tunnel_idle_timeout = \"300ms\"");
    let mut client = server.connect();
    client.send(UPGRADE);
    expect_switch(&mut client);
    client.send("x");
    client.buffer_at_least(1);
    upstream.wait_left(1);
    assert_ne!(client.read_to_end().1, End::Open);
    wait_active(&server, 0);
}

// Load.

#[test]
fn no_get_is_lost_when_one_of_two_upstreams_comes_and_goes() {
    let page = |_: &Asked, line: &mut Line| line.answer(200, "page");
    let steady = Upstream::tcp(page);
    let mut other = Upstream::tcp(page);
    let address = other.address();
    let server = Setup::new()
        .app(
            HOST,
            &proxy(&[steady.url(), other.url()], "eject_for = \"50ms\", answer_timeout = \"5s\""),
        )
        .start();
    let load = Load::start(LoadKind::KeepAlive, 4, server.address(), HOST, "page");
    let (mut answered, mut report) = (0, String::new());
    for round in 0..6 {
        answered += 200;
        load.wait_answered(answered);
        let took_part = wait_until(PATIENCE, || other.asked().len() >= 10);
        assert!(took_part, "round {round}: {} requests", other.asked().len());
        other.kill();
        answered += 200;
        load.wait_answered(answered);
        let _ = write!(report, " {}", other.asked().len());
        other = Upstream::at(address, page);
    }
    let tally = load.end();
    assert!(tally.lost.is_empty(), "{:?} after{report}", tally.lost);
    assert!(find(report.as_bytes(), b" ").is_some() && tally.answered >= answered);
}

// --- Clients that close their side

/// Removes the app. Returns how its drain ended.
fn removed(server: &Server) -> Value {
    let begun = server.admin().call("DELETE", "/apps/p.test?timeout=20s", "").json();
    server.admin().wait_drain(&begun["id"])
}

#[test]
fn a_client_that_leaves_an_idle_stream_is_noticed_and_holds_no_drain() {
    let upstream = Upstream::tcp(|_, line| {
        line.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: hi\n\n");
        line.read_to_end();
    });
    let server = start(&upstream, "answer_timeout = \"60s\"");
    let mut client = server.connect();
    client.send(get("p.test", "/"));
    client.buffer_at_least("HTTP/1.1 200 OK\r\n".len());
    wait_active(&server, 1);
    drop(client);
    upstream.wait_left(1);
    assert_eq!(removed(&server)["verdict"], "drained");
}

#[test]
fn a_tunnel_whose_client_is_gone_ends_although_its_upstream_ignores_that() {
    let gate = Gate::default();
    let upstream = Upstream::tcp({
        let gate = gate.clone();
        move |_, line| {
            line.send(SWITCH);
            gate.pass();
        }
    });
    let server = start(&upstream, "");
    let mut client = server.connect();
    client.send(UPGRADE);
    expect_switch(&mut client);
    client.send("the last word");
    drop(client);
    assert_eq!(removed(&server)["verdict"], "drained");
    gate.open();
}

#[test]
fn a_tunnel_whose_client_is_gone_ends_although_its_upstream_does_not_take_the_last_bytes() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let gate = Gate::default();
    // The upstream's kernel takes at most 208 KiB. The rest fits into Tidegate's buffers, so that
    // it reads the client's end too.
    let upstream = Upstream::unix(&dir.path().join("socket"), {
        let gate = gate.clone();
        move |_, line| {
            line.send(SWITCH);
            gate.pass();
        }
    });
    let server = start(&upstream, "");
    let mut client = server.connect();
    client.send(UPGRADE);
    expect_switch(&mut client);
    client.send(vec![b'x'; 240 * 1024]);
    drop(client);
    assert_eq!(removed(&server)["verdict"], "drained");
    gate.open();
}

#[test]
fn a_client_that_only_closed_its_side_gets_a_proxied_answer_with_pauses_in_it() {
    let gates: [Gate; 2] = Default::default();
    let upstream = Upstream::tcp({
        let gates = gates.clone();
        move |_, line| {
            gates[0].pass();
            line.send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\none");
            gates[1].pass();
            line.send("two");
        }
    });
    let server = start(&upstream, "");
    let mut client = server.connect();
    client.send(get("p.test", "/"));
    client.half_close();
    upstream.wait_asked(1);
    assert!(client.stays_silent(Duration::from_millis(500)));
    gates[0].open();
    client.buffer_at_least("HTTP/1.1 200 OK\r\n".len());
    gates[1].open();
    assert_eq!(client.response().text(), "onetwo");
    client.expect_end();
    wait_active(&server, 0);
}
