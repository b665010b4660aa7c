//! From a request to its answer: admission, the app, what its reply asks of the loop, and the end
//! of the exchange.
//!
//! - I1, I10: every request for an app goes through [`RegistryView::admit_after`].
//! - I3: the guard of an exchange sits in its [`InFlight`] and leaves with it.
//! - I9: a panic of an app is its exchange's 500.
//!
//! [`RegistryView::admit_after`]: crate::registry::RegistryView::admit_after

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use super::{LoopContext, clock::milliseconds, connection::Connection, own_answers};
use crate::{
    app::{Context, OnContent, Reply, Segment},
    http::{Method, Refused, RequestHead, Response},
    logging::{AccessRecord, End, Outcome, event},
    message::AppGuard,
    registry::{AppId, Refusal},
};

/// An exchange whose answer is not all with the kernel.
pub(super) struct InFlight {
    /// Holds the app's life; none if no app serves this exchange, or a later one has it.
    pub(super) guard: Option<AppGuard>,
    record: Option<AccessRecord>,
    status: u16,
    started_ns: u64,
    /// Where the answer's content begins in the connection's output, and where it ends: never, as
    /// long as it is not written.
    begin: u64,
    end: u64,
}

/// An exchange whose answer waits for something other than the socket.
pub(super) enum Parked {
    /// The answer is known, but the request's content is still coming: if that turns out broken,
    /// the request is refused, in whatever pieces it comes.
    Content(Reply<'static>),
    /// The app wants the request's content first; what came so far.
    Collect(Box<OnContent>, Vec<u8>),
    /// The app holds the answer back until this time of the loop's clock, in milliseconds.
    Until(u64, Response<'static>),
}

impl Parked {
    /// When the answer is due, in the loop's milliseconds.
    pub(super) fn due_ms(&self) -> Option<u64> {
        match self {
            Self::Until(due, _) => Some(*due),
            Self::Content(_) | Self::Collect(..) => None,
        }
    }
}

impl InFlight {
    /// The life that the exchange holds.
    pub(super) fn life(&self) -> Option<AppId> {
        self.guard.as_ref().map(AppGuard::id)
    }

    /// The exchange is over, with so many bytes of the connection's output sent.
    pub(super) fn end(self, sent_total: u64, how: End, cx: &mut LoopContext) {
        let (Some(record), Some(access)) = (self.record, &mut cx.access) else { return };
        let outcome = Outcome {
            status: self.status,
            bytes: sent_total.min(self.end).saturating_sub(self.begin),
            duration: Duration::from_nanos(cx.clock.read_ns().saturating_sub(self.started_ns)),
            end: how,
        };
        access.finish(record, &outcome, cx.clock.wall());
    }
}

impl Connection {
    /// Answers a request, or parks it.
    pub(super) fn answer(&mut self, head: &RequestHead<'_>, cx: &mut LoopContext) {
        self.wait_anew = true;
        let own_answer = if own_answers::is_server_options(head) {
            own_answers::server_options()
        } else if head.method() == Method::Trace {
            own_answers::trace()
        } else {
            let host = head.host().map(|host| host.as_bytes());
            let mut none = None;
            let before = self.in_flight.last_mut().map_or(&mut none, |flight| &mut flight.guard);
            match cx.view.admit_after(host, before) {
                Ok(guard) => return self.answer_by_app(guard, head, cx),
                Err(Refusal::UnknownHost) => own_answers::unknown_host(),
                Err(Refusal::Draining(life)) => {
                    let left_ns =
                        life.drain().drain_deadline_ns().saturating_sub(cx.clock.now_ns());
                    own_answers::draining(left_ns.div_ceil(1_000_000_000).max(1))
                }
            }
        };
        self.begin_exchange(Some(head), None, cx);
        self.answer_or_park(Reply::Full(own_answer), cx);
    }

    fn answer_by_app(&mut self, guard: AppGuard, head: &RequestHead<'_>, cx: &mut LoopContext) {
        // The reply borrows from the app; the seat keeps it alive beside the guard.
        let seat = guard.seat();
        let context = Context {
            loop_index: cx.index,
            now: cx.clock.now(),
            wall: cx.clock.wall(),
            peer: self.peer,
        };
        self.begin_exchange(Some(head), Some(guard), cx);
        let app = seat.entry().app();
        let reply = catch_unwind(AssertUnwindSafe(|| app.handle(head, &context)));
        self.answer_or_park(reply.unwrap_or_else(|_| panicked(seat.entry().host())), cx);
    }

    /// Errors are told at once: a client that sends much should not have to send it all. Every
    /// other answer comes behind the request's content.
    fn answer_or_park(&mut self, reply: Reply<'_>, cx: &mut LoopContext) {
        if !self.exchange.reads_content() || reply.status().is_some_and(|status| status >= 400) {
            return self.give_reply(reply, cx);
        }
        self.exchange.send_continue(&mut self.output.buffer(&mut cx.buffers));
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
                if self.write_head(&head, length, cx) {
                    self.output.push_segments(content);
                }
                self.end_answer();
            }
            Reply::After(delay, response) => {
                // At least the next turn: a delay must not become a loop within this one.
                let due = cx.clock.now_ms().saturating_add(milliseconds(delay).max(1));
                self.parked = Some(Box::new(Parked::Until(due, response.into_owned())));
                self.wait_anew = true;
            }
            Reply::Collect(on_content) => self.give_collected(on_content, &[], cx),
        }
    }

