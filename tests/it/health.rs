//! The health listener: the answers to probes of remote load balancers; and that neither they nor
//! strangers affect operators and the public.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

use crate::support::{
    Client, End, PATIENCE, Pid, Server, Setup, Signal, free_port, get, get_and_close, run,
    wait_until,
};

/// Connections of the health listener, if there are enough descriptors.
const PLACES: usize = 256;

const LISTEN: &str = "health_listen = \"127.0.0.1:0\"";

/// A server with a health listener, a quick app and a slow one.
fn start(setup: Setup) -> (Server, SocketAddr) {
    Server::adopt_orphans();
    let slow = "respond = { body = \"slow\", delay = \"1500ms\" }";
    let server = setup.named_app("a.test").app("slow.test", slow).start();
    let health = health_of(&server);
    (server, health)
}

fn health_of(server: &Server) -> SocketAddr {
    let ready = server.wait_event("multi_app_ready");
    let health = ready.field("health").unwrap_or_else(|| panic!("{ready:?}"));
    health.parse().expect("an address")
}

/// Asks without `Connection: close`, and still expects the end of the connection.
fn ask(health: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut client = Client::connect(health);
    client.send(format!("{method} {path} HTTP/1.1\r\nHost: 10.1.2.3\r\n\r\n"));
    let is_head = method == "HEAD";
    let response = if is_head { client.response_to_head() } else { client.response() };
    assert!(response.says_close(), "{method} {path}: {response:?}");
    client.expect_eof();
    (response.status, response.text().to_owned())
}

fn is_answered(server: &Server) -> bool {
    server.connect().exchange(get_and_close("a.test", "/")).text() == "a.test"
}

