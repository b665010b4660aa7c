//! The admin API: what it shows, what it changes, and which clients it refuses.

use std::{
    fs::{self, Permissions},
    io::{Read, Write},
    net::TcpStream,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use nix::unistd::Group;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

use crate::support::{
    self, Admin, Client, PATIENCE, Pid, Server, Setup, Signal, free_port, get, get_and_close, run,
    wait_until,
};

/// Two apps that answer at once, a slow one, and one with a short drain deadline.
fn start() -> Server {
    let slow = "respond = { body = \"slow\", delay = \"1500ms\" }";
    let stuck = "respond = { body = \"stuck\", delay = \"60s\" }";
    let setup = Setup::new().named_app("a.test").named_app("b.test");
    setup.app("slow.test", slow).app("stuck.test", stuck).start()
}

fn body_of(server: &Server, host: &str) -> (u16, String) {
    let response = server.connect().exchange(get_and_close(host, "/"));
    (response.status, response.text().to_owned())
}

fn row(admin: &Admin, host: &str) -> Value {
    admin.get(&format!("/apps/{host}"))
}

/// Sends a request to an app that does not answer at once, and waits until it is in flight.
fn begin(server: &Server, host: &str) -> support::Client {
    let mut client = server.connect();
    client.send(get(host, "/export"));
    let active = || row(&server.admin(), host)["active_connections"].as_u64();
    assert!(wait_until(PATIENCE, || active() > Some(0)), "the request is not in flight");
    client
}

fn begin_slow(server: &Server) -> support::Client {
    begin(server, "slow.test")
}

#[test]
fn status_and_rows_say_what_is_going_on() {
    let server = start();
    let admin = server.admin();
    assert_eq!(body_of(&server, "a.test").0, 200);
    let status = admin.get("/status");
    assert_eq!(status["state"], "serving");
    assert_eq!(status["apps"], 4);
    assert_eq!(status["threads"], 2);
    assert_eq!(status["requests_total"], 1);
    assert_eq!(status["listen"], json!([server.address().to_string()]));
    assert_eq!(admin.get("/healthz"), json!({ "status": "ok" }));
    assert_eq!(admin.get("/readyz"), json!({ "status": "ready" }));
    let rows = admin.get("/apps");
    let hosts: Vec<_> = rows["apps"].as_array().unwrap().iter().map(|row| &row["host"]).collect();
    assert_eq!(hosts, ["a.test", "b.test", "slow.test", "stuck.test"]);
    let row = row(&admin, "a.test");
    assert_eq!((&row["state"], &row["kind"]), (&json!("serving"), &json!("respond")));
    assert_eq!((&row["requests_total"], &row["origin"]), (&json!(1), &json!("config")));
}

#[test]
fn a_removed_app_refuses_finishes_and_is_gone() {
    let server = start();
    let admin = server.admin();
    let mut slow = begin_slow(&server);
    let drain = admin.call("DELETE", "/apps/slow.test", "");
    assert_eq!(drain.status, 202, "{drain:?}");
    let drain = drain.json();
    assert_eq!((&drain["state"], &drain["cause"]), (&json!("draining"), &json!("remove")));
    let refused = server.connect().exchange(get_and_close("slow.test", "/"));
    assert_eq!(refused.status, 503);
    let retry_after: u64 = refused.field("Retry-After").unwrap().parse().unwrap();
    let remaining = drain["remaining_ms"].as_u64().unwrap();
    assert!(retry_after >= 1 && retry_after <= remaining.div_ceil(1000), "{retry_after}");
    let draining = row(&admin, "slow.test");
    assert_eq!((&draining["state"], &draining["refused"]), (&json!("draining"), &json!(1)));
    let again = admin.call("DELETE", "/apps/slow.test", "");
    assert_eq!((again.status, again.error().contains("already")), (409, true));
    let ended = admin.wait_drain(&drain["id"]);
    assert_eq!((&ended["verdict"], &ended["refused"]), (&json!("drained"), &json!(1)));
    assert_eq!(slow.response().text(), "slow");
    assert_eq!(body_of(&server, "slow.test").0, 404);
    assert_eq!(admin.call("GET", "/apps/slow.test", "").status, 404);
    assert_eq!(admin.call("DELETE", "/apps/slow.test", "").status, 404);
}

#[test]
fn a_deadline_of_the_call_cuts() {
    let server = start();
    let slow = begin(&server, "stuck.test");
    let drain = server.admin().call("DELETE", "/apps/stuck.test?timeout=10ms", "").json();
    let ended = server.admin().wait_drain(&drain["id"]);
    assert_eq!((&ended["verdict"], &ended["cut"]), (&json!("cut"), &json!(1)));
    slow.expect_end();
}

#[test]
fn a_drained_app_stays_until_it_is_resumed() {
    let server = start();
    let admin = server.admin();
    let drain = admin.post("/apps/a.test/drain");
    assert_eq!(admin.wait_drain(&drain["id"])["verdict"], "drained");
    assert_eq!(body_of(&server, "a.test").0, 503);
    let drained = row(&admin, "a.test");
    assert_eq!((&drained["state"], &drained["cause"]), (&json!("drained"), &json!("drain")));
    assert_eq!(admin.post("/apps/a.test/drain")["verdict"], "drained", "a second call is no error");
    let resumed = admin.post("/apps/a.test/resume");
    assert!(resumed["app"]["id"].as_u64() > drained["id"].as_u64(), "a new life");
    assert_eq!(body_of(&server, "a.test"), (200, "a.test".to_owned()));
    let again = admin.call("POST", "/apps/a.test/resume", "");
    assert_eq!((again.status, again.error().contains("serves")), (409, true));
    // A drained app can be removed, or replaced.
    admin.wait_drain(&admin.post("/apps/a.test/drain")["id"]);
    assert_eq!(admin.put("/apps/a.test", &json!({ "respond": { "body": "new" } })).status, 200);
    assert_eq!(body_of(&server, "a.test"), (200, "new".to_owned()));
    admin.wait_drain(&admin.post("/apps/a.test/drain")["id"]);
    let removed = admin.call("DELETE", "/apps/a.test", "").json();
    assert_eq!(removed["verdict"], "drained");
    assert_eq!(body_of(&server, "a.test").0, 404);
}

#[test]
fn resume_during_a_drain_cancels_it_and_the_old_life_still_ends() {
    let server = start();
    let admin = server.admin();
    let mut events = admin.events();
    let mut slow = begin_slow(&server);
    let drain = admin.post("/apps/slow.test/drain");
    let id = drain["id"].clone();
    let waiter = thread::spawn({
        let admin = admin.clone();
        move || admin.wait_drain(&id)
    });
    admin.post("/apps/slow.test/resume");
    assert_eq!(waiter.join().unwrap()["verdict"], "cancelled");
    let lives = row(&admin, "slow.test")["lives"].clone();
    let states: Vec<_> = lives.as_array().unwrap().iter().map(|life| &life["state"]).collect();
    assert_eq!(states[0], "serving", "{lives}");
    assert_eq!(slow.response().text(), "slow", "the old life's exchange ends");
    let one = || row(&admin, "slow.test")["lives"].as_array().unwrap().len() == 1;
    assert!(wait_until(PATIENCE, one), "the old life is not gone");
    assert_eq!(events.wait("app_resumed")["fields"]["drain_cancelled"], true);
    assert_eq!(body_of(&server, "slow.test").0, 200);
}

#[test]
fn an_app_can_be_added_and_replaced_while_the_old_one_finishes() {
    let server = start();
    let admin = server.admin();
    let table = json!({ "aliases": ["n2.test"], "respond": { "body": "one" } });
    let added = admin.put("/apps/n.test?only=add", &table);
    assert_eq!((added.status, &added.json()["result"]), (201, &json!("added")));
    assert_eq!(body_of(&server, "n2.test"), (200, "one".to_owned()));
    let again = admin.put("/apps/n.test?only=add", &table);
    assert_eq!((again.status, again.error().contains("served")), (409, true), "{again:?}");
    let taken = admin.put("/apps/m.test", &table);
    assert_eq!((taken.status, taken.error().contains("n2.test")), (409, true), "{taken:?}");
    let unknown = admin.put("/apps/o.test?only=replace", &json!({ "respond": {} }));
    assert_eq!(unknown.status, 404);
    // Replaced twice while the first life is busy.
    let mut slow = begin_slow(&server);
    let first = admin.put("/apps/slow.test", &json!({ "respond": { "body": "new" } }));
    assert_eq!((first.status, &first.json()["result"]), (200, &json!("replaced")));
    assert_eq!(body_of(&server, "slow.test"), (200, "new".to_owned()));
    let second = admin.put("/apps/slow.test", &json!({ "respond": { "body": "newer" } }));
    assert_eq!(body_of(&server, "slow.test"), (200, "newer".to_owned()));
    assert_eq!(admin.wait_drain(&second.json()["drain"])["cause"], "replace");
    assert_eq!(slow.response().text(), "slow");
    assert_eq!(admin.wait_drain(&first.json()["drain"])["verdict"], "drained");
}

#[test]
fn a_put_that_fails_changes_nothing_and_says_why() {
    let server = start();
    let admin = server.admin();
    for (table, status, words) in [
        (json!({ "respond": { "status": 99 } }), 422, "status"),
        (json!({ "respond": {}, "redirect": { "to": "http://x" } }), 422, "both"),
        (json!({ "unknown": 1 }), 422, "unknown"),
        (json!([]), 422, ""),
        (json!({ "files": { "root": "/nowhere" } }), 500, "/nowhere: no such directory"),
    ] {
        let answer = admin.put("/apps/a.test", &table);
        assert_eq!(answer.status, status, "{table}: {answer:?}");
        assert!(answer.text.contains(words), "{table}: {answer:?}");
    }
    let not_json = admin.call("PUT", "/apps/a.test", "{\"respond\":");
    assert_eq!((not_json.status, not_json.error().contains("JSON")), (400, true));
    assert_eq!(admin.put("/apps/a%20b", &json!({ "respond": {} })).status, 422);
    assert_eq!(body_of(&server, "a.test"), (200, "a.test".to_owned()));
    for timeout in ["soon", "-1s", "100000000000d", "18446744073709551615ms"] {
        let path = format!("/apps/a.test?timeout={timeout}");
        assert_eq!(admin.call("DELETE", &path, "").status, 400, "{timeout}");
        assert_eq!(admin.call("POST", &format!("/stop?timeout={timeout}"), "").status, 400);
        let path = format!("/drains/1?wait={timeout}");
        assert_eq!(admin.call("GET", &path, "").status, 400, "{timeout}");
    }
    assert_eq!(admin.call("POST", "/status", "").status, 405);
    assert_eq!(admin.call("GET", "/nothing", "").status, 404);
    assert_eq!(admin.call("GET", "/drains/77", "").status, 404);
}

#[test]
fn who_holds_an_app_is_shown_and_can_be_cut() {
    let server = start();
    let admin = server.admin();
    let slow = begin(&server, "stuck.test");
    let list = admin.get("/apps/stuck.test/connections");
    let busy = &list["connections"][0];
    assert_eq!((&busy["method"], &busy["target"]), (&json!("GET"), &json!("/export")));
    assert_eq!(busy["phase"], "waiting for the app");
    let port = busy["peer"].as_str().unwrap().rsplit(':').next().unwrap().parse::<u16>();
    assert_eq!(port.unwrap(), slow.port());
    let cut = admin.call("DELETE", &format!("/connections/{}", busy["id"].as_str().unwrap()), "");
    assert_eq!((cut.status, cut.json()), (200, json!({ "cut": 1 })));
    slow.expect_end();
    assert_eq!(row(&admin, "stuck.test")["cut"], 1);
    assert_eq!(admin.call("DELETE", "/connections/0-7", "").status, 404);
    assert_eq!(admin.call("DELETE", "/connections/x", "").status, 404);
}

#[test]
fn the_last_app_can_be_removed() {
    let server = Setup::new().named_app("a.test").start();
    let drain = server.admin().call("DELETE", "/apps/a.test", "").json();
    server.admin().wait_drain(&drain["id"]);
    assert_eq!(body_of(&server, "a.test").0, 404);
    assert_eq!(server.admin().get("/apps"), json!({ "apps": [] }));
}

#[test]
fn a_thousand_requests_at_once_are_answered_during_a_drain() {
    let server = start();
    let admin = server.admin();
    let mut slow = begin_slow(&server);
    let drain = admin.call("DELETE", "/apps/slow.test", "").json();
    let waits = format!("/drains/{}?wait=20s", drain["id"]);
    let paths = ["/apps", "/status", "/metrics", &waits];
    let mut sockets: Vec<_> = (0..1000)
        .map(|nth| {
            let mut socket = admin.connect();
            let path = paths[nth % paths.len()];
            let request =
                format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            socket.write_all(request.as_bytes()).unwrap();
            socket
        })
        .collect();
    for socket in &mut sockets {
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    assert_eq!(slow.response().text(), "slow");
}

#[test]
fn a_stop_by_request_answers_its_verdict_before_the_server_ends() {
    let mut server = start();
    let admin = server.admin();
    let mut slow = begin_slow(&server);
    let stop = admin.post("/stop");
    assert_eq!((&stop["id"], &stop["cause"]), (&json!("stop"), &json!("stop")));
    let ready = admin.call("GET", "/readyz", "");
    assert_eq!((ready.status, ready.json()), (503, json!({ "status": "stopping" })));
    assert_eq!(admin.get("/status")["state"], "stopping");
    assert_eq!(admin.wait_drain(&json!("stop"))["verdict"], "drained");
    assert_eq!(slow.response().text(), "slow");
    assert_eq!(server.wait_exit().code(), Some(0));
    assert!(!admin.path().exists(), "the socket's file is left behind");
}

#[test]
fn a_stop_can_be_given_a_deadline_and_cut() {
    let mut server = start();
    let slow = begin(&server, "stuck.test");
    server.admin().post("/stop?timeout=10ms");
    let stopped = server.admin().wait_drain(&json!("stop"));
    assert_eq!((&stopped["verdict"], &stopped["cut"]), (&json!("cut"), &json!(1)));
    slow.expect_end();
    assert_eq!(server.wait_exit().code(), Some(3));

    let mut server = start();
    let slow = begin(&server, "stuck.test");
    server.admin().post("/stop?now=true");
    slow.expect_end();
    assert_eq!(server.wait_exit().code(), Some(3));
}

#[test]
fn events_are_streamed_as_they_happen_and_the_stream_ends_with_the_server() {
    let mut server = start();
    let admin = server.admin();
    let mut events = admin.events();
    admin.put("/apps/n.test", &json!({ "respond": {} }));
    assert_eq!(events.wait("app_added")["fields"]["host"], "n.test");
    admin.call("DELETE", "/apps/n.test", "");
    assert_eq!(events.wait("app_drain_start")["fields"]["cause"], "remove");
    let drained = events.wait("app_drained");
    assert_eq!((&drained["level"], &drained["fields"]["host"]), (&json!("INFO"), &json!("n.test")));
    assert_eq!(events.wait("app_removed")["fields"]["host"], "n.test");
    server.signal(Signal::TERM);
    events.wait("shutdown_graceful");
    events.wait("shutdown_drained");
    assert!(events.ends());
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn metrics_count_what_was_asked() {
    let server = start();
    for _ in 0..3 {
        body_of(&server, "a.test");
    }
    // An exchange is counted after its last byte went out, which the client can see before.
    for line in [
        "tidegate_requests_total{app=\"a.test\",status=\"200\"} 3",
        "tidegate_active_connections{app=\"a.test\"} 0",
        "tidegate_request_seconds_count{app=\"a.test\"} 3",
    ] {
        let mut page = String::new();
        let is_there = wait_until(PATIENCE, || {
            page = server.admin().call("GET", "/metrics", "").text;
            page.lines().any(|known| known == line)
        });
        assert!(is_there, "no {line} in\n{page}");
    }
}

#[test]
fn the_socket_is_for_its_owner_and_never_for_the_public_port() {
    let server = start();
    let admin = server.admin();
    let mode = fs::metadata(admin.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let public = server.connect().exchange(get_and_close("localhost", "/status"));
    assert_eq!(public.status, 404);
    let mut socket = admin.connect();
    socket.write_all(b"GET /status HTTP/1.1\r\nHost: evil.test\r\n\r\n").unwrap();
    let mut start = [0; 12];
    socket.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 421");
}

#[test]
fn the_socket_is_for_its_group_too_if_the_config_says_so_also_after_an_upgrade() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can give a file to another group");
        return;
    }
    let setup = Setup::new().named_app("a.test").admin("group = \"daemon\"\nmode = \"0660\"");
    let mut server = setup.start();
    let daemon = Group::from_name("daemon").expect("a look-up").expect("a group").gid.as_raw();
    let access = |server: &Server| {
        let file = fs::metadata(server.admin().path()).expect("the socket");
        (file.gid(), file.permissions().mode() & 0o777)
    };
    assert_eq!(access(&server), (daemon, 0o660));
    // As another user: `nobody` is in no group that may connect.
    let status = |group: &str| {
        let path = server.admin().path().display().to_string();
        let curl =
            ["-s", "-o", "/dev/null", "-m", "5", "--unix-socket", &path, "http://localhost/"];
        let as_nobody = ["--reuid=nobody", "--clear-groups", &format!("--regid={group}"), "curl"];
        Command::new("setpriv").args(as_nobody).args(curl).status().expect("setpriv").code()
    };
    fs::set_permissions(server.dir(), Permissions::from_mode(0o755)).expect("mode");
    assert_eq!((status("daemon"), status("nogroup")), (Some(0), Some(7)));
    let done = server.admin().post("/upgrade");
    let pid = done["pid"].as_i64().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    server.follow(pid.unwrap_or_else(|| panic!("{done}")));
    server.wait_event("upgrade_complete");
    assert_eq!(access(&server), (daemon, 0o660));
}

#[test]
fn probes_on_tcp_need_no_token_and_no_name() {
    let setup = Setup::new().named_app("a.test").admin("listen = \"127.0.0.1:0\"");
    let server = setup.admin("token = \"0123456789abcdef\"").start();
    let ready = server.wait_event("multi_app_ready");
    let address = ready.field("admin").expect("an address").parse().expect("an address");
    for path in ["/healthz", "/readyz"] {
        let response = Client::connect(address).exchange(get_and_close("10.1.2.3", path));
        assert_eq!(response.status, 200, "{path}");
    }
    for path in ["/status", "/healthz/x"] {
        let response = Client::connect(address).exchange(get_and_close("localhost", path));
        assert_eq!(response.status, 401, "{path}");
    }
}

#[test]
fn a_peer_on_tcp_needs_the_token() {
    let port = free_port();
    let server = Setup::new()
        .admin(&format!("listen = \"{port}\""))
        .admin("token = \"0123456789abcdef\"")
        .named_app("a.test")
        .start();
    let ask = |field: &str| {
        let mut socket = TcpStream::connect(port).unwrap();
        let request =
            format!("GET /apps HTTP/1.1\r\nHost: {port}\r\nConnection: close\r\n{field}\r\n");
        socket.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(ask("").starts_with("HTTP/1.1 401 "));
    assert!(ask("").contains("WWW-Authenticate: Bearer\r\n"));
    assert!(ask("Authorization: Bearer 0123456789abcdeX\r\n").starts_with("HTTP/1.1 401 "));
    assert!(ask("Authorization: Bearer 0123456789abcdef\r\n").starts_with("HTTP/1.1 200 "));
    drop(server);
}

#[test]
fn silent_strangers_on_tcp_do_not_keep_the_operator_out() {
    // More than the admin listener has places.
    const STRANGERS: usize = 4096 + 300;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("descriptors");
    let port = free_port();
    let server = Setup::new()
        .admin(&format!("listen = \"{port}\""))
        .admin("token = \"0123456789abcdef\"")
        .named_app("a.test")
        .start();
    let strangers: Vec<_> =
        (0..STRANGERS).map(|_| TcpStream::connect(port).expect("a connection")).collect();
    let begun = Instant::now();
    let mut socket = TcpStream::connect(port).expect("a connection");
    let head = "GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n";
    let token = "Authorization: Bearer 0123456789abcdef\r\n\r\n";
    socket.write_all([head, token].concat().as_bytes()).expect("send");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let elapsed = begun.elapsed();
    assert!(elapsed < Duration::from_secs(8), "the commands wait for 10 s: {elapsed:?}");
    drop(strangers);
    // A stranger that sends requests does not keep its connection either.
    let mut socket = TcpStream::connect(port).expect("a connection");
    socket
        .write_all(format!("{head}\r\n").replace("Connection: close\r\n", "").as_bytes())
        .expect("send");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("the end");
    assert!(answer.starts_with("HTTP/1.1 401 ") && answer.contains("Connection: close"));
    drop(server);
}

#[test]
fn a_socket_left_behind_is_replaced_a_live_one_is_not() {
    let setup = Setup::new().named_app("a.test");
    let path = setup.dir().join("tidegate.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "left behind");
    let server = setup.start();
    assert_eq!(server.admin().get("/healthz")["status"], "ok");
    let config = server.dir().join("config.toml");
    let (code, printed) = run(&["serve", "--config", &config.display().to_string()]);
    assert_eq!(code, Some(1), "{printed}");
    assert!(printed.contains("tidegate.sock"), "{printed}");
    assert_eq!(server.admin().get("/healthz")["status"], "ok", "the first server still has it");
}

#[test]
fn a_socket_that_a_cleaner_removed_is_back_after_a_reload() {
    let mut server = Setup::new().admin("mode = \"0660\"").named_app("a.test").start();
    let path = server.admin().path().to_owned();
    let mode = || fs::metadata(&path).expect("a socket").permissions().mode() & 0o7777;
    assert_eq!(mode(), 0o660);
    for _ in 0..2 {
        fs::remove_file(&path).expect("the socket's file");
        server.signal(Signal::HUP);
        // The file is there before its socket listens.
        let is_back = || UnixStream::connect(&path).is_ok();
        assert!(wait_until(PATIENCE, is_back), "{:?}", server.events());
        assert_eq!(server.admin().get("/healthz")["status"], "ok");
        assert_eq!(mode(), 0o660);
    }
    server.wait_event("admin_socket_renewed");
    // Another file at that path stays.
    fs::remove_file(&path).expect("the socket's file");
    fs::write(&path, "precious").expect("a file");
    server.signal(Signal::HUP);
    let reloads =
        || server.events().iter().filter(|it| it.name == "config_reload_complete").count();
    assert!(wait_until(PATIENCE, || reloads() == 3));
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit().code(), Some(0));
    assert_eq!(fs::read(&path).expect("a file"), b"precious");
}

#[test]
fn admin_can_be_turned_off() {
    let server = Setup::new().admin("enabled = false").named_app("a.test").start();
    assert!(!server.admin().path().exists());
    assert_eq!(body_of(&server, "a.test").0, 200);
}

#[test]
fn every_call_accepts_any_spelling_of_a_host_and_an_alias_means_its_app() {
    let lines = "aliases = [\"alias.test\", \"*.wild.test\"]\nrespond = {}";
    let proxy = "proxy = { upstreams = [\"http://127.0.0.1:1\"] }";
    let server = Setup::new().app("dot.test", lines).app("proxy.test", proxy).start();
    let admin = server.admin();
    let (socket, put) = (format!("unix:{}", admin.path().display()), ["--respond", "new"]);
    let command = |arguments: &[&str]| {
        let (code, printed) = run(&[arguments, &["--admin", &socket]].concat());
        assert_eq!(code, Some(0), "{arguments:?}: {printed}");
        printed
    };
    for name in [
        "dot.test",
        "dot.test.",
        "DOT.Test",
        "Dot.TEST.",
        "alias.test",
        "Alias.Test.",
        "*.wild.test",
    ] {
        assert!(command(&["app", name]).contains("dot.test"), "{name}");
        command(&["app", name, "--connections"]);
        assert!(command(&["drain", name]).starts_with("dot.test: drained"), "{name}");
        assert!(command(&["resume", name]).starts_with("dot.test: resumed"), "{name}");
        let replaced = command(&[&["replace", name][..], &put].concat());
        assert!(replaced.starts_with("dot.test: replaced"), "{name}: {replaced}");
        let names = ["--alias", "alias.test", "--alias", "*.wild.test"];
        command(&[&["replace", "dot.test"][..], &put, &names].concat());
        assert!(command(&["remove", name]).starts_with("dot.test: drained"), "{name}");
        let added = command(&[&["add", "DOT.test."][..], &put, &names].concat());
        assert!(added.starts_with("dot.test: added"), "{added}");
    }
    command(&["drain", "PROXY.test.", "--upstream", "http://127.0.0.1:1"]);
    command(&["resume", "PROXY.test.", "--upstream", "http://127.0.0.1:1"]);
    // A new app cannot get a name that another app has.
    let added = admin.put("/apps/alias.test.?only=add", &json!({ "respond": {} }));
    assert_eq!(added.status, 409, "{added:?}");
}

#[test]
fn every_call_suggests_a_host_for_a_misspelt_one() {
    let server =
        Setup::new().app("shop.test", "aliases = [\"www.shop.test\"]\nrespond = {}").start();
    let admin = server.admin();
    for (method, path, content) in [
        ("GET", "/apps/shp.test", ""),
        ("GET", "/apps/shp.test/connections", ""),
        ("DELETE", "/apps/shp.test", ""),
        ("POST", "/apps/shp.test/drain", ""),
        ("POST", "/apps/shp.test/resume", ""),
        ("POST", "/apps/shp.test/upstreams/drain?url=http://a", ""),
        ("POST", "/apps/shp.test/upstreams/resume?url=http://a", ""),
        ("PUT", "/apps/shp.test?only=replace", "{\"respond\":{}}"),
    ] {
        let answer = admin.call(method, path, content);
        assert_eq!(answer.status, 404, "{method} {path}");
        let expected = "shp.test: no app has this host (did you mean `shop.test`?)";
        assert_eq!(answer.error(), expected, "{method} {path}");
    }
    let answer = admin.call("DELETE", "/apps/wwww.shop.test", "");
    assert!(answer.error().ends_with("(did you mean `www.shop.test`?)"), "{answer:?}");
    let answer = admin.call("DELETE", "/apps/quite.other", "");
    assert_eq!(answer.error(), "quite.other: no app has this host");
}

#[test]
fn events_of_upstreams_come_to_the_stream_whatever_the_logs_level() {
    let dead = free_port();
    let app = format!(
        "proxy = {{ upstreams = [\"http://{dead}\"], eject_after = 2, health = \
         {{ path = \"/\", interval = \"100ms\", timeout = \"100ms\", rise = 1, fall = 1 }} }}"
    );
    let server = Setup::new().log("level = \"info\"").app("proxy.test", &app).start();
    let mut events = server.admin().events();
    let config = fs::read_to_string(server.dir().join("config.toml")).expect("the config");
    server.rewrite(&config.replace("level = \"info\"", "level = \"error\""));
    server.admin().post("/reload");
    // An upstream that is up from its first check has no event for that.
    let state = || server.admin().get("/apps/proxy.test")["upstreams"][0]["state"].clone();
    assert!(wait_until(PATIENCE, || state() == "down"), "{}", state());
    let listener = std::net::TcpListener::bind(dead).expect("the port");
    let is_well = Arc::new(AtomicBool::new(true));
    let answers = Arc::clone(&is_well);
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 1024]);
            if answers.load(SeqCst) {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            }
        }
    });
    let up = events.wait("upstream_up");
    assert_eq!((&up["level"], &up["fields"]["host"]), (&"INFO".into(), &"proxy.test".into()));
    is_well.store(false, SeqCst);
    let down = events.wait("upstream_down");
    assert_eq!((&down["level"], &down["fields"]["host"]), (&"WARN".into(), &"proxy.test".into()));
    assert!(down["fields"]["reason"].as_str().is_some(), "{down}");
    let logged = server.log_lines().iter().any(|line| line.contains("upstream_down reason"));
    assert!(!logged, "the log's own level holds");
}

#[test]
fn connections_limited_is_logged_if_the_config_asks_for_more_than_there_can_be() {
    let limited = |setup: Setup| {
        let server = setup.named_app("a.test").descriptors(600).start();
        server.events().into_iter().find(|event| event.name == "connections_limited")
    };
    assert!(limited(Setup::new()).is_none(), "the default is whatever is possible");
    let event = limited(Setup::new().limits("connections = 5000")).expect("an event");
    assert!(event.field("hint").is_some_and(|hint| hint.contains("open files")), "{event:?}");
}
