//! A whole loop, driven by commands like control's.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crossbeam_channel::Receiver;
use mio::{Events, Token};

use super::{
    connection::Next,
    obey::END_GRACE,
    poll::EVENTS_MAX,
    queue::QUEUED_TURNS_MAX,
    test_support::{self, hosted_app, stop_rules},
    *,
};
use crate::{
    acknowledgement::{Obeyed, acknowledgement},
    app::{App, Context, Later, Reply},
    config::{AccessFormat, Limits, LogConfig},
    hosted::{AppLife, Apps, HostedApp},
    http::{RequestHead, Response},
    logging::AccessLog,
    message::{
        BusyConnection, BusyPhase, Class, ControlEvent, LoopCommand, LoopConfig, LoopHandle,
        StopRules,
    },
    metrics::{LoopCounts, LoopGauges},
    registry::{AppRegistry, NewApp},
};

/// How long a loaded machine may take for what is otherwise immediate.
const PATIENCE: Duration = Duration::from_secs(15);

/// Bytes of an answer too large for a socket's send buffer.
const LARGE: usize = 16 * 1024 * 1024;

/// An app that answers with its name. The test answers `/later`, `/large` overflows the socket,
/// and `/content` waits for the content.
struct Desk(&'static str, mpsc::Sender<Later>);

impl App for Desk {
    fn handle<'a>(&'a self, request: &RequestHead<'_>, _context: &Context<'_>) -> Reply<'a> {
        let (name, desk) = (self.0, self.1.clone());
        match request.path() {
            "/later" => Reply::Later(Box::new(move |later| drop(desk.send(later)))),
            "/large" => Reply::Full(Response::new(200).with_content(vec![b'x'; LARGE])),
            "/content" => Reply::Collect(Box::new(move |_| {
                Reply::Full(Response::new(200).with_content(name))
            })),
            _ => Reply::Full(Response::new(200).with_content(name)),
        }
    }
}

/// A running loop with one public address, a unix socket for the admin, and an app on host `a`.
pub(super) struct Rig {
    handle: LoopHandle,
    events: Receiver<ControlEvent>,
    thread: JoinHandle<Result<(), DeadLoop>>,
    address: SocketAddr,
    admin: PathBuf,
    /// The admin's socket file and its folder, unless several rigs share them.
    _file: Option<(UnixSocketFile, tempfile::TempDir)>,
    registry: Arc<Apps>,
    life: Arc<AppLife>,
    laters: mpsc::Receiver<Later>,
    pub(super) gauges: Arc<LoopGauges>,
    pub(super) budget: ConnectionBudget,
}

