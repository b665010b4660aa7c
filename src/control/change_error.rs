//! Why a change was not made.

use std::fmt;

use crate::{config::Problem, registry::NameTaken};

/// Why the apps of a server cannot be changed so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeError {
    /// No app has this host.
    UnknownHost,
    /// Another app serves the name.
    NameTaken(NameTaken),
    /// No upstream of the app has this URL.
    UnknownUpstream(String),
    /// The app is being removed already.
    BeingRemoved,
    /// The app, or its upstream, serves: there is nothing to resume.
    NotDrained,
    /// The app was changed by another request, or by a reload, meanwhile.
    Changed,
    /// The server stops.
    Stopping,
    /// The process of this id serves in the place of this one, since an upgrade.
    HandedOver(u32),
    /// The server has ended.
    Ended,
    /// What changes the server is busy with something else for so long already.
    Busy {
        /// What it does.
        with: String,
        /// For how long.
        seconds: u64,
    },
    /// The change has been under way for so long, and goes on.
    UnderWay {
        /// What is done.
        with: String,
        /// For how long.
        seconds: u64,
    },
}

impl fmt::Display for ChangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownHost => f.write_str("no app has this host"),
            Self::NameTaken(taken) => taken.fmt(f),
            Self::UnknownUpstream(url) => write!(f, "no upstream of this app has the URL {url}"),
            Self::BeingRemoved => f.write_str("the app is being removed already"),
            Self::NotDrained => f.write_str("it serves; only what is drained can be resumed"),
            Self::Changed => f.write_str("the app was changed meanwhile"),
            Self::Stopping => f.write_str("the server is stopping"),
            Self::HandedOver(pid) => write!(
                f,
                "an upgrade has handed the server over to process {pid}, and nothing was done \
                 here; ask again, on a new connection"
            ),
            Self::Ended => f.write_str("the server has ended"),
            Self::Busy { with, seconds } => write!(
                f,
                "nothing changed: the server has been busy for {seconds} s with another change \
                 ({with}); ask again when that is done"
            ),
            Self::UnderWay { with, seconds } => write!(
                f,
                "no outcome after {seconds} s, and it goes on ({with}); the log will tell how it \
                 went"
            ),
        }
    }
}

impl std::error::Error for ChangeError {}

/// Why an app cannot be put under a host.
#[derive(Debug)]
pub(crate) enum PutError {
    /// What is wrong with its table.
    Table(Vec<Problem>),
    /// It cannot be loaded.
    Load(String),
    Change(ChangeError),
}

impl From<ChangeError> for PutError {
    fn from(reason: ChangeError) -> Self {
        Self::Change(reason)
    }
}

/// Why a deploy is not switched.
#[derive(Debug)]
pub(crate) enum SwitchError {
    /// It is not ready any more.
    NotReady,
    Put(PutError),
}

impl From<ChangeError> for SwitchError {
    fn from(reason: ChangeError) -> Self {
        Self::Put(reason.into())
    }
}
