//! The lines that every response of one second has, encoded once.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::http::message::{Response, reason_phrase};

/// What the heads of all responses of one second share: the status line of a 200, `Date`
/// (RFC 9110 §6.6.1), and the end of a head for a client that asks for `keep-alive`.
#[derive(Clone, Debug)]
pub struct HeadTemplate {
    /// Status line and `Date` of a 200, the most common status, in one piece.
    ok: Vec<u8>,
    /// The end of a head that confirms `keep-alive`.
    keep_alive: Vec<u8>,
}

const OK_LINE: &[u8] = b"HTTP/1.1 200 OK\r\n";
const KEEP_ALIVE: &[u8] = b"Connection: keep-alive\r\n\r\n";

impl HeadTemplate {
    /// The template for this time. For a time before 1970 or after 9999, `Date` says 1970.
    pub fn at(wall: SystemTime) -> Self {
        const YEAR_10000_S: u64 = 253_402_300_800;
        let since = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = if since.as_secs() < YEAR_10000_S { UNIX_EPOCH + since } else { UNIX_EPOCH };
        let date = httpdate::fmt_http_date(wall);
        let ok = [OK_LINE, b"Date: ", date.as_bytes(), b"\r\n"].concat();
        Self { ok, keep_alive: KEEP_ALIVE.to_vec() }
    }

    /// A template without `Date`, for a response that has its own.
    pub fn dateless() -> Self {
        Self { ok: OK_LINE.to_vec(), keep_alive: KEEP_ALIVE.to_vec() }
    }

    /// Adds a `Keep-Alive` field with the seconds that a connection may be idle
    /// (RFC 2068 §19.7.1.1); 0 adds none. The field is hop-by-hop (RFC 9110 §7.6.1).
    #[must_use]
    pub fn with_idle_hint(mut self, seconds: u64) -> Self {
        self.keep_alive = match seconds {
            0 => KEEP_ALIVE.to_vec(),
            _ => format!("Connection: keep-alive\r\nKeep-Alive: timeout={seconds}\r\n\r\n").into(),
        };
        self
    }

    /// The end of a head for a client that asks for `keep-alive` and gets it. Only such clients
    /// need these bytes: an HTTP/1.0 client expects the option, and a client that reads
    /// `Keep-Alive` asks.
    #[inline]
    pub(super) fn keep_alive(&self) -> &[u8] {
        &self.keep_alive
    }

    #[inline]
    pub(super) fn write(&self, response: &Response<'_>, out: &mut Vec<u8>) {
        if response.status() == 200 {
            out.extend_from_slice(&self.ok);
        } else {
            self.write_other(response, out);
        }
    }

    fn write_other(&self, response: &Response<'_>, out: &mut Vec<u8>) {
        write_status_line(response.status(), response.reason(), out);
        out.extend_from_slice(&self.ok[OK_LINE.len()..]);
    }
}

/// Writes a status line. `reason` is for a status that [`reason_phrase`] does not know.
pub(super) fn write_status_line(status: u16, reason: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
    out.push(b' ');
    let name = reason_phrase(status);
    out.extend_from_slice(if name.is_empty() { reason } else { name }.as_bytes());
    out.extend_from_slice(b"\r\n");
}
