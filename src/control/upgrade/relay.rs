//! Stops that reach the old process of an upgrade.
//!
//! ```text
//! asked between Go and Serving:  put off, and the new process has little time left
//!   ├─ it serves:       passed on to it
//!   └─ it does not:     it is ended, and this process stops
//! asked after Serving:  passed on to it, until it has ended
//! ```
//! - Stops are passed on while this process ends, too. Control's last act is to pass on a stop that
//!   it hasn't read. From then on the sender passes it on. The process itself passes on signals
//!   that didn't wake their thread, and waits for that as its last act.
//!
//! Owned by control, the operator, the signals' thread and the reporting thread. None of them waits
//! here.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crossbeam_channel::{Receiver, Sender};
use serde::{Deserialize, Serialize};

use crate::acknowledgement::{Acknowledgement, Acknowledgements, acknowledgement};

/// How long a process that ends waits until another one has a stop.
const TELL_TIMEOUT: Duration = Duration::from_secs(1);

/// A stop that another process asks for, because it was asked although it serves no longer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassedStop {
    /// For the log.
    pub(crate) reason: String,
    /// What is in flight is cut.
    pub(crate) cut: bool,
}

/// A stop on its way to the other process.
#[derive(Debug)]
pub(in super::super) struct OnItsWay {
    pub(in super::super) stop: PassedStop,
    /// Dropped when that process has the stop, or is gone.
    pub(in super::super) receipt: Acknowledgement,
}

/// Waits until the other process has a stop that was passed on.
pub(crate) struct StopReceipt(Acknowledgements);

impl StopReceipt {
    /// Returns when it has the stop, or when that takes too long.
    pub(crate) fn wait(&self) {
        self.0.wait(TELL_TIMEOUT);
    }
}

/// The way of stops to the process after this one. Clones are the same way.
#[derive(Clone, Default)]
pub(crate) struct StopRelay(Arc<Relay>);

#[derive(Default)]
struct Relay {
    /// A stop waits for the end of the hand-over.
    hurried: AtomicBool,
    /// Control reads nothing any more.
    is_unread: AtomicBool,
    /// To the thread that talks to the new process, once that serves.
    passed: Mutex<Option<Sender<OnItsWay>>>,
}

impl StopRelay {
    /// A hand-over begins.
    pub(crate) fn begin(&self) {
        self.0.hurried.store(false, Ordering::Release);
    }

    /// A stop waits for the end of the hand-over.
    pub(crate) fn hurry(&self) {
        self.0.hurried.store(true, Ordering::Release);
    }

    pub(in super::super) fn is_hurried(&self) -> bool {
        self.0.hurried.load(Ordering::Acquire)
    }

    /// Control is about to read the rest of what it was sent, and nothing behind that.
    pub(crate) fn leave_unread(&self) {
        self.0.is_unread.store(true, Ordering::SeqCst);
    }

    /// Whether control may not read what it was sent just now.
    pub(crate) fn is_unread(&self) -> bool {
        self.0.is_unread.load(Ordering::SeqCst)
    }

    /// The new process serves: what is passed on from now on comes out here.
    pub(in super::super) fn open(&self) -> Receiver<OnItsWay> {
        let (sender, passed) = crossbeam_channel::unbounded();
        *self.0.passed.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        passed
    }

    /// The new process has ended, and this one serves.
    pub(crate) fn close(&self) {
        *self.0.passed.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Passes a stop on, if another process serves. Returns what waits until that process has it.
    pub(crate) fn pass_on(&self, stop: PassedStop) -> StopReceipt {
        let (receipt, receipts) = acknowledgement();
        let passed = self.0.passed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(passed) = &*passed {
            // Without the thread there is no new process any more; that was logged.
            let _ = passed.send(OnItsWay { stop, receipt });
        }
        StopReceipt(receipts)
    }
}
