//! The thread that looks names of upstreams up, again and again: a name can move.

use std::{
    collections::BTreeMap,
    io, thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::Watch;
use crate::app::Endpoint;

/// The time to the next look-up while a name has no address.
const UNKNOWN_AGAIN: Duration = Duration::from_secs(2);

/// The state of the thread.
pub(super) struct Resolver {
    watches: Receiver<Watch>,
    /// By when they are due; the number tells those of one time apart.
    due: BTreeMap<(Instant, u64), Watch>,
    next_number: u64,
}

impl Resolver {
    /// Begins the thread; it ends when the sender is dropped.
    pub(super) fn spawn() -> io::Result<Sender<Watch>> {
        let (sender, watches) = crossbeam_channel::unbounded();
        let resolver = Self { watches, due: BTreeMap::new(), next_number: 0 };
        thread::Builder::new().name("resolver".into()).spawn(move || resolver.run())?;
        Ok(sender)
    }

    fn run(mut self) {
        loop {
            let next = self.due.first_key_value().map(|((due, _), _)| *due);
            let watch = match next {
                Some(due) => self.watches.recv_deadline(due),
                None => self.watches.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match watch {
                // The names were looked up when the app was loaded.
                Ok(watch) => self.plan(watch, Instant::now()),
                Err(RecvTimeoutError::Timeout) => self.look_up_due(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn look_up_due(&mut self) {
        let now = Instant::now();
        while let Some(entry) = self.due.first_entry().filter(|entry| entry.key().0 <= now) {
            let watch = entry.remove();
            if let Some(upstreams) = watch.upstreams.upgrade() {
                let named = upstreams.endpoints().iter().filter(|endpoint| endpoint.has_name());
                named.for_each(Endpoint::resolve);
            }
            self.plan(watch, Instant::now());
        }
    }

    /// Plans the next look-up; none for a life that is gone.
    fn plan(&mut self, watch: Watch, now: Instant) {
        let Some(upstreams) = watch.upstreams.upgrade() else { return };
        let every = upstreams.config().resolve_every;
        let is_known = upstreams.endpoints().iter().all(Endpoint::has_addresses);
        let due = now + if is_known { every } else { every.min(UNKNOWN_AGAIN) };
        self.due.insert((due, self.next_number), watch);
        self.next_number += 1;
    }
}
