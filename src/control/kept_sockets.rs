//! Sockets that another process serves, kept open by this one: it takes them up again when that
//! process dies.

use std::{
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering},
};

use super::{listening::Sockets, upgrade::HandedAdmin};
use crate::message::Class;

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

    /// The sockets of those classes.
    pub(super) fn beside(&self) -> impl Iterator<Item = (Class, &Arc<OwnedFd>)> {
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
