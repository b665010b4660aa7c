//! The command with which an upgrade starts the new process. Only the server uses it, so clap and
//! the help don't know it.

use std::{env, ffi::OsStr, process::ExitCode};

use super::{DONE, FAILED, USAGE, show};
use crate::control;

/// Runs the command if the arguments name it.
pub(super) fn run() -> Option<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    if arguments.next().as_deref() != Some(OsStr::new(control::LAUNCH)) {
        return None;
    }
    let Some(program) = arguments.next() else { return Some(ExitCode::from(USAGE)) };
    let arguments: Vec<_> = arguments.collect();
    Some(ExitCode::from(match control::launch(&program, &arguments) {
        Ok(()) => DONE,
        Err(error) => {
            show::note(&format!("tidegate: {}: {error}\n", control::LAUNCH));
            FAILED
        }
    }))
}
