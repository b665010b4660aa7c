//! The command line from outside: the real binary against a server that answers from a script.

use std::{
    fs,
    io::{self, Write},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::Command,
};

use serde_json::{Value, json};

use crate::cli_support::{Fake, Reply, Seen, Terminal, run, tidegate, tidegate_at};

/// The row of a life that serves.
fn row(host: &str, id: u64) -> Value {
    json!({
        "host": host, "aliases": [], "id": id, "kind": "respond", "origin": "config",
        "state": "serving", "active_connections": 0, "requests_total": 12, "refused": 0, "cut": 0,
    })
}

/// Such a row with further members.
fn row_with(host: &str, id: u64, further: &Value) -> Value {
    let mut row = row(host, id);
    for (key, value) in further.as_object().expect("an object") {
        row[key] = value.clone();
    }
    row
}

/// A drain under way.
fn draining(host: &str, id: u64) -> Value {
    json!({
        "id": id, "host": host, "cause": "remove", "state": "draining", "verdict": null,
        "active_connections": 3, "refused": 2, "cut": 0, "elapsed_ms": 120, "remaining_ms": 12_440,
    })
}

/// That drain at its end.
fn ended(drain: &Value, verdict: &str, cut: u64) -> Value {
    let mut drain = drain.clone();
    drain["state"] = json!("ended");
    drain["verdict"] = json!(verdict);
    drain["active_connections"] = json!(0);
    drain["cut"] = json!(cut);
    drain["refused"] = json!(if cut > 0 { 0 } else { 17 });
    drain["elapsed_ms"] = json!(if cut > 0 { 30_010 } else { 1_240 });
    drain["remaining_ms"] = json!(0);
    drain
}

/// The drain of a stop.
fn stopping() -> Value {
    let mut drain = draining("", 0);
    drain["id"] = json!("stop");
    drain["host"] = Value::Null;
    drain["cause"] = json!("stop");
    drain
}

/// The server's status, with a `pid` that no process has.
fn status() -> Value {
    json!({
        "version": "0.1.0", "pid": 2_000_000_000, "state": "serving", "uptime_ms": 7_440_000,
        "config": "/etc/tidegate/config.toml", "listen": ["127.0.0.1:8080", "[::1]:8080"],
        "threads": 4, "apps": 3, "active_connections": 2,
        "connections": { "fresh": 0, "busy": 1, "idle": 5, "lingering": 0 },
        "requests_total": 123, "cut_total": 0, "drains": [draining("shop.example", 7)],
        "last_reload": { "at": "2026-11-23T00:00:00Z", "ok": true, "error": null },
        "log_lines_lost": { "events": 0, "access": 1 },
    })
}

/// A server with one drain, which ends with the last answer of the list.
fn draining_server(mut answers: Vec<Value>) -> Fake {
    answers.reverse();
    Fake::unix(move |seen| {
        if seen.line.ends_with("/connections") {
            let connection = |id: &str, app, age_ms| {
                json!({
                    "id": id, "app": app, "peer": "127.0.0.1:5", "method": "GET",
                    "target": "/export", "age_ms": age_ms, "phase": "sending", "bytes_sent": 9,
                    "tunnel": false,
                })
            };
            let list = [connection("1-1", 6, 99_000), connection("1-2", 7, 41_000)];
            return Reply::Json(200, json!({ "connections": list }));
        }
        let status = if seen.line.starts_with("GET") { 200 } else { 202 };
        Reply::Json(status, answers.pop().expect("no request after the end"))
    })
}

#[test]
fn apps_are_a_table_with_numbers_to_the_right() {
    let leaving = json!({
        "state": "draining", "active_connections": 1234, "refused": 17, "cause": "remove",
        "elapsed_ms": 120, "remaining_ms": 12_440,
    });
    let failed = json!({ "kind": "unavailable", "origin": "admin", "error": "no such folder" });
    let apps =
        [row("a.example", 1), row_with("shop.example", 17, &leaving), row_with("z", 18, &failed)];
    let fake = Fake::always(200, json!({ "apps": apps }));
    let expected = "\
HOST          ID  KIND         ORIGIN  STATE     ACTIVE  REQUESTS  REFUSED  CUT  NOTE
a.example      1  respond      config  serving        0        12        0    0
shop.example  17  respond      config  draining    1234        12       17    0  remove, 12.4 s left
z             18  unavailable  admin   down           0        12        0    0  no such folder
";
    fake.run(&["apps"]).expect_output(0, expected);
    let [seen] = &fake.seen()[..] else { panic!("one request") };
    assert_eq!(seen.line, "GET /apps");
    assert!(seen.fields.contains("host: localhost\r\n"), "{seen:?}");
    assert!(!seen.fields.contains("authorization"), "a unix socket needs no token: {seen:?}");
}

#[test]
fn a_table_fits_the_terminal() {
    let note = json!({ "kind": "unavailable", "error": "no such folder, and a long story of why" });
    let apps = [row("a.example", 1), row_with("shop.example", 17, &note)];
    for (columns, whole) in [(80, false), (200, true)] {
        let fake = Fake::always(200, json!({ "apps": apps }));
        let terminal = Terminal::open();
        terminal.set_columns(columns);
        let mut command = fake.command(&["apps"]);
        command.stdout(terminal.writer()).env("NO_COLOR", "1");
        assert_eq!(run(command).code, Some(0));
        let written = terminal.written();
        let widest = written.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(columns.into()), "{written}");
        assert_eq!(written.contains("a long story of why"), whole, "{written}");
        assert_eq!(written.contains("REFUSED"), whole, "{written}");
    }
}

