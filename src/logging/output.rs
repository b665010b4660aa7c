//! Where a log goes: a file, or a stream that the process was started with.
//!
//! - Opening a file can hang if its file system doesn't answer. So a file is opened in a thread of
//!   its own, which may hang, and never under a lock.
//! - A FIFO without a reader is refused instead of waited for.
//! - A stream of the process (`/dev/stderr`, `/dev/fd/3`) is duplicated, not opened: sockets can't
//!   be opened, and a process that gave up root may lack the permission to open others.
//! - A stream must be open in the next process of an upgrade too, under the same number. So a
//!   number above 2 that is marked close-on-exec is refused: it belongs to the server itself, or no
//!   log named it at the start.
//! - Logs that share a file, under any name, take turns writing to it, so that no line ends up
//!   inside another.

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

/// How long a start or a reload waits for a log file to open.
pub(super) const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a writer waits for an output that is non-blocking, and for how long each time. A
/// terminal or pipe is shared with the parent process, which may set this.
const STALL_WAITS_MAX: u32 = 100;
const STALL_WAIT: Duration = Duration::from_millis(10);

/// How many symbolic links are followed to find a stream.
const LINKS_MAX: usize = 8;

/// Where a log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// Appended to; created with mode 0640 if it doesn't exist. Its folder must exist.
    File(PathBuf),
    /// A descriptor that the process was started with.
    Stream(i32),
}

impl Output {
    pub(super) const STDOUT: Self = Self::Stream(1);
    pub(super) const STDERR: Self = Self::Stream(2);

    /// The output that a path in the config means.
    pub(super) fn of(path: &Path) -> Self {
        stream_named(path).map_or_else(|| Self::File(path.to_owned()), Self::Stream)
    }

    /// Opens the output. This may block forever, so it needs a thread of its own.
    pub(super) fn open(&self) -> io::Result<Sink> {
        let file = match self {
            Self::File(path) => open_append(path)?,
            Self::Stream(descriptor) => duplicate(*descriptor)?,
        };
        let tail = tail_of(&file)?;
        Ok(Sink { file: Box::new(file), tail })
    }

    /// Opens the output in a thread of its own. On time-out, the thread is left behind.
    pub(super) fn open_within(&self, timeout: Duration) -> io::Result<Sink> {
        let (sender, opened) = bounded(1);
        let output = self.clone();
        // If the wait is over, the opened file is closed again.
        let open = move || drop(sender.send(output.open()));
        thread::Builder::new().name("log-open".to_owned()).spawn(open)?;
        opened.recv_timeout(timeout).unwrap_or_else(|_| Err(hangs()))
    }

    /// The descriptor of the process that the output names, directly or by links. Reads the links:
    /// only for an output that has just been opened.
    pub(super) fn descriptor(&self) -> Option<i32> {
        match self {
            Self::Stream(descriptor) => Some(*descriptor),
            Self::File(path) => stream_behind(path),
        }
    }

    /// Whether a person reads the output directly.
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

/// The error of a file that isn't open yet.
pub(super) fn hangs() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "opening it hangs: its file system does not answer")
}

/// An open output.
pub(super) struct Sink {
    file: Box<dyn Write + Send>,
    /// Whether the last write to the file ended within a line. All writers to the file share this,
    /// and lock it while they write.
    tail: Arc<Mutex<bool>>,
}

impl Sink {
    /// A sink that shares its file with no other.
    #[cfg(test)]
    pub(super) fn alone(file: impl Write + Send + 'static) -> Self {
        Self { file: Box::new(file), tail: Arc::default() }
    }

    /// Writes whole lines as far as possible. Returns the number of bytes, and the error if any.
    /// After half a line, starts on a new line.
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

/// The descriptor that the path of one of the process's streams names.
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

/// Like [`stream_named`], for a path that leads there by links: `access.log -> /dev/stdout`.
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
        // Another process holds a lease on the file and is now asked to release it.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return open(OFlags::NOCTTY),
        opened => opened.map_err(|error| explain(error, path))?,
    };
    // Writes may block: they have a thread of their own.
    let flags = rustix::fs::fcntl_getfl(&file)?;
    rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
    Ok(file)
}

/// Replaces an unclear system error.
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

/// A descriptor of our own for a stream. The handles of std have locks, and a panicking thread must
/// not wait for a stalled log to print its message.
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
        // A sandbox forbids the call. All streams except sockets can be opened instead.
        Err(Errno::PERM | Errno::NOSYS) => {
            OpenOptions::new().append(true).open(format!("/proc/self/fd/{descriptor}"))
        }
        duplicated => Ok(File::from(duplicated?)),
    }
}

/// Why a descriptor of the process is refused.
const NOT_KEPT: &str = "this descriptor would be closed by an upgrade: a log must use a descriptor \
                        that the server was started with and that the config named at the start";

/// Whether execve(2) closes the descriptor. False if that is unknown: then it isn't open, and
/// duplicating it will fail.
fn is_close_on_exec(descriptor: i32) -> bool {
    let Ok(info) = fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")) else {
        return false;
    };
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok());
    flags.is_some_and(|flags| OFlags::from_bits_retain(flags).contains(OFlags::CLOEXEC))
}

/// The shared state of all writers to a file, by device and inode.
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

/// How many bytes were written, and the error if not all were.
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
    fn streams_are_recognised_under_all_their_names() {
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
    fn a_fifo_without_a_reader_and_a_socket_are_refused_at_once() {
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
    fn a_stream_that_is_a_socket_can_be_written_to_even_by_a_link() {
        use std::os::fd::AsRawFd;
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        // Without close-on-exec, as inherited from a parent.
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
    fn a_descriptor_that_an_upgrade_would_close_is_refused_even_by_a_link() {
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
    fn logs_that_share_a_file_share_its_tail() {
        let dir = tempfile::tempdir().unwrap();
        let [path, link, other] = ["a.log", "b.log", "c.log"].map(|name| dir.path().join(name));
        symlink("a.log", &link).unwrap();
        let [first, second, third] =
            [&path, &link, &other].map(|path| Output::of(path).open().unwrap());
        assert!(Arc::ptr_eq(&first.tail, &second.tail));
        assert!(!Arc::ptr_eq(&first.tail, &third.tail));
    }
}
