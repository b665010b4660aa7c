//! Replays what fuzzing found worth keeping: every input of `fuzz/corpus` and `fuzz/regressions`
//! goes through the check of its target.
//!
//! `fuzz/README.md` says how the targets are run, and how a crash becomes a regression.
#![cfg(not(loom))]

#[path = "../fuzz/checks/mod.rs"]
mod checks;

use std::{
    fs, panic,
    path::{Path, PathBuf},
    thread,
};

use checks::{CHECKS, Check};

/// What keeps the corpora small enough to be replayed by every run of the tests.
const INPUT_BYTES_MAX: u64 = 4096;
const CORPORA_BYTES_MAX: u64 = 2 << 20;

#[test]
fn every_check_holds_on_its_corpus() {
    thread::scope(|scope| {
        for (target, check) in CHECKS {
            scope.spawn(move || replay(target, *check));
        }
    });
}

#[test]
fn every_check_has_a_target_and_corpora_of_a_small_size() {
    let names = CHECKS.iter().map(|(target, _)| Path::new(target).with_extension("rs"));
    let targets = files("fuzz_targets").into_iter();
    assert!(targets.eq(names.map(|name| fuzz_folder().join("fuzz_targets").join(name))));
    let mut total = 0;
    for input in CHECKS.iter().flat_map(|(target, _)| inputs(target)) {
        let bytes = fs::metadata(&input).expect("an input").len();
        assert!(bytes <= INPUT_BYTES_MAX, "{} has {bytes} bytes", input.display());
        total += bytes;
    }
    assert!(total <= CORPORA_BYTES_MAX, "{total} bytes");
}

fn replay(target: &str, check: Check) {
    for input in inputs(target) {
        let data = fs::read(&input).expect("an input");
        if panic::catch_unwind(|| check(&data)).is_err() {
            panic!("{}: {}", input.display(), data.escape_ascii());
        }
    }
}

/// The corpus of a target, which is never empty, and its regressions.
fn inputs(target: &str) -> Vec<PathBuf> {
    let corpus = files(&format!("corpus/{target}"));
    assert!(!corpus.is_empty(), "{target} has no corpus");
    [corpus, files(&format!("regressions/{target}"))].concat()
}

/// The files of a folder, in order; none if there is no such folder.
fn files(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(fuzz_folder().join(folder)).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries.map(|entry| entry.path()).collect();
    files.sort();
    files
}

fn fuzz_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}
