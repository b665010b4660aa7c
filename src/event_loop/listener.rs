//! A listening socket as a loop serves it: accepted from, gated, and closed when nobody waits.
//!
//! Closing one of several sockets with SO_REUSEPORT resets what is queued on it, hence the gate: a
//! filter on the socket drops bare SYNs, the queue is accepted empty, and then there is nothing
//! left to reset. The client's kernel repeats a dropped SYN and meets the successor.

use std::{
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use mio::Token;
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
    net::{SocketAddrAny, SocketFlags},
};
use socket2::{SockFilter, SockRef};

use crate::{app::Peer, message::PublicSocket};

/// A listening socket of one loop.
pub(super) struct Listener {
    pub(super) socket: Arc<OwnedFd>,
    pub(super) token: Token,
    /// What a public one is called by; the admin's has no name.
    pub(super) address: Option<SocketAddr>,
    /// An edge said that connections wait, and accepting has not found the end of them since.
    pub(super) ready: bool,
    /// It is gated on every loop: it closes when nobody waits.
    pub(super) closing: bool,
    /// [`PublicSocket::is_kept`]
    is_kept: bool,
    /// Of a public one, [`PublicSocket::proxy_protocol`].
    ///
    /// [`PublicSocket::proxy_protocol`]: crate::message::PublicSocket::proxy_protocol
    proxy_protocol: Arc<AtomicBool>,
}

/// Errors of the connection that is accepted, not of accepting (accept(2)).
const CONNECTION_ERRORS: &[Errno] = &[
    Errno::CONNABORTED,
    Errno::INTR,
    Errno::PERM,
    Errno::PROTO,
    Errno::NETDOWN,
    Errno::NOPROTOOPT,
    Errno::HOSTDOWN,
    Errno::NONET,
    Errno::HOSTUNREACH,
    Errno::OPNOTSUPP,
    Errno::NETUNREACH,
];

/// What accepting once came to.
pub(super) enum Accepted {
    Connection(OwnedFd, Peer),
    /// Nobody waits.
    Empty,
    /// The one who waited is gone; there may be others.
    Vanished,
    /// No descriptors, no memory, or anything else that lasts: to be tried again after a while.
    Exhausted(io::Error),
}

impl Listener {
    pub(super) fn public(public: PublicSocket, token: Token) -> Self {
        let PublicSocket { address, socket, is_kept, proxy_protocol } = public;
        Self { address: Some(address), is_kept, proxy_protocol, ..Self::new(socket, token) }
    }

    pub(super) fn new(socket: Arc<OwnedFd>, token: Token) -> Self {
        let (address, proxy_protocol) = (None, Arc::default());
        let (ready, closing, is_kept) = (true, false, false);
        Self { socket, token, address, ready, closing, is_kept, proxy_protocol }
    }

    /// The socket for another loop; none if it is the admin's.
    pub(super) fn into_public(self) -> Option<PublicSocket> {
        let Self { socket, is_kept, proxy_protocol, .. } = self;
        Some(PublicSocket { address: self.address?, socket, is_kept, proxy_protocol })
    }

    /// Whether a PROXY header comes first on connections that are accepted now.
    pub(super) fn proxy_protocol(&self) -> bool {
        self.proxy_protocol.load(Ordering::Relaxed)
    }

    pub(super) fn accept(&mut self) -> Accepted {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        match rustix::net::acceptfrom_with(&self.socket, flags) {
            Ok((socket, peer)) => Accepted::Connection(socket, peer_of(peer)),
            Err(Errno::AGAIN) => {
                self.ready = false;
                Accepted::Empty
            }
            Err(errno) if CONNECTION_ERRORS.contains(&errno) => Accepted::Vanished,
            Err(errno) => Accepted::Exhausted(errno.into()),
        }
    }

