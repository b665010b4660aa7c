//! The deploys that are under way, for those who look at them, abort them or switch.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime},
};

use super::{
    super::changes::Base,
    plan::{DeployPlan, UpstreamChecks},
};
use crate::{
    config::{AppConfig, ReadyConfig},
    duration::nanoseconds,
    hosted::HostedApp,
    registry::NewApp,
};

/// An app that is loaded and not served.
pub(crate) struct Loaded {
    pub(crate) config: AppConfig,
    pub(crate) app: NewApp<HostedApp>,
    /// What was under its host before it was loaded.
    pub(crate) base: Base,
}

/// One deploy.
pub(crate) struct Deploy {
    pub(crate) config: AppConfig,
    pub(crate) base: Base,
    began: SystemTime,
    epoch: Instant,
    state: Mutex<State>,
}

struct State {
    plan: DeployPlan,
    /// Until it is put in place.
    app: Option<NewApp<HostedApp>>,
    /// Why it is aborted, if it is.
    aborted: Option<String>,
}

/// How far a deploy is.
pub(crate) struct Progress {
    pub(crate) host: String,
    pub(crate) began: SystemTime,
    pub(crate) elapsed_ns: u64,
    /// How many upstreams have to be ready.
    pub(crate) needed: usize,
    /// Each upstream's checks, and why it is not ready, if it is not.
    pub(crate) checks: Vec<(UpstreamChecks, Option<String>)>,
}

impl Deploy {
    /// A deploy that begins now. `quorum`: how many upstreams have to be ready, instead of all.
    pub(super) fn new(loaded: Loaded, quorum: Option<usize>, epoch: Instant) -> Self {
        let Loaded { config, app, base } = loaded;
        let upstreams = app.app.app.upstreams().map(Arc::clone);
        let urls: Vec<String> = upstreams
            .iter()
            .flat_map(|upstreams| {
                upstreams.endpoints().iter().map(|endpoint| endpoint.url().to_owned())
            })
            .collect();
        let needed = quorum.unwrap_or(urls.len());
        let default = ReadyConfig::default();
        let ready = upstreams.as_ref().map_or(&default, |upstreams| &upstreams.config().ready);
        let plan = DeployPlan::new(ready, urls, needed, nanoseconds(epoch.elapsed()));
        let state = Mutex::new(State { plan, app: Some(app), aborted: None });
        Self { config, base, began: SystemTime::now(), epoch, state }
    }

    pub(crate) fn host(&self) -> &str {
        &self.config.host
    }

    pub(crate) fn began(&self) -> SystemTime {
        self.began
    }

    pub(super) fn now_ns(&self) -> u64 {
        nanoseconds(self.epoch.elapsed())
    }

    /// Looks at its plan, or moves it on.
    pub(super) fn plan<T>(&self, act: impl FnOnce(&mut DeployPlan) -> T) -> T {
        act(&mut self.state().plan)
    }

    /// Aborts it, unless it has come to an end, or is switched.
    pub(crate) fn abort(&self, reason: impl Into<String>) -> bool {
        let mut state = self.state();
        let is_aborted = state.plan.abort();
        if is_aborted {
            state.aborted = Some(reason.into());
        }
        is_aborted
    }

    pub(super) fn why_aborted(&self) -> Option<String> {
        self.state().aborted.clone()
    }

    /// The app, to be put in place now, if it is ready now. From here on nothing aborts it. Its
    /// upstreams begin with what the checks have found.
    pub(crate) fn switch(&self) -> Option<NewApp<HostedApp>> {
        let now_ns = self.now_ns();
        let mut state = self.state();
        if !state.plan.switch(now_ns) {
            return None;
        }
        let app = state.app.take()?;
        if let Some(upstreams) = app.app.app.upstreams() {
            upstreams.begin_checked(&state.plan.faults(now_ns), now_ns);
        }
        Some(app)
    }

    pub(crate) fn progress(&self) -> Progress {
        let now_ns = self.now_ns();
        let state = self.state();
        let checks = state.plan.checks().iter().cloned().zip(state.plan.faults(now_ns)).collect();
        Progress {
            host: self.config.host.clone(),
            began: self.began,
            elapsed_ns: state.plan.elapsed_ns(now_ns),
            needed: state.plan.needed(),
            checks,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The deploys that are under way, by host.
#[derive(Default)]
pub(crate) struct Board(Mutex<BTreeMap<String, Arc<Deploy>>>);

impl Board {
    pub(crate) fn find(&self, host: &str) -> Option<Arc<Deploy>> {
        self.deploys().get(host).map(Arc::clone)
    }

    /// Aborts all that are not switched.
    pub(crate) fn abort_all(&self, reason: &str) {
        for deploy in self.deploys().values() {
            deploy.abort(reason);
        }
    }

    /// One more; not if its host has one.
    pub(super) fn add(&self, deploy: &Arc<Deploy>) -> Result<(), Arc<Deploy>> {
        let mut deploys = self.deploys();
        if let Some(other) = deploys.get(deploy.host()) {
            return Err(Arc::clone(other));
        }
        deploys.insert(deploy.host().to_owned(), Arc::clone(deploy));
        Ok(())
    }

    pub(super) fn remove(&self, host: &str) {
        self.deploys().remove(host);
    }

    fn deploys(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Deploy>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
