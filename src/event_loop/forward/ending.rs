//! How the exchange with an upstream ends.
//!
//! ```text
//!  asking ──fails──► another upstream (attempt), or 502, 503, 504
//!  answering ──fails──┬─ no byte of the head with the kernel ─► taken back: 502, 504
//!                     └─ else what is queued goes out ─► the connection ends, or is reset
//! ```
//! - An answer that breaks off is never ended as if it were whole. Where the end of the connection
//!   does not show that, it is reset.
//! - It is the upstream's failure: counted, logged, and of weight for an ejection.

use std::time::Duration;

use super::{Forwarding, Stage};
use crate::{
    app::{Chosen, FailureCause, Forward, UpstreamFailure, write_response_trailers},
    config::DrainTunnels,
    event_loop::{
        LoopContext,
        clock::milliseconds,
        connection::{Connection, Fate},
        in_flight::InFlight,
    },
    logging::UpstreamUse,
    message::{ControlEvent, FailureReport},
};

impl Forwarding {
    /// What the access line says of it, if it ends now.
    fn upstream_use(&self, reason: Option<FailureCause>, now_ns: u64) -> UpstreamUse<'_> {
        UpstreamUse {
            url: self.chosen.endpoint().url(),
            tries: self.tries,
            time: Duration::from_nanos(now_ns.saturating_sub(self.asked_ns)),
            reason: reason.or(self.last_cause).map(FailureCause::name),
        }
    }
}

impl Connection {
    /// The upstream's part is over: the line is kept if it can be.
    pub(super) fn end_forward(&mut self, forwarding: Forwarding, cx: &mut LoopContext) {
        self.note_use(&forwarding.upstream_use(None, cx.clock.now_ns()), cx);
        let Forwarding { forward, chosen, mut conn, exchange, .. } = forwarding;
        chosen.completed();
        let mut trailers = Vec::new();
        write_response_trailers(exchange.trailers().fields(), &mut trailers);
        self.exchange.end_stream_with(&trailers, &mut self.io.outbox.buffer(&mut cx.buffers));
        self.end_answer();
        self.wait_anew = true;
        if !self.takes_output()
            && let (Some(flight), Some((method, target))) =
                (self.in_flight.last_mut(), forward.request())
        {
            flight.remember_request(method, target);
        }
        let io = &mut conn.io;
        let is_clean = io.outbox.is_empty() && io.input.is_none() && !io.ready.read_closed;
        io.release(&mut cx.buffers);
        if exchange.reusable() && is_clean && !cx.is_closing(self.class) {
            cx.upstreams.give(conn, forward.config(), &chosen, cx.clock.now_ms());
        } else {
            cx.upstreams.forget(&conn);
        }
        // What has nothing to send is over here.
        self.end_sent_exchanges(cx);
    }

    /// There is no answer, or not all of it.
    pub(super) fn fail_forward(
        &mut self,
        forwarding: Forwarding,
        failure: UpstreamFailure,
        cx: &mut LoopContext,
    ) {
        cx.upstreams.forget(&forwarding.conn);
        match forwarding.stage {
            Stage::Asking => self.ask_again(forwarding, failure, cx),
            Stage::Answering | Stage::Tunnel { .. } => {
                self.break_off(&forwarding, failure.behind_head(), cx);
            }
        }
    }

    /// The answer has begun, and has no end.
    fn break_off(
        &mut self,
        forwarding: &Forwarding,
        failure: UpstreamFailure,
        cx: &mut LoopContext,
    ) {
        self.note_failure(&forwarding.forward, &forwarding.chosen, failure, cx);
        let used = forwarding.upstream_use(Some(failure.cause), cx.clock.now_ns());
        self.note_use(&used, cx);
        self.wait_anew = true;
        let Some(flight) = self.in_flight.last_mut() else { return };
        let head_start = flight.head_start();
        if head_start >= self.io.outbox.sent() {
            flight.take_back();
            self.io.outbox.take_back(head_start);
            self.exchange.take_back();
            return self.respond(failure.cause.response(), cx);
        }
        flight.is_broken = true;
        if !self.exchange.break_off() {
            self.tear_at_end();
        }
        self.end_answer();
        self.end_sent_exchanges(cx);
    }

