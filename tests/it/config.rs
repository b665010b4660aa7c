//! The config in operation: truncated, empty, in a dry run, and checked.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::support::{
    self, BINARY, PATIENCE, Server, Setup, Signal, free_port, get_and_close, run, wait_until,
};

/// A typical config with all kinds of tables, on this address.
fn real(listen: &str) -> String {
    format!(
        r#"# What this machine serves.
[server]
listen = [
    "{listen}",     # behind the balancer
]
threads = 2
drain_timeout = "5s"

[limits]
body_bytes = "2MiB"

[log]
level = "debug"

[apps."shop.test"]
aliases = ["www.shop.test", "*.shop.test"]
drain_timeout = "10s"
[apps."shop.test".respond]
status = 200
body = """
open
"""

[apps."old.test"]
redirect = {{ to = "https://shop.test", status = 301 }}

[apps."api.test".proxy]
upstreams = [
    "http://127.0.0.1:9",
    {{ url = "http://127.0.0.1:10", weight = 2 }},
]
[apps."api.test".proxy.health]
path = "/up"
"#
    )
}

fn hosts(server: &Server) -> BTreeSet<String> {
    let rows = server.admin().get("/apps");
    let serving = rows["apps"].as_array().expect("rows").iter();
    let serving = serving.filter(|row| row["state"] == "serving");
    serving.map(|row| row["host"].as_str().expect("a host").to_owned()).collect()
}

fn strings(list: &Value) -> BTreeSet<String> {
    list.as_array().expect("a list").iter().map(|item| item.as_str().unwrap().to_owned()).collect()
}

fn status_of(server: &Server, host: &str) -> u16 {
    server.connect().exchange(get_and_close(host, "/")).status
}

/// A server with the config above.
fn start_real() -> (Server, String) {
    let listen = free_port().to_string();
    let server = Setup::new().listen(&[&listen]).named_app("first.test").start();
    let text = real(&listen);
    server.rewrite(&text);
    server.admin().post("/reload?allow_empty=true");
    (server, text)
}

#[test]
fn a_config_cut_off_at_any_byte_leaves_an_app_and_an_address_and_says_what_it_removed() {
    let (server, text) = start_real();
    let all = hosts(&server);
    assert_eq!(all.len(), 3, "{all:?}");
    let (mut refused, mut taken) = (0, 0);
    for length in 0..text.len() {
        server.rewrite(&text[..length]);
        let answer = server.admin().call("POST", "/reload", "");
        let (left, done) = (hosts(&server), answer.json());
        let status = server.admin().get("/status");
        let place = format!("cut at {length}: {answer:?}\n{}", &text[..length]);
        assert_eq!(status["listen"], json!([server.address().to_string()]), "{place}");
        if answer.status == 200 {
            taken += 1;
            assert!(!left.is_empty(), "{place}");
            let removed: BTreeSet<String> = all.difference(&left).cloned().collect();
            assert_eq!(strings(&done["removed"]), removed, "{place}");
            server.rewrite(&text);
            server.admin().post("/reload");
        } else {
            refused += 1;
            assert_eq!(answer.status, 422, "{place}");
            assert!(done["problems"][0]["message"].is_string(), "{place}");
            assert_eq!(left, all, "{place}");
        }
    }
    assert_eq!(status_of(&server, "shop.test"), 200);
    assert!(refused > 300 && taken > 10, "{refused} refused, {taken} taken");
}

