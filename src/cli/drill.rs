//! `tidegate drill`: a server under load, changed again and again, and an account of every request.
//!
//! Reads the arguments, finds or starts the server, and prints; the drill itself is elsewhere. The
//! server is one of three: this binary, started with apps of its own; a Tidegate that runs; or
//! whatever answers at a URL, with a shell command as the action.

mod print;
mod server;

use std::{
    fs,
    io::IsTerminal,
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use clap::{Args, value_parser};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::{DONE, FAILED, admin::Place, failure::Failure, show};
use crate::{
    config::{UnitError, parse_duration},
    drill::{self, Action, Actor, LoadSettings, Pace, Shell, Target},
    http::Host,
};
use print::Report;
use server::Tidegate;

/// How long the load goes on before the first action, and behind the last.
const MARGIN: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
#[command(args_override_self = true)]
pub(super) struct Drill {
    /// Drill the server that runs and that --config or --admin names, with the apps it has. The
    /// actions are done to it, also those that refuse requests
    #[arg(long, conflicts_with = "url")]
    running: bool,

    /// Drill whatever answers at this URL: http://ADDRESS:PORT
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// A host to ask for; can be given several times. Without it, the one in the URL
    #[arg(long = "host", value_name = "HOST", requires = "url")]
    hosts: Vec<String>,

    /// What to ask for
    #[arg(long, value_name = "PATH", default_value = "/", requires = "url")]
    path: String,

    /// What to ask for in slow downloads: something large
    #[arg(long, value_name = "PATH", requires = "url")]
    slow_path: Option<String>,

    /// The action `command`: what the shell is to run
    #[arg(long, value_name = "COMMAND", requires = "url")]
    command: Option<String>,

    /// What to do to the server. Without it: reload, replace, remove+add, drain+resume, upgrade
    /// and stop+start; with --running reload and replace; with --command that
    #[arg(long, value_name = "LIST", value_delimiter = ',', hide_possible_values = true)]
    actions: Vec<Action>,

    /// How often to do each of them
    #[arg(long, value_name = "N", default_value_t = 20)]
    count: usize,

    /// From the beginning of an action to that of the next
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = parse_time)]
    every: Duration,

    /// Requests in a second
    #[arg(long, value_name = "N", default_value_t = 2000)]
    #[arg(value_parser = value_parser!(u32).range(1..))]
    rate: u32,

    /// Connections that each kind of client keeps
    #[arg(long, value_name = "N", default_value_t = 64)]
    #[arg(value_parser = value_parser!(u16).range(1..))]
    connections: u16,

    /// How far away clients are: how long a request is under way on a kept connection, during
    /// which the server may close it
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = parse_time)]
    distance: Duration,

    /// How long a request may take, before it is lost
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_time)]
    timeout: Duration,

    /// Gives the same requests and the same order of actions again
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Print the account as JSON, with the story of every request that failed
    #[arg(long)]
    json: bool,

    /// Draw latency over time, with the actions
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// A server that is to be drilled.
struct Course {
    address: SocketAddr,
    targets: Vec<Target>,
    actor: Driver,
}

/// Who does the actions.
enum Driver {
    Shell(Shell),
    Tidegate(Box<Tidegate>),
}

