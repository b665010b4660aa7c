//! A dry run of a reload: what it would do, found without a change.
//!
//! Apps and certificates are loaded and dropped, addresses are bound for a moment and never
//! listened on. What only the moment of the change can tell, such as a name that an embedder's app
//! takes meanwhile, is not in it.

use std::{io, path::Path, time::SystemTime};

use super::{
    Input, ask,
    operator::Operator,
    reloaded::{ReloadError, ReloadOptions, Reloaded},
};
use crate::config::{Config, ListenConfig, diff::changed_settings};

impl Operator {
    /// Finds what a reload would do. It loads apps, and tries whether addresses can be bound.
    ///
    /// # Errors
    /// Why the reload would change nothing.
    pub(super) fn forecast(
        &self,
        config: &Config,
        options: ReloadOptions,
    ) -> Result<Reloaded, ReloadError> {
        let mut done = Reloaded { dry_run: true, ..Reloaded::default() };
        let report = ask(&self.control, Input::Report).map_err(ReloadError::Change)?;
        let plan = self.plan_apps(&report, config, options, &mut done)?;
        for (life, (host, is_new)) in plan.changes.begin.iter().zip(plan.hosts) {
            match &life.app.app.load_error {
                Some(_) => {}
                None if is_new => done.added.push(host),
                None => done.changed.push(host),
            }
        }
        self.forecast_listeners(config, &mut done);
        let step = |file: &Path| self.desk.step(format!("reading {}", file.display()));
        let now = SystemTime::now();
        let (_, remarks) = self.certificates.load((config, self.text.clone()), now, &step);
        done.certificate_errors = remarks.errors();
        let changed = changed_settings(&self.current, config);
        (done.settings, done.needs_restart) = (changed.live, changed.needs_restart);
        Ok(done)
    }

    fn forecast_listeners(&self, config: &Config, done: &mut Reloaded) {
        let wanted = &config.server.listen;
        let is_known = |entry: &&ListenConfig| self.listening.iter().any(|own| own.is_of(entry));
        for entry in wanted.iter().filter(|entry| !is_known(entry)) {
            let port = entry.address.port();
            // A part of an address of ours is bound beside it.
            let is_ours = self.listening.iter().any(|own| own.bound.port() == port);
            match (self.host.try_bind)(entry.address) {
                Err(error) if !is_ours || error.kind() != io::ErrorKind::AddrInUse => {
                    done.not_listening.push((entry.address, error.to_string()));
                }
                _ => done.listening.push(entry.address),
            }
        }
        if done.not_listening.is_empty() {
            let gone = self.listening.iter().filter(|own| !wanted.iter().any(|e| own.is_of(e)));
            done.closed = gone.map(|own| own.bound).collect();
        }
    }
}
