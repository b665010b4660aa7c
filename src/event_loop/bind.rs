//! Makes the listening sockets that `listener` serves.
//!
//! Each loop has its own socket for a public address (SO_REUSEPORT): mio can't ask for exclusive
//! wake-ups, so one shared socket would wake every loop for each connection. The admin has one
//! socket for all loops instead, and each loop has a dup: a loop that is stuck in an app must not
//! hold connections that the kernel assigned to it.
//!
//! A unix socket's file is created for its owner alone, gets its group and mode before a client can
//! connect, and is removed only by the server that created it.

use std::{
    collections::HashSet,
    fmt, fs, io,
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use rustix::{
    fs::{AtFlags, Gid, Mode, OFlags},
    io::Errno,
};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use super::gate;
use crate::{
    logging::event,
    message::{ListenGroup, LiveListenOptions, PublicSocket},
};

/// The accept queue's length; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// A unix socket's mode at first: only its owner may connect.
const UNIX_MODE: u32 = 0o600;

/// How long removing a socket's file may take.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes of `sun_path` (unix(7)), without the final NUL.
const UNIX_PATH_BYTES_MAX: usize = 107;

/// One loop's sockets, or one address's sockets, one per loop.
pub(crate) type ListenerSet = Vec<PublicSocket>;

/// Binds one address once per loop. The kernel chooses port 0 for the first loop, and the others
/// share it; the returned addresses are the real ones. No PROXY header is expected until that is
/// set. `beside`: the process already has sockets on the port.
///
/// # Errors
/// The address that cannot be bound, and why.
pub(crate) fn bind_address(
    address: SocketAddr,
    loops: usize,
    beside: bool,
) -> Result<ListenerSet, BindError> {
    let sockets = bind_quietly(address, loops, beside)?;
    let listening = begin_listening(&sockets);
    listening.map_err(|source| BindError { place: address.to_string(), source })?;
    if beside {
        sockets.iter().for_each(|socket| gate::spread(&socket.socket));
    }
    Ok(sockets)
}

/// Like [`bind_address`], but leaves the listening to [`begin_listening`].
///
/// # Errors
/// The address that cannot be bound, and why.
pub(crate) fn bind_quietly(
    address: SocketAddr,
    loops: usize,
    beside: bool,
) -> Result<ListenerSet, BindError> {
    let bind_all = || {
        if !beside {
            // Another program's SO_REUSEPORT socket would take a share of our connections.
            drop(tcp_socket(address, false)?);
        }
        let mut bound = address;
        let mut sockets = Vec::new();
        for _ in 0..loops {
            let socket = TcpListener::from(tcp_socket(bound, true)?);
            bound = socket.local_addr()?;
            sockets.push(socket.into());
        }
        public_sockets(bound, sockets, false, false)
    };
    bind_all().map_err(|source| BindError { place: address.to_string(), source })
}

/// Serves an address through sockets that another process has bound. It uses all of them, because
/// closing one would reset the connections queued on it. If there are fewer than one per loop, more
/// are bound for [`begin_listening`]; where that fails, or the service manager keeps the sockets
/// (`is_kept`), loops share one.
///
/// # Errors
/// fcntl(2)'s and dup(2)'s, for the address.
pub(crate) fn adopt(
    address: SocketAddr,
    mut sockets: Vec<OwnedFd>,
    is_kept: bool,
    loops: usize,
) -> Result<ListenerSet, BindError> {
    let mut adopt_all = || {
        let mut was_gated = false;
        for socket in &sockets {
            SockRef::from(socket).set_nonblocking(true)?;
            if !is_kept {
                was_gated |= gate::is_deaf(socket);
                gate::reopen(socket, address.is_ipv6())?;
            }
        }
        while sockets.len() < loops {
            let own = || tcp_socket(address, true).map(OwnedFd::from).ok();
            let own = if is_kept { None } else { own() };
            sockets.push(own.map_or_else(|| sockets[0].try_clone(), Ok)?);
        }
        public_sockets(address, std::mem::take(&mut sockets), is_kept, was_gated)
    };
    adopt_all().map_err(|source| BindError { place: address.to_string(), source })
}

/// Starts listening on sockets that are only bound. Beside another process's sockets, each gets its
/// share of the connections from now on, and closing it would reset them.
///
/// # Errors
/// listen(2)'s.
pub(crate) fn begin_listening(sockets: &ListenerSet) -> io::Result<()> {
    for PublicSocket { socket, .. } in sockets {
        if !rustix::net::sockopt::socket_acceptconn(socket)? {
            start_listening(socket)?;
        }
    }
    Ok(())
}

fn public_sockets(
    address: SocketAddr,
    sockets: Vec<OwnedFd>,
    is_kept: bool,
    was_gated: bool,
) -> io::Result<ListenerSet> {
    let group = Arc::new(ListenGroup { was_gated, ..group_of(&sockets)? });
    let options = Arc::<LiveListenOptions>::default();
    let socket = |socket| {
        let (group, options) = (Arc::clone(&group), Arc::clone(&options));
        PublicSocket { address, socket: Arc::new(socket), is_kept, group, options }
    };
    Ok(sockets.into_iter().map(socket).collect())
}

/// Dups count once.
fn group_of(sockets: &[OwnedFd]) -> io::Result<ListenGroup> {
    let inodes = sockets.iter().map(|socket| Ok(rustix::fs::fstat(socket)?.st_ino));
    let distinct = inodes.collect::<io::Result<HashSet<_>>>()?;
    Ok(ListenGroup { size: distinct.len() as u32, ..ListenGroup::default() })
}

/// Binds a TCP address that isn't public: one socket, and each loop takes a dup. The returned
/// address is the real one.
///
/// # Errors
/// As [`bind_address`].
pub(crate) fn bind_one(address: SocketAddr) -> Result<(SocketAddr, OwnedFd), BindError> {
    let bind = || {
        let listener = TcpListener::from(listen(tcp_socket(address, false)?)?);
        Ok((listener.local_addr()?, listener.into()))
    };
    bind().map_err(|source| BindError { place: address.to_string(), source })
}

/// Binds a unix socket, and each loop takes a dup. Replaces the file of a dead server, but neither
/// a live server's socket nor a file that isn't a socket.
///
/// # Errors
/// The path that cannot be bound, and why.
pub(crate) fn bind_unix(
    path: &Path,
    access: &UnixAccess,
) -> Result<(OwnedFd, UnixSocketFile), BindError> {
    listen_unix(path, access).map_err(|source| BindError {
        place: format!("unix:{}", path.display()),
        source: explain(source),
    })
}

/// An address that can't be listened on.
#[derive(Debug)]
pub struct BindError {
    place: String,
    source: io::Error,
}

impl BindError {
    /// The address, or `unix:` and the path.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Why, by its kind.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot listen on {}: {}", self.place, self.source)
    }
}

