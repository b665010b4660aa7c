//! Chooses an upstream for a request, and another one if it fails.
//!
//! A request is retried if no byte of it was sent, or if it is idempotent, has no content, and no
//! byte of an answer came (RFC 9110 §9.2.2). If the upstream had closed a kept connection, that
//! isn't its failure.

use std::time::Duration;

use super::{
    super::{context::LoopContext, upstream::UpstreamConn},
    forwarding::{Activity, Forwarding, Pace, SentRequest, Stage, Tries},
    outgoing::Outgoing,
    state::{Answering, Exchange},
};
use crate::{
    app::{ChosenUpstream, FailureCause, Forward, UpstreamFailure},
    http::{
        RequestContent,
        h1::{self, ClientRequest},
    },
    logging::UpstreamUse,
    message::ExchangeId,
};

/// A request that is being sent to an upstream.
struct Attempt {
    forward: Forward,
    content: RequestContent,
    tries: Tries,
    /// The upstream had closed a kept connection, so the next one must be new.
    fresh: bool,
    /// The protocol's state and the content so far, if no byte was sent.
    sent: Option<(h1::Client, Vec<u8>)>,
}

impl Attempt {
    /// Another upstream, if the request may be retried.
    fn next(&mut self, cx: &LoopContext) -> Option<ChosenUpstream> {
        self.forward.choose(cx.clock.now_ns(), self.tries.retry()?).ok()
    }
}

impl Exchange {
    /// Forwards a request.
    pub(super) fn begin_forward(
        &mut self,
        forward: Forward,
        content: RequestContent,
        out: &mut Outgoing<'_>,
        cx: &mut LoopContext,
    ) {
        let chosen = match forward.choose(cx.clock.now_ns(), &[]) {
            Ok(chosen) => chosen,
            Err(none) => {
                let failure = none.failure();
                self.note_unserved(&forward, failure, out, cx);
                return self.respond(failure.cause.response(), out, cx);
            }
        };
        if content.follows() {
            out.keep_trailers();
        }
        let tries = Tries::new(forward.config().retries);
        let attempt = Attempt { forward, content, tries, fresh: false, sent: None };
        self.try_upstreams(attempt, chosen, out, cx);
    }

    /// Connects to an upstream and writes the request. If that fails, tries the others.
    fn try_upstreams(
        &mut self,
        mut attempt: Attempt,
        mut chosen: ChosenUpstream,
        out: &mut Outgoing<'_>,
        cx: &mut LoopContext,
    ) {
        let mut conn = loop {
            attempt.tries.count += 1;
            let failure = match open_connection(&attempt, &mut chosen, self.id(out), cx) {
                Ok(conn) => break conn,
                Err(failure) => failure,
            };
            self.note_failure(&attempt.forward, &chosen, failure, out, cx);
            attempt.tries.note_failed(chosen.index(), failure.cause);
            let Some(next) = attempt.next(cx) else {
                let (url, reason) = (chosen.endpoint().url(), Some(failure.cause.name()));
                let (tries, time) = (attempt.tries.count, Duration::ZERO);
                let used = UpstreamUse { url, tries, time, reason };
                self.flight.note_upstream(&used, cx);
                return self.respond(failure.cause.response(), out, cx);
            };
            chosen = next;
        };
        let awaits_continue = out.awaits_continue();
        let begin = conn.io.outbox.end();
        let mut client = write_request(&attempt, &chosen, awaits_continue, &mut conn, cx);
        let outbox = &mut conn.io.outbox;
        let request = SentRequest::new(outbox, begin, cx.clock.now_ns());
        if let Some((sent, content)) = attempt.sent {
            // Content that the client sent before the connection was open.
            client.go_on_from(&sent);
            outbox.buffer(&mut cx.buffers).extend_from_slice(&content);
        }
        let Attempt { forward, content, tries, .. } = attempt;
        out.progress();
        self.answering = Answering::Forwarded(Box::new(Forwarding {
            forward,
            chosen,
            tries,
            conn,
            client,
            content,
            request,
            stage: Stage::Asking,
            awaits_continue,
            activity: Activity::new(cx.clock.now_ms()),
            pace: Pace::default(),
            due_ms: None,
        }));
    }

