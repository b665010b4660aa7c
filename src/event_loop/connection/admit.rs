//! From a request to its exchange: admission to an app's life, or a refusal.
//!
//! I1, I10: every public request for an app goes through [`RegistryView::admit_beside`]; a request
//! of another class never does.
//!
//! [`RegistryView::admit_beside`]: crate::registry::RegistryView::admit_beside

use super::{
    super::{
        class::refusal,
        context::LoopContext,
        exchange::{self, Exchange, InFlight, Uncounted},
    },
    dispatcher::Dispatcher,
};
use crate::{
    app::{Peer, Reply},
    hosted::{AppGuard, HostedApp},
    http::{Method, Refused, RequestHead, StreamId},
    io::Unread,
    logging::TlsUse,
    message::Class,
    registry::{AppId, Draining, Refusal, Target},
    tls::{Negotiated, Served},
};

impl Dispatcher<'_> {
    /// Answers a request, or parks it. A request that is refused still belongs to its app.
    /// `unread`: the bytes behind its head.
    pub(super) fn answer(
        &mut self,
        stream: StreamId,
        head: &RequestHead<'_>,
        refused: Option<Refused>,
        unread: Unread<'_>,
        cx: &mut LoopContext,
    ) {
        if self.class != Class::Public {
            return self.answer_by_side_app(stream, head, refused, unread, cx);
        }
        let own_answer = if self.is_misdirected(head, cx) {
            exchange::misdirected()
        } else if exchange::is_server_options(head) {
            exchange::server_options()
        } else if head.method() == Method::Trace {
            exchange::trace()
        } else {
            let before = self.place_of(stream);
            match self.admit(before, head, cx) {
                Ok((guard, uncounted)) => {
                    // The reply borrows from the app; the loop entry keeps the app alive
                    // beside the guard.
                    let loop_entry = guard.loop_entry();
                    let is_for = |served: &Served| served.is_for(loop_entry.entry().host());
                    let is_misdirected = self.io.served().is_some_and(|served| !is_for(served));
                    let (asked, guard) = (Some(head), Some(guard));
                    let place = self.begin_exchange(stream, before, asked, guard, uncounted, cx);
                    return self.with_exchange_at(place, unread, |exchange, out| match refused {
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
                    let none = Uncounted::default();
                    let place = self.begin_exchange(stream, before, Some(head), None, none, cx);
                    return self.with_exchange_at(place, unread, |exchange, out| {
                        exchange.answer_or_park(Reply::Full(answer), out, cx);
                    });
                }
            }
        };
        let place = self.begin_unrouted(stream, Some(head), cx);
        let own_answer = refused.map_or(own_answer, exchange::refused);
        self.with_exchange_at(place, unread, |exchange, out| {
            exchange.answer_or_park(Reply::Full(own_answer), out, cx);
        });
    }

    /// Whether a request is for a host that this connection must not serve (I12).
    fn is_misdirected(&mut self, head: &RequestHead<'_>, cx: &mut LoopContext) -> bool {
        let Some(served) = self.io.served_mut() else { return false };
        !served.may_serve(head.host().map(|host| host.as_bytes()), &mut cx.tls.view)
    }

    /// Admits a request. If another exchange of the connection has the same life, both share its
    /// guard, or that of its stream's previous exchange is passed on. The second value is what the
    /// new exchange counts for those that passed it the guard.
    fn admit(
        &mut self,
        before: Option<usize>,
        head: &RequestHead<'_>,
        cx: &mut LoopContext,
    ) -> Result<(AppGuard, Uncounted), Refusal<HostedApp>> {
        let target = Target::new(head.host().map(|host| host.as_bytes()), head.path());
        let exchanges = self.exchanges.as_mut_slice();
        let mut is_passed_on = false;
        let guard = cx.view.admit_beside(target, |life| {
            let is_same = |place: &usize| exchanges[*place].flight.life() == Some(life);
            let Some(place) = before.filter(is_same) else {
                return if exchanges.is_empty() { None } else { share(exchanges, life) };
            };
            let held = &mut exchanges[place].flight.guard;
            let admitted = held.as_ref()?.enter_again();
            is_passed_on = admitted.is_ok();
            admitted.map(|()| held.take()).transpose()
        })?;
        let uncounted = match before {
            Some(place) if is_passed_on => exchanges[place].flight.pass_guard_on(&guard, cx),
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
        unread: Unread<'_>,
        cx: &mut LoopContext,
    ) {
        let Some(app) = cx.rules[self.class].app.clone() else { return };
        let place = self.begin_unrouted(stream, Some(head), cx);
        let (class, refused) = (self.class, refusal(self.class, head).or(refused));
        self.with_exchange_at(place, unread, |exchange, out| {
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
        unread: Unread<'_>,
        cx: &mut LoopContext,
    ) {
        let is_answered = |place: usize| self.exchanges[place].flight.is_answered();
        let current = self.place_of(stream).filter(|place| !is_answered(*place));
        let place = current.unwrap_or_else(|| self.begin_unrouted(stream, None, cx));
        self.with_exchange_at(place, unread, |exchange, out| exchange.refuse(refused, out, cx));
    }

    /// Adds an exchange that no app serves. Returns its place.
    fn begin_unrouted(
        &mut self,
        stream: StreamId,
        head: Option<&RequestHead<'_>>,
        cx: &mut LoopContext,
    ) -> usize {
        let before = self.place_of(stream);
        let place = self.begin_exchange(stream, before, head, None, Uncounted::default(), cx);
        self.exchanges[place].flight.is_unrouted = self.class == Class::Public;
        place
    }

    /// Adds an exchange behind the one at this place, which has the same stream. That entry is
    /// reused if it is spent, so a pipeline for one app needs only one. Returns the new place.
    fn begin_exchange(
        &mut self,
        stream: StreamId,
        before: Option<usize>,
        head: Option<&RequestHead<'_>>,
        guard: Option<AppGuard>,
        uncounted: Uncounted,
        cx: &mut LoopContext,
    ) -> usize {
        let app = guard.as_ref().map(|guard| guard.entry().host());
        let record = match (&mut cx.accounting.access, self.peer) {
            (Some(access), Peer::Tcp(peer)) if self.class == Class::Public => {
                let mut record = access.begin(peer.ip(), head, app);
                if let Some(tls) = self.io.negotiated() {
                    let Negotiated { version, cipher, is_resumed, .. } = tls;
                    let name = self.io.served().and_then(Served::name);
                    access.note_tls(&mut record, &TlsUse { version, cipher, name, is_resumed });
                }
                Some(record)
            }
            _ => None,
        };
        self.waits.end();
        let flight = InFlight::new(guard, record, uncounted, cx.clock.now_ns());
        let exchange = Exchange::new(cx.deliveries.next_number(), stream, flight);
        if let Some(place) = before
            && let Some(spent) = self.exchanges.get_mut(place)
            && spent.flight.is_spent()
        {
            *spent = exchange;
            return place;
        }
        self.exchanges.push(exchange);
        self.exchanges.len() - 1
    }
}

/// Admits a request with a share of the guard that an exchange of the connection has for its life.
#[cold]
fn share(exchanges: &mut [Exchange], life: AppId) -> Option<Result<AppGuard, Draining>> {
    let guards = exchanges.iter_mut().filter_map(|known| known.flight.guard.as_mut());
    guards.into_iter().find(|guard| guard.id() == life).map(AppGuard::share)
}
