//! The user that the server runs as: the config's user replaces root in every thread, and
//! everything later works as that user too.
//!
//! Tests that need root are skipped, with a message, if another user runs them.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use nix::unistd::{Gid, Group, User, geteuid};
use serde_json::json;

use crate::{
    support::{
        BINARY, Client, Handshake, PATIENCE, Pid, Server, Setup, Signal, get, get_and_close, run,
        wait_until,
    },
    tls::{Authority, connect, shown},
};

/// An account that every machine has.
const NOBODY: &str = "nobody";

/// The bit of CAP_NET_BIND_SERVICE in CapEff and the other sets (capabilities(7)).
const NET_BIND_SERVICE: u64 = 1 << 10;

fn is_root() -> bool {
    let is_root = geteuid().is_root();
    if !is_root {
        eprintln!("skipped: only root can become another user");
    }
    is_root
}

fn nobody() -> User {
    User::from_name(NOBODY).expect("a look-up").expect("an account")
}

/// A setup whose server becomes the user `nobody`, in a folder of that user.
fn setup() -> Setup {
    let setup = Setup::new().server("user = \"nobody\"").named_app("a.test");
    let user = nobody();
    chown(setup.dir(), Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("chown");
    setup
}

/// The values of a line of a thread's `/proc/PID/task/TID/status`.
fn values<'t>(status: &'t str, name: &str) -> Vec<&'t str> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in\n{status}")).split_ascii_whitespace().collect()
}

fn capabilities(status: &str, name: &str) -> u64 {
    u64::from_str_radix(values(status, name)[0], 16).expect("hexadecimal")
}

fn threads(pid: Pid) -> Vec<String> {
    let folder = format!("/proc/{}/task", pid.as_raw_nonzero());
    let tasks = fs::read_dir(folder).expect("the process runs").flatten();
    tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok()).collect()
}

fn assert_nobody(pid: Pid) {
    assert_nobody_in(pid, nobody().gid);
}

/// Checks that every thread runs as `nobody`, only in this group, and with one capability.
fn assert_nobody_in(pid: Pid, gid: Gid) {
    let own = fs::read_to_string("/proc/self/status").expect("status");
    let (uid, gid) = (nobody().uid.to_string(), gid.to_string());
    let threads = threads(pid);
    assert!(threads.len() > 4, "{threads:?}");
    for status in threads {
        assert_eq!(values(&status, "Uid"), [&*uid; 4], "{status}");
        assert_eq!(values(&status, "Gid"), [&*gid; 4], "{status}");
        assert_eq!(values(&status, "Groups"), [&*gid], "{status}");
        assert_eq!(values(&status, "NoNewPrivs"), ["1"], "{status}");
        let effective = capabilities(&status, "CapEff");
        for name in ["CapPrm", "CapInh", "CapAmb"] {
            assert_eq!(capabilities(&status, name), effective, "{name} in\n{status}");
        }
        assert_eq!(effective, capabilities(&own, "CapPrm") & NET_BIND_SERVICE, "{status}");
    }
}

fn ask(address: SocketAddr) -> (u16, String) {
    let response = Client::connect(address).exchange(get_and_close("a.test", "/"));
    (response.status, response.text().to_owned())
}

/// An address whose port only root, or a process with CAP_NET_BIND_SERVICE, can bind. It is another
/// address each time.
fn low_port() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., process] = std::process::id().to_be_bytes();
    let ip = [127, 83, process, NEXT.fetch_add(1, Ordering::Relaxed)];
    let free = |port: &u16| TcpListener::bind(SocketAddr::from((ip, *port))).is_ok();
    let port = (600..1024).find(free).expect("a free port below 1024");
    (ip, port).into()
}

/// A copy of the program that every user can run: the original may be below root's home. Another
/// process makes the copy. If this process wrote it, a child of another test could hold the file
/// open for writing, and then no process could run it (ETXTBSY).
fn reachable_program(folder: &Path) -> PathBuf {
    let program = folder.join("tidegate");
    let copied = Command::new("cp").arg(BINARY).arg(&program).status().expect("cp");
    assert!(copied.success(), "{copied}");
    program
}

