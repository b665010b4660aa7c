//! The old process's side: it starts the new one, hands over, and reports until its end.

use std::{
    env,
    ffi::OsString,
    fmt, io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::Sender;

use super::{
    super::{
        ChangeError, Input, Operator, Patience, Verdict, ask, drains::Cause, lives::milliseconds,
        notices::notice,
    },
    ENVIRONMENT, FromNew, FromOld, Generation, HandOver, HandedListener, LastWord, MESSAGES,
    Totals,
    channel::Channel,
};
use crate::{
    app::EndpointState,
    logging::event,
    message::{AppLife, Origin},
};

/// What an upgrade needs of the process, as it was started.
pub(crate) struct Upgrader {
    binary: io::Result<PathBuf>,
    arguments: Vec<OsString>,
    admin: Option<HandedAdmin>,
    /// What this process reports while it drains.
    generation: Arc<dyn Fn() -> Option<Generation> + Send + Sync>,
    /// The new process, once it serves.
    pub(crate) successor: Arc<OnceLock<Successor>>,
}

/// The admin's socket.
pub(crate) struct HandedAdmin {
    /// As it is configured.
    pub(crate) configured: String,
    pub(crate) socket: OwnedFd,
    /// By which its file is left to the new process.
    pub(crate) left: Option<Arc<AtomicBool>>,
}

/// What an upgrade came to.
#[derive(Debug)]
pub(crate) struct Upgraded {
    /// The new process.
    pub(crate) pid: u32,
}

/// Why there is no upgrade. The old process goes on.
#[derive(Debug)]
pub(crate) enum UpgradeError {
    /// The server stops, or another upgrade is under way.
    Change(ChangeError),
    /// The new process could not be started, or did not come to serve.
    Failed(String),
}

impl fmt::Display for UpgradeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Change(reason) => reason.fmt(f),
            Self::Failed(reason) => f.write_str(reason),
        }
    }
}

/// How long a process may take to end that has closed the channel.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);

/// How often it is looked at meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// How often the new process is told how far the drain is.
const REPORT_EVERY: Duration = Duration::from_millis(200);

/// How long a new process may take for a report: it only has to be read.
const REPORT_TIMEOUT: Duration = Duration::from_secs(1);

impl Upgrader {
    /// As this process was started: by this name, in this folder.
    pub(crate) fn new(
        admin: Option<HandedAdmin>,
        generation: Arc<dyn Fn() -> Option<Generation> + Send + Sync>,
    ) -> Self {
        let mut arguments = env::args_os();
        let name = PathBuf::from(arguments.next().unwrap_or_default());
        // A name with a path may be a link, whose new end is the new version.
        let has_path = name.parent().is_some_and(|parent| parent != Path::new(""));
        let binary = if has_path { std::path::absolute(name) } else { env::current_exe() };
        let (arguments, successor) = (arguments.collect(), Arc::default());
        Self { binary, arguments, admin, generation, successor }
    }

    fn start(&self, binary: Option<PathBuf>) -> Result<(Child, Channel, PathBuf), String> {
        let own = || self.binary.as_ref().map(Clone::clone).map_err(ToString::to_string);
        let binary = binary.map_or_else(own, Ok)?;
        let failed = |error: io::Error| format!("{}: {error}", binary.display());
        let (channel, theirs) = Channel::pair().map_err(failed)?;
        let mut command = Command::new(&binary);
        command.args(&self.arguments).stdin(Stdio::from(theirs)).env(ENVIRONMENT, "1");
        // They name this process.
        for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"] {
            command.env_remove(name);
        }
        let child = command.spawn().map_err(failed)?;
        Ok((child, channel, binary))
    }
}

impl Operator {
    /// Has a new process take this one's place. It returns when that serves, and this one drains.
    pub(in super::super) fn upgrade(
        &mut self,
        binary: Option<PathBuf>,
        timeout: Duration,
    ) -> Result<Upgraded, UpgradeError> {
        let report = ask(&self.control, Input::Report).map_err(UpgradeError::Change)?;
        if report.stop.is_some() {
            return Err(UpgradeError::Change(ChangeError::Stopping));
        }
        let named = binary.as_ref().map(|binary| binary.display().to_string());
        let timeout_ms = milliseconds(timeout);
        let named = named.as_deref();
        notice!(self.notices, Info, "upgrade_start", binary = named, timeout_ms = timeout_ms);
        let upgraded = self.hand_over(binary, Instant::now() + timeout);
        if let Err(error) = &upgraded {
            notice!(self.notices, Error, "upgrade_failed", error = &*error.to_string());
        }
        upgraded
    }

