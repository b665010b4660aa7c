//! The server: binds, loads, wires control and the loops together, and runs them.

use std::{
    fmt, io, net::SocketAddr, os::fd::OwnedFd, path::PathBuf, sync::Arc, thread, time::Instant,
};

use crossbeam_channel::{Receiver, Sender};

pub use crate::control::{
    ChangeError, DrainTicket, ReloadError, Reloaded, SignalRequest, Verdict, forward_signals,
};
pub use crate::event_loop::BindError;
use crate::{
    app::{App, Later},
    config::{AdminListen, AppConfig, Config},
    control::{
        Admin, AdminApp, AdminRequest, Control, Ended, Facts, Host, Input, Listening, Notices,
        Operator, Patience, PutMode, Reloads, ServiceManager, Task, ask, load, unavailable,
    },
    event_loop::{
        self, AdminSetup, ConnectionBudget, EventLoop, ListenerSet, LoopSetup, UnixSocketFile,
    },
    logging::{AccessLog, Logging, event},
    message::{Apps, ControlEvent, HostedApp, LoopCommand, LoopConfig, LoopHandle, Origin},
    metrics::LoopGauges,
    registry::{AppId, AppRegistry, NewApp},
};

/// A server that is bound and can be given apps. [`HttpServer::run`] serves them.
pub struct HttpServer {
    config: Config,
    /// The file that a reload reads.
    source: Option<PathBuf>,
    registry: Arc<Apps>,
    control: Control,
    notices: Arc<Notices>,
    tasks: (Sender<Task>, Receiver<Task>),
    listeners: Vec<ListenerSet>,
    addresses: Vec<SocketAddr>,
    listening: Vec<Listening>,
    admin: Option<AdminSocket>,
    logging: Option<Logging>,
    epoch: Instant,
}

