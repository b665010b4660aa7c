//! The upstreams of one life, and the choice among them.
//!
//! [`Upstreams`] is shared by loops, checks and operators. What the choice remembers is in the
//! [`LoopShare`] of each loop, so that the request path shares nothing that is written.
//!
//! - An upstream that is down or drained is never chosen.
//! - An ejected one only when there is no other; the last one is never ejected.
//! - I3: the count of active exchanges is held by [`ChosenUpstream`], that of kept connections by
//!   [`KeptLine`]; only their `Drop` releases it.

use std::{
    marker::PhantomData,
    net::SocketAddr,
    path::Path,
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use super::{
    addresses::LoopAddresses,
    balance::{self, Candidate},
    endpoint::{Endpoint, EndpointRow},
    failure::{FailureCause, FailureLog, UpstreamFailure},
};
use crate::{
    config::{Balance, ProxyConfig},
    logging::RequestIds,
};

/// The upstreams of one life of a proxy app, shared by all who deal with them.
#[derive(Debug)]
pub struct Upstreams {
    config: ProxyConfig,
    endpoints: Box<[Endpoint]>,
    /// Requests for which there was no upstream to ask.
    unserved: FailureLog,
}

impl Upstreams {
    /// Resolves the names of the upstreams, and waits for that. One that has no address is down.
    pub(super) fn open(config: ProxyConfig, loops: usize) -> Self {
        let endpoint = |upstream| Endpoint::new(upstream, loops);
        let endpoints: Box<[_]> = config.upstreams.iter().map(endpoint).collect();
        endpoints.iter().for_each(Endpoint::resolve);
        Self { config, endpoints, unserved: FailureLog::new(loops) }
    }

    /// The same for a further life, in the state of now; counts begin anew (I4).
    pub(super) fn again(&self, loops: usize) -> Self {
        let endpoint = |upstream| Endpoint::new(upstream, loops);
        let endpoints = self.config.upstreams.iter().map(endpoint).collect();
        let unserved = FailureLog::new(loops);
        let again = Self { config: self.config.clone(), endpoints, unserved };
        again.take_over(self);
        again
    }

    /// Takes over, by URL, the state of the upstreams of the life before: what its checks found if
    /// there are checks here too, ejections if there are any, and who is drained. To be called
    /// before the loops know of these.
    pub(crate) fn take_over(&self, old: &Self) {
        let (health, ejection) = (self.config.health.is_some(), self.config.eject_after != 0);
        for endpoint in &self.endpoints {
            let same = old.endpoints.iter().find(|other| other.url() == endpoint.url());
            // An app of an embedder may go on with the same ones.
            if let Some(same) = same.filter(|same| !std::ptr::eq(*same, endpoint)) {
                endpoint.take_over(same, health, ejection);
            }
        }
    }

    /// What the app was configured as.
    pub(crate) fn config(&self) -> &ProxyConfig {
        &self.config
    }

    /// The upstreams, in the order of the config.
    pub(crate) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Each upstream as operators see it.
    pub(crate) fn rows(&self, now_ns: u64) -> Vec<EndpointRow> {
        self.endpoints.iter().map(|endpoint| endpoint.row(now_ns)).collect()
    }

    /// What the checks say of an upstream from now on; a reason if it is down.
    pub(crate) fn set_health(&self, index: usize, down_reason: Option<String>, now_ns: u64) {
        self.endpoints[index].set_health(down_reason, now_ns);
    }

    /// How often there was no upstream to ask, by cause.
    pub(crate) fn unserved(&self) -> Vec<(FailureCause, u64)> {
        self.unserved.counts()
    }

    fn on_failure(
        &self,
        index: usize,
        loop_index: usize,
        failure: UpstreamFailure,
        now_ns: u64,
    ) -> FailureNote {
        let unlogged = self.endpoints[index].note_failure(loop_index, failure, now_ns);
        let ejected = failure.cause.ejects() && self.ejects(index, failure, now_ns);
        FailureNote { unlogged, ejected }
    }

    /// A further failure of an upstream: whether it is taken out for that.
    fn ejects(&self, index: usize, failure: UpstreamFailure, now_ns: u64) -> bool {
        let endpoint = &self.endpoints[index];
        let in_row = endpoint.lengthen_row(failure.is_behind_head);
        let eject_after = self.config.eject_after;
        let is_good = |(other, endpoint): (usize, &Endpoint)| {
            other != index && endpoint.is_usable() && !endpoint.is_ejected(now_ns)
        };
        let ejects = eject_after != 0
            && in_row >= eject_after
            && !endpoint.is_ejected(now_ns)
            && self.endpoints.iter().enumerate().any(is_good);
        if ejects {
            endpoint.eject(later(now_ns, self.config.eject_for));
        }
        ejects
    }

    /// Why none was found.
    fn why_none(&self) -> NoUpstream {
        let mut open = self.endpoints.iter().filter(|endpoint| !endpoint.is_drained()).peekable();
        if self.endpoints.iter().any(Endpoint::is_usable) {
            NoUpstream::Tried
        } else if open.peek().is_none() {
            NoUpstream::Drained
        } else if open.any(Endpoint::has_addresses) {
            NoUpstream::Down
        } else {
            NoUpstream::Unresolved
        }
    }
}

/// Why there is no upstream for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoUpstream {
    /// All are down, or some are and the others are drained.
    Down,
    /// As `Down`, and none of them has an address.
    Unresolved,
    /// All are drained.
    Drained,
    /// All that could be asked were asked for this request already.
    Tried,
}

