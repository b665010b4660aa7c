//! Operators do everything at once, in random order, under load; afterwards nothing is left over.
//!
//! Random, from a seed that is printed; `TIDEGATE_STRESS_SEED` replays the choices, though not the
//! threads' timing, and `TIDEGATE_STRESS_SECONDS` makes it longer.

use std::{
    fmt::Write as _,
    io::{ErrorKind, Read, Write},
    net::SocketAddr,
    os::unix::net::UnixStream,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::{
    Admin, Client, PATIENCE, Random, Server, Setup, Signal, free_port, get, number_of_environment,
    wait_until,
};

const HOSTS: [&str; 5] = ["a.test", "b.test", "c.test", "*.w.test", "d.test"];
/// Aliases; the last two are hosts too, so names move between hosts and aliases.
const ALIASES: [&str; 6] = ["x.test", "y.test", "*.z.test", "n.w.test", "c.test", "d.test"];
const ASKED: [&str; 9] = [
    "a.test", "b.test", "c.test", "m.w.test", "x.test", "y.test", "k.z.test", "n.w.test", "d.test",
];

/// The state that all threads share.
struct Stress {
    address: SocketAddr,
    admin: Admin,
    over: AtomicBool,
    /// Requests that an app answered, and those with an unknown result.
    answered: AtomicU64,
    unknown: AtomicU64,
    drains: Mutex<Vec<Value>>,
}

impl Stress {
    fn goes_on(&self) -> bool {
        !self.over.load(SeqCst)
    }

    /// Asks one app after the other, and counts the answers that an app gave.
    fn load(&self, mut random: Random) {
        while self.goes_on() {
            let Ok(mut client) = Client::try_connect(self.address, PATIENCE) else { continue };
            for _ in 0..random.below(30) {
                let host = random.one(&ASKED);
                let pipelined = 1 + random.below(3);
                if client.try_send(get(host, "/").repeat(pipelined).as_bytes()).is_err() {
                    self.unknown.fetch_add(pipelined as u64, SeqCst);
                    break;
                }
                if !self.read(&mut client, pipelined) {
                    break;
                }
            }
        }
    }

    fn read(&self, client: &mut Client, pipelined: usize) -> bool {
        for nth in 0..pipelined {
            match client.try_response(false) {
                Ok(response) if response.status == 200 => {
                    assert!(response.text().starts_with("app"), "{response:?}");
                    self.answered.fetch_add(1, SeqCst);
                }
                Ok(response) => assert!([404, 503].contains(&response.status), "{response:?}"),
                Err(_) => {
                    self.unknown.fetch_add((pipelined - nth) as u64, SeqCst);
                    return false;
                }
            }
        }
        true
    }

    fn operate(&self, mut random: Random) {
        while self.goes_on() {
            let host = random.one(&HOSTS).replace('*', "%2A");
            let timeout = random.one(&["", "?timeout=0s", "?timeout=15ms", "?timeout=1s"]);
            let (method, path, content) = match random.below(12) {
                0 | 1 => ("PUT", format!("/apps/{host}"), table(&mut random).to_string()),
                2 => ("PUT", format!("/apps/{host}?only=add"), table(&mut random).to_string()),
                3 => ("DELETE", format!("/apps/{host}{timeout}"), String::new()),
                4 | 5 => ("POST", format!("/apps/{host}/drain{timeout}"), String::new()),
                6 | 7 => ("POST", format!("/apps/{host}/resume"), String::new()),
                8 => ("GET", format!("/apps/{host}"), String::new()),
                9 => ("GET", self.some_drain(&mut random), String::new()),
                10 => ("GET", random.one(&["/status", "/apps", "/metrics"]).into(), String::new()),
                _ => {
                    self.cut_one(&host);
                    continue;
                }
            };
            let answer = self.admin.call(method, &path, &content);
            let expected = [200, 201, 202, 404, 409, 422];
            assert!(expected.contains(&answer.status), "{method} {path}: {answer:?}");
            if answer.status == 202 {
                let id = answer.json()["id"].clone();
                self.drains.lock().expect("drains").push(id);
            }
            if method == "GET" && answer.status == 200 && path.starts_with("/apps/") {
                check_row(&answer.json());
            }
        }
    }

    fn some_drain(&self, random: &mut Random) -> String {
        let drains = self.drains.lock().expect("drains");
        match drains.len() {
            0 => "/drains".to_owned(),
            len => format!("/drains/{}?wait=30ms", drains[random.below(len)]),
        }
    }

    fn cut_one(&self, host: &str) {
        let busy = self.admin.call("GET", &format!("/apps/{host}/connections"), "");
        if busy.status == 200
            && let Some(id) = busy.json()["connections"][0]["id"].as_str()
        {
            let cut = self.admin.call("DELETE", &format!("/connections/{id}"), "");
            assert!([200, 404].contains(&cut.status), "{cut:?}");
        }
    }

    /// Reloads random configs, by the admin API and by SIGHUP.
    fn reload(&self, server: &Server, mut random: Random, second: &str) {
        let mut rounds = 0;
        while self.goes_on() {
            server.rewrite(&config(self.address, &mut random, second));
            if random.below(4) == 0 {
                server.signal(Signal::HUP);
            } else {
                // A random config may remove all apps.
                let done = self.admin.call("POST", "/reload?allow_empty=true", "");
                assert_eq!(done.status, 200, "{done:?}");
            }
            rounds += 1;
            wait_until(Duration::from_millis(random.below(30) as u64), || false);
        }
        println!("{rounds} reloads");
    }
}

fn table(random: &mut Random) -> Value {
    let delay = random.one(&["0s", "0s", "5ms", "60ms"]);
    let mut table = json!({ "respond": { "body": "app by hand", "delay": delay } });
    if random.below(2) == 0 {
        table["aliases"] = json!([random.one(&ALIASES)]);
    }
    table
}

fn config(address: SocketAddr, random: &mut Random, second: &str) -> String {
    let mut listen = vec![address.to_string()];
    if random.below(3) == 0 {
        listen.push(second.to_owned());
    }
    let mut text = format!("[server]\nlisten = {listen:?}\nthreads = 2\ndrain_timeout = \"1s\"\n");
    let hosts: Vec<_> = HOSTS.into_iter().filter(|_| random.below(4) > 0).collect();
    let mut aliases = ALIASES.to_vec();
    aliases.retain(|alias| !hosts.contains(alias));
    let mut apps = String::new();
    for host in hosts {
        let body = random.below(2);
        let _ = write!(apps, "[apps.\"{host}\"]\nrespond = {{ body = \"app {body}\"");
        apps += random.one(&[" }\n", " }\n", ", delay = \"20ms\" }\n"]);
        if random.below(2) == 0 && !aliases.is_empty() {
            let alias = aliases.swap_remove(random.below(aliases.len()));
            let _ = writeln!(apps, "aliases = [\"{alias}\"]");
        }
    }
    let _ = write!(text, "[limits]\nhead_timeout = \"{}s\"\n{apps}", 5 + random.below(3));
    text
}

fn check_row(row: &Value) {
    for life in row["lives"].as_array().expect("lives") {
        let active = life["active_connections"].as_u64().expect("a count");
        assert!(active < 1000, "a count below zero: {row}");
        let (state, remaining) = (&life["state"], life.get("remaining_ms"));
        assert!(state == "serving" || remaining.is_some() || state == "drained", "{row}");
    }
}

#[test]
fn operators_that_do_everything_at_once_leave_nothing_behind() {
    let seed = number_of_environment("TIDEGATE_STRESS_SEED", 0x7469_6465_6761_7465);
    println!("TIDEGATE_STRESS_SEED={seed}");
    let (first, second) = (free_port().to_string(), free_port().to_string());
    let setup = Setup::new().listen(&[&first]).server("drain_timeout = \"1s\"");
    let mut server = setup.app("a.test", "respond = { body = \"app\" }").start();
    let stress = Stress {
        address: server.address(),
        admin: server.admin(),
        over: AtomicBool::default(),
        answered: AtomicU64::default(),
        unknown: AtomicU64::default(),
        drains: Mutex::default(),
    };
    let random = |nth: u64| Random::of_thread(seed, nth);
    // A client of the event stream that never reads.
    let _events = stress.admin.events();
    let admin = stress.admin.clone();
    thread::scope(|scope| {
        let stress = &stress;
        for nth in 0..3 {
            scope.spawn(move || stress.load(random(nth)));
            scope.spawn(move || stress.operate(random(100 + nth)));
        }
        scope.spawn(|| stress.reload(&server, random(200), &second));
        let seconds = Duration::from_secs(number_of_environment("TIDEGATE_STRESS_SECONDS", 6));
        let end = Instant::now() + seconds;
        wait_until(seconds, || Instant::now() >= end);
        stress.over.store(true, SeqCst);
    });
    let settled = || {
        let status = admin.get("/status");
        status["active_connections"] == 0 && status["drains"] == json!([])
    };
    assert!(wait_until(PATIENCE, settled), "{}", admin.get("/status"));
    for row in admin.get("/apps")["apps"].as_array().expect("apps") {
        assert_eq!((&row["active_connections"], row["state"] == "draining"), (&json!(0), false));
    }
    for id in stress.drains.lock().expect("drains").iter() {
        let drain = admin.call("GET", &format!("/drains/{id}"), "");
        assert!(drain.status == 404 || drain.json()["state"] == "ended", "{drain:?}");
    }
    let (answered, unknown) = (stress.answered.load(SeqCst), stress.unknown.load(SeqCst));
    let total = admin.get("/status")["requests_total"].as_u64().expect("a count");
    println!("{answered} answered, {unknown} unknown, {total} counted");
    assert!((answered..=answered + unknown).contains(&total), "{answered} {unknown} {total}");
    let page = admin.call("GET", "/metrics", "").text;
    for line in page.lines().filter(|line| line.starts_with("tidegate_active_connections{")) {
        assert!(line.ends_with(" 0"), "{line}");
    }
    let last = "threads = 2\n[apps.\"last.test\"]\nrespond = {}\n";
    server.rewrite(&format!("[server]\nlisten = [\"{first}\"]\n{last}"));
    admin.post("/reload?allow_empty=true");
    assert!(wait_until(PATIENCE, settled), "{}", admin.get("/status"));
    let left = ASKED.map(|host| (host, server.connect().exchange(get(host, "/")).status));
    assert_eq!(left.map(|(_, status)| status), [404; 9], "a name is left behind: {left:?}");
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit().code(), Some(0));
}

