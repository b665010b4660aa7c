//! Parses requests from the unread bytes.

use super::{super::context::LoopContext, state::Connection};
use crate::{
    http::{FieldTable, Refused, ServerEvent, ServerPhase, StreamId},
    io::Unread,
};

/// Unsent bytes above which no further request of a pipeline is answered.
pub(super) const PIPELINE_BYTES_MAX: usize = 64 * 1024;

impl Connection {
    /// Handles events in the unread bytes until none is left or answers have to be sent first.
    /// Returns whether it stopped with bytes left because of that.
    // Never inlined: its caller runs four times for a forwarded request, and room for the fields of
    // a head makes a frame of several pages.
    #[inline(never)]
    pub(super) fn process_input(&mut self, cx: &mut LoopContext) -> bool {
        let Some((Some(input), turn, mut dispatcher)) = self.split() else { return false };
        loop {
            if dispatcher.protocol.phase() == ServerPhase::Head
                && (input.is_empty()
                    || dispatcher.io.outbox.has_segments()
                    || dispatcher.io.outbox.buffered() > PIPELINE_BYTES_MAX
                    || turn.has_begun_enough())
            {
                return !input.is_empty();
            }
            let mut fields = FieldTable::new();
            // Matched by reference: moving the head out of its event would copy it again.
            let limits = &cx.rules[dispatcher.class].http;
            let next = dispatcher.protocol.next_event(input.unread(), &mut fields, limits);
            let used = next.0;
            let unread = Unread::behind(Some(input), used);
            match &next.1 {
                ServerEvent::Request(stream, head, refused) => {
                    turn.count_request();
                    dispatcher.answer(*stream, head, *refused, unread, cx);
                }
                ServerEvent::Content(stream, content) => {
                    dispatcher.with_exchange_of(*stream, unread, |exchange, _| {
                        exchange.on_content(content, cx);
                    });
                }
                ServerEvent::ContentEnd(stream) => {
                    dispatcher.with_exchange_of(*stream, unread, |exchange, out| {
                        exchange.on_content_end(out, cx);
                    });
                }
                ServerEvent::Refused(stream, refused) => {
                    dispatcher.answer_refused(*stream, *refused, unread, cx);
                }
                ServerEvent::NeedMore => {
                    input.consume(used);
                    return false;
                }
                ServerEvent::Closed => {
                    input.clear();
                    return false;
                }
            }
            input.consume(used);
        }
    }

    /// Answers a request that can't be served, apart from any bytes.
    pub(super) fn answer_refused(
        &mut self,
        stream: StreamId,
        refused: Refused,
        cx: &mut LoopContext,
    ) {
        if let Some((input, _, mut dispatcher)) = self.split() {
            let unread = Unread::behind(input.as_deref(), 0);
            dispatcher.answer_refused(stream, refused, unread, cx);
        }
    }
}
