//! Which upstream a proxy app chooses: shares, keys, checks, ejections, and upstreams that come and
//! go under load.
//!
//! Counts are exact because one loop serves one request at a time. Tests that inspect single checks
//! decide how each check ends, and when.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{
    self, Asked, Client, Event, Gate, Line, Load, LoadKind, PATIENCE, Response, Server, Setup,
    Signal, Upstream, wait_until,
};

const HOST: &str = "p.test";
const GET: &str = "GET / HTTP/1.1\r\nHost: p.test\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: p.test\r\nContent-Length: 4\r\n\r\nsent";
const CHECK: &str = "/up";
const REFUSED: &str = "connect: Connection refused (os error 111)";

/// Checks at the shortest interval.
const HEALTH: &str =
    "health = { path = \"/up\", interval = \"100ms\", timeout = \"10s\", rise = 2, fall = 3 }";

/// The line of an app with these upstreams, and more keys.
fn proxy(upstreams: &[&str], more: &str) -> String {
    let upstreams: Vec<_> = upstreams.iter().map(|upstream| of_upstream(upstream)).collect();
    format!("proxy = {{ upstreams = [{}], {more} }}", upstreams.join(", "))
}

/// `URL`, or `URL WEIGHT`.
fn of_upstream(upstream: &str) -> String {
    match upstream.split_once(' ') {
        None => format!("{upstream:?}"),
        Some((url, weight)) => format!("{{ url = {url:?}, weight = {weight} }}"),
    }
}

/// A server with one loop, so that all requests share one order of turns.
fn setup(upstreams: &[&str], more: &str) -> Setup {
    Setup::new()
        .server("threads = 1")
        .server("idle_grace = \"0s\"")
        .app(HOST, &proxy(upstreams, more))
}

fn start(upstreams: &[&Upstream], more: &str) -> Server {
    let urls: Vec<_> = upstreams.iter().map(|upstream| upstream.url()).collect();
    setup(&urls, more).start()
}

/// An upstream that answers every request, also checks, with this name.
fn named(name: &'static str) -> Upstream {
    Upstream::tcp(move |asked, line| answer(asked, line, 200, name))
}

/// Answers, and closes the connection if that was asked for.
fn answer(asked: &Asked, line: &mut Line, status: u16, content: &str) {
    line.answer(status, content);
    if asked.all("Connection").contains(&"close") {
        line.close();
    }
}

/// An upstream that answers checks with the current value of `status`, and all else with its name.
fn checked(name: &'static str, status: &Arc<AtomicU16>) -> Upstream {
    let status = Arc::clone(status);
    Upstream::tcp(move |asked, line| {
        let status = if is_check(asked) { status.load(SeqCst) } else { 200 };
        answer(asked, line, status, name);
    })
}

fn is_check(asked: &Asked) -> bool {
    asked.all("User-Agent") == ["tidegate-health"]
}

/// The number of requests that are not checks.
fn served(upstream: &Upstream) -> usize {
    upstream.asked().iter().filter(|asked| !is_check(asked)).count()
}

fn checks(upstream: &Upstream) -> usize {
    upstream.asked().iter().filter(|asked| is_check(asked)).count()
}

/// An upstream whose checks wait until the test decides how they end.
struct ByHand {
    upstream: Upstream,
    statuses: mpsc::Sender<u16>,
    ended: AtomicUsize,
}

impl ByHand {
    fn new() -> Self {
        let (statuses, said) = mpsc::channel();
        let said = Mutex::new(said);
        let upstream = Upstream::tcp(move |asked, line| {
            let next = || said.lock().expect("no panic").recv_timeout(2 * PATIENCE);
            let status = if is_check(asked) { next().unwrap_or(599) } else { 200 };
            answer(asked, line, status, "by hand");
        });
        Self { upstream, statuses, ended: AtomicUsize::new(0) }
    }

    /// Ends the check that is under way, and waits for the next one: by then the result counts.
    fn end_check(&self, status: u16) {
        let nth = self.ended.fetch_add(1, SeqCst) + 1;
        self.wait_checks(nth);
        self.statuses.send(status).expect("the upstream is there");
        self.wait_checks(nth + 1);
    }

    /// The app has a new life: ends the old life's check, so that the next check is the new life's.
    fn begin_new_life(&self) {
        let nth = self.ended.fetch_add(1, SeqCst) + 1;
        self.wait_checks(nth + 1);
        self.statuses.send(599).expect("the upstream is there");
    }

    fn wait_checks(&self, count: usize) {
        let came = wait_until(PATIENCE, || checks(&self.upstream) >= count);
        assert!(came, "{} of {count} checks", checks(&self.upstream));
    }
}

/// An address that refuses connections and that no other test uses.
fn refusing() -> String {
    let listener = TcpListener::bind("127.0.0.3:0").expect("a free port");
    format!("http://{}", listener.local_addr().expect("an address"))
}

fn row(server: &Server) -> Value {
    server.admin().get(&format!("/apps/{HOST}"))
}

/// The row of an upstream, by its place in the config.
fn upstream_row(server: &Server, index: usize) -> Value {
    row(server)["upstreams"][index].clone()
}

/// Waits until an upstream has this state and reason.
fn wait_state(server: &Server, index: usize, state: &str, reason: Option<&str>) {
    let mut found = Value::Null;
    let reached = wait_until(PATIENCE, || {
        found = upstream_row(server, index);
        found["state"] == state && found["reason"].as_str() == reason
    });
    assert!(reached, "not {state}, {reason:?}: {found}");
}

/// The events of this name.
fn events(server: &Server, name: &str) -> Vec<Event> {
    server.events().into_iter().filter(|event| event.name == name).collect()
}

/// Waits for this many events of this name, and returns the last. An event is logged a little later
/// than the state changes.
fn wait_events(server: &Server, name: &str, count: usize) -> Event {
    let mut found = Vec::new();
    let reached = wait_until(PATIENCE, || {
        found = events(server, name);
        found.len() >= count
    });
    assert!(reached && found.len() == count, "{name}: {} of {count}", found.len());
    found.pop().expect("an event")
}

