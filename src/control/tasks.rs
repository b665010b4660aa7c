//! What the operator is asked for, what it is at, and since when.
//!
//! The operator can hang with its disk. A client that asked for a change then gets an answer all
//! the same: a task that waits for its turn longer than [`WAIT_MAX`] is refused, and is not done
//! any more; the client of the task at work is answered after [`WORK_MAX`], and the task goes on.
//! Control sees to that, by [`Desk::refuse_overdue`].
//!
//! ```text
//! waiting ──begin──► at work ──end──► answered
//!    └─ WAIT_MAX ─► refused   └─ WORK_MAX ─► answered that it goes on
//! ```
//! A task that no client waits for (a signal's) stays in the queue. Reloads of that kind are
//! joined: a reload that waits reads the file as it is when it begins, so a second one would change
//! nothing.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use crossbeam_channel::{Receiver, Sender};
use serde_json::Value;

use super::{
    change_error::{ChangeError, PutError, SwitchError},
    changes::{Begun, PutMode},
    deploys::{Deploy, Loaded},
    notices::{Notices, notice},
    reloaded::{ReloadError, ReloadOptions, Reloaded},
    upgrade::{UpgradeError, UpgradeOptions, Upgraded},
};
use crate::{duration::milliseconds, hosted::AppLife};

/// How long a task that a client waits for may wait for its turn; less than the commands wait.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// A task that is at work for longer is reported: others wait for it.
const SLOW_AFTER: Duration = Duration::from_secs(5);

/// How long a client waits for a task that is at work; an upgrade has a time-out of its own.
const WORK_MAX: Duration = Duration::from_secs(60);

/// What the operator is asked for.
pub(crate) enum Task {
    /// Read the config file again.
    Reload(ReloadOptions, Tell<Reloaded, ReloadError>),
    /// Have this app under this host.
    Put(String, PutMode, Value, Tell<Begun, PutError>),
    /// Load this app for a deploy under this host.
    Deploy(String, Value, Tell<Loaded, PutError>),
    /// Put the new life of a deploy in place, if it is ready.
    Switch(Arc<Deploy>, Tell<Begun, SwitchError>),
    /// Have a new process take this one's place.
    Upgrade(UpgradeOptions, Tell<Upgraded, UpgradeError>),
    /// Begin a new life of an app that was drained.
    Resume(String, Tell<Arc<AppLife>, PutError>),
}

/// Tells the outcome of a task to the client that waits for it, if there is one; once.
pub(crate) struct Tell<T, E>(Option<Asker<T, E>>);

type Asker<T, E> = Arc<Mutex<Option<TellOnce<T, E>>>>;
type TellOnce<T, E> = Box<dyn FnOnce(Result<T, E>) + Send>;

/// Says to the client of a task why there is no outcome; none if it has no client.
type Refuse = Option<Box<dyn FnOnce(ChangeError) + Send>>;

impl<T, E> Tell<T, E> {
    pub(crate) fn new(answer: impl FnOnce(Result<T, E>) + Send + 'static) -> Self {
        Self(Some(Arc::new(Mutex::new(Some(Box::new(answer))))))
    }

    /// No client waits for it.
    pub(crate) fn unheard() -> Self {
        Self(None)
    }

    pub(super) fn tell(&self, outcome: Result<T, E>) {
        let answer = self.0.as_ref().and_then(|asker| lock(asker).take());
        if let Some(answer) = answer {
            answer(outcome);
        }
    }

    fn refuse(&self) -> Refuse
    where
        T: 'static,
        E: From<ChangeError> + 'static,
    {
        let asker = self.0.clone()?;
        Some(Box::new(move |reason| Self(Some(asker)).tell(Err(reason.into()))))
    }
}

impl Task {
    fn name(&self) -> String {
        match self {
            Self::Reload(..) => "reload".to_owned(),
            Self::Put(host, ..) => format!("put {host}"),
            Self::Deploy(host, ..) => format!("deploy {host}"),
            Self::Switch(deploy, _) => format!("switch {}", deploy.host()),
            Self::Upgrade(..) => "upgrade".to_owned(),
            Self::Resume(host, _) => format!("resume {host}"),
        }
    }

    fn refuse(&self) -> Refuse {
        match self {
            Self::Reload(_, tell) => tell.refuse(),
            Self::Put(.., tell) => tell.refuse(),
            Self::Deploy(.., tell) => tell.refuse(),
            Self::Switch(_, tell) => tell.refuse(),
            Self::Upgrade(_, tell) => tell.refuse(),
            Self::Resume(_, tell) => tell.refuse(),
        }
    }
}

/// A way to the operator. It ends when the last one is gone.
#[derive(Clone)]
pub(crate) struct TaskSender {
    queue: Sender<(u64, Task)>,
    pub(crate) desk: Arc<Desk>,
}

