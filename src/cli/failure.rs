//! Why a command failed: the cause, a remedy, and the exit code.

use std::{fmt, io};

use serde::Deserialize;

use super::{FAILED, USAGE, client::ClientError, deploy_check::DeployCheck};

/// Why a command failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The arguments, the environment, or a file that they name is invalid.
    Usage(String),
    /// The server can't be reached.
    Client(ClientError),
    /// The answer isn't from a Tidegate of this version.
    Foreign {
        /// The address.
        address: String,
        /// What is wrong with its answer.
        what: String,
    },
    /// The server requires a different token.
    Unauthorized {
        /// The address.
        address: String,
        /// Where our token comes from, if there is one.
        source: Option<String>,
    },
    /// The server's error.
    Refused {
        /// The status of the answer.
        status: u16,
        /// The error in the answer.
        refusal: Refusal,
        /// The answer as JSON, if it is to be printed.
        json: Option<String>,
    },
    /// The server didn't end as it should, or didn't report how it ended.
    Unended(String),
    /// Standard output cannot be written.
    Output(io::Error),
}

/// An error as the server reports it.
#[derive(Debug, Deserialize)]
pub(super) struct Refusal {
    error: String,
    #[serde(default)]
    problems: Vec<Problem>,
    /// Of a deploy that failed.
    #[serde(default)]
    checks: Vec<DeployCheck>,
    /// The process to send the request to instead, after an upgrade.
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
    /// Whether another process must get the request instead, after an upgrade. This one did
    /// nothing.
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
                write!(f, "the server on {address} is not a Tidegate of this version: {what}")
            }
            Self::Unauthorized { address, source } => {
                match source {
                    Some(source) => write!(f, "{address} refuses the token from {source}")?,
                    None => write!(f, "{address} requires a token, and none was given")?,
                }
                f.write_str(
                    "; it is the server's admin.token, taken from --token-file FILE, else from \
                     TIDEGATE_TOKEN, else from the config (--config FILE)",
                )
            }
            Self::Refused { refusal, .. } => {
                f.write_str(&refusal.error)?;
                refusal.problems.iter().try_for_each(|problem| write!(f, "\n{problem}"))?;
                refusal.checks.iter().try_for_each(|check| write!(f, "\n  {check}"))
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