fn assert_event(event: &Event, upstream: &str) {
    assert_eq!(event.field("host"), Some(HOST), "{event:?}");
    assert_eq!(event.field("upstream"), Some(upstream), "{event:?}");
}

/// Drains or resumes an upstream.
fn set(server: &Server, what: &str, upstream: &Upstream) {
    server.admin().post(&format!("/apps/{HOST}/upstreams/{what}?url={}", upstream.url()));
}

/// Which upstream answers each of this many requests on one connection.
fn turns(server: &Server, count: usize) -> Vec<String> {
    let mut client = server.connect();
    (0..count).map(|_| ask(&mut client, GET)).collect()
}

/// Which upstream answers a request.
fn ask(client: &mut Client, request: &str) -> String {
    let response = client.exchange(request);
    assert_eq!(response.status, 200, "{response:?}");
    response.text().to_owned()
}

fn share(turns: &[String], name: &str) -> usize {
    turns.iter().filter(|turn| *turn == name).count()
}

// Shares.

#[test]
fn turns_go_by_weight_exactly() {
    let (a, b, c) = (named("a"), named("b"), named("c"));
    let weighted = [format!("{} 3", a.url()), b.url().to_owned(), format!("{} 2", c.url())];
    let weighted: Vec<&str> = weighted.iter().map(String::as_str).collect();
    let server = setup(&weighted, "").start();
    for cycle in turns(&server, 60).chunks(6) {
        let shares = ["a", "b", "c"].map(|name| share(cycle, name));
        assert_eq!(shares, [3, 1, 2], "{cycle:?}");
        assert!(cycle.windows(3).all(|three| share(three, "a") < 3), "not spread: {cycle:?}");
    }
    // The order of turns continues over connections.
    let singles: Vec<_> = (0..12).flat_map(|_| turns(&server, 1)).collect();
    assert_eq!(["a", "b", "c"].map(|name| share(&singles, name)), [6, 2, 4], "{singles:?}");
    let requests: Vec<_> = (0..3).map(|index| upstream_row(&server, index)).collect();
    let requests: Vec<_> = requests.iter().map(|row| (&row["requests"], &row["weight"])).collect();
    let expected = [(36, 3), (12, 1), (24, 2)].map(|(n, weight)| (json!(n), json!(weight)));
    assert_eq!(requests, expected.each_ref().map(|(n, weight)| (n, weight)));
}

#[test]
fn turns_of_the_remaining_upstreams_go_by_weight_too() {
    let (a, b, c) = (named("a"), named("b"), named("c"));
    let server = start(&[&a, &b, &c], "");
    turns(&server, 4);
    set(&server, "drain", &b);
    wait_state(&server, 1, "drained", Some("drained by an operator"));
    // Credits from the old order are used up first.
    turns(&server, 3);
    let left = turns(&server, 20);
    assert_eq!((share(&left, "a"), share(&left, "c")), (10, 10), "{left:?}");
    set(&server, "resume", &b);
    wait_state(&server, 1, "up", None);
    turns(&server, 3);
    let all = turns(&server, 30);
    assert_eq!(["a", "b", "c"].map(|name| share(&all, name)), [10; 3], "{all:?}");
}

#[test]
fn the_least_active_is_chosen_and_a_busy_one_is_avoided() {
    let gate = Gate::default();
    let slow = Upstream::tcp({
        let gate = gate.clone();
        move |_, line| {
            gate.pass();
            line.answer(200, "slow");
        }
    });
    let quick = named("quick");
    let server = start(&[&slow, &quick], "balance = \"least_active\"");
    let mut held = server.connect();
    held.send(GET);
    slow.wait_asked(1);
    assert_eq!(share(&turns(&server, 50), "quick"), 50);
    assert_eq!(upstream_row(&server, 0)["active"], 1);
    gate.open();
    assert_eq!(held.response().text(), "slow");
    // No upstream is active: they take turns.
    let turns = turns(&server, 20);
    assert_eq!((share(&turns, "slow"), share(&turns, "quick")), (10, 10), "{turns:?}");
}

#[test]
fn the_least_active_is_counted_by_weight() {
    let gate = Gate::default();
    let gated = || {
        let gate = gate.clone();
        Upstream::tcp(move |_, line| {
            gate.pass();
            line.answer(200, "late");
        })
    };
    let (large, small) = (gated(), gated());
    let large_url = format!("{} 3", large.url());
    let server = setup(&[&large_url, small.url()], "balance = \"least_active\"").start();
    let mut held: Vec<Client> = (0..8).map(|_| server.connect()).collect();
    held.iter_mut().for_each(|client| client.send(GET));
    let all = wait_until(PATIENCE, || large.asked().len() + small.asked().len() == 8);
    assert!(all, "{} and {}", large.asked().len(), small.asked().len());
    assert_eq!((large.asked().len(), small.asked().len()), (6, 2));
    let active = [0, 1].map(|index| upstream_row(&server, index)["active"].clone());
    assert_eq!(active, [6, 2]);
    gate.open();
    held.iter_mut().for_each(|client| assert_eq!(client.response().text(), "late"));
    let idle = wait_until(PATIENCE, || upstream_row(&server, 0)["active"] == 0);
    assert!(idle && upstream_row(&server, 1)["active"] == 0, "{}", row(&server));
}

// Keys.

/// Which upstream answers each of many keys, each requested twice on new connections.
fn owners(server: &Server, field: &str) -> BTreeMap<String, String> {
    let owner = |n: usize| {
        // Keys are numbers within a line such as `X-Forwarded-For: 10.0.0.KEY`.
        let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{field}{n}\r\n\r\n");
        let first = ask(&mut server.connect(), &request);
        assert_eq!(ask(&mut server.connect(), &request), first, "key {n} moves");
        (n.to_string(), first)
    };
    (1..=60).map(owner).collect()
}