impl NoUpstream {
    /// What that is for a request that asked none; what was tried has its own failure.
    pub(crate) fn failure(self) -> UpstreamFailure {
        match self {
            Self::Down | Self::Tried => {
                UpstreamFailure::new(FailureCause::NoUpstreamUp, "all upstreams are down")
            }
            Self::Unresolved => UpstreamFailure::new(
                FailureCause::ResolveFailed,
                "no name of an upstream has an address",
            ),
            Self::Drained => {
                UpstreamFailure::new(FailureCause::AllDrained, "all upstreams are drained")
            }
        }
    }
}

/// What comes of a failure beside the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FailureNote {
    /// It is to be logged, and so many before it were not.
    pub(crate) unlogged: Option<u64>,
    /// The upstream is taken out for a while.
    pub(crate) ejected: bool,
}

/// One loop's part of the upstreams of a life. Its count of references is written by its loop
/// alone.
#[derive(Debug)]
pub(super) struct LoopShare {
    upstreams: Arc<Upstreams>,
    loop_index: usize,
    /// Locked by this loop alone: never waited for.
    own: Mutex<ShareState>,
}

#[derive(Debug)]
struct ShareState {
    credit: Vec<i64>,
    addresses: Vec<LoopAddresses>,
    ids: RequestIds,
    /// Buffers of heads that are not needed any more, for the next ones.
    heads: Vec<Vec<u8>>,
}

/// Buffers for heads that a loop keeps, and the largest of them.
const HEADS_KEPT_MAX: usize = 64;
const HEAD_KEPT_BYTES_MAX: usize = 4096;

impl LoopShare {
    pub(super) fn new(upstreams: Arc<Upstreams>, loop_index: usize) -> Self {
        let count = upstreams.endpoints.len();
        let own = ShareState {
            credit: vec![0; count],
            addresses: (0..count).map(|_| LoopAddresses::default()).collect(),
            ids: RequestIds::new(),
            heads: Vec::new(),
        };
        Self { upstreams, loop_index, own: Mutex::new(own) }
    }

    pub(super) fn upstreams(&self) -> &Arc<Upstreams> {
        &self.upstreams
    }

    /// A request's id, where the access log gave it none.
    pub(super) fn next_id(&self) -> crate::logging::RequestId {
        self.lock().ids.next()
    }

