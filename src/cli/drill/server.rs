//! Runs actions on a Tidegate through its admin API; can also restart the drill's own server.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Map, Value};

use crate::{
    cli::{
        Place,
        address::Address,
        admin::{Admin, Answer, ServerOptions, app_path},
        answers::{Apps, Changed, Drain, DrainState, ReloadAnswer, ServerStatus, Verdict},
        failure::Failure,
        names,
    },
    config::nearest,
    drill::{self, Action, Actor, OwnServer, Target, Trust, Witness},
};

/// How long a server may take to become ready, or to be replaced by a new process.
const READY_MAX: Duration = Duration::from_secs(30);

/// How often readiness is checked.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// How long the server holds back an answer about a drain.
const HOLD: Duration = Duration::from_secs(1);

/// Connections that stay open over a renewal, and handshakes after it: enough to meet each loop of
/// a usual machine.
const KEPT_CONNECTIONS: usize = 4;
const NEW_HANDSHAKES: usize = 8;

/// The server under drill.
pub(super) struct Tidegate {
    admin: Admin,
    own: Option<OwnServer>,
    /// The apps that actions apply to, by host.
    apps: Vec<(String, Value)>,
    /// A client of each target, if they speak TLS.
    witnesses: Vec<Witness>,
    /// Upgrades that a client with a session has seen, and those after which it was resumed.
    upgrades: u64,
    resumed: u64,
}

/// A running server.
pub(super) struct Found {
    pub(super) tidegate: Tidegate,
    pub(super) address: SocketAddr,
    /// The hosts to request.
    pub(super) hosts: Vec<String>,
    /// Apps that commands have made.
    pub(super) unknown_to_config: Vec<String>,
}

impl Tidegate {
    /// Starts the drill's own server.
    pub(super) fn start(
        tls: bool,
    ) -> Result<(Self, SocketAddr, Vec<Target>, Option<Trust>), Failure> {
        let failed = |error| Failure::Unended(format!("the drill's own server: {error}"));
        let server = OwnServer::start(tls).map_err(failed)?;
        let apps = drill::apps(&server.config_path()).map_err(failed)?;
        let (address, targets, trust) = (server.address(), server.targets(), server.trust());
        let admin = Admin::of(Address::Unix(server.admin_socket()));
        let mut tidegate = Self::new(admin, Some(server), apps.into_iter().collect());
        tidegate.wait_ready().map_err(Failure::Unended)?;
        Ok((tidegate, address, targets, trust))
    }

    fn new(admin: Admin, own: Option<OwnServer>, apps: Vec<(String, Value)>) -> Self {
        Self { admin, own, apps, witnesses: Vec::new(), upgrades: 0, resumed: 0 }
    }

    /// Lets these clients see what actions do to TLS.
    pub(super) fn watch(&mut self, witnesses: Vec<Witness>) {
        self.witnesses = witnesses;
    }

    /// After how many upgrades a client's session was resumed, and how many upgrades were watched.
    pub(super) fn upgrades(&self) -> Option<(u64, u64)> {
        (self.upgrades > 0).then_some((self.resumed, self.upgrades))
    }

