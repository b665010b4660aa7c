//! The drain of one upstream: what it waits for, how it ends, and what happens to the traffic.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{
    Asked, Client, End, Gate, Line, Load, LoadKind, PATIENCE, Server, Setup, Signal, Upstream,
    pattern, run, wait_until,
};

const HOST: &str = "p.test";
const GET: &str = "GET / HTTP/1.1\r\nHost: p.test\r\n\r\n";
const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: p.test\r\nConnection: Upgrade\r\n\
                       Upgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n";

fn proxy(upstreams: &[&Upstream], more: &str) -> String {
    let urls: Vec<_> = upstreams.iter().map(|upstream| upstream.url()).collect();
    format!("proxy = {{ upstreams = {urls:?}{more} }}")
}

/// A server with one loop, which takes the upstreams in turn, beginning with the first.
fn start(upstreams: &[&Upstream], more: &str) -> Server {
    let setup = Setup::new().server("threads = 1").server("idle_grace = \"0s\"");
    setup.app(HOST, &proxy(upstreams, more)).start()
}

fn named(name: &'static str) -> Upstream {
    Upstream::tcp(move |_, line| line.answer(200, name))
}

/// An upstream that answers when the gate is open.
fn gated(gate: &Gate, name: &'static str) -> Upstream {
    let gate = gate.clone();
    Upstream::tcp(move |_, line| {
        gate.pass();
        line.answer(200, name);
    })
}

/// Switches protocols, and waits for the end.
fn tunnel(_: &Asked, line: &mut Line) {
    line.send(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: a\r\n\r\n",
    );
    line.read_to_end();
    line.close();
}

/// Begins a request, which the next upstream in turn gets.
fn begin(server: &Server, upstream: &Upstream) -> Client {
    let mut client = server.connect();
    client.send(GET);
    upstream.wait_asked(1);
    client
}

fn open_tunnel(server: &Server) -> Client {
    let mut client = server.connect();
    client.send(UPGRADE);
    assert_eq!(client.response().status, 101);
    client
}

fn path(upstream: &Upstream, what: &str) -> String {
    format!("/apps/{HOST}/upstreams/{what}?url={}", upstream.url())
}

fn drain(server: &Server, upstream: &Upstream, more: &str) -> Value {
    server.admin().post(&(path(upstream, "drain") + more))
}

fn resume(server: &Server, upstream: &Upstream) -> Value {
    server.admin().post(&path(upstream, "resume"))
}

/// The row of an upstream in the newest life.
fn row(server: &Server, upstream: &Upstream) -> Value {
    let app = server.admin().get(&format!("/apps/{HOST}"));
    let mut rows = app["upstreams"].as_array().expect("upstreams").iter();
    rows.find(|row| row["url"] == upstream.url()).expect("a row").clone()
}

fn wait_row(server: &Server, upstream: &Upstream, key: &str, value: &Value) {
    let reached = wait_until(PATIENCE, || row(server, upstream)[key] == *value);
    assert!(reached, "{key} is not {value}: {}", row(server, upstream));
}

fn asks(server: &Server) -> String {
    server.connect().exchange(GET).text().to_owned()
}

/// Checks how often the log has an event; the log may be a moment late.
fn expect_events(server: &Server, event: &str, expected: usize) {
    let count = || server.events().iter().filter(|own| own.name == event).count();
    assert!(wait_until(PATIENCE, || count() >= expected), "{} {event}", count());
    assert_eq!(count(), expected, "{event}");
}

/// Runs a command for this server. Returns its exit code and output.
fn cli(server: &Server, arguments: &[&str]) -> (Option<i32>, String) {
    let admin = format!("unix:{}", server.admin().path().display());
    run(&[arguments, &["--admin", &admin]].concat())
}

