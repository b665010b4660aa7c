//! The messages of the real binary to a service manager, which is a socket of the test.

use std::{
    thread,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec};
use socket2::{Domain, Socket, Type};

use crate::support::{
    Client, NotifySocket, PATIENCE, Pid, Server, Setup, Signal, free_port, get, wait_until,
};

const MS: Duration = Duration::from_millis(1);

fn setup(socket: &NotifySocket) -> Setup {
    Setup::new()
        .server("idle_grace = \"0s\"")
        .named_app("app.test")
        .app("slow.test", "respond = { body = \"slow\", delay = \"60s\" }")
        .environment("NOTIFY_SOCKET", socket.name())
}

#[test]
fn ready_reloading_and_stopping_are_notified_by_path_and_by_abstract_name() {
    for mut socket in [NotifySocket::with_path(), NotifySocket::with_abstract_name()] {
        let mut server = setup(&socket).start();
        socket.wait("READY=1");
        assert_eq!(socket.wait("STATUS="), "serving 2 apps: 0 connections, 0 active");
        assert_eq!(server.connect().exchange(get("app.test", "/")).text(), "app.test");
        socket.clear();
        server.signal(Signal::HUP);
        assert_notified_of_a_reload(&mut socket);
        server.admin().post("/reload");
        assert_notified_of_a_reload(&mut socket);
        // A reload that fails ends too.
        server.rewrite("nonsense");
        assert_eq!(server.admin().call("POST", "/reload", "").status, 422);
        assert_notified_of_a_reload(&mut socket);
        server.signal(Signal::TERM);
        socket.wait("STOPPING=1");
        assert_eq!(server.wait_exit().code(), Some(0));
        socket.receive_for(MS);
        assert_eq!(socket.values("STATUS=").last().expect("a status"), "stopped: drained");
        assert!(socket.values("READY=1").is_empty(), "it does not serve again");
        assert!(server.events().iter().all(|event| event.name != "notify_failed"));
    }
}

fn assert_notified_of_a_reload(socket: &mut NotifySocket) {
    socket.wait("RELOADING=1");
    let reloading = socket.message("RELOADING=1");
    let reported: u128 =
        reloading[1].strip_prefix("MONOTONIC_USEC=").expect("it").parse().expect("µs");
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let now = Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32).as_micros();
    assert!(reported <= now && now < reported + 60_000_000, "{reported} {now}");
    socket.wait("READY=1");
    assert!(socket.times("READY=1") > socket.times("RELOADING=1"));
    socket.clear();
}

#[test]
fn the_status_counts_at_most_every_second_and_only_what_changes() {
    let mut socket = NotifySocket::with_path();
    let server = setup(&socket).start();
    socket.wait("READY=1");
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let mut client = server.connect();
            client.send(get("slow.test", "/"));
            client
        })
        .collect();
    server.wait_read(&clients);
    socket.wait("STATUS=serving 2 apps: 3 connections, 3 active");
    socket.receive_for(2500 * MS);
    assert_eq!(socket.values("STATUS=").len(), 2, "nothing has changed");
    server.admin().call("POST", "/apps/slow.test/drain?timeout=30s", "");
    socket.wait("STATUS=serving 2 apps: 3 connections, 3 active; draining slow.test: 3 active, ");
    socket.wait("STATUS=serving 2 apps: 3 connections, 3 active; draining slow.test: 3 active, 27");
    // The first status comes with READY=1.
    let times = socket.times("STATUS=");
    let apart = times[1..].windows(2).map(|pair| pair[1] - pair[0]).min().expect("three");
    assert!(apart >= 900 * MS, "{apart:?}");
}

#[test]
fn a_stop_asks_for_time_until_its_own_deadline() {
    let mut socket = NotifySocket::with_path();
    let mut server = setup(&socket).server("drain_timeout = \"2500ms\"").start();
    let mut client = server.connect();
    client.send(get("slow.test", "/"));
    server.wait_read([&client]);
    socket.wait("READY=1");
    assert!(socket.values("EXTEND_TIMEOUT_USEC=").is_empty());
    let begun = Instant::now();
    server.signal(Signal::TERM);
    socket.wait("STOPPING=1");
    assert!(socket.message("STOPPING=1").iter().any(|line| line.starts_with("EXTEND_TIMEOUT")));
    assert_eq!(server.wait_exit().code(), Some(3));
    assert!(begun.elapsed() >= 2499 * MS);
    socket.receive_for(MS);
    let extensions = socket.values("EXTEND_TIMEOUT_USEC=");
    // At the start, each second, and at the end. Each extends beyond the next message.
    assert!((3..=6).contains(&extensions.len()), "{extensions:?}");
    assert!(extensions.iter().all(|time| time.parse::<u64>().expect("µs") >= 5_000_000));
    let stopping = socket.values("STATUS=stopping: 1 connections, 1 active, ");
    assert!(stopping.contains(&"2 s left".to_owned()), "{stopping:?}");
    assert_eq!(socket.values("STATUS=").last().expect("a status"), "stopped: cut 1");
}

