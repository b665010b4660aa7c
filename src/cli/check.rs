//! `tidegate check`: whether the config can be served.

use std::{path::Path, process::ExitCode};

use super::{USAGE, show};

/// Parses the config and prints what it holds, or all that is wrong with it (exit code 2).
pub(super) fn check(path: &Path) -> ExitCode {
    let (config, account) = match super::load_config(path) {
        Ok(loaded) => loaded,
        Err(error) => {
            show::note(&format!("{error}\n"));
            return ExitCode::from(USAGE);
        }
    };
    if let Some(Err(reason)) = account.map(|account| account.check_reachable()) {
        // Whoever starts the server may be root.
        show::note(&format!("tidegate: {reason}\n"));
    }
    let apps = show::count(config.apps.len(), "app");
    let addresses = show::count(config.server.listen.len(), "address");
    let text = format!("{}: ok, {apps}, {addresses}", path.display());
    show::print_line(&text).map_or_else(|failure| failure.report(), |_| ExitCode::SUCCESS)
}
