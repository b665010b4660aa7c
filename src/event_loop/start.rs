//! A loop as its thread has it: made, then run.

use std::sync::Arc;

use crossbeam_channel::Receiver;
use mio::{Poll, Registry, Waker};

use super::{
    bind, failure::DeadLoop, running::Running, setup::LoopSetup, tokens::WAKER,
    upstream::UpstreamPool,
};
use crate::message::{LoopCommand, LoopHandle};

/// One event loop.
pub(crate) struct EventLoop {
    poll: Poll,
    /// For the sockets of upstreams.
    registry: Registry,
    commands: Receiver<LoopCommand>,
    handle: LoopHandle,
    setup: LoopSetup,
}

impl EventLoop {
    /// Makes a loop and the handle by which control reaches it.
    ///
    /// # Errors
    /// epoll's and eventfd's.
    pub(crate) fn new(setup: LoopSetup) -> std::io::Result<(Self, LoopHandle)> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        // All descriptors are taken here: a loop that has started needs none to go on.
        let registry = poll.registry().try_clone()?;
        let (sender, commands) = crossbeam_channel::unbounded();
        let handle = LoopHandle::new(sender, waker);
        Ok((Self { poll, registry, commands, handle: handle.clone(), setup }, handle))
    }

    /// Has its public sockets listen that do not yet.
    ///
    /// # Errors
    /// listen(2)'s.
    pub(crate) fn begin_listening(&self) -> std::io::Result<()> {
        bind::begin_listening(&self.setup.listeners)
    }

    /// Runs on the calling thread until it is told to end.
    ///
    /// # Errors
    /// When it fails again and again, or a listener cannot be watched.
    pub(crate) fn run(self) -> Result<(), DeadLoop> {
        let Self { poll, registry, commands, handle, setup } = self;
        let upstreams = UpstreamPool::new(registry, setup.budget.clone());
        let running = Running::new(poll, upstreams, commands, handle, setup);
        running.map_err(|error| DeadLoop::of(error.to_string()))?.run()
    }
}
