//! What a loop reports to control.

use crate::message::ControlEvent;

/// The way to control, and what goes there at the end of the turn.
pub(super) struct Reports {
    report: Box<dyn Fn(ControlEvent) + Send>,
    deferred: Vec<ControlEvent>,
}

impl Reports {
    pub(super) fn new(report: Box<dyn Fn(ControlEvent) + Send>) -> Self {
        Self { report, deferred: Vec::new() }
    }

    /// Sends a report at once.
    pub(super) fn send(&self, event: ControlEvent) {
        (self.report)(event);
    }

    /// Sends a report at the end of the turn: connections don't wait for control to be woken.
    pub(super) fn defer(&mut self, event: ControlEvent) {
        self.deferred.push(event);
    }

    /// Sends what was deferred.
    pub(super) fn send_deferred(&mut self) {
        self.deferred.drain(..).for_each(&self.report);
    }
}
