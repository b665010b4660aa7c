//! One upstream of one life: its state, its addresses, and the loops' counters.
//!
//! The state is written rarely (a check, an ejection, an operator) and read by every loop. Each
//! loop writes its own counters, and no two loops share a cache line of them. Each loop copies the
//! addresses when their generation changed; no lock is taken otherwise. Times are nanoseconds since
//! the process's epoch; 0 means never.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool, AtomicU32, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use crossbeam_utils::CachePadded;

use super::{
    balance,
    endpoint_row::{EndpointRow, EndpointState},
    failure::{FailureCause, FailureLog, UpstreamFailure},
    health::KnownHealth,
};
use crate::{
    config::{UpstreamAddress, UpstreamConfig},
    duration::nanoseconds,
    tls::ClientTls,
};

/// One upstream.
#[derive(Debug)]
pub(crate) struct Endpoint {
    address: UpstreamAddress,
    /// How to speak TLS, without kept sessions: each handshake checks the certificate.
    tls: Option<ClientTls>,
    url: String,
    authority: String,
    weight: u64,
    /// For rendezvous hashing: the same in every process.
    hash: u64,
    state: CachePadded<State>,
    details: Mutex<Details>,
    failures: FailureLog,
    loops: Box<[CachePadded<EndpointCounters>]>,
}

#[derive(Debug, Default)]
struct State {
    /// Whether checks found it down.
    is_down: AtomicBool,
    /// When an operator drained it.
    drained_at_ns: AtomicU64,
    ejected_until_ns: AtomicU64,
    /// When it last came back up; in an ejection, when that ends.
    up_since_ns: AtomicU64,
    /// Failures in a row before the head of an answer.
    failures_in_row: AtomicU32,
    /// Answers in a row that broke off after their head. A head does not reset this count: an
    /// upstream whose answers all break off sends a head each time.
    broken_in_row: AtomicU32,
    /// Changes with the addresses; 0 until there are any.
    generation: AtomicU64,
}

/// The state that does not fit into atomics.
#[derive(Debug, Default)]
struct Details {
    list: Vec<SocketAddr>,
    /// Why the last look-up of its name failed.
    error: Option<String>,
    /// Why checks found it down.
    down_reason: Option<String>,
    /// Whether any check has passed.
    has_passed: bool,
}

#[derive(Debug, Default)]
struct EndpointCounters {
    active: AtomicU64,
    idle: AtomicU64,
    cut: AtomicU64,
    requests: AtomicU64,
    answers: AtomicU64,
    latency_ns: AtomicU64,
}

/// Weights are multiplied by this, so that slow start can use fractions of a weight.
const WEIGHT_SCALE: u64 = 256;

impl Endpoint {
    pub(super) fn new(config: &UpstreamConfig, tls: Option<ClientTls>, loops: usize) -> Self {
        let url = config.address.to_string();
        Self {
            authority: config.address.authority(),
            weight: u64::from(config.weight),
            hash: balance::hash(url.as_bytes()),
            url,
            state: CachePadded::default(),
            details: Mutex::default(),
            failures: FailureLog::new(loops),
            loops: (0..loops).map(|_| CachePadded::default()).collect(),
            address: config.address.clone(),
            tls,
        }
    }

    /// Takes over the state of the same upstream in an earlier life: its health if `health`, its
    /// ejection if `ejection`, and its addresses if this one has none. Counts are not taken over
    /// (I4).
    pub(super) fn take_over(&self, old: &Self, health: bool, ejection: bool) {
        let before = {
            let details = old.lock();
            let (down_reason, has_passed) = (details.down_reason.clone(), details.has_passed);
            Details { list: details.list.clone(), error: None, down_reason, has_passed }
        };
        if !self.has_addresses() && !before.list.is_empty() {
            self.set_addresses(Ok(before.list));
        }
        self.failures.take_over(&old.failures);
        let (state, old) = (&self.state, &old.state);
        if health {
            state.is_down.store(before.down_reason.is_some(), Release);
            let mut details = self.lock();
            (details.down_reason, details.has_passed) = (before.down_reason, before.has_passed);
        }
        if ejection {
            state.failures_in_row.store(old.failures_in_row.load(Relaxed), Relaxed);
            state.broken_in_row.store(old.broken_in_row.load(Relaxed), Relaxed);
            state.ejected_until_ns.store(old.ejected_until_ns.load(Acquire), Release);
        }
        state.up_since_ns.store(old.up_since_ns.load(Relaxed), Relaxed);
        state.drained_at_ns.store(old.drained_at_ns.load(Acquire), Release);
    }

    /// Its URL, as in a config.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Its authority, for the Host field.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    /// How to speak TLS without kept sessions, if it speaks TLS.
    pub(crate) fn tls(&self) -> Option<&ClientTls> {
        self.tls.as_ref()
    }

    /// The path of its unix socket, if it has one.
    pub(crate) fn unix_path(&self) -> Option<&Path> {
        match &self.address {
            UpstreamAddress::Unix(path) => Some(path),
            UpstreamAddress::Tcp { .. } => None,
        }
    }

