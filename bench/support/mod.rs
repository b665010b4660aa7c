//! Shared by the programs that measure a running Tidegate: the real binary as a child, its admin
//! API, and statistics of samples.

// Each program uses its own part of this.
#![allow(dead_code)]

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::machine;

/// Anything that takes longer has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A running server; dropping it ends its process.
pub(crate) struct Server {
    pub(crate) admin: Admin,
    /// The time from its start until it reported that it is ready.
    pub(crate) start: Duration,
    child: Child,
}

impl Server {
    /// Starts the server with the file `config.toml` of a folder, on `cores`, and waits until it is
    /// ready. The calling thread moves to `home`.
    pub(crate) fn start(folder: &Path, cores: &[usize], home: &[usize]) -> io::Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.arg("serve").arg("--config").arg(folder.join("config.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let begun = Instant::now();
        machine::pin(cores)?;
        let child = command.spawn();
        machine::pin(home)?;
        let mut child = child?;
        let said = BufReader::new(child.stderr.take().expect("it is piped"));
        let (sender, ready) = mpsc::channel();
        // Reads to the end, so that the log never blocks.
        std::thread::spawn(move || {
            for line in said.lines().map_while(Result::ok) {
                if line.contains("multi_app_ready") {
                    let _ = sender.send(Instant::now());
                }
            }
        });
        let ready = ready.recv_timeout(PATIENCE).map_err(io::Error::other);
        let admin = Admin { path: folder.join("tidegate.sock") };
        let mut server = Self { admin, start: Duration::ZERO, child };
        server.start = ready?.duration_since(begun);
        Ok(server)
    }

    /// Binds each loop to one of these cores.
    pub(crate) fn pin_loops(&self, cores: &[usize]) -> io::Result<()> {
        for thread in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let thread = thread?;
            let name = fs::read_to_string(thread.path().join("comm"))?;
            let index = name.trim().strip_prefix("loop-").and_then(|index| index.parse().ok());
            let id = thread.file_name().to_str().and_then(|id| id.parse().ok());
            if let (Some::<usize>(index), Some(id)) = (index, id.and_then(Pid::from_raw)) {
                machine::pin_thread(Some(id), &[cores[index % cores.len()]])?;
            }
        }
        Ok(())
    }

    /// Its resident memory (`VmRSS`), in bytes.
    pub(crate) fn memory(&self) -> io::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.map(|kib| kib * 1024).ok_or_else(|| io::Error::other("no VmRSS"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The first signal drains, the second cuts.
        for _ in 0..2 {
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

/// A client of a server's admin API.
#[derive(Clone, Debug)]
pub(crate) struct Admin {
    path: PathBuf,
}

impl Admin {
    /// Sends a request on a new connection.
    pub(crate) fn send(&self, method: &str, path: &str, content: &str) -> io::Result<UnixStream> {
        let mut socket = UnixStream::connect(&self.path)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let length = content.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Length: {length}\r\n\r\n"
        );
        socket.write_all((head + content).as_bytes())?;
        Ok(socket)
    }

    /// The content of a successful answer, as text, and how long it took.
    pub(crate) fn time(&self, method: &str, path: &str) -> io::Result<(String, Duration)> {
        let begun = Instant::now();
        let text = answer(self.send(method, path, "")?)?;
        Ok((text, begun.elapsed()))
    }

    /// The document of a successful answer.
    pub(crate) fn call(&self, method: &str, path: &str, content: &str) -> io::Result<Value> {
        Ok(serde_json::from_str(&answer(self.send(method, path, content)?)?)?)
    }
}

/// The content of a successful answer.
pub(crate) fn answer(mut socket: impl Read) -> io::Result<String> {
    let mut text = String::new();
    socket.read_to_string(&mut text)?;
    match text.split_once("\r\n\r\n") {
        Some((head, content)) if head.starts_with("HTTP/1.1 2") => Ok(content.to_owned()),
        _ => Err(io::Error::other(format!("the admin API said: {text}"))),
    }
}

/// A free address of this machine.
pub(crate) fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// Sorted samples.
pub(crate) struct Sorted(Vec<f64>);

impl Sorted {
    pub(crate) fn new(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        Self(samples)
    }

    /// The quantile of this share, from 0 to 1.
    pub(crate) fn at(&self, share: f64) -> f64 {
        let rank = (self.0.len() as f64 * share).ceil() as usize;
        self.0.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    /// Cells of a table: median, 90th and 99th percentile, highest; of several such, their medians.
    pub(crate) fn cells(slices: &[Self]) -> String {
        let middle = |share| {
            let of_slices = slices.iter().map(|slice| slice.at(share)).collect();
            format!("{:.0}", Self::new(of_slices).at(0.5))
        };
        [0.5, 0.9, 0.99, 1.0].map(middle).join(" | ")
    }
}

/// Microseconds.
pub(crate) fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
