//! One upstream, to drain and to resume.

use std::sync::Arc;

use super::{
    endpoint::Endpoint,
    upstreams::{ChosenUpstream, Upstreams},
};
use crate::config::UpstreamAddress;

/// One upstream of one life, to drain and to resume; with the same upstream of older lives of the
/// app, which may still have exchanges with it.
#[derive(Clone, Debug)]
pub(crate) struct OneUpstream {
    own: Place,
    older: Arc<[Place]>,
}

/// One of the upstreams of a life.
#[derive(Clone, Debug)]
struct Place {
    upstreams: Arc<Upstreams>,
    index: usize,
}

impl OneUpstream {
    /// The upstream with this URL, in any spelling that a config allows.
    pub(crate) fn find(upstreams: &Arc<Upstreams>, url: &str) -> Option<Self> {
        let written = UpstreamAddress::parse(url).map(|address| address.to_string());
        let is_it = |own: &str| own == url || written.as_deref() == Some(own);
        let index = upstreams.endpoints().iter().position(|endpoint| is_it(endpoint.url()))?;
        let own = Place { upstreams: Arc::clone(upstreams), index };
        Some(Self { own, older: Arc::default() })
    }

    /// Adds the same upstream of older lives.
    pub(crate) fn with_older(self, older: impl IntoIterator<Item = Self>) -> Self {
        Self { older: older.into_iter().map(|older| older.own).collect(), ..self }
    }

    /// Its index among the upstreams of its life.
    pub(crate) fn index(&self) -> usize {
        self.own.index
    }

    /// Its URL, as in a config.
    pub(crate) fn url(&self) -> &str {
        self.own.endpoint().url()
    }

    /// Drains it: a loop that gets a message after this call does not choose it any more.
    pub(crate) fn drain(&self, now_ns: u64) {
        self.endpoints().for_each(|endpoint| endpoint.drain(now_ns));
    }

    /// Ends the drain. Older lives have no new requests, so they stay drained.
    pub(crate) fn resume(&self, now_ns: u64) {
        self.own.endpoint().resume(now_ns);
    }

    /// Exchanges under way.
    pub(crate) fn active(&self) -> u64 {
        self.endpoints().map(Endpoint::active).sum()
    }

    /// Whether an older life has exchanges with it.
    pub(crate) fn has_older(&self) -> bool {
        self.older.iter().any(|place| place.endpoint().active() > 0)
    }

    /// Exchanges that were cut.
    pub(crate) fn cut(&self) -> u64 {
        self.endpoints().map(Endpoint::cut).sum()
    }

    /// Whether a loop has no exchange with it and begins none. Only that loop may call this.
    pub(crate) fn is_left_by(&self, loop_index: usize) -> bool {
        self.is_drained() && self.endpoints().all(|endpoint| endpoint.active_in(loop_index) == 0)
    }

    /// Whether it is drained.
    pub(crate) fn is_drained(&self) -> bool {
        self.own.endpoint().is_drained()
    }

    /// Whether `chosen` is this upstream, in any of these lives.
    pub(crate) fn is_that_of(&self, chosen: &ChosenUpstream) -> bool {
        let is_there = |place: &Place| chosen.is(&place.upstreams, place.index);
        self.places().any(is_there)
    }

    fn places(&self) -> impl Iterator<Item = &Place> {
        std::iter::once(&self.own).chain(&*self.older)
    }

    fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.places().map(Place::endpoint)
    }
}

impl Place {
    fn endpoint(&self) -> &Endpoint {
        &self.upstreams.endpoints()[self.index]
    }
}
