//! Upstreams that speak TLS: whom the server trusts, what it says when it doesn't, and that all
//! else is as with plain upstreams.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use socket2::SockRef;

use crate::support::{
    Asked, Authority, Client, End, Event, Gate, Identity, Line, Load, LoadKind, PATIENCE, Pid,
    Server, Setup, Signal, Upstream, free_port, get, get_and_close, pattern, run, wait_until,
};

const HOST: &str = "p.test";
const GET: &str = "GET / HTTP/1.1\r\nHost: p.test\r\n\r\n";

/// Where the upstreams of tests listen.
const HERE: &str = "127.0.0.1";

/// A server with one loop, whose proxy trusts this authority.
fn setup(authority: &Authority, urls: &[&str], more: &str) -> Setup {
    // Some machines that run tests stand still for seconds.
    let patient = if more.contains("connect_timeout") { "" } else { ", connect_timeout = \"20s\"" };
    let proxy = format!("proxy = {{ upstreams = {urls:?}, ca = \"tls/ca.pem\"{patient}{more} }}");
    bare().file("tls/ca.pem", authority.pem()).app(HOST, &proxy)
}

fn bare() -> Setup {
    Setup::new()
        .server("threads = 1")
        .server("idle_grace = \"0s\"")
        .log("access = \"json\"\naccess_path = \"access.log\"")
}

fn start(authority: &Authority, upstream: &Upstream, more: &str) -> Server {
    setup(authority, &[upstream.url()], more).start()
}

fn ok(_: &Asked, line: &mut Line) {
    line.answer(200, "ok");
}

/// An authority, and an upstream with a certificate of it.
fn trusted(script: impl Fn(&Asked, &mut Line) + Send + Sync + 'static) -> (Authority, Upstream) {
    let authority = Authority::new("an authority");
    let upstream = Upstream::tls(authority.issue(&[HERE]).server(), script);
    (authority, upstream)
}

fn row(server: &Server, index: usize) -> Value {
    server.admin().get(&format!("/apps/{HOST}"))["upstreams"][index].clone()
}

fn wait_state(server: &Server, state: &str) {
    let is_so = || row(server, 0)["state"] == state;
    assert!(wait_until(PATIENCE, is_so), "not {state}: {}", row(server, 0));
}

/// Checks that every place names this cause and reason for the only request.
fn check_failure(server: &Server, url: &str, cause: &str, reason: &str) {
    let failed = server.wait_event("upstream_failed");
    assert_eq!((failed.field("reason"), failed.field("upstream")), (Some(cause), Some(url)));
    let error = failed.field("error").expect("an error").to_owned();
    assert!(error.contains(reason), "{reason}: {error}");
    let last = &row(server, 0)["last_failure"];
    assert_eq!((&last["cause"], &last["error"]), (&json!(cause), &json!(error)));
    let admin = format!("unix:{}", server.admin().path().display());
    let table = run(&["app", HOST, "--admin", &admin]).1;
    assert!(table.contains(cause) && table.contains(&error), "{table}");
    let path = server.dir().join("access.log");
    let is_said = || fs::read_to_string(&path).is_ok_and(|log| log.contains(cause));
    assert!(wait_until(PATIENCE, is_said), "{cause} is not in the access log");
    let metrics = server.admin().call("GET", "/metrics", "").text;
    let metric = format!("upstream=\"{url}\",cause=\"{cause}\"}} 1");
    assert!(metrics.contains(&metric), "{metric}");
}

