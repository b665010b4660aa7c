//! The lives of apps: how they begin, drain and end. Every change of the registry is made here.
//!
//! ```text
//!            add                 remove, reload          count 0, or deadline
//!   (none) ──────► serving ───────────────────► draining ───────────────────► gone
//!                   │  ▲  drain                    ▲  count 0, or deadline
//!                   │  └───────── resume ──┐       │                 ┌─► drained ──remove──► gone
//!                   └──────────────────────┴─ draining (drain) ──────┘
//! ```
//! Replace, resume and reload begin a new life (I4); the old one drains outside the map. What is
//! known of its upstreams, and who of them is drained, holds for the new one from its begin. A life
//! that was drained keeps its names, and with them its 503, until it is resumed, replaced or
//! removed.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    ChangeError, Control, Input,
    drains::{Cause, Drain, DrainName, DrainTicket, Verdict},
    notices::notice,
};
use crate::{
    hosted::{AppLife, HostedApp, Origin},
    logging::event,
    registry::{AppId, NameTaken, NewApp, NewLife},
};

/// What is to be under a host, by an operator's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PutMode {
    /// A new app; an error if there is one.
    Add,
    /// A new life of an app; an error if there is none.
    Replace,
    /// Whichever it comes to.
    Either,
}

/// What a change came to.
pub(crate) struct Begun {
    pub(crate) life: Arc<AppLife>,
    /// The old life, if it drains now.
    pub(crate) drain: Option<AppId>,
    /// Whether there was an app under the host before.
    pub(crate) replaced: bool,
}

/// What a reload changes of the apps.
pub(crate) struct LifeChanges {
    /// Apps that are new, or changed.
    pub(crate) begin: Vec<NewLife<HostedApp>>,
    /// Apps that are no longer wanted.
    pub(crate) remove: Vec<Arc<AppLife>>,
    pub(crate) default_app: Option<String>,
}

/// What a reload came to.
pub(crate) struct LivesChanged {
    /// For each life that was to begin, in that order; none for an app that stays as it is: it is
    /// drained on demand, or its new life could not be loaded.
    pub(crate) begun: Vec<Option<Result<Arc<AppLife>, NameTaken>>>,
    /// Lives that drain now.
    pub(crate) drains: Vec<AppId>,
}

impl Control {
    /// Registers an app, alone or in the place of the one that has its host. Served at once.
    pub(crate) fn put_app(
        &mut self,
        mut app: NewApp<HostedApp>,
        mode: PutMode,
        now: Instant,
    ) -> Result<Begun, ChangeError> {
        let old = self.life_of(&app.host);
        match (&old, mode) {
            (Some(old), PutMode::Add) if !self.is_being_removed(old) => {
                let name = old.host().to_owned();
                return Err(ChangeError::NameTaken(NameTaken { by: name.clone(), name }));
            }
            (None, PutMode::Replace) => return Err(ChangeError::UnknownHost),
            (Some(old), PutMode::Replace) if self.is_being_removed(old) => {
                return Err(ChangeError::BeingRemoved);
            }
            _ => {}
        }
        if old.as_ref().is_some_and(|old| old.app().origin == Origin::Embedder) {
            // The program wanted an app here: reloads go on to leave it alone.
            app.app.origin = Origin::Embedder;
        }
        let replaced = old.as_ref().is_some_and(|old| !self.is_being_removed(old));
        let life = self.begin_life(app, old.as_ref())?;
        let (host, id, kind) = (life.host(), life.id().as_u64(), life.app().app.kind());
        if replaced {
            notice!(self.notices, Info, "app_replaced", host = host, id = id, kind = kind);
        } else {
            notice!(self.notices, Info, "app_added", host = host, id = id, kind = kind);
        }
        let drain = old.and_then(|old| self.leave_map(&old, Cause::Replace, now));
        Ok(Begun { life, drain, replaced })
    }

    /// Registers an app of the config that the server starts with.
    pub(crate) fn load_app(&mut self, app: NewApp<HostedApp>) {
        let name = app.host.clone();
        match self.begin_life(app, None) {
            Ok(life) => {
                let (id, kind) = (life.id().as_u64(), life.app().app.kind());
                let host = life.host();
                notice!(self.notices, Info, "app_loaded", host = host, id = id, kind = kind);
            }
            Err(error) => event!(Error, "app_load_failed", host = &*name, error:% = error),
        }
    }

