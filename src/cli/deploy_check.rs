//! How the checks of an upstream of a deploy are shown. A part of the text is the upstream's: clean
//! it before it is printed.

use std::fmt;

use serde::Deserialize;

/// The checks of one upstream of a deploy.
#[derive(Debug, Deserialize)]
pub(super) struct DeployCheck {
    pub(super) url: String,
    pub(super) ready: bool,
    status: Option<u16>,
    time_ms: Option<u64>,
    first_bytes: Option<String>,
    pub(super) error: Option<String>,
}

impl fmt::Display for DeployCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.url)?;
        match (&self.error, self.status) {
            (Some(error), _) => write!(f, "is not ready: {error}")?,
            (None, Some(status)) => write!(f, "is ready: status {status}")?,
            (None, None) => f.write_str("is ready: connected")?,
        }
        if let Some(time) = self.time_ms {
            write!(f, " in {time} ms")?;
        }
        match &self.first_bytes {
            Some(first) if self.error.is_some() => write!(f, ": {first:?}"),
            _ => Ok(()),
        }
    }
}