/// Asks once, gets a 502, and checks that every place says why.
fn check_refused(server: &Server, url: &str, reason: &str) {
    let response = server.connect().exchange(GET);
    assert_eq!((response.status, response.text()), (502, r#"{"error":"No upstream answered"}"#));
    check_failure(server, url, "tls_handshake", reason);
}

// What passes.

#[test]
fn large_bodies_pass_both_ways_on_one_kept_connection() {
    for is_old in [false, true] {
        let authority = Authority::new("an authority");
        let identity = authority.issue(&[HERE]);
        let config = if is_old { identity.old_server() } else { identity.server() };
        let upstream = Upstream::tls(config, |asked, line| match asked.nth % 2 {
            0 => line.answer(200, &asked.content),
            _ => {
                let length = asked.content.len();
                let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                let parts = [format!("{head}{length:x}\r\n").as_bytes(), &asked.content].concat();
                line.send([&parts[..], b"\r\n0\r\n\r\n"].concat());
            }
        });
        let server = start(&authority, &upstream, "");
        let (mut client, body) = (server.connect(), pattern(100 * 1024));
        for _ in 0..6 {
            let length = body.len();
            let head =
                format!("PUT / HTTP/1.1\r\nHost: p.test\r\nContent-Length: {length}\r\n\r\n");
            client.send([head.as_bytes(), &body].concat());
            let response = client.response();
            assert_eq!(response.status, 200);
            assert!(response.body == body, "the content differs");
        }
        let shaken = upstream.handshakes();
        assert_eq!((shaken.len(), upstream.connections()), (1, 1), "kept: {shaken:?}");
        // An address isn't sent as a name (RFC 6066 §3).
        assert_eq!(shaken[0].name, None);
        assert_eq!(shaken[0].protocol.as_deref(), Some("http/1.1"));
        let asked = upstream.last();
        assert_eq!(asked.all("X-Forwarded-Proto"), ["http"]);
        assert_eq!(asked.all("Host"), ["p.test"]);
        assert_eq!(row(&server, 0)["idle"], 1);
    }
}

#[test]
fn plain_and_tls_upstreams_serve_one_app_and_the_default_port_is_443() {
    let (authority, secure) = trusted(|_, line| line.answer(200, "secure"));
    let plain = Upstream::tcp(|_, line| line.answer(200, "plain"));
    let server = setup(&authority, &[secure.url(), plain.url()], ", host = \"upstream\"").start();
    let mut client = server.connect();
    let mut got: Vec<_> = (0..4).map(|_| client.exchange(GET).text().to_owned()).collect();
    got.sort();
    assert_eq!(got, ["plain", "plain", "secure", "secure"]);
    assert_eq!(secure.last().all("Host"), [secure.address().to_string()]);
    let other = setup(&authority, &["https://127.0.0.1"], "").start();
    assert_eq!(row(&other, 0)["url"], "https://127.0.0.1:443");
}

#[test]
fn the_server_name_is_sent_and_the_certificate_has_to_have_it() {
    let authority = Authority::new("an authority");
    let upstream = Upstream::tls(authority.issue(&["app.internal", "localhost"]).server(), ok);
    let server = start(&authority, &upstream, ", server_name = \"App.Internal\"");
    assert_eq!(server.connect().exchange(GET).status, 200);
    assert_eq!(upstream.handshakes()[0].name.as_deref(), Some("app.internal"));
    // Without the key it is the URL's host.
    let url = format!("https://localhost:{}", upstream.address().port());
    let server = setup(&authority, &[&url], "").start();
    assert_eq!(server.connect().exchange(GET).status, 200);
    assert_eq!(upstream.handshakes()[1].name.as_deref(), Some("localhost"));
}

#[test]
fn a_later_handshake_resumes_an_earlier_session() {
    for is_old in [false, true] {
        let authority = Authority::new("an authority");
        let identity = authority.issue(&["app.internal"]);
        let config = if is_old { identity.old_server() } else { identity.server() };
        let upstream = Upstream::tls(config, ok);
        let more = ", idle_connections = 0, server_name = \"app.internal\"";
        let server = start(&authority, &upstream, more);
        let mut client = server.connect();
        assert!((0..3).all(|_| client.exchange(GET).status == 200));
        let resumed: Vec<_> = upstream.handshakes().iter().map(|it| it.is_resumed).collect();
        assert_eq!(resumed, [false, true, true], "TLS 1.2: {is_old}");
    }
}

// Whom the server trusts.

#[test]
fn a_certificate_that_is_not_good_is_a_502_and_every_place_says_why() {
    let authority = Authority::new("an authority");
    let stranger = Authority::new("a stranger");
    for (identity, reason) in [
        (authority.issue(&["other.internal", "127.0.0.2"]), "name mismatch"),
        (authority.issue_expired(&[HERE]), "certificate expired"),
        (stranger.issue(&[HERE]), "unknown issuer"),
        (Identity::self_signed(&[HERE]), "unknown issuer"),
    ] {
        let upstream = Upstream::tls(identity.server(), ok);
        let server = start(&authority, &upstream, "");
        check_refused(&server, upstream.url(), reason);
        assert!(upstream.asked().is_empty(), "{reason}: a request was sent");
    }
}

#[test]
fn the_systems_authorities_are_the_default() {
    let (_, upstream) = trusted(ok);
    let proxy = format!("proxy = {{ upstreams = [{:?}] }}", upstream.url());
    let server = bare().app(HOST, &proxy).start();
    check_refused(&server, upstream.url(), "unknown issuer");
}

#[test]
fn verification_is_skipped_only_by_the_key_that_says_so_which_is_warned_of() {
    let upstream = Upstream::tls(Identity::self_signed(&["other.internal"]).server(), ok);
    let app =
        format!("proxy = {{ upstreams = [{:?}], insecure_skip_verify = true }}", upstream.url());
    let server = bare().app(HOST, &app).start();
    assert_eq!(server.connect().exchange(GET).status, 200);
    let warned = server.wait_event("upstream_tls_unsafe");
    assert_eq!((&*warned.level, warned.field("host")), ("WARN", Some(HOST)));
    assert!(warned.field("reason").is_some_and(|it| it.contains("insecure_skip_verify")));
    let config = server.dir().join("config.toml");
    let (code, printed) = run(&["check", "--config", config.to_str().expect("UTF-8")]);
    assert_eq!(code, Some(0), "{printed}");
    assert!(printed.contains("insecure_skip_verify"), "{printed}");
    // Each life that begins says it again.
    server.admin().post(&format!("/apps/{HOST}/drain"));
    server.admin().post(&format!("/apps/{HOST}/resume"));
    let count = || server.events().iter().filter(|it| it.name == "upstream_tls_unsafe").count();
    assert!(wait_until(PATIENCE, || count() >= 2), "{} times", count());
}

#[test]
fn an_upstream_that_demands_a_certificate_gets_it_or_says_so() {
    let (authority, clients) = (Authority::new("an authority"), Authority::new("for clients"));
    let own = clients.issue(&["a client"]);
    let upstream = Upstream::tls(authority.issue(&[HERE]).server_for_clients_of(&clients), ok);
    let keys = ", client_cert = \"me.pem\", client_key = \"me.key\"";
    let server = setup(&authority, &[upstream.url()], keys)
        .file("me.pem", own.pem())
        .file("me.key", own.key_pem())
        .start();
    let mut client = server.connect();
    assert!((0..3).all(|_| client.exchange(GET).status == 200));
    assert_eq!(upstream.handshakes().len(), 1);
    // In TLS 1.3 the upstream says it when the handshake is over for its client.
    let server = setup(&authority, &[upstream.url()], ", retries = 0").start();
    check_refused(&server, upstream.url(), "client certificate required");
    let other = authority.issue(&["a client"]);
    let server = setup(&authority, &[upstream.url()], &format!("{keys}, retries = 0"))
        .file("me.pem", other.pem())
        .file("me.key", other.key_pem())
        .start();
    assert_eq!(server.connect().exchange(GET).status, 502);
    let failed = server.wait_event("upstream_failed");
    assert_eq!(failed.field("reason"), Some("tls_handshake"), "{failed:?}");
}

// Files.

#[test]
fn files_that_cannot_be_used_stay_in_their_app_and_are_named() {
    let (authority, upstream) = trusted(ok);
    let (own, other) = (authority.issue(&["a"]), authority.issue(&["b"]));
    let app = |keys: &str| format!("proxy = {{ upstreams = [{:?}], {keys} }}", upstream.url());
    let server = bare()
        .file("ca.pem", authority.pem())
        .file("empty.pem", "")
        .file("own.pem", own.pem())
        .file("other.key", other.key_pem())
        .app("none.test", &app("ca = \"none.pem\""))
        .app("empty.test", &app("ca = \"empty.pem\""))
        .app("key.test", &app("ca=\"ca.pem\", client_cert=\"own.pem\", client_key=\"other.key\""))
        .app(HOST, &app("ca = \"ca.pem\""))
        .start();
    let mut client = server.connect();
    assert_eq!(client.exchange(GET).status, 200);
    let config = server.dir().join("config.toml");
    let (code, printed) = run(&["check", "--config", config.to_str().expect("UTF-8")]);
    assert_eq!(code, Some(0), "{printed}");
    for (host, words) in [
        ("none.test", "`proxy.ca`: /"),
        ("empty.test", "empty.pem: holds no certificate"),
        ("key.test", "`proxy.client_key`: /"),
    ] {
        assert_eq!(client.exchange(get(host, "/")).status, 503, "{host}");
        let said = |event: &Event| {
            let error = event.field("error").unwrap_or_default();
            event.field("host") == Some(host) && error.contains(words)
        };
        let events = server.events();
        let failed = events.iter().filter(|event| event.name == "app_load_failed");
        assert!({ failed }.any(said), "{host}: {events:#?}");
        assert!(printed.contains(&format!("requests for {host} would get 503")), "{printed}");
    }
}

#[test]
fn a_reload_to_a_file_that_is_broken_keeps_the_app_as_it_was() {
    let (authority, upstream) = trusted(ok);
    let setup = setup(&authority, &[upstream.url()], "").file("broken.pem", "no certificate");
    let server = setup.start();
    let text = fs::read_to_string(server.dir().join("config.toml")).expect("the config");
    server.rewrite(&text.replace("tls/ca.pem", "broken.pem"));
    let done = server.admin().call("POST", "/reload", "");
    assert!(done.text.contains("holds no certificate"), "{done:?}");
    assert_eq!(server.connect().exchange(GET).status, 200);
    server.rewrite(&text);
    assert_eq!(server.admin().post("/reload")["failed"], json!([]));
    assert_eq!(server.connect().exchange(GET).status, 200);
}

#[test]
fn a_reload_takes_a_file_that_has_changed_under_the_same_name() {
    let (old, new) = (Authority::new("an authority"), Authority::new("its successor"));
    let upstream = Upstream::tls(new.issue(&[HERE]).server(), ok);
    let server = start(&old, &upstream, ", eject_after = 0");
    assert_eq!(server.connect().exchange(GET).status, 502);
    assert_eq!(server.admin().post("/reload")["changed"], json!([]));
    fs::write(server.dir().join("tls/ca.pem"), new.pem()).expect("written");
    assert_eq!(server.admin().post("/reload")["changed"], json!([HOST]));
    assert_eq!(server.connect().exchange(GET).status, 200);
    assert_eq!(server.admin().post("/reload")["changed"], json!([]));
}

// Handshakes that fail.

/// An upstream that does this with each connection.
fn raw(act: impl Fn(TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("https://{}", listener.local_addr().expect("an address"));
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            act(stream);
        }
    });
    url
}

