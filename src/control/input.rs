//! What reaches the control thread, and how it answers.
//!
//! A question carries its [`Answer`]: the asker waits for it ([`ask`]), or gives a function that
//! does more. What an upgrade makes control put off is answered when the hand-over is over, so the
//! admin thread asks by functions and never waits.

use std::{net::SocketAddr, os::fd::OwnedFd, sync::Arc, time::Duration};

use crossbeam_channel::Sender;

use super::{
    answer::Answer,
    certificates::NewTable,
    change_error::ChangeError,
    changes::{Begun, LifeChanges, LivesChanged, PutMode},
    drain_view::{DrainName, DrainTicket, DrainView},
    history::Measured,
    kept_sockets::KeptSockets,
    listening::Sockets,
    stuck_loop::StuckLoop,
    totals::Totals,
    watchers::DrainWatch,
};
use crate::{
    acknowledgement::Acknowledgement,
    config::ServerConfig,
    hosted::{AppLife, HostedApp},
    message::{ControlEvent, LiveListenOptions, LoopConfig},
    registry::{AppId, NewApp},
};

/// What reaches the control thread. What has parts is a struct of its own.
pub(crate) enum Input {
    Loop(LoopReport),
    /// A loop is dead, and its sockets are for another one.
    Orphaned(Sockets),
    /// The last exchange of a draining life has left.
    Drained(AppId),
    Put(PutApp),
    Remove(RemoveApp),
    Drain(DrainApp),
    Resume(ResumeApp),
    DrainUpstream(DrainUpstream),
    ResumeUpstream(ResumeUpstream),
    Reload(Box<ReadyReload>),
    /// A new process is about to serve: from here on nothing changes until it serves, or fails.
    /// Answered with the lives as they are.
    BeginHandOver(Answer<Vec<LifeView>>),
    HandedOver(HandedOver),
    /// The new process has closed these addresses.
    KeepFewer(Vec<SocketAddr>),
    /// The end of the new process will be no loss.
    KeepNone,
    /// The new process has ended.
    SuccessorGone,
    /// There is no new process after all.
    KeptOn,
    /// Admin connections come on this socket from here on.
    ListenForAdmin(Arc<OwnedFd>),
    Stop(StopRequest),
    Watch(DrainWatch),
    Report(Answer<Report>),
    /// How far this process's drain is.
    Progress(Answer<Progress>),
    /// Lives that serve or drain, in the map or outside it.
    Lives(Answer<Vec<LifeView>>),
    Measure(Answer<Measured>),
}

/// A loop reports.
pub(crate) struct LoopReport {
    pub(crate) index: usize,
    pub(crate) event: ControlEvent,
}

/// An app is to be served under its host.
pub(crate) struct PutApp {
    pub(crate) app: NewApp<HostedApp>,
    pub(crate) mode: PutMode,
    /// To hold from then on, if it is a change of them.
    pub(crate) certificates: Option<NewTable>,
    pub(crate) answer: Answer<Begun>,
}

/// An app is to be removed.
pub(crate) struct RemoveApp {
    pub(crate) host: String,
    /// Instead of the app's own drain timeout.
    pub(crate) timeout: Option<Duration>,
    pub(crate) answer: Answer<DrainTicket>,
}

/// An app is to drain, and to stay drained until it is resumed.
pub(crate) struct DrainApp {
    pub(crate) host: String,
    /// Instead of the app's own drain timeout.
    pub(crate) timeout: Option<Duration>,
    pub(crate) answer: Answer<DrainTicket>,
}

/// A drained app is to serve again.
pub(crate) struct ResumeApp {
    pub(crate) host: String,
    /// What serves from now on, if it was loaded again.
    pub(crate) app: Option<NewApp<HostedApp>>,
    pub(crate) answer: Answer<Arc<AppLife>>,
}

/// One upstream of an app is to drain.
pub(crate) struct DrainUpstream {
    pub(crate) host: String,
    pub(crate) url: String,
    /// Instead of the app's own drain timeout.
    pub(crate) timeout: Option<Duration>,
    pub(crate) answer: Answer<DrainName>,
}

