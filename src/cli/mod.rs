//! The command line: one file per command.
//!
//! Exit codes: 0 done or drained, 1 failed, 2 usage or config error, 3 exchanges were cut.

mod check;
mod serve;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::config::Config;

/// Serves many apps on one machine, routed by hostname, and stops without losing a request.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,

    /// The config file
    #[arg(long, short, global = true, value_name = "FILE", default_value = "config.toml")]
    config: PathBuf,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Command {
    /// Serve the config's apps until SIGTERM or SIGINT (the default)
    Serve,
    /// Check the config and say what is wrong with it
    Check,
    /// Print the version
    Version,
}

/// Failed.
const FAILED: u8 = 1;
/// Usage or config error.
const USAGE: u8 = 2;
/// A deadline, or a second signal, cut exchanges.
const CUT: u8 = 3;

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command.unwrap_or(Command::Serve) {
        Command::Serve => serve::serve(&arguments.config),
        Command::Check => check::check(&arguments.config),
        Command::Version => {
            println!("tidegate {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
    }
}

/// Loads the config, or prints all that is wrong with it.
fn load_config(path: &std::path::Path) -> Result<Config, ExitCode> {
    Config::load(path).map_err(|error| {
        eprintln!("{error}");
        ExitCode::from(USAGE)
    })
}