    /// Whether the kernel says that somebody waits.
    pub(super) fn has_waiting(&self) -> bool {
        let mut look = [PollFd::new(&self.socket, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut look, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// Lets no new connection begin; handshakes under way still end, and the queue stays.
    pub(super) fn gate(&self) -> io::Result<()> {
        if self.is_kept {
            return Ok(());
        }
        SockRef::from(&self.socket).attach_filter(&bare_syn_filter())
    }
}

/// A process at the other end of a unix socket has no address that says anything.
fn peer_of(address: Option<SocketAddrAny>) -> Peer {
    address.and_then(|address| SocketAddr::try_from(address).ok()).map_or(Peer::Unix, Peer::Tcp)
}

/// Classic BPF on the TCP header: drops segments with SYN and without ACK, takes all others.
fn bare_syn_filter() -> [SockFilter; 5] {
    const LOAD_BYTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
    const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
    const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const FLAGS: u32 = 13;
    const SYN_ACK: u32 = 0x12;
    const SYN: u32 = 0x02;
    [
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS),
        SockFilter::new(AND, 0, 0, SYN_ACK),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
}

/// How many connections the process may have, shared by its loops; touched once per connection.
///
/// Whoever is accepted may need a second descriptor for a line to an upstream: as soon as there was
/// such a line, clients take half of the descriptors at most.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionBudget(Arc<Budget>);

#[derive(Debug)]
struct Budget {
    open: AtomicUsize,
    max: AtomicUsize,
    /// For clients and their lines to upstreams.
    descriptors: usize,
    has_lines: AtomicBool,
}

impl ConnectionBudget {
    /// A budget of this many connections of clients, with this many descriptors for them and for
    /// their lines to upstreams.
    pub(crate) fn new(max: usize, descriptors: usize) -> Self {
        let (open, max) = (AtomicUsize::new(0), AtomicUsize::new(max));
        Self(Arc::new(Budget { open, max, descriptors, has_lines: AtomicBool::new(false) }))
    }

    /// Allows this many from here on. Those that are open stay.
    pub(crate) fn set_max(&self, max: usize) {
        self.0.max.store(max, Ordering::Relaxed);
    }

    /// A place for one more client, if there is one.
    pub(super) fn take(&self) -> Option<ConnectionPermit> {
        let has_lines = self.0.has_lines.load(Ordering::Relaxed);
        let descriptors =
            if has_lines { self.0.descriptors.div_ceil(2) } else { self.0.descriptors };
        let max = self.0.max.load(Ordering::Relaxed).min(descriptors);
        let below_max = |open| (open < max).then_some(open + 1);
        self.0
            .open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, below_max)
            .ok()
            .map(|_| ConnectionPermit(Arc::clone(&self.0)))
    }

    /// A line to an upstream is opened.
    pub(super) fn note_line(&self) {
        self.0.has_lines.store(true, Ordering::Relaxed);
    }
}

/// One open connection; the place is free again when this is dropped.
#[derive(Debug)]
pub(super) struct ConnectionPermit(Arc<Budget>);

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_that_shrinks_gives_nothing_until_enough_came_back() {
        let budget = ConnectionBudget::new(2, 10);
        let both = (budget.take(), budget.take());
        assert!(both.0.is_some() && both.1.is_some() && budget.take().is_none());
        budget.set_max(1);
        drop(both.0);
        assert!(budget.take().is_none());
        drop(both.1);
        let one = budget.take();
        assert!(one.is_some() && budget.take().is_none());
        budget.set_max(2);
        assert!(budget.take().is_some());
    }

    #[test]
    fn lines_to_upstreams_leave_half_the_descriptors() {
        let budget = ConnectionBudget::new(100, 4);
        let three = [budget.take(), budget.take(), budget.take()];
        budget.note_line();
        assert!(three.iter().all(Option::is_some) && budget.take().is_none());
        drop(three);
        let two = [budget.take(), budget.take()];
        assert!(two.iter().all(Option::is_some) && budget.take().is_none());
    }
}
