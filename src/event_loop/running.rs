//! What a loop is while it runs: its listeners, its connections, and what it is about.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use crossbeam_channel::Receiver;
use mio::{Interest, Poll, Token, unix::SourceFd};

use super::{
    accept::Acceptor,
    class::PerClass,
    clock::milliseconds,
    closing::Ending,
    connection::{Connection, Next},
    context::LoopContext,
    hand_over::{Giving, Taking},
    io::watch,
    listener::{ConnectionBudget, Listener},
    queue::TurnQueue,
    setup::{LoopSetup, SideSetup},
    slots::Slots,
    tokens,
    upstream::UpstreamPool,
};
use crate::{
    app::OneUpstream,
    logging::event,
    message::{Class, ControlEvent, LoopCommand, LoopHandle, PublicSocket, UpstreamDrainId},
    metrics::LoopCounts,
};

/// How often apps are asked to let go of what they have not used.
pub(super) const RELEASE_IDLE_EVERY: Duration = Duration::from_secs(10);

/// A loop that runs.
pub(super) struct Running {
    pub(super) poll: Poll,
    pub(super) commands: Receiver<LoopCommand>,
    pub(super) acceptors: PerClass<Acceptor>,
    /// Listeners there have been: tokens are not used again, for events can be late.
    pub(super) listener_count: usize,
    pub(super) connections: Slots<Connection>,
    pub(super) queue: TurnQueue,
    /// Upstreams that drain, and with which exchanges of this loop may be.
    pub(super) watched: Vec<(UpstreamDrainId, OneUpstream)>,
    pub(super) release_idle_ms: u64,
    /// Turns up to now with as many events as the kernel tells at once.
    pub(super) full_turns: usize,
    /// A command to cut, which waits for what was there or due before it.
    pub(super) cut_command: Option<LoopCommand>,
    pub(super) report: Box<dyn Fn(ControlEvent) + Send>,
    pub(super) published: LoopCounts,
    pub(super) ending: Ending,
    pub(super) giving: Giving,
    pub(super) taking: Taking,
    pub(super) cx: LoopContext,
}

impl Running {
    pub(super) fn new(
        poll: Poll,
        upstreams: UpstreamPool,
        commands: Receiver<LoopCommand>,
        handle: LoopHandle,
        mut setup: LoopSetup,
    ) -> io::Result<Self> {
        let cx = LoopContext::new(&mut setup, handle, upstreams);
        let of = |class| setup.beside.iter().find(|side| side.class == class);
        let acceptors = PerClass::new(|class| match (class, of(class)) {
            (Class::Public, _) => Acceptor::new(setup.budget.clone()),
            (_, Some(side)) => Acceptor::new(side.budget.clone()),
            // It has no listener, and so takes no place.
            (_, None) => Acceptor::new(ConnectionBudget::new(0, 0)),
        });
        let mut running = Self {
            poll,
            commands,
            acceptors,
            listener_count: 0,
            connections: Slots::new(),
            queue: TurnQueue::default(),
            watched: Vec::new(),
            release_idle_ms: milliseconds(RELEASE_IDLE_EVERY),
            full_turns: 0,
            cut_command: None,
            report: setup.report,
            published: LoopCounts::default(),
            ending: Ending::default(),
            giving: Giving::default(),
            taking: Taking::default(),
            cx,
        };
        for socket in setup.listeners {
            running.add_public(socket)?;
        }
        for SideSetup { class, listener, .. } in setup.beside {
            running.add_beside(class, listener)?;
        }
        Ok(running)
    }

    /// Lets a connection work, and does with it what comes of that. One that panics is dropped: a
    /// bug in one exchange ends no other.
    pub(super) fn with_connection(
        &mut self,
        token: Token,
        work: impl FnOnce(&mut Connection, &mut LoopContext) -> Next,
    ) {
        let Some(connection) = self.connections.find(token) else { return };
        let cx = &mut self.cx;
        let worked = catch_unwind(AssertUnwindSafe(|| work(connection, cx)));
        match worked {
            Ok(Next::Wait) => {}
            Ok(Next::Hold) => self.queue.hold(token),
            Ok(Next::Turn) => {
                if !connection.replace_queued(true) {
                    self.queue.push(token);
                }
            }
            Ok(Next::Drop) => self.drop_connection(token),
            Ok(Next::Cut) => {
                if let Some(connection) = self.connections.remove(token) {
                    connection.cut(&mut self.cx);
                    self.end_pauses();
                }
            }
            Err(_) => {
                event!(Error, "connection_panicked", loop_index = self.cx.index);
                self.drop_connection(token);
            }
        }
    }

    pub(super) fn drop_connection(&mut self, token: Token) {
        if let Some(connection) = self.connections.remove(token) {
            connection.abort(&mut self.cx);
            self.end_pauses();
        }
    }

    /// A place or a descriptor has become free, whose ever it was.
    pub(super) fn end_pauses(&mut self) {
        self.acceptors.iter_mut().for_each(|(_, acceptor)| acceptor.end_pause());
    }

    /// Closes them. Other processes may hold the same sockets, so closing does not end the watch.
    pub(super) fn close_listeners(&self, listeners: Vec<Listener>) {
        for listener in listeners {
            let mut source = SourceFd(&listener.socket.as_raw_fd());
            drop(self.poll.registry().deregister(&mut source));
        }
    }

    pub(super) fn add_public(&mut self, socket: PublicSocket) -> io::Result<()> {
        let listener = Listener::public(socket, self.next_listener_token());
        watch(self.poll.registry(), &listener.socket, listener.token, Interest::READABLE)?;
        self.acceptors[Class::Public].add(listener);
        Ok(())
    }

    /// Connections of a class beside the public one come on this socket; on no other any more.
    pub(super) fn add_beside(&mut self, class: Class, socket: OwnedFd) -> io::Result<()> {
        let listener = Listener::new(Arc::new(socket), self.next_listener_token());
        watch(self.poll.registry(), &listener.socket, listener.token, Interest::READABLE)?;
        let before = self.acceptors[class].take(|_| true);
        self.close_listeners(before);
        self.acceptors[class].add(listener);
        Ok(())
    }

    pub(super) fn next_listener_token(&mut self) -> Token {
        self.listener_count += 1;
        tokens::listener(self.listener_count - 1)
    }
}
