//! Where a log goes: a file, or a stream that the process was started with.
//!
//! - Opening a file can hang: its file system may not answer. So a file is opened in a thread of
//!   its own, which may hang alone, and never under a lock.
//! - A FIFO that no process reads is refused, not waited for.
//! - A stream of the process (`/dev/stderr`, `/dev/fd/3`) is duplicated, not opened: sockets can't
//!   be opened, and a process that gave up root may have lost the right to open the others.
//! - A stream has to be open in the next process of an upgrade, too, under the same number. So a
//!   number above 2 that is marked close-on-exec is refused: it is one of the server's own, or one
//!   that no log named at the start.
//! - Logs that share a file, whatever they call it, write to it one after the other, so that no
//!   line ends up within another.

use std::{
    collections::HashMap,
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, IsTerminal, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak},
    thread,
    time::Duration,
};

use crossbeam_channel::bounded;
use rustix::{
    fs::OFlags,
    io::{Errno, fcntl_dupfd_cloexec},
    process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open},
};

/// How long the start of the server, or a reload, waits for a log file to open.
pub(super) const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// How often, and how long each time, a writer waits for an output that others set to
/// non-blocking: a terminal or pipe is shared with the process that started this one.
const STALL_WAITS_MAX: u32 = 100;
const STALL_WAIT: Duration = Duration::from_millis(10);

/// Symbolic links that are followed in search of a stream.
const LINKS_MAX: usize = 8;

/// Where a log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// Appended to; made with mode 0640 if it is not there. Its folder must exist.
    File(PathBuf),
    /// A descriptor that the process was started with.
    Stream(i32),
}

impl Output {
    pub(super) const STDOUT: Self = Self::Stream(1);
    pub(super) const STDERR: Self = Self::Stream(2);

    /// What a path of the config means.
    pub(super) fn of(path: &Path) -> Self {
        stream_named(path).map_or_else(|| Self::File(path.to_owned()), Self::Stream)
    }

    /// Opens it. This can take for ever: it is for threads that do nothing else.
    pub(super) fn open(&self) -> io::Result<Sink> {
        let file = match self {
            Self::File(path) => open_append(path)?,
            Self::Stream(descriptor) => duplicate(*descriptor)?,
        };
        let tail = tail_of(&file)?;
        Ok(Sink { file: Box::new(file), tail })
    }

    /// Opens it in a thread of its own, which is left behind when it takes longer than this.
    pub(super) fn open_within(&self, timeout: Duration) -> io::Result<Sink> {
        let (sender, opened) = bounded(1);
        let output = self.clone();
        // If the wait is over, what was opened is closed again.
        let open = move || drop(sender.send(output.open()));
        thread::Builder::new().name("log-open".to_owned()).spawn(open)?;
        opened.recv_timeout(timeout).unwrap_or_else(|_| Err(hangs()))
    }

    /// The descriptor of the process that it names, also by links. Reads the links: only for an
    /// output that has just been opened.
    pub(super) fn descriptor(&self) -> Option<i32> {
        match self {
            Self::Stream(descriptor) => Some(*descriptor),
            Self::File(path) => stream_behind(path),
        }
    }

    /// Whether it shows what is written to a person at once.
    pub(super) fn is_terminal(&self) -> bool {
        match self {
            Self::Stream(1) => io::stdout().is_terminal(),
            Self::Stream(2) => io::stderr().is_terminal(),
            Self::Stream(_) | Self::File(_) => false,
        }
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Stream(1) => f.write_str("standard output"),
            Self::Stream(2) => f.write_str("standard error"),
            Self::Stream(descriptor) => write!(f, "/dev/fd/{descriptor}"),
        }
    }
}

/// Why a file is not there yet.
pub(super) fn hangs() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "opening it hangs: its file system does not answer")
}

/// An output that is open.
pub(super) struct Sink {
    file: Box<dyn Write + Send>,
    /// Whether the last write to the file ended within a line. All that write to it share this, and
    /// hold it while they write.
    tail: Arc<Mutex<bool>>,
}

impl Sink {
    /// A sink that shares nothing.
    #[cfg(test)]
    pub(super) fn alone(file: impl Write + Send + 'static) -> Self {
        Self { file: Box::new(file), tail: Arc::default() }
    }

