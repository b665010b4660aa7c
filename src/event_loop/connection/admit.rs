//! From a request to its exchange: admission to an app's life, or a refusal.
//!
//! I1, I10: every public request for an app goes through [`RegistryView::admit_after`]; a request
//! of another class never does.
//!
//! [`RegistryView::admit_after`]: crate::registry::RegistryView::admit_after

use super::{
    super::{
        class::refusal,
        context::LoopContext,
        exchange::{self, Exchange, InFlight, Uncounted},
    },
    state::Connection,
};
use crate::{
    app::{Peer, Reply},
    hosted::{AppGuard, HostedApp},
    http::{Method, Refused, RequestHead, StreamId},
    message::Class,
    registry::Refusal,
    tls::Served,
};

impl Connection {
    /// Answers a request, or parks it. A request that is refused still belongs to its app.
    pub(super) fn answer(
        &mut self,
        stream: StreamId,
        head: &RequestHead<'_>,
        refused: Option<Refused>,
        cx: &mut LoopContext,
    ) {
        if self.class != Class::Public {
            return self.answer_by_side_app(stream, head, refused, cx);
        }
        let own_answer = if self.is_misdirected(head, cx) {
            exchange::misdirected()
        } else if exchange::is_server_options(head) {
            exchange::server_options()
        } else if head.method() == Method::Trace {
            exchange::trace()
        } else {
            match self.admit(stream, head, cx) {
                Ok((guard, uncounted)) => {
                    // The reply borrows from the app; the loop entry keeps the app alive
                    // beside the guard.
                    let loop_entry = guard.loop_entry();
                    let is_for = |served: &Served| served.is_for(loop_entry.entry().host());
                    let is_misdirected = self.io.served().is_some_and(|served| !is_for(served));
                    self.begin_exchange(stream, Some(head), Some(guard), uncounted, cx);
                    return self.with_exchange_of(stream, |exchange, out| match refused {
                        Some(refused) => exchange.respond(exchange::refused(refused), out, cx),
                        None if is_misdirected => {
                            let answer = Reply::Full(exchange::misdirected());
                            exchange.answer_or_park(answer, out, cx);
                        }
                        None => exchange.answer_by_app(loop_entry.entry(), head, out, cx),
                    });
                }
                Err(Refusal::UnknownHost) => exchange::unknown_host(),
                Err(Refusal::Draining(life)) => {
                    let left_ns =
                        life.drain().drain_deadline_ns().saturating_sub(cx.clock.now_ns());
                    let answer = exchange::draining(left_ns.div_ceil(1_000_000_000).max(1));
                    // The life counts the requests that it refuses.
                    self.begin_exchange(stream, Some(head), None, Uncounted::default(), cx);
                    return self.with_exchange_of(stream, |exchange, out| {
                        exchange.answer_or_park(Reply::Full(answer), out, cx);
                    });
                }
            }
        };
        self.begin_exchange(stream, Some(head), None, Uncounted::default(), cx);
        self.mark_unrouted(stream);
        let own_answer = refused.map_or(own_answer, exchange::refused);
        self.with_exchange_of(stream, |exchange, out| {
            exchange.answer_or_park(Reply::Full(own_answer), out, cx);
        });
    }

    /// Admits a request, with the guard of its stream's previous exchange if that has the same
    /// life. The second value is what the new exchange counts for those that passed it the guard.
    fn admit(
        &mut self,
        stream: StreamId,
        head: &RequestHead<'_>,
        cx: &mut LoopContext,
    ) -> Result<(AppGuard, Uncounted), Refusal<HostedApp>> {
        let host = head.host().map(|host| host.as_bytes());
        let before = self.current_of(stream).map(|exchange| &mut exchange.flight);
        let (mut before, mut none) = (before.filter(|flight| flight.guard.is_some()), None);
        let held = before.as_mut().map_or(&mut none, |flight| &mut flight.guard);
        let guard = cx.view.admit_after(host, held)?;
        let uncounted = match before {
            Some(flight) if flight.guard.is_none() => flight.pass_guard_on(&guard, cx),
            _ => Uncounted::default(),
        };
        Ok((guard, uncounted))
    }

    /// Requests of the other classes hold no app's life, and aren't in the access log.
    fn answer_by_side_app(
        &mut self,
        stream: StreamId,
        head: &RequestHead<'_>,
        refused: Option<Refused>,
        cx: &mut LoopContext,
    ) {
        let Some(app) = cx.rules[self.class].app.clone() else { return };
        self.begin_exchange(stream, Some(head), None, Uncounted::default(), cx);
        let (class, refused) = (self.class, refusal(self.class, head).or(refused));
        self.with_exchange_of(stream, |exchange, out| {
            if class == Class::Health {
                out.close_after();
            }
            match refused {
                Some(refused) => {
                    // The peer may send on; none of it is read as content.
                    out.refuse(refused);
                    exchange.respond(exchange::refused(refused), out, cx);
                }
                None => exchange.answer_by_side_app(&*app, head, out, cx),
            }
        });
    }

    /// Answers a request that can't be served. Its exchange may have begun, if its content is
    /// broken.
    pub(super) fn answer_refused(
        &mut self,
        stream: StreamId,
        refused: Refused,
        cx: &mut LoopContext,
    ) {
        if self.current_of(stream).is_none_or(|exchange| exchange.flight.is_answered()) {
            self.begin_exchange(stream, None, None, Uncounted::default(), cx);
            self.mark_unrouted(stream);
        }
        self.with_exchange_of(stream, |exchange, out| exchange.refuse(refused, out, cx));
    }

    /// Adds an exchange. A spent entry is reused, so a pipeline for one app needs only one.
    fn begin_exchange(
        &mut self,
        stream: StreamId,
        head: Option<&RequestHead<'_>>,
        guard: Option<AppGuard>,
        uncounted: Uncounted,
        cx: &mut LoopContext,
    ) {
        let app = guard.as_ref().map(|guard| guard.entry().host());
        let record = match (&mut cx.accounting.access, self.peer) {
            (Some(access), Peer::Tcp(peer)) if self.class == Class::Public => {
                Some(access.begin(peer.ip(), head, app))
            }
            _ => None,
        };
        self.waits.end();
        let flight = InFlight::new(guard, record, uncounted, cx.clock.now_ns());
        let exchange = Exchange::new(cx.deliveries.next_number(), stream, flight);
        match self.current_of(stream) {
            Some(before) if before.flight.is_spent() => *before = exchange,
            _ => self.exchanges.push(exchange),
        }
    }

    /// Marks the new exchange of a stream as belonging to no app.
    fn mark_unrouted(&mut self, stream: StreamId) {
        if self.class == Class::Public
            && let Some(new) = self.current_of(stream)
        {
            new.flight.is_unrouted = true;
        }
    }

    /// The exchange of this stream that began last.
    fn current_of(&mut self, stream: StreamId) -> Option<&mut Exchange> {
        self.exchanges.iter_mut().rfind(|exchange| exchange.stream == stream)
    }
}
