//! The state of an exchange: its accounting, and where its answer comes from.

use super::{
    super::context::LoopContext, content::WAITING_BYTES_MAX, forwarding::Forwarding,
    in_flight::InFlight, outgoing::Outgoing, parked::Parked,
};
use crate::{
    app::OneUpstream,
    http::StreamId,
    io::Outbox,
    message::{ExchangeId, ExchangeNumber},
};

/// One request and its answer.
pub(in super::super) struct Exchange {
    pub(in super::super) number: ExchangeNumber,
    /// The stream that carries it.
    pub(in super::super) stream: StreamId,
    pub(in super::super) flight: InFlight,
    pub(super) answering: Answering,
}

/// Where the answer comes from.
pub(super) enum Answering {
    /// It is written here, or about to be.
    Here,
    /// It waits for something other than a socket.
    Parked(Box<Parked>),
    /// It comes from an upstream.
    Forwarded(Box<Forwarding>),
}

/// What an exchange waits for, apart from its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Awaits {
    /// A time of the loop's clock.
    Time,
    /// What an app does outside the loop.
    App,
    Upstream,
}

impl Exchange {
    pub(in super::super) fn new(
        number: ExchangeNumber,
        stream: StreamId,
        flight: InFlight,
    ) -> Self {
        Self { number, stream, flight, answering: Answering::Here }
    }

    /// Identifies it outside of its connection.
    pub(super) fn id(&self, out: &Outgoing<'_>) -> ExchangeId {
        ExchangeId { connection: out.token, number: self.number }
    }

    pub(super) fn park(&mut self, parked: Parked) {
        self.answering = Answering::Parked(Box::new(parked));
    }

    /// Takes the parked state out, if it matches.
    pub(super) fn unpark_if(&mut self, waits: impl FnOnce(&Parked) -> bool) -> Option<Parked> {
        if !matches!(&self.answering, Answering::Parked(parked) if waits(parked)) {
            return None;
        }
        match std::mem::replace(&mut self.answering, Answering::Here) {
            Answering::Parked(parked) => Some(*parked),
            Answering::Here | Answering::Forwarded(_) => None,
        }
    }

    fn parked(&self) -> Option<&Parked> {
        match &self.answering {
            Answering::Parked(parked) => Some(parked),
            Answering::Here | Answering::Forwarded(_) => None,
        }
    }

    /// Whether it has bytes to move: with an upstream, or content that is queued.
    pub(in super::super) fn is_moving(&self) -> bool {
        matches!(self.answering, Answering::Forwarded(_)) || self.flight.has_queued()
    }

    /// Whether bytes can be moved to its client now.
    pub(in super::super) fn has_more(&self, outbox: &Outbox) -> bool {
        let (buffered, queued) = (outbox.buffered(), self.flight.queued_bytes());
        let is_read = self.forwarding().is_some_and(Forwarding::has_more);
        (is_read && buffered + queued <= WAITING_BYTES_MAX)
            || (self.flight.has_queued() && buffered <= WAITING_BYTES_MAX)
    }

    /// Whether it is forwarded to this upstream.
    pub(in super::super) fn is_forwarded_to(&self, upstream: &OneUpstream) -> bool {
        self.forwarding().is_some_and(|forwarding| forwarding.is_forwarding_to(upstream))
    }

    /// Its forwarding to an upstream, if any.
    pub(in super::super) fn forwarding(&self) -> Option<&Forwarding> {
        match &self.answering {
            Answering::Forwarded(forwarding) => Some(forwarding),
            Answering::Here | Answering::Parked(_) => None,
        }
    }

    pub(in super::super) fn forwarding_mut(&mut self) -> Option<&mut Forwarding> {
        match &mut self.answering {
            Answering::Forwarded(forwarding) => Some(forwarding),
            Answering::Here | Answering::Parked(_) => None,
        }
    }

    /// Whether it waits for an answer from outside the loop.
    pub(in super::super) fn awaits_delivery(&self) -> bool {
        matches!(self.parked(), Some(Parked::Later(_)))
    }

    /// What it waits for, apart from its client.
    pub(in super::super) fn awaits(&self) -> Option<Awaits> {
        match &self.answering {
            Answering::Here => None,
            Answering::Forwarded(forwarding) => {
                (!forwarding.is_waiting_for_client()).then_some(Awaits::Upstream)
            }
            Answering::Parked(parked) => match parked.due_ms() {
                Some(_) => Some(Awaits::Time),
                None => parked.waits_for_app().then_some(Awaits::App),
            },
        }
    }

    /// Begins its wait, unless that runs already and isn't to begin again. Returns when it is over,
    /// in milliseconds of the loop's clock; `None` if it has no limit.
    pub(in super::super) fn begin_wait(&mut self, again: bool, now_ms: u64) -> Option<u64> {
        if let Answering::Forwarded(forwarding) = &mut self.answering {
            return Some(forwarding.begin_wait(again, now_ms));
        }
        self.due_ms()
    }

    /// Ends its wait: what it waits for next has its whole time.
    pub(in super::super) fn end_wait(&mut self) {
        if let Answering::Forwarded(forwarding) = &mut self.answering {
            forwarding.due_ms = None;
        }
    }

    /// When its wait is over.
    pub(super) fn due_ms(&self) -> Option<u64> {
        match &self.answering {
            Answering::Here => None,
            Answering::Forwarded(forwarding) => forwarding.due_ms,
            Answering::Parked(parked) => parked.due_ms(),
        }
    }

    /// Method and target, if they are known.
    pub(in super::super) fn request(&self) -> Option<(&str, &str)> {
        let kept = self.flight.request.as_deref().and_then(|line| line.split_once(' '));
        let forwarding = || self.forwarding().filter(|_| !self.flight.is_answered());
        kept.or_else(|| forwarding()?.request())
    }

    /// The host of the app that answers, for the event log.
    pub(super) fn host(&self, out: &Outgoing<'_>) -> &str {
        self.flight.host().unwrap_or(out.class.name())
    }

    /// Stops waiting for an app or an upstream.
    pub(in super::super) fn abandon(&mut self, out: &mut Outgoing<'_>, cx: &mut LoopContext) {
        match std::mem::replace(&mut self.answering, Answering::Here) {
            Answering::Forwarded(forwarding) => forwarding.abandon(&mut self.flight, out, cx),
            Answering::Here | Answering::Parked(_) => {}
        }
    }
}
