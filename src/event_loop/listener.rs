//! Listening sockets: made for every loop and address, gated and closed when a stop wants it.
//!
//! Each loop has a socket of its own per address (SO_REUSEPORT): mio cannot ask for exclusive
//! wake-ups, and one shared socket would wake every loop for each connection. Closing one of
//! several such sockets resets what is queued on it, hence the gate: a filter on the socket drops
//! bare SYNs, the queue is accepted empty, and then there is nothing left to reset. The client's
//! kernel repeats a dropped SYN and meets the successor.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use mio::net::{TcpListener, TcpStream};
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};

/// Connections that the kernel may hold until a loop accepts them; it takes at most
/// `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// One loop's sockets for all addresses.
pub(crate) type ListenerSet = Vec<std::net::TcpListener>;

/// Binds every address once per loop. Port 0 is chosen by the kernel for the first loop and shared
/// by the others.
///
/// # Errors
/// The address that cannot be bound, and why.
pub(crate) fn bind(addresses: &[SocketAddr], loops: usize) -> Result<Vec<ListenerSet>, BindError> {
    let mut sets: Vec<ListenerSet> = (0..loops).map(|_| Vec::new()).collect();
    for &address in addresses {
        let error = |source| BindError { address, source };
        // Somebody else's socket with SO_REUSEPORT would take half of our connections.
        drop(listen(address, false).map_err(error)?);
        let mut bound = address;
        for set in &mut sets {
            let listener = listen(bound, true).map_err(error)?;
            bound = listener.local_addr().map_err(error)?;
            set.push(listener);
        }
    }
    Ok(sets)
}

/// An address that cannot be listened on.
#[derive(Debug)]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

impl std::fmt::Display for BindError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot listen on {}: {}", self.address, self.source)
    }
}

impl std::error::Error for BindError {}

fn listen(address: SocketAddr, reuse_port: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    if address.is_ipv6() {
        // 0.0.0.0 and [::] are two addresses, and both can be listed.
        socket.set_only_v6(true)?;
    }
    // Accepted sockets inherit it: one system call less for each.
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    if reuse_port {
        socket.listen(BACKLOG)?;
    }
    Ok(socket.into())
}

/// A listening socket of one loop.
pub(super) struct Listener {
    pub(super) socket: TcpListener,
    /// An edge said that connections wait, and accepting has not found the end of them since.
    pub(super) ready: bool,
}

/// What accepting once came to.
pub(super) enum Accepted {
    Connection(TcpStream, SocketAddr),
    /// Nobody waits.
    Empty,
    /// The one who waited is gone; there may be others.
    Vanished,
    /// No descriptors or memory: to be tried again when some are free.
    Exhausted(io::Error),
}

impl Listener {
    pub(super) fn new(socket: std::net::TcpListener) -> Self {
        Self { socket: TcpListener::from_std(socket), ready: true }
    }

    pub(super) fn accept(&mut self) -> Accepted {
        let error = match self.socket.accept() {
            Ok((stream, peer)) => return Accepted::Connection(stream, peer),
            Err(error) => error,
        };
        // accept(2): errors of the new socket are returned here too, and concern only it.
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::AGAIN) => {
                self.ready = false;
                Accepted::Empty
            }
            Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                Accepted::Exhausted(error)
            }
            _ => Accepted::Vanished,
        }
    }

    /// Lets no new connection begin; handshakes under way still end, and the queue stays.
    pub(super) fn gate(&self) -> io::Result<()> {
        SockRef::from(&self.socket).attach_filter(&bare_syn_filter())
    }
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
#[derive(Clone, Debug)]
pub(crate) struct ConnectionBudget(Arc<Budget>);

#[derive(Debug)]
struct Budget {
    open: AtomicUsize,
    max: usize,
}

impl ConnectionBudget {
    /// A budget of this many connections.
    pub(crate) fn new(max: usize) -> Self {
        Self(Arc::new(Budget { open: AtomicUsize::new(0), max }))
    }

    /// A place for one more, if there is one.
    pub(super) fn take(&self) -> Option<ConnectionPermit> {
        let below_max = |open| (open < self.0.max).then_some(open + 1);
        self.0
            .open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, below_max)
            .ok()
            .map(|_| ConnectionPermit(Arc::clone(&self.0)))
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
