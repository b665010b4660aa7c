//! The drains of apps: those under way, those that ended, and who waits for their ends.
//!
//! A drain is named by the life that drains: a life drains once. It ends once (I2), by its deadline
//! (I5), or is cancelled by a resume; then the old life still ends, but nobody is told again.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender};

use super::drain_plan::{DrainPlan, DrainStep};
use crate::{message::AppLife, registry::AppId};

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every exchange that was admitted ended by itself.
    Drained,
    /// The deadline, or somebody without patience, ended this many exchanges.
    Cut(u64),
    /// The app was resumed before the drain's end.
    Cancelled,
}

impl Verdict {
    pub(super) fn of(cut: u64) -> Self {
        if cut == 0 { Self::Drained } else { Self::Cut(cut) }
    }

    /// The word for answers.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Drained => "drained",
            Self::Cut(_) => "cut",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drained => f.write_str("drained"),
            Self::Cut(exchanges) => write!(f, "cut {exchanges}"),
            Self::Cancelled => f.write_str("cancelled"),
        }
    }
}

/// Why an app, or the server, drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Cause {
    /// The app is removed.
    Remove,
    /// A new life of it serves.
    Replace,
    /// The config no longer has the app, or has it otherwise.
    Reload,
    /// It is to serve nobody until it is resumed.
    Drain,
    /// The server stops.
    Stop,
}

impl Cause {
    /// The word for logs and answers.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Remove => "remove",
            Self::Replace => "replace",
            Self::Reload => "reload",
            Self::Drain => "drain",
            Self::Stop => "stop",
        }
    }
}

/// What drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum DrainName {
    /// A life.
    App(AppId),
    /// The server.
    Stop,
}

/// A drain as it is seen at one moment.
#[derive(Clone, Debug)]
pub(crate) struct DrainView {
    pub(crate) name: DrainName,
    /// The app's host; none for the server.
    pub(crate) host: Option<String>,
    pub(crate) cause: Cause,
    /// How it ended, if it did.
    pub(crate) verdict: Option<Verdict>,
    pub(crate) active_connections: u64,
    pub(crate) refused: u64,
    pub(crate) cut: u64,
    pub(crate) elapsed: Duration,
    /// Until the deadline; zero after the end.
    pub(crate) remaining: Duration,
}

/// A drain that is under way.
#[derive(Clone, Debug)]
#[must_use = "the ticket is how the drain's end is known"]
pub struct DrainTicket {
    pub(super) id: AppId,
    pub(super) verdict: Receiver<Verdict>,
}

impl DrainTicket {
    /// The life that drains.
    pub fn id(&self) -> AppId {
        self.id
    }

    /// Waits for the end of the drain, at most this long; `None` when it is not over by then. The
    /// verdict is given once.
    pub fn wait(&self, timeout: Duration) -> Option<Verdict> {
        self.verdict.recv_timeout(timeout).ok()
    }
}

/// The drain of one life.
pub(super) struct Drain {
    pub(super) life: Arc<AppLife>,
    pub(super) cause: Cause,
    pub(super) begun: Instant,
    plan: DrainPlan,
    deadline: Instant,
    /// Exchanges of this life that were cut before, with another app's on their connection.
    cut_before: u64,
    tickets: Vec<Sender<Verdict>>,
    /// Resumed: its verdict is given.
    pub(super) cancelled: bool,
}

impl Drain {
    /// A drain of this life that begins now.
    pub(super) fn begin(life: Arc<AppLife>, cause: Cause, now: Instant, deadline: Instant) -> Self {
        Self {
            cut_before: life.drain().cut(),
            life,
            cause,
            begun: now,
            plan: DrainPlan::begin(deadline),
            deadline,
            tickets: Vec::new(),
            cancelled: false,
        }
    }

    /// A ticket for one more who waits.
    pub(super) fn ticket(&mut self) -> DrainTicket {
        let (sender, verdict) = crossbeam_channel::bounded(1);
        self.tickets.push(sender);
        DrainTicket { id: self.life.id(), verdict }
    }

    /// Tells the verdict to whoever has a ticket.
    pub(super) fn announce(&mut self, verdict: Verdict) {
        for ticket in self.tickets.drain(..) {
            // A ticket can be dropped.
            let _ = ticket.send(verdict);
        }
    }

