//! Unusual orders of operations: changes while another operation is under way.

use std::{
    collections::HashSet,
    fmt::Write as _,
    fs,
    io::{Read, Write},
    sync::{Mutex, atomic::Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate::server::HttpServer;

use crate::support::{
    self, Admin, Client, PATIENCE, Server, Setup, Signal, Site, Stage, Stuck, free_port, get,
    get_and_close, wait_until,
};

fn respond(body: &str) -> String {
    format!("respond = {{ body = \"{body}\" }}")
}

fn ask(server: &Server, host: &str) -> (u16, String) {
    let response = server.connect().exchange(get_and_close(host, "/"));
    (response.status, response.text().to_owned())
}

/// A config with these lines for `[server]`, and these apps.
fn config(listen: &[&str], server: &str, apps: &[(&str, &str)]) -> String {
    let mut text = format!("[server]\nlisten = {listen:?}\nthreads = 2\n{server}\n");
    for (host, lines) in apps {
        let _ = write!(text, "[apps.\"{host}\"]\n{lines}\n");
    }
    text
}

/// A server on a fixed port, so that a reload can name the same port.
fn start(server: &str, apps: &[(&str, &str)]) -> Server {
    let setup = Setup::new().listen(&[&free_port().to_string()]).server(server);
    apps.iter().fold(setup, |setup, (host, lines)| setup.app(host, lines)).start()
}

fn own(server: &Server) -> String {
    server.address().to_string()
}

fn begin(server: &Server, host: &str) -> Client {
    let mut client = server.connect();
    client.send(get(host, "/"));
    let active =
        || server.admin().get(&format!("/apps/{host}"))["active_connections"].as_u64() > Some(0);
    assert!(wait_until(PATIENCE, active), "the request is not in flight");
    client
}

#[test]
fn a_drained_app_keeps_its_names_until_it_is_resumed() {
    let server = start("", &[("a.test", &format!("aliases = [\"a2.test\"]\n{}", respond("a")))]);
    let admin = server.admin();
    assert_eq!(ask(&server, "a.test").0, 200);
    admin.wait_drain(&admin.post("/apps/a.test/drain")["id"]);
    // Another app's alias takes the name of the app that waits to be resumed.
    let put = admin.put("/apps/c.test", &json!({ "aliases": ["a.test"], "respond": {} }));
    let total = admin.get("/status")["requests_total"].as_u64();
    assert!(total >= Some(1), "its count is lost: {total:?}");
    assert_eq!(put.status, 409, "{put:?}");
    assert_eq!(admin.call("POST", "/apps/a.test/resume", "").status, 200);
    assert_eq!(ask(&server, "a2.test").0, 200);
}

#[test]
fn a_drained_app_whose_host_becomes_an_alias_by_a_reload_is_gone() {
    let a = format!("aliases = [\"a2.test\"]\n{}", respond("a"));
    let server = start("", &[("a.test", &a), ("b.test", &respond("b"))]);
    let admin = server.admin();
    assert_eq!(ask(&server, "a.test").0, 200);
    admin.wait_drain(&admin.post("/apps/a.test/drain")["id"]);
    let b = format!("aliases = [\"a.test\"]\n{}", respond("b"));
    server.rewrite(&config(&[&own(&server)], "", &[("b.test", &b)]));
    let done = admin.post("/reload");
    assert_eq!(done["removed"], json!(["a.test"]), "{done}");
    assert_eq!(ask(&server, "a.test"), (200, "b".to_owned()));
    let total = admin.get("/status")["requests_total"].as_u64();
    assert_eq!(ask(&server, "a2.test").0, 404, "its other names are removed too");
    assert!(total >= Some(2), "its count is lost: {total:?}");
}

/// So many apps that a reload takes a while.
const MANY: usize = 1500;

fn many(listen: &str, body: &str) -> String {
    let mut text = config(&[listen], "", &[]);
    for nth in 0..MANY {
        let _ = write!(text, "[apps.\"a{nth}.test\"]\n{}\n", respond(body));
    }
    text
}

/// Starts a server with many apps, changes all of them, and calls `work` for one app after the
/// other while the reload runs.
fn during_a_long_reload(work: impl Fn(&Server, usize)) -> Server {
    let server = (0..MANY).fold(Setup::new().listen(&[&free_port().to_string()]), |setup, nth| {
        setup.app(&format!("a{nth}.test"), &respond("one"))
    });
    let server = server.start();
    for round in ["two", "three"] {
        server.rewrite(&many(&own(&server), round));
        let reload = thread::spawn({
            let admin = server.admin();
            move || admin.post("/reload")
        });
        let offset = if round == "two" { 0 } else { MANY / 2 };
        let mut nth = 0;
        while !reload.is_finished() && nth < MANY / 2 {
            work(&server, offset + nth);
            nth += 1;
        }
        reload.join().expect("the reload");
    }
    server
}

#[test]
fn apps_that_are_removed_while_a_reload_is_prepared_are_counted_once() {
    let mut server = during_a_long_reload(|server, nth| {
        let answer = server.admin().call("DELETE", &format!("/apps/a{nth}.test"), "");
        assert!([202, 404, 409].contains(&answer.status), "{answer:?}");
    });
    assert!(server.is_running());
    assert_eq!(server.admin().get("/status")["active_connections"], 0);
    // Apps that the reload has brought back can be removed again.
    for nth in 0..MANY {
        if server.admin().call("GET", &format!("/apps/a{nth}.test"), "").status == 200 {
            server.admin().call("DELETE", &format!("/apps/a{nth}.test"), "");
        }
    }
    let page = server.admin().call("GET", "/metrics", "").text;
    assert!(page.contains("tidegate_"), "{page}");
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn an_app_that_is_drained_while_a_reload_is_prepared_stays_drained() {
    let asked = Mutex::new(Vec::new());
    let server = during_a_long_reload(|server, nth| {
        let host = format!("a{nth}.test");
        let drain = server.admin().call("POST", &format!("/apps/{host}/drain"), "");
        assert_eq!(drain.status, 202, "{drain:?}");
        asked.lock().expect("hosts").push(host);
    });
    let rows = server.admin().get("/apps");
    let drained: HashSet<_> = rows["apps"]
        .as_array()
        .expect("apps")
        .iter()
        .filter(|row| row["state"] == "drained")
        .filter_map(|row| row["host"].as_str())
        .collect();
    let mut asked = asked.into_inner().expect("hosts");
    let count = asked.len();
    asked.retain(|host| !drained.contains(&**host));
    assert!(
        asked.is_empty(),
        "of {count} drained on demand, never resumed, these serve: {asked:?}"
    );
}

#[test]
fn a_reload_leaves_room_for_the_connections_that_are_open() {
    let setup =
        Setup::new().listen(&[&free_port().to_string()]).descriptors(200).named_app("a.test");
    let server = setup.start();
    let mut open: Vec<_> = (0..100).map(|_| server.connect()).collect();
    for client in &mut open {
        assert_eq!(client.exchange(get("a.test", "/")).status, 200);
    }
    server.admin().post("/reload");
    let mut one_more = server.connect();
    one_more.send(get("a.test", "/"));
    assert!(!one_more.stays_silent(Duration::from_secs(2)), "no connection is accepted any more");
}

#[test]
fn a_stop_within_its_delay_takes_the_deadline_of_a_later_call() {
    let slow = "respond = { body = \"slow\", delay = \"8s\" }";
    let mut server = start("shutdown_delay = \"500ms\"", &[("slow.test", slow)]);
    let slow = begin(&server, "slow.test");
    server.admin().post("/stop");
    server.admin().post("/stop?timeout=600ms");
    let stopped = server.admin().get("/drains/stop?wait=5s");
    assert_eq!((&stopped["state"], &stopped["verdict"]), (&json!("ended"), &json!("cut")));
    drop(slow);
    assert_eq!(server.wait_exit().code(), Some(3));
}

#[test]
fn an_address_that_was_just_closed_can_be_listened_on_again_at_once() {
    let (first, second) = (free_port().to_string(), free_port().to_string());
    let server = Setup::new().listen(&[&first]).app("a.test", &respond("a")).start();
    let a = respond("a");
    let one = config(&[&first], "", &[("a.test", &a)]);
    let two = config(&[&first, &second], "", &[("a.test", &a)]);
    for round in 0..60 {
        server.rewrite(&two);
        let done = server.admin().post("/reload");
        assert_eq!(done["listeners"]["failed"], json!([]), "round {round}: {done}");
        server.rewrite(&one);
        server.admin().post("/reload");
    }
}

#[test]
fn an_address_can_be_narrowed_by_a_reload() {
    let port = free_port().to_string();
    let port = port.rsplit(':').next().expect("a port");
    let (wide, narrow) = (format!("0.0.0.0:{port}"), format!("127.0.0.1:{port}"));
    let server = Setup::new().listen(&[&wide]).app("a.test", &respond("a")).start();
    server.rewrite(&config(&[&narrow], "", &[("a.test", &respond("a"))]));
    let done = server.admin().post("/reload");
    assert_eq!(done["listeners"]["failed"], json!([]), "{done}");
}

#[test]
fn a_cancelled_drain_has_no_time_left_and_its_life_drains_on() {
    let slow = "respond = { body = \"slow\", delay = \"3s\" }";
    let server = start("", &[("slow.test", slow)]);
    let admin = server.admin();
    let _slow = begin(&server, "slow.test");
    let id = admin.post("/apps/slow.test/drain")["id"].clone();
    admin.post("/apps/slow.test/resume");
    let old = admin.get("/apps/slow.test")["lives"][1].clone();
    assert_eq!((&old["id"], &old["active_connections"]), (&id, &json!(1)), "{old}");
    let drain = admin.get(&format!("/drains/{id}"));
    assert_eq!((&drain["verdict"], &drain["remaining_ms"]), (&json!("cancelled"), &json!(0)));
    assert_eq!(old["state"], "draining", "one exchange is in flight: {old}");
}

#[test]
fn an_app_that_was_drained_long_ago_can_be_asked_to_drain_again() {
    let apps: Vec<_> = (0..1100).map(|nth| format!("a{nth}.test")).collect();
    let setup = apps.iter().fold(Setup::new(), |setup, host| setup.named_app(host));
    let server = setup.start();
    let admin = server.admin();
    for host in &apps {
        admin.post(&format!("/apps/{host}/drain"));
    }
    let row = admin.get("/apps/a0.test");
    let again = admin.call("POST", "/apps/a0.test/drain", "");
    assert_eq!(again.status, 202, "{again:?}");
    assert_eq!((&row["state"], &row["cause"]), (&json!("drained"), &json!("drain")), "{row}");
}

#[test]
fn the_head_of_the_event_stream_is_a_whole_answer() {
    let server = start("", &[("a.test", &respond("a"))]);
    let mut socket = server.admin().connect();
    socket.set_read_timeout(Some(Duration::from_secs(3))).expect("a time-out");
    let requests = "HEAD /events HTTP/1.1\r\nHost: localhost\r\n\r\n\
                    GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    socket.write_all(requests.as_bytes()).expect("send");
    let (mut answer, mut piece) = (String::new(), [0; 4096]);
    while let Ok(len @ 1..) = socket.read(&mut piece) {
        answer += &String::from_utf8_lossy(&piece[..len]);
    }
    assert!(answer.contains("\"status\":\"ok\""), "the connection is stuck behind HEAD: {answer}");
}

#[test]
fn admin_requests_that_are_being_answered_when_the_server_ends_are_answered() {
    let apps: Vec<_> = (0..100).map(|nth| format!("a{nth}.test")).collect();
    for _ in 0..5 {
        let setup = apps.iter().fold(Setup::new(), |setup, host| setup.named_app(host));
        let mut server = setup.start();
        let mut sockets: Vec<_> = (0..32).map(|_| server.admin().connect()).collect();
        let request = "GET /apps HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        // Each sends a request before, so that none is in the listener's queue.
        for socket in &mut sockets {
            let first = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
            socket.write_all(first.as_bytes()).expect("send");
            assert!(socket.read(&mut [0; 4096]).expect("an answer") > 0);
        }
        for socket in &mut sockets {
            socket.write_all(request.as_bytes()).expect("send");
        }
        support::give_way();
        server.signal(Signal::TERM);
        let mut silent = 0;
        for socket in &mut sockets {
            let mut answer = String::new();
            let read = socket.read_to_string(&mut answer);
            silent += usize::from(read.is_err() || answer.is_empty());
        }
        assert_eq!(server.wait_exit().code(), Some(0));
        assert_eq!(silent, 0, "of {} requests that were taken", sockets.len());
    }
}

#[test]
fn problems_name_their_file() {
    let server = start("", &[("a.test", &respond("a"))]);
    server.rewrite("[server]\nthread = 2\n");
    let problems = server.admin().call("POST", "/reload", "").json()["problems"].clone();
    let file = problems[0]["file"].as_str().unwrap_or_else(|| panic!("no file: {problems}"));
    assert!(file.ends_with("config.toml"), "{file}");
}

#[test]
fn replacing_an_app_that_drains_names_the_drain_of_its_old_life() {
    let slow = "respond = { body = \"slow\", delay = \"2s\" }";
    let server = start("", &[("slow.test", slow)]);
    let admin = server.admin();
    let _slow = begin(&server, "slow.test");
    let id = admin.post("/apps/slow.test/drain")["id"].clone();
    let put = admin.put("/apps/slow.test", &json!({ "respond": { "body": "new" } }));
    assert_eq!((put.status, &put.json()["drain"]), (200, &id), "{put:?}");
}

#[test]
fn a_reload_that_is_refused_for_a_stop_changes_no_log() {
    let slow = "respond = { body = \"slow\", delay = \"2s\" }";
    let server = start("", &[("slow.test", slow)]);
    let admin = server.admin();
    let _slow = begin(&server, "slow.test");
    admin.post("/stop");
    let text = config(&[&own(&server)], "", &[("slow.test", slow)]);
    server.rewrite(&(text + "[log]\npath = \"other.log\"\n"));
    let refused = admin.call("POST", "/reload", "");
    assert_eq!(refused.status, 409, "{refused:?}");
    assert!(!server.dir().join("other.log").exists(), "the log has changed nevertheless");
}

#[test]
fn requests_that_are_pipelined_are_answered_in_order() {
    let server = start("", &[("a.test", &respond("a"))]);
    let mut socket = server.admin().connect();
    let mut text = String::new();
    for path in ["/healthz", "/apps", "/drains/9", "/readyz", "/metrics", "/status"] {
        let _ = write!(text, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let _ = write!(text, "HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    }
    text += "POST /apps/a.test/drain HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
    text += "PUT /apps/%5B::1%5D HTTP/1.1\r\nHost: localhost\r\nContent-Length: 14\r\n\r\n";
    text += "{\"respond\":{}}";
    text += "GET /apps/%5b%3a%3A1%5D HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    socket.write_all(text.as_bytes()).expect("send");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("answers");
    let statuses: Vec<_> = answer
        .match_indices("HTTP/1.1 ")
        .map(|(at, _)| answer[at + 9..at + 12].to_owned())
        .collect();
    let expected = [
        "200", "200", "200", "200", "404", "404", "200", "200", "200", "200", "200", "200", "202",
        "201", "200",
    ];
    assert_eq!(statuses, expected, "{answer}");
    let row: Value =
        serde_json::from_str(answer.rsplit("\r\n\r\n").next().expect("a row")).expect("JSON");
    assert_eq!(row["host"], "[::1]");
}

/// A server in this process, with its admin socket, that reloads from a file with these lines.
fn site(apps: &str, prepare: impl FnOnce(&mut HttpServer)) -> (Site, Admin, TempDir) {
    let dir = tempfile::tempdir().expect("a folder");
    let (file, socket) = (dir.path().join("config.toml"), dir.path().join("admin.sock"));
    let admin = format!("[admin]\nlisten = \"unix:{}\"\n", socket.display());
    let lines = format!("drain_timeout = \"300ms\"\n{admin}{apps}");
    let head = "[server]\nlisten = [\"127.0.0.1:0\"]\nthreads = 2\nidle_grace = \"0s\"\n";
    fs::write(&file, head.to_owned() + &lines).expect("config.toml");
    let site = Site::start(&lines, |server| {
        server.reload_from(file);
        server.listen_for_admin().expect("the socket");
        prepare(server);
    });
    (site, Admin::at(socket), dir)
}

#[test]
fn an_app_that_is_stuck_does_not_hold_up_the_admin() {
    let (stuck, sender, entered) = Stuck::new();
    let (site, admin, _dir) = site("", |server| {
        server.add_app("stuck.test", stuck).expect("the name is free");
    });
    let mut client = site.connect();
    client.send(get("stuck.test", "/"));
    assert!(wait_until(PATIENCE, || entered.load(SeqCst) == 1), "the app is asked");
    let list = || admin.call("GET", "/apps/stuck.test/connections", "");
    let begun = thread::scope(|scope| {
        let lists: Vec<_> = (0..6).map(|_| scope.spawn(list)).collect();
        support::give_way();
        let begun = Instant::now();
        wait_until(Duration::from_millis(100), || false);
        assert_eq!(admin.get("/healthz")["status"], "ok");
        let elapsed = begun.elapsed();
        lists.into_iter().for_each(|list| drop(list.join()));
        elapsed
    });
    drop(sender);
    assert!(begun < Duration::from_millis(1200), "/healthz took {begun:?}");
}

#[test]
fn an_embedded_server_is_not_upgraded_and_leaves_no_socket_behind() {
    let (site, admin, _dir) = site("", |_| {});
    let answer = admin.call("POST", "/upgrade", "");
    assert!(answer.error().contains("part of a program"), "{answer:?}");
    drop(site);
    let name = admin.path().to_str().expect("text");
    let closed = || !fs::read_to_string("/proc/net/unix").expect("a table").contains(name);
    assert!(wait_until(PATIENCE, closed), "the admin's socket is open after the end");
}

#[test]
fn an_embedders_app_is_left_alone_by_reloads_also_after_an_operator_replaced_it() {
    let (site, admin, _dir) = site("", |server| {
        server.add_app("own.test", Stage::new("own")).expect("the name is free");
    });
    let ask = || site.connect().exchange(get_and_close("own.test", "/")).status;
    admin.post("/reload");
    assert_eq!(ask(), 200);
    let put = admin.put("/apps/own.test", &json!({ "respond": { "body": "by hand" } }));
    // The PUT is refused, or the app still belongs to the embedder.
    if put.status == 200 {
        let done = admin.post("/reload");
        assert_eq!((ask(), &done["removed"]), (200, &json!([])), "the embedder's host is gone");
    }
}

#[test]
fn an_embedders_app_and_a_drained_one_are_resumed_as_they_were() {
    let (site, admin, _dir) = site("", |server| {
        server.add_app("own.test", Stage::new("own")).expect("the name is free");
    });
    admin.wait_drain(&admin.post("/apps/own.test/drain")["id"]);
    admin.post("/reload");
    assert_eq!(site.connect().exchange(get_and_close("own.test", "/")).status, 503);
    admin.post("/apps/own.test/resume");
    assert_eq!(site.connect().exchange(get_and_close("own.test", "/")).text(), "own");
}

#[test]
fn a_listener_that_a_stuck_loop_cannot_gate_can_be_given_back() {
    let (stuck, sender, entered) = Stuck::new();
    let (site, admin, dir) = site("", |server| {
        server.add_app("stuck.test", stuck).expect("the name is free");
        server.add_app("a.test", Stage::new("a")).expect("the name is free");
    });
    let file = dir.path().join("config.toml");
    let text = fs::read_to_string(&file).expect("config.toml");
    let second = free_port().to_string();
    let two = text.replace("[\"127.0.0.1:0\"]", &format!("[\"127.0.0.1:0\", \"{second}\"]"));
    fs::write(&file, &two).expect("config.toml");
    admin.post("/reload");
    let mut client = site.connect();
    client.send(get("stuck.test", "/"));
    assert!(wait_until(PATIENCE, || entered.load(SeqCst) == 1), "the app is asked");
    fs::write(&file, &text).expect("config.toml");
    admin.post("/reload");
    fs::write(&file, &two).expect("config.toml");
    // The address comes back before it was closed: the free loop serves it, or reports what is
    // wrong.
    let done = admin.post("/reload");
    let failed = done["listeners"]["failed"].clone();
    let address = second.parse().expect("an address");
    let moment = Duration::from_millis(100);
    let serves = || {
        Client::try_connect(address, moment).is_ok_and(|mut client| {
            client.send(get_and_close("a.test", "/"));
            !client.stays_silent(moment)
        })
    };
    // The kernel picks a socket at random: two belong to the stuck loop, one is gated, and one is
    // served.
    let served = wait_until(PATIENCE, serves);
    drop(sender);
    assert_eq!((served, &failed), (true, &json!([])));
}