    /// Finds the running server. The targets are `hosts`, or all of its hosts if that is empty.
    pub(super) fn find(place: &Place, hosts: &[String], tls: bool) -> Result<Found, Failure> {
        let mut admin = ServerOptions::default().admin(place)?;
        let status = admin.get::<ServerStatus>("/status")?.value;
        let address = connectable(address(&status, tls)?);
        let tables = match &status.config {
            Some(path) => drill::apps(Path::new(path))
                .map_err(|error| Failure::Unended(format!("{path}: {error}")))?,
            None => Map::new(),
        };
        let mut rows = admin.get::<Apps>("/apps")?.value.apps;
        rows.retain(|row| row.state == "serving");
        let is_unknown = |host: &&String| !rows.iter().any(|row| names::serves(row, host));
        if let Some(host) = hosts.iter().find(is_unknown) {
            let near = nearest(host, rows.iter().map(|row| row.host.as_str()));
            let near = near.map(|near| format!(" (did you mean `{near}`?)")).unwrap_or_default();
            return Err(Failure::Unended(format!("{host}: no serving app has this host{near}")));
        }
        if !hosts.is_empty() {
            rows.retain(|row| hosts.iter().any(|host| names::serves(row, host)));
        }
        let is_served =
            |host: &str| !tls || tables.get(host).is_some_and(|app| !app["tls"].is_null());
        let hosts: Vec<String> = match hosts {
            [] => rows
                .iter()
                .filter(|row| is_served(&row.host))
                // Any name that matches the wildcard.
                .map(|row| row.host.replacen('*', "drill", 1))
                .collect(),
            hosts => hosts.to_vec(),
        };
        if hosts.is_empty() {
            let over = if tls { " over TLS" } else { "" };
            return Err(Failure::Unended(format!("the server serves no app{over}")));
        }
        let (known, unknown): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|row| row.origin == "config");
        let unknown_to_config = unknown.into_iter().map(|row| row.host).collect();
        // An app that only a command knows can't be added again in its former state.
        let is_known = |host: &String| known.iter().any(|row| row.host == *host);
        let apps = tables.into_iter().filter(|(host, _)| is_known(host)).collect();
        let tidegate = Self::new(admin, None, apps);
        Ok(Found { tidegate, address, hosts, unknown_to_config })
    }

    /// Stops the server if the drill started it. Returns the folder of the log if it is kept.
    pub(super) fn end(mut self, is_clean: bool) -> Result<Option<PathBuf>, Failure> {
        let stopped = self.stop();
        let Some(mut server) = self.own else { return Ok(None) };
        if is_clean && stopped.is_ok() {
            return Ok(None);
        }
        server.keep_folder();
        let log = server.log_path();
        match stopped {
            // The result has already reported the earlier failure.
            Err(error) if is_clean => {
                let log = log.display();
                Err(Failure::Unended(format!("the drill's own server: {error}; its log: {log}")))
            }
            _ => Ok(Some(log)),
        }
    }

    fn reload(&mut self, turn: usize) -> Result<(), String> {
        let changed = self.own.as_mut().map(|server| server.change(turn)).transpose();
        let changed = changed.map_err(|error| error.to_string())?;
        let reload = self.post_reload()?;
        match changed {
            Some(host) if !reload.changed.iter().any(|other| other == host) => {
                Err(format!("{host} was changed in the config, but the reload did not apply it"))
            }
            _ => Ok(()),
        }
    }

    fn post_reload(&mut self) -> Result<ReloadAnswer, String> {
        let reload = value(self.admin.post::<ReloadAnswer>("/reload"))?;
        if let Some(failed) = reload.failed.first() {
            return Err(format!("{}: {}", failed.host, failed.error));
        }
        match reload.certificate_errors.first() {
            Some(error) => Err(error.clone()),
            None => Ok(reload),
        }
    }

    /// Renews a certificate. New handshakes show it at once; the connections and the session of a
    /// client go on.
    fn renew(&mut self, turn: usize) -> Result<(), String> {
        let server = self.own.as_ref().ok_or("the drill didn't start this server")?;
        let host = server.host(turn);
        let witness = self.witnesses.iter().find(|witness| witness.host() == host);
        let witness = witness.ok_or("without --tls")?.clone();
        let kept = witness.keep(KEPT_CONNECTIONS)?;
        // The server may notice the file by itself, before the reload.
        let certificate = server.renew(host).map_err(|error| error.to_string())?;
        self.post_reload()?;
        for _ in 0..NEW_HANDSHAKES {
            if witness.shown()? != certificate {
                return Err(format!("{host}: a handshake shows the old certificate"));
            }
        }
        if !witness.resumes(&kept)? {
            return Err(format!("{host}: a session from before is not resumed"));
        }
        witness.ask_again(kept)
    }

    fn replace(&mut self, turn: usize) -> Result<(), String> {
        let (path, table) = self.app(turn)?;
        let path = format!("{path}?only=replace");
        value(self.admin.put::<Changed>(&path, &table)).map(drop)
    }

    fn remove_and_add(&mut self, turn: usize) -> Result<(), String> {
        let (path, table) = self.app(turn)?;
        let drain = value(self.admin.delete::<Drain>(&path))?;
        let drained = self.wait_drained(drain);
        // Whatever the drain's verdict is, the app is added again.
        value(self.admin.put::<Changed>(&format!("{path}?only=add"), &table))?;
        drained
    }

    fn drain_and_resume(&mut self, turn: usize) -> Result<(), String> {
        let (path, _) = self.app(turn)?;
        let drain = value(self.admin.post::<Drain>(&format!("{path}/drain")))?;
        let drained = self.wait_drained(drain);
        value(self.admin.post::<Changed>(&format!("{path}/resume")))?;
        drained
    }

    /// Upgrades. A client's session from before is resumed by the new process.
    fn upgrade(&mut self, turn: usize) -> Result<(), String> {
        let Some(witness) = self.witnesses.get(turn % self.witnesses.len().max(1)).cloned() else {
            return self.upgrade_process();
        };
        let kept = witness.keep(0)?;
        self.upgrade_process()?;
        self.upgrades += 1;
        if !witness.resumes(&kept)? {
            return Err("a session from before the upgrade is not resumed".to_owned());
        }
        self.resumed += 1;
        Ok(())
    }

    /// Waits until a new process serves and the old one has exited.
    fn upgrade_process(&mut self) -> Result<(), String> {
        let old = self.pid()?;
        value(self.admin.post::<Value>("/upgrade"))?;
        let deadline = Instant::now() + READY_MAX;
        // During the hand-over there may be no answer.
        while !(self.pid().is_ok_and(|pid| pid != old) && drill::is_gone(old)) {
            if Instant::now() >= deadline {
                return Err(format!(
                    "process {old} is still there after {} s",
                    READY_MAX.as_secs()
                ));
            }
            thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    fn restart(&mut self) -> Result<(), String> {
        self.stop()?;
        let server = self.own.as_mut().ok_or("the drill didn't start this server")?;
        server.spawn().map_err(|error| error.to_string())?;
        self.admin = Admin::of(Address::Unix(server.admin_socket()));
        self.wait_ready()
    }

    fn stop(&mut self) -> Result<(), String> {
        if self.own.is_none() {
            return Ok(());
        }
        let pid = self.pid()?;
        self.own.as_mut().map_or(Ok(()), |server| server.stop(pid))
    }

    fn pid(&mut self) -> Result<i32, String> {
        Ok(value(self.admin.get::<ServerStatus>("/status"))?.pid)
    }

    fn wait_ready(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + READY_MAX;
        while self.admin.get::<Value>("/readyz").is_err() {
            let has_ended = self.own.as_mut().is_some_and(OwnServer::has_ended);
            if has_ended || Instant::now() >= deadline {
                if let Some(server) = &mut self.own {
                    server.keep_folder();
                    let log = server.log_path();
                    return Err(format!("the server did not start; its log: {}", log.display()));
                }
                return Err("the server is not ready".to_owned());
            }
            thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    fn wait_drained(&mut self, mut drain: Drain) -> Result<(), String> {
        while drain.state == DrainState::Draining {
            let path = format!("/drains/{}?wait={}ms", drain.id, HOLD.as_millis());
            drain = value(self.admin.poll::<Drain>(&path, HOLD))?;
        }
        match drain.verdict {
            Some(Verdict::Drained) => Ok(()),
            verdict => Err(format!("the drain of {} ended as {verdict:?}", drain.name())),
        }
    }

    /// The path and the table of the app for this turn.
    fn app(&self, turn: usize) -> Result<(String, String), String> {
        let (host, table) = self
            .apps
            .get(turn % self.apps.len().max(1))
            .ok_or("the server's config has no serving app")?;
        Ok((app_path(host, ""), table.to_string()))
    }
}

impl Actor for Tidegate {
    fn act(&mut self, action: Action, turn: usize) -> Result<(), String> {
        match action {
            Action::Reload => self.reload(turn),
            Action::Renew => self.renew(turn),
            Action::Replace => self.replace(turn),
            Action::RemoveAdd => self.remove_and_add(turn),
            Action::DrainResume => self.drain_and_resume(turn),
            Action::Upgrade => self.upgrade(turn),
            Action::StopStart => self.restart(),
            Action::Nothing => Ok(()),
            Action::Command => Err("no command was given".to_owned()),
        }
    }
}

/// The server's answer, or its error as text.
fn value<T>(answer: Result<Answer<T>, Failure>) -> Result<T, String> {
    answer.map(|answer| answer.value).map_err(|failure| failure.to_string())
}

/// The server's first address with TLS, or without it.
fn address(status: &ServerStatus, tls: bool) -> Result<SocketAddr, Failure> {
    let listeners = status.listeners.iter().filter(|listener| listener.tls == tls);
    let mut listed = listeners.map(|listener| &listener.address);
    // Older servers don't say where they speak TLS.
    let older = status.listen.first().filter(|_| !tls && status.listeners.is_empty());
    let address = listed.next().or(older).and_then(|text| text.parse().ok());
    let with = if tls { "with TLS" } else { "without TLS" };
    address.ok_or_else(|| Failure::Unended(format!("the server listens on no address {with}")))
}

/// The address at which a client reaches a server that listens on all addresses.
fn connectable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}
