//! The thread that looks names of upstreams up, again and again: a name can move.
//!
//! Operators hear of a name when it begins to fail, fails for another reason, or is well again.

use std::{
    collections::BTreeMap,
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::{
    super::notices::{Notices, notice},
    watched::Watch,
};
use crate::app::{Endpoint, Upstreams};

/// The time to the next look-up while a name has no address.
const UNKNOWN_AGAIN: Duration = Duration::from_secs(2);

/// The state of the thread.
pub(super) struct Resolver {
    watches: Receiver<Watch>,
    notices: Arc<Notices>,
    /// By due time, and by a number that makes equal times unique.
    due: BTreeMap<(Instant, u64), Named>,
    next_number: u64,
}

/// A life whose upstreams have names.
struct Named {
    watch: Watch,
    /// Of each upstream, the error that was reported last.
    errors: Vec<Option<String>>,
}

impl Resolver {
    /// Begins the thread; it ends when the sender is dropped.
    pub(super) fn spawn(notices: Arc<Notices>) -> io::Result<Sender<Watch>> {
        let (sender, watches) = crossbeam_channel::unbounded();
        let resolver = Self { watches, notices, due: BTreeMap::new(), next_number: 0 };
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
                Ok(watch) => self.plan(Named { watch, errors: Vec::new() }, Instant::now()),
                Err(RecvTimeoutError::Timeout) => self.look_up_due(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn look_up_due(&mut self) {
        let now = Instant::now();
        while let Some(entry) = self.due.first_entry().filter(|entry| entry.key().0 <= now) {
            let named = entry.remove();
            if let Some(upstreams) = named.watch.upstreams.upgrade() {
                let endpoints = upstreams.endpoints().iter();
                endpoints.filter(|endpoint| endpoint.has_name()).for_each(Endpoint::resolve);
            }
            self.plan(named, Instant::now());
        }
    }

    /// Plans the next look-up; none for a life that is gone.
    fn plan(&mut self, mut named: Named, now: Instant) {
        let Some(upstreams) = named.watch.upstreams.upgrade() else { return };
        named.tell_changes(&upstreams, &self.notices);
        let every = upstreams.config().resolve_every;
        let is_known = upstreams.endpoints().iter().all(Endpoint::has_addresses);
        let due = now + if is_known { every } else { every.min(UNKNOWN_AGAIN) };
        self.due.insert((due, self.next_number), named);
        self.next_number += 1;
    }
}

impl Named {
    fn tell_changes(&mut self, upstreams: &Upstreams, notices: &Notices) {
        let host = &*self.watch.host;
        self.errors.resize(upstreams.endpoints().len(), None);
        for (endpoint, reported) in upstreams.endpoints().iter().zip(&mut self.errors) {
            let (url, error) = (endpoint.url(), endpoint.resolve_error());
            if error == *reported {
                continue;
            }
            match &error {
                Some(error) => notice!(
                    notices,
                    Warn,
                    "upstream_unresolved",
                    host = host,
                    upstream = url,
                    error = &**error,
                    keeps_addresses = endpoint.has_addresses(),
                ),
                None => {
                    notice!(notices, Info, "upstream_resolved", host = host, upstream = url);
                }
            }
            *reported = error;
        }
    }
}
