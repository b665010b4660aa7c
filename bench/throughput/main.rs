//! Throughput: CPU time per request, side by side in one run.
//!
//! Each server runs with one loop on one core, the load on the other cores. The rounds of all
//! servers interleave, and the numbers are medians: a disturbance of the machine affects all
//! servers alike. `bench/README.md` says how to run it and how to read it.

mod callgrind;
mod case;
mod chart;
mod floor;
mod kind;
mod layout;
mod load;
mod machine;
mod measure;
mod memory;
mod options;
mod paced;
mod peer;
mod report;
mod row;
mod setup;
#[path = "../../src/drill/svg.rs"]
mod svg;
mod syscalls;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::case::{CASES, Case};
use crate::kind::Kind;
use crate::layout::Layout;
use crate::options::Options;
use crate::peer::{Peer, Site};
use crate::report::Report;
use crate::row::{Outcome, Row, Sample};
use crate::setup::{Setup, is_there};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "--floor", port, file, ref rest @ ..] => run_floor(port, file, rest.contains(&"close")),
        _ if cfg!(debug_assertions) => {
            eprintln!("a debug build measures nothing: use cargo bench --bench throughput");
            Ok(())
        }
        _ => run(&Options::parse()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("throughput: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run_floor(port: &str, file: &str, close: bool) -> io::Result<()> {
    let port = port.parse().map_err(io::Error::other)?;
    floor::run(port, &std::fs::read(file)?, close)
}

fn run(options: &Options) -> io::Result<()> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    machine::raise_open_files()?;
    let machine = machine::describe();
    let layout = Layout::choose(options.core)?;
    machine::pin(&layout.load)?;
    let site = Site::create()?;
    let bench = Bench { options, layout: &layout, site: &site, interrupted: &interrupted };
    // A slowed server takes longer to accept many connections than the load lasts, and can't keep
    // up with a rate.
    let left_out = |case: &Case| options.counts() && (case.is_mostly_idle() || case.paced);
    let wanted = |case: &&Case| options.wants_case(case.name) && !left_out(case);
    let cases: Vec<&Case> = CASES.iter().filter(wanted).collect();
    let mut report = Report::new(machine, &layout, options);
    if options.allocations {
        print!("{}", callgrind::HEADING);
    }
    let (proxied, own): (Vec<&Case>, Vec<&Case>) = cases.iter().partition(|case| case.proxied);
    let keys = [None].into_iter().chain(tls::KEYS.map(Some));
    for key in keys {
        let is_of = |case: &&Case| case.tls.map(|(key, _)| key) == key;
        let group: Vec<&Case> = own.iter().copied().filter(is_of).collect();
        if !group.is_empty() {
            bench.run_group(&group, None, &mut report)?;
        }
    }
    for case in proxied {
        let upstream = bench.start_upstream(case)?;
        bench.run_group(&[case], Some(upstream.address), &mut report)?;
    }
    if !options.counts() {
        print!("{}", if options.json { report.to_json() } else { report.to_markdown() });
        if let Some(folder) = &options.svg {
            report.write_charts(folder)?;
        }
    }
    Ok(())
}

/// The state that all cases of a run share.
struct Bench<'a> {
    options: &'a Options,
    layout: &'a Layout,
    site: &'a Site,
    interrupted: &'a AtomicBool,
}

/// A server that runs, or why it doesn't.
type Started = (Kind, Result<Peer, String>);