impl Rig {
    pub(super) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let (socket, file) = bind_unix(&path, &UnixAccess::default()).unwrap();
        Self { _file: Some((file, folder)), ..Self::start_with(socket, path) }
    }

    /// With this socket for the admin, at this path.
    fn start_with(admin_socket: OwnedFd, admin: PathBuf) -> Self {
        let registry = Arc::new(AppRegistry::new(1, None));
        let (desk, laters) = mpsc::channel();
        let app = hosted_app(Arc::new(Desk("public", desk.clone())));
        let life = registry.insert(NewApp { host: "a".into(), aliases: Vec::new(), app }).unwrap();
        let listeners = bind_address(([127, 0, 0, 1], 0).into(), 1, false).unwrap();
        let (address, gauges) = (listeners[0].address, Arc::<LoopGauges>::default());
        let (report, events) = crossbeam_channel::unbounded();
        let budget = ConnectionBudget::new(100, usize::MAX);
        let (event_loop, handle) = EventLoop::new(LoopSetup {
            index: 0,
            certificates: Arc::default(),
            registry: Arc::clone(&registry),
            listeners,
            beside: vec![SideSetup {
                class: Class::Admin,
                listener: admin_socket,
                app: Arc::new(Desk("admin", desk)),
                budget: ConnectionBudget::new(10, usize::MAX),
            }],
            config: config(Limits::default()),
            budget: budget.clone(),
            epoch: Instant::now(),
            gauges: Arc::clone(&gauges),
            report: Box::new(move |event| {
                assert_ne!(event, ControlEvent::ListenersGated([].into()), "a bug");
                drop(report.send(event));
            }),
        })
        .unwrap();
        let thread = thread::spawn(move || event_loop.run());
        let _file = None;
        Self {
            handle,
            events,
            thread,
            address,
            admin,
            _file,
            registry,
            life,
            laters,
            gauges,
            budget,
        }
    }

    pub(super) fn send(&self, command: LoopCommand) {
        assert!(self.handle.send(command).unwrap(), "the loop has ended");
    }

    /// Adds an app.
    pub(super) fn add(&self, host: &str, app: HostedApp) {
        let app = NewApp { host: host.to_owned(), aliases: Vec::new(), app };
        self.registry.insert(app).unwrap();
    }

    fn configure(&self, config: LoopConfig) {
        let (done, all_done) = acknowledgement();
        self.send(LoopCommand::Configure(Box::new(config), done));
        assert_eq!(all_done.wait(PATIENCE), Obeyed::ByAll);
    }

    pub(super) fn expect(&self, event: ControlEvent) {
        assert_eq!(self.events.recv_timeout(PATIENCE), Ok(event));
    }

    /// Makes the loop panic within its turn.
    fn fail(&self) {
        self.send(LoopCommand::GateListeners([].into()));
    }

    fn expect_failed(&self) {
        let event = self.events.recv_timeout(PATIENCE);
        let is_failed = |error: &str| error.starts_with("panic: ") && error.contains("a bug");
        assert!(
            matches!(&event, Ok(ControlEvent::Failed { error }) if is_failed(error)),
            "{event:?}"
        );
    }

    pub(super) fn later(&self) -> Later {
        self.laters.recv_timeout(PATIENCE).expect("an exchange")
    }

    pub(super) fn connect(&self) -> TcpStream {
        let peer = TcpStream::connect(self.address).unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        peer
    }

    fn connect_admin(&self) -> UnixStream {
        let peer = UnixStream::connect(&self.admin).unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        peer
    }

    /// Waits until the loop publishes these counts: fresh, busy, idle, lingering, accepted.
    pub(super) fn wait_counts(&self, expected: [u64; 5]) {
        let begun = Instant::now();
        loop {
            let LoopCounts { fresh, busy, idle, lingering, accepted, .. } = self.gauges.snapshot();
            let counts = [fresh, busy, idle, lingering, accepted];
            if counts == expected {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{counts:?} instead of {expected:?}");
            thread::yield_now();
        }
    }

    fn busy(&self) -> Vec<BusyConnection> {
        let (reply, rows) = crossbeam_channel::bounded(1);
        self.send(LoopCommand::ListBusy([].into(), reply));
        rows.recv_timeout(PATIENCE).unwrap()
    }

    fn cut(&self, token: Token) -> Option<u64> {
        let (reply, cut) = crossbeam_channel::bounded(1);
        self.send(LoopCommand::CutConnection(token, reply));
        cut.recv_timeout(PATIENCE).unwrap()
    }

    pub(super) fn end(self) {
        self.send(LoopCommand::End);
        let is_of_the_end =
            |event: &ControlEvent| !matches!(event, ControlEvent::UpstreamFailed(_));
        let events = self.events.iter().take_while(|event| *event != ControlEvent::Ended);
        let events: Vec<_> = events.filter(is_of_the_end).collect();
        assert!(events.len() <= 1, "{events:?}");
        self.thread.join().unwrap().unwrap();
    }
}

fn config(limits: Limits) -> LoopConfig {
    LoopConfig { limits, idle_grace: Duration::ZERO, access: None }
}

pub(super) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
}

/// Sends a request and reads its answer, which has a Content-Length.
pub(super) fn exchange(peer: &mut (impl Read + Write), request: &str) -> String {
    peer.write_all(request.as_bytes()).unwrap();
    response(peer)
}

pub(super) fn response(peer: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    loop {
        let mut byte = [0];
        assert_eq!(peer.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&bytes));
        bytes.push(byte[0]);
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, content)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.split("Content-Length: ").nth(1).expect("a length");
        if content.len() == length.lines().next().unwrap().parse::<usize>().unwrap() {
            return text.into_owned();
        }
    }
}

fn is_at_end(peer: &mut impl Read) -> bool {
    matches!(peer.read(&mut [0]), Ok(0) | Err(_))
}

