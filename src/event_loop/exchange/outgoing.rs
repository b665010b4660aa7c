//! What an exchange may do to its connection.

use mio::Token;

use super::{
    super::context::LoopContext,
    content::{Body, WAITING_BYTES_MAX},
    in_flight::InFlight,
};
use crate::{
    app::{Peer, Scheme, Segment},
    http::{Fields, Protocol, Refused, Response, StreamId, Trailers},
    io::{Mark, Outward, Unread},
    logging::End,
    message::Class,
};

/// The way to the client: an exchange writes its answer to it, and does nothing else to the
/// connection.
pub(in super::super) struct Outgoing<'a> {
    pub(in super::super) io: Outward<'a>,
    pub(in super::super) protocol: &'a mut Protocol,
    /// The stream of the exchange.
    pub(in super::super) stream: StreamId,
    /// The connection's token in its loop.
    pub(in super::super) token: Token,
    pub(in super::super) class: Class,
    pub(in super::super) peer: Peer,
    /// Received bytes that are neither read yet nor handled by the exchange.
    pub(in super::super) unread: Unread<'a>,
    /// The connection was offered to another process, which didn't take it.
    pub(in super::super) is_declined: bool,
    pub(in super::super) effect: Effect,
}

/// What an exchange wants of its connection.
#[derive(Clone, Copy, Debug, Default)]
pub(in super::super) struct Effect {
    /// Bytes came or went, so the current wait is a new one.
    pub(in super::super) progressed: bool,
    /// So many of the unread bytes are read: those of a tunnel.
    pub(in super::super) consumed: usize,
}

