//! The real binary as a child process, its configuration, its events.

use std::{
    collections::HashSet,
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitOptions, getpid, kill_process, prlimit, set_child_subreaper,
    waitpid,
};
use serde_json::Value;
use tempfile::TempDir;

use super::{
    admin::Admin,
    client::Client,
    wait::{PATIENCE, wait_until},
};

/// The tested program.
pub const BINARY: &str = env!("CARGO_BIN_EXE_tidegate");

/// The ticks of `/proc/PID/stat` in a second.
const TICKS_PER_S: u64 = 100;

/// A folder with a configuration, for a server to start.
pub struct Setup {
    dir: TempDir,
    listen: Vec<String>,
    server: String,
    limits: String,
    log: String,
    admin: String,
    apps: String,
    shell: String,
    environment: Vec<(String, String)>,
    activated: Option<(OwnedFd, &'static str)>,
}

impl Setup {
    /// Two loops on a free port of 127.0.0.1, no apps.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let listen = vec!["\"127.0.0.1:0\"".to_owned()];
        let [server, limits, log, admin, apps] = [const { String::new() }; 5];
        Self {
            dir,
            listen,
            server,
            limits,
            log,
            admin,
            apps,
            shell: String::new(),
            environment: Vec::new(),
            activated: None,
        }
    }

    /// Listens on these addresses instead; an entry that begins with `{` is a table.
    pub fn listen(mut self, addresses: &[&str]) -> Self {
        let entry = |text: &&str| {
            if text.starts_with('{') { (*text).to_owned() } else { format!("{text:?}") }
        };
        self.listen = addresses.iter().map(entry).collect();
        self
    }

    /// Adds a line to `[server]`.
    pub fn server(mut self, line: &str) -> Self {
        self.server += &format!("{line}\n");
        self
    }

    /// Adds a line to `[limits]`.
    pub fn limits(mut self, line: &str) -> Self {
        self.limits += &format!("{line}\n");
        self
    }

    /// Adds a line to `[log]`.
    pub fn log(mut self, line: &str) -> Self {
        self.log += &format!("{line}\n");
        self
    }

    /// Adds a line to `[admin]`.
    pub fn admin(mut self, line: &str) -> Self {
        self.admin += &format!("{line}\n");
        self
    }

    /// Adds an app by the lines of its table.
    pub fn app(mut self, host: &str, lines: &str) -> Self {
        self.apps += &format!("\n[apps.\"{host}\"]\n{lines}\n");
        self
    }

    /// Adds an app that answers with its host's name.
    pub fn named_app(self, host: &str) -> Self {
        let lines = format!("respond = {{ body = \"{host}\" }}");
        self.app(host, &lines)
    }

    /// Limits the process to this many descriptors.
    pub fn descriptors(self, most: u32) -> Self {
        self.shell(&format!("ulimit -n {most}"))
    }

    /// Lets a shell run this command first; its process then becomes the server.
    pub fn shell(mut self, command: &str) -> Self {
        self.shell += &format!("{command}; ");
        self
    }

    /// Sets a variable of the environment.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts the process with this listening socket, as systemd would.
    pub fn activated(mut self, socket: impl Into<OwnedFd>) -> Self {
        self.activated = Some((socket.into(), "http"));
        self
    }

    /// Starts the process with this listening socket, as systemd does when it has kept the socket
    /// of the previous process.
    pub fn kept(mut self, socket: impl Into<OwnedFd>) -> Self {
        self.activated = Some((socket.into(), "tidegate-listener-kept"));
        self
    }

