//! What control tells the loops.

use std::time::Instant;

use super::{Control, DrainName};
use crate::message::LoopCommand;

impl Control {
    /// The deadline of a drain has come.
    pub(super) fn cut_drain(&mut self, name: DrainName, now: Instant) {
        let Some(drain) = self.drains.find(name) else { return };
        let view = (!drain.cancelled).then(|| drain.view(now));
        let (life, upstream) = (drain.life.id(), drain.upstream().cloned());
        if let Some(view) = view {
            self.say_drain_cut(&view, life);
        }
        self.command(|| match &upstream {
            Some(upstream) => LoopCommand::CutUpstream(upstream.clone()),
            None => LoopCommand::Cut(life),
        });
    }

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
