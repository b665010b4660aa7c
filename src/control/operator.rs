//! The operator thread: what may wait for a disk, one after the other. It reads the config, finds
//! what changed, loads apps, binds addresses, and gives control what is ready; control only has to
//! put it in place. So a slow disk holds up neither a drain nor a loop, and a change that cannot be
//! made changes nothing (I8). It can hang: others see with what, and since when ([`super::tasks`]).

use std::{
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{Arc, Weak},
    time::{Duration, Instant, SystemTime},
};

use crossbeam_channel::{Receiver, Sender, never, select};

use super::{
    certificates::{CertificateWatch, Certificates, Look},
    change_error::PutError,
    deploys::Board,
    input::{Input, ResumeApp, ask},
    listening::{Listening, Sockets},
    load,
    notices::{Notices, notice},
    reloaded::Reloads,
    service_manager::ServiceManager,
    tasks::{Desk, Task, TaskReceiver, Tell},
    upgrade::Upgrader,
};
use crate::{
    acknowledgement::{Acknowledgements, Obeyed},
    config::{AppConfig, Config, Limits, Source},
    hosted::{AppLife, Apps, HostedApp, Origin},
    logging::{AccessLog, Logging, event, rfc3339},
    registry::NewApp,
};

/// How often is looked whether the keys of tickets are due.
const TICKETS_EVERY: Duration = Duration::from_secs(60);

/// A socket of the admin that takes the place of one, and its file: device and inode.
pub(crate) type RenewedAdmin = (Arc<OwnedFd>, (u64, u64));

/// What the operator cannot do by itself: it knows no sockets.
pub(crate) struct OperatorHost {
    /// Binds an address for every loop, also beside other sockets of ours on its port.
    pub(crate) bind: Box<dyn Fn(SocketAddr, bool) -> io::Result<Sockets> + Send>,
    /// Finds out whether an address can be bound, and lets it go.
    pub(crate) try_bind: Box<dyn Fn(SocketAddr) -> io::Result<()> + Send>,
    /// Binds the admin's socket again if its file has gone; the new one, if so.
    pub(crate) renew_admin: Box<dyn Fn() -> io::Result<Option<RenewedAdmin>> + Send>,
    /// Sets how many connections the process may have, and each of its clients.
    pub(crate) set_connections: Box<dyn Fn(&Limits) + Send>,
}

/// The state of the operator thread.
pub(crate) struct Operator {
    pub(crate) registry: Arc<Apps>,
    pub(crate) control: Sender<Input>,
    pub(crate) notices: Arc<Notices>,
    pub(crate) reloads: Arc<Reloads>,
    pub(crate) service: Arc<ServiceManager>,
    /// The config file, if there is one.
    pub(crate) source: Option<PathBuf>,
    /// Its text, as it was read last.
    pub(crate) text: Option<Arc<Source>>,
    /// What holds now.
    pub(crate) current: Config,
    pub(crate) logging: Option<Logging>,
    pub(crate) access: Option<AccessLog>,
    pub(crate) listening: Vec<Listening>,
    /// Addresses that the loops have been ordered to close, and when.
    pub(crate) closing: Vec<(SocketAddr, Instant)>,
    pub(crate) host: OperatorHost,
    pub(crate) upgrader: Upgrader,
    pub(crate) certificates: Certificates,
    /// The watch over their files.
    pub(crate) watch: CertificateWatch,
    /// Where others see what it is at.
    pub(crate) desk: Arc<Desk>,
    /// Deploys that are under way.
    pub(crate) deploys: Arc<Board>,
}

/// What the operator does next.
enum Next {
    Task(u64, Task),
    Look(Look),
    Nothing,
}

impl Operator {
    /// Works until no thread is left that could ask.
    pub(crate) fn run(mut self, tasks: &TaskReceiver) {
        self.listening.iter().for_each(|listening| self.keep(listening));
        self.watch.follow(&self.certificates);
        let mut looks = self.watch.looks();
        loop {
            self.certificates.rotate_tickets(SystemTime::now());
            self.announce_expiries(SystemTime::now());
            self.watch.report_slow(Instant::now());
            let (number, task) = match next(tasks, &mut looks) {
                Some(Next::Task(number, task)) => (number, task),
                Some(Next::Look(look)) => {
                    self.take_look(look);
                    continue;
                }
                Some(Next::Nothing) => continue,
                None => return,
            };
            if !self.desk.begin(number, &task) {
                continue;
            }
            // A bug in one task doesn't end the operator. Its client sees that no outcome comes.
            if catch_unwind(AssertUnwindSafe(|| self.work(task))).is_err() {
                event!(Error, "operator_panicked");
                // If it was a hand-over, control waits for no other end of it.
                drop(self.control.send(Input::KeptOn));
            }
            self.desk.end();
        }
    }

