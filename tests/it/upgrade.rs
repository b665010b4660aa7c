//! Upgrades: a new process takes over under load without a loss, and an upgrade that fails changes
//! nothing.

use std::{
    fs,
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::{
    self, Answer, Asked, BINARY, Client, Gate, HeldLoop, Line, Load, LoadKind, NotifySocket,
    PATIENCE, Pid, Server, Setup, Signal, Upstream, free_port, get, get_and_close, pattern, run,
    wait_until,
};

fn respond(body: &str) -> String {
    format!("respond = {{ body = \"{body}\" }}")
}

fn slow(body: &str, delay: &str) -> String {
    format!("respond = {{ body = \"{body}\", delay = \"{delay}\" }}")
}

/// A server with one app.
fn start() -> Server {
    start_with(Setup::new().app("a.test", &respond("a")))
}

fn start_with(setup: Setup) -> Server {
    Server::adopt_orphans();
    setup.start()
}

fn ask(server: &Server, host: &str) -> (u16, String) {
    ask_at(server.address(), host)
}

fn ask_at(address: SocketAddr, host: &str) -> (u16, String) {
    let response = Client::connect(address).exchange(get_and_close(host, "/"));
    (response.status, response.text().to_owned())
}

/// Whether nothing listens at the address, so that the kernel refuses connections.
fn is_refused(address: SocketAddr) -> bool {
    wait_until(PATIENCE, || {
        let refused = Client::try_connect(address, Duration::from_millis(200)).err();
        refused.is_some_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    })
}

fn pid_in(document: &Value) -> Pid {
    let pid = document["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    pid.and_then(Pid::from_raw).unwrap_or_else(|| panic!("{document}"))
}

/// Upgrades, and makes the new process the current one.
fn upgrade(server: &mut Server) {
    let before = server.pid();
    let done = server.admin().post("/upgrade");
    let new = pid_in(&done);
    assert_eq!(done["old_pid"], before.as_raw_nonzero().get());
    server.follow(new);
    assert_eq!(pid_in(&server.admin().get("/status")), new, "the admin's socket moved too");
}

/// Waits until the newest process is the only one.
fn wait_alone(server: &Server) {
    let alone = wait_until(PATIENCE, || server.processes() == [server.pid()]);
    assert!(alone, "{:?} run, not only {:?}", server.processes(), server.pid());
}

/// Waits until nothing is in flight and no client is connected, for counts of descriptors.
fn wait_idle(server: &Server) {
    let idle = wait_until(PATIENCE, || {
        let status = server.admin().get("/status");
        let open = status["connections"].as_object().expect("counts").values();
        status["previous"] == json!([]) && open.into_iter().all(|count| *count == json!(0))
    });
    assert!(idle, "{}", server.admin().get("/status"));
}

/// Waits until this many events of this name were logged.
fn wait_events(server: &Server, name: &str, count: usize) {
    let logged = || server.events().iter().filter(|event| event.name == name).count() == count;
    assert!(wait_until(PATIENCE, logged), "not {count} times {name}");
}

fn refused_upgrade(server: &Server, query: &str) -> Answer {
    let answer = server.admin().call("POST", &format!("/upgrade{query}"), "");
    assert!(answer.status >= 400, "{answer:?}");
    answer
}

/// A script for `--binary`.
fn script(server: &Server, name: &str, text: &str) -> String {
    let path = server.dir().join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode");
    path.to_str().expect("text").to_owned()
}

fn rewrite(server: &Server, from: &str, to: &str) {
    let text = fs::read_to_string(server.dir().join("config.toml")).expect("config.toml");
    assert!(text.contains(from), "{text}");
    server.rewrite(&text.replace(from, to));
}

/// Begins a request to an app without others, and waits until it is in flight.
fn begin(server: &Server, host: &str) -> Client {
    let mut client = server.connect();
    client.send(get_and_close(host, "/"));
    let row = || server.admin().get(&format!("/apps/{host}"));
    assert!(wait_until(PATIENCE, || row()["active_connections"] == 1), "{}", row());
    client
}

/// A slow app: its upstream answers when the gate opens.
fn held() -> (Upstream, Gate, String) {
    let gate = Gate::default();
    let upstream = Upstream::tcp({
        let gate = gate.clone();
        move |_, line| {
            gate.pass();
            line.answer(200, "at last");
        }
    });
    let app = format!("proxy = {{ upstreams = [\"{}\"] }}", upstream.url());
    (upstream, gate, app)
}

/// Checks that the server is unchanged: only this process, with its socket file, listeners and app.
fn assert_unchanged(server: &Server, sockets: usize) {
    wait_alone(server);
    assert_eq!(server.zombies(), [""; 0]);
    assert_eq!(ask(server, "a.test"), (200, "a".to_owned()));
    let status = server.admin().get("/status");
    assert_eq!((&status["state"], pid_in(&status)), (&json!("serving"), server.pid()));
    let same = wait_until(PATIENCE, || server.sockets() <= sockets);
    assert!(same, "{:?}", server.descriptors());
}

#[test]
fn a_new_process_takes_everything_over_and_the_old_one_goes() {
    let mut server = start();
    assert_eq!(ask(&server, "a.test").0, 200);
    let id = server.admin().get("/apps/a.test")["id"].as_u64();
    upgrade(&mut server);
    assert_eq!(ask(&server, "a.test"), (200, "a".to_owned()));
    assert!(server.wait_exit().success(), "the old process");
    let done = server.wait_event("upgrade_complete");
    assert_eq!((done.field("verdict"), done.count("cut")), (Some("drained"), 0));
    let status = server.admin().get("/status");
    assert_eq!((&status["requests_total"], &status["previous"]), (&json!(2), &json!([])));
    assert!(server.admin().get("/apps/a.test")["id"].as_u64() > id, "ids are used once");
    wait_alone(&server);
    server.admin().post("/stop");
    assert_eq!(server.wait_orphan(server.pid()), Some(0));
    assert!(!server.admin().path().exists(), "the last process removes the socket's file");
}

/// The target of a descriptor of the running process.
fn descriptor(server: &Server, number: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{}/fd/{number}", server.pid().as_raw_nonzero())).ok()
}

#[test]
fn a_descriptor_of_the_starting_shell_goes_to_no_new_process_unless_it_is_a_log() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [pipe, events, access] = ["pipe", "events", "access"].map(|it| folder.path().join(it));
    let open = format!(
        "mkfifo {pipe}; exec 7<>{pipe} 8>>{events} 9>>{access}",
        pipe = pipe.display(),
        events = events.display(),
        access = access.display(),
    );
    let setup = Setup::new().app("a.test", &respond("a")).shell(&open);
    // A link and a plain name that both mean a descriptor.
    std::os::unix::fs::symlink("/proc/self/fd/9", folder.path().join("link")).expect("a link");
    let link = folder.path().join("link");
    let log = format!("access = \"combined\"\naccess_path = \"{}\"", link.display());
    let mut server = start_with(setup.log(&log));
    assert_eq!(descriptor(&server, 7).as_ref(), Some(&pipe), "the shell gave it");
    upgrade(&mut server);
    assert!(server.wait_exit().success(), "the old process");
    assert!(!server.descriptors().iter().any(|link| pipe.as_os_str() == link.as_str()));
    assert!(!server.descriptors().iter().any(|link| events.as_os_str() == link.as_str()));
    assert_eq!(descriptor(&server, 9).as_ref(), Some(&access), "a log");
    assert_eq!(ask(&server, "a.test"), (200, "a".to_owned()));
    upgrade(&mut server);
    assert_eq!(ask(&server, "a.test"), (200, "a".to_owned()));
    let lines = || fs::read_to_string(&access).expect("the log").lines().count();
    assert!(wait_until(PATIENCE, || lines() == 2), "{} lines", lines());
}

#[test]
fn a_log_that_only_a_reload_sends_to_a_descriptor_is_refused_and_not_lost_by_an_upgrade() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [stray, access] = ["stray", "access"].map(|name| folder.path().join(name));
    let setup = Setup::new().app("a.test", &respond("a"));
    let setup = setup.shell(&format!("exec 7>>{}", stray.display()));
    let log = |path: &str| format!("access = \"combined\"\naccess_path = \"{path}\"");
    let first = log(&access.display().to_string());
    let setup = setup.log(&first);
    let text = setup.text();
    let mut server = start_with(setup);
    // 7 is not kept for the next process; 4 is a descriptor of the server itself.
    for descriptor in ["/dev/fd/7", "/dev/fd/4"] {
        server.rewrite(&text.replace(&first, &log(descriptor)));
        let answer = server.admin().post("/reload");
        let errors = answer["log_errors"].to_string();
        assert!(errors.contains("would be closed by an upgrade"), "{answer}");
    }
    server.rewrite(&text);
    assert_eq!(ask(&server, "a.test").0, 200, "logged where it was");
    upgrade(&mut server);
    assert_eq!(ask(&server, "a.test").0, 200);
    let lines = || fs::read_to_string(&access).expect("the log").lines().count();
    assert!(wait_until(PATIENCE, || lines() == 2), "{} lines", lines());
}

