//! The parameters of a load.

use std::{net::SocketAddr, time::Duration};

use super::{
    plan::{ClientKind, Target},
    trust::ClientsTls,
};

/// The parameters of the load.
#[derive(Clone, Debug)]
pub(crate) struct LoadSettings {
    pub(crate) address: SocketAddr,
    pub(crate) targets: Vec<Target>,
    /// For these targets, if the clients speak TLS.
    pub(crate) tls: Option<ClientsTls>,
    /// Requests per second.
    pub(crate) rate: u32,
    /// The kinds of clients.
    pub(crate) kinds: Vec<ClientKind>,
    /// The shortest and longest pause of a thinking client.
    pub(crate) think: (Duration, Duration),
    pub(crate) seed: u64,
    /// Kept connections for each kind of client; over TLS its hosts share them, and each has one at
    /// least.
    pub(crate) connections: usize,
    /// How long a request on a kept connection travels to the server.
    pub(crate) distance: Duration,
    /// The time-out of a request.
    pub(crate) timeout: Duration,
    /// How long the load continues after the last action.
    pub(crate) settle: Duration,
}

impl LoadSettings {
    /// The host of each target that its connections serve, numbered from 0; without TLS a
    /// connection serves all.
    pub(super) fn hosts(&self) -> Vec<usize> {
        let mut names: Vec<&str> = Vec::new();
        let number = |target| match self.tls {
            None => 0,
            Some(_) => number_of(&mut names, target),
        };
        self.targets.iter().map(number).collect()
    }

    /// Connections that a kind of client keeps open to one host, of so many.
    pub(super) fn connections_of(&self, kind: ClientKind, hosts: usize) -> usize {
        match kind {
            // Clients with one request per connection may need many at once.
            ClientKind::Fresh | ClientKind::Leaving => 8 * self.connections,
            // All of them may think about one host.
            ClientKind::Thinking => self.connections,
            _ => self.connections.div_ceil(hosts),
        }
    }
}

fn number_of<'a>(names: &mut Vec<&'a str>, target: &'a Target) -> usize {
    names.iter().position(|name| *name == target.host).unwrap_or_else(|| {
        names.push(&target.host);
        names.len() - 1
    })
}

#[cfg(test)]
mod tests {
    use super::{super::trust::Trust, *};

    #[test]
    fn over_tls_the_hosts_share_the_connections_of_a_client() {
        let target = |host: &str| Target {
            host: host.to_owned(),
            path: "/".to_owned(),
            is_large: false,
            delay: Duration::ZERO,
        };
        let targets = vec![target("a.test"), target("b.test"), target("a.test")];
        let mut settings = LoadSettings {
            address: ([127, 0, 0, 1], 1).into(),
            tls: Some(ClientsTls::new(&targets, &Trust::Insecure).expect("names")),
            targets,
            rate: 1,
            kinds: Vec::new(),
            think: (Duration::ZERO, Duration::ZERO),
            seed: 0,
            connections: 5,
            distance: Duration::ZERO,
            timeout: Duration::ZERO,
            settle: Duration::ZERO,
        };
        assert_eq!(settings.hosts(), [0, 1, 0]);
        assert_eq!(settings.connections_of(ClientKind::Kept, 2), 3);
        assert_eq!(settings.connections_of(ClientKind::Kept, 100), 1);
        assert_eq!(settings.connections_of(ClientKind::Thinking, 2), 5);
        settings.tls = None;
        assert_eq!(settings.hosts(), [0, 0, 0]);
    }
}
