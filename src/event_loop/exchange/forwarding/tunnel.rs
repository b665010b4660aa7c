//! A tunnel: after a 101, bytes go both ways unchanged (RFC 9110 §7.8).
//!
//! It ends when the upstream closes. When the client half-closes, so does our side to the upstream,
//! which may still send.

use super::{
    super::content::WAITING_BYTES_MAX,
    state::{Forwarding, READS_PER_TURN, Stage},
};
use crate::{
    app::UpstreamFailure,
    event_loop::{context::LoopContext, exchange::Outgoing},
    io::Received,
};

impl Forwarding {
    pub(super) fn pump_tunnel(
        &mut self,
        out: &mut Outgoing<'_>,
        cx: &mut LoopContext,
    ) -> Result<bool, UpstreamFailure> {
        let Stage::Tunnel { mut client_ended, mut upstream_ended } = self.stage else {
            return Ok(false);
        };
        let bytes = out.take_unread();
        if !bytes.is_empty() {
            self.conn.io.outbox.buffer(&mut cx.buffers).extend_from_slice(bytes);
            self.activity.note(true);
        }
        self.flush(&mut cx.buffers);
        if out.io.has_ended() && !client_ended && self.conn.io.outbox.is_empty() {
            client_ended = true;
            // It may have closed already; the read notices.
            let _ = self.conn.io.shutdown_write(&mut cx.buffers);
        }
        for _ in 0..READS_PER_TURN {
            if let Some(input) = self.conn.io.input.take() {
                out.write_framed(input.unread(), cx);
                cx.buffers.give_input(input);
            }
            let is_full = out.io.outbox.buffered() > WAITING_BYTES_MAX;
            if upstream_ended || is_full || !self.conn.io.ready.readable {
                break;
            }
            match self.receive(&mut cx.buffers)? {
                Received::Bytes(_) => {}
                Received::End => upstream_ended = true,
                Received::Nothing | Received::Full => break,
            }
        }
        self.stage = Stage::Tunnel { client_ended, upstream_ended };
        // After the upstream's end there is nothing left to send to the client.
        Ok(upstream_ended)
    }
}