#[test]
fn a_signal_upgrades_and_a_second_to_the_draining_process_is_refused_with_a_reason() {
    let (_upstream, gate, app) = held();
    let mut server = start_with(Setup::new().app("slow.test", &app));
    let mut waiting = begin(&server, "slow.test");
    server.signal(Signal::USR2);
    let handed = server.wait_event("upgrade_handed_over");
    server.signal(Signal::USR2);
    let failed = server.wait_event("upgrade_failed");
    assert!(
        failed.field("error").is_some_and(|it| it.contains("handed the server over")),
        "{failed:?}"
    );
    server.follow(Pid::from_raw(handed.field("pid").unwrap().parse().unwrap()).unwrap());
    gate.open();
    assert_eq!(waiting.response().text(), "at last");
    assert!(server.wait_exit().success());
    wait_alone(&server);
}

#[test]
fn a_new_process_that_does_not_come_to_serve_changes_nothing() {
    let server = start();
    let load = Load::start(LoadKind::NewConnections, 2, server.address(), "a.test", "a");
    let sockets = server.sockets() + 8;
    let plain = server.dir().join("plain");
    fs::write(&plain, "no program").expect("a file");
    let missing = server.dir().join("missing").display().to_string();
    // Its child processes end with it.
    let wrapper = script(&server, "wraps", "sh -c 'sleep 60; :' child \"$@\" | cat");
    let no_number = script(&server, "talks", "printf '\\377\\377\\377\\377' >&0; exec sleep 60");
    for (binary, query, reason) in [
        (missing, "", "No such file"),
        (plain.display().to_string(), "", "Permission denied"),
        (script(&server, "crashes", "exit 3"), "", "exit status: 3"),
        (script(&server, "killed", "kill -SEGV $$"), "", "signal: 11"),
        (script(&server, "hangs", "exec sleep 60"), "&timeout=300ms", "not ready in time"),
        (script(&server, "closes", "exec 0</dev/null; exec sleep 60"), "", "closed the channel"),
        (no_number, "", "without end"),
        (wrapper, "&timeout=300ms", "not ready in time"),
    ] {
        let answer = refused_upgrade(&server, &format!("?binary={binary}{query}"));
        assert_eq!(answer.status, 500, "{binary}: {answer:?}");
        assert!(answer.error().contains(reason), "{binary}: {answer:?}");
        assert!(answer.error().contains(&binary), "{answer:?}");
        assert_unchanged(&server, sockets);
    }
    wait_events(&server, "upgrade_failed", 8);
    let tally = load.end();
    assert!(tally.lost.is_empty(), "{:?}", tally.lost);
}

#[test]
fn how_a_new_process_ended_is_known_where_sigchld_is_ignored() {
    let ignored = "exec env --ignore-signal=CHLD \"$0\" \"$@\"";
    let setup = Setup::new().shell(ignored).app("a.test", &respond("a"));
    let mut server = start_with(setup);
    let crashes = script(&server, "crashes", "exit 3");
    let answer = refused_upgrade(&server, &format!("?binary={crashes}"));
    assert!(answer.error().contains("exit status: 3"), "{answer:?}");
    upgrade(&mut server);
    assert_eq!(ask(&server, "a.test").0, 200);
}

#[test]
fn a_config_that_cannot_be_served_changes_nothing_and_keeps_the_admins_socket() {
    let setup = Setup::new().app("a.test", &respond("a")).file("site/index.html", "page");
    let mut server = start_with(setup.app("files.test", "files = { root = \"site\" }"));
    let sockets = server.sockets() + 4;
    let good = fs::read_to_string(server.dir().join("config.toml")).unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (config, reason) in [
        (good.replace("threads", "thread"), "thread"),
        (good.replace("\"127.0.0.1:0\"", &format!("\"127.0.0.1:0\", \"{taken}\"")), &*taken),
        (good.replace("\"site\"", "\"gone\""), "files.test"),
        (good.replace("[log]", "[log]\npath = \"gone/log\""), "gone/log"),
        (good.replace("[admin]", "[admin]\nlisten = \"unix:gone/s\""), "gone/s"),
    ] {
        server.rewrite(&config);
        let answer = refused_upgrade(&server, "");
        assert!(answer.error().contains(reason), "{answer:?}");
        assert!(server.admin().path().exists(), "{reason}: the socket's file is the old process's");
        assert_unchanged(&server, sockets);
    }
    server.rewrite(&good);
    upgrade(&mut server);
    assert_eq!(ask(&server, "files.test"), (200, "page".to_owned()));
}

#[test]
fn full_disks_for_logs_stop_no_upgrade() {
    let setup = Setup::new().log("access = \"json\"").log("access_path = \"/dev/full\"");
    let mut server = start_with(setup.app("a.test", &respond("a")));
    assert_eq!(ask(&server, "a.test").0, 200);
    upgrade(&mut server);
    rewrite(&server, "[log]\n", "[log]\npath = \"/dev/full\"\n");
    upgrade(&mut server);
    assert_eq!(ask(&server, "a.test"), (200, "a".to_owned()));
    wait_alone(&server);
    let lost = || server.admin().get("/status")["log_lines_lost"]["events"].as_u64() > Some(0);
    assert!(wait_until(PATIENCE, lost), "lines on a full disk are counted");
}

#[test]
fn without_descriptors_the_upgrade_fails_and_says_so() {
    let server = start();
    let sockets = server.sockets() + 4;
    let used = server.descriptors().len() as u64;
    // The admin connection takes the last descriptor, and the channel needs two more.
    server.lower_descriptor_limit(used + 1);
    let answer = refused_upgrade(&server, "");
    assert!(answer.error().contains("Too many open files"), "{answer:?}");
    assert_unchanged(&server, sockets);
    let mut server = start_with(Setup::new().server("threads = 8").app("a.test", &respond("a")));
    let sockets = server.sockets() + 4;
    let few = script(&server, "few", &format!("ulimit -n 9; exec {BINARY} \"$@\""));
    let answer = refused_upgrade(&server, &format!("?binary={few}"));
    assert!(answer.error().contains("descriptor limit is too low"), "{answer:?}");
    assert_unchanged(&server, sockets);
    upgrade(&mut server);
    assert_eq!(ask(&server, "a.test").0, 200);
}

