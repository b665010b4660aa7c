//! Clients as limits by address know them, and a table of them that all loops share.
//!
//! The table is in parts with a lock each: loops rarely meet at one. A part is locked for one
//! look-up.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Mutex, MutexGuard, PoisonError},
};

use crossbeam_utils::CachePadded;

use super::Peer;

/// Whom a limit by address means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Client {
    /// All processes of this machine that come by a unix socket.
    Unix,
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// The first 64 bits of an IPv6 address: a host has all addresses of such a network (RFC 6177),
    /// and could be another client with each connection.
    V6([u8; 8]),
}

impl From<Peer> for Client {
    fn from(peer: Peer) -> Self {
        let Peer::Tcp(address) = peer else { return Self::Unix };
        match address.ip().to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip),
            IpAddr::V6(ip) => {
                let [network @ .., _, _, _, _, _, _, _, _] = ip.octets();
                Self::V6(network)
            }
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix => f.write_str("unix"),
            Self::V4(ip) => ip.fmt(f),
            Self::V6(network) => {
                let mut octets = [0; 16];
                octets[..8].copy_from_slice(network);
                write!(f, "{}/64", Ipv6Addr::from(octets))
            }
        }
    }
}

/// A table by client, in parts.
#[derive(Debug)]
pub(crate) struct PerClient<P> {
    /// Chooses the part, so that no client can.
    hasher: RandomState,
    parts: [CachePadded<Mutex<P>>; PARTS],
}

/// Parts of a table: several for each loop of a usual machine.
pub(crate) const PARTS: usize = 16;

impl<P> PerClient<P> {
    /// The part that this client is in, locked.
    pub(crate) fn lock(&self, client: Client) -> MutexGuard<'_, P> {
        let part = self.hasher.hash_one(client) % PARTS as u64;
        self.parts[part as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P: Default> Default for PerClient<P> {
    fn default() -> Self {
        Self { hasher: RandomState::new(), parts: Default::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(ip: &str) -> Client {
        Client::from(Peer::Tcp((ip.parse::<IpAddr>().unwrap(), 1).into()))
    }

    #[test]
    fn a_client_is_an_ipv4_address_or_an_ipv6_network() {
        for (ip, other, shown) in [
            ("192.0.2.7", "::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:db8:0:1::7", "2001:db8:0:1:ffff::", "2001:db8:0:1::/64"),
        ] {
            assert_eq!(client(ip), client(other));
            assert_eq!(client(ip).to_string(), shown);
        }
        assert_ne!(client("192.0.2.7"), client("192.0.2.8"));
        assert_ne!(client("2001:db8:0:1::7"), client("2001:db8:0:2::7"));
        assert_ne!(client("192.0.2.7"), client("::192.0.2.7"));
        assert_eq!(Client::from(Peer::Unix).to_string(), "unix");
    }
}
