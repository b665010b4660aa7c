//! A tunnel: after a 101 the bytes go both ways as they come (RFC 9110 §7.8).
//!
//! It ends with the upstream's side; when the client's ends, the upstream is told, and may still
//! send what it has.

use super::{Forwarding, READS_PER_TURN, Stage, WAITING_BYTES_MAX};
use crate::{
    app::UpstreamFailure,
    event_loop::{LoopContext, connection::Connection, io::Received},
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
            let mut out = forwarding.conn.io.outbox.buffer(&mut cx.buffers);
            out.extend_from_slice(bytes.unread());
            drop(out);
            cx.buffers.give_input(bytes);
            forwarding.moved = true;
        }
        forwarding.flush();
        if self.io.has_ended() && !client_ended && forwarding.conn.io.outbox.is_empty() {
            client_ended = true;
            let _ = forwarding.conn.io.shutdown_write();
        }
        for _ in 0..READS_PER_TURN {
            if let Some(input) = forwarding.conn.io.input.take() {
                let mut out = self.io.outbox.buffer(&mut cx.buffers);
                self.exchange.write_piece(input.unread(), &mut out);
                drop(out);
                cx.buffers.give_input(input);
            }
            let is_full = self.io.outbox.buffered() > WAITING_BYTES_MAX;
            if upstream_ended || is_full || !forwarding.conn.io.ready.readable {
                break;
            }
            match forwarding.receive(&mut cx.buffers)? {
                Received::Bytes(_) => {}
                Received::End => upstream_ended = true,
                Received::Nothing | Received::Full => break,
            }
        }
        forwarding.stage = Stage::Tunnel { client_ended, upstream_ended };
        // One that has ended on the upstream's side has nothing to say to the client any more.
        Ok(upstream_ended)
    }
}
