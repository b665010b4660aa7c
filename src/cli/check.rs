//! `tidegate check`: whether the config is valid and will work on this machine.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::{Place, USAGE, report::report, show, warnings::warnings};
use crate::{
    config::{Config, ConfigError, Source},
    server::Account,
};

/// What `check` takes.
#[derive(Debug, Args)]
pub(super) struct Check {
    /// The config file, like --config; `-` is standard input
    #[arg(value_name = "FILE", conflicts_with = "config")]
    file: Option<PathBuf>,

    /// Also fail (exit code 2) on warnings
    #[arg(long)]
    strict: bool,
}

impl Check {
    /// Prints a summary of the config, or all mistakes in it (exit code 2), and warnings about this
    /// machine.
    pub(super) fn run(&self, place: &Place) -> ExitCode {
        let path = self.file.as_deref().unwrap_or(place.config());
        let loaded = Source::read(path).and_then(|source| {
            let (config, account) = load(&source)?;
            Ok((source, config, account))
        });
        let (source, config, account) = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                show::note(&format!("{error}\n"));
                return ExitCode::from(USAGE);
            }
        };
        if let Some(Err(reason)) = account.map(|account| account.check_reachable()) {
            // This is only a note: the user that starts the server may be root.
            show::note(&format!("tidegate: {reason}\n"));
        }
        let shown = source.show(warnings(&config, path, source.base()));
        if shown.count() > 0 {
            show::note(&format!("{shown}\n"));
        }
        let mut parts = vec![
            show::count(config.apps.len(), "app"),
            show::count(config.server.listen.len(), "address"),
        ];
        if shown.count() > 0 {
            parts.push(show::count(shown.count(), "warning"));
        }
        let text = format!("{}: ok, {}", source.name().display(), parts.join(", "));
        let is_good = shown.count() == 0 || !self.strict;
        let code = if is_good { ExitCode::SUCCESS } else { ExitCode::from(USAGE) };
        show::print_line(&text).map_or_else(|failure| report(&failure), |_| code)
    }
}

fn load(source: &Source) -> Result<(Config, Option<Account>), ConfigError> {
    let config = Config::of_source(source)?;
    let account = Account::of(&config.server).map_err(|error| {
        let message = format!("`server.{}` {}", error.key, error.predicate);
        source.error(&["server", error.key], message)
    })?;
    Ok((config, account))
}
