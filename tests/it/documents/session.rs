//! A reader who pastes the blocks of a page, one after the other, into a shell.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Write},
    os::unix::{
        fs::{PermissionsExt, symlink},
        process::CommandExt,
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

use rustix::process::kill_process_group;
use tempfile::TempDir;

use super::page::{Block, ROOT};
use crate::support::{self, BINARY, Pid, Signal, wait_until};

/// How long a block may take. It is long because a busy machine is no failure.
const PATIENCE: Duration = Duration::from_secs(120);

/// The ports that the documents name; the test takes free ones instead. A command that takes a
/// default port has to name it.
const PORTS: [u16; 6] = [8000, 8080, 8081, 8443, 9000, 9001];

/// A line that the test writes into a shell's output.
const MARK: &str = "=== the test's mark";

/// What a shell prints for a command that fails.
const FAILED: &str = "=== a command failed";

/// A folder, a shell in it, and servers.
pub(crate) struct Session {
    // Before the folder: they end first.
    servers: Vec<Server>,
    shell: Child,
    lines: Receiver<String>,
    ports: Vec<(String, String)>,
    dir: TempDir,
}

/// The result of a block.
pub(crate) struct Said {
    pub(crate) lines: Vec<String>,
    /// Whether every command succeeded.
    pub(crate) is_good: bool,
}

impl Session {
    /// Opens an interactive shell, with the repository's config and site. `None` if this shell is
    /// not installed.
    pub(crate) fn open(shell: &str) -> Option<Self> {
        let (arguments, trap): (&[&str], _) = match shell {
            "bash" => (
                &["--norc", "--noprofile", "--noediting", "-i"],
                format!("trap 'echo \"{FAILED}\"' ERR\n"),
            ),
            _ => (
                &["-f", "-i", "-o", "nopromptsp", "-o", "nopromptcr"],
                format!("TRAPZERR() {{ echo '{FAILED}' }}\n"),
            ),
        };
        let dir = tempfile::tempdir().expect("a folder");
        let free = |port: u16| (format!(":{port}"), format!(":{}", support::free_port().port()));
        let ports: Vec<_> = PORTS.into_iter().map(free).collect();
        fill(dir.path(), &ports);
        let (reader, writer) = io::pipe().expect("a pipe");
        let child = command(shell, dir.path())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(writer.try_clone().expect("a copy"))
            .stderr(writer)
            .spawn();
        let child = child.ok()?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        });
        let mut session = Self { servers: Vec::new(), shell: child, lines, ports, dir };
        // The output of an interactive shell at its start is dropped.
        session.paste(&format!("PS1=\nPS2=\n{trap}"));
        Some(session)
    }

    /// Pastes a text and waits until the shell, and everything in the background, is done with it.
    pub(crate) fn paste(&mut self, text: &str) -> Said {
        let text = self.with_ports(text);
        let input = self.shell.stdin.as_mut().expect("its input");
        write!(input, "{text}wait\necho; echo \"{MARK}\"\n").expect("the shell reads");
        input.flush().expect("the shell reads");
        let mut said = Said { lines: Vec::new(), is_good: true };
        loop {
            let Ok(line) = self.lines.recv_timeout(PATIENCE) else {
                panic!("the shell ended, or hangs, in\n{text}\n{}", said.lines.join("\n"));
            };
            match line.trim_end() {
                MARK => break,
                FAILED => said.is_good = false,
                // A shell's message about a job.
                line if line.starts_with('[') => {}
                line => said.lines.push(line.to_owned()),
            }
        }
        said
    }

    /// Runs a block that starts a server, and returns when it serves.
    pub(crate) fn serve(&mut self, block: &Block) {
        let log = self.dir.path().join(format!("server-{}.log", self.servers.len()));
        let file = File::create(&log).expect("a file");
        let child = command("bash", self.dir.path())
            .args(["-e", "-c", &self.with_ports(&block.text)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .process_group(0)
            .spawn();
        let mut server = Server { child: child.expect("bash") };
        let text = || fs::read_to_string(&log).expect("its log");
        let serves = wait_until(PATIENCE, || {
            text().contains("multi_app_ready") || server.child.try_wait().is_ok_and(|e| e.is_some())
        });
        assert!(serves && text().contains("multi_app_ready"), "{block:?}\n{}", text());
        self.servers.push(server);
    }

    fn with_ports(&self, text: &str) -> String {
        replaced(text, &self.ports)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // An interactive shell ends with its input.
        drop(self.shell.stdin.take());
        if !wait_until(PATIENCE, || self.shell.try_wait().is_ok_and(|ended| ended.is_some())) {
            drop(self.shell.kill());
        }
    }
}

/// A server in the background. An upgrade may have put another process of its group in its place.
struct Server {
    child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        // The page may have stopped it.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        drop(self.child.wait());
    }
}

/// A program with only `PATH` of this environment; the binary's folder comes first in it.
fn command(program: &str, folder: &Path) -> Command {
    let home = folder.ancestors().find(|folder| folder.join("bin").is_dir()).unwrap_or(folder);
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(program);
    command.current_dir(folder).env_clear();
    command.env("PATH", format!("{}:{path}", home.join("bin").display()));
    command.env("HOME", home).env("XDG_RUNTIME_DIR", home);
    command.env("TERM", "dumb").env("LC_ALL", "C.UTF-8");
    command
}

/// Copies the files of the repository that readers need into the folder.
fn fill(folder: &Path, ports: &[(String, String)]) {
    let config = fs::read_to_string(Path::new(ROOT).join("config.toml")).expect("config.toml");
    fs::write(folder.join("config.toml"), replaced(&config, ports)).expect("a file");
    let copied =
        Command::new("cp").arg("-r").arg(Path::new(ROOT).join("site")).arg(folder).status();
    assert!(copied.expect("cp").success());
    fs::create_dir_all(folder.join("target/debug")).expect("a folder");
    fs::create_dir(folder.join("bin")).expect("a folder");
    for link in ["target/debug/tidegate", "bin/tidegate"] {
        symlink(BINARY, folder.join(link)).expect("a link");
    }
    // `cargo build` has been done: the test's own build.
    let cargo = "#!/bin/sh\n[ \"$*\" = build ]\n";
    fs::write(folder.join("bin/cargo"), cargo).expect("a file");
    fs::set_permissions(folder.join("bin/cargo"), fs::Permissions::from_mode(0o755)).expect("it");
}

fn replaced(text: &str, ports: &[(String, String)]) -> String {
    ports.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}