/// A drained upstream is to be used again.
pub(crate) struct ResumeUpstream {
    pub(crate) host: String,
    pub(crate) url: String,
    pub(crate) answer: Answer<Arc<AppLife>>,
}

/// Another process serves these sockets now.
pub(crate) struct HandedOver {
    pub(crate) kept: Box<KeptSockets>,
    /// Given when the loops have let go of the sockets.
    pub(crate) let_go: Acknowledgement,
    /// By which the new process takes connections; none if it takes none.
    pub(crate) lines: Vec<OwnedFd>,
}

/// The server is to stop.
pub(crate) struct StopRequest {
    /// For the log.
    pub(crate) reason: String,
    /// Instead of `server.drain_timeout`.
    pub(crate) timeout: Option<Duration>,
    pub(crate) by: StopAsker,
}

/// Where a request to stop comes from. That decides what a second request does, and what happens
/// to a request that comes when another process serves already.
pub(crate) enum StopAsker {
    /// A signal, or the program that embeds the server. A second one cuts. Passed on to the process
    /// that serves.
    Signal,
    /// An admin request; with `cuts` it cuts, also as the first one. It is answered when the stop
    /// has begun, or refused if another process serves: then that one has to be asked.
    Admin { cuts: bool, answer: Answer<DrainView> },
    /// The process before this one, which was asked although it no longer serves. Not counted as a
    /// first request: a signal for the whole process group reaches both.
    Predecessor { cut: bool },
    /// The process after this one cuts what is in flight here.
    Successor,
}

/// A reload that is ready: whatever could fail has been done.
pub(crate) struct ReadyReload {
    pub(crate) changes: ReloadChanges,
    /// Given when all loops have taken their settings.
    pub(crate) configured: Acknowledgement,
    pub(crate) answer: Answer<LivesChanged>,
}

/// What a reload puts in place.
pub(crate) struct ReloadChanges {
    pub(crate) lives: LifeChanges,
    /// The certificates of all apps.
    pub(crate) certificates: NewTable,
    pub(crate) server: ServerConfig,
    /// For each loop; empty if nothing changed that concerns them.
    pub(crate) loops: Vec<LoopConfig>,
    /// Addresses to serve too: of each, a socket for every loop.
    pub(crate) listen: Vec<Sockets>,
    /// Addresses to serve no longer.
    pub(crate) close: Vec<SocketAddr>,
}

/// What only control knows.
pub(crate) struct Report {
    /// The stop, if one has begun.
    pub(crate) stop: Option<DrainView>,
    /// The process that serves in the place of this one.
    pub(crate) handed_over: Option<u32>,
    /// Drains that are under way or remembered, the oldest first.
    pub(crate) drains: Vec<DrainView>,
    /// How many drains of upstreams have got a name.
    pub(crate) upstream_drains: u64,
    /// Where the loops listen, and how connections begin there.
    pub(crate) listen: Vec<(SocketAddr, Arc<LiveListenOptions>)>,
    /// What this process counted.
    pub(crate) totals: Totals,
    /// Loops that make no progress.
    pub(crate) stuck_loops: Vec<StuckLoop>,
    /// Loops that have failed; the server stops for that.
    pub(crate) failed_loops: Vec<usize>,
}

impl Report {
    /// Why nothing can be changed any more, if so.
    pub(crate) fn refusal(&self) -> Option<ChangeError> {
        let handed_over = self.handed_over.map(ChangeError::HandedOver);
        handed_over.or_else(|| self.stop.as_ref().map(|_| ChangeError::Stopping))
    }
}

/// How far a process is that drains.
pub(crate) struct Progress {
    pub(crate) stop: Option<DrainView>,
    pub(crate) totals: Totals,
    pub(crate) active_connections: u64,
    /// Lives with something in flight.
    pub(crate) busy: Vec<LifeView>,
}

