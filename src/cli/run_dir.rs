//! The folder with the admin sockets of servers without a config.
//!
//! It belongs to one user: `$XDG_RUNTIME_DIR/tidegate`, else `/tmp/tidegate-UID`. A folder that
//! another user owns or may write to is never used, because that user could put sockets there and
//! receive our commands.

use std::{
    env, fs, io,
    net::SocketAddr,
    os::unix::{
        fs::{DirBuilderExt, MetadataExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

/// The write permissions of group and others.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// The path of the folder, which may not exist.
pub(super) fn path() -> PathBuf {
    let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    match runtime.filter(|path| path.is_absolute()) {
        Some(runtime) => runtime.join("tidegate"),
        None => format!("/tmp/tidegate-{}", rustix::process::geteuid().as_raw()).into(),
    }
}

/// The socket path for a server whose first address is `address`. Creates the folder.
///
/// # Errors
/// If the folder can't be created, or other users may write to it.
pub(super) fn socket_for(address: SocketAddr) -> io::Result<PathBuf> {
    let folder = path();
    let made = fs::DirBuilder::new().mode(0o700).create(&folder);
    match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(io::Error::new(error.kind(), format!("{}: {error}", folder.display())))
        }
        _ if !is_ours(&folder) => {
            let error = format!("{}: another user may write to it", folder.display());
            Err(io::Error::other(error))
        }
        _ => Ok(folder.join(format!("{address}.sock"))),
    }
}

/// The sockets in `folder` that have a listening server.
pub(super) fn live_sockets(folder: &Path) -> Vec<PathBuf> {
    if !is_ours(folder) {
        return Vec::new();
    }
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let mut live: Vec<PathBuf> = paths.filter(|path| UnixStream::connect(path).is_ok()).collect();
    live.sort();
    live
}

fn is_ours(folder: &Path) -> bool {
    let own = rustix::process::geteuid().as_raw();
    fs::symlink_metadata(folder).is_ok_and(|found| {
        found.is_dir() && found.uid() == own && found.mode() & WRITABLE_BY_OTHERS == 0
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::{
        fs::{PermissionsExt, symlink},
        net::UnixListener,
    };

    use super::*;

    #[test]
    fn a_folder_that_other_users_may_write_to_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("run");
        fs::create_dir(&folder).unwrap();
        let _server = UnixListener::bind(folder.join("a.sock")).unwrap();
        drop(UnixListener::bind(folder.join("dead.sock")).unwrap());
        fs::write(folder.join("file"), "").unwrap();
        let mode = |mode| fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
        mode(0o700);
        assert_eq!(live_sockets(&folder), [folder.join("a.sock")]);
        mode(0o777);
        assert!(live_sockets(&folder).is_empty());
        mode(0o700);
        let link = dir.path().join("link");
        symlink(&folder, &link).unwrap();
        assert!(live_sockets(&link).is_empty());
    }
}
