//! The changes that a reload makes of apps, all in one step.

use std::{sync::Arc, time::Instant};

use super::{
    super::{
        changes::{LifeChanges, LivesChanged},
        context::Context,
        drain_view::Cause,
        drains::DrainRequest,
        notices::notice,
    },
    state::Lives,
};
use crate::{
    hosted::{AppLife, HostedApp, Origin},
    registry::NewLife,
};

impl Lives {
    /// Makes the changes of a reload in one step. Whatever happened while it was prepared holds: an
    /// app that was drained meanwhile stays so.
    pub(in super::super) fn reload(
        &mut self,
        cx: &mut Context,
        mut changes: LifeChanges,
        now: Instant,
    ) -> LivesChanged {
        for life in &mut changes.begin {
            // The app may have got another life since the reload was prepared.
            let held = self.find(&life.app.host);
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
        // The config decides which app has which name, but for the apps of the embedder.
        let begun = self
            .registry
            .update(begin, |held| held.app().origin != Origin::Embedder || held.drain().draining());
        self.registry.set_default_app(changes.default_app);
        let mut drains = Vec::new();
        let drain = DrainRequest::new(Cause::Reload, now);
        for (life, old) in begun.iter().zip(olds) {
            let Ok(life) = life else { continue };
            self.note_begun(life, old.as_deref());
            let (host, id, kind) = (life.host(), life.id().as_u64(), life.app().app.kind());
            match old {
                Some(old) => {
                    notice!(cx.notices, Info, "app_replaced", host = host, id = id, kind = kind);
                    drains.extend(self.leave_map(cx, &old, drain));
                }
                // The failure of an app that could not be loaded was logged already.
                None if life.app().load_error.is_some() => {}
                None => notice!(cx.notices, Info, "app_added", host = host, id = id, kind = kind),
            }
        }
        for life in changes.remove {
            // A life that is being removed already is what the config wants.
            if let Ok(ticket) = self.remove_life(cx, &life, drain) {
                drains.push(ticket.id());
            }
        }
        self.routes_changed = true;
        let mut begun = begun.into_iter();
        let begun = stay.into_iter().map(|stays| if stays { None } else { begun.next() });
        LivesChanged { begun: begun.collect(), drains }
    }
}