fn wait_until_left(later: &Later) {
    let begun = Instant::now();
    while later.is_awaited() {
        assert!(begun.elapsed() < PATIENCE);
        thread::yield_now();
    }
}

// --- Stops

#[test]
fn the_admin_is_served_until_the_end_of_a_stop() {
    let rig = Rig::start();
    let (mut public, mut admin) = (rig.connect(), rig.connect_admin());
    assert!(exchange(&mut public, &get("/")).ends_with("public"));
    assert!(exchange(&mut admin, &get("/")).ends_with("admin"));
    public.write_all(get("/later").as_bytes()).unwrap();
    let later = rig.later();
    rig.send(LoopCommand::Gate(stop_rules()));
    rig.expect(ControlEvent::Gated);
    rig.send(LoopCommand::Finish);
    let answer = exchange(&mut admin, &get("/"));
    assert!(answer.ends_with("admin") && !answer.contains("Connection: close"), "{answer}");
    later.respond(Response::new(200));
    assert!(response(&mut public).contains("Connection: close"));
    assert!(is_at_end(&mut public));
    drop(public);
    rig.expect(ControlEvent::Emptied { cut: 0 });
    for _ in 0..2 {
        assert!(exchange(&mut admin, &get("/")).ends_with("admin"));
        assert!(exchange(&mut rig.connect_admin(), &get("/")).ends_with("admin"));
    }
    assert_eq!(rig.life.drain().requests(), 2, "admin requests belong to no app");
    rig.send(LoopCommand::End);
    rig.expect(ControlEvent::Ended);
    assert!(is_at_end(&mut admin));
    rig.thread.join().unwrap().unwrap();
}

#[test]
fn a_client_that_connected_just_before_a_take_over_is_answered_after_the_end() {
    let rig = Rig::start();
    let (mut idle, mut early) = (rig.connect_admin(), rig.connect_admin());
    assert!(exchange(&mut idle, &get("/")).ends_with("admin"));
    let (let_go, all_let_go) = acknowledgement();
    rig.send(LoopCommand::LetGo([rig.address].into(), vec![Class::Admin], let_go));
    assert_eq!(all_let_go.wait(PATIENCE), Obeyed::ByAll);
    rig.send(LoopCommand::Gate(StopRules { has_successor: true, ..stop_rules() }));
    rig.expect(ControlEvent::Gated);
    rig.send(LoopCommand::Finish);
    rig.expect(ControlEvent::Emptied { cut: 0 });
    rig.send(LoopCommand::End);
    assert!(is_at_end(&mut idle));
    assert!(exchange(&mut early, &get("/")).ends_with("admin"));
    rig.expect(ControlEvent::Ended);
}

#[test]
fn the_end_sends_answers_to_the_admin_and_drops_exchanges_that_still_wait() {
    let rig = Rig::start();
    let [mut waits, mut answered, mut reads] = [(); 3].map(|()| rig.connect_admin());
    waits.write_all(get("/later").as_bytes()).unwrap();
    let later = rig.later();
    answered.write_all(get("/later").as_bytes()).unwrap();
    let in_time = rig.later();
    reads.write_all(get("/large").as_bytes()).unwrap();
    reads.read_exact(&mut [0]).unwrap();
    rig.send(LoopCommand::CutAll);
    rig.expect(ControlEvent::Emptied { cut: 0 });
    rig.send(LoopCommand::End);
    in_time.respond(Response::new(200).with_content("in time"));
    let mut answer = String::new();
    answered.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("in time"), "{answer}");
    let mut rest = Vec::new();
    reads.read_to_end(&mut rest).unwrap();
    assert!(rest.len() > LARGE, "{} bytes", rest.len());
    assert!(is_at_end(&mut waits));
    wait_until_left(&later);
    rig.expect(ControlEvent::Ended);
}

#[test]
fn an_admin_peer_that_does_not_read_delays_the_end_by_the_grace_only() {
    let rig = Rig::start();
    let mut peer = rig.connect_admin();
    peer.write_all(get("/large").as_bytes()).unwrap();
    peer.read_exact(&mut [0]).unwrap();
    let begun = Instant::now();
    rig.end();
    assert!((END_GRACE - Duration::from_millis(1)..PATIENCE).contains(&begun.elapsed()));
}

