//! What is asked of control, what comes of it, and how far reloads and upgrades are.

use std::{sync::Arc, time::Instant};

use crossbeam_channel::Receiver;

use super::super::{
    ChangeError, DrainTicket, PutMode, ReloadOptions, Report, changes::LivesChanged,
    input::ReloadChanges, reload::PreparedReload, upgrade::OnItsWay,
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
    BeginHandOver,
    Stop,
}

/// What came of a question.
pub(super) enum Outcome {
    Begun(Arc<AppLife>),
    Draining(DrainTicket),
    UpstreamDraining,
    UpstreamResumed,
    Report(Box<Report>),
    Reloaded(LivesChanged),
    HandOverBegun,
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

/// How far an upgrade is.
#[derive(Default)]
pub(super) enum Upgrade {
    #[default]
    None,
    /// The new process is ready, and control was asked to hold everything.
    Ready,
    /// It was told to go.
    Going(Instant),
    /// It serves: stops for it come here.
    Serving(Receiver<OnItsWay>, Acknowledgements),
}