/// The operator's end.
pub(crate) type TaskReceiver = Receiver<(u64, Task)>;

/// The way to an operator, and its end.
pub(crate) fn tasks() -> (TaskSender, TaskReceiver) {
    let (queue, tasks) = crossbeam_channel::unbounded();
    (TaskSender { queue, desk: Arc::default() }, tasks)
}

impl TaskSender {
    /// Puts a task into the queue. Without an operator it is dropped, and a client that waits sees
    /// that.
    pub(crate) fn send(&self, task: Task) {
        let is_signalled = matches!(&task, Task::Reload(_, Tell(None)));
        let Some(number) = self.desk.add(task.refuse(), is_signalled) else { return };
        if self.queue.send((number, task)).is_err() {
            self.desk.take(number);
        }
    }
}

/// What the operator is at, and what waits for it.
#[derive(Default)]
pub(crate) struct Desk(Mutex<Papers>);

#[derive(Default)]
struct Papers {
    next: u64,
    waiting: VecDeque<Waiting>,
    /// A reload that no client waits for, and that waits for its turn.
    signalled: Option<u64>,
    at_work: Option<AtWork>,
}

struct Waiting {
    number: u64,
    since: Instant,
    refuse: Refuse,
}

struct AtWork {
    name: String,
    step: Option<String>,
    since: Instant,
    at: SystemTime,
    /// None for what has a time-out of its own, too.
    refuse: Refuse,
    /// It was reported as slow.
    is_reported: bool,
}

/// What the operator is at.
#[derive(Clone, Debug)]
pub(crate) struct Busy {
    /// The task, and which step of it.
    pub(crate) with: String,
    pub(crate) since: SystemTime,
    pub(crate) time: Duration,
}

impl Desk {
    /// What the operator is at, if it is at work, and how many tasks wait for it.
    pub(crate) fn busy(&self) -> (Option<Busy>, usize) {
        let papers = self.papers();
        (papers.at_work.as_ref().map(|at_work| at_work.busy(Instant::now())), papers.waiting.len())
    }

    /// What the operator is at, if that takes long.
    pub(super) fn slow(&self, now: Instant) -> Option<Busy> {
        let papers = self.papers();
        papers.at_work.as_ref().map(|at_work| at_work.busy(now)).filter(Busy::is_slow)
    }

    /// The same, once for each task.
    fn newly_slow(&self, now: Instant) -> Option<Busy> {
        let mut papers = self.papers();
        let at_work = papers.at_work.as_mut().filter(|at_work| !at_work.is_reported)?;
        let busy = at_work.busy(now);
        at_work.is_reported = busy.is_slow();
        at_work.is_reported.then_some(busy)
    }

    /// Reports a task that takes long, and answers clients that have waited for too long.
    pub(super) fn on_time(&self, notices: &Notices, now: Instant) {
        if let Some(Busy { with, time, .. }) = self.newly_slow(now) {
            let for_ms = milliseconds(time);
            notice!(notices, Warn, "operator_busy", with = &*with, for_ms = for_ms);
        }
        self.refuse_overdue(now);
    }

    /// Answers clients that have waited for too long.
    fn refuse_overdue(&self, now: Instant) {
        let mut refusals = Vec::new();
        {
            let mut papers = self.papers();
            let Papers { waiting, at_work, .. } = &mut *papers;
            // Only while a task is at work: after its end the next one begins at once.
            let Some(at_work) = at_work else { return };
            let Busy { with, time, .. } = at_work.busy(now);
            let seconds = time.as_secs();
            waiting.retain_mut(|waiting| {
                let is_overdue = now.saturating_duration_since(waiting.since) >= WAIT_MAX;
                let Some(refuse) = waiting.refuse.take_if(|_| is_overdue) else { return true };
                refusals.push((refuse, ChangeError::Busy { with: with.clone(), seconds }));
                false
            });
            if let Some(refuse) = at_work.refuse.take_if(|_| time >= WORK_MAX) {
                refusals.push((refuse, ChangeError::UnderWay { with, seconds }));
            }
        }
        for (refuse, reason) in refusals {
            refuse(reason);
        }
    }

    /// Whether the task is to be done still; it is at work then.
    pub(super) fn begin(&self, number: u64, task: &Task) -> bool {
        let Some(Waiting { refuse, .. }) = self.take(number) else { return false };
        let refuse = refuse.filter(|_| !matches!(task, Task::Upgrade(..)));
        let (since, at) = (Instant::now(), SystemTime::now());
        let at_work =
            AtWork { name: task.name(), step: None, since, at, refuse, is_reported: false };
        self.papers().at_work = Some(at_work);
        true
    }

