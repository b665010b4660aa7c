//! Connections without a request, on their way from a loop of the old process to one of the new.
//!
//! ```text
//!  old loop                                               new loop
//!  ours ──at rest──► queued ──its turn──► offered
//!   ▲                  │ has a request     │ epoll forgets it; offer: facts and descriptors ───►
//!   └──────────────────┘                   │                 room for it?   a place, a descriptor,
//!  kept ◄──not taken, or the line is gone──┤ ◄── answer: one byte for each     its client's share
//!  gone ◄──taken───────────────────────────┘                 taken: watched, and ours there
//! ```
//! A *line* is one socket of a pair (SOCK_SEQPACKET), apart from the channel of the two processes,
//! so that no report waits behind an offer. Each line belongs to one loop at either end. It carries
//! one offer at a time: the next one goes out when the answer to the last is there. So its buffer
//! never fills, and no loop waits for the other process.
//!
//! A connection is at rest when no request has begun, no byte of one is in user space, and the
//! kernel has every byte of its answers. One that is answered while the old process drains is
//! offered likewise, and its answer does not say `Connection: close`. What arrives meanwhile waits
//! in the kernel, and wakes the new loop when that begins to watch. A connection that is not taken,
//! or for which no line is left, is the old process's until its client speaks (the answer says
//! `Connection: close`), its own time-out comes, or the drain's deadline is near. Admin connections
//! are not offered: they ask about this process.
//!
//! - One loop of one process watches a descriptor. The old loop's copy stays open until the answer,
//!   unwatched, so that no failure in between loses the connection; the new loop answers before it
//!   watches, and watches nothing that it could not answer.
//! - A connection counts in the old process until the answer is there, in the new one from then on.
//! - The new loop takes a place, and a share of the client's, for each connection, as accepting
//!   does. A deadline moves with its connection, and never gets later.
//! - A loop that stops without a successor takes nothing. One that has a successor takes, and
//!   offers again.

mod give;
mod take;
#[cfg(test)]
mod tests;

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

pub(super) use give::Giving;
pub(super) use take::Taking;

/// Connections of one offer: less work than a turn's accepts.
const OFFERED_MAX: usize = 64;

/// No offer is longer; an entry has about 120 bytes.
const OFFER_BYTES_MAX: usize = 64 * 1024;

/// More bytes than a connection can have received: a sum with it never overflows.
const RECEIVED_MAX: u64 = 1 << 62;

/// For a connection that is taken.
const TAKEN: u8 = 1;

/// For one that stays.
const NOT_TAKEN: u8 = 0;

/// What the new process has to know of a connection, beside its descriptor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Handed {
    /// The other end, or the client that a PROXY header named; none for a unix socket.
    pub(super) peer: Option<SocketAddr>,
    /// A PROXY header comes first, and no byte of it was read.
    #[serde(default)]
    pub(super) awaits_proxy_header: bool,
    /// Bytes that the client sent before, without such a header.
    pub(super) received: u64,
    /// Until its time-out.
    pub(super) left_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct Offer {
    connections: Vec<Handed>,
}

/// Sends an offer. Nothing of it is sent when that fails.
fn send_offer(
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
/// are left are for whoever is new.
fn receive_offer(line: &OwnedFd) -> io::Result<(Vec<Handed>, Vec<OwnedFd>)> {
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
