//! The totals of each host over all its lives.
//!
//! Owns the totals of ended lives, so that a host's counters continue when a replace or reload
//! begins a new life, and the drains of a removed host stay visible. Bounded: keeps the totals of
//! hosts with a life and of the 1,000 hosts removed last; for each host, those of its current
//! upstreams and of the 100 removed last. A host or upstream that returns after its totals were
//! dropped starts at zero, which readers take for a restart.

use std::{collections::BTreeMap, sync::Arc};

use super::{AnswerSeconds, ExchangeTotals};

/// How many hosts without a life keep their totals.
const LEFT_HOSTS_MAX: usize = 1000;

/// How many upstreams that a host no longer has keep their totals.
const LEFT_UPSTREAMS_MAX: usize = 100;

/// The totals of all hosts. `begin` and `retire` add and remove their lives.
#[derive(Debug, Default)]
pub(crate) struct HostLedger {
    hosts: BTreeMap<Arc<str>, HostCounts>,
    /// Hosts without a life, in the order of their removal.
    left: BTreeMap<u64, Arc<str>>,
    /// How many hosts have been removed, counting repetitions.
    departures: u64,
    /// How many lives have ended.
    retired: u64,
}

#[derive(Debug, Default)]
struct HostCounts {
    lives: usize,
    /// The key in `left`, if the host has no life.
    left_at: Option<u64>,
    totals: HostTotals,
    /// Upstreams of ended lives, each with the number of the last such life.
    upstreams: BTreeMap<Arc<str>, (u64, UpstreamTotals)>,
}

/// The totals of a host.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct HostTotals {
    /// How exchanges ended.
    pub(super) exchanges: ExchangeTotals,
    /// Exchanges refused because the app was draining.
    pub(super) refused: u64,
    /// Exchanges that a deadline ended.
    pub(super) cut: u64,
    /// Requests for which no upstream was available.
    pub(super) unserved: FailureCounts,
    /// Drains that have ended; few, in no order.
    pub(super) drains: Vec<DrainCount>,
}

/// How often something failed, by cause; few causes, in no order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FailureCounts(pub(crate) Vec<(&'static str, u64)>);

impl FailureCounts {
    fn add(&mut self, other: &Self) {
        for (cause, more) in &other.0 {
            match self.0.iter_mut().find(|(known, _)| known == cause) {
                Some((_, count)) => *count += more,
                None => self.0.push((*cause, *more)),
            }
        }
    }
}

/// The totals of an upstream of a host.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct UpstreamTotals {
    /// Exchanges that were sent to it.
    pub(crate) requests: u64,
    /// Those of them without a complete answer.
    pub(crate) failures: FailureCounts,
    /// The times until the head of its answer arrived.
    pub(crate) answer_seconds: AnswerSeconds,
}

/// The current state of an upstream.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct UpstreamNow {
    /// Exchanges in flight.
    pub(crate) active: u64,
    /// Idle connections that are kept.
    pub(crate) idle: u64,
    /// All states by name, and whether the upstream is in each.
    pub(crate) states: Vec<(&'static str, bool)>,
}

/// The numbers of one upstream, read from a life.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct UpstreamReading {
    /// As written in a config.
    pub(crate) url: String,
    /// Its current state.
    pub(crate) now: UpstreamNow,
    /// Its totals.
    pub(crate) totals: UpstreamTotals,
}

/// How many drains with this cause ended with this verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DrainCount {
    pub(super) cause: &'static str,
    pub(super) verdict: &'static str,
    pub(super) count: u64,
}

/// The numbers of one life.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LifeReading<'a> {
    /// The primary name.
    pub(crate) host: &'a str,
    /// Connections with an unfinished exchange.
    pub(crate) active_connections: u64,
    /// How exchanges ended.
    pub(crate) exchanges: ExchangeTotals,
    /// Exchanges refused because the life was draining.
    pub(crate) refused: u64,
    /// Exchanges that a deadline ended.
    pub(crate) cut: u64,
    /// Requests for which no upstream was available.
    pub(crate) unserved: FailureCounts,
    /// Its upstreams, if it is a proxy.
    pub(crate) upstreams: Vec<UpstreamReading>,
}

