//! One request to each target apart from the load, to learn the status before and after a drill.
//! Blocks, with a time-out.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use super::{
    plan::Target,
    trust::ClientsTls,
    witness::{over, said},
};

/// Longer status lines are invalid.
const LINE_BYTES_MAX: u64 = 1024;

/// Requests each target. The status of its answer, or why there is none.
///
/// # Errors
/// A TCP connection is not established.
pub(crate) fn probe(
    address: SocketAddr,
    targets: &[Target],
    tls: Option<&ClientsTls>,
    patience: Duration,
) -> io::Result<Vec<Result<u16, String>>> {
    let mut found = Vec::new();
    for (at, target) in targets.iter().enumerate() {
        let socket = TcpStream::connect_timeout(&address, patience)?;
        // The load will meet and report any later failure.
        let connected = over(socket, tls.map(|tls| &tls.of(at).full), patience);
        let asked = connected.and_then(|(wire, _)| ask(wire, target));
        found.push(match asked {
            Ok(status) => status.ok_or_else(|| "no HTTP/1.1".to_owned()),
            Err(error) => Err(said(&error)),
        });
    }
    Ok(found)
}

fn ask(mut wire: impl Read + Write, target: &Target) -> io::Result<Option<u16>> {
    let Target { host, path, .. } = target;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: tidegate-drill\r\nAccept: */*\r\n\
         Connection: close\r\n\r\n"
    );
    wire.write_all(request.as_bytes())?;
    let mut line = Vec::new();
    io::Read::take(BufReader::new(wire), LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
    let line = String::from_utf8_lossy(&line);
    let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1));
    Ok(status.and_then(|status| status.trim_end().parse().ok()))
}
