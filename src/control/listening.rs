//! The addresses that the loops listen on, as the operator knows them.

use std::{
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{Arc, Weak},
};

use crate::{
    config::ListenConfig,
    message::{ListenGroup, LiveListenOptions, PublicSocket},
};

/// The sockets of one address, one for each loop.
pub(crate) type Sockets = Vec<PublicSocket>;

/// An address that the loops listen on.
#[derive(Clone, Debug)]
pub(crate) struct Listening {
    /// As it is configured.
    pub(super) configured: SocketAddr,
    /// As it is bound: port 0 is a real one here.
    pub(crate) bound: SocketAddr,
    /// [`PublicSocket::is_kept`]
    pub(super) is_kept: bool,
    /// Its sinks close with it, so it is not held here.
    group: Weak<ListenGroup>,
    options: Arc<LiveListenOptions>,
    /// The loops' sockets, as long as they are theirs.
    pub(super) sockets: Vec<Weak<OwnedFd>>,
}

impl Listening {
    /// Configures the sockets of an address. There is at least one socket.
    pub(crate) fn new(listen: &ListenConfig, sockets: &Sockets) -> Self {
        let first = &sockets[0];
        let listening = Self {
            configured: listen.address,
            bound: first.address,
            is_kept: first.is_kept,
            group: Arc::downgrade(&first.group),
            options: Arc::clone(&first.options),
            sockets: sockets.iter().map(|socket| Arc::downgrade(&socket.socket)).collect(),
        };
        listening.configure(listen);
        listening
    }

    /// The loops' sockets, for loops: they stay open as long as one of these is held.
    pub(super) fn sockets(&self) -> Sockets {
        let Some(group) = self.group.upgrade() else { return Vec::new() };
        let socket = |socket| PublicSocket {
            address: self.bound,
            socket,
            is_kept: self.is_kept,
            group: Arc::clone(&group),
            options: Arc::clone(&self.options),
        };
        self.sockets.iter().filter_map(Weak::upgrade).map(socket).collect()
    }

    /// Whether a loop, or a process that may take them up again, has sockets of it.
    pub(super) fn is_open(&self) -> bool {
        self.sockets.iter().any(|socket| socket.strong_count() > 0)
    }

    /// Whether this entry of the config means it: the port that port 0 became can be written out.
    pub(super) fn is_of(&self, listen: &ListenConfig) -> bool {
        self.configured == listen.address || self.bound == listen.address
    }

    /// How its connections begin; a reload may change that.
    pub(super) fn options(&self) -> &Arc<LiveListenOptions> {
        &self.options
    }

    /// The port, if TLS is spoken there.
    fn tls_port(&self) -> Option<u16> {
        self.options.load().tls.then(|| self.bound.port())
    }

    /// Has connections that are accepted from here on treated as this says.
    pub(super) fn configure(&self, listen: &ListenConfig) {
        self.options.store(listen.options);
    }
}

/// The port to send clients to for TLS: that of https, or else the first.
pub(crate) fn tls_port(listening: &[Listening]) -> Option<u16> {
    let ports = || listening.iter().filter_map(Listening::tls_port);
    ports().find(|port| *port == 443).or_else(|| ports().next())
}
