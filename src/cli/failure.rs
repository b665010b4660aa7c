//! Why a command failed: what is wrong, what to do, and the exit code.

use std::{fmt, io};

use serde::Deserialize;

use super::{FAILED, USAGE, client::ClientError};

/// Why a command failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The arguments, the environment or a file that they name are wrong.
    Usage(String),
    /// There is no talking to the server.
    Client(ClientError),
    /// What answered is no Tidegate, or one of another version.
    Foreign {
        /// The address.
        address: String,
        /// What is wrong with its answer.
        what: String,
    },
    /// The server wants another token; where ours is from.
    Unauthorized {
        /// The address.
        address: String,
        /// Where our token is from, if there is one.
        source: Option<String>,
    },
    /// The server's own error.
    Refused {
        /// The status of the answer.
        status: u16,
        /// What it says.
        refusal: Refusal,
        /// The answer itself, if it is to be printed.
        json: Option<String>,
    },
    /// The server has not ended as it should, or not said how.
    Unended(String),
    /// Standard output cannot be written.
    Output(io::Error),
}

/// An error as the server says it.
#[derive(Debug, Deserialize)]
pub(super) struct Refusal {
    error: String,
    #[serde(default)]
    problems: Vec<Problem>,
    /// The process that has to be asked instead, since an upgrade.
    successor: Option<u32>,
}

/// A mistake in a config.
#[derive(Debug, Deserialize)]
struct Problem {
    file: Option<String>,
    line: Option<u64>,
    column: Option<u64>,
    message: String,
    help: Option<String>,
}

impl Failure {
    /// Whether another process has to be asked instead, since an upgrade. Nothing was done then.
    pub(super) fn is_for_successor(&self) -> bool {
        matches!(self, Self::Refused { refusal: Refusal { successor: Some(_), .. }, .. })
    }

    /// The exit code.
    pub(super) fn code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Refused { status: 422, .. } => USAGE,
            _ => FAILED,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(error) | Self::Unended(error) => f.write_str(error),
            Self::Client(error) => error.fmt(f),
            Self::Foreign { address, what } => {
                write!(f, "what listens on {address} is no Tidegate of this version: {what}")
            }
            Self::Unauthorized { address, source } => {
                match source {
                    Some(source) => write!(f, "{address} refuses the token from {source}")?,
                    None => write!(f, "{address} wants a token, and there is none")?,
                }
                f.write_str(
                    "; it is the server's admin.token, taken from --token-file FILE, else from \
                     TIDEGATE_TOKEN, else from the config (--config FILE)",
                )
            }
            Self::Refused { refusal, .. } => {
                f.write_str(&refusal.error)?;
                refusal.problems.iter().try_for_each(|problem| write!(f, "\n{problem}"))
            }
            Self::Output(error) => write!(f, "standard output: {error}"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, message, help } = self;
        if let Some(file) = file {
            write!(f, "{file}:")?;
        }
        for place in [line, column].into_iter().flatten() {
            write!(f, "{place}:")?;
        }
        write!(f, " {message}")?;
        help.as_ref().map_or(Ok(()), |help| write!(f, " ({help})"))
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}
