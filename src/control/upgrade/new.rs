//! The new process's side, until it serves: it takes over.

use std::{
    env, fmt, io,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crossbeam_channel::Sender;

use super::{
    super::{
        certificates::HandedCertificates, changes::PutMode, control::Control, emptied::Emptied,
        input::Input, load::load,
    },
    channel::Channel,
    inherited::{Inherited, InheritedSockets},
    messages::{FromNew, FromOld, HandOver, HandedListener, MESSAGES},
    predecessor::Predecessor,
    process::{ENVIRONMENT, Process},
};
use crate::{
    config::{AppConfig, Config},
    hosted::Origin,
    logging::event,
    message::LoopHandle,
};

const GIVEN_UP: &str = "the old process goes on without this one";

/// What the old process hands over, until this one serves.
pub(crate) struct TakeOver {
    channel: Channel,
    old: Arc<Process>,
    handed: HandOver,
    /// The sockets of its listeners.
    pub(crate) inherited: Inherited,
    admin: Option<OwnedFd>,
    admin_taken: bool,
    /// As it is configured, and its socket.
    health: Option<(SocketAddr, OwnedFd)>,
    health_taken: bool,
    report: FailureReport,
}

/// Reports to the old process that this one fails, until this one serves.
#[derive(Clone)]
pub(crate) struct FailureReport(Arc<Mutex<Option<Channel>>>);

/// Why nothing is taken over, although an upgrade has started this process.
#[derive(Debug)]
pub(crate) enum NoTakeOver {
    /// The old process is gone: this one is alone.
    Alone(io::Error),
    /// The old process serves.
    Failed(io::Error),
}

impl From<io::Error> for NoTakeOver {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

impl fmt::Display for NoTakeOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alone(error) => write!(f, "the old process is gone, starting afresh: {error}"),
            Self::Failed(error) => write!(f, "nothing is taken over: {error}"),
        }
    }
}

/// How long the old process may take to say what it has: it does so at once.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a process that ends may take from the end of its channels to its own.
const END_TIMEOUT: Duration = Duration::from_secs(2);

impl TakeOver {
    /// What is handed over, if this process was started by an upgrade.
    ///
    /// # Errors
    /// Why nothing comes, although it should.
    pub(crate) fn receive() -> Result<Option<Self>, NoTakeOver> {
        let Some(name) = env::var_os(ENVIRONMENT) else { return Ok(None) };
        let mut channel = Channel::from_stdin()?;
        channel.set_timeout(Some(HAND_OVER_TIMEOUT))?;
        let Some(old) = name.to_str().and_then(Process::named) else {
            return Err(refuse(&mut channel, "the old process is of another version".to_owned()));
        };
        let lost = |error: io::Error| {
            if is_closed(&error) && old.ends_within(END_TIMEOUT) {
                NoTakeOver::Alone(error)
            } else {
                NoTakeOver::Failed(error)
            }
        };
        let handed: HandOver = channel.receive().map_err(lost)?;
        if handed.messages != MESSAGES {
            let (theirs, ours) = (handed.messages, MESSAGES);
            let reason = format!("the old process speaks version {theirs}, this one {ours}");
            return Err(refuse(&mut channel, reason));
        }
        let counts = handed.listeners.iter().map(|listener| listener.sockets);
        let total: usize = counts.sum::<usize>() + usize::from(handed.admin.is_some());
        let mut descriptors = match channel.receive_descriptors(total) {
            Ok(descriptors) => descriptors.into_iter(),
            Err(error) if is_closed(&error) => return Err(lost(error)),
            Err(error) => return Err(refuse(&mut channel, error.to_string())),
        };
        let (mut inherited, mut health) = (Inherited::default(), None);
        for listener in &handed.listeners {
            let mut sockets: Vec<_> = descriptors.by_ref().take(listener.sockets).collect();
            let HandedListener { configured, bound, is_kept, is_health, .. } = *listener;
            if is_health {
                health = sockets.pop().map(|socket| (configured, socket));
            } else {
                inherited.add(configured, InheritedSockets { bound, is_kept, sockets });
            }
        }
        channel.set_timeout(None)?;
        let report = FailureReport(Arc::new(Mutex::new(Some(channel.clone()))));
        Ok(Some(Self {
            channel,
            old: Arc::new(old),
            handed,
            inherited,
            admin: descriptors.next(),
            admin_taken: false,
            health,
            health_taken: false,
            report,
        }))
    }

