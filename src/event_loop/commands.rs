//! Control's commands to a loop, in the order in which they were sent.

use crossbeam_channel::Receiver;

use crate::message::LoopCommand;

/// Commands that aren't obeyed yet. A cut, and the commands behind it, wait for the turn that has
/// caught up with the kernel's events: it must not cut what was ready, or due, before it.
pub(super) struct Commands {
    sent: Receiver<LoopCommand>,
    cut: Option<LoopCommand>,
}

impl Commands {
    pub(super) fn new(sent: Receiver<LoopCommand>) -> Self {
        Self { sent, cut: None }
    }

    /// Whether a cut waits.
    pub(super) fn has_cut(&self) -> bool {
        self.cut.is_some()
    }

    /// How many commands are here now.
    pub(super) fn count(&self) -> usize {
        self.sent.len() + usize::from(self.has_cut())
    }

    /// The next command that may be obeyed in this turn.
    pub(super) fn next(&mut self, is_caught_up: bool) -> Option<LoopCommand> {
        if self.has_cut() {
            return self.cut.take_if(|_| is_caught_up);
        }
        let command = self.sent.try_recv().ok()?;
        if command.cuts() {
            self.cut = Some(command);
            return None;
        }
        Some(command)
    }
}
