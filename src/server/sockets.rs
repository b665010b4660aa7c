//! The listening sockets of a server: bound here, or taken from another process.

use std::{
    env, io,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use listenfd::ListenFd;

use crate::{
    config::{AdminConfig, AdminListen, ListenConfig},
    control::{
        HandedAdmin, Inherited, InheritedSockets, Listening, RenewedAdmin, ServiceManager,
        TakeOver, is_stored,
    },
    event_loop::{self, BindError, ListenerSet, UnixAccess, UnixSocketFile},
    logging::event,
};

/// Sockets for each loop, and for the operator, which changes addresses.
pub(super) struct PublicSockets {
    pub(super) of_loops: Vec<ListenerSet>,
    pub(super) listening: Vec<Listening>,
}

impl PublicSockets {
    /// Takes what is inherited, and binds the rest. Beside what another process serves nothing is
    /// listened on yet: if this process fails, clients that had come would be reset.
    pub(super) fn open(
        listen: &[ListenConfig],
        loops: usize,
        inherited: &mut Inherited,
    ) -> Result<Self, BindError> {
        let mut of_loops: Vec<ListenerSet> = (0..loops).map(|_| Vec::new()).collect();
        let mut listening = Vec::new();
        for entry in listen {
            let sockets = match inherited.take(entry.address) {
                Some(InheritedSockets { bound, is_kept, sockets }) => {
                    event_loop::adopt(bound, sockets, is_kept, loops)?
                }
                None if inherited.is_empty() => {
                    event_loop::bind_address(entry.address, loops, false)?
                }
                None => {
                    let beside = inherited.has_port(entry.address.port());
                    event_loop::bind_quietly(entry.address, loops, beside)?
                }
            };
            listening.push(Listening::new(entry, &sockets));
            for (index, socket) in sockets.into_iter().enumerate() {
                of_loops[index % loops].push(socket);
            }
        }
        Ok(Self { of_loops, listening })
    }
}

/// What systemd passes to this process (sd_listen_fds(3)): what it has bound itself, by a socket
/// unit, and what a process before this one has bound and given it to keep.
pub(super) fn activated() -> io::Result<Inherited> {
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let (mut given, mut inherited) = (ListenFd::from_env(), Inherited::default());
    for index in 0..given.len() {
        let is_kept = !is_stored(names.next().unwrap_or_default());
        let Some(socket) = given.take_tcp_listener(index)? else { continue };
        let address = socket.local_addr()?;
        let sockets = vec![socket.into()];
        inherited.add(address, InheritedSockets { bound: address, is_kept, sockets });
    }
    Ok(inherited)
}

/// Closes and logs inherited sockets that the config doesn't name, so that no client waits there.
pub(super) fn drop_unused(inherited: &mut Inherited) {
    for address in inherited.drop_rest() {
        event!(Warn, "socket_not_used", address:% = address);
        ServiceManager::from_env().forget(address);
    }
}

/// The admin's listening socket.
pub(super) struct AdminSocket {
    /// Removed at the end, before the socket closes: from then on its inode may be reused.
    file: FileSlot,
    pub(super) socket: Arc<OwnedFd>,
    /// As operators write it.
    pub(super) address: String,
}

impl AdminSocket {
    /// Takes the socket of the process before, or binds one.
    pub(super) fn open(
        admin: &AdminConfig,
        take_over: Option<&mut TakeOver>,
    ) -> Result<Self, BindError> {
        let listen = &admin.listen;
        let Some(take_over) = take_over else { return Self::bind(admin) };
        let configured = configured(listen);
        match listen {
            AdminListen::Unix(path) => {
                // No client finds the socket by another file: a new one is made.
                let adopt = |id: Option<_>| UnixSocketFile::adopt(path, id?);
                match take_over.take_admin(&configured, adopt) {
                    Some((socket, file)) => {
                        let socket = Arc::new(socket);
                        Ok(Self { file: slot(Some(file)), socket, address: configured })
                    }
                    None => Self::bind(admin),
                }
            }
            AdminListen::Tcp(address) => match take_over.take_admin(&configured, |_| Some(())) {
                Some((socket, ())) => {
                    let address = bound_address(&socket).unwrap_or(*address).to_string();
                    Ok(Self { file: slot(None), socket: Arc::new(socket), address })
                }
                None => Self::bind(admin),
            },
        }
    }

    fn bind(admin: &AdminConfig) -> Result<Self, BindError> {
        Ok(match &admin.listen {
            AdminListen::Unix(path) => {
                let (socket, file) = event_loop::bind_unix(path, &access(admin))?;
                let address = configured(&admin.listen);
                Self { socket: Arc::new(socket), address, file: slot(Some(file)) }
            }
            AdminListen::Tcp(address) => {
                let (address, socket): (SocketAddr, _) = event_loop::bind_one(*address)?;
                Self { socket: Arc::new(socket), address: address.to_string(), file: slot(None) }
            }
        })
    }

    /// Binds the socket again if its file has gone.
    pub(super) fn renew(
        &self,
        admin: AdminConfig,
    ) -> impl Fn() -> io::Result<Option<RenewedAdmin>> + Send + use<> {
        let slot = Arc::clone(&self.file);
        move || {
            let AdminListen::Unix(path) = &admin.listen else { return Ok(None) };
            let mut file = lock(&slot);
            if file.as_ref().is_none_or(|file| !file.is_gone()) {
                return Ok(None);
            }
            let (socket, new) = event_loop::bind_unix(path, &access(&admin))?;
            let id = new.id();
            if let Some(file) = file.as_mut() {
                file.stand_for(&new);
            }
            Ok(Some((Arc::new(socket), id)))
        }
    }

    /// For the process after this one.
    pub(super) fn handed(&self, listen: &AdminListen) -> HandedAdmin {
        let file = lock(&self.file);
        let left: Option<Arc<AtomicBool>> = file.as_ref().map(UnixSocketFile::left);
        let (socket, file) = (Arc::clone(&self.socket), file.as_ref().map(UnixSocketFile::id));
        HandedAdmin { configured: configured(listen), socket, file, left }
    }

    /// From now on its file is this process's, also if another made it, and as this config says.
    pub(super) fn own_file(&self, admin: &AdminConfig) {
        if let Some(file) = &*lock(&self.file) {
            file.left().store(false, Ordering::Release);
            if let Err(error) = file.give(&access(admin)) {
                event!(Error, "admin_socket_access_not_set", error:% = error);
            }
        }
    }
}

impl Drop for AdminSocket {
    /// The operator has the slot, too, and is not waited for.
    fn drop(&mut self) {
        let file = lock(&self.file).take();
        drop(file);
    }
}

/// Where a TCP socket is bound.
pub(super) fn bound_address(socket: &OwnedFd) -> Option<SocketAddr> {
    SocketAddr::try_from(rustix::net::getsockname(socket).ok()?).ok()
}

type FileSlot = Arc<Mutex<Option<UnixSocketFile>>>;

fn slot(file: Option<UnixSocketFile>) -> FileSlot {
    Arc::new(Mutex::new(file))
}

fn lock(slot: &FileSlot) -> MutexGuard<'_, Option<UnixSocketFile>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

fn access(admin: &AdminConfig) -> UnixAccess {
    UnixAccess { mode: admin.mode, group: admin.group.clone() }
}

/// As the config writes it.
fn configured(listen: &AdminListen) -> String {
    match listen {
        AdminListen::Unix(path) => format!("unix:{}", path.display()),
        AdminListen::Tcp(address) => address.to_string(),
    }
}
