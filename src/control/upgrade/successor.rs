//! The new process, as the old one sees it once it serves: what it wants, and what it is told.
//!
//! Two threads: one hears, one reports and passes stops on. Neither holds anything up: the new
//! process goes on without reports, and this one drains without a listener.

use std::{
    io,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread,
    time::Duration,
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::{
    super::{Input, StopAsker, StopRequest, Verdict},
    FromNew, FromOld, Generation, LastWord, PassedStop, Predecessor, Totals,
    channel::Channel,
};
use crate::logging::event;

/// How often the new process is told how far the drain is.
const REPORT_EVERY: Duration = Duration::from_millis(200);

/// How long a new process may take for a report: it only has to be read.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// All that the two threads need.
pub(super) struct Follower {
    pub(super) channel: Channel,
    pub(super) control: Sender<Input>,
    /// Stops to pass on.
    pub(super) stops: Receiver<PassedStop>,
    /// The process before this one.
    pub(super) predecessor: Option<Arc<Predecessor>>,
    /// What is reported.
    pub(super) generation: Arc<dyn Fn() -> Option<Generation> + Send + Sync>,
    /// Where the way to the new process goes.
    pub(super) successor: Arc<OnceLock<Successor>>,
}

impl Follower {
    /// Hears what the new process wants, and tells it how far the drain is.
    pub(super) fn start(self) -> io::Result<()> {
        let Self { channel, control, stops, predecessor, generation, successor } = self;
        let mut heard = channel.clone();
        // Time-outs are the socket's, not an end's: it is only written to in time.
        channel.set_timeout(None)?;
        channel.set_write_timeout(REPORT_TIMEOUT)?;
        drop(successor.set(Successor(Mutex::new(Some(channel)))));
        thread::Builder::new().name("successor".into()).spawn(move || {
            while let Ok(FromNew::Cut) = heard.receive() {
                let (reason, by) = ("the new process".to_owned(), StopAsker::Successor);
                let request = StopRequest { reason, timeout: None, by };
                let cut = control.send(Input::Stop(request));
                if let (Err(_), Some(before)) = (cut, &predecessor) {
                    // This process only waits for that one.
                    before.cut();
                }
            }
            event!(Error, "successor_gone");
        })?;
        let say = move |message| successor.get().is_some_and(|new| new.say(&message));
        thread::Builder::new().name("reports".into()).spawn(move || {
            loop {
                let message = match stops.recv_timeout(REPORT_EVERY) {
                    Ok(stop) => FromOld::Stop(stop),
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => match generation() {
                        Some(generation) => FromOld::Report(Box::new(generation)),
                        // All that is left to do here is to pass stops on.
                        None => continue,
                    },
                };
                if !say(message) {
                    return;
                }
            }
        })?;
        Ok(())
    }
}

/// The new process, which this one reports to.
pub(crate) struct Successor(Mutex<Option<Channel>>);

impl Successor {
    /// Says how the drain ended; the last word.
    pub(crate) fn part(&self, verdict: Verdict, totals: Totals) {
        let cut = if let Verdict::Cut(cut) = verdict { cut } else { 0 };
        let verdict = verdict.name().to_owned();
        self.say(&FromOld::Gone(LastWord { verdict, cut, totals }));
    }

    /// Whether it listens. If it does not, it misses nothing.
    fn say(&self, message: &FromOld) -> bool {
        let mut channel = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let said = channel.as_mut().is_some_and(|channel| channel.send(message).is_ok());
        if !said {
            // Half a message may be out: another one behind it would be taken for its end.
            *channel = None;
        }
        said
    }
}
