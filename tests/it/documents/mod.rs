//! Checks the documents: every command runs as it stands; every key, default, command, metric,
//! event and request is that of the code; and every link has a target.
//!
//! CONTRIBUTING.md says how blocks are marked.

mod page;
mod session;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use page::{Block, Page, ROOT, code_spans};
use session::{Said, Session};
use tidegate::config::{AppConfig, AppKind, Config, HealthConfig, Limits};
use toml::Table;

use crate::support::{BINARY, Setup};

/// Most blocks that are not run.
const BLOCKS_NOT_RUN_MAX: usize = 9;

/// A README is read in two minutes.
const README_LINES_MAX: usize = 200;

#[test]
fn every_command_runs_as_it_stands_in_bash() {
    paste_all("bash");
}

#[test]
fn every_command_runs_as_it_stands_in_zsh() {
    paste_all("zsh");
}

/// Runs the blocks of each page in a fresh folder.
fn paste_all(shell: &str) {
    for page in Page::all() {
        let blocks = page.blocks();
        let is_run = |block: &&Block| ["sh", "sh server"].contains(&block.info.as_str());
        if !blocks.iter().any(|block| is_run(&block)) {
            continue;
        }
        let Some(mut session) = Session::open(shell) else {
            assert_eq!(shell, "zsh", "not every machine has zsh, but each has bash");
            return;
        };
        let mut said = None;
        for block in &blocks {
            let place = format!("{shell}, {}:{}", page.path, block.line);
            match block.info.as_str() {
                "sh" => {
                    let done = session.paste(&block.text);
                    let all = done.lines.join("\n");
                    assert!(done.is_good, "{place}: a command failed:\n{}\n{all}", block.text);
                    said = Some((done, block.text.contains(" &\n")));
                }
                "sh server" => session.serve(block),
                "text output" | "text output contains" => {
                    let (said, is_concurrent) = said.take().expect(&place);
                    let is_whole = block.info == "text output";
                    compare(&place, &said, &block.text, is_whole, is_concurrent);
                }
                _ => {}
            }
        }
    }
}

/// Compares what a block printed with what the page shows, numbers aside.
fn compare(place: &str, said: &Said, shown: &str, is_whole: bool, is_concurrent: bool) {
    let plain = |lines: Vec<String>| -> Vec<String> {
        lines.iter().map(|line| without_numbers(line)).filter(|line| !line.is_empty()).collect()
    };
    let mut said_lines = plain(said.lines.clone());
    let mut shown_lines = plain(shown.lines().map(str::to_owned).collect());
    if is_concurrent {
        said_lines.sort();
        shown_lines.sort();
    }
    let printed = said.lines.join("\n");
    if is_whole {
        assert_eq!(said_lines, shown_lines, "{place}: shown\n{shown}\nprinted\n{printed}");
    }
    for line in shown_lines {
        let is_there = said_lines.iter().any(|said| said.contains(&line));
        assert!(is_there, "{place}: {line:?} isn't in\n{printed}");
    }
}

