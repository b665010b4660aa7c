//! What reaches the control thread, and how it answers.
//!
//! An answer is a function that control calls: whoever asked waits for it ([`ask`]), or has more
//! done by it. What an upgrade makes control put off is answered when the hand-over is over, so the
//! admin thread asks by functions and never waits.

use std::{
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::Sender;

use super::{
    Begun, ChangeError, DrainName, DrainTicket, DrainView, KeptSockets, LifeChanges, LivesChanged,
    PutMode, Sockets, StuckLoop, Totals, account::Measured,
};
use crate::{
    config::ServerConfig,
    message::{AppLife, ControlEvent, HostedApp, LoopConfig},
    registry::{AppId, NewApp},
};

/// Called by control with the outcome. It must not wait: control doesn't.
pub(crate) type Answer<T> = Box<dyn FnOnce(Result<T, ChangeError>) + Send>;

/// What reaches the control thread.
pub(crate) enum Input {
    /// A loop reports.
    Loop(usize, ControlEvent),
    /// A loop is dead, and its sockets are for another one.
    Orphaned(Sockets),
    /// The last exchange of a draining life has left.
    Drained(AppId),
    Put(NewApp<HostedApp>, PutMode, Answer<Begun>),
    Remove(String, Option<Duration>, Answer<DrainTicket>),
    Drain(String, Option<Duration>, Answer<DrainTicket>),
    Resume(String, Option<NewApp<HostedApp>>, Answer<Arc<AppLife>>),
    /// One upstream of an app, by its URL.
    DrainUpstream(String, String, Option<Duration>, Answer<DrainName>),
    ResumeUpstream(String, String, Answer<Arc<AppLife>>),
    Reload(Box<ReadyReload>, Answer<LivesChanged>),
    /// A new process is about to serve: from here on nothing changes until that has come about, or
    /// not. With the lives as they are.
    BeginHandOver(Answer<Vec<LifeView>>),
    /// Another process serves these sockets now. The sender is dropped when the loops have let go
    /// of them.
    HandedOver {
        kept: Box<KeptSockets>,
        let_go: Sender<()>,
        /// By which it takes connections; none if it takes none.
        lines: Vec<OwnedFd>,
    },
    /// That process has closed these addresses.
    KeepFewer(Vec<SocketAddr>),
    /// Its end will be no loss.
    KeepNone,
    /// It has ended.
    SuccessorGone,
    /// There is no other process.
    KeptOn,
    /// Admin connections come on this socket from here on.
    ListenForAdmin(Arc<OwnedFd>),
    Stop(StopRequest),
    /// Tells the drain as soon as it has ended, at the latest then; none if there is no such drain.
    Watch(DrainName, Instant, Box<dyn FnOnce(Option<DrainView>) + Send>),
    Report(Answer<Report>),
    /// How far this process's drain is.
    Progress(Answer<Progress>),
    /// Lives that serve or drain, in the map or outside it.
    Lives(Answer<Vec<LifeView>>),
    Measure(Answer<Measured>),
}

/// The server is to stop.
pub(crate) struct StopRequest {
    /// For the log.
    pub(crate) reason: String,
    /// Instead of `server.drain_timeout`.
    pub(crate) timeout: Option<Duration>,
    pub(crate) by: StopAsker,
}

/// Who wants the server to stop. That decides what a second request does, and what happens to a
/// request that comes when another process serves already.
pub(crate) enum StopAsker {
    /// A signal, or the program that embeds the server. A second one cuts. Passed on to the process
    /// that serves.
    Signal,
    /// A request; with `now` it cuts, also at first. It is answered when the stop has begun, or
    /// refused if another process serves: that one's answer is wanted.
    Admin { now: bool, answer: Answer<DrainView> },
    /// The process before this one, which was asked although it no longer serves. Not counted as a
    /// first request: a signal for the whole process group reaches both.
    Predecessor { cut: bool },
    /// The process after this one cuts what is in flight here.
    Successor,
}

/// A reload that is ready: whatever could fail has been done.
pub(crate) struct ReadyReload {
    pub(crate) lives: LifeChanges,
    pub(crate) server: ServerConfig,
    /// For each loop; empty if nothing changed that concerns them.
    pub(crate) loops: Vec<LoopConfig>,
    /// Dropped when all loops have taken theirs.
    pub(crate) configured: Sender<()>,
    /// Addresses to serve too: of each, a socket for every loop.
    pub(crate) listen: Vec<Sockets>,
    /// Addresses to serve no longer.
    pub(crate) close: Vec<SocketAddr>,
}

/// What control knows and nobody else does.
pub(crate) struct Report {
    /// The stop, if one has begun.
    pub(crate) stop: Option<DrainView>,
    /// The process that serves in the place of this one.
    pub(crate) handed_over: Option<u32>,
    /// Drains that are under way or remembered, the oldest first.
    pub(crate) drains: Vec<DrainView>,
    /// How many drains of upstreams have got a name.
    pub(crate) upstream_drains: u64,
    /// Where the loops listen.
    pub(crate) addresses: Vec<SocketAddr>,
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
            Self::Loop(_, ControlEvent::Failed { .. } | ControlEvent::Died { .. })
                | Self::Orphaned(..)
                | Self::Put(..)
                | Self::Remove(..)
                | Self::Drain(..)
                | Self::Resume(..)
                | Self::DrainUpstream(..)
                | Self::ResumeUpstream(..)
                | Self::Stop { .. }
        )
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

    /// Says why it is not done; whoever told of something is told nothing.
    pub(super) fn refuse(self, reason: &ChangeError) {
        let reason = reason.clone();
        match self {
            Self::Put(.., answer) => answer(Err(reason)),
            Self::Remove(.., answer) | Self::Drain(.., answer) => answer(Err(reason)),
            Self::Resume(.., answer) | Self::ResumeUpstream(.., answer) => answer(Err(reason)),
            Self::DrainUpstream(.., answer) => answer(Err(reason)),
            Self::Reload(_, answer) => answer(Err(reason)),
            Self::BeginHandOver(answer) | Self::Lives(answer) => answer(Err(reason)),
            Self::Stop(StopRequest { by: StopAsker::Admin { answer, .. }, .. }) => {
                answer(Err(reason));
            }
            Self::Report(answer) => answer(Err(reason)),
            Self::Progress(answer) => answer(Err(reason)),
            Self::Measure(answer) => answer(Err(reason)),
            Self::Watch(_, _, tell) => tell(None),
            Self::Loop(..)
            | Self::Orphaned(_)
            | Self::Drained(_)
            | Self::HandedOver { .. }
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

/// Asks control, and waits for its answer; control waits for nobody, so that is soon. But for what
/// changes something while a new process is about to serve: that is put off until it does or not.
pub(crate) fn ask<T: Send + 'static>(
    control: &Sender<Input>,
    input: impl FnOnce(Answer<T>) -> Input,
) -> Result<T, ChangeError> {
    let (sender, answer) = crossbeam_channel::bounded(1);
    let tell = move |outcome| {
        // Whoever asked may have gone; what was asked for is done all the same.
        let _ = sender.send(outcome);
    };
    send(control, input(Box::new(tell)));
    answer.recv().map_err(|_| ChangeError::Ended)?
}
