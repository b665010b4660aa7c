//! Replays the fuzz corpora: every input of `fuzz/corpus` and `fuzz/regressions` goes through the
//! check of its target.
//!
//! `fuzz/README.md` says how the targets are run, and how a crash becomes a regression.

#[path = "../../fuzz/checks/mod.rs"]
mod checks;

use std::{
    fs, panic,
    path::{Path, PathBuf},
    thread,
};

use checks::{CHECKS, Check};
use proptest::prelude::*;

/// The largest input, in bytes: every run of the tests replays the corpora.
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

/// Field names that a proxy knows, in spellings that have misled other proxies.
fn name() -> impl Strategy<Value = String> {
    const KNOWN: &[&str] = &[
        "Connection",
        "Keep-Alive",
        "TE",
        "Trailer",
        "Upgrade",
        "Via",
        "Date",
        "Forwarded",
        "Cookie",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "X-Forwarded-Port",
        "X-Real-IP",
        "X-Request-Id",
        "Max-Forwards",
        "Proxy",
        "Proxy-Authorization",
        "Proxy-Connection",
        "Proxy-Status",
        "HTTP2-Settings",
        "X-Key",
        "Set-Cookie",
        "Server",
    ];
    (proptest::sample::select(KNOWN), 0..4).prop_map(|(name, spelling)| match spelling {
        0 => name.to_owned(),
        1 => name.to_ascii_lowercase(),
        2 => name.replace('-', "_"),
        _ => name.to_ascii_uppercase().replacen('-', "_", 1),
    })
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        "(close|keep-alive|upgrade|x-real-ip|Forwarded|te|,| ){0,4}",
        "(for=|proto=|\"|;|,|1\\.2\\.3\\.4|\\[::1\\]|unknown|_x| ){0,6}",
        "(websocket|h2c|, ){1,3}",
        "(sid|a|=|; |\"){0,6}",
        "[ -~\u{e9}]{0,12}",
    ]
}

proptest! {
    #[test]
    fn what_a_proxy_writes_is_clear_whatever_the_fields_say(
        choice: u8,
        start in proptest::sample::select(&[
            "GET /a?b HTTP/1.1\r\nHost: A.test:81\r\n",
            "OPTIONS http://a.test HTTP/1.1\r\nHost: b\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n",
            "GET / HTTP/1.0\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n",
            "HTTP/1.1 426 X\r\n",
            "HTTP/1.1 101 X\r\nUpgrade: websocket\r\n",
            "HTTP/1.0 103 X\r\n",
        ][..]),
        fields in proptest::collection::vec((name(), value()), 0..12),
    ) {
        let lines: String =
            fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!("{start}{lines}\r\n");
        checks::proxy_fields::check(&[&[choice], head.as_bytes()].concat());
    }
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

/// The files of a folder, in order; empty if there is no such folder.
fn files(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(fuzz_folder().join(folder)).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries.map(|entry| entry.path()).collect();
    files.sort();
    files
}

fn fuzz_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}
