//! The server: binds, loads, wires control and the loops together, and runs them.

mod apps;
mod beside;
mod descriptors;
mod error;
mod handle;
mod loop_threads;
mod privileges;
mod sockets;

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Instant, SystemTime},
};

use crossbeam_channel::Receiver;

pub(crate) use crate::control::StopSignals;
pub use crate::control::{
    ChangeError, DrainTicket, EarlySignals, Emptied, ReloadError, ReloadOptions, Reloaded,
    SignalRequest, Verdict, forward_signals, unblock_all,
};
pub use crate::event_loop::BindError;
use crate::{
    app::App,
    config::Config,
    control::{
        Admin, Board, Certificates, Control, DeployParts, Deploys, EarlyCertificates, Ended, Facts,
        Inherited, Input, Listening, LoopReport, LoopThreads, Notices, Operator, OperatorHost,
        Predecessor, PutMode, Reloads, ServiceManager, TakeOver, TaskReceiver, TaskSender,
        Upgrader, certificate_watch, tasks, tls_port,
    },
    event_loop::{self, ConnectionBudget, EventLoop, ListenerSet, LoopSetup},
    hosted::Apps,
    logging::{AccessLog, Logging, event},
    message::{LoopConfig, LoopHandle},
    metrics::LoopGauges,
    registry::{AppId, AppRegistry},
};
pub use error::ServerError;
pub use handle::ServerHandle;
pub(crate) use privileges::{Account, Privileges};

use beside::{Beside, Setups};
use descriptors::{
    connections_max, connections_possible, descriptor_limit, raise_descriptor_limit,
};
use handle::own_app;
use loop_threads::spawn_loops;
use sockets::PublicSockets;

/// A server that is bound and can be given apps. [`HttpServer::run`] serves them.
pub struct HttpServer {
    config: Config,
    /// The file that a reload reads.
    source: Option<PathBuf>,
    registry: Arc<Apps>,
    control: Control,
    /// Where control's inputs arrive.
    inputs: Receiver<Input>,
    notices: Arc<Notices>,
    tasks: (TaskSender, TaskReceiver),
    listeners: Vec<ListenerSet>,
    addresses: Vec<SocketAddr>,
    listening: Vec<Listening>,
    beside: Beside,
    certificates: Certificates,
    /// The files of certificates, until the apps are loaded.
    early: Option<EarlyCertificates>,
    logging: Option<Logging>,
    epoch: Instant,
    /// What the process before this one hands over, until this one serves.
    take_over: Option<TakeOver>,
    predecessor: Option<Arc<Predecessor>>,
    is_embedded: bool,
}

impl HttpServer {
    /// Binds the config's addresses. Nothing is accepted before [`HttpServer::run`], but from here
    /// on the kernel queues connections. The config's `[admin]` is left to
    /// [`HttpServer::listen_for_admin`], its apps to [`HttpServer::load_apps`].
    ///
    /// # Errors
    /// The address that cannot be bound.
    pub fn bind(config: &Config) -> Result<Self, ServerError> {
        Self::open(config, &mut Inherited::default())
    }

    /// As [`HttpServer::bind`], with the sockets that systemd or the process before this one has
    /// bound for it, as far as there are any.
    ///
    /// # Errors
    /// The address that cannot be bound.
    pub(crate) fn take_over(
        config: &Config,
        mut take_over: Option<TakeOver>,
    ) -> Result<Self, ServerError> {
        let Some(before) = &mut take_over else {
            let mut inherited = sockets::activated().map_err(ServerError::Setup)?;
            let mut server = Self::open(config, &mut inherited)?;
            server.is_embedded = false;
            sockets::drop_unused(&mut inherited);
            return Ok(server);
        };
        let mut server = Self::open(config, &mut before.inherited)?;
        server.is_embedded = false;
        server.registry.skip_ids(before.next_app_id());
        server.certificates.take_tickets(before.ticket_keys());
        server.certificates.take_handed(before.certificates());
        server.notices.hold();
        server.predecessor = Some(Arc::new(before.predecessor(config.server.drain_timeout)));
        server.control.predecessor = server.predecessor.clone();
        server.take_over = take_over;
        Ok(server)
    }