    /// Writes whole lines as far as that works: how many bytes, and what went wrong. After half a
    /// line, the first of these begins on a line of its own.
    pub(super) fn write(&mut self, lines: &[u8]) -> (usize, Option<io::Error>) {
        let mut is_torn = lock(&self.tail);
        if *is_torn {
            if let (_, Some(error)) = write_as_far(&mut *self.file, b"\n") {
                return (0, Some(error));
            }
            *is_torn = false;
        }
        let (written, error) = write_as_far(&mut *self.file, lines);
        if written > 0 {
            *is_torn = lines[written - 1] != b'\n';
        }
        (written, error)
    }
}

/// The descriptor that a path of the process's own names.
fn stream_named(path: &Path) -> Option<i32> {
    let path = path.to_str()?;
    match path {
        "/dev/stdin" => Some(0),
        "/dev/stdout" => Some(1),
        "/dev/stderr" => Some(2),
        _ => ["/dev/fd/", "/proc/self/fd/"]
            .iter()
            .find_map(|folder| path.strip_prefix(folder))
            .filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|number| number.parse().ok()),
    }
}

/// The same for a path that leads there by links: `access.log -> /dev/stdout`.
fn stream_behind(path: &Path) -> Option<i32> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        if let Some(descriptor) = stream_named(&path) {
            return Some(descriptor);
        }
        let target = fs::read_link(&path).ok()?;
        path = path.parent().map_or_else(|| target.clone(), |folder| folder.join(&target));
    }
    None
}

fn open_append(path: &Path) -> io::Result<File> {
    if let Some(descriptor) = stream_behind(path) {
        return duplicate(descriptor);
    }
    let open = |flags: OFlags| {
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o640);
        options.custom_flags(flags.bits().cast_signed()).open(path)
    };
    let file = match open(OFlags::NOCTTY | OFlags::NONBLOCK) {
        // Another process holds a lease on the file, and is now asked for it.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return open(OFlags::NOCTTY),
        opened => opened.map_err(|error| explain(error, path))?,
    };
    // Writes may wait: they have a thread of their own.
    let flags = rustix::fs::fcntl_getfl(&file)?;
    rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
    Ok(file)
}

/// Says what the system's words leave open.
fn explain(error: io::Error, path: &Path) -> io::Error {
    if error.raw_os_error() != Some(Errno::NXIO.raw_os_error()) {
        return error;
    }
    let kind = fs::metadata(path).map(|file| file.file_type());
    match kind {
        Ok(kind) if kind.is_fifo() => io::Error::new(error.kind(), "no process reads this FIFO"),
        Ok(kind) if kind.is_socket() => io::Error::new(error.kind(), "a log can't be a socket"),
        _ => error,
    }
}

/// A descriptor of our own for a stream: the handles of std have locks, and a thread that panics
/// must not wait for a stalled log to print its last words.
fn duplicate(descriptor: i32) -> io::Result<File> {
    if descriptor > 2 && is_close_on_exec(descriptor) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, NOT_KEPT));
    }
    let own = |stream: &dyn AsFd| fcntl_dupfd_cloexec(stream.as_fd(), 3);
    let duplicated: Result<OwnedFd, Errno> = match descriptor {
        1 => own(&io::stdout()),
        2 => own(&io::stderr()),
        _ => pidfd_open(getpid(), PidfdFlags::empty())
            .and_then(|this| pidfd_getfd(this, descriptor, PidfdGetfdFlags::empty())),
    };
    match duplicated {
        // A sandbox forbids the call. All but sockets can be opened.
        Err(Errno::PERM | Errno::NOSYS) => {
            OpenOptions::new().append(true).open(format!("/proc/self/fd/{descriptor}"))
        }
        duplicated => Ok(File::from(duplicated?)),
    }
}

/// Why a descriptor of the process can't be a log.
const NOT_KEPT: &str = "this descriptor would be closed by an upgrade: a log can go only to one \
                        that the server was started with and that its config named then";

/// Whether execve(2) closes it. Not if that can't be known: then it is not open, which shows when
/// it is duplicated.
fn is_close_on_exec(descriptor: i32) -> bool {
    let Ok(info) = fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")) else {
        return false;
    };
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok());
    flags.is_some_and(|flags| OFlags::from_bits_retain(flags).contains(OFlags::CLOEXEC))
}