    /// The upstream took too long; or a tunnel is to be looked at.
    pub(in super::super) fn time_out_forward(&mut self, cx: &mut LoopContext) -> Fate {
        let Some(mut forwarding) = self.forwarding.take() else { return Fate::Keep };
        if forwarding.is_tunnel() {
            return self.look_at_tunnel(forwarding, cx);
        }
        if std::mem::take(&mut forwarding.awaits_continue) && !forwarding.is_opening() {
            self.exchange.send_continue(&mut self.io.outbox.buffer(&mut cx.buffers));
            self.forwarding = Some(forwarding);
            return Fate::Keep;
        }
        let (cause, text) = match forwarding.stage {
            _ if forwarding.is_opening() => {
                (FailureCause::ConnectTimeout, "no connection within connect_timeout")
            }
            Stage::Asking => (FailureCause::AnswerTimeout, "no answer for answer_timeout"),
            Stage::Answering | Stage::Tunnel { .. } => {
                (FailureCause::AnswerTimeout, "no content for answer_timeout")
            }
        };
        self.fail_forward(*forwarding, UpstreamFailure::new(cause, text), cx);
        Fate::Keep
    }

    /// A tunnel ends when nothing went through it for long, or its app has drained for long.
    fn look_at_tunnel(&mut self, forwarding: Box<Forwarding>, cx: &mut LoopContext) -> Fate {
        let idle_timeout = forwarding.forward.config().tunnel_idle_timeout;
        self.is_cut = self.is_drained_out(&forwarding, cx);
        let idle_ms = cx.clock.now_ms().saturating_sub(forwarding.moved_ms);
        if !self.is_cut && idle_ms < milliseconds(idle_timeout) {
            self.forwarding = Some(forwarding);
            return Fate::Keep;
        }
        if self.is_cut {
            forwarding.count_cut();
        }
        self.forwarding = Some(forwarding);
        self.drop_forward(cx);
        Fate::Gone
    }

    /// Whether the app, or the upstream, has drained for as long as a tunnel may last then.
    fn is_drained_out(&self, forwarding: &Forwarding, cx: &LoopContext) -> bool {
        let policy = forwarding.forward.config().drain_tunnels;
        let DrainTunnels::CutAfter(after) = policy else { return false };
        let guard = self.in_flight.last().and_then(|flight| flight.guard.as_ref());
        let app = guard.and_then(|guard| guard.entry().drain().drain_start_ns());
        let upstream = forwarding.chosen.endpoint().drained_at_ns();
        let begun_ns = app.into_iter().chain(upstream).min();
        begun_ns.is_some_and(|begun_ns| {
            Duration::from_nanos(cx.clock.now_ns().saturating_sub(begun_ns)) >= after
        })
    }

    /// The exchange ends otherwise: nobody waits for the upstream any more.
    pub(in super::super) fn drop_forward(&mut self, cx: &mut LoopContext) {
        if let Some(forwarding) = self.forwarding.take() {
            self.note_use(&forwarding.upstream_use(None, cx.clock.now_ns()), cx);
            cx.upstreams.forget(&forwarding.conn);
            if forwarding.stage != Stage::Asking {
                // A mere end could be taken for the answer's.
                self.io.reset_at_close();
            }
        }
    }

    /// Counts the failure of an upstream, and has it logged.
    pub(super) fn note_failure(
        &self,
        forward: &Forward,
        chosen: &Chosen,
        failure: UpstreamFailure,
        cx: &mut LoopContext,
    ) {
        let note = chosen.failed(failure, cx.clock.now_ns());
        if note.unlogged.is_none() && !note.ejected {
            return;
        }
        cx.reports.push(ControlEvent::UpstreamFailed(Box::new(FailureReport {
            host: self.app_host().to_owned(),
            upstream: Some(chosen.endpoint().url().to_owned()),
            failure,
            unlogged: note.unlogged,
            ejected_for: note.ejected.then_some(forward.config().eject_for),
        })));
    }

    /// The same where there was no upstream to ask.
    pub(super) fn note_unserved(
        &mut self,
        forward: &Forward,
        failure: UpstreamFailure,
        cx: &mut LoopContext,
    ) {
        let unlogged = forward.note_unserved(failure, cx.clock.now_ns());
        if unlogged.is_some() {
            cx.reports.push(ControlEvent::UpstreamFailed(Box::new(FailureReport {
                host: self.app_host().to_owned(),
                upstream: None,
                failure,
                unlogged,
                ejected_for: None,
            })));
        }
        let reason = Some(failure.cause.name());
        self.note_use(&UpstreamUse { url: "", tries: 0, time: Duration::ZERO, reason }, cx);
    }

    /// Has the access line of the exchange tell of the upstream.
    pub(super) fn note_use(&mut self, used: &UpstreamUse<'_>, cx: &LoopContext) {
        let flight: Option<&mut InFlight> = self.in_flight.last_mut();
        if let Some(access) = &cx.access
            && let Some(record) = flight.and_then(|flight| flight.record.as_mut())
        {
            access.note_upstream(record, used);
        }
    }
}
