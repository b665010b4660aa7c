//! One request to each target beside the load: what is there to be drilled, and what has become of
//! it. Blocking, with a limit.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use super::plan::Target;

/// A longer first line is none.
const LINE_BYTES_MAX: u64 = 1024;

/// Asks for a target: the status of the answer, if there is one within `patience`.
///
/// # Errors
/// When no connection comes about.
pub(crate) fn probe(
    address: SocketAddr,
    target: &Target,
    patience: Duration,
) -> io::Result<Option<u16>> {
    let stream = TcpStream::connect_timeout(&address, patience)?;
    // Whatever goes wrong from here on is for the load to meet, and to tell.
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
