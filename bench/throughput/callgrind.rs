//! Allocations and instructions per request of Tidegate, counted by valgrind's callgrind.
//!
//! A warm server is loaded twice, the second time for longer. The difference of the counts is
//! divided by the difference of the requests, so that opening connections does not count. The
//! instructions do not include the kernel's.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::case::Case;
use crate::kind::Kind;
use crate::layout::Layout;
use crate::measure::start_load;
use crate::options::Options;
use crate::peer::{Peer, Site};
use crate::setup::{SERVER, Setup, program};

/// The functions that every allocation of the process ends in.
const ALLOCATORS: [&str; 5] = ["malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc"];
/// How long the server is loaded, in rounds. Valgrind makes it 50 times slower.
const ROUNDS: [f64; 2] = [10.0, 30.0];
/// How long after a load its connections are closed.
const CLOSED: Duration = Duration::from_millis(200);

/// The parts of the source whose instructions are counted separately.
const ADMISSION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/registry/");
const COUNTERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/metrics/");

/// The heading of the table.
pub(crate) const HEADING: &str = "\
| case | server | allocations/request | instructions/request | of these admission | counters \
| requests |\n|---|---|---:|---:|---:|---:|---:|
";

/// The cells of `case`, with Tidegate set up as `kind` says.
pub(crate) fn count(
    kind: Kind,
    case: &Case,
    upstream: Option<SocketAddr>,
    layout: &Layout,
    options: &Options,
    site: &Site,
) -> io::Result<String> {
    let file = site.path().join(format!("callgrind-{}-{}", case.name, kind.name()));
    let setup = Setup { kind, upstream, key: case.tls.map(|(key, _)| key) };
    let peer = Peer::start_in_callgrind(setup, &file, site, layout)?;
    let answer_bytes = peer.answer(case)?.len();
    let mut number = 0;
    let mut load = |rounds: f64| {
        let load = start_load(&peer, case, answer_bytes, layout, options)?;
        std::thread::sleep(Duration::from_secs_f64(options.seconds * rounds));
        let requests = load.finish()?;
        std::thread::sleep(CLOSED);
        dump(&peer)?;
        number += 1;
        let counts = Counts::parse(&fs::read_to_string(file.with_extension(number.to_string()))?);
        Ok::<_, io::Error>((requests, counts))
    };
    load(ROUNDS[0])?; // warms up: allocates what is kept
    let ((few, short), (many, long)) = (load(ROUNDS[0])?, load(ROUNDS[1])?);
    let Some(requests @ 1..) = many.checked_sub(few) else {
        return Err(io::Error::other("the longer load had fewer requests"));
    };
    let per_request = |long: u64, short: u64| (long as f64 - short as f64) / requests as f64;
    let allocations = per_request(long.allocations, short.allocations);
    let instructions = per_request(long.instructions, short.instructions);
    let frames = frames(long.by_address.keys(), site)?;
    let part = |folder: &str| {
        let costs = long.by_address.iter().filter(|(address, _)| {
            frames.get(address).is_some_and(|frames| frames.contains(folder))
        });
        let cost = costs.map(|(address, &long)| {
            per_request(long, short.by_address.get(address).copied().unwrap_or(0))
        });
        let sum: f64 = cost.sum();
        format!("{sum:.0} ({:.1} %)", 100.0 * sum / instructions)
    };
    let (admission, counters) = (part(ADMISSION), part(COUNTERS));
    Ok(format!("{allocations:.3} | {instructions:.0} | {admission} | {counters} | {requests}"))
}

/// Source files and lines of addresses in the server's program: those of an instruction, and of all
/// functions that it was inlined into.
fn frames<'a>(
    addresses: impl Iterator<Item = &'a u64>,
    site: &Site,
) -> io::Result<HashMap<u64, String>> {
    let file = site.path().join("addresses");
    fs::write(&file, addresses.map(|address| format!("{address:#x}\n")).collect::<String>())?;
    let mut addr2line = Command::new(program("addr2line")?);
    addr2line.arg("-a").arg("-i").arg("-e").arg(SERVER).arg(format!("@{}", file.display()));
    let output = addr2line.stdin(Stdio::null()).stderr(Stdio::null()).output()?;
    let mut frames = HashMap::new();
    let mut address = 0;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        match hexadecimal(line) {
            Some(next) => address = next,
            None => *frames.entry(address).or_default() += line,
        }
    }
    Ok(frames)
}

/// Makes the callgrind of `peer` write its counts and start again from zero.
fn dump(peer: &Peer) -> io::Result<()> {
    let mut vgdb = Command::new(program("vgdb")?);
    vgdb.arg(format!("--pid={}", peer.processes()?[0])).arg("dump");
    match vgdb.stdin(Stdio::null()).output()? {
        done if done.status.success() => Ok(()),
        failed => Err(io::Error::other(String::from_utf8_lossy(&failed.stderr).into_owned())),
    }
}

/// The sums of one load.
struct Counts {
    allocations: u64,
    instructions: u64,
    /// The instructions at each address of the server's program.
    by_address: HashMap<u64, u64>,
}

impl Counts {
    /// Reads callgrind's output. `ob=PATH` says in which file the next addresses are, and
    /// `ADDRESS LINE COUNT` how often it was executed. `cfn=NAME` names the called function, and
    /// `calls=COUNT …` how often; the line behind that is the cost of the calls, which is counted
    /// where it arose. `totals: COUNT` is the sum.
    fn parse(text: &str) -> Counts {
        let mut counts = Counts { allocations: 0, instructions: 0, by_address: HashMap::new() };
        let (mut object, mut called, mut is_of_calls) = ("", "", false);
        let first = |rest: &str| rest.split_whitespace().next()?.parse().ok();
        for line in text.lines() {
            if let Some(address) = line.split(' ').next().and_then(hexadecimal) {
                let count = line.rsplit(' ').next().and_then(|count| count.parse::<u64>().ok());
                if object == SERVER && !is_of_calls {
                    *counts.by_address.entry(address).or_default() += count.unwrap_or(0);
                }
                is_of_calls = false;
            } else if let Some((key, rest)) = line.split_once(['=', ':']) {
                match key {
                    "ob" => object = rest,
                    "cfn" => called = rest,
                    "calls" => {
                        let calls = first(rest).unwrap_or(0);
                        counts.allocations += if ALLOCATORS.contains(&called) { calls } else { 0 };
                        is_of_calls = true;
                    }
                    "totals" => counts.instructions = first(rest).unwrap_or(0),
                    _ => {}
                }
            }
        }
        counts
    }
}

fn hexadecimal(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}
