//! `tidegate drill`: puts a server under load, changes it repeatedly, and accounts for every
//! request.
//!
//! Reads the arguments, finds or starts the server, and prints the result; the drill itself is in
//! [`crate::drill`]. The server is one of three: this binary, started with apps of its own; a
//! running Tidegate; or any server at a URL, with a shell command as the action.

mod announcement;
mod handshakes;
mod print;
mod rows;
mod server;
mod tls_options;

use std::{
    fs,
    io::{self, IsTerminal},
    net::{SocketAddr, ToSocketAddrs},
    num::NonZeroUsize,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use clap::{ArgGroup, Args, value_parser};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::{DONE, FAILED, Place, failure::Failure, show};
use crate::{
    config::{UnitError, parse_duration},
    drill::{
        self, Action, Actor, ClientKind, ClientsTls, LoadSettings, Pace, Shell, Target, Trust,
        Witness,
    },
    http::Host,
};
use announcement::Announcement;
use print::Report;
use server::{Found, Tidegate};
use tls_options::TlsOptions;

/// The default shortest and longest pause of thinking clients.
const THINK: (Duration, Duration) = (Duration::from_millis(300), Duration::from_millis(2500));

/// The time-out of a request that learns a target's status.
const PROBE_MAX: Duration = Duration::from_secs(2);

/// How long the load runs before the first action and after the last.
const MARGIN: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
#[command(args_override_self = true, group = ArgGroup::new("live"))]
pub(super) struct Drill {
    /// Drill the running server that --config or --admin names, with its own apps. Actions really
    /// happen to these apps, including those that refuse requests
    #[arg(long, group = "live")]
    running: bool,

    /// Drill any server at this URL: http://ADDRESS:PORT or https://NAME:PORT
    #[arg(long, value_name = "URL", group = "live")]
    url: Option<String>,

    #[command(flatten)]
    tls: TlsOptions,

    /// A host to request; can be repeated. Default: the host in the URL or, with --running, every
    /// host that the server serves. With --running, actions apply to these apps only
    #[arg(long = "host", value_name = "HOST", requires = "live")]
    hosts: Vec<String>,

    /// The path to request
    #[arg(long, value_name = "PATH", default_value = "/", requires = "live")]
    path: String,

    /// The path for slow downloads: something large
    #[arg(long, value_name = "PATH", requires = "live")]
    slow_path: Option<String>,

    /// The shell command for the action `command`
    #[arg(long, value_name = "COMMAND", requires = "url")]
    command: Option<String>,

    /// What to do to the server. Default: reload, replace, remove+add, drain+resume, upgrade and
    /// stop+start, with --tls also renew; with --running: reload and replace; with --command:
    /// command
    #[arg(long, value_name = "LIST", value_delimiter = ',', hide_possible_values = true)]
    actions: Vec<Action>,

    /// The kinds of clients: keep-alive, paused, fresh, post, slow, pipelined, thinking, leaving.
    /// Default: all but thinking; with --running or --url: the first five without post
    #[arg(long, value_name = "LIST", value_delimiter = ',', hide_possible_values = true)]
    clients: Vec<ClientKind>,

    /// Send POST requests too, to a server that is not the drill's own
    #[arg(long)]
    post: bool,

    /// Add clients that pause between requests, each time for a random time in this range:
    /// 0.3s..2.5s
    #[arg(long, value_name = "TIME..TIME", value_parser = parse_times)]
    think: Option<(Duration, Duration)>,

    /// How often to run each action
    #[arg(long, value_name = "N", default_value = "20")]
    count: NonZeroUsize,

    /// The time from the beginning of one action to the beginning of the next
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = parse_time)]
    every: Duration,

    /// Requests per second
    #[arg(long, value_name = "N", default_value_t = 2000)]
    #[arg(value_parser = value_parser!(u32).range(1..))]
    rate: u32,

    /// Connections that each kind of client keeps open
    #[arg(long, value_name = "N", default_value_t = 64)]
    #[arg(value_parser = value_parser!(u16).range(1..))]
    connections: u16,

    /// How far away clients are: how long a request on a kept connection travels. The server may
    /// close the connection in the meantime
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = parse_time)]
    distance: Duration,

    /// How long a request may take before it counts as lost
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_time)]
    timeout: Duration,

    /// Repeat the requests and the order of actions of an earlier drill
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Print the result as JSON, with the details of every failed request
    #[arg(long)]
    json: bool,

    /// Write a picture to this SVG file: latency over time, with the actions
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// The server to drill.
struct Course {
    address: SocketAddr,
    targets: Vec<Target>,
    /// Whose certificates the clients accept, if they speak TLS.
    trust: Option<Trust>,
    actor: Driver,
    /// Apps that a reload will change back or remove, because the config differs.
    unknown_to_config: Vec<String>,
}