#[test]
fn an_emptied_config_is_refused_by_every_way_to_reload_unless_that_is_allowed() {
    let (server, text) = start_real();
    let path = server.dir().join("config.toml");
    let all = hosts(&server);
    for empty in ["", "\n", "# later\n", "[server]\nthreads = 2\n", "[apps]\n"] {
        fs::write(&path, empty).expect("config.toml");
        let answer = server.admin().call("POST", "/reload", "");
        assert_eq!(answer.status, 422, "{empty:?}: {answer:?}");
        let message = answer.json()["problems"][0]["message"].clone();
        let message = message.as_str().expect("a message");
        assert!(message.starts_with("every app would be removed: api.test, "), "{message}");
        assert!(message.contains("every address would be closed: 127.0.0.1:"), "{message}");
        assert_eq!(hosts(&server), all, "{empty:?}");
    }
    let failed = || server.events().iter().filter(|e| e.name == "config_reload_failed").count();
    let before = failed();
    server.signal(Signal::HUP);
    assert!(wait_until(PATIENCE, || failed() > before), "no config_reload_failed");
    let event = server.events().into_iter().rev().find(|e| e.name == "config_reload_failed");
    let error = event.and_then(|event| event.field("error").map(str::to_owned));
    assert!(error.as_ref().is_some_and(|e| e.contains("every app would be removed")), "{error:?}");
    assert_eq!((hosts(&server), status_of(&server, "shop.test")), (all, 200));

    let admin = format!("unix:{}", server.admin().path().display());
    let reload = |option: &[&str]| run(&[&["reload", "--admin", &admin], option].concat());
    let (code, printed) = reload(&[]);
    assert_eq!(code, Some(2), "{printed}");
    assert!(printed.contains("tidegate reload --allow-empty"), "{printed}");
    let server_alone = text.split("[limits]").next().expect("[server]");
    fs::write(&path, server_alone).expect("config.toml");
    let (code, printed) = reload(&["--allow-empty"]);
    assert_eq!(code, Some(0), "{printed}");
    assert!(printed.contains("0 added, 0 changed, 3 removed"), "{printed}");
    assert!(wait_until(PATIENCE, || hosts(&server).is_empty()), "{:?}", hosts(&server));
    // Nothing is served, so nothing can go.
    assert_eq!(reload(&[]).0, Some(0));
}

#[test]
fn a_reload_that_would_close_every_address_is_refused_and_one_that_widens_it_is_not() {
    let (first, second) = (free_port(), free_port());
    let setup = || Setup::new().named_app("a.test");
    let server = setup().listen(&[&first.to_string()]).start();
    server.rewrite(&setup().listen(&[&second.to_string()]).text());
    let answer = server.admin().call("POST", "/reload", "");
    assert_eq!(answer.status, 422, "{answer:?}");
    assert!(answer.text.contains(&format!("every address would be closed: {first}")), "{answer:?}");
    assert_eq!(status_of(&server, "a.test"), 200);
    server.rewrite(&setup().listen(&[&format!("0.0.0.0:{}", first.port())]).text());
    server.admin().post("/reload");
    assert_eq!(status_of(&server, "a.test"), 200);
}

#[test]
fn a_server_starts_without_an_app_only_if_that_is_allowed() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.toml");
    let path = path.to_str().expect("text");
    for empty in ["", "[server]\nlisten = [\"127.0.0.1:0\"]\n"] {
        fs::write(path, empty).expect("config.toml");
        let (code, printed) = run(&["serve", "--config", path]);
        assert_eq!(code, Some(2), "{printed}");
        for words in ["has no app", "tidegate init", "--files", "--allow-empty"] {
            assert!(printed.contains(words), "{words}: {printed}");
        }
    }
    // The tests' servers are started with it.
    let server = Setup::new().start();
    server.admin().put("/apps/a.test", &json!({ "respond": { "body": "added" } }));
    assert_eq!(status_of(&server, "a.test"), 200);
}