#[test]
fn probes_are_answered_once_and_nothing_else_is() {
    let (server, health) = start(Setup::new().admin(LISTEN));
    for (path, status) in [("/healthz", "ok"), ("/readyz", "ready"), ("/readyz?x=1", "ready")] {
        let content = format!("{{\"status\":\"{status}\"}}\n");
        assert_eq!(ask(health, "GET", path), (200, content), "{path}");
        assert_eq!(ask(health, "HEAD", path), (200, String::new()), "{path}");
        assert_eq!(ask(health, "DELETE", path).0, 405, "{path}");
    }
    for path in ["/", "/status", "/apps", "/metrics", "/healthz/x", "/readyz/", "*"] {
        let method = if path == "*" { "OPTIONS" } else { "GET" };
        assert_eq!(ask(health, method, path).0, 404, "{path}");
    }
    assert_eq!(ask(health, "POST", "/stop").0, 404);
    let mut client = Client::connect(health);
    let response = client.exchange("PUT /readyz HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(response.field("Allow"), Some("GET, HEAD"));
    // The answers are those of the admin API.
    let mut client = Client::connect(health);
    let probe = client.exchange(get("localhost", "/healthz"));
    assert_eq!(probe.field("Cache-Control"), Some("no-store"));
    assert_eq!(probe.text(), server.admin().call("GET", "/healthz", "").text);
    // A second request on a connection is not read.
    let mut client = Client::connect(health);
    client.send([get("h", "/healthz"), get("h", "/healthz")].concat());
    let (bytes, _) = client.read_to_end();
    assert_eq!(Client::parse_all(&bytes).len(), 1);
    // The client of HAProxy's plain `option httpchk`.
    let mut client = Client::connect(health);
    client.send("OPTIONS / HTTP/1.0\r\n\r\n");
    assert_eq!(client.response().status, 404);
    let mut client = Client::connect(health);
    client.send("GET /readyz HTTP/1.0\r\n\r\n");
    assert_eq!(client.response().status, 200);
}

#[test]
fn a_request_with_content_is_refused_and_keeps_no_place() {
    let (_server, health) = start(Setup::new().admin(LISTEN));
    for announced in ["Content-Length: 1000000000", "Transfer-Encoding: chunked"] {
        for method in ["POST", "GET"] {
            let mut client = Client::connect(health);
            let mut sender = client.second();
            let begun = Instant::now();
            client.send(format!("{method} /readyz HTTP/1.1\r\nHost: h\r\n{announced}\r\n\r\n"));
            let response = client.response();
            assert_eq!(response.status, 413, "{method} {announced}");
            assert!(response.says_close());
            // It goes on sending, faster than a slow client.
            let piece = format!("{:x}\r\n{}\r\n", 4096, "x".repeat(4096));
            let is_gone = || sender.try_send(piece.as_bytes()).is_err();
            assert!(wait_until(PATIENCE, is_gone), "{method} {announced}");
            let elapsed = begun.elapsed();
            assert!(elapsed < Duration::from_secs(4), "{method} {announced}: {elapsed:?}");
        }
    }
    assert_eq!(ask(health, "GET", "/readyz").0, 200);
}

#[test]
fn a_slow_client_is_gone_after_a_second() {
    let (_server, health) = start(Setup::new().admin(LISTEN));
    for (sent, status) in [("", None), ("GET /ready", Some(408))] {
        let mut client = Client::connect(health);
        let begun = Instant::now();
        client.send(sent);
        let (bytes, end) = client.read_to_end();
        let elapsed = begun.elapsed();
        assert_eq!(end, End::Eof, "{sent:?}");
        assert_eq!(Client::parse_all(&bytes).first().map(|answer| answer.status), status);
        assert!(elapsed >= Duration::from_millis(900), "{sent:?}: {elapsed:?}");
        assert!(elapsed < Duration::from_secs(4), "{sent:?}: {elapsed:?}");
    }
}

#[test]
fn it_works_without_the_admin() {
    let (mut server, health) = start(Setup::new().admin("enabled = false").admin(LISTEN));
    assert!(!server.admin().path().exists());
    let ready = server.wait_event("multi_app_ready");
    assert_eq!(ready.field("admin"), Some("-"));
    assert_eq!(ask(health, "GET", "/readyz").0, 200);
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn without_the_key_there_is_no_such_listener() {
    let server = Setup::new().named_app("a.test").start();
    assert_eq!(server.wait_event("multi_app_ready").field("health"), Some("-"));
}

#[test]
fn clients_that_fill_its_places_keep_out_neither_operators_nor_the_public() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("descriptors");
    let (server, health) = start(Setup::new().admin(LISTEN));
    let before = server.sockets();
    let strangers: Vec<_> = (0..PLACES + 50).map(|_| Client::connect(health)).collect();
    let is_full = || server.sockets() >= before + PLACES;
    assert!(wait_until(PATIENCE, is_full), "{} of {before}", server.sockets());
    assert!(server.sockets() <= before + PLACES + 8, "no more than its places");
    assert_eq!(server.admin().get("/status")["state"], "serving");
    assert!(is_answered(&server));
    // Silent connections are closed, which makes room.
    assert_eq!(ask(health, "GET", "/readyz").0, 200);
    drop(strangers);
}

#[test]
fn few_descriptors_leave_room_for_the_public() {
    let (server, health) = start(Setup::new().admin(LISTEN).descriptors(100));
    let _strangers: Vec<_> = (0..30).map(|_| Client::connect(health)).collect();
    assert!(is_answered(&server));
    assert_eq!(ask(health, "GET", "/readyz").0, 200);
}

#[test]
fn it_says_503_from_the_begin_of_a_stop_to_its_end() {
    let (mut server, health) = start(Setup::new().admin(LISTEN).server("shutdown_delay = \"1s\""));
    let mut slow = server.connect();
    slow.send(get("slow.test", "/"));
    server.wait_read([&slow]);
    assert_eq!(ask(health, "GET", "/readyz").0, 200);
    server.signal(Signal::TERM);
    server.wait_event("shutdown_graceful");
    let stopping = || (503, "{\"status\":\"stopping\"}\n".to_owned());
    // During the delay the public is served as usual; after it the exchange is still in flight.
    assert_eq!(ask(health, "GET", "/readyz"), stopping());
    assert!(is_answered(&server));
    let mut later = server.connect();
    later.send(get("slow.test", "/"));
    assert_eq!(slow.response().text(), "slow");
    assert_eq!(ask(health, "GET", "/readyz"), stopping());
    assert_eq!(ask(health, "GET", "/healthz").0, 200);
    assert_eq!(later.response().text(), "slow");
    assert_eq!(server.wait_exit().code(), Some(0));
    assert!(Client::try_connect(health, PATIENCE).is_err(), "it ends with the process");
}

/// Probes without a pause, each on a connection of its own.
struct Prober {
    ends: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    thread: thread::JoinHandle<Vec<String>>,
}

impl Prober {
    fn start(health: SocketAddr) -> Self {
        let (ends, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (until, count) = (Arc::clone(&ends), Arc::clone(&answered));
        let thread = thread::spawn(move || {
            let mut failed = Vec::new();
            while !until.load(SeqCst) {
                match Self::probe(health) {
                    Ok(()) => drop(count.fetch_add(1, SeqCst)),
                    Err(error) => failed.push(error),
                }
            }
            failed
        });
        Self { ends, answered, thread }
    }

    fn probe(health: SocketAddr) -> Result<(), String> {
        let connected = Client::try_connect(health, PATIENCE);
        let mut client = connected.map_err(|error| format!("connect: {error}"))?;
        let sent = client.try_send(get("h", "/readyz").as_bytes());
        sent.map_err(|error| format!("send: {error}"))?;
        let response = client.try_response(false).map_err(|lost| format!("{lost:?}"))?;
        // Thousands of connections in TIME_WAIT would slow down other tests, which read the
        // kernel's table of connections.
        client.reset();
        if response.status == 200 { Ok(()) } else { Err(response.status.to_string()) }
    }

    /// Waits for further probes, so that the latest change is probed too.
    fn go_on(&self) {
        let before = self.answered.load(SeqCst);
        let goes_on = wait_until(PATIENCE, || self.answered.load(SeqCst) >= before + 20);
        assert!(goes_on, "{before} probes, and no more");
    }

    fn end(self) -> (usize, Vec<String>) {
        self.ends.store(true, SeqCst);
        let failed = self.thread.join().expect("the prober");
        (self.answered.load(SeqCst), failed)
    }
}

/// Upgrades, and makes the new process the current one.
fn upgrade(server: &mut Server) {
    let done = server.admin().post("/upgrade");
    let pid = done["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    server.follow(pid.and_then(Pid::from_raw).expect("a pid"));
}

#[test]
fn no_probe_fails_while_servers_are_upgraded_or_fail_to_be() {
    let (mut server, health) = start(Setup::new().admin(LISTEN));
    let probers = [(); 2].map(|()| Prober::start(health));
    probers.iter().for_each(Prober::go_on);
    for _ in 0..5 {
        // The old process drains for a while, next to the new one.
        let mut slow = server.connect();
        slow.send(get("slow.test", "/"));
        server.wait_read([&slow]);
        upgrade(&mut server);
        probers.iter().for_each(Prober::go_on);
        assert_eq!(slow.response().text(), "slow");
        // Without an exchange in flight, the old process ends at once.
        upgrade(&mut server);
        probers.iter().for_each(Prober::go_on);
    }
    let script = server.dir().join("fails");
    fs::write(&script, "#!/bin/sh\nexit 7\n").expect("a script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("its mode");
    let path = format!("/upgrade?binary={}", script.display());
    assert!(server.admin().call("POST", &path, "").status >= 400);
    server.wait_event("upgrade_failed");
    probers.iter().for_each(Prober::go_on);
    for prober in probers {
        let (answered, failed) = prober.end();
        assert!(failed.is_empty(), "{} of {answered}: {:?}", failed.len(), failed.first());
    }
}

#[test]
fn it_is_back_when_a_new_process_dies() {
    let (mut server, health) = start(Setup::new().admin(LISTEN));
    let old = server.pid();
    let mut slow = server.connect();
    slow.send(get("slow.test", "/"));
    server.wait_read([&slow]);
    upgrade(&mut server);
    assert_eq!(ask(health, "GET", "/readyz").0, 200);
    server.signal(Signal::KILL);
    server.follow(old);
    server.wait_event("upgrade_reverted");
    assert_eq!(ask(health, "GET", "/readyz").0, 200);
    assert_eq!(slow.response().text(), "slow");
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn an_upgrade_takes_it_up_moves_it_and_lets_it_go() {
    let [first, second] = [free_port(), free_port()];
    let setup = Setup::new().named_app("a.test");
    Server::adopt_orphans();
    let mut server = setup.start();
    let config = fs::read_to_string(server.dir().join("config.toml")).expect("the config");
    let with = |health: SocketAddr| {
        config.replace("[admin]\n", &format!("[admin]\nhealth_listen = \"{health}\"\n"))
    };
    server.rewrite(&with(first));
    upgrade(&mut server);
    assert_eq!(ask(first, "GET", "/readyz").0, 200);
    server.rewrite(&with(second));
    upgrade(&mut server);
    assert_eq!(ask(second, "GET", "/readyz").0, 200);
    let is_refused = |address| Client::try_connect(address, PATIENCE).is_err();
    assert!(wait_until(PATIENCE, || is_refused(first)), "the old process has it until its end");
    server.rewrite(&config);
    upgrade(&mut server);
    assert!(wait_until(PATIENCE, || is_refused(second)));
    assert!(is_answered(&server));
}

#[test]
fn a_reload_says_that_it_changes_at_the_next_start() {
    let (server, health) = start(Setup::new().admin(LISTEN));
    let config = fs::read_to_string(server.dir().join("config.toml")).expect("the config");
    server.rewrite(&config.replace(LISTEN, ""));
    let reloaded = server.admin().post("/reload");
    assert_eq!(reloaded["needs_restart"], json!(["admin.health_listen"]), "{reloaded}");
    assert_eq!(ask(health, "GET", "/readyz").0, 200);
}

#[test]
fn an_address_that_is_taken_or_invalid_is_reported() {
    let said = |line: &str, command: &str| {
        let setup = Setup::new().named_app("a.test").admin(line);
        let config = setup.write();
        let (code, printed) = run(&[command, "--config", config.to_str().expect("text")]);
        assert_ne!(code, Some(0), "{line}: {printed}");
        printed
    };
    let holder = TcpListener::bind("127.0.0.1:0").expect("a port");
    let held = holder.local_addr().expect("an address");
    let printed = said(&format!("health_listen = \"{held}\""), "serve");
    assert!(printed.contains(&format!("cannot listen on {held}")), "{printed}");
    assert!(printed.contains("it is in use by"), "{printed}");
    let printed = said("health_listen = \"192.0.2.1:8081\"", "serve");
    assert!(printed.contains("cannot listen on 192.0.2.1:8081"), "{printed}");
    let printed = said("health_listen = \"example.com:8081\"", "check");
    assert!(
        printed.contains("`admin.health_listen` is not an IP address with a port"),
        "{printed}"
    );
}
