//! The JSON log alone shows each drain: when and why it began, its progress, which apps it cut, and
//! how it ended.

use serde_json::{Value, json};

use crate::support::{Client, PATIENCE, Server, Setup, Signal, get, pattern, wait_until};

/// More than all buffers between the server and a client that does not read.
const LARGE: usize = 16 * 1024 * 1024;

fn setup() -> Setup {
    Setup::new()
        .server("idle_grace = \"0s\"\ndrain_timeout = \"2500ms\"")
        .log("format = \"json\"")
        .app("files.test", "files = { root = \"site\" }")
        .app("slow.test", "respond = { body = \"slow\", delay = \"60s\" }")
        .file("site/large", pattern(LARGE))
}

/// A drain as the log shows it.
#[derive(Debug, Default)]
struct LoggedDrain {
    cause: String,
    host: Option<String>,
    active_at_start: u64,
    timeout_ms: u64,
    /// `active_connections`, `refused` and `cut` of each progress event.
    progress: Vec<(u64, u64, u64)>,
    /// `active_connections` at the deadline.
    cut_active: Option<u64>,
    /// The apps whose exchanges a stop cut, each with their number.
    cut_of: Vec<(String, u64)>,
    verdict: String,
    refused: u64,
    cut: u64,
    elapsed_ms: u64,
}

/// Reads a drain from its lines, which have to be in order, with one start and one end.
fn logged_drain(server: &Server, drain: &str) -> LoggedDrain {
    let lines: Vec<Value> =
        server.log_lines().iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let own = lines.iter().filter(|line| line["fields"]["drain"] == drain);
    let mut drain_log = LoggedDrain::default();
    let (mut began, mut ended) = (false, false);
    for line in own {
        let fields = &line["fields"];
        let number = |key: &str| fields[key].as_u64().unwrap_or_else(|| panic!("{key}: {line}"));
        let event = line["event"].as_str().expect("an event");
        assert!(!ended, "after the end: {line}");
        assert_ne!(began, matches!(event, "app_drain_start" | "shutdown_graceful"), "{line}");
        match event {
            "app_drain_start" => {
                drain_log.cause = fields["cause"].as_str().expect("a cause").to_owned();
                drain_log.host = fields["host"].as_str().map(str::to_owned);
                drain_log.active_at_start = number("active_connections");
                drain_log.timeout_ms = number("timeout_ms");
            }
            "shutdown_graceful" => {
                drain_log.cause = "stop".to_owned();
                drain_log.active_at_start = number("active_connections");
                drain_log.timeout_ms = number("drain_timeout_ms");
            }
            "app_drain_progress" | "shutdown_progress" => {
                drain_log.progress.push((
                    number("active_connections"),
                    number("refused"),
                    number("cut"),
                ));
            }
            "app_drain_cut" | "shutdown_cut" => {
                drain_log.cut_active = Some(number("active_connections"));
            }
            "app_cut" => {
                let host = fields["host"].as_str().expect("a host");
                drain_log.cut_of.push((host.to_owned(), number("cut")));
            }
            "shutdown_gated" => {}
            "app_drained"
            | "app_drain_timeout"
            | "app_drain_cancelled"
            | "shutdown_drained"
            | "shutdown_timeout_reached" => {
                ended = true;
                drain_log.verdict = fields["verdict"].as_str().expect("a verdict").to_owned();
                (drain_log.refused, drain_log.cut) = (number("refused"), number("cut"));
                drain_log.elapsed_ms = number("elapsed_ms");
            }
            _ => panic!("an event of an unknown drain: {line}"),
        }
        began = true;
    }
    assert!(ended, "drain {drain} has no end: {lines:#?}");
    drain_log
}

/// Clients that request a large file and do not read it.
fn downloads(server: &Server, count: usize) -> Vec<Client> {
    let mut clients: Vec<Client> =
        (0..count).map(|_| Client::connect_narrow(server.address())).collect();
    for client in &mut clients {
        client.send(get("files.test", "/large"));
        client.buffer_at_least(32 * 1024);
    }
    clients
}

#[test]
fn the_log_shows_the_whole_drain_of_an_app() {
    let server = setup().start();
    let mut kept = server.connect();
    let mut clients = downloads(&server, 3);
    let drain = server.admin().call("DELETE", "/apps/files.test?timeout=4s", "").json();
    for _ in 0..2 {
        assert_eq!(kept.exchange(get("files.test", "/large")).status, 503);
    }
    // One download finishes, two are cut.
    assert_eq!(clients.pop().expect("three").response().body.len(), LARGE);
    assert_eq!(server.admin().wait_drain(&drain["id"])["verdict"], "cut");
    server.wait_event("app_removed");
    let drain_log = logged_drain(&server, &drain["id"].to_string());
    assert_eq!(
        (drain_log.cause.as_str(), drain_log.host.as_deref()),
        ("remove", Some("files.test"))
    );
    assert_eq!((drain_log.active_at_start, drain_log.timeout_ms), (3, 4000));
    assert!(drain_log.progress.contains(&(2, 2, 0)), "{drain_log:?}");
    assert!(
        drain_log.progress.is_sorted_by_key(|counts| std::cmp::Reverse(counts.0)),
        "{drain_log:?}"
    );
    assert!(drain_log.progress.len() <= 4, "only what changes: {drain_log:?}");
    assert_eq!(drain_log.cut_active, Some(2));
    assert_eq!((drain_log.verdict.as_str(), drain_log.refused, drain_log.cut), ("cut", 2, 2));
    assert!((4000..30_000).contains(&drain_log.elapsed_ms), "{drain_log:?}");
}

