//! Requests out of the unread bytes, and how many of them in one turn.
//!
//! A read holds hundreds of small requests, and a peer that sends without end always has more: its
//! turn is over after [`REQUESTS_PER_TURN`], or when [`TURN_INPUT_BYTES`] are read or
//! [`TURN_BYTES`] of answers are sent, and the loop's other connections come before the rest.

use super::{
    super::{
        LoopContext,
        exchange::holds_head,
        io::{Mark, TURN_BYTES},
    },
    Connection,
};
use crate::http::h1::{FieldTable, ServerEvent, ServerPhase};

/// Requests that one connection begins before others get their turn: about 30 microseconds.
pub(super) const REQUESTS_PER_TURN: u32 = 32;

/// Bytes that one connection reads before others get their turn: about as long, for large heads.
pub(super) const TURN_INPUT_BYTES: u64 = 64 * 1024;

/// Unsent bytes above which no further request of a pipeline is answered.
pub(super) const PIPELINE_BYTES_MAX: usize = 64 * 1024;

/// What a connection has done since its turn began.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Turn {
    requests: u32,
    /// A whole head is behind what is being read; only looked for while the server stops.
    pub(super) has_next: bool,
    /// Bytes that the kernel had before, and those that it had given.
    sent_before: Mark,
    received_before: u64,
}

impl Connection {
    pub(super) fn begin_turn(&mut self) {
        self.turn = Turn {
            requests: 0,
            has_next: false,
            sent_before: self.io.outbox.sent(),
            received_before: self.io.received_total(),
        };
    }

    /// Whether whatever is left has to wait for the next turn.
    pub(super) fn is_turn_over(&self) -> bool {
        let sent = self.io.outbox.sent().bytes_since(self.turn.sent_before);
        self.turn.requests >= REQUESTS_PER_TURN || sent >= TURN_BYTES
    }

    /// Whether the next turn has to read on; what was read is not kept for it.
    pub(super) fn has_read_enough(&self) -> bool {
        self.io.received_total() - self.turn.received_before >= TURN_INPUT_BYTES
    }

    /// Takes events out of the unread bytes until they are used up or answers have to go out first.
    pub(super) fn process_input(&mut self, cx: &mut LoopContext) {
        self.stalled = false;
        let Some(mut input) = self.io.input.take() else { return };
        loop {
            if self.exchange.phase() == ServerPhase::Head
                && (input.is_empty()
                    || self.io.outbox.has_segments()
                    || self.io.outbox.buffered() > PIPELINE_BYTES_MAX
                    || self.turn.requests >= REQUESTS_PER_TURN)
            {
                self.stalled = !input.is_empty();
                break;
            }
            let mut fields = FieldTable::new();
            // Looked at where it is: a head that is moved out of its event is copied once more.
            let next =
                self.exchange.next_event(input.unread(), &mut fields, &cx.limits(self.class).http);
            let used = next.0;
            self.turn.has_next = cx.is_closing(self.class) && holds_head(&input.unread()[used..]);
            match &next.1 {
                ServerEvent::Request(head, refused) => {
                    self.turn.requests += 1;
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
                    break;
                }
                ServerEvent::Closed => {
                    input.clear();
                    break;
                }
            }
            input.consume(used);
        }
        self.turn.has_next = false;
        self.io.input = Some(input);
    }
}