impl std::error::Error for BindError {}

impl From<BindError> for io::Error {
    fn from(error: BindError) -> Self {
        Self::new(error.source.kind(), error.to_string())
    }
}

/// Who may connect to a unix socket.
#[derive(Clone, Debug)]
pub(crate) struct UnixAccess {
    pub(crate) mode: u32,
    /// The group's name; `None`: the server's own group.
    pub(crate) group: Option<String>,
}

impl Default for UnixAccess {
    fn default() -> Self {
        Self { mode: UNIX_MODE, group: None }
    }
}

/// A unix socket's file. Dropping this removes the file, if it is still this socket's.
#[derive(Debug)]
pub(crate) struct UnixSocketFile {
    path: PathBuf,
    /// Device and inode.
    id: (u64, u64),
    /// It belongs to another process now.
    left: Arc<AtomicBool>,
}

impl UnixSocketFile {
    /// The file of a socket that another process has bound, left to that process at first. `None`
    /// if the path has another file or none: no client finds the socket there.
    pub(crate) fn adopt(path: &Path, id: (u64, u64)) -> Option<Self> {
        let file = Self::new(path).ok().filter(|file| file.id == id)?;
        file.left.store(true, Ordering::Release);
        Some(file)
    }

    /// Device and inode. No other file has them while the socket is open.
    pub(crate) fn id(&self) -> (u64, u64) {
        self.id
    }

    /// Whether the file is missing although it belongs to this process.
    pub(crate) fn is_gone(&self) -> bool {
        let gone =
            || file_id(&self.path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        !self.left.load(Ordering::Acquire) && gone()
    }

    /// Tracks another file instead, which is at its path now.
    pub(crate) fn stand_for(&mut self, other: &Self) {
        self.id = other.id;
        other.left.store(true, Ordering::Release);
    }

    /// Sets group and mode, through a descriptor: another file may be at the path by now.
    ///
    /// # Errors
    /// When there is no such group, the server's user is not in it, or the file is gone.
    pub(crate) fn give(&self, access: &UnixAccess) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(&self.path, flags, Mode::empty())?;
        let found = rustix::fs::fstat(&file)?;
        if (found.st_dev, found.st_ino) != self.id {
            return Err(io::Error::other("another file is at its path"));
        }
        if let Some(name) = &access.group {
            let group = nix::unistd::Group::from_name(name)?;
            let group = group.ok_or_else(|| io::Error::other(format!("no group {name}")))?;
            let group = Gid::from_raw(group.gid.as_raw());
            rustix::fs::chownat(&file, "", None, Some(group), AtFlags::EMPTY_PATH)?;
        }
        // chmod through an O_PATH descriptor works only by its name in /proc.
        let name = format!("/proc/self/fd/{}", file.as_raw_fd());
        fs::set_permissions(name, fs::Permissions::from_mode(access.mode))
    }

