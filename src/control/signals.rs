//! Signals, taken in a thread of their own and handed on as words (signal(7)).
//!
//! What the process inherits does not decide: a shell or a service manager may have blocked
//! signals, or ignored them (`nohup`). Those that steer the server are handled and unblocked all
//! the same, before the first thread begins. SIGXFSZ, which would end the process when a log
//! reaches a limit of its size, is caught: write(2) fails instead. SIGPIPE is ignored, by the
//! standard library. Programs that are started inherit the mask: the server has an empty one.
//!
//! A process that ends reads no signal any more, and one to stop may still be for the process after
//! it. So the handler itself notes those: [`StopSignals`] knows of one before any thread does.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use nix::sys::signal::{SigSet, Signal};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXFSZ},
    flag,
    iterator::Signals,
    low_level::signal_name,
};

/// What an operator's signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalRequest {
    /// TERM, INT: stop; again: cut.
    Stop,
    /// USR1: open the log files again.
    ReopenLogs,
    /// HUP: reload.
    Reload,
    /// USR2: upgrade.
    Upgrade,
}

/// The signals that stop the server.
const STOPS: [i32; 2] = [SIGTERM, SIGINT];

/// Signals that would end a process which has no handler yet, and ask for less than that. They are
/// kept from the moment on when this is made.
pub struct EarlySignals {
    kept: Signals,
    stops: StopSignals,
}

/// Which of the signals to stop the process has ever been sent, as their handler notes it. The
/// kernel has the main thread run the handler, if that does not block the signal: what the main
/// thread reads here is complete.
#[derive(Clone, Debug, Default)]
pub(crate) struct StopSignals([Arc<AtomicBool>; STOPS.len()]);

impl StopSignals {
    fn note(&self) -> io::Result<()> {
        for (signal, has_come) in STOPS.into_iter().zip(&self.0) {
            flag::register(signal, Arc::clone(has_come))?;
        }
        Ok(())
    }

    /// The name of a signal that has come.
    pub(crate) fn any(&self) -> Option<&'static str> {
        let has_come = |has_come: &Arc<AtomicBool>| has_come.load(Ordering::SeqCst);
        signal_name(STOPS[self.0.iter().position(has_come)?])
    }
}

impl EarlySignals {
    /// To be called before any thread is started: they inherit the mask.
    ///
    /// # Errors
    /// When the handlers cannot be set up.
    pub fn keep() -> io::Result<Self> {
        let kept = Signals::new([SIGUSR1, SIGHUP, SIGUSR2])?;
        // A handler, whose effect is that the signal's default action is not taken.
        flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
        let handled = [
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGUSR1,
            Signal::SIGHUP,
            Signal::SIGUSR2,
            Signal::SIGXFSZ,
        ];
        SigSet::from_iter(handled).thread_unblock()?;
        Ok(Self { kept, stops: StopSignals::default() })
    }

    /// Knows of the signals to stop that come once these are forwarded.
    pub(crate) fn stops(&self) -> StopSignals {
        self.stops.clone()
    }
}

/// Unblocks all signals, whatever the parent has blocked; to be called before any thread is
/// started. For a program that is a server and nothing else.
///
/// # Errors
/// When the kernel refuses.
pub fn unblock_all() -> io::Result<()> {
    SigSet::empty().thread_set_mask().map_err(Into::into)
}

/// Calls `on_signal` with each signal and its name, from a thread that ends with the process; first
/// with those that were kept.
///
/// # Errors
/// When the handlers or the thread cannot be set up.
pub fn forward_signals(
    EarlySignals { kept: mut signals, stops }: EarlySignals,
    on_signal: impl Fn(SignalRequest, &'static str) + Send + 'static,
) -> io::Result<()> {
    for signal in STOPS {
        signals.add_signal(signal)?;
    }
    stops.note()?;
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::process::{Signal as Sent, getpid, kill_process};

    use super::*;

    #[test]
    fn what_came_before_anybody_listened_is_not_lost() {
        let early = EarlySignals::keep().unwrap();
        kill_process(getpid(), Sent::USR1).unwrap();
        let (sender, told) = crossbeam_channel::unbounded();
        forward_signals(early, move |request, name| sender.send((request, name)).unwrap()).unwrap();
        let first = told.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(first, (SignalRequest::ReopenLogs, "SIGUSR1"));
    }
}
