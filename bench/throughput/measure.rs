//! One measurement: a warm-up, then CPU time and requests over the same window.

use std::io;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use crate::case::Case;
use crate::layout::Layout;
use crate::load::{Load, Plan};
use crate::machine;
use crate::options::Options;
use crate::paced::{self, Answer};
use crate::peer::Peer;
use crate::row::{Latency, Sample};

const WARM_UP: Duration = Duration::from_millis(50);
/// In a window with a lower share of the core than this, the server was disturbed or not saturated.
const SATURATED: f64 = 0.95;
/// Most windows to try for a quiet one. If none is quiet, the busiest is used, as not quiet.
const WINDOWS: usize = 10;
/// Most windows without an answer, which can happen on a busy machine.
const EMPTY_WINDOWS: usize = 20;
/// The length of a slice of latency, in rounds of another case.
const SLICE_ROUNDS: f64 = 5.0;
/// Most slices to try for a quiet one.
const SLICES: usize = 3;
/// A slice is disturbed if one request of a thousand was sent later than this.
const LATE_US_MAX: f64 = 100.0;

/// Loads `peer` with `case` and measures one window.
pub(crate) fn sample(
    peer: &Peer,
    case: &Case,
    answer_bytes: usize,
    layout: &Layout,
    options: &Options,
) -> io::Result<Sample> {
    let watch = Watch {
        pids: peer.processes()?,
        serving: layout.serving(peer.kind).len(),
        cores: layout.in_use(peer.kind, case, options),
    };
    if case.paced {
        return slice(&watch, &plan(peer, case, answer_bytes)?, layout, options);
    }
    let load = start_load(peer, case, answer_bytes, layout, options)?;
    load.wait_until_open(case.connections);
    std::thread::sleep(WARM_UP);
    let best = best_window(&load, &watch, Duration::from_secs_f64(options.seconds));
    load.finish()?;
    best
}

fn best_window(load: &Load, watch: &Watch, length: Duration) -> io::Result<Sample> {
    let mut best: Option<Sample> = None;
    for attempt in 1..=EMPTY_WINDOWS {
        if let Some(sample) = watch.window(load, length)?
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

/// Loads a server at a fixed rate and measures one window.
fn slice(watch: &Watch, plan: &Plan, layout: &Layout, options: &Options) -> io::Result<Sample> {
    let (load, answers) = paced::start(plan, options.rate, layout.load[0]);
    load.wait_until_open(1);
    std::thread::sleep(WARM_UP);
    let length = Duration::from_secs_f64(options.seconds * SLICE_ROUNDS);
    let outcome = quiet_slice(&load, &answers, watch, length);
    load.finish()?;
    outcome
}

/// A window in which no core was taken away and the load was in time; else the last window.
fn quiet_slice(
    load: &Load,
    answers: &Receiver<Answer>,
    watch: &Watch,
    length: Duration,
) -> io::Result<Sample> {
    let mut outcome = Err(io::Error::other("no request was answered"));
    for _ in 0..SLICES {
        let begin = Instant::now();
        let Some(sample) = watch.window(load, length)? else { continue };
        let in_window = |answer: &Answer| answer.due + answer.latency >= begin;
        let answers: Vec<Answer> = answers.try_iter().filter(in_window).collect();
        let latency = Latency::of(&answers);
        let quiet = !sample.stolen && latency.late_us <= LATE_US_MAX;
        outcome = Ok(Sample { quiet, latency: Some(latency), ..sample });
        if quiet {
            break;
        }
    }
    outcome
}

impl Latency {
    fn of(answers: &[Answer]) -> Latency {
        let sorted = |value: fn(&Answer) -> Duration| {
            let mut values: Vec<Duration> = answers.iter().map(value).collect();
            values.sort_unstable();
            values
        };
        let at = |values: &[Duration], share: f64| {
            let rank = (values.len() as f64 * share).ceil() as usize;
            values.get(rank.saturating_sub(1)).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
        };
        let latencies = sorted(|answer| answer.latency);
        let late_us = at(&sorted(|answer| answer.late), 0.999);
        Latency { us: [0.5, 0.99, 0.999].map(|share| at(&latencies, share)), late_us }
    }
}

/// Starts the load of `case` on `peer`.
pub(crate) fn start_load(
    peer: &Peer,
    case: &Case,
    answer_bytes: usize,
    layout: &Layout,
    options: &Options,
) -> io::Result<Load> {
    Ok(Load::start(&plan(peer, case, answer_bytes)?, layout.loading(case, options)))
}

fn plan(peer: &Peer, case: &Case, answer_bytes: usize) -> io::Result<Plan> {
    let requests = peer.requests(case).into_iter();
    Ok(Plan {
        server: peer.address,
        connections: case.connections,
        busy: case.busy,
        batches: requests.map(|request| request.repeat(case.pipeline).into_bytes()).collect(),
        pipeline: case.pipeline,
        answer_bytes,
        close: case.close,
        secured: case.secured()?,
    })
}

/// What is measured during a window.
struct Watch {
    pids: Vec<i32>,
    /// How many cores the server has.
    serving: usize,
    cores: Vec<usize>,
}

impl Watch {
    /// Measures one window; `None` if no request was answered in it.
    fn window(&self, load: &Load, length: Duration) -> io::Result<Option<Sample>> {
        let own = [std::process::id() as i32];
        let stolen = machine::stolen_ticks(&self.cores)?;
        let begin = Instant::now();
        let (requests, cpu) = (load.completed(), machine::cpu_time(&self.pids)?);
        let load_cpu = machine::cpu_time(&own)?;
        std::thread::sleep(length);
        let wall = begin.elapsed();
        let (requests, cpu) = (load.completed() - requests, machine::cpu_time(&self.pids)? - cpu);
        let load_cpu = machine::cpu_time(&own)? - load_cpu;
        let stolen = machine::stolen_ticks(&self.cores)? > stolen;
        if requests == 0 {
            return Ok(None);
        }
        let busy = cpu.as_secs_f64() / wall.as_secs_f64() / self.serving as f64;
        Ok(Some(Sample {
            cpu_us: cpu.as_secs_f64() * 1e6 / requests as f64,
            load_cpu_us: load_cpu.as_secs_f64() * 1e6 / requests as f64,
            requests_per_second: requests as f64 / wall.as_secs_f64(),
            busy,
            stolen,
            quiet: (busy >= SATURATED || self.serving > 1) && !stolen,
            latency: None,
        }))
    }
}
