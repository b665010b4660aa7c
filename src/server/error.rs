//! Why a server cannot run.

use std::{fmt, io};

use crate::event_loop::BindError;

/// Why a server cannot run.
#[derive(Debug)]
pub enum ServerError {
    /// An address cannot be listened on.
    Bind(BindError),
    /// The admin's token cannot be read, or is wrong.
    AdminToken(io::Error),
    /// A loop or its thread could not be set up.
    Setup(io::Error),
    /// The process before this one goes on.
    TakeOver(io::Error),
    /// A loop failed while the server ran; the others were drained.
    LoopFailed,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind(error) => error.fmt(f),
            Self::AdminToken(error) => write!(f, "`admin.token_file`: {error}"),
            Self::Setup(error) => write!(f, "cannot set up an event loop: {error}"),
            Self::TakeOver(error) => write!(f, "nothing is taken over: {error}"),
            Self::LoopFailed => f.write_str("an event loop failed"),
        }
    }
}

impl std::error::Error for ServerError {}
