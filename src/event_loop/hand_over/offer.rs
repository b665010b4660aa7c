//! An offer of connections, and its encoding between the processes.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

/// Connections in one offer: less work than a turn's accepts.
pub(super) const OFFERED_MAX: usize = 64;

/// The longest offer; an entry takes about 120 bytes.
pub(super) const OFFER_BYTES_MAX: usize = 64 * 1024;

/// More bytes than any connection can have received: adding to it never overflows.
pub(super) const RECEIVED_MAX: u64 = 1 << 62;

/// Answers that a connection was taken.
pub(super) const TAKEN: u8 = 1;

/// Answers that a connection wasn't taken.
pub(super) const NOT_TAKEN: u8 = 0;

/// What the new process has to know about a connection, beside its descriptor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in super::super) struct ConnectionFacts {
    /// The peer, or the client that a PROXY header named; `None` for a unix socket.
    pub(in super::super) peer: Option<SocketAddr>,
    /// A PROXY header comes first, and none of it was read.
    #[serde(default)]
    pub(in super::super) awaits_proxy_header: bool,
    /// Bytes that the client has sent so far, the PROXY header excluded.
    pub(in super::super) received: u64,
    /// Time left until its deadline.
    pub(in super::super) left_ms: u64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Offer {
    pub(super) connections: Vec<ConnectionFacts>,
}

/// Sends an offer, all of it or nothing.
pub(super) fn send_offer(
    socket: &OwnedFd,
    connections: Vec<ConnectionFacts>,
    sockets: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let text = serde_json::to_vec(&Offer { connections })?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(OFFERED_MAX))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    assert!(
        rights.push(SendAncillaryMessage::ScmRights(sockets)),
        "more than OFFERED_MAX connections"
    );
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(socket.as_fd(), &[IoSlice::new(&text)], &mut rights, flags)
    })?;
    Ok(())
}

/// Receives an offer: `WouldBlock` if there is none, `UnexpectedEof` if the other end is closed. An
/// offer comes without descriptors if this process hasn't enough of them left for all: the
/// remaining ones are for new connections.
pub(super) fn receive_offer(socket: &OwnedFd) -> io::Result<(Vec<ConnectionFacts>, Vec<OwnedFd>)> {
    let mut text = vec![0; OFFER_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(OFFERED_MAX))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket.as_fd(), &mut [IoSliceMut::new(&mut text)], &mut rights, flags)
    })?;
    let mut sockets = Vec::new();
    for message in rights.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            sockets.extend(descriptors);
        }
    }
    if got.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if got.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    if got.flags.contains(ReturnFlags::CTRUNC) {
        sockets.clear();
    }
    let Offer { connections } = serde_json::from_slice(&text[..got.bytes])?;
    let is_wrong = |facts: &ConnectionFacts| facts.received > RECEIVED_MAX;
    if connections.is_empty()
        || connections.len() > OFFERED_MAX
        || sockets.len() > connections.len()
        || connections.iter().any(is_wrong)
    {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((connections, sockets))
}