    /// There is no answer: retries with another upstream, if that is safe.
    pub(super) fn retry(
        &mut self,
        forwarding: Forwarding,
        failure: UpstreamFailure,
        out: &mut Outgoing<'_>,
        cx: &mut LoopContext,
    ) {
        let is_nothing_sent = forwarding.is_nothing_sent();
        let Forwarding { forward, mut chosen, mut tries, conn, client, content, .. } = forwarding;
        let is_closed = matches!(
            failure.cause,
            FailureCause::ClosedBeforeAnswer | FailureCause::ResetBeforeAnswer
        );
        let is_stale = conn.is_used && !client.answered() && is_closed;
        let mut next = None;
        if !conn.is_open() && chosen.next_address(cx.clock.now_ns()) {
            next = Some(chosen);
        } else {
            if !is_stale {
                self.note_failure(&forward, &chosen, failure, out, cx);
                tries.note_failed(chosen.index(), failure.cause);
            }
            self.flight.note_upstream(
                &UpstreamUse {
                    url: chosen.endpoint().url(),
                    tries: tries.count,
                    time: forwarding.request.age(cx.clock.now_ns()),
                    reason: Some(failure.cause.name()),
                },
                cx,
            );
        }
        let is_repeatable = is_repeatable(&forward, content) && !client.answered();
        let sent = is_nothing_sent
            .then(|| (client, forwarding.request.unsent_content(&conn.io.outbox).to_vec()));
        let mut attempt = Attempt { forward, content, tries, fresh: is_stale, sent };
        if is_stale && is_nothing_sent {
            // A stale connection is no upstream's failure, and happens once.
            attempt.tries.excuse_one();
        }
        if (is_nothing_sent || is_repeatable)
            && let Some(next) = next.or_else(|| attempt.next(cx))
        {
            return self.try_upstreams(attempt, next, out, cx);
        }
        self.respond(failure.cause.response(), out, cx);
    }
}

/// A connection to the upstream, kept or new. Tries its other addresses, if it has any.
fn open_connection(
    attempt: &Attempt,
    chosen: &mut ChosenUpstream,
    exchange: ExchangeId,
    cx: &mut LoopContext,
) -> Result<UpstreamConn, UpstreamFailure> {
    let now_ms = cx.clock.now_ms();
    let must_check = !is_repeatable(&attempt.forward, attempt.content);
    if !attempt.fresh
        && let Some(kept) = cx.upstreams.take(chosen, exchange, now_ms, must_check, &mut cx.buffers)
    {
        return Ok(kept);
    }
    loop {
        match cx.upstreams.open(chosen, exchange, &mut cx.buffers) {
            // Ports, and whether there is IPv6 at all, depend on the address.
            Err(_) if chosen.next_address(cx.clock.now_ns()) => {}
            opened => return opened,
        }
    }
}

/// Whether a request may be retried after some of its bytes were sent.
fn is_repeatable(forward: &Forward, content: RequestContent) -> bool {
    forward.is_idempotent() && !content.follows()
}

/// Writes the request to the upstream's outbox.
fn write_request(
    Attempt { forward, content, .. }: &Attempt,
    chosen: &ChosenUpstream,
    expects_continue: bool,
    conn: &mut UpstreamConn,
    cx: &mut LoopContext,
) -> h1::Client {
    let request = ClientRequest {
        content: *content,
        is_head: forward.is_head(),
        upgrade: forward.asks_upgrade(),
        expects_continue,
        close: forward.config().idle_connections == 0,
    };
    let mut head = conn.io.outbox.buffer(&mut cx.buffers);
    forward.write_head(chosen, &mut head);
    h1::Client::begin(&request, &mut head)
}