    fn give_collected(&mut self, on_content: Box<OnContent>, content: &[u8], cx: &mut LoopContext) {
        let host = self.in_flight.last().and_then(|flight| flight.guard.as_ref());
        let host = host.map_or("", |guard| guard.entry().host());
        let reply = catch_unwind(AssertUnwindSafe(|| Reply::Full(on_content(content))));
        let reply = reply.unwrap_or_else(|_| panicked(host));
        self.give_reply(reply, cx);
    }

    /// A piece of the request's content; dropped unless the app wants it.
    pub(super) fn collect(&mut self, content: &[u8]) {
        if let Some(Parked::Collect(_, collected)) = self.parked.as_deref_mut() {
            collected.extend_from_slice(content);
        }
    }

    /// The request's content is complete: what waited for it goes on.
    pub(super) fn content_complete(&mut self, cx: &mut LoopContext) {
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
        let begun = self.in_flight.last().is_some_and(|flight| flight.end == u64::MAX);
        if !begun {
            self.begin_exchange(None, None, cx);
        }
        self.parked = None;
        self.wait_anew = true;
        self.respond(own_answers::refused(refused), cx);
    }

    /// Takes an exchange into the account. An entry that holds nothing any more, for its guard has
    /// passed on and no line is owed, is used again: a pipeline for one app needs one.
    fn begin_exchange(
        &mut self,
        head: Option<&RequestHead<'_>>,
        guard: Option<AppGuard>,
        cx: &mut LoopContext,
    ) {
        let app = guard.as_ref().map(|guard| guard.entry().host());
        let record = cx.access.as_mut().map(|access| access.begin(self.peer.ip(), head, app));
        let spent = |flight: &&mut InFlight| flight.guard.is_none() && flight.record.is_none();
        if let Some(flight) = self.in_flight.last_mut().filter(spent) {
            (flight.guard, flight.record, flight.end) = (guard, record, u64::MAX);
            return;
        }
        self.in_flight.push(InFlight {
            guard,
            record,
            status: 0,
            started_ns: cx.clock.now_ns(),
            begin: u64::MAX,
            end: u64::MAX,
        });
    }

    fn respond(&mut self, response: Response<'_>, cx: &mut LoopContext) {
        if self.write_head(&response, response.content().len() as u64, cx) {
            self.output.push_content(response.into_content());
        }
        self.end_answer();
    }

    fn write_head(&mut self, response: &Response<'_>, length: u64, cx: &mut LoopContext) -> bool {
        if cx.closing {
            self.exchange.close_after();
        }
        let mut out = self.output.buffer(&mut cx.buffers);
        let has_content = self.exchange.respond(response, length, cx.clock.opening(), &mut out);
        drop(out);
        if let Some(flight) = self.in_flight.last_mut() {
            (flight.status, flight.begin) = (response.status(), self.output.queued_total());
        }
        has_content
    }

    fn end_answer(&mut self) {
        let end = self.output.queued_total();
        if let Some(flight) = self.in_flight.last_mut() {
            flight.end = end;
        }
    }

    /// Lets go of exchanges whose last byte is with the kernel.
    pub(super) fn end_sent_exchanges(&mut self, cx: &mut LoopContext) {
        let sent = self.output.sent_total();
        let ended = self.in_flight.iter().take_while(|flight| flight.end <= sent).count();
        for flight in self.in_flight.drain(..ended) {
            flight.end(sent, End::Complete, cx);
        }
    }

    /// The connection is going: what is in flight does not reach its end.
    pub(super) fn abort(mut self, cx: &mut LoopContext) {
        let sent = self.output.sent_total();
        for flight in self.in_flight.drain(..) {
            flight.end(sent, End::Aborted, cx);
        }
    }
}

fn panicked(host: &str) -> Reply<'static> {
    event!(Error, "app_panicked", host = host);
    Reply::Full(own_answers::internal_error())
}