    /// Begins the drain of an app that leaves. It keeps its names until the end, for its 503.
    pub(crate) fn remove_app(
        &mut self,
        host: &str,
        timeout: Option<Duration>,
        now: Instant,
    ) -> Result<DrainTicket, ChangeError> {
        let life = self.life_of(host).ok_or(ChangeError::UnknownHost)?;
        self.remove_life(&life, Cause::Remove, timeout, now)
    }

    /// Begins the drain of an app that stays, drained, until it is resumed. One that drains so
    /// already goes on, and the ticket is for that drain.
    pub(crate) fn drain_app(
        &mut self,
        host: &str,
        timeout: Option<Duration>,
        now: Instant,
    ) -> Result<DrainTicket, ChangeError> {
        let life = self.life_of(host).ok_or(ChangeError::UnknownHost)?;
        let id = life.id();
        if !life.drain().draining() {
            let ticket = self.begin_drain(&life, Cause::Drain, timeout, now)?.ticket();
            self.drains.pause(id);
            return Ok(ticket);
        }
        if !self.drains.is_paused(id) {
            return Err(ChangeError::BeingRemoved);
        }
        if let Some(drain) = self.drains.find(id) {
            return Ok(drain.ticket());
        }
        let ended = self.drains.view(id.into(), now).and_then(|view| view.verdict);
        let (sender, verdict) = crossbeam_channel::bounded(1);
        // It is received by whoever gets the ticket.
        let _ = sender.send(ended.unwrap_or(Verdict::Drained));
        Ok(DrainTicket { id, verdict })
    }

    /// Begins a new life of an app that was drained on demand: of the same app, or of `app` if it
    /// was loaded anew. A drain that is not over is cancelled; its life still ends.
    pub(crate) fn resume_app(
        &mut self,
        host: &str,
        app: Option<NewApp<HostedApp>>,
        now: Instant,
    ) -> Result<Arc<AppLife>, ChangeError> {
        let old = self.life_of(host).ok_or(ChangeError::UnknownHost)?;
        if !old.drain().draining() {
            return Err(ChangeError::NotDrained);
        }
        if !self.drains.is_paused(old.id()) {
            return Err(ChangeError::BeingRemoved);
        }
        let same = || NewApp {
            host: old.host().to_owned(),
            aliases: old.aliases().to_vec(),
            app: old.app().again(self.registry.loops()),
        };
        let life = self.begin_life(app.unwrap_or_else(same), Some(&old))?;
        notice!(
            self.notices,
            Info,
            "app_resumed",
            host = life.host(),
            id = life.id().as_u64(),
            drain_cancelled = self.drains.find(old.id()).is_some(),
        );
        self.leave_map(&old, Cause::Replace, now);
        if let Some(drain) = self.drains.find(old.id()) {
            drain.announce(Verdict::Cancelled);
            drain.cancelled = true;
            let view = drain.view(now);
            self.conclude(view, Verdict::Cancelled, old.id(), now);
        }
        Ok(life)
    }

