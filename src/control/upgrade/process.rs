//! A process that is followed to its end, whatever its number names later.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, getpid, pidfd_open},
};

/// By this a process knows that it was started by an upgrade, and by which process
/// ([`Process::named`]).
pub(super) const ENVIRONMENT: &str = "TIDEGATE_TAKE_OVER";

/// Another process, by its pidfd.
#[derive(Debug)]
pub(super) struct Process {
    /// None if it had ended before it could be opened.
    pidfd: Option<OwnedFd>,
}

impl Process {
    /// By a pidfd that came from where its number was certain.
    pub(super) fn new(pidfd: OwnedFd) -> Self {
        Self { pidfd: Some(pidfd) }
    }

    /// The process that has this number now. The number may have been reused: only a message that
    /// the process sends after this proves which process it is.
    pub(super) fn numbered(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pidfd = pidfd_open(pid.ok_or(Errno::SRCH)?, PidfdFlags::empty())?;
        Ok(Self::new(pidfd))
    }

    /// What [`Process::named`] finds this process by: its id, and when it started.
    pub(super) fn own_name() -> String {
        let pid = getpid();
        format!("{}:{}", pid.as_raw_nonzero(), start_of(pid).unwrap_or_default())
    }

    /// The process that has named itself so. None if this is no such name.
    pub(super) fn named(name: &str) -> Option<Self> {
        let (pid, start) = name.split_once(':')?;
        let pid = i32::try_from(pid.parse::<u32>().ok()?).ok().and_then(Pid::from_raw)?;
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(Errno::SRCH) => None,
            // Only another process has another start. One whose start is hidden is that one.
            opened => Some(opened.ok()?).filter(|_| start_of(pid).is_none_or(|is| is == start)),
        };
        Some(Self { pidfd })
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ends_within(Duration::ZERO)
    }

    /// Waits for its end, for so long.
    pub(super) fn ends_within(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let Some(pidfd) = &self.pidfd else { return true };
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = Timespec {
                tv_sec: left.as_secs().cast_signed(),
                tv_nsec: left.subsec_nanos().into(),
            };
            match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&left)) {
                Err(Errno::INTR) => {}
                polled => return polled.is_ok_and(|ready| ready > 0),
            }
        }
    }

    /// Waits for its end.
    pub(super) fn wait(&self) {
        while !self.ends_within(Duration::from_secs(3600)) {}
    }

    pub(super) fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }
}

/// When a process started, in ticks since the machine did (proc_pid_stat(5), field 22).
fn start_of(pid: Pid) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name of the program, field 2, may hold anything.
    let after_name = stat.rsplit_once(')')?.1;
    after_name.split_ascii_whitespace().nth(19).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_number_that_names_another_process_now_is_an_ended_one() {
        let own = Process::own_name();
        assert!(!Process::named(&own).unwrap().has_ended());
        // As if the number had been given to this process since.
        assert!(Process::named(&format!("{own}0")).unwrap().has_ended());
        let mut child = Command::new("true").spawn().unwrap();
        let name = format!("{}:1", child.id());
        child.wait().unwrap();
        assert!(Process::named(&name).unwrap().has_ended());
        for wrong in ["1", "", "x:1", "0:1", "-5:1"] {
            assert!(Process::named(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn an_end_is_waited_for() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        let process = Process::new(pidfd);
        assert!(!process.ends_within(Duration::from_millis(1)));
        child.kill().unwrap();
        process.wait();
        child.wait().unwrap();
    }
}