#[test]
fn the_upstreams_of_an_app_are_a_table() {
    let upstream = |url: &str, state: &str, reason: Value| {
        json!({
            "url": url, "weight": 1, "state": state, "reason": reason, "active": 2, "idle": 13,
            "requests": 400, "failures": 1, "latency_us": 250,
        })
    };
    let out = "drained by an operator";
    let rows = [
        upstream("http://a:1", "up", Value::Null),
        upstream("unix:/run/b", "draining", json!(out)),
    ];
    let fake = Fake::always(200, json!({ "upstreams": rows }));
    let expected = "\
UPSTREAM     WEIGHT  STATE     ACTIVE  IDLE  REQUESTS  FAILURES  LATENCY  NOTE
http://a:1        1  up             2    13       400         1   250 µs
unix:/run/b       1  draining       2    13       400         1   250 µs  drained by an operator
";
    fake.run(&["resume", "a.test", "--upstream", "http://a:1"]).expect_output(0, expected);
    assert_eq!(fake.lines(), ["POST /apps/a.test/upstreams/resume?url=http%3A%2F%2Fa%3A1"]);
}

#[test]
fn status_and_app_are_names_with_values() {
    let fake = Fake::always(200, status());
    let expected = "\
state           serving
version         0.1.0
pid             2000000000
uptime          2 h 4 min
config          /etc/tidegate/config.toml
listen          127.0.0.1:8080, [::1]:8080
threads         4
apps            3
active          2
connections     0 fresh, 1 busy, 5 idle, 0 lingering
requests        123
cut             0
last reload     2026-11-23T00:00:00Z ok
log lines lost  0 events, 1 access

DRAIN  HOST          CAUSE   ACTIVE  REFUSED   SINCE    LEFT
7      shop.example  remove       3        2  120 ms  12.4 s
";
    fake.run(&["status"]).expect_output(0, expected);

    let mut app = row_with("*.a", 9, &json!({ "aliases": ["b", "c"] }));
    app["lives"] = json!([row("*.a", 9), row("*.a", 3)]);
    let fake = Fake::always(200, app);
    let ran = fake.run(&["app", "*.a"]);
    assert!(ran.out.starts_with("host      *.a\naliases   b, c\nid        9\n"), "{ran:?}");
    assert!(ran.out.contains("\n\nHOST  ID  KIND"), "{ran:?}");
    assert_eq!(fake.lines(), ["GET /apps/%2A.a"]);
}

#[test]
fn connections_are_a_table_and_can_be_cut() {
    let fake = draining_server(vec![json!({ "cut": 1 })]);
    let expected = "\
CONNECTION  APP  PEER              AGE  SENT  PHASE    REQUEST
1-1           6  127.0.0.1:5  1 min 39 s     9  sending  GET /export
1-2           7  127.0.0.1:5      41 s     9  sending  GET /export
";
    let ran = fake.run(&["app", "a", "--connections"]);
    let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(squeeze(&ran.out), squeeze(expected));
    fake.run(&["cut", "1-2"]).expect_output(0, "1-2: cut 1\n");
    assert_eq!(fake.lines(), ["GET /apps/a/connections", "DELETE /connections/1-2"]);
}

#[test]
fn json_is_printed_as_the_server_sent_it() {
    let answer = json!({ "apps": [], "later": { "members": [1, "zw\u{f6}lf\u{9b}2J"] } });
    let fake = Fake::always(200, answer.clone());
    fake.run(&["apps", "--json"]).expect_output(0, &format!("{answer}\n"));

    // An error is printed as well, and its text goes to standard error.
    let error = json!({ "error": "no app has the host `x`" });
    let ran = Fake::always(404, error.clone()).run(&["app", "x", "--json"]);
    assert_eq!((ran.code, ran.out), (Some(1), format!("{error}\n")));
    assert_eq!(ran.err, "tidegate: no app has the host `x`\n");

    // A wait prints its last answer.
    let drain = draining("shop.example", 7);
    let end = ended(&drain, "drained", 0);
    let fake = draining_server(vec![drain.clone(), drain, end.clone()]);
    fake.run(&["remove", "shop.example", "--json"]).expect_output(0, &format!("{end}\n"));
}

#[test]
fn the_drain_of_an_upstream_is_waited_for_as_an_apps_is() {
    let mut drain = draining("shop.example", 7);
    drain["id"] = json!("u7");
    drain["upstream"] = json!("http://a:1");
    let fake = draining_server(vec![drain.clone(), ended(&drain, "cut", 3)]);
    let command = ["drain", "shop.example", "--upstream", "http://a:1", "--timeout", "5s"];
    fake.run(&command).expect_output(3, "shop.example http://a:1: cut 3 after 30.0 s\n");
    let path = "/apps/shop.example/upstreams/drain?url=http%3A%2F%2Fa%3A1&timeout=5s";
    assert_eq!(fake.lines(), [&format!("POST {path}"), "GET /drains/u7?wait=500ms"]);

    let fake = draining_server(vec![drain]);
    let ran = fake.run(&["drain", "shop.example", "--upstream", "http://a:1", "--no-wait"]);
    ran.expect_output(0, "shop.example http://a:1: draining, 3 active, 12.4 s left, 2 refused\n");
}

#[test]
fn a_removal_waits_until_its_drain_has_ended() {
    let drain = draining("shop.example", 7);
    let end = ended(&drain, "drained", 0);
    let fake = draining_server(vec![drain.clone(), drain.clone(), drain.clone(), end.clone()]);
    let ran = fake.run(&["remove", "shop.example", "--timeout", "1m30s"]);
    ran.expect_output(0, "shop.example: drained in 1.2 s, 17 refused\n");
    let wait = "GET /drains/7?wait=500ms";
    assert_eq!(fake.lines(), ["DELETE /apps/shop.example?timeout=1m30s", wait, wait, wait]);

    let fake = draining_server(vec![drain.clone(), ended(&drain, "cut", 3)]);
    fake.run(&["drain", "shop.example"]).expect_output(3, "shop.example: cut 3 after 30.0 s\n");
    assert_eq!(fake.lines(), ["POST /apps/shop.example/drain", wait]);

    let fake = draining_server(vec![drain.clone(), ended(&drain, "cancelled", 0)]);
    let ran = fake.run(&["drain", "shop.example"]);
    ran.expect_output(1, "shop.example: cancelled, 17 refused\n");

    let fake = draining_server(vec![drain]);
    let ran = fake.run(&["remove", "shop.example", "--no-wait"]);
    ran.expect_output(0, "shop.example: draining, 3 active, 12.4 s left, 2 refused\n");

    let fake = draining_server(vec![end]);
    let ran = fake.run(&["remove", "shop.example"]);
    ran.expect_output(0, "shop.example: drained in 1.2 s, 17 refused\n");
}

