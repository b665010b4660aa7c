//! How an exchange with an upstream ends.
//!
//! ```text
//!  asking ──fails──► another upstream (attempt), or 502, 503, 504
//!  answering ──fails──┬─ no byte of the head with the kernel ─► taken back: 502, 504
//!                     └─ else what is queued goes out ─► the connection ends, or is reset
//! ```
//! - A broken answer is never ended as if it were complete. If closing the connection doesn't show
//!   that, the connection is reset.
//! - It counts as the upstream's failure: it is logged, and may eject the upstream.

use std::time::Duration;

use super::{
    super::context::LoopContext,
    forwarding::{Forwarding, Stage},
    in_flight::InFlight,
    outgoing::Outgoing,
    state::{Answering, Exchange},
};
use crate::{
    app::{ChosenUpstream, FailureCause, Forward, UpstreamFailure, write_response_trailers},
    config::DrainTunnels,
    duration::milliseconds,
    http::Fields,
    logging::{End, UpstreamUse},
    message::{ControlEvent, FailureReport},
};

impl Forwarding {
    /// What the access log says about it, if it ends now.
    fn upstream_use(&self, reason: Option<FailureCause>, now_ns: u64) -> UpstreamUse<'_> {
        UpstreamUse {
            url: self.chosen.endpoint().url(),
            tries: self.tries.count,
            time: self.request.age(now_ns),
            reason: reason.or(self.tries.last_cause).map(FailureCause::name),
        }
    }
}

/// What has come of moving an exchange's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) enum Pumped {
    /// There was nothing to move.
    #[default]
    Nothing,
    Some,
    /// An upstream's part is complete, or all content is in the outbox.
    Complete,
}

/// The result of an exchange's deadline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) enum TimedOut {
    /// The exchange goes on, was answered, or was given up.
    #[default]
    GoesOn,
    /// It was a tunnel that has outlasted a drain.
    Cut,
}

impl Forwarding {
    /// Counts that a drain has cut it.
    pub(in super::super) fn count_cut(&self) {
        self.chosen.count_cut();
    }

    /// The exchange ends early: no client waits for the upstream any more.
    pub(super) fn abandon(
        self,
        flight: &mut InFlight,
        out: &mut Outgoing<'_>,
        cx: &mut LoopContext,
    ) {
        flight.note_upstream(&self.upstream_use(None, cx.clock.now_ns()), cx);
        cx.upstreams.forget(&self.conn);
        if self.stage != Stage::Asking {
            // The answer isn't complete, and a plain close could look like its end.
            out.io.reset_at_close();
        }
    }

    /// A tunnel ends when it was idle for too long, or has outlasted a drain.
    fn check_tunnel(
        &self,
        flight: &mut InFlight,
        out: &mut Outgoing<'_>,
        cx: &LoopContext,
    ) -> TimedOut {
        let idle_ms = self.activity.idle_ms(cx.clock.now_ms());
        if self.is_drained_out(flight, cx) {
            return TimedOut::Cut;
        }
        if idle_ms >= milliseconds(self.forward.config().tunnel_idle_timeout) {
            out.abort(End::Aborted, flight);
        }
        TimedOut::GoesOn
    }

    /// Whether the app or the upstream has drained for as long as a tunnel may last.
    fn is_drained_out(&self, flight: &InFlight, cx: &LoopContext) -> bool {
        let DrainTunnels::CutAfter(after) = self.forward.config().drain_tunnels else {
            return false;
        };
        let app = flight.guard.as_ref().and_then(|guard| guard.entry().drain().drain_start_ns());
        let upstream = self.chosen.endpoint().drained_at_ns();
        let begun_ns = app.into_iter().chain(upstream).min();
        begun_ns.is_some_and(|begun_ns| {
            Duration::from_nanos(cx.clock.now_ns().saturating_sub(begun_ns)) >= after
        })
    }
}