    fn hand_over(
        &mut self,
        binary: Option<PathBuf>,
        deadline: Instant,
    ) -> Result<Upgraded, UpgradeError> {
        let (handed, descriptors) = self.what_is_handed_over().map_err(UpgradeError::Change)?;
        let (child, channel, binary) = self.upgrader.start(binary).map_err(UpgradeError::Failed)?;
        let mut new = NewProcess { child: Starting(Some(child)), channel, deadline };
        let agreed = new.agree(&handed, &descriptors);
        drop(descriptors);
        let (taken, admin) = agreed
            .map_err(|error| UpgradeError::Failed(format!("{}: {error}", binary.display())))?;
        let pid = new.child.0.take().map_or(0, |child| child.id());
        if admin
            && let Some(admin) = &self.upgrader.admin
            && let Some(left) = &admin.left
        {
            left.store(true, Ordering::Release);
        }
        let listeners: Arc<[SocketAddr]> =
            taken.iter().filter_map(|index| Some(handed.listeners.get(*index)?.bound)).collect();
        // Before the drain, whose begin would be the service's end.
        self.service.hand_over(pid);
        notice!(self.notices, Info, "upgrade_handed_over", pid = u64::from(pid));
        // A server that has ended has nothing to let go of.
        drop(self.control.send(Input::HandedOver { listeners, admin }));
        let channel = new.channel;
        if let Err(error) = self.upgrader.follow(channel, &self.control) {
            // The drain goes on, without anybody who is told of it.
            event!(Error, "successor_not_told", error:% = error);
        }
        Ok(Upgraded { pid })
    }

    /// What the new process has to know, and the sockets, in that order.
    fn what_is_handed_over(&self) -> Result<(HandOver, Vec<Arc<OwnedFd>>), ChangeError> {
        let mut handed = HandOver {
            messages: MESSAGES,
            pid: std::process::id(),
            listeners: Vec::new(),
            admin: None,
            next_app_id: self.registry.next_id(),
            apps: Vec::new(),
            drained: Vec::new(),
            drained_upstreams: Vec::new(),
            serving: Vec::new(),
        };
        let mut descriptors = Vec::new();
        for listening in &self.listening {
            let sockets = listening.sockets.iter().filter_map(Weak::upgrade);
            let before = descriptors.len();
            descriptors.extend(sockets);
            handed.listeners.push(HandedListener {
                configured: listening.configured,
                bound: listening.bound,
                sockets: descriptors.len() - before,
            });
        }
        if let Some(admin) = &self.upgrader.admin
            && let Ok(socket) = admin.socket.try_clone()
        {
            handed.admin = Some(admin.configured.clone());
            descriptors.push(Arc::new(socket));
        }
        for view in ask(&self.control, Input::Lives)? {
            let cause = view.drain.as_ref().map(|drain| drain.cause);
            let is_current = |life: &AppLife| {
                self.registry.find(life.host()).is_some_and(|found| found.id() == life.id())
            };
            if is_current(&view.life) && matches!(cause, None | Some(Cause::Drain)) {
                handed.add_app(&view.life, cause.is_some());
            }
        }
        Ok((handed, descriptors))
    }
}

impl HandOver {
    fn add_app(&mut self, life: &AppLife, is_drained: bool) {
        let (host, hosted) = (life.host(), life.app());
        if let (Origin::Admin, Some(definition)) = (hosted.origin, &hosted.definition) {
            self.apps.push((host.to_owned(), (**definition).clone()));
        }
        if is_drained {
            self.drained.push(host.to_owned());
        } else if hosted.load_error.is_none() {
            self.serving.push(host.to_owned());
        }
        let rows = hosted.app.upstreams().map(|upstreams| upstreams.rows(0)).unwrap_or_default();
        for row in rows.into_iter().filter(|row| row.state == EndpointState::Drained) {
            self.drained_upstreams.push((host.to_owned(), row.url));
        }
    }
}

