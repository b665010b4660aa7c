//! A client of the admin API over its unix socket.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::wait::PATIENCE;

/// A client of one admin listener.
#[derive(Clone, Debug)]
pub struct Admin {
    path: PathBuf,
}

/// An answer of the admin API.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    #[allow(dead_code, reason = "a failing test shows it")]
    pub head: String,
    pub text: String,
}

impl Answer {
    /// The content as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// The server's error message.
    pub fn error(&self) -> String {
        self.json()["error"].as_str().unwrap_or_else(|| panic!("no error: {self:?}")).to_owned()
    }
}

impl Admin {
    /// The listener with the socket at this path.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The socket's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A connection.
    pub fn connect(&self) -> UnixStream {
        let socket = UnixStream::connect(&self.path).expect("the admin socket");
        socket.set_read_timeout(Some(2 * PATIENCE)).expect("a time-out");
        socket
    }

    /// Sends a request and reads its answer to the end.
    pub fn call(&self, method: &str, path: &str, content: &str) -> Answer {
        let mut socket = self.connect();
        let length = content.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Length: {length}\r\n\r\n"
        );
        socket.write_all((head + content).as_bytes()).expect("send");
        let mut bytes = Vec::new();
        socket.read_to_end(&mut bytes).expect("an answer");
        let text = String::from_utf8(bytes).expect("UTF-8");
        let (head, text) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        assert_eq!(length, Some(&*text.len().to_string()), "the answer is not complete: {head}");
        let status = status.unwrap_or_else(|| panic!("no status: {head}"));
        Answer { status, head: head.to_owned(), text: text.to_owned() }
    }

    /// The document under a path.
    pub fn get(&self, path: &str) -> Value {
        let answer = self.call("GET", path, "");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    /// The outcome of a POST without content, which has to succeed.
    pub fn post(&self, path: &str) -> Value {
        let answer = self.call("POST", path, "");
        assert!((200..300).contains(&answer.status), "{path}: {answer:?}");
        answer.json()
    }

    /// Puts an app under a host.
    pub fn put(&self, path: &str, table: &Value) -> Answer {
        self.call("PUT", path, &table.to_string())
    }

    /// Waits for the end of a drain.
    pub fn wait_drain(&self, id: &Value) -> Value {
        let id = id.as_str().map_or_else(|| id.to_string(), str::to_owned);
        let drain = self.get(&format!("/drains/{id}?wait=20s"));
        assert_eq!(drain["state"], "ended", "{drain}");
        drain
    }

    /// Subscribes to the stream of events.
    pub fn events(&self) -> Events {
        let mut socket = self.connect();
        let request = "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n";
        socket.write_all(request.as_bytes()).expect("send");
        let mut lines = BufReader::new(socket);
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            lines.read_line(&mut line).expect("a head");
        }
        Events { lines }
    }
}

/// A stream of events.
pub struct Events {
    lines: BufReader<UnixStream>,
}

impl Events {
    /// The data of the next event of this name.
    pub fn wait(&mut self, name: &str) -> Value {
        let (mut line, mut is_next) = (String::new(), false);
        loop {
            line.clear();
            let read = self.lines.read_line(&mut line).expect("an event");
            assert!(read > 0, "the stream ended before {name}");
            if let Some(event) = line.trim_end().strip_prefix("event: ") {
                is_next = event == name;
            }
            if let (true, Some(data)) = (is_next, line.strip_prefix("data: ")) {
                return serde_json::from_str(data).expect("JSON");
            }
        }
    }

    /// Whether the server ends the stream.
    pub fn ends(mut self) -> bool {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).is_ok()
    }
}
