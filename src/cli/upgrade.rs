//! `tidegate upgrade`: replaces the server's process with a new one.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;

use super::{
    DONE, Place,
    admin::{Admin, Answer, ServerOptions, encode},
    answers::{ServerStatus, UpgradeAnswer},
    failure::Failure,
    show, time_argument,
    wait::{HOLD, LiveLine, Patience, finish},
};
use crate::config::{TIME_MAX, parse_duration};

/// The default time-out.
const TIMEOUT: &str = "30s";

/// The extra time for the server to start the process and to end it.
const MARGIN: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(super) struct Upgrade {
    /// The program to start. Default: the program that the server was started with
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,

    /// How long the new process may take to start serving: 500ms, 30s, 2m
    #[arg(long, value_name = "TIME", value_parser = time_argument, default_value = TIMEOUT)]
    timeout: String,

    /// Wait until the old process has answered all its requests
    #[arg(long)]
    wait: bool,

    /// Upgrade even if the config names no app or no address any more
    #[arg(long)]
    allow_empty: bool,

    #[command(flatten)]
    server: ServerOptions,
}

impl Upgrade {
    pub(super) fn run(&self, place: &Place) -> Result<u8, Failure> {
        let mut admin = self.server.admin(place)?;
        let mut path = format!("/upgrade?timeout={}", self.timeout);
        if let Some(binary) = &self.binary {
            // The server may have another working directory.
            let binary = std::path::absolute(binary).unwrap_or_else(|_| binary.clone());
            path += &format!("&binary={}", encode(&binary.to_string_lossy()));
        }
        if self.allow_empty {
            path += "&allow_empty=true";
        }
        let patience = parse_duration(&self.timeout).unwrap_or_default() + MARGIN;
        let answer = if self.wait {
            // One request for both: the old process could exit between two requests.
            path += &format!("&wait={}s", TIME_MAX.as_secs());
            wait_for_drain(&mut admin, &path, patience)?
        } else {
            admin.post_within::<UpgradeAnswer>(&path, patience)?
        };
        admin.print(&answer, |answer| {
            let UpgradeAnswer { pid, old_pid, .. } = answer;
            show::clean(&format!("upgraded: pid {pid} serves, pid {old_pid} drains")) + "\n"
        })?;
        if !self.wait {
            return Ok(DONE);
        }
        // The connection still leads to the old process.
        let drain = answer.map(|answer| answer.drain);
        let drain = drain.ok_or_else(|| admin.foreign("its answer has no drain"))?;
        finish(&mut admin, drain, Patience::Wait)
    }
}

/// Starts the upgrade and waits until the old process has drained.
fn wait_for_drain(
    admin: &mut Admin,
    path: &str,
    patience: Duration,
) -> Result<Answer<UpgradeAnswer>, Failure> {
    let (mut beside, line) = (admin.beside(), LiveLine::new());
    let mut give_up = Instant::now() + patience;
    admin.post_held(path, None, HOLD, || {
        // A new connection reaches the new process as soon as it serves.
        beside.client().hang_up();
        let status = beside.get::<ServerStatus>("/status").ok();
        if let Some(old) = status.iter().flat_map(|status| &status.value.previous).next() {
            let (pid, active, left) = (old.pid, old.active_connections, old.remaining_ms);
            line.show(&format!("draining pid {pid}: {active} active, {} left", show::fine(left)));
            give_up = Instant::now() + MARGIN;
        }
        Instant::now() < give_up
    })
}