    /// Another deadline holds from now on.
    pub(super) fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = deadline;
        self.plan.set_deadline(deadline);
    }

    /// Exchanges that the deadline ended. What a loop that is stuck in the app holds still counts
    /// at the end: cut, as far as anybody can.
    pub(super) fn cut(&self) -> u64 {
        self.life.drain().cut() - self.cut_before
    }

    pub(super) fn view(&self, now: Instant) -> DrainView {
        let state = self.life.drain();
        DrainView {
            name: DrainName::App(self.life.id()),
            host: Some(self.life.host().to_owned()),
            cause: self.cause,
            verdict: None,
            active_connections: state.active_connections(),
            refused: state.refused(),
            cut: self.cut(),
            elapsed: now.duration_since(self.begun),
            remaining: self.deadline.saturating_duration_since(now),
        }
    }
}

/// Drains that ended and are still remembered.
const ENDED_MAX: usize = 1000;

/// All drains of apps.
#[derive(Default)]
pub(super) struct Drains {
    running: HashMap<AppId, Drain>,
    /// Lives that keep their names, drained, until they are resumed, replaced or removed; with
    /// how their drain ended, if it did.
    paused: HashMap<AppId, Option<DrainView>>,
    /// The oldest first.
    ended: VecDeque<DrainView>,
    /// No plan is due before this.
    next_due: Option<Instant>,
}

impl Drains {
    pub(super) fn insert(&mut self, drain: Drain) -> &mut Drain {
        self.look_at(drain.plan.due());
        match self.running.entry(drain.life.id()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(drain),
        }
    }

    pub(super) fn find(&mut self, id: AppId) -> Option<&mut Drain> {
        self.running.get_mut(&id)
    }

    pub(super) fn running(&self) -> impl Iterator<Item = &Drain> {
        self.running.values()
    }

    /// Has the plans asked again at this time.
    pub(super) fn look_at(&mut self, due: Instant) {
        self.next_due = self.next_due.into_iter().chain([due]).min();
    }

    /// When [`Drains::on_time`] may have something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        self.next_due
    }

    /// What the plans want, now that time has passed.
    pub(super) fn on_time(&mut self, now: Instant) -> Vec<(AppId, DrainStep)> {
        if self.next_due.is_none_or(|due| now < due) {
            return Vec::new();
        }
        let steps = self.running.iter_mut();
        let steps = steps.filter_map(|(id, drain)| Some((*id, drain.plan.on_time(now)?))).collect();
        self.next_due = self.running.values().map(|drain| drain.plan.due()).min();
        steps
    }

    /// Takes a drain out, once (I2).
    pub(super) fn take(&mut self, id: AppId) -> Option<Drain> {
        self.running.remove(&id)
    }

    /// A life drains that keeps its names.
    pub(super) fn pause(&mut self, id: AppId) {
        self.paused.insert(id, None);
    }

    /// A life keeps its names no longer; says whether it did.
    pub(super) fn unpause(&mut self, id: AppId) -> bool {
        self.paused.remove(&id).is_some()
    }

    pub(super) fn is_paused(&self, id: AppId) -> bool {
        self.paused.contains_key(&id)
    }

    /// Remembers how a drain ended.
    pub(super) fn remember(&mut self, id: AppId, view: DrainView) {
        if let Some(paused) = self.paused.get_mut(&id) {
            *paused = Some(view.clone());
        }
        if self.ended.len() == ENDED_MAX {
            self.ended.pop_front();
        }
        self.ended.push_back(view);
    }

    /// A drain as it is now, or as it ended.
    pub(super) fn view(&self, id: AppId, now: Instant) -> Option<DrainView> {
        if let Some(drain) = self.running.get(&id).filter(|drain| !drain.cancelled) {
            return Some(drain.view(now));
        }
        let ended = || self.ended.iter().rev().find(|view| view.name == DrainName::App(id));
        self.paused.get(&id).and_then(Option::as_ref).or_else(ended).cloned()
    }

    /// How a life drains, also one whose drain was cancelled, or drained; none if it serves.
    pub(super) fn view_of_life(&self, id: AppId, now: Instant) -> Option<DrainView> {
        let running = self.running.get(&id).map(|drain| drain.view(now));
        running.or_else(|| self.paused.get(&id)?.clone())
    }

    /// All that are under way or remembered, the oldest first.
    pub(super) fn views(&self, now: Instant) -> Vec<DrainView> {
        let running = self.running.values().filter(|drain| !drain.cancelled);
        let mut running: Vec<_> = running.map(|drain| drain.view(now)).collect();
        running.sort_by_key(|view| std::cmp::Reverse(view.elapsed));
        self.ended.iter().cloned().chain(running).collect()
    }
}