    /// Makes the changes of a reload in one step. Whatever happened while it was prepared holds: an
    /// app that was drained meanwhile stays so.
    pub(super) fn change_lives(&mut self, mut changes: LifeChanges, now: Instant) -> LivesChanged {
        for life in &mut changes.begin {
            // The app may have got another life since the reload was prepared.
            let held = self.life_of(&life.app.host);
            let is_kept = |held: &Arc<AppLife>| {
                held.app().origin != Origin::Embedder && !self.is_being_removed(held)
            };
            let held = held.filter(is_kept);
            life.instead_of = held.or(life.instead_of.take());
        }
        // What is drained on demand stays so, and what serves is not replaced by a 503 (I8).
        let stays = |life: &NewLife<HostedApp>| {
            let fails = life.app.app.load_error.is_some();
            life.instead_of.as_ref().is_some_and(|old| {
                self.drains.is_paused(old.id()) || (fails && !old.drain().draining())
            })
        };
        let stay: Vec<_> = changes.begin.iter().map(stays).collect();
        let begin = changes.begin.into_iter().zip(&stay);
        let begin = begin.filter(|(_, stays)| !**stays).map(|(life, _)| life);
        let mut begin: Vec<_> = begin.collect();
        let olds: Vec<_> = begin.iter().map(|life| life.instead_of.clone()).collect();
        begin.iter_mut().for_each(|life| self.take_over(life));
        // The config says who has which name, but for the apps of the embedder.
        let begun = self
            .registry
            .update(begin, |held| held.app().origin != Origin::Embedder || held.drain().draining());
        self.registry.set_default_app(changes.default_app);
        let mut drains = Vec::new();
        for (life, old) in begun.iter().zip(olds) {
            let Ok(life) = life else { continue };
            self.note_begun(life, old.as_deref());
            let (host, id, kind) = (life.host(), life.id().as_u64(), life.app().app.kind());
            match old {
                Some(old) => {
                    notice!(self.notices, Info, "app_replaced", host = host, id = id, kind = kind);
                    drains.extend(self.leave_map(&old, Cause::Reload, now));
                }
                // Of one that could not be loaded it was said that it failed.
                None if life.app().load_error.is_some() => {}
                None => notice!(self.notices, Info, "app_added", host = host, id = id, kind = kind),
            }
        }
        for life in changes.remove {
            // One that is being removed already is what the config wants.
            if let Ok(ticket) = self.remove_life(&life, Cause::Reload, None, now) {
                drains.push(ticket.id());
            }
        }
        self.routes_changed = true;
        let mut begun = begun.into_iter();
        let begun = stay.into_iter().map(|stays| if stays { None } else { begun.next() });
        LivesChanged { begun: begun.collect(), drains }
    }

    /// The life whose primary host this is.
    pub(super) fn life_of(&self, host: &str) -> Option<Arc<AppLife>> {
        let host = host.to_ascii_lowercase();
        self.registry.find(&host).filter(|life| life.host() == host)
    }

    /// Whether a life drains for good: not only until it is resumed.
    fn is_being_removed(&self, life: &AppLife) -> bool {
        life.drain().draining() && !self.drains.is_paused(life.id())
    }

    fn remove_life(
        &mut self,
        life: &Arc<AppLife>,
        cause: Cause,
        timeout: Option<Duration>,
        now: Instant,
    ) -> Result<DrainTicket, ChangeError> {
        if !life.drain().draining() {
            return self.begin_drain(life, cause, timeout, now).map(Drain::ticket);
        }
        if !self.drains.unpause(life.id()) {
            return Err(ChangeError::BeingRemoved);
        }
        let deadline = now + self.drain_timeout_of(life, timeout);
        let Some(drain) = self.drains.find(life.id()) else {
            // It was drained on demand: there is nothing to wait for.
            let mut drain = Drain::begin(Arc::clone(life), cause, now, deadline);
            let ticket = drain.ticket();
            self.say_drain_started(&drain.view(now), life.id(), now);
            self.finish_drain(drain, now);
            return Ok(ticket);
        };
        drain.cause = cause;
        let deadline = drain.set_deadline(deadline);
        let (ticket, view) = (drain.ticket(), drain.view(now));
        life.drain().set_drain_deadline_ns(nanoseconds(deadline.duration_since(self.epoch)));
        self.drains.look_at(deadline);
        self.say_drain_deadline(&view, life.id());
        Ok(ticket)
    }

    fn begin_life(
        &mut self,
        app: NewApp<HostedApp>,
        instead_of: Option<&Arc<AppLife>>,
    ) -> Result<Arc<AppLife>, ChangeError> {
        let mut life = NewLife { app, instead_of: instead_of.cloned() };
        self.take_over(&mut life);
        // An app that was drained on demand keeps its names.
        let mut begun = self.registry.update(vec![life], |held| self.is_being_removed(held));
        let life = begun.pop().expect("one life, one result").map_err(ChangeError::NameTaken)?;
        self.note_begun(&life, instead_of.map(|old| &**old));
        self.routes_changed = true;
        Ok(life)
    }

