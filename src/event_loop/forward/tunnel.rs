//! A tunnel: after a 101 the bytes go both ways as they come (RFC 9110 §7.8).
//!
//! It ends with the upstream's side; when the client's ends, the upstream is told, and may still
//! send what it has.

use rustix::net::Shutdown;

use super::{Forwarding, READS_PER_TURN, Stage, WAITING_BYTES_MAX, flush, read};
use crate::{
    app::UpstreamFailure,
    event_loop::{LoopContext, connection::Connection},
};

impl Connection {
    /// Whether bytes go both ways as they come.
    pub(in super::super) fn is_tunnel(&self) -> bool {
        self.forwarding.as_ref().is_some_and(|forwarding| forwarding.is_tunnel())
    }

    pub(super) fn pump_tunnel(
        &mut self,
        forwarding: &mut Forwarding,
        cx: &mut LoopContext,
    ) -> Result<bool, UpstreamFailure> {
        let Stage::Tunnel { mut client_ended, mut upstream_ended } = forwarding.stage else {
            return Ok(false);
        };
        if let Some(bytes) = self.take_tunnel_bytes() {
            let mut out = forwarding.output.buffer(&mut cx.buffers);
            out.extend_from_slice(bytes.unread());
            drop(out);
            cx.buffers.give_input(bytes);
            forwarding.moved = true;
        }
        flush(forwarding);
        if self.has_ended() && !client_ended && forwarding.output.is_empty() {
            client_ended = true;
            let _ = rustix::net::shutdown(&forwarding.line.socket, Shutdown::Write);
        }
        for _ in 0..READS_PER_TURN {
            if let Some(input) = forwarding.input.take() {
                let mut out = self.output.buffer(&mut cx.buffers);
                self.exchange.write_piece(input.unread(), &mut out);
                drop(out);
                cx.buffers.give_input(input);
            }
            let is_full = self.output.buffered() > WAITING_BYTES_MAX;
            if upstream_ended || is_full || !forwarding.line.ready.readable {
                break;
            }
            match read(forwarding, cx)? {
                Some(0) => upstream_ended = true,
                Some(_) => {}
                None => break,
            }
        }
        forwarding.stage = Stage::Tunnel { client_ended, upstream_ended };
        // One that has ended on the upstream's side has nothing to say to the client any more.
        Ok(upstream_ended)
    }
}