/// A host as metrics show it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HostReading {
    pub(super) host: Arc<str>,
    /// None if the host has no life.
    pub(super) active_connections: Option<u64>,
    /// Over all lives, including ended ones.
    pub(super) totals: HostTotals,
    /// By URL. An upstream that no current life has, has only totals.
    pub(super) upstreams: BTreeMap<Arc<str>, (Option<UpstreamNow>, UpstreamTotals)>,
}

impl HostLedger {
    /// Adds a life of this host.
    pub(crate) fn begin(&mut self, host: &str) {
        let entry = self.host(host);
        entry.lives += 1;
        if let Some(left_at) = entry.left_at.take() {
            self.left.remove(&left_at);
        }
    }

    /// Adds the final numbers of an ended life to the host's totals.
    pub(crate) fn retire(&mut self, life: &LifeReading<'_>) {
        let entry = self.host(life.host);
        debug_assert!(entry.lives > 0, "a life of {} ended that never began", life.host);
        entry.lives = entry.lives.saturating_sub(1);
        entry.totals.add(life);
        self.retire_upstreams(life);
        self.note_departure(life.host);
    }

    /// Counts a drain of this host that has ended, before or after the life is retired.
    pub(crate) fn drain_ended(&mut self, host: &str, cause: &'static str, verdict: &'static str) {
        let drains = &mut self.host(host).totals.drains;
        match drains.iter_mut().find(|known| (known.cause, known.verdict) == (cause, verdict)) {
            Some(known) => known.count += 1,
            None => drains.push(DrainCount { cause, verdict, count: 1 }),
        }
        self.note_departure(host);
    }

    /// All hosts, sorted, with the numbers of these lives: all that have begun and are not retired.
    /// If several lives of a host share an upstream, the first one gives its state.
    pub(crate) fn read<'a>(
        &self,
        lives: impl IntoIterator<Item = LifeReading<'a>>,
    ) -> Vec<HostReading> {
        let reading = |(host, entry): (&Arc<str>, &HostCounts)| HostReading {
            host: Arc::clone(host),
            active_connections: None,
            totals: entry.totals.clone(),
            upstreams: entry
                .upstreams
                .iter()
                .map(|(url, (_, totals))| (Arc::clone(url), (None, totals.clone())))
                .collect(),
        };
        let mut hosts: Vec<HostReading> = self.hosts.iter().map(reading).collect();
        for life in lives {
            let found = hosts.binary_search_by(|known| (*known.host).cmp(life.host));
            debug_assert!(found.is_ok(), "a life of {} never began", life.host);
            if let Ok(index) = found {
                let active = &mut hosts[index].active_connections;
                *active = Some(active.unwrap_or(0) + life.active_connections);
                hosts[index].totals.add(&life);
                hosts[index].add_upstreams(life.upstreams);
            }
        }
        hosts
    }

    /// Keeps the totals of a life's upstreams, and drops those that left longest ago.
    fn retire_upstreams(&mut self, life: &LifeReading<'_>) {
        self.retired += 1;
        let retired = self.retired;
        let upstreams = &mut self.host(life.host).upstreams;
        for upstream in &life.upstreams {
            let (last, totals) = upstreams.entry(Arc::from(&*upstream.url)).or_default();
            *last = retired;
            totals.add(&upstream.totals);
        }
        while upstreams.len() > life.upstreams.len() + LEFT_UPSTREAMS_MAX {
            let first = upstreams.iter().min_by_key(|(_, (last, _))| *last);
            let Some(first) = first.map(|(url, _)| Arc::clone(url)) else { break };
            upstreams.remove(&first);
        }
    }

    fn host(&mut self, host: &str) -> &mut HostCounts {
        // Looked up first, so that a name is allocated only once.
        if !self.hosts.contains_key(host) {
            self.hosts.insert(Arc::from(host), HostCounts::default());
        }
        self.hosts.get_mut(host).expect("it was put there")
    }

    /// Records that a host has no life any more, and drops the host that left longest ago.
    fn note_departure(&mut self, host: &str) {
        let Some((name, entry)) = self.hosts.get_key_value(host) else { return };
        if entry.lives > 0 || entry.left_at.is_some() {
            return;
        }
        self.departures += 1;
        self.left.insert(self.departures, Arc::clone(name));
        self.host(host).left_at = Some(self.departures);
        if self.left.len() > LEFT_HOSTS_MAX
            && let Some((_, first)) = self.left.pop_first()
        {
            self.hosts.remove(&first);
        }
    }
}

