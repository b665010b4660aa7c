//! What an exchange may do to its connection.

use memchr::memmem;
use mio::Token;

use super::{
    super::{
        context::LoopContext,
        io::{Io, Mark},
    },
    in_flight::InFlight,
};
use crate::{
    app::Peer,
    http::{Response, h1},
    message::Class,
};

/// The way to the peer: an exchange writes its answer to it, and does nothing else to its
/// connection.
pub(in super::super) struct Outgoing<'a> {
    pub(in super::super) io: &'a mut Io,
    pub(in super::super) protocol: &'a mut h1::Server,
    /// The connection's name in its loop.
    pub(in super::super) token: Token,
    pub(in super::super) class: Class,
    pub(in super::super) peer: Peer,
    /// A whole head is behind this request.
    pub(in super::super) has_next: bool,
    /// While connections move to another process, this one stays.
    pub(in super::super) is_kept: bool,
    pub(in super::super) effect: Effect,
}

/// What an exchange wants of its connection.
#[derive(Clone, Copy, Debug, Default)]
pub(in super::super) struct Effect {
    /// Something came or went: what is waited for now is a new wait.
    pub(in super::super) progressed: bool,
}

impl Outgoing<'_> {
    /// What is waited for now is a new wait.
    pub(super) fn progress(&mut self) {
        self.effect.progressed = true;
    }

    /// Writes the head of an answer whose content has this length, or that is a stream. Returns
    /// whether content follows.
    pub(super) fn write_head(
        &mut self,
        response: &Response<'_>,
        length: Option<u64>,
        flight: &mut InFlight,
        cx: &mut LoopContext,
    ) -> bool {
        if self.is_last_answer(cx) {
            self.protocol.close_after();
        }
        let filtered = filtered(response, flight);
        let response = filtered.as_ref().unwrap_or(response);
        let start = self.io.outbox.end();
        let mut out = self.io.outbox.buffer(&mut cx.buffers);
        let opening = cx.clock.opening();
        let has_content = match length {
            Some(length) => self.protocol.respond(response, length, opening, &mut out),
            None => {
                self.protocol.begin_stream(response, opening, &mut out);
                true
            }
        };
        drop(out);
        self.note_head(response.status(), start, flight);
        has_content
    }

    /// Writes the head of an answer that comes from an upstream piece by piece.
    pub(super) fn write_stream_head(
        &mut self,
        response: &Response<'_>,
        length: Option<u64>,
        has_date: bool,
        flight: &mut InFlight,
        cx: &mut LoopContext,
    ) {
        // A client that still sends is not told to end: the upstream wants the rest.
        if self.is_last_answer(cx) && !self.protocol.reads_content() {
            self.protocol.close_after();
        }
        let filtered = filtered(response, flight);
        let response = filtered.as_ref().unwrap_or(response);
        let start = self.io.outbox.end();
        let mut out = self.io.outbox.buffer(&mut cx.buffers);
        let opening = if has_date { cx.clock.dateless() } else { cx.clock.opening() };
        match length {
            Some(length) => {
                self.protocol.begin_sized_stream(response, length, opening, &mut out);
            }
            None => self.protocol.begin_stream(response, opening, &mut out),
        }
        drop(out);
        self.note_head(response.status(), start, flight);
    }

    /// A head was written, from this place of the outbox on.
    pub(super) fn note_head(&self, status: u16, start: Mark, flight: &mut InFlight) {
        (flight.status, flight.begin) = (status, self.io.outbox.end());
        flight.head_bytes = flight.begin.bytes_since(start) as u32;
    }

    /// Whether the answer that begins now is the last one here, because the server stops: what was
    /// read is answered, so none is with a whole head behind it. Where the next process takes the
    /// connection, none is.
    fn is_last_answer(&self, cx: &LoopContext) -> bool {
        if !cx.is_closing(self.class) {
            return false;
        }
        let stays = !cx.gives_on() || self.is_kept;
        let is_read_on = self.io.input.as_ref().is_some_and(|input| holds_head(input.unread()));
        stays && !(is_read_on || self.has_next)
    }
}

/// The head of an answer as the filters of the exchange's app leave it; none if there are none.
#[inline]
fn filtered<'a>(response: &'a Response<'_>, flight: &InFlight) -> Option<Response<'a>> {
    let filters = &flight.guard.as_ref()?.entry().app().filters;
    (!filters.is_empty()).then(|| {
        let mut response = response.borrowed();
        filters.change(response.status(), response.fields_mut());
        response
    })
}

/// Whether a request's head is whole in these bytes, if they begin with one.
pub(in super::super) fn holds_head(bytes: &[u8]) -> bool {
    memmem::find(bytes.trim_ascii_start(), b"\r\n\r\n").is_some()
}