#[test]
fn an_upgrade_whose_config_lost_everything_fails_and_the_old_process_goes_on() {
    Server::adopt_orphans();
    let listen = free_port().to_string();
    let mut server = Setup::new().listen(&[&listen]).named_app("a.test").start();
    let pid = server.pid();
    let other = Setup::new().listen(&[&free_port().to_string()]).named_app("a.test").text();
    let another = Setup::new().listen(&[&listen]).named_app("b.test").text();
    for (text, words) in [
        (String::new(), "every app would be removed: a.test"),
        (other, "every address would be closed"),
        (another.clone(), "every app would be removed: a.test"),
    ] {
        server.rewrite(&text);
        let answer = server.admin().call("POST", "/upgrade", "");
        assert!(answer.status == 500 && answer.error().contains(words), "{words}: {answer:?}");
        assert_eq!((server.processes(), status_of(&server, "a.test")), (vec![pid], 200));
    }
    server.rewrite(&another);
    let done = server.admin().post("/upgrade?allow_empty=true");
    let new = done["pid"].as_i64().and_then(|pid| support::Pid::from_raw(pid as i32));
    server.follow(new.expect("a process"));
    assert_eq!((status_of(&server, "a.test"), status_of(&server, "b.test")), (404, 200));
}

#[test]
fn a_dry_run_says_what_a_reload_would_do_and_changes_nothing() {
    let (server, text) = start_real();
    let (free, taken) = (free_port().to_string(), std::net::TcpListener::bind("127.0.0.1:0"));
    let taken = taken.expect("a port");
    let (all, rows) = (hosts(&server), server.admin().get("/apps"));
    let text = text
        .replace("open", "closed")
        .replace("[apps.\"old.test\"]", "[apps.\"new.test\"]")
        .replace("threads = 2", "threads = 3")
        .replace("[limits]", "[limits]\nheaders = 20")
        .replace("    # behind the balancer", &format!(" \"{free}\","))
        + "[apps.\"site.test\"]\nfiles = { root = \"missing\" }\n";
    server.rewrite(&text);
    let events = server.events().len();
    let dry = server.admin().post("/reload?dry_run=true");
    assert_eq!(dry["dry_run"], true);
    assert_eq!(dry["added"], json!(["new.test"]));
    assert_eq!(dry["changed"], json!(["shop.test"]));
    assert_eq!(dry["removed"], json!(["old.test"]));
    assert_eq!(dry["unchanged"], 1);
    assert_eq!(dry["failed"][0]["host"], "site.test");
    assert_eq!(dry["drains"], json!([]));
    assert_eq!(dry["listeners"]["added"], json!([free]));
    assert_eq!(dry["settings"], json!(["server.listen", "limits.headers"]));
    assert_eq!(dry["needs_restart"], json!(["server.threads"]));
    assert_eq!(hosts(&server), all);
    let now = server.admin().get("/apps");
    let ids = |rows: &Value| {
        rows["apps"].as_array().unwrap().iter().map(|r| r["id"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(ids(&now), ids(&rows), "no life has begun");
    assert_eq!(server.events().len(), events, "no event");
    assert!(support::Client::try_connect(free.parse().unwrap(), PATIENCE).is_err());
    assert!(server.admin().get("/status")["last_reload"]["ok"] == true);

    // The reload does what the dry run said.
    let mut done = server.admin().post("/reload");
    let mut dry = dry;
    for answer in [&mut dry, &mut done] {
        let answer = answer.as_object_mut().expect("an object");
        for key in ["dry_run", "drains"] {
            answer.remove(key);
        }
    }
    assert_eq!(dry, done);

    let taken = taken.local_addr().expect("an address").to_string();
    server.rewrite(&text.replace(&free, &taken));
    let admin = format!("unix:{}", server.admin().path().display());
    let (code, printed) = run(&["reload", "--dry-run", "--admin", &admin]);
    assert_eq!(code, Some(1), "{printed}");
    assert!(printed.contains("a reload would do this: 0 added, 0 changed"), "{printed}");
    assert!(printed.contains(&format!("failed: {taken}: ")), "{printed}");

    server.rewrite("");
    assert_eq!(server.admin().call("POST", "/reload?dry_run=true", "").status, 422);
    server.rewrite("[servr]\n");
    assert_eq!(server.admin().call("POST", "/reload?dry_run=true", "").status, 422);
    assert_eq!(server.admin().call("POST", "/reload?dry_run=maybe", "").status, 400);
    assert_eq!(status_of(&server, "shop.test"), 200);
}

/// Runs `check` on this text in a folder with a few files. Returns the exit code and all output, in
/// which `DIR` replaces the folder.
fn check(text: &str, options: &[&str]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.toml");
    fs::create_dir_all(folder.path().join("site")).expect("a folder");
    fs::write(folder.path().join("site/index.html"), "").expect("a file");
    fs::write(&path, text).expect("config.toml");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("a mode");
    let (code, printed) = run(&[&["check", path.to_str().expect("text")], options].concat());
    let shown = printed.replace(folder.path().to_str().expect("text"), "DIR");
    (code, shown)
}

#[test]
fn check_warns_of_what_will_not_work_with_its_place_and_fails_only_if_strict() {
    let home = std::env::var("HOME").unwrap_or_else(|_| "/home/NAME".to_owned());
    let files = |root: &str| format!("[apps.a]\nfiles = {{ root = \"{root}\" }}\n");
    let proxy = |url: &str| format!("[apps.a]\nproxy = {{ upstreams = [\"{url}\"] }}\n");
    let log = |lines: &str| format!("[log]\n{lines}\n[apps.a]\nrespond = {{}}\n");
    let admin = |line: &str| format!("[admin]\n{line}\n[apps.a]\nrespond = {{}}\n");
    for (text, place, words) in [
        (files("gone"), "2:18", "DIR/gone: no such directory; requests for a would get 503"),
        (files("config.toml"), "2:18", "DIR/config.toml: not a directory"),
        (files("~/site"), "2:18", &*format!("only a shell expands `~`; write \"{home}/site\"")),
        (
            "[apps.a.files]\nroot = \"site\"\nnot_found = \"404.html\"\n".to_owned(),
            "3:13",
            "there is no file 404.html below the root",
        ),
        (log("path = \"logs/e.log\""), "2:8", "there is no folder DIR/logs"),
        (log("path = \"site\""), "2:8", "DIR/site is a directory"),
        (log("path = \"config.toml/x\""), "2:8", "config.toml"),
        (log("access = \"json\"\naccess_path = \"l/a\""), "3:15", "there is no folder DIR/l"),
        (log("access_path = \"a.log\""), "2:15", "nothing is written to this log"),
        (admin("listen = \"unix:run/a.sock\""), "2:10", "there is no folder DIR/run"),
        (admin("listen = \"unix:config.toml\""), "2:10", "DIR/config.toml is not a socket"),
        (
            admin("listen = \"127.0.0.1:9901\"\ntoken = \"0123456789abcdef\""),
            "3:9",
            "every user of this machine can read the token",
        ),
        (proxy("unix:app.sock"), "2:24", "there is no socket DIR/app.sock"),
        (proxy("unix:config.toml"), "2:24", "DIR/config.toml is not a socket"),
        (proxy("http://no-such-name.invalid"), "2:24", "no-such-name.invalid has no address"),
        (proxy("http://127.0.0.1:8080"), "2:24", "127.0.0.1:8080 is this server itself"),
        (
            "server.listen = [\"0.0.0.0:8081\"]\n".to_owned() + &proxy("http://localhost:8081"),
            "3:24",
            "localhost:8081 is this server itself",
        ),
        (
            "server.listen = [\"192.0.2.1:80\"]\n[apps.a]\nrespond = {}\n".to_owned(),
            "1:18",
            "this machine does not have the address 192.0.2.1",
        ),
        ("[server]\n".to_owned(), "1:1", "there is no app"),
        (
            "server.listen = [\"127.0.0.1:80\"]\n[apps.\"b.test\"]\naliases = [\"c.test\"]\n\
             redirect.to = \"http://C.test/x\"\n"
                .to_owned(),
            "4:15",
            "c.test is this app itself: clients would be redirected in a loop",
        ),
    ] {
        let (code, printed) = check(&text, &[]);
        assert_eq!(code, Some(0), "{text}\n{printed}");
        assert!(printed.contains("\nwarning: "), "{text}\n{printed}");
        assert!(printed.contains(&format!("config.toml:{place}\n")), "{place}: {printed}");
        assert!(printed.contains(words), "{words}: {printed}");
        assert!(printed.contains(" 1 warning\n") && printed.contains('^'), "{printed}");
        let (code, strict) = check(&text, &["--strict"]);
        assert_eq!((code, strict), (Some(2), printed));
    }
}

#[test]
fn check_is_silent_about_what_works() {
    let site = "[apps.site]\nfiles = { root = \"site\" }\n";
    let proxy =
        "[apps.api]\nproxy = { upstreams = [\"http://localhost:9\", \"http://[::1]:9\"] }\n";
    // Another server answers there: https, and port 80.
    let redirects = "[apps.a]\nredirect.to = \"https://a\"\n[apps.b]\nredirect.to = \"http://b\"\n";
    let log = "[log]\npath = \"e.log\"\naccess = \"json\"\naccess_path = \"/dev/null\"\n";
    let (code, printed) = check(&format!("{log}{site}{proxy}{redirects}"), &["--strict"]);
    assert_eq!((code, &*printed), (Some(0), "DIR/config.toml: ok, 4 apps, 1 address\n"));
}

#[test]
fn check_takes_a_file_or_standard_input_and_serve_says_why_it_does_not() {
    let input = |text: &str, arguments: &[&str]| {
        let mut command = Command::new(BINARY);
        command.args(arguments).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let _ = child.stdin.take().expect("a pipe").write_all(text.as_bytes());
        let output = child.wait_with_output().expect("it ends");
        let printed = String::from_utf8([output.stdout, output.stderr].concat()).expect("text");
        (output.status.code(), printed)
    };
    let good = "[apps.a]\nrespond = {}\n";
    for arguments in [&["check", "-"][..], &["check", "--config", "-"]] {
        let ok = "(standard input): ok, 1 app, 1 address\n";
        assert_eq!(input(good, arguments), (Some(0), ok.to_owned()));
        let (code, printed) = input("[servr]\n", arguments);
        assert!(code == Some(2) && printed.contains("(standard input):1:2"), "{printed}");
    }
    let (code, printed) = input(good, &["serve", "--config", "-"]);
    assert!(code == Some(2) && printed.contains("`tidegate check -`"), "{printed}");
    let (code, printed) = run(&["check", "a.toml", "--config", "b.toml"]);
    assert!(code == Some(2) && printed.contains("cannot be used with"), "{printed}");
}

#[test]
fn an_app_that_can_answer_nothing_is_shown_down_with_a_note() {
    let dead = free_port();
    let proxy = |path: &str| {
        format!(
            "proxy.upstreams = [\"http://{dead}\"]\nproxy.health = {{ path = \"{path}\", \
             interval = \"100ms\", fall = 1 }}"
        )
    };
    let setup = Setup::new().named_app("a.test").app("down.test", &proxy("/up"));
    let server = setup.app("site.test", "files = { root = \"gone\" }").start();
    let problem = |host: &str| server.admin().get(&format!("/apps/{host}"))["problem"].clone();
    let is_down = || problem("down.test").is_string();
    assert!(wait_until(PATIENCE, is_down), "{}", problem("down.test"));
    let why = problem("down.test").as_str().expect("text").to_owned();
    let expected = format!("no upstream is up: http://{dead}: connect: Connection refused");
    assert!(why.starts_with(&expected), "{why}");
    assert_eq!(problem("a.test"), Value::Null);
    let admin = format!("unix:{}", server.admin().path().display());
    let (code, printed) = run(&["apps", "--admin", &admin]);
    assert_eq!(code, Some(0), "{printed}");
    let line = |host: &str| printed.lines().find(|line| line.starts_with(host)).expect(host);
    assert!(
        line("down.test").contains("  down  ") && line("down.test").contains(&why),
        "{printed}"
    );
    assert!(line("site.test").contains("gone: no such directory"), "{printed}");
    assert!(line("site.test").contains("  down  "), "{printed}");
    assert!(line("a.test").contains("  serving  "), "{printed}");
}