#[test]
fn an_interrupted_wait_says_that_the_drain_goes_on_and_how_to_cancel_it() {
    for (cause, command, hint) in [
        ("drain", "drain", "`tidegate resume shop.example` cancels it"),
        ("remove", "remove", "`tidegate status` shows its progress"),
    ] {
        let mut drain = draining("shop.example", 7);
        drain["cause"] = json!(cause);
        let (sender, polled) = std::sync::mpsc::channel();
        let fake = Fake::unix(move |seen| {
            // The drain never ends.
            let _ = sender.send(seen.line.clone());
            Reply::Json(if seen.line.starts_with("GET") { 200 } else { 202 }, drain.clone())
        });
        let child = fake.command(&[command, "shop.example"]).spawn().expect("it starts");
        let is_poll = |line: String| line.starts_with("GET /drains/");
        assert!(polled.iter().any(is_poll), "it does not wait");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("SIGINT");
        let output = child.wait_with_output().expect("its output");
        let said = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(1), "{said}");
        let goes_on = "the drain continues: shop.example: draining, 3 active, 12.4 s left";
        assert!(said.contains(goes_on) && said.contains(hint), "{said}");
    }
}

#[test]
fn a_terminal_sees_how_far_the_drain_is() {
    let drain = draining("shop.example", 7);
    let end = ended(&drain, "drained", 0);
    for no_color in [false, true] {
        let fake = draining_server(vec![drain.clone(), drain.clone(), end.clone()]);
        let terminal = Terminal::open();
        let mut command = fake.command(&["remove", "shop.example"]);
        command.stderr(terminal.writer());
        if no_color {
            command.env("NO_COLOR", "1");
        }
        run(command).expect_output(0, "shop.example: drained in 1.2 s, 17 refused\n");
        let line = "draining shop.example: 3 active, 12.4 s left, oldest GET /export 41 s";
        let expected = format!("\r{line}\u{1b}[K\r{line}\u{1b}[K\r\u{1b}[K");
        assert_eq!(terminal.written(), expected);
    }
}

#[test]
fn the_line_on_a_terminal_is_never_wrapped() {
    let fake = stopping_server(Some(ended(&stopping(), "drained", 0)));
    let terminal = Terminal::open();
    terminal.set_columns(30);
    let mut command = fake.command(&["stop"]);
    command.stderr(terminal.writer());
    assert_eq!(run(command).code, Some(0));
    let expected = "\rdraining server: 3 active, 12\u{1b}[K\r\u{1b}[K";
    assert_eq!(terminal.written(), expected);
}

#[test]
fn colour_is_for_terminals_that_want_it() {
    for (no_color, expected) in [(false, true), (true, false)] {
        let fake = Fake::always(200, status());
        let terminal = Terminal::open();
        let mut command = fake.command(&["status"]);
        command.stdout(terminal.writer());
        if no_color {
            command.env("NO_COLOR", "1");
        }
        assert_eq!(run(command).code, Some(0));
        assert_eq!(terminal.written().contains("\u{1b}[32mserving\u{1b}[0m"), expected);
    }
}

#[test]
fn what_peers_sent_cannot_control_a_terminal() {
    let fake = Fake::always(200, json!({ "apps": [row("a\u{1b}[2J\nb\u{9b}", 1)] }));
    let ran = fake.run(&["apps"]);
    assert!(ran.out.contains(r"a\u{1b}[2J\nb\u{9b}"), "{ran:?}");
    let hidden = "a\u{202e}b\u{2066}c\u{200b}d\u{200f}e\u{feff}";
    let ran = Fake::always(200, json!({ "apps": [row(hidden, 1)] })).run(&["apps"]);
    let shown = r"a\u{202e}b\u{2066}c\u{200b}d\u{200f}e\u{feff}";
    assert!(ran.out.contains(shown), "{ran:?}");
    // Neither can the arguments of a command, right or wrong.
    let fake = Fake::unix(|_| Reply::Json(202, ended(&draining("x", 7), "drained", 0)));
    for arguments in
        [&["remove", hidden][..], &["cut", hidden], &[hidden], &["remove", "x", hidden]]
    {
        let ran = fake.run(arguments);
        let printed = ran.out + &ran.err;
        assert!(!printed.contains(|c: char| hidden.contains(c) && !c.is_ascii()), "{printed:?}");
    }
    let ran = Fake::always(404, json!({ "error": "x\u{1b}[2J" })).run(&["apps"]);
    ran.expect_failure(1, &[r"x\u{1b}[2J"]);
}

#[test]
fn an_app_is_put_from_arguments() {
    let put = |arguments: &[&str]| -> (String, Value) {
        let added = json!({ "result": "added", "app": row("x.test", 8) });
        let fake = Fake::always(201, added);
        let ran = fake.run(&[&["add", "x.test"], arguments].concat());
        ran.expect_output(0, "x.test: added, respond with id 8\n");
        let Seen { line, fields, content } = fake.seen().remove(0);
        assert_eq!(line, "PUT /apps/x.test?only=add");
        assert!(fields.contains("content-type: application/json\r\n"), "{fields}");
        let folder = fake.dir().canonicalize().expect("a folder").display().to_string();
        (folder, serde_json::from_str(&content).expect("JSON"))
    };
    let (_, table) = put(&["--respond", "hi"]);
    assert_eq!(table, json!({ "respond": { "body": "hi" } }));
    let all = [
        "--respond=-",
        "--status=503",
        "--content-type=a/b",
        "--delay=1s500ms",
        "--alias=a",
        "--alias=*.b",
        "--drain-timeout=2m",
        "--rate-limit=100/1m",
        "--burst=7",
    ];
    let respond = json!({ "body": "-", "status": 503, "content_type": "a/b", "delay": "1s500ms" });
    let expected = json!({
        "respond": respond,
        "aliases": ["a", "*.b"],
        "drain_timeout": "2m",
        "rate_limit": { "requests": 100, "per": "1m", "burst": 7 },
    });
    assert_eq!(put(&all).1, expected);
    let (_, table) = put(&["--redirect", "https://a", "--status", "301"]);
    assert_eq!(table, json!({ "redirect": { "to": "https://a", "status": 301 } }));
    let (_, table) = put(&["--respond", "hi", "--rate-limit", "5/1s"]);
    let limit = json!({ "requests": 5, "per": "1s" });
    assert_eq!(table, json!({ "respond": { "body": "hi" }, "rate_limit": limit }));
    let (folder, table) = put(&["--files", "site"]);
    assert_eq!(table, json!({ "files": { "root": format!("{folder}/site") } }));
}

