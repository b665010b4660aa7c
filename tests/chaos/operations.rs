//! The operations on the server: through its API, signals, files and system calls.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    process::{Pid, Signal},
};
use serde_json::json;

use crate::{
    ledger::{DisturbanceKind, Ledger},
    service::Service,
    support::{PATIENCE, Random, wait_until},
    traffic::{CHURNED, STEADY},
};

/// How long a server may take to serve again, or an upgrade to end.
const SETTLE: Duration = Duration::from_secs(20);

/// What the operators of a round share.
pub(crate) struct Operators<'a> {
    pub(crate) service: &'a Service,
    pub(crate) ledger: &'a Ledger,
    pub(crate) over: &'a AtomicBool,
    pub(crate) upstreams: &'a Upstreams,
    /// Whether processes may be killed, and the server stopped.
    pub(crate) is_violent: bool,
    pub(crate) done: &'a Mutex<Vec<&'static str>>,
    /// Drains that were begun, by id.
    pub(crate) drains: &'a Mutex<Vec<String>>,
}

/// Where the upstreams of the proxies listen.
pub(crate) struct Upstreams {
    pub(crate) good: [String; 2],
    pub(crate) bad: String,
    /// A second address that some configurations listen on.
    pub(crate) second: SocketAddr,
}

type Operation = fn(&Operators<'_>, &mut Random);

/// Operations that lose nothing, each with its weight.
const CALM: &[(&str, usize, Operation)] = &[
    ("reload", 4, |operators, random| operators.reload(random)),
    ("reload by SIGHUP", 2, |operators, random| operators.hang_up(random)),
    ("upgrade", 4, |operators, random| operators.upgrade(random)),
    ("upgrade by SIGUSR2", 1, |operators, random| operators.upgrade_by_signal(random)),
    ("upgrade that fails", 3, |operators, random| operators.fail_to_upgrade(random)),
    ("torn config", 3, |operators, random| operators.tear_config(random)),
    ("config that is a FIFO", 1, |operators, random| operators.make_config_a_fifo(random)),
    ("log rotation", 2, |operators, random| operators.rotate_logs(random)),
    ("pause", 1, |operators, random| operators.pause(random)),
    ("system call errors", 2, |operators, random| operators.inject_errors(random)),
    ("drain of an upstream", 2, |operators, random| operators.drain_upstream(random)),
];

/// Operations that may lose requests, each with its excuse in the ledger.
const VIOLENT: &[(&str, usize, Operation)] = &[
    ("kill", 2, |operators, random| operators.kill(random)),
    ("kill of a successor", 2, |operators, random| operators.kill_successor(random)),
    ("kill of a predecessor", 1, |operators, random| operators.kill_predecessor(random)),
    ("stop and start", 3, |operators, random| operators.stop_and_start(random)),
    ("stop in an upgrade", 2, |operators, random| operators.stop_in_upgrade(random)),
];

impl Operators<'_> {
    fn goes_on(&self) -> bool {
        !self.over.load(SeqCst)
    }

    /// Runs operations on the whole server, one after the other.
    pub(crate) fn operate(&self, random: &mut Random) {
        let violent = if self.is_violent { VIOLENT } else { &[] };
        let all: Vec<_> = CALM
            .iter()
            .chain(violent)
            .flat_map(|(name, times, operation)| vec![(*name, *operation); *times])
            .collect();
        while self.goes_on() {
            self.pause_for(random.milliseconds(20, 250));
            let (name, operation) = all[random.below(all.len())];
            operation(self, random);
            self.done.lock().expect("done").push(name);
        }
    }

    /// Changes apps at the same time.
    pub(crate) fn churn(&self, random: &mut Random) {
        while self.goes_on() {
            self.pause_for(random.milliseconds(1, 25));
            let host = random.one(&CHURNED).replace('*', "%2A");
            let timeout = random.one(&["", "?timeout=0s", "?timeout=20ms", "?timeout=1s"]);
            let delay = random.one(&["0s", "0s", "10ms", "80ms"]);
            let table = json!({ "respond": { "body": "churn by hand", "delay": delay } });
            let (method, path, content) = match random.below(8) {
                0..3 => ("PUT", format!("/apps/{host}"), table.to_string()),
                3 => ("DELETE", format!("/apps/{host}{timeout}"), String::new()),
                4 => ("POST", format!("/apps/{host}/drain{timeout}"), String::new()),
                5 | 6 => ("POST", format!("/apps/{host}/resume"), String::new()),
                _ => ("GET", random.one(&["/status", "/apps", "/metrics"]).into(), String::new()),
            };
            let Some((status, text)) = self.service.call(method, &path, &content) else { continue };
            let expected = [200, 201, 202, 404, 409, 422, 503];
            self.check(expected.contains(&status), || format!("{method} {path}: {status} {text}"));
            if status == 202
                && let Ok(drain) = serde_json::from_str::<serde_json::Value>(&text)
            {
                self.drains.lock().expect("drains").push(drain["id"].to_string());
            }
        }
    }

    fn pause_for(&self, time: Duration) {
        let end = Instant::now() + time;
        wait_until(time, || Instant::now() >= end || !self.goes_on());
    }

    fn check(&self, holds: bool, story: impl FnOnce() -> String) {
        if !holds {
            self.ledger.violate(story());
        }
    }

    /// The process that answers the admin API; there has to be one.
    fn steering(&self) -> Option<Pid> {
        let pid = self.service.pid();
        self.check(pid.is_some(), || "no process steers".to_owned());
        pid
    }

    /// Waits until one process serves and none is on its way in or out.
    fn settle(&self) {
        let is_settled = || {
            let status = self.service.get("/status");
            let is_alone = |status: serde_json::Value| status["previous"] == json!([]);
            status.is_some_and(is_alone) && self.service.processes().len() == 1
        };
        let is_settled = wait_until(SETTLE, is_settled);
        self.check(is_settled, || {
            let (processes, status) = (self.service.processes(), self.service.get("/status"));
            format!("not settled: {processes:?} {status:?}")
        });
    }

    fn reload(&self, random: &mut Random) {
        self.service.write_config(&config(self.service.address, self.upstreams, random));
        if let Some((status, text)) = self.service.call("POST", "/reload", "") {
            // It waits for an upgrade, and the process may end meanwhile.
            self.check([200, 409, 503].contains(&status), || format!("reload: {status} {text}"));
        }
    }

    fn hang_up(&self, random: &mut Random) {
        self.service.write_config(&config(self.service.address, self.upstreams, random));
        if let Some(pid) = self.steering() {
            for _ in 0..1 + random.below(3) {
                self.service.signal(pid, Signal::HUP);
            }
        }
    }

    fn upgrade(&self, random: &mut Random) {
        self.service.write_config(&config(self.service.address, self.upstreams, random));
        for _ in 0..1 + random.below(3) {
            let answer = self.service.call("POST", "/upgrade", "");
            let is_clean = |(status, _): &(u16, String)| [200, 409, 422, 500, 502].contains(status);
            self.check(answer.as_ref().is_some_and(is_clean), || format!("upgrade: {answer:?}"));
        }
        self.settle();
    }

    fn upgrade_by_signal(&self, _: &mut Random) {
        let Some(before) = self.steering() else { return };
        self.service.signal(before, Signal::USR2);
        // An app that changes meanwhile makes it fail, so this process may serve on.
        wait_until(Duration::from_secs(2), || self.service.pid().is_some_and(|pid| pid != before));
        self.settle();
    }

    fn fail_to_upgrade(&self, random: &mut Random) {
        let Some(before) = self.steering() else { return };
        let script = self.service.path("broken");
        let text = random.one(&[
            "#!/bin/sh\nexit 3\n",
            "#!/bin/sh\nsleep 1\nexit 1\n",
            "#!/bin/sh\ncat >/dev/null & sleep 30\n",
            "#!/bin/sh\necho nonsense >&0\n",
        ]);
        fs::write(&script, text).expect("a script");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("chmod");
        let path = format!("/upgrade?binary={}&timeout=500ms", script.display());
        let answer = self.service.call("POST", &path, "");
        let is_refused = |(status, _): &(u16, String)| !(200..300).contains(status);
        self.check(answer.as_ref().is_some_and(is_refused), || format!("{text:?}: {answer:?}"));
        let after = self.service.pid();
        self.check(after == Some(before), || format!("{text:?}: {before:?} became {after:?}"));
        self.settle();
    }

    /// Truncates the config, as a full disk, an editor or a shell's `>` does. That changes nothing.
    fn tear_config(&self, random: &mut Random) {
        let whole = config(self.service.address, self.upstreams, random);
        let before_the_first_app = whole.find("[apps").expect("an app");
        let torn = match random.below(3) {
            0 => String::new(),
            1 => whole[..random.below(before_the_first_app)].to_owned(),
            _ => format!("{whole}\n[apps.\"torn"),
        };
        self.service.write_config(&torn);
        let answer = self.service.call("POST", "/reload", "");
        let is_refused = |(status, _): &(u16, String)| !(200..300).contains(status);
        self.check(answer.as_ref().is_some_and(is_refused), || format!("{torn:?}: {answer:?}"));
        self.service.write_config(&whole);
    }

    /// A reload that cannot read its file holds up nothing else.
    fn make_config_a_fifo(&self, random: &mut Random) {
        let whole = config(self.service.address, self.upstreams, random);
        let path = self.service.path("config.toml");
        fs::remove_file(&path).expect("config.toml");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("mkfifo");
        if let Some(pid) = self.steering() {
            self.service.signal(pid, Signal::HUP);
            let began = Instant::now();
            for path in ["/status", "/apps", "/metrics"] {
                let answer = self.service.call("GET", path, "");
                self.check(answer.is_some_and(|(status, _)| status == 200), || path.to_owned());
            }
            let took = began.elapsed();
            self.check(took < Duration::from_secs(3), || format!("status took {took:?}"));
        }
        self.service.write_config(&whole);
    }

    fn rotate_logs(&self, random: &mut Random) {
        let (log, rotated) =
            (self.service.path("events"), format!("events.{}", random.below(1000)));
        if !self.service.path(&rotated).exists() {
            let _ = fs::rename(log, self.service.path(&rotated));
        }
        for pid in self.service.processes() {
            self.service.signal(pid, Signal::USR1);
        }
    }

    fn pause(&self, random: &mut Random) {
        let Some(pid) = self.steering() else { return };
        self.service.signal(pid, Signal::STOP);
        self.pause_for(random.milliseconds(20, 400));
        self.service.signal(pid, Signal::CONT);
    }

    /// Makes system calls fail that a server must be able to do without. It needs strace.
    ///
    /// Not epoll_wait(2): when strace detaches between the two stops of a call that it refuses, the
    /// call ends with ENOSYS, which no loop can go on with. A pause makes it end with EINTR, too.
    /// The others may end so: a listener that can't accept pauses, and a file that can't be opened
    /// fails what needs it.
    fn inject_errors(&self, random: &mut Random) {
        let Some(pid) = self.steering() else { return };
        let inject = random.one(&[
            "accept4:error=EMFILE:when=2+3",
            "accept4:error=ENFILE:when=1+2",
            "accept4:error=ECONNABORTED:when=1+2",
            "openat:error=EMFILE:when=1+2",
            "openat:error=EIO:when=1+2",
        ]);
        let (call, _) = inject.split_once(':').expect("a call");
        let strace = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-p", &pid.as_raw_nonzero().to_string()])
            .args(["-e", &format!("trace={call}"), "-e", &format!("inject={inject}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut strace) = strace else { return };
        self.pause_for(random.milliseconds(50, 400));
        let strace_pid = Pid::from_child(&strace);
        self.service.signal(strace_pid, Signal::INT);
        let ended = wait_until(PATIENCE, || strace.try_wait().is_ok_and(|status| status.is_some()));
        if !ended {
            // strace sometimes hangs when a process ends. Killing it releases all threads.
            strace.kill().expect("strace is killed");
            strace.wait().expect("strace ends");
        }
    }

    fn drain_upstream(&self, random: &mut Random) {
        let url = &self.upstreams.good[random.below(2)];
        let path = |what| format!("/apps/up.steady/upstreams/{what}?url={url}");
        let drained = self.service.call("POST", &path("drain"), "");
        self.pause_for(random.milliseconds(0, 200));
        // A change made in one process is known to its successor.
        let is_back = wait_until(SETTLE, || {
            let resumed = self.service.call("POST", &path("resume"), "");
            resumed.is_some_and(|(status, _)| [200, 409].contains(&status))
        });
        self.check(is_back, || format!("no upstream comes back after {drained:?}"));
    }

    /// Starts the server again if none of its processes serves.
    fn revive(&self, kind: DisturbanceKind, began: Instant) {
        let serves = || self.service.call("GET", "/readyz", "").is_some_and(|(at, _)| at == 200);
        let is_there = || serves() || self.service.processes().is_empty();
        let is_there = wait_until(PATIENCE, is_there);
        self.check(is_there, || "a process is left that does not serve".to_owned());
        if self.service.processes().is_empty() {
            self.service.start();
        }
        self.ledger.disturb(kind, began);
        self.settle();
    }

    fn kill(&self, _: &mut Random) {
        let began = Instant::now();
        for pid in self.service.processes() {
            self.service.kill(pid);
        }
        self.revive(DisturbanceKind::Kill, began);
    }

    /// Kills the new process while the old one drains: the old one serves again.
    fn kill_successor(&self, random: &mut Random) {
        let Some(before) = self.steering() else { return };
        self.service.call("POST", "/upgrade", "");
        self.pause_for(random.milliseconds(0, 30));
        let Some(after) = self.service.pid().filter(|pid| *pid != before) else { return };
        let began = Instant::now();
        self.service.kill(after);
        self.revive(DisturbanceKind::Kill, began);
    }

    fn kill_predecessor(&self, random: &mut Random) {
        let Some(before) = self.steering() else { return };
        self.service.call("POST", "/upgrade", "");
        self.pause_for(random.milliseconds(0, 30));
        if self.service.pid().is_none_or(|pid| pid == before) {
            return;
        }
        let began = Instant::now();
        self.service.kill(before);
        self.revive(DisturbanceKind::Kill, began);
    }

    fn stop_and_start(&self, random: &mut Random) {
        let began = Instant::now();
        let Some(pid) = self.steering() else { return };
        if random.below(2) == 0 {
            self.service.signal(pid, Signal::TERM);
        } else {
            let answer = self.service.call("POST", "/stop", "");
            self.check(answer.as_ref().is_some_and(|(at, _)| *at == 202), || format!("{answer:?}"));
        }
        self.end_stop(began);
    }

    /// Stops the server during an upgrade: it ends, whether the upgrade succeeds or not.
    fn stop_in_upgrade(&self, random: &mut Random) {
        let began = Instant::now();
        let Some(pid) = self.steering() else { return };
        self.service.signal(pid, Signal::USR2);
        self.pause_for(random.milliseconds(0, 60));
        self.service.signal(pid, Signal::TERM);
        wait_until(SETTLE, || !self.service.processes().contains(&pid));
        if !self.service.was_asked_to_stop(pid)
            && let Some(pid) = self.service.pid()
        {
            // The old process was ending: then the signal reached none.
            self.service.signal(pid, Signal::TERM);
        }
        self.end_stop(began);
    }

    fn end_stop(&self, began: Instant) {
        let is_over = wait_until(SETTLE, || self.service.processes().is_empty());
        self.check(is_over, || {
            let (processes, status) = (self.service.processes(), self.service.get("/status"));
            format!("a stop does not end: {processes:?} {status:?}")
        });
        if is_over {
            self.service.start();
        }
        self.ledger.disturb(DisturbanceKind::Stop, began);
    }
}

/// A configuration with the steady apps and random settings.
pub(crate) fn config(address: SocketAddr, upstreams: &Upstreams, random: &mut Random) -> String {
    let Upstreams { good: [one, other], bad, second } = upstreams;
    let also = if random.below(3) == 0 { format!(", \"{second}\"") } else { String::new() };
    let access = random.one(&["off", "combined", "json"]);
    let mut text = format!(
        "[server]\nlisten = [\"{address}\"{also}]\nthreads = {}\ndrain_timeout = \"6s\"\n\
         idle_grace = \"1s\"\n[log]\nformat = \"json\"\npath = \"events\"\naccess = \"{access}\"\n\
         access_path = \"access\"\n[limits]\nhead_timeout = \"{}s\"\n\
         [apps.\"a.steady\"]\nrespond = {{ body = \"{STEADY}\" }}\n\
         [apps.\"slow.steady\"]\nrespond = {{ body = \"slow\", delay = \"60ms\" }}\n\
         [apps.\"files.steady\"]\nfiles = {{ root = \"site\", index = [\"small\"] }}\n\
         [apps.\"up.steady\"]\nproxy = {{ upstreams = [\"{one}\", \"{other}\"] }}\n\
         [apps.\"bad.steady\"]\nproxy = {{ upstreams = [\"{bad}\"], eject_after = 0 }}\n",
        1 + random.below(3),
        8 + random.below(4),
    );
    for host in CHURNED {
        if random.below(3) > 0 {
            let (body, delay) = (random.below(3), random.one(&["0s", "20ms"]));
            let _ = writeln!(text, "[apps.\"{host}\"]");
            let _ = writeln!(text, "respond = {{ body = \"churn {body}\", delay = \"{delay}\" }}");
        }
    }
    text
}
