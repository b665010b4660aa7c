//! Clients as the limits per address distinguish them, and a table by client that all loops share.
//!
//! The table has parts, each with a lock of its own, so loops rarely contend. A lock is held for
//! one look-up.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Mutex, MutexGuard, PoisonError},
};

use crossbeam_utils::CachePadded;

use super::Peer;

/// A client, as a limit per address counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Client {
    /// All processes of this machine that connect through a unix socket.
    Unix,
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// The first 64 bits of an IPv6 address. A host usually has a whole /64 network (RFC 6177), and
    /// could use a new address for each connection.
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

/// A table by client, in parts of type `P`.
#[derive(Debug)]
pub(crate) struct PerClient<P> {
    /// Chooses the part. It is keyed at random, so that a client cannot aim at one part.
    hasher: RandomState,
    parts: [CachePadded<Mutex<P>>; PARTS],
}

/// Parts of a table: more than the loops of most machines.
pub(crate) const PARTS: usize = 16;

impl<P> PerClient<P> {
    /// Locks the part with this client.
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
