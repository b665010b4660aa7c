//! The `tidegate` command: arguments → command → exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    tidegate::cli::run()
}
