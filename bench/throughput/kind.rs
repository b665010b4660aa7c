//! The servers that are compared.

use clap::ValueEnum;

/// The servers that are known.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Kind {
    /// The least any epoll server can do.
    Floor,
    Tidegate,
    Nginx,
    H2o,
    Haproxy,
    Caddy,
    /// A minimal server with hyper on tokio.
    Hyper,
    /// Tidegate with an access log.
    #[value(skip)]
    Logging,
    /// Another build of Tidegate to compare with, usually an earlier version.
    Before,
    /// Tidegate with this many apps, which all give the small answer.
    #[value(skip)]
    Apps(usize),
    /// Tidegate with this many loops.
    #[value(skip)]
    Loops(usize),
}

impl Kind {
    pub(crate) fn name(self) -> String {
        let name = match self {
            Kind::Floor => "floor",
            Kind::Tidegate => "tidegate",
            Kind::Nginx => "nginx",
            Kind::H2o => "h2o",
            Kind::Haproxy => "haproxy",
            Kind::Caddy => "caddy",
            Kind::Hyper => "hyper",
            Kind::Logging => "tidegate-logging",
            Kind::Before => "before",
            Kind::Apps(apps) => return format!("tidegate-apps-{apps}"),
            Kind::Loops(loops) => return format!("tidegate-loops-{loops}"),
        };
        name.to_owned()
    }

    /// The server's program, without its setup.
    pub(crate) fn program(self) -> Kind {
        match self {
            Kind::Logging | Kind::Apps(_) | Kind::Loops(_) => Kind::Tidegate,
            other => other,
        }
    }

    pub(crate) fn loops(self) -> usize {
        if let Kind::Loops(loops) = self { loops } else { 1 }
    }

    /// How many apps give the small answer.
    pub(crate) fn apps(self) -> usize {
        if let Kind::Apps(apps) = self { apps } else { 1 }
    }
}
