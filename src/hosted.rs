//! What the registry holds of an app: the app itself, what stands around it, and what is counted.
//!
//! One [`HostedApp`] is one life of an app (I4): a new life has a new one, which takes over what
//! outlives a life.

use std::{sync::Arc, time::Duration};

use crate::{
    app::{App, Filters},
    config::AppConfig,
    metrics::ExchangeCounters,
    registry::{AppEntry, AppRegistry, InFlightGuard},
};

/// The registry of a server.
pub(crate) type Apps = AppRegistry<HostedApp>;

/// One life of an app of a server.
pub(crate) type AppLife = AppEntry<HostedApp>;

/// An active connection of an app of a server.
pub(crate) type AppGuard = InFlightGuard<HostedApp>;

/// An app as a life holds it.
pub(crate) struct HostedApp {
    /// The app itself.
    pub(crate) app: Arc<dyn App>,
    /// What it was loaded from; none for an embedder's app, and for one that could not be loaded:
    /// the next reload tries again.
    pub(crate) config: Option<AppConfig>,
    /// The table that an operator has put, as it came.
    pub(crate) definition: Option<Arc<serde_json::Value>>,
    /// Why it could not be loaded, if so.
    pub(crate) load_error: Option<String>,
    /// Who wanted it.
    pub(crate) origin: Origin,
    /// How long a drain may take; none: as long as the server's.
    pub(crate) drain_timeout: Option<Duration>,
    /// What stands around the app.
    pub(crate) filters: Filters,
    /// How its exchanges ended.
    pub(crate) counters: ExchangeCounters,
}

impl HostedApp {
    /// An app that nothing is counted of yet.
    pub(crate) fn new(app: Arc<dyn App>, origin: Origin, loops: usize) -> Self {
        let counters = ExchangeCounters::new(loops);
        Self {
            app,
            config: None,
            definition: None,
            load_error: None,
            origin,
            drain_timeout: None,
            filters: Filters::default(),
            counters,
        }
    }

    /// The same app for a further life.
    pub(crate) fn again(&self, loops: usize) -> Self {
        let app = self.app.again().unwrap_or_else(|| Arc::clone(&self.app));
        Self {
            config: self.config.clone(),
            definition: self.definition.clone(),
            load_error: self.load_error.clone(),
            drain_timeout: self.drain_timeout,
            filters: self.filters.again(),
            ..Self::new(app, self.origin, loops)
        }
    }
}

/// Who wanted an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The config file.
    Config,
    /// An admin request; it lives until a reload of a config that does not name it.
    Admin,
    /// The program that embeds the server; reloads leave it alone.
    Embedder,
}