#[test]
fn paths_of_the_command_line_are_relative_to_its_own_folder_and_those_of_a_file_to_the_file() {
    let fake = Fake::always(200, json!({ "result": "added", "app": row("x.test", 8) }));
    let folder = fake.dir().canonicalize().expect("a folder").display().to_string();
    let last = || -> Value {
        serde_json::from_str(&fake.seen().pop().expect("a request").content).expect("JSON")
    };
    fs::create_dir(fake.dir().join("etc")).expect("a folder");
    let urls = ["--proxy", "unix:app.sock", "--proxy", "http://a:1", "--proxy", "unix:/b"];
    assert_eq!(fake.run(&[&["add", "x.test"][..], &urls].concat()).code, Some(0));
    let upstreams = json!([format!("unix:{folder}/app.sock"), "http://a:1", "unix:/b"]);
    assert_eq!(last(), json!({ "proxy": { "upstreams": upstreams } }));

    let write = |table: &Value| fs::write(fake.dir().join("etc/a.json"), table.to_string());
    let from = |options: &[&str]| {
        let ran = fake.run(&[&["add", "x.test", "--from", "etc/a.json"], options].concat());
        assert_eq!(ran.code, Some(0), "{ran:?}");
        last()
    };
    write(&json!({ "files": { "root": "pub" } })).expect("a file");
    assert_eq!(from(&[]), json!({ "files": { "root": format!("{folder}/etc/pub") } }));
    let upstreams = json!(["unix:a", { "url": "unix:../b", "weight": 2 }, "http://c", 7]);
    write(&json!({ "proxy": { "upstreams": upstreams } })).expect("a file");
    let upstreams = json!([
        format!("unix:{folder}/etc/a"),
        { "url": format!("unix:{folder}/etc/../b"), "weight": 2 }, "http://c", 7
    ]);
    let expected = json!({ "proxy": { "upstreams": upstreams } });
    assert_eq!(from(&[]), expected);
    assert_eq!(from(&["--alias", "b"])["proxy"], expected["proxy"]);

    // Paths from standard input are relative to the working directory.
    let mut command = fake.command(&["add", "x.test", "--from", "-"]);
    let (reader, mut writer) = io::pipe().expect("a pipe");
    writer.write_all(b"{\"files\":{\"root\":\"pub\"}}").expect("room");
    drop(writer);
    command.stdin(reader);
    assert_eq!(run(command).code, Some(0));
    assert_eq!(last(), json!({ "files": { "root": format!("{folder}/pub") } }));

    // The URL of an upstream is sent as it was given.
    fake.run(&["drain", "x.test", "--upstream", "unix:app.sock", "--no-wait"]);
    let line = fake.lines().pop().expect("a request");
    assert!(line.ends_with("%2Fapp.sock") && line.contains("unix%3A%2F"), "{line}");
}

#[test]
fn an_app_is_put_from_a_file() {
    let answer = json!({ "result": "replaced", "app": row("x.test", 8), "drain": 7 });
    let fake = Fake::always(200, answer);
    let text = "{ \"respond\":\n { \"body\": \"hi\" }, \"aliases\": [\"a\"] }\n";
    fs::write(fake.dir().join("app.json"), text).expect("a file");
    let ran = fake.run(&["replace", "x.test", "--from", "app.json"]);
    ran.expect_output(0, "x.test: replaced, respond with id 8; id 7 drains\n");
    fake.run(&["replace", "x.test", "--from", "app.json", "--alias", "b"]);

    let mut command = fake.command(&["replace", "x.test", "--from", "-"]);
    let (reader, mut writer) = io::pipe().expect("a pipe");
    writer.write_all(text.as_bytes()).expect("room");
    drop(writer);
    command.stdin(reader);
    assert_eq!(run(command).code, Some(0));

    let seen = fake.seen();
    assert_eq!(fake.lines(), ["PUT /apps/x.test?only=replace"; 3]);
    assert_eq!((&seen[0].content, &seen[2].content), (&text.to_owned(), &text.to_owned()));
    let table: Value = serde_json::from_str(&seen[1].content).expect("JSON");
    assert_eq!(table, json!({ "respond": { "body": "hi" }, "aliases": ["b"] }));

    let broken = [
        ("{\n  \"respond\": x }", "line 2 column 14"),
        ("{ \"respond\": {}", "line 1 column 15"),
        ("[]", "must be a JSON object, such as"),
    ];
    for (text, what) in broken {
        fs::write(fake.dir().join("bad.json"), text).expect("a file");
        let ran = fake.run(&["add", "x.test", "--from", "bad.json"]);
        ran.expect_failure(2, &["tidegate: --from bad.json: ", what]);
    }
    let ran = fake.run(&["add", "x.test", "--from", "none.json"]);
    ran.expect_failure(2, &["--from none.json: No such file"]);
    assert_eq!(fake.lines().len(), 3);
}

