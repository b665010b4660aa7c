//! The options that say where the server and its config are.

use std::path::{Path, PathBuf};

use clap::Args;

/// The config's name, if nothing is said.
const DEFAULT_CONFIG: &str = "config.toml";

/// Where the server and its config are.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// The config file. Without it: ./config.toml; commands to a running server then also look for
    /// one that was started without a config, and for /etc/tidegate/config.toml
    #[arg(long, short, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Where a running server listens for commands: unix:PATH or 127.0.0.1:PORT. Else it is taken
    /// from TIDEGATE_ADMIN, else from the config
    #[arg(long, global = true, value_name = "ADDR")]
    pub(super) admin: Option<String>,

    /// The file with the token for a TCP address. Else it is taken from TIDEGATE_TOKEN, else from
    /// the config
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
}

impl Place {
    /// The config that the server reads.
    pub(super) fn config(&self) -> &Path {
        self.named_config().unwrap_or(Path::new(DEFAULT_CONFIG))
    }

    /// The config that `--config` names.
    pub(super) fn named_config(&self) -> Option<&Path> {
        self.config.as_deref()
    }
}
