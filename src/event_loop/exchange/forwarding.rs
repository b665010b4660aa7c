//! A request that is passed on to an upstream, and its answer back.
//!
//! ```text
//!  begin ──choose──► opening ──connected──► asking ──head──► answering ──end──► done
//!            ▲          │ fails                │ fails, no byte of an answer     │
//!            └──retry───┴──────────────────────┘ and safe to ask again           └─► line kept
//!                       └─ else 502, 503, 504     fails later: broken off
//!  answering ──101──► tunnel ──both sides closed──► done
//! ```
//! The client's connection owns the line to the upstream while the exchange lasts, so one state
//! machine sees both sockets, and no request changes threads or takes a lock.
//!
//! - Both ways are bounded: a side is read only while the other takes what it sends (I9).
//! - An exchange is over when the kernel has the last byte for the client, as any other's (I6).
//! - What is asked again, and where, is in `attempt`; how an exchange ends otherwise in `ending`.

mod pace;
mod tunnel;

use std::{io, time::Duration};

use mio::Token;
use smallvec::SmallVec;

use super::{
    super::{
        LoopContext,
        io::{BufferPool, Mark, Outbox, Ready, Received},
        upstream::UpstreamConn,
    },
    in_flight::InFlight,
    outgoing::Outgoing,
};
use crate::{
    app::{
        Chosen, FailureCause, Forward, OneUpstream, UpstreamFailure, write_request_trailers,
        write_response_fields,
    },
    config::DrainTunnels,
    http::{
        Bytes, RequestContent, Response, ResponseContent, ResponseHead,
        h1::{self, ClientEvent, FieldTable},
    },
};
pub(super) use pace::Pace;

/// An exchange that is passed on.
pub(in super::super) struct Forwarding {
    pub(super) forward: Forward,
    pub(super) chosen: Chosen,
    /// Upstreams that failed for this request.
    pub(super) tried: SmallVec<[usize; 4]>,
    pub(super) retries_left: u32,
    /// Upstreams that were asked, each try counted.
    pub(super) tries: u32,
    /// Why the last one failed that did.
    pub(super) last_cause: Option<FailureCause>,
    pub(super) conn: UpstreamConn,
    pub(super) exchange: h1::Client,
    pub(super) content: RequestContent,
    /// Where the request begins in the outbox, and so many bytes of it are its head.
    pub(super) begin: Mark,
    pub(super) head_bytes: usize,
    pub(super) asked_ns: u64,
    pub(super) stage: Stage,
    /// The client's content waits for the upstream's 100.
    pub(super) awaits_continue: bool,
    /// Bytes came or went since the deadline was set.
    pub(super) moved: bool,
    /// When they did last, in the loop's milliseconds.
    pub(super) moved_ms: u64,
    pub(super) pace: Pace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// No head of an answer was written to the client.
    Asking,
    Answering,
    Tunnel {
        client_ended: bool,
        upstream_ended: bool,
    },
}

/// What an event of the upstream's comes to.
enum Then {
    GoOn,
    /// An interim response was passed on.
    Interim,
    Wait,
    End,
    Fail(UpstreamFailure),
}

/// What waits for the other side at most before a side is read no further.
const WAITING_BYTES_MAX: usize = 64 * 1024;

/// How long an upstream may take to ask for content that it was told of. Then it is taken for one
/// that never does, as the client would take it (RFC 9110 §10.1.1).
const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);

/// How often a tunnel is looked at that a drain may cut.
const TUNNEL_LOOK_EVERY: Duration = Duration::from_millis(250);

/// Reads from an upstream before others get their turn.
const READS_PER_TURN: usize = 8;

impl Forwarding {
    /// Whether the upstream takes more of the request's content.
    pub(in super::super) fn takes_more(&self) -> bool {
        self.conn.is_open && self.conn.io.outbox.buffered() <= WAITING_BYTES_MAX
    }

