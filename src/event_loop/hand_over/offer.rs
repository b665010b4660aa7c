//! An offer of connections, and how it goes from process to process.

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

/// Connections of one offer: less work than a turn's accepts.
pub(super) const OFFERED_MAX: usize = 64;

/// No offer is longer; an entry has about 120 bytes.
pub(super) const OFFER_BYTES_MAX: usize = 64 * 1024;

/// More bytes than a connection can have received: a sum with it never overflows.
pub(super) const RECEIVED_MAX: u64 = 1 << 62;

/// For a connection that is taken.
pub(super) const TAKEN: u8 = 1;

/// For a connection that stays.
pub(super) const NOT_TAKEN: u8 = 0;

/// What the new process has to know of a connection, beside its descriptor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in super::super) struct Handed {
    /// The other end, or the client that a PROXY header named; none for a unix socket.
    pub(in super::super) peer: Option<SocketAddr>,
    /// A PROXY header comes first, and no byte of it was read.
    #[serde(default)]
    pub(in super::super) awaits_proxy_header: bool,
    /// Bytes that the client sent before, without such a header.
    pub(in super::super) received: u64,
    /// Until its time-out.
    pub(in super::super) left_ms: u64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Offer {
    pub(super) connections: Vec<Handed>,
}

/// Sends an offer. Nothing of it is sent when that fails.
pub(super) fn send_offer(
    line: &OwnedFd,
    connections: Vec<Handed>,
    sockets: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let text = serde_json::to_vec(&Offer { connections })?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(OFFERED_MAX))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    assert!(rights.push(SendAncillaryMessage::ScmRights(sockets)), "more than are offered at once");
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(line.as_fd(), &[IoSlice::new(&text)], &mut rights, flags)
    })?;
    Ok(())
}

/// Receives an offer; `WouldBlock` if there is none, `UnexpectedEof` when the other end is gone. It
/// comes without descriptors if this process has not enough numbers for all of them: those that
/// are left are for new connections.
pub(super) fn receive_offer(line: &OwnedFd) -> io::Result<(Vec<Handed>, Vec<OwnedFd>)> {
    let mut text = vec![0; OFFER_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(OFFERED_MAX))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(line.as_fd(), &mut [IoSliceMut::new(&mut text)], &mut rights, flags)
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
    let is_wrong = |facts: &Handed| facts.received > RECEIVED_MAX;
    if connections.is_empty()
        || connections.len() > OFFERED_MAX
        || sockets.len() > connections.len()
        || connections.iter().any(is_wrong)
    {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((connections, sockets))
}
