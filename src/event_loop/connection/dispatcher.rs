//! Runs a connection's exchanges, while the bytes that it has received are being read.
//!
//! A request's head borrows from the input. So an exchange gets the rest of the connection
//! ([`Outgoing`]), and of the input only the bytes behind what it handles. What it wants of the
//! connection it says by its [`Effect`].

use mio::Token;
use smallvec::SmallVec;

use super::{
    super::exchange::{Effect, Exchange, Outgoing},
    state::{Connection, HandOver, State},
    turn::Turn,
    waits::Waits,
};
use crate::{
    app::Peer,
    http::{Protocol, StreamId},
    io::{InputBuffer, Outward, Unread},
    message::{Class, ExchangeNumber},
};

/// A connection that has reached its protocol, apart from its input.
pub(super) struct Dispatcher<'a> {
    pub(super) class: Class,
    pub(super) peer: &'a Peer,
    pub(super) io: Outward<'a>,
    pub(super) protocol: &'a mut Protocol,
    pub(super) exchanges: &'a mut SmallVec<[Exchange; 1]>,
    pub(super) waits: &'a mut Waits,
    token: Token,
    is_declined: bool,
}

impl Dispatcher<'_> {
    /// Runs the exchange that is found. `unread`: the bytes behind what it handles.
    #[inline(always)]
    fn run<R: Default>(
        &mut self,
        find: impl FnOnce(&mut [Exchange]) -> Option<&mut Exchange>,
        unread: Unread<'_>,
        act: impl FnOnce(&mut Exchange, &mut Outgoing<'_>) -> R,
    ) -> (R, Effect) {
        let Some(exchange) = find(self.exchanges) else {
            return Default::default();
        };
        let mut out = Outgoing {
            io: self.io.reborrow(),
            protocol: self.protocol,
            stream: exchange.stream,
            token: self.token,
            class: self.class,
            peer: *self.peer,
            unread,
            is_declined: self.is_declined,
            effect: Effect::default(),
        };
        let result = act(exchange, &mut out);
        let effect = out.effect;
        if effect.progressed {
            exchange.end_wait();
            self.waits.end();
        }
        (result, effect)
    }

    /// Runs the current exchange of a stream.
    #[inline(always)]
    pub(super) fn with_exchange_of<R: Default>(
        &mut self,
        stream: StreamId,
        unread: Unread<'_>,
        act: impl FnOnce(&mut Exchange, &mut Outgoing<'_>) -> R,
    ) -> R {
        let find = |exchange: &&mut Exchange| exchange.stream == stream;
        self.run(|exchanges| exchanges.iter_mut().rfind(find), unread, act).0
    }

    /// Runs the exchange at this place of the list.
    #[inline(always)]
    pub(super) fn with_exchange_at<R: Default>(
        &mut self,
        place: usize,
        unread: Unread<'_>,
        act: impl FnOnce(&mut Exchange, &mut Outgoing<'_>) -> R,
    ) -> R {
        self.run(|exchanges| exchanges.get_mut(place), unread, act).0
    }

    /// The place of the current exchange of a stream.
    pub(super) fn place_of(&self, stream: StreamId) -> Option<usize> {
        self.exchanges.iter().rposition(|exchange| exchange.stream == stream)
    }
}

impl Connection {
    /// Its parts, if it has reached its protocol.
    pub(super) fn split(
        &mut self,
    ) -> Option<(Option<&mut InputBuffer>, &mut Turn, Dispatcher<'_>)> {
        let State::Http(protocol) = &mut self.state else { return None };
        let (input, io) = self.io.split();
        let dispatcher = Dispatcher {
            class: self.class,
            peer: &self.peer,
            io,
            protocol,
            exchanges: &mut self.exchanges,
            waits: &mut self.waits,
            token: self.token,
            is_declined: self.hand_over == HandOver::Declined,
        };
        Some((input, &mut self.turn, dispatcher))
    }

    /// Runs the exchange of this number, if it still exists.
    pub(super) fn with_exchange<R: Default>(
        &mut self,
        number: ExchangeNumber,
        act: impl FnOnce(&mut Exchange, &mut Outgoing<'_>) -> R,
    ) -> R {
        let find = |exchange: &&mut Exchange| exchange.number == number;
        self.with_exchange_found(|exchanges| exchanges.iter_mut().find(find), act)
    }

    /// Runs the exchange at this place of the list.
    pub(super) fn with_exchange_at<R: Default>(
        &mut self,
        place: usize,
        act: impl FnOnce(&mut Exchange, &mut Outgoing<'_>) -> R,
    ) -> R {
        self.with_exchange_found(|exchanges| exchanges.get_mut(place), act)
    }

    fn with_exchange_found<R: Default>(
        &mut self,
        find: impl FnOnce(&mut [Exchange]) -> Option<&mut Exchange>,
        act: impl FnOnce(&mut Exchange, &mut Outgoing<'_>) -> R,
    ) -> R {
        let Some((input, _, mut dispatcher)) = self.split() else { return R::default() };
        let unread = Unread::behind(input.as_deref(), 0);
        let (result, effect) = dispatcher.run(find, unread, act);
        if effect.consumed > 0
            && let Some(input) = input
        {
            input.consume(effect.consumed);
        }
        result
    }
}