impl HostReading {
    /// The exchanges that were refused before they had an app, as an app without a name.
    pub(crate) fn unrouted(exchanges: ExchangeTotals) -> Self {
        let totals = HostTotals { exchanges, ..HostTotals::default() };
        let (active_connections, upstreams) = (None, BTreeMap::new());
        Self { host: Arc::from(""), active_connections, totals, upstreams }
    }

    fn add_upstreams(&mut self, upstreams: Vec<UpstreamReading>) {
        for UpstreamReading { url, now, totals } in upstreams {
            let (known, sum) = self.upstreams.entry(url.into()).or_default();
            sum.add(&totals);
            match known {
                Some(known) => {
                    known.active += now.active;
                    known.idle += now.idle;
                }
                None => *known = Some(now),
            }
        }
    }
}

impl UpstreamTotals {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.failures.add(&other.failures);
        self.answer_seconds.add(&other.answer_seconds);
    }
}

impl HostTotals {
    fn add(&mut self, life: &LifeReading<'_>) {
        self.exchanges.add(&life.exchanges);
        self.refused += life.refused;
        self.cut += life.cut;
        self.unserved.add(&life.unserved);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::ExchangeCounters;

    fn life(host: &str, exchanges: u64) -> LifeReading<'_> {
        let counters = ExchangeCounters::new(1);
        for _ in 0..exchanges {
            counters.record(0, 200, 1_000_000);
        }
        let exchanges = counters.snapshot();
        let upstreams = Vec::new();
        LifeReading {
            host,
            active_connections: 1,
            exchanges,
            refused: 10,
            cut: 100,
            unserved: failures(),
            upstreams,
        }
    }

    fn failures() -> FailureCounts {
        FailureCounts(vec![("connect_refused", 1)])
    }

    fn requests(hosts: &[HostReading], host: &str) -> Option<u64> {
        let found = hosts.iter().find(|reading| &*reading.host == host)?;
        Some(found.totals.exchanges.seconds.count())
    }

    #[test]
    fn a_replaced_life_continues_its_counts_in_the_new_one() {
        let mut ledger = HostLedger::default();
        ledger.begin("a.test");
        ledger.begin("a.test");
        let both = ledger.read([life("a.test", 5), life("a.test", 2)]);
        ledger.retire(&life("a.test", 5));
        let one = ledger.read([life("a.test", 2)]);
        assert_eq!(one[0].totals, both[0].totals, "retiring a life changes no total");
        assert_eq!(one[0].totals.exchanges.statuses, [(200, 7)]);
        assert_eq!((one[0].totals.refused, one[0].totals.cut), (20, 200));
        assert_eq!((both[0].active_connections, one[0].active_connections), (Some(2), Some(1)));
        ledger.retire(&life("a.test", 3));
        let none = ledger.read([]);
        assert_eq!(requests(&none, "a.test"), Some(8));
        assert_eq!(none[0].active_connections, None, "without a life there is nothing to count");
    }