    /// The task at work goes on with this.
    pub(super) fn step(&self, step: impl Into<String>) {
        if let Some(at_work) = &mut self.papers().at_work {
            at_work.step = Some(step.into());
        }
    }

    /// Nothing is at work any more.
    pub(super) fn end(&self) {
        self.papers().at_work = None;
    }

    /// None if it is a reload by a signal, and one waits already.
    fn add(&self, refuse: Refuse, is_signalled: bool) -> Option<u64> {
        let mut papers = self.papers();
        if is_signalled && papers.signalled.is_some() {
            return None;
        }
        papers.next += 1;
        let number = papers.next;
        if is_signalled {
            papers.signalled = Some(number);
        }
        papers.waiting.push_back(Waiting { number, since: Instant::now(), refuse });
        Some(number)
    }

    fn take(&self, number: u64) -> Option<Waiting> {
        let mut papers = self.papers();
        papers.signalled.take_if(|signalled| *signalled == number);
        let index = papers.waiting.iter().position(|waiting| waiting.number == number)?;
        papers.waiting.remove(index)
    }

    fn papers(&self) -> MutexGuard<'_, Papers> {
        lock(&self.0)
    }
}

impl Busy {
    fn is_slow(&self) -> bool {
        self.time >= SLOW_AFTER
    }
}

impl AtWork {
    fn busy(&self, now: Instant) -> Busy {
        let step = self.step.as_ref().map(|step| format!(": {step}")).unwrap_or_default();
        Busy {
            with: format!("{}{step}", self.name),
            since: self.at,
            time: now.saturating_duration_since(self.since),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reload() -> (Task, Receiver<Result<Reloaded, ReloadError>>) {
        let (sender, told) = crossbeam_channel::unbounded();
        let tell = Tell::new(move |outcome| sender.send(outcome).unwrap());
        (Task::Reload(ReloadOptions::default(), tell), told)
    }

    fn refusal(told: &Receiver<Result<Reloaded, ReloadError>>) -> ChangeError {
        match told.try_recv() {
            Ok(Err(ReloadError::Change(reason))) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn reloads_by_signals_are_joined_while_one_waits() {
        let (sender, receiver) = tasks();
        let signal = || sender.send(Task::Reload(ReloadOptions::default(), Tell::unheard()));
        signal();
        let (number, first) = receiver.recv().unwrap();
        assert!(sender.desk.begin(number, &first));
        // The file may have changed since that one read it.
        (0..1000).for_each(|_| signal());
        sender.send(reload().0);
        assert_eq!(sender.desk.busy().1, 2, "one for all signals, one for the client");
        sender.desk.end();
        for _ in 0..2 {
            let (number, task) = receiver.recv().unwrap();
            assert!(sender.desk.begin(number, &task));
            sender.desk.end();
        }
        assert!(receiver.is_empty());
        signal();
        assert_eq!(sender.desk.busy().1, 1);
    }

    #[test]
    fn a_task_behind_one_that_hangs_is_refused_and_not_done() {
        let (sender, receiver) = tasks();
        let desk = &sender.desk;
        let [(first, first_told), (second, second_told)] = [reload(), reload()];
        sender.send(first);
        sender.send(second);
        sender.send(Task::Reload(ReloadOptions::default(), Tell::unheard()));
        let (number, first) = receiver.recv().unwrap();
        assert!(desk.begin(number, &first));
        desk.step("reading x.toml");
        let now = Instant::now();
        desk.refuse_overdue(now);
        assert!(second_told.is_empty());
        assert!(desk.newly_slow(now).is_none());
        assert!(desk.newly_slow(now + SLOW_AFTER).is_some_and(|busy| busy.with.contains("x.toml")));
        assert!(desk.newly_slow(now + 2 * SLOW_AFTER).is_none(), "it is reported once");
        desk.refuse_overdue(now + WAIT_MAX);
        let with = "reload: reading x.toml".to_owned();
        assert_eq!(refusal(&second_told), ChangeError::Busy { with: with.clone(), seconds: 5 });
        assert!(first_told.is_empty());
        assert_eq!(desk.busy().1, 1, "a task without a client stays");
        desk.refuse_overdue(now + WORK_MAX);
        assert_eq!(refusal(&first_told), ChangeError::UnderWay { with, seconds: 60 });
        let Task::Reload(_, tell) = first else { unreachable!() };
        tell.tell(Err(ReloadError::NoFile));
        assert!(first_told.is_empty(), "it is answered once");
        desk.end();
        let (number, second) = receiver.recv().unwrap();
        assert!(!desk.begin(number, &second));
        let (number, third) = receiver.recv().unwrap();
        assert!(desk.begin(number, &third));
    }
}
