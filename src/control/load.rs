//! Apps as they are loaded from their config.

use std::sync::Arc;

use crate::{
    app::{self, Filters},
    config::AppConfig,
    hosted::{HostedApp, Origin},
    registry::NewApp,
};

/// Loads an app for this many loops.
///
/// # Errors
/// When what it serves cannot be opened.
pub(crate) fn load(
    config: &AppConfig,
    origin: Origin,
    loops: usize,
) -> Result<NewApp<HostedApp>, app::LoadError> {
    let app = app::load(&config.kind, loops)?;
    let hosted = HostedApp {
        config: Some(config.clone()),
        drain_timeout: config.drain_timeout,
        filters: Filters::load(config),
        ..HostedApp::new(app, origin, loops)
    };
    Ok(NewApp { host: config.host.clone(), aliases: config.aliases.clone(), app: hosted })
}

/// What stands in for an app that cannot be loaded: its host stays known, and answers 503.
pub(crate) fn unavailable(config: &AppConfig, error: String, loops: usize) -> NewApp<HostedApp> {
    let hosted = HostedApp {
        load_error: Some(error),
        drain_timeout: config.drain_timeout,
        ..HostedApp::new(Arc::new(app::Unavailable), Origin::Config, loops)
    };
    NewApp { host: config.host.clone(), aliases: config.aliases.clone(), app: hosted }
}
