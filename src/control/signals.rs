//! Signals, taken in a thread of their own and handed on as words (signal(7)).

use std::{io, thread};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2},
    iterator::Signals,
    low_level::signal_name,
};

/// What an operator's signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalRequest {
    /// TERM, INT: stop; again: cut.
    Stop,
    /// USR1: open the log files anew.
    ReopenLogs,
    /// HUP: reload.
    Reload,
    /// USR2: upgrade.
    Upgrade,
}

/// Calls `on_signal` with each signal and its name, from a thread that ends with the process.
///
/// # Errors
/// When the handlers or the thread cannot be set up.
pub fn forward_signals(
    on_signal: impl Fn(SignalRequest, &'static str) + Send + 'static,
) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGUSR1, SIGHUP, SIGUSR2])?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            let request = match signal {
                SIGUSR1 => SignalRequest::ReopenLogs,
                SIGHUP => SignalRequest::Reload,
                SIGUSR2 => SignalRequest::Upgrade,
                _ => SignalRequest::Stop,
            };
            on_signal(request, signal_name(signal).unwrap_or("signal"));
        }
    })?;
    Ok(())
}