    /// The flag that leaves the file to another process, or takes it back.
    pub(crate) fn left(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.left)
    }

    /// The file that bind(2) has just created.
    fn new(path: &Path) -> io::Result<Self> {
        // Absolute, because the working directory may change before the drop.
        let path = std::path::absolute(path)?;
        let id = file_id(&path)?;
        Ok(Self { path, id, left: Arc::default() })
    }
}

impl Drop for UnixSocketFile {
    fn drop(&mut self) {
        if self.left.load(Ordering::Acquire) {
            return;
        }
        let (path, id) = (self.path.clone(), self.id);
        let (done, is_done) = mpsc::channel();
        // On its own thread: the process must not wait for a file system that doesn't respond.
        let remove = move || drop(done.send(remove_own(&path, id)));
        let thread = thread::Builder::new().name("remove-socket".into()).spawn(remove);
        let removed = thread.and_then(|_| {
            is_done
                .recv_timeout(REMOVE_TIMEOUT)
                .unwrap_or_else(|error| Err(io::Error::other(error)))
        });
        if let Err(error) = removed {
            let path = self.path.display();
            event!(Warn, "socket_file_left", path:% = path, error:% = error);
        }
    }
}

/// Removes a socket's file, unless a successor has replaced it.
fn remove_own(path: &Path, id: (u64, u64)) -> io::Result<()> {
    if file_id(path).is_ok_and(|found| found == id) { fs::remove_file(path) } else { Ok(()) }
}

/// Device and inode of a socket's file.
fn file_id(path: &Path) -> io::Result<(u64, u64)> {
    let file = fs::symlink_metadata(path)?;
    if !file.file_type().is_socket() {
        return Err(Errno::NOTSOCK.into());
    }
    Ok((file.dev(), file.ino()))
}

fn tcp_socket(address: SocketAddr, reuse_port: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    if address.is_ipv6() {
        // 0.0.0.0 and [::] are two addresses, and both can be listed.
        socket.set_only_v6(true)?;
    }
    // Accepted sockets inherit it, which saves a system call for each.
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn listen(socket: Socket) -> io::Result<Socket> {
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// One more socket for an address, bound but not listening.
///
/// # Errors
/// socket(2)'s and bind(2)'s.
pub(super) fn bound_socket(address: SocketAddr) -> io::Result<OwnedFd> {
    tcp_socket(address, true).map(OwnedFd::from)
}

/// Starts listening.
///
/// # Errors
/// listen(2)'s.
fn start_listening(socket: &OwnedFd) -> io::Result<()> {
    Ok(rustix::net::listen(socket, BACKLOG)?)
}

fn listen_unix(path: &Path, access: &UnixAccess) -> io::Result<(OwnedFd, UnixSocketFile)> {
    if path.as_os_str().len() > UNIX_PATH_BYTES_MAX {
        return Err(Errno::NAMETOOLONG.into());
    }
    let address = SockAddr::unix(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    // Linux gives the file the socket's own mode, although unix(7) doesn't say so.
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(UNIX_MODE))?;
    if let Err(error) = socket.bind(&address) {
        if error.kind() != io::ErrorKind::AddrInUse {
            return Err(error);
        }
        remove_stale(path, &address)?;
        socket.bind(&address)?;
    }
    let file = UnixSocketFile::new(path)?;
    // Before it listens, so that no client connects that the mode excludes.
    file.give(access)?;
    Ok((listen(socket)?.into(), file))
}

/// Removes a socket's file if no process listens on it.
fn remove_stale(path: &Path, address: &SockAddr) -> io::Result<()> {
    let in_use = |why| Err(io::Error::new(io::ErrorKind::AddrInUse, why));
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return in_use("a file that is not a socket is there");
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    probe.set_nonblocking(true)?;
    match probe.connect(address) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        // The backlog is full.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            in_use("another server is listening on it")
        }
        Err(error) => Err(error),
        Ok(()) => in_use("another server is listening on it"),
    }
}

