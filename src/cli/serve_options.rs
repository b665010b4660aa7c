//! The options of `tidegate serve`.

use clap::Args;

use super::quick::{QuickApp, QuickListen};

/// What `serve` takes.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Without a config")]
pub(super) struct Serve {
    #[command(flatten)]
    pub(super) app: QuickApp,

    #[command(flatten)]
    pub(super) listen: QuickListen,

    /// Start even if the config has no app; add apps later with `tidegate add`
    #[arg(long, help_heading = None, conflicts_with_all = ["files", "proxy", "respond"])]
    pub(super) allow_empty: bool,
}

impl Serve {
    /// Whether the apps come from a config and not from the arguments.
    pub(super) fn reads_config(&self) -> bool {
        !self.app.is_given()
    }
}
