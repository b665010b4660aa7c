//! How many descriptors the process may have, and how many connections that makes.

use crate::{config::Limits, logging::event};

/// Raises the limit of open files as far as the process may.
pub(super) fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        event!(Warn, "descriptor_limit_not_raised", error:% = error);
    }
}

/// The limit of open files.
pub(super) fn descriptor_limit() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// As many connections as there are descriptors for, beside what is open now and these places of
/// others: an eighth stays free for the files of apps and logs.
pub(super) fn connections_possible(descriptors: usize, loops: usize, others: usize) -> usize {
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    // Each loop is going to open an epoll instance, twice, and the descriptors of its waker.
    let own = open + 4 * loops + descriptors / 8 + others;
    descriptors.saturating_sub(own).max(1)
}

pub(super) fn connections_max(configured: usize, possible: usize) -> usize {
    // The default is no request.
    if possible < configured && configured != Limits::default().connections {
        event!(
            Warn,
            "connections_limited",
            connections = possible as u64,
            configured = configured as u64,
            hint = "the limit of open files is too low: raise it (ulimit -Hn, LimitNOFILE=)",
        );
    }
    possible.min(configured)
}
