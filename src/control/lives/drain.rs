//! The drains of lives: how they begin, are cut and end.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    super::{
        change_error::ChangeError,
        context::Context,
        drain_plan::DrainStep,
        drain_view::{DrainName, DrainTicket, DrainView, Verdict},
        drains::{Drain, DrainRequest},
        input::Input,
        notices::notice,
    },
    state::Lives,
};
use crate::{duration::nanoseconds, hosted::AppLife, message::LoopCommand, registry::AppId};

impl Lives {
    /// Does what is due for drains.
    pub(in super::super) fn on_time(&mut self, cx: &mut Context, now: Instant) {
        for (name, step) in self.drains.on_time(now) {
            match step {
                DrainStep::Cut => self.cut(cx, name, now),
                DrainStep::End => self.end_drain(cx, name, now),
            }
        }
        self.let_go_of_ended();
    }

    /// The deadline of a drain has come.
    fn cut(&mut self, cx: &Context, name: DrainName, now: Instant) {
        let Some(drain) = self.drains.find(name) else { return };
        let (life, upstream) = (drain.life.id(), drain.upstream().cloned());
        if !drain.cancelled {
            cx.drain_log.drain_cut(&drain.view(now), life);
        }
        cx.command(|| match &upstream {
            Some(upstream) => LoopCommand::CutUpstream(upstream.clone()),
            None => LoopCommand::Cut(life),
        });
    }

    /// Begins the drain of a life that serves.
    pub(super) fn begin_drain(
        &mut self,
        cx: &mut Context,
        life: &Arc<AppLife>,
        request: DrainRequest,
    ) -> Result<&mut Drain, ChangeError> {
        let DrainRequest { cause, timeout, at: now } = request;
        let timeout = self.drain_timeout_of(life, timeout);
        let start_ns = cx.nanoseconds(now);
        let deadline_ns = start_ns.saturating_add(nanoseconds(timeout));
        let drain = Drain::begin(Arc::clone(life), cause, now, now + timeout);
        let (id, control) = (life.id(), self.control.clone());
        let announce = Box::new(move || drop(control.send(Input::Drained(id))));
        let begun = life.drain().begin_drain(start_ns, deadline_ns, announce);
        begun.map_err(|_| ChangeError::BeingRemoved)?;
        cx.drain_log.drain_started(&drain.view(now), id, now);
        // In time, also if nothing was in flight: the announcement is a message to this thread.
        Ok(self.drains.insert(drain))
    }

    /// Removes a life: it drains for good.
    pub(super) fn remove_life(
        &mut self,
        cx: &mut Context,
        life: &Arc<AppLife>,
        request: DrainRequest,
    ) -> Result<DrainTicket, ChangeError> {
        if !life.drain().draining() {
            return self.begin_drain(cx, life, request).map(Drain::ticket);
        }
        let DrainRequest { cause, timeout, at: now } = request;
        if !self.drains.unpause(life.id()) {
            return Err(ChangeError::BeingRemoved);
        }
        let deadline = now + self.drain_timeout_of(life, timeout);
        let Some(drain) = self.drains.find(life.id()) else {
            // It was drained on demand: there is nothing to wait for.
            let mut drain = Drain::begin(Arc::clone(life), cause, now, deadline);
            let ticket = drain.ticket();
            cx.drain_log.drain_started(&drain.view(now), life.id(), now);
            self.finish_drain(cx, drain, now);
            return Ok(ticket);
        };
        drain.cause = cause;
        let deadline = drain.set_deadline(deadline);
        let (ticket, view) = (drain.ticket(), drain.view(now));
        life.drain().set_drain_deadline_ns(cx.nanoseconds(deadline));
        self.drains.look_at(deadline);
        cx.drain_log.drain_deadline(&view, life.id());
        Ok(ticket)
    }

    /// A life whose place was taken drains outside the map: from now on, or it does already. One
    /// that was drained is gone.
    pub(super) fn leave_map(
        &mut self,
        cx: &mut Context,
        old: &Arc<AppLife>,
        request: DrainRequest,
    ) -> Option<AppId> {
        let was_paused = self.drains.unpause(old.id());
        if !old.drain().draining() {
            return self.begin_drain(cx, old, request).ok().map(|drain| drain.life.id());
        }
        if self.drains.find(old.id()).is_some() {
            return Some(old.id());
        }
        if was_paused {
            self.retire(cx, old, request.at);
        }
        None
    }