#[test]
fn watchdog_messages_come_twice_per_watchdog_time() {
    let mut socket = NotifySocket::with_path();
    let _server = setup(&socket).environment("WATCHDOG_USEC", "400000").start();
    socket.wait("READY=1");
    assert!(socket.message("READY=1").contains(&"WATCHDOG=1".to_owned()));
    socket.clear();
    socket.receive_for(3000 * MS);
    let signs = socket.times("WATCHDOG=1").len();
    assert!((8..=16).contains(&signs), "{signs} in 3 s");
}

#[test]
fn a_main_process_is_the_service_managers_child_before_it_is_named() {
    // Like systemd, the test process is a subreaper.
    Server::adopt_orphans();
    let mut socket = NotifySocket::with_path();
    let mut server = setup(&socket).start();
    let mut clients = Vec::new();
    for _ in 0..2 {
        // The old process stays: its end would make the new process an orphan anyway.
        let mut client = server.connect();
        client.send(get("slow.test", "/"));
        server.wait_read([&client]);
        clients.push(client);
        let old = server.pid();
        socket.clear();
        server.admin().post("/upgrade");
        let main = socket.wait("MAINPID=").parse().ok().and_then(Pid::from_raw).expect("a pid");
        assert_ne!(main, old);
        server.follow(main);
        assert_eq!(server.parent(), std::process::id(), "it would be killed at a stop");
        socket.wait("READY=1");
    }
    server.signal(Signal::TERM);
    socket.wait("STOPPING=1");
    server.signal(Signal::TERM);
    server.wait_orphan(server.pid());
}

#[test]
fn a_manager_without_a_watchdog_gets_no_watchdog_messages() {
    for (name, value) in [("WATCHDOG_USEC", "0"), ("WATCHDOG_PID", "1")] {
        let mut socket = NotifySocket::with_path();
        let setup = setup(&socket).environment("WATCHDOG_USEC", "100000");
        let _server = setup.environment(name, value).start();
        socket.wait("READY=1");
        socket.receive_for(300 * MS);
        assert!(socket.values("WATCHDOG").is_empty(), "{name}={value}");
    }
}

#[test]
fn a_notify_socket_that_is_missing_or_not_a_socket_is_logged_once() {
    for name in ["/no/such/socket", "@tidegate/no such socket", "notify", "/dev/null", ""] {
        let mut server = Setup::new()
            .named_app("app.test")
            .server("idle_grace = \"0s\"")
            .environment("NOTIFY_SOCKET", name)
            .start();
        assert_eq!(server.connect().exchange(get("app.test", "/")).text(), "app.test");
        server.admin().post("/reload");
        server.signal(Signal::TERM);
        assert_eq!(server.wait_exit().code(), Some(0), "{name}");
        let failed = || server.events().iter().filter(|e| e.name == "notify_failed").count();
        assert!(wait_until(MS, || failed() == 1), "{name}: {:?}", server.events());
    }
}

#[test]
fn a_restart_refuses_no_connection_where_the_manager_keeps_the_sockets() {
    let kept = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    kept.set_reuse_port(true).expect("SO_REUSEPORT");
    let address = free_port();
    kept.bind(&address.into()).and_then(|()| kept.listen(128)).expect("a listener");
    let start = || {
        Setup::new()
            .listen(&[&address.to_string()])
            .server("idle_grace = \"0s\"")
            .named_app("app.test")
            .kept(kept.try_clone().expect("dup"))
            .start()
    };
    let ask = move || {
        let mut client = Client::try_connect(address, PATIENCE).expect("a connection");
        client.exchange(get("app.test", "/")).status
    };
    let mut first = start();
    assert_eq!(ask(), 200);
    first.signal(Signal::TERM);
    assert_eq!(first.wait_exit().code(), Some(0));
    // Between the two processes the kernel accepts nothing either: if the server did not come back,
    // the connection would be reset.
    let asked = thread::spawn(ask);
    let is_queued = || {
        let mut look = [PollFd::new(&kept, PollFlags::IN)];
        rustix::event::poll(&mut look, Some(&Timespec::default())).expect("poll") > 0
    };
    assert!(!wait_until(200 * MS, is_queued), "a connection waits at the gated socket");
    let second = start();
    assert_eq!(asked.join().expect("an answer"), 200);
    assert_eq!(ask(), 200);
    drop(second);
}