#[test]
fn cut_all_spares_the_admin() {
    let rig = Rig::start();
    let (mut public, mut admin) = (rig.connect(), rig.connect_admin());
    public.write_all(get("/later").as_bytes()).unwrap();
    let later = rig.later();
    admin.write_all(get("/later").as_bytes()).unwrap();
    let admin_later = rig.later();
    rig.send(LoopCommand::CutAll);
    rig.expect(ControlEvent::Emptied { cut: 1 });
    assert!(is_at_end(&mut public) && !later.is_awaited());
    admin_later.respond(Response::new(200).with_content("it was cut"));
    assert!(response(&mut admin).ends_with("it was cut"));
    rig.end();
}

// --- Classes

#[test]
fn the_admin_has_places_when_the_public_has_none() {
    let rig = Rig::start();
    rig.budget.set_max(1);
    let mut first = rig.connect();
    assert!(exchange(&mut first, &get("/")).ends_with("public"));
    let mut second = rig.connect();
    second.write_all(get("/").as_bytes()).unwrap();
    assert!(exchange(&mut rig.connect_admin(), &get("/")).ends_with("admin"));
    rig.wait_counts([0, 0, 1, 0, 1]);
    drop(first);
    assert!(response(&mut second).ends_with("public"));
    rig.end();
}

#[test]
fn the_admin_has_limits_of_its_own() {
    let rig = Rig::start();
    let limits = Limits { head_bytes: 1024, headers: 1, body_bytes: 0, ..Limits::default() };
    rig.configure(config(limits));
    let request = format!(
        "POST /content HTTP/1.1\r\nHost: a\r\nLong: {}\r\nContent-Length: 2\r\n\r\n<>",
        "x".repeat(8 * 1024)
    );
    assert!(exchange(&mut rig.connect_admin(), &request).ends_with("admin"));
    assert!(exchange(&mut rig.connect(), &request).starts_with("HTTP/1.1 431 "));
    rig.end();
}

#[test]
fn a_process_that_closes_its_unix_socket_has_left() {
    let rig = Rig::start();
    let mut admin = rig.connect_admin();
    admin.write_all(get("/later").as_bytes()).unwrap();
    let later = rig.later();
    assert!(later.is_awaited());
    drop(admin);
    wait_until_left(&later);
    rig.end();
}

#[test]
fn loops_share_the_admins_listener_and_each_of_them_can_be_the_last() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    let (socket, file) = bind_unix(&path, &UnixAccess::default()).unwrap();
    let mut rigs: Vec<_> =
        (0..3).map(|_| Rig::start_with(socket.try_clone().unwrap(), path.clone())).collect();
    drop(socket);
    while let Some(rig) = rigs.pop() {
        let mut peers: Vec<_> = (0..8).map(|_| rig.connect_admin()).collect();
        for peer in &mut peers {
            assert!(exchange(peer, &get("/")).ends_with("admin"));
        }
        drop(peers);
        rig.end();
    }
    assert!(UnixStream::connect(&path).is_err(), "no socket listens any more");
    drop(file);
    assert!(!path.exists());
}

// --- Listeners

#[test]
fn connections_outlast_the_removal_of_their_address() {
    let mut rig = Rig::start();
    let (first, mut on_first) = (rig.address, rig.connect());
    assert!(exchange(&mut on_first, &get("/")).ends_with("public"));
    let further = bind_address(([127, 0, 0, 1], 0).into(), 1, false).unwrap();
    rig.address = further[0].address;
    rig.send(LoopCommand::Listen(further));
    let mut on_further = rig.connect();
    assert!(exchange(&mut on_further, &get("/")).ends_with("public"));
    let leaving: Arc<[SocketAddr]> = [first].into();
    rig.send(LoopCommand::GateListeners(Arc::clone(&leaving)));
    rig.expect(ControlEvent::ListenersGated(Arc::clone(&leaving)));
    rig.send(LoopCommand::CloseListeners(leaving));
    for peer in [&mut on_first, &mut on_further, &mut rig.connect()] {
        let answer = exchange(peer, &get("/"));
        assert!(answer.ends_with("public") && !answer.contains("Connection: close"), "{answer}");
    }
    assert!(TcpStream::connect(first).is_err(), "no socket listens there");
    TcpListener::bind(first).expect("the address is free");
    // A third listener reuses no token.
    let third = bind_address(([127, 0, 0, 1], 0).into(), 1, false).unwrap();
    rig.address = third[0].address;
    rig.send(LoopCommand::Listen(third));
    assert!(exchange(&mut rig.connect(), &get("/")).ends_with("public"));
    rig.end();
}

