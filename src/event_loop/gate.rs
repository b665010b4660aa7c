//! The gate of a public address: it lets no new connection begin, and loses none in progress.
//!
//! ```text
//! open ──sink, program──► gated ──all listeners closed──► the sinks close
//!   └──no sink──► deaf          each listener has the limit itself
//!
//! kept by the service manager: gated ──closed here──► deaf ──adopted by the next process──► open
//! ```
//! The listening sockets of an address form an SO_REUSEPORT group: the kernel chooses one of them
//! for each new SYN. The gate adds a **sink** to the group, and attaches a BPF program that always
//! chooses the sink. The sink drops every SYN, because its IP_MINTTL is 255 (ip(7)), and systems
//! send with a TTL of 64 or 128. The client's kernel retransmits the SYN after a second and reaches
//! the successor, or is refused. A handshake in progress belongs to the listener where it began,
//! and ends there. Accept queues stay.
//!
//! - The first loop that gates an address gates it for all loops.
//! - Sinks close after all listeners of the address: the program names an index in the group, and
//!   the kernel moves the last socket to the index of a closed one.
//! - A peer that sends with a TTL of 255 passes the gate. Loops accept from a sink as from any
//!   listener, and check its accept queue once more right before they close it.
//! - If no sink can be made (no descriptor is left, or the port belongs to another user), the
//!   listener gets the limit itself. A connection that ends its handshake there inherits the limit:
//!   it is **deaf** until [`lift`] removes the limit, right after accept(2). The peer's kernel
//!   retransmits what was dropped until then ([`RESEND_MAX`]).
//! - If the service manager keeps the listening sockets over a restart, they stay in the group, and
//!   the sink goes with the process. So each listener gets the limit itself before it closes
//!   ([`deafen`]), and the process that adopts it removes limit and program ([`reopen`]).
//!
//! This needs no privilege. A filter on the listening sockets (SO_ATTACH_FILTER) needs
//! CAP_NET_ADMIN from Linux 6.18 on.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, PoisonError},
    time::Duration,
};

use nix::{
    getsockopt_impl, libc, setsockopt_impl, sockopt_impl,
    sys::socket::{GetSockOpt, SetSockOpt, sockopt::AttachReusePortCbpf},
};

use crate::message::ListenGroup;

/// More than the TTL of any packet from a common system.
const CLOSED: usize = 255;

/// Few peers pass the gate.
const SINK_BACKLOG: i32 = 128;

/// No limit.
const OPEN: usize = 0;

/// How long the peer's kernel takes to retransmit what a deaf connection dropped: three round
/// trips, or a second before it has measured one (RFC 6298 §2).
pub(super) const RESEND_MAX: Duration = Duration::from_secs(2);

sockopt_impl!(IpMinTtl, Both, libc::IPPROTO_IP, libc::IP_MINTTL, usize);
sockopt_impl!(Ipv6MinHopCount, Both, libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT, usize);
sockopt_impl!(DetachReusePortBpf, SetOnly, libc::SOL_SOCKET, libc::SO_DETACH_REUSEPORT_BPF, bool);

/// Gates an address for all of its listeners, with one more socket that is bound but not listening.
/// Returns the sink, which has to be served.
///
/// # Errors
/// listen(2)'s and setsockopt(2)'s. The address is then as open as before.
pub(super) fn close(sink: OwnedFd, is_ipv6: bool, group: &ListenGroup) -> io::Result<Arc<OwnedFd>> {
    limit(&sink, is_ipv6, CLOSED)?;
    rustix::net::listen(&sink, SINK_BACKLOG)?;
    AttachReusePortCbpf.set(&sink, &choose(group.size, &mut [RETURN]))?;
    let sink = Arc::new(sink);
    // A panic cannot have left the list half written.
    let mut sinks = group.sinks.lock().unwrap_or_else(PoisonError::into_inner);
    sinks.push(Arc::clone(&sink));
    Ok(sink)
}

/// Gates a single listener, without a sink.
///
/// # Errors
/// setsockopt(2)'s.
pub(super) fn deafen(listener: impl AsFd, is_ipv6: bool) -> io::Result<()> {
    limit(listener, is_ipv6, CLOSED)
}

/// Reopens a listener that an earlier process may have gated.
///
/// # Errors
/// setsockopt(2)'s.
pub(super) fn reopen(listener: impl AsFd, is_ipv6: bool) -> io::Result<()> {
    limit(&listener, is_ipv6, OPEN)?;
    spread(&listener);
    Ok(())
}

/// Spreads new connections over the listener's whole group again, the sink included: an address
/// that is given back before it was closed is served.
pub(super) fn spread(listener: impl AsFd) {
    // Usually there is no program to detach (ENOENT).
    let _ = DetachReusePortBpf.set(&listener, &true);
}

/// Whether connections accepted from this socket may be deaf.
pub(super) fn is_deaf(listener: impl AsFd) -> bool {
    // A kernel that doesn't know the option hasn't set it.
    IpMinTtl.get(&listener).is_ok_and(|least| least == CLOSED)
}

/// Removes the limit from a connection that a deaf listener accepted.
///
/// # Errors
/// setsockopt(2)'s.
pub(super) fn lift(connection: impl AsFd, is_ipv6: bool) -> io::Result<()> {
    limit(connection, is_ipv6, OPEN)
}

/// An IPv6 socket that isn't IPv6-only has IPv4 peers too, so it gets both limits.
fn limit(socket: impl AsFd, is_ipv6: bool, least: usize) -> io::Result<()> {
    IpMinTtl.set(&socket, &least)?;
    if is_ipv6 {
        Ipv6MinHopCount.set(&socket, &least)?;
    }
    Ok(())
}

/// `BPF_RET | BPF_K`
const RETURN: libc::sock_filter = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 };

/// A program that chooses the socket at this index of the group. The sink is behind the listeners,
/// because indexes follow the order of listen(2).
fn choose(place: u32, program: &mut [libc::sock_filter; 1]) -> libc::sock_fprog {
    program[0].k = place;
    libc::sock_fprog { len: 1, filter: program.as_mut_ptr() }
}
