//! Allocations and instructions per request of Tidegate, counted by valgrind's callgrind.
//!
//! One case is loaded twice, the second time for longer; the difference of the counts, divided by
//! the difference of the requests. So the opening of connections is not in the numbers. The
//! kernel's work is not among the instructions.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::case::Case;
use crate::measure::{Layout, start_load};
use crate::options::Options;
use crate::peer::{Peer, Site, program};

/// What allocates: every allocation of the process ends in one of these.
const ALLOCATORS: [&str; 5] = ["malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc"];
/// How long the server is loaded, as multiples of a round. Valgrind slows it 50 times.
const ROUNDS: [f64; 2] = [10.0, 30.0];
/// So long after a load its connections are closed.
const CLOSED: Duration = Duration::from_millis(200);

/// The table's head.
pub(crate) const HEADING: &str =
    "| case | allocations/request | instructions/request | requests |\n|---|---:|---:|---:|\n";

/// The row of `case`.
pub(crate) fn row(
    case: &Case,
    upstream: Option<SocketAddr>,
    layout: &Layout,
    options: &Options,
    site: &Site,
) -> io::Result<String> {
    let file = site.path().join(format!("callgrind-{}", case.name));
    let peer = Peer::start_in_callgrind(&file, upstream, site, layout.server, &layout.load)?;
    let answer_bytes = peer.answer(case)?.len();
    command(&peer, "zero")?;
    let mut number = 0;
    let mut load = |rounds: f64| {
        let load = start_load(&peer, case, answer_bytes, layout, options);
        std::thread::sleep(Duration::from_secs_f64(options.seconds * rounds));
        let requests = load.finish()?;
        std::thread::sleep(CLOSED);
        command(&peer, "dump")?; // and begin from zero
        number += 1;
        let counts = Counts::parse(&fs::read_to_string(file.with_extension(number.to_string()))?);
        Ok::<_, io::Error>((requests, counts))
    };
    let ((few, short), (many, long)) = (load(ROUNDS[0])?, load(ROUNDS[1])?);
    let Some(requests @ 1..) = many.checked_sub(few) else {
        return Err(io::Error::other("the longer load had fewer requests"));
    };
    let per_request =
        |of: fn(&Counts) -> u64| (of(&long) as f64 - of(&short) as f64) / requests as f64;
    let allocations = per_request(|counts| counts.allocations);
    let instructions = per_request(|counts| counts.instructions);
    let name = case.name;
    Ok(format!("| `{name}` | {allocations:.3} | {instructions:.0} | {requests} |\n"))
}

/// Has the callgrind of `peer` do something.
fn command(peer: &Peer, what: &str) -> io::Result<()> {
    let mut vgdb = Command::new(program("vgdb")?);
    vgdb.arg(format!("--pid={}", peer.processes()?[0])).arg(what);
    match vgdb.stdin(Stdio::null()).output()? {
        done if done.status.success() => Ok(()),
        failed => Err(io::Error::other(String::from_utf8_lossy(&failed.stderr).into_owned())),
    }
}

/// The sums of one load.
struct Counts {
    allocations: u64,
    instructions: u64,
}

impl Counts {
    /// Reads callgrind's output: `cfn=(ID) NAME`, the name once for each id, says who is called,
    /// and `calls=COUNT POSITION` behind it how often; `totals: COUNT` is the sum of all costs.
    fn parse(text: &str) -> Counts {
        let mut names = HashMap::new();
        let mut called = "";
        let mut counts = Counts { allocations: 0, instructions: 0 };
        let first = |rest: &str| rest.split_whitespace().next()?.parse().ok();
        for line in text.lines() {
            let Some((key, rest)) = line.split_once(['=', ':']) else { continue };
            match key {
                "fn" | "cfn" => {
                    let (id, name) = rest.split_once(' ').unwrap_or((rest, ""));
                    let known = names.entry(id).or_insert(name);
                    called = known;
                }
                "calls" if ALLOCATORS.contains(&called) => {
                    counts.allocations += first(rest).unwrap_or(0);
                }
                "totals" => counts.instructions = first(rest).unwrap_or(0),
                _ => {}
            }
        }
        counts
    }
}
