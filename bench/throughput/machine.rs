//! The machine: its cores, its clocks, its process tree, its description.

use std::fs;
use std::io;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Numbers of the cores this process may use, ascending.
pub(crate) fn allowed_cores() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect())
}

/// Binds the calling thread, and the children it starts from now on, to `cores`.
pub(crate) fn pin(cores: &[usize]) -> io::Result<()> {
    pin_thread(None, cores)
}

/// Binds a thread, or the calling one, to `cores`.
pub(crate) fn pin_thread(thread: Option<Pid>, cores: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for &core in cores {
        set.set(core);
    }
    Ok(sched_setaffinity(thread, &set)?)
}

/// Lets this process, and the children it starts from now on, open as many files as they may.
pub(crate) fn raise_open_files() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile).maximum;
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit })?)
}

/// Time on a CPU of all threads of the processes `pids`, dead threads included.
///
/// The process clock is exact at the moment of the call, also while the process runs; the ticks
/// of `/proc/PID/stat` are 10 ms coarse, and `schedstat` lags by up to one timer tick.
pub(crate) fn cpu_time(pids: &[i32]) -> io::Result<Duration> {
    let mut total = Duration::ZERO;
    for &pid in pids {
        let clock = nix::time::clock_getcpuclockid(nix::unistd::Pid::from_raw(pid))?;
        total += Duration::from(nix::time::clock_gettime(clock)?);
    }
    Ok(total)
}

/// Time that the host took from `cores` for other machines, in ticks of 10 ms (`steal` of
/// proc_stat(5)). The clock of [`cpu_time`] counts it as the process's own.
pub(crate) fn stolen_ticks(cores: &[usize]) -> io::Result<u64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let steal = |core: &usize| {
        let name = format!("cpu{core} ");
        let line = stat.lines().find_map(|line| line.strip_prefix(&name))?;
        line.split_whitespace().nth(7)?.parse::<u64>().ok()
    };
    Ok(cores.iter().filter_map(steal).sum())
}

/// `root` and all its living descendants.
pub(crate) fn process_tree(root: i32) -> io::Result<Vec<i32>> {
    let parents: Vec<(i32, i32)> = fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, parent_of(pid)?)))
        .collect();
    let mut tree = vec![root];
    let mut next = 0;
    while next < tree.len() {
        let parent = tree[next];
        tree.extend(parents.iter().filter(|entry| entry.1 == parent).map(|entry| entry.0));
        next += 1;
    }
    Ok(tree)
}

fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(1)?.parse().ok()
}

/// One line on what was measured on: CPU model, cores, kernel.
pub(crate) fn describe() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find(|line| line.starts_with("model name"));
    let model = model.and_then(|line| line.split_once(": ")).map_or("unknown CPU", |pair| pair.1);
    let cores = allowed_cores().map_or(0, |cores| cores.len());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel = kernel.trim();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?");
    format!("{model}, {cores} cores, Linux {kernel}, load average at the start {load}")
}