#[test]
fn an_address_added_during_a_stop_closes_with_the_others() {
    let rig = Rig::start();
    rig.send(LoopCommand::Gate(stop_rules()));
    rig.expect(ControlEvent::Gated);
    let further = bind_address(([127, 0, 0, 1], 0).into(), 1, false).unwrap();
    let address = further[0].address;
    rig.send(LoopCommand::Listen(further));
    let gone: Arc<[SocketAddr]> = [rig.address].into();
    rig.send(LoopCommand::CloseListeners(gone));
    rig.send(LoopCommand::Finish);
    rig.expect(ControlEvent::Emptied { cut: 0 });
    TcpListener::bind(address).expect("the address is free");
    let late = bind_address(address, 1, false).unwrap();
    rig.send(LoopCommand::Listen(late));
    rig.end();
    TcpListener::bind(address).expect("the address is free");
}

/// Peers that have connected and sent a request before the gate closes.
fn queued(address: SocketAddr) -> Vec<TcpStream> {
    let peers = (0..QUEUED).map(|_| {
        let mut peer = TcpStream::connect(address).unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        peer.write_all(get("/").as_bytes()).unwrap();
        peer
    });
    peers.collect()
}

#[test]
fn the_backlog_of_a_removed_address_is_served() {
    let rig = Rig::start();
    rig.budget.set_max(2 * QUEUED);
    let leaving: Arc<[SocketAddr]> = [rig.address].into();
    let mut peers = queued(rig.address);
    rig.send(LoopCommand::GateListeners(Arc::clone(&leaving)));
    rig.expect(ControlEvent::ListenersGated(Arc::clone(&leaving)));
    rig.send(LoopCommand::CloseListeners(leaving));
    for peer in &mut peers {
        assert!(response(peer).ends_with("public"));
        assert!(exchange(peer, &get("/")).ends_with("public"), "the connection stays");
    }
    rig.end();
}

#[test]
fn the_backlog_of_a_removed_address_is_served_when_a_stop_begins_meanwhile() {
    let rig = Rig::start();
    rig.budget.set_max(2 * QUEUED);
    let further = bind_address(([127, 0, 0, 1], 0).into(), 1, false).unwrap();
    let leaving: Arc<[SocketAddr]> = [further[0].address].into();
    rig.send(LoopCommand::Listen(further));
    let mut peers = queued(leaving[0]);
    peers.append(&mut queued(rig.address));
    rig.send(LoopCommand::GateListeners(Arc::clone(&leaving)));
    rig.send(LoopCommand::Gate(stop_rules()));
    rig.send(LoopCommand::CloseListeners(Arc::clone(&leaving)));
    rig.send(LoopCommand::Finish);
    for peer in &mut peers {
        assert!(response(peer).ends_with("public"));
    }
    drop(peers);
    rig.expect(ControlEvent::ListenersGated(leaving));
    rig.expect(ControlEvent::Gated);
    rig.expect(ControlEvent::Emptied { cut: 0 });
    rig.end();
}

// --- Failures

#[test]
fn a_loop_that_fails_loses_nothing_and_still_obeys() {
    let rig = Rig::start();
    let (mut idle, mut waits, mut admin) = (rig.connect(), rig.connect(), rig.connect_admin());
    assert!(exchange(&mut idle, &get("/")).ends_with("public"));
    waits.write_all(get("/later").as_bytes()).unwrap();
    let later = rig.later();
    rig.fail();
    rig.expect_failed();
    rig.wait_counts([0, 1, 1, 0, 2]);
    for peer in [&mut idle, &mut rig.connect()] {
        assert!(exchange(peer, &get("/")).ends_with("public"));
    }
    rig.fail();
    rig.send(LoopCommand::Gate(stop_rules()));
    rig.expect_failed();
    rig.expect(ControlEvent::Gated);
    later.respond(Response::new(200).with_content("late"));
    assert!(response(&mut waits).ends_with("late") && is_at_end(&mut waits));
    assert!(exchange(&mut admin, &get("/")).ends_with("admin"));
    drop((idle, waits));
    rig.send(LoopCommand::Finish);
    rig.expect(ControlEvent::Emptied { cut: 0 });
    rig.end();
}

