//! How a loop acknowledges a command: a command whose sender waits carries an [`Acknowledgement`],
//! and dropping it is the acknowledgement.
//!
//! It can't be forgotten: a loop that has obeyed, ended or panicked holds none. The waiting sender
//! continues when the last one is dropped, or on its own time-out.

use std::{convert::Infallible, time::Duration};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

/// Held until the command is obeyed. Each loop gets a clone.
#[derive(Clone, Debug)]
#[must_use = "dropping it says that it was obeyed"]
pub(crate) struct Acknowledgement {
    _held: Sender<Infallible>,
}

/// Waits for all clones of one [`Acknowledgement`].
#[derive(Debug)]
pub(crate) struct Acknowledgements(Receiver<Infallible>);

/// Why a wait has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Obeyed {
    /// All have obeyed, or are gone.
    ByAll,
    /// The time was over before.
    NotByAll,
}

/// An acknowledgement, and the end that waits for it.
pub(crate) fn acknowledgement() -> (Acknowledgement, Acknowledgements) {
    let (held, all) = crossbeam_channel::bounded(0);
    (Acknowledgement { _held: held }, Acknowledgements(all))
}

impl Acknowledgements {
    /// Waits until all have obeyed, at most this long.
    pub(crate) fn wait(&self, timeout: Duration) -> Obeyed {
        match self.0.recv_timeout(timeout) {
            Ok(never) => match never {},
            Err(RecvTimeoutError::Disconnected) => Obeyed::ByAll,
            Err(RecvTimeoutError::Timeout) => Obeyed::NotByAll,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_all_acknowledges() {
        let (first, all) = acknowledgement();
        let second = first.clone();
        drop(first);
        assert_eq!(all.wait(Duration::ZERO), Obeyed::NotByAll);
        drop(second);
        assert_eq!(all.wait(Duration::ZERO), Obeyed::ByAll);
    }
}