/// A way to a running server, for any thread. Calls wait for [`HttpServer::run`] to take them up.
#[derive(Clone)]
pub struct ServerHandle {
    inputs: Sender<Input>,
    tasks: Sender<Task>,
    loops: usize,
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
    /// on the kernel queues connections. The config's `[admin]` is left to
    /// [`HttpServer::listen_for_admin`], its apps to [`HttpServer::load_apps`].
    ///
    /// # Errors
    /// The address that cannot be bound.
    pub fn bind(config: &Config) -> Result<Self, ServerError> {
        let loops = match config.server.threads {
            0 => thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let listen = &config.server.listen;
        let configured: Vec<_> = listen.iter().map(|entry| entry.address).collect();
        let listeners = event_loop::bind(&configured, loops).map_err(ServerError::Bind)?;
        let sockets = listen.iter().zip(&listeners[0]);
        let listening: Vec<_> =
            sockets.map(|(entry, socket)| Listening::new(entry, socket)).collect();
        let addresses = listening.iter().map(|listening| listening.bound).collect();
        let registry = Arc::new(AppRegistry::new(loops, config.server.default_app.clone()));
        let (notices, epoch) = (Arc::<Notices>::default(), Instant::now());
        let control =
            Control::new(Arc::clone(&registry), Arc::clone(&notices), epoch, &config.server);
        Ok(Self {
            config: config.clone(),
            source: None,
            registry,
            control,
            notices,
            tasks: crossbeam_channel::unbounded(),
            listeners,
            addresses,
            listening,
            admin: None,
            logging: None,
            epoch,
        })
    }

    /// Where the server listens; port 0 is the real one here.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Has requests written to the access log of these logs, and reloads change the logs.
    pub fn log_to(&mut self, logging: Logging) {
        self.logging = Some(logging);
    }

    /// Has reloads read this file, which the config came from.
    pub fn reload_from(&mut self, path: PathBuf) {
        self.source = Some(path);
    }

    /// Has the service manager told when the server serves, reloads and stops, and how it is, if
    /// the environment names one (sd_notify(3)). One that cannot be reached is logged.
    pub fn notify_service_manager(&mut self) {
        self.control.notify(ServiceManager::from_env());
    }

    /// Opens the listener of the admin API, if the config wants one.
    ///
    /// # Errors
    /// When the address is in use or the socket cannot be made there.
    pub fn listen_for_admin(&mut self) -> Result<(), ServerError> {
        let admin = &self.config.admin;
        if admin.enabled {
            self.admin = Some(AdminSocket::bind(&admin.listen).map_err(ServerError::Bind)?);
        }
        Ok(())
    }

    /// Loads apps from their config. One that cannot be loaded is logged and answers 503 (I8).
    pub fn load_apps(&mut self, apps: &[AppConfig]) {
        let loops = self.registry.loops();
        for config in apps {
            let app = load(config, Origin::Config, loops).unwrap_or_else(|error| {
                event!(Error, "app_load_failed", host = &*config.host, error:% = error);
                unavailable(config, error.to_string(), loops)
            });
            self.control.load_app(app);
        }
    }

    /// Adds an app of the embedder's own under a host name, lower case, or `*.` and a name.
    ///
    /// # Errors
    /// [`ChangeError`] when another app serves the name.
    pub fn add_app(&mut self, host: &str, app: impl App + 'static) -> Result<AppId, ChangeError> {
        let app = own_app(host, Arc::new(app), self.registry.loops());
        self.control.put_app(app, PutMode::Add).map(|begun| begun.life.id())
    }

    /// Removes an app, draining it.
    ///
    /// # Errors
    /// When there is no such app, or it is being removed already.
    pub fn remove_app(&mut self, host: &str) -> Result<DrainTicket, ChangeError> {
        self.control.remove_app(host, None)
    }

    /// A handle by which other threads reach the server while it runs.
    pub fn handle(&self) -> ServerHandle {
        ServerHandle {
            inputs: self.control.sender().clone(),
            tasks: self.tasks.0.clone(),
            loops: self.registry.loops(),
        }
    }

    /// Serves until a stop is over. The calling thread becomes the control thread.
    ///
    /// # Errors
    /// When a loop cannot be set up, or failed while it ran.
    pub fn run(mut self) -> Result<Verdict, ServerError> {
        raise_descriptor_limit();
        let possible = connections_possible(self.registry.loops());
        let budget = ConnectionBudget::new(
            connections_max(self.config.limits.connections, possible),
            possible,
        );
        let gauges: Vec<Arc<LoopGauges>> =
            (0..self.registry.loops()).map(|_| Arc::default()).collect();
        let (admin_requests, requests) = crossbeam_channel::unbounded();
        let (handles, loops) =
            self.make_loops(&budget, &gauges, &admin_requests).map_err(ServerError::Setup)?;
        drop(admin_requests);
        let reloads = Arc::<Reloads>::default();
        self.spawn_operator(&reloads, budget, possible).map_err(ServerError::Setup)?;
        self.spawn_admin(handles.clone(), gauges.clone(), reloads, requests)
            .map_err(ServerError::Setup)?;
        spawn_loops(loops, &handles, self.control.sender()).map_err(ServerError::Setup)?;
        let listen: Vec<_> = self.addresses.iter().map(ToString::to_string).collect();
        event!(
            Info,
            "multi_app_ready",
            app_count = self.registry.entries().len() as u64,
            listen = &*listen.join(","),
            loops = handles.len() as u64,
            admin = self.admin.as_ref().map(|admin| admin.address.as_str()),
        );
        match self.control.run(handles, gauges, self.addresses) {
            Ended::Stopped(verdict) => Ok(verdict),
            Ended::LoopFailed => Err(ServerError::LoopFailed),
        }
        // The threads are not joined: one that is stuck in an app must not hold up the exit.
    }

    fn make_loops(
        &mut self,
        budget: &ConnectionBudget,
        gauges: &[Arc<LoopGauges>],
        admin_requests: &Sender<(AdminRequest, Later)>,
    ) -> io::Result<(Vec<LoopHandle>, Vec<EventLoop>)> {
        let access = self.logging.as_ref().and_then(Logging::access);
        let admin_budget = ConnectionBudget::new(ADMIN_CONNECTIONS_MAX, ADMIN_CONNECTIONS_MAX);
        let (mut handles, mut loops) = (Vec::new(), Vec::new());
        for (index, listeners) in std::mem::take(&mut self.listeners).into_iter().enumerate() {
            let inputs = self.control.sender().clone();
            let admin = self.admin.as_ref().map(|admin| {
                let token = self.config.admin.token.clone();
                Ok::<_, io::Error>(AdminSetup {
                    listener: admin.socket.try_clone()?,
                    app: Arc::new(AdminApp::new(
                        admin_requests.clone(),
                        token,
                        self.control.stopping(),
                    )),
                    budget: admin_budget.clone(),
                })
            });
            let (event_loop, handle) = EventLoop::new(LoopSetup {
                index,
                registry: Arc::clone(&self.registry),
                listeners,
                admin: admin.transpose()?,
                config: LoopConfig {
                    limits: self.config.limits.clone(),
                    idle_grace: self.config.server.idle_grace,
                    access: access.as_ref().map(AccessLog::for_loop),
                },
                budget: budget.clone(),
                epoch: self.epoch,
                gauges: Arc::clone(&gauges[index]),
                // Control ends after the loops, so it is there to hear this.
                report: Box::new(move |event| drop(inputs.send(Input::Loop(index, event)))),
            })?;
            handles.push(handle);
            loops.push(event_loop);
        }
        Ok((handles, loops))
    }

    fn spawn_operator(
        &self,
        reloads: &Arc<Reloads>,
        budget: ConnectionBudget,
        possible: usize,
    ) -> io::Result<()> {
        let loops = self.registry.loops();
        let operator = Operator {
            registry: Arc::clone(&self.registry),
            control: self.control.sender().clone(),
            notices: Arc::clone(&self.notices),
            reloads: Arc::clone(reloads),
            service: Arc::clone(self.control.service_manager()),
            source: self.source.clone(),
            current: self.config.clone(),
            access: self.logging.as_ref().and_then(Logging::access),
            logging: self.logging.clone(),
            listening: self.listening.clone(),
            closing: Vec::new(),
            host: Host {
                bind: Box::new(move |address, beside| {
                    Ok(event_loop::bind_address(address, loops, beside)?)
                }),
                set_connections: Box::new(move |connections| {
                    budget.set_max(connections_max(connections, possible));
                }),
            },
        };
        let tasks = self.tasks.1.clone();
        let thread = thread::Builder::new().name("operator".into());
        thread.spawn(move || operator.run(&tasks)).map(drop)
    }

    fn spawn_admin(
        &self,
        loops: Vec<LoopHandle>,
        gauges: Vec<Arc<LoopGauges>>,
        reloads: Arc<Reloads>,
        requests: Receiver<(AdminRequest, Later)>,
    ) -> io::Result<()> {
        let admin = Admin {
            registry: Arc::clone(&self.registry),
            control: self.control.sender().clone(),
            tasks: self.tasks.0.clone(),
            loops,
            gauges,
            notices: Arc::clone(&self.notices),
            reloads,
            logging: self.logging.clone(),
            facts: Facts { started: self.epoch, config: self.source.clone() },
        };
        let thread = thread::Builder::new().name("admin".into());
        thread.spawn(move || admin.run(&requests)).map(drop)
    }
}

/// The admin's listening socket.
struct AdminSocket {
    socket: OwnedFd,
    /// As operators write it.
    address: String,
    /// Removed at the end.
    _file: Option<UnixSocketFile>,
}

impl AdminSocket {
    fn bind(listen: &AdminListen) -> Result<Self, BindError> {
        Ok(match listen {
            AdminListen::Unix(path) => {
                let (socket, file) = event_loop::bind_unix(path)?;
                Self { socket, address: format!("unix:{}", path.display()), _file: Some(file) }
            }
            AdminListen::Tcp(address) => {
                let (address, socket) = event_loop::bind_admin(*address)?;
                Self { socket, address: address.to_string(), _file: None }
            }
        })
    }
}

/// Connections to the admin listener; they do not take the place of others.
const ADMIN_CONNECTIONS_MAX: usize = 4096;

/// Starts a thread for each loop; all or none.
fn spawn_loops(
    loops: Vec<EventLoop>,
    handles: &[LoopHandle],
    inputs: &Sender<Input>,
) -> io::Result<()> {
    for (index, event_loop) in loops.into_iter().enumerate() {
        let inputs = inputs.clone();
        let thread = thread::Builder::new().name(format!("loop-{index}"));
        if let Err(error) = thread.spawn(move || run_loop(index, event_loop, &inputs)) {
            for handle in handles {
                handle.send(LoopCommand::CutAll)?;
            }
            return Err(error);
        }
    }
    Ok(())
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
    /// When an app serves the name, or the server has ended.
    pub fn add_app(&self, host: &str, app: impl App + 'static) -> Result<AppId, ChangeError> {
        let app = own_app(host, Arc::new(app), self.loops);
        ask(&self.inputs, |answer| Input::Put(app, PutMode::Add, answer))
            .map(|begun| begun.life.id())
    }

    /// Begins a new life of an app, from this one: new requests are for it, at once; those in
    /// flight finish on the old life. The ticket is the new life's name.
    ///
    /// # Errors
    /// When no app has this host, or the server has ended.
    pub fn replace_app(&self, host: &str, app: impl App + 'static) -> Result<AppId, ChangeError> {
        let app = own_app(host, Arc::new(app), self.loops);
        ask(&self.inputs, |answer| Input::Put(app, PutMode::Replace, answer))
            .map(|begun| begun.life.id())
    }

    /// Begins to remove an app, and returns: new requests get 503, those in flight finish, the
    /// app's deadline cuts what is left. The ticket tells the end.
    ///
    /// # Errors
    /// When there is no such app, or it is being removed already.
    pub fn remove_app(&self, host: &str) -> Result<DrainTicket, ChangeError> {
        ask(&self.inputs, |answer| Input::Remove(host.into(), None, answer))
    }

    /// Begins to drain an app that stays: new requests get 503 until it is resumed.
    ///
    /// # Errors
    /// When there is no such app, or it is being removed.
    pub fn drain_app(&self, host: &str) -> Result<DrainTicket, ChangeError> {
        ask(&self.inputs, |answer| Input::Drain(host.into(), None, answer))
    }

    /// Has a drained app serve again, as a new life. A drain that is not over is cancelled.
    ///
    /// # Errors
    /// When there is no such app, or it was not drained.
    pub fn resume_app(&self, host: &str) -> Result<AppId, ChangeError> {
        ask(&self.inputs, |answer| Input::Resume(host.into(), None, answer)).map(|life| life.id())
    }

    /// Reads the config file again, and changes what differs. It returns when the changes hold;
    /// old lives may drain still.
    ///
    /// # Errors
    /// When there is no file, or it is wrong; then nothing changed.
    pub fn reload(&self) -> Result<Reloaded, ReloadError> {
        let (sender, done) = crossbeam_channel::bounded(1);
        let tell = Box::new(move |result| drop(sender.send(result)));
        let ended = || ReloadError::Change(ChangeError::Ended);
        self.tasks.send(Task::Reload(tell)).map_err(|_| ended())?;
        done.recv().map_err(|_| ended())?
    }

    /// As [`ServerHandle::reload`], but returns at once; the log tells how it went.
    pub fn begin_reload(&self) {
        // A server that has ended needs no reload.
        drop(self.tasks.send(Task::Reload(Box::new(drop))));
    }

    /// Begins to stop the server, and returns; a second call cuts what is in flight. `reason` is
    /// for the log.
    pub fn stop(&self, reason: &str) {
        let (reason, patience) = (reason.to_owned(), Patience::CutIfRepeated);
        // A server that has ended needs no stop.
        drop(self.inputs.send(Input::Stop { reason, timeout: None, patience }));
    }
}

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

fn own_app(host: &str, app: Arc<dyn App>, loops: usize) -> NewApp<HostedApp> {
    let app = HostedApp::new(app, Origin::Embedder, loops);
    NewApp { host: host.to_ascii_lowercase(), aliases: Vec::new(), app }
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

/// As many connections as there are descriptors for, beside what is open now: an eighth stays free
/// for the files of apps and logs.
fn connections_possible(loops: usize) -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let descriptors =
        limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    // Each loop is going to open an epoll instance, twice, and the descriptors of its waker.
    let own = open + 4 * loops + descriptors / 8;
    descriptors.saturating_sub(own).max(1)
}

fn connections_max(configured: usize, possible: usize) -> usize {
    if possible < configured {
        event!(
            Info,
            "connections_limited",
            connections = possible as u64,
            configured = configured as u64,
        );
    }
    possible.min(configured)
}