#[test]
fn a_loop_that_keeps_failing_dies_and_leaves_its_listeners_to_another() {
    let (rig, heir) = (Rig::start(), Rig::start());
    let mut peer = rig.connect();
    peer.write_all(get("/later").as_bytes()).unwrap();
    let later = rig.later();
    rig.fail();
    rig.expect_failed();
    rig.fail();
    rig.expect_failed();
    rig.fail();
    let dead = rig.thread.join().unwrap().expect_err("the loop still runs");
    assert!(is_at_end(&mut peer) && !later.is_awaited());
    assert_eq!((dead.cut, rig.life.drain().cut()), (1, 1), "{}", dead.error);
    assert_eq!(rig.life.drain().active_connections(), 0);
    assert_eq!(rig.gauges.snapshot(), LoopCounts { accepted: 1, ..LoopCounts::default() });
    // A client that connects now waits for the heir.
    let mut peer = TcpStream::connect(rig.address).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    heir.send(LoopCommand::Listen(dead.listeners));
    assert!(exchange(&mut peer, &get("/")).ends_with("public"));
    heir.end();
}

#[test]
fn events_that_a_failure_lost_are_reported_again() {
    let listeners = bind_address(([127, 0, 0, 1], 0).into(), 1, false).unwrap();
    let mut peer = TcpStream::connect(listeners[0].address).unwrap();
    let mut running = test_support::running(listeners, None);
    running.accept_all();
    let [token] = running.connections.tokens()[..] else { panic!("one connection") };
    running.with_connection(token, |connection, _| {
        connection.replace_queued(true);
        Next::Wait
    });
    peer.write_all(get("/").as_bytes()).unwrap();
    let mut events = Events::with_capacity(EVENTS_MAX);
    running.poll.poll(&mut events, Some(PATIENCE)).unwrap();
    assert!(events.iter().any(|event| event.token() == token), "the request has arrived");
    running.cx.upstreams.holds_requests = true;
    running.recover();
    running.poll.poll(&mut events, Some(PATIENCE)).unwrap();
    running.handle_events(&events);
    assert!(response(&mut peer).starts_with("HTTP/1.1 404 "), "there is no app");
    assert_eq!(running.cx.accounting.public_connections(), 1);
}

#[test]
fn queued_turns_are_limited_between_two_polls() {
    const COUNT: usize = QUEUED_TURNS_MAX + 10;
    let listeners = bind_address(([127, 0, 0, 1], 0).into(), 1, false).unwrap();
    let address = listeners[0].address;
    let mut running = test_support::running(listeners, None);
    let connect = |_| {
        let mut peer = TcpStream::connect(address).unwrap();
        peer.write_all(get("/").as_bytes()).unwrap();
        peer
    };
    let mut peers: Vec<TcpStream> = (0..COUNT).map(connect).collect();
    while running.connections.len() < COUNT {
        running.accept_all();
    }
    for token in running.connections.tokens() {
        running.with_connection(token, |_, _| Next::Turn);
    }
    assert_eq!(running.queue.len(), COUNT);
    let mut events = Events::with_capacity(EVENTS_MAX);
    running.poll.poll(&mut events, Some(PATIENCE)).unwrap();
    running.handle_events(&events);
    assert_eq!(running.queue.len(), COUNT - QUEUED_TURNS_MAX, "no event added a turn");
    assert!(!running.is_caught_up(), "a deadline would run before events that were in time");
    events.clear();
    running.handle_events(&events);
    assert!(running.queue.is_empty() && running.is_caught_up());
    for peer in &mut peers {
        assert!(response(peer).starts_with("HTTP/1.1 404 "), "there is no app");
    }
}

/// An app that panics outside of any request.
struct PanicsOnRelease;

