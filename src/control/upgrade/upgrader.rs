//! What an upgrade needs of this process, how it is asked for, and what it came to.

use std::{
    env,
    ffi::OsString,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    super::change_error::ChangeError,
    channel::Channel,
    handed::{HandedAdmin, HandedHealth},
    predecessor::Predecessor,
    relay::StopRelay,
    start::Starting,
    successor::{LastSuccessor, Reporter},
};

/// What an upgrade needs of the process, as it was started.
pub(crate) struct Upgrader {
    /// A program that embeds the server knows nothing of hand-overs.
    pub(super) is_embedded: bool,
    binary: io::Result<PathBuf>,
    arguments: Vec<OsString>,
    pub(in super::super) admin: Option<HandedAdmin>,
    pub(super) health: Option<HandedHealth>,
    /// What this process reports while it drains.
    pub(super) generation: Reporter,
    /// The process before this one.
    pub(super) predecessor: Option<Arc<Predecessor>>,
    pub(super) relay: StopRelay,
    /// The new process, until it serves.
    pub(crate) starting: Arc<Starting>,
    /// The new process, once it serves: the last one.
    pub(crate) successor: Arc<LastSuccessor>,
}

/// How an upgrade is done.
#[derive(Clone, Debug)]
pub(crate) struct UpgradeOptions {
    /// Another program than this process is of.
    pub(crate) binary: Option<PathBuf>,
    /// How long the new process may take until it serves.
    pub(crate) timeout: Duration,
    /// Whether the new process may serve none of the apps or addresses that this one serves.
    pub(crate) allow_empty: bool,
}

impl Default for UpgradeOptions {
    fn default() -> Self {
        Self { binary: None, timeout: Duration::from_secs(30), allow_empty: false }
    }
}

/// What an upgrade came to.
#[derive(Debug)]
pub(crate) struct Upgraded {
    /// The new process.
    pub(crate) pid: u32,
}

/// Why there is no upgrade. The old process goes on.
#[derive(Debug)]
pub(crate) enum UpgradeError {
    /// The server stops.
    Change(ChangeError),
    /// The new process could not be started, or did not come to serve.
    Failed(String),
}

impl From<ChangeError> for UpgradeError {
    fn from(reason: ChangeError) -> Self {
        Self::Change(reason)
    }
}

impl fmt::Display for UpgradeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Change(reason) => reason.fmt(f),
            Self::Failed(reason) => f.write_str(reason),
        }
    }
}

impl Upgrader {
    /// As this process was started: by this name, in this folder.
    pub(crate) fn new(
        is_embedded: bool,
        (admin, health): (Option<HandedAdmin>, Option<HandedHealth>),
        predecessor: Option<Arc<Predecessor>>,
        relay: StopRelay,
        generation: Reporter,
    ) -> Self {
        let mut arguments = env::args_os();
        let name = PathBuf::from(arguments.next().unwrap_or_default());
        // A name with a path may be a link, whose new end is the new version.
        let has_path = name.parent().is_some_and(|parent| parent != Path::new(""));
        let binary = if has_path { std::path::absolute(name) } else { env::current_exe() };
        let (arguments, starting, successor) =
            (arguments.collect(), Arc::default(), Arc::default());
        Self {
            is_embedded,
            binary,
            arguments,
            admin,
            health,
            generation,
            predecessor,
            relay,
            starting,
            successor,
        }
    }

    /// Starts the new process: this program again, or another one. The channel to it, and the
    /// program.
    pub(super) fn start(&self, binary: Option<PathBuf>) -> Result<(Channel, PathBuf), String> {
        let own = || self.binary.as_ref().map(Clone::clone).map_err(ToString::to_string);
        let binary = binary.map_or_else(own, Ok)?;
        let failed = |error: io::Error| format!("{}: {error}", binary.display());
        let (channel, theirs) = Channel::pair().map_err(failed)?;
        self.starting.spawn(&binary, &self.arguments, &theirs).map_err(failed)?;
        Ok((channel, binary))
    }
}
