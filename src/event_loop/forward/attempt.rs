//! Which upstream is asked, and which one next when that fails.
//!
//! What is asked again: anything, as long as no byte of it went out; else an idempotent request
//! without content, as long as no byte of an answer came (RFC 9110 §9.2.2). A kept line that its
//! upstream had closed is no failure of the upstream.

use std::time::Duration;

use smallvec::SmallVec;
use socket2::SockRef;

use super::{Forwarding, Stage};
use crate::{
    app::{Chosen, Forward},
    event_loop::{
        LoopContext,
        connection::{Connection, Fate},
        output::Output,
        own_answers,
        upstreams::{Line, NotOpened},
    },
    http::{RequestContent, UpstreamExchange, UpstreamRequest},
    logging::event,
};

/// A request on its way to an upstream.
struct Attempt {
    forward: Forward,
    content: RequestContent,
    tried: SmallVec<[usize; 4]>,
    retries_left: u32,
    /// A kept line was closed by its upstream: the next one is to be new.
    fresh: bool,
    /// The state of an exchange of which no byte went out, and its content so far.
    sent: Option<(UpstreamExchange, Vec<u8>)>,
}

impl Attempt {
    /// Another upstream, if the request may be asked once more.
    fn next(&mut self, cx: &LoopContext) -> Option<Chosen> {
        self.retries_left = self.retries_left.checked_sub(1)?;
        self.forward.choose(cx.clock.now_ns(), &self.tried).ok()
    }
}

/// Why an upstream gave no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// There is no connection.
    NotOpened,
    /// It closed the connection, or what came is no answer.
    Broken,
    /// It was silent for too long.
    Silent,
}

impl Connection {
    /// Passes a request on.
    pub(in super::super) fn begin_forward(
        &mut self,
        forward: Forward,
        content: RequestContent,
        cx: &mut LoopContext,
    ) {
        let chosen = match forward.choose(cx.clock.now_ns(), &[]) {
            Ok(chosen) => chosen,
            Err(none) => return self.respond(none.response(), cx),
        };
        if content.follows() {
            self.exchange.keep_trailers();
        }
        let retries_left = forward.config().retries;
        let tried = SmallVec::new();
        let attempt = Attempt { forward, content, tried, retries_left, fresh: false, sent: None };
        self.ask(attempt, chosen, cx);
    }

    /// Opens a line to an upstream and writes the request; goes on to others while that fails.
    fn ask(&mut self, mut attempt: Attempt, mut chosen: Chosen, cx: &mut LoopContext) {
        let line = loop {
            let answer = match self.open_line(&attempt, &mut chosen, cx) {
                Ok(line) => break line,
                Err(NotOpened::ByUpstream) => {
                    self.note_failure(&attempt.forward, &chosen, Failure::NotOpened, cx);
                    own_answers::bad_gateway()
                }
                Err(NotOpened::OutOfResources) => own_answers::out_of_resources(),
            };
            attempt.tried.push(chosen.index());
            match attempt.next(cx) {
                Some(next) => chosen = next,
                None => return self.respond(answer, cx),
            }
        };
        let awaits_continue = self.exchange.awaits_continue();
        let (mut output, mut exchange) = write_request(&attempt, &chosen, awaits_continue, cx);
        let head_bytes = output.buffered();
        if let Some((sent, content)) = attempt.sent {
            // The content that was taken from the client before the line was open.
            exchange.go_on_from(&sent);
            output.buffer(&mut cx.buffers).extend_from_slice(&content);
        }
        let Attempt { forward, content, tried, retries_left, .. } = attempt;
        self.wait_anew = true;
        self.forwarding = Some(Box::new(Forwarding {
            forward,
            chosen,
            tried,
            retries_left,
            line,
            exchange,
            content,
            output,
            head_bytes,
            input: None,
            asked_ns: cx.clock.now_ns(),
            stage: Stage::Asking,
            awaits_continue,
            moved: false,
            moved_ms: cx.clock.now_ms(),
        }));
    }

