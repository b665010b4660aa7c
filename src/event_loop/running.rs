//! A loop while it runs: its listeners, its connections, and how far a stop has come.

use std::{
    io,
    mem::take,
    os::fd::OwnedFd,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use crossbeam_channel::Receiver;
use mio::{Poll, Token};

use super::{
    accept::Acceptor,
    class::PerClass,
    closing::Ending,
    commands::Commands,
    connection::{Connection, Next},
    context::LoopContext,
    hand_over::Offers,
    listener::{ConnectionBudget, Listener},
    poll::LoopPoll,
    queue::TurnQueue,
    setup::{LoopSetup, SideSetup},
    slots::Slots,
    upstream::{UpstreamDrains, UpstreamPool},
};
use crate::{
    duration::milliseconds,
    logging::event,
    message::{Class, LoopCommand, LoopHandle, PublicSocket},
};

/// How often apps are asked to release what they haven't used.
pub(super) const RELEASE_IDLE_EVERY: Duration = Duration::from_secs(10);

/// A loop that runs.
pub(super) struct Running {
    pub(super) poll: LoopPoll,
    pub(super) commands: Commands,
    pub(super) acceptors: PerClass<Acceptor>,
    pub(super) connections: Slots<Connection>,
    pub(super) queue: TurnQueue,
    pub(super) upstream_drains: UpstreamDrains,
    pub(super) release_idle_ms: u64,
    pub(super) ending: Ending,
    pub(super) offers: Offers,
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
        let (listeners, beside) = (take(&mut setup.listeners), take(&mut setup.beside));
        let of = |class| beside.iter().find(|side: &&SideSetup| side.class == class);
        let side_app = |class| of(class).map(|side| Arc::clone(&side.app));
        let acceptors = PerClass::new(|class| match (class, of(class)) {
            (Class::Public, _) => Acceptor::new(setup.budget.clone()),
            (_, Some(side)) => Acceptor::new(side.budget.clone()),
            // No listener, so it needs no places.
            (_, None) => Acceptor::new(ConnectionBudget::new(0, 0)),
        });
        let mut running = Self {
            poll: LoopPoll::new(poll),
            commands: Commands::new(commands),
            acceptors,
            connections: Slots::new(),
            queue: TurnQueue::default(),
            upstream_drains: UpstreamDrains::default(),
            release_idle_ms: milliseconds(RELEASE_IDLE_EVERY),
            ending: Ending::default(),
            offers: Offers::default(),
            cx: LoopContext::new(setup, side_app, handle, upstreams),
        };
        for socket in listeners {
            running.add_public(socket)?;
        }
        for SideSetup { class, listener, .. } in beside {
            running.add_side_listener(class, listener)?;
        }
        Ok(running)
    }

    /// Runs a connection, and does what it returns. A connection that panics is dropped: a bug in
    /// one exchange ends no other.
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

    /// A place or a descriptor has become free, in any class.
    pub(super) fn end_pauses(&mut self) {
        self.acceptors.iter_mut().for_each(|(_, acceptor)| acceptor.end_pause());
    }

    /// Closes listeners.
    pub(super) fn close_listeners(&self, listeners: Vec<Listener>) {
        for listener in listeners {
            self.poll.unwatch(&listener.socket);
        }
    }

    pub(super) fn add_public(&mut self, socket: PublicSocket) -> io::Result<()> {
        let token = self.poll.watch_listener(&socket.socket)?;
        self.acceptors[Class::Public].add(Listener::public(socket, token));
        Ok(())
    }

    /// Accepts connections of a class other than the public one on this socket, and on no other.
    pub(super) fn add_side_listener(&mut self, class: Class, socket: OwnedFd) -> io::Result<()> {
        let token = self.poll.watch_listener(&socket)?;
        let before = self.acceptors[class].take(|_| true);
        self.close_listeners(before);
        self.acceptors[class].add(Listener::new(Arc::new(socket), token));
        Ok(())
    }
}
