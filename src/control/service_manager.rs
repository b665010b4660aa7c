//! Reports to the service manager, systemd or another: sd_notify(3), by the socket that
//! `NOTIFY_SOCKET` names.
//!
//! sd-notify writes the messages. They are sent here, because that crate knows no abstract sockets,
//! and would wait forever for a manager that doesn't read. A missing or broken socket is logged
//! once, and is never an error. The operator reports reloads; control reports everything else.

use std::{
    env,
    ffi::OsStr,
    io::{self, IoSlice},
    mem::MaybeUninit,
    net,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use sd_notify::NotifyState;

use crate::logging::event;

/// How long the manager may take to make room in its queue; drains wait for that.
const SEND_TIMEOUT: Duration = Duration::from_millis(100);

/// Between two reports of the counts.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// What a report during a stop asks for, so that a stop within its deadline is not killed: many
/// reports long, for those may be late, yet soon over if this process hangs.
const EXTENSION: Duration = Duration::from_secs(15);

/// Sockets in one message: the kernel passes 253 at once (unix(7), SCM_RIGHTS).
const DESCRIPTORS_AT_ONCE: usize = 128;

/// The least time between two signs of life, whatever the manager wants.
const WATCHDOG_MIN: Duration = Duration::from_millis(10);

/// The way to the service manager, if there is one. All threads share it.
#[derive(Debug, Default)]
pub(crate) struct ServiceManager {
    address: Option<SocketAddr>,
    /// How often it wants a sign of life; it restarts a server that gives none.
    watchdog: Option<Duration>,
    has_failed: AtomicBool,
    is_stopping: AtomicBool,
    /// Another process speaks for the service now.
    handed_over: AtomicBool,
}

/// A reload that was reported to the service manager. Its end is reported when this is dropped.
#[must_use = "dropping it ends the reload"]
pub(super) struct Reloading<'a>(&'a ServiceManager);

impl ServiceManager {
    /// The manager that the environment names, if it names one.
    pub(crate) fn from_env() -> Self {
        let mut manager = Self::default();
        let Some(name) = env::var_os("NOTIFY_SOCKET") else { return manager };
        match address(&name) {
            Ok(address) => {
                manager.address = Some(address);
                manager.watchdog = sd_notify::watchdog_enabled().filter(|every| !every.is_zero());
            }
            Err(error) => manager.say_failed(&error),
        }
        manager
    }

