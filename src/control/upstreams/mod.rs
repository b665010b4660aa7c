//! What is done for upstreams beside the loops: their checks, and the look-up of their names.
//!
//! Two threads for the whole process, begun with the first app that needs one of them: `checks`
//! waits for sockets only, `resolver` for the system's resolver, which can be slow and must hold up
//! no check. They hold no app: what is watched ends with its life. Results reach the loops by the
//! state of [`Upstreams`], never by a message. What changes is told to operators, as are the
//! failures that loops report.

mod checks;
mod probe;
mod resolver;

use std::{
    io,
    sync::{Arc, Weak},
    time::Instant,
};

use crossbeam_channel::Sender;
use mio::Waker;

use super::notices::{Notices, notice};
use crate::{
    app::{Endpoint, Upstreams},
    hosted::AppLife,
    logging::event,
    message::FailureReport,
};
use checks::Checks;
use resolver::Resolver;

/// The upstreams of one life, for as long as it lasts.
struct Watch {
    /// The app's, for the log.
    host: String,
    upstreams: Weak<Upstreams>,
}

/// A way to the threads that look after upstreams. They end when it is dropped.
pub(super) struct UpstreamWatch {
    epoch: Instant,
    notices: Arc<Notices>,
    checks: Option<ChecksHandle>,
    resolver: Option<Sender<Watch>>,
}

struct ChecksHandle {
    /// None only while it is dropped.
    watches: Option<Sender<Watch>>,
    waker: Arc<Waker>,
}

impl UpstreamWatch {
    /// No thread yet. `epoch` is where the nanoseconds of loops count from.
    pub(super) fn new(epoch: Instant, notices: Arc<Notices>) -> Self {
        Self { epoch, notices, checks: None, resolver: None }
    }

    /// Looks after the upstreams of a life, if it has any.
    pub(super) fn begin(&mut self, life: &AppLife) {
        let Some(upstreams) = life.app().app.upstreams() else { return };
        if let Err(error) = self.watch(life.host(), upstreams) {
            event!(Error, "upstreams_not_watched", host = life.host(), error:% = error);
        }
    }

    fn watch(&mut self, host: &str, upstreams: &Arc<Upstreams>) -> io::Result<()> {
        let watch = || Watch { host: host.to_owned(), upstreams: Arc::downgrade(upstreams) };
        if upstreams.config().health.is_some() {
            let checks = match &mut self.checks {
                Some(checks) => checks,
                none => none.insert(Checks::spawn(self.epoch, Arc::clone(&self.notices))?),
            };
            checks.add(watch())?;
        }
        if upstreams.endpoints().iter().any(Endpoint::has_name) {
            let resolver = match &mut self.resolver {
                Some(resolver) => resolver,
                none => none.insert(Resolver::spawn(Arc::clone(&self.notices))?),
            };
            // A thread that is gone has panicked, which the log tells.
            drop(resolver.send(watch()));
        }
        Ok(())
    }
}

impl ChecksHandle {
    fn add(&self, watch: Watch) -> io::Result<()> {
        if let Some(watches) = &self.watches {
            drop(watches.send(watch));
        }
        self.waker.wake()
    }
}

impl Drop for ChecksHandle {
    fn drop(&mut self) {
        self.watches = None;
        // A poll that cannot be woken ends with the process.
        drop(self.waker.wake());
    }
}

/// Tells operators of a failure that a loop reports.
pub(super) fn tell_failure(notices: &Notices, report: &FailureReport) {
    let FailureReport { host, upstream, failure, unlogged, ejected_for } = report;
    let (host, upstream, reason) = (&**host, upstream.as_deref(), failure.cause.name());
    let error = &*failure.to_string();
    if let Some(suppressed) = *unlogged {
        notice!(
            notices,
            Warn,
            "upstream_failed",
            host = host,
            upstream = upstream,
            reason = reason,
            error = error,
            suppressed = suppressed,
        );
    }
    if let Some(ejected_for) = ejected_for {
        notice!(
            notices,
            Warn,
            "upstream_ejected",
            host = host,
            upstream = upstream,
            reason = reason,
            error = error,
            eject_for_ms = u64::try_from(ejected_for.as_millis()).unwrap_or(u64::MAX),
        );
    }
}

#[cfg(test)]
mod tests;