#[test]
fn a_replacement_can_wait_for_the_old_life() {
    let drain = draining("x.test", 7);
    let answers = [
        json!({ "result": "replaced", "app": row("x.test", 8), "drain": 7 }),
        drain.clone(),
        ended(&drain, "cut", 3),
    ];
    let fake = draining_server(answers.to_vec());
    let ran = fake.run(&["replace", "x.test", "--respond", "hi", "--wait", "--json"]);
    ran.expect_output(3, &format!("{}\n{}\n", answers[0], answers[2]));

    let fake = draining_server(answers.to_vec());
    let ran = fake.run(&["replace", "x.test", "--respond", "hi", "--wait"]);
    let expected = "x.test: replaced, respond with id 8; id 7 drains\nx.test: cut 3 after 30.0 s\n";
    ran.expect_output(3, expected);
    let put = "PUT /apps/x.test?only=replace";
    assert_eq!(fake.lines(), [put, "GET /drains/7", "GET /drains/7?wait=500ms"]);

    let fake = draining_server(vec![json!({ "result": "resumed", "app": row("x.test", 9) })]);
    fake.run(&["resume", "x.test"]).expect_output(0, "x.test: resumed, respond with id 9\n");
    assert_eq!(fake.lines(), ["POST /apps/x.test/resume"]);
}

#[test]
fn a_reload_says_what_changed() {
    let mut reload = json!({
        "added": ["a"], "changed": ["b", "c"], "removed": [], "unchanged": 4, "failed": [],
        "drains": [7, 8], "settings": ["limits.head_timeout"],
        "needs_restart": ["server.threads"],
        "listeners": { "added": ["127.0.0.1:81"], "removed": [], "failed": [] },
    });
    let drains = [ended(&draining("b", 7), "drained", 0), ended(&draining("c", 8), "drained", 0)];
    let fake = draining_server([&[reload.clone()], &drains[..]].concat());
    let expected = "\
reloaded: 1 added, 2 changed, 0 removed, 4 unchanged, 0 failed
  added: a
  changed: b, c
  listening on: 127.0.0.1:81
  set: limits.head_timeout
  needs a restart: server.threads
b: drained in 1.2 s, 17 refused
c: drained in 1.2 s, 17 refused
";
    fake.run(&["reload", "--wait"]).expect_output(0, expected);
    assert_eq!(fake.lines(), ["POST /reload", "GET /drains/7", "GET /drains/8"]);

    reload["failed"] = json!([{ "host": "a", "error": "no such folder" }]);
    reload["listeners"]["failed"] = json!([{ "address": "127.0.0.1:80", "error": "in use" }]);
    reload["certificate_errors"] = json!(["a: a.pem: expired"]);
    reload["log_errors"] = json!(["cannot open log x"]);
    let ran = Fake::always(200, reload).run(&["reload"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let failed = "  failed: a: no such folder\n  failed: 127.0.0.1:80: in use\n  \
                  failed: a: a.pem: expired\n  failed: cannot open log x\n";
    assert!(ran.out.contains(" 4 failed\n") && ran.out.ends_with(failed), "{ran:?}");

    let problems = [
        json!({ "file": "/etc/c.toml", "line": 3, "column": 7, "message": "`x` is no host",
                "help": "write \"y\"" }),
        json!({ "file": "/etc/c.toml", "line": 9, "column": 1, "message": "b", "help": null }),
    ];
    let answer = json!({ "error": "2 problems in the config", "problems": problems });
    let expected = "tidegate: 2 problems in the config\n/etc/c.toml:3:7: `x` is no host \
                    (write \"y\")\n/etc/c.toml:9:1: b\n";
    Fake::always(422, answer).run(&["reload"]).expect_failure(2, &[expected]);
}

/// A server whose stop ends with this verdict.
fn stopping_server(end: Option<Value>) -> Fake {
    Fake::unix(move |seen| match (seen.line.as_str(), &end) {
        ("GET /status", _) => Reply::Json(200, status()),
        ("GET /drains/stop?wait=500ms", Some(end)) => Reply::JsonAndEnd(200, end.clone()),
        ("GET /drains/stop?wait=500ms", None) => Reply::End,
        _ => Reply::Json(202, stopping()),
    })
}

#[test]
fn a_stop_waits_until_the_server_has_ended() {
    let fake = stopping_server(Some(ended(&stopping(), "drained", 0)));
    let ran = fake.run(&["stop", "--timeout", "2m"]);
    let expected = "server: drained in 1.2 s, 17 refused\nserver: ended, pid 2000000000\n";
    ran.expect_output(0, expected);
    let lines =
        ["GET /status", "POST /stop?wait=604800s&timeout=2m", "GET /drains/stop?wait=500ms"];
    assert_eq!(fake.lines(), lines);

    let end = ended(&stopping(), "cut", 3);
    let fake = stopping_server(Some(end.clone()));
    let ran = fake.run(&["stop", "--now", "--json"]);
    ran.expect_output(3, &format!("{end}\n"));
    assert_eq!(fake.lines()[1], "POST /stop?now=true&wait=604800s");

    let fake = stopping_server(None);
    let ran = fake.run(&["stop", "--no-wait"]);
    ran.expect_output(0, "server: draining, 3 active, 12.4 s left, 2 refused\n");
    assert_eq!(fake.lines(), ["POST /stop"]);
}

#[test]
fn a_server_that_ends_between_two_requests_keeps_its_verdict() {
    let fake = Fake::unix(|seen| match seen.line.as_str() {
        "GET /status" => Reply::Json(200, status()),
        // A request that waits for the end gets it as its answer; later requests find no server.
        line if line.contains("wait=604800s") => {
            let mut answer = ended(&stopping(), "cut", 3);
            (answer["pid"], answer["old_pid"]) = (json!(2_000_000_000), json!(1_999_999_999));
            Reply::JsonAndEnd(200, answer)
        }
        _ => Reply::JsonAndEnd(202, stopping()),
    });
    let expected = "server: cut 3 after 30.0 s\n";
    fake.run(&["stop"]).expect_output(3, &format!("{expected}server: ended, pid 2000000000\n"));
    let fake = Fake::unix(|seen| {
        let is_held = seen.line.contains("wait=604800s");
        let mut answer = if is_held { ended(&stopping(), "cut", 3) } else { stopping() };
        (answer["pid"], answer["old_pid"]) = (json!(8), json!(7));
        Reply::JsonAndEnd(200, answer)
    });
    let upgraded = "upgraded: pid 8 serves, pid 7 drains\n";
    fake.run(&["upgrade", "--wait"]).expect_output(3, &format!("{upgraded}{expected}"));
}

#[test]
fn a_server_that_stays_after_its_stop_is_reported() {
    let fake = Fake::unix(|seen| match seen.line.as_str() {
        "GET /status" => {
            let mut status = status();
            status["pid"] = json!(std::process::id());
            Reply::Json(200, status)
        }
        _ => Reply::Json(202, ended(&stopping(), "drained", 0)),
    });
    let ran = fake.run(&["stop"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), "server: drained in 1.2 s, 17 refused\n"));
    assert!(ran.err.contains("has drained, but its process is still there after 10 s"), "{ran:?}");
}

#[test]
fn a_lost_connection_is_an_error_also_after_a_stop() {
    let texts = ["the server (pid 2000000000) has exited without a verdict; its log"];
    stopping_server(None).run(&["stop"]).expect_failure(1, &texts);

    let fake = Fake::unix(|seen| match seen.line.as_str() {
        "DELETE /apps/x" => Reply::Json(202, draining("x", 7)),
        _ => Reply::End,
    });
    let texts = ["the connection to unix:", "was lost before the answer"];
    fake.run(&["remove", "x"]).expect_failure(1, &texts);

    // A request that changes something is sent once.
    let fake = Fake::unix(|_| Reply::Bytes(Vec::new()));
    fake.run(&["remove", "x"]).expect_failure(1, &["was lost before the answer"]);
    assert_eq!(fake.lines(), ["DELETE /apps/x"]);
}

#[test]
fn a_connection_that_was_closed_meanwhile_is_opened_again() {
    let mut polls = 0;
    let fake = Fake::unix(move |seen| {
        polls += usize::from(seen.line.starts_with("GET"));
        match polls {
            0 => Reply::Json(202, draining("x", 7)),
            1 => Reply::Bytes(Vec::new()),
            _ => Reply::Json(200, ended(&draining("x", 7), "drained", 0)),
        }
    });
    fake.run(&["remove", "x"]).expect_output(0, "x: drained in 1.2 s, 17 refused\n");
}

#[test]
fn events_are_printed_as_they_come() {
    let data = json!({ "ts": "2026-11-23T00:00:00.000Z", "level": "INFO", "event": "app_drained",
                       "fields": { "host": "a", "why": "two words", "cut": 0, "none": null } });
    let text = format!(": hello\n\nevent: app_drained\ndata: {data}\n\n: still here\n\n");
    let (first, second) = text.split_at(40);
    let bytes = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n\
         {:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n",
        first.len(),
        second.len()
    );
    let end = "tidegate: the server has ended the stream\n";
    let whole = bytes.clone();
    let fake = Fake::unix(move |_| Reply::Bytes(whole.clone().into_bytes()));
    let ran = fake.run(&["events"]);
    let line = "2026-11-23T00:00:00.000Z INFO app_drained cut=0 host=a none=- why=\"two words\"\n";
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (Some(0), line, end));
    let ran = fake.run(&["events", "--json"]);
    assert_eq!((ran.code, ran.out, ran.err.as_str()), (Some(0), format!("{data}\n"), end));

    let fake = Fake::unix(move |_| Reply::Bytes(bytes.replace("0\r\n\r\n", "").into_bytes()));
    let ran = fake.run(&["events"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), line));
    assert!(ran.err.contains("was lost"), "{ran:?}");
}