impl Drill {
    pub(super) fn run(&self, place: &Place) -> Result<u8, Failure> {
        let actions = self.actions()?;
        raise_descriptor_limit();
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&interrupted))
                .map_err(|error| failed(&error))?;
        }
        let Course { address, targets, mut actor } = self.course(place)?;
        let seed = self.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
        let settings = LoadSettings {
            address,
            targets,
            rate: self.rate,
            seed,
            connections: self.connections.into(),
            distance: self.distance,
            timeout: self.timeout,
            settle: MARGIN,
        };
        let planned = drill::actions(seed, &actions, self.count);
        self.announce(&settings, planned.len());
        let pace = Pace { lead: MARGIN, every: self.every };
        let loaded = drill::run(&settings, &planned, pace, actor.actor(), &interrupted);
        let loaded = loaded.map_err(|error| failed(&error))?;
        let is_clean = loaded.ledger.is_clean();
        let log = actor.end(is_clean)?;
        if let Some(path) = &self.svg {
            let picture = drill::draw(&loaded.ledger, loaded.time);
            fs::write(path, picture)
                .map_err(|error| Failure::Unended(format!("{}: {error}", path.display())))?;
        }
        let report = Report {
            loaded: &loaded,
            settings: &settings,
            planned: planned.len(),
            interrupted: interrupted.load(Ordering::Relaxed),
            log: log.as_deref(),
        };
        show::print(&if self.json { report.json() } else { report.text() })?;
        Ok(if is_clean { DONE } else { FAILED })
    }

    /// The actions that were asked for, or those that suit the server.
    fn actions(&self) -> Result<Vec<Action>, Failure> {
        use Action::{
            Command, DrainResume, Nothing, Reload, RemoveAdd, Replace, StopStart, Upgrade,
        };
        let (server, possible, usual): (_, &[Action], &[Action]) = match &self.url {
            Some(_) if self.command.is_some() => ("at a URL", &[Command, Nothing], &[Command]),
            Some(_) => ("at a URL, without --command", &[Nothing], &[Nothing]),
            None if self.running => (
                "that runs already",
                &[Reload, Replace, RemoveAdd, DrainResume, Upgrade, Nothing],
                &[Reload, Replace],
            ),
            None => (
                "of the drill's own",
                &[Reload, Replace, RemoveAdd, DrainResume, Upgrade, StopStart, Nothing],
                &[Reload, Replace, RemoveAdd, DrainResume, Upgrade, StopStart],
            ),
        };
        let asked = if self.actions.is_empty() { usual.to_vec() } else { self.actions.clone() };
        match asked.iter().find(|action| !possible.contains(action)) {
            None => Ok(asked),
            Some(action) => {
                let names: Vec<&str> = possible.iter().map(|action| action.name()).collect();
                Err(Failure::Usage(format!(
                    "--actions: {} cannot be done to a server {server}; possible: {}",
                    action.name(),
                    names.join(", ")
                )))
            }
        }
    }

    fn course(&self, place: &Place) -> Result<Course, Failure> {
        if let Some(url) = &self.url {
            let (address, targets) = self.url_targets(url)?;
            let actor = Driver::Shell(Shell { command: self.command.clone() });
            return Ok(Course { address, targets, actor });
        }
        let (tidegate, address, targets) =
            if self.running { Tidegate::find(place)? } else { Tidegate::start()? };
        Ok(Course { address, targets, actor: Driver::Tidegate(Box::new(tidegate)) })
    }

    fn url_targets(&self, url: &str) -> Result<(SocketAddr, Vec<Target>), Failure> {
        let usage =
            |why: &str| Failure::Usage(format!("--url {url}: {why}; write http://127.0.0.1:8080"));
        let authority = url.strip_prefix("http://").ok_or_else(|| usage("no plain HTTP"))?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        if Host::parse(authority.as_bytes()).is_none() {
            return Err(usage("no address"));
        }
        let has_port = authority.rsplit(':').next().is_some_and(|port| port.parse::<u16>().is_ok());
        let with_port = if has_port { authority.to_owned() } else { format!("{authority}:80") };
        let mut found = with_port.to_socket_addrs().map_err(|error| usage(&error.to_string()))?;
        let address = found.next().ok_or_else(|| usage("no address"))?;
        let own = [authority.to_owned()];
        let hosts = if self.hosts.is_empty() { &own[..] } else { &self.hosts };
        let mut targets = Vec::new();
        for host in hosts {
            if Host::parse(host.as_bytes()).is_none() {
                return Err(Failure::Usage(format!("--host {host}: no host name")));
            }
            for (path, is_large) in [(Some(&self.path), false), (self.slow_path.as_ref(), true)] {
                let Some(path) = path else { continue };
                if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
                    let error = format!("{path}: no path; write /page?key=value");
                    return Err(Failure::Usage(error));
                }
                let (host, path) = (host.clone(), path.clone());
                targets.push(Target { host, path, is_large, delay: Duration::ZERO });
            }
        }
        Ok((address, targets))
    }

    /// Says on a terminal what is going on, and for how long.
    fn announce(&self, settings: &LoadSettings, actions: usize) {
        let LoadSettings { address, rate, seed, .. } = settings;
        let count = u32::try_from(actions).unwrap_or(u32::MAX);
        let least = self.every.saturating_mul(count) + 2 * MARGIN;
        if std::io::stderr().is_terminal() {
            show::note(&format!(
                "drilling {address}: {rate} requests/s, {actions} actions, at least {}; ^C ends it \
                 early (--seed {seed})\n",
                show::coarse(drill::micros(least) / 1000)
            ));
        }
    }
}

impl Driver {
    fn actor(&mut self) -> &mut dyn Actor {
        match self {
            Self::Shell(shell) => shell,
            Self::Tidegate(tidegate) => &mut **tidegate,
        }
    }

    /// Ends what the drill has started. The log of the server is kept unless all `is_clean`.
    fn end(self, is_clean: bool) -> Result<Option<PathBuf>, Failure> {
        match self {
            Self::Shell(_) => Ok(None),
            Self::Tidegate(tidegate) => tidegate.end(is_clean),
        }
    }
}

fn parse_time(text: &str) -> Result<Duration, UnitError> {
    parse_duration(text)
}

/// What this machine refuses.
fn failed(error: &std::io::Error) -> Failure {
    Failure::Unended(format!("the drill failed: {error}"))
}

/// A drill has many connections.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // With a lower limit, a connection that cannot be opened says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
