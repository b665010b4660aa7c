//! A handshake that takes as long as the test wants, as over a large distance.

use std::{io::ErrorKind, net::SocketAddr, time::Duration};

use nix::{getsockopt_impl, libc, setsockopt_impl, sockopt_impl, sys::socket::SetSockOpt};
use rustix::event::{PollFd, PollFlags, Timespec};
use socket2::{Domain, Socket, Type};

use super::{Client, PATIENCE};

sockopt_impl!(IpMinTtl, Both, libc::IPPROTO_IP, libc::IP_MINTTL, usize);
sockopt_impl!(Ipv6MinHopCount, Both, libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT, usize);

/// A handshake under way: the server has the SYN, and the client's kernel drops its answers.
pub struct Handshake {
    socket: Socket,
    is_ipv6: bool,
}

impl Handshake {
    /// Sends the SYN.
    pub fn begin(address: SocketAddr) -> Self {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("socket");
        let own = Self { socket, is_ipv6: address.is_ipv6() };
        own.drop_below(255);
        own.socket.set_nonblocking(true).expect("O_NONBLOCK");
        let begun = own.socket.connect(&address.into()).expect_err("no answer gets through");
        assert_eq!(begun.raw_os_error(), Some(libc::EINPROGRESS), "{begun}");
        own
    }

    /// Lets the server's next answer through, which comes within a second, and connects.
    pub fn end(self) -> Client {
        self.drop_below(0);
        assert!(self.is_over(PATIENCE), "the handshake does not end");
        let error = self.socket.take_error().expect("SO_ERROR");
        assert!(error.is_none(), "{error:?}");
        self.socket.set_nonblocking(false).expect("O_NONBLOCK");
        Client::over(self.socket.into())
    }

    /// Whether a SYN gets no answer at all within this time.
    pub fn is_swallowed(address: SocketAddr, time: Duration) -> bool {
        Client::try_connect(address, time).is_err_and(|error| error.kind() == ErrorKind::TimedOut)
    }

    /// Connects as a neighbour: its packets have the TTL of packets that no router forwarded.
    pub fn of_neighbour(address: SocketAddr) -> Client {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("socket");
        socket.set_ttl_v4(255).expect("IP_TTL");
        socket.connect_timeout(&address.into(), PATIENCE).expect("connect");
        Client::over(socket.into())
    }

    fn is_over(&self, time: Duration) -> bool {
        let mut look = [PollFd::new(&self.socket, PollFlags::OUT)];
        let time = Timespec::try_from(time).expect("a short time");
        rustix::event::poll(&mut look, Some(&time)).is_ok_and(|ready| ready > 0)
    }

    fn drop_below(&self, ttl: usize) {
        IpMinTtl.set(&self.socket, &ttl).expect("IP_MINTTL");
        if self.is_ipv6 {
            Ipv6MinHopCount.set(&self.socket, &ttl).expect("IPV6_MINHOPCOUNT");
        }
    }
}