impl Exchange {
    /// Moves bytes between the client and an upstream, and to the client what is queued for it, as
    /// far as possible.
    pub(in super::super) fn pump(
        &mut self,
        out: &mut Outgoing<'_>,
        cx: &mut LoopContext,
    ) -> Pumped {
        let is_complete = self.pump_upstream(out, cx);
        if self.flight.content.is_some() {
            return self.pump_content(is_complete, out, cx);
        }
        if is_complete { Pumped::Complete } else { Pumped::Some }
    }

    /// Returns whether the answer of an upstream is complete.
    fn pump_upstream(&mut self, out: &mut Outgoing<'_>, cx: &mut LoopContext) -> bool {
        let mut is_complete = false;
        // Again after a failure: another upstream is tried, as often as retries are left.
        while let Answering::Forwarded(forwarding) = &mut self.answering {
            match forwarding.pump(&mut self.flight, out, cx) {
                Ok(false) => {
                    forwarding.rest(&mut cx.buffers);
                    if forwarding.activity.take(cx.clock.now_ms()) {
                        out.progress();
                    }
                    return false;
                }
                Ok(true) => self.end_forward(out, cx),
                Err(failure) => self.fail_forward(failure, out, cx),
            }
            is_complete = true;
        }
        is_complete
    }

    /// Cuts it: a drain has reached its deadline.
    pub(in super::super) fn cut(&mut self, out: &mut Outgoing<'_>, cx: &mut LoopContext) {
        if let Some(forwarding) = self.forwarding() {
            forwarding.count_cut();
        }
        self.abandon(out, cx);
        out.abort(End::Cut, &mut self.flight);
    }

    /// Takes the forwarding out: the exchange answers by itself again.
    fn take_forwarding(&mut self) -> Option<Box<Forwarding>> {
        match std::mem::replace(&mut self.answering, Answering::Here) {
            Answering::Forwarded(forwarding) => Some(forwarding),
            Answering::Here | Answering::Parked(_) => None,
        }
    }

    /// The upstream's part is done. Keeps its connection if possible.
    fn end_forward(&mut self, out: &mut Outgoing<'_>, cx: &mut LoopContext) {
        let Some(forwarding) = self.take_forwarding() else { return };
        self.flight.note_upstream(&forwarding.upstream_use(None, cx.clock.now_ns()), cx);
        let Forwarding { forward, chosen, mut conn, client, .. } = *forwarding;
        chosen.completed();
        let mut trailers = Vec::new();
        write_response_trailers(client.trailers().fields(), &mut trailers);
        out.end_response(&Fields::from_lines(trailers.into()), &mut self.flight, cx);
        out.progress();
        if !out.io.is_writable()
            && let Some((method, target)) = forward.request()
        {
            self.flight.remember_request(method, target);
        }
        let is_reusable = client.reusable() && !cx.closing.applies_to(out.class);
        if is_reusable && conn.is_clean(&mut cx.buffers) {
            conn.io.release(&mut cx.buffers);
            cx.upstreams.keep(conn, forward.config(), &chosen, cx.clock.now_ms());
        } else {
            conn.io.release(&mut cx.buffers);
            cx.upstreams.close(conn, &mut cx.buffers);
        }
    }

    /// There is no answer, or only a part of it.
    fn fail_forward(
        &mut self,
        failure: UpstreamFailure,
        out: &mut Outgoing<'_>,
        cx: &mut LoopContext,
    ) {
        let Some(forwarding) = self.take_forwarding() else { return };
        cx.upstreams.forget(&forwarding.conn);
        match forwarding.stage {
            Stage::Asking => self.retry(*forwarding, failure, out, cx),
            Stage::Answering | Stage::Tunnel { .. } => {
                self.break_off(&forwarding, failure.behind_head(), out, cx);
            }
        }
    }

