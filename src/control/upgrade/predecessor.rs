//! The process before this one, while it drains, as this one sees it.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::Sender;

use super::{
    super::{
        input::{Input, StopAsker, StopRequest, send},
        totals::Totals,
    },
    channel::Channel,
    lines,
    messages::{FromNew, FromOld, Generation, LastWord},
    process::Process,
    relay::PassedStop,
};
use crate::{duration::milliseconds, logging::event, message::LoopHandle};

/// Without a report for so long, a process is shown as silent.
const SILENT_AFTER: Duration = Duration::from_secs(2);

/// How long a process may take from its deadline to its end: loops obey a cut or are given up, the
/// admin's last answers are sent, the logs are written.
const END_GRACE: Duration = Duration::from_secs(7);

/// How long it may take from a cut to its end: a second signal is not for waiting.
const CUT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the old process may take to read a message: it only has to be read.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// The process before this one.
pub(crate) struct Predecessor {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    pid: u32,
    /// None before this process serves.
    channel: Option<Channel>,
    /// What it has said last.
    last: Option<Generation>,
    /// When that was; before it has said anything, since when it could.
    heard: Option<Instant>,
    totals: Totals,
    /// When it has to be gone, and when at the latest, if it was to cut.
    deadline: Instant,
    cut_deadline: Option<Instant>,
    is_gone: bool,
}

impl State {
    fn time_left(&self) -> Option<Duration> {
        let deadline = self.cut_deadline.into_iter().fold(self.deadline, Instant::min);
        (!self.is_gone).then(|| deadline.saturating_duration_since(Instant::now()))
    }
}

impl Predecessor {
    pub(super) fn new(pid: u32, drain_timeout: Duration) -> Self {
        let deadline = Instant::now() + drain_timeout + END_GRACE;
        let state = State {
            pid,
            channel: None,
            last: None,
            heard: None,
            totals: Totals::default(),
            deadline,
            cut_deadline: None,
            is_gone: false,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Earlier processes that still exist, the youngest first.
    pub(crate) fn generations(&self) -> Vec<Generation> {
        let state = self.lock();
        let silence = state.heard.map(|heard| heard.elapsed()).unwrap_or_default();
        let silent_ms = (silence >= SILENT_AFTER).then(|| milliseconds(silence));
        let mut all = match &state.last {
            Some(last) => vec![last.clone()],
            None if silent_ms.is_some() => vec![Generation::unheard(state.pid)],
            None => return Vec::new(),
        };
        all.append(&mut all[0].previous.clone());
        all[0].previous.clear();
        all[0].silent_ms = silent_ms;
        all
    }

    /// What all processes before this one counted.
    pub(crate) fn totals(&self) -> Totals {
        self.lock().totals
    }

    /// Has it cut what is in flight.
    pub(crate) fn cut(&self) {
        self.say(&FromNew::Cut);
        self.lock().cut_deadline.get_or_insert(Instant::now() + CUT_TIMEOUT);
        self.changed.notify_all();
    }

    /// This process stops, or another one has taken its place: the old one is not to take up again
    /// when it ends.
    pub(crate) fn say_goodbye(&self) {
        self.say(&FromNew::Goodbye);
    }

    /// This process is closing these addresses, which the old one still has sockets of.
    pub(crate) fn say_closed(&self, addresses: &[SocketAddr]) {
        self.say(&FromNew::Closed(addresses.to_vec()));
    }

    /// How long it may still take to be gone; `None` when it is.
    pub(crate) fn time_left(&self) -> Option<Duration> {
        self.lock().time_left()
    }

    /// Waits until it is gone, or has no more time for that.
    pub(crate) fn wait_gone(&self) {
        let mut state = self.lock();
        while let Some(left) = state.time_left() {
            if left.is_zero() {
                event!(Error, "old_process_left", old_pid = state.pid);
                return;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Hears what it says by this channel, until its end.
    pub(super) fn follow(
        self: &Arc<Self>,
        channel: &Channel,
        old: &Arc<Process>,
        control: Sender<Input>,
        loops: Vec<LoopHandle>,
    ) -> io::Result<()> {
        let (follower, mut channel, old) = (Arc::clone(self), channel.clone(), Arc::clone(old));
        let thread = thread::Builder::new().name("predecessor".into());
        thread.spawn(move || follower.hear(&mut channel, &old, &control, &loops)).map(drop)
    }

    /// Sends the requests of this process to it by this channel.
    pub(super) fn speak_by(&self, channel: Channel) -> io::Result<()> {
        channel.set_write_timeout(SEND_TIMEOUT)?;
        let mut state = self.lock();
        if !state.is_gone {
            (state.channel, state.heard) = (Some(channel), Some(Instant::now()));
        }
        Ok(())
    }

    fn say(&self, message: &FromNew) {
        let mut state = self.lock();
        if let Some(channel) = &mut state.channel
            && channel.send(message).is_err()
        {
            // It is gone, or does not read; half a message may be out.
            state.channel = None;
        }
    }

    fn hear(
        &self,
        channel: &mut Channel,
        old: &Process,
        control: &Sender<Input>,
        loops: &[LoopHandle],
    ) {
        let began = Instant::now();
        let mut last_word = None;
        while let Ok(said) = channel.receive() {
            match said {
                FromOld::Go | FromOld::Abort => {}
                FromOld::Lines(count) => {
                    if let Err(error) = lines::take(channel, count, loops) {
                        event!(Warn, "connections_not_taken", error:% = error);
                    }
                }
                FromOld::Report(generation) => {
                    let now = Instant::now();
                    let mut state = self.lock();
                    let all = [&*generation].into_iter().chain(&generation.previous);
                    let left = all.map(|process| process.remaining_ms).max().unwrap_or_default();
                    state.deadline = now + Duration::from_millis(left) + END_GRACE;
                    state.totals = generation.totals;
                    (state.last, state.heard) = (Some(*generation), Some(now));
                }
                FromOld::Stop(PassedStop { reason, cut }) => {
                    let by = StopAsker::Predecessor { cut };
                    send(control, Input::Stop(StopRequest { reason, timeout: None, by }));
                }
                FromOld::Gone(word) => {
                    self.lock().totals = word.totals;
                    last_word = Some(word);
                }
            }
        }
        if last_word.is_none() {
            // The end of the channel is not its end.
            old.wait();
        }
        let (pid, elapsed_ms) = (self.lock().pid, milliseconds(began.elapsed()));
        match last_word {
            Some(LastWord { verdict, cut, .. }) => event!(
                Info,
                "upgrade_complete",
                old_pid = pid,
                verdict = &*verdict,
                cut = cut,
                elapsed_ms = elapsed_ms,
            ),
            // Whatever it had in flight is lost; how much that was is not known.
            None => event!(Error, "old_process_lost", old_pid = pid, elapsed_ms = elapsed_ms),
        }
        // Behind the log: a process that only waits for this exits.
        let mut state = self.lock();
        (state.is_gone, state.channel) = (true, None);
        (state.last, state.heard) = (None, None);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
