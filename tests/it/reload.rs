//! Reloads: unchanged apps are not touched, changed apps have no gap, and nothing is lost.

use std::{
    env, fs,
    net::TcpListener,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::{
    Client, HeldLoop, Load, LoadKind, PATIENCE, Server, Setup, Signal, free_port, get,
    get_and_close, wait_until,
};

/// The environment variable for the length of the churn.
const CHURN_VARIABLE: &str = "TIDEGATE_CHURN_SECONDS";

fn ask(server: &Server, host: &str) -> (u16, String) {
    let response = server.connect().exchange(get_and_close(host, "/"));
    (response.status, response.text().to_owned())
}

/// The config with these apps, on the address where the server already listens.
fn config(server: &Server, extra: &str, apps: &[(&str, &str)]) -> String {
    let apps: String =
        apps.iter().map(|(host, lines)| format!("[apps.\"{host}\"]\n{lines}\n")).collect();
    // As `Setup` writes it, so that only the tested change differs.
    let server = format!("listen = [\"{}\"]\nthreads = 2\nidle_grace = \"1s\"", server.address());
    format!("[server]\n{server}\n{extra}\n{apps}")
}

/// A server on a fixed port, so that a reload can name the same port.
fn start(apps: &[(&str, &str)]) -> Server {
    let setup = Setup::new().listen(&[&free_port().to_string()]);
    apps.iter().fold(setup, |setup, (host, lines)| setup.app(host, lines)).start()
}

fn respond(body: &str) -> String {
    format!("respond = {{ body = \"{body}\" }}")
}

fn reload(server: &Server, text: &str) -> Value {
    server.rewrite(text);
    server.admin().post("/reload")
}

#[test]
fn each_app_becomes_what_the_config_says_and_the_others_stay() {
    let (a, b, c) = (respond("a"), respond("b"), respond("c"));
    let server = start(&[("a.test", &a), ("b.test", &b), ("c.test", &c)]);
    let admin = server.admin();
    let id = |host: &str| admin.get(&format!("/apps/{host}"))["id"].clone();
    let (id_a, id_b) = (id("a.test"), id("b.test"));
    let mut client = server.connect();
    assert_eq!(client.exchange(get("a.test", "/")).text(), "a");
    let (b2, d) = (respond("b2"), respond("d"));
    let done =
        reload(&server, &config(&server, "", &[("a.test", &a), ("b.test", &b2), ("d.test", &d)]));
    assert_eq!(done["added"], json!(["d.test"]));
    assert_eq!(done["changed"], json!(["b.test"]));
    assert_eq!(done["removed"], json!(["c.test"]));
    assert_eq!(done["unchanged"], 1);
    assert_eq!(done["drains"].as_array().unwrap().len(), 2);
    done["drains"].as_array().unwrap().iter().for_each(|id| drop(admin.wait_drain(id)));
    assert_eq!(id("a.test"), id_a, "not touched");
    assert_ne!(id("b.test"), id_b);
    assert_eq!(admin.get("/apps/a.test")["requests_total"], 1, "its count stays");
    assert_eq!(client.exchange(get("a.test", "/")).text(), "a", "its connection stays");
    assert_eq!(client.exchange(get("b.test", "/")).text(), "b2");
    assert_eq!(client.exchange(get("c.test", "/")).status, 404);
    assert_eq!(client.exchange(get("d.test", "/")).text(), "d");
    let again = admin.post("/reload");
    assert_eq!((&again["unchanged"], &again["drains"]), (&json!(3), &json!([])));
}

#[test]
fn a_config_that_is_wrong_changes_nothing_and_says_where() {
    let a = respond("a");
    let server = start(&[("a.test", &a)]);
    server.rewrite("[server]\nthread = 2\n[apps.\"a.test\"]\nrespond = { status = 1 }\n");
    let answer = server.admin().call("POST", "/reload", "");
    assert_eq!(answer.status, 422);
    let problems = answer.json()["problems"].clone();
    assert_eq!((&problems[0]["line"], &problems[1]["line"]), (&json!(2), &json!(4)), "{problems}");
    assert_eq!(ask(&server, "a.test"), (200, "a".to_owned()));
    let failed = server.wait_event("config_reload_failed");
    assert!(failed.field("error").unwrap().contains("thread"));
    fs::remove_file(server.dir().join("config.toml")).unwrap();
    assert_eq!(server.admin().call("POST", "/reload", "").status, 422);
    let last = server.admin().get("/status")["last_reload"].clone();
    assert_eq!(last["ok"], false, "{last}");
}

#[test]
fn an_app_that_cannot_be_loaded_keeps_its_last_good_life_and_is_tried_again() {
    let server = start(&[("a.test", &respond("a")), ("b.test", &respond("b"))]);
    let missing = "files = { root = \"later\" }";
    let text = config(
        &server,
        "",
        &[("a.test", missing), ("b.test", &respond("b2")), ("c.test", missing)],
    );
    let done = reload(&server, &text);
    let failed: Vec<_> =
        done["failed"].as_array().unwrap().iter().map(|app| &app["host"]).collect();
    assert_eq!(failed, ["c.test", "a.test"]);
    assert_eq!(done["changed"], json!(["b.test"]));
    assert_eq!(ask(&server, "a.test"), (200, "a".to_owned()), "the last good life");
    assert_eq!(ask(&server, "b.test"), (200, "b2".to_owned()));
    assert_eq!(ask(&server, "c.test").0, 503);
    let last = server.admin().get("/status")["last_reload"].clone();
    let error = last["error"].as_str().expect("a reload with failures is not ok");
    assert_eq!(last["ok"], false);
    assert!(error.starts_with("c.test: ") && error.ends_with("; and 1 more failed"), "{last}");
    let row = server.admin().get("/apps/c.test");
    assert_eq!(row["kind"], "unavailable");
    assert!(row["error"].as_str().unwrap().contains("no such directory"), "{row}");
    fs::create_dir(server.dir().join("later")).unwrap();
    fs::write(server.dir().join("later/index.html"), "there").unwrap();
    let done = server.admin().post("/reload");
    assert_eq!(done["changed"], json!(["a.test", "c.test"]));
    assert_eq!(server.admin().get("/status")["last_reload"]["ok"], true);
    assert_eq!(ask(&server, "a.test"), (200, "there".to_owned()));
    assert_eq!(ask(&server, "c.test"), (200, "there".to_owned()));
}

#[test]
fn a_reload_during_a_drain_works_and_sighup_is_a_reload() {
    let slow = |body: &str| format!("respond = {{ body = \"{body}\", delay = \"3s\" }}");
    let server = start(&[("slow.test", &slow("one"))]);
    let mut first = server.connect();
    first.send(get("slow.test", "/"));
    server.wait_read([&first]);
    let active = || server.admin().get("/status")["active_connections"] == 1;
    assert!(wait_until(PATIENCE, active));
    reload(&server, &config(&server, "", &[("slow.test", &slow("two"))]));
    let mut second = server.connect();
    second.send(get("slow.test", "/"));
    assert!(wait_until(PATIENCE, || server.admin().get("/status")["active_connections"] == 2));
    server.rewrite(&config(&server, "", &[("slow.test", &respond("three"))]));
    server.signal(Signal::HUP);
    let third = || ask(&server, "slow.test") == (200, "three".to_owned());
    assert!(wait_until(PATIENCE, third), "the third life does not serve");
    assert_eq!(first.response().text(), "one");
    assert_eq!(second.response().text(), "two");
    let only = || server.admin().get("/apps/slow.test")["lives"].as_array().unwrap().len() == 1;
    assert!(wait_until(PATIENCE, only), "an old life stays");
}

#[test]
fn an_app_of_the_command_line_goes_when_the_config_does_not_name_it() {
    let a = respond("a");
    let server = start(&[("a.test", &a)]);
    let admin = server.admin();
    admin.put("/apps/own.test", &json!({ "respond": { "body": "own" } }));
    admin.put("/apps/a.test", &json!({ "respond": { "body": "changed by hand" } }));
    assert_eq!(ask(&server, "own.test"), (200, "own".to_owned()));
    let done = admin.post("/reload");
    assert_eq!((&done["removed"], &done["changed"]), (&json!(["own.test"]), &json!(["a.test"])));
    assert_eq!(ask(&server, "a.test"), (200, "a".to_owned()));
}

#[test]
fn an_app_that_was_drained_stays_drained_over_a_reload() {
    let server = start(&[("a.test", &respond("a"))]);
    let admin = server.admin();
    admin.wait_drain(&admin.post("/apps/a.test/drain")["id"]);
    reload(&server, &config(&server, "", &[("a.test", &respond("a2"))]));
    assert_eq!(ask(&server, "a.test").0, 503);
    admin.post("/apps/a.test/resume");
    assert_eq!(ask(&server, "a.test"), (200, "a2".to_owned()), "as the config says now");
}

#[test]
fn names_move_between_apps_without_a_gap() {
    let with = |alias: &str, body: &str| format!("aliases = [{alias}]\n{}", respond(body));
    let server = start(&[("a.test", &with("\"x.test\"", "a")), ("b.test", &respond("b"))]);
    let load = Load::start(LoadKind::KeepAlive, 2, server.address(), "x.test", "");
    load.wait_answered(100);
    let text =
        config(&server, "", &[("a.test", &respond("a")), ("b.test", &with("\"x.test\"", "b"))]);
    reload(&server, &text);
    assert_eq!(ask(&server, "x.test"), (200, "b".to_owned()));
    let tally = load.end();
    assert!(tally.lost.is_empty(), "{:?}", tally.lost);
}

#[test]
fn the_default_app_and_limits_change_live_and_threads_do_not() {
    let server = start(&[("a.test", &respond("a"))]);
    let mut open = server.connect();
    assert_eq!(open.exchange(get("a.test", "/")).status, 200);
    assert_eq!(ask(&server, "other.test").0, 404);
    let text = config(
        &server,
        "default_app = \"a.test\"\n[limits]\nbody_bytes = \"10B\"\nhead_bytes = \"32KiB\"",
        &[("a.test", &respond("a"))],
    );
    let done = reload(&server, &text.replace("threads = 2", "threads = 3"));
    assert_eq!(done["needs_restart"], json!(["server.threads"]));
    let settings = json!(["server.default_app", "limits.head_bytes", "limits.body_bytes"]);
    assert_eq!(done["settings"], settings);
    assert_eq!(ask(&server, "other.test"), (200, "a".to_owned()));
    let long = "x".repeat(20_000);
    let request = format!("GET / HTTP/1.1\r\nHost: a.test\r\nX: {long}\r\n\r\n");
    assert_eq!(open.exchange(request).status, 200, "an open connection has the new limit too");
    let request = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 11\r\n\r\n";
    assert_eq!(open.exchange(request).status, 413);
    assert_eq!(server.admin().post("/reload")["needs_restart"], json!(["server.threads"]));
}

#[test]
fn a_reload_is_over_when_every_loop_has_the_settings() {
    let server = Setup::new().named_app("a.test").server("threads = 1").start();
    let mut client = server.connect();
    assert_eq!(client.exchange(get("a.test", "/")).status, 200);
    let text = config(&server, "[limits]\nbody_bytes = \"10B\"", &[("a.test", &respond("a"))]);
    let Some(held) = HeldLoop::hold(&server, 0, || client.send(get("a.test", "/"))) else { return };
    server.rewrite(&text);
    let begun = Instant::now();
    server.signal(Signal::HUP);
    server.wait_event("config_reload_start");
    let is_over = || server.events().iter().any(|event| event.name == "config_reload_complete");
    let was_over = wait_until(Duration::from_millis(100), is_over);
    // A reload waits at most this long for a loop.
    let early = begun.elapsed() < Duration::from_secs(1);
    held.release();
    assert!(!(early && was_over), "the loop did not have the settings");
    server.wait_event("config_reload_complete");
    assert_eq!(client.response().status, 200);
}

#[test]
fn the_port_that_zero_became_can_be_written_out() {
    let server = Setup::new().app("a.test", &respond("a")).start();
    let text = config(&server, "", &[("a.test", &respond("a"))]);
    for _ in 0..2 {
        let done = reload(&server, &text);
        assert_eq!(done["listeners"]["added"], json!([]), "{done}");
        assert_eq!(done["listeners"]["removed"], json!([]), "{done}");
        assert_eq!(ask(&server, "a.test").0, 200);
    }
}

#[test]
fn listeners_come_and_go_without_a_lost_connection() {
    let server = start(&[("a.test", &respond("a"))]);
    let first = server.address();
    let port = free_port();
    let mut open = server.connect();
    assert_eq!(open.exchange(get("a.test", "/")).status, 200);
    let both = format!("listen = [\"{first}\", \"{port}\"]");
    let a = [("a.test", &*respond("a"))];
    let text = config(&server, "", &a);
    let one = format!("listen = [\"{first}\"]");
    let load = Load::start(LoadKind::NewConnections, 2, first, "a.test", "a");
    for _ in 0..5 {
        let done = reload(&server, &text.replace(&one, &both));
        assert_eq!(done["listeners"]["added"], json!([port.to_string()]), "{done}");
        let mut client = Client::connect(port);
        assert_eq!(client.exchange(get("a.test", "/")).text(), "a");
        let done = reload(&server, &text);
        assert_eq!(done["listeners"]["removed"], json!([port.to_string()]));
        let refused = || Client::try_connect(port, PATIENCE).is_err();
        assert!(wait_until(PATIENCE, refused), "it is still listened on");
        assert_eq!(client.exchange(get("a.test", "/")).text(), "a", "its connections stay");
    }
    let tally = load.end();
    assert!(tally.lost.is_empty(), "{:?}", tally.lost);
    assert_eq!(open.exchange(get("a.test", "/")).status, 200);
}

#[test]
fn an_address_that_cannot_be_bound_closes_no_other() {
    let server = start(&[("a.test", &respond("a"))]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_at = taken.local_addr().unwrap().to_string();
    let text = config(&server, "", &[("a.test", &respond("a"))]);
    server.rewrite(&text.replace(&server.address().to_string(), &taken_at));
    let done = server.admin().post("/reload?allow_empty=true");
    assert_eq!(done["listeners"]["failed"][0]["address"], taken_at, "{done}");
    assert_eq!(done["listeners"]["removed"], json!([]));
    assert_eq!(ask(&server, "a.test"), (200, "a".to_owned()));
}

#[test]
fn logs_change_live() {
    let server = start(&[("a.test", &respond("a"))]);
    let extra = "[log]\naccess = \"json\"\naccess_path = \"access.log\"";
    let done = reload(&server, &config(&server, extra, &[("a.test", &respond("a"))]));
    assert_eq!(done["settings"], json!(["log.access", "log.access_path"]));
    let mut open = server.connect();
    assert_eq!(open.exchange(get("a.test", "/seen")).status, 200);
    let log = server.dir().join("access.log");
    let seen = || fs::read_to_string(&log).is_ok_and(|text| text.contains("/seen"));
    assert!(wait_until(PATIENCE, seen), "no access line");
    reload(&server, &config(&server, "", &[("a.test", &respond("a"))]));
    assert_eq!(open.exchange(get("a.test", "/unseen")).status, 200);
    assert_eq!(open.exchange(get("a.test", "/unseen")).status, 200);
    assert_eq!(fs::read_to_string(&log).unwrap().lines().count(), 1);
}

/// A config with the three apps under load, and two that come and go.
fn churned(server: &Server, round: u32) -> String {
    let (mut apps, body) = (String::new(), format!("c.test {round}"));
    for (host, body, there) in [
        ("a.test", "a.test", true),
        ("b.test", "b.test", true),
        ("c.test", &*body, true),
        ("d.test", "d.test", round.is_multiple_of(2)),
        ("e.test", &*format!("e.test {}", round / 3), round % 5 < 3),
    ] {
        if there {
            apps += &format!("[apps.\"{host}\"]\n{}\n", respond(body));
        }
    }
    config(server, "", &[]) + &apps
}

#[test]
fn reloads_every_100_ms_lose_refuse_and_mix_up_nothing() {
    let server = start(&[
        ("a.test", &respond("a.test")),
        ("b.test", &respond("b.test")),
        ("c.test", &respond("c.test")),
    ]);
    let seconds = env::var(CHURN_VARIABLE).ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    let loads = [
        (LoadKind::KeepAlive, "a.test"),
        (LoadKind::NewConnections, "b.test"),
        (LoadKind::KeepAlive, "c.test"),
    ];
    let started = loads.map(|(kind, host)| Load::start(kind, 2, server.address(), host, host));
    started.iter().for_each(|load| load.wait_answered(50));
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut rounds = 0;
    while Instant::now() < end {
        let next = Instant::now() + Duration::from_millis(100);
        reload(&server, &churned(&server, rounds));
        rounds += 1;
        wait_until(next.saturating_duration_since(Instant::now()), || false);
    }
    for (load, (kind, host)) in started.into_iter().zip(loads) {
        let tally = load.end();
        assert!(tally.lost.is_empty(), "{host} after {rounds} reloads: {:?}", tally.lost);
        assert!(tally.answered > rounds as usize, "{host}: {tally:?}");
        if kind == LoadKind::KeepAlive {
            assert_eq!((tally.connects, tally.closed_idle), (2, 0), "{host} had to connect again");
        }
        println!(
            "{host} {kind:?}: {} answered in {rounds} reloads, {} connects",
            tally.answered, tally.connects
        );
    }
    let idle = || {
        let status = server.admin().get("/status");
        status["active_connections"] == 0 && status["drains"] == json!([])
    };
    assert!(wait_until(PATIENCE, idle), "a count does not return to zero");
}
