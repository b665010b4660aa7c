//! What the parts of control act through: the loops, the operators, and those that follow drains.

use std::{sync::Arc, time::Instant};

use super::{drain_log::DrainLog, loops::Loops, notices::Notices, watchers::Watchers};
use crate::{duration::nanoseconds, message::LoopCommand};

/// Passed to each part that acts.
pub(super) struct Context {
    pub(super) loops: Box<dyn Loops>,
    pub(super) notices: Arc<Notices>,
    /// Where drain times count from; the loops' clocks begin there too.
    pub(super) epoch: Instant,
    pub(super) drain_log: DrainLog,
    pub(super) watchers: Watchers,
}

impl Context {
    /// A time in nanoseconds of the epoch.
    pub(super) fn nanoseconds(&self, at: Instant) -> u64 {
        nanoseconds(at.duration_since(self.epoch))
    }

    /// Sends a command to every loop.
    pub(super) fn command(&self, command: impl Fn() -> LoopCommand) {
        for index in 0..self.loops.count() {
            self.command_one(index, command());
        }
    }

    /// Whether the loop is there to obey.
    pub(super) fn command_one(&self, index: usize, command: LoopCommand) -> bool {
        self.loops.send(index, command)
    }
}