#[test]
fn a_key_stays_with_its_upstream_and_only_the_keys_of_an_upstream_that_goes_move() {
    for (by, field) in [
        ("client", "X-Forwarded-For: 10.0.0."),
        ("header:X-User", "x-user: user-"),
        ("cookie:session", "Cookie: other=1; session=s"),
    ] {
        let upstreams = [named("a"), named("b"), named("c")];
        let more =
            format!("balance = \"hash\", hash_by = \"{by}\", trusted_proxies = [\"127.0.0.0/8\"]");
        let server = start(&upstreams.each_ref(), &more);
        let before = owners(&server, field);
        for (upstream, name) in upstreams.iter().zip(["a", "b", "c"]) {
            assert!(
                before.values().any(|owner| owner == name),
                "{by}: none for {name}: {before:?}"
            );
            set(&server, "drain", upstream);
            let without = owners(&server, field);
            for (key, owner) in &before {
                let now = &without[key];
                assert!(now != name && (owner == name || owner == now), "{by} {key}: {now}");
            }
            set(&server, "resume", upstream);
        }
        assert_eq!(owners(&server, field), before, "{by}");
    }
}

#[test]
fn a_stranger_cannot_choose_the_address_of_the_client() {
    let (a, b) = (named("a"), named("b"));
    let server = start(&[&a, &b], "balance = \"hash\"");
    let owners = owners(&server, "X-Forwarded-For: 10.0.0.");
    let first = owners.values().next().expect("one");
    assert!(owners.values().all(|owner| owner == first), "{owners:?}");
}

#[test]
fn requests_without_a_key_take_turns() {
    let (a, b) = (named("a"), named("b"));
    let server = start(&[&a, &b], "balance = \"hash\", hash_by = \"header:X-User\"");
    let turns = turns(&server, 20);
    assert_eq!((share(&turns, "a"), share(&turns, "b")), (10, 10), "{turns:?}");
}

#[test]
fn a_key_whose_upstream_does_not_answer_moves_for_that_request() {
    let good = named("good");
    let bad = Upstream::tcp(|_, line| line.reset());
    let more = "balance = \"hash\", hash_by = \"header:X-User\", eject_after = 0";
    let server = start(&[&good, &bad], more);
    assert!(owners(&server, "X-User: ").values().all(|owner| owner == "good"));
    let asked = bad.asked().len();
    assert!((2..120).contains(&asked), "{asked} of 120 requests were for the bad one");
}

// Slow start.

/// Brings an upstream back in each possible way, and checks its share then.
fn check_slow_start(slow_start: &str, check: fn(&Server)) {
    let more = format!("slow_start = \"{slow_start}\"");
    // By an operator.
    let (steady, back) = (named("steady"), named("back"));
    let server = start(&[&steady, &back], &more);
    assert_eq!(share(&turns(&server, 20), "back"), 10, "no start is slow at first");
    set(&server, "drain", &back);
    assert_eq!(share(&turns(&server, 20), "back"), 0);
    set(&server, "resume", &back);
    check(&server);
    // By a check.
    let status = Arc::new(AtomicU16::new(200));
    let (steady, back) = (named("steady"), checked("back", &status));
    let server = start(&[&steady, &back], &format!("{more}, {HEALTH}"));
    status.store(500, SeqCst);
    wait_state(&server, 1, "down", Some("status 500"));
    status.store(200, SeqCst);
    wait_state(&server, 1, "up", None);
    check(&server);
    // By the end of an ejection.
    let is_well = Gate::default();
    let (steady, back) = (named("steady"), resetting(&is_well));
    let server = start(&[&steady, &back], &format!("{more}, eject_for = \"50ms\""));
    assert_eq!(share(&turns(&server, 6), "steady"), 6);
    wait_events(&server, "upstream_ejected", 1);
    is_well.open();
    wait_state(&server, 1, "up", None);
    check(&server);
}

#[test]
fn a_returning_upstream_begins_with_a_small_share() {
    check_slow_start("1h", |server| {
        let turns = turns(server, 100);
        assert!(share(&turns, "back") <= 5, "{} of 100", share(&turns, "back"));
    });
}

#[test]
fn the_share_of_a_returning_upstream_grows_to_the_whole() {
    check_slow_start("2s", |server| {
        let mut shares = Vec::new();
        let mut client = server.connect();
        let is_whole = wait_until(PATIENCE, || {
            let turns: Vec<_> = (0..20).map(|_| ask(&mut client, GET)).collect();
            shares.push(share(&turns, "back"));
            shares.last() == Some(&10)
        });
        assert!(is_whole, "{shares:?}");
        // A share is rounded, and weights change within a cycle of turns.
        let grows = shares.iter().scan(0, |most: &mut usize, share| {
            *most = (*most).max(*share);
            Some(*share + 2 >= *most)
        });
        assert!(grows.into_iter().all(|grows| grows), "{shares:?}");
    });
}

#[test]
fn a_slow_start_of_the_only_upstream_serves_everything() {
    let only = named("only");
    for balance in ["round_robin", "least_active", "hash"] {
        let server = start(&[&only], &format!("slow_start = \"1h\", balance = \"{balance}\""));
        set(&server, "drain", &only);
        let none = server.connect().exchange(GET);
        assert_eq!(none.status, 503);
        assert_eq!(none.text(), "{\"error\":\"All upstreams are drained\"}");
        set(&server, "resume", &only);
        assert_eq!(share(&turns(&server, 20), "only"), 20, "{balance}");
    }
}

// Checks.

#[test]
fn an_upstream_that_fails_its_checks_goes_and_comes_back_without_a_lost_request() {
    let status = Arc::new(AtomicU16::new(200));
    let (a, b) = (checked("page", &status), named("page"));
    let server = Setup::new().app(HOST, &proxy(&[a.url(), b.url()], HEALTH)).start();
    let load = Load::start(LoadKind::KeepAlive, 4, server.address(), HOST, "page");
    load.wait_answered(200);
    for round in 1..=3 {
        assert!(wait_until(PATIENCE, || served(&a) >= 50 * round), "{} requests", served(&a));
        status.store(500, SeqCst);
        wait_state(&server, 0, "down", Some("status 500"));
        let down = wait_events(&server, "upstream_down", round);
        assert_event(&down, a.url());
        assert_eq!((down.level.as_str(), down.field("reason")), ("WARN", Some("status 500")));
        let (before, answered) = (served(&a), served(&b));
        assert!(wait_until(PATIENCE, || served(&b) >= answered + 200), "the other is asked");
        // At most one request of each connection was under way.
        assert!(served(&a) <= before + 4, "{before}, then {}", served(&a));
        status.store(200, SeqCst);
        wait_state(&server, 0, "up", None);
        assert_event(&wait_events(&server, "upstream_up", round), a.url());
        let before = served(&a);
        assert!(wait_until(PATIENCE, || served(&a) >= before + 50), "it is asked again");
    }
    let tally = load.end();
    assert!(tally.lost.is_empty(), "{:?}", tally.lost);
    assert_eq!(upstream_row(&server, 1)["state"], "up");
}

