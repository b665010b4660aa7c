//! Loads apps from their config.

use std::sync::Arc;

use super::{App, Files, LoadError, Proxy, Redirect, Respond};
use crate::config::AppKind;

/// Loads an app, to be served by `loops` loops.
///
/// # Errors
/// When the directory that the app serves cannot be opened, or a file for TLS to its upstreams
/// cannot be used. Other apps are not affected (I8).
pub fn load(kind: &AppKind, loops: usize) -> Result<Arc<dyn App>, LoadError> {
    Ok(match kind {
        AppKind::Respond(config) => Arc::new(Respond::new(config)),
        AppKind::Redirect(config) => Arc::new(Redirect::new(config)),
        AppKind::Files(config) => Arc::new(Files::open(config.clone(), loops)?),
        AppKind::Proxy(config) => Arc::new(Proxy::open((**config).clone(), loops)?),
    })
}
