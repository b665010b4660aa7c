//! Faults of the machine and of the server itself: other traffic loses nothing that can be kept,
//! and after the fault everything is as before.
//!
//! Other faults are in the module of their subject: upstreams that come and go in `balance`, files
//! that change while they are sent in `files`, full disks in `logs` and `upgrade`, no descriptors
//! in `protocol` and `proxy`, loops that hang in `watchdog`.

use std::time::Duration;

use serde_json::json;

use crate::support::{
    Client, HeldLoop, Load, LoadKind, NotifySocket, PATIENCE, Server, Setup, Signal, get, pattern,
    post, wait_until,
};

const MS: Duration = Duration::from_millis(1);

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

/// Makes a loop fail this often while it waits for events. Returns false if that cannot be done.
fn fail(server: &Server, index: usize, times: usize) -> bool {
    HeldLoop::fail(server, index, times, || {
        // All loops wake up for a new admin connection.
        std::os::unix::net::UnixStream::connect(server.dir().join("tidegate.sock")).expect("admin");
    })
}

#[test]
fn a_loop_that_fails_drains_the_server_and_nothing_is_lost() {
    let mut socket = NotifySocket::with_path();
    let mut server = setup().environment("NOTIFY_SOCKET", socket.name()).start();
    // So many that each loop has some.
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
fn a_loop_that_dies_is_counted_and_another_serves_its_clients() {
    let mut server = setup().server("shutdown_delay = \"2s\"").start();
    let mut slow: Vec<Client> = (0..16).map(|_| server.connect()).collect();
    slow.iter_mut().for_each(|client| client.send(get("slow.test", "/")));
    server.wait_read(&slow);
    if !fail(&server, 1, 3) {
        return;
    }
    let died = server.wait_event("loop_died");
    assert_eq!(died.count("loop_index"), 1);
    // The kernel still gives connections to each socket. None of them waits for the dead loop.
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
    // At once: the stop does not wait for the dead loop.
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
    server.signal(Signal::TERM);
    assert_eq!(slow.response().text(), "slow");
    drop(slow);
    assert_eq!(server.wait_exit().code(), Some(1));
    assert_eq!(server.wait_event("shutdown_incomplete").count("cut"), 0);
}

// --- A process that stands still

/// Stops the process (SIGSTOP) for this long, and calls `meanwhile`.
fn stand_still(server: &Server, time: Duration, meanwhile: impl FnOnce()) {
    server.pause();
    meanwhile();
    wait_until(time, || false);
    server.resume();
}

#[test]
fn what_came_while_the_process_stood_still_is_in_time() {
    // More than one epoll_wait(2) returns: the last events come after the deadlines of all.
    const MANY: usize = 1500;
    let limits = "head_timeout = \"4s\"\nbody_timeout = \"4s\"";
    let server = setup().server("threads = 1").limits(limits).start();
    let mut clients: Vec<_> = (0..MANY).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(|client| drop(client.exchange(get("app.test", "/"))));
    let halves = [get("app.test", "/"), post("app.test", "/", 9) + "123456789"];
    let halves = halves
        .map(|whole| (whole[..whole.len() - 5].to_owned(), whole[whole.len() - 5..].to_owned()));
    for (client, (begin, _)) in clients.iter_mut().zip(halves.iter().cycle()) {
        client.send(begin);
    }
    server.wait_read(&clients);
    stand_still(&server, 4500 * MS, || {
        for (client, (_, rest)) in clients.iter_mut().zip(halves.iter().cycle()) {
            client.send(rest);
        }
    });
    for (nth, client) in clients.iter_mut().enumerate() {
        let response = client.try_response(false);
        let status = response.as_ref().map(|response| response.status);
        assert!(matches!(status, Ok(200)), "client {nth}: {response:?}");
    }
}

#[test]
fn a_drain_whose_deadline_passes_while_the_process_stands_still_loses_nothing() {
    let setup = setup().server("drain_timeout = \"4s\"");
    let lines = "respond = { body = \"late\", delay = \"3s\" }";
    let mut server = setup.app("late.test", lines).start();
    let [mut late, mut sends] = [(); 2].map(|()| server.connect());
    late.send(get("late.test", "/"));
    sends.send(post("app.test", "/", 2) + "<");
    server.wait_read([&late, &sends]);
    server.signal(Signal::TERM);
    server.wait_event("shutdown_gated");
    stand_still(&server, 4500 * MS, || sends.send(">"));
    assert_eq!(late.response().text(), "late");
    assert_eq!(sends.response().text(), "app.test");
    drop((late, sends));
    assert_eq!(server.wait_exit().code(), Some(0));
    assert_eq!(server.wait_event("shutdown_drained").count("cut"), 0);
}

#[test]
fn the_service_manager_gets_signs_of_life_again_at_once() {
    let mut socket = NotifySocket::with_path();
    let setup = setup().environment("NOTIFY_SOCKET", socket.name());
    let server = setup.environment("WATCHDOG_USEC", "2000000").start();
    socket.wait("WATCHDOG=1");
    for _ in 0..2 {
        stand_still(&server, 1500 * MS, || socket.clear());
        socket.wait("WATCHDOG=1");
        assert_eq!(ask(&server), "app.test");
    }
    // Long enough for two checks of the watchdog.
    wait_until(1500 * MS, || false);
    assert!(server.events().iter().all(|event| event.name != "loop_stuck"));
}

// --- Resources that run out

#[test]
fn without_a_free_descriptor_open_connections_are_served_and_later_all_is_as_before() {
    let setup = setup().descriptors(100).file("site/large.bin", pattern(100_000));
    let server = setup.app("site.test", "files = { root = \"site\" }").start();
    let admin = server.admin();
    let mut kept: Vec<_> = (0..4).map(|_| server.connect()).collect();
    let mut page = server.connect();
    kept.iter_mut().for_each(|client| drop(client.exchange(get("app.test", "/"))));
    assert_eq!(page.exchange(get("app.test", "/")).status, 200);
    server.lower_descriptor_limit(5);
    let mut waiting = server.connect();
    waiting.send(get("app.test", "/"));
    server.wait_event("accept_paused");
    for client in &mut kept {
        assert_eq!(client.exchange(get("app.test", "/")).text(), "app.test");
    }
    // The file exists, so this is no 404.
    assert_eq!(page.exchange(get("site.test", "/large.bin")).status, 503);
    server.signal(Signal::HUP);
    server.wait_event("config_reload_failed");
    assert!(waiting.stays_silent(200 * MS));
    server.lower_descriptor_limit(64);
    assert_eq!(waiting.response().text(), "app.test");
    assert_eq!(page.exchange(get("site.test", "/large.bin")).body, pattern(100_000));
    assert_eq!(admin.post("/reload")["unchanged"], 3);
    assert_eq!(ask(&server), "app.test");
}

#[test]
fn a_flood_of_heads_and_contents_stays_within_a_memory_limit() {
    const MANY: usize = 1500;
    let server = setup().start();
    // The memory of this many heads, and half as much for everything else.
    let most_kib = MANY * 16 * 3 / 2;
    let before_kib = server.resident_kib();
    server.limit_memory(most_kib as u64);
    let head = format!("GET / HTTP/1.1\r\nHost: app.test\r\nLong: {}", "x".repeat(15_000));
    let content = post("app.test", "/", 1_000_000) + &"x".repeat(100_000);
    let mut flood: Vec<_> = (0..MANY).map(|_| server.connect()).collect();
    for (client, bytes) in flood.iter_mut().zip([head, content].iter().cycle()) {
        client.send(bytes);
    }
    server.wait_read(&flood);
    assert_eq!(ask(&server), "app.test");
    drop(flood);
    assert!(wait_until(PATIENCE, || server.admin().get("/status")["connections"]["busy"] == 0));
    assert_eq!(ask(&server), "app.test");
    let after_kib = server.resident_kib();
    assert!(after_kib < before_kib + most_kib / 2, "{before_kib} KiB became {after_kib} KiB");
}
