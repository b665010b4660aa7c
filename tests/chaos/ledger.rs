//! What became of every request, and which disturbances excuse a loss.
//!
//! A request is answered, lost, or unknown (its client left before the answer). So at the end of a
//! calm round the server's own total lies between the answered requests, and the answered plus the
//! unknown. A loss is excused only by a disturbance at the same time that cannot be without loss: a
//! process that was killed, or a server that was stopped.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

/// A client whose last request was this long ago may lose a request to a stop: it is under way when
/// the server closes the idle connection, and no server can avoid that.
pub(crate) const SILENCE: Duration = Duration::from_millis(700);

/// What went wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// No connection was established.
    NotConnected,
    /// No complete answer came.
    Lost,
    /// The answer is wrong.
    Wrong,
}

/// A request that was not answered as it should be.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    /// Which traffic it belongs to.
    pub(crate) traffic: &'static str,
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    /// How long its connection had been idle before.
    pub(crate) idle: Duration,
    pub(crate) story: String,
}

/// Something that may cost requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Disturbance {
    pub(crate) kind: DisturbanceKind,
    pub(crate) began: Instant,
    /// When the server served again.
    pub(crate) ended: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DisturbanceKind {
    Kill,
    Stop,
}

/// The account of one round.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    answered: AtomicU64,
    unknown: AtomicU64,
    /// Connections that the server closed while they were idle.
    closed_idle: AtomicU64,
    failures: Mutex<Vec<Failure>>,
    disturbances: Mutex<Vec<Disturbance>>,
    /// What an operation saw that must not happen.
    violations: Mutex<Vec<String>>,
}

impl Ledger {
    /// An app has answered these requests.
    pub(crate) fn answer(&self, requests: u64) {
        self.answered.fetch_add(requests, SeqCst);
    }

    /// An app may have answered these requests.
    pub(crate) fn leave(&self, requests: u64) {
        self.unknown.fetch_add(requests, SeqCst);
    }

    pub(crate) fn close_idle(&self) {
        self.closed_idle.fetch_add(1, SeqCst);
    }

    pub(crate) fn fail(&self, failure: Failure) {
        lock(&self.failures).push(failure);
    }

    pub(crate) fn disturb(&self, kind: DisturbanceKind, began: Instant) {
        lock(&self.disturbances).push(Disturbance { kind, began, ended: Instant::now() });
    }

    pub(crate) fn violate(&self, story: String) {
        lock(&self.violations).push(story);
    }

    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(SeqCst)
    }

    pub(crate) fn unknown(&self) -> u64 {
        self.unknown.load(SeqCst)
    }

    pub(crate) fn closed_idle(&self) -> u64 {
        self.closed_idle.load(SeqCst)
    }

    /// Failures that nothing excuses, and violations; and how many failures are excused.
    pub(crate) fn verdict(&self, began: Instant) -> (Vec<String>, usize) {
        let disturbances = lock(&self.disturbances);
        let (excused, lost): (Vec<_>, Vec<_>) = lock(&self.failures)
            .iter()
            .cloned()
            .partition(|failure| disturbances.iter().any(|cause| cause.excuses(failure)));
        let mut stories = lock(&self.violations).clone();
        stories.extend(lost.iter().map(|failure| failure.tell(began)));
        (stories, excused.len())
    }
}

impl Failure {
    fn tell(&self, began: Instant) -> String {
        let Self { kind, traffic, idle, story, .. } = self;
        let from = self.began.saturating_duration_since(began);
        let took = self.ended.duration_since(self.began);
        format!("{kind:?} {traffic} at {from:?} for {took:?} after {idle:?} idle: {story}")
    }
}

impl Disturbance {
    /// Sockets of a killed process are reset by the kernel a little later.
    const AFTERMATH: Duration = Duration::from_millis(200);

    fn excuses(&self, failure: &Failure) -> bool {
        let is_beside =
            failure.began <= self.ended + Self::AFTERMATH && failure.ended >= self.began;
        is_beside
            && match (self.kind, failure.kind) {
                (_, Kind::Wrong) => false,
                (DisturbanceKind::Kill, _) | (DisturbanceKind::Stop, Kind::NotConnected) => true,
                (DisturbanceKind::Stop, Kind::Lost) => failure.idle >= SILENCE,
            }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
