//! What is asked of control, what comes of it, and how far reloads are.

use std::sync::Arc;

use super::super::{
    ChangeError, DrainTicket, LifeView, PutMode, ReloadOptions, Report, changes::LivesChanged,
    input::ReloadChanges, reload::PreparedReload,
};
use crate::{acknowledgement::Acknowledgements, config::Config, hosted::AppLife};

/// The hosts of a run.
pub(super) const HOSTS: [&str; 4] = ["a.test", "b.test", "c.test", "*.w.test"];

/// A question, as far as its answer depends on it.
#[derive(Debug)]
pub(super) enum Question {
    Put(String, PutMode),
    Remove(String),
    Drain(String),
    Resume(String),
    DrainUpstream(String),
    ResumeUpstream(String),
    Reload,
    ReportForReload,
    ReportForUpgrade,
    LivesForUpgrade,
    BeginHandOver,
    Stop,
}

/// What came of a question.
pub(super) enum QuestionOutcome {
    Begun(Arc<AppLife>),
    Draining(DrainTicket),
    UpstreamDraining,
    UpstreamResumed,
    Report(Box<Report>),
    Reloaded(LivesChanged),
    Lives(Vec<LifeView>),
    HandOverBegun(Vec<LifeView>),
    Stopping,
    Refused(ChangeError),
}

/// How far a reload is.
#[derive(Default)]
pub(super) enum Reload {
    #[default]
    None,
    /// The config is read.
    Read(Box<Config>, ReloadOptions),
    Prepared(Box<(PreparedReload, ReloadChanges)>),
    /// Control has it.
    Given(Box<PreparedReload>, Acknowledgements),
}