impl App for PanicsOnRelease {
    fn handle<'a>(&'a self, _request: &RequestHead<'_>, _context: &Context<'_>) -> Reply<'a> {
        Reply::Full(Response::new(200))
    }

    fn release_idle(&self, _loop_index: usize, _now: Instant) {
        panic!("a bug of the app");
    }
}

#[test]
fn an_app_that_panics_in_release_idle_harms_no_other() {
    let mut running = test_support::running(Vec::new(), None);
    let app = hosted_app(Arc::new(PanicsOnRelease));
    let new = NewApp { host: "a".into(), aliases: Vec::new(), app };
    running.cx.view.registry().insert(new).unwrap();
    running.release_idle_ms = 0;
    running.handle_timers(0);
    assert!(running.release_idle_ms > 0);
}

// --- Limits

#[test]
fn raised_limits_apply_to_half_read_heads() {
    let rig = Rig::start();
    let mut peer = rig.connect();
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\nLong: {}\r\n\r\n", "x".repeat(60 * 1024));
    let (begin, rest) = head.split_at(15 * 1024);
    peer.write_all(begin.as_bytes()).unwrap();
    rig.wait_counts([0, 1, 0, 0, 1]);
    let limits = Limits { head_bytes: 64 * 1024, ..Limits::default() };
    rig.configure(config(limits));
    assert!(exchange(&mut peer, rest).ends_with("public"));
    rig.configure(config(Limits::default()));
    assert!(exchange(&mut peer, &head).starts_with("HTTP/1.1 431 "));
    rig.end();
}

#[test]
fn a_shorter_timeout_applies_to_waits_in_progress() {
    let rig = Rig::start();
    let mut peer = rig.connect();
    assert!(exchange(&mut peer, &get("/")).ends_with("public"));
    let limits = Limits { keepalive_timeout: Duration::from_millis(1), ..Limits::default() };
    rig.configure(config(limits));
    assert!(is_at_end(&mut peer));
    rig.end();
}

#[test]
fn a_request_in_flight_is_written_to_the_access_log_open_at_its_end() {
    let rig = Rig::start();
    let folder = tempfile::tempdir().unwrap();
    let [old, new] = ["old.log", "new.log"].map(|name| folder.path().join(name));
    let log_to = |path: &PathBuf| {
        let log = LogConfig {
            access: AccessFormat::Combined,
            access_path: Some(path.clone()),
            ..LogConfig::default()
        };
        let access = AccessLog::open(&log).unwrap().map(|log| log.for_loop());
        rig.configure(LoopConfig { access, ..config(Limits::default()) });
    };
    log_to(&old);
    let (mut first, mut admin) = (rig.connect(), rig.connect_admin());
    assert!(exchange(&mut first, &get("/first")).ends_with("public"));
    assert!(exchange(&mut admin, &get("/admin")).ends_with("admin"));
    first.write_all(get("/later").as_bytes()).unwrap();
    let later = rig.later();
    log_to(&new);
    later.respond(Response::new(200));
    response(&mut first);
    rig.end();
    let lines_with = |path: &PathBuf, text: &str| {
        let log = std::fs::read_to_string(path).unwrap();
        log.lines().filter(|line| line.contains(text)).count()
    };
    let begun = Instant::now();
    while (lines_with(&old, "GET /first"), lines_with(&new, "GET /later")) != (1, 1) {
        assert!(begun.elapsed() < PATIENCE);
        thread::yield_now();
    }
    assert_eq!((lines_with(&old, ""), lines_with(&new, "")), (1, 1), "the admin is not in it");
}

// --- Busy connections

