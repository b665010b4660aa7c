//! `tidegate events`: prints the server's events as they happen.

use std::{
    fmt::Write as _,
    io::{BufRead, Read},
};

use clap::Args;
use serde_json::Value;

use super::{
    DONE, Place,
    admin::{Admin, ServerOptions},
    answers::Event,
    failure::Failure,
    show::{self, Reader},
};

/// The longest line of a stream.
const LINE_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, Args)]
pub(super) struct Events {
    #[command(flatten)]
    server: ServerOptions,
}

impl Events {
    pub(super) fn run(&self, place: &Place) -> Result<u8, Failure> {
        let mut admin = self.server.admin(place)?;
        let mut stream = admin.stream("/events")?;
        let mut data = String::new();
        loop {
            let mut line = Vec::new();
            let length = (&mut stream).take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
            let length = length.map_err(|error| admin.client().io(error))?;
            if length == 0 {
                show::note("tidegate: the server has ended the stream\n");
                return Ok(DONE);
            }
            if length as u64 == LINE_BYTES_MAX {
                return Err(admin.foreign("a line of its stream is too long"));
            }
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\r', '\n']);
            if let Some(part) = line.strip_prefix("data:") {
                data += part.strip_prefix(' ').unwrap_or(part);
                if data.len() as u64 > LINE_BYTES_MAX {
                    return Err(admin.foreign("an event of its stream is too long"));
                }
            } else if line.is_empty() && !data.is_empty() {
                if print(&admin, &data)? == Reader::Gone {
                    return Ok(DONE);
                }
                data.clear();
            }
        }
    }
}

fn print(admin: &Admin, data: &str) -> Result<Reader, Failure> {
    if admin.prints_json() {
        return show::print_line(data);
    }
    let event: Event = serde_json::from_str(data)
        .map_err(|error| admin.foreign(&format!("invalid event in its stream: {error}")))?;
    show::print_line(&show::clean(&text(&event)))
}

/// The event as a line of the log.
fn text(event: &Event) -> String {
    let Event { ts, level, event, fields } = event;
    let mut text = format!("{ts} {level} {event}");
    for (key, value) in fields {
        let is_bare = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'=' | b'\\');
        let _ = match value {
            Value::String(word) if !word.is_empty() && word.bytes().all(is_bare) => {
                write!(text, " {key}={word}")
            }
            Value::String(words) => write!(text, " {key}={words:?}"),
            Value::Null => write!(text, " {key}=-"),
            other => write!(text, " {key}={other}"),
        };
    }
    text
}
