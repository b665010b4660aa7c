//! Why an app could not be loaded.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use crate::tls::CertificateError;

/// Why an app could not be loaded.
#[derive(Debug)]
pub struct LoadError(Why);

#[derive(Debug)]
enum Why {
    /// A directory could not be opened.
    Directory(PathBuf, io::Error),
    /// A file that this key of a proxy names can't be used.
    File { key: &'static str, file: PathBuf, error: CertificateError },
    /// The system's authorities can't be used.
    SystemRoots(CertificateError),
    /// No certificate can have this name of an upstream.
    Name(String),
}

impl LoadError {
    pub(super) fn directory(path: PathBuf, error: io::Error) -> Self {
        Self(Why::Directory(path, error))
    }

    pub(super) fn file(key: &'static str, file: &Path, error: CertificateError) -> Self {
        Self(Why::File { key, file: file.to_owned(), error })
    }

    pub(super) fn system_roots(error: CertificateError) -> Self {
        Self(Why::SystemRoots(error))
    }

    pub(super) fn name(name: &str) -> Self {
        Self(Why::Name(name.to_owned()))
    }

    /// The directory or file of the config that could not be used, if it was one.
    pub fn path(&self) -> Option<&Path> {
        match &self.0 {
            Why::Directory(path, _) | Why::File { file: path, .. } => Some(path),
            Why::SystemRoots(_) | Why::Name(_) => None,
        }
    }

    /// The key of a proxy that is to be changed.
    pub(crate) fn key(&self) -> &'static str {
        match &self.0 {
            Why::File { key, .. } => key,
            Why::Directory(..) | Why::SystemRoots(_) | Why::Name(_) => "upstreams",
        }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Why::Directory(path, error) => fmt_directory(path, error, f),
            Why::File { key, error, .. } => write!(f, "`proxy.{key}`: {error}"),
            Why::SystemRoots(error) => write!(
                f,
                "no authorities for https:// upstreams: {error}; install ca-certificates, or set \
                 `proxy.ca`"
            ),
            Why::Name(name) => write!(
                f,
                "no certificate can have the name of the upstream {name:?}; set `proxy.server_name`"
            ),
        }
    }
}

fn fmt_directory(path: &Path, error: &io::Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => write!(f, "{path}: no such directory"),
        io::ErrorKind::NotADirectory => write!(f, "{path}: not a directory"),
        io::ErrorKind::PermissionDenied => write!(f, "{path}: not readable"),
        io::ErrorKind::Unsupported => {
            write!(f, "{path}: the system has no openat2 (Linux 5.6), or forbids it")
        }
        _ => write!(f, "{path}: {error}"),
    }
}

impl std::error::Error for LoadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.0 {
            Why::Directory(_, error) => Some(error),
            Why::File { error, .. } | Why::SystemRoots(error) => Some(error),
            Why::Name(_) => None,
        }
    }
}