    fn open(config: &Config, inherited: &mut Inherited) -> Result<Self, ServerError> {
        let loops = match config.server.threads {
            0 => thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let sockets = PublicSockets::open(&config.server.listen, loops, inherited);
        let PublicSockets { of_loops, listening } = sockets.map_err(ServerError::Bind)?;
        let addresses = listening.iter().map(|listening| listening.bound).collect();
        let registry = Arc::new(AppRegistry::new(loops, config.server.default_app.clone()));
        let (notices, epoch) = (Arc::<Notices>::default(), Instant::now());
        let certificates = Certificates::new(SystemTime::now()).map_err(ServerError::Setup)?;
        certificates.live().set_port(tls_port(&listening));
        let tasks = tasks();
        let (control, inputs) = Control::new(
            Arc::clone(&registry),
            Arc::clone(&notices),
            epoch,
            &config.server,
            Arc::clone(&tasks.0.desk),
        );
        Ok(Self {
            config: config.clone(),
            source: None,
            registry,
            control,
            inputs,
            notices,
            tasks,
            listeners: of_loops,
            addresses,
            listening,
            take_over: None,
            predecessor: None,
            is_embedded: true,
            beside: Beside::default(),
            certificates,
            early: None,
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
        self.control.watch_lines_of(logging.clone());
        let notices = Arc::clone(&self.notices);
        logging.tap(Box::new(move |level, name, fields| {
            notices.publish(level, name, || fields.into());
        }));
        self.logging = Some(logging);
    }

    /// Has reloads read this file, which the config came from.
    pub fn reload_from(&mut self, path: PathBuf) {
        self.source = Some(path);
    }

    /// Reports to the service manager when the server serves, reloads and stops, and how it is, if
    /// the environment names one (sd_notify(3)). If it cannot be reached, that is logged.
    pub fn notify_service_manager(&mut self) {
        self.control.notify(ServiceManager::from_env());
    }

    /// Opens the listener of the admin API and that of health probes, as far as the config wants
    /// them.
    ///
    /// # Errors
    /// When the address is in use or the socket cannot be made there.
    pub fn listen_for_admin(&mut self) -> Result<(), ServerError> {
        self.beside = Beside::open(&self.config.admin, self.take_over.as_mut())?;
        Ok(())
    }

    /// Adds an app of the embedder's own under a host name, lower case, or `*.` and a name.
    ///
    /// # Errors
    /// [`ChangeError`] when another app serves the name.
    pub fn add_app(&mut self, host: &str, app: impl App + 'static) -> Result<AppId, ChangeError> {
        let app = own_app(host, Arc::new(app), self.registry.loops());
        self.control.put_app(app, PutMode::Add, Instant::now()).map(|begun| begun.life.id())
    }

    /// Removes an app, draining it.
    ///
    /// # Errors
    /// When there is no such app, or it is being removed already.
    pub fn remove_app(&mut self, host: &str) -> Result<DrainTicket, ChangeError> {
        self.control.remove_app(host, None, Instant::now())
    }

    /// A handle by which other threads reach the server while it runs.
    pub fn handle(&self) -> ServerHandle {
        ServerHandle {
            inputs: self.control.sender().clone(),
            tasks: self.tasks.0.clone(),
            loops: self.registry.loops(),
            predecessor: self.predecessor.clone(),
            relay: self.control.relay().clone(),
        }
    }

    /// Serves until a stop is over. The calling thread becomes the control thread.
    ///
    /// # Errors
    /// When a loop cannot be set up, or failed while it ran.
    pub fn run(mut self) -> Result<Verdict, ServerError> {
        raise_descriptor_limit();
        let descriptors = descriptor_limit();
        let probes = self.beside.health_connections(descriptors);
        let possible = connections_possible(descriptors, self.registry.loops(), probes);
        let budget = ConnectionBudget::new(
            connections_max(self.config.limits.connections, possible),
            possible,
        );
        budget.set_max_per_ip(self.config.limits.connections_per_ip);
        let gauges: Vec<Arc<LoopGauges>> =
            (0..self.registry.loops()).map(|_| Arc::default()).collect();
        let (admin_requests, requests) = crossbeam_channel::unbounded();
        let beside = self.beside.setups(admin_requests, &self.control, probes);
        let (handles, loops) =
            self.make_loops(&budget, &gauges, &beside).map_err(ServerError::Setup)?;
        drop(beside);
        let reloads = Arc::<Reloads>::default();
        let deploys = Arc::<Board>::default();
        let seen = (&reloads, &deploys);
        let admin = Arc::new(self.admin_thread(handles.clone(), gauges.clone(), seen));
        let upgrader = self.upgrader(&admin);
        let (starting, successor) =
            (Arc::clone(&upgrader.starting), Arc::clone(&upgrader.successor));
        self.spawn_operator(seen, (budget, possible), upgrader).map_err(ServerError::Setup)?;
        let thread = thread::Builder::new().name("admin".into());
        let asked = Arc::clone(&admin);
        thread.spawn(move || asked.run(&requests)).map_err(ServerError::Setup)?;
        if let Some(before) = &mut self.take_over {
            let next_app_id = self.registry.next_id();
            before.say_ready(handles.len(), next_app_id).map_err(ServerError::TakeOver)?;
        }
        loops.iter().try_for_each(EventLoop::begin_listening).map_err(ServerError::Setup)?;
        let follows = self.take_over.is_some();
        if let (Some(take_over), Some(before)) = (self.take_over.take(), &self.predecessor) {
            let control = self.control.sender().clone();
            take_over.serve(before, control, handles.clone()).map_err(ServerError::TakeOver)?;
        }
        spawn_loops(loops, &handles, self.control.sender()).map_err(ServerError::Setup)?;
        let listen: Vec<_> = self.addresses.iter().map(ToString::to_string).collect();
        event!(
            Info,
            "multi_app_ready",
            app_count = self.registry.entries().len() as u64,
            listen = &*listen.join(","),
            loops = handles.len() as u64,
            admin = self.beside.admin.as_ref().map(|admin| admin.address.as_str()),
            health = self.beside.health_address().as_deref(),
        );
        if follows {
            self.notices.release();
            self.beside.own_files(&self.config.admin);
        }
        let loops = LoopThreads { handles, gauges };
        let ended = self.control.run(&self.inputs, loops, &self.listening);
        starting.end_for_good();
        drop(admin);
        if let Some(before) = &self.predecessor {
            before.wait_gone();
        }
        match ended {
            Ended::Stopped(verdict, totals) => {
                let before = self.predecessor.as_ref().map(|before| before.totals());
                successor.part(verdict, totals + before.unwrap_or_default());
                Ok(verdict)
            }
            Ended::LoopFailed => Err(ServerError::LoopFailed),
        }
        // The threads are not joined: a loop that is stuck in an app must not hold up the exit.
    }

    fn make_loops(
        &mut self,
        budget: &ConnectionBudget,
        gauges: &[Arc<LoopGauges>],
        beside: &Setups,
    ) -> io::Result<(Vec<LoopHandle>, Vec<EventLoop>)> {
        let access = self.logging.as_ref().and_then(Logging::access);
        let (mut handles, mut loops) = (Vec::new(), Vec::new());
        for (index, listeners) in std::mem::take(&mut self.listeners).into_iter().enumerate() {
            let inputs = self.control.sender().clone();
            let (event_loop, handle) = EventLoop::new(LoopSetup {
                index,
                registry: Arc::clone(&self.registry),
                certificates: Arc::clone(self.certificates.live()),
                listeners,
                beside: beside.of_loop()?,
                config: LoopConfig {
                    limits: self.config.limits.clone(),
                    idle_grace: self.config.server.idle_grace,
                    access: access.as_ref().map(AccessLog::for_loop),
                },
                budget: budget.clone(),
                epoch: self.epoch,
                gauges: Arc::clone(&gauges[index]),
                // Control ends after the loops, so it is there to hear this.
                report: Box::new(move |event| {
                    drop(inputs.send(Input::Loop(LoopReport { index, event })));
                }),
            })?;
            handles.push(handle);
            loops.push(event_loop);
        }
        Ok((handles, loops))
    }

    fn spawn_operator(
        &self,
        (reloads, deploys): (&Arc<Reloads>, &Arc<Board>),
        (budget, possible): (ConnectionBudget, usize),
        upgrader: Upgrader,
    ) -> io::Result<()> {
        let loops = self.registry.loops();
        let (watch, watcher) = certificate_watch();
        let operator = Operator {
            registry: Arc::clone(&self.registry),
            control: self.control.sender().clone(),
            notices: Arc::clone(&self.notices),
            reloads: Arc::clone(reloads),
            service: Arc::clone(self.control.service_manager()),
            source: self.source.clone(),
            text: None,
            current: self.config.clone(),
            access: self.logging.as_ref().and_then(Logging::access),
            logging: self.logging.clone(),
            listening: self.listening.clone(),
            closing: Vec::new(),
            host: OperatorHost {
                bind: Box::new(move |address, beside| {
                    Ok(event_loop::bind_address(address, loops, beside)?)
                }),
                try_bind: Box::new(|address| {
                    Ok(event_loop::bind_quietly(address, 1, false).map(drop)?)
                }),
                renew_admin: match &self.beside.admin {
                    Some(admin) => Box::new(admin.renew(self.config.admin.clone())),
                    None => Box::new(|| Ok(None)),
                },
                set_connections: Box::new(move |limits| {
                    budget.set_max(connections_max(limits.connections, possible));
                    budget.set_max_per_ip(limits.connections_per_ip);
                }),
            },
            upgrader,
            certificates: self.certificates.clone(),
            watch,
            desk: Arc::clone(&self.tasks.0.desk),
            deploys: Arc::clone(deploys),
        };
        let tasks = self.tasks.1.clone();
        let thread = thread::Builder::new().name("operator".into());
        thread.spawn(move || operator.run(&tasks))?;
        let thread = thread::Builder::new().name("certificates".into());
        thread.spawn(move || watcher.run()).map(drop)
    }

    fn upgrader(&self, admin: &Arc<Admin>) -> Upgrader {
        let handed = self.beside.handed(&self.config.admin);
        // Weak, for the operator would keep it for ever.
        let admin = Arc::downgrade(admin);
        let generation = Arc::new(move || admin.upgrade()?.generation());
        let relay = self.control.relay().clone();
        Upgrader::new(self.is_embedded, handed, self.predecessor.clone(), relay, generation)
    }

    fn admin_thread(
        &self,
        loops: Vec<LoopHandle>,
        gauges: Vec<Arc<LoopGauges>>,
        (reloads, deploys): (&Arc<Reloads>, &Arc<Board>),
    ) -> Admin {
        let deploys = Arc::new(Deploys::new(DeployParts {
            registry: Arc::clone(&self.registry),
            tasks: self.tasks.0.clone(),
            notices: Arc::clone(&self.notices),
            board: Arc::clone(deploys),
            stopping: self.control.stopping(),
            epoch: self.epoch,
        }));
        Admin {
            registry: Arc::clone(&self.registry),
            control: self.control.sender().clone(),
            tasks: self.tasks.0.clone(),
            loops,
            gauges,
            notices: Arc::clone(&self.notices),
            reloads: Arc::clone(reloads),
            certificates: Arc::clone(self.certificates.list()),
            deploys,
            logging: self.logging.clone(),
            facts: Facts { started: self.epoch, config: self.source.clone() },
            predecessor: self.predecessor.clone(),
        }
    }
}