#[test]
fn busy_connections_are_listed_with_what_they_wait_for() {
    let rig = Rig::start();
    let (mut app, mut content, mut large) = (rig.connect(), rig.connect(), rig.connect());
    let _admin = rig.connect_admin().write_all(get("/later").as_bytes());
    let _admin_later = rig.later();
    app.write_all(get("/later").as_bytes()).unwrap();
    let later = rig.later();
    content
        .write_all(b"POST /content?q HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n<")
        .unwrap();
    large.write_all(get("/large").as_bytes()).unwrap();
    large.read_exact(&mut [0]).unwrap();
    let mut idle = rig.connect();
    assert!(exchange(&mut idle, &get("/")).ends_with("public"));
    rig.wait_counts([0, 3, 1, 0, 4]);
    let mut rows = rig.busy();
    rows.sort_by_key(|row| row.request.clone());
    let seen: Vec<_> = rows
        .iter()
        .map(|row| (row.request.as_ref().map(|(m, t)| format!("{m} {t}")), row.phase))
        .collect();
    assert_eq!(
        seen,
        [
            (Some("GET /large".into()), BusyPhase::Sending),
            (Some("GET /later".into()), BusyPhase::WaitingForApp),
            (Some("POST /content?q".into()), BusyPhase::ReadingBody),
        ]
    );
    let own = |row: &BusyConnection| row.life == rig.life.id() && row.loop_index == 0;
    assert!(rows.iter().all(|row| own(row) && row.age < PATIENCE));
    assert!((1..LARGE as u64).contains(&rows[0].bytes_sent), "{}", rows[0].bytes_sent);
    assert_eq!((rows[1].bytes_sent, rows[2].bytes_sent), (0, 0));
    assert_eq!(rows[1].peer, crate::app::Peer::Tcp(app.local_addr().unwrap()));
    let (reply, none) = crossbeam_channel::bounded(1);
    rig.send(LoopCommand::ListBusy([rig.life.id()].into(), reply));
    assert_eq!(none.recv_timeout(PATIENCE).unwrap().len(), 3);
    assert_eq!(rig.cut(rows[1].token), Some(1));
    assert!(is_at_end(&mut app) && !later.is_awaited());
    assert_eq!(rig.cut(rows[1].token), None, "it is closed");
    assert_eq!(rig.life.drain().cut(), 1);
    assert_eq!(rig.busy().len(), 2);
    assert!(exchange(&mut content, ">").ends_with("public"));
    rig.end();
}

#[test]
fn the_counts_follow_the_connections_and_return_to_zero() {
    let rig = Rig::start();
    let mut peers: Vec<_> = (0..4).map(|_| rig.connect()).collect();
    let _admin = rig.connect_admin();
    rig.wait_counts([4, 0, 0, 0, 4]);
    peers[0].write_all(b"GET").unwrap();
    peers[1].write_all(get("/later").as_bytes()).unwrap();
    let later = rig.later();
    assert!(exchange(&mut peers[2], &get("/")).ends_with("public"));
    rig.wait_counts([1, 2, 1, 0, 4]);
    later.respond(Response::new(200));
    response(&mut peers[1]);
    peers[0].write_all(b"\r\n\r\n").unwrap();
    response(&mut peers[0]);
    rig.wait_counts([1, 0, 2, 1, 4]);
    drop(peers);
    rig.wait_counts([0, 0, 0, 0, 4]);
    rig.end();
}

// --- Closing listeners

/// More than a turn accepts, so that the first listeners close before the last one.
const QUEUED: usize = 3 * accept::ACCEPTS_PER_TURN;

#[test]
fn a_late_event_finds_its_listener_when_its_neighbours_are_closed() {
    let bind = |_| bind_address(([127, 0, 0, 1], 0).into(), 1, false).unwrap();
    let sockets: ListenerSet = (0..3).flat_map(bind).collect();
    let last = sockets[2].address;
    let mut running = test_support::running(sockets, None);
    let mut peers: Vec<_> = (0..QUEUED).map(|_| TcpStream::connect(last).unwrap()).collect();
    running.finish();
    running.accept_all();
    let closed = running.acceptors[Class::Public].take_empty();
    running.close_listeners(closed);
    assert_eq!(running.acceptors[Class::Public].len(), 1, "the others have no backlog");
    // A handshake that ends late.
    peers.push(TcpStream::connect(last).unwrap());
    let mut events = Events::with_capacity(EVENTS_MAX);
    while running.connections.tokens().len() < peers.len() {
        running.poll.poll(&mut events, Some(Duration::from_secs(15))).unwrap();
        assert!(!events.is_empty(), "{} accepted", running.connections.tokens().len());
        running.handle_events(&events);
        while running.acceptors[Class::Public].can_accept() {
            running.accept_all();
        }
    }
    let closed = running.acceptors[Class::Public].take_empty();
    running.close_listeners(closed);
    assert!(running.acceptors[Class::Public].is_empty());
}
