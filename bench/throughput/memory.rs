//! Memory of idle connections: the resident memory of a server's processes before and after many
//! connections were opened, each of which sent one request.
//!
//! The kernel's memory for sockets is the same for all servers and not included.

use std::fs;
use std::io;

use crate::case::Case;
use crate::peer::Peer;

/// Bytes that `peer` holds for each idle connection of `case`.
pub(crate) fn per_connection(peer: &Peer, case: &Case) -> io::Result<f64> {
    let before = resident(&peer.processes()?)?;
    let secured = case.secured()?;
    let open = || {
        let mut stream = peer.connect(secured.as_ref())?;
        peer.ask(&mut stream, case)?;
        Ok(stream)
    };
    let streams = (0..case.connections).map(|_| open()).collect::<io::Result<Vec<_>>>()?;
    let after = resident(&peer.processes()?)?;
    Ok((after as f64 - before as f64) / streams.len() as f64)
}

/// `VmRSS` of all `pids`, bytes.
fn resident(pids: &[i32]) -> io::Result<u64> {
    let mut total = 0;
    for pid in pids {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        total += kib.ok_or_else(|| io::Error::other("no VmRSS"))? * 1024;
    }
    Ok(total)
}
