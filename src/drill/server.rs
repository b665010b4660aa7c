//! The server that a drill starts: this binary, with a config and a site in a temporary folder.
//!
//! Owns the folder and the process, and ends both. Of the admin API it knows only the socket's
//! path.

use std::{
    env, fs,
    io::{self, ErrorKind, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::{fs::OpenOptionsExt as _, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant, SystemTime},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Map, Value};
use tempfile::TempDir;

use super::{plan::Target, trust::Trust};
use crate::tls::OwnAuthority;

/// The hosts and their apps. `{n}` is replaced by the number of changes so far.
const APPS: [(&str, &str); 4] = [
    ("hello.drill", r#"respond = { body = "Hello, World! {n}\n" }"#),
    ("other.drill", r#"respond = { body = "another app {n}\n" }"#),
    ("delayed.drill", r#"respond = { body = "worth the wait {n}\n", delay = "20ms" }"#),
    ("files.drill", r#"files = { root = "site", cache_control = "max-age={n}" }"#),
];

/// How long `delayed.drill` delays an answer.
const DELAY: Duration = Duration::from_millis(20);

const SMALL_BYTES: usize = 1 << 10;
const LARGE_BYTES: usize = 4 << 20;

/// Ports outside the range for outgoing connections. Otherwise a client could connect to itself
/// while the server isn't listening.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

/// How long a server may take to exit.
const END_MAX: Duration = Duration::from_secs(40);

/// How often an exit is checked for.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// The drill's own server.
#[derive(Debug)]
pub(crate) struct OwnServer {
    dir: TempDir,
    address: SocketAddr,
    /// Issues its certificates, if it speaks TLS.
    authority: Option<OwnAuthority>,
    changes: [usize; APPS.len()],
    child: Option<Child>,
}

impl OwnServer {
    /// Starts a server. It may not be ready yet.
    ///
    /// # Errors
    /// If a port, a folder or a process is not available.
    pub(crate) fn start(tls: bool) -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("tidegate-drill-").tempdir()?;
        let site = dir.path().join("site");
        fs::create_dir(&site)?;
        fs::write(site.join("small.txt"), vec![b's'; SMALL_BYTES])?;
        fs::write(site.join("large.bin"), vec![b'l'; LARGE_BYTES])?;
        let address = free_address()?;
        let authority = tls.then(|| OwnAuthority::new(SystemTime::now())).transpose();
        let authority = authority.map_err(io::Error::other)?;
        let mut server = Self { dir, address, authority, changes: [0; APPS.len()], child: None };
        server.write_config()?;
        if tls {
            APPS.iter().try_for_each(|(host, _)| server.renew(host).map(drop))?;
        }
        server.spawn()?;
        Ok(server)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn config_path(&self) -> PathBuf {
        self.dir.path().join("config.toml")
    }

    pub(crate) fn admin_socket(&self) -> PathBuf {
        self.dir.path().join("admin.sock")
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.dir.path().join("server.log")
    }

    /// The URLs that the load requests.
    pub(crate) fn targets(&self) -> Vec<Target> {
        let target = |host: &str, path: &str, delay| Target {
            host: host.to_owned(),
            path: path.to_owned(),
            is_large: path.ends_with(".bin"),
            delay,
        };
        vec![
            target("hello.drill", "/", Duration::ZERO),
            target("other.drill", "/a/path?with=query", Duration::ZERO),
            target("delayed.drill", "/", DELAY),
            target("files.drill", "/small.txt", Duration::ZERO),
            target("files.drill", "/large.bin", Duration::ZERO),
        ]
    }

    /// Changes one app in the config, taking turns. Returns its host.
    ///
    /// # Errors
    /// If the config cannot be written.
    pub(crate) fn change(&mut self, turn: usize) -> io::Result<&'static str> {
        let at = turn % APPS.len();
        self.changes[at] += 1;
        self.write_config()?;
        Ok(APPS[at].0)
    }

    /// The host of an app, taking turns.
    pub(crate) fn host(&self, turn: usize) -> &'static str {
        APPS[turn % APPS.len()].0
    }

    /// Issues a certificate for a host, and replaces the file that the server reads. Returns the
    /// certificate as a handshake shows it.
    ///
    /// # Errors
    /// If the file cannot be written, or the server has no certificates.
    pub(crate) fn renew(&self, host: &str) -> io::Result<Vec<u8>> {
        let authority = self.authority.as_ref().ok_or(ErrorKind::Unsupported)?;
        let issued = authority.issue(host, SystemTime::now()).map_err(io::Error::other)?;
        // One file for both: the server never reads a certificate with the key of another.
        let path = self.dir.path().join(format!("{host}.pem"));
        let draft = path.with_extension("new");
        let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(issued.pem.as_bytes())?;
        fs::rename(draft, path)?;
        Ok(issued.der)
    }

    /// Whose certificates the server shows, if it speaks TLS.
    pub(crate) fn trust(&self) -> Option<Trust> {
        self.authority.as_ref().map(|authority| Trust::Own(authority.roots().clone()))
    }

    /// Starts the process again after its exit.
    ///
    /// # Errors
    /// If the process cannot be started.
    pub(crate) fn spawn(&mut self) -> io::Result<()> {
        let log = fs::File::options().create(true).append(true).open(self.log_path())?;
        let mut command = Command::new(env::current_exe()?);
        command.args(["serve", "--config"]).arg(self.config_path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // ^C in the terminal is meant for the drill only.
        command.process_group(0);
        if let Some(ended) = &mut self.child {
            ended.wait()?;
        }
        self.child = Some(command.spawn()?);
        Ok(())
    }

    /// Whether the last started process has exited.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
    }

    /// Sends SIGTERM to the serving process and waits for its exit.
    ///
    /// # Errors
    /// If the process does not exit in time.
    pub(crate) fn stop(&mut self, pid: i32) -> Result<(), String> {
        let process = Pid::from_raw(pid).ok_or("no process")?;
        kill_process(process, Signal::TERM).map_err(|error| format!("SIGTERM: {error}"))?;
        let deadline = Instant::now() + END_MAX;
        // A process that an upgrade started is not our child; one that we started must be reaped.
        while !(self.has_ended_as(pid) || is_gone(pid)) {
            if Instant::now() >= deadline {
                return Err(format!("has not ended {} s after SIGTERM", END_MAX.as_secs()));
            }
            thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    /// Keeps the folder with the server's log for inspection.
    pub(crate) fn keep_folder(&mut self) {
        self.dir.disable_cleanup(true);
    }

    fn has_ended_as(&mut self, pid: i32) -> bool {
        let is_ours =
            self.child.as_ref().is_some_and(|child| i64::from(child.id()) == i64::from(pid));
        is_ours && self.has_ended()
    }

    fn write_config(&self) -> io::Result<()> {
        let (address, is_tls) = (self.address, self.authority.is_some());
        let mut text = format!(
            "[server]\nlisten = [{{ address = \"{address}\", tls = {is_tls} }}]\n\n\
             [admin]\nlisten = \"unix:admin.sock\"\n"
        );
        for ((host, app), changes) in APPS.iter().zip(self.changes) {
            let app = app.replace("{n}", &changes.to_string());
            text += &format!("\n[apps.\"{host}\"]\n{app}\n");
            if is_tls {
                text += &format!("tls = {{ cert = \"{host}.pem\", key = \"{host}.pem\" }}\n");
            }
        }
        // The server must never read half of the file.
        let path = self.config_path();
        let draft = path.with_extension("new");
        fs::write(&draft, text)?;
        fs::rename(draft, path)
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // An error means that it has exited already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The tables of the apps in a config, so that the drill can add the apps again.
///
/// # Errors
/// If the file cannot be read.
pub(crate) fn apps(config: &Path) -> io::Result<Map<String, Value>> {
    let text = fs::read_to_string(config)?;
    let invalid = |error: toml::de::Error| io::Error::new(ErrorKind::InvalidData, error);
    let mut value: Value = toml::from_str(&text).map_err(invalid)?;
    match value["apps"].take() {
        Value::Object(apps) => Ok(apps),
        _ => Ok(Map::new()),
    }
}

fn free_address() -> io::Result<SocketAddr> {
    let mut last = io::Error::from(ErrorKind::AddrInUse);
    for _ in 0..100 {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, fastrand::u16(PORTS)));
        match TcpListener::bind(address) {
            Ok(_) => return Ok(address),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Whether a process has exited, reaped or not.
pub(crate) fn is_gone(pid: i32) -> bool {
    let Ok(line) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    let state = line.rsplit(") ").next().and_then(|rest| rest.chars().next());
    matches!(state, Some('Z' | 'X') | None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_config_is_valid_and_its_apps_can_be_read() {
        let dir = tempfile::tempdir().expect("a folder");
        let address = free_address().expect("a port");
        let changes = [0; APPS.len()];
        let mut server = OwnServer { dir, address, authority: None, changes, child: None };
        fs::create_dir(server.dir.path().join("site")).expect("a folder");
        assert_eq!(server.change(2).expect("written"), "delayed.drill");
        let config = Config::load(&server.config_path()).expect("a config");
        assert_eq!((config.server.listen[0].address, config.apps.len()), (address, 4));
        let apps = apps(&server.config_path()).expect("apps");
        assert_eq!(apps["delayed.drill"]["respond"]["body"], "worth the wait 1\n");
        assert_eq!(apps["hello.drill"]["respond"]["body"], "Hello, World! 0\n");
        for target in server.targets() {
            assert!(apps.contains_key(&target.host), "{}", target.host);
        }
    }

    #[test]
    fn a_process_that_has_exited_is_gone() {
        assert!(!is_gone(std::process::id().cast_signed()));
        let mut child = Command::new("true").spawn().expect("true");
        child.wait().expect("its end");
        assert!(is_gone(child.id().cast_signed()));
    }
}
