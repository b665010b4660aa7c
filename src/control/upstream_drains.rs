//! The drain of one upstream of a life, while the app goes on with the others.
//!
//! ```text
//! flag set ──WatchUpstream──► loops ──UpstreamLeft from each──► drained
//!                             deadline ──CutUpstream──► loops ──UpstreamLeft──► cut N
//! ```
//! The flag is set before the loops are told: a loop that says that it has left has no exchange
//! with the upstream and begins none. Each loop is asked about its own count alone, so nobody has
//! to add up counts that move. The drain is a [`Drain`] like a life's: I2 and I5 are kept there. It
//! waits for older lives of the app too, and ends with its own life if they have nothing there. The
//! upstream stays out until it is resumed: a further life of the app has it out too.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    ChangeError, Control,
    drains::{Drain, DrainName, DrainView, Verdict},
    lives::nanoseconds,
    notices::notice,
};
use crate::{
    app::OneUpstream,
    hosted::AppLife,
    message::{LoopCommand, UpstreamDrainId},
    registry::AppId,
};

impl Control {
    /// Begins the drain of one upstream of an app: of the life that serves, and of older ones that
    /// are not over, for whoever is told that it is drained may end it. For one that is out already
    /// this is the drain that took it out.
    pub(super) fn drain_upstream(
        &mut self,
        host: &str,
        url: &str,
        timeout: Option<Duration>,
        now: Instant,
    ) -> Result<DrainName, ChangeError> {
        let (life, upstream) = self.upstream_of(host, url)?;
        if let Some(drain) = self.drains.upstream_out(life.id(), upstream.index()) {
            return Ok(drain);
        }
        let older = self.all_lives();
        let older = older.iter().filter(|old| old.host() == life.host() && old.id() != life.id());
        let upstream = upstream.with_older(older.filter_map(|old| upstream_in(old, url)));
        let timeout = self.drain_timeout_of(&life, timeout);
        let id = self.drains.take_out(life.id(), upstream.index());
        upstream.drain(nanoseconds(now.duration_since(self.epoch)));
        let watch = || LoopCommand::WatchUpstream(id, upstream.clone());
        // One that has ended holds nothing any more.
        let waiting = (0..self.loops.count()).filter(|index| self.command_one(*index, watch()));
        let waiting = waiting.count();
        let app = life.id();
        let drain = Drain::begin_upstream(id, life, upstream, waiting, (now, now + timeout));
        self.say_drain_started(&drain.view(now), app, now);
        self.drains.insert(drain);
        if waiting == 0 {
            self.end_drain(DrainName::Upstream(id), now);
        }
        Ok(DrainName::Upstream(id))
    }

    /// Names of drains go on behind those of the process before this one.
    pub(super) fn skip_upstream_drains(&mut self, used: u64) {
        self.drains.skip_upstream_drains(used);
    }

    /// Takes one upstream of an app back in. A drain of it that is not over is cancelled.
    pub(super) fn resume_upstream(
        &mut self,
        host: &str,
        url: &str,
        now: Instant,
    ) -> Result<Arc<AppLife>, ChangeError> {
        let (life, upstream) = self.upstream_of(host, url)?;
        let name = self.drains.take_in(life.id(), upstream.index());
        let drain = self.drains.take(name.ok_or(ChangeError::NotDrained)?);
        upstream.resume(nanoseconds(now.duration_since(self.epoch)));
        notice!(
            self.notices,
            Info,
            "upstream_resumed",
            host = life.host(),
            id = life.id().as_u64(),
            upstream = upstream.url(),
            drain_cancelled = drain.is_some(),
        );
        if let Some(drain) = drain {
            self.conclude(drain.view(now), Verdict::Cancelled, life.id(), now);
        }
        Ok(life)
    }

    /// A life begins in the place of another: who is out there is out here. The flags are set, for
    /// the loops know of the new life already.
    pub(super) fn hand_on_upstreams(&mut self, old: &AppLife, new: &AppLife) {
        let Some(upstreams) = new.app().app.upstreams() else { return };
        let endpoints = upstreams.endpoints().iter().enumerate();
        for (index, endpoint) in endpoints.filter(|(_, endpoint)| endpoint.is_drained()) {
            if let Some(before) = upstream_in(old, endpoint.url()) {
                self.drains.hand_on((old.id(), before.index()), (new.id(), index));
            }
        }
    }

    /// A loop has no exchange with an upstream that drains. What was cancelled is left by loops
    /// too, and nobody is told again (I2).
    pub(super) fn on_upstream_left(&mut self, id: UpstreamDrainId, now: Instant) {
        let name = DrainName::Upstream(id);
        if self.drains.find(name).is_some_and(Drain::loop_left) {
            self.end_drain(name, now);
        }
    }

    /// Every loop has left the upstream, or there is nothing more to wait for.
    pub(super) fn finish_upstream_drain(&mut self, drain: &Drain, now: Instant) {
        let mut view = drain.view(now);
        // What a loop that is stuck still holds.
        view.cut += view.active_connections;
        let verdict = Verdict::of(view.cut);
        self.conclude(view, verdict, drain.life.id(), now);
    }

    /// A drain has ended so: it is logged, counted and remembered, and who waits for it is told.
    pub(super) fn conclude(
        &mut self,
        mut view: DrainView,
        verdict: Verdict,
        life: AppId,
        now: Instant,
    ) {
        let name = view.name;
        (view.verdict, view.remaining) = (Some(verdict), Duration::ZERO);
        self.say_drain_ended(&view, life);
        self.account.drain_ended(&view);
        self.drains.remember(view);
        self.tell_watchers(name, now);
    }

    fn upstream_of(
        &self,
        host: &str,
        url: &str,
    ) -> Result<(Arc<AppLife>, OneUpstream), ChangeError> {
        let life = self.life_of(host).ok_or(ChangeError::UnknownHost)?;
        let upstream =
            upstream_in(&life, url).ok_or_else(|| ChangeError::UnknownUpstream(url.to_owned()))?;
        Ok((life, upstream))
    }
}

fn upstream_in(life: &AppLife, url: &str) -> Option<OneUpstream> {
    OneUpstream::find(life.app().app.upstreams()?, url)
}
