//! Whether handshakes with our listeners are under way: a SYN came before the gate, and the ACK
//! that ends the handshake is still on its way. To the client that connection exists; closing the
//! listener now would reset it.
//!
//! A SYN may have passed the gate's place on another processor just before the filter was there,
//! and be no handshake yet. The kernel handles packets within RCU read sections, and
//! membarrier(2) waits for all of those to end: 5 to 15 ms.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    net::SocketAddr,
};

use rustix::thread::MembarrierCommand;

use crate::logging::event;

/// Whether handshakes with these addresses are under way.
pub(super) type ArePending = Box<dyn Fn(&[SocketAddr]) -> bool + Send>;

/// As [`pending`], of what came before the call; unknown, with a line in the log, counts as no.
pub(super) fn are_pending(addresses: &[SocketAddr]) -> bool {
    if addresses.is_empty() {
        return false;
    }
    // A kernel that cannot (nohz_full) leaves the plan's time between two looks.
    let _ = rustix::thread::membarrier(MembarrierCommand::Global);
    pending(addresses).unwrap_or_else(|error| {
        event!(Warn, "handshakes_unknown", error:% = error);
        false
    })
}

/// Whether a socket in SYN_RECV belongs to one of these addresses' ports, by the kernel's tables
/// (proc(5), `/proc/net/tcp`).
///
/// # Errors
/// When a table cannot be read; a system without IPv6 has no table of it, and no handshakes.
fn pending(addresses: &[SocketAddr]) -> io::Result<bool> {
    for (table, is_ipv6) in [("/proc/net/tcp", false), ("/proc/net/tcp6", true)] {
        let ports: Vec<u16> = addresses
            .iter()
            .filter(|address| address.is_ipv6() == is_ipv6)
            .map(SocketAddr::port)
            .collect();
        if !ports.is_empty() && table_has_handshake(BufReader::new(File::open(table)?), &ports)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn table_has_handshake(mut table: impl BufRead, ports: &[u16]) -> io::Result<bool> {
    let mut line = String::new();
    while table.read_line(&mut line)? > 0 {
        if is_handshake(&line, ports) {
            return Ok(true);
        }
        line.clear();
    }
    Ok(false)
}

/// A line is `sl local_address rem_address st …`, addresses and state in hexadecimal.
fn is_handshake(line: &str, ports: &[u16]) -> bool {
    const SYN_RECV: &str = "03";
    let mut columns = line.split_ascii_whitespace().skip(1);
    let (local, _, state) = (columns.next(), columns.next(), columns.next());
    state == Some(SYN_RECV)
        && local
            .and_then(|local| local.rsplit_once(':'))
            .and_then(|(_, port)| u16::from_str_radix(port, 16).ok())
            .is_some_and(|port| ports.contains(&port))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 5 1
   1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 6 1
   2: 0100007F:1F91 0100007F:C351 03 00000000:00000000 01:00000014 00000000     0        0 0 1
";

    #[test]
    fn a_handshake_is_found_by_state_and_port() {
        let has = |ports: &[u16]| table_has_handshake(TABLE.as_bytes(), ports).unwrap();
        assert!(has(&[8080, 8081]));
        assert!(!has(&[8080]));
        assert!(!has(&[]));
    }

    #[test]
    fn the_kernel_has_such_a_table() {
        assert!(!pending(&["127.0.0.1:1".parse().unwrap()]).unwrap());
    }
}