/// Runs the actions.
enum Driver {
    Shell(Shell),
    Tidegate(Box<Tidegate>),
}

impl Drill {
    pub(super) fn run(&self, place: &Place) -> Result<u8, Failure> {
        self.tls.check(self.url.as_deref())?;
        let actions = self.actions()?;
        raise_descriptor_limit();
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&interrupted))
                .map_err(|error| failed(&error))?;
        }
        let Course { address, targets, trust, mut actor, unknown_to_config } =
            self.course(place)?;
        let seed = self.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
        let settings = self.settings(address, targets, trust.as_ref(), seed)?;
        if let (Driver::Tidegate(tidegate), Some(tls)) = (&mut actor, &settings.tls) {
            let targets = settings.targets.iter().enumerate();
            let witness = |target| Witness::new(address, tls, target, self.timeout);
            tidegate.watch(targets.map(witness).collect());
        }
        let asked = self.probe(&settings)?;
        let before = statuses(&asked);
        let planned = drill::actions(seed, &actions, self.count.get());
        if !self.json || io::stderr().is_terminal() {
            let least = self.every.saturating_mul(u32::try_from(planned.len()).unwrap_or(u32::MAX));
            let plan = Announcement {
                settings: &settings,
                trust: trust.as_ref(),
                before: &asked,
                actions: &actions,
                count: self.count.get(),
                least: least + 2 * MARGIN,
                unknown_to_config: &unknown_to_config,
            };
            show::note(&plan.text());
        }
        let pace = Pace { lead: MARGIN, every: self.every };
        let loaded = drill::run(&settings, &before, &planned, pace, actor.actor(), &interrupted);
        let loaded = loaded.map_err(|error| failed(&error))?;
        // If the server is gone, the requests that were not accepted show it.
        let after = self.probe(&settings).map(|asked| statuses(&asked));
        let after = after.unwrap_or_else(|_| vec![None; settings.targets.len()]);
        let is_as_before = before.iter().zip(&after).all(|(before, after)| {
            let both = before.zip(*after);
            both.is_none_or(|(before, after)| before == after)
        });
        let is_clean = loaded.ledger.is_clean() && is_as_before;
        let upgrades = actor.upgrades();
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
            is_clean,
            after: &after,
            upgrades,
            log: log.as_deref(),
        };
        show::print(&if self.json { report.json() } else { report.text() })?;
        Ok(if is_clean { DONE } else { FAILED })
    }

    fn settings(
        &self,
        address: SocketAddr,
        targets: Vec<Target>,
        trust: Option<&Trust>,
        seed: u64,
    ) -> Result<LoadSettings, Failure> {
        let tls = trust.map(|trust| ClientsTls::new(&targets, trust)).transpose();
        Ok(LoadSettings {
            address,
            targets,
            tls: tls.map_err(Failure::Unended)?,
            rate: self.rate,
            kinds: self.kinds(),
            think: self.think.unwrap_or(THINK),
            seed,
            connections: self.connections.into(),
            distance: self.distance,
            timeout: self.timeout,
            settle: MARGIN,
        })
    }

    /// The status of each target now, without load, or why it has none.
    fn probe(&self, settings: &LoadSettings) -> Result<Vec<Result<u16, String>>, Failure> {
        let LoadSettings { address, targets, tls, .. } = settings;
        let patience = self.timeout.min(PROBE_MAX);
        let asked = drill::probe(*address, targets, tls.as_ref(), patience);
        asked.map_err(|error| Failure::Unended(format!("no server answers at {address}: {error}")))
    }

    /// The chosen kinds of clients, or the default for this server.
    fn kinds(&self) -> Vec<ClientKind> {
        use ClientKind::{Fresh, Kept, Leaving, Paused, Pipelined, Post, Slow, Thinking};
        let is_own = !self.running && self.url.is_none();
        let mut kinds = match self.clients.as_slice() {
            [] if is_own => vec![Kept, Paused, Fresh, Post, Slow, Pipelined, Leaving],
            [] => vec![Kept, Paused, Fresh, Slow],
            asked => asked.to_vec(),
        };
        kinds.extend(self.post.then_some(Post));
        kinds.extend(self.think.map(|_| Thinking));
        kinds.sort_unstable();
        kinds.dedup();
        kinds
    }

    /// The chosen actions, or the default for this server.
    fn actions(&self) -> Result<Vec<Action>, Failure> {
        use Action::{
            Command, DrainResume, Nothing, Reload, RemoveAdd, Renew, Replace, StopStart, Upgrade,
        };
        const OWN: &[Action] = &[Reload, Replace, RemoveAdd, DrainResume, Upgrade, StopStart];
        const OWN_TLS: &[Action] =
            &[Reload, Replace, RemoveAdd, DrainResume, Upgrade, StopStart, Renew];
        let (server, possible, usual): (_, &[Action], &[Action]) = match &self.url {
            Some(_) if self.command.is_some() => ("at a URL", &[Command], &[Command]),
            Some(_) => ("at a URL, without --command", &[], &[Nothing]),
            None if self.running => (
                "that is already running",
                &[Reload, Replace, RemoveAdd, DrainResume, Upgrade],
                &[Reload, Replace],
            ),
            None if self.tls.is_on(None) => ("of the drill", OWN_TLS, OWN_TLS),
            None => ("of the drill, without --tls", OWN, OWN),
        };
        let asked = if self.actions.is_empty() { usual.to_vec() } else { self.actions.clone() };
        let is_possible = |action: &Action| *action == Nothing || possible.contains(action);
        match asked.iter().find(|action| !is_possible(action)) {
            None => Ok(asked),
            Some(action) => {
                let possible = possible.iter().chain(&[Nothing]);
                let names: Vec<&str> = possible.map(|action| action.name()).collect();
                Err(Failure::Usage(format!(
                    "--actions: {} is not possible with a server {server}; possible: {}",
                    action.name(),
                    names.join(", ")
                )))
            }
        }
    }

    fn course(&self, place: &Place) -> Result<Course, Failure> {
        let is_tls = self.tls.is_on(self.url.as_deref());
        let trust = is_tls.then(|| self.tls.trust());
        if let Some(url) = &self.url {
            let (address, targets) = self.url_targets(url)?;
            let actor = Driver::Shell(Shell { command: self.command.clone() });
            return Ok(Course { address, targets, trust, actor, unknown_to_config: Vec::new() });
        }
        if !self.running {
            let (tidegate, address, targets, trust) = Tidegate::start(is_tls)?;
            let actor = Driver::Tidegate(Box::new(tidegate));
            return Ok(Course { address, targets, trust, actor, unknown_to_config: Vec::new() });
        }
        let Found { tidegate, address, hosts, unknown_to_config } =
            Tidegate::find(place, &self.hosts, is_tls)?;
        let targets = self.targets(&hosts)?;
        let actor = Driver::Tidegate(Box::new(tidegate));
        Ok(Course { address, targets, trust, actor, unknown_to_config })
    }

    fn url_targets(&self, url: &str) -> Result<(SocketAddr, Vec<Target>), Failure> {
        let usage =
            |why: &str| Failure::Usage(format!("--url {url}: {why}; write http://127.0.0.1:8080"));
        let (authority, port) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
            (Some(authority), _) => (authority, 80),
            (None, Some(authority)) => (authority, 443),
            (None, None) => return Err(usage("neither http:// nor https://")),
        };
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        if Host::parse(authority.as_bytes()).is_none() {
            return Err(usage("no address"));
        }
        let has_port = authority.rsplit(':').next().is_some_and(|port| port.parse::<u16>().is_ok());
        let with_port = if has_port { authority.into() } else { format!("{authority}:{port}") };
        let mut found = with_port.to_socket_addrs().map_err(|error| usage(&error.to_string()))?;
        let address = found.next().ok_or_else(|| usage("no address"))?;
        let own = [authority.to_owned()];
        let hosts = if self.hosts.is_empty() { &own[..] } else { &self.hosts };
        Ok((address, self.targets(hosts)?))
    }

    /// The targets at these hosts.
    fn targets(&self, hosts: &[String]) -> Result<Vec<Target>, Failure> {
        let mut targets = Vec::new();
        for host in hosts {
            if Host::parse(host.as_bytes()).is_none() {
                return Err(Failure::Usage(format!("--host {host}: not a host name")));
            }
            for (path, is_large) in [(Some(&self.path), false), (self.slow_path.as_ref(), true)] {
                let Some(path) = path else { continue };
                if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
                    let error = format!("{path}: not a path; write /page?key=value");
                    return Err(Failure::Usage(error));
                }
                let (host, path) = (host.clone(), path.clone());
                targets.push(Target { host, path, is_large, delay: Duration::ZERO });
            }
        }
        Ok(targets)
    }
}