impl Bench<'_> {
    /// Runs cases of one key, or of none, with one start of each server, which forwards to
    /// `upstream` if there is one.
    fn run_group(
        &self,
        cases: &[&Case],
        upstream: Option<SocketAddr>,
        report: &mut Report,
    ) -> io::Result<()> {
        if self.options.allocations {
            return self.count_allocations(cases, upstream);
        }
        let peers = self.start_peers(cases, upstream);
        for case in cases {
            if self.options.syscalls {
                print!("{}", self.count_syscalls(case, &peers)?);
            } else {
                report.add(case, self.run_case(case, &peers)?);
            }
        }
        Ok(())
    }

    /// The floor as the upstream of all servers of one case, on a core of its own.
    fn start_upstream(&self, case: &Case) -> io::Result<Peer> {
        let (core, home) = (self.layout.upstream, &self.layout.load[..]);
        Peer::start_floor(case, &stand_in(case), self.site, core, home)
    }

    /// Starts every server that a case asks for, except the floor.
    fn start_peers(&self, cases: &[&Case], upstream: Option<SocketAddr>) -> Vec<Started> {
        let wanted = |kind: Kind| {
            // The floor sends Tidegate's answer, so it needs Tidegate once.
            let by_floor = kind == Kind::Tidegate && self.options.wants(Kind::Floor);
            (self.options.wants(kind) && is_there(kind)) || by_floor
        };
        let mut kinds: Vec<Kind> = Vec::new();
        for &kind in cases.iter().flat_map(|case| case.peers) {
            if kind != Kind::Floor && wanted(kind) && !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        kinds
            .into_iter()
            .map(|kind| {
                let (cores, home) = (self.layout.serving(kind), &self.layout.load[..]);
                let plan = Setup { kind, upstream, key: cases[0].tls.map(|(key, _)| key) };
                let peer = Peer::start(plan, self.site, &cores, home);
                (kind, peer.map_err(|error| error.to_string()))
            })
            .collect()
    }

    /// All servers of one case, ready to be loaded, each with the length of its answer.
    fn contestants<'p>(&self, case: &Case, peers: &'p [Started]) -> Vec<Contestant<'p>> {
        let mut contestants = Vec::new();
        let mut model = None;
        for (kind, peer) in peers.iter().filter(|(kind, _)| case.peers.contains(kind)) {
            let answer = match peer {
                Ok(peer) => peer.answer(case).map_err(|error| error.to_string()),
                Err(reason) => Err(reason.clone()),
            };
            if *kind == Kind::Tidegate {
                model = answer.as_ref().ok().cloned();
            }
            if self.options.wants(*kind) {
                let peer = peer.as_ref().map_or(Server::None, Server::Shared);
                contestants.push(Contestant::new(*kind, peer, answer.map(|bytes| bytes.len())));
            }
        }
        if self.options.wants(Kind::Floor) && case.peers.contains(&Kind::Floor) {
            contestants.insert(0, self.floor(case, model));
        }
        contestants
    }

    fn floor<'p>(&self, case: &Case, model: Option<Vec<u8>>) -> Contestant<'p> {
        let answer = model.unwrap_or_else(|| stand_in(case));
        let (core, home) = (self.layout.server, &self.layout.load[..]);
        let (peer, length) = match Peer::start_floor(case, &answer, self.site, core, home) {
            Ok(peer) => (Server::Own(peer), Ok(answer.len())),
            Err(error) => (Server::None, Err(error.to_string())),
        };
        Contestant::new(Kind::Floor, peer, length)
    }

    fn run_case(&self, case: &Case, peers: &[Started]) -> io::Result<Vec<Row>> {
        let mut contestants = self.contestants(case, peers);
        let count = contestants.len();
        if case.is_mostly_idle() {
            contestants.iter_mut().for_each(|contestant| contestant.weigh(case));
        }
        for round in 0..self.options.rounds {
            eprintln!("{}: round {} of {}", case.name, round + 1, self.options.rounds);
            for turn in 0..count {
                self.check()?;
                // The order changes, so that no server always follows the same one.
                let contestant = &mut contestants[(turn + round) % count];
                let (Some(peer), Ok(length)) = (contestant.server.peer(), &contestant.answer_bytes)
                else {
                    continue;
                };
                match measure::sample(peer, case, *length, self.layout, self.options) {
                    Ok(sample) => contestant.samples.push(sample),
                    Err(error) => contestant.answer_bytes = Err(error.to_string()),
                }
            }
        }
        self.check()?;
        Ok(contestants.into_iter().map(Contestant::into_row).collect())
    }

    fn count_syscalls(&self, case: &Case, peers: &[Started]) -> io::Result<String> {
        let mut table = syscalls::heading(case);
        for contestant in self.contestants(case, peers) {
            self.check()?;
            let line = match (contestant.server.peer(), &contestant.answer_bytes) {
                (Some(peer), Ok(length)) => {
                    syscalls::count(peer, case, *length, self.layout, self.options, self.site)
                        .unwrap_or_else(|error| error.to_string())
                }
                (_, Err(reason)) => reason.clone(),
                (None, Ok(_)) => continue,
            };
            table += &format!("| {} | {line} |\n", contestant.kind.name());
        }
        Ok(table)
    }

    fn count_allocations(&self, cases: &[&Case], upstream: Option<SocketAddr>) -> io::Result<()> {
        for case in cases {
            for kind in [Kind::Tidegate, Kind::Before, Kind::Logging] {
                if !case.peers.contains(&kind) || !is_there(kind) {
                    continue;
                }
                self.check()?;
                let cells =
                    callgrind::count(kind, case, upstream, self.layout, self.options, self.site);
                let cells = cells.unwrap_or_else(|error| format!("{error} | | | |"));
                println!("| `{}` | {} | {cells} |", case.name, kind.name());
            }
        }
        Ok(())
    }

    fn check(&self) -> io::Result<()> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(io::Error::other("interrupted"));
        }
        Ok(())
    }
}