/// Numbers and their units differ from run to run, and so do the widths of columns.
fn without_numbers(line: &str) -> String {
    let mut plain = String::new();
    let mut digits = false;
    for char in line.chars() {
        let is_number = char.is_ascii_digit() || digits && ".,".contains(char);
        if is_number && !digits {
            plain.push('N');
        } else if !is_number {
            plain.push(char);
        }
        digits = is_number;
    }
    let words = plain.split_whitespace().map(|word| match word {
        "s" | "ms" | "\u{b5}s" => "TIME",
        "N" => "N",
        word => word,
    });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn numbers_do_not_matter_and_words_do() {
    assert_eq!(without_numbers("a:  drained in 1.9 s"), without_numbers("a: drained in 12 ms"));
    assert_ne!(without_numbers("a: drained in 1 s"), without_numbers("a: cut 1 in 1 s"));
    assert_eq!(without_numbers("pid 31157 serves, pid 3 drains"), "pid N serves, pid N drains");
}

#[test]
fn blocks_are_marked_with_what_becomes_of_them() {
    let mut not_run = Vec::new();
    for page in Page::all() {
        for block in page.blocks() {
            let place = format!("{}:{}: {}", page.path, block.line, block.info);
            let language = block.info.split(' ').next().unwrap_or_default();
            if let Some(reason) = block.info.strip_prefix("sh no-run: ") {
                assert!(reason.len() > 10, "{place}");
                not_run.push(place);
                continue;
            }
            let known = ["sh", "sh server", "text", "text output", "text output contains"];
            let others = ["toml", "rust", "haproxy", "mermaid"];
            assert!(known.contains(&&*block.info) || others.contains(&language), "{place}");
        }
    }
    assert!(not_run.len() <= BLOCKS_NOT_RUN_MAX, "{not_run:#?}");
}

#[test]
fn readme_is_read_in_two_minutes() {
    let lines = Page::read("README.md").text.lines().count();
    assert!(lines <= README_LINES_MAX, "{lines} lines");
}

#[test]
fn measurements_in_readme_are_those_of_the_pages() {
    let readme = Page::read("README.md").text;
    let pages = ["docs/performance.md", "docs/drains-and-deploys.md"];
    let pages = pages.map(|path| Page::read(path).text).concat();
    let is_measurement = |line: &&str| line.starts_with('|') && line.contains(['0', '1', '2']);
    let rows: Vec<_> = readme.lines().filter(is_measurement).collect();
    assert!(rows.len() >= 10, "{rows:#?}");
    for row in rows {
        assert!(pages.lines().any(|line| line == row), "{row}");
    }
}

#[test]
fn links_lead_somewhere() {
    let mut wrong = Vec::new();
    for page in Page::all().into_iter().chain([Page::read("bench/README.md")]) {
        let folder = Path::new(&page.path).parent().expect("a folder");
        for link in page.links() {
            if link.starts_with("https://") || link.starts_with("http://") {
                continue;
            }
            let (file, fragment) = link.split_once('#').unwrap_or((&link, ""));
            let path = if file.is_empty() { page.path.clone().into() } else { folder.join(file) };
            let is_there = Path::new(ROOT).join(&path).exists();
            let is_named = || {
                let target = Page::read(path.to_str().expect("a plain name"));
                target.anchors().contains(&fragment.to_owned())
            };
            if !is_there || !fragment.is_empty() && !is_named() {
                wrong.push(format!("{}: {link}", page.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn pages_are_in_plain_english() {
    let words = ["nobody", "somebody", "anybody", "whoever", "anew", "told", "one that"];
    let mut found = Vec::new();
    let others = ["bench/README.md", "fuzz/README.md"].map(Page::read);
    for page in Page::all().into_iter().chain(others) {
        for (index, line) in page.prose().lines().enumerate() {
            // Names of the code are in code spans.
            let line: Vec<_> = line.split('`').step_by(2).collect();
            let line = line.join(" x ").to_lowercase();
            let line: Vec<_> = line.split(|c: char| !c.is_alphanumeric()).collect();
            let line = format!(" {} ", line.join(" "));
            for word in words {
                if line.contains(&format!(" {word} ")) {
                    found.push(format!("{}:{}: {word}", page.path, index + 1));
                }
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn toml_blocks_are_configs() {
    for page in Page::all() {
        for block in page.blocks().into_iter().filter(|block| block.info == "toml") {
            if let Err(error) = Config::parse(&block.text, Path::new(&page.path), Path::new("/")) {
                panic!("{}:{}\n{error}", page.path, block.line);
            }
        }
    }
}

/// The block that has every key of the config.
fn every_key() -> String {
    Page::read("docs/configuration.md").block_under("## Every key")
}

fn parsed(text: &str) -> Config {
    let config = Config::parse(text, Path::new("docs/configuration.md"), Path::new("/"));
    config.unwrap_or_else(|error| panic!("{error}"))
}

/// The keys that the parser knows in a table: its error for an unknown key lists them.
fn known_keys(before: &str, behind: &str) -> BTreeSet<String> {
    let text = format!("{before}zzzzzzzzzzzzzzzzzzzzzzzz = 1{behind}");
    let error = Config::parse(&text, Path::new("c"), Path::new("/")).expect_err(&text);
    let help = error.problems().iter().filter_map(|problem| problem.help.as_deref());
    let known = help.filter_map(|help| help.strip_prefix("known keys: ")).next();
    known.unwrap_or_else(|| panic!("{error}")).split(", ").map(str::to_owned).collect()
}

#[test]
fn every_key_of_the_config_is_documented_and_no_other() {
    // A key in a comment is written as it would be without the comment.
    let uncommented = |line: &str| {
        let key = line.strip_prefix("# ").and_then(|line| line.split_once(" = "));
        let is_key = key.is_some_and(|(key, _)| !key.contains(' '));
        if is_key { line[2..].to_owned() } else { line.to_owned() }
    };
    let block = every_key();
    let text: String = block.lines().map(|line| uncommented(line) + "\n").collect();
    let tree: Table = text.parse().unwrap_or_else(|error| panic!("{error}"));
    let apps: Vec<&Table> =
        tree["apps"].as_table().unwrap().values().flat_map(|a| a.as_table()).collect();
    let keys = |tables: &[&Table]| -> BTreeSet<String> {
        tables.iter().flat_map(|table| table.keys().cloned()).collect()
    };
    let inner = |name: &str| -> Vec<&Table> {
        apps.iter().filter_map(|app| app.get(name)?.as_table()).collect()
    };
    for name in ["server", "limits", "log", "admin", "tls"] {
        let shown = keys(&[tree[name].as_table().expect(name)]);
        assert_eq!(shown, known_keys(&format!("[{name}]\n"), ""), "[{name}]");
    }
    assert_eq!(keys(&apps), known_keys("[apps.a]\n", ""));
    let tables = keys(&apps).into_iter().filter(|name| !inner(name).is_empty());
    for name in tables {
        let known = known_keys(&format!("[apps.a.{name}]\n"), "");
        assert_eq!(keys(&inner(&name)), known, "{name}");
    }
    for name in ["health", "ready"] {
        let proxies = inner("proxy").into_iter();
        let tables: Vec<&Table> = proxies.filter_map(|it| it.get(name)?.as_table()).collect();
        assert_eq!(keys(&tables), known_keys(&format!("[apps.a.proxy.{name}]\n"), ""), "{name}");
    }
    // Of tables in arrays, one is shown.
    let listen = known_keys("server.listen = [{ ", " }]");
    let upstream = known_keys("[apps.a]\nproxy.upstreams = [{ ", " }]");
    for (key, place) in [(listen, "{ address = "), (upstream, "{ url = ")] {
        let shown = block.split_once(place).expect(place).1.split_once('}').expect("an end").0;
        let shown = format!("{}{shown}", &place[2..]);
        let shown: BTreeSet<String> = shown
            .split(',')
            .map(|pair| pair.split('=').next().expect("a key").trim().to_owned())
            .collect();
        assert_eq!(shown, key);
    }
}

#[test]
fn the_documented_defaults_are_the_defaults() {
    let (shown, default) = (parsed(&every_key()), parsed(""));
    assert_eq!(shown.server, default.server);
    assert_eq!(shown.limits, default.limits);
    assert_eq!(shown.log, default.log);
    assert_eq!(shown.admin, default.admin);
    assert_eq!(shown.tls, default.tls);
    let app = |text: &str| -> AppConfig { parsed(&format!("[apps.a]\n{text}\n")).apps.remove(0) };
    let mut shown: BTreeMap<String, AppConfig> =
        shown.apps.into_iter().map(|app| (app.host.to_string(), app)).collect();
    for (host, least) in [
        ("www.example.com", "files = { root = \"site\" }"),
        ("hello.example.com", "respond = {}"),
        ("old.example.com", "redirect = { to = \"https://www.example.com\" }"),
        ("app.example.com", "proxy = { upstreams = [\"http://127.0.0.1:9000\"] }"),
    ] {
        let (mut shown, least) = (shown.remove(host).expect(host), app(least));
        if let AppKind::Proxy(proxy) = &mut shown.kind {
            let health = HealthConfig::new("/healthz".to_owned());
            assert_eq!(proxy.health.take(), Some(health), "{host}");
        }
        assert_eq!(shown.kind, least.kind, "{host}");
        assert_eq!((shown.drain_timeout, shown.aliases), (least.drain_timeout, least.aliases));
    }
    assert!(shown.is_empty(), "{shown:?}");
}

#[test]
fn the_limits_in_security_md_are_the_defaults() {
    let page = Page::read("SECURITY.md").text;
    let rows = page.lines().filter_map(|line| {
        let (key, rest) = line.strip_prefix("| `")?.split_once("` | `")?;
        Some(format!("limits.{key} = {}\n", rest.split_once('`')?.0))
    });
    let text: String = rows.collect();
    assert!(text.contains("limits.linger_timeout"), "no table of limits:\n{text}");
    assert_eq!(parsed(&text).limits, Limits::default());
}

#[test]
fn the_documented_commands_are_those_of_the_program() {
    let help = Command::new(BINARY).arg("--help").output().expect("it runs").stdout;
    let help = String::from_utf8(help).expect("UTF-8");
    let (_, list) = help.split_once("Commands:\n").expect("a list");
    let names = list.lines().take_while(|line| !line.is_empty());
    let names: BTreeSet<&str> = names.filter_map(|line| line.split_whitespace().next()).collect();
    let rows = Page::read("docs/operations.md").first_cells();
    let rows = rows.iter().filter_map(|span| span.strip_prefix("tidegate "));
    let shown = rows.map(|row| row.split(' ').next().expect("a word").trim_matches(['[', ']']));
    let shown: BTreeSet<&str> = shown.chain(["help"]).collect();
    assert_eq!(shown, names);
}

#[test]
fn the_documented_requests_are_those_of_the_admin_api() {
    let spans = Page::read("docs/admin-api.md").first_cells();
    let mut shown: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (method, path) in spans.iter().filter_map(|span| span.split_once(' ')) {
        shown.entry(path).or_default().insert(method);
    }
    assert!(shown.len() > 15, "{shown:?}");
    let server = Setup::new().app("a.test", "respond = {}").start();
    for (path, methods) in shown {
        let path = path.replace("{host}", "a.test").replace("{id}", "stop");
        let answer = server.admin().call("PATCH", &path, "");
        let error = answer.error();
        let allowed = error.strip_prefix("this path takes ").expect(&error);
        assert_eq!(methods, allowed.split(", ").collect(), "{path}");
    }
}

/// The code of these folders as one text.
fn sources(folders: &[&str]) -> String {
    let mut folders: Vec<_> = folders.iter().map(|folder| Path::new(ROOT).join(folder)).collect();
    let mut text = String::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let file = fs::read_to_string(&path).expect("UTF-8");
                // Tests stand at the end.
                text += file.split("\n#[cfg(test)]\nmod tests {").next().expect("the code");
            }
        }
    }
    text
}

fn is_name(text: &str) -> bool {
    text.contains('_') && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

/// All string literals that could be names.
fn literals(code: &str) -> BTreeSet<&str> {
    code.split('"').filter(|literal| is_name(literal)).collect()
}

#[test]
fn the_architecture_names_types_and_folders_of_the_code() {
    let page = Page::read("docs/architecture.md");
    let code = sources(&["src"]);
    let names: BTreeSet<&str> = code.split(|c: char| !c.is_alphanumeric()).collect();
    let drawn = page.blocks().into_iter().map(|block| block.text);
    let spans = code_spans(&page.prose()).into_iter().chain(drawn).collect::<Vec<_>>().join("\n");
    // Names of types have a capital within: `AppId`.
    let is_type = |word: &&str| {
        let mut chars = word.chars();
        let has_capital = chars.next().is_some_and(|c| c.is_ascii_uppercase());
        has_capital && chars.any(|c| c.is_ascii_uppercase()) && word.contains(char::is_lowercase)
    };
    let shown: BTreeSet<&str> =
        spans.split(|c: char| !c.is_alphanumeric()).filter(is_type).collect();
    assert!(shown.len() > 20, "{shown:?}");
    let unknown: Vec<_> = shown.difference(&names).collect();
    assert!(unknown.is_empty(), "not in the code: {unknown:?}");
    let paths = spans.split(|c: char| !c.is_alphanumeric() && !"/_.".contains(c));
    for path in paths.filter(|path| path.starts_with("src/") || path.starts_with("tests/")) {
        assert!(Path::new(ROOT).join(path).exists(), "{path}");
    }
}

#[test]
fn the_documented_metrics_are_those_of_the_code() {
    let page = Page::read("docs/logs-and-metrics.md");
    let cells = page.first_cells();
    let names = cells.iter().map(|span| span.split('{').next().expect("a name"));
    let is_metric = |name: &&str| name.starts_with("tidegate_") || name.starts_with("process_");
    let shown: BTreeSet<&str> = names.filter(is_metric).collect();
    let code = sources(&["src/metrics"]);
    let known: BTreeSet<&str> = literals(&code).into_iter().filter(|n| is_metric(n)).collect();
    assert_eq!(shown, known);
}

#[test]
fn the_documented_events_are_those_of_the_code() {
    let page = Page::read("docs/logs-and-metrics.md");
    let (_, section) = page.text.split_once("\n### Follow one drain\n").expect("a section");
    let (section, _) = section.split_once("\n## ").expect("its end");
    let spans = code_spans(&section.replace("```", ""));
    let shown: BTreeSet<&str> = spans.iter().map(String::as_str).filter(|n| is_name(n)).collect();
    let code = sources(&["src"]);
    let known = literals(&code);
    // Some event names are chosen by a value; those in a macro can be found in the code.
    let macros = ["event!(", "event_to!(", "notice!("];
    let logged = macros.iter().flat_map(|name| code.split(name).skip(1)).filter_map(|rest| {
        let (before, behind) = rest.split_once('"')?;
        let is_near = !before.contains(')') && before.split(',').count() <= 4;
        let name = behind.split_once('"')?.0;
        (is_near && is_name(name)).then_some(name)
    });
    let missing: Vec<_> = logged.filter(|name| !shown.contains(name)).collect();
    assert!(missing.is_empty(), "not documented: {missing:?}");
    let fields =
        ["active_connections", "timeout_ms", "drain_timeout_ms", "remaining_ms", "elapsed_ms"];
    let made_up: Vec<_> =
        shown.iter().filter(|name| !known.contains(*name) && !fields.contains(name)).collect();
    assert!(made_up.is_empty(), "not in the code: {made_up:?}");
}
