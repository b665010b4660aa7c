//! What a config says of certificates.

use crate::config::{AppTls, Config, TlsConfig};

/// What a config says of certificates.
#[derive(Default)]
pub(super) struct Wanted {
    pub(super) tls: TlsConfig,
    pub(super) apps: Vec<WantedApp>,
    /// The app that unknown names get.
    pub(super) default_app: Option<String>,
}

/// An app of the config.
pub(super) struct WantedApp {
    pub(super) host: String,
    /// Its host and its aliases.
    pub(super) names: Vec<String>,
    /// None if it isn't served over TLS.
    pub(super) tls: Option<AppTls>,
}

impl Wanted {
    pub(super) fn of(config: &Config) -> Self {
        let apps = config.apps.iter().map(|app| WantedApp {
            host: app.host.clone(),
            names: [&app.host].into_iter().chain(&app.aliases).cloned().collect(),
            tls: app.tls.clone(),
        });
        Self {
            tls: config.tls.clone(),
            apps: apps.collect(),
            default_app: config.server.default_app.clone(),
        }
    }
}
