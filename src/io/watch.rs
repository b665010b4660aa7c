//! Watching sockets with epoll(7).

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use mio::{Interest, Registry, Token, unix::SourceFd};

/// The events that a connection is watched for.
pub(crate) const BOTH_WAYS: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// Makes the loop receive a socket's events.
///
/// # Errors
/// epoll_ctl(2)'s.
pub(crate) fn watch(
    registry: &Registry,
    socket: &OwnedFd,
    token: Token,
    interest: Interest,
) -> io::Result<()> {
    registry.register(&mut SourceFd(&socket.as_raw_fd()), token, interest)
}
