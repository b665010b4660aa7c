//! One upstream, for who drains it and brings it back.

use std::sync::Arc;

use super::{
    endpoint::Endpoint,
    upstreams::{ChosenUpstream, Upstreams},
};
use crate::config::UpstreamAddress;

/// One upstream of one life, for who drains it; together with the same one of older lives of the
/// app, whose exchanges may still be with it.
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
    /// The upstream of this URL, written in any way that a config may.
    pub(crate) fn find(upstreams: &Arc<Upstreams>, url: &str) -> Option<Self> {
        let written = UpstreamAddress::parse(url).map(|address| address.to_string());
        let is_it = |own: &str| own == url || written.as_deref() == Some(own);
        let index = upstreams.endpoints().iter().position(|endpoint| is_it(endpoint.url()))?;
        let own = Place { upstreams: Arc::clone(upstreams), index };
        Some(Self { own, older: Arc::default() })
    }

    /// Adds those of older lives.
    pub(crate) fn with_older(self, older: impl IntoIterator<Item = Self>) -> Self {
        Self { older: older.into_iter().map(|older| older.own).collect(), ..self }
    }

    /// Which of the life's upstreams it is.
    pub(crate) fn index(&self) -> usize {
        self.own.index
    }

    /// As it is written in a config.
    pub(crate) fn url(&self) -> &str {
        self.own.endpoint().url()
    }

    /// Takes it out: a loop that is told after this chooses it no more.
    pub(crate) fn drain(&self, now_ns: u64) {
        self.endpoints().for_each(|endpoint| endpoint.drain(now_ns));
    }

    /// Takes it back in. Older lives have no new requests for it.
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

    /// Whether a loop has no exchange with it, and begins none: to be asked by that loop.
    pub(crate) fn is_left_by(&self, loop_index: usize) -> bool {
        self.is_drained() && self.endpoints().all(|endpoint| endpoint.active_in(loop_index) == 0)
    }

    /// Whether it is out.
    pub(crate) fn is_drained(&self) -> bool {
        self.own.endpoint().is_drained()
    }

    /// Whether this was chosen of it.
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
