//! Attacks on a server that also has a good client: the client gets right answers in time, the
//! attack ends, and the server gets its memory and descriptors back.
//!
//! One attack runs at a time: each may take thousands of descriptors, here and in the server.

use std::{
    net::{IpAddr, Ipv4Addr},
    ops::Range,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::{
    Client, End, PATIENCE, Server, Setup, get, get_and_close, pattern, wait_until,
};

/// The app of the good client, and the attacked app.
const GOOD: &str = "good.test";
const HOST: &str = "a.test";

/// How long the good client may wait for an answer: long, because a busy machine is no failure.
const IN_TIME: Duration = Duration::from_secs(5);

/// The good client sends at least this many requests, one after the other.
const GOOD_REQUESTS: usize = 30;

/// Its pause between requests, so that it is no load.
const GOOD_PAUSE: Duration = Duration::from_millis(5);

/// Connections of one attack, if there are descriptors for them.
const CONNECTIONS_MAX: usize = 5_000;

/// The address of attackers, which differs from the good client's.
const ATTACKER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));

/// Memory that any load leaves in pools and in the allocator; it does not count.
const SLACK_KIB: usize = 32 * 1024;

/// Waits for its turn, and lets this process have all the descriptors that it may.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("setrlimit");
    turn
}

/// As many connections as both processes have descriptors for.
fn many() -> usize {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(descriptors / 4).map_or(CONNECTIONS_MAX, |some| some.min(CONNECTIONS_MAX))
}

fn setup() -> Setup {
    Setup::new().named_app(GOOD).named_app(HOST)
}

/// What the good client saw.
struct Good {
    answered: usize,
    slowest: Duration,
}

/// Runs the attack while a good client sends requests on a connection from before the attack, and,
/// with `new_connections`, also on new ones.
fn beside<T>(server: &Server, new_connections: bool, attack: impl FnOnce() -> T) -> T {
    let mut client = server.connect();
    assert_eq!(client.exchange(get(GOOD, "/")).text(), GOOD);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let good = scope.spawn(|| ask_until(&is_over, server, client, new_connections));
        // Ends the good client's thread even if the attack panics.
        let over = Over(&is_over);
        let outcome = attack();
        drop(over);
        let good = good.join().expect("every good request is answered right");
        assert!(good.slowest < IN_TIME, "{:?} of {} requests", good.slowest, good.answered);
        outcome
    })
}

/// Sets the flag when it is dropped.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

fn ask_until(is_over: &AtomicBool, server: &Server, mut kept: Client, new: bool) -> Good {
    let mut good = Good { answered: 0, slowest: Duration::ZERO };
    while good.answered < GOOD_REQUESTS || !is_over.load(SeqCst) {
        let begun = Instant::now();
        let response = if new && good.answered % 2 == 1 {
            server.connect().exchange(get_and_close(GOOD, "/"))
        } else {
            kept.exchange(get(GOOD, "/"))
        };
        good.slowest = good.slowest.max(begun.elapsed());
        assert_eq!((response.status, response.text()), (200, GOOD));
        good.answered += 1;
        assert!(kept.stays_silent(GOOD_PAUSE));
    }
    good
}

/// What the server has before an attack.
struct Before {
    sockets: usize,
    kib: usize,
}

impl Before {
    fn of(server: &Server) -> Self {
        Self { sockets: server.sockets(), kib: server.resident_kib() }
    }

    /// Checks that the server has its descriptors back, and uses at most this much more memory.
    fn expect_back(&self, server: &Server, kib_max: usize) {
        let back = wait_until(PATIENCE, || server.sockets() <= self.sockets);
        assert!(back, "{} sockets, {} before", server.sockets(), self.sockets);
        self.expect_memory(server, kib_max);
    }

    fn expect_memory(&self, server: &Server, kib_max: usize) {
        let (now, most) = (server.resident_kib(), self.kib + kib_max + SLACK_KIB);
        assert!(now <= most, "{now} KiB, {} before, at most {most}", self.kib);
    }
}

