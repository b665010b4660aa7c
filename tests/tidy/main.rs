//! The house rules as a test: which module may import which, lengths, time, words.
//!
//! The rules are checked on rustfmt'ed text without comments and literals. Each rule is a function
//! from a file to its complaints, and has a test with bad samples.
#![cfg(not(loom))]

mod circles;
mod source;

use std::{fmt::Write as _, fs, path::Path};

use source::{
    Source, body, closing, is_name_char, is_test_file, sources, without_comments_and_literals,
    without_tests,
};
use toml::Table;

const COLUMNS_MAX: usize = 100;
const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 450;
/// Of the simulation, which is compiled for tests alone.
const SIMULATION_FILE_LINES_MAX: usize = 500;

/// A module and the modules it may import. Others (`lib`, `main`) may import all.
const IMPORTS: &[(&str, &[&str])] = &[
    ("sync", &[]),
    ("acknowledgement", &[]),
    ("duration", &[]),
    ("http", &[]),
    ("config", &["duration", "sync", "http"]),
    ("logging", &["duration", "sync", "http", "config"]),
    ("app", &["duration", "sync", "http", "logging", "config", "tls"]),
    ("registry", &["sync"]),
    ("metrics", &["duration", "sync"]),
    ("tls", &[]),
    ("io", &["http", "app", "tls"]),
    ("hosted", &["config", "app", "registry", "metrics"]),
    ("message", &["acknowledgement", "logging", "config", "app", "registry"]),
    (
        "event_loop",
        &[
            "duration", "sync", "http", "io", "logging", "config", "app", "registry", "metrics",
            "hosted", "message", "tls",
        ],
    ),
    (
        "control",
        &[
            "duration",
            "sync",
            "acknowledgement",
            "http",
            "io",
            "logging",
            "config",
            "app",
            "registry",
            "metrics",
            "hosted",
            "message",
            "tls",
        ],
    ),
    (
        "server",
        &[
            "sync",
            "http",
            "logging",
            "config",
            "app",
            "registry",
            "metrics",
            "hosted",
            "message",
            "event_loop",
            "control",
        ],
    ),
    ("drill", &["duration", "http", "tls"]),
    (
        "cli",
        &[
            "duration",
            "sync",
            "http",
            "logging",
            "config",
            "app",
            "registry",
            "metrics",
            "hosted",
            "message",
            "event_loop",
            "control",
            "server",
            "drill",
        ],
    ),
];

/// The modules that may ask what time it is.
const CLOCKS: &[&str] = &["event_loop", "control", "server", "drill", "cli"];

/// The programs of tests: `it` has the modules; the others need a process or a build of their own.
const TEST_PROGRAMS: &[&str] = &["chaos", "it", "loom", "tidy"];

#[test]
fn imports_go_one_way() {
    check(&sources("src"), imports);
}