#[test]
fn rise_and_fall_are_counted_in_a_row() {
    let by_hand = ByHand::new();
    let server = start(&[&by_hand.upstream], HEALTH);
    let state_after = |status: u16| {
        by_hand.end_check(status);
        upstream_row(&server, 0)["state"].as_str().expect("a state").to_owned()
    };
    for (status, state) in [
        (200, "up"),
        (500, "up"),
        (501, "up"),
        (200, "up"),
        (502, "up"),
        (503, "up"),
        (504, "down"),
        (200, "down"),
        (505, "down"),
        (204, "down"),
        (299, "up"),
        (300, "up"),
        (301, "up"),
        (404, "down"),
    ] {
        assert_eq!(state_after(status), state, "after {status}");
    }
    wait_events(&server, "upstream_up", 1);
    wait_events(&server, "upstream_down", 2);
    let reasons: Vec<_> = events(&server, "upstream_down")
        .iter()
        .map(|event| event.field("reason").expect("a reason").to_owned())
        .collect();
    assert_eq!(reasons, ["status 504", "status 404"]);
    assert_eq!(upstream_row(&server, 0)["reason"], "status 404");
}

#[test]
fn until_a_check_has_passed_each_result_decides_alone() {
    let by_hand = ByHand::new();
    let server = start(&[&by_hand.upstream], HEALTH);
    by_hand.upstream.wait_asked(1);
    assert_eq!(upstream_row(&server, 0)["state"], "up");
    for status in [500, 501] {
        by_hand.end_check(status);
        assert_eq!(upstream_row(&server, 0)["state"], "down");
        assert_eq!(server.connect().exchange(GET).status, 503);
    }
    by_hand.end_check(200);
    assert_eq!(upstream_row(&server, 0)["state"], "up");
    assert_eq!(ask(&mut server.connect(), GET), "by hand");
    by_hand.end_check(500);
    assert_eq!(upstream_row(&server, 0)["state"], "up");
}

#[test]
fn a_check_sends_the_request_that_the_config_says() {
    for (more, own, host) in [
        ("", "", None),
        ("host = \"upstream\",", "", None),
        ("host = \"app.internal:81\",", "", Some("app.internal:81")),
        ("", "host = \"check.internal\",", Some("check.internal")),
        ("host = \"app.internal\",", "host = \"check.internal:82\",", Some("check.internal:82")),
    ] {
        let upstream = named("ok");
        let health = format!("health = {{ {own} path = \"/health/z?a=b\", interval = \"100ms\" }}");
        let server = start(&[&upstream], &format!("{more} {health}"));
        upstream.wait_asked(1);
        let authority = upstream.address().to_string();
        let host = host.unwrap_or(&authority);
        assert_eq!(
            upstream.last().head,
            format!(
                "GET /health/z?a=b HTTP/1.1\r\nHost: {host}\r\nUser-Agent: tidegate-health\r\n\
                 Accept: */*\r\nConnection: close\r\n\r\n"
            )
        );
        drop(server);
    }
}

#[test]
fn the_statuses_that_are_good_are_those_of_the_config() {
    for (good, status, state) in [
        ("[200, 399]", 302, "up"),
        ("[404, 404]", 404, "up"),
        ("[204, 204]", 200, "down"),
        ("[200, 299]", 300, "down"),
    ] {
        let by_hand = ByHand::new();
        let health = HEALTH.replace("rise", &format!("status = {good}, rise"));
        let server = start(&[&by_hand.upstream], &health);
        by_hand.end_check(status);
        let row = upstream_row(&server, 0);
        assert_eq!(row["state"], state, "{good} {status}");
        assert!(state == "up" || row["reason"] == json!(format!("status {status}")), "{row}");
    }
}

#[test]
fn an_upstream_that_fails_its_checks_is_down_with_a_reason() {
    let bound = |backlog: &TcpListener| format!("http://{}", backlog.local_addr().expect("it"));
    let unaccepted = TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = Upstream::tcp(|_, line| drop(line.read_to_end()));
    let closing = Upstream::tcp(|_, line| line.close());
    let garbled = Upstream::tcp(|_, line| {
        line.send("220 mail.test ESMTP\r\n");
        line.close();
    });
    let refusing = refusing();
    let good = named("good");
    let urls = [
        &bound(&unaccepted),
        silent.url(),
        closing.url(),
        garbled.url(),
        &refusing,
        "unix:/nonexistent/up.sock",
        good.url(),
    ];
    let server = setup(&urls, &HEALTH.replace("10s", "2s")).start();
    let reasons = [
        "timeout",
        "timeout",
        "connection closed without an answer",
        "no HTTP answer: malformed status line",
        REFUSED,
        "connect: No such file or directory (os error 2)",
    ];
    for (index, reason) in reasons.iter().enumerate() {
        wait_state(&server, index, "down", Some(reason));
    }
    assert_eq!(share(&turns(&server, 30), "good"), 30);
    // A POST is never sent twice; here it does not need to be.
    assert!((0..10).all(|_| ask(&mut server.connect(), POST) == "good"));
    wait_events(&server, "upstream_down", reasons.len());
}

#[test]
fn an_upstream_that_appears_is_taken_in() {
    let good = named("page");
    let url = refusing();
    let server = Setup::new().app(HOST, &proxy(&[good.url(), &url], HEALTH)).start();
    wait_state(&server, 1, "down", Some(REFUSED));
    let load = Load::start(LoadKind::NewConnections, 2, server.address(), HOST, "page");
    let address = url.strip_prefix("http://").and_then(|it| it.parse().ok()).expect("an address");
    let late = Upstream::at(address, |asked, line| answer(asked, line, 200, "page"));
    wait_state(&server, 1, "up", None);
    assert!(wait_until(PATIENCE, || served(&late) >= 50), "{} requests", served(&late));
    late.kill();
    wait_state(&server, 1, "down", Some(REFUSED));
    let tally = load.end();
    assert!(tally.lost.is_empty(), "{:?}", tally.lost);
}