/// Replaces the system's message where it doesn't say enough.
fn explain(error: io::Error) -> io::Error {
    let why = match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT) => "no such directory",
        Some(Errno::NOTDIR) => "not a directory",
        Some(Errno::ACCESS | Errno::PERM) => "no permission",
        Some(Errno::NAMETOOLONG) => "the path is longer than the 107 bytes of a socket's address",
        Some(Errno::ROFS) => "the file system is read-only",
        _ => return error,
    };
    io::Error::new(error.kind(), why)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn refusal(path: &Path) -> String {
        bind_unix(path, &UnixAccess::default()).map(drop).expect_err("refused").to_string()
    }

    #[test]
    fn a_unix_socket_belongs_to_its_owner_and_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let (listener, file) = bind_unix(&path, &UnixAccess::default()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, UNIX_MODE);
        UnixStream::connect(&path).expect("it listens");
        drop(listener);
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_servers_file_is_replaced_and_a_live_one_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        drop(UnixListener::bind(&path).unwrap());
        let (_listener, _file) =
            bind_unix(&path, &UnixAccess::default()).expect("no server listens on the old file");
        assert!(refusal(&path).ends_with("admin.sock: another server is listening on it"));
        UnixStream::connect(&path).expect("the live server's file stays");
    }

    #[test]
    fn a_file_that_is_not_a_socket_is_never_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        fs::write(&path, "precious").unwrap();
        assert!(refusal(&path).ends_with("a file that is not a socket is there"));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let link = folder.path().join("link.sock");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(refusal(&link).ends_with("a file that is not a socket is there"));
    }

    #[test]
    fn a_successors_file_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let (_listener, file) = bind_unix(&path, &UnixAccess::default()).unwrap();
        // Both files exist at once, so the inodes differ.
        let next = folder.path().join("next.sock");
        let _successor = UnixListener::bind(&next).unwrap();
        fs::rename(&next, &path).unwrap();
        drop(file);
        assert!(path.exists());
    }

    #[test]
    fn only_the_sockets_own_file_is_adopted_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let (listener, file) = bind_unix(&path, &UnixAccess::default()).unwrap();
        let id = file.id();
        let adopted = UnixSocketFile::adopt(&path, id).expect("the same file");
        fs::remove_file(&path).unwrap();
        assert!(UnixSocketFile::adopt(&path, id).is_none(), "nothing is there");
        fs::write(&path, "precious").unwrap();
        assert!(UnixSocketFile::adopt(&path, id).is_none(), "a plain file is there");
        adopted.left().store(false, Ordering::Release);
        drop((adopted, file));
        assert!(path.exists());
        fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        assert!(UnixSocketFile::adopt(&path, id).is_none(), "another server's is there");
        drop(listener);
    }

    #[test]
    fn an_error_says_why_a_path_cannot_be_bound() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing/admin.sock");
        assert!(refusal(&missing).ends_with(": no such directory"));
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(refusal(&folder.path().join("file/admin.sock")).ends_with(": not a directory"));
        let longest = 107 - folder.path().as_os_str().len() - 1;
        let path = folder.path().join("x".repeat(longest));
        bind_unix(&path, &UnixAccess::default()).expect("107 bytes");
        let path = folder.path().join("x".repeat(longest + 1));
        assert!(refusal(&path).contains("107 bytes"), "{}", refusal(&path));
    }

    #[test]
    fn loops_share_a_public_port_and_the_admins_port_is_exclusive() {
        let set = bind_address(([127, 0, 0, 1], 0).into(), 3, false).unwrap();
        let bound = set[0].address;
        assert!(bound.port() > 0 && set.iter().all(|socket| socket.address == bound));
        assert!(bind_one(bound).is_err());
        let (admin, _socket) = bind_one(([127, 0, 0, 1], 0).into()).unwrap();
        assert!(bind_address(admin, 1, false).is_err());
    }

    #[test]
    fn a_socket_beside_adopted_ones_takes_no_connection_before_it_listens() {
        let mut theirs = bind_address(([127, 0, 0, 1], 0).into(), 1, false).unwrap();
        let (address, theirs) = (theirs[0].address, theirs.remove(0).socket);
        let adopted = adopt(address, vec![theirs.try_clone().unwrap()], false, 4).unwrap();
        let accepted = |sockets: &[&OwnedFd]| {
            let accepted = sockets.iter().filter(|socket| rustix::net::accept(socket).is_ok());
            accepted.count()
        };
        let own: Vec<&OwnedFd> = adopted[1..].iter().map(|socket| &*socket.socket).collect();
        let connect = || std::net::TcpStream::connect(address).unwrap();
        for _ in 0..32 {
            let _peer = connect();
            assert_eq!((accepted(&own), accepted(&[&theirs])), (0, 1));
        }
        begin_listening(&adopted).unwrap();
        let _peers: Vec<_> = (0..64).map(|_| connect()).collect();
        assert!(accepted(&own) > 0);
    }
}