    /// Whether something came that the client can take.
    pub(in super::super) fn has_more(&self, client_outbox: &Outbox) -> bool {
        let is_readable = self.conn.is_open && self.conn.io.ready.readable;
        is_readable && client_outbox.buffered() <= WAITING_BYTES_MAX
    }

    /// Has its loop told again how the line is.
    pub(in super::super) fn watch_anew(&self, cx: &LoopContext) -> io::Result<()> {
        cx.upstreams.watch_anew(self.conn.io.socket(), self.conn.token)
    }

    /// Method and target, as the upstream gets them.
    pub(in super::super) fn request(&self) -> Option<(&str, &str)> {
        self.forward.request()
    }

    /// Whether nothing of the request has gone out, and the line takes it.
    pub(in super::super) fn is_unsent(&self) -> bool {
        self.conn.is_open && self.nothing_sent() && self.conn.io.ready.writable
    }

    /// Whether the kernel has no byte of the request.
    pub(super) fn nothing_sent(&self) -> bool {
        self.conn.io.outbox.sent() <= self.begin
    }

    pub(in super::super) fn is_opening(&self) -> bool {
        !self.conn.is_open
    }

    /// Whether bytes go both ways as they come.
    pub(in super::super) fn is_tunnel(&self) -> bool {
        matches!(self.stage, Stage::Tunnel { .. })
    }

    /// Whether the next move is the client's: its content is asked for.
    pub(in super::super) fn waits_for_client(&self) -> bool {
        let is_asked_for = !self.awaits_continue && !self.exchange.request_done();
        self.stage == Stage::Asking && is_asked_for && self.conn.io.outbox.is_empty()
    }

    /// Whether the upstream knows of the client's end, as far as it is told: in a tunnel.
    pub(in super::super) fn is_told_of_the_end(&self) -> bool {
        !matches!(self.stage, Stage::Tunnel { client_ended: false, .. })
    }

    /// Whether the exchange is with this upstream.
    pub(in super::super) fn is_with(&self, upstream: &OneUpstream) -> bool {
        upstream.is_that_of(&self.chosen)
    }

    /// What it is that the upstream has closed the connection, and its answer is not whole.
    fn ended_early(&self) -> UpstreamFailure {
        let (cause, text) = match self.stage {
            Stage::Asking if self.exchange.answered() => {
                (FailureCause::ClosedBeforeAnswer, "closed within the head of the answer")
            }
            Stage::Asking => (FailureCause::ClosedBeforeAnswer, "closed without an answer"),
            Stage::Answering | Stage::Tunnel { .. } => {
                (FailureCause::BodyBrokeOff, "closed within the content")
            }
        };
        UpstreamFailure::new(cause, text)
    }

    /// Sends what waits for the upstream. One that takes no more may have answered already: an
    /// error here is reported by the read.
    fn flush(&mut self) {
        let io = &mut self.conn.io;
        if io.outbox.is_empty() || !io.ready.writable {
            return;
        }
        self.moved = true;
        if io.flush().is_err() {
            (io.ready.writable, io.ready.readable) = (false, true);
        }
    }

    /// Reads once from the upstream.
    fn receive(&mut self, pool: &mut BufferPool) -> Result<Received, UpstreamFailure> {
        match self.conn.io.receive(pool) {
            // A head longer than the limit is refused before this.
            Ok(Received::Full) => {
                Err(UpstreamFailure::new(FailureCause::HeadTooLarge, "response head too long"))
            }
            Ok(received) => {
                self.moved |= received != Received::Nothing;
                Ok(received)
            }
            Err(error) => Err(self.lost(&error)),
        }
    }

    fn lost(&self, error: &io::Error) -> UpstreamFailure {
        let cause = match self.stage {
            Stage::Asking => FailureCause::ResetBeforeAnswer,
            Stage::Answering => FailureCause::BodyBrokeOff,
            Stage::Tunnel { .. } => FailureCause::TunnelBrokeOff,
        };
        UpstreamFailure::receive(cause, error)
    }

