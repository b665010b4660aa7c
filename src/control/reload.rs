//! A reload: the config is read again, and what differs from what is served is changed, app by app.
//!
//! ```text
//! read ──wrong──► nothing changed
//!   │ right
//!   ▼
//! compare ──every app or address would go, and that is not allowed──► nothing changed
//!   ▼
//! load what is new or changed ► bind new addresses ► control puts all in place at once
//!   └ fails: the app's last good life stays, a new one answers 503 (I8)
//! ```
//! A dry run ends before anything is bound or put in place: what it loaded is dropped.
//!
//! Apps that did not change are not touched: they keep life, counts and connections. An app that
//! was drained on demand stays drained. Apps of the command line go when the config does not name
//! them.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use super::{
    certificates::{Certificates, Remarks},
    changes::{LifeChanges, LivesChanged},
    drain_view::{Cause, DrainName},
    emptied::Emptied,
    input::{Input, ReadyReload, ReloadChanges, Report, ask},
    listening::{Listening, Sockets, tls_port},
    load::unavailable,
    notices::notice,
    operator::{Operator, await_loops},
    reloaded::{ReloadError, ReloadOptions, Reloaded},
};
use crate::{
    acknowledgement::acknowledgement,
    config::{
        AppConfig, Config, ServerConfig, Source,
        diff::{changed_apps, changed_settings},
    },
    duration::milliseconds,
    hosted::{AppLife, HostedApp, Origin},
    logging::{AccessLog, event},
    message::LoopConfig,
    registry::{NewApp, NewLife},
};

/// How long the loops may take to close an address: they wait for handshakes.
const CLOSE_MAX: Duration = Duration::from_secs(3);
const REBIND_PAUSE: Duration = Duration::from_millis(5);

/// How long an address counts as ours after the order to close it: a loop that is stuck in an app
/// still has it.
const CLOSED_MAX: Duration = Duration::from_secs(600);

/// The changes of the apps, and the host of each life that begins, with whether it is a new app.
pub(super) struct AppPlan {
    pub(super) changes: LifeChanges,
    pub(super) hosts: Vec<(String, bool)>,
}

/// A reload whose changes are loaded and bound, and wait to be put in place.
pub(super) struct PreparedReload {
    config: Config,
    /// As in [`AppPlan`].
    hosts: Vec<(String, bool)>,
    certificates: (Certificates, Remarks),
    done: Reloaded,
}

impl Operator {
    pub(super) fn reload(&mut self, options: ReloadOptions) -> Result<Reloaded, ReloadError> {
        if options.dry_run {
            return self.read_config().and_then(|config| self.forecast(&config, options));
        }
        let begun = Instant::now();
        let file = self.source.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        notice!(self.notices, Info, "config_reload_start", config = &*file);
        self.renew_admin_socket();
        let service = Arc::clone(&self.service);
        let reloading = service.begin_reload();
        let result = self.read_config().and_then(|config| self.apply(config, options));
        drop(reloading);
        let elapsed_ms = milliseconds(begun.elapsed());
        match &result {
            Ok(done) => notice!(
                self.notices,
                Info,
                "config_reload_complete",
                elapsed_ms = elapsed_ms,
                added = done.added.len() as u64,
                changed = done.changed.len() as u64,
                removed = done.removed.len() as u64,
                unchanged = done.unchanged as u64,
                failed = done.failures().count() as u64,
                needs_restart = &*done.needs_restart.join(","),
            ),
            Err(error) => notice!(
                self.notices,
                Error,
                "config_reload_failed",
                elapsed_ms = elapsed_ms,
                error = &*error.summary(),
            ),
        }
        self.reloads.add(match &result {
            Ok(done) => done.failure_summary(),
            Err(error) => Some(error.summary()),
        });
        result
    }

    fn read_config(&mut self) -> Result<Config, ReloadError> {
        let path = self.source.as_ref().ok_or(ReloadError::NoFile)?;
        self.desk.step(format!("reading {}", path.display()));
        let text = Source::read_regular(path).map_err(ReloadError::Config)?;
        let config = Config::of_source(&text).map_err(ReloadError::Config)?;
        self.text = Some(Arc::new(text));
        Ok(config)
    }

    fn apply(&mut self, config: Config, options: ReloadOptions) -> Result<Reloaded, ReloadError> {
        let report = ask(&self.control, Input::Report).map_err(ReloadError::Change)?;
        let (prepared, changes) = self.prepare(&report, config, options)?;
        let (configured, all_configured) = acknowledgement();
        let ready = |answer| Input::Reload(Box::new(ReadyReload { changes, configured, answer }));
        let changed = ask(&self.control, ready).map_err(ReloadError::Change)?;
        let done = self.settle(prepared, changed);
        // When a client gets the outcome, the new settings hold.
        await_loops(&all_configured);
        Ok(done)
    }

