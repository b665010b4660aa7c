//! From a request to its answer: admission, the app, what its reply asks of the loop, and the end
//! of the exchange.
//!
//! - I1, I10: every public request for an app goes through [`RegistryView::admit_after`]; an admin
//!   request never does.
//! - I9: a panic of an app is its exchange's 500.
//!
//! [`RegistryView::admit_after`]: crate::registry::RegistryView::admit_after

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{
    LoopContext,
    class::refusal,
    connection::Connection,
    in_flight::{InFlight, Passed},
    io::Mark,
    later::Awaited,
    own_answers,
};
use crate::{
    app::{App, COPIED_BYTES_MAX, Context, OnContent, Peer, Reply, Segment},
    http::{Method, Refused, RequestHead, Response},
    logging::{End, event},
    message::{AppGuard, AppLife, Class, HostedApp},
    registry::Refusal,
};

/// An exchange whose answer waits for something other than the socket.
pub(super) enum Parked {
    /// The answer is known, but the request's content is still coming: if that turns out broken,
    /// the request is refused, in whatever pieces it comes.
    Content(Reply<'static>),
    /// The app wants the request's content first; what came so far.
    Collect(Box<OnContent>, Vec<u8>),
    /// The app holds the answer back until this time of the loop's clock, in milliseconds.
    Until(u64, Response<'static>),
    /// The answer comes from outside the loop.
    Later(Awaited),
    /// The answer has begun; the rest of its content comes from outside the loop.
    Stream(Awaited),
}

impl Parked {
    /// When the answer is due, in the loop's milliseconds.
    pub(super) fn due_ms(&self) -> Option<u64> {
        match self {
            Self::Until(due, _) => Some(*due),
            Self::Content(_) | Self::Collect(..) | Self::Later(_) | Self::Stream(_) => None,
        }
    }

    /// Whether it is the app's turn, however long that takes.
    pub(super) fn waits_for_app(&self) -> bool {
        matches!(self, Self::Until(..) | Self::Later(_) | Self::Stream(_))
    }
}

impl Connection {
    /// Answers a request, or parks it. One that cannot be served belongs to its app all the same.
    pub(super) fn answer(
        &mut self,
        head: &RequestHead<'_>,
        refused: Option<Refused>,
        cx: &mut LoopContext,
    ) {
        self.wait_anew = true;
        if self.class != Class::Public {
            return self.answer_beside(head, refused, cx);
        }
        let own_answer = if own_answers::is_server_options(head) {
            own_answers::server_options()
        } else if head.method() == Method::Trace {
            own_answers::trace()
        } else {
            match self.admit(head, cx) {
                Ok((guard, passed)) => {
                    // The reply borrows from the app; the seat keeps it alive beside the guard.
                    let seat = guard.seat();
                    self.begin_exchange(Some(head), Some(guard), passed, cx);
                    return match refused {
                        Some(refused) => self.respond(own_answers::refused(refused), cx),
                        None => self.answer_by_app(seat.entry(), head, cx),
                    };
                }
                Err(Refusal::UnknownHost) => own_answers::unknown_host(),
                Err(Refusal::Draining(life)) => {
                    let left_ns =
                        life.drain().drain_deadline_ns().saturating_sub(cx.clock.now_ns());
                    let answer = own_answers::draining(left_ns.div_ceil(1_000_000_000).max(1));
                    // The life counts what it refuses.
                    self.begin_exchange(Some(head), None, Passed::default(), cx);
                    return self.answer_or_park(Reply::Full(answer), cx);
                }
            }
        };
        self.begin_exchange(Some(head), None, Passed::default(), cx).is_unrouted = true;
        let own_answer = refused.map_or(own_answer, own_answers::refused);
        self.answer_or_park(Reply::Full(own_answer), cx);
    }

    /// Admits a request, with the guard of the exchange before it where that is for the same life.
    /// What that one is to be counted as then comes beside the guard.
    fn admit(
        &mut self,
        head: &RequestHead<'_>,
        cx: &mut LoopContext,
    ) -> Result<(AppGuard, Passed), Refusal<HostedApp>> {
        let host = head.host().map(|host| host.as_bytes());
        let (mut before, mut none) =
            (self.in_flight.last_mut().filter(|flight| flight.guard.is_some()), None);
        let held = before.as_mut().map_or(&mut none, |flight| &mut flight.guard);
        let guard = cx.view.admit_after(host, held)?;
        let passed = match before {
            Some(flight) if flight.guard.is_none() => flight.pass_on(&guard, cx),
            _ => Passed::default(),
        };
        Ok((guard, passed))
    }

    fn answer_by_app(&mut self, life: &AppLife, head: &RequestHead<'_>, cx: &mut LoopContext) {
        let hosted = life.app();
        if let Some(limiter) = &hosted.rate_limiter
            && let Err(wait_s) = limiter.admit(self.peer, cx.clock.now_ns())
        {
            let answer = own_answers::too_many_requests(wait_s);
            return self.answer_or_park(Reply::Full(answer), cx);
        }
        let (app, host) = (&*hosted.app, life.host());
        cx.gauges.ask(life.id().as_u64());
        let reply = self.ask_app(app, host, head, cx);
        if let Reply::Forward(forward) = reply {
            return self.begin_forward(forward, head.content(), cx);
        }
        if (!is_short(&reply) || self.exchange.reads_content())
            && let Some(flight) = self.in_flight.last_mut()
        {
            flight.remember_request(head.method().as_str(), head.target());
        }
        self.answer_or_park(reply, cx);
    }

    /// Requests of the classes beside the public one hold no app's life, and are not in the access
    /// log.
    fn answer_beside(
        &mut self,
        head: &RequestHead<'_>,
        refused: Option<Refused>,
        cx: &mut LoopContext,
    ) {
        let Some(app) = cx.side_apps[self.class].clone() else { return };
        self.begin_exchange(Some(head), None, Passed::default(), cx);
        if self.class == Class::Health {
            self.exchange.close_after();
        }
        if let Some(refused) = refusal(self.class, head).or(refused) {
            // The peer may send on, and nothing of it is read as content.
            self.exchange.refuse(refused);
            return self.respond(own_answers::refused(refused), cx);
        }
        let reply = self.ask_app(&*app, self.class.name(), head, cx);
        if reply.status() == Some(401) {
            // A stranger's connection keeps no place.
            self.exchange.close_after();
        }
        self.answer_or_park(reply, cx);
    }

    fn ask_app<'a>(
        &self,
        app: &'a dyn App,
        host: &str,
        head: &RequestHead<'_>,
        cx: &LoopContext,
    ) -> Reply<'a> {
        let context = Context {
            loop_index: cx.index,
            now: cx.clock.now(),
            wall: cx.clock.wall(),
            peer: self.peer,
            request_id: self.in_flight.last().and_then(InFlight::id),
        };
        let reply = catch_unwind(AssertUnwindSafe(|| app.handle(head, &context)));
        reply.unwrap_or_else(|_| panicked(host))
    }