    /// An empty buffer for a head.
    pub(super) fn take_head(&self) -> Vec<u8> {
        self.lock().heads.pop().unwrap_or_else(|| Vec::with_capacity(1024))
    }

    /// Takes a buffer back.
    pub(super) fn give_head(&self, mut head: Vec<u8>) {
        head.clear();
        let heads = &mut self.lock().heads;
        if heads.len() < HEADS_KEPT_MAX && head.capacity() <= HEAD_KEPT_BYTES_MAX {
            heads.push(head);
        }
    }

    /// There was no upstream to ask. If it is to be logged: how many were not since the last one.
    pub(super) fn note_unserved(&self, failure: UpstreamFailure, now_ns: u64) -> Option<u64> {
        self.upstreams.unserved.note(self.loop_index, failure, now_ns)
    }

    /// Chooses an upstream that was not tried for this request.
    pub(super) fn choose(
        self: &Arc<Self>,
        key: Option<u64>,
        now_ns: u64,
        tried: &[usize],
    ) -> Result<ChosenUpstream, NoUpstream> {
        let upstreams = &*self.upstreams;
        let open =
            |index: &usize| !tried.contains(index) && upstreams.endpoints[*index].is_usable();
        let good = |index: &usize| open(index) && !upstreams.endpoints[*index].is_ejected(now_ns);
        let index = self
            .choose_among(key, now_ns, good)
            .or_else(|| self.choose_among(key, now_ns, open))
            .ok_or_else(|| upstreams.why_none())?;
        let endpoint = &upstreams.endpoints[index];
        let mut own = self.lock();
        let address = own.addresses[index].pick(endpoint, now_ns);
        let untried_addresses = own.addresses[index].len().saturating_sub(1);
        drop(own);
        endpoint.enter(self.loop_index);
        let share = Arc::clone(self);
        Ok(ChosenUpstream { share, index, address, untried_addresses, _of_one_loop: PhantomData })
    }

