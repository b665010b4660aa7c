//! What control shows of its drains and lives, and who waits for an end.

use std::{collections::HashSet, sync::Arc, time::Instant};

use super::{Control, DrainName, DrainView, DrainWatch, LifeView, Progress, Report, Totals};
use crate::hosted::AppLife;

impl Control {
    pub(super) fn watch(&mut self, watcher: DrainWatch, now: Instant) {
        let is_over = self.view(watcher.drain, now).is_none_or(|view| view.verdict.is_some());
        if is_over || watcher.until <= now {
            return self.tell(vec![watcher], now);
        }
        self.watchers.push(watcher);
    }

    /// A drain has ended.
    pub(super) fn tell_watchers(&mut self, drain: DrainName, now: Instant) {
        let (told, waiting) = self.watchers.drain(..).partition(|watcher| watcher.drain == drain);
        self.watchers = waiting;
        self.tell(told, now);
    }

    pub(super) fn tell(&self, watchers: Vec<DrainWatch>, now: Instant) {
        for watcher in watchers {
            (watcher.tell)(self.view(watcher.drain, now));
        }
    }

    fn view(&self, drain: DrainName, now: Instant) -> Option<DrainView> {
        match drain {
            DrainName::App(_) | DrainName::Upstream(_) => self.drains.view(drain, now),
            DrainName::Stop => self.stop_view(now).or_else(|| self.cancelled_stop.clone()),
        }
    }

    pub(super) fn report(&self, now: Instant) -> Report {
        Report {
            stop: self.stop_view(now),
            handed_over: self.handed_over,
            drains: self.drains.views(now),
            upstream_drains: self.drains.upstream_drains(),
            addresses: self.addresses.clone(),
            totals: self.totals(),
            stuck_loops: self.stuck_loops(now),
            failed_loops: self.failed.iter().copied().collect(),
        }
    }

    /// Looks at every life once: it is asked for several times a second, with any number of apps.
    pub(super) fn progress(&self, now: Instant) -> Progress {
        let (mut totals, mut active_connections) = (self.account.totals(), 0);
        let mut busy = Vec::new();
        for life in self.all_lives() {
            let active = life.drain().active_connections();
            totals.requests_total += life.drain().requests();
            totals.cut_total += life.drain().cut();
            active_connections += active;
            if active > 0 {
                busy.push(LifeView { drain: self.drains.view_of_life(life.id(), now), life });
            }
        }
        Progress { stop: self.stop_view(now), totals, active_connections, busy }
    }

    /// Lives that serve or drain, those in the map first: of each host the newest.
    pub(super) fn all_lives(&self) -> Vec<Arc<AppLife>> {
        let mut lives = self.registry.entries();
        let in_map: HashSet<_> = lives.iter().map(|life| life.id()).collect();
        let draining = self.drains.running().filter(|drain| drain.upstream().is_none());
        let draining = draining.map(|drain| &drain.life);
        lives.extend(draining.filter(|life| !in_map.contains(&life.id())).map(Arc::clone));
        lives
    }

    pub(super) fn life_views(&self, now: Instant) -> Vec<LifeView> {
        let drain = |life: &AppLife| self.drains.view_of_life(life.id(), now);
        let view = |life: Arc<AppLife>| LifeView { drain: drain(&life), life };
        self.all_lives().into_iter().map(view).collect()
    }

    /// What this process counted.
    pub(super) fn totals(&self) -> Totals {
        let lives = self.all_lives();
        let sum = |count: fn(&AppLife) -> u64| lives.iter().map(|life| count(life)).sum::<u64>();
        let there = Totals {
            requests_total: sum(|life| life.drain().requests()),
            cut_total: sum(|life| life.drain().cut()),
        };
        there + self.account.totals()
    }

    /// How many loops apps are loaded for.
    pub(crate) fn loop_count(&self) -> usize {
        self.registry.loops()
    }

    /// Why the app of this host could not be loaded, if so.
    pub(crate) fn load_error_of(&self, host: &str) -> Option<String> {
        self.registry.find(host)?.app().load_error.clone()
    }

    pub(super) fn active_connections(&self) -> u64 {
        self.all_lives().iter().map(|life| life.drain().active_connections()).sum()
    }
}