#[test]
fn a_drain_waits_for_its_exchange_while_the_other_upstream_serves() {
    let gate = Gate::default();
    let (slow, other) = (gated(&gate, "slow"), named("other"));
    let server = start(&[&slow, &other], "");
    let mut events = server.admin().events();
    let mut client = begin(&server, &slow);
    let begun = drain(&server, &slow, "&timeout=20s");
    let id = begun["id"].as_str().expect("a name").to_owned();
    let expected = json!({
        "id": id, "host": HOST, "upstream": slow.url(), "cause": "upstream", "state": "draining",
        "verdict": null, "active_connections": 1, "refused": 0, "cut": 0,
        "elapsed_ms": begun["elapsed_ms"], "remaining_ms": begun["remaining_ms"],
    });
    assert_eq!(begun, expected);
    assert!(begun["remaining_ms"].as_u64().is_some_and(|left| (10_000..=20_000).contains(&left)));
    assert_eq!(row(&server, &slow)["state"], "draining");
    for _ in 0..6 {
        assert_eq!(asks(&server), "other");
    }
    // A second drain command waits for the same drain.
    assert_eq!(drain(&server, &slow, "")["id"], *id);
    assert_eq!(server.admin().get("/drains")["drains"][0]["id"], *id);
    assert_eq!(server.admin().get(&format!("/drains/{id}?wait=50ms"))["state"], "draining");
    gate.open();
    assert_eq!(client.response().text(), "slow");
    let ended = server.admin().wait_drain(&json!(id));
    assert_eq!((&ended["verdict"], &ended["cut"]), (&json!("drained"), &json!(0)));
    assert_eq!(row(&server, &slow)["state"], "drained");
    assert_eq!(drain(&server, &slow, "")["verdict"], "drained");
    let start = events.wait("upstream_drain_start");
    assert_eq!(
        (&start["fields"]["drain"], &start["fields"]["active_connections"]),
        (&json!(id), &json!(1))
    );
    assert_eq!(events.wait("upstream_drained")["fields"]["upstream"], slow.url());
    expect_events(&server, "upstream_drain_start", 1);
    expect_events(&server, "upstream_drained", 1);
    assert_eq!((asks(&server), slow.asked().len()), ("other".to_owned(), 1));
}

#[test]
fn the_deadline_cuts_the_exchanges_of_that_upstream_alone_and_the_command_says_so() {
    let gate = Gate::default();
    let stuck = Upstream::tcp(|_, line| drop(line.read_to_end()));
    let other = gated(&gate, "other");
    let server = start(&[&stuck, &other], "");
    let mut lost = begin(&server, &stuck);
    let mut kept = begin(&server, &other);
    let arguments = ["drain", HOST, "--upstream", stuck.url(), "--timeout", "100ms"];
    let (code, printed) = cli(&server, &arguments);
    assert_eq!(code, Some(3), "{printed}");
    let expected = format!("{HOST} {}: cut 1 after ", stuck.url());
    assert!(printed.starts_with(&expected), "{printed}");
    assert_eq!(lost.read_to_end().0, b"");
    stuck.wait_left(1);
    assert_eq!(server.wait_event("upstream_drain_timeout").count("cut"), 1);
    gate.open();
    assert_eq!(kept.response().text(), "other");
    assert_eq!(server.admin().get(&format!("/apps/{HOST}"))["cut"], 1);
    let (code, printed) = cli(&server, &arguments);
    assert_eq!(code, Some(3), "a drain that ended so: {printed}");
    expect_events(&server, "upstream_drain_timeout", 1);
}

#[test]
fn the_apps_own_drain_timeout_is_the_deadline() {
    let stuck = gated(&Gate::default(), "");
    let server = Setup::new()
        .server("threads = 1")
        .app(HOST, &format!("drain_timeout = \"80ms\"\n{}", proxy(&[&stuck], "")))
        .start();
    let _client = begin(&server, &stuck);
    let ended = server.admin().wait_drain(&drain(&server, &stuck, "")["id"]);
    assert_eq!((&ended["verdict"], &ended["cut"]), (&json!("cut"), &json!(1)));
}