fn file_is_there(path: &Path) -> bool {
    wait_until(PATIENCE, || path.exists())
}

#[test]
fn root_gives_way_in_every_thread_and_the_server_works_on() {
    if !is_root() {
        return;
    }
    let setup = setup().listen(&[&low_port().to_string()]).log("access = \"json\"");
    let mut server = setup.log("access_path = \"access.log\"").start();
    let dropped = server.wait_event("privileges_dropped");
    assert_eq!(dropped.field("user"), Some(NOBODY));
    assert_nobody(server.pid());
    assert_eq!(ask(server.address()), (200, "a.test".to_owned()));
    let log = server.dir().join("access.log");
    assert!(file_is_there(&log) && file_is_there(&server.dir().join("tidegate.sock")));
    for path in [&log, &server.dir().join("tidegate.sock")] {
        assert_eq!(fs::metadata(path).expect("it").uid(), nobody().uid.as_raw(), "{path:?}");
    }
    assert_eq!(fs::metadata(server.dir().join("tidegate.sock")).unwrap().mode() & 0o777, 0o600);

    fs::rename(&log, server.dir().join("access.log.1")).expect("rename");
    server.signal(Signal::USR1);
    assert!(file_is_there(&log), "it is not opened again");

    // A reload adds an address that otherwise only root could bind.
    let (first, second) = (server.address(), low_port());
    let text = fs::read_to_string(server.dir().join("config.toml")).expect("config.toml");
    server.rewrite(&text.replace(&format!("\"{first}\""), &format!("\"{first}\", \"{second}\"")));
    let done = server.admin().post("/reload");
    assert_eq!(done["listeners"]["added"], json!([second.to_string()]), "{done}");
    assert_eq!(ask(second), (200, "a.test".to_owned()));
    let status = server.admin().call("GET", "/metrics", "");
    assert_eq!(status.status, 200, "/proc is readable");

    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit().code(), Some(0));
    assert!(!server.dir().join("tidegate.sock").exists(), "the user nobody may remove it");
    for event in server.events() {
        assert!(!["WARN", "ERROR"].contains(&&*event.level), "{event:?}");
    }
}

#[test]
fn the_gate_needs_no_right_of_roots() {
    if !is_root() {
        return;
    }
    let mut server = setup().server("threads = 2").start();
    assert_nobody(server.pid());
    let handshake = Handshake::begin(server.address());
    server.signal(Signal::TERM);
    let deadline = Duration::from_millis(150);
    let is_gated = || Handshake::is_swallowed(server.address(), deadline);
    assert!(wait_until(PATIENCE, is_gated), "no gate");
    let mut client = handshake.end();
    assert_eq!(client.exchange(get("a.test", "/")).text(), "a.test");
    client.expect_end();
    assert_eq!(server.wait_exit().code(), Some(0));
    assert!(server.events().iter().all(|event| event.name != "gate_failed"));
}

#[test]
fn an_upgrade_goes_on_as_the_user_with_the_same_capabilities() {
    if !is_root() {
        return;
    }
    Server::adopt_orphans();
    let mut server = setup().listen(&[&low_port().to_string()]).start();
    let program = reachable_program(&server.dir());
    let before = threads(server.pid()).remove(0);
    for _ in 0..2 {
        let path = format!("/upgrade?binary={}", program.display());
        let done = server.admin().post(&path);
        let pid = done["pid"].as_i64().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        server.follow(pid.unwrap_or_else(|| panic!("{done}")));
        assert_nobody(server.pid());
        let now = threads(server.pid()).remove(0);
        assert_eq!(capabilities(&now, "CapEff"), capabilities(&before, "CapEff"));
        assert_eq!(ask(server.address()), (200, "a.test".to_owned()));
    }
    let second = low_port();
    let text = fs::read_to_string(server.dir().join("config.toml")).expect("config.toml");
    let first = server.address();
    server.rewrite(&text.replace(&format!("\"{first}\""), &format!("\"{first}\", \"{second}\"")));
    let done = server.admin().post("/reload");
    assert_eq!(done["listeners"]["added"], json!([second.to_string()]), "{done}");
    server.signal(Signal::TERM);
    assert_eq!(server.wait_orphan(server.pid()), Some(0));
    assert!(server.events().iter().all(|event| event.name != "gate_failed"));
}

