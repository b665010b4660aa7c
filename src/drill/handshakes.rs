//! The handshakes of a drill over TLS, by action.
//!
//! Pure. A handshake is booked under an action as a request is; the ledger decides which.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;

use super::{outcome::Booking, timeline::LATENCY_MAX_US};
use crate::duration::microseconds;

/// All handshakes.
#[derive(Debug, Default)]
pub(crate) struct Handshakes {
    by_action: BTreeMap<Booking, HandshakeGroup>,
    /// How often the handshakes agreed on a version and a cipher suite.
    suites: BTreeMap<(&'static str, &'static str), u64>,
    /// How often handshakes failed for a reason.
    failures: BTreeMap<String, u64>,
}

/// The handshakes of one action, or all of them.
#[derive(Clone, Debug)]
pub(crate) struct HandshakeGroup {
    pub(crate) full: u64,
    /// An earlier session went on.
    pub(crate) resumed: u64,
    pub(crate) failed: u64,
    /// How long those took that succeeded, in microseconds.
    pub(crate) took: Histogram<u64>,
}

/// A handshake that has succeeded. Times count from the drill's beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EndedHandshake {
    pub(super) begun: Duration,
    pub(super) ended: Duration,
    pub(super) is_resumed: bool,
    pub(super) version: &'static str,
    pub(super) cipher: &'static str,
}

impl HandshakeGroup {
    fn new() -> Self {
        let took = Histogram::new_with_bounds(1, LATENCY_MAX_US, 3);
        Self { full: 0, resumed: 0, failed: 0, took: took.expect("bounds of a histogram") }
    }

    /// All of them.
    pub(crate) fn count(&self) -> u64 {
        self.full + self.resumed + self.failed
    }
}

impl Handshakes {
    pub(super) fn add(&mut self, booking: Booking, handshake: &EndedHandshake) {
        let EndedHandshake { begun, ended, is_resumed, version, cipher } = *handshake;
        let group = self.group(booking);
        *if is_resumed { &mut group.resumed } else { &mut group.full } += 1;
        group.took.saturating_record(microseconds(ended.saturating_sub(begun)));
        *self.suites.entry((version, cipher)).or_default() += 1;
    }

    pub(super) fn add_failed(&mut self, booking: Booking, why: &str) {
        self.group(booking).failed += 1;
        *self.failures.entry(why.to_owned()).or_default() += 1;
    }

    pub(crate) fn by_action(&self) -> impl Iterator<Item = (Booking, &HandshakeGroup)> {
        self.by_action.iter().map(|(booking, group)| (*booking, group))
    }

    /// All handshakes together.
    pub(crate) fn all(&self) -> HandshakeGroup {
        self.by_action.values().fold(HandshakeGroup::new(), |mut all, group| {
            all.full += group.full;
            all.resumed += group.resumed;
            all.failed += group.failed;
            all.took.add(&group.took).expect("histograms are alike");
            all
        })
    }

    /// How often the handshakes agreed on a version and a cipher suite.
    pub(crate) fn suites(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        self.suites.iter().map(|((version, cipher), count)| (*version, *cipher, *count))
    }

    /// How often handshakes failed for a reason.
    pub(crate) fn failures(&self) -> impl Iterator<Item = (&str, u64)> {
        self.failures.iter().map(|(why, count)| (why.as_str(), *count))
    }

    fn group(&mut self, booking: Booking) -> &mut HandshakeGroup {
        self.by_action.entry(booking).or_insert_with(HandshakeGroup::new)
    }
}
