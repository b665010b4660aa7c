//! Whose certificates the drill's clients accept, and the sessions that they keep.

use std::{collections::HashMap, fmt, path::PathBuf};

use super::plan::Target;
use crate::{
    http::{Host, h1},
    tls::{ClientTls, Roots, ServerCheck, load_roots},
};

/// What the clients speak.
const PROTOCOLS: &[&[u8]] = &[h1::ALPN];

/// Whose certificates the clients accept.
#[derive(Clone)]
pub(crate) enum Trust {
    /// Those of the drill's own authority.
    Own(Roots),
    /// Those of the system's authorities.
    System,
    /// Those of the authorities in this file.
    File(PathBuf),
    /// All.
    Insecure,
}

/// TLS of the clients, for each target.
#[derive(Clone, Debug)]
pub(crate) struct ClientsTls(Vec<HostTls>);

/// TLS to one host.
#[derive(Clone, Debug)]
pub(super) struct HostTls {
    /// Keeps no session: every handshake is a full one.
    pub(super) full: ClientTls,
    /// Resumes a session of an earlier connection, if it has one.
    pub(super) resuming: ClientTls,
}

impl ClientsTls {
    /// # Errors
    /// The authorities cannot be read, or a target's host cannot be verified.
    pub(crate) fn new(targets: &[Target], trust: &Trust) -> Result<Self, String> {
        let loaded = match trust {
            Trust::Own(roots) => Some(roots.clone()),
            Trust::System => Some(load_roots(None).map_err(|error| error.to_string())?),
            Trust::File(file) => Some(load_roots(Some(file)).map_err(|error| error.to_string())?),
            Trust::Insecure => None,
        };
        let check = loaded.as_ref().map_or(ServerCheck::Insecure, ServerCheck::Roots);
        let mut hosts: HashMap<&str, HostTls> = HashMap::new();
        let mut all = Vec::new();
        for Target { host, .. } in targets {
            if !hosts.contains_key(host.as_str()) {
                hosts.insert(host, HostTls::new(host, &check)?);
            }
            all.push(hosts[host.as_str()].clone());
        }
        Ok(Self(all))
    }

    pub(super) fn of(&self, target: usize) -> &HostTls {
        &self.0[target]
    }
}

impl HostTls {
    fn new(host: &str, check: &ServerCheck<'_>) -> Result<Self, String> {
        let name = Host::parse(host.as_bytes()).map(|host| host.name().to_owned());
        let name = name.ok_or_else(|| format!("{host}: not a host name"))?;
        let full = ClientTls::new(&name, check, None, PROTOCOLS);
        let full = full.map_err(|error| error.to_string())?;
        let full = full.ok_or_else(|| format!("{host}: no certificate can be for this host"))?;
        Ok(Self { resuming: full.with_sessions(), full })
    }
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(_) => f.write_str("an authority of the drill's own"),
            Self::System => f.write_str("the system's authorities"),
            Self::File(file) => write!(f, "the authorities in {}", file.display()),
            Self::Insecure => f.write_str("nothing: any server is accepted (--insecure)"),
        }
    }
}
