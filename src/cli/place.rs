//! The options that name the server and its config.

use std::path::{Path, PathBuf};

use clap::Args;

/// The default name of the config.
const DEFAULT_CONFIG: &str = "config.toml";

/// The options that name the server and its config.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// The config file. Default: ./config.toml; commands to a running server also look for a server
    /// without a config and for /etc/tidegate/config.toml
    #[arg(long, short, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The admin address of the running server: unix:PATH or 127.0.0.1:PORT. Default:
    /// TIDEGATE_ADMIN, else the address in the config
    #[arg(long, global = true, value_name = "ADDR")]
    pub(super) admin: Option<String>,

    /// The file with the token for a TCP admin address. Default: TIDEGATE_TOKEN, else the token in
    /// the config
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
}

impl Place {
    /// The server's config.
    pub(super) fn config(&self) -> &Path {
        self.named_config().unwrap_or(Path::new(DEFAULT_CONFIG))
    }

    /// The config that `--config` names.
    pub(super) fn named_config(&self) -> Option<&Path> {
        self.config.as_deref()
    }
}