/// Asks for an upgrade; the process ends before it answers.
fn ask_in_vain(server: &Server, binary: &str) -> thread::JoinHandle<()> {
    let mut socket = server.admin().connect();
    let head = format!("POST /upgrade?binary={binary} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    socket.write_all(head.as_bytes()).expect("send");
    thread::spawn(move || drop(socket.read_to_end(&mut Vec::new())))
}

/// A program that stops the old process, waits for a file, kills it and serves.
fn killer(server: &Server, before: &str) -> (String, PathBuf) {
    let go = server.dir().join("go");
    let wait = format!("until [ -e {} ]; do sleep 0.01; done", go.display());
    let old = server.pid().as_raw_nonzero();
    let text = format!("kill -STOP {old}; {wait}; kill -KILL {old}; exec {BINARY} \"$@\"");
    (script(server, "killer", &format!("{before}{text}")), go)
}

#[test]
fn connections_that_wait_are_answered_although_the_old_process_dies_in_the_hand_over() {
    let mut server = start();
    // By then the sockets are under way.
    let (binary, go) = killer(&server, "sleep 0.3; ");
    let asked = ask_in_vain(&server, &binary);
    assert!(wait_until(PATIENCE, || server.is_stopped()), "it was not stopped");
    let mut clients: Vec<_> = (0..32).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(|client| client.send(get("a.test", "/")));
    fs::write(go, "").expect("a file");
    for client in &mut clients {
        assert_eq!(client.response().text(), "a");
    }
    asked.join().expect("a thread");
    server.kill_first();
    server.follow(pid_in(&server.admin().get("/status")));
    server.wait_event("old_process_lost");
    wait_alone(&server);
    upgrade(&mut server);
    assert_eq!(ask(&server, "a.test").0, 200);
}

#[test]
fn a_new_process_whose_old_one_dies_at_once_serves() {
    let listen = free_port().to_string();
    let mut server = start_with(Setup::new().listen(&[&listen]).app("a.test", &respond("a")));
    let (binary, go) = killer(&server, "");
    fs::write(go, "").expect("a file");
    ask_in_vain(&server, &binary).join().expect("a thread");
    server.kill_first();
    let serves = || Client::try_connect(server.address(), PATIENCE).is_ok();
    assert!(wait_until(PATIENCE, serves), "no process serves");
    assert_eq!(ask(&server, "a.test"), (200, "a".to_owned()));
    server.follow(pid_in(&server.admin().get("/status")));
    wait_alone(&server);
}

#[test]
fn connections_made_while_the_old_process_stands_still_are_answered() {
    let mut server = start();
    server.pause();
    let mut clients: Vec<_> = (0..64).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(|client| client.send(get_and_close("a.test", "/")));
    server.signal(Signal::USR2);
    server.resume();
    for client in &mut clients {
        assert_eq!(client.response().text(), "a");
    }
    let handed = server.wait_event("upgrade_handed_over");
    server.follow(Pid::from_raw(handed.field("pid").unwrap().parse().unwrap()).unwrap());
    wait_alone(&server);
}

#[test]
fn ten_upgrades_under_load_lose_nothing_and_leave_one_process_without_a_leak() {
    let mut server =
        start_with(Setup::new().server("idle_grace = \"100ms\"").app("a.test", &respond("a")));
    assert_eq!(ask(&server, "a.test").0, 200);
    wait_idle(&server);
    let before = server.descriptors();
    let kinds = [LoadKind::KeepAlive, LoadKind::NewConnections];
    let loads = kinds.map(|kind| Load::start(kind, 4, server.address(), "a.test", "a"));
    let mut answered = 1;
    for round in 1..=10 {
        upgrade(&mut server);
        loads.iter().for_each(|load| load.wait_answered(round * 100));
        assert_eq!(server.zombies(), [""; 0]);
    }
    for load in loads {
        let tally = load.end();
        assert!(tally.lost.is_empty(), "{:?}", tally.lost);
        answered += tally.answered;
    }
    assert!(server.wait_exit().success(), "the first process");
    wait_alone(&server);
    wait_idle(&server);
    let ledger = server.admin().get("/status")["requests_total"].as_u64();
    assert_eq!(ledger, Some(answered as u64), "one ledger");
    // Each end is in the log, also if the process that saw it only waited for it.
    wait_events(&server, "upgrade_complete", 10);
    let same = wait_until(PATIENCE, || server.descriptors().len() <= before.len());
    assert!(same, "{before:?} became {:?}", server.descriptors());
}

#[test]
fn more_and_fewer_loops_lose_nothing() {
    let mut server = start_with(Setup::new().server("threads = 4").app("a.test", &respond("a")));
    let kinds = [LoadKind::NewConnections, LoadKind::KeepAlive];
    let loads = kinds.map(|kind| Load::start(kind, 4, server.address(), "a.test", "a"));
    for (round, (from, to)) in (1..).zip([(4, 1), (1, 4), (4, 3), (3, 1), (1, 2)]) {
        rewrite(&server, &format!("threads = {from}"), &format!("threads = {to}"));
        upgrade(&mut server);
        assert_eq!(server.admin().get("/status")["threads"], to);
        loads.iter().for_each(|load| load.wait_answered(round * 200));
    }
    for load in loads {
        let tally = load.end();
        assert!(tally.lost.is_empty(), "{:?}", tally.lost);
    }
    wait_alone(&server);
}

#[test]
fn addresses_come_and_go_with_an_upgrade() {
    let (first, second) = (free_port(), free_port());
    let setup = Setup::new().listen(&[&first.to_string()]).app("a.test", &respond("a"));
    let mut server = start_with(setup);
    let load = Load::start(LoadKind::NewConnections, 2, first, "a.test", "a");
    let one = format!("listen = [\"{first}\"]");
    let both = format!("listen = [\"{first}\", \"{second}\", \"[::1]:0\"]");
    for round in 1..=3 {
        rewrite(&server, &one, &both);
        upgrade(&mut server);
        assert_eq!(ask_at(second, "a.test"), (200, "a".to_owned()));
        let listen = server.admin().get("/status")["listen"].clone();
        let v6 = listen[2].as_str().and_then(|address| address.parse().ok()).expect("an address");
        upgrade(&mut server);
        assert_eq!(server.admin().get("/status")["listen"], listen, "port 0 is the same port");
        assert_eq!(ask_at(v6, "a.test"), (200, "a".to_owned()));
        let mut open = Client::connect(second);
        assert_eq!(open.exchange(get("a.test", "/")).status, 200);
        rewrite(&server, &both, &one);
        upgrade(&mut server);
        // The old process serves connected clients to the end.
        assert_eq!(open.exchange(get("a.test", "/")).text(), "a");
        let gone = || Client::try_connect(second, PATIENCE).is_err();
        assert!(wait_until(PATIENCE, gone), "it is still listened on");
        load.wait_answered(round * 200);
    }
    let tally = load.end();
    assert!(tally.lost.is_empty(), "{:?}", tally.lost);
    wait_alone(&server);
}

#[test]
fn an_upgrade_that_fails_takes_no_connection_to_an_address_that_it_would_have_added() {
    let port = free_port().port();
    let all = format!("0.0.0.0:{port}");
    // Many apps, so that it fails some time after it has bound the addresses.
    let setup = (0..500).fold(Setup::new().listen(&[&all]), |setup, nth| {
        setup.app(&format!("a{nth}.test"), &respond("a"))
    });
    let setup = setup.app("site.test", "files = { root = \"site\" }").file("site/index.html", "");
    let server = start_with(setup);
    let load =
        Load::start(LoadKind::NewConnections, 4, ([127, 0, 0, 1], port).into(), "a1.test", "a");
    load.wait_answered(20);
    // The more specific address gets the connections, if it is listened on.
    rewrite(&server, &format!("[\"{all}\"]"), &format!("[\"{all}\", \"127.0.0.1:{port}\"]"));
    fs::remove_dir_all(server.dir().join("site")).expect("the folder");
    for _ in 0..5 {
        refused_upgrade(&server, "");
    }
    let tally = load.end();
    assert!(tally.lost.is_empty(), "{:?}", tally.lost);
}

#[test]
fn a_download_a_long_poll_and_a_tunnel_finish_in_the_old_process() {
    let (upstream, (_upstream, gate, app)) = (Upstream::tcp(mirror), held());
    let proxy = format!("proxy = {{ upstreams = [\"{}\"] }}", upstream.url());
    let content = pattern(24 << 20);
    let setup = Setup::new()
        .server("drain_timeout = \"30s\"")
        .file("site/large", &content)
        .app("files.test", "files = { root = \"site\" }")
        .app("slow.test", &app)
        .app("tunnel.test", &proxy);
    let mut server = start_with(setup);
    let mut download = Client::connect_narrow(server.address());
    download.send(get_and_close("files.test", "/large"));
    download.buffer_at_least(1000);
    let mut poll = begin(&server, "slow.test");
    let mut tunnel = server.connect();
    tunnel.send(
        "GET / HTTP/1.1\r\nHost: tunnel.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    );
    assert_eq!(tunnel.response().status, 101);
    let old = server.pid();
    upgrade(&mut server);
    let status = server.admin().get("/status");
    let previous = || server.admin().get("/status")["previous"][0].clone();
    let seen = wait_until(PATIENCE, || previous()["active_connections"] == 3);
    assert!(seen, "{status}");
    assert_eq!(pid_in(&previous()), old);
    let apps = server.admin().get("/apps");
    let apps = apps["apps"].as_array().expect("rows");
    let of_old = |row: &&Value| row["pid"] == old.as_raw_nonzero().get();
    assert_eq!(apps.iter().filter(of_old).count(), 3, "both generations: {apps:?}");
    gate.open();
    assert_eq!(poll.response().text(), "at last");
    assert_eq!(download.response().body, content);
    tunnel.send("still there");
    tunnel.buffer_at_least(11);
    assert!(server.is_running(), "the tunnel holds the old process");
    tunnel.half_close();
    assert!(server.wait_exit().success());
    assert_eq!(server.wait_event("upgrade_complete").count("cut"), 0);
    wait_alone(&server);
}

/// Switches protocols, and echoes every byte until the end.
fn mirror(_: &Asked, line: &mut Line) {
    line.send("HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
    loop {
        let bytes = line.read(1);
        if bytes.is_empty() || !line.send(bytes) {
            break;
        }
    }
    line.close();
}

#[test]
fn what_operators_changed_crosses_two_upgrades() {
    let upstreams = [1, 2].map(|_| Upstream::tcp(|_, line| line.answer(200, "up")));
    let urls = upstreams.each_ref().map(Upstream::url);
    let setup = Setup::new()
        .server("default_app = \"a.test\"")
        .app("a.test", &format!("aliases = [\"alias.test\"]\n{}", respond("a")))
        .app("drained.test", &respond("d"))
        .app("changed.test", &respond("by the config"))
        .app("proxy.test", &format!("proxy = {{ upstreams = {urls:?} }}"));
    let mut server = start_with(setup);
    let admin = server.admin();
    let put = json!({ "aliases": ["own2.test"], "respond": { "body": "own" } });
    assert_eq!(admin.put("/apps/own.test", &put).status, 201);
    let put = json!({ "respond": { "body": "by hand" } });
    assert_eq!(admin.put("/apps/changed.test", &put).status, 200);
    admin.put("/apps/own-drained.test", &json!({ "respond": { "body": "back" } }));
    for host in ["drained.test", "own-drained.test"] {
        admin.wait_drain(&admin.post(&format!("/apps/{host}/drain"))["id"]);
    }
    let url = urls[0];
    admin.wait_drain(&admin.post(&format!("/apps/proxy.test/upstreams/drain?url={url}"))["id"]);
    for _ in 0..2 {
        upgrade(&mut server);
        for (host, status, body) in [
            ("alias.test", 200, "a"),
            ("nobody.test", 200, "a"),
            ("own.test", 200, "own"),
            ("own2.test", 200, "own"),
            ("changed.test", 200, "by hand"),
        ] {
            assert_eq!(ask(&server, host), (status, body.to_owned()), "{host}");
        }
        for host in ["drained.test", "own-drained.test"] {
            assert_eq!(ask(&server, host).0, 503, "{host}");
            assert_eq!(admin.get(&format!("/apps/{host}"))["state"], "drained");
        }
        let asked = upstreams[0].asked().len();
        (0..4).for_each(|_| assert_eq!(ask(&server, "proxy.test").0, 200));
        assert_eq!(upstreams[0].asked().len(), asked, "it is drained");
        wait_alone(&server);
    }
    for (host, body) in [("drained.test", "d"), ("own-drained.test", "back")] {
        admin.post(&format!("/apps/{host}/resume"));
        assert_eq!(ask(&server, host), (200, body.to_owned()));
    }
    admin.post(&format!("/apps/proxy.test/upstreams/resume?url={url}"));
    let back = || ask(&server, "proxy.test").0 == 200 && !upstreams[0].asked().is_empty();
    assert!(wait_until(PATIENCE, back), "it is back");
}

#[test]
fn a_change_while_the_new_process_starts_is_not_forgotten() {
    let mut server = start();
    let (here, go) = (server.dir().join("here"), server.dir().join("go"));
    let wait = format!("until [ -e {} ]; do sleep 0.01; done", go.display());
    // It starts after the change, but the apps that were handed over are from before it.
    let text = format!("touch {}; {wait}; exec {BINARY} \"$@\"", here.display());
    let binary = script(&server, "binary", &text);
    let admin = server.admin();
    let asked = thread::spawn(move || admin.call("POST", &format!("/upgrade?binary={binary}"), ""));
    assert!(wait_until(PATIENCE, || here.exists()));
    let admin = server.admin();
    admin.wait_drain(&admin.post("/apps/a.test/drain")["id"]);
    fs::write(go, "").expect("a file");
    let answer = asked.join().expect("an answer");
    assert_eq!(ask(&server, "a.test").0, 503, "it is drained: {answer:?}");
    assert!(answer.error().contains("changed"), "{answer:?}");
    wait_alone(&server);
    upgrade(&mut server);
    assert_eq!(ask(&server, "a.test").0, 503);
}

#[test]
fn a_reload_waits_for_the_upgrade_under_way_and_then_holds() {
    let server = start();
    let binary = script(&server, "hangs", "exec sleep 60");
    let admin = server.admin();
    let path = format!("/upgrade?binary={binary}&timeout=500ms");
    let asked = thread::spawn(move || admin.call("POST", &path, ""));
    server.wait_event("upgrade_start");
    rewrite(&server, "body = \"a\"", "body = \"b\"");
    assert_eq!(server.admin().post("/reload")["changed"], json!(["a.test"]));
    assert_eq!(asked.join().expect("an answer").status, 500);
    assert_eq!(ask(&server, "a.test"), (200, "b".to_owned()));
    wait_alone(&server);
}

#[test]
fn an_upgrade_while_the_last_one_drains_works_and_all_are_seen() {
    let (_upstream, gate, app) = held();
    let mut server = start_with(Setup::new().app("slow.test", &app));
    let first = server.pid();
    let mut clients = Vec::new();
    for _ in 0..2 {
        clients.push(begin(&server, "slow.test"));
        upgrade(&mut server);
    }
    clients.push(begin(&server, "slow.test"));
    let previous = || server.admin().get("/status")["previous"].clone();
    let both = || previous().as_array().is_some_and(|all| all.len() == 2);
    assert!(wait_until(PATIENCE, both), "{}", previous());
    assert_eq!(pid_in(&previous()[1]), first, "the oldest is the last");
    gate.open();
    for client in &mut clients {
        assert_eq!(client.response().text(), "at last");
    }
    wait_alone(&server);
    wait_idle(&server);
    assert_eq!(server.admin().get("/status")["requests_total"], 3);
    assert_eq!(server.zombies(), [""; 0]);
}

#[test]
fn a_stop_of_the_new_process_waits_for_the_old_one() {
    let (_upstream, gate, app) = held();
    let mut server = start_with(Setup::new().app("slow.test", &app));
    let mut waiting = begin(&server, "slow.test");
    upgrade(&mut server);
    server.signal(Signal::TERM);
    server.wait_event("server_stop");
    assert!(server.is_running());
    assert!(is_refused(server.address()), "the old process holds no socket of a stopping one");
    gate.open();
    assert_eq!(waiting.response().text(), "at last");
    assert!(server.wait_exit().success(), "the old process");
    assert_eq!(server.wait_orphan(server.pid()), Some(0), "the new one ends after it");
    wait_events(&server, "shutdown_drained", 2);
}

#[test]
fn the_command_that_stops_waits_for_all_older_processes() {
    // Longer than the command waits for a process that only has to end.
    let mut server = start_with(Setup::new().app("slow.test", &slow("at last", "11s")));
    let admin = format!("unix:{}", server.admin().path().display());
    let mut waiting = begin(&server, "slow.test");
    upgrade(&mut server);
    upgrade(&mut server);
    let (code, text) = run(&["stop", "--admin", &admin]);
    assert_eq!(code, Some(0), "{text}");
    let ended = format!("server: ended, pid {}\n", server.pid().as_raw_nonzero());
    assert!(text.contains("exits after earlier processes") && text.ends_with(&ended), "{text}");
    assert_eq!(waiting.response().text(), "at last");
    assert!(server.wait_exit().success(), "the oldest process");
}

#[test]
fn a_second_signal_cuts_both_also_while_the_new_process_drains() {
    for busy in [false, true] {
        let setup =
            Setup::new().app("slow.test", &slow("s", "60s")).server("drain_timeout = \"50s\"");
        let mut server = start_with(setup);
        let mut clients = vec![begin(&server, "slow.test")];
        upgrade(&mut server);
        if busy {
            clients.push(begin(&server, "slow.test"));
        }
        server.signal(Signal::TERM);
        let stopped = |event: &support::Event| event.field("reason") == Some("SIGTERM");
        assert!(wait_until(PATIENCE, || server.events().iter().any(stopped)));
        server.signal(Signal::TERM);
        assert_eq!(server.wait_exit().code(), Some(3), "the old process cut");
        let code = if busy { 3 } else { 0 };
        assert_eq!(server.wait_orphan(server.pid()), Some(code));
        drop(clients);
    }
}

#[test]
fn a_stop_during_the_hand_over_ends_both_and_leaves_no_server_behind() {
    for before_stop in ["", "sleep 0.4; "] {
        let mut server = start();
        let here = server.dir().join("here");
        let text = format!("touch {}; {before_stop} exec {BINARY} \"$@\"", here.display());
        let binary = script(&server, "binary", &text);
        let asked = ask_in_vain(&server, &binary);
        assert!(wait_until(PATIENCE, || here.exists()));
        server.signal(Signal::TERM);
        assert!(server.wait_exit().success());
        asked.join().expect("a thread");
        // The old process passes the stop on if the new one serves by then.
        let none = wait_until(PATIENCE, || server.processes().is_empty());
        assert!(none, "{:?} are left", server.processes());
    }
}

#[test]
fn a_stop_is_the_servers_whenever_during_an_upgrade_it_is_asked_for() {
    let admin = |server: &Server| format!("unix:{}", server.admin().path().display());
    for pause_ms in (0..60).step_by(4) {
        let mut server = start();
        let asked = ask_in_vain(&server, BINARY);
        wait_until(Duration::from_millis(pause_ms), || asked.is_finished());
        let (code, text) = run(&["stop", "--admin", &admin(&server)]);
        assert_eq!(code, Some(0), "after {pause_ms} ms: {text}");
        assert!(text.contains("server: drained in"), "{text}");
        let none = wait_until(PATIENCE, || server.processes().is_empty());
        assert!(none, "after {pause_ms} ms {:?} serve on; stop said {text}", server.processes());
        assert!(server.wait_exit().success());
        asked.join().expect("a thread");
    }
}

#[test]
fn the_old_process_passes_a_signal_on_and_refuses_an_operators_stop() {
    let (_upstream, gate, app) = held();
    let mut server = start_with(Setup::new().app("slow.test", &app));
    let old = server.pid();
    let mut waiting = begin(&server, "slow.test");
    let mut kept = Kept::open(&server);
    assert_eq!(kept.call("GET", "/healthz").0, 200);
    upgrade(&mut server);
    for (method, path) in [
        ("POST", "/stop"),
        ("POST", "/stop?now=true&wait=1s"),
        ("DELETE", "/apps/slow.test"),
        ("POST", "/apps/slow.test/drain"),
        ("POST", "/reload"),
        ("POST", "/upgrade"),
    ] {
        let (status, text) = kept.call(method, path);
        assert_eq!(status, 409, "{path}: {text}");
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(answer["successor"], server.pid().as_raw_nonzero().get(), "{path}: {answer}");
        assert!(text.contains("handed the server over"), "{answer}");
    }
    assert_eq!(server.admin().get("/status")["state"], "serving");
    assert_eq!(server.admin().get("/apps/slow.test")["state"], "serving");
    server.signal_to(old, Signal::TERM);
    server.wait_event("stop_passed_on");
    let stopping = || server.admin().get("/status")["state"] == "stopping";
    assert!(wait_until(PATIENCE, stopping), "{:?}", server.events());
    // A signal to the whole process group is one request, not two.
    server.signal(Signal::TERM);
    gate.open();
    assert_eq!(waiting.response().text(), "at last");
    assert!(server.wait_exit().success(), "the old process");
    assert_eq!(server.wait_orphan(server.pid()), Some(0));
    let reasons: Vec<_> = server
        .events()
        .iter()
        .filter_map(|event| {
            (event.name == "shutdown_graceful").then(|| event.field("reason").map(str::to_owned))?
        })
        .collect();
    assert_eq!(reasons, ["upgrade", "SIGTERM"]);
    wait_events(&server, "shutdown_drained", 2);
}

#[test]
fn a_signal_that_no_thread_of_the_old_process_has_read_by_its_end_stops_the_new_one() {
    let (_upstream, gate, app) = held();
    let mut server = start_with(Setup::new().app("slow.test", &app));
    let old = server.pid();
    let mut waiting = begin(&server, "slow.test");
    let Some(signals) = HeldLoop::stop_thread(&server, "signals") else { return };
    upgrade(&mut server);
    server.signal_to(old, Signal::TERM);
    gate.open();
    assert_eq!(waiting.response().text(), "at last");
    signals.wait_exit();
    assert!(server.wait_exit().success(), "the old process");
    assert_eq!(server.wait_orphan(server.pid()), Some(0));
    wait_events(&server, "shutdown_drained", 2);
    let was_read = server.events().iter().any(|event| event.name == "stop_passed_on");
    assert!(!was_read, "the signals' thread was not held");
}

#[test]
fn an_upgrade_that_fails_leaves_no_event_of_what_it_did_and_no_id_twice() {
    let setup = Setup::new().log("format = \"json\"").file("site/index.html", "page");
    let setup = setup.app("files.test", "files = { root = \"site\" }");
    let setup = setup.app("p.test", "proxy = { upstreams = [\"http://127.0.0.1:1\"] }");
    let mut server = start_with(setup);
    let admin = server.admin();
    assert_eq!(admin.put("/apps/put.test", &json!({ "respond": { "body": "put" } })).status, 201);
    let url = "/apps/p.test/upstreams/drain?url=http://127.0.0.1:1";
    assert_eq!(admin.wait_drain(&admin.post(url)["id"])["id"], "u1");
    let names = ["app_added", "app_loaded", "app_drain_start", "upstream_drain_start"];
    let app_events = |server: &Server| {
        let lines = server.log_lines();
        let lines = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let is_one = |line: &Value| line["event"].as_str().is_some_and(|it| names.contains(&it));
        lines.filter(is_one).collect::<Vec<_>>()
    };
    let before = app_events(&server);
    let site = server.dir().join("site");
    fs::rename(&site, server.dir().join("away")).expect("rename");
    for _ in 0..2 {
        assert!(refused_upgrade(&server, "").error().contains("files.test"));
    }
    assert_eq!(app_events(&server), before, "a process that never served has done nothing");
    fs::rename(server.dir().join("away"), &site).expect("rename");
    upgrade(&mut server);
    let pid = server.pid().as_raw_nonzero().get();
    let new = wait_until(PATIENCE, || app_events(&server).len() == 2 * before.len());
    assert!(new, "{:?}", app_events(&server));
    assert!(app_events(&server)[before.len()..].iter().all(|line| line["pid"] == pid));
    let mut ids: Vec<_> =
        app_events(&server).iter().map(|line| line["fields"]["id"].as_u64()).collect();
    let drained = server.admin().get("/apps/p.test")["id"].as_u64();
    assert_eq!(ids.iter().filter(|id| **id == drained).count(), 2, "loaded, upstream drained");
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 6, "three apps in two processes");
    let again = "/apps/p.test/upstreams/resume?url=http://127.0.0.1:1";
    server.admin().post(again);
    let drain = server.admin().post(url);
    assert_eq!(drain["id"], "u3", "u2 was the new process's: {drain}");
}

#[test]
fn an_old_process_reports_only_the_apps_that_have_something_in_flight() {
    let (_upstream, gate, app) = held();
    let mut setup = Setup::new().app("slow.test", &app);
    for index in 0..200 {
        setup = setup.app(&format!("idle-{index}.test"), &respond("idle"));
    }
    let mut server = start_with(setup);
    let mut waiting = Vec::new();
    for _ in 0..2 {
        waiting.push(begin(&server, "slow.test"));
        upgrade(&mut server);
    }
    let rows = || {
        let apps = server.admin().get("/apps")["apps"].clone();
        let rows = apps.as_array().expect("rows").clone();
        rows.into_iter().filter(|row| row.get("pid").is_some()).collect::<Vec<_>>()
    };
    let both = || rows().len() == 2 && rows().iter().all(|row| row["host"] == "slow.test");
    assert!(wait_until(PATIENCE, both), "{:?}", rows());
    gate.open();
    for client in &mut waiting {
        assert_eq!(client.response().text(), "at last");
    }
    wait_alone(&server);
}

/// A program that reports that it is ready, and never serves.
fn ready_and_no_more(server: &Server) -> String {
    let text = r#"ready='{"Ready":{"listeners":[0],"admin":true,"pid":'$$'}}'
printf "\\000\\000\\000\\$(printf %03o ${#ready})%s" "$ready" >&0
exec sleep 60"#;
    script(server, "ready", text)
}

#[test]
fn a_new_process_that_hangs_before_it_serves_blocks_no_client() {
    let mut server = start();
    let asked = ask_in_vain(&server, &ready_and_no_more(&server));
    // A change that has to wait.
    let mut put_off = None;
    assert!(wait_until(PATIENCE, || {
        let mut kept = Kept::open(&server);
        kept.send("DELETE", "/apps/none.test");
        let is_answered = kept.is_answered_within(Duration::from_millis(500));
        put_off = (!is_answered).then_some(kept);
        put_off.is_some()
    }));
    let begun = Instant::now();
    assert_eq!(server.admin().get("/status")["state"], "serving");
    assert_eq!(server.admin().get("/apps/a.test")["state"], "serving");
    server.signal(Signal::TERM);
    assert!(server.wait_exit().success());
    let elapsed = begun.elapsed();
    assert!(elapsed < Duration::from_secs(7), "behind the new process: {elapsed:?}");
    assert_eq!(put_off.expect("a change").answer().0, 404, "a delayed change is answered");
    asked.join().expect("a thread");
    let none = wait_until(PATIENCE, || server.processes().is_empty());
    assert!(none, "{:?} are left", server.processes());
}

/// A kept connection to an admin listener.
struct Kept(BufReader<UnixStream>);

impl Kept {
    fn open(server: &Server) -> Self {
        Self(BufReader::new(server.admin().connect()))
    }

    fn send(&mut self, method: &str, path: &str) {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n");
        self.0.get_mut().write_all((head + "\r\n").as_bytes()).expect("send");
    }

    fn is_answered_within(&mut self, time: Duration) -> bool {
        self.0.get_ref().set_read_timeout(Some(time)).expect("a time-out");
        let is_answered = self.0.fill_buf().is_ok();
        self.0.get_ref().set_read_timeout(Some(PATIENCE)).expect("a time-out");
        is_answered
    }

    /// The status and the content of an answer.
    fn answer(&mut self) -> (u16, String) {
        let (mut head, mut line) = (String::new(), String::new());
        while line != "\r\n" {
            line.clear();
            assert!(self.0.read_line(&mut line).expect("an answer") > 0, "no answer: {head}");
            head += &line;
        }
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let mut content = vec![0; length.and_then(|it| it.parse().ok()).expect("a length")];
        self.0.read_exact(&mut content).expect("the content");
        (status.expect("a status"), String::from_utf8(content).expect("UTF-8"))
    }

    fn call(&mut self, method: &str, path: &str) -> (u16, String) {
        self.send(method, path);
        self.answer()
    }
}

#[test]
fn the_admin_api_may_move_and_close_with_an_upgrade() {
    let token = "0123456789abcdef";
    let mut server = start();
    let port = free_port();
    let tcp = format!("[admin]\nlisten = \"{port}\"\ntoken = \"{token}\"\n");
    rewrite(&server, "[admin]\n", &tcp);
    let status = format!(
        "GET /status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
         Connection: close\r\n\r\n"
    );
    let post = status.replace("GET /status", "POST /upgrade");
    server.admin().post("/upgrade");
    for _ in 0..2 {
        let answer = Client::connect(port).exchange(&status);
        let text: Value = serde_json::from_str(answer.text()).unwrap();
        server.follow(pid_in(&text));
        wait_alone(&server);
        assert!(!server.admin().path().exists(), "the old process takes its socket's file away");
        let program = post.replace("/upgrade", "/upgrade?binary=/bin/true");
        assert_eq!(Client::connect(port).exchange(&program).status, 403, "not for a token");
        let answer = Client::connect(port).exchange(&post);
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(ask(&server, "a.test").0, 200);
}

#[test]
fn the_command_line_upgrades() {
    let setup = Setup::new().app("a.test", &respond("a")).app("slow.test", &slow("s", "1s"));
    let mut server = start_with(setup);
    let admin = format!("unix:{}", server.admin().path().display());
    let upgrade = |more: &[&str]| run(&[&["upgrade", "--admin", &admin], more].concat());
    let hangs = script(&server, "hangs", "exec sleep 60");
    let (code, text) = upgrade(&["--binary", &hangs, "--timeout", "200ms"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("not ready in time") && text.contains("nothing changed"), "{text}");
    let mut waiting = begin(&server, "slow.test");
    let (code, text) = upgrade(&["--wait", "--json", "--binary", BINARY]);
    assert_eq!(code, Some(0), "{text}");
    let mut documents = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
    let (began, ended) = (documents.next().unwrap().unwrap(), documents.next().unwrap().unwrap());
    assert_eq!((&ended["cause"], &ended["verdict"]), (&json!("upgrade"), &json!("drained")));
    assert_eq!(waiting.response().text(), "s");
    server.follow(pid_in(&began));
    let (code, text) = upgrade(&["--wait"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains(" serves, pid ") && text.contains("drained in"), "{text}");
    let (code, text) = run(&["status", "--admin", &admin]);
    assert_eq!(code, Some(0), "{text}");
    server.follow(pid_in(&server.admin().get("/status")));
    wait_alone(&server);
}

#[test]
fn a_socket_of_systemd_is_served_handed_on_and_outlives_every_process() {
    for loops in [1, 3] {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let setup = || {
            Setup::new()
                .listen(&[&address.to_string()])
                .server(&format!("threads = {loops}"))
                .app("a.test", &respond("a"))
                .activated(socket.try_clone().unwrap())
        };
        let mut early = Client::connect(address);
        early.send(get_and_close("a.test", "/"));
        let mut server = start_with(setup());
        assert_eq!(early.response().text(), "a", "an early client waits for the server");
        let load = Load::start(LoadKind::NewConnections, 2, address, "a.test", "a");
        for round in 1..=3 {
            upgrade(&mut server);
            load.wait_answered(round * 50);
        }
        let tally = load.end();
        assert!(tally.lost.is_empty(), "{:?}", tally.lost);
        wait_alone(&server);
        server.admin().post("/stop");
        assert_eq!(server.wait_orphan(server.pid()), Some(0));
        // Systemd still has the socket: a client that connects now waits for the next process.
        let mut between = Client::connect(address);
        between.send(get_and_close("a.test", "/"));
        let _next = start_with(setup());
        assert_eq!(between.response().text(), "a");
    }
}

#[test]
fn the_proxy_protocol_is_as_the_new_config_says() {
    let plain = "\"127.0.0.1:0\"";
    let mut server = start();
    rewrite(&server, plain, "{ address = \"127.0.0.1:0\", proxy_protocol = true }");
    upgrade(&mut server);
    let header = "PROXY TCP4 192.0.2.7 192.0.2.1 5000 80\r\n";
    let mut client = server.connect();
    assert_eq!(client.exchange(format!("{header}{}", get("a.test", "/"))).text(), "a");
    rewrite(&server, "{ address = \"127.0.0.1:0\", proxy_protocol = true }", plain);
    upgrade(&mut server);
    assert_eq!(ask(&server, "a.test"), (200, "a".to_owned()));
}

#[test]
fn relative_paths_mean_the_same_after_an_upgrade() {
    let setup = Setup::new().file("site/index.html", "page");
    let mut server = start_with(setup.app("files.test", "files = { root = \"site\" }"));
    let put = json!({ "files": { "root": "site" } });
    assert_eq!(server.admin().put("/apps/put.test", &put).status, 201);
    upgrade(&mut server);
    for host in ["files.test", "put.test"] {
        assert_eq!(ask(&server, host), (200, "page".to_owned()), "{host}");
    }
}

#[test]
fn the_old_process_killed_while_it_drains_is_missed_and_the_new_one_goes_on() {
    let mut server =
        start_with(Setup::new().app("a.test", &respond("a")).app("slow.test", &slow("s", "60s")));
    let lost = begin(&server, "slow.test");
    upgrade(&mut server);
    server.kill_first();
    server.wait_event("old_process_lost");
    drop(lost);
    assert_eq!(ask(&server, "a.test").0, 200);
    assert_eq!(server.admin().get("/status")["previous"], json!([]));
    wait_alone(&server);
}

#[test]
fn the_old_process_takes_up_again_when_the_new_one_dies() {
    let mut socket = NotifySocket::with_path();
    let (_upstream, gate, app) = held();
    let setup = Setup::new().app("a.test", &respond("a")).app("slow.test", &app);
    let mut server = start_with(setup.environment("NOTIFY_SOCKET", socket.name()));
    let (old, status) = (server.pid(), || server.admin().get("/status"));
    let before = status();
    let mut in_flight = begin(&server, "slow.test");
    for round in 1..=2 {
        let admin = format!("unix:{}", server.admin().path().display());
        let waits = thread::spawn(move || run(&["upgrade", "--wait", "--admin", &admin]));
        wait_events(&server, "upgrade_handed_over", round);
        let handed = server.events().into_iter().rfind(|it| it.name == "upgrade_handed_over");
        let new = handed.as_ref().and_then(|handed| handed.field("pid")).expect("a pid");
        server.follow(Pid::from_raw(new.parse().expect("a number")).expect("a pid"));
        let has_let_go = || pid_in(&server.admin().get("/status")) == server.pid();
        assert!(wait_until(PATIENCE, has_let_go));
        // They wait in the kernel's queue: the new process is stopped.
        server.pause();
        let mut queued: Vec<_> = (0..16).map(|_| server.connect()).collect();
        queued.iter_mut().for_each(|client| client.send(get_and_close("a.test", "/")));
        socket.clear();
        server.signal(Signal::KILL);
        server.follow(old);
        for client in &mut queued {
            assert_eq!(client.response().text(), "a");
        }
        wait_events(&server, "upgrade_reverted", round);
        assert_eq!(socket.wait("MAINPID="), old.as_raw_nonzero().to_string());
        socket.wait("READY=1");
        let status = server.admin().get("/status");
        assert_eq!((pid_in(&status), &status["state"]), (old, &json!("serving")));
        assert_eq!(status["listen"], before["listen"]);
        let (code, text) = waits.join().expect("the command's end");
        assert!(code == Some(1) && text.contains("cancelled"), "{text}");
        let drain = server.admin().get("/drains/stop");
        assert_eq!((&drain["cause"], &drain["verdict"]), (&json!("upgrade"), &json!("cancelled")));
        // It works like any other server.
        rewrite(&server, "body = \"a\"", "body = \"b\"");
        assert_eq!(server.admin().post("/reload")["changed"], json!(["a.test"]));
        assert_eq!(ask(&server, "a.test").1, "b");
        rewrite(&server, "body = \"b\"", "body = \"a\"");
        server.admin().post("/reload");
    }
    upgrade(&mut server);
    gate.open();
    assert_eq!(in_flight.response().text(), "at last", "what was in flight all the time");
    assert!(server.wait_exit().success(), "the old process");
    wait_alone(&server);
    server.admin().post("/stop");
    assert_eq!(server.wait_orphan(server.pid()), Some(0));
}

#[test]
fn a_stopped_process_that_took_up_again_ends_whole() {
    let (_upstream, gate, app) = held();
    let setup = Setup::new().server("idle_grace = \"0s\"").app("slow.test", &app);
    let mut server = start_with(setup.app("a.test", &respond("a")));
    let (old, mut in_flight) = (server.pid(), begin(&server, "slow.test"));
    upgrade(&mut server);
    server.signal(Signal::KILL);
    server.follow(old);
    server.wait_event("upgrade_reverted");
    let mut later = server.connect();
    later.send(get("a.test", "/"));
    assert_eq!(later.response().text(), "a");
    server.signal(Signal::TERM);
    assert!(is_refused(server.address()));
    gate.open();
    assert_eq!(in_flight.response().text(), "at last");
    assert!(server.wait_exit().success());
    assert!(!server.admin().path().exists(), "it is its own again");
}

#[test]
fn the_old_process_does_not_take_up_when_the_new_one_had_said_goodbye() {
    for stops_the_new in [true, false] {
        let (_upstream, gate, app) = held();
        let mut server = start_with(Setup::new().app("slow.test", &app));
        let (old, mut in_flight) = (server.pid(), begin(&server, "slow.test"));
        upgrade(&mut server);
        let new = server.pid();
        if !stops_the_new {
            // A stop that an operator sends to the old process counts as well.
            server.follow(old);
        }
        let stops = |event: &support::Event| event.name == "shutdown_graceful";
        server.signal(Signal::TERM);
        // One of the old process for the upgrade, and then one of the new process.
        let said = || server.events().iter().filter(|event| stops(event)).count() == 2;
        assert!(wait_until(PATIENCE, said));
        server.follow(new);
        server.signal(Signal::KILL);
        server.wait_event("successor_gone");
        assert!(is_refused(server.address()));
        gate.open();
        assert_eq!(in_flight.response().text(), "at last");
        assert!(server.wait_exit().success());
        assert!(server.events().iter().all(|event| event.name != "upgrade_reverted"));
    }
}

#[test]
fn an_address_that_the_new_process_closes_is_not_kept_open_by_the_old_one() {
    let (first, second) = (free_port(), free_port());
    let (_upstream, gate, app) = held();
    let listen = [first.to_string(), second.to_string()];
    let setup = Setup::new().listen(&listen.each_ref().map(String::as_str));
    let mut server = start_with(setup.app("slow.test", &app));
    let (old, mut in_flight) = (server.pid(), begin(&server, "slow.test"));
    upgrade(&mut server);
    rewrite(&server, &format!(", \"{second}\""), "");
    server.admin().post("/reload");
    assert!(is_refused(second), "the old process drains, and holds it");
    server.signal(Signal::KILL);
    server.follow(old);
    let reverted = server.wait_event("upgrade_reverted");
    assert_eq!(reverted.field("listen"), Some(&*first.to_string()));
    gate.open();
    assert_eq!(in_flight.response().text(), "at last");
    // After a reload, its config names the address again.
    rewrite(&server, &format!("\"{first}\""), &format!("\"{first}\", \"{second}\""));
    server.admin().post("/reload");
    assert!(Client::try_connect(second, PATIENCE).is_ok());
}

#[test]
fn a_new_process_that_was_given_up_does_not_serve() {
    // Without its launcher, nothing ends the processes that the program has left behind.
    for before in ["", "sleep 0.1; kill -KILL $PPID; "] {
        let server = start();
        let here = server.dir().join("here");
        let late = format!(
            "{before}exec 3<&0; (until [ -e {} ]; do sleep 0.01; done; \
             exec {BINARY} \"$@\" <&3 3<&-) & exit 0",
            here.display()
        );
        let binary = script(&server, "late", &late);
        let answer = refused_upgrade(&server, &format!("?binary={binary}&timeout=300ms"));
        assert!(answer.error().contains("not ready in time"), "{answer:?}");
        fs::write(here, "").expect("a file");
        wait_alone(&server);
        let ready = |event: &&support::Event| event.name == "multi_app_ready";
        assert_eq!(server.events().iter().filter(ready).count(), 1, "two serve the same sockets");
        assert_unchanged(&server, server.sockets());
    }
}

#[test]
fn a_server_whose_old_process_stands_still_ends_and_says_so() {
    for second_signal in [true, false] {
        let setup =
            Setup::new().app("slow.test", &slow("s", "60s")).server("drain_timeout = \"1s\"");
        let mut server = start_with(setup);
        let (old, _in_flight) = (server.pid(), begin(&server, "slow.test"));
        let done = server.admin().post("/upgrade");
        server.pause();
        server.follow(pid_in(&done));
        let silent = || server.admin().get("/status")["previous"][0]["silent_ms"].as_u64();
        assert!(wait_until(PATIENCE, || silent() >= Some(2000)), "{:?}", silent());
        let admin = format!("unix:{}", server.admin().path().display());
        let (_, text) = run(&["status", "--admin", &admin]);
        assert!(text.contains("silent for "), "{text}");
        let begun = Instant::now();
        server.signal(Signal::TERM);
        server.wait_event("server_stop");
        if second_signal {
            server.signal(Signal::TERM);
        }
        assert_eq!(server.wait_orphan(server.pid()), Some(0));
        let most = Duration::from_secs(if second_signal { 6 } else { 12 });
        assert!(begun.elapsed() < most, "{:?}", begun.elapsed());
        let left = server.wait_event("old_process_left");
        assert_eq!(left.field("old_pid"), Some(&*old.as_raw_nonzero().to_string()));
        server.follow(old);
        server.resume();
        assert_eq!(server.wait_exit().code(), Some(3));
    }
}

#[test]
fn a_file_at_the_admins_path_that_is_not_its_own_is_left() {
    let mut server = start();
    let path = server.admin().path().to_owned();
    // The inherited socket has no file then, so the new process makes a new one.
    fs::remove_file(&path).expect("the socket's file");
    server.signal(Signal::USR2);
    wait_events(&server, "upgrade_handed_over", 1);
    assert!(wait_until(PATIENCE, || path.exists()));
    server.follow(pid_in(&server.admin().get("/status")));
    wait_alone(&server);
    fs::remove_file(&path).expect("the socket's file");
    fs::write(&path, "precious").expect("a file");
    server.signal(Signal::USR2);
    let failed = server.wait_event("upgrade_failed");
    assert!(failed.field("error").is_some_and(|it| it.contains("not a socket")), "{failed:?}");
    assert_eq!(ask(&server, "a.test").0, 200);
    server.signal(Signal::TERM);
    assert_eq!(server.wait_orphan(server.pid()), Some(0));
    assert_eq!(fs::read(path).expect("the file"), b"precious");
}

#[test]
fn the_first_process_of_a_container_is_not_upgraded_to_death() {
    let unshare = ["-pf", "--mount-proc", "--kill-child"];
    let may = Command::new("unshare").args(unshare).arg("true").status();
    if !may.is_ok_and(|status| status.success()) {
        println!("not tried: no new namespaces are allowed here");
        return;
    }
    let shell = format!("exec unshare {} \"$0\" \"$@\"", unshare.join(" "));
    let server = start_with(Setup::new().shell(&shell).app("a.test", &respond("a")));
    let answer = refused_upgrade(&server, "");
    assert!(answer.error().contains("PID 1"), "{answer:?}");
    assert_eq!(ask(&server, "a.test"), (200, "a".to_owned()));
    server.admin().post("/stop");
}

#[test]
fn a_new_process_that_dies_while_the_old_one_drains_is_no_zombie() {
    let (_upstream, gate, app) = held();
    let mut server = start_with(Setup::new().app("slow.test", &app));
    let mut waiting = begin(&server, "slow.test");
    let done = server.admin().post("/upgrade");
    let (old, new) = (server.pid(), pid_in(&done));
    server.follow(new);
    server.signal(Signal::KILL);
    server.follow(old);
    server.wait_event("successor_gone");
    assert!(wait_until(PATIENCE, || server.zombies().is_empty()));
    assert!(server.is_running());
    gate.open();
    assert_eq!(waiting.response().text(), "at last", "what was in flight is answered");
    server.signal(Signal::TERM);
    assert!(server.wait_exit().success());
}

// --- Connections without a request

/// How many connections the newest process has taken over.
fn taken_over(server: &Server) -> usize {
    let metrics = server.admin().call("GET", "/metrics", "");
    let name = "tidegate_connections_taken_over_total ";
    let line = metrics.text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|count| count.parse().ok()).expect("a count")
}

fn by_state(server: &Server, state: &str) -> Value {
    server.admin().get("/status")["connections"][state].clone()
}

#[test]
fn an_upgrade_closes_no_idle_connection_and_the_old_process_goes_at_once() {
    const EACH: usize = 500;
    let mut server = start_with(Setup::new().server("threads = 3").app("a.test", &respond("a")));
    let mut fresh: Vec<_> = (0..EACH).map(|_| server.connect()).collect();
    let mut idle: Vec<_> = (0..EACH).map(|_| server.connect()).collect();
    idle.iter_mut().for_each(|client| drop(client.exchange(get("a.test", "/"))));
    for (round, threads) in [1, 4, 2].into_iter().enumerate() {
        let text = fs::read_to_string(server.dir().join("config.toml")).expect("config.toml");
        let from = text.lines().find(|line| line.starts_with("threads")).expect("threads");
        rewrite(&server, from, &format!("threads = {threads}"));
        upgrade(&mut server);
        wait_alone(&server);
        // Some send a request between two upgrades, and some never have.
        for client in idle.iter_mut().skip(round).step_by(7).chain(&mut fresh[round..=round]) {
            let response = client.exchange(get("a.test", "/"));
            assert_eq!((response.text(), response.says_close()), ("a", false));
        }
        assert_eq!(taken_over(&server), 2 * EACH);
    }
    let counts = [by_state(&server, "fresh"), by_state(&server, "idle")];
    assert_eq!(counts, [json!(EACH - 3), json!(EACH + 3)]);
    assert!(!idle.iter_mut().chain(&mut fresh).any(Client::is_readable), "none was closed");
    drop((idle, fresh));
    wait_idle(&server);
}

#[test]
fn a_connection_that_is_answered_by_the_old_process_goes_on_in_the_new_one() {
    let (_upstream, gate, app) = held();
    let setup = Setup::new().server("threads = 1").app("slow.test", &app);
    let mut server = start_with(setup.app("a.test", &respond("a")));
    let mut client = server.connect();
    client.send(get("slow.test", "/"));
    let row = |server: &Server| server.admin().get("/apps/slow.test");
    assert!(wait_until(PATIENCE, || row(&server)["active_connections"] == 1));
    upgrade(&mut server);
    gate.open();
    let response = client.response();
    assert_eq!((response.text(), response.says_close()), ("at last", false));
    wait_alone(&server);
    assert_eq!((taken_over(&server), by_state(&server, "idle")), (1, json!(1)));
    assert_eq!(client.exchange(get("a.test", "/")).text(), "a");
    assert_eq!(row(&server)["requests_total"], 0, "the old one counted that");
}

#[test]
fn what_a_proxy_header_said_moves_with_its_connection() {
    const HEADER: &str = "PROXY TCP4 192.0.2.7 192.0.2.1 5000 80\r\n";
    let log = "access = \"json\"\naccess_path = \"access.log\"";
    let setup = Setup::new().log(log).app("a.test", &respond("a"));
    let mut server = start_with(setup);
    let proxied = "{ address = \"127.0.0.1:0\", proxy_protocol = true }";
    rewrite(&server, "\"127.0.0.1:0\"", proxied);
    upgrade(&mut server);
    let [mut idle, mut named, mut silent, mut half] =
        std::array::from_fn(|_| Client::connect(server.address()));
    idle.exchange(format!("{HEADER}{}", get("a.test", "/")));
    named.send(HEADER);
    half.send(&HEADER[..10]);
    server.wait_read([&named, &half]);
    // The old process keeps the connection with half a header; all others move.
    upgrade(&mut server);
    assert!(wait_until(PATIENCE, || taken_over(&server) == 3), "{}", taken_over(&server));
    half.send(&HEADER[10..]);
    assert!(wait_until(PATIENCE, || taken_over(&server) == 4), "it is whole");
    wait_alone(&server);
    for client in [&mut idle, &mut named, &mut half] {
        assert_eq!(client.exchange(get("a.test", "/")).text(), "a");
    }
    assert_eq!(silent.exchange(format!("{HEADER}{}", get("a.test", "/"))).text(), "a");
    server.admin().post("/stop");
    assert_eq!(server.wait_orphan(server.pid()), Some(0));
    let lines = fs::read_to_string(server.dir().join("access.log")).expect("access.log");
    let peers = lines.lines().filter(|line| line.contains("192.0.2.7")).count();
    assert_eq!((peers, lines.lines().count()), (5, 5), "{lines}");
}

#[test]
fn a_new_process_without_room_leaves_connections_to_the_old_one_until_they_speak() {
    let (upstream, gate, app) = held();
    let setup = Setup::new().server("threads = 1\ndrain_timeout = \"60s\"");
    let setup = setup.app("a.test", &respond("a")).app("slow.test", &app);
    let mut server = start_with(setup);
    let mut busy: Vec<_> = (0..20).map(|_| server.connect()).collect();
    busy.iter_mut().for_each(|client| client.send(get("slow.test", "/")));
    upstream.wait_asked(20);
    upgrade(&mut server);
    // The new process believes in a higher limit, so the kernel drops connections that it cannot
    // receive.
    server.lower_descriptor_limit(server.descriptors().len() as u64 + 5);
    gate.open();
    for client in &mut busy {
        assert_eq!(client.response().text(), "at last");
    }
    // A connection that was not offered yet may be closed with one of its next answers.
    let stays = |client: &mut Client| {
        let mut answers = (0..3).map(|_| client.exchange(get("a.test", "/")));
        answers.any(|response| {
            assert_eq!(response.text(), "a");
            response.says_close()
        })
    };
    let kept = busy.iter_mut().map(stays).filter(|stays| *stays).count();
    // It may have closed some connections meanwhile.
    assert!(kept >= 10, "{kept} stay");
    server.lower_descriptor_limit(64);
    drop(busy);
    wait_alone(&server);
}

// --- Requests that were read

/// A pipeline whose first answer is held back until the gate opens.
fn pipeline(server: &Server, upstream: &Upstream, count: usize) -> Client {
    let mut client = server.connect();
    client.send(get("slow.test", "/") + &get("a.test", "/").repeat(count - 1));
    upstream.wait_asked(1);
    client
}

#[test]
fn a_pipeline_that_was_read_is_answered_to_its_end_at_an_upgrade() {
    let (upstream, gate, app) = held();
    let mut server = start_with(Setup::new().app("slow.test", &app).app("a.test", &respond("a")));
    let mut client = pipeline(&server, &upstream, 100);
    upgrade(&mut server);
    gate.open();
    for _ in 0..100 {
        let response = client.response();
        assert_eq!((response.status, response.says_close()), (200, false));
    }
    assert_eq!(client.exchange(get("a.test", "/")).text(), "a");
    wait_alone(&server);
}

#[test]
fn a_pipeline_that_was_read_is_answered_to_its_end_at_a_stop() {
    let (upstream, gate, app) = held();
    let mut server = start_with(Setup::new().app("slow.test", &app).app("a.test", &respond("a")));
    let mut client = pipeline(&server, &upstream, 100);
    client.send("GET /half");
    server.signal(Signal::TERM);
    server.wait_event("shutdown_gated");
    gate.open();
    for last in (0..100).rev() {
        let response = client.response();
        assert_eq!((response.status, response.says_close()), (200, last == 0));
    }
    assert!(server.wait_exit().success());
}
