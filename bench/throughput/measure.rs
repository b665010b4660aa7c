//! One measurement: a warm-up, then CPU time and requests over the same window.

use std::io;
use std::time::{Duration, Instant};

use crate::case::Case;
use crate::load::{Load, Plan};
use crate::machine;
use crate::options::Options;
use crate::peer::Peer;

const WARM_UP: Duration = Duration::from_millis(50);
/// A window with the server less on its core than this was disturbed, or the load starved.
const SATURATED: f64 = 0.95;
/// So many windows are tried for a quiet one; if none is, the busiest counts as not quiet.
const WINDOWS: usize = 10;
/// So many windows may pass without one answer: on a busy machine that happens.
const EMPTY_WINDOWS: usize = 20;

/// Who runs where.
pub(crate) struct Layout {
    /// The one core of the server.
    pub(crate) server: usize,
    /// The cores of the load, none of them the server's.
    pub(crate) load: Vec<usize>,
    /// The core of the upstream: no other's, where there are three.
    pub(crate) upstream: usize,
}

impl Layout {
    /// The server on `core` or the last one, the load on any of the others.
    pub(crate) fn choose(core: Option<usize>) -> io::Result<Layout> {
        let cores = machine::allowed_cores()?;
        let server = core.or(cores.last().copied()).unwrap_or(0);
        if !cores.contains(&server) {
            return Err(io::Error::other(format!("core {server} is not ours to use")));
        }
        let load: Vec<usize> = cores.into_iter().filter(|&core| core != server).collect();
        let Some(&upstream) = load.last() else {
            return Err(io::Error::other("needs two cores: one for the server, one for the load"));
        };
        Ok(Layout { server, load, upstream })
    }

    /// The cores that make the load of `case`.
    fn loading(&self, case: &Case, options: &Options) -> &[usize] {
        let cores = options.load_cores.unwrap_or(case.load_cores).min(self.load.len());
        &self.load[..cores]
    }

    /// All cores that take part in a measurement of `case`.
    fn in_use(&self, case: &Case, options: &Options) -> Vec<usize> {
        let upstream = case.proxied.then_some(self.upstream);
        let mut cores: Vec<usize> = self.loading(case, options).to_vec();
        cores.extend(upstream.filter(|core| !cores.contains(core)));
        cores.push(self.server);
        cores
    }
}

/// What one window showed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// CPU time of the server per request, microseconds.
    pub(crate) cpu_us: f64,
    /// CPU time of the load per request, microseconds.
    pub(crate) load_cpu_us: f64,
    pub(crate) requests_per_second: f64,
    /// Share of the window the server was on its core, 0 to 1.
    pub(crate) busy: f64,
    /// The server was saturated, and no core of ours was taken by a neighbour of the machine.
    pub(crate) quiet: bool,
}

/// Loads `peer` with `case` and measures one window.
pub(crate) fn sample(
    peer: &Peer,
    case: &Case,
    answer_bytes: usize,
    layout: &Layout,
    options: &Options,
) -> io::Result<Sample> {
    let pids = peer.processes()?;
    let load = start_load(peer, case, answer_bytes, layout, options);
    std::thread::sleep(WARM_UP);
    let length = Duration::from_secs_f64(options.seconds);
    let best = best_window(&load, &pids, &layout.in_use(case, options), length);
    load.finish()?;
    best
}

fn best_window(load: &Load, pids: &[i32], cores: &[usize], length: Duration) -> io::Result<Sample> {
    let mut best: Option<Sample> = None;
    for attempt in 1..=EMPTY_WINDOWS {
        if let Some(sample) = window(load, pids, cores, length)?
            && best.is_none_or(|best| sample.quiet || best.busy < sample.busy)
        {
            best = Some(sample);
        }
        match best {
            Some(sample) if sample.quiet || attempt >= WINDOWS => return Ok(sample),
            _ => {}
        }
    }
    Err(io::Error::other("no request was answered"))
}

/// Starts the load of `case` on `peer`.
pub(crate) fn start_load(
    peer: &Peer,
    case: &Case,
    answer_bytes: usize,
    layout: &Layout,
    options: &Options,
) -> Load {
    let plan = Plan {
        server: peer.address,
        batch: case.request(peer.address.port()).repeat(case.pipeline).into_bytes(),
        pipeline: case.pipeline,
        answer_bytes,
        close: case.close,
    };
    Load::start(&plan, case.connections, layout.loading(case, options))
}

/// One window; nothing if no request was answered in it.
fn window(
    load: &Load,
    pids: &[i32],
    cores: &[usize],
    length: Duration,
) -> io::Result<Option<Sample>> {
    let own = [std::process::id() as i32];
    let stolen = machine::stolen_ticks(cores)?;
    let begin = Instant::now();
    let (requests, cpu) = (load.completed(), machine::cpu_time(pids)?);
    let load_cpu = machine::cpu_time(&own)?;
    std::thread::sleep(length);
    let wall = begin.elapsed();
    let (requests, cpu) = (load.completed() - requests, machine::cpu_time(pids)? - cpu);
    let load_cpu = machine::cpu_time(&own)? - load_cpu;
    let stolen = machine::stolen_ticks(cores)? - stolen;
    if requests == 0 {
        return Ok(None);
    }
    let busy = cpu.as_secs_f64() / wall.as_secs_f64();
    Ok(Some(Sample {
        cpu_us: cpu.as_secs_f64() * 1e6 / requests as f64,
        load_cpu_us: load_cpu.as_secs_f64() * 1e6 / requests as f64,
        requests_per_second: requests as f64 / wall.as_secs_f64(),
        busy,
        quiet: busy >= SATURATED && stolen == 0,
    }))
}