#[test]
fn an_upstream_on_a_unix_socket_is_checked() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("up.sock");
    let server = setup(&[&format!("unix:{}", path.display())], HEALTH).start();
    wait_state(&server, 0, "down", Some("connect: No such file or directory (os error 2)"));
    assert_eq!(server.connect().exchange(GET).status, 503);
    let upstream = Upstream::unix(&path, |asked, line| answer(asked, line, 200, "unix"));
    wait_state(&server, 0, "up", None);
    assert_eq!(ask(&mut server.connect(), GET), "unix");
    let check = upstream.asked().into_iter().find(is_check).expect("a check");
    assert_eq!(check.all("Host"), ["localhost"]);
    upstream.kill();
    wait_state(&server, 0, "down", Some(REFUSED));
}

#[test]
fn a_check_is_good_although_its_connection_stays_open() {
    let upstream = Upstream::tcp(|_, line| line.answer(200, "stays"));
    let server = start(&[&upstream], &HEALTH.replace("10s", "1s"));
    assert!(wait_until(PATIENCE, || checks(&upstream) >= 3), "{} checks", checks(&upstream));
    assert_eq!(upstream_row(&server, 0)["state"], "up");
    assert!(events(&server, "upstream_down").is_empty());
}

#[test]
fn all_down_is_a_503_at_once_and_the_row_says_why() {
    let status = Arc::new(AtomicU16::new(503));
    let sick = checked("sick", &status);
    let refusing = refusing();
    let server = setup(&[sick.url(), &refusing], HEALTH).start();
    wait_state(&server, 0, "down", Some("status 503"));
    wait_state(&server, 1, "down", Some(REFUSED));
    let expect = |response: &Response| {
        assert_eq!(response.status, 503, "{}", response.head);
        assert_eq!(response.field("Content-Type"), Some("application/json"));
        assert_eq!(response.text(), "{\"error\":\"All upstreams are down\"}");
    };
    let mut client = server.connect();
    for _ in 0..3 {
        expect(&client.exchange(GET));
    }
    expect(&server.connect().exchange(POST));
    // The 503 does not wait for content that no upstream will get.
    let mut upload = server.connect();
    upload.send("POST / HTTP/1.1\r\nHost: p.test\r\nContent-Length: 100000\r\n\r\nbegin");
    expect(&upload.response());
    assert_eq!(served(&sick), 0);
    // A drained upstream is not tried either.
    set(&server, "drain", &sick);
    expect(&client.exchange(GET));
    set(&server, "resume", &sick);
    let config = server.dir().join("config.toml");
    let config = config.to_str().expect("a path");
    let (code, printed) = support::run(&["app", HOST, "--config", config, "--json"]);
    assert_eq!(code, Some(0), "{printed}");
    let app: Value = serde_json::from_str(&printed).expect("JSON");
    let upstreams = app["upstreams"].as_array().expect("upstreams");
    let states: Vec<_> = upstreams.iter().map(|row| (&row["state"], &row["reason"])).collect();
    let down = json!("down");
    assert_eq!(states, [(&down, &json!("status 503")), (&down, &json!(REFUSED))]);
    status.store(200, SeqCst);
    wait_state(&server, 0, "up", None);
    assert_eq!(ask(&mut client, GET), "sick");
}

#[test]
fn checks_end_with_their_app() {
    let (gone, stays) = (named("gone"), named("stays"));
    let server =
        setup(&[gone.url()], HEALTH).app("other.test", &proxy(&[stays.url()], HEALTH)).start();
    // Idle connections that refer to the app.
    let mut client = server.connect();
    assert_eq!(ask(&mut client, GET), "gone");
    gone.wait_asked(4);
    let drain = server.admin().call("DELETE", &format!("/apps/{HOST}"), "").json();
    assert_eq!(server.admin().wait_drain(&drain["id"])["verdict"], "drained");
    // A check may be in flight when the app is removed, and another may just have begun.
    let (before, others) = (checks(&gone), checks(&stays));
    let went_on = wait_until(PATIENCE, || checks(&stays) >= others + 6);
    assert!(went_on, "{} checks of the other app", checks(&stays));
    assert!(checks(&gone) <= before + 2, "{before}, then {}", checks(&gone));
    assert_eq!(client.exchange(GET).status, 404);
}

fn reload(server: &Server, setup: &Setup) -> Value {
    server.rewrite(&setup.text());
    server.admin().post("/reload")
}

#[test]
fn a_reload_changes_checks() {
    let upstream = Upstream::tcp(|asked, line| {
        let status = if asked.target() == CHECK && is_check(asked) { 500 } else { 200 };
        answer(asked, line, status, "ok");
    });
    let urls = [upstream.url()];
    let server = setup(&urls, HEALTH).start();
    wait_state(&server, 0, "down", Some("status 500"));
    // Another path, whose checks pass.
    let done = reload(&server, &setup(&urls, &HEALTH.replace(CHECK, "/other")));
    assert_eq!(done["changed"], json!([HOST]), "{done}");
    let of = |path: &str| upstream.asked().iter().filter(|asked| asked.target() == path).count();
    let old = of(CHECK);
    assert!(wait_until(PATIENCE, || of("/other") >= 4), "{} new checks", of("/other"));
    assert!(of(CHECK) <= old + 1, "{old} old checks, then {}", of(CHECK));
    wait_state(&server, 0, "up", None);
    assert_eq!(ask(&mut server.connect(), GET), "ok");
    // The first path again, with its status counted as good.
    reload(&server, &setup(&urls, &HEALTH.replace("rise", "status = [500, 500], rise")));
    let old = of(CHECK);
    assert!(wait_until(PATIENCE, || of(CHECK) >= old + 3), "{old}, then {}", of(CHECK));
    assert_eq!(upstream_row(&server, 0)["state"], "up");
    // And a bad one.
    reload(&server, &setup(&urls, HEALTH));
    wait_state(&server, 0, "down", Some("status 500"));
    // No checks: nothing says that it is down.
    reload(&server, &setup(&urls, ""));
    wait_state(&server, 0, "up", None);
    assert_eq!(ask(&mut server.connect(), GET), "ok");
}