impl Driver {
    fn actor(&mut self) -> &mut dyn Actor {
        match self {
            Self::Shell(shell) => shell,
            Self::Tidegate(tidegate) => &mut **tidegate,
        }
    }

    /// After how many upgrades a client's session was resumed, and how many upgrades were watched.
    fn upgrades(&self) -> Option<(u64, u64)> {
        match self {
            Self::Shell(_) => None,
            Self::Tidegate(tidegate) => tidegate.upgrades(),
        }
    }

    /// Ends the server that the drill has started. Keeps its log unless all `is_clean`.
    fn end(self, is_clean: bool) -> Result<Option<PathBuf>, Failure> {
        match self {
            Self::Shell(_) => Ok(None),
            Self::Tidegate(tidegate) => tidegate.end(is_clean),
        }
    }
}

/// The statuses of answers; `None` where there was none.
fn statuses(asked: &[Result<u16, String>]) -> Vec<Option<u16>> {
    asked.iter().map(|answer| answer.as_ref().ok().copied()).collect()
}

fn parse_time(text: &str) -> Result<Duration, UnitError> {
    parse_duration(text)
}

/// Reads `0.3s..2.5s`.
fn parse_times(text: &str) -> Result<(Duration, Duration), String> {
    let both = text.split_once("..").ok_or("write two times, such as 0.3s..2.5s")?;
    let time = |text: &str| match text.strip_suffix('s').and_then(|seconds| seconds.parse().ok()) {
        // `Duration::try_from_secs_f64` allows fractions of seconds.
        Some(seconds) => Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string()),
        None => parse_duration(text).map_err(|error| error.to_string()),
    };
    let (least, most) = (time(both.0)?, time(both.1)?);
    if least > most || most.is_zero() {
        return Err("the second time must be the longer one".to_owned());
    }
    Ok((least, most))
}

/// An error of this machine, not of the server.
fn failed(error: &std::io::Error) -> Failure {
    Failure::Unended(format!("the drill failed: {error}"))
}

/// A drill needs many connections.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // If the limit stays lower, connections that cannot be opened report it.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