#[test]
fn a_resume_cancels_the_drain_and_brings_the_traffic_back() {
    let gate = Gate::default();
    let (slow, other) = (gated(&gate, "slow"), named("other"));
    let server = start(&[&slow, &other], "");
    let mut client = begin(&server, &slow);
    let no_wait = ["drain", HOST, "--upstream", slow.url(), "--no-wait", "--json"];
    let (code, printed) = cli(&server, &no_wait);
    let id = serde_json::from_str::<Value>(&printed).expect("JSON")["id"].clone();
    assert_eq!((code, &id), (Some(0), &json!("u1")));
    let (code, printed) = cli(&server, &["resume", HOST, "--upstream", slow.url()]);
    assert_eq!(code, Some(0), "{printed}");
    assert_eq!(server.admin().wait_drain(&id)["verdict"], "cancelled");
    assert_eq!(row(&server, &slow)["state"], "up");
    gate.open();
    assert_eq!(client.response().text(), "slow");
    assert!(wait_until(PATIENCE, || asks(&server) == "slow"));
    let again = server.admin().call("POST", &path(&slow, "resume"), "");
    assert_eq!(again.status, 409, "{again:?}");
    // A cancelled drain is not announced, even if its exchanges end (I2).
    assert_eq!(server.admin().wait_drain(&drain(&server, &slow, "")["id"])["id"], "u2");
    assert_eq!(server.wait_event("upstream_drained").field("drain"), Some("u2"));
    expect_events(&server, "upstream_drained", 1);
    assert_eq!(server.admin().wait_drain(&id)["verdict"], "cancelled");
}

#[test]
fn no_request_is_lost_or_comes_late_while_upstreams_are_drained_in_turn() {
    let both = [named("page"), named("page")];
    let server = Setup::new().app(HOST, &proxy(&[&both[0], &both[1]], "")).start();
    let load = Load::start(LoadKind::KeepAlive, 4, server.address(), HOST, "page");
    let mut answered = 0;
    for round in 0..8 {
        let upstream = &both[round % 2];
        let before = upstream.asked().len();
        let took_part = wait_until(PATIENCE, || upstream.asked().len() >= before + 10);
        assert!(took_part, "round {round}");
        let ended = server.admin().wait_drain(&drain(&server, upstream, "")["id"]);
        assert_eq!(ended["verdict"], "drained");
        let asked = upstream.asked().len();
        assert_eq!(row(&server, upstream)["active"], 0);
        answered += 400;
        load.wait_answered(answered);
        assert_eq!(upstream.asked().len(), asked, "round {round}: asked after it was drained");
        resume(&server, upstream);
    }
    let tally = load.end();
    assert!(tally.lost.is_empty(), "{:?}", tally.lost);
    expect_events(&server, "upstream_drained", 8);
}

#[test]
fn an_upstream_that_is_drained_is_not_asked_when_another_fails() {
    let gate = Gate::default();
    let failing = Upstream::tcp({
        let gate = gate.clone();
        move |_, line| {
            gate.pass();
            line.reset();
        }
    });
    let other = named("other");
    let server = start(&[&failing, &other], "");
    let mut client = begin(&server, &failing);
    assert_eq!(server.admin().wait_drain(&drain(&server, &other, "")["id"])["verdict"], "drained");
    gate.open();
    assert_eq!(client.response().status, 502);
    assert_eq!(other.asked().len(), 0);
}

#[test]
fn idle_connections_are_counted_and_closed_when_their_upstream_is_drained() {
    let (one, other) = (named("one"), named("other"));
    let server = start(&[&one, &other], "");
    for name in ["one", "other", "one", "other"] {
        assert_eq!(asks(&server), name);
    }
    wait_row(&server, &one, "idle", &json!(1));
    assert_eq!((one.connections(), row(&server, &other)["idle"].as_u64()), (1, Some(1)));
    assert_eq!(drain(&server, &one, "&timeout=1s")["cause"], "upstream");
    one.wait_left(1);
    assert_eq!(
        (&row(&server, &one)["idle"], &row(&server, &other)["idle"]),
        (&json!(0), &json!(1))
    );
    resume(&server, &one);
    assert!(wait_until(PATIENCE, || asks(&server) == "one"));
    other.kill();
    wait_row(&server, &other, "idle", &json!(0));
}