    /// A life with these upstreams and their numbers of requests.
    fn proxy_life(upstreams: &[(&str, u64)]) -> LifeReading<'static> {
        let reading = |(url, requests): &(&str, u64)| UpstreamReading {
            url: (*url).to_owned(),
            now: UpstreamNow { active: 1, idle: 2, states: vec![("up", true)] },
            totals: UpstreamTotals {
                requests: *requests,
                failures: failures(),
                answer_seconds: AnswerSeconds::of(*requests, Duration::from_secs(*requests)),
            },
        };
        LifeReading { upstreams: upstreams.iter().map(reading).collect(), ..life("p.test", 0) }
    }

    #[test]
    fn an_upstream_keeps_its_counts_over_several_lives() {
        let mut ledger = HostLedger::default();
        ledger.begin("p.test");
        ledger.begin("p.test");
        let mut new = proxy_life(&[("http://b", 7)]);
        new.upstreams[0].now.states = vec![("up", false)];
        let old = proxy_life(&[("http://a", 1), ("http://b", 3)]);
        let both = ledger.read([new.clone(), old.clone()]);
        let (now, totals) = &both[0].upstreams["http://b"];
        let expected = UpstreamNow { active: 2, idle: 4, states: vec![("up", false)] };
        assert_eq!(now.as_ref(), Some(&expected), "the first life gives the state");
        assert_eq!(totals.requests, 10);
        assert_eq!(totals.failures.0, [("connect_refused", 2)]);
        assert_eq!(both[0].totals.unserved.0, [("connect_refused", 2)]);
        assert_eq!((totals.answer_seconds.count(), totals.answer_seconds.seconds()), (10, 10.0));
        ledger.retire(&old);
        let one = ledger.read([new]);
        assert_eq!(one[0].upstreams["http://b"].1, *totals, "retiring a life changes no total");
        let (now, left) = &one[0].upstreams["http://a"];
        assert_eq!((now.as_ref(), left.requests), (None, 1), "no life has it any more");
    }

    #[test]
    fn the_upstream_that_left_first_is_dropped_first() {
        let mut ledger = HostLedger::default();
        let urls: Vec<_> = (0..LEFT_UPSTREAMS_MAX + 2).map(|n| format!("http://{n}")).collect();
        for url in &urls {
            ledger.begin("p.test");
            ledger.retire(&proxy_life(&[(url, 1), ("http://stays", 1)]));
        }
        ledger.begin("p.test");
        ledger.retire(&proxy_life(&[("http://0", 1)]));
        let upstreams = &ledger.read([])[0].upstreams;
        assert_eq!(upstreams.len(), LEFT_UPSTREAMS_MAX + 1);
        assert_eq!(upstreams["http://stays"].1.requests, urls.len() as u64);
        assert_eq!(upstreams["http://0"].1.requests, 1, "it was dropped and started again");
        assert!(!upstreams.contains_key("http://1") && upstreams.contains_key("http://3"));
    }

    #[test]
    fn drains_are_counted_by_cause_and_verdict_before_and_after_the_life_is_retired() {
        let mut ledger = HostLedger::default();
        ledger.begin("a.test");
        ledger.drain_ended("a.test", "drain", "cancelled");
        ledger.drain_ended("a.test", "remove", "drained");
        ledger.retire(&life("a.test", 0));
        ledger.drain_ended("a.test", "remove", "drained");
        let drains = &ledger.read([])[0].totals.drains;
        let count = |cause, verdict| {
            let found =
                drains.iter().find(|known| (known.cause, known.verdict) == (cause, verdict));
            found.map(|known| known.count)
        };
        assert_eq!(count("drain", "cancelled"), Some(1));
        assert_eq!(count("remove", "drained"), Some(2));
        assert_eq!(drains.len(), 2);
    }

    #[test]
    fn the_host_that_left_first_is_dropped_first() {
        let mut ledger = HostLedger::default();
        let names: Vec<String> = (0..LEFT_HOSTS_MAX + 3).map(|n| format!("{n}.test")).collect();
        for name in &names {
            ledger.begin(name);
        }
        assert_eq!(ledger.read([]).len(), names.len(), "hosts with a life are all kept");
        for name in &names[..LEFT_HOSTS_MAX] {
            ledger.retire(&life(name, 1));
        }
        // It returns, leaves again, and is now the last to be dropped.
        ledger.begin("0.test");
        ledger.retire(&life("0.test", 1));
        for name in &names[LEFT_HOSTS_MAX..] {
            ledger.retire(&life(name, 1));
        }
        let hosts = ledger.read([]);
        assert_eq!((hosts.len(), ledger.left.len()), (LEFT_HOSTS_MAX, LEFT_HOSTS_MAX));
        for dropped in ["1.test", "2.test", "3.test"] {
            assert_eq!(requests(&hosts, dropped), None, "{dropped}");
        }
        assert_eq!(requests(&hosts, "0.test"), Some(2));
        assert_eq!(requests(&hosts, "4.test"), Some(1));
        ledger.begin("1.test");
        assert_eq!(requests(&ledger.read([life("1.test", 1)]), "1.test"), Some(1));
    }

    #[test]
    fn a_host_that_returns_is_not_dropped() {
        let mut ledger = HostLedger::default();
        ledger.begin("back.test");
        ledger.retire(&life("back.test", 3));
        ledger.begin("back.test");
        for n in 0..2 * LEFT_HOSTS_MAX {
            let name = format!("{n}.test");
            ledger.begin(&name);
            ledger.retire(&life(&name, 0));
        }
        let hosts = ledger.read([life("back.test", 1)]);
        assert_eq!(requests(&hosts, "back.test"), Some(4));
        assert_eq!(hosts.len(), LEFT_HOSTS_MAX + 1);
    }
}
