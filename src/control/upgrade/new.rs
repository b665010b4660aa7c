//! The new process's side: it takes over, and knows of its predecessor until that is gone.

use std::{
    env, fmt, io,
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::Sender;

use super::{
    super::{
        Control, Emptied, Input, PutMode, StopAsker, StopRequest, lives::milliseconds, load, send,
    },
    ENVIRONMENT, FromNew, FromOld, Generation, HandOver, HandedListener, Inherited,
    InheritedSockets, LastWord, MESSAGES, PassedStop, Totals,
    channel::Channel,
    lines,
};
use crate::{
    config::{AppConfig, Config},
    logging::event,
    message::{LoopHandle, Origin},
};

/// What the old process hands over, until this one serves.
pub(crate) struct TakeOver {
    channel: Channel,
    handed: HandOver,
    /// The sockets of its listeners.
    pub(crate) inherited: Inherited,
    admin: Option<OwnedFd>,
    admin_taken: bool,
    report: FailureReport,
}

/// By which the old process is told that this one fails, until this one serves.
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
        if is_gone(&error) { Self::Alone(error) } else { Self::Failed(error) }
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

impl TakeOver {
    /// What is handed over, if this process was started by an upgrade.
    ///
    /// # Errors
    /// Why nothing comes, although it should.
    pub(crate) fn receive() -> Result<Option<Self>, NoTakeOver> {
        if env::var_os(ENVIRONMENT).is_none() {
            return Ok(None);
        }
        let mut channel = Channel::from_stdin()?;
        channel.set_timeout(Some(HAND_OVER_TIMEOUT))?;
        let handed: HandOver = channel.receive()?;
        if handed.messages != MESSAGES {
            let (theirs, ours) = (handed.messages, MESSAGES);
            let reason = format!("the old process speaks version {theirs}, this one {ours}");
            channel.send(&FromNew::Failed(reason.clone()))?;
            return Err(io::Error::other(reason).into());
        }
        let counts = handed.listeners.iter().map(|listener| listener.sockets);
        let total: usize = counts.clone().sum::<usize>() + usize::from(handed.admin.is_some());
        let mut descriptors = match channel.receive_descriptors(total) {
            Ok(descriptors) => descriptors.into_iter(),
            Err(error) => {
                channel.send(&FromNew::Failed(error.to_string()))?;
                return Err(error.into());
            }
        };
        let mut inherited = Inherited::default();
        for listener in &handed.listeners {
            let sockets = descriptors.by_ref().take(listener.sockets).collect();
            let HandedListener { configured, bound, is_kept, .. } = *listener;
            inherited.add(configured, InheritedSockets { bound, is_kept, sockets });
        }
        channel.set_timeout(None)?;
        let report = FailureReport(Arc::new(Mutex::new(Some(channel.clone()))));
        let (admin, admin_taken) = (descriptors.next(), false);
        Ok(Some(Self { channel, handed, inherited, admin, admin_taken, report }))
    }

    /// For whatever goes wrong before this process serves.
    pub(crate) fn failure_report(&self) -> FailureReport {
        self.report.clone()
    }

    /// Ids of lives go on from here.
    pub(crate) fn next_app_id(&self) -> u64 {
        self.handed.next_app_id
    }

    /// Takes the admin's socket, if it is configured so.
    pub(crate) fn take_admin(&mut self, configured: &str) -> Option<OwnedFd> {
        let is_same = self.handed.admin.as_deref() == Some(configured);
        let admin = self.admin.take().filter(|_| is_same);
        self.admin_taken = admin.is_some();
        admin
    }

    /// Whether an operator has put another app in the place of this one.
    pub(crate) fn has_app(&self, host: &str) -> bool {
        self.handed.apps.iter().any(|(put, _)| put == host)
    }

    /// Has the apps as operators left them. To be called when those of the config are loaded.
    ///
    /// # Errors
    /// An app that serves in the old process, and cannot here.
    pub(crate) fn restore(&self, control: &mut Control, folder: &Path) -> Result<(), String> {
        for (host, definition) in &self.handed.apps {
            let failed = |reason: String| format!("{host}: {reason}");
            let config = AppConfig::from_json(host, definition, folder).map_err(|problems| {
                failed(problems.into_iter().map(|problem| problem.message).collect())
            })?;
            let app = load(&config, Origin::Admin, control.loop_count());
            let mut app = app.map_err(|error| failed(error.to_string()))?;
            // For the process after this one.
            app.app.definition = Some(Arc::new(definition.clone()));
            let put = control.put_app(app, PutMode::Either);
            put.map_err(|error| failed(error.to_string()))?;
        }
        for host in &self.handed.serving {
            // One that the config no longer has is not missed, if others are left.
            if let Some(error) = control.load_error_of(host) {
                return Err(format!("{host}: {error}"));
            }
        }
        for host in &self.handed.drained {
            if let Err(error) = control.drain_app(host, None).map(drop) {
                event!(Warn, "not_drained_again", host = &**host, error:% = error);
            }
        }
        for (host, url) in &self.handed.drained_upstreams {
            if let Err(error) = control.drain_upstream(host, url, None) {
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
        let addresses = listeners.iter().map(|listener| listener.bound);
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
    /// dup(2)'s and the like; that the old process is gone is none: then this one is alone.
    pub(crate) fn say_ready(&mut self, loops: usize) -> io::Result<()> {
        // What is not taken is the old process's to close.
        let left = self.inherited.drop_rest();
        self.admin = None;
        let listeners = self.handed.listeners.iter().enumerate();
        let taken = listeners.filter(|(_, listener)| !left.contains(&listener.bound));
        let listeners = taken.map(|(index, _)| index).collect();
        let (admin, taking_loops) = (self.admin_taken, loops);
        let said = self.channel.send(&FromNew::Ready { listeners, admin, taking_loops });
        match said.and_then(|()| self.channel.receive::<FromOld>()) {
            Ok(_) => Ok(()),
            Err(error) if is_gone(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Says that this process serves; from now on the old one drains.
    ///
    /// # Errors
    /// When the thread cannot be started that hears of it.
    pub(crate) fn serve(
        mut self,
        predecessor: &Arc<Predecessor>,
        control: Sender<Input>,
        loops: Vec<LoopHandle>,
    ) -> io::Result<()> {
        let mut channel = self.channel.clone();
        let follower = Arc::clone(predecessor);
        let thread = thread::Builder::new().name("predecessor".into());
        thread.spawn(move || follower.follow(&mut channel, &control, &loops))?;
        self.report.take();
        // If the old process is gone, the thread finds so.
        let _ = self.channel.send(&FromNew::Serving);
        predecessor.lock().channel = Some(self.channel);
        Ok(())
    }

    /// What this process knows of the old one, from the start.
    pub(crate) fn predecessor(&self) -> Predecessor {
        let state = State { pid: self.handed.pid, ..State::default() };
        Predecessor { state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl FailureReport {
    /// Tells the old process why this one ends.
    pub(crate) fn fail(&self, reason: &str) {
        if let Some(mut channel) = self.take() {
            // Whoever is gone needs no reason.
            let _ = channel.send(&FromNew::Failed(reason.to_owned()));
        }
    }

    fn take(&self) -> Option<Channel> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The process before this one.
pub(crate) struct Predecessor {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    pid: u32,
    /// None before this process serves.
    channel: Option<Channel>,
    last: Option<Generation>,
    totals: Totals,
    is_gone: bool,
}

impl Predecessor {
    /// Processes before this one that are still there, the youngest first.
    pub(crate) fn generations(&self) -> Vec<Generation> {
        let state = self.lock();
        let Some(last) = &state.last else { return Vec::new() };
        let mut all = vec![last.clone()];
        all.append(&mut all[0].previous.clone());
        all[0].previous.clear();
        all
    }

    /// What all processes before this one counted.
    pub(crate) fn totals(&self) -> Totals {
        self.lock().totals
    }

    /// Has it cut what is in flight.
    pub(crate) fn cut(&self) {
        if let Some(channel) = &mut self.lock().channel {
            // One that is gone has nothing in flight.
            let _ = channel.send(&FromNew::Cut);
        }
    }

    /// Waits until it is gone; its drain has a deadline.
    pub(crate) fn wait_gone(&self) {
        let state = self.changed.wait_while(self.lock(), |state| !state.is_gone);
        drop(state.unwrap_or_else(PoisonError::into_inner));
    }

    fn follow(&self, channel: &mut Channel, control: &Sender<Input>, loops: &[LoopHandle]) {
        let began = Instant::now();
        let mut last_word = None;
        // An error is its end too: it says nothing any more.
        while let Ok(said) = channel.receive() {
            match said {
                FromOld::Go => {}
                FromOld::Lines(count) => {
                    if let Err(error) = lines::take(channel, count, loops) {
                        event!(Warn, "connections_not_taken", error:% = error);
                    }
                }
                FromOld::Report(generation) => {
                    let mut state = self.lock();
                    state.totals = generation.totals;
                    state.last = Some(*generation);
                }
                FromOld::Stop(PassedStop { reason, cut }) => {
                    let by = StopAsker::Predecessor { cut };
                    send(control, Input::Stop(StopRequest { reason, timeout: None, by }));
                }
                FromOld::Gone(word) => {
                    self.lock().totals = word.totals;
                    last_word = Some(word);
                }
            }
        }
        let pid = {
            let mut state = self.lock();
            (state.is_gone, state.channel, state.last) = (true, None, None);
            state.pid
        };
        self.changed.notify_all();
        let elapsed_ms = milliseconds(began.elapsed());
        match last_word {
            Some(LastWord { verdict, cut, .. }) => event!(
                Info,
                "upgrade_complete",
                old_pid = pid,
                verdict = &*verdict,
                cut = cut,
                elapsed_ms = elapsed_ms,
            ),
            // Whatever it had in flight is lost; nobody knows how much that was.
            None => event!(Error, "old_process_lost", old_pid = pid, elapsed_ms = elapsed_ms),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | BrokenPipe | ConnectionReset)
}
