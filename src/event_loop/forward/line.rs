//! Reads and writes of the connection to an upstream.

use std::io;

use socket2::SockRef;

use super::{Forwarding, Stage};
use crate::{
    app::{FailureCause, UpstreamFailure},
    event_loop::{LoopContext, connection::receive, output::Flushed, upstreams::Line},
};

/// Looks whether the handshake is over.
pub(super) fn finish_opening(line: &mut Line) -> Result<bool, UpstreamFailure> {
    if !(line.ready.writable || line.ready.failed) {
        return Ok(false);
    }
    match SockRef::from(&line.socket).take_error() {
        Ok(None) if line.ready.writable => {
            line.is_open = true;
            Ok(true)
        }
        Ok(Some(error)) | Err(error) => Err(UpstreamFailure::connect(&error)),
        Ok(None) => Err(UpstreamFailure::new(FailureCause::ConnectFailed, "the connection failed")),
    }
}

/// Sends what waits for the upstream. An upstream that takes no more may have answered already: an
/// error here is told by the read.
pub(super) fn flush(forwarding: &mut Forwarding) {
    if forwarding.output.is_empty() || !forwarding.line.ready.writable {
        return;
    }
    forwarding.moved = true;
    match forwarding.output.flush(&forwarding.line.socket) {
        Ok(flushed) => forwarding.line.ready.writable = flushed != Flushed::Blocked,
        Err(_) => {
            forwarding.line.ready.writable = false;
            forwarding.line.ready.readable = true;
        }
    }
}

/// Reads once from the upstream; 0 at the end of its bytes.
pub(super) fn read(
    forwarding: &mut Forwarding,
    cx: &mut LoopContext,
) -> Result<Option<usize>, UpstreamFailure> {
    let input = forwarding.input.get_or_insert_with(|| cx.buffers.take_input());
    let room = input.room();
    let room_len = room.len();
    if room_len == 0 {
        // A head longer than the limit is refused before this.
        return Err(UpstreamFailure::new(FailureCause::HeadTooLarge, "response head too long"));
    }
    let ready = &mut forwarding.line.ready;
    match receive(&forwarding.line.socket, room) {
        Ok(Some(len)) => {
            input.fill(len);
            forwarding.moved = true;
            ready.readable = len == room_len || (ready.read_closed && len > 0);
            ready.read_closed |= len == 0;
            Ok(Some(len))
        }
        Ok(None) => {
            ready.readable = false;
            Ok(None)
        }
        Err(error) => Err(receive_failure(forwarding.stage, &error)),
    }
}

fn receive_failure(stage: Stage, error: &io::Error) -> UpstreamFailure {
    match stage {
        Stage::Asking => UpstreamFailure::receive(FailureCause::ResetBeforeAnswer, error),
        Stage::Answering => UpstreamFailure::receive(FailureCause::BodyBrokeOff, error),
        Stage::Tunnel { .. } => UpstreamFailure::receive(FailureCause::TunnelBrokeOff, error),
    }
}