#[test]
fn a_closed_standard_output_is_no_failure() {
    let fake = Fake::always(200, json!({ "apps": [row("a", 1)] }));
    for arguments in [&["apps"][..], &["apps", "--json"], &["version"], &["man"]] {
        let (reader, writer) = io::pipe().expect("a pipe");
        drop(reader);
        let mut command = fake.command(arguments);
        command.stdout(writer);
        run(command).expect_output(0, "");
    }
}

#[test]
fn a_missing_server_is_reported_with_its_address() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = |arguments: &[&str]| run(tidegate(folder.path(), arguments));
    let ran = here(&["status", "--admin", "unix:none.sock"]);
    ran.expect_failure(1, &["no server is listening on unix:none.sock; is it running?"]);

    drop(std::os::unix::net::UnixListener::bind(folder.path().join("old.sock")).expect("a socket"));
    let ran = here(&["status", "--admin", "unix:old.sock"]);
    ran.expect_failure(1, &["no server is listening on unix:old.sock; the socket file was left"]);

    fs::write(folder.path().join("file"), "").expect("a file");
    let ran = here(&["status", "--admin", "unix:file"]);
    ran.expect_failure(1, &["unix:file is not a socket; check the path"]);
    let long = format!("unix:{}", "x".repeat(200));
    let ran = here(&["status", "--admin", &long]);
    ran.expect_failure(1, &["path must be shorter"]);

    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address").to_string();
    drop(listener);
    let ran = here(&["stop", "--admin", &address]);
    let text = format!("no server is listening on {address}; is it running?");
    ran.expect_failure(1, &[text.as_str()]);
}

#[test]
fn the_server_is_found_by_flag_then_environment_then_config() {
    let fake = Fake::always(200, json!({ "apps": [] }));
    let head = "HOST  ID  KIND  ORIGIN  STATE  ACTIVE  REQUESTS  REFUSED  CUT  NOTE\n";
    let config = |text: &str| fs::write(fake.dir().join("config.toml"), text).expect("a file");
    let with = |variable: &str, arguments: &[&str]| {
        let mut command = tidegate(fake.dir(), arguments);
        command.env("TIDEGATE_ADMIN", variable);
        run(command)
    };
    // The config's default socket is beside it.
    config("");
    with("", &["apps"]).expect_output(0, head);
    config("[admin]\nlisten = \"unix:other.sock\"\n");
    with("", &["apps"]).expect_failure(1, &["other.sock; is it running?"]);
    with(fake.address(), &["apps"]).expect_output(0, head);
    with("unix:x", &["apps", "--admin", fake.address()]).expect_output(0, head);
    config("[admin]\nenabled = false\n");
    let texts = ["config.toml: `admin.enabled` is false\n", "name another one with --config"];
    with("", &["apps"]).expect_failure(2, &texts);

    // A config with mistakes does no harm, unless they are in `[admin]` itself.
    config("[sever]\n[apps.x]\n");
    with("", &["apps"]).expect_output(0, head);
    config("[admin]\nlisten = 7\n");
    with("", &["apps"]).expect_failure(2, &["`admin.listen`", "with --admin unix:PATH"]);
    with("", &["--admin", fake.address(), "apps"]).expect_output(0, head);
    with("", &["apps", "--config", "none.toml"]).expect_failure(2, &["none.toml: No such file"]);

    let right = "write unix:/run/tidegate.sock or 127.0.0.1:9901";
    let ran = with("", &["apps", "--admin", "localhost:9901"]);
    ran.expect_failure(2, &["--admin: `localhost:9901` is not an admin address", right]);
    with("x", &["apps"]).expect_failure(2, &["TIDEGATE_ADMIN: `x` is not an admin address", right]);
}

