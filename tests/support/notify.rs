//! A service manager's end of sd_notify(3).

use std::{
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::wait::PATIENCE;

/// The socket that a server sends its state to.
pub struct NotifySocket {
    socket: UnixDatagram,
    name: String,
    /// All messages so far, as lists of assignments.
    messages: Vec<(Instant, Vec<String>)>,
    _folder: TempDir,
}

impl NotifySocket {
    /// A socket with a path.
    pub fn with_path() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        Self::new(socket, path.to_str().expect("UTF-8").to_owned(), folder)
    }

    /// A socket in the abstract namespace.
    pub fn with_abstract_name() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        // As unique as the folder's.
        let name = folder.path().to_str().expect("UTF-8").to_owned();
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let socket = UnixDatagram::bind_addr(&address).expect("a socket");
        Self::new(socket, format!("@{name}"), folder)
    }

    fn new(socket: UnixDatagram, name: String, folder: TempDir) -> Self {
        Self { socket, name, messages: Vec::new(), _folder: folder }
    }

    /// The value for `NOTIFY_SOCKET`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Drops all messages so far, also those that wait in the socket.
    pub fn clear(&mut self) {
        while self.receive(Instant::now()) {}
        self.messages.clear();
    }

    /// Waits for a message with an assignment that begins with this, and returns its value. Earlier
    /// messages count too.
    pub fn wait(&mut self, assignment: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(value) = self.values(assignment).pop() {
                return value;
            }
            assert!(self.receive(end), "no {assignment}: {:#?}", self.messages);
        }
    }

    /// Receives for this long.
    pub fn receive_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while self.receive(end) {}
    }

    /// The values of all assignments so far that begin with this.
    pub fn values(&self, assignment: &str) -> Vec<String> {
        let all = self.messages.iter().flat_map(|(_, lines)| lines);
        all.filter_map(|line| line.strip_prefix(assignment)).map(str::to_owned).collect()
    }

    /// When each message came that has such an assignment.
    pub fn times(&self, assignment: &str) -> Vec<Instant> {
        let has = |lines: &[String]| lines.iter().any(|line| line.starts_with(assignment));
        self.messages.iter().filter(|(_, lines)| has(lines)).map(|(time, _)| *time).collect()
    }

    /// The last message that has such an assignment.
    pub fn message(&self, assignment: &str) -> Vec<String> {
        let has = |lines: &[String]| lines.iter().any(|line| line.starts_with(assignment));
        let found = self.messages.iter().rev().find(|(_, lines)| has(lines));
        found.map(|(_, lines)| lines.clone()).unwrap_or_default()
    }

    /// Receives one message; false if none came before `end`.
    fn receive(&mut self, end: Instant) -> bool {
        let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.socket.set_read_timeout(Some(left)).expect("a time-out");
        let mut message = [0; 4096];
        let Ok(length) = self.socket.recv(&mut message) else { return false };
        let text = String::from_utf8_lossy(&message[..length]);
        let lines = text.lines().map(str::to_owned).collect();
        self.messages.push((Instant::now(), lines));
        true
    }
}
