//! The upstreams of one life, and the choice among them.
//!
//! Loops, health checks and operators share [`Upstreams`]. The state of the choice is in the
//! [`LoopShare`] of each loop, so that the request path writes nothing that loops share.
//!
//! - An upstream that is down or drained is never chosen.
//! - An ejected upstream is chosen only if there is no other; the last one is never ejected.
//! - I3: [`ChosenUpstream`] holds the count of active exchanges, [`KeptConn`] that of idle
//!   connections. Only their `Drop` releases it.

mod take_over;

use std::{
    marker::PhantomData,
    net::SocketAddr,
    path::Path,
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::AtomicBool},
    time::Duration,
};

use super::{
    addresses::LoopAddresses,
    balance::{self, Candidate},
    endpoint::Endpoint,
    endpoint_row::EndpointRow,
    failure::{FailureCause, FailureLog, UpstreamFailure},
    no_upstream::NoUpstream,
    upstream_tls::{LoadedFile, TlsWarning, UpstreamTls},
};
use crate::{
    config::{Balance, ProxyConfig},
    duration::nanoseconds,
    logging::RequestIds,
    tls::ClientTls,
};

/// The upstreams of one life of a proxy app.
#[derive(Debug)]
pub struct Upstreams {
    config: ProxyConfig,
    endpoints: Box<[Endpoint]>,
    /// Requests for which there was no upstream to ask.
    unserved: FailureLog,
    warnings: Vec<TlsWarning>,
    tls_files: Vec<LoadedFile>,
    /// A deploy has checked them.
    is_checked: AtomicBool,
}

impl Upstreams {
    /// Resolves the names of the upstreams; this blocks. An upstream without an address is down.
    pub(super) fn open(config: ProxyConfig, tls: UpstreamTls, loops: usize) -> Self {
        let UpstreamTls { each, warnings, files: tls_files } = tls;
        let endpoint = |(upstream, tls)| Endpoint::new(upstream, tls, loops);
        let endpoints: Box<[_]> = config.upstreams.iter().zip(each).map(endpoint).collect();
        endpoints.iter().for_each(Endpoint::resolve);
        let (unserved, is_checked) = (FailureLog::new(loops), AtomicBool::new(false));
        Self { config, endpoints, unserved, warnings, tls_files, is_checked }
    }

    /// A copy for the next life, with the current state. Counts start at 0 (I4).
    pub(super) fn again(&self, loops: usize) -> Self {
        let endpoint = |(upstream, before): (_, &Endpoint)| {
            Endpoint::new(upstream, before.tls().cloned(), loops)
        };
        let endpoints = self.config.upstreams.iter().zip(&self.endpoints).map(endpoint).collect();
        let (config, unserved) = (self.config.clone(), FailureLog::new(loops));
        let (warnings, tls_files) = (self.warnings.clone(), self.tls_files.clone());
        let is_checked = AtomicBool::new(false);
        let again = Self { config, endpoints, unserved, warnings, tls_files, is_checked };
        again.take_over(self);
        again
    }

    /// The app's config.
    pub(crate) fn config(&self) -> &ProxyConfig {
        &self.config
    }

    /// The upstreams, in the order of the config.
    pub(crate) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// What an operator should change about TLS to the upstreams.
    pub(crate) fn warnings(&self) -> &[TlsWarning] {
        &self.warnings
    }

    /// Whether a file for TLS to the upstreams is another than when it was loaded.
    pub(crate) fn has_changed_files(&self) -> bool {
        self.tls_files.iter().any(LoadedFile::has_changed)
    }

    /// Each upstream, as operators see it.
    pub(crate) fn rows(&self, now_ns: u64) -> Vec<EndpointRow> {
        self.endpoints.iter().map(|endpoint| endpoint.row(now_ns)).collect()
    }

    /// Stores a change that checks found of an upstream; `down_reason` is `Some` if it is down.
    pub(crate) fn set_health(&self, index: usize, down_reason: Option<String>, now_ns: u64) {
        self.endpoints[index].set_health(down_reason, now_ns);
    }

    /// The number of requests without an upstream, by cause.
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

    /// Counts a failure in a row. Ejects the upstream if there were enough, and returns whether it
    /// did.
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

    /// Why no upstream was found.
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

/// What follows from a failure, beside the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FailureNote {
    /// `Some` if it should be logged: how many were not logged since the last logged one.
    pub(crate) unlogged: Option<u64>,
    /// Whether the upstream was ejected.
    pub(crate) ejected: bool,
}

/// One loop's share of the upstreams of a life. Only its loop clones it, so its reference count is
/// not contended.
#[derive(Debug)]
pub(super) struct LoopShare {
    upstreams: Arc<Upstreams>,
    loop_index: usize,
    /// TLS to each upstream that speaks it. A loop has its own, because the sessions that it keeps
    /// for resumption are behind a lock: only this loop takes it, and only in handshakes.
    tls: Box<[Option<ClientTls>]>,
    /// Only this loop locks it, so it never waits.
    own: Mutex<ShareState>,
}

#[derive(Debug)]
struct ShareState {
    credit: Vec<i64>,
    addresses: Vec<LoopAddresses>,
    ids: RequestIds,
    /// Free buffers for the heads of requests.
    heads: Vec<Vec<u8>>,
}

