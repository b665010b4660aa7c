//! Watches the upstreams of all lives: starts the threads, and sends them each new life.

use std::{io, sync::Arc, time::Instant};

use crossbeam_channel::Sender;

use super::{
    super::notices::{Notices, notice},
    checks::{Checks, ChecksHandle},
    resolver::Resolver,
    watched::Watch,
};
use crate::{
    app::{Endpoint, Upstreams},
    hosted::AppLife,
    logging::event,
};

/// A way to the threads that look after upstreams. They end when it is dropped.
pub(in super::super) struct UpstreamWatch {
    epoch: Instant,
    notices: Arc<Notices>,
    checks: Option<ChecksHandle>,
    resolver: Option<Sender<Watch>>,
}

impl UpstreamWatch {
    /// No thread yet. `epoch` is where the nanoseconds of loops count from.
    pub(in super::super) fn new(epoch: Instant, notices: Arc<Notices>) -> Self {
        Self { epoch, notices, checks: None, resolver: None }
    }

    /// Looks after the upstreams of a life, if it has any.
    pub(in super::super) fn begin(&mut self, life: &AppLife) {
        let Some(upstreams) = life.app().app.upstreams() else { return };
        for warning in upstreams.warnings() {
            let (host, reason) = (life.host(), &*warning.text);
            notice!(self.notices, Warn, "upstream_tls_unsafe", host = host, reason = reason);
        }
        if let Err(error) = self.watch(life.host(), upstreams) {
            event!(Error, "upstreams_not_watched", host = life.host(), error:% = error);
        }
    }

    pub(super) fn watch(&mut self, host: &str, upstreams: &Arc<Upstreams>) -> io::Result<()> {
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
            // A thread that is gone has panicked; the panic is in the log.
            drop(resolver.send(watch()));
        }
        Ok(())
    }
}