    /// What is known of the upstreams and the clients of the life before goes on, but for an app
    /// that is removed and comes back. Before the loops know the new life: none of them may ask who
    /// is out.
    fn take_over(&self, life: &mut NewLife<HostedApp>) {
        let before = life.instead_of.as_ref().filter(|old| !self.is_being_removed(old));
        let Some(before) = before.map(|old| old.app()) else { return };
        let new = &mut life.app.app;
        if let (Some(new), Some(old)) = (new.app.upstreams(), before.app.upstreams()) {
            new.take_over(old);
        }
        new.filters.take_over(&before.filters);
    }

    fn note_begun(&mut self, life: &AppLife, before: Option<&AppLife>) {
        self.account.begin(life);
        if let Some(before) = before {
            self.hand_on_upstreams(before, life);
        }
        self.upstreams.begin(life);
    }

    /// A life whose place was taken drains outside the map: from now on, or it does already. One
    /// that was drained is gone.
    fn leave_map(&mut self, old: &Arc<AppLife>, cause: Cause, now: Instant) -> Option<AppId> {
        let was_paused = self.drains.unpause(old.id());
        if !old.drain().draining() {
            return self.begin_drain(old, cause, None, now).ok().map(|drain| drain.life.id());
        }
        if self.drains.find(old.id()).is_some() {
            return Some(old.id());
        }
        if was_paused {
            self.retire(old, now);
        }
        None
    }

    fn begin_drain(
        &mut self,
        life: &Arc<AppLife>,
        cause: Cause,
        timeout: Option<Duration>,
        now: Instant,
    ) -> Result<&mut Drain, ChangeError> {
        let timeout = self.drain_timeout_of(life, timeout);
        let start_ns = nanoseconds(now.duration_since(self.epoch));
        let deadline_ns = start_ns.saturating_add(nanoseconds(timeout));
        let drain = Drain::begin(Arc::clone(life), cause, now, now + timeout);
        let (id, sender) = (life.id(), self.sender.clone());
        let announce = Box::new(move || drop(sender.send(Input::Drained(id))));
        let begun = life.drain().begin_drain(start_ns, deadline_ns, announce);
        begun.map_err(|_| ChangeError::BeingRemoved)?;
        self.say_drain_started(&drain.view(now), id, now);
        // In time, also if nothing was in flight: the announcement is a message to this thread.
        Ok(self.drains.insert(drain))
    }

    /// Ends a drain, once (I2): what comes after finds no drain of this life.
    pub(super) fn end_drain(&mut self, name: DrainName, now: Instant) {
        match self.drains.take(name) {
            Some(drain) if drain.upstream().is_some() => self.finish_upstream_drain(&drain, now),
            Some(drain) => self.finish_drain(drain, now),
            None => {}
        }
    }

    /// A life is gone: the drains of its upstreams end with it, unless they also wait for an older
    /// life or were handed on by one, and what it counted is kept.
    fn retire(&mut self, life: &Arc<AppLife>, now: Instant) {
        for name in self.drains.forget_upstreams(life.id()) {
            let own = self.drains.find(name).filter(|drain| drain.life.id() == life.id());
            let drain = own.and_then(|drain| drain.upstream());
            if drain.is_some_and(|upstream| !upstream.has_older()) {
                self.end_drain(name, now);
            }
        }
        self.account.retire(life);
    }

    fn finish_drain(&mut self, mut drain: Drain, now: Instant) {
        let life = Arc::clone(&drain.life);
        let (host, id) = (life.host(), life.id());
        let cut = drain.cut() + life.drain().active_connections();
        if !drain.cancelled {
            let verdict = Verdict::of(cut);
            let mut view = drain.view(now);
            (view.verdict, view.cut, view.remaining) = (Some(verdict), cut, Duration::ZERO);
            self.say_drain_ended(&view, id);
            self.account.drain_ended(&view);
            self.drains.remember(view);
        } else if cut > 0 {
            notice!(self.notices, Warn, "app_cut", host = host, id = id.as_u64(), cut = cut);
        }
        if self.drains.is_paused(id) {
            // Nobody knows when it is resumed: from now on a client may come back any time.
            life.drain().set_drain_deadline_ns(nanoseconds(now.duration_since(self.epoch)));
        } else {
            let had_names = self.registry.forget(&life);
            // Loops also keep connections for a proxy app.
            self.routes_changed |= had_names || life.app().app.upstreams().is_some();
            self.retire(&life, now);
            if had_names {
                let requests = life.drain().requests();
                let id = id.as_u64();
                notice!(
                    self.notices,
                    Info,
                    "app_removed",
                    host = host,
                    id = id,
                    requests = requests
                );
            }
        }
        drain.announce(Verdict::of(cut));
        self.tell_watchers(DrainName::App(id), now);
    }

