//! Why an app could not be loaded.

use std::{fmt, io, path::PathBuf};

/// Why an app could not be loaded.
#[derive(Debug)]
pub struct LoadError {
    pub(super) path: PathBuf,
    pub(super) source: io::Error,
}

impl LoadError {
    /// The directory that could not be opened.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.source.kind() {
            io::ErrorKind::NotFound => write!(f, "{path}: no such directory"),
            io::ErrorKind::NotADirectory => write!(f, "{path}: not a directory"),
            io::ErrorKind::PermissionDenied => write!(f, "{path}: not readable"),
            io::ErrorKind::Unsupported => {
                write!(f, "{path}: the system has no openat2 (Linux 5.6), or forbids it")
            }
            _ => write!(f, "{path}: {}", self.source),
        }
    }
}

impl std::error::Error for LoadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}
