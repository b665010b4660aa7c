//! The new process as the old one sees it, from its start until it serves.
//!
//! The old process is not its parent; [`launcher`](super::launcher) says why, and what stands
//! between them.

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::process::{Signal, pidfd_send_signal};

use super::{
    super::change_error::ChangeError,
    channel::Channel,
    launcher::{LAUNCH, Order, Word},
    messages::{FromOld, HandOver},
    plan::{HandOverPlan, HandOverStep, NOT_IN_TIME},
    process::{ENVIRONMENT, Process},
    relay::StopRelay,
};

/// How long the launcher may take to obey. It waits for nothing but the program's exec.
const OBEY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a process may take to end that has closed the channel.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);

/// How often it is looked whether a stop waits.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// How long it may take to read that it is not wanted.
const ABORT_TIMEOUT: Duration = Duration::from_millis(100);

/// A process that was started. Dropping this ends it, unless it was let go.
pub(super) struct NewProcess<'a> {
    pub(super) starting: &'a Starting,
    pub(super) relay: &'a StopRelay,
    pub(super) channel: Channel,
}

impl NewProcess<'_> {
    /// Has it get ready, and waits for what it says.
    pub(super) fn prepare(
        &mut self,
        plan: &mut HandOverPlan,
        handed: &HandOver,
        descriptors: &[Arc<OwnedFd>],
    ) -> HandOverStep {
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        let sent = self.set_timeout(plan).and_then(|()| {
            self.channel.send(handed)?;
            self.channel.send_descriptors(&borrowed)
        });
        match sent {
            Ok(()) => self.hear(plan),
            Err(error) => plan.on_end(self.explain(&error)),
        }
    }

    /// Has it serve, and waits for what it says.
    pub(super) fn go(&mut self, plan: &mut HandOverPlan) -> HandOverStep {
        let sent = self.set_timeout(plan).and_then(|()| self.channel.send(&FromOld::Go));
        match sent {
            Ok(()) => self.hear(plan),
            Err(error) => plan.on_end(self.explain(&error)),
        }
    }

    /// Waits until it says something, or the deadline; that comes sooner when a stop is put off.
    fn hear(&mut self, plan: &mut HandOverPlan) -> HandOverStep {
        loop {
            let now = Instant::now();
            if self.relay.is_hurried() {
                plan.hurry(now);
            }
            let left = plan.deadline().saturating_duration_since(now);
            match self.channel.wait_readable(left.min(LOOK_AGAIN)) {
                Ok(true) => break,
                Ok(false) if left.is_zero() => return self.hear_the_last(plan),
                Ok(false) => {}
                Err(error) => return plan.on_end(self.explain(&error)),
            }
        }
        match self.set_timeout(plan).and_then(|()| self.channel.receive()) {
            Ok(word) => plan.on_word(word),
            Err(error) => plan.on_end(self.explain(&error)),
        }
    }

    /// The deadline has passed. A process that got the order to serve accepts connections once it
    /// has reported that it serves. From here on it can't report that any more; a report that it
    /// has sent already is read here.
    fn hear_the_last(&mut self, plan: &mut HandOverPlan) -> HandOverStep {
        if !plan.is_going() {
            return plan.on_silence();
        }
        if let Err(error) = self.channel.hear_no_more() {
            return plan.on_end(self.explain(&error));
        }
        match self.channel.receive() {
            Ok(word) => plan.on_word(word),
            Err(_) => plan.on_silence(),
        }
    }

    fn set_timeout(&self, plan: &HandOverPlan) -> io::Result<()> {
        let left = plan.deadline().saturating_duration_since(Instant::now());
        self.channel.set_timeout(Some(left))
    }

    /// What an error of the channel says of the process.
    fn explain(&self, error: &io::Error) -> String {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => NOT_IN_TIME.to_owned(),
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset => match self.starting.how_it_ended() {
                Some(status) => format!("it ended before it was ready ({status})"),
                None => "it closed the channel before it was ready".to_owned(),
            },
            _ => error.to_string(),
        }
    }
}

impl Drop for NewProcess<'_> {
    fn drop(&mut self) {
        if self.starting.is_started() {
            // What the launcher cannot end, for it was not its child, ends by itself.
            let _ = self.channel.set_write_timeout(ABORT_TIMEOUT);
            let _ = self.channel.send(&FromOld::Abort);
            self.starting.end();
        }
    }
}

/// The new process, from its start until it is let go.
#[derive(Default)]
pub(crate) struct Starting(Mutex<Start>);

#[derive(Default)]
enum Start {
    #[default]
    None,
    Started(Launched),
    /// This process ends, and starts none.
    Never,
}

/// The launcher, and the process that it has started.
struct Launched {
    launcher: Child,
    channel: Channel,
    /// The new process, once it runs.
    new: Option<New>,
}

struct New {
    pid: u32,
    process: Process,
}

impl Starting {
    /// Ends it, and lets no other be started: the server stops.
    pub(crate) fn end_for_good(&self) {
        self.end();
        *self.lock() = Start::Never;
    }

