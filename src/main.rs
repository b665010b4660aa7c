//! The `tidegate` command: arguments → command → exit code.

#[cfg(not(loom))]
fn main() -> std::process::ExitCode {
    tidegate::cli::run()
}

/// A model run compiles the registry only.
#[cfg(loom)]
fn main() {}
