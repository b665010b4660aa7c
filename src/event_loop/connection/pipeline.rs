//! Requests out of the unread bytes.

use super::{
    super::{context::LoopContext, exchange::holds_head},
    state::{Connection, State},
};
use crate::http::h1::{FieldTable, ServerEvent, ServerPhase};

/// Unsent bytes above which no further request of a pipeline is answered.
pub(super) const PIPELINE_BYTES_MAX: usize = 64 * 1024;

impl Connection {
    /// Takes events out of the unread bytes until they are used up or answers have to go out first.
    /// Returns whether bytes were left for that.
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
            // Looked at where it is: a head that is moved out of its event is copied once more.
            let next = protocol.next_event(input.unread(), &mut fields, &cx.rules[self.class].http);
            let used = next.0;
            self.turn.has_next = cx.is_closing(self.class) && holds_head(&input.unread()[used..]);
            match &next.1 {
                ServerEvent::Request(head, refused) => {
                    self.turn.count_request();
                    self.answer(head, *refused, cx);
                }
                ServerEvent::Content(content) => {
                    self.with_exchange(|exchange, _| exchange.on_content(content, cx));
                }
                ServerEvent::ContentEnd => {
                    self.with_exchange(|exchange, out| exchange.on_content_end(out, cx));
                }
                ServerEvent::Refused(refused) => self.answer_refused(*refused, cx),
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