    /// A reload begins.
    pub(super) fn begin_reload(&self) -> Reloading<'_> {
        // The manager matches the time with that of its own request.
        let now = NotifyState::monotonic_usec_now().ok();
        let states: Vec<_> = [NotifyState::Reloading].into_iter().chain(now).collect();
        self.send_unless_stopping(&states);
        Reloading(self)
    }

    /// Another process is the service's main process from here on, and speaks for it: this one is
    /// silent. That process must not inherit `WATCHDOG_PID`, which names this one.
    pub(super) fn hand_over(&self, pid: u32) {
        self.send(&[NotifyState::MainPid(pid)]);
        self.handed_over.store(true, Relaxed);
    }

    /// Gives the manager these listening sockets of an address to keep, so that they stay open over
    /// a restart (`FileDescriptorStoreMax=` of systemd.service(5)). What it keeps already it keeps
    /// once. A manager that keeps none closes them.
    pub(crate) fn keep(&self, address: net::SocketAddr, sockets: &[Arc<OwnedFd>]) {
        let name = stored_name(address);
        // Its own watch for hang-ups is of no use for listening sockets.
        let message = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0\n");
        for some in sockets.chunks(DESCRIPTORS_AT_ONCE) {
            let borrowed: Vec<_> = some.iter().map(|socket| socket.as_fd()).collect();
            self.send_message(&message, &borrowed);
        }
    }

    /// The manager is to close what it keeps of an address.
    pub(crate) fn forget(&self, address: net::SocketAddr) {
        let name = stored_name(address);
        self.send_message(&format!("FDSTOREREMOVE=1\nFDNAME={name}\n"), &[]);
    }

    /// This process is the service's main process again.
    fn take_back(&self) {
        self.handed_over.store(false, Relaxed);
        self.is_stopping.store(false, Relaxed);
        self.send(&[NotifyState::MainPid(std::process::id())]);
    }

    fn is_there(&self) -> bool {
        self.address.is_some() && !self.handed_over.load(Relaxed)
    }

    fn send_unless_stopping(&self, states: &[NotifyState<'_>]) {
        // The manager would believe that the server serves again.
        if !self.is_stopping.load(Relaxed) {
            self.send(states);
        }
    }

    fn send(&self, states: &[NotifyState<'_>]) {
        if states.is_empty() || !self.is_there() {
            return;
        }
        let message: String = states.iter().map(|state| format!("{state}\n")).collect();
        self.send_message(&message, &[]);
    }

    fn send_message(&self, message: &str, descriptors: &[BorrowedFd<'_>]) {
        if self.is_there()
            && let Err(error) = self.try_send(message, descriptors)
        {
            self.say_failed(&error);
        }
    }

    fn try_send(&self, message: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let Some(address) = &self.address else { return Ok(()) };
        let socket = UnixDatagram::unbound()?;
        if self.has_failed.load(Relaxed) {
            // A manager that did not read before is not waited for again.
            socket.set_nonblocking(true)?;
        } else {
            socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        }
        if descriptors.is_empty() {
            return socket.send_to_addr(message.as_bytes(), address).map(drop);
        }
        socket.connect_addr(address)?;
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_AT_ONCE))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        assert!(
            rights.push(SendAncillaryMessage::ScmRights(descriptors)),
            "the space is too small"
        );
        let message = [IoSlice::new(message.as_bytes())];
        rustix::net::sendmsg(&socket, &message, &mut rights, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Logged once. Reports go on all the same, for the manager may come back.
    fn say_failed(&self, error: &io::Error) {
        if !self.has_failed.swap(true, Relaxed) {
            event!(Warn, "notify_failed", error:% = error);
        }
    }
}

impl Drop for Reloading<'_> {
    fn drop(&mut self) {
        self.0.send_unless_stopping(&[NotifyState::Ready]);
    }
}

/// The prefix of kept sockets' names. It distinguishes them from those of a socket unit.
const STORED: &str = "tidegate-listener-";

/// The name under which the manager keeps the sockets of an address: without a colon, which
/// separates names.
fn stored_name(address: net::SocketAddr) -> String {
    format!("{STORED}{address}").replace(':', "_")
}

/// Whether a socket that the manager passed was given to it by [`ServiceManager::keep`].
pub(crate) fn is_stored(name: &str) -> bool {
    name.starts_with(STORED)
}

/// A path, or `@` and a name of the abstract namespace.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(name),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "NOTIFY_SOCKET is neither an absolute path nor @ and a name",
        )),
    }
}

/// What control has reported to the manager, and when it has to report more.
#[derive(Debug, Default)]
pub(super) struct ServiceReports {
    pub(super) manager: Arc<ServiceManager>,
    status: String,
    status_due: Option<Instant>,
    watchdog_due: Option<Instant>,
}

/// What the manager is to know of the server as it is now.
pub(super) struct ServiceStatus {
    /// For a person.
    pub(super) line: String,
    pub(super) is_stopping: bool,
    /// Whether every loop makes progress.
    pub(super) makes_progress: bool,
}

