//! A loop that an app holds up is reported: in the log, the status, the metrics, to the service
//! manager, and at the end of a stop that it delays. The other loops go on.

use std::{
    sync::atomic::Ordering::SeqCst,
    time::{Duration, Instant},
};

use serde_json::json;
use tempfile::TempDir;
use tidegate::server::Verdict;

use crate::support::{
    Admin, Client, HeldLoop, NotifySocket, PATIENCE, Server, Setup, Signal, Site, Stage, Stuck,
    get, logged, run, wait_until,
};

const MS: Duration = Duration::from_millis(1);

/// A server in this process with its admin socket, and an app that hangs.
fn site(host: &str, stuck: Stuck) -> (Site, Admin, TempDir) {
    let dir = tempfile::tempdir().expect("a folder");
    let socket = dir.path().join("admin.sock");
    let lines =
        format!("drain_timeout = \"300ms\"\n[admin]\nlisten = \"unix:{}\"\n", socket.display());
    let site = Site::start(&lines, |server| {
        server.listen_for_admin().expect("the socket");
        server.add_app(host, stuck).expect("the name is free");
        server.add_app("well.test", Stage::new("well")).expect("the name is free");
    });
    (site, Admin::at(socket), dir)
}

/// How often the log has this event for a host.
fn said(host: &str, event: &str) -> usize {
    logged(host).iter().filter(|name| *name == event).count()
}

#[test]
fn a_loop_is_stuck_in_an_app_until_it_goes_on() {
    let host = "hangs-and-recovers.test";
    let (stuck, gate, entered) = Stuck::new();
    let (site, admin, _dir) = site(host, stuck);
    assert_eq!(admin.get("/status")["stuck_loops"], json!([]));
    let begun = Instant::now();
    let mut client = site.connect();
    client.send(get(host, "/"));
    assert!(wait_until(PATIENCE, || entered.load(SeqCst) == 1), "the app is asked");
    assert!(wait_until(PATIENCE, || said(host, "loop_stuck") == 1), "it is not logged");
    assert!(begun.elapsed() >= 999 * MS, "too early: {:?}", begun.elapsed());
    let status = admin.get("/status");
    let stuck = &status["stuck_loops"][0];
    assert_eq!(
        (&stuck["host"], status["stuck_loops"].as_array().map(Vec::len)),
        (&json!(host), Some(1))
    );
    assert!(stuck["for_ms"].as_u64().is_some_and(|ms| ms >= 1000), "{stuck}");
    let index = stuck["loop"].as_u64().expect("a loop");
    let metric = |value: u64| format!("tidegate_loop_stuck{{loop=\"{index}\"}} {value}\n");
    let page = admin.call("GET", "/metrics", "").text;
    assert!(page.contains(&metric(1)), "{page}");
    let shown = run(&["status", "--admin", &format!("unix:{}", admin.path().display())]);
    let line = format!("{index} in {host} for ");
    assert!(shown.1.contains("stuck loops") && shown.1.contains(&line), "{}", shown.1);
    // The other loop goes on: it has half of the connections.
    let served = wait_until(PATIENCE, || {
        let mut other = site.connect();
        other.send(get("well.test", "/"));
        !other.stays_silent(50 * MS)
    });
    assert!(served, "the other loop does not serve");
    drop(gate);
    assert_eq!(client.response().text(), "freed");
    let recovered = wait_until(PATIENCE, || admin.get("/status")["stuck_loops"] == json!([]));
    assert!(recovered, "it is stuck for ever");
    assert!(admin.call("GET", "/metrics", "").text.contains(&metric(0)));
    assert_eq!(said(host, "loop_stuck"), 1, "it is said once");
}

#[test]
fn a_stop_that_a_stuck_loop_delays_names_the_app() {
    let host = "holds-the-stop.test";
    let (stuck, gate, entered) = Stuck::new();
    let (mut site, _admin, _dir) = site(host, stuck);
    let mut client = site.connect();
    client.send(get(host, "/"));
    assert!(wait_until(PATIENCE, || entered.load(SeqCst) == 1), "the app is asked");
    site.handle.stop("test");
    assert_eq!(site.ended(), Verdict::Cut(1));
    assert_eq!((said(host, "loop_held"), said(host, "app_cut")), (1, 1), "{:?}", logged(host));
    drop(gate);
}

/// A real process with one loop, which is held; `None` if that cannot be done.
fn held(setup: Setup) -> Option<(Server, HeldLoop, Client)> {
    let server = setup.server("threads = 1\ndrain_timeout = \"500ms\"").start();
    let mut client = server.connect();
    assert_eq!(client.exchange(get("app.test", "/")).text(), "app.test");
    let held = HeldLoop::hold(&server, 0, || client.send(get("app.test", "/")))?;
    Some((server, held, client))
}

#[test]
fn a_process_with_a_stuck_loop_exits_with_3_at_the_deadline() {
    let setup = Setup::new().named_app("app.test").log("format = \"json\"");
    let Some((mut server, held, _client)) = held(setup) else { return };
    assert_eq!(server.wait_event("loop_stuck").count("loop_index"), 0);
    let begun = Instant::now();
    server.signal(Signal::TERM);
    let timeout = server.wait_event("shutdown_timeout_reached");
    assert_eq!((timeout.count("stuck_loops"), timeout.field("verdict")), (1, Some("cut")));
    assert_eq!(server.wait_event("loop_held").count("loop_index"), 0);
    held.wait_exit();
    assert_eq!(server.wait_exit().code(), Some(3));
    assert!(begun.elapsed() >= 499 * MS && begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
}

#[test]
fn a_process_with_a_stuck_loop_sends_no_watchdog_messages() {
    let mut socket = NotifySocket::with_path();
    let setup = Setup::new()
        .named_app("app.test")
        .environment("NOTIFY_SOCKET", socket.name())
        .environment("WATCHDOG_USEC", "200000");
    let Some((server, held, mut client)) = held(setup) else { return };
    server.wait_event("loop_stuck");
    socket.clear();
    socket.wait("STATUS=serving 1 apps: 1 connections, 0 active; loop 0 is stuck");
    socket.receive_for(1000 * MS);
    assert!(socket.values("WATCHDOG=1").is_empty(), "{:?}", socket.times("WATCHDOG=1"));
    held.release();
    assert_eq!(client.response().text(), "app.test");
    assert_eq!(server.wait_event("loop_recovered").count("loop_index"), 0);
    socket.wait("WATCHDOG=1");
}

#[test]
fn a_process_that_was_stopped_has_no_stuck_loop() {
    let server = Setup::new().named_app("app.test").start();
    let mut client = server.connect();
    for _ in 0..3 {
        client.exchange(get("app.test", "/"));
        server.pause();
        client.send(get("app.test", "/"));
        wait_until(1500 * MS, || false);
        server.resume();
        assert_eq!(client.response().text(), "app.test");
    }
    assert!(server.events().iter().all(|event| event.name != "loop_stuck"));
}