    /// Loads and binds what the config has new: whatever can fail.
    pub(super) fn prepare(
        &mut self,
        report: &Report,
        config: Config,
        options: ReloadOptions,
    ) -> Result<(PreparedReload, ReloadChanges), ReloadError> {
        let mut done = Reloaded::default();
        let plan = self.plan_apps(report, &config, options, &mut done)?;
        self.desk.step("binding addresses");
        let (listen, close) = self.change_listeners(&config, &mut done);
        let changed = changed_settings(&self.current, &config);
        done.settings = changed.live;
        done.needs_restart = changed.needs_restart;
        self.desk.step("opening the logs");
        self.change_logs(&config, &mut done);
        let step = |file: &Path| self.desk.step(format!("reading {}", file.display()));
        let config_with_text = (&config, self.text.clone());
        let (certificates, remarks) =
            self.certificates.load(config_with_text, SystemTime::now(), &step);
        done.certificate_errors = remarks.errors();
        self.desk.step("putting it in place");
        let loops = if done.settings.iter().any(|key| concerns_loops(key)) {
            (0..self.registry.loops()).map(|_| self.loop_config(&config)).collect()
        } else {
            Vec::new()
        };
        let (lives, server) = (plan.changes, config.server.clone());
        let table = certificates.table();
        let changes = ReloadChanges { lives, certificates: table, server, loops, listen, close };
        let (hosts, certificates) = (plan.hosts, (certificates, remarks));
        Ok((PreparedReload { config, hosts, certificates, done }, changes))
    }

    /// Control has put a reload in place: its config holds from now on.
    pub(super) fn settle(&mut self, prepared: PreparedReload, changed: LivesChanged) -> Reloaded {
        let PreparedReload { mut config, hosts, certificates, mut done } = prepared;
        let (certificates, remarks) = certificates;
        self.certificates = certificates;
        self.watch.follow(&self.certificates);
        remarks.log(SystemTime::now());
        self.certificates.live().set_port(tls_port(&self.listening));
        (self.host.set_connections)(&config.limits);
        done.take_lives(hosts, changed);
        // What does not hold stays as it was, so that the next reload says it again, or tries.
        let ServerConfig { user, group, threads, .. } = &self.current.server;
        config.server.threads = *threads;
        config.server.user.clone_from(user);
        config.server.group.clone_from(group);
        config.admin = self.current.admin.clone();
        if !done.log_errors.is_empty() {
            config.log = self.current.log.clone();
        }
        self.current = config;
        done
    }

    fn loop_config(&self, config: &Config) -> LoopConfig {
        LoopConfig {
            limits: config.limits.clone(),
            idle_grace: config.server.idle_grace,
            access: self.access.as_ref().map(AccessLog::for_loop),
        }
    }

    /// Compares the apps with the config's, and loads what is new or changed.
    pub(super) fn plan_apps(
        &self,
        report: &Report,
        config: &Config,
        options: ReloadOptions,
        done: &mut Reloaded,
    ) -> Result<AppPlan, ReloadError> {
        if let Some(refusal) = report.refusal() {
            return Err(ReloadError::Change(refusal));
        }
        let drains = report.drains.iter().filter(|drain| drain.verdict.is_none());
        let leaving: HashSet<_> =
            drains.filter(|drain| drain.cause != Cause::Drain).map(|drain| drain.name).collect();
        let lives: Vec<_> = self
            .registry
            .entries()
            .into_iter()
            .filter(|life| life.app().origin != Origin::Embedder)
            .filter(|life| !leaving.contains(&DrainName::App(life.id())))
            .collect();
        if !options.allow_empty {
            self.check_left(&lives, config).map_err(ReloadError::Emptied)?;
        }
        // What its files say is a part of an app's config.
        let is_current = |life: &AppLife| {
            !life.app().app.upstreams().is_some_and(|upstreams| upstreams.has_changed_files())
        };
        let config_of = |life| AppLife::app(life).config.as_ref().filter(|_| is_current(life));
        let served: Vec<_> = lives.iter().map(|life| (life.host(), config_of(life))).collect();
        let compared = changed_apps(&served, &config.apps);
        done.unchanged = compared.unchanged.len();
        let by_host: HashMap<_, _> = lives.iter().map(|life| (life.host(), life)).collect();
        let mut plan = AppPlan::new(config);
        for app in compared.added {
            let life = self
                .load_or_say(app, done)
                .unwrap_or_else(|error| unavailable(app, error, self.registry.loops()));
            plan.begin(life, None);
        }
        for app in compared.changed {
            let old = by_host[&*app.host];
            if old.drain().draining() {
                // Drained on demand: it stays so, and a resume takes what the config says then.
                done.unchanged += 1;
            } else if let Ok(life) = self.load_or_say(app, done) {
                plan.begin(life, Some(Arc::clone(old)));
            }
        }
        let removed = compared.removed.into_iter().map(|host| Arc::clone(by_host[host]));
        plan.changes.remove = removed.collect();
        done.removed = plan.changes.remove.iter().map(|life| life.host().to_owned()).collect();
        Ok(plan)
    }

