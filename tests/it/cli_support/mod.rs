//! Shared by the tests of the command line: the real binary, and a fake server with a script.

use std::{
    ffi::OsStr,
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use rustix::{
    pty::{OpenptFlags, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use serde_json::Value;
use tempfile::TempDir;

/// How long a command may take; long, because a busy machine is no failure.
const PATIENCE: Duration = Duration::from_secs(40);

/// A request as the fake server saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Method and target.
    pub line: String,
    /// The head without its first line, in lower case.
    pub fields: String,
    /// The content.
    pub content: String,
}

/// What the fake server does with a request.
pub enum Reply {
    /// Answers, and keeps the connection.
    Json(u16, Value),
    /// Writes these bytes and closes the connection.
    Bytes(Vec<u8>),
    /// Keeps the connection and never answers.
    Silence,
    /// Answers, closes the connection and ends.
    JsonAndEnd(u16, Value),
    /// Closes the connection and ends, without an answer.
    End,
}

/// A server on a socket in a folder of its own.
pub struct Fake {
    dir: TempDir,
    address: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

trait Connection: Read + Write + Send {}
impl<T: Read + Write + Send> Connection for T {}

impl Fake {
    /// Listens on a unix socket and answers as `script` says.
    pub fn unix(script: impl FnMut(&Seen) -> Reply + Send + 'static) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("tidegate.sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        let accept = move || Box::new(listener.accept().expect("accept").0) as Box<dyn Connection>;
        let address = format!("unix:{}", path.display());
        Self::start(dir, address, accept, script)
    }

    /// Like [`Self::unix`], on a TCP address.
    pub fn tcp(script: impl FnMut(&Seen) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address").to_string();
        let accept = move || Box::new(listener.accept().expect("accept").0) as Box<dyn Connection>;
        Self::start(tempfile::tempdir().expect("a folder"), address, accept, script)
    }

    /// Gives all requests the same answer.
    pub fn always(status: u16, json: Value) -> Self {
        Self::unix(move |_| Reply::Json(status, json.clone()))
    }

    fn start(
        dir: TempDir,
        address: String,
        accept: impl Fn() -> Box<dyn Connection> + Send + 'static,
        mut script: impl FnMut(&Seen) -> Reply + Send + 'static,
    ) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        thread::spawn(move || while converse(accept(), &log, &mut script) {});
        Self { dir, address, seen }
    }

    /// The folder of the socket, in which commands run.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no panic").clone()
    }

    /// The first lines of all requests so far.
    pub fn lines(&self) -> Vec<String> {
        self.seen().into_iter().map(|seen| seen.line).collect()
    }

    /// A command to this server.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = tidegate(self.dir(), arguments);
        command.env("TIDEGATE_ADMIN", &self.address);
        command
    }

    /// Runs a command to this server.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        run(self.command(arguments))
    }
}

/// Answers the requests of one connection. Returns whether another connection may come.
fn converse(
    connection: Box<dyn Connection>,
    log: &Mutex<Vec<Seen>>,
    script: &mut impl FnMut(&Seen) -> Reply,
) -> bool {
    let mut connection = BufReader::new(connection);
    while let Some(seen) = receive(&mut connection) {
        log.lock().expect("no panic").push(seen.clone());
        let reply = script(&seen);
        let (bytes, keeps, ends) = match reply {
            Reply::Json(status, json) => (answer(status, &json), true, false),
            Reply::Bytes(bytes) => (bytes, false, false),
            Reply::Silence => (Vec::new(), true, false),
            Reply::JsonAndEnd(status, json) => (answer(status, &json), false, true),
            Reply::End => (Vec::new(), false, true),
        };
        // The client may be gone.
        let _ = connection.get_mut().write_all(&bytes);
        if !keeps {
            return !ends;
        }
    }
    true
}

fn receive(connection: &mut impl BufRead) -> Option<Seen> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if connection.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let (line, fields) = head.split_once("\r\n")?;
    let fields = fields.to_lowercase();
    let length = fields.lines().find_map(|field| field.strip_prefix("content-length: "));
    let length = length.map_or(0, |length| length.parse().expect("a length"));
    let mut content = vec![0; length];
    connection.read_exact(&mut content).ok()?;
    Some(Seen {
        line: line.strip_suffix(" HTTP/1.1").expect("HTTP/1.1").to_owned(),
        fields,
        content: String::from_utf8(content).expect("UTF-8"),
    })
}

fn answer(status: u16, json: &Value) -> Vec<u8> {
    let content = format!("{json}\n");
    let length = content.len();
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    (head + &content).into_bytes()
}

/// How a command ended.
#[derive(Debug)]
pub struct Ran {
    /// The exit code.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ran {
    /// Fails unless it ended with this code and standard error contains these texts.
    #[track_caller]
    pub fn expect_failure(&self, code: i32, texts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        for text in texts {
            assert!(self.err.contains(text), "{text:?} isn't in {self:?}");
        }
        assert!(self.err.starts_with("tidegate: ") && self.out.is_empty(), "{self:?}");
    }

    /// Fails unless it ended with this code, printed this, and wrote nothing to standard error.
    #[track_caller]
    pub fn expect_output(&self, code: i32, out: &str) {
        assert_eq!((self.code, self.out.as_str(), self.err.as_str()), (Some(code), out, ""));
    }
}

/// The real binary, in a folder and without settings of this environment.
pub fn tidegate(folder: &Path, arguments: &[&str]) -> Command {
    tidegate_at(Path::new(env!("CARGO_BIN_EXE_tidegate")), folder, arguments)
}

/// A copy of the binary.
pub fn tidegate_at(binary: &Path, folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary);
    command.args(arguments).current_dir(folder).env_clear().env("TERM", "xterm");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs a command to its end.
pub fn run(mut command: Command) -> Ran {
    let child = command.spawn().expect("it starts");
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    let output = receiver.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{command:?} hangs"));
    let Output { status, stdout, stderr } = output.expect("its output");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ran { code: status.code(), out: text(stdout), err: text(stderr) }
}

/// A terminal for a command to write to.
pub struct Terminal {
    reader: File,
    path: PathBuf,
}

impl Terminal {
    /// Opens one.
    pub fn open() -> Self {
        let reader = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .expect("a terminal");
        unlockpt(&reader).expect("unlocked");
        let name = ptsname(&reader, Vec::new()).expect("a name");
        let path = PathBuf::from(OsStr::new(name.to_str().expect("UTF-8")));
        Self { reader: reader.into(), path }
    }

    /// Makes it this wide.
    pub fn set_columns(&self, columns: u16) {
        let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.reader, size).expect("a size");
    }

    /// For a command to write to.
    pub fn writer(&self) -> File {
        File::options().write(true).open(&self.path).expect("the terminal")
    }

    /// All that was written; the writers must be gone.
    pub fn written(mut self) -> String {
        let mut bytes = Vec::new();
        // A terminal without a writer ends with an error.
        let _ = self.reader.read_to_end(&mut bytes);
        String::from_utf8(bytes).expect("UTF-8")
    }
}
