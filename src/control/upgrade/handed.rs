//! The sockets of the admin and health listeners, which are handed over beside the public ones.

use std::{
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{Arc, atomic::AtomicBool},
};

/// The admin's socket.
#[derive(Clone)]
pub(crate) struct HandedAdmin {
    /// As it is configured.
    pub(crate) configured: String,
    pub(crate) socket: Arc<OwnedFd>,
    /// Device and inode of its file.
    pub(crate) file: Option<(u64, u64)>,
    /// By which its file is left to the new process.
    pub(crate) left: Option<Arc<AtomicBool>>,
}

/// The socket of the health listener.
#[derive(Clone)]
pub(crate) struct HandedHealth {
    pub(crate) configured: SocketAddr,
    /// Port 0 is the real one here.
    pub(crate) bound: SocketAddr,
    pub(crate) socket: Arc<OwnedFd>,
}