    /// Whether anything is left of what is served. Apps of an embedder stay in any case.
    fn check_left(&self, lives: &[Arc<AppLife>], config: &Config) -> Result<(), Emptied> {
        let is_own = |life: &Arc<AppLife>| life.app().origin == Origin::Embedder;
        let stays = self.registry.entries().iter().any(is_own);
        let hosts = lives.iter().map(|life| life.host()).filter(|_| !stays);
        Emptied::check(hosts, self.listening.iter().map(|own| own.bound), config)
    }

    fn load_or_say(
        &self,
        config: &AppConfig,
        done: &mut Reloaded,
    ) -> Result<NewApp<HostedApp>, String> {
        self.load(config, Origin::Config).inspect_err(|error| {
            let host = &*config.host;
            if !done.dry_run {
                notice!(self.notices, Error, "app_load_failed", host = host, error = &**error);
            }
            done.failed.push((config.host.clone(), error.clone()));
        })
    }

    /// Binds addresses that are new, and sets the options of those that are known. Those that are
    /// gone are closed only if nothing failed: a server without a listener would be out of reach.
    fn change_listeners(
        &mut self,
        config: &Config,
        done: &mut Reloaded,
    ) -> (Vec<Sockets>, Vec<SocketAddr>) {
        let wanted = &config.server.listen;
        self.closing.retain(|(_, asked)| asked.elapsed() < CLOSED_MAX);
        // A drain that was cancelled may have closed some.
        self.listening.retain(Listening::is_open);
        let mut listen = Vec::new();
        for entry in wanted {
            if let Some(known) = self.listening.iter_mut().find(|known| known.is_of(entry)) {
                known.configured = entry.address;
                known.configure(entry);
                continue;
            }
            match self.bind(entry.address) {
                Ok(sockets) => {
                    let listening = Listening::new(entry, &sockets);
                    done.listening.push(listening.bound);
                    self.keep(&listening);
                    self.listening.push(listening);
                    listen.push(sockets);
                }
                Err(error) => {
                    let address = entry.address.to_string();
                    notice!(
                        self.notices,
                        Error,
                        "listen_failed",
                        address = &*address,
                        error = &*error,
                    );
                    done.not_listening.push((entry.address, error));
                }
            }
        }
        if done.not_listening.is_empty() {
            let is_gone = |known: &mut Listening| !wanted.iter().any(|entry| known.is_of(entry));
            let gone = self.listening.extract_if(.., is_gone);
            done.closed = gone.map(|gone| gone.bound).collect();
            done.closed.iter().for_each(|address| self.service.forget(*address));
            let now = Instant::now();
            self.closing.extend(done.closed.iter().map(|address| (*address, now)));
        }
        (listen, done.closed.clone())
    }

    /// Binds an address. An earlier reload may still be closing it, and other addresses of ours may
    /// overlap with it.
    fn bind(&self, address: SocketAddr) -> Result<Sockets, String> {
        let closing = self.closing.iter().rev().find(|(closing, _)| *closing == address);
        let listening = self.listening.iter().map(|listening| &listening.bound);
        let mut ours = listening.chain(self.closing.iter().map(|(address, _)| address));
        let is_ours = ours.any(|ours| ours.port() == address.port());
        loop {
            let error = match (self.host.bind)(address, false) {
                Ok(sockets) => return Ok(sockets),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_ours => error,
                Err(error) => return Err(error.to_string()),
            };
            if closing.is_none_or(|(_, asked)| asked.elapsed() >= CLOSE_MAX) {
                let beside = (self.host.bind)(address, true);
                return beside.map_err(|_| error.to_string());
            }
            thread::sleep(REBIND_PAUSE);
        }
    }

    fn change_logs(&mut self, config: &Config, done: &mut Reloaded) {
        let Some(logging) = &self.logging else { return };
        for error in logging.reconfigure(&config.log) {
            event!(Error, "log_not_changed", error:% = error);
            done.log_errors.push(error.to_string());
        }
        self.access = logging.access();
    }
}

/// Whether loops need a changed setting; that costs a look at every connection.
fn concerns_loops(key: &str) -> bool {
    key.starts_with("limits.") || key.starts_with("log.access") || key == "server.idle_grace"
}

impl AppPlan {
    fn new(config: &Config) -> Self {
        let changes = LifeChanges {
            begin: Vec::new(),
            remove: Vec::new(),
            default_app: config.server.default_app.clone(),
        };
        Self { changes, hosts: Vec::new() }
    }

    fn begin(&mut self, app: NewApp<HostedApp>, instead_of: Option<Arc<AppLife>>) {
        self.hosts.push((app.host.clone(), instead_of.is_none()));
        self.changes.begin.push(NewLife { app, instead_of });
    }
}
