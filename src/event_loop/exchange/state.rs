//! What an exchange is: its account, and how its answer comes about.

use super::{
    super::context::LoopContext, forwarding::Forwarding, in_flight::InFlight, outgoing::Outgoing,
    parked::Parked,
};
use crate::{
    app::OneUpstream,
    message::{ExchangeId, ExchangeNumber},
};

/// One request and its answer.
pub(in super::super) struct Exchange {
    pub(in super::super) number: ExchangeNumber,
    pub(in super::super) flight: InFlight,
    pub(super) answering: Answering,
}

/// How the answer comes about.
pub(super) enum Answering {
    /// It is written, or about to be.
    Here,
    /// It waits for something other than a socket.
    Parked(Box<Parked>),
    /// It comes from an upstream.
    Forwarded(Box<Forwarding>),
}

/// What an exchange waits for, other than its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Awaits {
    /// A time of the loop's clock, in milliseconds.
    Time(u64),
    /// What an app does outside the loop.
    App,
    Upstream,
}

impl Exchange {
    pub(in super::super) fn new(number: ExchangeNumber, flight: InFlight) -> Self {
        Self { number, flight, answering: Answering::Here }
    }

    /// Its name for all that is outside of its connection.
    pub(super) fn id(&self, out: &Outgoing<'_>) -> ExchangeId {
        ExchangeId { connection: out.token, number: self.number }
    }

    pub(super) fn park(&mut self, parked: Parked) {
        self.answering = Answering::Parked(Box::new(parked));
    }

    /// Takes it from where it waits, if it waits so.
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

    /// How it is with an upstream, if it was passed on to one.
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

    /// Whether an answer from outside the loop is to come.
    pub(in super::super) fn awaits_delivery(&self) -> bool {
        matches!(self.parked(), Some(Parked::Later(_)))
    }

    /// What it waits for, if that is not its peer.
    pub(in super::super) fn awaits(&self) -> Option<Awaits> {
        match &self.answering {
            Answering::Here => None,
            Answering::Forwarded(forwarding) => {
                (!forwarding.waits_for_client()).then_some(Awaits::Upstream)
            }
            Answering::Parked(parked) => match parked.due_ms() {
                Some(due_ms) => Some(Awaits::Time(due_ms)),
                None => parked.waits_for_app().then_some(Awaits::App),
            },
        }
    }

    /// Whether it is with this upstream.
    pub(in super::super) fn is_forwarding_to(&self, upstream: &OneUpstream) -> bool {
        self.forwarding().is_some_and(|forwarding| forwarding.is_forwarding_to(upstream))
    }

    /// Method and target, where they are known.
    pub(in super::super) fn request(&self) -> Option<(&str, &str)> {
        let kept = self.flight.request.as_deref().and_then(|line| line.split_once(' '));
        let forwarding = || self.forwarding().filter(|_| !self.flight.is_answered());
        kept.or_else(|| forwarding()?.request())
    }

    /// The host of the app that answers, for the log of events.
    pub(super) fn host(&self, out: &Outgoing<'_>) -> &str {
        self.flight.host().unwrap_or(out.class.name())
    }

    /// No answer of an app's or an upstream's is waited for any more.
    pub(in super::super) fn abandon(&mut self, out: &mut Outgoing<'_>, cx: &mut LoopContext) {
        match std::mem::replace(&mut self.answering, Answering::Here) {
            Answering::Forwarded(forwarding) => forwarding.abandon(&mut self.flight, out, cx),
            Answering::Here | Answering::Parked(_) => {}
        }
    }
}