#[test]
fn a_reload_that_does_not_change_the_app_leaves_its_checks() {
    let status = Arc::new(AtomicU16::new(500));
    let (sick, well) = (checked("sick", &status), named("well"));
    let urls = [sick.url(), well.url()];
    let server = setup(&urls, HEALTH).start();
    wait_state(&server, 0, "down", Some("status 500"));
    for round in 0..3 {
        let more = setup(&urls, HEALTH).named_app(&format!("{round}.test"));
        let done = reload(&server, &more);
        assert_eq!((&done["unchanged"], &done["changed"]), (&json!(1), &json!([])), "{done}");
        assert_eq!(upstream_row(&server, 0)["state"], "down");
        assert_eq!(share(&turns(&server, 10), "well"), 10);
    }
    wait_events(&server, "upstream_down", 1);
    status.store(200, SeqCst);
    wait_state(&server, 0, "up", None);
}

#[test]
fn a_new_life_knows_what_the_checks_of_the_old_one_found() {
    let (by_hand, well) = (ByHand::new(), named("well"));
    let urls = [by_hand.upstream.url(), well.url()];
    let server = setup(&urls, HEALTH).start();
    for status in [200, 500, 501, 502] {
        by_hand.end_check(status);
    }
    let down = "status 502";
    wait_state(&server, 0, "down", Some(down));
    let table = json!({ "proxy": {
        "upstreams": urls, "retries": 3,
        "health": { "path": CHECK, "interval": "100ms", "timeout": "10s", "rise": 2, "fall": 3 },
    } });
    let changes: [&dyn Fn(); 3] = [
        &|| drop(reload(&server, &setup(&urls, &format!("{HEALTH}, retries = 1")))),
        &|| drop(server.admin().put(&format!("/apps/{HOST}"), &table).json()),
        &|| {
            let drain = server.admin().post(&format!("/apps/{HOST}/drain"));
            server.admin().wait_drain(&drain["id"]);
            server.admin().post(&format!("/apps/{HOST}/resume"));
        },
    ];
    for change in changes {
        change();
        // No check of the new life has ended.
        let row = upstream_row(&server, 0);
        assert_eq!(row["state"], "down", "{row}");
        // The reason is either the old one or that of the first check after this change.
        assert!([down, "status 599"].contains(&row["reason"].as_str().unwrap_or("")), "{row}");
        assert_eq!(share(&turns(&server, 10), "well"), 10);
        by_hand.begin_new_life();
    }
    by_hand.end_check(200);
    assert_eq!(upstream_row(&server, 0)["state"], "down", "rise is two");
    by_hand.end_check(200);
    assert_eq!(upstream_row(&server, 0)["state"], "up");
    // An upstream that was up is not new either.
    reload(&server, &setup(&urls, HEALTH));
    by_hand.begin_new_life();
    for (status, state) in [(500, "up"), (501, "up"), (503, "down")] {
        by_hand.end_check(status);
        assert_eq!(upstream_row(&server, 0)["state"], state, "{status}");
    }
    // Without checks nothing would ever bring it back.
    reload(&server, &setup(&urls, ""));
    wait_state(&server, 0, "up", None);
}

#[test]
fn a_new_life_leaves_out_ejected_and_drained_upstreams() {
    let bad = Upstream::tcp(|_, line| line.reset());
    let (drained, good) = (named("drained"), named("good"));
    let urls = [bad.url(), drained.url(), good.url()];
    let more = "eject_after = 4, eject_for = \"1h\"";
    let server = setup(&urls, more).start();
    turns(&server, 40);
    wait_state(&server, 0, "ejected", Some("failures in a row"));
    set(&server, "drain", &drained);
    let (asked, out) = (bad.asked().len(), served(&drained));
    // In another order, and with a new upstream.
    let other = named("other");
    let urls = [good.url(), other.url(), drained.url(), bad.url()];
    let done = reload(&server, &setup(&urls, more));
    assert_eq!(done["changed"], json!([HOST]), "{done}");
    let states = [0, 1, 2, 3].map(|index| upstream_row(&server, index)["state"].clone());
    assert_eq!(states, ["up", "up", "drained", "ejected"]);
    let shares = turns(&server, 20);
    assert_eq!((share(&shares, "good"), share(&shares, "other")), (10, 10), "{shares:?}");
    assert_eq!((bad.asked().len(), served(&drained)), (asked, out));
    set(&server, "resume", &drained);
    assert_eq!(share(&turns(&server, 30), "drained"), 10);
    // If the new config does not eject, the upstream is back.
    reload(&server, &setup(&urls, "eject_after = 0"));
    assert_eq!(upstream_row(&server, 3)["state"], "up");
}

#[test]
fn failures_in_a_row_are_counted_over_lives() {
    let (bad, good) = (Upstream::tcp(|_, line| line.reset()), named("good"));
    let urls = [bad.url(), good.url()];
    let more = "eject_after = 4, eject_for = \"1h\"";
    let server = setup(&urls, more).start();
    turns(&server, 5);
    assert_eq!((bad.asked().len(), upstream_row(&server, 0)["state"].as_str()), (3, Some("up")));
    reload(&server, &setup(&urls, &format!("{more}, retries = 1")));
    turns(&server, 10);
    assert_eq!(upstream_row(&server, 0)["state"], "ejected");
    assert_eq!(bad.asked().len(), 4);
}

#[test]
fn an_app_that_is_drained_and_resumed_is_still_checked() {
    let status = Arc::new(AtomicU16::new(200));
    let upstream = checked("ok", &status);
    let server = start(&[&upstream], HEALTH);
    let drain = server.admin().post(&format!("/apps/{HOST}/drain"));
    server.admin().wait_drain(&drain["id"]);
    server.admin().post(&format!("/apps/{HOST}/resume"));
    assert_eq!(ask(&mut server.connect(), GET), "ok");
    status.store(500, SeqCst);
    wait_state(&server, 0, "down", Some("status 500"));
    assert_eq!(server.connect().exchange(GET).status, 503);
    status.store(200, SeqCst);
    wait_state(&server, 0, "up", None);
}