    /// Its TCP addresses; empty for a unix socket.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.lock().list.clone()
    }

    /// Whether it has a name, whose addresses can change.
    pub(crate) fn has_name(&self) -> bool {
        matches!(&self.address, UpstreamAddress::Tcp { host, .. } if literal(host).is_none())
    }

    /// Looks up its addresses. This blocks, so it must not be called on a loop. If a look-up fails,
    /// the addresses of the last one stay.
    pub(crate) fn resolve(&self) {
        let UpstreamAddress::Tcp { host, port, .. } = &self.address else { return };
        let found = match literal(host) {
            Some(ip) => Ok(vec![SocketAddr::new(ip, *port)]),
            None => (host.as_str(), *port).to_socket_addrs().map(Iterator::collect),
        };
        self.set_addresses(found);
    }

    pub(crate) fn set_addresses(&self, found: io::Result<Vec<SocketAddr>>) {
        let mut details = self.lock();
        match found {
            Ok(list) if list.is_empty() => details.error = Some("no address".to_owned()),
            Err(error) => details.error = Some(error.to_string()),
            Ok(mut list) => {
                details.error = None;
                let mut seen = std::collections::HashSet::new();
                list.retain(|address| seen.insert(*address));
                if list != details.list {
                    details.list = list;
                    // The lock is held, so there is one writer at a time.
                    let generation = self.state.generation.load(Relaxed);
                    self.state.generation.store(generation + 1, Release);
                }
            }
        }
    }

    /// Changes when the addresses do; 0 until there are any.
    pub(super) fn generation(&self) -> u64 {
        self.state.generation.load(Acquire)
    }

    /// Whether it is neither drained nor down. It may be ejected.
    pub(super) fn is_usable(&self) -> bool {
        !self.is_drained() && !self.is_down()
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.drained_at_ns().is_some()
    }

    /// When an operator drained it; `None` if it is not drained.
    pub(crate) fn drained_at_ns(&self) -> Option<u64> {
        Some(self.state.drained_at_ns.load(Acquire)).filter(|at_ns| *at_ns != 0)
    }

    /// Whether checks found it down, or its name has no address.
    pub(super) fn is_down(&self) -> bool {
        self.state.is_down.load(Acquire) || !self.has_addresses()
    }

    /// Whether there is an address to connect to.
    pub(crate) fn has_addresses(&self) -> bool {
        self.unix_path().is_some() || self.generation() != 0
    }

    pub(super) fn is_ejected(&self, now_ns: u64) -> bool {
        now_ns < self.state.ejected_until_ns.load(Acquire)
    }

    /// Its current weight, scaled by [`WEIGHT_SCALE`]. During slow start it grows with time.
    pub(super) fn weight(&self, now_ns: u64, slow_start: Duration) -> u64 {
        let whole = self.weight * WEIGHT_SCALE;
        let since = self.state.up_since_ns.load(Relaxed);
        let passed = u128::from(now_ns.saturating_sub(since));
        let slow_start = slow_start.as_nanos();
        if since == 0 || passed >= slow_start {
            return whole;
        }
        let part = u128::from(whole) * passed / slow_start;
        u64::try_from(part).unwrap_or(whole).max(1)
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    /// Drains it: a loop that gets a message after this call does not choose it any more.
    pub(super) fn drain(&self, now_ns: u64) {
        self.state.drained_at_ns.store(now_ns.max(1), Release);
    }

    /// Ends the drain, if it drains, and begins the slow start.
    pub(super) fn resume(&self, now_ns: u64) {
        self.state.up_since_ns.store(now_ns.max(1), Relaxed);
        self.state.drained_at_ns.store(0, Release);
    }

    /// The results of its checks so far.
    pub(crate) fn known_health(&self) -> KnownHealth {
        let details = self.lock();
        KnownHealth { is_up: details.down_reason.is_none(), has_passed: details.has_passed }
    }

    /// Why checks found it down, if they did.
    pub(crate) fn down_reason(&self) -> Option<String> {
        self.lock().down_reason.clone()
    }

    /// Why the last look-up of its name failed.
    pub(crate) fn resolve_error(&self) -> Option<String> {
        self.lock().error.clone()
    }

    /// Stores a change that checks found; `down_reason` is `Some` if it is down.
    pub(super) fn set_health(&self, down_reason: Option<String>, now_ns: u64) {
        let is_down = down_reason.is_some();
        let mut details = self.lock();
        details.has_passed |= !is_down;
        details.down_reason = down_reason;
        drop(details);
        let was = self.state.is_down.load(Relaxed);
        if was && !is_down {
            self.state.up_since_ns.store(now_ns.max(1), Relaxed);
            self.end_rows();
            self.state.ejected_until_ns.store(0, Release);
        }
        self.state.is_down.store(is_down, Release);
    }

    /// Counts a failure. If it should be logged, returns how many were not logged since the last
    /// logged one.
    pub(super) fn note_failure(
        &self,
        loop_index: usize,
        failure: UpstreamFailure,
        now_ns: u64,
    ) -> Option<u64> {
        self.failures.note(loop_index, failure, now_ns)
    }

    /// Counts a failure in a row, before or behind the head of an answer. Returns the length of
    /// that row.
    pub(super) fn lengthen_row(&self, is_behind_head: bool) -> u32 {
        let state = &self.state;
        let row = if is_behind_head { &state.broken_in_row } else { &state.failures_in_row };
        row.fetch_add(1, Relaxed) + 1
    }

    fn end_rows(&self) {
        self.state.failures_in_row.store(0, Relaxed);
        self.state.broken_in_row.store(0, Relaxed);
    }

    pub(super) fn eject(&self, until_ns: u64) {
        self.end_rows();
        self.state.up_since_ns.store(until_ns.max(1), Relaxed);
        self.state.ejected_until_ns.store(until_ns, Release);
    }

    pub(super) fn count_answer(&self, loop_index: usize, latency: Duration) {
        let counters = &self.loops[loop_index];
        add_own(&counters.answers, 1);
        add_own(&counters.latency_ns, nanoseconds(latency));
        // Read first: without failures, the shared cache line is never written.
        if self.state.failures_in_row.load(Relaxed) != 0 {
            self.state.failures_in_row.store(0, Relaxed);
        }
    }

    /// An answer came completely.
    pub(super) fn end_row_of_broken(&self) {
        if self.state.broken_in_row.load(Relaxed) != 0 {
            self.state.broken_in_row.store(0, Relaxed);
        }
    }

    pub(super) fn enter(&self, loop_index: usize) {
        add_own(&self.loops[loop_index].active, 1);
        add_own(&self.loops[loop_index].requests, 1);
    }

    pub(super) fn leave(&self, loop_index: usize) {
        take_own(&self.loops[loop_index].active);
    }

    pub(super) fn count_cut(&self, loop_index: usize) {
        add_own(&self.loops[loop_index].cut, 1);
    }

    pub(super) fn enter_idle(&self, loop_index: usize) {
        add_own(&self.loops[loop_index].idle, 1);
    }

    pub(super) fn leave_idle(&self, loop_index: usize) {
        take_own(&self.loops[loop_index].idle);
    }

    /// Exchanges under way.
    pub(super) fn active(&self) -> u64 {
        self.sum(|counters| &counters.active)
    }

    /// Exchanges that were cut.
    pub(super) fn cut(&self) -> u64 {
        self.sum(|counters| &counters.cut)
    }

    /// Exchanges under way in one loop.
    pub(super) fn active_in(&self, loop_index: usize) -> u64 {
        self.loops[loop_index].active.load(Relaxed)
    }

    pub(super) fn row(&self, now_ns: u64) -> EndpointRow {
        let active = self.active();
        let state = if self.is_drained() {
            if active > 0 { EndpointState::Draining } else { EndpointState::Drained }
        } else if self.is_down() {
            EndpointState::Down
        } else if self.is_ejected(now_ns) {
            EndpointState::Ejected
        } else {
            EndpointState::Up
        };
        let reason = match state {
            EndpointState::Up => None,
            EndpointState::Draining | EndpointState::Drained => {
                Some("drained by an operator".to_owned())
            }
            EndpointState::Ejected => Some("failures in a row".to_owned()),
            EndpointState::Down => {
                let details = self.lock();
                let unresolved = || {
                    let error = details.error.as_deref().unwrap_or("not yet looked up");
                    format!("no address: {error}")
                };
                details.down_reason.clone().or_else(|| Some(unresolved()))
            }
        };
        let causes = self.failures.counts();
        let is_own = |(cause, _): &&(FailureCause, u64)| cause.is_upstreams();
        EndpointRow {
            url: self.url.clone(),
            weight: self.weight,
            state,
            reason,
            active,
            idle: self.sum(|counters| &counters.idle),
            requests: self.sum(|counters| &counters.requests),
            failures: causes.iter().filter(is_own).map(|(_, count)| count).sum(),
            causes,
            last_failure: self.failures.last(),
            answers: self.sum(|counters| &counters.answers),
            latency: Duration::from_nanos(self.sum(|counters| &counters.latency_ns)),
        }
    }

    fn sum(&self, counter: fn(&EndpointCounters) -> &AtomicU64) -> u64 {
        self.loops.iter().map(|counters| counter(counters).load(Relaxed)).sum()
    }

    fn lock(&self) -> MutexGuard<'_, Details> {
        self.details.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The address of a host that is an address, not a name. IPv6 is in brackets.
fn literal(host: &str) -> Option<IpAddr> {
    let inside = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    inside.unwrap_or(host).parse().ok()
}

/// Adds to a counter that only the calling thread writes: a load and a store, without a locked
/// instruction.
fn add_own(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(more), Relaxed);
}

/// Subtracts one from such a counter.
fn take_own(counter: &AtomicU64) {
    let before = counter.load(Relaxed);
    debug_assert!(before > 0, "left without having entered");
    counter.store(before.saturating_sub(1), Relaxed);
}