    /// Ends a drain, once (I2): what comes after finds no drain of this name.
    pub(in super::super) fn end_drain(&mut self, cx: &mut Context, name: DrainName, now: Instant) {
        match self.drains.take(name) {
            Some(drain) if drain.upstream().is_some() => finish_upstream(self, cx, &drain, now),
            Some(drain) => self.finish_drain(cx, drain, now),
            None => {}
        }
    }

    /// Ends all drains that run: a stop is over, and a stuck loop holds them up (I2).
    pub(in super::super) fn end_all_drains(&mut self, cx: &mut Context, now: Instant) {
        for name in self.drains.running().map(|drain| drain.name).collect::<Vec<_>>() {
            self.end_drain(cx, name, now);
        }
    }

    /// A drain has ended so: it is logged, counted, remembered, and shown to those that wait.
    pub(super) fn conclude(
        &mut self,
        cx: &mut Context,
        mut view: DrainView,
        verdict: Verdict,
        life: AppId,
    ) {
        (view.verdict, view.remaining) = (Some(verdict), Duration::ZERO);
        self.record_end(cx, &view, life);
        cx.watchers.show_end(&view);
    }

    fn record_end(&mut self, cx: &Context, view: &DrainView, life: AppId) {
        cx.drain_log.drain_ended(view, life);
        self.history.drain_ended(view);
        self.drains.remember(view.clone());
    }

    /// A life is gone: the drains of its upstreams end with it, unless they also wait for an older
    /// life or were handed on by one, and what it counted is kept.
    fn retire(&mut self, cx: &mut Context, life: &Arc<AppLife>, now: Instant) {
        for name in self.drains.forget_upstreams(life.id()) {
            let own = self.drains.find(name).filter(|drain| drain.life.id() == life.id());
            let drain = own.and_then(|drain| drain.upstream());
            if drain.is_some_and(|upstream| !upstream.has_older()) {
                self.end_drain(cx, name, now);
            }
        }
        self.history.retire(life);
    }

    fn finish_drain(&mut self, cx: &mut Context, mut drain: Drain, now: Instant) {
        let life = Arc::clone(&drain.life);
        let (host, id) = (life.host(), life.id());
        let cut = drain.cut() + life.drain().active_connections();
        let verdict = Verdict::of(cut);
        let mut view = drain.view(now);
        (view.verdict, view.cut, view.remaining) = (Some(verdict), cut, Duration::ZERO);
        if !drain.cancelled {
            self.record_end(cx, &view, id);
        } else if cut > 0 {
            notice!(cx.notices, Warn, "app_cut", host = host, id = id.as_u64(), cut = cut);
        }
        if self.drains.is_paused(id) {
            // It may be resumed at any time: from now on clients are to try again soon.
            life.drain().set_drain_deadline_ns(cx.nanoseconds(now));
        } else {
            self.forget(cx, &life, now);
        }
        drain.announce(verdict);
        if !drain.cancelled {
            cx.watchers.show_end(&view);
        }
    }

    /// A life that drained for good is gone.
    fn forget(&mut self, cx: &mut Context, life: &Arc<AppLife>, now: Instant) {
        let had_names = self.registry.forget(life);
        // Loops also keep connections for a proxy app.
        self.routes_changed |= had_names || life.app().app.upstreams().is_some();
        self.retire(cx, life, now);
        if had_names {
            let (host, requests) = (life.host(), life.drain().requests());
            let id = life.id().as_u64();
            notice!(cx.notices, Info, "app_removed", host = host, id = id, requests = requests);
        }
    }
}

/// Every loop has left the upstream, or there is nothing more to wait for.
fn finish_upstream(lives: &mut Lives, cx: &mut Context, drain: &Drain, now: Instant) {
    let mut view = drain.view(now);
    // What a loop that is stuck still holds.
    view.cut += view.active_connections;
    let verdict = Verdict::of(view.cut);
    lives.conclude(cx, view, verdict, drain.life.id());
}
