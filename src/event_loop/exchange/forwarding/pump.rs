//! Moves bytes from the upstream to the client, and back.

use mio::Token;

use super::{
    super::{super::context::LoopContext, content::Body, in_flight::InFlight, outgoing::Outgoing},
    state::{Forwarding, READS_PER_TURN, Stage},
};
use crate::{
    app::{FailureCause, UpstreamFailure, write_request_trailers, write_response_fields},
    http::{Bytes, FieldTable, Fields, Response, ResponseContent, ResponseHead, h1::ClientEvent},
    io::{Ready, Received},
};

/// What follows from an event of the upstream.
enum AfterEvent {
    GoOn,
    /// An interim response was forwarded.
    Interim,
    Wait,
    End,
    Fail(UpstreamFailure),
}

impl Forwarding {
    /// A piece of the request's content.
    pub(in super::super) fn take_content(&mut self, piece: &[u8], cx: &mut LoopContext) {
        if !self.client.request_done() {
            // Clients may send content without waiting for the 100.
            self.awaits_continue = false;
            let mut to_upstream = self.conn.io.outbox.buffer(&mut cx.buffers);
            self.client.write_content(piece, &mut to_upstream);
        }
    }

    /// The request's content is complete.
    pub(in super::super) fn end_content(&mut self, out: &Outgoing<'_>, cx: &mut LoopContext) {
        let mut trailers = Vec::new();
        if let Some(kept) = out.trailers() {
            write_request_trailers(kept.fields(), &mut trailers);
        }
        self.awaits_continue = false;
        let mut to_upstream = self.conn.io.outbox.buffer(&mut cx.buffers);
        self.client.end_content(&Fields::from_lines(trailers.into()), &mut to_upstream);
    }

    /// An event for the connection to the upstream.
    pub(in super::super::super) fn on_ready(&mut self, token: Token, ready: Ready) {
        if self.conn.token == token {
            self.conn.io.ready.add(ready);
        }
    }

    /// Moves bytes between the two sockets, as far as possible. Returns whether the exchange with
    /// the upstream is over.
    ///
    /// # Errors
    /// When the upstream has failed.
    pub(in super::super) fn pump(
        &mut self,
        flight: &mut InFlight,
        out: &mut Outgoing<'_>,
        cx: &mut LoopContext,
    ) -> Result<bool, UpstreamFailure> {
        if !self.conn.is_open() && !self.conn.finish_opening(&mut cx.buffers)? {
            return Ok(false);
        }
        if self.is_tunnel() {
            return self.pump_tunnel(out, cx);
        }
        self.flush(&mut cx.buffers);
        if !out.io.outbox.is_empty() && self.stage == Stage::Answering {
            // The client reads slower than bytes come: the upstream isn't slow.
            self.pace.restart(cx.clock.now_ms());
        }
        for _ in 0..READS_PER_TURN {
            if self.conn.io.input.is_some() && self.take_events(flight, out, cx)? {
                return Ok(true);
            }
            if self.is_tunnel() {
                return self.pump_tunnel(out, cx);
            }
            if out.is_full(flight) || !self.conn.io.ready.readable {
                break;
            }
            match self.receive(&mut cx.buffers)? {
                Received::Bytes(len) => {
                    let (config, now_ms) = (self.forward.config(), cx.clock.now_ms());
                    match self.stage {
                        Stage::Asking => self.pace.take_head(config, now_ms)?,
                        Stage::Answering => self.pace.take_content(len, config, now_ms)?,
                        Stage::Tunnel { .. } => {}
                    }
                }
                Received::End => return self.end_of_answer(flight, out, cx),
                Received::Nothing | Received::Full => break,
            }
        }
        Ok(false)
    }

    /// Handles what came, as far as the client takes it. Returns whether the answer is complete.
    fn take_events(
        &mut self,
        flight: &mut InFlight,
        out: &mut Outgoing<'_>,
        cx: &mut LoopContext,
    ) -> Result<bool, UpstreamFailure> {
        let ended = self.read_events(flight, out, cx);
        if let Some(input) = self.conn.io.input.take_if(|input| input.is_empty()) {
            cx.buffers.give_input(input);
        }
        ended
    }

