//! The way back from an upgrade: this process takes up again when the new one has ended. The states
//! are in [`upgrade`](super::upgrade).

use std::{
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use super::{
    Control, HandedAdmin, Sockets, Verdict, drains::DrainName, lives::milliseconds, notices::notice,
};
use crate::{
    logging::event,
    message::{Class, LoopCommand},
};

/// Sockets that another process serves, kept open by this one.
pub(crate) struct KeptSockets {
    /// Of each address, those that the loops had.
    pub(crate) listeners: Vec<Sockets>,
    /// The admin's, if the other process serves it.
    pub(crate) admin: Option<HandedAdmin>,
    /// That of the health listener, if the other process serves it.
    pub(crate) health: Option<Arc<OwnedFd>>,
    /// The other process.
    pub(crate) pid: u32,
}

impl KeptSockets {
    pub(super) fn addresses(&self) -> Arc<[SocketAddr]> {
        let first = |sockets: &Sockets| sockets.first().map(|socket| socket.address);
        self.listeners.iter().filter_map(first).collect()
    }

    /// The classes that the other process serves, beside the public one.
    pub(super) fn classes(&self) -> Vec<Class> {
        self.beside().map(|(class, _)| class).collect()
    }

    fn beside(&self) -> impl Iterator<Item = (Class, &Arc<OwnedFd>)> {
        let admin = self.admin.as_ref().map(|admin| (Class::Admin, &admin.socket));
        admin.into_iter().chain(self.health.as_ref().map(|socket| (Class::Health, socket)))
    }

    /// Whether the admin socket's file is the other process's to remove.
    pub(crate) fn leave_admin_file(&self, to_other: bool) {
        if let Some(left) = self.admin.as_ref().and_then(|admin| admin.left.as_ref()) {
            left.store(to_other, Ordering::Release);
        }
    }
}

impl Control {
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

    /// The new process has ended.
    pub(super) fn take_up_again(&mut self, now: Instant) {
        let (Some(kept), Some(mut view)) = (self.kept.take(), self.stop_view(now)) else { return };
        if !self.failed.is_empty() {
            // A server whose loop has failed ends with its drain.
            return;
        }
        // I2: its end, for all that wait for it.
        view.verdict = Some(Verdict::Cancelled);
        (self.stop, self.cancelled_stop) = (None, Some(view.clone()));
        self.handed_over = None;
        self.relay.close();
        self.tell_watchers(DrainName::Stop, now);
        let addresses = kept.addresses();
        self.addresses.extend(addresses.iter());
        kept.leave_admin_file(false);
        let listen: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        let new_pid = u64::from(kept.pid);
        self.command_take_up(kept);
        notice!(
            self.notices,
            Error,
            "upgrade_reverted",
            new_pid = new_pid,
            verdict = Verdict::Cancelled.name(),
            elapsed_ms = milliseconds(view.elapsed),
            listen = &*listen.join(","),
        );
        self.report_ready_again(now);
    }

    /// The loop serves again.
    pub(super) fn on_took_up(&mut self, index: usize) {
        self.taking_up.remove(&index);
    }

    fn command_take_up(&mut self, kept: KeptSockets) {
        let loops = self.loops.count();
        let mut of_loops: Vec<Sockets> = (0..loops).map(|_| Vec::new()).collect();
        let heir = self.watch.first_alive().unwrap_or(0);
        let beside: Vec<_> =
            kept.beside().map(|(class, socket)| (class, Arc::clone(socket))).collect();
        for sockets in kept.listeners {
            for (index, socket) in sockets.into_iter().enumerate() {
                let index = index % loops;
                let index = if self.watch.is_dead(index) { heir } else { index };
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
            if self.command_one(index, LoopCommand::TakeUp(sockets, beside.collect())) {
                self.taking_up.insert(index);
            }
        }
    }
}