#[test]
fn files_import_each_other_in_no_circle() {
    let folders = [
        "src",
        "bench/throughput",
        "fuzz/checks",
        "tests/chaos",
        "tests/it",
        "tests/support",
        "tests/tidy",
    ];
    let found = folders.map(|folder| {
        let circles = circles::circles(&sources(folder)).into_iter();
        circles.map(move |circle| format!("{folder}/{circle}"))
    });
    let found: Vec<String> = found.into_iter().flatten().collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn only_tls_names_its_library() {
    check(&sources("src"), foreign_tls);
}

#[test]
fn functions_are_short() {
    check(&sources("src"), long_functions);
}

#[test]
fn files_are_short() {
    check(&sources("src"), long_files);
}

#[test]
fn lines_are_narrow() {
    for folder in ["src", "tests", "bench", "benches", "fuzz/checks", "fuzz/fuzz_targets"] {
        check(&sources(folder), wide_lines);
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    check(&sources("src"), no_purpose);
    check(&sources("tests"), no_purpose);
    check(&sources("fuzz/checks"), no_purpose);
    check(&sources("fuzz/fuzz_targets"), no_purpose);
}

#[test]
fn time_enters_as_a_parameter() {
    check(&sources("src"), clocks);
}

#[test]
fn nothing_is_left_to_do() {
    for folder in ["src", "tests", "bench", "benches", "fuzz/checks", "fuzz/fuzz_targets"] {
        check(&sources(folder), leftovers);
    }
}

#[test]
fn getters_have_no_prefix() {
    check(&sources("src"), getters);
}

#[test]
fn tests_never_just_sleep() {
    check(&sources("tests"), sleeps);
    check(&sources("src"), sleeps_in_tests);
}

#[test]
fn only_the_registry_is_compiled_for_loom() {
    check(&sources("tests"), no_loom_guard);
}

#[test]
fn tests_are_modules_of_one_program() {
    let sources = sources("tests");
    let paths: Vec<&str> = sources.iter().map(|source| source.path.as_str()).collect();
    let main = read("tests/it/main.rs");
    assert_eq!(misplaced_tests(&paths, &main), Vec::<String>::new());
}

#[test]
fn there_is_no_async_runtime() {
    let (deny, lock) = (read("deny.toml"), read("Cargo.lock"));
    assert_eq!(locked_of(&denied_crates(&deny), &lock), Vec::<String>::new());
    let found = locked_of(&denied_crates(&deny), "[[package]]\nname = \"tokio\"\n");
    assert_eq!(found, ["tokio"]);
}

#[test]
fn unsafe_code_is_forbidden() {
    let manifest = read("Cargo.toml");
    let lints = manifest.split("[lints.rust]").nth(1).and_then(|rest| rest.split("\n[").next());
    let lints = lints.expect("[lints.rust]");
    assert!(lints.lines().any(|line| line == "unsafe_code = \"forbid\""), "{lints}");
}

#[test]
fn ci_is_executable() {
    use std::os::unix::fs::PermissionsExt;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".ci/run");
    let mode = fs::metadata(path).expect(".ci/run").permissions().mode();
    assert_eq!(mode & 0o111, 0o111, "{mode:o}");
}

/// Fails with all complaints of a rule.
fn check(sources: &[Source], rule: fn(&Source) -> Vec<String>) {
    let complaints: Vec<String> = sources.iter().flat_map(rule).collect();
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}

/// Imports, in code and in `use`, that [`IMPORTS`] does not allow.
fn imports(source: &Source) -> Vec<String> {
    let module = source.module();
    let own = *module.first().unwrap_or(&"lib");
    let Some((_, allowed)) = IMPORTS.iter().find(|(name, _)| *name == own) else {
        if ["lib", "main"].contains(&own) {
            return Vec::new();
        }
        return vec![source.complain(0, "a module that has no place in the direction of imports")];
    };
    let mut complaints = Vec::new();
    for (at, name) in imported(&source.product, module.len()) {
        if name != own && !allowed.contains(&name.as_str()) {
            complaints.push(source.complain(at, &format!("{own} imports {name}")));
        }
    }
    complaints
}

/// The first names of all paths that begin at the crate's root, and their positions. `depth`: how
/// many `super` lead to the root.
fn imported(code: &str, depth: usize) -> Vec<(usize, String)> {
    let root_by_super = vec!["super"; depth].join("::");
    let mut found = Vec::new();
    for root in ["crate", "$crate", "tidegate", &root_by_super] {
        for at in Source::words(code, root) {
            let after = at + root.len();
            let inner = code[..at].ends_with("::") || code[..at].ends_with('$');
            if !inner && code[after..].starts_with("::") {
                let names = first_names(&code[after + 2..]);
                found.extend(names.into_iter().map(|name| (at, name)));
            }
        }
    }
    found
}

/// `a::b` gives `a`; `{a, b::{c, d}, self}` gives `a` and `b`.
fn first_names(path: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        let text = text.trim_start();
        text.chars().take_while(|char| is_name_char(*char) || *char == '*').collect()
    };
    let Some(group) = path.strip_prefix('{') else { return vec![name(path)] };
    let (mut names, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, char) in group.char_indices() {
        match char {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                names.push(name(&group[start..at]));
                start = at + 1;
                if char == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty() && name != "self");
    names
}

/// rustls will change its interface: one module follows it.
fn foreign_tls(source: &Source) -> Vec<String> {
    if source.module().first() == Some(&"tls") {
        return Vec::new();
    }
    let found = ["rustls", "aws_lc_rs", "rcgen", "x509_cert"]
        .into_iter()
        .flat_map(|name| Source::words(&source.product, name).map(move |at| (at, name)));
    found.map(|(at, name)| source.complain(at, &format!("{name} outside of tls"))).collect()
}

fn long_functions(source: &Source) -> Vec<String> {
    let code = &source.code;
    let mut complaints = Vec::new();
    for at in Source::words(code, "fn") {
        let named = code[at + 2..].trim_start().starts_with(|char: char| is_name_char(char));
        let Some(open) = named.then(|| body(&code[at..])).flatten() else { continue };
        let end = at + open + closing(&code[at + open..]);
        let lines = code[at..end].matches('\n').count() + 1;
        if lines > FUNCTION_LINES_MAX {
            complaints.push(source.complain(at, &format!("a function of {lines} lines")));
        }
    }
    complaints
}

fn long_files(source: &Source) -> Vec<String> {
    let is_test =
        |line: &str| line.starts_with("#[cfg(test)]") || line.starts_with("#[cfg(all(test");
    let lines = source.code.lines().take_while(|line| !is_test(line)).count();
    let max = match source.path.contains("/simulation/") {
        true => SIMULATION_FILE_LINES_MAX,
        false => FILE_LINES_MAX,
    };
    let long = lines > max && !is_test_file(&source.path);
    long.then(|| source.complain(0, &format!("{lines} lines before the tests")))
        .into_iter()
        .collect()
}

fn wide_lines(source: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut at = 0;
    for line in source.text.split_inclusive('\n') {
        let columns = line.trim_end_matches('\n').chars().count();
        if columns > COLUMNS_MAX {
            complaints.push(source.complain(at, &format!("{columns} columns")));
        }
        at += line.len();
    }
    complaints
}

fn no_purpose(source: &Source) -> Vec<String> {
    let says = source.text.starts_with("//! ");
    (!says).then(|| source.complain(0, "doesn't open with its purpose")).into_iter().collect()
}

fn clocks(source: &Source) -> Vec<String> {
    if source.module().first().is_some_and(|module| CLOCKS.contains(module)) {
        return Vec::new();
    }
    let calls: &[&str] = match source.module().first() {
        // A log line's time is the time at which it is written.
        Some(&"logging") => &["Instant::now", ".elapsed()"],
        _ => &["Instant::now", "SystemTime::now", ".elapsed()"],
    };
    let found = calls.iter().flat_map(|call| source.product.match_indices(call));
    found.map(|(at, call)| source.complain(at, &format!("{call} outside of the loops"))).collect()
}

fn leftovers(source: &Source) -> Vec<String> {
    let macros = ["todo", "unimplemented", "dbg"];
    let found = macros.iter().flat_map(|name| {
        let places = Source::words(&source.code, name);
        places
            .filter(|at| source.code[at + name.len()..].starts_with('!'))
            .map(move |at| (at, name))
    });
    found.map(|(at, name)| source.complain(at, &format!("{name}!"))).collect()
}

fn getters(source: &Source) -> Vec<String> {
    let found = source.code.match_indices("fn get_");
    found.map(|(at, _)| source.complain(at, "a getter with a prefix")).collect()
}

fn sleeps(source: &Source) -> Vec<String> {
    let own_place = source.path == "support/wait.rs";
    let names = ["sleep", "sleep_ms", "sleep_until", "park_timeout"];
    let found = names.iter().flat_map(|name| {
        let places = Source::words(&source.code, name);
        places
            .filter(|at| source.code[at + name.len()..].starts_with('('))
            .map(move |at| (at, name))
    });
    found
        .filter(|(_, name)| !own_place || **name != "park_timeout")
        .map(|(at, name)| source.complain(at, &format!("{name} waits for nothing")))
        .collect()
}

fn sleeps_in_tests(source: &Source) -> Vec<String> {
    let found = source.code.match_indices("thread::sleep");
    found
        .filter(|(at, call)| source.product[*at..at + call.len()].trim().is_empty())
        .map(|(at, _)| source.complain(at, "a test that sleeps"))
        .collect()
}

fn no_loom_guard(source: &Source) -> Vec<String> {
    let needed = is_test_program(&source.path) && source.path != "loom.rs";
    let guarded = source.text.lines().any(|line| line == "#![cfg(not(loom))]");
    let bad = needed && !guarded;
    bad.then(|| source.complain(0, "no #![cfg(not(loom))]")).into_iter().collect()
}

/// Whether cargo makes a program of this file of `tests`.
fn is_test_program(path: &str) -> bool {
    let mut parts = path.split('/').skip(1);
    parts.next().is_none_or(|name| name == "main.rs" && parts.next().is_none())
}

/// The test programs that are not in the list, and the files in `it` that its `main` leaves out:
/// cargo would not compile them.
fn misplaced_tests(paths: &[&str], main: &str) -> Vec<String> {
    let is_listed = |path: &str| {
        let name = path.split(['/', '.']).next().expect("a name");
        !is_test_program(path) || TEST_PROGRAMS.contains(&name)
    };
    let is_declared = |path: &str| {
        let Some(path) = path.strip_prefix("it/") else { return true };
        let name = path.split(['/', '.']).next().expect("a name");
        path == "main.rs" || main.lines().any(|line| line == format!("mod {name};"))
    };
    let misplaced = |path: &&&str| !is_listed(path) || !is_declared(path);
    paths.iter().filter(misplaced).map(|path| (*path).to_owned()).collect()
}

/// The crates that deny.toml bans.
fn denied_crates(deny: &str) -> Vec<String> {
    let deny: Table = deny.parse().expect("deny.toml");
    let banned = deny["bans"]["deny"].as_array().expect("bans.deny");
    banned.iter().map(|entry| entry["crate"].as_str().expect("a name").to_owned()).collect()
}

/// Those of `crates` that are in the lock file, which includes what only tests and benchmarks use.
fn locked_of(crates: &[String], lock: &str) -> Vec<String> {
    let lock: Table = lock.parse().expect("a lock file");
    let packages = lock["package"].as_array().expect("packages");
    let names: Vec<_> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    crates.iter().filter(|name| names.contains(&name.as_str())).cloned().collect()
}

/// The complaints of a rule about one sample.
fn complaints(rule: fn(&Source) -> Vec<String>, path: &str, text: &str) -> Vec<String> {
    rule(&Source::new(path, text))
}

#[test]
fn forbidden_imports_are_found() {
    for (path, text, expected) in [
        ("http/head.rs", "use crate::config::Config;", "http/head.rs:1: http imports config"),
        ("http/mod.rs", "fn f() { crate::sync::x() }", "http/mod.rs:1: http imports sync"),
        (
            "app/mod.rs",
            "//! A\nuse crate::{\n http::{A, B},\n server::C,\n};",
            "app/mod.rs:2: app imports server",
        ),
        (
            "registry/mod.rs",
            "use crate::{sync, app::App};",
            "registry/mod.rs:1: registry imports app",
        ),
        (
            "event_loop/mod.rs",
            "use crate::control;",
            "event_loop/mod.rs:1: event_loop imports control",
        ),
        (
            "control/plan.rs",
            "use crate::event_loop::X;",
            "control/plan.rs:1: control imports event_loop",
        ),
        ("control/mod.rs", "use super::server::X;", "control/mod.rs:1: control imports server"),
        ("control/plan.rs", "use super::super::cli;", "control/plan.rs:1: control imports cli"),
        (
            "registry/mod.rs",
            "crate::logging::event!(X);",
            "registry/mod.rs:1: registry imports logging",
        ),
        ("message.rs", "use crate::HttpServer;", "message.rs:1: message imports HttpServer"),
        ("sync.rs", "pub use crate::*;", "sync.rs:1: sync imports *"),
        ("server.rs", "use tidegate::cli;", "server.rs:1: server imports cli"),
        (
            "app/x.rs",
            "macro_rules! m { () => { $crate::server::x() } }",
            "app/x.rs:1: app imports server",
        ),
        ("news.rs", "", "news.rs:1: a module that has no place in the direction of imports"),
    ] {
        assert_eq!(complaints(imports, path, text), [expected], "{path}: {text}");
    }
}

#[test]
fn allowed_imports_are_accepted() {
    for (path, text) in [
        ("http/head.rs", "use super::{host::Host, method::Method};\nuse crate::http::Bytes;"),
        ("http/head.rs", "//! See [`crate::server`].\n// crate::server\n/* crate::cli */"),
        ("http/head.rs", "fn f() -> &'static str { \"crate::server\" }"),
        ("http/head.rs", "fn f() -> &'static str { r#\"a \" crate::server\"# }"),
        ("http/head.rs", "#[cfg(test)]\nmod tests {\n    use crate::server::X;\n}"),
        ("http/head.rs", "#[cfg(test)]\nuse crate::server::X;\nfn f() {}"),
        ("http/mod.rs", "mod head;\npub use head::X;\nuse std::sync::Arc;\nuse ::log::info;"),
        ("registry/drain.rs", "use crate::sync::atomic::AtomicU64;\nuse super::AppRegistry;"),
        ("event_loop/mod.rs", "use crate::{app::{App, Reply}, http, message::LoopCommand};"),
        ("cli/serve.rs", "use tidegate::server::HttpServer;"),
        ("lib.rs", "pub use server::HttpServer;"),
        ("main.rs", "use tidegate::HttpServer;"),
        ("app/x.rs", "fn f(tidegate: u8) { other::crate_name::x(); my_crate::server::y() }"),
    ] {
        assert_eq!(complaints(imports, path, text), Vec::<String>::new(), "{path}: {text}");
    }
}

#[test]
fn a_tls_library_in_the_wrong_place_is_found() {
    let text = "//! A\nuse rustls::ServerConfig;\n";
    assert_eq!(complaints(foreign_tls, "io/x.rs", text), ["io/x.rs:2: rustls outside of tls"]);
    assert!(complaints(foreign_tls, "tls/x.rs", text).is_empty());
    let in_tests = "#[cfg(test)]\nmod tests {\n    use rustls::X;\n}\n";
    assert!(complaints(foreign_tls, "io/x.rs", in_tests).is_empty());
}

#[test]
fn long_functions_are_found() {
    let function = |lines: usize| {
        let mut text = "//! X\nimpl X {\n    fn f<'a>(a: [u8; 4]) -> fn() {\n".to_owned();
        for n in 0..lines - 2 {
            let _ = writeln!(text, "        f({n}, '{{', \"}}\"); // }}");
        }
        text + "    }\n}\n\nfn g();\n"
    };
    let found = complaints(long_functions, "x.rs", &function(FUNCTION_LINES_MAX + 1));
    assert_eq!(found, ["x.rs:3: a function of 71 lines"]);
    assert!(complaints(long_functions, "x.rs", &function(FUNCTION_LINES_MAX)).is_empty());
}

#[test]
fn long_files_are_found() {
    let tests = "#[cfg(test)]\nmod tests {\n".to_owned() + &"    fn t() {}\n".repeat(900) + "}\n";
    let most = "fn f() {}\n".repeat(FILE_LINES_MAX);
    assert!(complaints(long_files, "x.rs", &(most.clone() + &tests)).is_empty());
    assert!(complaints(long_files, "x/tests.rs", &("fn f() {}\n".to_owned() + &most)).is_empty());
    let found = complaints(long_files, "x.rs", &("\n".to_owned() + &most + &tests));
    assert_eq!(found, [format!("x.rs:1: {} lines before the tests", FILE_LINES_MAX + 1)]);
}

#[test]
fn wide_lines_are_found() {
    let line = "\u{fc}".repeat(COLUMNS_MAX);
    assert!(complaints(wide_lines, "x.rs", &format!("{line}\n{line}\n")).is_empty());
    let found = complaints(wide_lines, "x.rs", &format!("\n{line}x\n"));
    assert_eq!(found, ["x.rs:2: 101 columns"]);
}

#[test]
fn files_without_a_purpose_are_found() {
    assert!(complaints(no_purpose, "x.rs", "//! What it is for.\n").is_empty());
    assert_eq!(complaints(no_purpose, "x.rs", "// A comment.\n//! Late.\n").len(), 1);
    assert_eq!(complaints(no_purpose, "x.rs", "").len(), 1);
}

#[test]
fn clocks_are_found() {
    let text = "use std::time::Instant;\nfn f() { let now = Instant::now(); }\n";
    for (path, count) in
        [("http/mod.rs", 1), ("logging/mod.rs", 1), ("event_loop/timers.rs", 0), ("server.rs", 0)]
    {
        assert_eq!(complaints(clocks, path, text).len(), count, "{path}");
    }
    let in_tests = format!("#[cfg(test)]\nmod tests {{\n{text}}}\n");
    assert!(complaints(clocks, "http/mod.rs", &in_tests).is_empty());
    assert!(complaints(clocks, "http/tests.rs", text).is_empty());
    assert_eq!(complaints(clocks, "app/x.rs", "fn f() { SystemTime::now() }").len(), 1);
    assert_eq!(complaints(clocks, "app/x.rs", "fn f() { start.elapsed() }").len(), 1);
}

#[test]
fn leftovers_are_found() {
    for text in ["fn f() { todo!() }", "fn f() { dbg!(1); }", "fn f() { unimplemented!(\"x\") }"] {
        assert_eq!(complaints(leftovers, "x.rs", text).len(), 1, "{text}");
    }
    for text in
        ["// todo!()", "fn f() { not_todo!() }", "fn todo() {}", "const X: &str = \"dbg!\";"]
    {
        assert!(complaints(leftovers, "x.rs", text).is_empty(), "{text}");
    }
}

#[test]
fn prefixed_getters_are_found() {
    assert_eq!(complaints(getters, "x.rs", "pub fn get_name() {}").len(), 1);
    assert!(complaints(getters, "x.rs", "pub fn get() {}\nfn target_get_x() {}").is_empty());
}

#[test]
fn sleeps_are_found() {
    assert_eq!(complaints(sleeps, "drain.rs", "fn f() { thread::park_timeout(x) }").len(), 1);
    assert!(complaints(sleeps, "support/wait.rs", "fn f() { thread::park_timeout(x) }").is_empty());
    assert!(!complaints(sleeps, "support/wait.rs", "fn f() { thread::sleep(x) }").is_empty());
    assert!(complaints(sleeps, "drain.rs", "// thread::sleep(x)").is_empty());
    let in_test = "#[cfg(test)]\nmod tests {\n    fn f() { thread::sleep(x) }\n}\n";
    assert_eq!(complaints(sleeps_in_tests, "x.rs", in_test).len(), 1);
    assert!(complaints(sleeps_in_tests, "x.rs", "fn f() { thread::sleep(x) }").is_empty());
}

#[test]
fn missing_loom_guards_are_found() {
    assert_eq!(complaints(no_loom_guard, "drain.rs", "//! X\n").len(), 1);
    assert!(complaints(no_loom_guard, "drain.rs", "//! X\n#![cfg(not(loom))]\n").is_empty());
    assert!(complaints(no_loom_guard, "loom.rs", "//! X\n").is_empty());
    assert!(complaints(no_loom_guard, "support/mod.rs", "//! X\n").is_empty());
    assert!(complaints(no_loom_guard, "it/drain.rs", "//! X\n").is_empty());
    assert_eq!(complaints(no_loom_guard, "it/main.rs", "//! X\n").len(), 1);
}

#[test]
fn misplaced_tests_are_found() {
    let main = "//! X\nmod a;\n// mod b;\nmod c;\n";
    let placed = ["it/a.rs", "it/c/mod.rs", "it/c/d.rs", "it/main.rs", "tidy.rs", "support/x.rs"];
    assert_eq!(misplaced_tests(&placed, main), Vec::<String>::new());
    let misplaced = ["it/b.rs", "it/d/mod.rs", "drain.rs", "drain/main.rs"];
    assert_eq!(misplaced_tests(&misplaced, main), misplaced);
}

#[test]
fn comments_and_literals_are_blanked_in_place() {
    for (text, code) in [
        ("a // b\nc", "a     \nc"),
        ("a /* b /* c */ d */ e", "a                   e"),
        ("f(\"a\\\"b\", c)", "f(      , c)"),
        ("f('\"', '\\'', '{', b'}') // x", "f(   ,     ,    , b   )     "),
        ("fn f<'a>(x: &'a str)", "fn f<'a>(x: &'a str)"),
        ("r#\"a\"b\"# + br\"\\\" + x", "         +       + x"),
        ("for r in r {}", "for r in r {}"),
        ("\"\u{fc}\" a", "     a"),
    ] {
        assert_eq!(without_comments_and_literals(text), code, "{text}");
    }
}

#[test]
fn tests_are_blanked_in_place() {
    let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n";
    let product = without_tests(text);
    assert_eq!(product.len(), text.len());
    assert_eq!(product.split_whitespace().collect::<String>(), "fna(){}fnc(){}");
    let product = without_tests("#[cfg(all(test, not(loom)))]\nuse a::b;\nfn c() {}");
    assert_eq!(product.trim(), "fn c() {}");
}
