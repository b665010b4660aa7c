//! Parses requests from the unread bytes.

use super::{
    super::context::LoopContext,
    state::{Connection, State},
};
use crate::http::{FieldTable, ServerEvent, ServerPhase};

/// Unsent bytes above which no further request of a pipeline is answered.
pub(super) const PIPELINE_BYTES_MAX: usize = 64 * 1024;

impl Connection {
    /// Handles events in the unread bytes until none is left or answers have to be sent first.
    /// Returns whether it stopped with bytes left because of that.
    // Never inlined: its caller runs four times for a forwarded request, and room for the fields of
    // a head makes a frame of several pages.
    #[inline(never)]
    pub(super) fn process_input(&mut self, cx: &mut LoopContext) -> bool {
        let Some(mut input) = self.io.input.take() else { return false };
        let is_stalled = loop {
            let State::Http(protocol) = &mut self.state else { break false };
            if protocol.phase() == ServerPhase::Head
                && (input.is_empty()
                    || self.io.outbox.has_segments()
                    || self.io.outbox.buffered() > PIPELINE_BYTES_MAX
                    || self.turn.has_begun_enough())
            {
                break !input.is_empty();
            }
            let mut fields = FieldTable::new();
            // Matched by reference: moving the head out of its event would copy it again.
            let next = protocol.next_event(input.unread(), &mut fields, &cx.rules[self.class].http);
            let used = next.0;
            self.turn.has_next =
                cx.closing.applies_to(self.class) && protocol.has_request(&input.unread()[used..]);
            match &next.1 {
                ServerEvent::Request(stream, head, refused) => {
                    self.turn.count_request();
                    self.answer(*stream, head, *refused, cx);
                }
                ServerEvent::Content(stream, content) => {
                    self.with_exchange_of(*stream, |exchange, _| exchange.on_content(content, cx));
                }
                ServerEvent::ContentEnd(stream) => {
                    self.with_exchange_of(*stream, |exchange, out| {
                        exchange.on_content_end(out, cx);
                    });
                }
                ServerEvent::Refused(stream, refused) => self.answer_refused(*stream, *refused, cx),
                ServerEvent::NeedMore => {
                    input.consume(used);
                    break false;
                }
                ServerEvent::Closed => {
                    input.clear();
                    break false;
                }
            }
            input.consume(used);
        };
        self.turn.has_next = false;
        self.io.input = Some(input);
        is_stalled
    }
}