/// Sends a few more bytes on connections whose message never ends.
fn trickle(clients: &mut [Client], bytes: &str) {
    for client in clients {
        // A closed connection is noticed later.
        let _ = client.try_send(bytes.as_bytes());
    }
}

/// Opens this many connections, each of which begins with these bytes.
fn open(server: &Server, count: usize, bytes: &str) -> Vec<Client> {
    let open = |_| {
        let mut client = Client::connect_from(ATTACKER, server.address());
        let _ = client.try_send(bytes.as_bytes());
        client
    };
    (0..count).map(open).collect()
}

/// Checks that each client gets this status, and that its connection is closed.
fn expect_all(clients: Vec<Client>, status: u16) {
    for mut client in clients {
        let (answer, end) = client.read_to_end();
        let text = String::from_utf8_lossy(&answer);
        // Bytes that the server did not read may cause a reset.
        let is_right = text.starts_with(&format!("HTTP/1.1 {status} "));
        assert!(is_right || end == End::Reset, "{text:?}, {end:?}");
        assert_ne!(end, End::Open);
    }
}

#[test]
fn heads_that_never_end_are_408() {
    let _alone = alone();
    let server = setup().limits("head_timeout = \"4s\"\nlinger_timeout = \"200ms\"").start();
    let before = Before::of(&server);
    beside(&server, true, || {
        let mut clients = open(&server, many(), "GET / HTTP/1.1\r\nHost: a.te");
        trickle(&mut clients, "s");
        trickle(&mut clients, "t");
        // Each holds an input buffer of head_bytes, 16 KiB, and its own state.
        before.expect_memory(&server, many() * 18);
        expect_all(clients, 408);
    });
    before.expect_back(&server, many() * 18);
}

#[test]
fn content_that_never_ends_is_408() {
    let _alone = alone();
    let server = setup().limits("body_timeout = \"3s\"\nlinger_timeout = \"200ms\"").start();
    let before = Before::of(&server);
    beside(&server, true, || {
        let head = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100000\r\n\r\n";
        let mut clients = open(&server, many(), head);
        trickle(&mut clients, "x");
        trickle(&mut clients, "x");
        // Nothing of the content is kept.
        before.expect_memory(&server, many() * 4);
        expect_all(clients, 408);
    });
    before.expect_back(&server, many() * 4);
}

#[test]
fn answers_that_are_never_read_end_with_their_connections() {
    const LARGE: usize = 16 * 1024 * 1024;
    let _alone = alone();
    let files = "files = { root = \"site\" }";
    let setup = setup().app("files.test", files).file("site/large", pattern(LARGE));
    let server = setup.limits("write_timeout = \"2s\"").start();
    let before = Before::of(&server);
    beside(&server, true, || {
        let begin = |_| {
            let mut client = Client::connect_narrow(server.address());
            client.send(get("files.test", "/large"));
            client
        };
        let clients: Vec<Client> = (0..many()).map(begin).collect();
        // On a busy machine the kernel is slow to take the first bytes of so many large answers.
        assert!(wait_until(4 * PATIENCE, || server.sockets() >= before.sockets + many()));
        let is_over = || server.sockets() <= before.sockets + 2;
        assert!(wait_until(PATIENCE, is_over), "{} sockets", server.sockets());
        // Three are enough: it takes long to read what the kernel has of each.
        for mut client in clients.into_iter().take(3) {
            let (answer, end) = client.read_to_end();
            assert!(answer.len() < LARGE && end != End::Open, "{} bytes", answer.len());
        }
    });
    // The file is sent from the page cache.
    before.expect_back(&server, many() * 4);
}

#[test]
fn connections_over_the_limit_wait_and_are_accepted_later() {
    let _alone = alone();
    let limits = "connections = 200\nhead_timeout = \"3s\"\nlinger_timeout = \"200ms\"";
    let server = setup().limits(limits).start();
    let before = Before::of(&server);
    // The good client's connection is among the accepted ones.
    beside(&server, false, || {
        let clients = open(&server, many().min(2_000), "");
        assert!(wait_until(PATIENCE, || server.sockets() > 200));
        assert!(server.sockets() <= before.sockets + 200 + 2);
        // Silent clients are closed after a while, and the next ones get in.
        let mut late = server.connect();
        drop(clients);
        assert_eq!(late.exchange(get_and_close(HOST, "/")).text(), HOST);
    });
    before.expect_back(&server, 200 * 18);
}