    fn choose_among(
        &self,
        key: Option<u64>,
        now_ns: u64,
        filter: impl Fn(&usize) -> bool + Copy,
    ) -> Option<usize> {
        let upstreams = &*self.upstreams;
        let candidate = |index: usize| {
            let endpoint = &upstreams.endpoints[index];
            Candidate {
                index,
                weight: endpoint.weight(now_ns, upstreams.config.slow_start),
                active: endpoint.active_in(self.loop_index),
                hash: endpoint.hash(),
            }
        };
        let candidates = (0..upstreams.endpoints.len()).filter(filter).map(candidate);
        let (mut own, first) = (self.lock(), self.loop_index);
        match (&upstreams.config.balance, key) {
            (Balance::Hash(_), Some(key)) => balance::by_key(candidates, key),
            (Balance::LeastActive, _) => balance::least_active(candidates, &mut own.credit, first),
            (Balance::RoundRobin | Balance::Hash(_), _) => {
                balance::in_turn(candidates, &mut own.credit, first)
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, ShareState> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One exchange's hold of an upstream: it counts as active until this is dropped. It stays on the
/// thread of its loop.
#[derive(Debug)]
#[must_use = "dropping it says that the exchange with the upstream is over"]
pub(crate) struct ChosenUpstream {
    share: Arc<LoopShare>,
    index: usize,
    /// None for a unix socket.
    address: Option<SocketAddr>,
    untried_addresses: usize,
    _of_one_loop: PhantomData<Rc<()>>,
}

/// What to connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectAddress<'a> {
    Tcp(SocketAddr),
    Unix(&'a Path),
}

impl ChosenUpstream {
    /// Which upstream it is: for a loop's pool, and for what was tried.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Whether it is this upstream of this life.
    pub(super) fn is(&self, upstreams: &Arc<Upstreams>, index: usize) -> bool {
        self.index == index && Arc::ptr_eq(upstreams, &self.share.upstreams)
    }

    /// The upstream.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.share.upstreams.endpoints[self.index]
    }

    /// What to connect to, if no pooled connection is used.
    pub(crate) fn address(&self) -> ConnectAddress<'_> {
        match (self.address, self.endpoint().unix_path()) {
            (_, Some(path)) => ConnectAddress::Unix(path),
            (Some(address), None) => ConnectAddress::Tcp(address),
            (None, None) => unreachable!("an upstream without an address is not chosen"),
        }
    }

    /// The connection could not be opened: goes on to the next address of the same upstream, if it
    /// has one that was not tried. That is no failure of the upstream yet.
    pub(crate) fn next_address(&mut self, now_ns: u64) -> bool {
        let Some(address) = self.address else { return false };
        let avoid_for = self.share.upstreams.config.eject_for;
        let mut own = self.share.lock();
        let addresses = &mut own.addresses[self.index];
        addresses.avoid(address, later(now_ns, avoid_for));
        if self.untried_addresses == 0 {
            return false;
        }
        self.untried_addresses -= 1;
        let next = addresses.pick(self.endpoint(), now_ns);
        drop(own);
        // A name has addresses for ever once it had some.
        self.address = next.or(self.address);
        true
    }

    /// A drain has no more patience for this exchange: it ends with its connection.
    pub(crate) fn count_cut(&self) {
        self.endpoint().count_cut(self.share.loop_index);
    }

    /// Names the upstream within one loop.
    pub(crate) fn pool_key(&self) -> PoolKey {
        (Arc::as_ptr(&self.share).addr(), self.index)
    }

    /// Counts a connection to this upstream that is kept for later; none where that has no use: it
    /// is drained.
    pub(crate) fn keep_line(&self) -> Option<KeptLine> {
        if self.endpoint().is_drained() {
            return None;
        }
        self.endpoint().enter_idle(self.share.loop_index);
        let share = Arc::downgrade(&self.share);
        Some(KeptLine { share, index: self.index, _of_one_loop: PhantomData })
    }

    /// The head of an answer came, so long after the choice.
    pub(crate) fn succeeded(&self, latency: Duration) {
        self.endpoint().count_answer(self.share.loop_index, latency);
    }

    /// The answer came whole.
    pub(crate) fn completed(&self) {
        self.endpoint().end_row_of_broken();
    }

    /// No answer came, or not a whole one.
    pub(crate) fn failed(&self, failure: UpstreamFailure, now_ns: u64) -> FailureNote {
        self.share.upstreams.on_failure(self.index, self.share.loop_index, failure, now_ns)
    }
}

impl Drop for ChosenUpstream {
    fn drop(&mut self) {
        self.endpoint().leave(self.share.loop_index);
    }
}

/// An upstream of a life, as one loop names it: by where its share is in memory, and the index.
pub(crate) type PoolKey = (usize, usize);

/// A connection that a loop keeps for later: it counts as idle until this is dropped. It does not
/// keep the life, but its share's place in memory, so that a [`PoolKey`] is no other's meanwhile.
#[derive(Debug)]
#[must_use = "dropping it says that the connection is not idle any more"]
pub(crate) struct KeptLine {
    share: Weak<LoopShare>,
    index: usize,
    _of_one_loop: PhantomData<Rc<()>>,
}

impl KeptLine {
    /// Whether there may be a request for it: its life is there, and the upstream not drained.
    pub(crate) fn has_use(&self) -> bool {
        let share = self.share.upgrade();
        share.is_some_and(|share| !share.upstreams.endpoints[self.index].is_drained())
    }
}

impl Drop for KeptLine {
    fn drop(&mut self) {
        // With the life the count is gone.
        if let Some(share) = self.share.upgrade() {
            share.upstreams.endpoints[self.index].leave_idle(share.loop_index);
        }
    }
}

fn later(now_ns: u64, time: Duration) -> u64 {
    now_ns.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}
