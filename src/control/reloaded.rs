//! What a reload came to, and how often.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use super::{change_error::ChangeError, changes::LivesChanged, emptied::Emptied};
use crate::{config::ConfigError, registry::AppId};

/// Why a reload changed nothing.
#[derive(Debug)]
pub enum ReloadError {
    /// The server was not started from a config file.
    NoFile,
    /// The file cannot be read, or is wrong.
    Config(ConfigError),
    /// Every app or every address would go, and the options do not allow that.
    Emptied(Emptied),
    /// The server stops, or has ended.
    Change(ChangeError),
}

impl ReloadError {
    /// In one line: of a config's problems, the first.
    pub(super) fn summary(&self) -> String {
        let Self::Config(error) = self else { return self.to_string() };
        let first = error.problems().first().map_or("", |problem| &problem.message);
        let line = error.problems().first().map_or(0, |problem| problem.line);
        match error.problems().len() - 1 {
            0 => format!("line {line}: {first}"),
            more => format!("line {line}: {first}; and {more} more"),
        }
    }
}

impl From<ChangeError> for ReloadError {
    fn from(reason: ChangeError) -> Self {
        Self::Change(reason)
    }
}

impl fmt::Display for ReloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoFile => f.write_str("the server was not started from a config file"),
            Self::Config(error) => error.fmt(f),
            Self::Emptied(lost) => write!(f, "the config would leave nothing to serve: {lost}"),
            Self::Change(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ReloadError {}

/// How a reload is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReloadOptions {
    /// Whether every app, or every address, may go. A config that was cut off in the middle of a
    /// write looks so; without this the reload fails and changes nothing. Default: no.
    pub allow_empty: bool,
    /// Whether to find out what would be done, and change nothing. Default: no.
    pub dry_run: bool,
}

/// What a reload did, or what a dry run found that it would do.
#[derive(Debug, Default)]
pub struct Reloaded {
    /// Whether nothing was changed: it was a dry run.
    pub dry_run: bool,
    /// Hosts of new apps.
    pub added: Vec<String>,
    /// Hosts of apps that have a new life.
    pub changed: Vec<String>,
    /// Hosts of apps that the config no longer names.
    pub removed: Vec<String>,
    /// How many apps stayed as they were.
    pub unchanged: usize,
    /// Hosts of apps that could not be loaded, and why. An app that served before goes on.
    pub failed: Vec<(String, String)>,
    /// Lives that drain now.
    pub drains: Vec<AppId>,
    /// Addresses that are listened on now.
    pub listening: Vec<SocketAddr>,
    /// Addresses that are no longer listened on.
    pub closed: Vec<SocketAddr>,
    /// Addresses that cannot be listened on, and why.
    pub not_listening: Vec<(SocketAddr, String)>,
    /// Certificates that could not be used, and why. The app keeps its previous certificate.
    pub certificate_errors: Vec<String>,
    /// Logs that could not be changed, and why.
    pub log_errors: Vec<String>,
    /// Settings that changed and hold now.
    pub settings: Vec<&'static str>,
    /// Settings that changed in the file, and hold after a restart.
    pub needs_restart: Vec<&'static str>,
}

/// How the last reload went.
#[derive(Clone, Debug)]
pub(crate) struct LastReload {
    pub(crate) at: SystemTime,
    pub(crate) error: Option<String>,
}

/// What has been reloaded so far, for the threads that show it.
#[derive(Debug, Default)]
pub(crate) struct Reloads {
    state: Mutex<ReloadCounts>,
}

/// How often, and how the last one went.
#[derive(Clone, Debug, Default)]
pub(crate) struct ReloadCounts {
    pub(crate) ok: u64,
    pub(crate) failed: u64,
    pub(crate) last: Option<LastReload>,
    pub(crate) last_ok_at: Option<SystemTime>,
}

impl Reloads {
    pub(crate) fn counts(&self) -> ReloadCounts {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn add(&self, error: Option<String>) {
        let at = SystemTime::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if error.is_none() {
            (state.ok, state.last_ok_at) = (state.ok + 1, Some(at));
        } else {
            state.failed += 1;
        }
        state.last = Some(LastReload { at, error });
    }
}

impl Reloaded {
    /// What of it failed, and why; all else holds.
    pub(super) fn failures(&self) -> impl Iterator<Item = String> {
        let apps = self.failed.iter().map(|(host, error)| format!("{host}: {error}"));
        let addresses = self.not_listening.iter();
        let addresses = addresses.map(|(address, error)| format!("{address}: {error}"));
        let others = self.certificate_errors.iter().chain(&self.log_errors);
        apps.chain(addresses).chain(others.cloned())
    }

    /// The first failure, in one line; `None` without failures.
    pub(super) fn failure_summary(&self) -> Option<String> {
        let first = self.failures().next()?;
        Some(match self.failures().count() - 1 {
            0 => first,
            more => format!("{first}; and {more} more failed"),
        })
    }

    /// Takes in how the lives began that were planned for these hosts.
    pub(super) fn take_lives(&mut self, hosts: Vec<(String, bool)>, changed: LivesChanged) {
        for ((host, is_new), begun) in hosts.into_iter().zip(changed.begun) {
            match begun {
                // Drained on demand.
                None => self.unchanged += 1,
                Some(Ok(life)) if life.app().load_error.is_some() => {}
                Some(Ok(_)) if is_new => self.added.push(host),
                Some(Ok(_)) => self.changed.push(host),
                Some(Err(taken)) => self.failed.push((host, taken.to_string())),
            }
        }
        self.drains = changed.drains;
    }
}