    fn read_events(
        &mut self,
        flight: &mut InFlight,
        out: &mut Outgoing<'_>,
        cx: &mut LoopContext,
    ) -> Result<bool, UpstreamFailure> {
        let Self { conn, client, pace, stage, .. } = self;
        let Some(input) = &mut conn.io.input else { return Ok(false) };
        let config = self.forward.config();
        let limits = cx.rules[out.class].http;
        loop {
            let mut fields = FieldTable::new();
            let (used, event) = client.next_event(input.unread(), &mut fields, &limits);
            let after = match event {
                ClientEvent::NeedMore | ClientEvent::Closed => AfterEvent::Wait,
                ClientEvent::Interim(head) if head.status() == 100 => {
                    self.awaits_continue = false;
                    out.send_continue(cx);
                    AfterEvent::Interim
                }
                ClientEvent::Interim(head) => {
                    write_interim(&head, out, cx);
                    AfterEvent::Interim
                }
                ClientEvent::Response(head) => {
                    self.chosen.succeeded(self.request.age(cx.clock.now_ns()));
                    self.awaits_continue = false;
                    pace.begin_content(head.content(), config, cx.clock.now_ms());
                    *stage = write_answer_head(&head, flight, out, cx);
                    if stage.is_tunnel() { AfterEvent::Wait } else { AfterEvent::GoOn }
                }
                ClientEvent::Content(piece) => {
                    out.write_piece(piece, flight, cx);
                    AfterEvent::GoOn
                }
                ClientEvent::End => AfterEvent::End,
                ClientEvent::Refused(refused) => {
                    let is_behind_head = *stage != Stage::Asking;
                    AfterEvent::Fail(UpstreamFailure::refused(refused, is_behind_head))
                }
                ClientEvent::Truncated => AfterEvent::Fail(stage.ended_early(client)),
            };
            input.consume(used);
            match after {
                AfterEvent::GoOn => {}
                AfterEvent::Interim => {
                    let bytes = (used, limits.head_bytes);
                    let (is_sent, now_ms) = (client.request_done(), cx.clock.now_ms());
                    pace.take_interim(bytes, is_sent, config, now_ms)?;
                }
                AfterEvent::Wait => return Ok(false),
                AfterEvent::End => return Ok(true),
                AfterEvent::Fail(failure) => return Err(failure),
            }
        }
    }

    /// The upstream has closed the connection.
    fn end_of_answer(
        &mut self,
        flight: &mut InFlight,
        out: &mut Outgoing<'_>,
        cx: &mut LoopContext,
    ) -> Result<bool, UpstreamFailure> {
        if self.take_events(flight, out, cx)? {
            return Ok(true);
        }
        match self.client.receive_eof() {
            // Content that the end delimits may be cut there by anyone on the path (RFC 9112 §9.8).
            ClientEvent::End if self.conn.io.is_truncated() => Err(UpstreamFailure::new(
                FailureCause::BodyBrokeOff,
                "closed without close_notify, so content may be missing",
            )),
            ClientEvent::End => Ok(true),
            _ => Err(self.stage.ended_early(&self.client)),
        }
    }
}

fn write_interim(head: &ResponseHead<'_>, out: &mut Outgoing<'_>, cx: &mut LoopContext) {
    let mut lines = Vec::new();
    let _ = write_response_fields(head.fields(), head.version(), head.status(), &mut lines);
    out.write_interim(head.status(), &Fields::from_lines(lines.into()), cx);
}

/// Writes the answer's head for the client.
fn write_answer_head(
    head: &ResponseHead<'_>,
    flight: &mut InFlight,
    out: &mut Outgoing<'_>,
    cx: &mut LoopContext,
) -> Stage {
    let mut lines = cx.buffers.take_output();
    let has_date = write_response_fields(head.fields(), head.version(), head.status(), &mut lines);
    let fields = Fields::from_lines(Bytes::Borrowed(&lines));
    let stage = if head.is_upgraded() {
        out.begin_tunnel(&fields, flight, cx);
        Stage::Tunnel { client_ended: false, upstream_ended: false }
    } else {
        let response = Response::new(head.status()).with_reason(head.reason()).with_fields(fields);
        let length = match head.content() {
            ResponseContent::Length(length) => Some(length),
            ResponseContent::None => head.content_length(),
            ResponseContent::Chunked | ResponseContent::UntilClose => None,
        };
        out.write(response, Body::Pieces { length, has_date }, flight, cx);
        Stage::Answering
    };
    cx.buffers.give_output(lines);
    stage
}
