//! Everything at once: random operations, signals, kills, system call errors and torn files meet
//! twelve kinds of traffic and one ledger.
//!
//! In a calm round nothing may be lost, and the server's totals agree with the clients' to the
//! request. In a violent one processes are killed, too, and the server is stopped and started; a
//! request may be lost only at the same time. After each round all counts are zero, every drain has
//! ended once, and no process is left over.
//!
//! Random, from a seed that is printed: `TIDEGATE_CHAOS_SEED` makes the same choices again, though
//! not the same timing. `TIDEGATE_CHAOS_SECONDS` makes it longer.
#![cfg(not(loom))]

mod ledger;
mod operations;
mod service;
#[path = "../support/mod.rs"]
#[allow(dead_code, unreachable_pub, unused_imports, reason = "written for `it`")]
mod support;
mod traffic;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Signal, getpid, set_child_subreaper};
use serde_json::{Value, json};

use ledger::Ledger;
use operations::{Operators, Upstreams, config};
use service::Service;
use support::{PATIENCE, Random, free_port, number_of_environment, pattern, wait_until};
use traffic::{KINDS, LARGE_BYTES, Traffic};

/// How long one round goes.
const ROUND: Duration = Duration::from_secs(10);

/// Events that mean a bug in the server, whatever a test does.
const BUGS: &[&str] = &[
    "connection_panicked",
    "app_panicked",
    "operator_panicked",
    "loop_died",
    "loop_failed",
    "loop_not_woken",
    "shutdown_incomplete",
    "loop_held",
];

#[test]
fn whatever_happens_at_once_no_request_is_lost() {
    let seed = number_of_environment("TIDEGATE_CHAOS_SEED", 0x6368_616f_7321);
    let seconds = number_of_environment("TIDEGATE_CHAOS_SECONDS", 20);
    println!("TIDEGATE_CHAOS_SEED={seed} TIDEGATE_CHAOS_SECONDS={seconds}");
    // As init would, so that processes whose parent has ended are seen to end.
    set_child_subreaper(Some(getpid())).expect("PR_SET_CHILD_SUBREAPER");
    let (good, bad) =
        ([traffic::good_upstream(), traffic::good_upstream()], traffic::bad_upstream());
    let upstreams = Upstreams {
        good: good.each_ref().map(|upstream| upstream.url().to_owned()),
        bad: bad.url().to_owned(),
        second: free_port(),
    };
    let service = Service::new();
    fs::create_dir(service.path("site")).expect("a folder");
    fs::write(service.path("site/small"), "small").expect("a file");
    fs::write(service.path("site/large"), pattern(LARGE_BYTES)).expect("a file");
    service.write_config(&config(service.address, &upstreams, &mut Random::new(seed)));
    service.start();
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut number = 0;
    while number < 2 || Instant::now() < end {
        let round = Round { number, seed, is_violent: number % 2 == 1 };
        round.run(&service, &upstreams);
        number += 1;
    }
    let pid = service.pid().expect("a process");
    service.signal(pid, Signal::TERM);
    let is_over = wait_until(PATIENCE, || service.processes().is_empty());
    assert!(is_over, "a process is left: {:?}", service.processes());
    assert!(!service.path("tidegate.sock").exists(), "the admin socket is left behind");
    check_log(&service);
}

struct Round {
    number: u64,
    seed: u64,
    is_violent: bool,
}

