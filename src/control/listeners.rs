//! The public listeners: where the loops listen, and those that a reload takes away, which are
//! gated on every loop, then closed.
//!
//! A loop that is stuck in an app does not gate; the others close their part all the same after
//! GATE_MAX. The stop has a gate of its own, for all listeners.

use std::{
    collections::HashMap,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    context::Context,
    gate_plan::GatePlan,
    handshakes::ArePending,
    listening::{Listening, Sockets},
};
use crate::{
    logging::event,
    message::{LiveListenOptions, LoopCommand},
};

/// How long loops have to gate.
const GATE_MAX: Duration = Duration::from_secs(1);

/// The public listeners of the loops.
pub(super) struct Listeners {
    /// Where the loops listen.
    pub(super) addresses: Vec<SocketAddr>,
    /// How the connections of an address begin: to be shown.
    options: HashMap<SocketAddr, Arc<LiveListenOptions>>,
    closing: Vec<Closing>,
    /// Whether handshakes with these addresses are under way.
    pub(super) handshakes: ArePending,
}

/// Listeners that are being closed.
struct Closing {
    addresses: Arc<[SocketAddr]>,
    plan: GatePlan,
    give_up: Instant,
}

impl Closing {
    fn due(&self) -> Instant {
        self.plan.look().unwrap_or(self.give_up)
    }
}

impl Listeners {
    pub(super) fn new(handshakes: ArePending) -> Self {
        let (addresses, options, closing) = (Vec::new(), HashMap::new(), Vec::new());
        Self { addresses, options, closing, handshakes }
    }

    /// Takes in how connections begin where the loops will listen. Returns these addresses.
    pub(super) fn know(&mut self, listening: &[Listening]) -> Vec<SocketAddr> {
        let options = |it: &Listening| (it.bound, Arc::clone(it.options()));
        self.options.extend(listening.iter().map(options));
        listening.iter().map(|it| it.bound).collect()
    }

    /// Where the loops listen, and how connections begin there.
    pub(super) fn with_options(&self) -> Vec<(SocketAddr, Arc<LiveListenOptions>)> {
        let options = |address: &SocketAddr| self.options.get(address).map(Arc::clone);
        let with = |address: &SocketAddr| (*address, options(address).unwrap_or_default());
        self.addresses.iter().map(with).collect()
    }

    /// When [`Listeners::on_time`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        self.closing.iter().map(Closing::due).min()
    }

    /// Tells the loops to listen on one more address, each on its own socket.
    pub(super) fn listen(&mut self, cx: &Context, sockets: Sockets) {
        if let Some(first) = sockets.first() {
            self.addresses.push(first.address);
            self.options.insert(first.address, Arc::clone(&first.options));
        }
        for (index, socket) in sockets.into_iter().enumerate() {
            cx.command_one(index, LoopCommand::Listen(vec![socket]));
        }
    }

    /// Tells the loops to close these addresses, once all of them are gated.
    pub(super) fn close(&mut self, cx: &Context, addresses: Vec<SocketAddr>, now: Instant) {
        if addresses.is_empty() {
            return;
        }
        let addresses: Arc<[SocketAddr]> = addresses.into();
        cx.command(|| LoopCommand::GateListeners(Arc::clone(&addresses)));
        let plan = GatePlan::begin(cx.loops.count());
        self.closing.push(Closing { addresses, plan, give_up: now + GATE_MAX });
    }

    /// A stop closes all of them, by a gate of its own.
    pub(super) fn leave_to_stop(&mut self) {
        self.closing.clear();
    }

    /// Whether handshakes with any of them are under way.
    pub(super) fn has_handshakes(&self) -> bool {
        (self.handshakes)(&self.addresses)
    }

    /// Another process serves these.
    pub(super) fn let_go(&mut self, addresses: &[SocketAddr]) {
        self.addresses.retain(|address| !addresses.contains(address));
    }

    /// A loop has gated these.
    pub(super) fn on_gated(&mut self, index: usize, gated: &Arc<[SocketAddr]>, now: Instant) {
        self.closing
            .iter_mut()
            .filter(|closing| Arc::ptr_eq(&closing.addresses, gated))
            .for_each(|closing| closing.plan.on_gated(index, now));
    }

    /// A loop is dead: it gates nothing any more.
    pub(super) fn on_died(&mut self, index: usize, now: Instant) {
        self.closing.iter_mut().for_each(|closing| closing.plan.on_gated(index, now));
    }

    /// Gives the sockets of a dead loop to another one, for clients that wait on them. Sockets of
    /// addresses that are closed by now, or another process's, are dropped; so are all sockets when
    /// the last loop has died.
    pub(super) fn adopt(&self, cx: &Context, mut sockets: Sockets, heir: Option<usize>) {
        sockets.retain(|socket| self.addresses.contains(&socket.address));
        if let Some(heir) = heir {
            cx.command_one(heir, LoopCommand::Listen(sockets));
        }
    }

    /// Closes what is gated.
    pub(super) fn on_time(&mut self, cx: &Context, now: Instant) {
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
            cx.command(|| LoopCommand::CloseListeners(Arc::clone(&addresses)));
            self.addresses.retain(|address| !addresses.contains(address));
            self.options.retain(|address, _| !addresses.contains(address));
        }
    }
}

/// Gives every loop a dup of the admin's new socket.
pub(super) fn listen_for_admin(cx: &Context, socket: &OwnedFd) {
    for index in 0..cx.loops.count() {
        match socket.try_clone() {
            Ok(socket) => drop(cx.command_one(index, LoopCommand::ListenForAdmin(socket))),
            Err(error) => {
                event!(Error, "admin_not_listening", loop_index = index, error:% = error);
            }
        }
    }
}
