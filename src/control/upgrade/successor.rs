//! The new process, as the old one sees it once it serves: what it asks for, and reports to it.
//!
//! Two threads: one hears, one reports and passes stops on. Neither holds anything up: the new
//! process goes on without reports, and this one drains without a listener.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use crossbeam_channel::{Receiver, Select, Sender, TryRecvError};

use super::{
    super::{
        drain_view::Verdict,
        input::{Input, StopAsker, StopRequest},
        totals::Totals,
    },
    channel::Channel,
    messages::{FromNew, FromOld, Generation, LastWord},
    predecessor::Predecessor,
    process::Process,
    relay::OnItsWay,
};
use crate::logging::event;

/// How often the drain is reported to the new process.
const REPORT_EVERY: Duration = Duration::from_millis(200);

/// How long a new process may take for a report: it only has to be read.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Says how far this process's drain is.
pub(crate) type Reporter = Arc<dyn Fn() -> Option<Generation> + Send + Sync>;

/// All that the two threads need.
pub(super) struct Follower {
    pub(super) channel: Channel,
    pub(super) process: Process,
    pub(super) control: Sender<Input>,
    /// Stops to pass on.
    pub(super) stops: Receiver<OnItsWay>,
    /// The process before this one.
    pub(super) predecessor: Option<Arc<Predecessor>>,
    /// What is reported.
    pub(super) generation: Reporter,
}

/// The new process that took over last.
#[derive(Default)]
pub(crate) struct LastSuccessor(Mutex<Option<Arc<Successor>>>);

impl LastSuccessor {
    /// Obeys a new process until its end, and reports to it how far the drain is.
    pub(super) fn follow(&self, follower: Follower) -> io::Result<()> {
        let Follower { channel, process, control, stops, predecessor, generation } = follower;
        let heard = channel.clone();
        // Time-outs are the socket's, not an end's: it is only written to in time.
        channel.set_timeout(None)?;
        channel.set_write_timeout(REPORT_TIMEOUT)?;
        let successor = Arc::new(Successor { channel: Mutex::new(Some(channel)), stops });
        *self.lock() = Some(Arc::clone(&successor));
        thread::Builder::new().name("successor".into()).spawn(move || {
            hear(heard, &control, predecessor.as_deref());
            // The end of the channel is not its end.
            process.wait();
            event!(Error, "successor_gone");
            // A server that has ended takes nothing up.
            drop(control.send(Input::SuccessorGone));
        })?;
        thread::Builder::new().name("reports".into()).spawn(move || {
            loop {
                let goes_on = if successor.is_to_pass_on(REPORT_EVERY) {
                    successor.pass_stops_on()
                } else if let Some(generation) = generation() {
                    successor.say(&FromOld::Report(Box::new(generation)))
                } else {
                    // All that is left to do here is to pass stops on.
                    true
                };
                if !goes_on {
                    return;
                }
            }
        })?;
        Ok(())
    }

    /// Tells it how the drain ended; the last word.
    pub(crate) fn part(&self, verdict: Verdict, totals: Totals) {
        if let Some(successor) = self.lock().take() {
            let cut = if let Verdict::Cut(cut) = verdict { cut } else { 0 };
            let verdict = verdict.name().to_owned();
            successor.pass_stops_on();
            successor.say(&FromOld::Gone(LastWord { verdict, cut, totals }));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Successor>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does what the new process wants, until the end of the channel.
fn hear(mut channel: Channel, control: &Sender<Input>, predecessor: Option<&Predecessor>) {
    while let Ok(said) = channel.receive() {
        let Some(input) = input_of(said) else { break };
        let cuts = matches!(input, Input::Stop(_));
        if control.send(input).is_err()
            && let (true, Some(before)) = (cuts, predecessor)
        {
            // This process only waits for that one.
            before.cut();
        }
    }
}

/// What a word of a new process that serves is to control; none if it speaks out of turn.
pub(in super::super) fn input_of(word: FromNew) -> Option<Input> {
    match word {
        FromNew::Cut => {
            let (reason, by) = ("the new process".to_owned(), StopAsker::Successor);
            Some(Input::Stop(StopRequest { reason, timeout: None, by }))
        }
        FromNew::Closed(addresses) => Some(Input::KeepFewer(addresses)),
        FromNew::Goodbye => Some(Input::KeepNone),
        FromNew::Ready { .. } | FromNew::Serving | FromNew::Failed(_) => None,
    }
}

/// The new process, which this one reports to.
struct Successor {
    channel: Mutex<Option<Channel>>,
    /// What is to be passed on. It is taken under the channel's lock: so the last word stands
    /// behind all that came before it, whichever thread says it.
    stops: Receiver<OnItsWay>,
}

impl Successor {
    /// Waits until there is a stop to be passed on, or can be none any more.
    fn is_to_pass_on(&self, timeout: Duration) -> bool {
        let mut select = Select::new();
        select.recv(&self.stops);
        select.ready_timeout(timeout).is_ok()
    }

    /// Passes on what there is. Whether there may be more.
    fn pass_stops_on(&self) -> bool {
        let mut channel = self.lock();
        loop {
            match self.stops.try_recv() {
                Ok(OnItsWay { stop, receipt }) => {
                    let goes_on = say(&mut channel, &FromOld::Stop(stop));
                    drop(receipt);
                    if !goes_on {
                        return false;
                    }
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Whether it listens. If it does not, it misses nothing. A report that is too long for it is
    /// left out: one of these rows is less than the drain.
    fn say(&self, message: &FromOld) -> bool {
        say(&mut self.lock(), message)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Channel>> {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn say(channel: &mut Option<Channel>, message: &FromOld) -> bool {
    let said = channel.as_mut().is_some_and(|channel| match channel.send(message) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::FileTooLarge,
    });
    if !said {
        // Half a message may be out: another one behind it would be taken for its end.
        *channel = None;
    }
    said
}
