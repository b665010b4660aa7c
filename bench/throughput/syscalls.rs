//! System calls per request, counted by `strace -c` on the running server.
//!
//! Tracing slows the server, so its batches are as large as the load allows. The counts are exact
//! for the window; they include opening and closing the load's connections.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::case::Case;
use crate::layout::Layout;
use crate::measure::start_load;
use crate::options::Options;
use crate::peer::{Peer, Site};
use crate::setup::program;

const ATTACH_LIMIT: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(5);

/// The heading of the table.
pub(crate) fn heading(case: &Case) -> String {
    let (title, name) = (case.title, case.name);
    format!(
        "\n**{title}** (`{name}`)\n\n\
         | server | system calls/request | requests | each, per request |\n|---|---:|---:|---|\n"
    )
}

/// Loads `peer` under strace. Returns the cells of its row.
pub(crate) fn count(
    peer: &Peer,
    case: &Case,
    answer_bytes: usize,
    layout: &Layout,
    options: &Options,
    site: &Site,
) -> io::Result<String> {
    let pids = peer.processes()?;
    let summary = site.path().join("strace.out");
    let trace = Trace::attach(&pids, &summary)?;
    let load = start_load(peer, case, answer_bytes, layout, options)?;
    std::thread::sleep(Duration::from_secs_f64(options.seconds));
    let requests = load.finish()?;
    trace.end()?;
    let mut calls = parse(&fs::read_to_string(&summary)?);
    if requests == 0 || calls.is_empty() {
        return Err(io::Error::other("nothing was counted"));
    }
    calls.sort_by_key(|call| std::cmp::Reverse(call.1));
    let per_request = |calls: u64| calls as f64 / requests as f64;
    let total = per_request(calls.iter().map(|call| call.1).sum());
    let each: Vec<String> = calls
        .iter()
        .filter(|call| per_request(call.1) >= 0.005)
        .map(|(name, calls)| format!("{name} {:.2}", per_request(*calls)))
        .collect();
    Ok(format!("{total:.2} | {requests} | {}", each.join(", ")))
}

/// A running strace. Dropping this ends strace, but not the server.
struct Trace {
    child: Child,
}

impl Trace {
    fn attach(pids: &[i32], summary: &Path) -> io::Result<Trace> {
        let mut command = Command::new(program("strace")?);
        command.arg("-c").arg("-f").arg("-o").arg(summary);
        for pid in pids {
            command.arg("-p").arg(pid.to_string());
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut trace = Trace { child: command.spawn()? };
        let begin = Instant::now();
        while !pids.iter().all(|&pid| traced(pid)) {
            if trace.child.try_wait()?.is_some() || begin.elapsed() > ATTACH_LIMIT {
                return Err(io::Error::other("strace may not attach here"));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(trace)
    }

    /// Detaches, so that the summary is written.
    fn end(mut self) -> io::Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::INT)?;
        self.child.wait().map(|_| ())
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process(Pid::from_child(&self.child), Signal::INT);
            let _ = self.child.wait();
        }
    }
}

/// Every thread of the process has a tracer.
fn traced(pid: i32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    tasks.flatten().all(|task| {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
        tracer.is_some_and(|pid| pid.trim() != "0")
    })
}

/// Names and calls of strace's summary: `% time, seconds, usecs/call, calls, [errors,] syscall`.
fn parse(summary: &str) -> Vec<(String, u64)> {
    let rows = summary.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.first()?.parse::<f64>().ok()?;
        let name = *words.last()?;
        (name != "total").then_some((name.to_owned(), words.get(3)?.parse().ok()?))
    });
    rows.collect()
}
