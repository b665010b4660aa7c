//! The listeners beside the public ones: that of operators, and that of probes.

use std::{io, net::SocketAddr, os::fd::OwnedFd, sync::Arc};

use crossbeam_channel::Sender;

use super::{
    ServerError,
    sockets::{AdminSocket, bound_address},
};
use crate::{
    app::{App, Later},
    config::AdminConfig,
    control::{AdminApp, AdminRequest, Control, HandedAdmin, HandedHealth, HealthApp, TakeOver},
    event_loop::{self, BindError, ConnectionBudget, SideSetup},
    message::Class,
};

/// Connections to the admin listener; they do not take the place of others.
const ADMIN_CONNECTIONS_MAX: usize = 4096;

/// Connections to the health listener, on a machine that has descriptors enough.
const HEALTH_CONNECTIONS_MAX: usize = 256;

/// The listeners that are on.
#[derive(Default)]
pub(super) struct Beside {
    pub(super) admin: Option<AdminSocket>,
    /// What a peer of the admin on TCP has to know.
    token: Option<String>,
    health: Option<HealthSocket>,
}

/// The listening socket of the health listener.
struct HealthSocket {
    configured: SocketAddr,
    /// Port 0 is the real one here.
    bound: SocketAddr,
    socket: Arc<OwnedFd>,
}

impl Beside {
    /// Takes the sockets of the process before, and binds the others that the config wants.
    pub(super) fn open(
        config: &AdminConfig,
        mut take_over: Option<&mut TakeOver>,
    ) -> Result<Self, ServerError> {
        let (mut admin, mut token) = (None, None);
        if config.enabled {
            token = config.read_token().map_err(ServerError::AdminToken)?;
            let socket = AdminSocket::open(config, take_over.as_deref_mut());
            admin = Some(socket.map_err(ServerError::Bind)?);
        }
        let health = config.health_listen.map(|address| HealthSocket::open(address, take_over));
        Ok(Self { admin, token, health: health.transpose().map_err(ServerError::Bind)? })
    }

    /// Makes what each loop needs to serve them.
    pub(super) fn setups(
        &self,
        admin_requests: Sender<(AdminRequest, Later)>,
        control: &Control,
        health_connections: usize,
    ) -> Setups {
        let mut setups = Setups(Vec::new());
        if let Some(admin) = &self.admin {
            let app = AdminApp::new(admin_requests, self.token.clone(), control.stopping());
            setups.add(Class::Admin, &admin.socket, ADMIN_CONNECTIONS_MAX, app);
        }
        if let Some(health) = &self.health {
            let app = HealthApp::new(control.stopping());
            setups.add(Class::Health, &health.socket, health_connections, app);
        }
        setups
    }

    /// How many connections the health listener may have, of so many descriptors: the public has
    /// the rest.
    pub(super) fn health_connections(&self, descriptors: usize) -> usize {
        let most = (descriptors / 8).clamp(1, HEALTH_CONNECTIONS_MAX);
        self.health.as_ref().map_or(0, |_| most)
    }

    /// Where probes are answered, as operators write it.
    pub(super) fn health_address(&self) -> Option<String> {
        self.health.as_ref().map(|health| health.bound.to_string())
    }

    /// From now on the files of sockets are this process's, also those that it did not make.
    pub(super) fn own_files(&self, config: &AdminConfig) {
        self.admin.iter().for_each(|admin| admin.own_file(config));
    }

    /// For the process after this one.
    pub(super) fn handed(
        &self,
        config: &AdminConfig,
    ) -> (Option<HandedAdmin>, Option<HandedHealth>) {
        let admin = self.admin.as_ref().map(|admin| admin.handed(&config.listen));
        let health = self.health.as_ref().map(|health| HandedHealth {
            configured: health.configured,
            bound: health.bound,
            socket: Arc::clone(&health.socket),
        });
        (admin, health)
    }
}

impl HealthSocket {
    fn open(configured: SocketAddr, take_over: Option<&mut TakeOver>) -> Result<Self, BindError> {
        let taken = take_over.and_then(|take_over| take_over.take_health(configured));
        let (bound, socket) = match taken {
            Some(socket) => (bound_address(&socket).unwrap_or(configured), socket),
            None => event_loop::bind_one(configured)?,
        };
        Ok(Self { configured, bound, socket: Arc::new(socket) })
    }
}

/// What loops are made with.
pub(super) struct Setups(Vec<Setup>);

/// What the loops share of a class.
struct Setup {
    class: Class,
    socket: Arc<OwnedFd>,
    app: Arc<dyn App>,
    budget: ConnectionBudget,
}

impl Setups {
    fn add(&mut self, class: Class, socket: &Arc<OwnedFd>, most: usize, app: impl App + 'static) {
        let (socket, app) = (Arc::clone(socket), Arc::new(app));
        self.0.push(Setup { class, socket, app, budget: ConnectionBudget::new(most, most) });
    }

    /// Those of one loop, which share their places with the others'.
    pub(super) fn of_loop(&self) -> io::Result<Vec<SideSetup>> {
        let setup = |setup: &Setup| {
            Ok(SideSetup {
                class: setup.class,
                listener: setup.socket.try_clone()?,
                app: Arc::clone(&setup.app),
                budget: setup.budget.clone(),
            })
        };
        self.0.iter().map(setup).collect()
    }
}
