//! The drains of apps and of single upstreams: those under way, and those that ended.
//!
//! A drain of an app is named by the life that drains: a life drains once. An upstream can be
//! drained again after a resume, so its drains have names of their own. A drain ends once (I2), by
//! its deadline (I5), or is cancelled by a resume: then the old life still ends, but its end is not
//! announced again.

use std::{
    collections::{HashMap, HashSet, VecDeque, hash_map::Entry},
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::Sender;

use super::{
    drain_plan::{DrainPlan, DrainStep},
    drain_view::{Cause, DrainName, DrainTicket, DrainView, Verdict},
};
use crate::{app::OneUpstream, hosted::AppLife, message::UpstreamDrainId, registry::AppId};

/// What is asked for when a life is to drain.
#[derive(Clone, Copy)]
pub(super) struct DrainRequest {
    pub(super) cause: Cause,
    /// Instead of the app's own drain timeout.
    pub(super) timeout: Option<Duration>,
    /// When it was asked for.
    pub(super) at: Instant,
}

impl DrainRequest {
    /// A drain that takes as long as the app's own timeout allows.
    pub(super) fn new(cause: Cause, at: Instant) -> Self {
        Self { cause, timeout: None, at }
    }
}

/// The drain of one life, or of one of its upstreams.
pub(super) struct Drain {
    pub(super) name: DrainName,
    pub(super) life: Arc<AppLife>,
    /// What of the life drains, if not all of it.
    upstream: Option<DrainingUpstream>,
    pub(super) cause: Cause,
    pub(super) begun: Instant,
    plan: DrainPlan,
    deadline: Instant,
    /// Exchanges that were cut before: with another app's on their connection, by another drain.
    cut_before: u64,
    tickets: Vec<Sender<Verdict>>,
    /// Resumed: its verdict is given.
    pub(super) cancelled: bool,
}

struct DrainingUpstream {
    upstream: OneUpstream,
    /// Loops that have not said yet that none of their exchanges is with it.
    waiting: usize,
}

impl Drain {
    /// A drain of this life that begins now.
    pub(super) fn begin(life: Arc<AppLife>, cause: Cause, now: Instant, deadline: Instant) -> Self {
        Self {
            name: DrainName::App(life.id()),
            cut_before: life.drain().cut(),
            life,
            upstream: None,
            cause,
            begun: now,
            plan: DrainPlan::begin(deadline),
            deadline,
            tickets: Vec::new(),
            cancelled: false,
        }
    }

    /// A drain of one upstream, which so many loops have to leave; from now to the deadline.
    pub(super) fn begin_upstream(
        id: UpstreamDrainId,
        life: Arc<AppLife>,
        upstream: OneUpstream,
        waiting: usize,
        (now, deadline): (Instant, Instant),
    ) -> Self {
        Self {
            name: DrainName::Upstream(id),
            cut_before: upstream.cut(),
            upstream: Some(DrainingUpstream { upstream, waiting }),
            ..Self::begin(life, Cause::Upstream, now, deadline)
        }
    }

    /// The upstream that drains, if it is not the whole life.
    pub(super) fn upstream(&self) -> Option<&OneUpstream> {
        self.upstream.as_ref().map(|draining| &draining.upstream)
    }

    /// One more loop has left the upstream; whether that was the last one.
    pub(super) fn loop_left(&mut self) -> bool {
        let Some(draining) = &mut self.upstream else { return false };
        draining.waiting = draining.waiting.saturating_sub(1);
        draining.waiting == 0
    }

    /// One more ticket for the end of this drain.
    pub(super) fn ticket(&mut self) -> DrainTicket {
        let (sender, verdict) = crossbeam_channel::bounded(1);
        self.tickets.push(sender);
        DrainTicket { id: self.life.id(), verdict }
    }

    /// Gives the verdict to all tickets.
    pub(super) fn announce(&mut self, verdict: Verdict) {
        for ticket in self.tickets.drain(..) {
            // A ticket can be dropped.
            let _ = ticket.send(verdict);
        }
    }

    /// Another deadline holds from now on, unless the one before has passed: what is in flight is
    /// being cut then. The deadline that holds.
    pub(super) fn set_deadline(&mut self, deadline: Instant) -> Instant {
        if self.plan.set_deadline(deadline) {
            self.deadline = deadline;
        }
        self.deadline
    }

    /// Exchanges that the deadline ended. What a loop that is stuck in the app holds still counts
    /// at the end, as cut.
    pub(super) fn cut(&self) -> u64 {
        let cut = self.upstream().map_or_else(|| self.life.drain().cut(), OneUpstream::cut);
        cut - self.cut_before
    }

    pub(super) fn view(&self, now: Instant) -> DrainView {
        let (state, upstream) = (self.life.drain(), self.upstream());
        DrainView {
            name: self.name,
            host: Some(self.life.host().to_owned()),
            upstream: upstream.map(|upstream| upstream.url().to_owned()),
            cause: self.cause,
            verdict: None,
            active_connections: upstream
                .map_or_else(|| state.active_connections(), OneUpstream::active),
            // The others take what comes.
            refused: upstream.map_or_else(|| state.refused(), |_| 0),
            cut: self.cut(),
            elapsed: now.duration_since(self.begun),
            remaining: self.deadline.saturating_duration_since(now),
            older: None,
        }
    }
}

/// The upstream of a life that has this URL.
pub(super) fn upstream_in(life: &AppLife, url: &str) -> Option<OneUpstream> {
    OneUpstream::find(life.app().app.upstreams()?, url)
}

/// Drains that ended and are still remembered.
const ENDED_MAX: usize = 1000;

/// All drains of apps and upstreams.
#[derive(Default)]
pub(super) struct Drains {
    running: HashMap<DrainName, Drain>,
    /// Lives that keep their names, drained, until they are resumed, replaced or removed, and
    /// upstreams that are out; with how their drain ended, if it did.
    paused: HashMap<DrainName, Option<DrainView>>,
    /// Upstreams that are out, by life and index.
    upstreams: HashMap<(AppId, usize), UpstreamDrainId>,
    /// Drains of upstreams that have begun.
    upstream_drains: u64,
    /// The oldest first.
    ended: VecDeque<DrainView>,
    /// No plan is due before this.
    next_due: Option<Instant>,
}

impl Drains {
    pub(super) fn insert(&mut self, drain: Drain) -> &mut Drain {
        self.look_at(drain.plan.due());
        match self.running.entry(drain.name) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(drain),
        }
    }

    pub(super) fn find(&mut self, name: impl Into<DrainName>) -> Option<&mut Drain> {
        self.running.get_mut(&name.into())
    }

    pub(super) fn running(&self) -> impl Iterator<Item = &Drain> {
        self.running.values()
    }

    /// Asks the plans again at this time.
    pub(super) fn look_at(&mut self, due: Instant) {
        self.next_due = self.next_due.into_iter().chain([due]).min();
    }

    /// When [`Drains::on_time`] may have something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        self.next_due
    }

    /// What the plans want, now that time has passed.
    pub(super) fn on_time(&mut self, now: Instant) -> Vec<(DrainName, DrainStep)> {
        if self.next_due.is_none_or(|due| now < due) {
            return Vec::new();
        }
        let steps = self.running.iter_mut();
        let steps =
            steps.filter_map(|(name, drain)| Some((*name, drain.plan.on_time(now)?))).collect();
        self.next_due = self.running.values().map(|drain| drain.plan.due()).min();
        steps
    }

    /// Takes a drain out, once (I2).
    pub(super) fn take(&mut self, name: DrainName) -> Option<Drain> {
        self.running.remove(&name)
    }

    /// A life drains that keeps its names.
    pub(super) fn pause(&mut self, id: AppId) {
        self.paused.insert(id.into(), None);
    }

    /// A life keeps its names no longer; says whether it did.
    pub(super) fn unpause(&mut self, id: AppId) -> bool {
        self.paused.remove(&id.into()).is_some()
    }

    pub(super) fn is_paused(&self, id: AppId) -> bool {
        self.paused.contains_key(&id.into())
    }

    /// An upstream of a life goes out: the name of its drain.
    pub(super) fn take_out(&mut self, life: AppId, index: usize) -> UpstreamDrainId {
        self.upstream_drains += 1;
        let id = UpstreamDrainId(self.upstream_drains);
        self.upstreams.insert((life, index), id);
        self.paused.insert(DrainName::Upstream(id), None);
        id
    }

    /// How many drains of upstreams have got a name.
    pub(super) fn upstream_drains(&self) -> u64 {
        self.upstream_drains
    }

    /// So many names were used before, in another process.
    pub(super) fn skip_upstream_drains(&mut self, used: u64) {
        self.upstream_drains = self.upstream_drains.max(used);
    }

    /// The drain that took an upstream out, if it is out.
    pub(super) fn upstream_out(&self, life: AppId, index: usize) -> Option<DrainName> {
        self.upstreams.get(&(life, index)).copied().map(DrainName::Upstream)
    }

    /// An upstream comes back; the drain that took it out, if it was.
    pub(super) fn take_in(&mut self, life: AppId, index: usize) -> Option<DrainName> {
        let name = DrainName::Upstream(self.upstreams.remove(&(life, index))?);
        self.paused.remove(&name);
        Some(name)
    }

    /// An upstream that is out is out in a further life too, by the same drain.
    fn hand_on(&mut self, from: (AppId, usize), to: (AppId, usize)) {
        if let Some(id) = self.upstreams.get(&from) {
            self.upstreams.insert(to, *id);
        }
    }

    /// A life begins in the place of another: upstreams that are out there are out here, by the
    /// same drains. Their flags are set, for the loops know of the new life already.
    pub(super) fn hand_on_all(&mut self, old: &AppLife, new: &AppLife) {
        let Some(upstreams) = new.app().app.upstreams() else { return };
        let endpoints = upstreams.endpoints().iter().enumerate();
        for (index, endpoint) in endpoints.filter(|(_, endpoint)| endpoint.is_drained()) {
            if let Some(before) = upstream_in(old, endpoint.url()) {
                self.hand_on((old.id(), before.index()), (new.id(), index));
            }
        }
    }

    /// A life is gone, and its upstreams with it; the drains that took them out.
    pub(super) fn forget_upstreams(&mut self, life: AppId) -> Vec<DrainName> {
        let gone = self.upstreams.extract_if(|(own, _), _| *own == life);
        let names: Vec<_> = gone.map(|(_, id)| DrainName::Upstream(id)).collect();
        let held: HashSet<_> = self.upstreams.values().copied().map(DrainName::Upstream).collect();
        for name in names.iter().filter(|name| !held.contains(name)) {
            self.paused.remove(name);
        }
        names
    }

    /// Remembers how a drain ended.
    pub(super) fn remember(&mut self, view: DrainView) {
        if let Some(paused) = self.paused.get_mut(&view.name) {
            *paused = Some(view.clone());
        }
        if self.ended.len() == ENDED_MAX {
            self.ended.pop_front();
        }
        self.ended.push_back(view);
    }

    /// A drain as it is now, or as it ended.
    pub(super) fn view(&self, name: DrainName, now: Instant) -> Option<DrainView> {
        if let Some(drain) = self.running.get(&name).filter(|drain| !drain.cancelled) {
            return Some(drain.view(now));
        }
        let ended = || self.ended.iter().rev().find(|view| view.name == name);
        self.paused.get(&name).and_then(Option::as_ref).or_else(ended).cloned()
    }

    /// How a life drains, also one whose drain was cancelled, or drained; none if it serves.
    pub(super) fn view_of_life(&self, id: AppId, now: Instant) -> Option<DrainView> {
        let name = DrainName::App(id);
        let running = self.running.get(&name).map(|drain| drain.view(now));
        running.or_else(|| self.paused.get(&name)?.clone())
    }

    /// All that are under way or remembered, the oldest first.
    pub(super) fn views(&self, now: Instant) -> Vec<DrainView> {
        let running = self.running.values().filter(|drain| !drain.cancelled);
        let mut running: Vec<_> = running.map(|drain| drain.view(now)).collect();
        running.sort_by_key(|view| std::cmp::Reverse(view.elapsed));
        self.ended.iter().cloned().chain(running).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::drain_plan::CUT_GRACE, *};
    use crate::{
        app::{App, Proxy},
        config::{ProxyConfig, UpstreamAddress, UpstreamConfig},
        hosted::{Apps, HostedApp, Origin},
        registry::NewApp,
    };

    const URL: &str = "http://127.0.0.1:9";

    struct Fixture {
        apps: Apps,
        drains: Drains,
        now: Instant,
    }

    impl Fixture {
        fn new() -> Self {
            Self { apps: Apps::new(2, None), drains: Drains::default(), now: Instant::now() }
        }

        fn life(&self, host: &str) -> (Arc<AppLife>, OneUpstream) {
            let address =
                UpstreamAddress::Tcp { tls: false, host: "127.0.0.1".to_owned(), port: 9 };
            let config = ProxyConfig::new(vec![UpstreamConfig { address, weight: 1 }]);
            let proxy = Proxy::open(config, 2).unwrap();
            let upstream =
                proxy.upstreams().and_then(|it| OneUpstream::find(it, URL)).expect("an upstream");
            let app = HostedApp::new(Arc::new(proxy), Origin::Config, 2);
            let app = NewApp { host: host.to_owned(), aliases: Vec::new(), app };
            (self.apps.insert(app).expect("the name is free"), upstream)
        }

        /// An upstream that goes out, and its drain of 30 s, which both loops have to leave.
        fn begin(&mut self, host: &str) -> (Arc<AppLife>, OneUpstream, DrainName) {
            let (life, upstream) = self.life(host);
            upstream.drain(1);
            let id = self.drains.take_out(life.id(), upstream.index());
            let times = (self.now, self.now + Duration::from_secs(30));
            let drain = Drain::begin_upstream(id, Arc::clone(&life), upstream.clone(), 2, times);
            let name = self.drains.insert(drain).name;
            (life, upstream, name)
        }

        /// Ends a drain that runs.
        fn end(&mut self, name: DrainName) {
            let mut view = self.drains.take(name).expect("it runs").view(self.now);
            view.verdict = Some(Verdict::Drained);
            self.drains.remember(view);
        }
    }

    #[test]
    fn names_are_read_back() {
        for name in ["7", "u7", "stop"] {
            assert_eq!(name.parse::<DrainName>().map(|read| read.to_string()).as_deref(), Ok(name));
        }
        for wrong in ["", "u", "x7", "-1", "u-1", "stopped"] {
            assert!(wrong.parse::<DrainName>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_last_loop_that_leaves_ends_the_drain_of_an_upstream() {
        let mut fixture = Fixture::new();
        let (life, _, name) = fixture.begin("a.test");
        let Fixture { drains, now, .. } = &mut fixture;
        let drain = drains.find(name).expect("it runs");
        assert_eq!((drain.loop_left(), drain.loop_left()), (false, true));
        let view = drains.take(name).expect("it runs").view(*now);
        assert_eq!((view.name, view.upstream.as_deref()), (name, Some(URL)));
        assert!(drains.take(name).is_none(), "I2");
        assert!(drains.view_of_life(life.id(), *now).is_none(), "the app serves");
    }

    #[test]
    fn a_loop_that_hangs_holds_the_drain_of_an_upstream_up_for_a_moment() {
        let mut fixture = Fixture::new();
        let (.., name) = fixture.begin("a.test");
        let drains = &mut fixture.drains;
        assert!(!drains.find(name).expect("it runs").loop_left());
        let deadline = fixture.now + Duration::from_secs(30);
        assert_eq!(drains.due(), Some(deadline));
        assert_eq!(drains.on_time(deadline), [(name, DrainStep::Cut)]);
        assert_eq!(drains.on_time(deadline), []);
        assert_eq!(drains.on_time(deadline + CUT_GRACE), [(name, DrainStep::End)]);
    }

    #[test]
    fn an_upstream_is_out_until_it_is_taken_in_or_its_life_ends() {
        let mut fixture = Fixture::new();
        let (life, upstream, name) = fixture.begin("a.test");
        let (id, index) = (life.id(), upstream.index());
        fixture.end(name);
        // Known also after as many others as are remembered.
        let (_, _, other) = fixture.begin("b.test");
        let view = fixture.drains.take(other).expect("it runs").view(fixture.now);
        (0..ENDED_MAX).for_each(|_| fixture.drains.remember(view.clone()));
        let Fixture { drains, now, .. } = &mut fixture;
        assert_eq!(drains.upstream_out(id, index), Some(name));
        let verdict = drains.view(name, *now).and_then(|view| view.verdict);
        assert_eq!(verdict, Some(Verdict::Drained));
        assert_eq!(drains.take_in(id, index), Some(name));
        assert_eq!((drains.take_in(id, index), drains.upstream_out(id, index)), (None, None));
        assert!(drains.view(name, *now).is_none(), "forgotten");

        let (life, upstream, name) = fixture.begin("c.test");
        assert_eq!(fixture.drains.forget_upstreams(life.id()), [name]);
        assert_eq!(fixture.drains.forget_upstreams(life.id()), []);
        assert_eq!(fixture.drains.upstream_out(life.id(), upstream.index()), None);
    }
}
