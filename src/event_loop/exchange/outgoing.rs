//! What an exchange may do to its connection.

use memchr::memmem;
use mio::Token;

use super::{super::context::LoopContext, in_flight::InFlight};
use crate::{
    app::{Peer, Segment},
    http::{Fields, Response, h1},
    io::{Io, Mark},
    message::Class,
};

/// The way to the client: an exchange writes its answer to it, and does nothing else to the
/// connection.
pub(in super::super) struct Outgoing<'a> {
    pub(in super::super) io: &'a mut Io,
    pub(in super::super) protocol: &'a mut h1::Server,
    /// The connection's token in its loop.
    pub(in super::super) token: Token,
    pub(in super::super) class: Class,
    pub(in super::super) peer: Peer,
    /// A complete head follows this request.
    pub(in super::super) has_next: bool,
    /// The connection was offered to another process, which didn't take it.
    pub(in super::super) is_declined: bool,
    pub(in super::super) effect: Effect,
}

/// Where the body of an answer comes from.
pub(super) enum Body {
    /// The response's own content.
    Whole,
    /// Memory and files.
    Segments(Vec<Segment>),
    /// Later pieces.
    Stream {
        /// The total, if it is known.
        length: Option<u64>,
        /// The response has a Date field of its own.
        has_date: bool,
    },
}

/// What an exchange wants of its connection.
#[derive(Clone, Copy, Debug, Default)]
pub(in super::super) struct Effect {
    /// Bytes came or went, so the current wait is a new one.
    pub(in super::super) progressed: bool,
}

impl Outgoing<'_> {
    /// Marks the current wait as a new one.
    pub(super) fn progress(&mut self) {
        self.effect.progressed = true;
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
        let is_stream = matches!(body, Body::Stream { .. });
        // A client that is still sending isn't asked to close: the upstream wants the rest.
        if self.is_last_answer(cx) && !(is_stream && self.protocol.reads_content()) {
            self.protocol.close_after();
        }
        if let Some(filters) = flight.filters() {
            filters.change(&mut response);
        }
        let (start, template) = (self.io.outbox.end(), cx.clock.head_template());
        let mut out = self.io.outbox.buffer(&mut cx.buffers);
        let has_content = match &body {
            Body::Whole => {
                let length = response.content().len() as u64;
                self.protocol.respond(&response, length, template, &mut out)
            }
            Body::Segments(segments) => {
                let length = segments.iter().map(Segment::length).sum();
                self.protocol.respond(&response, length, template, &mut out)
            }
            Body::Stream { length, has_date } => {
                let template = if *has_date { cx.clock.dateless() } else { template };
                self.protocol.begin_stream(&response, *length, template, &mut out);
                false
            }
        };
        drop(out);
        self.note_head(response.status(), start, flight);
        match body {
            Body::Stream { .. } => return,
            Body::Whole if has_content => self.io.outbox.push_content(response.into_content()),
            Body::Segments(segments) if has_content => self.io.outbox.push_segments(segments),
            Body::Whole | Body::Segments(_) => {}
        }
        self.end(flight);
    }

    /// Writes a piece of a streamed body or of a tunnel.
    pub(super) fn write_piece(&mut self, piece: &[u8], cx: &mut LoopContext) {
        self.protocol.write_piece(piece, &mut self.io.outbox.buffer(&mut cx.buffers));
    }

    /// Ends a streamed body.
    pub(super) fn end_stream(
        &mut self,
        trailers: &Fields<'_>,
        flight: &mut InFlight,
        cx: &mut LoopContext,
    ) {
        self.protocol.end_stream(trailers, &mut self.io.outbox.buffer(&mut cx.buffers));
        self.end(flight);
    }

    /// The whole answer is in the outbox: the exchange is over when that is sent.
    pub(super) fn end(&self, flight: &mut InFlight) {
        flight.end = self.io.outbox.end();
    }

    /// Writes a 100 if the client waits for one before it sends content.
    pub(super) fn send_continue(&mut self, cx: &mut LoopContext) {
        self.protocol.send_continue(&mut self.io.outbox.buffer(&mut cx.buffers));
    }

    /// Writes an interim response.
    pub(super) fn write_interim(&mut self, status: u16, fields: &Fields<'_>, cx: &mut LoopContext) {
        let mut out = self.io.outbox.buffer(&mut cx.buffers);
        self.protocol.write_interim(status, fields, &mut out);
    }

    /// Writes a 101: from here on the connection is a tunnel.
    pub(super) fn begin_tunnel(
        &mut self,
        fields: &Fields<'_>,
        flight: &mut InFlight,
        cx: &mut LoopContext,
    ) {
        let start = self.io.outbox.end();
        self.protocol.begin_tunnel(fields, &mut self.io.outbox.buffer(&mut cx.buffers));
        self.note_head(101, start, flight);
    }

    /// Notes the head that was written from this position on.
    fn note_head(&self, status: u16, start: Mark, flight: &mut InFlight) {
        (flight.status, flight.begin) = (status, self.io.outbox.end());
        flight.head_bytes = flight.begin.bytes_since(start) as u32;
    }

    /// Whether the answer that begins now is the connection's last, because the server stops.
    /// Requests that were read are all answered, so it isn't while another complete head follows.
    /// Nor if the next process takes the connection.
    fn is_last_answer(&self, cx: &LoopContext) -> bool {
        if !cx.is_closing(self.class) {
            return false;
        }
        let stays = !cx.can_hand_over() || self.is_declined;
        let is_read_on = self.io.input.as_ref().is_some_and(|input| holds_head(input.unread()));
        stays && !(is_read_on || self.has_next)
    }
}

/// Whether these bytes begin with a complete request head.
pub(in super::super) fn holds_head(bytes: &[u8]) -> bool {
    memmem::find(bytes.trim_ascii_start(), b"\r\n\r\n").is_some()
}