/// Most free buffers for heads per loop, and the largest that is kept, in bytes.
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
        let tls = |endpoint: &Endpoint| endpoint.tls().map(ClientTls::with_sessions);
        let tls = upstreams.endpoints.iter().map(tls).collect();
        Self { upstreams, loop_index, tls, own: Mutex::new(own) }
    }

    pub(super) fn upstreams(&self) -> &Arc<Upstreams> {
        &self.upstreams
    }

    /// An id for a request that has none from the access log.
    pub(super) fn next_id(&self) -> crate::logging::RequestId {
        self.lock().ids.next()
    }

    /// An empty buffer for a head.
    pub(super) fn take_head(&self) -> Vec<u8> {
        self.lock().heads.pop().unwrap_or_else(|| Vec::with_capacity(1024))
    }

    /// Takes back a buffer.
    pub(super) fn give_head(&self, mut head: Vec<u8>) {
        head.clear();
        let heads = &mut self.lock().heads;
        if heads.len() < HEADS_KEPT_MAX && head.capacity() <= HEAD_KEPT_BYTES_MAX {
            heads.push(head);
        }
    }

    /// Counts a request without an upstream. If it should be logged, returns how many were not
    /// logged since the last logged one.
    pub(super) fn note_unserved(&self, failure: UpstreamFailure, now_ns: u64) -> Option<u64> {
        self.upstreams.unserved.note(self.loop_index, failure, now_ns)
    }

    /// Chooses an upstream that is not among `tried`.
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

/// The upstream of one exchange. The exchange counts as active until this is dropped. It stays on
/// the thread of its loop.
#[derive(Debug)]
#[must_use = "dropping it says that the exchange with the upstream is over"]
pub(crate) struct ChosenUpstream {
    share: Arc<LoopShare>,
    index: usize,
    /// `None` for a unix socket.
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
    /// Its index among the upstreams of its life.
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

    /// The address for a new connection.
    pub(crate) fn address(&self) -> ConnectAddress<'_> {
        match (self.address, self.endpoint().unix_path()) {
            (_, Some(path)) => ConnectAddress::Unix(path),
            (Some(address), None) => ConnectAddress::Tcp(address),
            (None, None) => unreachable!("an upstream without an address is not chosen"),
        }
    }

    /// How to speak TLS on a new connection, if the upstream speaks it.
    pub(crate) fn tls(&self) -> Option<&ClientTls> {
        self.share.tls[self.index].as_ref()
    }

    /// A connection could not be opened. Moves on to the upstream's next address and returns true,
    /// unless all its addresses were tried. As long as it returns true, the upstream has not
    /// failed.
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
        // Once there are addresses, there always are.
        self.address = next.or(self.address);
        true
    }

    /// Counts that the deadline of a drain cut this exchange.
    pub(crate) fn count_cut(&self) {
        self.endpoint().count_cut(self.share.loop_index);
    }

    /// Identifies the upstream within one loop.
    pub(crate) fn pool_key(&self) -> PoolKey {
        (Arc::as_ptr(&self.share).addr(), self.index)
    }

    /// Counts an idle connection to this upstream. `None` if the upstream is drained, so that the
    /// connection has no use.
    pub(crate) fn keep_conn(&self) -> Option<KeptConn> {
        if self.endpoint().is_drained() {
            return None;
        }
        self.endpoint().enter_idle(self.share.loop_index);
        let share = Arc::downgrade(&self.share);
        Some(KeptConn { share, index: self.index, _of_one_loop: PhantomData })
    }

    /// The head of an answer came, this long after the choice.
    pub(crate) fn succeeded(&self, latency: Duration) {
        self.endpoint().count_answer(self.share.loop_index, latency);
    }

    /// The answer came completely.
    pub(crate) fn completed(&self) {
        self.endpoint().end_row_of_broken();
    }

    /// No answer came, or an incomplete one.
    pub(crate) fn failed(&self, failure: UpstreamFailure, now_ns: u64) -> FailureNote {
        self.share.upstreams.on_failure(self.index, self.share.loop_index, failure, now_ns)
    }
}

impl Drop for ChosenUpstream {
    fn drop(&mut self) {
        self.endpoint().leave(self.share.loop_index);
    }
}

/// Identifies an upstream of a life within one loop: the address of its share, and the index. TLS
/// is the same for all connections of one key: another life has another key.
pub(crate) type PoolKey = (usize, usize);

/// An idle connection that a loop keeps. It counts as idle until this is dropped. It does not keep
/// the life alive, but the memory of its share, so that a [`PoolKey`] is not reused meanwhile.
#[derive(Debug)]
#[must_use = "dropping it says that the connection is not idle any more"]
pub(crate) struct KeptConn {
    share: Weak<LoopShare>,
    index: usize,
    _of_one_loop: PhantomData<Rc<()>>,
}

impl KeptConn {
    /// Whether a request can still use it: its life exists and the upstream is not drained.
    pub(crate) fn has_use(&self) -> bool {
        let share = self.share.upgrade();
        share.is_some_and(|share| !share.upstreams.endpoints[self.index].is_drained())
    }
}

impl Drop for KeptConn {
    fn drop(&mut self) {
        // Without the life, the count is gone too.
        if let Some(share) = self.share.upgrade() {
            share.upstreams.endpoints[self.index].leave_idle(share.loop_index);
        }
    }
}

fn later(now_ns: u64, time: Duration) -> u64 {
    now_ns.saturating_add(nanoseconds(time))
}
