//! Other processes on this machine, as seen in /proc: which one listens on an address, and which
//! servers were started from a config.
//!
//! Used for messages and for finding a server. A process that can't be inspected counts as absent.

use std::{
    borrow::Cow,
    collections::HashSet,
    fmt, fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use clap::{Parser, Subcommand};

use super::{Place, serve_options::Serve};

/// The arguments of a server process. Those of other commands don't parse.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    place: Place,
}

#[derive(Subcommand)]
enum Command {
    Serve(Serve),
}

/// A process.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: u32,
    name: String,
    /// The config, if the process is a Tidegate server.
    config: Option<PathBuf>,
}

/// A server that was started from a config.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) pid: u32,
    /// The unix sockets on which it listens; usually just the admin socket.
    pub(super) sockets: Vec<PathBuf>,
    /// The loopback addresses on which it listens.
    pub(super) loopback: Vec<SocketAddr>,
}

/// The process that listens on this address, or on all addresses with this port.
pub(super) fn listener(address: SocketAddr) -> Option<Process> {
    let is_it = |listening: &(SocketAddr, u64)| {
        let (other, _) = listening;
        let is_same = other.ip() == address.ip()
            || other.ip().is_unspecified()
            || address.ip().is_unspecified();
        other.port() == address.port() && other.is_ipv4() == address.is_ipv4() && is_same
    };
    let inodes: HashSet<u64> =
        tcp_listeners().into_iter().filter(is_it).map(|(_, inode)| inode).collect();
    let pid = pids().find(|pid| sockets(*pid).iter().any(|inode| inodes.contains(inode)))?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(Process { pid, name: name.trim_end().to_owned(), config: config_of(pid) })
}

/// The running servers that were started from this config.
pub(super) fn servers_of(config: &Path) -> Vec<Server> {
    let Ok(config) = fs::canonicalize(config) else { return Vec::new() };
    let is_its = |pid: &u32| {
        config_of(*pid).and_then(|other| fs::canonicalize(other).ok()).as_ref() == Some(&config)
    };
    let pids: Vec<u32> = pids().filter(is_its).collect();
    if pids.is_empty() {
        return Vec::new();
    }
    let (tcp, unix) = (tcp_listeners(), unix_listeners());
    let server = |pid| {
        let own = sockets(pid);
        let sockets = unix.iter().filter(|(_, inode)| own.contains(inode));
        let is_loopback = |(address, inode): &&(SocketAddr, u64)| {
            own.contains(inode) && address.ip().is_loopback()
        };
        let mut loopback: Vec<SocketAddr> =
            tcp.iter().filter(is_loopback).map(|(address, _)| *address).collect();
        loopback.dedup();
        Server { pid, sockets: sockets.map(|(path, _)| path.clone()).collect(), loopback }
    };
    pids.into_iter().map(server).collect()
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, pid {}", self.name, self.pid)?;
        match &self.config {
            Some(config) => write!(f, ", which serves {}", config.display()),
            None => Ok(()),
        }
    }
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let own = std::process::id();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(move |pid| *pid != own)
}

/// The inodes of a process's sockets.
fn sockets(pid: u32) -> HashSet<u64> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    let inode =
        |link: PathBuf| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok();
    links.filter_map(inode).collect()
}

/// The config of a process, if it is a Tidegate server with a config.
fn config_of(pid: u32) -> Option<PathBuf> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    if !name.starts_with("tidegate") {
        return None;
    }
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let arguments = line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let mut arguments: Vec<String> = arguments.map(Cow::into_owned).collect();
    arguments.pop();
    let Arguments { command, place } = Arguments::try_parse_from(arguments).ok()?;
    let serves = match command {
        None => true,
        Some(Command::Serve(serve)) => serve.reads_config(),
    };
    let folder = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    serves.then(|| folder.join(place.config()))
}

/// The listening TCP sockets with their inodes (proc_net_tcp(5)).
fn tcp_listeners() -> Vec<(SocketAddr, u64)> {
    const LISTEN: &str = "0A";
    let mut found = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = fs::read_to_string(table).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| {
            let columns: Vec<&str> = line.split_ascii_whitespace().collect();
            let [_, own, _, LISTEN, _, _, _, _, _, inode, ..] = columns[..] else { return None };
            Some((socket_address(own)?, inode.parse().ok()?))
        }));
    }
    found
}

/// The listening unix sockets that have a path (proc(5)).
fn unix_listeners() -> Vec<(PathBuf, u64)> {
    const ACCEPTS: u32 = 0x10000;
    let text = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let read = |line: &str| {
        let columns: Vec<&str> = line.splitn(8, ' ').collect();
        let [_, _, _, flags, _, _, rest @ ..] = &columns[..] else { return None };
        let (inode, path) = rest
            .join(" ")
            .trim_start()
            .split_once(' ')
            .map(|(inode, path)| (inode.parse().ok(), PathBuf::from(path)))?;
        let accepts = u32::from_str_radix(flags, 16).ok()? & ACCEPTS != 0;
        (accepts && path.is_absolute()).then_some((path, inode?))
    };
    text.lines().filter_map(read).collect()
}

/// Reads `0100007F:1F90`: four-byte words in the machine's byte order, and the port.
fn socket_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::new();
    for word in address.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let address: IpAddr = match bytes.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
        16 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::unix::net::UnixListener};

    use super::*;

    #[test]
    fn listening_sockets_are_found_in_proc() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // A machine may have no IPv6.
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let address = listener.local_addr().expect("its address");
            let listeners = tcp_listeners();
            let (_, inode) = listeners.iter().find(|(other, _)| *other == address).expect("it");
            assert!(sockets(std::process::id()).contains(inode));
        }
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("with a space.sock");
        let _listener = UnixListener::bind(&path).expect("a socket");
        assert!(unix_listeners().iter().any(|(other, _)| *other == path));
    }
}
