//! Prints the failure of a command.

use std::process::ExitCode;

use anstyle::{AnsiColor, Style};

use super::{failure::Failure, show};

/// Prints the failure on standard error. Returns the exit code.
pub(super) fn report(failure: &Failure) -> ExitCode {
    if let Failure::Refused { json: Some(json), .. } = failure {
        // The error is printed below even if this fails.
        let _ = show::print_line(json);
    }
    let red = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
    let text = show::clean_lines(&failure.to_string());
    show::note(&format!("{red}tidegate:{red:#} {text}\n"));
    ExitCode::from(failure.code())
}