#[test]
fn a_token_goes_to_tcp_addresses_alone() {
    let fake = Fake::tcp(|seen| {
        if seen.fields.contains("authorization: bearer 0123456789abcdef\r\n") {
            Reply::Json(200, json!({ "apps": [] }))
        } else {
            Reply::Json(401, json!({ "error": "wrong token" }))
        }
    });
    let file = |name: &str, text: &str| fs::write(fake.dir().join(name), text).expect("a file");
    file("right", "0123456789abcdef\n");
    file("wrong", "fedcba9876543210");
    file("broken", "a\r\nb: c");
    let with = |variable: &str, arguments: &[&str]| {
        let mut command = fake.command(arguments);
        command.env("TIDEGATE_TOKEN", variable);
        run(command)
    };
    assert_eq!(with("x", &["apps", "--token-file", "right"]).code, Some(0));
    assert_eq!(with("0123456789abcdef", &["apps"]).code, Some(0));
    let admin = format!("[admin]\nlisten = {:?}\ntoken = \"0123456789abcdef\"", fake.address());
    file("config.toml", &admin);
    assert_eq!(with("", &["apps"]).code, Some(0));
    file("config.toml", "[sever]");
    let places = "taken from --token-file FILE, else from TIDEGATE_TOKEN, else from the config";
    with("", &["apps"]).expect_failure(1, &["requires a token, and none was given", places]);
    let ran = with("x", &["apps", "--token-file", "wrong"]);
    ran.expect_failure(1, &["refuses the token from wrong; ", places]);
    with("x", &["apps"]).expect_failure(1, &["refuses the token from TIDEGATE_TOKEN; ", places]);
    let ran = with("", &["apps", "--token-file", "broken"]);
    ran.expect_failure(2, &["broken: a token must be visible ASCII"]);
    let ran = with("", &["apps", "--token-file", "none"]);
    ran.expect_failure(2, &["--token-file none: No such file"]);
}

#[test]
fn the_servers_own_error_is_passed_on() {
    let error = json!({ "error": "no app has the host `x`; `tidegate apps` lists them" });
    for arguments in [&["app", "x"][..], &["remove", "x"], &["drain", "x"], &["resume", "x"]] {
        let text = "tidegate: no app has the host `x`; `tidegate apps` lists them\n";
        Fake::always(404, error.clone()).run(arguments).expect_failure(1, &[text]);
    }
    let arguments = ["add", "x", "--respond", "y"];
    Fake::always(409, error.clone()).run(&arguments).expect_failure(1, &["no app"]);
    Fake::always(422, error.clone()).run(&arguments).expect_failure(2, &["no app"]);
    Fake::always(500, error).run(&arguments).expect_failure(1, &["no app"]);
}

#[test]
fn another_program_on_the_address_is_recognised() {
    let answers = [
        ("SSH-2.0-OpenSSH_9.6\r\n", "it does not speak HTTP"),
        ("\0\u{1}\u{2}", "it does not speak HTTP"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", "its answer to GET /apps: expected"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "missing field `apps`"),
        ("HTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\nno", "it answers 404 without a reason"),
        ("HTTP/1.1 301 Moved\r\nLocation: /\r\n\r\n", "it answers 301 without a reason"),
    ];
    for (bytes, what) in answers {
        let fake = Fake::unix(move |_| Reply::Bytes(bytes.as_bytes().to_vec()));
        fake.run(&["apps"]).expect_failure(1, &["the server on unix:", "is not a Tidegate", what]);
    }
}

#[test]
fn a_server_that_does_not_answer_is_given_up() {
    let fake = Fake::unix(|_| Reply::Silence);
    fake.run(&["apps"]).expect_failure(1, &["does not answer in time"]);
}

#[test]
fn a_socket_of_another_user_is_reported() {
    let fake = Fake::always(200, json!({ "apps": [] }));
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("its mode");
    };
    mode(&fake.dir().join("tidegate.sock"), 0o000);
    let arguments = ["apps", "--admin", fake.address()];
    let command = if rustix::process::geteuid().is_root() {
        // Root may use any socket, the user `nobody` may not. That user needs a binary that it can
        // read. `cp` writes it: if this process did, a child of another test could hold it open
        // (ETXTBSY).
        let binary = fake.dir().join("tidegate");
        let copy = Command::new("cp").arg(env!("CARGO_BIN_EXE_tidegate")).arg(&binary).status();
        assert!(copy.expect("cp").success());
        mode(&binary, 0o755);
        mode(fake.dir(), 0o755);
        let mut command = tidegate_at(&binary, fake.dir(), &arguments);
        command.uid(65_534).gid(65_534);
        command
    } else {
        tidegate(fake.dir(), &arguments)
    };
    run(command)
        .expect_failure(1, &["permission denied on unix:", "the user that runs the server"]);
}

