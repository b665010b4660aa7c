//! Faults of the machine and of the server itself: good traffic beside them loses nothing that need
//! not be lost, and when the fault is over all is as before.
//!
//! More stand where their subject is: upstreams that come and go in `balance`, files that change
//! while they are sent in `files`, full disks in `logs` and `upgrade`, no descriptors in `protocol`
//! and `proxy`, loops that hang in `watchdog`.
#![cfg(not(loom))]

mod support;

use serde_json::json;
use support::{Client, HeldLoop, Load, LoadKind, NotifySocket, Server, Setup, get};

fn setup() -> Setup {
    Setup::new()
        .server("idle_grace = \"100ms\"")
        .named_app("app.test")
        .app("slow.test", "respond = { body = \"slow\", delay = \"500ms\" }")
}

fn ask(server: &Server) -> String {
    server.connect().exchange(get("app.test", "/")).text().to_owned()
}

// --- Loops that fail

/// Has a loop fail so often, while it waits for events; false where that cannot be done.
fn fail(server: &Server, index: usize, times: usize) -> bool {
    HeldLoop::fail(server, index, times, || {
        // All loops wake up for the admin.
        std::os::unix::net::UnixStream::connect(server.dir().join("tidegate.sock")).expect("admin");
    })
}

#[test]
fn a_loop_that_fails_drains_the_server_and_nothing_is_lost() {
    let mut socket = NotifySocket::with_path();
    let mut server = setup().environment("NOTIFY_SOCKET", socket.name()).start();
    // More than one loop takes.
    let mut slow: Vec<Client> = (0..16).map(|_| server.connect()).collect();
    let kept = Load::start(LoadKind::KeepAlive, 4, server.address(), "app.test", "app.test");
    let new = Load::start(LoadKind::NewConnections, 2, server.address(), "app.test", "app.test");
    kept.wait_answered(100);
    new.wait_answered(20);
    slow.iter_mut().for_each(|client| client.send(get("slow.test", "/")));
    server.wait_read(&slow);
    kept.expect_stop();
    new.expect_stop();
    if !fail(&server, 0, 1) {
        return;
    }
    let failed = server.wait_event("loop_failed");
    assert_eq!(failed.count("loop_index"), 0);
    assert!(failed.field("error").is_some_and(|error| error.contains("os error 9")), "{failed:?}");
    for client in &mut slow {
        assert_eq!(client.response().text(), "slow");
    }
    drop(slow);
    assert_eq!(server.wait_exit().code(), Some(1));
    for tally in [kept.join(), new.join()] {
        assert_eq!(tally.lost, Vec::<String>::new());
    }
    assert_eq!(server.wait_event("shutdown_graceful").field("reason"), Some("loop_failed"));
    let ended = server.wait_event("shutdown_incomplete");
    assert_eq!((ended.field("verdict"), ended.count("failed_loops")), (Some("drained"), 1));
    socket.wait("STOPPING=1");
    socket.wait("STATUS=stopped: drained; loop 0 has failed");
}

#[test]
fn a_loop_that_dies_is_counted_and_another_one_serves_who_would_have_come_to_it() {
    let mut server = setup().server("shutdown_delay = \"2s\"").start();
    let mut slow: Vec<Client> = (0..16).map(|_| server.connect()).collect();
    slow.iter_mut().for_each(|client| client.send(get("slow.test", "/")));
    server.wait_read(&slow);
    if !fail(&server, 1, 3) {
        return;
    }
    let died = server.wait_event("loop_died");
    assert_eq!(died.count("loop_index"), 1);
    // The kernel goes on to hand connections to each socket. Nobody waits for the dead loop.
    for _ in 0..40 {
        assert_eq!(ask(&server), "app.test");
    }
    let status = server.admin().get("/status");
    assert_eq!((&status["state"], &status["failed_loops"]), (&json!("stopping"), &json!([1])));
    assert_eq!(status["drains"][0]["cause"], "loop_failed", "{status}");
    let answers = slow.iter_mut().map(|client| client.try_response(false));
    let lost = answers.filter(Result::is_err).count();
    assert_eq!(died.count("cut"), lost);
    drop(slow);
    assert_eq!(server.wait_exit().code(), Some(1));
    let ended = server.wait_event("shutdown_incomplete");
    assert_eq!((ended.count("cut"), ended.count("failed_loops")), (lost, 1));
    // At once, not when the dead loop had its time to end.
    assert!(ended.count("elapsed_ms") < 5000, "{ended:?}");
}

#[test]
fn the_first_signal_after_a_loop_has_failed_cuts_nothing() {
    let mut server = setup().start();
    let mut slow = server.connect();
    slow.send(get("slow.test", "/"));
    server.wait_read([&slow]);
    if !fail(&server, 0, 1) {
        return;
    }
    server.wait_event("shutdown_graceful");
    server.signal(support::Signal::TERM);
    assert_eq!(slow.response().text(), "slow");
    drop(slow);
    assert_eq!(server.wait_exit().code(), Some(1));
    assert_eq!(server.wait_event("shutdown_incomplete").count("cut"), 0);
}
