//! The drain of one upstream of a life, while the app goes on with the others.
//!
//! ```text
//! flag set ──WatchUpstream──► loops ──UpstreamLeft from each──► drained
//!                             deadline ──CutUpstream──► loops ──UpstreamLeft──► cut N
//! ```
//! The flag is set before the loops get the command: a loop that reports that it has left has no
//! exchange with the upstream and begins none. Each loop looks at its own count alone, so counts
//! that move are never added up. The drain is a [`Drain`] like a life's: I2 and I5 hold there. It
//! waits for older lives of the app too, and ends with its own life if they have nothing there. The
//! upstream stays out until it is resumed: a further life of the app has it out too.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    super::{
        change_error::ChangeError,
        context::Context,
        drain_view::{DrainName, Verdict},
        drains::{Drain, upstream_in},
        notices::notice,
    },
    state::Lives,
};
use crate::{
    app::OneUpstream,
    hosted::AppLife,
    message::{LoopCommand, UpstreamDrainId},
};

impl Lives {
    /// Begins the drain of one upstream of an app, in the life that serves and in older lives that
    /// still drain: an operator may end the upstream once it is drained. If it is drained already,
    /// returns that drain.
    pub(in super::super) fn drain_upstream(
        &mut self,
        cx: &mut Context,
        host: &str,
        url: &str,
        timeout: Option<Duration>,
        now: Instant,
    ) -> Result<DrainName, ChangeError> {
        let (life, upstream) = self.upstream_of(host, url)?;
        if let Some(drain) = self.drains.upstream_out(life.id(), upstream.index()) {
            return Ok(drain);
        }
        let older = self.all();
        let older = older.iter().filter(|old| old.host() == life.host() && old.id() != life.id());
        let upstream = upstream.with_older(older.filter_map(|old| upstream_in(old, url)));
        let timeout = self.drain_timeout_of(&life, timeout);
        let id = self.drains.take_out(life.id(), upstream.index());
        upstream.drain(cx.nanoseconds(now));
        let watch = || LoopCommand::WatchUpstream(id, upstream.clone());
        // A loop that has ended holds nothing any more.
        let waiting = (0..cx.loops.count()).filter(|index| cx.command_one(*index, watch()));
        let waiting = waiting.count();
        let app = life.id();
        let drain = Drain::begin_upstream(id, life, upstream, waiting, (now, now + timeout));
        cx.drain_log.drain_started(&drain.view(now), app, now);
        self.drains.insert(drain);
        if waiting == 0 {
            self.end_drain(cx, DrainName::Upstream(id), now);
        }
        Ok(DrainName::Upstream(id))
    }

    /// Names of drains go on behind those of the process before this one.
    pub(in super::super) fn skip_upstream_drains(&mut self, used: u64) {
        self.drains.skip_upstream_drains(used);
    }

    /// Takes one upstream of an app back in. A drain of it that is not over is cancelled.
    pub(in super::super) fn resume_upstream(
        &mut self,
        cx: &mut Context,
        host: &str,
        url: &str,
        now: Instant,
    ) -> Result<Arc<AppLife>, ChangeError> {
        let (life, upstream) = self.upstream_of(host, url)?;
        let name = self.drains.take_in(life.id(), upstream.index());
        let drain = self.drains.take(name.ok_or(ChangeError::NotDrained)?);
        upstream.resume(cx.nanoseconds(now));
        notice!(
            cx.notices,
            Info,
            "upstream_resumed",
            host = life.host(),
            id = life.id().as_u64(),
            upstream = upstream.url(),
            drain_cancelled = drain.is_some(),
        );
        if let Some(drain) = drain {
            self.conclude(cx, drain.view(now), Verdict::Cancelled, life.id());
        }
        Ok(life)
    }

    /// A loop has no exchange with an upstream that drains. What was cancelled is left by loops
    /// too, and that is not announced again (I2).
    pub(in super::super) fn on_upstream_left(
        &mut self,
        cx: &mut Context,
        id: UpstreamDrainId,
        now: Instant,
    ) {
        let name = DrainName::Upstream(id);
        if self.drains.find(name).is_some_and(Drain::loop_left) {
            self.end_drain(cx, name, now);
        }
    }

    fn upstream_of(
        &self,
        host: &str,
        url: &str,
    ) -> Result<(Arc<AppLife>, OneUpstream), ChangeError> {
        let life = self.find(host).ok_or(ChangeError::UnknownHost)?;
        let upstream =
            upstream_in(&life, url).ok_or_else(|| ChangeError::UnknownUpstream(url.to_owned()))?;
        Ok((life, upstream))
    }
}