/// The process behind a contestant.
enum Server<'p> {
    /// Serves every case.
    Shared(&'p Peer),
    /// The floor of this case alone.
    Own(Peer),
    None,
}

impl Server<'_> {
    fn peer(&self) -> Option<&Peer> {
        match self {
            Server::Shared(peer) => Some(peer),
            Server::Own(peer) => Some(peer),
            Server::None => None,
        }
    }
}

/// One server in one case.
struct Contestant<'p> {
    kind: Kind,
    server: Server<'p>,
    answer_bytes: Result<usize, String>,
    /// Bytes per idle connection, in cases about idle connections.
    memory: Option<f64>,
    samples: Vec<Sample>,
}

impl<'p> Contestant<'p> {
    fn new(kind: Kind, server: Server<'p>, answer_bytes: Result<usize, String>) -> Self {
        Contestant { kind, server, answer_bytes, memory: None, samples: Vec::new() }
    }

    /// Measures the memory of its idle connections; only once, because a server keeps some of it.
    fn weigh(&mut self, case: &Case) {
        let (Some(peer), Ok(_)) = (self.server.peer(), &self.answer_bytes) else { return };
        match memory::per_connection(peer, case) {
            Ok(bytes) => self.memory = Some(bytes),
            Err(error) => self.answer_bytes = Err(error.to_string()),
        }
    }

    fn into_row(self) -> Row {
        let outcome = match self.answer_bytes {
            Ok(bytes) => Outcome::Measured { answer_bytes: bytes, samples: self.samples },
            Err(reason) => Outcome::Missing(reason),
        };
        Row { kind: self.kind, memory: self.memory, outcome }
    }
}

/// What the floor sends as an upstream, or while Tidegate doesn't run: an answer of about its
/// length.
fn stand_in(case: &Case) -> Vec<u8> {
    let validators = "Last-Modified: Sun, 22 Nov 2026 12:00:00 GMT\r\n\
                      ETag: \"6560f0c0-400\"\r\n\
                      Accept-Ranges: bytes\r\n";
    let head = format!(
        "HTTP/1.1 200 OK\r\n\
         Date: Sun, 22 Nov 2026 12:00:00 GMT\r\n\
         Content-Type: text/plain\r\n\
         Content-Length: {}\r\n{}{}\r\n",
        case.body_bytes,
        if case.path == "/" { "" } else { validators },
        if case.close { "Connection: close\r\n" } else { "" },
    );
    let mut answer = head.into_bytes();
    answer.resize(answer.len() + case.body_bytes, b'x');
    answer
}
