//! The server: binds, loads, wires control and the loops together, and runs them.

use std::{
    fmt, io,
    net::SocketAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::Sender;

pub use crate::control::{DrainTicket, RemoveError, SignalRequest, Verdict, forward_signals};
pub use crate::event_loop::BindError;
use crate::{
    app::{self, App},
    config::{AppConfig, Config, Limits, ServerConfig},
    control::{Control, Ended, Input},
    event_loop::{self, ConnectionBudget, EventLoop, ListenerSet, LoopSetup},
    logging::{AccessLog, event},
    message::{Apps, ControlEvent, LoopHandle},
    registry::{AppId, AppRegistry, NameTaken, NewApp},
};

/// A server that is bound and can be given apps. [`HttpServer::run`] serves them.
pub struct HttpServer {
    control: Control,
    registry: Arc<Apps>,
    listeners: Vec<ListenerSet>,
    addresses: Vec<SocketAddr>,
    server: ServerConfig,
    limits: Limits,
    access: Option<AccessLog>,
    epoch: Instant,
}

/// A way to a running server, for any thread. Calls wait for [`HttpServer::run`] to take them up.
#[derive(Clone, Debug)]
pub struct ServerHandle {
    inputs: Sender<Input>,
    drain_timeout: Duration,
}

/// Why a server cannot run.
#[derive(Debug)]
pub enum ServerError {
    /// An address cannot be listened on.
    Bind(BindError),
    /// A loop or its thread could not be set up.
    Setup(io::Error),
    /// A loop failed while the server ran; the others were drained.
    LoopFailed,
}

impl HttpServer {
    /// Binds the config's addresses. Nothing is accepted before [`HttpServer::run`], but from here
    /// on the kernel queues connections.
    ///
    /// # Errors
    /// The address that cannot be bound.
    pub fn bind(config: &Config) -> Result<Self, ServerError> {
        let server = config.server.clone();
        let loops = match server.threads {
            0 => thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let listeners = event_loop::bind(&server.listen, loops).map_err(ServerError::Bind)?;
        let addresses = listeners[0]
            .iter()
            .map(std::net::TcpListener::local_addr)
            .collect::<io::Result<_>>()
            .map_err(ServerError::Setup)?;
        let registry = Arc::new(AppRegistry::new(loops, server.default_app.clone()));
        let epoch = Instant::now();
        let control =
            Control::new(Arc::clone(&registry), epoch, server.shutdown_delay, server.drain_timeout);
        let limits = config.limits.clone();
        Ok(Self { control, registry, listeners, addresses, server, limits, access: None, epoch })
    }

    /// Where the server listens; port 0 is the real one here.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Has requests written to this log.
    pub fn log_requests(&mut self, access: AccessLog) {
        self.access = Some(access);
    }

    /// Loads apps from their config. One that cannot be loaded is logged and answers 503 (I8).
    pub fn load_apps(&mut self, apps: &[AppConfig]) {
        for config in apps {
            let app = app::load(&config.kind, self.registry.loops()).unwrap_or_else(|error| {
                event!(Error, "app_load_failed", host = &*config.host, error:% = error);
                Arc::new(app::Unavailable)
            });
            let kind = app.kind();
            let new = NewApp {
                host: config.host.clone(),
                aliases: config.aliases.clone(),
                drain_timeout: config.drain_timeout.unwrap_or(self.server.drain_timeout),
                app,
            };
            match self.registry.insert(new) {
                Ok(life) => {
                    event!(Info, "app_loaded", host = life.host(), id:% = life.id(), kind = kind);
                }
                Err(taken) => {
                    event!(Error, "app_load_failed", host = &*config.host, error:% = taken);
                }
            }
        }
    }

    /// Adds an app of the embedder's own under a host name, lower case, or `*.` and a name.
    ///
    /// # Errors
    /// [`NameTaken`] when another app serves the name.
    pub fn add_app(&mut self, host: &str, app: impl App + 'static) -> Result<AppId, NameTaken> {
        self.control.add_app(new_app(host, Arc::new(app), self.server.drain_timeout))
    }

    /// Removes an app, draining it.
    ///
    /// # Errors
    /// When there is no such app, or it is being removed already.
    pub fn remove_app(&mut self, host: &str) -> Result<DrainTicket, RemoveError> {
        self.control.remove_app(host)
    }

    /// A handle by which other threads reach the server while it runs.
    pub fn handle(&self) -> ServerHandle {
        ServerHandle {
            inputs: self.control.sender().clone(),
            drain_timeout: self.server.drain_timeout,
        }
    }

    /// Serves until a stop is over. The calling thread becomes the control thread.
    ///
    /// # Errors
    /// When a loop cannot be set up, or failed while it ran.
    pub fn run(self) -> Result<Verdict, ServerError> {
        let Self { control, registry, listeners, addresses, server, limits, access, epoch } = self;
        raise_descriptor_limit();
        let app_count = registry.entries().len();
        let budget = ConnectionBudget::new(connections_max(&limits, listeners.len()));
        let mut handles: Vec<LoopHandle> = Vec::new();
        let mut threads = Vec::new();
        for (index, listeners) in listeners.into_iter().enumerate() {
            let inputs = control.sender().clone();
            let (event_loop, handle) = EventLoop::new(LoopSetup {
                index,
                registry: Arc::clone(&registry),
                listeners,
                limits: limits.clone(),
                server: server.clone(),
                budget: budget.clone(),
                epoch,
                access: access.as_ref().map(AccessLog::for_loop),
                // Control ends after the loops, so it is there to hear this.
                report: Box::new(move |event| drop(inputs.send(Input::Loop(index, event)))),
            })
            .map_err(ServerError::Setup)?;
            handles.push(handle);
            let inputs = control.sender().clone();
            let run = move || run_loop(index, event_loop, &inputs);
            let thread = thread::Builder::new().name(format!("loop-{index}"));
            threads.push(thread.spawn(run).map_err(ServerError::Setup)?);
        }
        let listen: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        event!(
            Info,
            "multi_app_ready",
            app_count = app_count as u64,
            listen = &*listen.join(","),
            loops = handles.len() as u64,
        );
        match control.run(handles) {
            Ended::Stopped(verdict) => Ok(verdict),
            Ended::LoopFailed => Err(ServerError::LoopFailed),
        }
        // The threads are not joined: one that is stuck in an app must not hold up the exit.
    }
}

/// A loop's thread: its failure, also by panic, reaches control.
fn run_loop(index: usize, event_loop: EventLoop, inputs: &Sender<Input>) {
    let run = std::panic::AssertUnwindSafe(|| event_loop.run());
    let failed = match std::panic::catch_unwind(run) {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "panic".to_owned(),
    };
    event!(Error, "loop_error", loop_index = index as u64, error = &*failed);
    drop(inputs.send(Input::Loop(index, ControlEvent::Failed)));
}

impl ServerHandle {
    /// Adds an app under a host name, lower case, or `*.` and a name. It is served at once, also
    /// while an app of that name that was removed is still draining.
    ///
    /// # Errors
    /// [`AddError`] when another app serves the name, or the server has ended.
    pub fn add_app(&self, host: &str, app: impl App + 'static) -> Result<AppId, AddError> {
        let (reply, answer) = crossbeam_channel::bounded(1);
        let new = new_app(host, Arc::new(app), self.drain_timeout);
        self.inputs.send(Input::Add(new, reply)).map_err(|_| AddError::Ended)?;
        answer.recv().map_err(|_| AddError::Ended)?.map_err(AddError::NameTaken)
    }

    /// Begins to remove an app, and returns: new requests get 503, those in flight finish, the
    /// app's deadline cuts what is left. The ticket tells the end.
    ///
    /// # Errors
    /// When there is no such app, or it is being removed already.
    pub fn remove_app(&self, host: &str) -> Result<DrainTicket, RemoveError> {
        let (reply, answer) = crossbeam_channel::bounded(1);
        self.inputs.send(Input::Remove(host.into(), reply)).map_err(|_| RemoveError::Ended)?;
        answer.recv().map_err(|_| RemoveError::Ended)?
    }

    /// Begins to stop the server, and returns; a second call cuts what is in flight. `reason` is
    /// for the log.
    pub fn stop(&self, reason: &str) {
        // A server that has ended needs no stop.
        drop(self.inputs.send(Input::Stop(reason.into())));
    }
}

/// Why an app cannot be added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddError {
    /// Another app serves the name.
    NameTaken(NameTaken),
    /// The server has ended.
    Ended,
}

impl fmt::Display for AddError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NameTaken(taken) => taken.fmt(f),
            Self::Ended => f.write_str("the server has ended"),
        }
    }
}

impl std::error::Error for AddError {}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind(error) => error.fmt(f),
            Self::Setup(error) => write!(f, "cannot set up an event loop: {error}"),
            Self::LoopFailed => f.write_str("an event loop failed"),
        }
    }
}

impl std::error::Error for ServerError {}

fn new_app(host: &str, app: Arc<dyn App>, drain_timeout: Duration) -> NewApp<Arc<dyn App>> {
    NewApp { host: host.to_ascii_lowercase(), aliases: Vec::new(), drain_timeout, app }
}

/// Raises the limit of open files as far as the process may.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        event!(Warn, "descriptor_limit_not_raised", error:% = error);
    }
}

/// The config's connections, or as many as there are descriptors for: an eighth stays free for the
/// files of apps and logs.
fn connections_max(limits: &Limits, loops: usize) -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let descriptors =
        limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    // Each loop is going to open an epoll instance and the descriptors of its waker.
    let own = open + 3 * loops + descriptors / 8;
    let possible = descriptors.saturating_sub(own).max(1);
    if possible < limits.connections {
        event!(
            Info,
            "connections_limited",
            connections = possible as u64,
            configured = limits.connections as u64,
            descriptors = descriptors as u64,
        );
    }
    possible.min(limits.connections)
}