// Ejection.

/// Resets every connection until the gate is open.
fn resetting(is_well: &Gate) -> Upstream {
    let is_well = is_well.clone();
    Upstream::tcp(move |_, line| {
        if is_well.passes_within(Duration::ZERO) {
            line.answer(200, "back");
        } else {
            line.reset();
        }
    })
}

#[test]
fn failures_in_a_row_eject_an_upstream() {
    let (bad, good) = (Upstream::tcp(|_, line| line.reset()), named("good"));
    let server = start(&[&bad, &good], "eject_after = 4, eject_for = \"1h\"");
    assert_eq!(share(&turns(&server, 40), "good"), 40);
    assert_eq!(bad.asked().len(), 4);
    let ejected = wait_events(&server, "upstream_ejected", 1);
    assert_event(&ejected, bad.url());
    assert_eq!(ejected.level, "WARN");
    assert_eq!(ejected.field("reason"), Some("reset_before_answer"));
    assert_eq!(ejected.count("eject_for_ms"), 3_600_000);
    let row = upstream_row(&server, 0);
    assert_eq!(row["state"], "ejected");
    assert_eq!((&row["reason"], &row["failures"]), (&json!("failures in a row"), &json!(4)));
    // A POST does not need to be sent twice.
    assert_eq!((0..10).filter(|_| ask(&mut server.connect(), POST) == "good").count(), 10);
    assert_eq!(bad.asked().len(), 4);
}

#[test]
fn an_ejected_upstream_comes_back() {
    let is_well = Gate::default();
    let (bad, good) = (resetting(&is_well), named("good"));
    let server = start(&[&bad, &good], "eject_for = \"100ms\"");
    assert_eq!(share(&turns(&server, 6), "good"), 6);
    wait_events(&server, "upstream_ejected", 1);
    is_well.open();
    wait_state(&server, 0, "up", None);
    assert_eq!(share(&turns(&server, 10), "back"), 5);
    wait_events(&server, "upstream_ejected", 1);
}

#[test]
fn an_answer_ends_a_row_of_failures() {
    // Two failures and a success, again and again.
    let flaky = Upstream::tcp({
        let nth = AtomicUsize::new(0);
        move |_, line| match nth.fetch_add(1, SeqCst) % 3 {
            2 => line.answer(200, "flaky"),
            _ => line.reset(),
        }
    });
    let good = named("good");
    let server = start(&[&flaky, &good], "eject_after = 3, eject_for = \"1h\"");
    let turns = turns(&server, 60);
    assert_eq!(share(&turns, "flaky") + share(&turns, "good"), 60);
    assert!(flaky.asked().len() >= 29, "{}", flaky.asked().len());
    assert_eq!(share(&turns, "flaky"), flaky.asked().len() / 3);
    assert_eq!(upstream_row(&server, 0)["state"], "up");
    assert!(events(&server, "upstream_ejected").is_empty());
}

#[test]
fn every_way_of_failing_ejects() {
    let silent = Upstream::tcp(|_, line| drop(line.read_to_end()));
    let garbled = Upstream::tcp(|_, line| {
        line.send("what\r\n\r\n");
        line.close();
    });
    let refusing = refusing();
    // If bytes of an answer came, the request is not sent again.
    for (url, reason, first) in [
        (silent.url(), "answer_timeout", 200),
        (garbled.url(), "bad_head", 502),
        (&*refusing, "connect_refused", 200),
        ("unix:/nonexistent/up.sock", "connect_failed", 200),
    ] {
        let good = named("good");
        let more = "eject_after = 1, eject_for = \"1h\", answer_timeout = \"2s\"";
        let server = setup(&[url, good.url()], more).start();
        assert_eq!(server.connect().exchange(GET).status, first, "{url}");
        assert_eq!(share(&turns(&server, 4), "good"), 4, "{url}");
        let ejected = wait_events(&server, "upstream_ejected", 1);
        assert_event(&ejected, url);
        assert_eq!(ejected.field("reason"), Some(reason));
        assert_eq!(upstream_row(&server, 0)["state"], "ejected");
    }
}

#[test]
fn the_last_upstream_is_never_ejected() {
    let bad = Upstream::tcp(|_, line| line.reset());
    let server = start(&[&bad], "eject_after = 1, eject_for = \"1h\"");
    for nth in 1..=5 {
        assert_eq!(server.connect().exchange(GET).status, 502);
        assert_eq!(
            (bad.asked().len(), upstream_row(&server, 0)["state"].as_str()),
            (nth, Some("up"))
        );
    }
    assert_eq!(upstream_row(&server, 0)["failures"], 5);
    assert!(events(&server, "upstream_ejected").is_empty());
    // If both fail, one stays: an ejected upstream is better than none.
    let other = Upstream::tcp(|_, line| line.reset());
    let server = start(&[&bad, &other], "eject_after = 1, eject_for = \"1h\"");
    assert_eq!((0..5).filter(|_| server.connect().exchange(GET).status == 502).count(), 5);
    assert_eq!((bad.asked().len(), other.asked().len()), (10, 5));
    let states = [0, 1].map(|index| upstream_row(&server, index)["state"].clone());
    assert_eq!(states, ["ejected", "up"]);
    wait_events(&server, "upstream_ejected", 1);
    // The same holds if the others are drained.
    let good = named("good");
    let server = start(&[&bad, &good], "eject_after = 1, eject_for = \"1h\"");
    assert_eq!(share(&turns(&server, 3), "good"), 3);
    wait_state(&server, 0, "ejected", Some("failures in a row"));
    let before = bad.asked().len();
    set(&server, "drain", &good);
    assert_eq!(server.connect().exchange(GET).status, 502);
    assert_eq!(bad.asked().len(), before + 1);
}