    pub(super) fn drain_timeout_of(&self, life: &AppLife, asked: Option<Duration>) -> Duration {
        asked.or(life.app().drain_timeout).unwrap_or(self.drain_timeout)
    }
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Totals,
            drain_plan::CUT_GRACE,
            test_support::{app, control},
        },
        *,
    };
    use crate::registry::RegistryView;

    #[test]
    fn what_a_loop_cuts_after_the_end_of_a_drain_is_in_the_totals() {
        let (mut control, _commands) = control();
        let now = Instant::now();
        control.put_app(app("a.test", Origin::Admin), PutMode::Add, now).unwrap();
        let mut view = RegistryView::new(Arc::clone(&control.registry), 0);
        let Ok(held) = view.admit(Some("a.test")) else { panic!("not admitted") };
        let ticket = control.remove_app("a.test", Some(Duration::ZERO), now).unwrap();
        // The loop is stuck: it obeys the cut when the drain was given up.
        control.on_time(now);
        control.on_time(now + CUT_GRACE);
        assert_eq!(ticket.wait(Duration::ZERO), Some(Verdict::Cut(1)));
        assert_eq!(control.totals(), Totals { requests_total: 1, cut_total: 0 });
        held.cut();
        control.on_time(now + CUT_GRACE * 2);
        assert_eq!(control.totals(), Totals { requests_total: 1, cut_total: 1 });
    }

    #[test]
    fn a_removal_behind_the_deadline_of_a_drain_gives_no_more_time() {
        let (mut control, _commands) = control();
        let now = Instant::now();
        control.put_app(app("a.test", Origin::Admin), PutMode::Add, now).unwrap();
        let mut view = RegistryView::new(Arc::clone(&control.registry), 0);
        let Ok(_held) = view.admit(Some("a.test")) else { panic!("not admitted") };
        let id = control.drain_app("a.test", Some(Duration::ZERO), now).unwrap().id();
        control.on_time(now);
        let ticket = control.remove_app("a.test", Some(Duration::from_secs(30)), now).unwrap();
        let view = control.drains.view(id.into(), now).unwrap();
        assert_eq!((view.cause, view.remaining), (Cause::Remove, Duration::ZERO));
        control.on_time(now + CUT_GRACE);
        assert_eq!(ticket.wait(Duration::ZERO), Some(Verdict::Cut(1)));
    }

    #[test]
    fn a_life_that_began_while_a_reload_was_prepared_drains_when_that_replaces_it() {
        let (mut control, _commands) = control();
        let now = Instant::now();
        let old = control.put_app(app("a.test", Origin::Config), PutMode::Add, now).unwrap().life;
        let begin = NewLife { app: app("a.test", Origin::Config), instead_of: Some(old) };
        let (remove, default_app) = (Vec::new(), None);
        let changes = LifeChanges { begin: vec![begin], remove, default_app };
        control.drain_app("a.test", None, now).map(drop).unwrap();
        let between = control.resume_app("a.test", None, now).unwrap();
        let changed = control.change_lives(changes, now);
        assert!(between.drain().draining());
        assert_eq!(changed.drains, [between.id()]);
    }

    #[test]
    fn an_app_that_cannot_be_loaded_does_not_replace_one_that_came_while_it_was_tried() {
        let (mut control, _commands) = control();
        let now = Instant::now();
        let came = control.put_app(app("a.test", Origin::Admin), PutMode::Add, now).unwrap().life;
        let mut broken = app("a.test", Origin::Config);
        broken.app.load_error = Some("no such directory".to_owned());
        let begin = vec![NewLife { app: broken, instead_of: None }];
        let changes = LifeChanges { begin, remove: Vec::new(), default_app: None };
        assert!(matches!(control.change_lives(changes, now).begun[..], [None]));
        assert!(!came.drain().draining());
        assert_eq!(control.life_of("a.test").map(|life| life.id()), Some(came.id()));
    }
}
