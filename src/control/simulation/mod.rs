//! Seeded runs of the real control, registry and drain plans, with everything around them scripted:
//! loops, clock, disk, new processes, upstreams, and the operators.
//!
//! ```text
//! a step: one thing happens by chance (World) ► control takes inputs ► Oracle checks
//! ```
//! - [`board`]: the loops as control reaches them, a queue of commands each.
//! - [`scripted_loop`]: obeys as `event_loop` does, but slowly, or not at all, and holds exchanges.
//! - [`operators`]: they ask, by what stands in [`asked`]; reloads in phases.
//! - [`upgrades`]: new processes that obey, fail or hang at each message, serve, and die.
//! - [`oracle`]: what has to be true, by what operators and clients were told; it knows nothing of
//!   how control keeps its drains.
//!
//! The oracle holds: I1 and I10 (who admits what), I2 (each verdict once), I3 and I4 (the ledger of
//! each life), I5 (each deadline), I8 (a reload that fails in part leaves the rest as it was), and
//! that every question is answered once.
//!
//! A failing seed is printed with what happened; `TIDEGATE_SEED=…` runs that one alone, and
//! `TIDEGATE_RUNS=…` changes how many there are.

mod asked;
mod board;
mod ending;
mod ledger;
mod new_process;
mod operators;
mod oracle;
mod random;
mod scripted_loop;
mod upgrades;
mod world;

use std::{
    env,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use world::World;

/// Seeds of a usual run.
const RUNS: u64 = 20_000;

/// Runs one seed; says what happened in it if it fails.
fn run(seed: u64) {
    let mut world = World::new(seed);
    let ran = catch_unwind(AssertUnwindSafe(|| world.run()));
    if let Err(failure) = ran {
        let trace = world.trace.join("\n");
        eprintln!("{trace}\nthis was TIDEGATE_SEED={seed}");
        resume_unwind(failure);
    }
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn control_keeps_its_promises_whatever_happens_around_it() {
    if let Some(seed) = number("TIDEGATE_SEED") {
        return run(seed);
    }
    let (runs, next) = (number("TIDEGATE_RUNS").unwrap_or(RUNS), AtomicU64::new(0));
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= runs {
                        return;
                    }
                    run(seed);
                }
            });
        }
    });
}
