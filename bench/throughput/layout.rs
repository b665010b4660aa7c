//! Assigns the cores.

use std::io;

use crate::case::Case;
use crate::kind::Kind;
use crate::machine;
use crate::options::Options;

/// The cores of each process.
pub(crate) struct Layout {
    /// The one core of the server.
    pub(crate) server: usize,
    /// The cores of the load, none of them the server's.
    pub(crate) load: Vec<usize>,
    /// The core of the upstream: its own if there are three.
    pub(crate) upstream: usize,
}

impl Layout {
    /// The server on `core` or the last one, the load on any of the others.
    pub(crate) fn choose(core: Option<usize>) -> io::Result<Layout> {
        let cores = machine::allowed_cores()?;
        let server = core.or(cores.last().copied()).unwrap_or(0);
        if !cores.contains(&server) {
            return Err(io::Error::other(format!("core {server} is not ours to use")));
        }
        let load: Vec<usize> = cores.into_iter().filter(|&core| core != server).collect();
        let Some(&upstream) = load.last() else {
            return Err(io::Error::other("needs two cores: one for the server, one for the load"));
        };
        Ok(Layout { server, load, upstream })
    }

    /// The cores that make the load of `case`.
    pub(crate) fn loading(&self, case: &Case, options: &Options) -> &[usize] {
        let cores = options.load_cores.unwrap_or(case.load_cores).min(self.load.len());
        &self.load[..cores]
    }

    /// The cores of a server, as many as it has loops; the load keeps one.
    pub(crate) fn serving(&self, kind: Kind) -> Vec<usize> {
        let more = (kind.loops() - 1).min(self.load.len() - 1);
        let first = self.load.len() - more;
        self.load[first..].iter().copied().chain([self.server]).collect()
    }

    /// All cores that take part in a measurement of `case`.
    pub(crate) fn in_use(&self, kind: Kind, case: &Case, options: &Options) -> Vec<usize> {
        let upstream = case.proxied.then_some(self.upstream);
        let mut cores: Vec<usize> = self.loading(case, options).to_vec();
        cores.extend(upstream.filter(|core| !cores.contains(core)));
        cores.extend(self.serving(kind));
        cores
    }
}
