//! From a request to its answer: asks the app, and carries out its reply.
//!
//! I9: an app's panic becomes the exchange's 500.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{
    super::context::LoopContext,
    content::{Body, Content},
    outgoing::Outgoing,
    own_answers,
    parked::Parked,
    state::{Answering, Exchange},
};
use crate::{
    app::{App, Arrival, COPIED_BYTES_MAX, Context, Filters, OnContent, Reply, Segment},
    hosted::AppLife,
    http::{Refused, RequestHead, Response},
    logging::event,
};

impl Exchange {
    /// Lets the app of this life answer.
    pub(in super::super) fn answer_by_app(
        &mut self,
        life: &AppLife,
        head: &RequestHead<'_>,
        out: &mut Outgoing<'_>,
        cx: &mut LoopContext,
    ) {
        let hosted = life.app();
        if !hosted.filters.is_empty() && self.is_stopped_by(&hosted.filters, head, out, cx) {
            return;
        }
        cx.gauges.ask(life.id().as_u64());
        let reply = self.ask_app(&*hosted.app, life.host(), head, out, cx);
        if let Reply::Forward(forward) = reply {
            return self.begin_forward(forward, head.content(), out, cx);
        }
        if !is_short(&reply) || out.reads_content() {
            self.flight.remember_request(head.method().as_str(), head.target());
        }
        self.answer_or_park(reply, out, cx);
    }

    /// Runs the filters on a request; true if one of them answers. Most apps have none.
    #[cold]
    fn is_stopped_by(
        &mut self,
        filters: &Filters,
        head: &RequestHead<'_>,
        out: &mut Outgoing<'_>,
        cx: &mut LoopContext,
    ) -> bool {
        let arrival = Arrival {
            peer: out.peer,
            scheme: out.scheme(),
            has_client_certificate: out.io.client_certificate().is_some(),
            tls_port: cx.tls.view.port(),
            now_ns: cx.clock.now_ns(),
        };
        if let Some(answer) = filters.answer(head, arrival) {
            self.answer_or_park(Reply::Full(answer), out, cx);
            return true;
        }
        self.flight.content = filters.stage(head).map(|stage| Box::new(Content::behind(stage)));
        false
    }

    /// Lets the server's own app for a class answer.
    pub(in super::super) fn answer_by_side_app(
        &mut self,
        app: &dyn App,
        head: &RequestHead<'_>,
        out: &mut Outgoing<'_>,
        cx: &mut LoopContext,
    ) {
        let reply = self.ask_app(app, out.class.name(), head, out, cx);
        if reply.status() == Some(401) {
            // An unauthorized client's connection keeps no place.
            out.close_after();
        }
        self.answer_or_park(reply, out, cx);
    }

    #[inline(always)]
    fn ask_app<'a>(
        &self,
        app: &'a dyn App,
        host: &str,
        head: &RequestHead<'_>,
        out: &Outgoing<'_>,
        cx: &LoopContext,
    ) -> Reply<'a> {
        let context = Context {
            loop_index: cx.index,
            now: cx.clock.now(),
            wall: cx.clock.wall(),
            peer: out.peer,
            scheme: out.scheme(),
            client_certificate: out.io.client_certificate(),
            request_id: self.flight.id(),
        };
        let reply = catch_unwind(AssertUnwindSafe(|| app.handle(head, &context)));
        reply.unwrap_or_else(|_| panicked(host))
    }

    /// Errors are written at once: a client with a large body shouldn't have to send all of it.
    /// Every other answer waits for the end of the request's content.
    #[inline(always)]
    pub(in super::super) fn answer_or_park(
        &mut self,
        reply: Reply<'_>,
        out: &mut Outgoing<'_>,
        cx: &mut LoopContext,
    ) {
        if !out.reads_content() || reply.status().is_some_and(|status| status >= 400) {
            return self.give_reply(reply, out, cx);
        }
        out.send_continue(cx);
        self.park(match reply {
            Reply::Collect(on_content) => Parked::Collect(on_content, Vec::new()),
            reply => Parked::Content(reply.into_owned()),
        });
    }

    #[inline(always)]
    fn give_reply(&mut self, reply: Reply<'_>, out: &mut Outgoing<'_>, cx: &mut LoopContext) {
        match reply {
            Reply::Full(response) => self.respond(response, out, cx),
            Reply::Files { head, content } => {
                out.write(head, Body::Segments(content), &mut self.flight, cx);
            }
            Reply::After(delay, response) => {
                self.park(Parked::Until(cx.clock.passed_ms(delay), response.into_owned()));
                out.progress();
            }
            Reply::Collect(on_content) => self.give_collected(on_content, &[], out, cx),
            Reply::Later(start) => self.park_for_later(start, out, cx),
            // An app may forward the request, but not after it has read the content.
            Reply::Forward(_) => self.respond(own_answers::internal_error(), out, cx),
        }
    }

    fn give_collected(
        &mut self,
        on_content: Box<OnContent>,
        content: &[u8],
        out: &mut Outgoing<'_>,
        cx: &mut LoopContext,
    ) {
        if let Some(life) = self.flight.life() {
            cx.gauges.ask(life.as_u64());
        }
        let reply = catch_unwind(AssertUnwindSafe(|| on_content(content)));
        let reply = match reply {
            // The content is complete; there is no more to collect.
            Ok(Reply::Collect(_)) | Err(_) => panicked(self.host(out)),
            Ok(reply) => reply,
        };
        self.give_reply(reply, out, cx);
    }

    /// A piece of the request's content. Dropped unless the app wants it.
    pub(in super::super) fn on_content(&mut self, content: &[u8], cx: &mut LoopContext) {
        match &mut self.answering {
            Answering::Forwarded(forwarding) => forwarding.take_content(content, cx),
            Answering::Parked(parked) => {
                if let Parked::Collect(_, collected) = &mut **parked {
                    collected.extend_from_slice(content);
                }
            }
            Answering::Here => {}
        }
    }

    /// The request's content is complete: the exchange that waited for it goes on.
    pub(in super::super) fn on_content_end(
        &mut self,
        out: &mut Outgoing<'_>,
        cx: &mut LoopContext,
    ) {
        if let Answering::Forwarded(forwarding) = &mut self.answering {
            return forwarding.end_content(out, cx);
        }
        match self.unpark_if(|parked| matches!(parked, Parked::Content(_) | Parked::Collect(..))) {
            Some(Parked::Content(reply)) => self.give_reply(reply, out, cx),
            Some(Parked::Collect(on_content, content)) => {
                self.give_collected(on_content, &content, out, cx);
            }
            _ => {}
        }
    }

    /// A held-back answer is due.
    pub(super) fn on_due(&mut self, out: &mut Outgoing<'_>, cx: &mut LoopContext) {
        if let Some(Parked::Until(_, response)) =
            self.unpark_if(|parked| matches!(parked, Parked::Until(..)))
        {
            self.respond(response, out, cx);
        }
    }

    /// The request can't be served. Its exchange may have begun, if its content is broken.
    pub(in super::super) fn refuse(
        &mut self,
        refused: Refused,
        out: &mut Outgoing<'_>,
        cx: &mut LoopContext,
    ) {
        self.abandon(out, cx);
        out.progress();
        self.respond(own_answers::refused(refused), out, cx);
    }

    /// Writes a complete answer.
    pub(in super::super) fn respond(
        &mut self,
        response: Response<'_>,
        out: &mut Outgoing<'_>,
        cx: &mut LoopContext,
    ) {
        out.write(response, Body::Whole, &mut self.flight, cx);
    }
}

/// Whether an answer is likely to be sent within this turn.
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