    /// Errors are told at once: a client that sends much should not have to send it all. Every
    /// other answer comes behind the request's content.
    fn answer_or_park(&mut self, reply: Reply<'_>, cx: &mut LoopContext) {
        if !self.exchange.reads_content() || reply.status().is_some_and(|status| status >= 400) {
            return self.give_reply(reply, cx);
        }
        self.exchange.send_continue(&mut self.io.outbox.buffer(&mut cx.buffers));
        self.parked = Some(Box::new(match reply {
            Reply::Collect(on_content) => Parked::Collect(on_content, Vec::new()),
            reply => Parked::Content(reply.into_owned()),
        }));
    }

    fn give_reply(&mut self, reply: Reply<'_>, cx: &mut LoopContext) {
        match reply {
            Reply::Full(response) => self.respond(response, cx),
            Reply::Files { head, content } => {
                let length = content.iter().map(Segment::length).sum();
                if self.write_head(&head, Some(length), cx) {
                    self.io.outbox.push_segments(content);
                }
                self.end_answer();
            }
            Reply::After(delay, response) => {
                let due = cx.clock.passed_ms(delay);
                self.parked = Some(Box::new(Parked::Until(due, response.into_owned())));
                self.wait_anew = true;
            }
            Reply::Collect(on_content) => self.give_collected(on_content, &[], cx),
            Reply::Later(start) => self.park_for_later(start, cx),
            // An app passes the request itself on, not what is made of its content.
            Reply::Forward(_) => self.respond(own_answers::internal_error(), cx),
        }
    }

