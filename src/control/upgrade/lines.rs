//! The sockets by which the loops of two processes hand over connections (`event_loop::hand_over`).
//! The old process opens them when the new process serves.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::{channel::Channel, messages::FromOld};
use crate::{
    logging::event,
    message::{LoopCommand, LoopHandle},
};

/// Lines enough that each loop at either end has one; most machines have fewer loops than that.
const LINES_MAX: usize = 256;

/// Opens lines for connections to a process with so many loops that take them, and hands it the
/// other ends. Without lines connections stay here until they end.
pub(super) fn open(channel: &mut Channel, ours: usize, theirs: usize) -> Vec<OwnedFd> {
    if theirs == 0 {
        return Vec::new();
    }
    let count = ours.max(theirs).min(LINES_MAX);
    let opened = (0..count).map(|_| line()).collect::<io::Result<Vec<_>>>();
    let handed = opened.and_then(|lines| {
        let (ours, theirs): (Vec<_>, Vec<_>) = lines.into_iter().unzip();
        channel.send(&FromOld::Lines(theirs.len()))?;
        channel.send_descriptors(&theirs.iter().map(AsFd::as_fd).collect::<Vec<_>>())?;
        Ok(ours)
    });
    handed.unwrap_or_else(|error| {
        event!(Warn, "connections_not_offered", error:% = error);
        Vec::new()
    })
}

/// Has each loop take connections on its share of the lines.
pub(super) fn take(channel: &mut Channel, count: usize, loops: &[LoopHandle]) -> io::Result<()> {
    for (index, line) in channel.receive_descriptors(count)?.into_iter().enumerate() {
        loops[index % loops.len()].send(LoopCommand::Take(line))?;
    }
    Ok(())
}

/// Both ends of a line for connections: it keeps messages apart, and never waits.
fn line() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}
