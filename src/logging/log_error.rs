//! Why logging can't start.

use std::{error, fmt, io};

/// Why logging can't start.
#[derive(Debug)]
pub enum LogError {
    /// The output can't be opened.
    Open {
        /// The path, or the name of a standard stream.
        output: String,
        /// The reason.
        error: io::Error,
    },
    /// A log's thread can't be started.
    Thread(io::Error),
    /// The process has a logger already.
    AlreadyInitialized,
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { output, error } => write!(f, "cannot open log {output}: {error}"),
            Self::Thread(error) => write!(f, "cannot start a log's thread: {error}"),
            Self::AlreadyInitialized => f.write_str("logging is already initialized"),
        }
    }
}

impl error::Error for LogError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Open { error, .. } | Self::Thread(error) => Some(error),
            Self::AlreadyInitialized => None,
        }
    }
}
