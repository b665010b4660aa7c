//! `tidegate stop`: drains the whole server, and says when its process has ended.

use std::time::Duration;

use clap::Args;
use rustix::{
    io::Errno,
    process::{Pid, test_kill_process},
};

use super::{
    admin::{Admin, Place, ServerOptions},
    answers::ServerStatus,
    failure::Failure,
    show,
    wait::{EndOptions, Patience, exit_code, finish, summary, until_ended},
};

/// How long a server may take to end after it has said how its drain ended.
const END_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(super) struct Stop {
    /// Cut what is in flight at once; also when a stop is under way
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
        let query = if self.now { "?now=true".to_owned() } else { self.end.query(&[]) };
        let path = format!("/stop{query}");
        if self.end.patience() == Patience::ReturnAtOnce {
            let drain = admin.post(&path)?;
            return finish(&mut admin, drain, Patience::ReturnAtOnce);
        }
        let pid = admin.get::<ServerStatus>("/status")?.value.pid;
        let drain = admin.post(&path)?;
        let drain = match until_ended(&mut admin, drain) {
            Err(Failure::Client(error)) if error.is_gone() => return Err(lost(&mut admin, pid)),
            ended => ended?,
        };
        if !admin.prints_json() {
            show::print(&summary(&drain.value))?;
        }
        if !has_ended(&mut admin, pid) {
            return Err(Failure::Unended(format!(
                "the server (pid {pid}) is done, but its process is still there after {} s; \
                 its log may say why",
                END_TIMEOUT.as_secs()
            )));
        }
        admin.print(&drain, |_| format!("server: ended, pid {pid}\n"))?;
        Ok(exit_code(&drain.value))
    }
}

fn has_ended(admin: &mut Admin, pid: i32) -> bool {
    let is_gone = || {
        let pid = Pid::from_raw(pid);
        pid.is_some_and(|pid| test_kill_process(pid) == Err(Errno::SRCH))
    };
    admin.client().wait_for_end(END_TIMEOUT, is_gone)
}

/// The connection went before the verdict came.
fn lost(admin: &mut Admin, pid: i32) -> Failure {
    Failure::Unended(if has_ended(admin, pid) {
        format!("the server (pid {pid}) has ended without saying how; its log may say it")
    } else {
        format!(
            "the server (pid {pid}) has closed the connection before its verdict and is still \
             there; `tidegate status` and its log say more"
        )
    })
}