#[test]
fn a_drain_that_is_cancelled_has_an_end_in_the_log() {
    let server = setup().start();
    let mut client = server.connect();
    client.send(get("slow.test", "/"));
    server.wait_read([&client]);
    let drain = server.admin().post("/apps/slow.test/drain?timeout=60s");
    server.admin().post("/apps/slow.test/resume");
    server.wait_event("app_drain_cancelled");
    let drain_log = logged_drain(&server, &drain["id"].to_string());
    assert_eq!(
        (drain_log.cause.as_str(), drain_log.verdict.as_str(), drain_log.cut),
        ("drain", "cancelled", 0)
    );
    assert_eq!((drain_log.active_at_start, drain_log.cut_active), (1, None));
}

#[test]
fn a_drain_that_gets_another_cause_and_deadline_says_so() {
    let server = setup().start();
    let mut client = server.connect();
    client.send(get("slow.test", "/"));
    server.wait_read([&client]);
    let drain = server.admin().post("/apps/slow.test/drain?timeout=60s");
    assert_eq!(server.admin().call("DELETE", "/apps/slow.test?timeout=100ms", "").status, 202);
    let moved = server.wait_event("app_drain_deadline");
    assert_eq!((moved.field("cause"), moved.count("remaining_ms")), (Some("remove"), 100));
    assert_eq!(server.admin().wait_drain(&drain["id"])["verdict"], "cut");
    assert_eq!(server.wait_event("app_drain_timeout").field("cause"), Some("remove"));
}

#[test]
fn the_log_shows_a_stop_and_the_apps_that_it_cut() {
    let mut server = setup().start();
    let mut slow: Vec<Client> = (0..2).map(|_| server.connect()).collect();
    for client in &mut slow {
        client.send(get("slow.test", "/"));
    }
    server.wait_read(&slow);
    let mut clients = downloads(&server, 2);
    server.signal(Signal::TERM);
    assert_eq!(clients.pop().expect("two").response().body.len(), LARGE);
    assert_eq!(server.wait_exit().code(), Some(3));
    let drain_log = logged_drain(&server, "stop");
    assert_eq!(
        (drain_log.cause.as_str(), drain_log.active_at_start, drain_log.timeout_ms),
        ("stop", 4, 2500)
    );
    assert_eq!(
        (drain_log.verdict.as_str(), drain_log.cut, drain_log.cut_active),
        ("cut", 3, Some(3))
    );
    let mut cut_of = drain_log.cut_of;
    cut_of.sort();
    assert_eq!(cut_of, [("files.test".to_owned(), 1), ("slow.test".to_owned(), 2)]);
    assert!(drain_log.elapsed_ms >= 2500);
}

#[test]
fn a_stop_without_and_with_a_second_signal_differ_in_the_log() {
    let mut server = setup().start();
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit().code(), Some(0));
    let orderly = logged_drain(&server, "stop");
    assert_eq!((orderly.verdict.as_str(), orderly.cut, orderly.cut_active), ("drained", 0, None));
    let mut server = setup().server("shutdown_delay = \"10s\"").start();
    let mut client = server.connect();
    client.send(get("slow.test", "/"));
    server.wait_read([&client]);
    server.signal(Signal::TERM);
    server.wait_event("shutdown_graceful");
    server.signal(Signal::INT);
    assert_eq!(server.wait_exit().code(), Some(3));
    let cut = server.wait_event("shutdown_cut");
    assert_eq!((cut.field("reason"), cut.count("active_connections")), (Some("SIGINT"), 1));
    assert_eq!(logged_drain(&server, "stop").cut_of, [("slow.test".to_owned(), 1)]);
}

#[test]
fn a_stop_that_cuts_nothing_says_nothing_of_a_cut() {
    // `idle_grace`, with the time for reading out idle connections, is longer than the deadline.
    let setup = Setup::new().server("idle_grace = \"2s\"\ndrain_timeout = \"1s\"");
    let mut server = setup.log("format = \"json\"").named_app("a.test").start();
    let mut idle = server.connect();
    assert_eq!(idle.exchange(get("none.test", "/")).status, 404);
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit().code(), Some(0));
    let drain_log = logged_drain(&server, "stop");
    assert_eq!(
        (drain_log.verdict.as_str(), drain_log.cut, drain_log.cut_active),
        ("drained", 0, None)
    );
    drop(idle);
}

#[test]
fn progress_is_streamed_to_clients_of_the_event_stream() {
    let server = setup().start();
    let mut events = server.admin().events();
    let mut clients = downloads(&server, 2);
    server.admin().call("DELETE", "/apps/files.test?timeout=60s", "");
    clients.pop().expect("two").response();
    let progress = events.wait("app_drain_progress");
    assert_eq!(progress["fields"]["active_connections"], json!(1));
    clients.pop().expect("one").response();
    assert!(wait_until(PATIENCE, || server.admin().get("/status")["drains"] == json!([])));
}
