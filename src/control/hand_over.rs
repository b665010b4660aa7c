//! How control hands over to a new process, and takes up again when that has died. The states are
//! in [`upgrade`](super::upgrade).

use std::{
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    change_error::ChangeError,
    context::Context,
    control::Control,
    drain_view::{Cause, Verdict},
    input::{HandedOver, LifeView},
    notices::notice,
};
use crate::{duration::milliseconds, message::LoopCommand};

impl Control {
    /// Puts off what changes something, until a new process serves or does not. A stop that has
    /// begun comes first: it gates the very sockets that the new process would serve.
    pub(super) fn begin_hand_over(&mut self, now: Instant) -> Result<Vec<LifeView>, ChangeError> {
        if self.stopping.is_under_way() {
            return Err(ChangeError::Stopping);
        }
        self.succession.begin();
        Ok(self.lives.views(now))
    }

    /// A new process serves these sockets: lets go of them, and stops. What was put off is that
    /// process's to do: a stop is passed on, and an operator is refused.
    pub(super) fn hand_over(&mut self, handed: HandedOver, now: Instant) -> Option<Verdict> {
        let HandedOver { kept, let_go, lines } = handed;
        let (listeners, beside) = (kept.addresses(), kept.classes());
        self.succession.handed_over = Some(kept.pid);
        let let_go = || LoopCommand::LetGo(Arc::clone(&listeners), beside.clone(), let_go.clone());
        self.cx.command(let_go);
        self.listeners.let_go(&listeners);
        give_connections(&self.cx, lines);
        if !self.stopping.is_under_way() {
            let times = (Duration::ZERO, self.lives.drain_timeout);
            self.begin_stop(Cause::Upgrade, "upgrade", times, now);
            self.succession.kept = Some(*kept);
        }
        let stopped = self.make_up_for(now);
        stopped.or_else(|| self.on_stop_time(now))
    }

    /// The hand-over is over: does what was put off.
    pub(super) fn make_up_for(&mut self, now: Instant) -> Option<Verdict> {
        let put_off = self.succession.end();
        put_off.into_iter().fold(None, |stopped, input| stopped.or(self.on_input(input, now)))
    }

    /// The new process has ended: takes up again, if this one still may.
    pub(super) fn take_up_again(&mut self, now: Instant) {
        let (Some(kept), Some(mut view)) = (self.succession.kept.take(), self.stop_view(now))
        else {
            return;
        };
        if !self.stopping.failed.is_empty() {
            // A server whose loop has failed ends with its drain.
            return;
        }
        // I2: the drain's end, for all that wait for it.
        view.verdict = Some(Verdict::Cancelled);
        (self.stopping.stop, self.stopping.cancelled) = (None, Some(view.clone()));
        self.cx.watchers.show_end(&view);
        let addresses = kept.addresses();
        self.listeners.addresses.extend(addresses.iter());
        kept.leave_admin_file(false);
        let listen: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        let new_pid = u64::from(kept.pid);
        self.succession.take_up(&self.cx, &self.watch, kept);
        notice!(
            self.cx.notices,
            Error,
            "upgrade_reverted",
            new_pid = new_pid,
            verdict = Verdict::Cancelled.name(),
            elapsed_ms = milliseconds(view.elapsed),
            listen = &*listen.join(","),
        );
        self.service.take_back();
        let status = self.service_status(now);
        self.service.ready(status, now);
    }
}

/// Has each loop offer its connections on its share of the lines.
fn give_connections(cx: &Context, lines: Vec<OwnedFd>) {
    let loops = cx.loops.count();
    let mut shares: Vec<_> = (0..loops).map(|_| Vec::new()).collect();
    for (index, line) in lines.into_iter().enumerate() {
        shares[index % loops].push(line);
    }
    for (index, lines) in shares.into_iter().enumerate().filter(|(_, lines)| !lines.is_empty()) {
        cx.command_one(index, LoopCommand::Give(lines));
    }
}