/// What all writers to a file share, by its device and inode.
type Tails = HashMap<(u64, u64), Weak<Mutex<bool>>>;

static TAILS: LazyLock<Mutex<Tails>> = LazyLock::new(Mutex::default);

fn tail_of(file: &File) -> io::Result<Arc<Mutex<bool>>> {
    let file = file.metadata()?;
    let mut tails = lock(&TAILS);
    tails.retain(|_, tail| tail.strong_count() > 0);
    let tail = tails.entry((file.dev(), file.ino())).or_default();
    Ok(tail.upgrade().unwrap_or_else(|| {
        let new = Arc::default();
        *tail = Arc::downgrade(&new);
        new
    }))
}

/// How many bytes could be written, and why not all.
fn write_as_far(file: &mut dyn Write, bytes: &[u8]) -> (usize, Option<io::Error>) {
    let mut written = 0;
    let mut waits = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => return (written, Some(io::ErrorKind::WriteZero.into())),
            Ok(count) => {
                written += count;
                waits = 0;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && waits < STALL_WAITS_MAX => {
                waits += 1;
                thread::sleep(STALL_WAIT);
            }
            Err(error) => return (written, Some(error)),
        }
    }
    (written, None)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixDatagram};

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn names_of_streams_are_known_by_all_their_spellings() {
        for (path, descriptor) in
            [("/dev/stdout", 1), ("/dev/stderr", 2), ("/dev/fd/7", 7), ("/proc/self/fd/2", 2)]
        {
            assert_eq!(Output::of(Path::new(path)), Output::Stream(descriptor), "{path}");
        }
        for path in ["/dev/fd/", "/dev/fd/x", "/dev/fd/+1", "/dev/stdoutx", "stdout", "/dev/full"] {
            assert_eq!(Output::of(Path::new(path)), Output::File(path.into()), "{path}");
        }
    }

    #[test]
    fn a_fifo_that_no_process_reads_and_a_socket_are_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let error = Output::File(fifo).open().err().unwrap();
        assert_eq!(error.to_string(), "no process reads this FIFO");
        let socket = dir.path().join("socket");
        let _bound = UnixDatagram::bind(&socket).unwrap();
        let error = Output::File(socket).open().err().unwrap();
        assert_eq!(error.to_string(), "a log can't be a socket");
    }

    #[test]
    fn a_stream_that_is_a_socket_is_written_to_also_behind_a_link() {
        use std::os::fd::AsRawFd;
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        // Without close-on-exec, as a parent gives it.
        let theirs = rustix::io::dup(&theirs).unwrap();
        let name = format!("/dev/fd/{}", theirs.as_raw_fd());
        let [first, second] = ["first", "second"].map(|name| dir.path().join(name));
        symlink(&name, &first).unwrap();
        symlink("first", &second).unwrap();
        for path in [PathBuf::from(name), second] {
            let mut sink = match Output::of(&path).open() {
                Ok(sink) => sink,
                // In a sandbox that forbids pidfd_getfd(2).
                Err(error) if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => return,
                Err(error) => panic!("{error}"),
            };
            assert_eq!(sink.write(b"line\n").0, 5);
            let mut line = [0; 16];
            assert_eq!(ours.recv(&mut line).unwrap(), 5);
        }
    }

    #[test]
    fn a_descriptor_that_no_upgrade_keeps_is_refused_also_behind_a_link() {
        use std::os::fd::AsRawFd;
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("file")).unwrap();
        let [name, link] =
            [format!("/dev/fd/{}", file.as_raw_fd()).into(), dir.path().join("link")];
        symlink(&name, &link).unwrap();
        for path in [name, link] {
            let error = Output::of(&path).open().err().unwrap();
            assert!(error.to_string().starts_with("this descriptor would be closed"), "{error}");
        }
    }

    #[test]
    fn who_shares_a_file_shares_its_tail() {
        let dir = tempfile::tempdir().unwrap();
        let [path, link, other] = ["a.log", "b.log", "c.log"].map(|name| dir.path().join(name));
        symlink("a.log", &link).unwrap();
        let [first, second, third] =
            [&path, &link, &other].map(|path| Output::of(path).open().unwrap());
        assert!(Arc::ptr_eq(&first.tail, &second.tail));
        assert!(!Arc::ptr_eq(&first.tail, &third.tail));
    }
}
