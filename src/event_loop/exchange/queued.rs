//! Writes content that doesn't go straight to the outbox: `content` has the queue.

use std::io;

use super::{
    super::context::LoopContext,
    content::{Body, Content, WAITING_BYTES_MAX},
    ending::Pumped,
    in_flight::InFlight,
    outgoing::Outgoing,
    state::Exchange,
};
use crate::{
    http::{Fields, Response},
    logging::End,
};

/// Pieces that a stage gets before what it made of them is sent, and others get a turn: a stage may
/// make little of much.
const PIECES_PER_STEP: usize = 2;

impl Outgoing<'_> {
    /// Writes the head of an answer whose content passes a stage, and queues what is here of it.
    #[cold]
    pub(super) fn write_in_pieces(
        &mut self,
        response: Response<'_>,
        body: Body,
        flight: &mut InFlight,
        cx: &mut LoopContext,
    ) {
        let (is_whole, has_date) = match body {
            Body::Whole | Body::Segments(_) => (true, false),
            Body::Pieces { has_date, .. } => (false, has_date),
        };
        let template = if has_date { cx.clock.dateless() } else { cx.clock.head_template() };
        let start = self.io.outbox.end();
        let mut out = self.io.outbox.buffer(&mut cx.buffers);
        let is_sent =
            self.protocol.begin_response(self.stream, &response, None, template, &mut out);
        drop(out);
        self.note_head(response.status(), start, flight);
        if let Some(content) = flight.content.as_mut().filter(|_| is_sent) {
            return content.queue(body, response);
        }
        flight.content = None;
        if is_whole {
            self.end_response(&Fields::NONE, flight, cx);
        }
    }
}

impl Exchange {
    /// Gives the protocol the next pieces of the queued content.
    #[cold]
    pub(super) fn pump_content(
        &mut self,
        is_complete: bool,
        out: &mut Outgoing<'_>,
        cx: &mut LoopContext,
    ) -> Pumped {
        let Some(content) = &mut self.flight.content else { return Pumped::Some };
        match give(content, out, cx) {
            Ok(false) if is_complete => Pumped::Complete,
            Ok(false) => Pumped::Some,
            Ok(true) => {
                let trailers = content.trailers.take().unwrap_or(Fields::NONE);
                self.flight.content = None;
                out.end_response(&trailers, &mut self.flight, cx);
                Pumped::Complete
            }
            // As when a file that is sent without a stage proves too short.
            Err(_) => {
                out.abort(End::Aborted, &mut self.flight);
                Pumped::Complete
            }
        }
    }
}

/// Gives the protocol the next pieces, as long as the client hasn't much to read. Returns whether
/// the content is complete.
///
/// # Errors
/// A file's.
fn give(content: &mut Content, out: &mut Outgoing<'_>, cx: &mut LoopContext) -> io::Result<bool> {
    let mut pieces = 0;
    while out.io.outbox.buffered() <= WAITING_BYTES_MAX {
        if content.staged().is_empty() {
            if pieces == PIECES_PER_STEP {
                break;
            }
            pieces += 1;
            if content.stage_next(&mut cx.buffers)? {
                continue;
            }
            return Ok(content.trailers.is_some());
        }
        out.write_framed(content.staged(), cx);
        content.clear_staged();
    }
    Ok(false)
}