    /// How long the wait may last that it is in.
    pub(in super::super) fn timeout(&self) -> Duration {
        let config = self.forward.config();
        match self.stage {
            _ if self.is_opening() => config.connect_timeout,
            // Looked at now and then: its app may have begun to drain.
            Stage::Tunnel { .. } if config.drain_tunnels != DrainTunnels::Keep => {
                config.tunnel_idle_timeout.min(TUNNEL_LOOK_EVERY)
            }
            Stage::Tunnel { .. } => config.tunnel_idle_timeout,
            Stage::Asking if self.awaits_continue => config.answer_timeout.min(CONTINUE_TIMEOUT),
            Stage::Asking | Stage::Answering => config.answer_timeout,
        }
    }
}

impl Forwarding {
    /// A piece of the request's content.
    pub(super) fn take_content(&mut self, piece: &[u8], cx: &mut LoopContext) {
        if !self.exchange.request_done() {
            // It comes without having been asked for, too.
            self.awaits_continue = false;
            let mut to_upstream = self.conn.io.outbox.buffer(&mut cx.buffers);
            self.exchange.write_content(piece, &mut to_upstream);
        }
    }

    /// The request's content is complete.
    pub(super) fn end_content(&mut self, out: &Outgoing<'_>, cx: &mut LoopContext) {
        let mut trailers = Vec::new();
        if let Some(kept) = out.protocol.trailers() {
            write_request_trailers(kept.fields(), &mut trailers);
        }
        self.awaits_continue = false;
        let mut to_upstream = self.conn.io.outbox.buffer(&mut cx.buffers);
        self.exchange.end_content(&trailers, &mut to_upstream);
    }

    /// The connection to the upstream told of changes.
    pub(in super::super) fn on_ready(&mut self, token: Token, ready: Ready) {
        if self.conn.token == token {
            self.conn.io.ready.add(ready);
        }
    }

    /// Moves what can be moved between the two sockets. Returns whether the exchange with the
    /// upstream is over.
    ///
    /// # Errors
    /// The upstream has failed.
    pub(super) fn pump(
        &mut self,
        flight: &mut InFlight,
        out: &mut Outgoing<'_>,
        cx: &mut LoopContext,
    ) -> Result<bool, UpstreamFailure> {
        if !self.conn.is_open && !self.conn.finish_opening()? {
            return Ok(false);
        }
        if self.is_tunnel() {
            return self.pump_tunnel(out, cx);
        }
        self.flush();
        if !out.io.outbox.is_empty() && self.stage == Stage::Answering {
            // The client takes less than comes: that is no slowness of the upstream.
            self.pace.restart(cx.clock.now_ms());
        }
        for _ in 0..READS_PER_TURN {
            if self.take_events(flight, out, cx)? {
                return Ok(true);
            }
            if self.is_tunnel() {
                return self.pump_tunnel(out, cx);
            }
            let is_full = out.io.outbox.buffered() > WAITING_BYTES_MAX;
            if is_full || !self.conn.io.ready.readable {
                break;
            }
            match self.receive(&mut cx.buffers)? {
                Received::Bytes(len) => self.keep_pace(len, cx.clock.now_ms())?,
                Received::End => return self.end_of_answer(flight, out, cx),
                Received::Nothing | Received::Full => break,
            }
        }
        Ok(false)
    }

