//! Listening sockets that another process has bound: the one before this one, or systemd.

use std::{net::SocketAddr, os::fd::OwnedFd};

/// The sockets of one address.
#[derive(Debug)]
struct Inherit {
    configured: SocketAddr,
    bound: SocketAddr,
    is_kept: bool,
    /// None once they are taken.
    sockets: Option<Vec<OwnedFd>>,
}

/// What is taken for an address.
pub(crate) struct InheritedSockets {
    /// Port 0 is the real one here.
    pub(crate) bound: SocketAddr,
    /// Systemd has them too, and they go on after this process.
    pub(crate) is_kept: bool,
    /// At least one.
    pub(crate) sockets: Vec<OwnedFd>,
}

/// Sockets by address, until each is taken.
#[derive(Debug, Default)]
pub(crate) struct Inherited(Vec<Inherit>);

impl Inherited {
    /// Adds the sockets of an address that is configured and bound so.
    pub(crate) fn add(&mut self, configured: SocketAddr, added: InheritedSockets) {
        let InheritedSockets { bound, is_kept, sockets } = added;
        match self.0.iter_mut().find(|known| known.configured == configured) {
            Some(Inherit { sockets: Some(known), .. }) => known.extend(sockets),
            _ => self.0.push(Inherit { configured, bound, is_kept, sockets: Some(sockets) }),
        }
    }

    /// Takes the sockets of an address that is configured so.
    pub(crate) fn take(&mut self, configured: SocketAddr) -> Option<InheritedSockets> {
        let found = self.0.iter_mut().find(|known| known.configured == configured)?;
        let sockets = found.sockets.take_if(|sockets| !sockets.is_empty())?;
        Some(InheritedSockets { bound: found.bound, is_kept: found.is_kept, sockets })
    }

    /// Whether there never was any.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether there is a socket with this port.
    pub(crate) fn has_port(&self, port: u16) -> bool {
        self.0.iter().any(|known| known.bound.port() == port)
    }

    /// Closes what was not taken, and gives its addresses.
    pub(crate) fn drop_rest(&mut self) -> Vec<SocketAddr> {
        let left = self.0.iter_mut().filter_map(|known| known.sockets.take().map(|_| known.bound));
        left.collect()
    }
}
