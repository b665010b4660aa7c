//! For tests of a loop's parts: a loop that doesn't run, a connection of it, and its peer.

use std::{
    io,
    net::{TcpListener, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use mio::{Poll, Token, Waker};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::{
    ConnectionBudget, ListenerSet, LoopSetup,
    connection::{Connection, NewConnection},
    context::LoopContext,
    running::Running,
    upstream::UpstreamPool,
};
use crate::{
    app::{App, Peer},
    config::{Limits, ListenOptions},
    hosted::{HostedApp, Origin},
    logging::AccessWriter,
    message::{Class, LoopConfig, LoopHandle, StopRules},
    registry::AppRegistry,
};

/// How long the kernel may take to hand bytes over on a busy machine.
const PATIENCE: Timespec = Timespec { tv_sec: 15, tv_nsec: 0 };

/// The token of every connection in these tests.
pub(super) const TOKEN: Token = Token(7);

/// A loop without apps, which does nothing until a test calls its parts.
pub(super) fn running(listeners: ListenerSet, access: Option<AccessWriter>) -> Running {
    let poll = Poll::new().expect("epoll");
    let waker = Waker::new(poll.registry(), super::tokens::WAKER).expect("eventfd");
    let (sender, commands) = crossbeam_channel::unbounded();
    let handle = LoopHandle::new(sender, Arc::new(waker));
    let config = LoopConfig { limits: Limits::default(), idle_grace: Duration::ZERO, access };
    let setup = LoopSetup {
        index: 0,
        registry: Arc::new(AppRegistry::new(1, None)),
        certificates: Arc::default(),
        listeners,
        beside: Vec::new(),
        config,
        budget: budget(),
        epoch: Instant::now(),
        gauges: Arc::default(),
        report: Box::new(|_| {}),
    };
    let upstreams = UpstreamPool::new(poll.registry().try_clone().expect("epoll"), budget());
    Running::new(poll, upstreams, commands, handle, setup).expect("a loop")
}

/// An app as the registry holds it, for one loop.
pub(super) fn hosted_app(app: Arc<dyn App>) -> HostedApp {
    HostedApp::new(app, Origin::Embedder, 1)
}

/// A connection of a loop, and its peer.
pub(super) fn connection(cx: &mut LoopContext) -> (Connection, TcpStream) {
    connect(cx, false)
}

/// A connection that begins with a PROXY header, and its peer.
pub(super) fn proxied_connection(cx: &mut LoopContext) -> (Connection, TcpStream) {
    connect(cx, true)
}

fn connect(cx: &mut LoopContext, proxy_protocol: bool) -> (Connection, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let peer = TcpStream::connect(listener.local_addr().expect("an address")).expect("connect");
    let (socket, address) = listener.accept().expect("accept");
    socket.set_nonblocking(true).expect("O_NONBLOCK");
    let permit = budget().take().expect("a place");
    let accepted = NewConnection {
        class: Class::Public,
        socket: socket.into(),
        peer: Peer::Tcp(address),
        permit,
        options: ListenOptions { proxy_protocol, ..ListenOptions::default() },
        is_deaf: false,
    };
    (Connection::new(TOKEN, accepted, cx), peer)
}

/// Waits until the socket has something to read.
pub(super) fn wait_readable(socket: impl std::os::fd::AsFd) {
    let mut poll_fds = [PollFd::new(&socket, PollFlags::IN)];
    let ready = rustix::event::poll(&mut poll_fds, Some(&PATIENCE)).map_err(io::Error::from);
    assert!(matches!(ready, Ok(1..)), "nothing to read: {ready:?}");
}

fn budget() -> ConnectionBudget {
    ConnectionBudget::new(1000, usize::MAX)
}

/// A stop that has time, and no successor.
pub(super) fn stop_rules() -> StopRules {
    let now = Instant::now();
    StopRules { has_successor: false, close_from: now, idle_until: now + Duration::from_secs(60) }
}