    /// For whatever goes wrong before this process serves.
    pub(crate) fn failure_report(&self) -> FailureReport {
        self.report.clone()
    }

    /// Ids of lives go on from here.
    pub(crate) fn next_app_id(&self) -> u64 {
        self.handed.next_app_id
    }

    /// The keys of TLS tickets, for this process to go on with.
    pub(crate) fn ticket_keys(&self) -> &[u8] {
        &self.handed.ticket_keys.0
    }

    /// The certificates in use, for this process to go on with where it can't read them itself.
    pub(crate) fn certificates(&self) -> &HandedCertificates {
        &self.handed.certificates
    }

    /// Takes the admin's socket, if it is configured so and `adopt` takes its file, by device and
    /// inode.
    pub(crate) fn take_admin<T>(
        &mut self,
        configured: &str,
        adopt: impl FnOnce(Option<(u64, u64)>) -> Option<T>,
    ) -> Option<(OwnedFd, T)> {
        if self.handed.admin.as_deref() != Some(configured) {
            return None;
        }
        let file = adopt(self.handed.admin_file)?;
        let admin = self.admin.take()?;
        self.admin_taken = true;
        Some((admin, file))
    }

    /// Takes the socket of the health listener, if it is configured so.
    pub(crate) fn take_health(&mut self, configured: SocketAddr) -> Option<OwnedFd> {
        let (_, socket) = self.health.take_if(|(known, _)| *known == configured)?;
        self.health_taken = true;
        Some(socket)
    }

    /// The apps that operators have put, by their definitions. One that can't be read fails in
    /// [`TakeOver::restore`].
    pub(crate) fn put_apps(&self, folder: &Path) -> impl Iterator<Item = AppConfig> {
        let read = move |(host, definition): &(String, serde_json::Value)| {
            AppConfig::from_json(host, definition, folder).ok()
        };
        self.handed.apps.iter().filter_map(read)
    }

    /// Whether an operator has put another app in the place of this one.
    pub(crate) fn has_app(&self, host: &str) -> bool {
        self.handed.apps.iter().any(|(put, _)| put == host)
    }

    /// Restores the apps as operators left them. To be called when those of the config are loaded.
    ///
    /// # Errors
    /// An app that serves in the old process, and cannot here.
    pub(crate) fn restore(&self, control: &mut Control, folder: &Path) -> Result<(), String> {
        let now = Instant::now();
        for (host, definition) in &self.handed.apps {
            let failed = |reason: String| format!("{host}: {reason}");
            let config = AppConfig::from_json(host, definition, folder).map_err(|problems| {
                failed(problems.into_iter().map(|problem| problem.message).collect())
            })?;
            let app = load(&config, Origin::Admin, control.loop_count());
            let mut app = app.map_err(|error| failed(error.to_string()))?;
            // For the process after this one.
            app.app.definition = Some(Arc::new(definition.clone()));
            let put = control.put_app(app, PutMode::Either, now);
            put.map_err(|error| failed(error.to_string()))?;
        }
        for host in &self.handed.serving {
            // An app that the config no longer has is not missed, if others are left.
            if let Some(error) = control.load_error_of(host) {
                return Err(format!("{host}: {error}"));
            }
        }
        control.skip_upstream_drains(self.handed.upstream_drains);
        for host in &self.handed.drained {
            if let Err(error) = control.drain_app(host, None, now).map(drop) {
                event!(Warn, "not_drained_again", host = &**host, error:% = error);
            }
        }
        for (host, url) in &self.handed.drained_upstreams {
            if let Err(error) = control.drain_upstream(host, url, None, now) {
                let (host, url) = (&**host, &**url);
                event!(Warn, "not_drained_again", host = host, upstream = url, error:% = error);
            }
        }
        Ok(())
    }

    /// Whether this process may serve nothing of what the old one serves.
    pub(crate) fn allows_empty(&self) -> bool {
        self.handed.allow_empty
    }