#[test]
fn a_server_of_roots_gives_way_at_an_upgrade_that_says_so() {
    if !is_root() {
        return;
    }
    Server::adopt_orphans();
    let setup = Setup::new().named_app("a.test");
    chown(setup.dir(), Some(nobody().uid.as_raw()), None).expect("chown");
    let mut server = setup.start();
    assert_eq!(server.wait_event("running_as_root").level, "WARN");
    let mut open = server.connect();
    assert_eq!(open.exchange(get("a.test", "/")).status, 200);
    let text = fs::read_to_string(server.dir().join("config.toml")).expect("config.toml");
    server.rewrite(&text.replace("[server]\n", "[server]\nuser = \"nobody\"\n"));
    let done = server.admin().post("/reload");
    assert_eq!(done["needs_restart"], json!(["server.user"]));
    let done = server.admin().post("/reload");
    assert_eq!(
        done["needs_restart"],
        json!(["server.user"]),
        "it has no more privileges than before"
    );
    let done = server.admin().post("/upgrade");
    let pid = done["pid"].as_i64().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    server.follow(pid.unwrap_or_else(|| panic!("{done}")));
    assert_nobody(server.pid());
    assert_eq!(ask(server.address()), (200, "a.test".to_owned()));
}

#[test]
fn a_group_takes_the_place_of_the_users_own() {
    if !is_root() {
        return;
    }
    let server = setup().server("group = \"daemon\"").start();
    let daemon = Group::from_name("daemon").expect("a look-up").expect("a group");
    assert_nobody_in(server.pid(), daemon.gid);
    assert_eq!(ask(server.address()), (200, "a.test".to_owned()));
}

#[test]
fn files_that_the_user_cannot_open_are_reported_at_the_start() {
    if !is_root() {
        return;
    }
    let private = fs::Permissions::from_mode(0o600);
    let setup = setup().log("path = \"events.log\"").file("events.log", "root's own\n");
    fs::set_permissions(setup.dir().join("events.log"), private.clone()).expect("mode");
    let config = setup.write();
    let (code, printed) = run(&["serve", "--config", config.to_str().expect("text")]);
    assert_eq!(code, Some(1), "{printed}");
    assert!(printed.contains("cannot open log") && printed.contains("ermission"), "{printed}");
    assert_eq!(fs::read(setup.dir().join("events.log")).expect("it"), b"root's own\n");

    let setup = self::setup();
    fs::set_permissions(setup.write(), private).expect("mode");
    let server = setup.start();
    let warned = server.wait_event("config_not_readable");
    assert!(warned.field("config").is_some_and(|path| path.ends_with("config.toml")), "{warned:?}");
    let failed = server.admin().call("POST", "/reload", "");
    assert_eq!(failed.status, 422, "{failed:?}");
}