    /// The folder of the configuration.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file, and the folders above it.
    pub fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
        fs::write(&path, content).expect("file");
        self
    }

    /// The text of the configuration.
    pub fn text(&self) -> String {
        let threads = if self.server.contains("threads") { "" } else { "threads = 2\n" };
        // No test pauses for longer than that.
        let has_grace = self.server.contains("idle_grace");
        let grace = if has_grace { "" } else { "idle_grace = \"1s\"\n" };
        format!(
            "[server]\nlisten = [{}]\n{threads}{}{grace}\n[limits]\n{}\n[log]\n{}\n[admin]\n{}{}",
            self.listen.join(", "),
            self.server,
            self.limits,
            self.log,
            self.admin,
            self.apps
        )
    }

    /// Writes the configuration.
    pub fn write(&self) -> PathBuf {
        let config = self.dir.path().join("config.toml");
        fs::write(&config, self.text()).expect("config.toml");
        config
    }

    /// Starts the server and waits until it is ready.
    pub fn start(self) -> Server {
        let config = self.write();
        let mut command = match self.activated {
            Some((socket, name)) => activated(socket, name),
            None => command(&self.shell),
        };
        let mut child = command
            // Many tests begin without an app.
            .args(["serve", "--allow-empty", "--config"])
            .arg(&config)
            .envs(self.environment)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let log = Arc::new(Log::default());
        let stderr = child.stderr.take().expect("a pipe");
        thread::spawn({
            let log = Arc::clone(&log);
            move || log.collect(stderr)
        });
        let pid = Pid::from_child(&child);
        let mut server = Server { child, pid, log, addresses: Vec::new(), dir: self.dir };
        let ready = server.wait_event("multi_app_ready");
        let listen = ready.field("listen").expect("multi_app_ready names the addresses");
        let parse = |text: &str| text.parse().unwrap_or_else(|_| panic!("listen={listen:?}"));
        server.addresses = listen.split(',').map(parse).collect();
        server
    }
}

fn command(before: &str) -> Command {
    let mut command = match before {
        "" => Command::new(BINARY),
        before => shell(&format!("{before}exec \"$0\" \"$@\"")),
    };
    command.stdin(Stdio::null());
    without_settings(command)
}

/// A command for a server that gets a listening socket (sd_listen_fds(3)). The shell receives the
/// socket as its standard input.
fn activated(socket: OwnedFd, name: &str) -> Command {
    let mut command = shell(&format!(
        "exec 3<&0 0</dev/null; export LISTEN_FDS=1 LISTEN_PID=$$ LISTEN_FDNAMES={name}; \
         exec \"$0\" \"$@\"",
    ));
    command.stdin(socket);
    without_settings(command)
}

fn shell(script: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", script, BINARY]);
    shell
}

fn without_settings(mut command: Command) -> Command {
    for name in ["TIDEGATE_ADMIN", "RUST_LOG", "RUST_BACKTRACE", "NOTIFY_SOCKET"] {
        command.env_remove(name);
    }
    command
}

/// Runs a command of the binary to its end. Returns the exit code and all output.
pub fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let mut child = command("")
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let ended = wait_until(PATIENCE, || child.try_wait().expect("wait").is_some());
    if !ended {
        let _ = child.kill();
    }
    let output = child.wait_with_output().expect("it ended");
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed).into_owned();
    assert!(ended, "{arguments:?} doesn't end; it printed:\n{printed}");
    (output.status.code(), printed)
}

/// A running server. It is killed when this is dropped; its log is shown if the test failed.
pub struct Server {
    child: Child,
    /// The current process: the child, or the process that an upgrade started.
    pid: Pid,
    log: Arc<Log>,
    addresses: Vec<SocketAddr>,
    dir: TempDir,
}

impl Server {
    /// The first address where it listens.
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// A client of its admin listener.
    pub fn admin(&self) -> Admin {
        Admin::at(self.dir.path().join("tidegate.sock"))
    }

    /// Replaces the text of its configuration, in one step.
    pub fn rewrite(&self, setup: &str) {
        let path = self.dir.path().join("config.toml");
        let new = self.dir.path().join("config.toml.new");
        fs::write(&new, setup).expect("config.toml.new");
        fs::rename(new, path).expect("rename");
    }

    /// All addresses where it listens, in the order of the configuration.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The folder of its configuration.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// A new connection to it.
    pub fn connect(&self) -> Client {
        Client::connect(self.address())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("signal");
    }

    /// Sends a signal to another process of the server.
    pub fn signal_to(&self, pid: Pid, signal: Signal) {
        kill_process(pid, signal).expect("signal");
    }