impl ServiceReports {
    /// When [`ServiceReports::on_time`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        self.status_due.into_iter().chain(self.watchdog_due).min()
    }

    /// Whether there is a manager that listens to this process.
    pub(super) fn is_read(&self) -> bool {
        self.manager.is_there()
    }

    /// The server serves.
    pub(super) fn ready(&mut self, status: Option<ServiceStatus>, now: Instant) {
        if self.manager.is_there() {
            self.watchdog_due = self.manager.watchdog.map(|_| now);
            self.report(&[NotifyState::Ready], status, now);
        }
    }

    /// This process is the service's main process again.
    pub(super) fn take_back(&mut self) {
        self.manager.take_back();
        self.status.clear();
    }

    /// A stop begins.
    pub(super) fn stopping(&mut self, status: Option<ServiceStatus>, now: Instant) {
        self.manager.is_stopping.store(true, Relaxed);
        self.report(&[NotifyState::Stopping], status, now);
    }

    /// A stop is over.
    pub(super) fn stopped(&mut self, status: Option<ServiceStatus>, now: Instant) {
        self.report(&[], status, now);
    }

    /// Gives the signs of life and the counts that are due.
    pub(super) fn on_time(&mut self, status: Option<ServiceStatus>, now: Instant) {
        let Some(status) = status else { return self.stay_silent() };
        if self.status_due.is_some_and(|due| due <= now) {
            self.report(&[], Some(status), now);
        } else {
            let states = self.sign_of_life(&status, now);
            self.manager.send(&states);
        }
    }

    /// Sends this, the status if it has changed, and what else is due.
    fn report(&mut self, states: &[NotifyState<'_>], status: Option<ServiceStatus>, now: Instant) {
        let Some(status) = status else { return self.stay_silent() };
        let mut states = states.to_vec();
        states.extend(self.sign_of_life(&status, now));
        if status.is_stopping {
            states.push(NotifyState::ExtendTimeoutUsec(EXTENSION.as_micros() as u32));
        }
        // A line break would begin another message; an embedder's hosts are its own.
        let line = status.line.replace(char::is_control, " ");
        if line != self.status {
            states.push(NotifyState::Status(&line));
        }
        self.manager.send(&states);
        self.status = line;
        self.status_due = Some(now + STATUS_EVERY);
    }

    /// No manager listens to this process any more.
    fn stay_silent(&mut self) {
        (self.status_due, self.watchdog_due) = (None, None);
    }

    /// The sign of life, if it is due and every loop makes progress.
    fn sign_of_life(&mut self, status: &ServiceStatus, now: Instant) -> Vec<NotifyState<'static>> {
        let (Some(due), Some(every)) = (self.watchdog_due, self.manager.watchdog) else {
            return Vec::new();
        };
        if now < due {
            return Vec::new();
        }
        self.watchdog_due = Some(now + (every / 2).max(WATCHDOG_MIN));
        status.makes_progress.then_some(NotifyState::Watchdog).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A manager, and the socket that it reads.
    fn manager() -> (ServiceManager, UnixDatagram, TempDir) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_nonblocking(true).expect("O_NONBLOCK");
        let address = Some(address(path.as_os_str()).expect("an address"));
        (ServiceManager { address, ..ServiceManager::default() }, socket, folder)
    }

    fn received(socket: &UnixDatagram) -> Option<String> {
        let mut message = [0; 1024];
        let length = socket.recv(&mut message).ok()?;
        Some(String::from_utf8_lossy(&message[..length]).into_owned())
    }

    #[test]
    fn a_name_is_a_path_or_abstract() {
        let abstract_name = address(OsStr::new("@a/b")).expect("an address");
        assert_eq!(abstract_name.as_abstract_name(), Some(&b"a/b"[..]));
        let path = address(OsStr::new("/run/notify")).expect("an address");
        assert!(path.as_pathname().is_some_and(|path| path.ends_with("notify")));
        for wrong in ["", "run/notify", "vsock:2:3"] {
            assert!(address(OsStr::new(wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_kept_socket_is_told_from_those_of_a_socket_unit() {
        for address in ["127.0.0.1:80", "[::1]:8080"] {
            let name = stored_name(address.parse().expect("an address"));
            assert!(is_stored(&name) && !name.contains(':'), "{name}");
        }
        assert!(!is_stored("tidegate.socket") && !is_stored("http") && !is_stored(""));
    }

    #[test]
    fn who_has_handed_over_is_silent() {
        let (manager, socket, _folder) = manager();
        manager.hand_over(4711);
        assert_eq!(received(&socket).as_deref(), Some("MAINPID=4711\n"));
        manager.send(&[NotifyState::Ready]);
        assert_eq!(received(&socket), None);
    }

    #[test]
    fn a_reload_that_ends_during_a_stop_does_not_say_ready() {
        let (manager, socket, _folder) = manager();
        let reloading = manager.begin_reload();
        let began = received(&socket).expect("a message");
        assert!(began.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{began}");
        manager.is_stopping.store(true, Relaxed);
        drop(reloading);
        assert_eq!(received(&socket), None);
    }

    #[test]
    fn a_manager_that_does_not_read_is_not_waited_for() {
        let (manager, _socket, _folder) = manager();
        // More than any queue of datagrams holds.
        while !manager.has_failed.load(Relaxed) {
            manager.send(&[NotifyState::Watchdog]);
        }
    }
}
