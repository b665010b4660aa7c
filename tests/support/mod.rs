//! Shared by the black-box tests: the real binary as a child, or the library in a thread, and
//! clients that see every byte.
//!
//! Every wait has a deadline, and none is a bare sleep: a test goes on as soon as its condition
//! holds.

mod admin;
mod client;
mod handshake;
mod held_loop;
mod load;
mod notify;
mod random;
mod response;
mod server;
mod site;
mod tls;
mod upstream;
mod wait;

use std::{
    net::{SocketAddr, TcpListener},
    sync::atomic::{AtomicU32, Ordering},
};

pub use admin::{Admin, Answer};
pub use client::{Client, End, Lost};
pub use handshake::Handshake;
pub use held_loop::HeldLoop;
pub use load::{Load, LoadKind};
pub use notify::NotifySocket;
pub use random::{Random, number_of_environment};
pub use response::Response;
pub use response::find;
pub use rustix::process::{Pid, Signal};
pub use server::{BINARY, Event, Server, Setup, run};
pub use site::{Act, Held, Site, Stage, Stuck, logged, post};
pub use tls::{Authority, Identity};
pub use upstream::{Asked, Gate, Line, Upstream};
pub use wait::{PATIENCE, give_way, wait_until};

/// An address that refuses connections now. Its port is below the range for outgoing
/// connections (ip_local_port_range), where a port may be taken again at any moment.
pub fn free_port() -> SocketAddr {
    const PORTS: std::ops::Range<u32> = 10_000..32_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        // Test programs that run at the same time begin at different ports.
        let number = std::process::id().wrapping_mul(61) + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = PORTS.start + number % (PORTS.end - PORTS.start);
        let address = SocketAddr::from(([127, 0, 0, 1], port as u16));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// A plain request for `path` of `host`.
pub fn get(host: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")
}

/// A plain request that is the last of its connection.
pub fn get_and_close(host: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
}

/// Bytes that differ by position, so that a piece that is repeated or missing shows.
pub fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut bytes = Vec::with_capacity(length);
    for _ in 0..length {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bytes.push((state >> 24) as u8);
    }
    bytes
}
