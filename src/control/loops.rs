//! The loops, as far as control can reach them: it sends commands, and sees what they are at.
//!
//! Control decides the same whatever is behind this trait. In a server that is the loops' channels
//! and gauges; in the simulation, scripted loops.

use std::sync::Arc;

use crate::{
    logging::event,
    message::{LoopCommand, LoopHandle},
    metrics::{LoopCounts, LoopGauges, Turn},
};

/// What control can do with loops.
pub(crate) trait Loops: Send {
    /// How many there are.
    fn count(&self) -> usize;

    /// Sends a command, which the loop obeys after its turn. False if the loop has ended: then
    /// there is nothing to wait for.
    fn send(&self, index: usize, command: LoopCommand) -> bool;

    /// The turn that a loop is at work on; none while it sleeps.
    fn turn(&self, index: usize) -> Option<Turn>;

    /// The connections of all loops.
    fn connections(&self) -> LoopCounts;
}

/// The loops of a server: by their channels and gauges, of each loop one.
#[derive(Default)]
pub(crate) struct LoopThreads {
    pub(crate) handles: Vec<LoopHandle>,
    pub(crate) gauges: Vec<Arc<LoopGauges>>,
}

impl Loops for LoopThreads {
    fn count(&self) -> usize {
        self.handles.len()
    }

    fn send(&self, index: usize, command: LoopCommand) -> bool {
        self.handles[index].send(command).unwrap_or_else(|error| {
            event!(Error, "loop_not_woken", loop_index = index, error:% = error);
            true
        })
    }

    fn turn(&self, index: usize) -> Option<Turn> {
        self.gauges[index].turn()
    }

    fn connections(&self) -> LoopCounts {
        let mut counts = LoopCounts::default();
        self.gauges.iter().for_each(|gauges| counts += gauges.snapshot());
        counts
    }
}