/// A process that was started, until it serves.
struct NewProcess {
    child: Starting,
    channel: Channel,
    deadline: Instant,
}

impl NewProcess {
    /// Returns which listeners it serves, and whether the admin's.
    fn agree(
        &mut self,
        handed: &HandOver,
        descriptors: &[Arc<OwnedFd>],
    ) -> Result<(Vec<usize>, bool), String> {
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        let sent = self.set_timeout().and_then(|()| {
            self.channel.send(handed)?;
            self.channel.send_descriptors(&borrowed)
        });
        sent.map_err(|error| self.explain(&error))?;
        let taken = match self.receive()? {
            FromNew::Ready { listeners, admin } => (listeners, admin),
            FromNew::Failed(reason) => return Err(reason),
            FromNew::Serving | FromNew::Cut => return Err("it speaks out of turn".to_owned()),
        };
        self.channel.send(&FromOld::Go).map_err(|error| self.explain(&error))?;
        match self.receive()? {
            FromNew::Serving => Ok(taken),
            FromNew::Failed(reason) => Err(reason),
            FromNew::Ready { .. } | FromNew::Cut => Err("it speaks out of turn".to_owned()),
        }
    }

    fn set_timeout(&self) -> io::Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        self.channel.set_timeout(Some(left))
    }

    fn receive(&mut self) -> Result<FromNew, String> {
        let received = self.set_timeout().and_then(|()| self.channel.receive());
        received.map_err(|error| self.explain(&error))
    }

    /// What an error of the channel says of the process.
    fn explain(&mut self, error: &io::Error) -> String {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                "it was not ready in time".to_owned()
            }
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset => self.how_it_ended(),
            _ => error.to_string(),
        }
    }

    fn how_it_ended(&mut self) -> String {
        let until = Instant::now() + EXIT_TIMEOUT;
        let Some(child) = &mut self.child.0 else { return String::new() };
        while Instant::now() < until {
            match child.try_wait() {
                Ok(Some(status)) => return format!("it ended before it was ready ({status})"),
                Ok(None) => thread::sleep(LOOK_AGAIN),
                Err(error) => return error.to_string(),
            }
        }
        "it closed the channel before it was ready".to_owned()
    }
}

/// Ended with this value, unless it was taken out.
struct Starting(Option<Child>);

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // It may have ended by itself. Waited for, it leaves no zombie.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Upgrader {
    /// Hears what the new process wants, and tells it how far the drain is.
    fn follow(&self, channel: Channel, control: &Sender<Input>) -> io::Result<()> {
        let mut heard = channel.try_clone()?;
        // Time-outs are the socket's, not an end's: it is only written to in time.
        channel.set_timeout(None)?;
        channel.set_write_timeout(REPORT_TIMEOUT)?;
        drop(self.successor.set(Successor(Mutex::new(channel))));
        let control = control.clone();
        thread::Builder::new().name("successor".into()).spawn(move || {
            while let Ok(FromNew::Cut) = heard.receive() {
                let (reason, patience) = ("the new process".to_owned(), Patience::CutNow);
                drop(control.send(Input::Stop { reason, timeout: None, patience }));
            }
            event!(Error, "successor_gone");
        })?;
        let (successor, generation) = (Arc::clone(&self.successor), Arc::clone(&self.generation));
        let report = move || {
            let Some(generation) = generation() else { return false };
            let message = FromOld::Report(Box::new(generation));
            successor.get().is_some_and(|successor| successor.say(&message))
        };
        thread::Builder::new().name("reports".into()).spawn(move || {
            while report() {
                thread::sleep(REPORT_EVERY);
            }
        })?;
        Ok(())
    }
}

/// The new process, which this one reports to.
pub(crate) struct Successor(Mutex<Channel>);

impl Successor {
    /// Says how the drain ended; the last word.
    pub(crate) fn part(&self, verdict: Verdict, totals: Totals) {
        let cut = if let Verdict::Cut(cut) = verdict { cut } else { 0 };
        let verdict = verdict.name().to_owned();
        self.say(&FromOld::Gone(LastWord { verdict, cut, totals }));
    }

    /// Whether it listens. If it does not, it misses nothing.
    fn say(&self, message: &FromOld) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).send(message).is_ok()
    }
}