    /// Stops the process from running until `resume`.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
        let paused = wait_until(PATIENCE, || self.is_stopped());
        assert!(paused, "SIGSTOP stops");
    }

    /// Whether the process is stopped from running.
    pub fn is_stopped(&self) -> bool {
        self.stat(0) == "T"
    }

    /// Lets the process run on.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Limits the running process to this many descriptors; open ones above the limit stay open.
    pub fn lower_descriptor_limit(&self, most: u64) {
        let limit = Rlimit { current: Some(most), maximum: Some(most.max(64)) };
        prlimit(Some(self.pid()), Resource::Nofile, limit).expect("prlimit");
    }

    /// Limits the files that the running process writes to this many bytes; `None` lifts the limit.
    pub fn limit_file_size(&self, most: Option<u64>) {
        let limit = Rlimit { current: most, maximum: None };
        prlimit(Some(self.pid()), Resource::Fsize, limit).expect("prlimit");
    }

    /// Limits the running process to this much more memory than it has now.
    pub fn limit_memory(&self, more_kib: u64) {
        let most = Some((self.memory_kib("VmData") as u64 + more_kib) * 1024);
        let limit = Rlimit { current: most, maximum: most };
        prlimit(Some(self.pid()), Resource::Data, limit).expect("prlimit");
    }

    /// Waits for the end of the process.
    pub fn wait_exit(&mut self) -> ExitStatus {
        self.wait_exit_within(PATIENCE)
    }

    /// Makes this process the parent of orphans, like init, so that it gets their exit codes.
    pub fn adopt_orphans() {
        set_child_subreaper(Some(getpid())).expect("PR_SET_CHILD_SUBREAPER");
    }

    /// Makes this process, which an upgrade has started, the current one.
    pub fn follow(&mut self, pid: Pid) {
        self.pid = pid;
    }

    /// The running processes of this server: those whose arguments name its configuration.
    pub fn processes(&self) -> Vec<Pid> {
        let config = self.dir.path().join("config.toml");
        let config = config.to_str().expect("text").as_bytes();
        let entries = fs::read_dir("/proc").expect("/proc").flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let is_ours = |pid: &i32| {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            arguments.split(|&byte| byte == 0).any(|argument| argument == config)
        };
        pids.filter(is_ours).filter_map(Pid::from_raw).collect()
    }

    /// Unreaped children of all processes of this server.
    pub fn zombies(&self) -> Vec<String> {
        let parents: Vec<_> =
            self.processes().iter().map(|pid| pid.as_raw_nonzero().to_string()).collect();
        let is_zombie = |pid: &String| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let mut columns = stat.rsplit(") ").next().unwrap_or("").split(' ');
            columns.next() == Some("Z")
                && columns.next().is_some_and(|parent| parents.iter().any(|ours| ours == parent))
        };
        let entries = fs::read_dir("/proc").expect("/proc").flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(is_zombie).collect()
    }

    /// Waits for the end of an orphan. Returns its exit code.
    pub fn wait_orphan(&self, pid: Pid) -> Option<i32> {
        let mut code = None;
        let ended = wait_until(PATIENCE, || {
            // It becomes our child when its parent ends.
            let waited = waitpid(Some(pid), WaitOptions::NOHANG).ok().flatten();
            code = waited.map(|(_, status)| status.exit_status());
            code.is_some()
        });
        assert!(ended, "{pid:?} runs");
        code.flatten()
    }

    /// Waits for the end of the process, and fails the test at the deadline.
    pub fn wait_exit_within(&mut self, deadline: Duration) -> ExitStatus {
        let mut status = None;
        let child = &mut self.child;
        wait_until(deadline, || {
            status = child.try_wait().expect("wait");
            status.is_some()
        });
        let status = status.unwrap_or_else(|| panic!("the server runs after {deadline:?}"));
        assert_eq!(status.signal(), None, "the server was killed");
        if self.pid == Pid::from_child(child) {
            self.log.wait_closed();
        }
        status
    }

    /// Ends the first process at once.
    pub fn kill_first(&mut self) {
        self.child.kill().and_then(|()| self.child.wait()).expect("kill");
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }

    /// Waits for the first event of this name.
    pub fn wait_event(&self, name: &str) -> Event {
        let mut found = None;
        self.log.wait(PATIENCE, |lines| {
            found = lines.iter().filter_map(|line| Event::parse(line)).find(|e| e.name == name);
            found.is_some()
        });
        found.unwrap_or_else(|| panic!("no event {name} in the log:\n{}", self.log.text()))
    }

    /// All events so far.
    pub fn events(&self) -> Vec<Event> {
        self.log.lines().iter().filter_map(|line| Event::parse(line)).collect()
    }

    /// All lines of its standard error so far.
    pub fn log_lines(&self) -> Vec<String> {
        self.log.lines()
    }

    /// Waits until the server has accepted these connections and read everything sent on them.
    pub fn wait_read<'a>(&self, clients: impl IntoIterator<Item = &'a Client>) {
        let ports: Vec<u16> = clients.into_iter().map(Client::port).collect();
        let read = wait_until(PATIENCE, || self.has_read(&ports));
        assert!(read, "the server doesn't read");
    }

    /// Whether the sockets with these peer ports are accepted and have no unread bytes.
    fn has_read(&self, client_ports: &[u16]) -> bool {
        let table = fs::read_to_string("/proc/net/tcp").expect("/proc/net/tcp");
        let local = format!(":{:04X} ", self.address().port());
        let mut waiting = client_ports.to_vec();
        // The table has a line for every connection of the machine: filter before splitting.
        for line in table.lines().filter(|line| line.contains(&local)) {
            let columns: Vec<&str> = line.split_ascii_whitespace().collect();
            let [_, own, peer, _, queues, _, _, _, _, inode, ..] = columns[..] else { continue };
            let port = peer.rsplit(':').next().and_then(|hex| u16::from_str_radix(hex, 16).ok());
            let read = queues.ends_with(":00000000") && inode != "0";
            if own.ends_with(local.trim_end()) && read {
                waiting.retain(|waiting| Some(*waiting) != port);
            }
        }
        waiting.is_empty()
    }

    /// Bytes from this client that are in the kernel and no loop has read.
    pub fn unread_bytes(&self, client: &Client) -> u64 {
        let [own, peer] = [client.server_port(), client.port()].map(|port| format!(":{port:04X}"));
        let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(fs::read_to_string);
        let mut lines = tables.iter().flatten().flat_map(|table| table.lines());
        let unread = lines.find_map(|line| {
            let mut columns = line.split_ascii_whitespace().skip(1);
            columns.next().filter(|address| address.ends_with(&own))?;
            columns.next().filter(|address| address.ends_with(&peer))?;
            let (_, unread) = columns.nth(1)?.split_once(':')?;
            u64::from_str_radix(unread, 16).ok()
        });
        unread.unwrap_or_else(|| panic!("no connection from port {}", client.port()))
    }

    /// How many handshakes with its first address are under way.
    pub fn handshakes(&self) -> usize {
        const SYN_RECV: &str = "03";
        let table = fs::read_to_string("/proc/net/tcp").expect("/proc/net/tcp");
        let local = format!(":{:04X}", self.address().port());
        let under_way = |line: &&str| {
            let columns: Vec<&str> = line.split_ascii_whitespace().take(4).collect();
            matches!(columns[..], [_, own, _, SYN_RECV] if own.ends_with(&local))
        };
        table.lines().filter(under_way).count()
    }

    /// The number that the next descriptor of the process gets.
    pub fn lowest_free_descriptor(&self) -> u64 {
        let folder = format!("/proc/{}/fd", self.pid.as_raw_nonzero());
        let entries = fs::read_dir(folder).expect("the process runs").flatten();
        let open: HashSet<u64> =
            entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        (0..).find(|number| !open.contains(number)).expect("a number")
    }

    /// The open descriptors of the process.
    pub fn descriptors(&self) -> Vec<String> {
        let folder = format!("/proc/{}/fd", self.pid.as_raw_nonzero());
        let entries = fs::read_dir(folder).expect("the process runs");
        let links = entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        links.map(|link| link.to_string_lossy().into_owned()).collect()
    }

    /// How many sockets the process has open.
    pub fn sockets(&self) -> usize {
        self.descriptors().iter().filter(|link| link.starts_with("socket:")).count()
    }

    /// The processor time the process has used.
    pub fn cpu_time(&self) -> Duration {
        let ticks = |index| self.stat(index).parse::<u64>().expect("a number");
        Duration::from_millis((ticks(11) + ticks(12)) * 1000 / TICKS_PER_S)
    }

    /// The memory that the process has in use, in KiB.
    pub fn resident_kib(&self) -> usize {
        self.memory_kib("VmRSS")
    }

    fn memory_kib(&self, what: &str) -> usize {
        let path = format!("/proc/{}/status", self.pid.as_raw_nonzero());
        let text = fs::read_to_string(path).expect("the process runs");
        let line = text.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
        line.expect(what).trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// A column of `/proc/PID/stat`, counted from the state of the process.
    fn stat(&self, index: usize) -> String {
        let path = format!("/proc/{}/stat", self.pid.as_raw_nonzero());
        let line = fs::read_to_string(path).expect("the process runs");
        let columns = line.rsplit(')').next().unwrap_or("");
        columns.split_ascii_whitespace().nth(index).unwrap_or("").to_owned()
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The process id of its parent.
    pub fn parent(&self) -> u32 {
        self.stat(1).parse().expect("a number")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // An error means that it has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in self.processes() {
            let _ = kill_process(pid, Signal::KILL);
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
        self.log.wait_closed();
        let text = self.log.text();
        if thread::panicking() {
            eprintln!("--- the server's log\n{text}---");
        } else {
            let has_panicked = text.contains("panicked at") || text.contains("thread_panicked");
            assert!(!has_panicked, "the server panicked:\n{text}");
        }
    }
}

/// One event of the log.
#[derive(Clone, Debug)]
pub struct Event {
    pub level: String,
    pub name: String,
    fields: Vec<(String, String)>,
}

impl Event {
    /// Parses `time LEVEL name key=value key="va lue" …`, or an event in JSON.
    fn parse(line: &str) -> Option<Self> {
        if line.starts_with('{') {
            return Self::parse_json(line);
        }
        let mut words = words(line).into_iter();
        let time = words.next()?;
        if !time.ends_with('Z') || !time.starts_with("20") {
            return None;
        }
        let (level, name) = (words.next()?, words.next()?);
        let fields = words
            .filter_map(|word| {
                let (key, value) = word.split_once('=')?;
                Some((key.to_owned(), value.to_owned()))
            })
            .collect();
        Some(Self { level, name, fields })
    }

    fn parse_json(line: &str) -> Option<Self> {
        let line: Value = serde_json::from_str(line).ok()?;
        let text = |value: &Value| value.as_str().map_or(value.to_string(), str::to_owned);
        let (level, name) =
            (line["level"].as_str()?.to_owned(), line["event"].as_str()?.to_owned());
        let fields = line.get("fields").and_then(Value::as_object).into_iter().flatten();
        let fields = fields.map(|(key, value)| (key.clone(), text(value))).collect();
        Some(Self { level, name, fields })
    }

    /// The value of a field.
    pub fn field(&self, key: &str) -> Option<&str> {
        self.fields.iter().find(|(own, _)| own == key).map(|(_, value)| value.as_str())
    }

    /// The value of a field that is a number.
    pub fn count(&self, key: &str) -> usize {
        let value = self.field(key).unwrap_or_else(|| panic!("{} without {key}", self.name));
        value.parse().unwrap_or_else(|_| panic!("{key}={value:?}"))
    }
}

/// Splits at spaces outside of quotes, and removes the quotes.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let (mut quoted, mut escaped) = (false, false);
    for char in line.chars() {
        let word = words.last_mut().expect("never empty");
        match char {
            _ if escaped => {
                word.push(char);
                escaped = false;
            }
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            other => word.push(other),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The lines of the child's standard error.
#[derive(Default)]
struct Log {
    state: Mutex<LogState>,
    changed: Condvar,
}

#[derive(Default)]
struct LogState {
    lines: Vec<String>,
    closed: bool,
}

impl Log {
    fn collect(&self, stderr: ChildStderr) {
        for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
            self.state.lock().expect("log").lines.push(String::from_utf8_lossy(&line).into_owned());
            self.changed.notify_all();
        }
        self.state.lock().expect("log").closed = true;
        self.changed.notify_all();
    }

    /// Waits until `condition` holds for the lines, the pipe is closed, or the deadline.
    fn wait(&self, deadline: Duration, mut condition: impl FnMut(&[String]) -> bool) {
        let end = Instant::now() + deadline;
        let mut state = self.state.lock().expect("log");
        while !condition(&state.lines) && !state.closed {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.changed.wait_timeout(state, left).expect("log").0;
        }
    }

    fn wait_closed(&self) {
        self.wait(PATIENCE, |_| false);
    }

    fn lines(&self) -> Vec<String> {
        self.state.lock().expect("log").lines.clone()
    }

    fn text(&self) -> String {
        self.lines().iter().map(|line| format!("{line}\n")).collect()
    }
}