    fn give_collected(&mut self, on_content: Box<OnContent>, content: &[u8], cx: &mut LoopContext) {
        let host = self.app_host();
        if let Some(life) = self.in_flight.last().and_then(InFlight::life) {
            cx.gauges.ask(life.as_u64());
        }
        let reply = catch_unwind(AssertUnwindSafe(|| on_content(content)));
        let reply = match reply {
            // There is no more content than that.
            Ok(Reply::Collect(_)) | Err(_) => panicked(host),
            Ok(reply) => reply,
        };
        self.give_reply(reply, cx);
    }

    /// Who answers the last exchange, for the log of events.
    pub(super) fn app_host(&self) -> &str {
        let guard = self.in_flight.last().and_then(|flight| flight.guard.as_ref());
        guard.map_or(self.class.name(), |guard| guard.entry().host())
    }

    /// A piece of the request's content; dropped unless the app wants it.
    pub(super) fn collect(&mut self, content: &[u8], cx: &mut LoopContext) {
        self.forward_content(content, cx);
        if let Some(Parked::Collect(_, collected)) = self.parked.as_deref_mut() {
            collected.extend_from_slice(content);
        }
    }

    /// The request's content is complete: what waited for it goes on.
    pub(super) fn content_complete(&mut self, cx: &mut LoopContext) {
        self.forward_content_end(cx);
        match self.parked.take().map(|parked| *parked) {
            Some(Parked::Content(reply)) => self.give_reply(reply, cx),
            Some(Parked::Collect(on_content, content)) => {
                self.give_collected(on_content, &content, cx);
            }
            parked => self.parked = parked.map(Box::new),
        }
    }

    /// The time of an answer that was held back has come.
    pub(super) fn answer_parked(&mut self, cx: &mut LoopContext) {
        if let Some(Parked::Until(_, response)) = self.parked.take().map(|parked| *parked) {
            self.respond(response, cx);
        }
    }

    /// Answers what cannot be served. The exchange may have begun (its content is broken).
    pub(super) fn answer_refused(&mut self, refused: Refused, cx: &mut LoopContext) {
        let begun = self.in_flight.last().is_some_and(|flight| !flight.is_answered());
        let is_public = self.class == Class::Public;
        if !begun {
            let flight = self.begin_exchange(None, None, Passed::default(), cx);
            flight.is_unrouted = is_public;
        }
        self.parked = None;
        self.drop_forward(cx);
        self.wait_anew = true;
        self.respond(own_answers::refused(refused), cx);
    }

    /// Takes an exchange into the account. An entry that is spent is used again: a pipeline for one
    /// app needs one.
    fn begin_exchange(
        &mut self,
        head: Option<&RequestHead<'_>>,
        guard: Option<AppGuard>,
        passed: Passed,
        cx: &mut LoopContext,
    ) -> &mut InFlight {
        let app = guard.as_ref().map(|guard| guard.entry().host());
        let record = match (&mut cx.access, self.peer) {
            (Some(access), Peer::Tcp(peer)) if self.class == Class::Public => {
                Some(access.begin(peer.ip(), head, app))
            }
            _ => None,
        };
        let flight = InFlight::new(guard, record, passed, cx.clock.now_ns());
        match self.in_flight.last_mut().filter(|last| last.is_spent()) {
            Some(spent) => *spent = flight,
            None => self.in_flight.push(flight),
        }
        self.in_flight.last_mut().expect("it was put there")
    }

