//! `tidegate check`: whether the config can be served.

use std::{path::Path, process::ExitCode};

/// Parses the config and prints what it holds, or all that is wrong with it (exit code 2).
pub(super) fn check(path: &Path) -> ExitCode {
    match super::load_config(path) {
        Ok(config) => {
            let (file, apps, listen) = (path.display(), config.apps.len(), &config.server.listen);
            println!("{file}: ok, {apps} apps, {} addresses", listen.len());
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}
