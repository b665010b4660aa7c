//! A listening socket as a loop serves it: accepted from, gated, closed when its queue is empty.
//!
//! Closing one of several SO_REUSEPORT sockets resets the connections queued on it. Hence the
//! [`gate`]: no new connection begins, the queue is accepted empty, and the close has nothing to
//! reset.

use std::{
    collections::{HashMap, hash_map::Entry},
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

use super::{bind, gate};
use crate::{
    app::{Client, Peer, PerClient},
    config::ListenOptions,
    logging::event,
    message::{ListenGroup, LiveListenOptions, PublicSocket},
};

/// A listening socket of one loop.
pub(super) struct Listener {
    pub(super) socket: Arc<OwnedFd>,
    pub(super) token: Token,
    /// The address of a public listener; the admin's has none.
    pub(super) address: Option<SocketAddr>,
    /// An edge reported a backlog, and accepting hasn't emptied it since.
    pub(super) ready: bool,
    /// It is gated on every loop, and closes when its queue is empty.
    pub(super) closing: bool,
    is_gated: bool,
    /// Connections that it accepts may be deaf: [`gate`].
    is_deaf: bool,
    /// [`PublicSocket::is_kept`]
    is_kept: bool,
    /// [`PublicSocket::group`] of a public listener.
    group: Option<Arc<ListenGroup>>,
    /// [`PublicSocket::options`] of a public listener.
    options: Arc<LiveListenOptions>,
}

/// Errors of the accepted connection, not of accepting (accept(2)).
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

/// The result of one accept(2).
pub(super) enum Accepted {
    Connection(OwnedFd, Peer),
    /// The queue is empty.
    Empty,
    /// The connection was closed before it was accepted; there may be others.
    Vanished,
    /// No descriptors, no memory, or another lasting error: to be tried again after a pause.
    Exhausted(io::Error),
}

impl Listener {
    pub(super) fn public(public: PublicSocket, token: Token) -> Self {
        let PublicSocket { address, socket, is_kept, group, options } = public;
        let address = Some(address);
        // It may be a sink, or come from a dead loop.
        let is_gated = gate::is_deaf(&socket);
        let is_deaf = is_gated || group.was_gated;
        let (group, new) = (Some(group), Self::new(socket, token));
        Self { address, is_gated, is_deaf, is_kept, group, options, ..new }
    }

    pub(super) fn new(socket: Arc<OwnedFd>, token: Token) -> Self {
        Self {
            socket,
            token,
            address: None,
            ready: true,
            closing: false,
            is_gated: false,
            is_deaf: false,
            is_kept: false,
            group: None,
            options: Arc::default(),
        }
    }

    /// The socket for another loop; `None` for the admin's.
    pub(super) fn into_public(self) -> Option<PublicSocket> {
        let Self { socket, is_kept, options, .. } = self;
        let (address, group) = (self.address?, self.group?);
        Some(PublicSocket { address, socket, is_kept, group, options })
    }

    /// How connections accepted from now on begin.
    pub(super) fn options(&self) -> ListenOptions {
        self.options.load()
    }

    pub(super) fn accept(&mut self) -> Accepted {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        match rustix::net::acceptfrom_with(&self.socket, flags) {
            Ok((socket, peer)) => {
                if self.is_deaf
                    && let Err(error) = gate::lift(&socket, self.is_ipv6())
                {
                    event!(Warn, "connection_is_deaf", error:% = error);
                }
                Accepted::Connection(socket, peer_of(peer))
            }
            Err(Errno::AGAIN) => {
                self.ready = false;
                // The backlog from before the adoption has been accepted.
                self.is_deaf &= self.is_gated;
                Accepted::Empty
            }
            Err(errno) if CONNECTION_ERRORS.contains(&errno) => Accepted::Vanished,
            Err(errno) => Accepted::Exhausted(errno.into()),
        }
    }

    /// Whether the kernel reports a backlog.
    pub(super) fn has_backlog(&self) -> bool {
        let mut poll_fds = [PollFd::new(&self.socket, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut poll_fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// Lets no new connection begin. Handshakes in progress still end, and the queue stays. Returns
    /// the gate's sink, which has to be served.
    ///
    /// # Errors
    /// When this kernel can't gate.
    pub(super) fn gate(&mut self) -> io::Result<Option<PublicSocket>> {
        let (Some(address), Some(group)) = (self.address, &self.group) else { return Ok(None) };
        if self.is_kept || self.is_gated {
            return Ok(None);
        }
        self.is_gated = true;
        let sink = bind::bound_socket(address);
        let sink = sink.and_then(|sink| gate::close(sink, address.is_ipv6(), group));
        let Ok(socket) = sink else {
            gate::deafen(&self.socket, address.is_ipv6())?;
            self.is_deaf = true;
            return Ok(None);
        };
        let (group, options) = (Arc::clone(group), Arc::clone(&self.options));
        Ok(Some(PublicSocket { address, socket, is_kept: false, group, options }))
    }

    /// Keeps the address gated where the service manager keeps the socket open behind this process.
    pub(super) fn keep_gated(&self) {
        if !self.is_kept
            && let Err(error) = gate::deafen(&self.socket, self.is_ipv6())
        {
            event!(Warn, "gate_failed", error:% = error);
        }
    }

    /// Whether the gate may have dropped what a peer sent right after its handshake.
    pub(super) fn is_deaf(&self) -> bool {
        self.is_deaf
    }

    fn is_ipv6(&self) -> bool {
        self.address.is_some_and(|address| address.is_ipv6())
    }
}

/// A unix peer's address says nothing.
fn peer_of(address: Option<SocketAddrAny>) -> Peer {
    address.and_then(|address| SocketAddr::try_from(address).ok()).map_or(Peer::Unix, Peer::Tcp)
}

/// How many connections the process may have, shared by its loops; touched once per connection.
///
/// A client's request may need a second descriptor, for a connection to an upstream. Once the
/// process has opened such a connection, clients take at most half of the descriptors.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionBudget(Arc<Budget>);

#[derive(Debug)]
struct Budget {
    open: AtomicUsize,
    max: AtomicUsize,
    /// For clients and for connections to upstreams.
    descriptors: usize,
    has_upstream_conns: AtomicBool,
    /// Connections that one client may have; 0: any number.
    max_per_ip: AtomicUsize,
    /// Connections by client, for those that were counted: never more clients than connections.
    clients: PerClient<HashMap<Client, usize>>,
}

impl ConnectionBudget {
    /// A budget of this many client connections, with this many descriptors for them and for
    /// connections to upstreams.
    pub(crate) fn new(max: usize, descriptors: usize) -> Self {
        Self(Arc::new(Budget {
            open: AtomicUsize::new(0),
            max: AtomicUsize::new(max),
            descriptors,
            has_upstream_conns: AtomicBool::new(false),
            max_per_ip: AtomicUsize::new(0),
            clients: PerClient::default(),
        }))
    }

    /// Sets the maximum. Connections above it stay.
    pub(crate) fn set_max(&self, max: usize) {
        self.0.max.store(max, Ordering::Relaxed);
    }

    /// Sets the maximum per client. Connections above it stay; connections from before there was a
    /// limit aren't counted.
    pub(crate) fn set_max_per_ip(&self, max: Option<usize>) {
        self.0.max_per_ip.store(max.unwrap_or(0), Ordering::Relaxed);
    }

    /// A place for one more client, if there is one.
    pub(super) fn take(&self) -> Option<ConnectionPermit> {
        let has_upstream_conns = self.0.has_upstream_conns.load(Ordering::Relaxed);
        let descriptors =
            if has_upstream_conns { self.0.descriptors.div_ceil(2) } else { self.0.descriptors };
        let max = self.0.max.load(Ordering::Relaxed).min(descriptors);
        let below_max = |open| (open < max).then_some(open + 1);
        self.0
            .open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, below_max)
            .ok()
            .map(|_| ConnectionPermit { budget: Arc::clone(&self.0), client: None })
    }

    /// A connection to an upstream is being opened.
    pub(super) fn note_upstream_conn(&self) {
        self.0.has_upstream_conns.store(true, Ordering::Relaxed);
    }
}

/// One open connection. Dropping it frees the place.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    budget: Arc<Budget>,
    /// The client for which the connection is counted, if any.
    client: Option<Client>,
}

impl ConnectionPermit {
    /// Counts the connection for its client, once that is known. Returns whether the client may
    /// have it.
    pub(super) fn count_for(&mut self, peer: Peer) -> bool {
        let max = self.budget.max_per_ip.load(Ordering::Relaxed);
        if max == 0 || peer == Peer::Unix {
            return true;
        }
        let client = Client::from(peer);
        let mut clients = self.budget.clients.lock(client);
        let count = clients.entry(client).or_default();
        if *count >= max {
            return false;
        }
        *count += 1;
        self.client = Some(client);
        true
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.budget.open.fetch_sub(1, Ordering::Relaxed);
        let Some(client) = self.client else { return };
        if let Entry::Occupied(mut count) = self.budget.clients.lock(client).entry(client) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        time::Duration,
    };

    use socket2::{Domain, Socket, Type};

    use super::*;

    #[test]
    fn a_listener_without_a_sink_is_gated_and_its_connections_receive_after_accept() {
        // Without SO_REUSEPORT no other socket can share the port.
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, group) = (socket.local_addr().unwrap(), Arc::default());
        socket.set_nonblocking(true).unwrap();
        let (socket, options) = (Arc::new(socket.into()), Arc::default());
        let public = PublicSocket { address, socket, is_kept: false, group, options };
        let mut listener = Listener::public(public, Token(0));
        assert!(listener.gate().unwrap().is_none() && listener.is_deaf());

        let late = TcpStream::connect_timeout(&address, Duration::from_millis(100));
        assert_eq!(late.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(!listener.has_backlog());
        // A peer that passes the gate and then sends with the usual TTL: the same connection as
        // after a handshake that began before the gate closed.
        let mut peer = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        peer.set_ttl_v4(255).unwrap();
        peer.connect(&address.into()).unwrap();
        peer.set_ttl_v4(64).unwrap();
        peer.write_all(b"x").unwrap();
        let Accepted::Connection(socket, _) = listener.accept() else {
            panic!("nothing to accept")
        };
        let mut socket = TcpStream::from(socket);
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(socket.read(&mut [0; 2]).unwrap(), 1);
    }

    #[test]
    fn a_budget_that_shrinks_grants_nothing_until_enough_is_free() {
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
    fn connections_to_upstreams_leave_clients_half_the_descriptors() {
        let budget = ConnectionBudget::new(100, 4);
        let three = [budget.take(), budget.take(), budget.take()];
        budget.note_upstream_conn();
        assert!(three.iter().all(Option::is_some) && budget.take().is_none());
        drop(three);
        let two = [budget.take(), budget.take()];
        assert!(two.iter().all(Option::is_some) && budget.take().is_none());
    }

    #[test]
    fn a_client_gets_connections_up_to_its_limit_and_frees_each() {
        let budget = ConnectionBudget::new(100, 100);
        let peer = |ip: &str| Peer::Tcp((ip.parse::<std::net::IpAddr>().unwrap(), 1).into());
        let count = |peer| {
            let mut permit = budget.take().unwrap();
            permit.count_for(peer).then_some(permit)
        };
        let [one, other] = ["2001:db8::1", "2001:db8:0:1::1"].map(peer);
        let uncounted = [one; 3].map(count);
        budget.set_max_per_ip(Some(2));
        let mut both = [one, peer("2001:db8::ffff")].map(count);
        assert!(uncounted.iter().chain(&both).all(Option::is_some));
        assert!(count(one).is_none() && count(other).is_some());
        drop(uncounted);
        assert!(count(one).is_none(), "they were not counted");
        both[0] = None;
        let third = count(one);
        assert!(third.is_some() && count(one).is_none());
        budget.set_max_per_ip(Some(1));
        drop(third);
        assert!(count(one).is_none(), "one is still open");
        assert!([Peer::Unix; 3].map(count).iter().all(Option::is_some));
        drop(both);
        assert!(budget.0.clients.lock(Client::from(one)).is_empty());
        assert!(count(one).is_some());
    }
}
