//! The process after this one: whether it serves, what is kept for its death, and what waits until
//! it serves. The states are in [`upgrade`](super::upgrade).

use std::{collections::BTreeSet, net::SocketAddr};

use super::{
    change_error::ChangeError,
    context::Context,
    input::{Input, StopAsker, StopRequest},
    kept_sockets::KeptSockets,
    listening::Sockets,
    notices::notice,
    upgrade::{PassedStop, StopRelay},
    watchdog::LoopWatch,
};
use crate::{logging::event, message::LoopCommand};

/// What this process knows of its successor.
#[derive(Default)]
pub(super) struct Succession {
    /// The sockets that it serves, as long as this process may take them up again.
    pub(super) kept: Option<KeptSockets>,
    /// Inputs that wait until a hand-over is over; none while there is no hand-over.
    put_off: Option<Vec<Input>>,
    /// The process that serves in the place of this one.
    pub(super) handed_over: Option<u32>,
    /// Passes stops on to it.
    pub(super) relay: StopRelay,
    /// Loops that have not reported yet that they serve again: what they report of a drain is of
    /// the cancelled one.
    taking_up: BTreeSet<usize>,
}

impl Succession {
    /// A hand-over begins: what changes something waits for its end.
    pub(super) fn begin(&mut self) {
        self.relay.begin();
        self.put_off = Some(Vec::new());
    }

    /// The hand-over is over; what was put off.
    pub(super) fn end(&mut self) -> Vec<Input> {
        self.put_off.take().unwrap_or_default()
    }

    /// The input, if it is for now and for this process. While a hand-over is under way, changes
    /// wait for its end; after it, they are the new process's.
    pub(super) fn admit(&mut self, input: Input) -> Option<Input> {
        if let Some(put_off) = &mut self.put_off
            && input.changes_something()
        {
            if matches!(input, Input::Stop(_)) {
                self.relay.hurry();
            }
            put_off.push(input);
            return None;
        }
        if let Some(successor) = self.handed_over
            && input.is_for_successor()
        {
            input.refuse(&ChangeError::HandedOver(successor));
            return None;
        }
        Some(input)
    }

    /// Passes a stop on, if another process serves.
    pub(super) fn pass_on(&self, cx: &Context, stop: PassedStop) {
        if let Some(pid) = self.handed_over {
            let reason = &*stop.reason;
            notice!(cx.notices, Info, "stop_passed_on", pid = u64::from(pid), reason = reason);
            self.relay.pass_on(stop);
        }
    }

    /// Passes on what signals have asked for too late for control, and refuses all else.
    pub(super) fn pass_unread_on(&self, inputs: impl Iterator<Item = Input>) {
        for input in inputs {
            if let Input::Stop(StopRequest { reason, by: StopAsker::Signal, .. }) = input {
                self.relay.pass_on(PassedStop { reason, cut: false });
            } else {
                input.refuse(&ChangeError::Ended);
            }
        }
    }

    /// The new process closes these addresses.
    pub(super) fn keep_fewer(&mut self, closed: &[SocketAddr]) {
        if let Some(kept) = &mut self.kept {
            kept.listeners.retain(|sockets| {
                sockets.first().is_some_and(|socket| !closed.contains(&socket.address))
            });
        }
    }

    /// This process does not take up again.
    pub(super) fn keep_none(&mut self) {
        self.kept = None;
    }

    /// Whether this loop still reports on a stop that was cancelled.
    pub(super) fn is_taking_up(&self, index: usize) -> bool {
        self.taking_up.contains(&index)
    }

    /// The loop serves again, or is dead: a stop has not to wait until it serves.
    pub(super) fn took_up(&mut self, index: usize) {
        self.taking_up.remove(&index);
    }

    /// Has the loops serve what was kept; the first loop that lives serves for those that are dead.
    pub(super) fn take_up(&mut self, cx: &Context, watch: &LoopWatch, kept: KeptSockets) {
        self.handed_over = None;
        self.relay.close();
        let loops = cx.loops.count();
        let mut of_loops: Vec<Sockets> = (0..loops).map(|_| Vec::new()).collect();
        let heir = watch.first_alive().unwrap_or(0);
        let beside: Vec<_> = kept.beside().map(|(class, socket)| (class, socket.clone())).collect();
        for sockets in kept.listeners {
            for (index, socket) in sockets.into_iter().enumerate() {
                let index = index % loops;
                let index = if watch.is_dead(index) { heir } else { index };
                of_loops[index].push(socket);
            }
        }
        for (index, sockets) in of_loops.into_iter().enumerate() {
            let beside = beside.iter().filter_map(|(class, socket)| match socket.try_clone() {
                Ok(socket) => Some((*class, socket)),
                Err(error) => {
                    event!(Error, "not_served_again", address = class.name(), error:% = error);
                    None
                }
            });
            if cx.command_one(index, LoopCommand::TakeUp(sockets, beside.collect())) {
                self.taking_up.insert(index);
            }
        }
    }
}
