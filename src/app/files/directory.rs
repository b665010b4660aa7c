//! The root of a `files` app: its only access to the file system.
//!
//! Owns the open root directory. Every file is opened with openat2(2) and `RESOLVE_BENEATH`, so no
//! name and no symbolic link leads out of the root, even while the tree changes. Relative symbolic
//! links are followed if they stay inside. An absolute link counts as leading out, wherever it
//! points. Only regular files are returned. Opening does not wait for a FIFO or for the holder of a
//! lease. Reading may block on the disk: [`super`] says why that is accepted.

use std::{fs::File, io, os::fd::OwnedFd, path::Path};

use rustix::{
    fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};

use super::failure::FileFailure;

/// Most attempts to open a file while the kernel reports that the tree changes (`EAGAIN`).
const OPEN_ATTEMPTS_MAX: usize = 8;

/// Most entries that a listing shows.
pub(super) const ENTRIES_MAX: usize = 1000;

/// Most names that are read for a listing, with those that it does not show.
const NAMES_READ_MAX: usize = 10_000;

/// An open directory below which files are opened.
#[derive(Debug)]
pub(super) struct Directory {
    fd: OwnedFd,
    identity: (u64, u64),
}

/// What a name stands for.
#[derive(Debug)]
pub(super) enum Opened {
    /// A regular file; `None` while another process has a lease on it (fcntl(2)).
    Regular(Option<File>, Stamp),
    /// A directory.
    Directory,
}

impl Directory {
    /// Opens the root, and checks that files can be opened below it.
    ///
    /// # Errors
    /// When the root is missing, is not a directory or cannot be searched; `Unsupported` without
    /// openat2(2).
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        match open_beneath(&fd, b".", flags) {
            Ok(_) => Ok(Self { fd, identity: (stat.st_dev, stat.st_ino) }),
            // Some sandboxes answer system calls that they don't know with EPERM.
            Err(Errno::NOSYS | Errno::PERM) => Err(io::ErrorKind::Unsupported.into()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The directory that is at `path` now, if it is not this one. `None` also while there is no
    /// directory, as in the middle of a swap: then this one goes on serving.
    pub(super) fn successor(&self, path: &Path) -> Option<Self> {
        let stat = rustix::fs::stat(path).ok()?;
        if (stat.st_dev, stat.st_ino) == self.identity {
            return None;
        }
        Self::open(path).ok()
    }

    /// Opens what has this name below the directory.
    pub(super) fn open_file(&self, relative: &[u8]) -> Result<Opened, FileFailure> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let (fd, is_leased) = match open_beneath(&self.fd, relative, flags) {
            // Another process has a lease; the kernel has asked it to give the lease up. An O_PATH
            // open works meanwhile. If the tree keeps changing instead, that fails with EAGAIN too.
            Err(Errno::AGAIN) => {
                let flags = OFlags::PATH | OFlags::CLOEXEC;
                (open_beneath(&self.fd, relative, flags)?, true)
            }
            outcome => (outcome?, false),
        };
        let stat = rustix::fs::fstat(&fd)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let file = (!is_leased).then(|| File::from(fd));
                Ok(Opened::Regular(file, Stamp::of(&stat)))
            }
            FileType::Directory => Ok(Opened::Directory),
            _ => Err(FileFailure::NotFound),
        }
    }
}

/// The files and directories of a directory that can be requested.
#[derive(Debug)]
pub(super) struct Listing {
    /// Directories first, then files, both by name.
    pub(super) entries: Vec<ListedFile>,
    /// Whether a limit ended the listing, so that entries may be missing.
    pub(super) is_cut: bool,
}

/// A file or directory of a listing.
#[derive(Debug)]
pub(super) struct ListedFile {
    /// Its name in the directory.
    pub(super) name: Vec<u8>,
    /// Whether it is a directory.
    pub(super) is_directory: bool,
    /// The size in bytes.
    pub(super) size: u64,
    /// Last change of the content, in seconds since 1970.
    pub(super) modified_s: i64,
}

impl Directory {
    /// Lists a directory below this one. Leaves out names that begin with a dot, links that lead
    /// out of the root, and what cannot be opened.
    pub(super) fn list(&self, relative: &[u8]) -> Result<Listing, FileFailure> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let name = if relative.is_empty() { b"." } else { relative };
        let mut names = Dir::new(open_beneath(&self.fd, name, flags)?)?;
        let mut listing = Listing { entries: Vec::new(), is_cut: false };
        for read in 0.. {
            let Some(found) = names.read() else { break };
            let found = found?;
            let name = found.file_name().to_bytes();
            if read == NAMES_READ_MAX || listing.entries.len() == ENTRIES_MAX {
                listing.is_cut = true;
                break;
            }
            let separator: &[u8] = if relative.is_empty() { b"" } else { b"/" };
            if !name.starts_with(b".") {
                listing.entries.extend(self.entry(&[relative, separator, name].concat(), name)?);
            }
        }
        listing.entries.sort_by(|one, other| {
            (!one.is_directory, &one.name).cmp(&(!other.is_directory, &other.name))
        });
        Ok(listing)
    }

    fn entry(&self, relative: &[u8], name: &[u8]) -> Result<Option<ListedFile>, FileFailure> {
        let opened = open_beneath(&self.fd, relative, OFlags::PATH | OFlags::CLOEXEC);
        let fd = match opened.map_err(FileFailure::from) {
            Ok(fd) => fd,
            Err(FileFailure::Exhausted) => return Err(FileFailure::Exhausted),
            Err(_) => return Ok(None),
        };
        let stat = rustix::fs::fstat(&fd)?;
        let is_directory = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => false,
            FileType::Directory => true,
            _ => return Ok(None),
        };
        let Stamp { size, modified: (modified_s, _), .. } = Stamp::of(&stat);
        Ok(Some(ListedFile { name: name.to_vec(), is_directory, size, modified_s }))
    }
}