#[test]
fn a_key_that_only_root_can_read_is_served_over_reloads_and_upgrades_and_said_to_need_a_restart() {
    if !is_root() {
        return;
    }
    Server::adopt_orphans();
    let authority = Authority::new();
    let put = |folder: &Path, (certificate, key): (String, String)| {
        for (name, content, mode) in [("a.key", key, 0o600), ("a.pem", certificate, 0o644)] {
            fs::write(folder.join("new"), content).expect("a file");
            fs::set_permissions(folder.join("new"), fs::Permissions::from_mode(mode)).expect("it");
            fs::rename(folder.join("new"), folder.join(name)).expect("a rename");
        }
    };
    let setup = Setup::new()
        .listen(&["{ address = \"127.0.0.1:0\", tls = true }"])
        .server("user = \"nobody\"")
        .app("a.test", "respond = {}\ntls = { cert = \"a.pem\", key = \"a.key\" }");
    chown(setup.dir(), Some(nobody().uid.as_raw()), None).expect("chown");
    put(setup.dir(), authority.issue(&["a.test"]));
    let mut server = setup.start();
    let (address, config) = (server.address(), authority.client());
    let served = || shown(&connect(address, &config, "a.test").expect("a handshake"));
    let before = served();
    let warned = server.wait_event("certificate_not_readable");
    assert!(warned.field("file").is_some_and(|file| file.ends_with("a.key")), "{warned:?}");
    let hint = warned.field("hint").expect("a hint");
    let uid = nobody().uid.to_string();
    assert!(hint.contains(&format!("readable for uid {uid} (chgrp, chmod 640)")), "{hint}");
    let rejected = |server: &Server| {
        let events = server.events().into_iter();
        events.filter(|event| event.name == "certificate_rejected").collect::<Vec<_>>()
    };
    // The certificate on disk is the one in use.
    let answer = server.admin().post("/reload");
    assert_eq!(answer["certificate_errors"], json!([]), "{answer}");
    let path = format!("/upgrade?binary={}", reachable_program(&server.dir()).display());
    let done = server.admin().post(&path);
    let pid = done["pid"].as_i64().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    server.follow(pid.unwrap_or_else(|| panic!("{done}")));
    assert_nobody(server.pid());
    assert_eq!(served(), before);
    assert_eq!(rejected(&server).len(), 0);

    // A renewal is noticed, and can't be read.
    put(&server.dir(), authority.issue(&["a.test"]));
    assert!(wait_until(PATIENCE, || rejected(&server).len() == 1));
    let error = rejected(&server)[0].field("error").expect("an error").to_owned();
    assert!(error.contains("a.key: cannot be read: Permission denied"), "{error}");
    assert!(error.contains("(chgrp, chmod 640), or restart the server"), "{error}");
    assert_eq!(served(), before);
    let answer = server.admin().post("/reload");
    assert_eq!(answer["certificate_errors"], json!([format!("a.test: {error}")]));
    assert_eq!(served(), before);
    let key = server.dir().join("a.key");
    chown(&key, Some(nobody().uid.as_raw()), None).expect("chown");
    assert!(wait_until(PATIENCE, || served() != before));
}

#[test]
fn an_account_that_cannot_be_is_shown_at_its_place() {
    for (lines, place, words) in [
        ("user = \"no-such-user\"", "4:8", "`server.user` names no user of this machine"),
        ("user = \"root\"", "4:8", "`server.user` is root"),
        (
            "user = \"nobody\"\ngroup = \"no-such-group\"",
            "5:9",
            "`server.group` names no group of this machine",
        ),
        ("group = \"nogroup\"", "4:1", "`server.group` is for `server.user` only"),
    ] {
        let setup = Setup::new().server("threads = 1").server(lines);
        let config = setup.write();
        for command in ["check", "serve"] {
            let (code, printed) = run(&[command, "--config", config.to_str().expect("text")]);
            assert_eq!(code, Some(2), "{command}: {printed}");
            let place = format!("config.toml:{place}");
            assert!(printed.contains(words) && printed.contains(&place), "{command}: {printed}");
        }
    }
}

#[test]
fn only_root_becomes_another() {
    if !is_root() {
        return;
    }
    let setup = setup();
    let (config, program) = (setup.write(), reachable_program(setup.dir()));
    // A process that may not become `nobody`.
    let daemon = User::from_name("daemon").expect("a look-up").expect("an account").uid.as_raw();
    fs::set_permissions(setup.dir(), fs::Permissions::from_mode(0o755)).expect("mode");
    let as_daemon = |command: &str| {
        let mut child = Command::new(&program);
        let output = child.args([command, "--config"]).arg(&config).uid(daemon).gid(daemon);
        let output = output.output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let words = format!("cannot run as nobody: only root can, and this is uid {daemon}");
    for (command, expected) in [("serve", 1), ("check", 0)] {
        let (code, printed) = as_daemon(command);
        assert_eq!((code, printed.contains(&words)), (Some(expected), true), "{printed}");
    }
}
