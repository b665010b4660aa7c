//! What the registry holds for an app: the app, its config, its filters and its counters.
//!
//! Each life of an app has its own [`HostedApp`] (I4). That of a new life takes over the state that
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

/// A connection with an exchange for an app.
pub(crate) type AppGuard = InFlightGuard<HostedApp>;

/// One life of an app.
pub(crate) struct HostedApp {
    /// The app itself.
    pub(crate) app: Arc<dyn App>,
    /// Its config. `None` for an embedder's app, and for an app that could not be loaded, so that
    /// the next reload tries again.
    pub(crate) config: Option<AppConfig>,
    /// The JSON definition, if an admin request defined the app.
    pub(crate) definition: Option<Arc<serde_json::Value>>,
    /// Why it could not be loaded, if it could not.
    pub(crate) load_error: Option<String>,
    /// Where its definition comes from.
    pub(crate) origin: Origin,
    /// How long a drain may take; `None` means the server's `drain_timeout`.
    pub(crate) drain_timeout: Option<Duration>,
    /// Its filters.
    pub(crate) filters: Filters,
    /// How its exchanges ended.
    pub(crate) counters: ExchangeCounters,
}

impl HostedApp {
    /// An app without a config and filters, with all counts at 0.
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

    /// A copy for the next life, with all counts at 0.
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

/// Where the definition of an app comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The config file.
    Config,
    /// An admin request. A reload of a config without this app removes it.
    Admin,
    /// The program that embeds the server. Reloads don't change it.
    Embedder,
}
