//! Admission: what it costs a loop to enter an app's drain state and to leave it again.
//!
//! Each thread is pinned to a core of its own, as a loop is. It admits and releases in batches that
//! begin for all threads at once. The registry is compared with the least that can count at all:
//! one compare-and-swap in and one subtraction out of a word of its own.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Instant;

use crossbeam_utils::CachePadded;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tidegate::registry::{AppRegistry, NewApp, RegistryView};

/// Enter + leave pairs in one batch.
const PAIRS: u32 = if cfg!(debug_assertions) { 1_000 } else { 1_000_000 };
const ROUNDS: usize = 15;
const HOSTS: [&str; 2] = ["one.localhost", "two.localhost"];

fn main() {
    let cores = cores();
    println!(
        "ns per enter + leave, median of {ROUNDS} rounds of {PAIRS} pairs (lowest - highest)\n"
    );
    println!("| what | 1 thread | 2 threads, same app | 2 threads, different apps |");
    println!("|---|---:|---:|---:|");
    for (what, measure) in [
        ("one word, the least", one_word as fn(&[usize], Apps) -> Vec<f64>),
        ("admission by the registry", admission),
    ] {
        let alone = cell(measure(&cores[..1], Apps::Same));
        let Some(two) = cores.get(..2) else {
            println!("| {what} | {alone} | one core only | one core only |");
            continue;
        };
        let same = cell(measure(two, Apps::Same));
        let different = cell(measure(two, Apps::Different));
        println!("| {what} | {alone} | {same} | {different} |");
    }
}

/// Which apps the threads admit to.
#[derive(Clone, Copy)]
enum Apps {
    Same,
    Different,
}

impl Apps {
    fn of_thread(self, thread: usize) -> usize {
        match self {
            Apps::Same => 0,
            Apps::Different => thread % HOSTS.len(),
        }
    }
}

/// Admission by the registry, and its release.
fn admission(cores: &[usize], apps: Apps) -> Vec<f64> {
    let registry = Arc::new(AppRegistry::new(cores.len(), None));
    for host in HOSTS {
        let app = NewApp { host: host.to_owned(), aliases: Vec::new(), app: () };
        registry.insert(app).expect("the names differ");
    }
    rounds(cores, |thread| {
        let mut view = RegistryView::new(Arc::clone(&registry), thread);
        let host = HOSTS[apps.of_thread(thread)];
        move || drop(black_box(view.admit(black_box(Some(host)))).expect("it serves"))
    })
}

/// A padded word per thread and app, found without any look-up.
fn one_word(cores: &[usize], apps: Apps) -> Vec<f64> {
    const DRAINING: u64 = 1 << 63;
    let words: Vec<_> = (0..cores.len() * HOSTS.len())
        .map(|_| Arc::new(CachePadded::new(AtomicU64::new(0))))
        .collect();
    rounds(cores, |thread| {
        let word = Arc::clone(&words[thread * HOSTS.len() + apps.of_thread(thread)]);
        move || {
            let word = black_box(&word);
            let enter = |count| (count & DRAINING == 0).then_some(count + 1);
            let entered = word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, enter);
            black_box(entered.is_ok());
            word.fetch_sub(1, Ordering::AcqRel);
        }
    })
}

/// Runs batches of the function that `body` returns, on one thread per core. Returns the ns per
/// call of every batch.
///
/// `body` is called on the thread itself, so its result need not be `Send`.
fn rounds<F: FnMut()>(cores: &[usize], body: impl Fn(usize) -> F + Sync) -> Vec<f64> {
    let barrier = Barrier::new(cores.len());
    let (barrier, body) = (&barrier, &body);
    std::thread::scope(|scope| {
        let threads: Vec<_> = cores
            .iter()
            .enumerate()
            .map(|(thread, &core)| scope.spawn(move || batches(core, barrier, body(thread))))
            .collect();
        let samples = threads.into_iter().flat_map(|thread| thread.join().expect("no panic"));
        samples.collect()
    })
}

/// All batches of one thread; the first is a warm-up.
fn batches(core: usize, barrier: &Barrier, mut call: impl FnMut()) -> Vec<f64> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).expect("the core is ours");
    let batch = |_| {
        barrier.wait();
        let begin = Instant::now();
        for _ in 0..PAIRS {
            call();
        }
        begin.elapsed().as_nanos() as f64 / f64::from(PAIRS)
    };
    (0..=ROUNDS).map(batch).skip(1).collect()
}

fn cell(mut samples: Vec<f64>) -> String {
    samples.sort_by(f64::total_cmp);
    let median = samples[samples.len() / 2];
    format!("{median:.1} ({:.1} - {:.1})", samples[0], samples[samples.len() - 1])
}

/// The cores that we may use. The last comes first, because the first cores do the machine's work.
fn cores() -> Vec<usize> {
    let set = sched_getaffinity(None).expect("the affinity can be asked");
    (0..CpuSet::MAX_CPU).rev().filter(|&core| set.is_set(core)).collect()
}
