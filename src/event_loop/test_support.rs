//! What the tests of a loop's parts need: a loop that doesn't run, a connection of it and its peer.

use std::{
    io,
    net::{TcpListener, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use mio::{Poll, Token};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::{Connection, ConnectionBudget, ListenerSet, LoopContext, LoopSetup, Running};
use crate::{
    config::{Limits, ServerConfig},
    logging::AccessWriter,
    registry::AppRegistry,
};

/// How long the kernel may take to hand bytes over on a busy machine.
const PATIENCE: Timespec = Timespec { tv_sec: 15, tv_nsec: 0 };

/// The connections of these tests have one.
pub(super) const TOKEN: Token = Token(7);

/// A loop without apps that is at rest until a test calls its parts.
pub(super) fn running(listeners: ListenerSet, access: Option<AccessWriter>) -> Running {
    let (_, commands) = crossbeam_channel::unbounded();
    let setup = LoopSetup {
        index: 0,
        registry: Arc::new(AppRegistry::new(1, None)),
        listeners,
        limits: Limits::default(),
        server: ServerConfig { idle_grace: Duration::ZERO, ..ServerConfig::default() },
        budget: budget(),
        epoch: Instant::now(),
        access,
        report: Box::new(|_| {}),
    };
    Running::new(Poll::new().expect("epoll"), commands, setup).expect("a loop")
}

/// A connection of a loop, and its peer.
pub(super) fn connection(cx: &mut LoopContext) -> (Connection, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let peer = TcpStream::connect(listener.local_addr().expect("an address")).expect("connect");
    let (socket, address) = listener.accept().expect("accept");
    socket.set_nonblocking(true).expect("O_NONBLOCK");
    let permit = budget().take().expect("a place");
    let socket = mio::net::TcpStream::from_std(socket);
    (Connection::new(TOKEN, socket, address, permit, cx), peer)
}

/// Waits until the socket has something to read.
pub(super) fn wait_readable(socket: impl std::os::fd::AsFd) {
    let mut look = [PollFd::new(&socket, PollFlags::IN)];
    let ready = rustix::event::poll(&mut look, Some(&PATIENCE)).map_err(io::Error::from);
    assert!(matches!(ready, Ok(1..)), "nothing to read: {ready:?}");
}

fn budget() -> ConnectionBudget {
    ConnectionBudget::new(1000)
}
