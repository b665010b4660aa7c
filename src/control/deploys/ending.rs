//! How a deploy ends, and the client that waits for it.

use std::{
    io,
    time::{Duration, SystemTime},
};

use super::{
    super::{change_error::PutError, changes::Begun},
    board::{Loaded, Progress},
    plan::UpstreamChecks,
};
use crate::app::Later;

/// The client that waits for a deploy.
pub(crate) struct Client {
    pub(crate) later: Later,
    pub(crate) respond: Box<dyn FnOnce(Later, Outcome) + Send>,
}

/// What a deploy came to.
pub(crate) struct Outcome {
    pub(crate) host: String,
    pub(crate) progress: Option<Progress>,
    pub(crate) ending: Ending,
}

/// How a deploy ended.
pub(crate) enum Ending {
    /// The new life is in place, so long after the last good check.
    Switched(Begun, Option<Duration>),
    NotReady,
    Aborted(String),
    /// The host has had a deploy since then.
    UnderWay(SystemTime),
    /// More upstreams were asked for than there are.
    TooMany(usize),
    Failed(PutError),
}

impl Client {
    /// There is no thread for deploys.
    pub(super) fn refuse(self, loaded: Loaded, error: &io::Error) {
        let failed = PutError::Load(format!("no thread for deploys: {error}"));
        let (host, ending) = (loaded.config.host, Ending::Failed(failed));
        (self.respond)(self.later, Outcome { host, progress: None, ending });
    }
}

impl Ending {
    /// Why the deploy failed, in short.
    pub(super) fn reason(&self, progress: &Progress) -> String {
        match self {
            Self::Aborted(reason) => format!("aborted: {reason}"),
            Self::NotReady => {
                let fault = |(checks, fault): &(UpstreamChecks, Option<String>)| {
                    fault.as_ref().map(|fault| format!("{}: {fault}", checks.url))
                };
                let faults: Vec<_> = progress.checks.iter().filter_map(fault).collect();
                format!("not ready: {}", faults.join("; "))
            }
            Self::Failed(PutError::Load(reason)) => reason.clone(),
            Self::Failed(PutError::Change(reason)) => reason.to_string(),
            Self::Failed(PutError::Table(_))
            | Self::Switched(..)
            | Self::UnderWay(_)
            | Self::TooMany(_) => String::new(),
        }
    }
}
