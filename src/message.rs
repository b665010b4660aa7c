//! What control and the loops say to each other. Nothing here does anything.
//!
//! Down: a channel, then the loop's waker. Up: one channel for all loops and everybody else who
//! wants something of control.

use std::{io, sync::Arc};

use crossbeam_channel::Sender;
use mio::Waker;

use crate::{
    app::App,
    registry::{AppEntry, AppId, AppRegistry, InFlightGuard},
};

/// The registry of a server.
pub(crate) type Apps = AppRegistry<Arc<dyn App>>;

/// One life of an app of a server.
pub(crate) type AppLife = AppEntry<Arc<dyn App>>;

/// An active connection of an app of a server.
pub(crate) type AppGuard = InFlightGuard<Arc<dyn App>>;

/// Control to a loop. Obeyed between turns, so that nothing an event still names goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LoopCommand {
    /// A stop begins: gate the listeners, say `Connection: close` with every answer, close idle
    /// connections after `idle_grace`. Answered by [`ControlEvent::Gated`].
    Gate,
    /// All listeners of all loops are gated: accept until nobody waits, close the listeners, and
    /// end with the last connection. Answered by [`ControlEvent::Ended`].
    Finish,
    /// Ends the exchanges of one life.
    Cut(AppId),
    /// Ends everything. Answered by [`ControlEvent::Ended`].
    CutAll,
    /// The routes changed: forget lives that ended.
    Refresh,
}

/// A loop to control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ControlEvent {
    /// The listeners are gated.
    Gated,
    /// The last connection is gone and the thread ends; so many exchanges were cut by `CutAll`.
    Ended {
        /// Exchanges that were cut.
        cut: u64,
    },
    /// The loop cannot go on; its connections are lost.
    Failed,
}

/// Control's end of one loop.
#[derive(Clone, Debug)]
pub(crate) struct LoopHandle {
    commands: Sender<LoopCommand>,
    waker: Arc<Waker>,
}

impl LoopHandle {
    /// Joins a channel and the waker of the loop that reads it.
    pub(crate) fn new(commands: Sender<LoopCommand>, waker: Arc<Waker>) -> Self {
        Self { commands, waker }
    }

    /// Sends a command and wakes the loop. A loop that has ended needs none.
    ///
    /// # Errors
    /// The waker's.
    pub(crate) fn send(&self, command: LoopCommand) -> io::Result<()> {
        match self.commands.send(command) {
            Ok(()) => self.waker.wake(),
            Err(_) => Ok(()),
        }
    }
}
