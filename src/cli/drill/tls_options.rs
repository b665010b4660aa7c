//! The options of a drill over TLS.

use std::path::PathBuf;

use clap::Args;

use crate::{cli::failure::Failure, drill::Trust};

#[derive(Debug, Args)]
pub(super) struct TlsOptions {
    /// Speak TLS with the server. The drill's own server gets certificates for it. Counts full,
    /// resumed and failed handshakes. A URL with https:// implies it
    #[arg(long)]
    tls: bool,

    /// Accept certificates of the authorities in this file (PEM). Default: the system's authorities
    #[arg(long, value_name = "FILE", requires = "live", conflicts_with = "insecure")]
    cacert: Option<PathBuf>,

    /// Accept any certificate: who answers is not verified
    #[arg(long, requires = "live")]
    insecure: bool,
}

impl TlsOptions {
    /// Whether the clients speak TLS.
    pub(super) fn is_on(&self, url: Option<&str>) -> bool {
        self.tls || url.is_some_and(|url| url.starts_with("https://"))
    }

    /// Whose certificates the clients accept, from a server that isn't the drill's own.
    pub(super) fn trust(&self) -> Trust {
        match &self.cacert {
            _ if self.insecure => Trust::Insecure,
            Some(file) => Trust::File(file.clone()),
            None => Trust::System,
        }
    }

    /// # Errors
    /// The options contradict each other.
    pub(super) fn check(&self, url: Option<&str>) -> Result<(), Failure> {
        match url {
            Some(url) if self.tls && !url.starts_with("https://") => {
                Err(Failure::Usage(format!("--tls: --url {url} is plain HTTP; write https://")))
            }
            _ if self.is_on(url) => Ok(()),
            _ if self.cacert.is_some() => Err(Failure::Usage("--cacert needs --tls".to_owned())),
            _ if self.insecure => Err(Failure::Usage("--insecure needs --tls".to_owned())),
            _ => Ok(()),
        }
    }
}
