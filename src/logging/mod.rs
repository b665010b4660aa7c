//! Logs: events (what the server does) and access lines (what its peers asked for).
//!
//! Owns one thread for each log; what is logged goes there through a bounded queue. Never makes
//! who logs wait for a disk, a pipe or a terminal: what finds a queue full is lost, counted, and
//! reported in the log itself.
//!
//! Memory is bounded: at most 1 MiB of events and 16 MiB of access lines wait for the disk; a log's
//! thread holds less than 2 MiB more, and each loop less than 384 KiB. At worst that is 21 MiB and
//! 384 KiB for every loop.

mod escape;
mod stamp;
mod writer;

use std::{error, fmt, io};

/// Why logging can't begin.
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
