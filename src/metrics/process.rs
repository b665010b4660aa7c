//! The resources that the process uses, as reported by the kernel.

use std::fs;

use rustix::time::{ClockId, clock_gettime};

/// The process's resource usage. Values that can't be read are omitted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ProcessUsage {
    /// Resident memory.
    pub(super) resident_bytes: Option<u64>,
    /// Open file descriptors.
    pub(super) open_fds: Option<u64>,
    /// User and system time of all threads.
    pub(super) cpu_seconds: f64,
}

impl ProcessUsage {
    /// Reads /proc: takes some microseconds, or with 100,000 open descriptors on Linux before 6.2
    /// some tens of milliseconds.
    pub(crate) fn read() -> Self {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        Self {
            resident_bytes: fs::read_to_string("/proc/self/status")
                .ok()
                .and_then(|status| resident_bytes(&status)),
            open_fds: open_fds(),
            cpu_seconds: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
        }
    }
}

/// `VmRSS:      5716 kB`, one of several such lines (proc_pid_status(5)).
fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Since Linux 6.2 the folder's size is the number of descriptors. Before, it is 0, and they are
/// counted.
fn open_fds() -> Option<u64> {
    let folder = "/proc/self/fd";
    match fs::metadata(folder).ok()?.len() {
        // One of them is the descriptor that reads the folder.
        0 => Some(fs::read_dir(folder).ok()?.count().saturating_sub(1) as u64),
        count => Some(count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_from_its_line() {
        let status = "Name:\ttidegate\nVmHWM:\t    6000 kB\nVmRSS:\t    5716 kB\nThreads:\t3\n";
        assert_eq!(resident_bytes(status), Some(5716 * 1024));
        for other in ["", "VmRSS:\t5716\n", "VmRSS:\tmany kB\n"] {
            assert_eq!(resident_bytes(other), None, "{other}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_running_process_uses_something() {
        let before = ProcessUsage::read();
        assert!(before.resident_bytes.is_some_and(|bytes| bytes > 100 * 1024));
        assert!(before.cpu_seconds > 0.0);
        let listed = fs::read_dir("/proc/self/fd").expect("a folder").count() as u64;
        // Meanwhile other tests in this process open and close files.
        assert!(before.open_fds.is_some_and(|count| count >= 3 && count.abs_diff(listed) < 1000));
    }
}