    /// The answer has begun, and won't be completed.
    fn break_off(
        &mut self,
        forwarding: &Forwarding,
        failure: UpstreamFailure,
        out: &mut Outgoing<'_>,
        cx: &mut LoopContext,
    ) {
        self.note_failure(&forwarding.forward, &forwarding.chosen, failure, out, cx);
        let used = forwarding.upstream_use(Some(failure.cause), cx.clock.now_ns());
        self.flight.note_upstream(&used, cx);
        out.progress();
        let head_start = self.flight.head_start();
        if head_start >= out.io.committed() {
            self.flight.take_back();
            out.take_back(head_start);
            return self.respond(failure.cause.response(), out, cx);
        }
        self.flight.how = End::UpstreamBroke;
        out.break_off(&mut self.flight);
    }

    /// The deadlines up to this time have passed; perhaps its own isn't one of them.
    pub(in super::super) fn on_deadline(
        &mut self,
        by_ms: u64,
        out: &mut Outgoing<'_>,
        cx: &mut LoopContext,
    ) -> TimedOut {
        if self.due_ms().is_none_or(|due_ms| due_ms > by_ms) {
            return TimedOut::GoesOn;
        }
        self.end_wait();
        self.on_due(out, cx);
        self.on_upstream_deadline(out, cx)
    }

    /// The upstream took too long, or a tunnel is due for a check.
    fn on_upstream_deadline(&mut self, out: &mut Outgoing<'_>, cx: &mut LoopContext) -> TimedOut {
        let Answering::Forwarded(forwarding) = &mut self.answering else {
            return TimedOut::GoesOn;
        };
        if forwarding.is_tunnel() {
            return forwarding.check_tunnel(&mut self.flight, out, cx);
        }
        if std::mem::take(&mut forwarding.awaits_continue) && !forwarding.is_opening() {
            out.send_continue(cx);
            return TimedOut::GoesOn;
        }
        let (cause, text) = match forwarding.stage {
            _ if forwarding.is_opening() => {
                let text = if forwarding.conn.is_securing() {
                    "no end of the TLS handshake within connect_timeout"
                } else {
                    "no connection within connect_timeout"
                };
                (FailureCause::ConnectTimeout, text)
            }
            Stage::Asking => (FailureCause::AnswerTimeout, "no answer for answer_timeout"),
            Stage::Answering | Stage::Tunnel { .. } => {
                (FailureCause::AnswerTimeout, "no content for answer_timeout")
            }
        };
        self.fail_forward(UpstreamFailure::new(cause, text), out, cx);
        TimedOut::GoesOn
    }

    /// Counts an upstream's failure, and has it logged.
    pub(super) fn note_failure(
        &self,
        forward: &Forward,
        chosen: &ChosenUpstream,
        failure: UpstreamFailure,
        out: &Outgoing<'_>,
        cx: &mut LoopContext,
    ) {
        let note = chosen.failed(failure, cx.clock.now_ns());
        if note.unlogged.is_none() && !note.ejected {
            return;
        }
        cx.reports.defer(ControlEvent::UpstreamFailed(Box::new(FailureReport {
            host: self.host(out).to_owned(),
            upstream: Some(chosen.endpoint().url().to_owned()),
            failure,
            unlogged: note.unlogged,
            ejected_for: note.ejected.then_some(forward.config().eject_for),
        })));
    }

    /// The same if no upstream was available.
    pub(super) fn note_unserved(
        &mut self,
        forward: &Forward,
        failure: UpstreamFailure,
        out: &Outgoing<'_>,
        cx: &mut LoopContext,
    ) {
        let unlogged = forward.note_unserved(failure, cx.clock.now_ns());
        if unlogged.is_some() {
            cx.reports.defer(ControlEvent::UpstreamFailed(Box::new(FailureReport {
                host: self.host(out).to_owned(),
                upstream: None,
                failure,
                unlogged,
                ejected_for: None,
            })));
        }
        let reason = Some(failure.cause.name());
        self.flight
            .note_upstream(&UpstreamUse { url: "", tries: 0, time: Duration::ZERO, reason }, cx);
    }
}