/// Distinguishes one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Device and inode.
    pub(super) identity: (u64, u64),
    /// The size in bytes.
    pub(super) size: u64,
    /// Last change of the content: seconds since 1970, and nanoseconds.
    pub(super) modified: (i64, u32),
    /// Last change of content or inode: seconds since 1970, and nanoseconds.
    pub(super) changed: (i64, u32),
}

impl Stamp {
    fn of(stat: &Stat) -> Self {
        Self {
            identity: (stat.st_dev, stat.st_ino),
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            changed: (stat.st_ctime, u32::try_from(stat.st_ctime_nsec).unwrap_or(0)),
        }
    }

    /// The stamp of a listing of this many bytes. It never settles: a listing is built for each
    /// look-up.
    pub(super) fn of_listing(size: u64) -> Self {
        Self { identity: (0, 0), size, modified: (0, 0), changed: (i64::MAX, 0) }
    }

    /// The state of an open file.
    pub(super) fn of_file(file: &File) -> Result<Self, FileFailure> {
        Ok(Self::of(&rustix::fs::fstat(file)?))
    }
}

impl From<Errno> for FileFailure {
    fn from(errno: Errno) -> Self {
        match errno {
            // XDEV: the name leads out of the root. NXIO, NODEV: a socket, a device without a
            // driver.
            Errno::NOENT
            | Errno::NOTDIR
            | Errno::LOOP
            | Errno::XDEV
            | Errno::NAMETOOLONG
            | Errno::NXIO
            | Errno::NODEV => Self::NotFound,
            Errno::ACCESS | Errno::PERM => Self::Forbidden,
            Errno::MFILE | Errno::NFILE | Errno::NOMEM => Self::Exhausted,
            // The tree changed during each attempt.
            Errno::AGAIN => Self::Unsteady,
            errno => Self::Broken(errno),
        }
    }
}

fn open_beneath(root: &OwnedFd, relative: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut attempt = 1;
    loop {
        match rustix::fs::openat2(root, relative, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) if attempt < OPEN_ATTEMPTS_MAX => attempt += 1,
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::{fs::symlink, net::UnixListener};

    fn failure(root: &Directory, name: &str) -> Option<FileFailure> {
        root.open_file(name.as_bytes()).err()
    }

    #[test]
    fn nothing_leads_out_of_the_root() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "s").unwrap();
        let root_dir = tempfile::tempdir_in(outside.path()).unwrap();
        let at = |name: &str| root_dir.path().join(name);
        std::fs::create_dir(at("d")).unwrap();
        std::fs::write(at("d/file"), "f").unwrap();
        symlink("d/file", at("inside")).unwrap();
        symlink("../d/../d/file", at("d/inside")).unwrap();
        symlink("../secret", at("out")).unwrap();
        symlink(outside.path(), at("out-dir")).unwrap();
        symlink(at("d/file"), at("absolute")).unwrap();
        symlink("loop", at("loop")).unwrap();
        symlink("/proc/self/root/etc/passwd", at("magic")).unwrap();
        let root = Directory::open(root_dir.path()).unwrap();
        for name in ["d/file", "inside", "d/inside"] {
            assert!(matches!(root.open_file(name.as_bytes()), Ok(Opened::Regular(..))), "{name}");
        }
        assert!(matches!(root.open_file(b"d"), Ok(Opened::Directory)));
        // An absolute link leads out of the root, even if it points into it.
        for name in [
            "out",
            "out-dir/secret",
            "absolute",
            "loop",
            "magic",
            "../secret",
            "/etc/passwd",
            "d/file/",
            "d/file/x",
            "none",
            "d/../../secret",
            &"n".repeat(300),
            &"n/".repeat(3000),
        ] {
            assert_eq!(failure(&root, name), Some(FileFailure::NotFound), "{name}");
        }
    }

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
        let _listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let root = Directory::open(dir.path()).unwrap();
        assert_eq!(failure(&root, "fifo"), Some(FileFailure::NotFound));
        assert_eq!(failure(&root, "socket"), Some(FileFailure::NotFound));
    }

    #[test]
    fn a_swapped_root_is_followed_and_a_missing_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (release, content) in [("1", "one"), ("2", "two")] {
            std::fs::create_dir(at(release)).unwrap();
            std::fs::write(at(release).join("a"), content).unwrap();
        }
        symlink("1", at("current")).unwrap();
        let root = Directory::open(&at("current")).unwrap();
        assert!(root.successor(&at("current")).is_none());
        std::fs::remove_file(at("current")).unwrap();
        assert!(root.successor(&at("current")).is_none());
        symlink("2", at("current")).unwrap();
        let root = root.successor(&at("current")).unwrap();
        let Ok(Opened::Regular(Some(file), _)) = root.open_file(b"a") else { panic!("no file") };
        assert_eq!(io::read_to_string(file).unwrap(), "two");
    }

    #[test]
    fn system_errors_become_statuses() {
        for (errno, failure) in [
            (Errno::NOENT, FileFailure::NotFound),
            (Errno::XDEV, FileFailure::NotFound),
            (Errno::ACCESS, FileFailure::Forbidden),
            (Errno::PERM, FileFailure::Forbidden),
            (Errno::MFILE, FileFailure::Exhausted),
            (Errno::NFILE, FileFailure::Exhausted),
            (Errno::AGAIN, FileFailure::Unsteady),
            (Errno::IO, FileFailure::Broken(Errno::IO)),
        ] {
            assert_eq!(FileFailure::from(errno), failure, "{errno:?}");
        }
    }
}