impl Round {
    fn run(&self, service: &Service, upstreams: &Upstreams) {
        let (ledger, over) = (Ledger::default(), AtomicBool::default());
        let (done, drains) = (Mutex::default(), Mutex::default());
        let traffic = Traffic { address: service.address, ledger: &ledger, over: &over };
        let is_violent = self.is_violent;
        let operators = Operators {
            service,
            ledger: &ledger,
            over: &over,
            upstreams,
            is_violent,
            done: &done,
            drains: &drains,
        };
        let began = Instant::now();
        let before = requests_total(service);
        thread::scope(|scope| {
            let mut threads = 0;
            let mut random = || {
                threads += 1;
                Random::of_thread(self.seed, self.number * 1000 + threads)
            };
            for (_, clients, run) in KINDS {
                for _ in 0..*clients {
                    let (traffic, mut random) = (&traffic, random());
                    scope.spawn(move || run(traffic, &mut random));
                }
            }
            // The clients go on until the last operation has ended.
            let operators = &operators;
            let (mut one, mut other) = (random(), random());
            let churn = scope.spawn(move || operators.churn(&mut one));
            let operate = scope.spawn(move || operators.operate(&mut other));
            wait_until(ROUND, || began.elapsed() >= ROUND || operate.is_finished());
            over.store(true, SeqCst);
            churn.join().expect("the churn");
            operate.join().expect("the operations");
        });
        self.check_quiet(service, &ledger);
        let total = requests_total(service);
        let (answered, unknown) = (ledger.answered(), ledger.unknown());
        if !is_violent {
            let counted = total - before;
            if !(answered..=answered + unknown).contains(&counted) {
                ledger
                    .violate(format!("{counted} counted, {answered} answered, {unknown} unknown"));
            }
            if ledger.closed_idle() > 0 {
                ledger.violate(format!("{} idle connections closed", ledger.closed_idle()));
            }
        }
        let mut counts = BTreeMap::<_, usize>::new();
        for name in done.lock().expect("done").iter() {
            *counts.entry(*name).or_default() += 1;
        }
        let (stories, excused) = ledger.verdict(began);
        println!(
            "round {} ({}): {answered} answered, {unknown} unknown, {excused} excused, {} failed: \
             {counts:?}",
            self.number,
            if is_violent { "violent" } else { "calm" },
            stories.len(),
        );
        assert!(
            stories.is_empty(),
            "{} stories, the first:\n{}\n{}",
            stories.len(),
            stories.iter().take(20).cloned().collect::<Vec<_>>().join("\n"),
            tail_of_log(service)
        );
        check_log(service);
    }

    /// Without traffic everything ends.
    fn check_quiet(&self, service: &Service, ledger: &Ledger) {
        let is_quiet = |status: &Value| {
            status["active_connections"] == 0
                && status["drains"] == json!([])
                && status["previous"] == json!([])
                && status["connections"]["busy"] == 0
        };
        let is_quiet =
            wait_until(PATIENCE, || service.get("/status").is_some_and(|at| is_quiet(&at)));
        if !is_quiet {
            ledger.violate(format!("not quiet: {:?}", service.get("/status")));
        }
        let mut page = None;
        wait_until(PATIENCE, || {
            page = service.call("GET", "/metrics", "");
            page.is_some()
        });
        let (_, page) = page.unwrap_or_else(|| panic!("no metrics\n{}", tail_of_log(service)));
        for line in page.lines().filter(|line| line.starts_with("tidegate_active_connections{")) {
            if !line.ends_with(" 0") {
                ledger.violate(format!("a count that is not zero: {line}"));
            }
        }
        let count = service.processes().len();
        if count != 1 {
            ledger.violate(format!("{count} processes: {:?}", service.processes()));
        }
    }
}

fn requests_total(service: &Service) -> u64 {
    let mut status = None;
    wait_until(PATIENCE, || {
        status = service.get("/status");
        status.is_some()
    });
    status.expect("a status")["requests_total"].as_u64().expect("a number")
}

fn tail_of_log(service: &Service) -> String {
    let events = service.events();
    let last = &events[events.len().saturating_sub(40)..];
    last.iter().map(|event| format!("{event}\n")).chain([service.last_errors()]).collect()
}

/// The log has no bug, and each drain ends once: a process that was not killed logs as many ends as
/// starts of each.
fn check_log(service: &Service) {
    let errors = service.last_errors();
    assert!(!errors.contains("panicked"), "{errors}");
    let alive: Vec<_> =
        service.processes().iter().map(|pid| pid.as_raw_nonzero().to_string()).collect();
    let mut balance = HashMap::<(String, String), (usize, usize)>::new();
    for event in service.events() {
        let name = event["event"].as_str().unwrap_or_default();
        assert!(!BUGS.contains(&name), "{event}\n{}", tail_of_log(service));
        let drain = (event["pid"].to_string(), event["fields"]["drain"].to_string());
        match name {
            "app_drain_start" => balance.entry(drain).or_default().0 += 1,
            "app_drained" | "app_drain_timeout" | "app_drain_cancelled" => {
                balance.entry(drain).or_default().1 += 1;
            }
            _ => {}
        }
    }
    let is_wrong = |((pid, _), (begun, ended)): &(&(String, String), &(usize, usize))| {
        ended > begun || (ended < begun && alive.contains(pid))
    };
    let wrong: Vec<_> = balance.iter().filter(is_wrong).collect();
    assert!(wrong.is_empty(), "drains that did not end once each: {wrong:?}");
}
