//! A loop's life on its thread: built, then run.

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
    /// For sockets to upstreams.
    registry: Registry,
    commands: Receiver<LoopCommand>,
    handle: LoopHandle,
    setup: LoopSetup,
}

impl EventLoop {
    /// Builds a loop and the handle through which control reaches it.
    ///
    /// # Errors
    /// epoll's and eventfd's.
    pub(crate) fn new(setup: LoopSetup) -> std::io::Result<(Self, LoopHandle)> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        // All descriptors are opened here: a loop that has started needs no more of its own.
        let registry = poll.registry().try_clone()?;
        let (sender, commands) = crossbeam_channel::unbounded();
        let handle = LoopHandle::new(sender, waker);
        Ok((Self { poll, registry, commands, handle: handle.clone(), setup }, handle))
    }

    /// Starts listening on public sockets that aren't listening yet.
    ///
    /// # Errors
    /// listen(2)'s.
    pub(crate) fn begin_listening(&self) -> std::io::Result<()> {
        bind::begin_listening(&self.setup.listeners)
    }

    /// Runs on the calling thread until control ends the loop.
    ///
    /// # Errors
    /// When the loop fails again and again, or a listener can't be watched.
    pub(crate) fn run(self) -> Result<(), DeadLoop> {
        let Self { poll, registry, commands, handle, setup } = self;
        let upstreams = UpstreamPool::new(registry, setup.budget.clone());
        let running = Running::new(poll, upstreams, commands, handle, setup);
        running.map_err(|error| DeadLoop::of(error.to_string()))?.run()
    }
}
