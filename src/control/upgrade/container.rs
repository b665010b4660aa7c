//! Detects whether the end of this process ends its successor, too: in a container whose first
//! process is this one, or ends with this one.

use std::{env, fs};

use rustix::process::{Pid, getpid, getppid};

/// Inits of containers that end when the program that they have started ends.
const INITS_THAT_END: &[&str] = &["catatonit", "docker-init", "dumb-init", "podman-init", "tini"];

const ADVICE: &str = "and the kernel ends every process of a container with its PID 1: the new \
                      one would be killed when this one has drained. Run the server below an init \
                      that stays (systemd, s6), or start a new container beside this one";

/// Why a successor would not outlive this process.
pub(super) fn why_no_successor() -> Option<String> {
    if getpid().is_init() {
        return Some(format!("the server is PID 1, {ADVICE}"));
    }
    let init = fs::read_to_string("/proc/1/comm").unwrap_or_default();
    let parent_is_init = getppid().is_some_and(Pid::is_init);
    // A service manager that knows of the new process does not end.
    let is_managed = env::var_os("NOTIFY_SOCKET").is_some();
    let ends = parent_is_init && !is_managed && INITS_THAT_END.contains(&init.trim());
    ends.then(|| format!("its parent {} ends with the server, {ADVICE}", init.trim()))
}