    /// Whether this config leaves anything of what the old process serves; before it is used.
    ///
    /// # Errors
    /// What would go, unless that is allowed.
    pub(crate) fn check_left(&self, config: &Config) -> Result<(), String> {
        // Apps that operators have put come along, whatever the config says.
        let HandOver { apps, serving, drained, listeners, .. } = &self.handed;
        let hosts = serving.iter().chain(drained).map(String::as_str);
        let hosts = hosts.filter(|_| apps.is_empty());
        let public = listeners.iter().filter(|listener| !listener.is_health);
        let addresses = public.map(|listener| listener.bound);
        match Emptied::check(hosts, addresses, config) {
            Err(lost) if !self.handed.allow_empty => Err(format!(
                "the config would leave nothing: {lost} \
                 (`tidegate upgrade --allow-empty` if that is meant)"
            )),
            _ => Ok(()),
        }
    }

    /// Says that this process can serve, and waits for the word.
    ///
    /// # Errors
    /// When the old process goes on without this one, and is there. That it has ended is no error:
    /// then this process is alone.
    pub(crate) fn say_ready(&mut self, loops: usize, next_app_id: u64) -> io::Result<()> {
        // What is not taken is the old process's to close.
        let left = self.inherited.drop_rest();
        (self.admin, self.health) = (None, None);
        let listeners = self.handed.listeners.iter().enumerate();
        let taken = listeners.filter(|(_, listener)| {
            if listener.is_health { self.health_taken } else { !left.contains(&listener.bound) }
        });
        let listeners = taken.map(|(index, _)| index).collect();
        let (admin, pid, taking_loops) = (self.admin_taken, std::process::id(), loops);
        let ready = FromNew::Ready { listeners, admin, pid, taking_loops, next_app_id };
        let said = self.channel.send(&ready);
        match said.and_then(|()| self.channel.receive::<FromOld>()) {
            Ok(FromOld::Go) => Ok(()),
            Ok(_) => Err(io::Error::other(GIVEN_UP)),
            Err(error) if is_closed(&error) && self.old.ends_within(END_TIMEOUT) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Says that this process serves; from now on the old one drains. To be called before anything
    /// is accepted: until then the old process may end this one.
    ///
    /// # Errors
    /// When the old process has given this one up, or the thread cannot be started that hears of
    /// it.
    pub(crate) fn serve(
        mut self,
        predecessor: &Arc<Predecessor>,
        control: Sender<Input>,
        loops: Vec<LoopHandle>,
    ) -> io::Result<()> {
        self.report.take();
        match self.channel.send(&FromNew::Serving) {
            Ok(()) => {}
            // The thread finds that it has ended.
            Err(error) if is_closed(&error) && self.old.ends_within(END_TIMEOUT) => {}
            Err(error) if is_closed(&error) => return Err(io::Error::other(GIVEN_UP)),
            Err(error) => return Err(error),
        }
        predecessor.follow(&self.channel, &self.old, control, loops)?;
        predecessor.speak_by(self.channel)
    }

    /// What this process knows of the old process at the start. `drain_timeout` is assumed for its
    /// drain until it reports its own.
    pub(crate) fn predecessor(&self, drain_timeout: Duration) -> Predecessor {
        Predecessor::new(self.handed.pid, drain_timeout)
    }
}

/// Tells the old process why there is no take-over.
fn refuse(channel: &mut Channel, reason: String) -> NoTakeOver {
    match channel.send(&FromNew::Failed(reason.clone())) {
        Ok(()) => NoTakeOver::Failed(io::Error::other(reason)),
        Err(error) => NoTakeOver::Failed(error),
    }
}

impl FailureReport {
    /// Tells the old process why this one ends.
    pub(crate) fn fail(&self, reason: &str) {
        if let Some(mut channel) = self.take() {
            // A process that is gone needs no reason.
            let _ = channel.send(&FromNew::Failed(reason.to_owned()));
        }
    }

    fn take(&self) -> Option<Channel> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Whether the other end of the channel is closed.
fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | BrokenPipe | ConnectionReset)
}
