//! The launcher: a process that stands between the old one and the new one until the new one
//! serves.
//!
//! A service manager waits only for its own children. So the new process has to be its child before
//! it is named the main process. The old process therefore starts the launcher, from its own
//! program; the launcher starts the new process, and its exit leaves the new process to the service
//! manager (the nearest subreaper, or init).
//!
//! ```text
//!  old                            launcher                      new
//!  the channel's other end ─────► starts the program ─────────► its stdin is the channel
//!                     ◄── Started, or NotStarted
//!                     ◄── Ended, when the new process ends
//!  LetGo ───────────────────────► exits
//!  End ─────────────────────────► kills the new process and its descendants, exits
//!  (the old process dies) ──────► exits: the new process decides by itself
//! ```
//! - As the parent, the launcher knows how the new process ended.
//! - As a subreaper, it is or becomes the parent of all that the new process starts: a wrapper's
//!   children are ended too. It kills only children that it has not waited for, so no process id
//!   can have been recycled.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::fd::{AsFd, OwnedFd},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{
        Pid, PidfdFlags, Signal, WaitOptions, getpid, kill_process, pidfd_open,
        set_child_subreaper, wait,
    },
};
use serde::{Deserialize, Serialize};
use signal_hook::{
    consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2},
    flag,
};

use super::channel::Channel;

/// The first argument of the program when it is the launcher. Operators never give it.
pub(crate) const LAUNCH: &str = "launch-successor";

/// How long a program and its descendants may take to die of SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);

/// How often children that were killed are looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Orders for the launcher.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// Leave the new process alone, and exit.
    LetGo,
    /// End the new process and all that it has started, and exit.
    End,
}

/// What the launcher says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Word {
    /// The program runs; its pidfd comes behind this.
    Started { pid: u32 },
    /// Why it does not.
    NotStarted(String),
    /// It has ended, with this status.
    Ended(String),
}

/// Starts this program, and stands between the process that wants it and the program. This is the
/// launcher's `main`; its standard input is its channel.
///
/// # Errors
/// When it was not started by an upgrade.
pub(crate) fn launch(program: &OsStr, arguments: &[OsString]) -> io::Result<()> {
    let mut old = Channel::from_stdin()?;
    let theirs = old.receive_descriptors(1)?.pop().ok_or(io::ErrorKind::UnexpectedEof)?;
    // A signal for the whole process group is the servers' affair. The handler of SIGCHLD makes
    // sure that a child's end can be waited for, also if that signal was ignored.
    for signal in [SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2] {
        flag::register(signal, Arc::default())?;
    }
    set_child_subreaper(Some(getpid()))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::from(theirs));
    let started = command.spawn();
    // With it goes this process's copy of the new one's end of the channel.
    drop(command);
    match started {
        Ok(mut child) => {
            // It has not been waited for, so the number is its own.
            let new = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
            old.send(&Word::Started { pid: child.id() })?;
            old.send_descriptors(&[new.as_fd()])?;
            stand_between(&mut child, &new, &mut old)
        }
        Err(error) => old.send(&Word::NotStarted(error.to_string())),
    }
}

/// Waits for the old process's word, and reports the new one's end.
fn stand_between(child: &mut Child, new: &OwnedFd, old: &mut Channel) -> io::Result<()> {
    let mut has_ended = false;
    loop {
        let mut ready =
            [PollFd::from_borrowed_fd(old.as_fd(), PollFlags::IN), PollFd::new(new, PollFlags::IN)];
        let watched = if has_ended { &mut ready[..1] } else { &mut ready[..] };
        match poll(watched, None) {
            Err(Errno::INTR) => continue,
            ready => ready?,
        };
        let has_order = !ready[0].revents().is_empty();
        if !has_ended && let Some(status) = child.try_wait()? {
            has_ended = true;
            old.send(&Word::Ended(status.to_string()))?;
        }
        if has_order {
            // Without a word the old process is gone: the new one finds that out.
            return match old.receive() {
                Ok(Order::End) => end_all(child),
                Ok(Order::LetGo) | Err(_) => Ok(()),
            };
        }
    }
}

/// Kills the new process and all that it has started.
fn end_all(child: &mut Child) -> io::Result<()> {
    let until = Instant::now() + KILL_TIMEOUT;
    child.kill()?;
    while Instant::now() < until {
        // The kernel without CONFIG_PROC_CHILDREN lists none.
        let listed = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        let pids = listed.split_ascii_whitespace().filter_map(|pid| pid.parse().ok());
        for pid in pids.filter_map(Pid::from_raw) {
            // A process that has ended meanwhile can still be waited for.
            let _ = kill_process(pid, Signal::KILL);
        }
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) => thread::sleep(LOOK_AGAIN),
            Err(Errno::CHILD) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