/// Sends a request and reads the answer; the server may end at any time.
fn send(admin: &Admin, method: &str, path: &str, content: &str) -> Option<String> {
    let mut socket = UnixStream::connect(admin.path()).ok()?;
    socket.set_read_timeout(Some(PATIENCE)).ok()?;
    let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    let text = format!("{head}Content-Length: {}\r\n\r\n{content}", content.len());
    socket.write_all(text.as_bytes()).ok()?;
    let mut answer = String::new();
    match socket.read_to_string(&mut answer) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("{path} is not answered"),
        _ => Some(answer),
    }
}

#[test]
fn a_stop_in_the_middle_of_everything_ends_in_time() {
    let seed = number_of_environment("TIDEGATE_STRESS_SEED", 0x7374_6f70);
    println!("TIDEGATE_STRESS_SEED={seed}");
    let mut random = Random::new(seed);
    for round in 0..10_u64 {
        let mut server = start(&mut random);
        let (address, admin, over) = (server.address(), server.admin(), AtomicBool::new(false));
        let own = server.admin();
        let by = random.below(5);
        let seeds = [random.below(1 << 30), random.below(1 << 30), random.below(1 << 30)];
        let status = thread::scope(|scope| {
            for seed in seeds {
                let (admin, over) = (&admin, &over);
                scope.spawn(move || {
                    let mut random = Random::new(seed as u64);
                    while !over.load(SeqCst) {
                        let host = random.one(&HOSTS).replace('*', "%2A");
                        let content = table(&mut random).to_string();
                        let (method, path) = match random.below(8) {
                            0..3 => ("PUT", format!("/apps/{host}")),
                            3 => ("DELETE", format!("/apps/{host}?timeout=20ms")),
                            4 => ("POST", format!("/apps/{host}/drain")),
                            5 => ("POST", format!("/apps/{host}/resume")),
                            6 => ("POST", "/reload".to_owned()),
                            _ => ("GET", format!("/drains/{}?wait=100ms", random.below(300))),
                        };
                        send(admin, method, &path, &content);
                    }
                });
                scope.spawn(move || {
                    let mut random = Random::new(seed as u64);
                    while !over.load(SeqCst) {
                        let wait = Duration::from_millis(100);
                        let Ok(mut client) = Client::try_connect(address, wait) else { continue };
                        let _ = client.try_send(get(random.one(&ASKED), "/").as_bytes());
                        let _ = client.try_response(false);
                    }
                });
            }
            let time = Duration::from_millis(100 + random.below(200) as u64);
            wait_until(time, || false);
            let waiter = scope.spawn(|| send(&own, "GET", "/drains/stop?wait=10s", ""));
            match by {
                0 => server.signal(Signal::TERM),
                1 => drop(send(&admin, "POST", "/stop", "")),
                2 => drop(send(&admin, "POST", "/stop?timeout=50ms", "")),
                3 => drop(send(&admin, "POST", "/stop?now=true", "")),
                _ => {
                    server.signal(Signal::TERM);
                    server.signal(Signal::INT);
                }
            }
            let status = server.wait_exit_within(Duration::from_secs(6));
            over.store(true, SeqCst);
            drop(waiter.join());
            status
        });
        let code = status.code();
        assert!([Some(0), Some(3)].contains(&code), "round {round}, by {by}: {code:?}");
    }
}

/// A server with random apps.
fn start(random: &mut Random) -> Server {
    let setup = Setup::new().listen(&[&free_port().to_string()]).server("drain_timeout = \"1s\"");
    let delays = ["0s", "5ms", "300ms"];
    HOSTS
        .iter()
        .fold(setup, |setup, host| {
            let delay = random.one(&delays);
            setup.app(host, &format!("respond = {{ body = \"app\", delay = \"{delay}\" }}"))
        })
        .start()
}
