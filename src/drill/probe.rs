//! One request to each target apart from the load, to learn the status before and after a drill.
//! Blocks, with a time-out.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use super::plan::Target;

/// Longer status lines are invalid.
const LINE_BYTES_MAX: u64 = 1024;

/// Requests a target. Returns the status of the answer if one arrives within `patience`.
///
/// # Errors
/// If the connection is not established.
pub(crate) fn probe(
    address: SocketAddr,
    target: &Target,
    patience: Duration,
) -> io::Result<Option<u16>> {
    let stream = TcpStream::connect_timeout(&address, patience)?;
    // The load will meet and report any later failure.
    Ok(ask(stream, target, patience).ok().flatten())
}

fn ask(mut stream: TcpStream, target: &Target, patience: Duration) -> io::Result<Option<u16>> {
    let Target { host, path, .. } = target;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: tidegate-drill\r\nAccept: */*\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut line = Vec::new();
    io::Read::take(BufReader::new(stream), LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
    let line = String::from_utf8_lossy(&line);
    let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1));
    Ok(status.and_then(|status| status.trim_end().parse().ok()))
}