#[test]
fn no_upstream_is_ejected_if_the_app_says_so() {
    let (bad, good) = (Upstream::tcp(|_, line| line.reset()), named("good"));
    let server = start(&[&bad, &good], "eject_after = 0");
    assert_eq!(share(&turns(&server, 20), "good"), 20);
    assert!(bad.asked().len() >= 9, "{}", bad.asked().len());
    let row = upstream_row(&server, 0);
    assert_eq!((&row["state"], &row["failures"]), (&json!("up"), &json!(bad.asked().len())));
}

// Names.

#[test]
fn a_name_without_an_address_is_down_and_the_others_serve() {
    let good = named("good");
    let local = format!("http://localhost:{}", good.address().port());
    // No resolver knows such a name (RFC 6761 §6.4).
    let server = setup(&["http://no-such-host.invalid", &local], "resolve_every = \"1s\"").start();
    assert_eq!(share(&turns(&server, 10), "good"), 10);
    let row = upstream_row(&server, 0);
    assert_eq!((&row["state"], &row["requests"]), (&json!("down"), &json!(0)), "{row}");
    assert!(row["reason"].as_str().is_some_and(|why| why.starts_with("no address: ")), "{row}");
    server.admin().post(&format!("/apps/{HOST}/upstreams/drain?url={local}"));
    let none = server.connect().exchange(GET);
    assert_eq!((none.status, none.text()), (503, "{\"error\":\"All upstreams are down\"}"));
}

#[test]
fn a_name_is_checked_at_the_address_that_works() {
    let upstream = Upstream::at("127.0.0.1:0".parse().expect("an address"), |asked, line| {
        answer(asked, line, 200, "here");
    });
    let local = format!("http://localhost:{}", upstream.address().port());
    let server = setup(&[&local], &format!("{HEALTH}, resolve_every = \"1s\"")).start();
    assert!(wait_until(PATIENCE, || checks(&upstream) >= 12), "{} checks", checks(&upstream));
    assert!(events(&server, "upstream_down").is_empty());
    assert_eq!(share(&turns(&server, 5), "here"), 5);
    let served = upstream.asked().into_iter().rfind(|asked| !is_check(asked));
    assert_eq!(served.expect("a request").all("Host"), [HOST]);
}

// Upstreams that come and go under load.

/// An upstream process. Its address differs from the clients', so no outgoing connection takes its
/// port while it is down.
struct Process {
    address: String,
    running: Option<Server>,
}

impl Process {
    fn start() -> Self {
        let mut process = Self { address: "127.0.0.2:0".to_owned(), running: None };
        process.run();
        process.address = process.server().address().to_string();
        process
    }

    fn run(&mut self) {
        // Checks name the upstream itself.
        let default = format!("default_app = {HOST:?}");
        let setup = Setup::new().listen(&[&self.address]).server(&default);
        let setup = setup.server("idle_grace = \"0s\"");
        self.running = Some(setup.app(HOST, "respond = { body = \"page\" }").start());
    }

    fn server(&self) -> &Server {
        self.running.as_ref().expect("it runs")
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits until it has got this many requests.
    fn wait_requests(&self, count: u64) {
        let served = || row(self.server())["requests_total"].as_u64().expect("a count");
        assert!(wait_until(PATIENCE, || served() >= count), "{} requests", served());
    }

    fn kill(&mut self) {
        drop(self.running.take());
    }

    fn stop(&mut self) {
        let mut server = self.running.take().expect("it runs");
        server.signal(Signal::TERM);
        assert_eq!(server.wait_exit().code(), Some(0));
    }
}

#[test]
fn no_get_is_lost_while_upstream_processes_end_and_begin() {
    for more in ["eject_for = \"100ms\"", &format!("eject_for = \"100ms\", {HEALTH}")] {
        let mut processes = [Process::start(), Process::start()];
        let urls = processes.each_ref().map(Process::url);
        let server = Setup::new().app(HOST, &proxy(&[&urls[0], &urls[1]], more)).start();
        let load = Load::start(LoadKind::KeepAlive, 4, server.address(), HOST, "page");
        let mut answered = 0;
        for round in 0..8 {
            processes.iter().for_each(|process| process.wait_requests(40));
            let process = &mut processes[round % 2];
            if round / 2 % 2 == 0 {
                process.kill();
            } else {
                process.stop();
            }
            answered += 200;
            load.wait_answered(answered);
            process.run();
        }
        processes.iter().for_each(|process| process.wait_requests(40));
        let tally = load.end();
        assert!(tally.lost.is_empty(), "{more}: {:?}", tally.lost);
    }
}

/// Ends the clients of a test, also when it fails.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn no_post_is_lost_if_an_upstream_is_drained_before_it_ends() {
    let mut processes = [Process::start(), Process::start()];
    let urls = processes.each_ref().map(Process::url);
    let server = setup(&[&urls[0], &urls[1]], "").start();
    let (is_ending, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let client = || {
        let mut client = server.connect();
        while !is_ending.load(SeqCst) {
            assert_eq!(ask(&mut client, POST), "page");
            answered.fetch_add(1, SeqCst);
        }
    };
    let go_on = || {
        let target = answered.load(SeqCst) + 60;
        assert!(wait_until(PATIENCE, || answered.load(SeqCst) >= target), "no answers");
    };
    let of = |what: &str, url: &str| {
        server.admin().post(&format!("/apps/{HOST}/upstreams/{what}?url={url}"));
    };
    thread::scope(|scope| {
        let _ending = Ending(&is_ending);
        (0..3).for_each(|_| drop(scope.spawn(client)));
        for round in 0..6 {
            let index = round % 2;
            processes[index].wait_requests(40);
            of("drain", &urls[index]);
            let is_idle = wait_until(PATIENCE, || upstream_row(&server, index)["active"] == 0);
            assert!(is_idle, "{}", row(&server));
            go_on();
            processes[index].kill();
            // The loop takes a turn, and notices the ends of its idle connections.
            go_on();
            processes[index].run();
            of("resume", &urls[index]);
        }
        processes[1].wait_requests(40);
    });
    let failures = [0, 1].map(|index| upstream_row(&server, index)["failures"].clone());
    assert_eq!(failures, [0, 0]);
}
