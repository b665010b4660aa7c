//! `tidegate stop`: drains the whole server and reports when its process has exited.
//!
//! The stop request itself waits for the verdict, because between two requests the server could
//! exit. Meanwhile a second connection asks for the progress; if it fails, only the progress is
//! missing.

use std::{
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use rustix::{
    io::Errno,
    process::{Pid, test_kill_process},
};

use super::{
    Place,
    admin::{Admin, Answer, ServerOptions},
    answers::{Drain, DrainState, ServerStatus},
    failure::Failure,
    show,
    wait::{
        EndOptions, HOLD, LiveLine, Patience, exit_code, finish, progress, summary, until_ended,
    },
};
use crate::{config::TIME_MAX, duration::milliseconds};

/// How long a server may take to exit after its verdict, or to give its verdict once it reports no
/// progress.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a process that has closed our connection may still accept new ones.
const TAKE_OVER_TIMEOUT: Duration = Duration::from_secs(2);

/// The pause between checks of which process listens.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

#[derive(Debug, Args)]
pub(super) struct Stop {
    /// Cut the exchanges in flight now, even if a stop is already under way
    #[arg(long, conflicts_with = "timeout")]
    now: bool,

    #[command(flatten)]
    end: EndOptions,

    #[command(flatten)]
    server: ServerOptions,
}

impl Stop {
    pub(super) fn run(&self, place: &Place) -> Result<u8, Failure> {
        let mut admin = self.server.admin(place)?;
        let now = self.now.then_some(("now", "true"));
        if self.end.patience() == Patience::ReturnAtOnce {
            let query = self.end.query(now.as_slice());
            let drain = admin.post(&format!("/stop{query}"))?;
            return finish(&mut admin, drain, Patience::ReturnAtOnce);
        }
        let wait = format!("{}s", TIME_MAX.as_secs());
        let query: Vec<_> = now.into_iter().chain([("wait", &*wait)]).collect();
        let pid = admin.get::<ServerStatus>("/status")?.value.pid;
        let ended = verdict(&mut admin, &format!("/stop{}", self.end.query(&query)), pid);
        let drain = match ended {
            Err(Failure::Client(error)) if error.is_gone() => return Err(lost(&mut admin, pid)),
            ended => ended?,
        };
        // The process may have changed if an upgrade was under way.
        let pid = drain.value.pid.unwrap_or(pid);
        if !admin.prints_json() {
            show::print(&summary(&drain.value))?;
        }
        // The server waits for earlier processes that an upgrade left with requests in flight.
        let older = Duration::from_millis(drain.value.older_ms.unwrap_or_default());
        let timeout = older.saturating_add(END_TIMEOUT);
        if !has_ended(&mut admin, pid, timeout) {
            return Err(Failure::Unended(format!(
                "the server (pid {pid}) has drained, but its process is still there after {}; its \
                 log may say why",
                show::coarse(milliseconds(timeout)),
            )));
        }
        admin.print(&drain, |_| format!("server: ended, pid {pid}\n"))?;
        Ok(exit_code(&drain.value))
    }
}

/// Starts the stop and waits for its end. `pid`: the process that we connected to. If its
/// connection closes without an answer and another process is there now, an upgrade has come
/// between, and the new process gets the request. Asking a process twice to stop is harmless.
fn verdict(admin: &mut Admin, path: &str, mut pid: i32) -> Result<Answer<Drain>, Failure> {
    let (mut beside, line) = (admin.beside(), LiveLine::new());
    let mut give_up = None;
    let mut is_waited_for = || match beside.get::<Drain>("/drains/stop") {
        Ok(drain) if drain.value.state == DrainState::Draining => {
            line.show(&progress(&drain.value, None));
            give_up = None;
            true
        }
        _ => {
            let now = Instant::now();
            now < *give_up.get_or_insert(now + END_TIMEOUT)
        }
    };
    let drain = loop {
        match admin.post_held(path, None, HOLD, &mut is_waited_for) {
            Err(Failure::Client(error)) if error.is_gone() => {
                pid = successor_of(admin, pid).ok_or(error)?;
            }
            outcome => break outcome?,
        }
    };
    drop(line);
    // An older server answers at once.
    until_ended(admin, drain)
}

/// The pid of the process that listens now, if it is not `pid`, which will close its listener soon.
fn successor_of(admin: &mut Admin, pid: i32) -> Option<i32> {
    let deadline = Instant::now() + TAKE_OVER_TIMEOUT;
    loop {
        let now = admin.get::<ServerStatus>("/status").ok()?.value.pid;
        if now != pid {
            return Some(now);
        }
        if Instant::now() >= deadline {
            return None;
        }
        admin.client().hang_up();
        thread::sleep(LOOK_AGAIN);
    }
}

fn has_ended(admin: &mut Admin, pid: i32, timeout: Duration) -> bool {
    let is_gone = || {
        let pid = Pid::from_raw(pid);
        pid.is_some_and(|pid| test_kill_process(pid) == Err(Errno::SRCH))
    };
    admin.client().wait_for_end(timeout, is_gone)
}

/// The connection closed before the verdict came.
fn lost(admin: &mut Admin, pid: i32) -> Failure {
    Failure::Unended(if has_ended(admin, pid, END_TIMEOUT) {
        format!("the server (pid {pid}) has exited without a verdict; its log may say why")
    } else {
        format!(
            "the server (pid {pid}) has closed the connection before its verdict and is still \
             running; see `tidegate status` and its log"
        )
    })
}