#[test]
fn pages_need_no_server() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = |arguments: &[&str]| run(tidegate(folder.path(), arguments));
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = here(&["completions", shell]);
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
        assert!(ran.out.contains("tidegate") && ran.out.contains("token-file"), "{shell}");
    }
    let page = here(&["man"]);
    assert_eq!((page.code, page.err.as_str()), (Some(0), ""));
    let sections: Vec<&str> =
        page.out.lines().filter_map(|line| line.strip_prefix(".SH ")).collect();
    let expected = [
        "NAME",
        "SYNOPSIS",
        "DESCRIPTION",
        "COMMANDS",
        "OPTIONS",
        "SIGNALS",
        "ENVIRONMENT",
        "FILES",
        "\"EXIT STATUS\"",
        "EXAMPLES",
        "\"SEE ALSO\"",
    ];
    assert_eq!(sections, expected);
    assert!(page.out.lines().count() < 300, "{}", page.out.lines().count());
    for option in [r"\-\-json", r"\-\-config", r"\-\-token\-file", r"\-\-no\-wait"] {
        let head = |item: &str| item.lines().next().unwrap_or_default().to_owned();
        let items = page.out.split(".TP\n").skip(1);
        let heads = items.filter(|item| head(item).contains(option));
        assert_eq!(heads.count(), 1, "{option} is explained once");
    }
}

#[test]
fn the_help_of_every_command_ends_with_an_example() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = |arguments: &[&str]| run(tidegate(folder.path(), arguments)).out;
    let top = here(&["--help"]);
    let (_, list) = top.split_once("Commands:\n").expect("a list");
    let (list, _) = list.split_once("\n\n").expect("its end");
    let names: Vec<&str> = list.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names.len(), 23, "{names:?}");
    for name in names.into_iter().filter(|name| *name != "help") {
        let help = here(&[name, "--help"]);
        let example = help.trim_end().lines().last().expect("a line").to_owned();
        assert!(example.starts_with(&format!("  tidegate {name}")), "{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
    }
}

#[test]
fn wrong_arguments_are_a_usage_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let table = [
        (&["add", "x"][..], "required"),
        (&["add", "x", "--respond", "a", "--files", "b"], "cannot be used with"),
        (&["add", "x", "--files", "a", "--status", "200"], "cannot be used with"),
        (&["add", "x", "--files", "a", "--delay", "1s"], "cannot be used with"),
        (&["remove", "x", "--timeout", "30"], "write \"30s\""),
        (&["remove", ""], "HOST"),
        (&["stop", "--now", "--timeout", "1s"], "cannot be used with"),
        (&["replace", "x", "--respond", "y", "--timeout", "1s"], "--timeout"),
        (&["upgrade", "--timeout", "soon"], "--timeout"),
    ];
    for (arguments, what) in table {
        let ran = run(tidegate(folder.path(), arguments));
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(ran.err.contains(what), "{arguments:?}: {ran:?}");
    }
}

#[test]
fn the_man_page_has_no_fault_that_man_finds() {
    let folder = tempfile::tempdir().expect("a folder");
    let page = run(tidegate(folder.path(), &["man"])).out;
    let path = folder.path().join("tidegate.1");
    fs::write(&path, page).expect("a file");
    let man =
        Command::new("man").args(["--warnings", "-l"]).arg(&path).env("MANWIDTH", "80").output();
    // Not every machine has man.
    let Ok(shown) = man else { return };
    let complaints = String::from_utf8_lossy(&shown.stderr).into_owned();
    assert!(shown.status.success() && complaints.is_empty(), "{complaints}");
    let lines = String::from_utf8_lossy(&shown.stdout).lines().count();
    assert!((100..300).contains(&lines), "{lines}");
}

#[test]
fn completions_offer_the_hosts_of_the_server() {
    let apps = [row("shop.example", 1), row("shoes.example", 2), row("*.a", 3)];
    let fake = Fake::always(200, json!({ "apps": apps }));
    fake.run(&["hosts"]).expect_output(0, "*.a\nshoes.example\nshop.example\n");
    let script = fake.run(&["completions", "bash"]).out;
    let path = fake.dir().join("tidegate.bash");
    fs::write(&path, script).expect("a file");
    let folder = Path::new(env!("CARGO_BIN_EXE_tidegate")).parent().expect("a folder");
    let complete = |words: &str, last: &str| {
        let script = format!(
            "source tidegate.bash; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             COMPREPLY=(); before=\"${{COMP_WORDS[COMP_CWORD-1]}}\"; \
             _tidegate_with_hosts tidegate '{last}' \"$before\"; \
             printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        let mut bash = Command::new("bash");
        bash.args(["--norc", "-c", &script]).current_dir(fake.dir()).env_clear();
        bash.env("PATH", format!("{}:/usr/bin:/bin", folder.display()));
        bash.env("TIDEGATE_ADMIN", fake.address());
        let output = bash.output().expect("bash");
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    assert_eq!(complete("tidegate remove sho", "sho"), "shoes.example\nshop.example\n");
    assert_eq!(complete("tidegate app ''", ""), "*.a\nshoes.example\nshop.example\n");
    let named = format!("tidegate --admin {} drain shop", fake.address());
    assert_eq!(complete(&named, "shop"), "shop.example\n");
    assert!(complete("tidegate remove --time", "--time").contains("--timeout"));
    assert!(complete("tidegate rem", "rem").contains("remove"));
    // Without a server there is nothing to offer, and no error.
    let dead = run(tidegate(fake.dir(), &["hosts", "--admin", "unix:none.sock"]));
    dead.expect_output(0, "");
    let zsh = fake.run(&["completions", "zsh"]).out;
    assert!(zsh.starts_with("#compdef tidegate\n") && zsh.contains(":_tidegate_hosts'"), "{zsh}");
    fs::write(fake.dir().join("_tidegate"), zsh).expect("a file");
    for (shell, arguments, file) in [("bash", "-n", "tidegate.bash"), ("zsh", "-n", "_tidegate")] {
        // Not every machine has zsh.
        let checked = Command::new(shell).args([arguments, file]).current_dir(fake.dir()).output();
        let Ok(checked) = checked else { continue };
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    }
    let fish = fake.run(&["completions", "fish"]).out;
    assert!(fish.contains("tidegate hosts"), "{fish}");
}