    pub(super) fn respond(&mut self, response: Response<'_>, cx: &mut LoopContext) {
        if self.write_head(&response, Some(response.content().len() as u64), cx) {
            self.io.outbox.push_content(response.into_content());
        }
        self.end_answer();
    }

    /// Writes the head of an answer whose content has this length, or that is a stream. Returns
    /// whether content follows.
    pub(super) fn write_head(
        &mut self,
        response: &Response<'_>,
        length: Option<u64>,
        cx: &mut LoopContext,
    ) -> bool {
        if self.is_last_answer(cx) {
            self.exchange.close_after();
        }
        let start = self.io.outbox.end();
        let mut out = self.io.outbox.buffer(&mut cx.buffers);
        let opening = cx.clock.opening();
        let has_content = match length {
            Some(length) => self.exchange.respond(response, length, opening, &mut out),
            None => {
                self.exchange.begin_stream(response, opening, &mut out);
                true
            }
        };
        drop(out);
        self.note_head(response.status(), start);
        has_content
    }

    /// Writes the head of an answer that comes from an upstream piece by piece.
    pub(super) fn write_stream_head(
        &mut self,
        response: &Response<'_>,
        length: Option<u64>,
        has_date: bool,
        cx: &mut LoopContext,
    ) {
        // A client that still sends is not told to end: the upstream wants the rest.
        if self.is_last_answer(cx) && !self.exchange.reads_content() {
            self.exchange.close_after();
        }
        let start = self.io.outbox.end();
        let mut out = self.io.outbox.buffer(&mut cx.buffers);
        let opening = if has_date { &cx.dateless } else { cx.clock.opening() };
        match length {
            Some(length) => {
                self.exchange.begin_sized_stream(response, length, opening, &mut out);
            }
            None => self.exchange.begin_stream(response, opening, &mut out),
        }
        drop(out);
        self.note_head(response.status(), start);
    }

    /// A head was written, from this place of the output on.
    pub(super) fn note_head(&mut self, status: u16, start: Mark) {
        if let Some(flight) = self.in_flight.last_mut() {
            (flight.status, flight.begin) = (status, self.io.outbox.end());
            flight.head_bytes = flight.begin.bytes_since(start) as u32;
        }
    }

    pub(super) fn end_answer(&mut self) {
        let end = self.io.outbox.end();
        if let Some(flight) = self.in_flight.last_mut() {
            flight.end = end;
        }
    }

    /// Lets go of exchanges whose last byte is with the kernel.
    pub(super) fn end_sent_exchanges(&mut self, cx: &mut LoopContext) {
        let sent = self.io.outbox.sent();
        let ended = self.in_flight.iter().take_while(|flight| flight.end <= sent).count();
        if ended == 0 {
            return;
        }
        // About 25 ns for what a send(2) has sent, which takes a microsecond at least.
        let now_ns = cx.clock.read_ns();
        for flight in self.in_flight.drain(..ended) {
            flight.end(sent, End::Complete, now_ns, cx);
        }
    }

    /// The connection is going: what is in flight does not reach its end.
    pub(super) fn abort(mut self, cx: &mut LoopContext) {
        let sent = self.io.outbox.sent();
        self.parked = None;
        self.drop_forward(cx);
        let how = if self.is_cut { End::Cut } else { End::Aborted };
        let now_ns = cx.clock.read_ns();
        for flight in self.in_flight.drain(..) {
            flight.end(sent, how, now_ns, cx);
        }
        self.uncount(cx);
    }
}

/// Whether an answer is likely to be gone within this turn.
fn is_short(reply: &Reply<'_>) -> bool {
    let length = match reply {
        Reply::Full(response) => response.content().len() as u64,
        Reply::Files { content, .. } => content.iter().map(Segment::length).sum(),
        Reply::After(..) | Reply::Collect(_) | Reply::Later(_) | Reply::Forward(_) => {
            return false;
        }
    };
    length < COPIED_BYTES_MAX as u64
}

fn panicked(host: &str) -> Reply<'static> {
    event!(Error, "app_panicked", host = host);
    Reply::Full(own_answers::internal_error())
}