#[test]
fn a_peer_that_takes_all_connections_has_its_share_of_them() {
    let _alone = alone();
    let server = setup().limits("connections = 200\nconnections_per_ip = 100").start();
    let before = Before::of(&server);
    beside(&server, true, || {
        let all = many().min(2_000);
        let mut clients = open(&server, all, "");
        let is_closed = |client: &mut Client| usize::from(client.peek_end() != End::Open);
        let mut closed = || clients.iter_mut().map(is_closed).sum::<usize>();
        assert!(wait_until(PATIENCE, || closed() == all - 100), "{} of {all}", closed());
    });
    before.expect_back(&server, 200 * 18);
    let refused = server.wait_event("connection_refused");
    assert_eq!(refused.field("client"), Some("127.0.0.66"));
}

#[test]
fn tiny_requests_without_end_leave_the_others_their_turns() {
    // More connections than loops, each with more requests than one turn answers.
    const CONNECTIONS: usize = 8;
    const ROUNDS: usize = 20;
    const BATCH: usize = 64 * 1024 / 28;
    let _alone = alone();
    let server = setup().start();
    let before = Before::of(&server);
    beside(&server, true, || {
        let batch = get(HOST, "/").repeat(BATCH);
        thread::scope(|scope| {
            for _ in 0..CONNECTIONS {
                let mut client = Client::connect_from(ATTACKER, server.address());
                let (batch, mut sender) = (&batch, client.second());
                scope.spawn(move || {
                    (0..ROUNDS).for_each(|_| sender.send(batch));
                    sender.send(get_and_close(HOST, "/"));
                });
                scope.spawn(move || {
                    let (answers, end) = client.read_to_end_within(2 * PATIENCE);
                    let answers = String::from_utf8_lossy(&answers);
                    let right = answers.matches("HTTP/1.1 200 OK").count();
                    assert_eq!((right, end), (ROUNDS * BATCH + 1, End::Eof));
                });
            }
        });
    });
    before.expect_back(&server, CONNECTIONS * 256);
}

#[test]
fn huge_heads_are_refused_and_not_kept() {
    const CONNECTIONS: usize = 200;
    let _alone = alone();
    let server = setup().limits("linger_timeout = \"200ms\"").start();
    let before = Before::of(&server);
    let line = "x".repeat(1 << 20);
    let fields = "A: b\r\n".repeat(1 << 16);
    beside(&server, true, || {
        for (head, status) in [
            (format!("GET /{line} HTTP/1.1\r\n"), 414),
            (format!("GET / HTTP/1.1\r\nHost: a.test\r\nX: {line}\r\n\r\n"), 431),
            (format!("GET / HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n"), 431),
        ] {
            let connect = |_| {
                let mut client = Client::connect_from(ATTACKER, server.address());
                // The server does not read everything that follows the refused head.
                let _ = client.try_send(head.as_bytes());
                client
            };
            expect_all((0..CONNECTIONS).map(connect).collect(), status);
        }
    });
    before.expect_back(&server, CONNECTIONS * 18);
}

#[test]
fn thousands_of_unknown_hosts_are_404_and_not_kept() {
    const HOSTS: Range<usize> = 0..20_000;
    let _alone = alone();
    let server = setup().app("*.wild.test", "respond = { body = \"wild\" }").start();
    let before = Before::of(&server);
    beside(&server, true, || {
        let mut client = Client::connect_from(ATTACKER, server.address());
        for batch in HOSTS.collect::<Vec<_>>().chunks(500) {
            let request = |number: &usize| get(&format!("h{number:x}.test"), "/");
            client.send(batch.iter().map(request).collect::<String>());
            for _ in batch {
                assert_eq!(client.response().status, 404);
            }
        }
        // As many labels as a name may have: each is one more wildcard to look up.
        let deep = format!("{}wild.test", "a.".repeat(120));
        client.send(get(&deep, "/").repeat(500));
        for _ in 0..500 {
            assert_eq!(client.response().text(), "wild");
        }
    });
    before.expect_back(&server, 0);
}

