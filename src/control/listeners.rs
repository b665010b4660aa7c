//! Listeners that a reload takes away: gated on every loop, then closed.
//!
//! A loop that is stuck in an app does not gate; the others close their part all the same after
//! GATE_MAX. The stop has a gate of its own, for all listeners.

use std::{
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Control, Sockets, gate_plan::GatePlan};
use crate::{logging::event, message::LoopCommand};

/// How long loops have to gate.
const GATE_MAX: Duration = Duration::from_secs(1);

/// Listeners that are being closed.
pub(super) struct ClosingListeners {
    addresses: Arc<[SocketAddr]>,
    plan: GatePlan,
    give_up: Instant,
}

impl ClosingListeners {
    /// When [`Control::close_gated_listeners`] has something to do.
    pub(super) fn due(&self) -> Instant {
        self.plan.look().unwrap_or(self.give_up)
    }
}

impl Control {
    pub(super) fn close_listeners(&mut self, addresses: Vec<SocketAddr>, now: Instant) {
        if addresses.is_empty() {
            return;
        }
        if let Some(before) = &self.predecessor {
            before.say_closed(&addresses);
        }
        let addresses: Arc<[SocketAddr]> = addresses.into();
        self.command(|| LoopCommand::GateListeners(Arc::clone(&addresses)));
        let plan = GatePlan::begin(self.loops.count());
        let give_up = now + GATE_MAX;
        self.closing.push(ClosingListeners { addresses, plan, give_up });
    }

    /// A loop has gated these.
    pub(super) fn on_listeners_gated(
        &mut self,
        index: usize,
        gated: &Arc<[SocketAddr]>,
        now: Instant,
    ) {
        let closing = self.closing.iter_mut();
        closing
            .filter(|closing| Arc::ptr_eq(&closing.addresses, gated))
            .for_each(|closing| closing.plan.on_gated(index, now));
    }

    /// A loop is dead: it gates nothing any more.
    pub(super) fn gate_for_dead(&mut self, index: usize, now: Instant) {
        self.closing.iter_mut().for_each(|closing| closing.plan.on_gated(index, now));
    }

    /// Another loop serves whoever waits on the sockets of one that is dead. What is closed by now,
    /// or another process's, is dropped; so is all of it with the last loop.
    pub(super) fn give_orphans_away(&self, mut sockets: Sockets) {
        sockets.retain(|socket| self.addresses.contains(&socket.address));
        if let Some(heir) = self.watch.first_alive() {
            self.command_one(heir, LoopCommand::Listen(sockets));
        }
    }

    /// Gives every loop a dup of the admin's new socket.
    pub(super) fn listen_for_admin(&self, socket: &OwnedFd) {
        for index in 0..self.loops.count() {
            match socket.try_clone() {
                Ok(socket) => drop(self.command_one(index, LoopCommand::ListenForAdmin(socket))),
                Err(error) => {
                    event!(Error, "admin_not_listening", loop_index = index, error:% = error);
                }
            }
        }
    }

    pub(super) fn close_gated_listeners(&mut self, now: Instant) {
        let mut closed = Vec::new();
        self.closing.retain_mut(|closing| {
            if now < closing.due() {
                return true;
            }
            let gated = closing.plan.look().is_some();
            let pending = gated && (self.handshakes)(&closing.addresses);
            let over = !gated || closing.plan.on_handshakes(pending, now);
            if over {
                closed.push(Arc::clone(&closing.addresses));
            }
            !over
        });
        for addresses in closed {
            self.command(|| LoopCommand::CloseListeners(Arc::clone(&addresses)));
            self.addresses.retain(|address| !addresses.contains(address));
        }
    }
}