    /// Takes what came as far as the client takes it. Returns whether the answer is complete.
    fn take_events(
        &mut self,
        flight: &mut InFlight,
        out: &mut Outgoing<'_>,
        cx: &mut LoopContext,
    ) -> Result<bool, UpstreamFailure> {
        let Some(mut input) = self.conn.io.input.take() else { return Ok(false) };
        let limits = cx.limits(out.class).http;
        let ended = loop {
            let mut fields = FieldTable::new();
            let (used, event) = self.exchange.next_event(input.unread(), &mut fields, &limits);
            let then = match event {
                ClientEvent::NeedMore | ClientEvent::Closed => Then::Wait,
                ClientEvent::Interim(head) if head.status() == 100 => {
                    self.awaits_continue = false;
                    out.protocol.send_continue(&mut out.io.outbox.buffer(&mut cx.buffers));
                    Then::Interim
                }
                ClientEvent::Interim(head) => {
                    write_interim(&head, out, cx);
                    Then::Interim
                }
                ClientEvent::Response(head) => {
                    let latency = cx.clock.now_ns().saturating_sub(self.asked_ns);
                    self.chosen.succeeded(Duration::from_nanos(latency));
                    self.awaits_continue = false;
                    let config = self.forward.config();
                    self.pace.begin_content(head.content(), config, cx.clock.now_ms());
                    self.stage = write_answer_head(&head, flight, out, cx);
                    if self.is_tunnel() { Then::Wait } else { Then::GoOn }
                }
                ClientEvent::Content(piece) => {
                    out.protocol.write_piece(piece, &mut out.io.outbox.buffer(&mut cx.buffers));
                    Then::GoOn
                }
                ClientEvent::End => Then::End,
                ClientEvent::Refused(refused) => {
                    let is_behind_head = self.stage != Stage::Asking;
                    Then::Fail(UpstreamFailure::refused(refused, is_behind_head))
                }
                ClientEvent::Truncated => Then::Fail(self.ended_early()),
            };
            input.consume(used);
            match then {
                Then::GoOn => {}
                Then::Interim => {
                    let now_ms = cx.clock.now_ms();
                    if let Err(failure) = self.take_interim(used, limits.head_bytes, now_ms) {
                        break Err(failure);
                    }
                }
                Then::Wait => break Ok(false),
                Then::End => break Ok(true),
                Then::Fail(failure) => break Err(failure),
            }
        };
        if input.is_empty() {
            cx.buffers.give_input(input);
        } else {
            self.conn.io.input = Some(input);
        }
        ended
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
        match self.exchange.receive_eof() {
            ClientEvent::End => Ok(true),
            _ => Err(self.ended_early()),
        }
    }
}

fn write_interim(head: &ResponseHead<'_>, out: &mut Outgoing<'_>, cx: &mut LoopContext) {
    let mut lines = Vec::new();
    let _ = write_response_fields(head.fields(), head.version(), head.status(), &mut lines);
    let mut buffer = out.io.outbox.buffer(&mut cx.buffers);
    out.protocol.write_interim(head.status(), &lines, &mut buffer);
}

/// Writes the head of the answer for the client.
fn write_answer_head(
    head: &ResponseHead<'_>,
    flight: &mut InFlight,
    out: &mut Outgoing<'_>,
    cx: &mut LoopContext,
) -> Stage {
    let mut lines = cx.buffers.take_output();
    let has_date = write_response_fields(head.fields(), head.version(), head.status(), &mut lines);
    let stage = if head.is_upgraded() {
        let start = out.io.outbox.end();
        out.protocol.begin_tunnel(&lines, &mut out.io.outbox.buffer(&mut cx.buffers));
        out.note_head(101, start, flight);
        Stage::Tunnel { client_ended: false, upstream_ended: false }
    } else {
        let fields = Bytes::Borrowed(&lines);
        let response = Response::new(head.status()).with_reason(head.reason());
        let response = response.with_encoded_fields(fields);
        let length = match head.content() {
            ResponseContent::Length(length) => Some(length),
            ResponseContent::None => head.content_length(),
            ResponseContent::Chunked | ResponseContent::UntilClose => None,
        };
        out.write_stream_head(&response, length, has_date, flight, cx);
        Stage::Answering
    };
    cx.buffers.give_output(lines);
    stage
}
