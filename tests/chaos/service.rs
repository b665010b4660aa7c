//! The server under test, with all its processes: starts, inspects and kills them.

use std::{
    fs::{self, OpenOptions},
    io::{Read, Write},
    net::SocketAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{BINARY, PATIENCE, free_port, wait_until};

/// How long the admin API may take for anything but a wait that was asked for.
const ADMIN_PATIENCE: Duration = Duration::from_secs(40);

/// A server in a folder of its own, on one address for all of its processes.
pub(crate) struct Service {
    folder: TempDir,
    pub(crate) address: SocketAddr,
}

impl Service {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder"), address: free_port() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Replaces the text of the configuration, in one step.
    pub(crate) fn write_config(&self, text: &str) {
        fs::write(self.path("config.new"), text).expect("config.new");
        fs::rename(self.path("config.new"), self.path("config.toml")).expect("rename");
    }

    /// Starts a process, and waits until it serves.
    #[expect(clippy::zombie_processes, reason = "`reap` waits for all that end")]
    pub(crate) fn start(&self) {
        let errors = OpenOptions::new().create(true).append(true).open(self.path("stderr"));
        let mut command = Command::new(BINARY);
        for name in ["TIDEGATE_ADMIN", "RUST_LOG", "RUST_BACKTRACE", "NOTIFY_SOCKET"] {
            command.env_remove(name);
        }
        let child = command
            .args(["serve", "--config"])
            .arg(self.path("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors.expect("stderr"))
            .spawn()
            .expect("the server starts");
        let is_ready = || self.call("GET", "/readyz", "").is_some_and(|(status, _)| status == 200);
        assert!(wait_until(PATIENCE, is_ready), "pid {}: {}", child.id(), self.last_errors());
    }

    /// The last lines that its processes wrote outside of the log.
    pub(crate) fn last_errors(&self) -> String {
        let text = fs::read(self.path("stderr")).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(2000)..]).into_owned()
    }

    /// Calls the admin API; `None` if no process answers.
    pub(crate) fn call(&self, method: &str, path: &str, content: &str) -> Option<(u16, String)> {
        let mut socket = UnixStream::connect(self.path("tidegate.sock")).ok()?;
        socket.set_read_timeout(Some(ADMIN_PATIENCE)).ok()?;
        let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        let text = format!("{head}Content-Length: {}\r\n\r\n{content}", content.len());
        socket.write_all(text.as_bytes()).ok()?;
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).ok()?;
        let answer = String::from_utf8(answer).ok()?;
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        let (status, text) = self.call("GET", path, "")?;
        (status == 200).then(|| serde_json::from_str(&text).ok()).flatten()
    }

    /// The process that answers the admin API.
    pub(crate) fn pid(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.get("/status")?["pid"].as_i64()?).ok()?)
    }

    /// Its running processes. A process that is ending has no arguments any more, but still has its
    /// sockets: it is found by its parent, which is this process.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        self.reap();
        let config = self.path("config.toml");
        let config = config.to_str().expect("text").as_bytes();
        let is_ours = |pid: &Pid| {
            let path = format!("/proc/{}/cmdline", pid.as_raw_nonzero());
            let arguments = fs::read(path).unwrap_or_default();
            arguments.split(|&byte| byte == 0).any(|argument| argument == config)
                || child_state(*pid).is_some()
        };
        all_processes().filter(is_ours).collect()
    }

    /// Whether a process has logged that SIGTERM came.
    pub(crate) fn was_asked_to_stop(&self, pid: Pid) -> bool {
        let pid = pid.as_raw_nonzero().get();
        let is_asked = |event: &Value| event["fields"]["reason"] == "SIGTERM";
        self.events().iter().any(|event| event["pid"] == pid && is_asked(event))
    }

    pub(crate) fn signal(&self, pid: Pid, signal: Signal) {
        // It may have ended meanwhile.
        let _ = kill_process(pid, signal);
    }

    /// Kills a process, and waits until it is gone.
    pub(crate) fn kill(&self, pid: Pid) {
        self.signal(pid, Signal::KILL);
        let is_gone = || !self.processes().contains(&pid);
        assert!(wait_until(PATIENCE, is_gone), "{pid:?} survives SIGKILL");
    }

    /// Reaps children that have ended, also adopted ones.
    fn reap(&self) {
        for pid in all_processes().filter(|pid| child_state(*pid).as_deref() == Some("Z")) {
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }

    /// The events of the log in the order of their times, also those that rotation has moved away.
    pub(crate) fn events(&self) -> Vec<Value> {
        let names = fs::read_dir(self.folder.path()).expect("the folder").flatten();
        let names = names.map(|entry| entry.path()).filter(|path| is_event_log(path));
        let text: String = names.map(|path| fs::read_to_string(path).unwrap_or_default()).collect();
        let events = text.lines().filter_map(|line| serde_json::from_str(line).ok());
        let mut events: Vec<Value> = events.collect();
        events.sort_by_cached_key(|event| event["ts"].to_string());
        events
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        for pid in self.processes() {
            let _ = kill_process(pid, Signal::KILL);
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
        self.reap();
    }
}

fn is_event_log(path: &Path) -> bool {
    path.is_file() && path.file_name().is_some_and(|name| name.to_string_lossy().contains("events"))
}

/// The state of a process (proc_pid_stat(5)), if it is a child of this one and a server.
fn child_state(pid: Pid) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    let (name, columns) = stat.split_once(") ")?;
    let mut columns = columns.split(' ');
    let (state, parent) = (columns.next()?, columns.next()?);
    let is_child = parent == std::process::id().to_string() && name.contains("tidegate");
    is_child.then(|| state.to_owned())
}

fn all_processes() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(Pid::from_raw)
}