#[test]
fn a_connection_that_becomes_idle_at_a_drained_upstream_is_closed() {
    let gate = Gate::default();
    let slow = gated(&gate, "slow");
    let server = start(&[&slow], "");
    let mut client = begin(&server, &slow);
    let begun = drain(&server, &slow, "");
    gate.open();
    assert_eq!(client.response().text(), "slow");
    slow.wait_left(1);
    assert_eq!(server.admin().wait_drain(&begun["id"])["verdict"], "drained");
    assert_eq!(row(&server, &slow)["idle"], 0);
    assert_eq!(asks(&server), r#"{"error":"All upstreams are drained"}"#);
}

#[test]
fn the_end_of_the_life_ends_the_drain_of_its_upstream() {
    let stuck = gated(&Gate::default(), "");
    let server = start(&[&stuck], "");
    let _client = begin(&server, &stuck);
    let begun = drain(&server, &stuck, "&timeout=60s");
    let removal = server.admin().call("DELETE", "/apps/p.test?timeout=50ms", "").json();
    for id in [&removal["id"], &begun["id"]] {
        let ended = server.admin().wait_drain(id);
        assert_eq!((&ended["verdict"], &ended["cut"]), (&json!("cut"), &json!(1)), "{ended}");
    }
    server.wait_event("app_removed");
    expect_events(&server, "upstream_drain_timeout", 1);
    let metrics = server.admin().call("GET", "/metrics", "").text;
    for line in [
        r#"tidegate_drains_total{app="p.test",cause="upstream",verdict="cut"} 1"#,
        r#"tidegate_drains_total{app="p.test",cause="remove",verdict="cut"} 1"#,
        r#"tidegate_cut_total{app="p.test"} 1"#,
        "tidegate_drains_running 0",
    ] {
        assert!(metrics.lines().any(|own| own == line), "{line}:\n{metrics}");
    }
}

#[test]
fn a_replaced_life_drains_its_upstream_to_the_end_and_the_new_one_has_it_drained() {
    let gate = Gate::default();
    let (slow, other) = (gated(&gate, "slow"), named("other"));
    let server = start(&[&slow], "");
    let mut old = begin(&server, &slow);
    let begun = drain(&server, &slow, "");
    let table = json!({ "proxy": { "upstreams": [other.url(), slow.url()] } });
    let put = server.admin().put("/apps/p.test", &table).json();
    assert_eq!(put["result"], "replaced");
    assert_eq!(row(&server, &slow)["state"], "drained");
    assert_eq!([0; 4].map(|_| asks(&server)), ["other"; 4]);
    let again = drain(&server, &slow, "");
    assert_eq!((&again["id"], &again["active_connections"]), (&begun["id"], &json!(1)), "I4");
    gate.open();
    assert_eq!(old.response().text(), "slow");
    assert_eq!(server.admin().wait_drain(&begun["id"])["verdict"], "drained");
    expect_events(&server, "upstream_drained", 1);
    // The old life is gone, but its drain is still known.
    server.wait_event("app_drained");
    assert_eq!(drain(&server, &slow, "")["id"], begun["id"]);
    let rows = resume(&server, &slow);
    assert_eq!(rows["upstreams"][1]["state"], "up");
    let mut both = [0; 2].map(|_| asks(&server));
    both.sort_unstable();
    assert_eq!(both, ["other", "slow"]);
    assert_eq!(server.admin().call("POST", &path(&slow, "resume"), "").status, 409);
}

#[test]
fn a_resume_in_a_new_life_cancels_the_drain_of_the_old_one() {
    let gate = Gate::default();
    let slow = gated(&gate, "slow");
    let server = start(&[&slow], "");
    let mut old = begin(&server, &slow);
    let begun = drain(&server, &slow, "&timeout=20s");
    for _ in 0..2 {
        let table = json!({ "proxy": { "upstreams": [slow.url()] } });
        server.admin().put("/apps/p.test", &table);
        assert_eq!(asks(&server), r#"{"error":"All upstreams are drained"}"#);
    }
    resume(&server, &slow);
    assert_eq!(server.admin().wait_drain(&begun["id"])["verdict"], "cancelled");
    gate.open();
    assert_eq!((old.response().text(), &*asks(&server)), ("slow", "slow"));
    expect_events(&server, "upstream_drained", 0);
    let again = drain(&server, &slow, "");
    assert_ne!(again["id"], begun["id"]);
    assert_eq!(server.admin().wait_drain(&again["id"])["verdict"], "drained");
}

#[test]
fn an_app_that_comes_back_while_it_is_removed_has_all_of_its_upstreams() {
    let gate = Gate::default();
    let slow = gated(&gate, "slow");
    let server = start(&[&slow], "");
    let mut old = begin(&server, &slow);
    drain(&server, &slow, "&timeout=20s");
    server.admin().call("DELETE", "/apps/p.test?timeout=20s", "");
    let table = json!({ "proxy": { "upstreams": [slow.url()] } });
    assert_eq!(server.admin().put("/apps/p.test", &table).json()["result"], "added");
    assert_eq!(row(&server, &slow)["state"], "up");
    gate.open();
    assert_eq!((old.response().text(), &*asks(&server)), ("slow", "slow"));
}

#[test]
fn an_upstream_may_be_written_as_in_a_config() {
    let one = named("one");
    let server = start(&[&one], "");
    let written = format!("{}/", one.url().replace("http", "HTTP"));
    let (code, printed) = cli(&server, &["drain", HOST, "--upstream", &written]);
    assert_eq!(code, Some(0), "{printed}");
    assert_eq!(server.wait_event("upstream_drained").field("upstream"), Some(one.url()));
    assert_eq!(row(&server, &one)["state"], "drained");
    let (code, printed) = cli(&server, &["resume", HOST, "--upstream", &written]);
    assert_eq!(code, Some(0), "{printed}");
    assert_eq!(asks(&server), "one");
}

#[test]
fn an_upstream_is_not_drained_before_older_lives_have_left_it() {
    let gate = Gate::default();
    let quick = gated(&gate, "quick");
    let stuck = Upstream::tcp(|_, line| drop(line.read_to_end()));
    let server = start(&[&quick, &stuck], "");
    let mut kept = begin(&server, &quick);
    let mut lost = begin(&server, &stuck);
    let table = json!({ "proxy": { "upstreams": [quick.url(), stuck.url()] } });
    server.admin().put("/apps/p.test", &table);
    let waits = drain(&server, &quick, "&timeout=20s");
    assert_eq!((&waits["state"], &waits["active_connections"]), (&json!("draining"), &json!(1)));
    assert_eq!(row(&server, &quick)["active"], 0, "the new life has none");
    gate.open();
    assert_eq!(kept.response().text(), "quick");
    assert_eq!(server.admin().wait_drain(&waits["id"])["verdict"], "drained");
    let cuts = server.admin().wait_drain(&drain(&server, &stuck, "&timeout=50ms")["id"]);
    assert_eq!((&cuts["verdict"], &cuts["cut"]), (&json!("cut"), &json!(1)));
    assert_eq!(lost.read_to_end().0, b"");
    resume(&server, &quick);
    assert_eq!(asks(&server), "quick");
}

#[test]
fn a_life_that_ends_leaves_the_drain_to_an_older_one_that_is_not_over() {
    let gate = Gate::default();
    let slow = gated(&gate, "slow");
    let server = start(&[&slow], "");
    let mut client = begin(&server, &slow);
    server.admin().put("/apps/p.test", &json!({ "proxy": { "upstreams": [slow.url()] } }));
    let begun = drain(&server, &slow, "&timeout=20s");
    let removal = server.admin().call("DELETE", "/apps/p.test", "").json();
    assert_eq!(server.admin().wait_drain(&removal["id"])["verdict"], "drained");
    let path = format!("/drains/{}", begun["id"].as_str().expect("a name"));
    assert_eq!(server.admin().get(&path)["state"], "draining");
    gate.open();
    assert_eq!(client.response().text(), "slow");
    assert_eq!(server.admin().wait_drain(&begun["id"])["verdict"], "drained");
    expect_events(&server, "upstream_drained", 1);
}

#[test]
fn a_resumed_app_keeps_drained_upstreams_drained() {
    let one = named("one");
    let server = start(&[&one], "");
    let admin = server.admin();
    assert_eq!(asks(&server), "one");
    admin.wait_drain(&drain(&server, &one, "")["id"]);
    admin.wait_drain(&admin.post("/apps/p.test/drain")["id"]);
    admin.post("/apps/p.test/resume");
    let out = row(&server, &one);
    assert_eq!((&out["state"], &out["requests"]), (&json!("drained"), &json!(0)), "I4: {out}");
    resume(&server, &one);
    assert_eq!(asks(&server), "one");
    assert_eq!(row(&server, &one)["requests"], 1, "I4");
}

#[test]
fn a_tunnel_counts_until_it_closes() {
    let upstream = Upstream::tcp(tunnel);
    let server = start(&[&upstream], "");
    let mut client = open_tunnel(&server);
    let begun = drain(&server, &upstream, "&timeout=20s");
    assert_eq!((&begun["state"], &begun["active_connections"]), (&json!("draining"), &json!(1)));
    client.half_close();
    assert_eq!(server.admin().wait_drain(&begun["id"])["verdict"], "drained");
    client.expect_end();
}

#[test]
fn a_tunnel_is_cut_by_the_deadline_and_earlier_if_the_app_says_so() {
    let upstream = Upstream::tcp(tunnel);
    let early = ", drain_tunnels = \"cut\", tunnel_cut_after = \"50ms\"";
    for (more, timeout) in [("", "&timeout=50ms"), (early, "&timeout=60s")] {
        let server = start(&[&upstream], more);
        let mut client = open_tunnel(&server);
        let ended = server.admin().wait_drain(&drain(&server, &upstream, timeout)["id"]);
        assert_eq!((&ended["verdict"], &ended["cut"]), (&json!("cut"), &json!(1)), "{ended}");
        assert_ne!(client.read_to_end().1, End::Open);
        assert_eq!(server.admin().get("/apps/p.test")["cut"], 1);
    }
}

#[test]
fn a_stop_ends_the_drain_of_an_upstream() {
    let gate = Gate::default();
    let slow = gated(&gate, "slow");
    let mut server = start(&[&slow], "");
    let mut client = begin(&server, &slow);
    drain(&server, &slow, "");
    server.signal(Signal::TERM);
    server.wait_event("shutdown_gated");
    gate.open();
    assert_eq!(client.response().text(), "slow");
    assert_eq!(server.wait_exit().code(), Some(0));
    expect_events(&server, "upstream_drained", 1);
}

#[test]
fn a_drain_that_is_impossible_is_refused_with_a_reason() {
    let one = named("one");
    let server = start(&[&one], "");
    let call = |method, path: &str| server.admin().call(method, path, "");
    for (method, path, status) in [
        ("POST", "/apps/p.test/upstreams/drain?url=http://127.0.0.1:1", 404),
        ("POST", "/apps/p.test/upstreams/resume?url=http://127.0.0.1:1", 404),
        ("POST", "/apps/q.test/upstreams/drain?url=http://127.0.0.1:1", 404),
        ("POST", "/apps/p.test/upstreams/drain", 400),
        ("POST", "/apps/p.test/upstreams/resume", 400),
        ("POST", "/apps/p.test/upstreams/drain?url=x&timeout=x", 400),
        ("GET", "/apps/p.test/upstreams/drain?url=x", 405),
        ("GET", "/drains/u1", 404),
        ("GET", "/drains/u", 404),
    ] {
        let answer = call(method, path);
        assert_eq!(answer.status, status, "{path}: {answer:?}");
    }
    let error = call("POST", "/apps/p.test/upstreams/drain?url=http://a").error();
    assert_eq!(error, "p.test: no upstream of this app has the URL http://a");
    assert_eq!(call("POST", &path(&one, "resume")).status, 409);
}

#[test]
fn metrics_show_upstreams_and_their_counters_continue_over_lives() {
    let gate = Gate::default();
    let (one, refusing) = (gated(&gate, "one"), Upstream::refusing());
    let server = start(&[&one], "");
    let has = |line: &str| {
        let labels = |url: &str| format!("app=\"p.test\",upstream=\"{url}\"");
        let line = line.replace("ONE", &labels(one.url())).replace("REFUSING", &labels(&refusing));
        let metrics = server.admin().call("GET", "/metrics", "").text;
        let reached = metrics.lines().any(|own| own == format!("tidegate_upstream_{line}"));
        assert!(reached, "no {line} in\n{metrics}");
    };
    let mut client = begin(&server, &one);
    has("active{ONE} 1");
    has("idle{ONE} 0");
    has("state{ONE,state=\"up\"} 1");
    has("state{ONE,state=\"draining\"} 0");
    let begun = drain(&server, &one, "");
    has("state{ONE,state=\"up\"} 0");
    has("state{ONE,state=\"draining\"} 1");
    gate.open();
    assert_eq!(client.response().text(), "one");
    server.admin().wait_drain(&begun["id"]);
    has("state{ONE,state=\"drained\"} 1");
    resume(&server, &one);
    assert_eq!(asks(&server), "one");
    wait_row(&server, &one, "idle", &json!(1));
    has("active{ONE} 0");
    has("idle{ONE} 1");
    has("requests_total{ONE} 2");
    let table = json!({ "proxy": { "upstreams": [one.url(), refusing], "retries": 1 } });
    server.admin().put("/apps/p.test", &table);
    for _ in 0..2 {
        assert_eq!(asks(&server), "one");
    }
    has("requests_total{ONE} 4");
    has("answer_seconds_count{ONE} 4");
    has("failures_total{REFUSING,cause=\"connect_refused\"} 1");
    server.admin().wait_drain(&server.admin().call("DELETE", "/apps/p.test", "").json()["id"]);
    has("requests_total{ONE} 4");
    let metrics = server.admin().call("GET", "/metrics", "").text;
    assert!(!metrics.contains("tidegate_upstream_active{"), "{metrics}");
}

/// Sends requests until `over`, and ignores the results.
fn pester(address: SocketAddr, over: &AtomicBool) {
    while !over.load(SeqCst) {
        let Ok(mut client) = Client::try_connect(address, PATIENCE) else { continue };
        while !over.load(SeqCst) && client.try_send(GET.as_bytes()).is_ok() {
            if client.try_response(false).is_err() {
                break;
            }
        }
    }
}

#[test]
fn whatever_comes_between_every_drain_ends_once() {
    let never = Gate::default();
    let slow = || {
        let never = never.clone();
        Upstream::tcp(move |_, line| {
            never.passes_within(Duration::from_millis(3));
            line.answer(200, "page");
        })
    };
    let all = [slow(), slow(), slow()];
    let server = Setup::new().app(HOST, &proxy(&[&all[0], &all[1], &all[2]], "")).start();
    let admin = server.admin();
    let urls: Vec<_> = all.iter().map(Upstream::url).collect();
    let (over, address) = (Arc::new(AtomicBool::new(false)), server.address());
    let clients: Vec<_> = (0..6)
        .map(|_| {
            let over = Arc::clone(&over);
            thread::spawn(move || pester(address, &over))
        })
        .collect();
    let choices = pattern(900);
    for choice in choices.chunks(3) {
        let upstream = &all[usize::from(choice[0]) % 3];
        let answer = match choice[1] % 16 {
            0..=7 => {
                let timeout = ["1ms", "5ms", "20s"][usize::from(choice[2]) % 3];
                let path = path(upstream, "drain") + "&timeout=" + timeout;
                admin.call("POST", &path, "")
            }
            8..=12 => admin.call("POST", &path(upstream, "resume"), ""),
            13 => admin.put("/apps/p.test", &json!({ "proxy": { "upstreams": urls } })),
            14 => admin.call("POST", "/apps/p.test/drain?timeout=1ms", ""),
            _ => admin.call("POST", "/apps/p.test/resume", ""),
        };
        assert!([200, 202, 409].contains(&answer.status), "{answer:?}");
    }
    over.store(true, SeqCst);
    clients.into_iter().for_each(|client| client.join().expect("a client"));
    let drains = admin.get("/drains")["drains"].as_array().expect("a list").clone();
    let begun = drains.iter().filter(|drain| drain["cause"] == "upstream").count();
    for drain in &drains {
        admin.wait_drain(&drain["id"]);
    }
    let metrics = admin.call("GET", "/metrics", "").text;
    let ended = |line: &str| {
        let count = line.strip_prefix("tidegate_drains_total{")?.split_once("} ")?;
        count.0.contains("cause=\"upstream\"").then(|| count.1.parse::<usize>().expect("a number"))
    };
    let sum: usize = metrics.lines().filter_map(ended).sum();
    assert!(begun > 20 && sum == begun, "{sum} of {begun} in\n{metrics}");
    assert!(metrics.contains("\ntidegate_drains_running 0\n"), "I5:\n{metrics}");
    expect_events(&server, "upstream_drain_start", begun);
    for upstream in &all {
        wait_row(&server, upstream, "active", &json!(0));
    }
}
