//! All lives that serve or drain, and how a life begins and ends.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::Sender;

use super::super::{
    certificates::NewTable,
    change_error::ChangeError,
    drain_view::DrainView,
    drains::Drains,
    history::{History, Measured},
    input::{Input, LifeView},
    totals::Totals,
    upstreams::UpstreamWatch,
};
use crate::{
    hosted::{AppLife, Apps, HostedApp},
    registry::{AppId, NewApp, NewLife},
};

/// The lives of a server, with their drains and counts.
pub(in super::super) struct Lives {
    pub(super) registry: Arc<Apps>,
    pub(in super::super) drains: Drains,
    pub(super) history: History,
    upstreams: UpstreamWatch,
    /// Where a life announces that its last exchange has left.
    pub(super) control: Sender<Input>,
    /// Of apps that have none of their own.
    pub(in super::super) drain_timeout: Duration,
    /// The routes have changed since the last `LoopCommand::Refresh`.
    pub(super) routes_changed: bool,
}

impl Lives {
    pub(in super::super) fn new(
        registry: Arc<Apps>,
        upstreams: UpstreamWatch,
        control: Sender<Input>,
        drain_timeout: Duration,
    ) -> Self {
        Self {
            registry,
            drains: Drains::default(),
            history: History::default(),
            upstreams,
            control,
            drain_timeout,
            routes_changed: false,
        }
    }

    /// For how many loops apps are loaded.
    pub(in super::super) fn loops(&self) -> usize {
        self.registry.loops()
    }

    /// How many apps there are.
    pub(in super::super) fn app_count(&self) -> usize {
        self.registry.entries().len()
    }

    /// Whether the routes have changed since the last call.
    pub(in super::super) fn take_routes_changed(&mut self) -> bool {
        std::mem::take(&mut self.routes_changed)
    }

    /// Why the app of this host could not be loaded, if so.
    pub(in super::super) fn load_error_of(&self, host: &str) -> Option<String> {
        self.registry.find(host)?.app().load_error.clone()
    }

    /// The life whose primary host this is.
    pub(in super::super) fn find(&self, host: &str) -> Option<Arc<AppLife>> {
        let host = host.to_ascii_lowercase();
        self.registry.find(&host).filter(|life| life.host() == host)
    }

    /// Lives that serve or drain, those in the map first: of each host the newest.
    pub(in super::super) fn all(&self) -> Vec<Arc<AppLife>> {
        let mut lives = self.registry.entries();
        let in_map: HashSet<_> = lives.iter().map(|life| life.id()).collect();
        let draining = self.drains.running().filter(|drain| drain.upstream().is_none());
        let draining = draining.map(|drain| &drain.life);
        lives.extend(draining.filter(|life| !in_map.contains(&life.id())).map(Arc::clone));
        lives
    }

    pub(in super::super) fn views(&self, now: Instant) -> Vec<LifeView> {
        let drain = |life: &AppLife| self.drains.view_of_life(life.id(), now);
        let view = |life: Arc<AppLife>| LifeView { drain: drain(&life), life };
        self.all().into_iter().map(view).collect()
    }

    /// What this process counted, how much of it is active, and the lives with something in flight.
    /// Looks at every life once: it is asked for several times a second, with any number of apps.
    pub(in super::super) fn busy(&self, now: Instant) -> (Totals, u64, Vec<LifeView>) {
        let (mut totals, mut active_connections) = (self.history.totals(), 0);
        let mut busy = Vec::new();
        for life in self.all() {
            let active = life.drain().active_connections();
            totals = totals + Totals::of(life.drain());
            active_connections += active;
            if active > 0 {
                busy.push(LifeView { drain: self.drains.view_of_life(life.id(), now), life });
            }
        }
        (totals, active_connections, busy)
    }

    /// What this process counted.
    pub(in super::super) fn totals(&self) -> Totals {
        let lives = self.all();
        lives.iter().fold(self.history.totals(), |sum, life| sum + Totals::of(life.drain()))
    }

    pub(in super::super) fn active_connections(&self) -> u64 {
        self.all().iter().map(|life| life.drain().active_connections()).sum()
    }

    pub(in super::super) fn measure(&self, now_ns: u64) -> Measured {
        let running = self.drains.running().count() as u64;
        self.history.measure(&self.all(), running, now_ns)
    }

    /// Forgets lives that are gone, as soon as no loop holds an exchange of them.
    pub(in super::super) fn let_go_of_ended(&mut self) {
        self.history.let_go_of_ended();
    }

    /// The drains that run and have no verdict, as they are now.
    pub(in super::super) fn running_drains(
        &self,
        now: Instant,
    ) -> impl Iterator<Item = (DrainView, AppId)> {
        let running = self.drains.running().filter(|drain| !drain.cancelled);
        running.map(move |drain| (drain.view(now), drain.life.id()))
    }

    /// Whether a life drains for good: not only until it is resumed.
    pub(super) fn is_being_removed(&self, life: &AppLife) -> bool {
        life.drain().draining() && !self.drains.is_paused(life.id())
    }

    /// Registers an app, alone or in the place of a life.
    /// Before that, and only then, its certificates hold: if it demands more of TLS than the life
    /// before, no request of an older connection is too early (I12).
    pub(super) fn begin(
        &mut self,
        app: NewApp<HostedApp>,
        instead_of: Option<&Arc<AppLife>>,
        certificates: Option<NewTable>,
    ) -> Result<Arc<AppLife>, ChangeError> {
        let mut life = NewLife { app, instead_of: instead_of.cloned() };
        self.take_over(&mut life);
        // An app that was drained on demand keeps its names.
        let yields = |held: &AppLife| self.is_being_removed(held);
        let first = || certificates.into_iter().for_each(NewTable::publish);
        let mut begun = self.registry.update_after(vec![life], yields, first);
        let life = begun.pop().expect("one life, one result").map_err(ChangeError::NameTaken)?;
        self.note_begun(&life, instead_of.map(|old| &**old));
        self.routes_changed = true;
        Ok(life)
    }

    /// What is known of the upstreams and the clients of the life before stays known, but for an
    /// app that is removed and comes back. It is done before the loops know the new life: none of
    /// them may ask an upstream that is out.
    pub(super) fn take_over(&self, life: &mut NewLife<HostedApp>) {
        let before = life.instead_of.as_ref().filter(|old| !self.is_being_removed(old));
        let Some(before) = before.map(|old| old.app()) else { return };
        let new = &mut life.app.app;
        if let (Some(new), Some(old)) = (new.app.upstreams(), before.app.upstreams()) {
            new.take_over(old);
        }
        new.filters.take_over(&before.filters);
    }

    /// A life has begun, in the place of another one if there was one.
    pub(super) fn note_begun(&mut self, life: &AppLife, before: Option<&AppLife>) {
        self.history.begin(life);
        if let Some(before) = before {
            self.drains.hand_on_all(before, life);
        }
        self.upstreams.begin(life);
    }

    /// How long the drain of a life may take.
    pub(super) fn drain_timeout_of(&self, life: &AppLife, asked: Option<Duration>) -> Duration {
        asked.or(life.app().drain_timeout).unwrap_or(self.drain_timeout)
    }
}