    /// Says which certificates expire soon, or have expired.
    fn announce_expiries(&mut self, now: SystemTime) {
        let due = self.certificates.due_expiries(now);
        // If another process serves, that one says it.
        if due.is_empty()
            || !ask(&self.control, Input::Report).is_ok_and(|report| report.refusal().is_none())
        {
            return;
        }
        for expiry in &due {
            let apps = expiry.apps.join(",");
            let file = expiry.certificate.file().map(|file| file.display().to_string());
            let not_after = rfc3339(expiry.certificate.not_after());
            let (apps, file, not_after) = (&*apps, file.as_deref(), &*not_after);
            if expiry.days_left < 0 {
                notice!(
                    self.notices,
                    Error,
                    "certificate_expired",
                    apps = apps,
                    file = file,
                    not_after = not_after,
                );
            } else {
                notice!(
                    self.notices,
                    Warn,
                    "certificate_expires",
                    apps = apps,
                    file = file,
                    not_after = not_after,
                    days_left = expiry.days_left,
                );
            }
        }
        self.certificates.say_expiries(&due);
    }

    /// Takes what a look at the files of certificates has found, if it still holds.
    fn take_look(&mut self, look: Look) {
        if !self.watch.is_current(&look) {
            return;
        }
        // A server that stops has no more handshakes; if another process serves, that one looks.
        let report = ask(&self.control, Input::Report);
        if report.is_ok_and(|report| report.refusal().is_none()) {
            self.certificates.take(look, SystemTime::now());
            self.watch.follow(&self.certificates);
        }
    }

    /// Has the service manager keep the sockets of an address over a restart. The next process
    /// would not know those of a port that the kernel chose.
    pub(super) fn keep(&self, listening: &Listening) {
        if !listening.is_kept && listening.configured.port() != 0 {
            let sockets: Vec<_> = listening.sockets.iter().filter_map(Weak::upgrade).collect();
            self.service.keep(listening.bound, &sockets);
        }
    }

    fn work(&mut self, task: Task) {
        match task {
            Task::Reload(options, tell) => self.tell(&tell, |own| own.reload(options)),
            Task::Put(host, mode, table, tell) => {
                self.tell(&tell, |own| own.put(&host, mode, &table));
            }
            Task::Deploy(host, table, tell) => {
                self.tell(&tell, |own| own.load_deploy(&host, &table));
            }
            Task::Switch(deploy, tell) => self.tell(&tell, |own| own.switch(&deploy)),
            Task::Resume(host, tell) => self.tell(&tell, |own| own.resume(&host)),
            Task::Upgrade(options, tell) => self.tell(&tell, |own| {
                own.deploys.abort_all("an upgrade has begun");
                own.upgrade(options)
            }),
        }
    }

    /// Does a task. A client gets the outcome when nothing of the task runs any more.
    fn tell<T, E>(&mut self, tell: &Tell<T, E>, work: impl FnOnce(&mut Self) -> Result<T, E>) {
        let outcome = work(self);
        self.desk.end();
        tell.tell(outcome);
    }

    /// A cleaner of old files may have taken the admin socket's: without it no operator gets in.
    pub(super) fn renew_admin_socket(&mut self) {
        match (self.host.renew_admin)() {
            Ok(None) => {}
            Ok(Some((socket, file))) => {
                if let Some(admin) = &mut self.upgrader.admin {
                    (admin.socket, admin.file) = (Arc::clone(&socket), Some(file));
                }
                notice!(self.notices, Warn, "admin_socket_renewed");
                drop(self.control.send(Input::ListenForAdmin(socket)));
            }
            Err(error) => {
                notice!(self.notices, Error, "admin_socket_lost", error = &*error.to_string());
            }
        }
    }

    /// Resumes with what the config says now, if that is something else than what was drained.
    fn resume(&mut self, host: &str) -> Result<Arc<AppLife>, PutError> {
        let life = self.registry.find(&host.to_ascii_lowercase());
        let life = life.filter(|life| life.app().origin == Origin::Config);
        let config = life.and_then(|life| {
            let config = self.current.apps.iter().find(|config| config.host == life.host())?;
            (life.app().config.as_ref() != Some(config)).then_some(config)
        });
        let app = config.map(|config| self.load(config, Origin::Config)).transpose();
        let app = app.map_err(PutError::Load)?;
        let host = host.to_owned();
        let resume = |answer| Input::Resume(ResumeApp { host, app, answer });
        ask(&self.control, resume).map_err(PutError::Change)
    }

    /// Loads an app; says why if it cannot be.
    pub(super) fn load(
        &self,
        config: &AppConfig,
        origin: Origin,
    ) -> Result<NewApp<HostedApp>, String> {
        self.desk.step(format!("loading {}", config.host));
        load::load(config, origin, self.registry.loops()).map_err(|error| error.to_string())
    }
}

/// Waits for what is next; none when no task can come any more.
fn next(tasks: &TaskReceiver, looks: &mut Receiver<Look>) -> Option<Next> {
    select! {
        recv(tasks) -> task => task.ok().map(|(number, task)| Next::Task(number, task)),
        recv(looks) -> look => Some(look.map_or_else(
            |_| {
                // Its thread is gone.
                *looks = never();
                Next::Nothing
            },
            Next::Look,
        )),
        default(TICKETS_EVERY) => Some(Next::Nothing),
    }
}

/// How long loops may take to obey. A loop that is stuck in an app doesn't obey.
const OBEY_TIMEOUT: Duration = Duration::from_secs(1);

/// Waits until all loops have obeyed a command.
pub(super) fn await_loops(all: &Acknowledgements) {
    // A loop that is stuck holds up no operator.
    let _: Obeyed = all.wait(OBEY_TIMEOUT);
}
