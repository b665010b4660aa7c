//! Signals that the parent process blocked or ignored: the server handles them nevertheless.

use std::fs;

use crate::support::{PATIENCE, Pid, Server, Setup, Signal, wait_until};

/// A signal mask of a process (`/proc/PID/status`).
fn mask(pid: Pid, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    u64::from_str_radix(line.expect(name).trim(), 16).expect("a mask")
}

fn bit(signal: Signal) -> u64 {
    1 << (signal.as_raw() - 1)
}

/// Uses every signal that the server handles, before and after an upgrade.
fn steer(mut server: Server) {
    let steering = [Signal::HUP, Signal::USR1, Signal::USR2, Signal::TERM, Signal::INT];
    let is_handled = |pid, signal: &Signal| {
        (mask(pid, "SigBlk") | mask(pid, "SigIgn")) & bit(*signal) == 0
            && mask(pid, "SigCgt") & bit(*signal) != 0
    };
    assert!(steering.iter().all(|signal| is_handled(server.pid(), signal)));
    server.signal(Signal::HUP);
    server.wait_event("config_reload_complete");
    let path = server.dir().join("access.log");
    fs::remove_file(&path).expect("access.log");
    server.signal(Signal::USR1);
    assert!(wait_until(PATIENCE, || path.exists()), "USR1 does nothing");
    server.signal(Signal::USR2);
    let pid = server.wait_event("upgrade_handed_over").count("pid");
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid");
    server.follow(pid);
    server.wait_event("upgrade_complete");
    assert!(steering.iter().all(|signal| is_handled(pid, signal)), "in the new process");
    assert_eq!(mask(pid, "SigBlk"), 0, "in the new process");
    server.signal(Signal::TERM);
    assert_eq!(server.wait_orphan(pid), Some(0));
}

fn setup() -> Setup {
    Server::adopt_orphans();
    Setup::new()
        .server("threads = 1\nidle_grace = \"0s\"")
        .log("access = \"combined\"\naccess_path = \"access.log\"")
        .named_app("app.test")
}

#[test]
fn signals_that_the_parent_blocked_steer_the_server() {
    let block = "my $all = POSIX::SigSet->new; $all->fillset; sigprocmask(SIG_BLOCK, $all)";
    let perl = format!("exec perl -MPOSIX -e '{block}; exec @ARGV' -- \"$0\" \"$@\"");
    steer(setup().shell(&perl).start());
}

#[test]
fn signals_that_the_parent_ignored_steer_the_server() {
    steer(setup().shell("trap '' HUP USR1 USR2 TERM INT XFSZ").start());
}
