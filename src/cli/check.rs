//! `tidegate check`: whether the config can be served.

use std::{path::Path, process::ExitCode};

use super::show;

/// Parses the config and prints what it holds, or all that is wrong with it (exit code 2).
pub(super) fn check(path: &Path) -> ExitCode {
    let config = match super::load_config(path) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let (file, apps, listen) = (path.display(), config.apps.len(), &config.server.listen);
    let text = format!("{file}: ok, {apps} apps, {} addresses", listen.len());
    show::print_line(&text).map_or_else(|failure| failure.report(), |_| ExitCode::SUCCESS)
}
