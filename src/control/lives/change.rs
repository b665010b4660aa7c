//! Changes of single apps, as an operator or an embedder asks for them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    super::{
        certificates::NewTable,
        change_error::ChangeError,
        changes::{Base, Begun, PutMode},
        context::Context,
        drain_view::{Cause, DrainTicket, Verdict},
        drains::DrainRequest,
        notices::notice,
    },
    state::Lives,
};
use crate::{
    hosted::{AppLife, HostedApp, Origin},
    logging::event,
    registry::{NameTaken, NewApp},
};

impl Lives {
    /// Registers an app, alone or in the place of the app with its host. It is served at once.
    pub(in super::super) fn put_app(
        &mut self,
        cx: &mut Context,
        mut app: NewApp<HostedApp>,
        mode: PutMode,
        certificates: Option<NewTable>,
        now: Instant,
    ) -> Result<Begun, ChangeError> {
        let old = self.find(&app.host);
        match (&old, mode) {
            (Some(old), PutMode::Add) if !self.is_being_removed(old) => {
                let name = old.host().to_owned();
                return Err(ChangeError::NameTaken(NameTaken { by: name.clone(), name }));
            }
            (old, PutMode::Since(base)) if Base::of(old.as_deref()) != base => {
                return Err(ChangeError::Changed);
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
        let life = self.begin(app, old.as_ref(), certificates)?;
        let (host, id, kind) = (life.host(), life.id().as_u64(), life.app().app.kind());
        if replaced {
            notice!(cx.notices, Info, "app_replaced", host = host, id = id, kind = kind);
        } else {
            notice!(cx.notices, Info, "app_added", host = host, id = id, kind = kind);
        }
        let drain =
            old.and_then(|old| self.leave_map(cx, &old, DrainRequest::new(Cause::Replace, now)));
        Ok(Begun { life, drain, replaced })
    }

    /// Registers an app of the config that the server starts with.
    pub(in super::super) fn load_app(&mut self, cx: &Context, app: NewApp<HostedApp>) {
        let name = app.host.clone();
        match self.begin(app, None, None) {
            Ok(life) => {
                let (id, kind) = (life.id().as_u64(), life.app().app.kind());
                let host = life.host();
                notice!(cx.notices, Info, "app_loaded", host = host, id = id, kind = kind);
            }
            Err(error) => event!(Error, "app_load_failed", host = &*name, error:% = error),
        }
    }

    /// Begins the drain of an app that leaves. It keeps its names until the end, for its 503.
    pub(in super::super) fn remove_app(
        &mut self,
        cx: &mut Context,
        host: &str,
        timeout: Option<Duration>,
        now: Instant,
    ) -> Result<DrainTicket, ChangeError> {
        let life = self.find(host).ok_or(ChangeError::UnknownHost)?;
        self.remove_life(cx, &life, DrainRequest { cause: Cause::Remove, timeout, at: now })
    }

    /// Begins the drain of an app that stays, drained, until it is resumed. If it drains so
    /// already goes on, and the ticket is for that drain.
    pub(in super::super) fn drain_app(
        &mut self,
        cx: &mut Context,
        host: &str,
        timeout: Option<Duration>,
        now: Instant,
    ) -> Result<DrainTicket, ChangeError> {
        let life = self.find(host).ok_or(ChangeError::UnknownHost)?;
        let id = life.id();
        if !life.drain().draining() {
            let request = DrainRequest { cause: Cause::Drain, timeout, at: now };
            let ticket = self.begin_drain(cx, &life, request)?.ticket();
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
        // Its receiver is in the ticket.
        let _ = sender.send(ended.unwrap_or(Verdict::Drained));
        Ok(DrainTicket { id, verdict })
    }

    /// Begins a new life of an app that was drained on demand: of the same app, or of `app` if it
    /// was loaded again. A drain that is not over is cancelled; its life still ends.
    pub(in super::super) fn resume_app(
        &mut self,
        cx: &mut Context,
        host: &str,
        app: Option<NewApp<HostedApp>>,
        now: Instant,
    ) -> Result<Arc<AppLife>, ChangeError> {
        let old = self.find(host).ok_or(ChangeError::UnknownHost)?;
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
        let life = self.begin(app.unwrap_or_else(same), Some(&old), None)?;
        notice!(
            cx.notices,
            Info,
            "app_resumed",
            host = life.host(),
            id = life.id().as_u64(),
            drain_cancelled = self.drains.find(old.id()).is_some(),
        );
        self.leave_map(cx, &old, DrainRequest::new(Cause::Replace, now));
        if let Some(drain) = self.drains.find(old.id()) {
            drain.announce(Verdict::Cancelled);
            drain.cancelled = true;
            let view = drain.view(now);
            self.conclude(cx, view, Verdict::Cancelled, old.id());
        }
        Ok(life)
    }
}
