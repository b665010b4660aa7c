//! The gate of a public address: no new connection begins, and nothing that has begun is lost.
//!
//! ```text
//! open ──sink, program──► gated ──all listeners closed──► the sinks close
//!   └──no sink──► deaf          each listener has the limit itself
//!
//! kept by the service manager: gated ──closed here──► deaf ──adopted by the next process──► open
//! ```
//! The listening sockets of an address are a group of SO_REUSEPORT: the kernel chooses one of them
//! for each new SYN. The gate adds a **sink** to the group and attaches a program that chooses it
//! always. The sink drops every SYN, because its IP_MINTTL is 255 (ip(7)): systems send with a TTL
//! of 64 or 128. The client's kernel sends the SYN again after a second and meets the successor, or
//! a refusal. A handshake under way belongs to the listener where it began, and ends there; the
//! queues stay.
//!
//! - The first loop that gates an address gates it for all loops.
//! - Sinks close after all listeners of the address: the program names a place in the group, and
//!   the kernel fills the place of a closed socket with the last one.
//! - A peer that sends with a TTL of 255 passes the gate. Loops serve a sink as any listener, and
//!   look at its queue once more right before they close it.
//! - Where no sink can be made (no descriptor is left, or the port is another user's), the listener
//!   gets the limit itself. A connection that ends its handshake there inherits the limit. It is
//!   deaf until [`lift`] takes the limit off, right after accept(2); its peer's kernel sends again
//!   what was dropped until then ([`RESEND_MAX`]).
//!
//! - Where the service manager keeps the listening sockets over a restart they stay in the group,
//!   and the sink goes with the process. So a listener gets the limit itself before it is closed
//!   ([`deafen`]), and the process that adopts it takes limit and program off ([`reopen`]).
//!
//! All of this works without a privilege. A filter on the listening sockets (SO_ATTACH_FILTER)
//! needs CAP_NET_ADMIN from Linux 6.18 on.

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

/// More than the TTL of any packet that came from a usual system.
const CLOSED: usize = 255;

/// Peers that pass the gate are rare.
const SINK_BACKLOG: i32 = 128;

/// No limit.
const OPEN: usize = 0;

/// When the peer's kernel has sent again what a deaf connection dropped: after three round trips,
/// or a second where it has measured none (RFC 6298 §2).
pub(super) const RESEND_MAX: Duration = Duration::from_secs(2);

sockopt_impl!(IpMinTtl, Both, libc::IPPROTO_IP, libc::IP_MINTTL, usize);
sockopt_impl!(Ipv6MinHopCount, Both, libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT, usize);
sockopt_impl!(DetachReusePortBpf, SetOnly, libc::SOL_SOCKET, libc::SO_DETACH_REUSEPORT_BPF, bool);

/// Gates an address for all of its listeners, by one more socket of it that does not listen yet.
/// Returns the sink, which is to be served.
///
/// # Errors
/// Those of listen(2) and setsockopt(2). The address is as open as before then.
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

/// Gates one listener that has no sink.
///
/// # Errors
/// setsockopt(2)'s.
pub(super) fn deafen(listener: impl AsFd, is_ipv6: bool) -> io::Result<()> {
    limit(listener, is_ipv6, CLOSED)
}

/// Opens a listener that a process before this one may have gated.
///
/// # Errors
/// setsockopt(2)'s.
pub(super) fn reopen(listener: impl AsFd, is_ipv6: bool) -> io::Result<()> {
    limit(&listener, is_ipv6, OPEN)?;
    spread(&listener);
    Ok(())
}

/// Has the kernel spread new connections over the group of this listener again, the sink among
/// them: an address that is given back before it was closed is served.
pub(super) fn spread(listener: impl AsFd) {
    // Mostly there is no program (ENOENT).
    let _ = DetachReusePortBpf.set(&listener, &true);
}

/// Whether connections that this socket accepts may be deaf.
pub(super) fn is_deaf(listener: impl AsFd) -> bool {
    // A kernel that does not know the option has not set it.
    IpMinTtl.get(&listener).is_ok_and(|least| least == CLOSED)
}

/// Lets a connection that was accepted at a deaf listener hear its peer.
///
/// # Errors
/// setsockopt(2)'s.
pub(super) fn lift(connection: impl AsFd, is_ipv6: bool) -> io::Result<()> {
    limit(connection, is_ipv6, OPEN)
}

/// A socket of IPv6 that is not IPv6 alone has peers of IPv4 too, so it has both limits.
fn limit(socket: impl AsFd, is_ipv6: bool, least: usize) -> io::Result<()> {
    IpMinTtl.set(&socket, &least)?;
    if is_ipv6 {
        Ipv6MinHopCount.set(&socket, &least)?;
    }
    Ok(())
}

/// `BPF_RET | BPF_K`
const RETURN: libc::sock_filter = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 };

/// A program that chooses the socket at this place of the group: sinks stand behind the listeners,
/// for places are given in the order of listen(2).
fn choose(place: u32, program: &mut [libc::sock_filter; 1]) -> libc::sock_fprog {
    program[0].k = place;
    libc::sock_fprog { len: 1, filter: program.as_mut_ptr() }
}