/// A life as it is at one moment.
pub(crate) struct LifeView {
    pub(crate) life: Arc<AppLife>,
    /// How it drains, or drained; none while it serves.
    pub(crate) drain: Option<DrainView>,
}

impl Input {
    /// Whether it changes what a hand-over is about; so does the stop after a loop that failed.
    pub(super) fn changes_something(&self) -> bool {
        matches!(
            self,
            Self::Loop(LoopReport {
                event: ControlEvent::Failed { .. } | ControlEvent::Died { .. },
                ..
            }) | Self::Orphaned(..)
                | Self::Put(..)
                | Self::Remove(..)
                | Self::Drain(..)
                | Self::Resume(..)
                | Self::DrainUpstream(..)
                | Self::ResumeUpstream(..)
                | Self::Stop { .. }
        )
    }

    /// Whether it asks for a change of what is served.
    pub(super) fn is_change(&self) -> bool {
        self.is_for_successor() && !matches!(self, Self::Stop(_))
    }

    /// Whether it is for the process that serves, if that is another one.
    pub(super) fn is_for_successor(&self) -> bool {
        matches!(
            self,
            Self::Put(..)
                | Self::Remove(..)
                | Self::Drain(..)
                | Self::Resume(..)
                | Self::DrainUpstream(..)
                | Self::ResumeUpstream(..)
                | Self::Reload(..)
                | Self::BeginHandOver(..)
                | Self::Stop(StopRequest { by: StopAsker::Admin { .. }, .. })
        )
    }

    /// Answers why it is not done. A report of what has happened needs no answer.
    pub(super) fn refuse(self, reason: &ChangeError) {
        let reason = reason.clone();
        match self {
            Self::Put(PutApp { answer, .. }) => answer.give(Err(reason)),
            Self::Remove(RemoveApp { answer, .. }) | Self::Drain(DrainApp { answer, .. }) => {
                answer.give(Err(reason));
            }
            Self::Resume(ResumeApp { answer, .. })
            | Self::ResumeUpstream(ResumeUpstream { answer, .. }) => answer.give(Err(reason)),
            Self::DrainUpstream(DrainUpstream { answer, .. }) => answer.give(Err(reason)),
            Self::Reload(reload) => reload.answer.give(Err(reason)),
            Self::BeginHandOver(answer) | Self::Lives(answer) => answer.give(Err(reason)),
            Self::Stop(StopRequest { by: StopAsker::Admin { answer, .. }, .. }) => {
                answer.give(Err(reason));
            }
            Self::Report(answer) => answer.give(Err(reason)),
            Self::Progress(answer) => answer.give(Err(reason)),
            Self::Measure(answer) => answer.give(Err(reason)),
            Self::Watch(DrainWatch { show, .. }) => show(None),
            Self::Loop(_)
            | Self::Orphaned(_)
            | Self::Drained(_)
            | Self::HandedOver(_)
            | Self::KeepFewer(_)
            | Self::KeepNone
            | Self::SuccessorGone
            | Self::KeptOn
            | Self::ListenForAdmin(_)
            | Self::Stop(_) => {}
        }
    }
}

/// Sends control an input. When control has ended, the input is refused.
pub(crate) fn send(control: &Sender<Input>, input: Input) {
    if let Err(unsent) = control.send(input) {
        unsent.into_inner().refuse(&ChangeError::Ended);
    }
}

/// Asks control, and waits for its answer; control never waits, so that is soon. But for what
/// changes something while a new process is about to serve: that is put off until it does or not.
pub(crate) fn ask<T: Send + 'static>(
    control: &Sender<Input>,
    input: impl FnOnce(Answer<T>) -> Input,
) -> Result<T, ChangeError> {
    let (sender, answer) = crossbeam_channel::bounded(1);
    let give = move |outcome| {
        // The asker may have gone; what it asked for is done all the same.
        let _ = sender.send(outcome);
    };
    send(control, input(Answer::new(give)));
    answer.recv().map_err(|_| ChangeError::Ended)?
}