#[test]
fn an_upstream_that_speaks_plain_http_on_that_port_is_called_that() {
    let authority = Authority::new("an authority");
    let url = raw(|mut stream| {
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let server = setup(&authority, &[&url], "").start();
    check_refused(&server, &url, "plain HTTP");
}

#[test]
fn a_close_and_a_reset_within_the_handshake_are_its_failure() {
    let authority = Authority::new("an authority");
    for (resets, reason) in [(false, "closed within the TLS handshake"), (true, "os error 104")] {
        let url = raw(move |mut stream| {
            // The whole hello, so that the close isn't a reset.
            let _ = stream.read(&mut [0; 4096]);
            if resets {
                let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            }
        });
        let server = setup(&authority, &[&url], "").start();
        check_refused(&server, &url, reason);
    }
}

#[test]
fn a_handshake_that_hangs_is_up_to_connect_timeout() {
    let authority = Authority::new("an authority");
    let held = Mutex::new(Vec::new());
    let url = raw(move |stream| held.lock().expect("no panic").push(stream));
    let server = setup(&authority, &[&url], ", connect_timeout = \"200ms\"").start();
    assert_eq!(server.connect().exchange(GET).status, 502);
    check_failure(&server, &url, "connect_timeout", "TLS handshake");
}

#[test]
fn a_request_with_content_goes_to_the_next_upstream_when_a_handshake_fails() {
    let (authority, good) = trusted(|asked, line| line.answer(200, &asked.content));
    let bad = Upstream::tls(authority.issue_expired(&[HERE]).server(), ok);
    let server = setup(&authority, &[bad.url(), good.url()], ", eject_after = 3").start();
    let body = pattern(100 * 1024);
    let head = format!("POST / HTTP/1.1\r\nHost: p.test\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut client = server.connect();
    for _ in 0..8 {
        client.send([head.as_bytes(), &body].concat());
        let response = client.response();
        assert!(response.status == 200 && response.body == body, "{}", response.head);
    }
    let ejected = server.wait_event("upstream_ejected");
    assert_eq!(
        (ejected.field("reason"), ejected.field("error")),
        (Some("tls_handshake"), Some("certificate expired"),)
    );
    assert_eq!(row(&server, 0)["failures"], 3, "then it is asked no more");
}

// How an answer ends.

/// Content without a length, and the end that the target names.
fn until_close(asked: &Asked, line: &mut Line) {
    let head = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
    match asked.target() {
        "/whole" => {
            line.send(format!("{head}all of it"));
            line.close();
        }
        "/torn" => {
            line.send(format!("{head}a part"));
            line.tear();
        }
        "/says-end-and-stays" => {
            line.send(format!("{head}all of it"));
            line.say_end();
            line.read_to_end();
            line.tear();
        }
        "/reset" => {
            line.send(format!("{head}a part"));
            line.reset();
        }
        "/length" => {
            line.answer(200, "all of it");
            line.tear();
        }
        other => panic!("{other}"),
    }
}

#[test]
fn an_end_without_close_notify_is_a_torn_answer_where_the_end_delimits_it() {
    let (authority, upstream) = trusted(until_close);
    let server = start(&authority, &upstream, "");
    for path in ["/whole", "/says-end-and-stays", "/length"] {
        let response = server.connect().exchange(get(HOST, path));
        assert_eq!((response.status, response.text()), (200, "all of it"), "{path}");
    }
    assert_eq!(row(&server, 0)["failures"], 0);
    for (count, path) in [(1, "/torn"), (2, "/reset")] {
        for request in [get(HOST, path), format!("GET {path} HTTP/1.0\r\nHost: p.test\r\n\r\n")] {
            let mut client = server.connect();
            client.send(request);
            let (bytes, end) = client.read_to_end();
            let text = String::from_utf8_lossy(&bytes);
            // A 502 if no byte of the head is with the kernel yet.
            let is_torn = text.starts_with("HTTP/1.1 502 ")
                || end == End::Reset
                || (text.contains("chunked") && !text.ends_with("0\r\n\r\n"));
            assert!(is_torn, "{path}: {end:?} {text}");
        }
        let causes = &row(&server, 0)["failures"];
        assert_eq!(causes, &json!(2 * count), "{path}");
    }
    let failed = server.wait_event("upstream_failed");
    assert_eq!(failed.field("reason"), Some("body_broke_off"));
    assert!(failed.field("error").is_some_and(|it| it.contains("close_notify")), "{failed:?}");
}

// Kept connections.

#[test]
fn records_without_content_do_not_end_an_idle_connection_and_its_end_does() {
    let (change, changed) = (Gate::default(), Gate::default());
    let gates = (change.clone(), changed.clone());
    let (authority, upstream) = trusted(move |asked, line| {
        line.answer(200, "ok");
        if asked.nth == 0 {
            gates.0.pass();
            for _ in 0..3 {
                line.change_keys();
            }
            gates.1.open();
        }
        if asked.nth == 4 {
            line.close();
        }
    });
    let server = start(&authority, &upstream, "");
    let mut client = server.connect();
    assert_eq!(client.exchange(GET).status, 200);
    change.open();
    changed.pass();
    // A POST is sent only on a connection that shows to be silent.
    let post = "POST / HTTP/1.1\r\nHost: p.test\r\nContent-Length: 1\r\n\r\nx";
    for request in [post, GET, post, GET] {
        assert_eq!(client.exchange(request).status, 200);
    }
    assert_eq!(upstream.connections(), 1, "one connection for all");
    let is_gone = || row(&server, 0)["idle"] == 0;
    assert!(wait_until(PATIENCE, is_gone), "closed by the upstream: {}", row(&server, 0));
    assert_eq!(client.exchange(post).status, 200);
    assert_eq!((upstream.connections(), &row(&server, 0)["failures"]), (2, &json!(0)));
}

#[test]
fn content_that_nobody_asked_for_ends_an_idle_connection() {
    let gate = Gate::default();
    let passed = gate.clone();
    let (authority, upstream) = trusted(move |asked, line| {
        line.answer(200, "ok");
        if asked.connection == 0 {
            passed.pass();
            line.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfake");
        }
    });
    let server = start(&authority, &upstream, "");
    let mut client = server.connect();
    assert_eq!(client.exchange(GET).text(), "ok");
    gate.open();
    upstream.wait_left(1);
    assert_eq!(client.exchange(GET).text(), "ok");
}

#[test]
fn an_upstream_that_restarts_with_another_certificate_is_checked_again() {
    let authority = Authority::new("an authority");
    let address = free_port();
    let first = Upstream::tls_at(address, authority.issue(&[HERE]).server(), ok);
    let server = start(&authority, &first, ", eject_after = 0");
    assert_eq!(server.connect().exchange(GET).status, 200);
    drop(first);
    let stranger = Authority::new("a stranger").issue(&[HERE]);
    let second = Upstream::tls_at(address, stranger.server(), ok);
    assert_eq!(server.connect().exchange(GET).status, 502);
    assert!(second.asked().is_empty());
}

// Checks.

#[test]
fn checks_go_over_tls_and_take_an_upstream_out_and_back() {
    let is_well = Arc::new(AtomicUsize::new(1));
    let (authority, upstream) = trusted({
        let is_well = Arc::clone(&is_well);
        move |_, line| line.answer(if is_well.load(SeqCst) == 1 { 200 } else { 500 }, "ok")
    });
    let health = ", health = { path = \"/up\", interval = \"100ms\", timeout = \"20s\", \
                  rise = 1, fall = 1 }";
    let server = start(&authority, &upstream, health);
    upstream.wait_asked(2);
    assert_eq!(upstream.last().target(), "/up");
    assert_eq!(server.connect().exchange(GET).status, 200);
    is_well.store(0, SeqCst);
    let down = server.wait_event("upstream_down");
    assert_eq!(down.field("reason"), Some("status 500"));
    wait_state(&server, "down");
    assert_eq!(server.connect().exchange(GET).status, 503);
    is_well.store(1, SeqCst);
    server.wait_event("upstream_up");
    wait_state(&server, "up");
    assert_eq!(server.connect().exchange(GET).status, 200);
    let resumed = upstream.handshakes().iter().filter(|it| it.is_resumed).count();
    assert!(resumed <= 1, "each check checks the certificate");
}

#[test]
fn a_check_says_which_handshake_failed() {
    let (authority, clients) = (Authority::new("an authority"), Authority::new("for clients"));
    let server_of = |identity: Identity| identity.server();
    for (config, reason) in [
        (server_of(authority.issue_expired(&[HERE])), "TLS: certificate expired"),
        (
            authority.issue(&[HERE]).server_for_clients_of(&clients),
            "TLS: refused by the peer: client certificate required",
        ),
    ] {
        let upstream = Upstream::tls(config, ok);
        let server = start(&authority, &upstream, ", health = { path = \"/\", timeout = \"20s\" }");
        assert_eq!(server.wait_event("upstream_down").field("reason"), Some(reason));
        wait_state(&server, "down");
    }
}

// Tunnels.

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: p.test\r\nConnection: Upgrade\r\n\
                       Upgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                      Upgrade: websocket\r\nSec-WebSocket-Accept: a\r\n\r\n";

#[test]
fn a_tunnel_carries_bytes_both_ways_until_either_side_closes() {
    let (authority, upstream) = trusted(|_, line| {
        line.send(SWITCH);
        loop {
            let bytes = line.read(10);
            line.send(&bytes);
            if bytes.len() < 10 || bytes == b"close, now" {
                break;
            }
        }
        line.close();
    });
    let server = start(&authority, &upstream, "");
    for is_by_client in [true, false] {
        let mut client = server.connect();
        client.send(UPGRADE);
        assert_eq!(client.response().status, 101);
        let large = pattern(200_000);
        let mut sender = client.second();
        let sent = large.clone();
        let sending = thread::spawn(move || sender.try_send(&sent));
        client.buffer_at_least(large.len());
        sending.join().expect("no panic").expect("sent");
        let (bytes, end) = client.read_to_end_within(Duration::ZERO);
        assert!(bytes == large && end == End::Open, "{end:?}");
        if is_by_client {
            client.half_close();
        } else {
            client.send("close, now");
        }
        let (rest, end) = client.read_to_end();
        let expected = if is_by_client { "" } else { "close, now" };
        assert_eq!((&*rest, end), (expected.as_bytes(), End::Eof));
    }
    assert!(wait_until(PATIENCE, || row(&server, 0)["active"] == 0));
}

// Drains.

#[test]
fn a_replace_and_a_drain_wait_for_exchanges_over_tls() {
    let gate = Gate::default();
    let (authority, upstream) = trusted({
        let gate = gate.clone();
        move |_, line| {
            gate.pass();
            line.answer(200, pattern(100 * 1024));
        }
    });
    let server = start(&authority, &upstream, "");
    let mut clients: Vec<Client> = (0..4).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(|client| client.send(GET));
    upstream.wait_heads(4);
    let replaced = json!({ "respond": { "body": "new" } });
    assert_eq!(server.admin().put(&format!("/apps/{HOST}"), &replaced).status, 200);
    assert_eq!(server.connect().exchange(GET).text(), "new");
    gate.open();
    for client in &mut clients {
        assert!(client.response().body == pattern(100 * 1024));
    }
    let drained = server.wait_event("app_drained");
    assert_eq!((drained.field("host"), drained.field("cause")), (Some(HOST), Some("replace")));
}

#[test]
fn reloads_and_upgrades_under_load_over_tls_lose_nothing() {
    Server::adopt_orphans();
    let (authority, upstream) = trusted(|_, line| line.answer(200, "x".repeat(5_000)));
    let mut server = start(&authority, &upstream, "");
    let loads = [LoadKind::KeepAlive, LoadKind::NewConnections]
        .map(|kind| Load::start(kind, 3, server.address(), HOST, "x"));
    for load in &loads {
        load.wait_answered(50);
    }
    let text = fs::read_to_string(server.dir().join("config.toml")).expect("the config");
    for round in 0..4 {
        let retries = format!("\"tls/ca.pem\", retries = {round}");
        server.rewrite(&text.replace("\"tls/ca.pem\"", &retries));
        assert_eq!(server.admin().post("/reload")["changed"], json!([HOST]));
        let done = server.admin().post("/upgrade");
        let pid = done["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        server.follow(pid.and_then(Pid::from_raw).expect("a pid"));
    }
    for load in loads {
        let tally = load.end();
        assert!(tally.lost.is_empty() && tally.answered > 100, "{tally:?}");
    }
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn an_idle_connection_is_closed_with_the_end_that_tls_demands() {
    let (authority, upstream) = trusted(ok);
    let server = start(&authority, &upstream, ", idle_timeout = \"100ms\"");
    let response = server.connect().exchange(get_and_close(HOST, "/"));
    assert_eq!(response.status, 200);
    upstream.wait_left(1);
    assert_eq!(upstream.torn(), 0);
}