    /// A line to the upstream, kept or new; its other addresses are tried if it has any.
    fn open_line(
        &self,
        attempt: &Attempt,
        chosen: &mut Chosen,
        cx: &mut LoopContext,
    ) -> Result<Line, NotOpened> {
        let now_ms = cx.clock.now_ms();
        let asks_once = !is_repeatable(&attempt.forward, attempt.content);
        if !attempt.fresh
            && let Some(kept) = cx.upstreams.take(chosen, self.token, now_ms, asks_once)
        {
            return Ok(kept);
        }
        loop {
            match cx.upstreams.open(chosen.address(), self.token, now_ms) {
                // Ports, and whether there is IPv6 at all, are matters of the address.
                Err(_) if chosen.next_address(cx.clock.now_ns()) => {}
                opened => return opened,
            }
        }
    }

    fn note_failure(&self, forward: &Forward, chosen: &Chosen, failure: Failure, cx: &LoopContext) {
        let ejected = chosen.failed(cx.clock.now_ns());
        let upstream = chosen.endpoint().url();
        if ejected {
            let eject_for_ms = forward.config().eject_for.as_millis() as u64;
            let host = self.app_host();
            event!(
                Warn,
                "upstream_ejected",
                host = host,
                upstream = upstream,
                failure:? = failure,
                eject_for_ms = eject_for_ms,
            );
        }
    }

    /// There is no answer, or not all of it.
    pub(super) fn fail_forward(
        &mut self,
        forwarding: Forwarding,
        failure: Failure,
        cx: &mut LoopContext,
    ) -> Fate {
        let Forwarding { forward, mut chosen, mut tried, line, exchange, content, .. } = forwarding;
        let is_stale = line.is_used && !exchange.answered() && failure == Failure::Broken;
        let nothing_sent = forwarding.output.sent_total() == 0;
        cx.upstreams.forget(&line);
        if forwarding.stage != Stage::Asking {
            self.tear();
            return Fate::Gone;
        }
        let mut next = None;
        if failure == Failure::NotOpened && chosen.next_address(cx.clock.now_ns()) {
            next = Some(chosen);
        } else if !is_stale {
            self.note_failure(&forward, &chosen, failure, cx);
            tried.push(chosen.index());
        }
        let is_repeatable = is_repeatable(&forward, content) && !exchange.answered();
        let sent = nothing_sent
            .then(|| (exchange, forwarding.output.waiting()[forwarding.head_bytes..].to_vec()));
        let retries_left = forwarding.retries_left;
        let mut attempt = Attempt { forward, content, tried, retries_left, fresh: is_stale, sent };
        if is_stale && nothing_sent {
            // That the line was closed before was nobody's failure, and happens once.
            attempt.retries_left += 1;
        }
        if (nothing_sent || is_repeatable)
            && let Some(next) = next.or_else(|| attempt.next(cx))
        {
            self.ask(attempt, next, cx);
            return Fate::Keep;
        }
        let answer = match failure {
            Failure::Silent => own_answers::gateway_timeout(),
            Failure::NotOpened | Failure::Broken => own_answers::bad_gateway(),
        };
        self.respond(answer, cx);
        Fate::Keep
    }

    /// Has the client see that its answer is not whole: a mere end could be taken for one.
    pub(super) fn tear(&self) {
        // The socket is closed in any case.
        let _ = SockRef::from(self.socket()).set_linger(Some(Duration::ZERO));
    }
}

/// Whether a request may be asked again of which bytes went out.
fn is_repeatable(forward: &Forward, content: RequestContent) -> bool {
    forward.is_idempotent() && !content.follows()
}

/// Writes the request for an upstream.
fn write_request(
    Attempt { forward, content, .. }: &Attempt,
    chosen: &Chosen,
    expects_continue: bool,
    cx: &mut LoopContext,
) -> (Output, UpstreamExchange) {
    let request = UpstreamRequest {
        content: *content,
        is_head: forward.is_head(),
        upgrade: forward.asks_upgrade(),
        expects_continue,
        close: forward.config().idle_connections == 0,
    };
    let mut output = Output::default();
    let mut head = output.buffer(&mut cx.buffers);
    forward.write_head(chosen, &mut head);
    let exchange = UpstreamExchange::begin(&request, &mut head);
    drop(head);
    (output, exchange)
}