impl Outgoing<'_> {
    /// Marks the current wait as a new one.
    pub(super) fn progress(&mut self) {
        self.effect.progressed = true;
    }

    /// The scheme of the requests of this connection.
    pub(super) fn scheme(&self) -> Scheme {
        if self.io.is_tls() { Scheme::Https } else { Scheme::Http }
    }

    /// Reads all unread bytes.
    pub(super) fn take_unread(&mut self) -> &[u8] {
        let unread = std::mem::replace(&mut self.unread, Unread::behind(None, 0)).bytes();
        self.effect.consumed += unread.len();
        unread
    }

    /// Whether the request's content is still coming.
    pub(super) fn reads_content(&self) -> bool {
        self.protocol.reads_content(self.stream)
    }

    /// Whether the client waits for a 100 before it sends its content.
    pub(super) fn awaits_continue(&self) -> bool {
        self.protocol.awaits_continue(self.stream)
    }

    /// Keeps the request's trailers, which are dropped otherwise.
    pub(super) fn keep_trailers(&mut self) {
        self.protocol.keep_trailers(self.stream);
    }

    /// The request's trailers, if they were kept.
    pub(super) fn trailers(&self) -> Option<&Trailers> {
        self.protocol.trailers(self.stream)
    }

    /// Reads nothing more of the request, which is refused.
    pub(in super::super) fn refuse(&mut self, refused: Refused) {
        self.protocol.refuse(self.stream, refused);
    }

    /// The connection ends behind this exchange.
    pub(in super::super) fn close_after(&mut self) {
        self.protocol.close_after();
    }

    /// Writes an answer: its filtered head, and its body as far as it is available. Every answer
    /// goes through this function.
    // Inlined by force: the kind of the body is known at each of the few calls.
    #[inline(always)]
    pub(super) fn write(
        &mut self,
        mut response: Response<'_>,
        body: Body,
        flight: &mut InFlight,
        cx: &mut LoopContext,
    ) {
        let is_in_pieces = matches!(body, Body::Pieces { .. });
        // A client that is still sending isn't asked to close: the upstream wants the rest.
        if self.is_last_answer(cx) && !(is_in_pieces && self.reads_content()) {
            self.protocol.close_after();
        }
        if let Some(filters) = flight.filters() {
            filters.change(self.scheme(), &mut response);
        }
        if flight.content.is_some() && flight.begin_stage(&mut response) {
            return self.write_in_pieces(response, body, flight, cx);
        }
        let (start, template) = (self.io.outbox.end(), cx.clock.head_template());
        let mut out = self.io.outbox.buffer(&mut cx.buffers);
        let has_content = match &body {
            Body::Whole => {
                let length = response.content().len() as u64;
                self.protocol.respond(self.stream, &response, length, template, &mut out)
            }
            Body::Segments(segments) => {
                let length = segments.iter().map(Segment::length).sum();
                self.protocol.respond(self.stream, &response, length, template, &mut out)
            }
            Body::Pieces { length, has_date } => {
                let template = if *has_date { cx.clock.dateless() } else { template };
                self.protocol.begin_response(self.stream, &response, *length, template, &mut out);
                false
            }
        };
        drop(out);
        self.note_head(response.status(), start, flight);
        match body {
            Body::Pieces { .. } => return,
            Body::Whole if has_content => self.io.outbox.push_content(response.into_content()),
            Body::Segments(segments) if has_content => self.io.outbox.push_segments(segments),
            Body::Whole | Body::Segments(_) => {}
        }
        self.end(flight);
    }

    /// Writes a piece of a body in pieces.
    pub(super) fn write_piece(
        &mut self,
        piece: &[u8],
        flight: &mut InFlight,
        cx: &mut LoopContext,
    ) {
        if let Some(content) = &mut flight.content {
            return content.queue_piece(piece);
        }
        self.write_framed(piece, cx);
    }

    /// Writes a piece of content that has passed its stage, or one of a tunnel.
    pub(super) fn write_framed(&mut self, piece: &[u8], cx: &mut LoopContext) {
        self.protocol.write_piece(self.stream, piece, &mut self.io.outbox.buffer(&mut cx.buffers));
    }

    /// Whether so much waits for the client that nothing more is to be queued for it.
    pub(super) fn is_full(&self, flight: &InFlight) -> bool {
        self.io.outbox.buffered() + flight.queued_bytes() > WAITING_BYTES_MAX
    }

    /// Ends a body in pieces.
    pub(super) fn end_response(
        &mut self,
        trailers: &Fields<'_>,
        flight: &mut InFlight,
        cx: &mut LoopContext,
    ) {
        if let Some(content) = &mut flight.content {
            return content.end(trailers);
        }
        let mut out = self.io.outbox.buffer(&mut cx.buffers);
        self.protocol.end_response(self.stream, trailers, &mut out);
        drop(out);
        self.end(flight);
    }

    /// The whole answer is in the outbox: the exchange is over when that is sent.
    pub(super) fn end(&self, flight: &mut InFlight) {
        flight.end = self.io.outbox.end();
    }

    /// Writes a 100 if the client waits for one before it sends content.
    pub(super) fn send_continue(&mut self, cx: &mut LoopContext) {
        self.protocol.send_continue(self.stream, &mut self.io.outbox.buffer(&mut cx.buffers));
    }

    /// Writes an interim response.
    pub(super) fn write_interim(&mut self, status: u16, fields: &Fields<'_>, cx: &mut LoopContext) {
        let mut out = self.io.outbox.buffer(&mut cx.buffers);
        self.protocol.write_interim(self.stream, status, fields, &mut out);
    }

    /// Writes a 101: from here on the connection is a tunnel.
    pub(super) fn begin_tunnel(
        &mut self,
        fields: &Fields<'_>,
        flight: &mut InFlight,
        cx: &mut LoopContext,
    ) {
        flight.content = None;
        let start = self.io.outbox.end();
        let mut out = self.io.outbox.buffer(&mut cx.buffers);
        self.protocol.begin_tunnel(self.stream, fields, &mut out);
        drop(out);
        self.note_head(101, start, flight);
    }

    /// Takes back the head that begins here, of which the client has no byte.
    pub(super) fn take_back(&mut self, head_start: Mark) {
        self.io.outbox.take_back(head_start);
        self.protocol.take_back(self.stream);
    }

    /// Gives up an answer that can't be completed.
    pub(super) fn break_off(&mut self, flight: &mut InFlight) {
        flight.content = None;
        self.protocol.break_off(self.stream);
        self.end(flight);
    }

    /// Gives up the exchange at once; it ends so.
    pub(super) fn abort(&mut self, how: End, flight: &mut InFlight) {
        flight.content = None;
        flight.how = how;
        self.protocol.abort(self.stream);
        self.end(flight);
    }

    /// Notes the head that was written from this position on.
    pub(super) fn note_head(&self, status: u16, start: Mark, flight: &mut InFlight) {
        (flight.status, flight.begin) = (status, self.io.outbox.end());
        flight.head_bytes = flight.begin.bytes_since(start) as u32;
    }

    /// Whether the answer that begins now is the connection's last, because the server stops.
    /// Requests that were read are all answered, so it isn't while another complete head follows.
    /// Nor if the next process takes the connection.
    fn is_last_answer(&self, cx: &LoopContext) -> bool {
        if !cx.closing.applies_to(self.class) {
            return false;
        }
        let stays = !cx.closing.can_hand_over(&cx.clock) || self.is_declined;
        stays && !self.protocol.has_request(self.unread.bytes())
    }
}
