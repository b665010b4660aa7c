//! Makes a loop of the real binary hang, as an app can: ptrace(2) holds it at the first system call
//! of a turn, while the other threads run on. Or makes a loop fail: ptrace(2) lets its
//! epoll_wait(2) fail.

use std::{fs, time::Duration};

use nix::{
    errno::Errno,
    sys::{
        ptrace::{self, Options},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::{
    server::Server,
    wait::{PATIENCE, wait_until},
};

/// A held loop. It is released when this is dropped, so that the process can end when a test fails.
/// Only the thread that holds the loop may use this.
pub struct HeldLoop {
    thread: Pid,
}

impl HeldLoop {
    /// Holds the loop with this number, which has to be idle, after `wake` has given it work.
    /// `None` if tracing a process is forbidden.
    pub fn hold(server: &Server, index: usize, wake: impl FnOnce()) -> Option<Self> {
        let held = Self::stop(server, index)?;
        // It goes back to sleep, wakes up, and makes its first system call.
        held.run_to_call();
        ptrace::syscall(held.thread, None).expect("syscall");
        wake();
        held.wait_stopped();
        held.run_to_call();
        Some(held)
    }

    /// Makes epoll_wait(2) fail in the loop with this number, `times` times; each time `wake` gives
    /// it work. Returns false if that cannot be done here.
    #[cfg(target_arch = "x86_64")]
    pub fn fail(server: &Server, index: usize, times: usize, wake: impl Fn()) -> bool {
        const CALLS: [u64; 2] = [232, 281]; // epoll_wait, epoll_pwait
        const ENTERS: u64 = -38_i64 as u64; // the result register at the entry of a system call
        const EBADF: u64 = -9_i64 as u64;
        let Some(held) = Self::stop(server, index) else { return false };
        let mut failed = 0;
        while failed < times {
            let mut registers = ptrace::getregs(held.thread).expect("registers");
            let waits = CALLS.contains(&registers.orig_rax);
            if waits && registers.rax == ENTERS {
                ptrace::syscall(held.thread, None).expect("syscall");
                wake();
                held.wait_stopped();
                registers = ptrace::getregs(held.thread).expect("registers");
                registers.rax = EBADF;
                ptrace::setregs(held.thread, registers).expect("registers");
                failed += 1;
            }
            if failed < times {
                held.run_to_call();
            }
        }
        held.release();
        true
    }

    /// Other processors have other registers.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn fail(_: &Server, _: usize, _: usize, _: impl Fn()) -> bool {
        eprintln!("skipped: not on this processor");
        false
    }

    /// Stops the loop, wherever it is; `None` if tracing a process is forbidden.
    fn stop(server: &Server, index: usize) -> Option<Self> {
        Self::stop_thread(server, &format!("loop-{index}"))
    }

    /// Stops a thread by its name; `None` if tracing a process is forbidden.
    pub fn stop_thread(server: &Server, name: &str) -> Option<Self> {
        let thread = thread_of(server, name);
        match ptrace::seize(thread, Options::empty()) {
            Err(Errno::EPERM | Errno::ENOSYS | Errno::EACCES) => {
                eprintln!("skipped: ptrace is not permitted");
                return None;
            }
            seized => seized.expect("ptrace"),
        }
        let held = Self { thread };
        ptrace::interrupt(thread).expect("interrupt");
        held.wait_stopped();
        Some(held)
    }

    /// Lets it go on.
    pub fn release(self) {}

    /// Waits for the end of the process, which its parent is notified of later.
    pub fn wait_exit(self) {
        let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
        let gone = || {
            let status = waitpid(self.thread, Some(flags));
            matches!(
                status,
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD)
            )
        };
        assert!(wait_until(PATIENCE, gone), "the process is still there");
    }

    fn run_to_call(&self) {
        ptrace::syscall(self.thread, None).expect("syscall");
        self.wait_stopped();
    }

    fn wait_stopped(&self) {
        let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
        let is_stopped =
            || !matches!(waitpid(self.thread, Some(flags)), Ok(WaitStatus::StillAlive));
        // It may sleep for some seconds before.
        assert!(wait_until(PATIENCE + Duration::from_secs(10), is_stopped), "it does not stop");
    }
}

impl Drop for HeldLoop {
    fn drop(&mut self) {
        // It may have ended.
        let _ = ptrace::detach(self.thread, None);
    }
}

fn thread_of(server: &Server, name: &str) -> Pid {
    let folder = format!("/proc/{}/task", server.pid().as_raw_nonzero());
    let threads = fs::read_dir(folder).expect("the process runs").flatten();
    let is_named = |path: &std::path::Path| {
        fs::read_to_string(path.join("comm")).is_ok_and(|own| own.trim_end() == name)
    };
    let found = threads.map(|entry| entry.path()).find(|path| is_named(path));
    let found = found.unwrap_or_else(|| panic!("no thread {name}"));
    let id = found.file_name().and_then(|id| id.to_str()).expect("a number");
    Pid::from_raw(id.parse().expect("a number"))
}
