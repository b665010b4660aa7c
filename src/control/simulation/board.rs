//! The loops as control reaches them: it puts commands on this board, and reads what they are at.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
};

use super::super::loops::Loops;
use crate::{
    message::LoopCommand,
    metrics::{LoopCounts, Turn},
};

/// Shared by control and the scripted loops.
#[derive(Clone)]
pub(super) struct Board(Arc<Mutex<Vec<Place>>>);

/// What stands on the board of one loop.
#[derive(Default)]
pub(super) struct Place {
    pub(super) commands: VecDeque<LoopCommand>,
    /// The turn that it is stuck in.
    pub(super) turn: Option<Turn>,
    /// It has the order to cut everything.
    pub(super) is_told_to_cut: bool,
    /// Its thread has ended, with or without an order.
    pub(super) has_ended: bool,
}

impl Board {
    pub(super) fn new(loops: usize) -> Self {
        Self(Arc::new(Mutex::new((0..loops).map(|_| Place::default()).collect())))
    }

    pub(super) fn places(&self) -> MutexGuard<'_, Vec<Place>> {
        self.0.lock().expect("no run goes on behind a panic")
    }
}

impl Loops for Board {
    fn count(&self) -> usize {
        self.places().len()
    }

    fn send(&self, index: usize, command: LoopCommand) -> bool {
        let place = &mut self.places()[index];
        if place.has_ended {
            return false;
        }
        place.is_told_to_cut |= matches!(command, LoopCommand::CutAll);
        place.commands.push_back(command);
        true
    }

    fn turn(&self, index: usize) -> Option<Turn> {
        self.places()[index].turn
    }

    fn connections(&self) -> LoopCounts {
        LoopCounts::default()
    }
}