#[test]
fn thousands_of_ranges_get_the_whole_and_nothing_more() {
    const REQUESTS: usize = 300;
    const LENGTH: usize = 100_000;
    let _alone = alone();
    let files = "files = { root = \"site\" }";
    let server = setup().app("files.test", files).file("site/a", pattern(LENGTH)).start();
    let before = Before::of(&server);
    let ranges: Vec<String> = (0..1_500).map(|at| format!("{at}-{at}")).collect();
    let overlapping = "0-,".repeat(4_000);
    beside(&server, true, || {
        let mut client = Client::connect_from(ATTACKER, server.address());
        for set in [&ranges.join(","), &overlapping, &"0-0,".repeat(3_000)] {
            for _ in 0..REQUESTS {
                let request = get("files.test", "/a");
                let field = format!("Range: bytes={set}\r\n\r\n");
                let response = client.exchange(request.trim_end().to_owned() + "\r\n" + &field);
                assert_eq!((response.status, response.body.len()), (200, LENGTH));
            }
        }
    });
    before.expect_back(&server, 0);
}

#[test]
fn paths_in_any_disguise_stay_in_the_root() {
    let _alone = alone();
    let files = "files = { root = \"site\" }";
    let setup = setup().app("files.test", files).file("site/index.html", "index");
    let server = setup.file("secret", "the secret").file("site/.env", "the secret").start();
    let before = Before::of(&server);
    let dots =
        ["..", "%2e%2e", ".%2e", "%2E.", "%252e%252e", "%c0%ae%c0%ae", "..;", "%u002e%u002e"];
    let slashes = ["/", "%2f", "%2F", "\\", "%5c", "%252f", "//", "/./", "%c0%af", "/%00/"];
    let mut paths = vec!["/.env".to_owned(), "/%2eenv".to_owned(), "/.env%00.html".to_owned()];
    for (dot, slash) in dots.iter().flat_map(|dot| slashes.map(|slash| (dot, slash))) {
        for depth in [1, 2, 40] {
            let up = format!("{dot}{slash}").repeat(depth);
            let names = ["secret", "config.toml", "etc/passwd"];
            paths.extend(names.map(|name| format!("/{up}{name}")));
            paths.extend(names.map(|name| format!("/index.html{slash}{up}{name}")));
        }
    }
    beside(&server, true, || {
        for path in &paths {
            let mut client = Client::connect_from(ATTACKER, server.address());
            let response = client.exchange(get_and_close("files.test", path));
            assert!([400, 404].contains(&response.status), "{path}: {response:?}");
            let body = String::from_utf8_lossy(&response.body);
            assert!(!body.contains("secret") && !body.contains("root:"), "{path}: {body}");
        }
    });
    before.expect_back(&server, 0);
}

#[test]
fn a_flood_of_requests_has_its_rate_and_other_clients_theirs() {
    const REQUESTS: usize = 2_000;
    let _alone = alone();
    let limit = "rate_limit = { requests = 50, per = \"1h\" }";
    let limited = format!("respond = {{ body = \"{HOST}\" }}\n{limit}");
    let server = Setup::new().named_app(GOOD).app(HOST, &limited).start();
    let before = Before::of(&server);
    let statuses = beside(&server, true, || {
        let mut client = Client::connect_from(ATTACKER, server.address());
        client.send(get(HOST, "/").repeat(REQUESTS));
        (0..REQUESTS).map(|_| client.response().status).collect::<Vec<_>>()
    });
    let answered = statuses.iter().take_while(|status| **status == 200).count();
    assert_eq!(answered, 50);
    assert!(statuses[answered..].iter().all(|status| *status == 429));
    assert_eq!(server.connect().exchange(get(HOST, "/")).status, 200, "another client");
    before.expect_back(&server, 0);
}