    /// Starts this program; `theirs` is its end of the channel.
    ///
    /// # Errors
    /// Why it does not run.
    pub(super) fn spawn(
        &self,
        program: &Path,
        arguments: &[OsString],
        theirs: &OwnedFd,
    ) -> io::Result<()> {
        let (mut channel, stdin) = Channel::pair()?;
        channel.set_timeout(Some(OBEY_TIMEOUT))?;
        channel.send_descriptors(&[theirs.as_fd()])?;
        let mut command = Command::new("/proc/self/exe");
        // Its name in lists of processes.
        command.arg0("tidegate").arg(LAUNCH).arg(program).args(arguments);
        command.stdin(Stdio::from(stdin)).env(ENVIRONMENT, Process::own_name());
        // They name this process.
        for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"] {
            command.env_remove(name);
        }
        {
            let mut start = self.lock();
            if matches!(*start, Start::Never) {
                return Err(io::Error::other(ChangeError::Ended));
            }
            let launcher = command.spawn()?;
            *start = Start::Started(Launched { launcher, channel: channel.clone(), new: None });
        }
        // This process's copy of the launcher's end.
        drop(command);
        let new = receive_new(&mut channel).inspect_err(|_| self.end())?;
        match &mut *self.lock() {
            Start::Started(launched) => launched.new = Some(new),
            // A stop has ended it.
            Start::None | Start::Never => return Err(io::Error::other(ChangeError::Ended)),
        }
        Ok(())
    }

    /// It serves, and is not ended any more. On return it is no descendant of this process. Returns
    /// the id of the process that the launcher has started, if that is there: a wrapper's, or its
    /// own.
    pub(super) fn let_go(&self) -> Option<u32> {
        let mut launched = self.take()?;
        let new = launched.new.take();
        launched.dismiss(&Order::LetGo);
        new.filter(|new| !new.process.has_ended()).map(|new| new.pid)
    }

    fn is_started(&self) -> bool {
        matches!(*self.lock(), Start::Started(_))
    }

    /// Its exit status, if it ends soon.
    fn how_it_ended(&self) -> Option<String> {
        let mut channel = match &*self.lock() {
            Start::Started(launched) => launched.channel.clone(),
            Start::None | Start::Never => return None,
        };
        channel.set_timeout(Some(EXIT_TIMEOUT)).ok()?;
        match channel.receive() {
            Ok(Word::Ended(status)) => Some(status),
            Ok(Word::Started { .. } | Word::NotStarted(_)) | Err(_) => None,
        }
    }

    fn end(&self) {
        if let Some(mut launched) = self.take() {
            let new = launched.new.take();
            launched.dismiss(&Order::End);
            if let Some(pidfd) = new.as_ref().and_then(|new| new.process.as_fd()) {
                // Needed where the launcher was killed; else it has ended.
                let _ = pidfd_send_signal(pidfd, Signal::KILL);
            }
        }
    }

    fn take(&self) -> Option<Launched> {
        let mut start = self.lock();
        match std::mem::take(&mut *start) {
            Start::Started(launched) => Some(launched),
            other => {
                *start = other;
                None
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Start> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Launched {
    /// Gives the launcher its last order, and returns when it is gone.
    fn dismiss(mut self, order: &Order) {
        // An error means that it is gone.
        let _ = self.channel.send(order);
        let _ = self.channel.set_timeout(Some(OBEY_TIMEOUT));
        while self.channel.receive::<Word>().is_ok() {}
        // If it hangs, it is killed. Waited for, it leaves no zombie; where SIGCHLD is ignored, the
        // kernel has done that, and the error says so.
        let _ = self.launcher.kill();
        let _ = self.launcher.wait();
    }
}

fn receive_new(channel: &mut Channel) -> io::Result<New> {
    let word = channel.receive();
    match word.map_err(|error| io::Error::other(format!("its launcher says nothing: {error}")))? {
        Word::Started { pid } => {
            let pidfd = channel.receive_descriptors(1)?.pop();
            let process = Process::new(pidfd.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(New { pid, process })
        }
        Word::NotStarted(reason) => Err(io::Error::other(reason)),
        Word::Ended(status) => Err(io::Error::other(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::upgrade::messages::FromNew;

    /// What comes of a new process that is to serve when a stop waits, and its end of the channel.
    fn serve_hurried(before: impl FnOnce(&mut Channel)) -> (HandOverStep, Channel) {
        let (channel, theirs) = Channel::pair().unwrap();
        let mut theirs = Channel::new(theirs);
        let (starting, relay) = (Starting::default(), StopRelay::default());
        relay.hurry();
        before(&mut theirs);
        let mut new = NewProcess { starting: &starting, relay: &relay, channel };
        let mut plan = HandOverPlan::begin(Instant::now());
        let (listeners, taking_loops) = (Vec::new(), 0);
        let ready =
            FromNew::Ready { listeners, admin: false, pid: 7, taking_loops, next_app_id: 1 };
        assert_eq!(plan.on_word(ready), HandOverStep::Hold(7));
        assert_eq!(plan.on_held(true, Instant::now()), HandOverStep::Go);
        (new.go(&mut plan), theirs)
    }

    #[test]
    fn a_new_process_that_is_given_up_for_being_late_cannot_say_that_it_serves() {
        let (served, mut theirs) = serve_hurried(|_| ());
        let HandOverStep::GiveUp { reason, held_for: Some(_) } = served else {
            panic!("{served:?}")
        };
        assert_eq!(reason, NOT_IN_TIME);
        assert!(matches!(theirs.receive(), Ok(FromOld::Go)));
        assert!(theirs.send(&FromNew::Serving).is_err(), "it would accept connections, and end");
    }

    #[test]
    fn a_new_process_that_has_said_in_time_that_it_serves_is_not_given_up() {
        let (served, _theirs) = serve_hurried(|theirs| theirs.send(&FromNew::Serving).unwrap());
        assert!(matches!(served, HandOverStep::HandOver(_)), "{served:?}");
    }
}
