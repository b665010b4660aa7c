//! `tidegate drill` from outside: against its own Tidegate, against a running Tidegate, and against
//! servers that lose requests in every possible way.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use socket2::SockRef;

use crate::cli_support::{Ran, run, tidegate};
use crate::support::{PATIENCE, Setup};

/// A small load.
const LOAD: [&str; 6] = ["drill", "--json", "--rate=300", "--every=150ms", "--seed=7", "--count=2"];

/// Runs a drill in a folder of its own. Returns its ledger.
#[track_caller]
pub(super) fn drill(code: i32, arguments: &[&str]) -> Value {
    let dir = tempfile::tempdir().expect("a folder");
    let ran = run(tidegate(dir.path(), &[&LOAD, arguments].concat()));
    assert_eq!((ran.code, ran.err.as_str()), (Some(code), ""), "{ran:?}");
    let account = serde_json::from_str(&ran.out).unwrap_or_else(|_| panic!("no JSON: {ran:?}"));
    check_sums(&account);
    account
}

/// Checks that the results add up to the requests sent: in total, by action and by client.
#[track_caller]
fn check_sums(account: &Value) {
    let ways = [
        "answered",
        "changed",
        "left",
        "refused",
        "not_accepted",
        "failed_handshake",
        "lost",
        "truncated",
    ];
    let of = |row: &Value, key: &str| row[key].as_u64().unwrap_or_else(|| panic!("{key}: {row}"));
    let rows = |name: &str| account[name].as_array().expect("rows").clone();
    for row in [vec![account.clone()], rows("actions"), rows("clients"), rows("runs")].concat() {
        assert_eq!(of(&row, "sent"), ways.iter().map(|way| of(&row, way)).sum::<u64>(), "{row}");
    }
    for key in ways.iter().chain(&["sent"]) {
        for name in ["actions", "clients"] {
            let sum: u64 = rows(name).iter().map(|row| of(row, key)).sum();
            assert_eq!(sum, of(account, key), "{key} by {name}");
        }
    }
    assert!(of(account, "sent") > 0, "{account}");
}

/// The row of an action.
pub(super) fn action<'a>(account: &'a Value, name: &str) -> &'a Value {
    let rows = account["actions"].as_array().expect("rows");
    rows.iter().find(|row| row["action"] == name).unwrap_or_else(|| panic!("{name}: {account}"))
}

/// A drill of one action on a Tidegate of its own.
#[track_caller]
fn drill_own(name: &str) -> Value {
    let account = drill(0, &["--actions", name]);
    let row = action(&account, name);
    assert_eq!((&row["done"], &row["failed"]), (&2.into(), &0.into()), "{account}");
    assert_eq!(account["stories"].as_array().map(Vec::len), Some(0));
    account
}

#[test]
fn a_reload_a_replace_and_an_upgrade_refuse_no_request() {
    for name in ["reload", "replace", "upgrade", "nothing"] {
        let account = drill_own(name);
        assert_eq!((&account["refused"], &account["not_accepted"]), (&0.into(), &0.into()));
    }
}

#[test]
fn a_removed_app_refuses_but_loses_no_request() {
    for name in ["remove+add", "drain+resume"] {
        let account = drill_own(name);
        assert_eq!(account["not_accepted"], 0);
    }
}

#[test]
fn a_stop_turns_connections_away_and_loses_no_request() {
    let account = drill_own("stop+start");
    assert_eq!(account["refused"], 0);
    assert!(account["not_accepted"].as_u64() > Some(0), "nothing listens for a while: {account}");
}

#[test]
fn a_server_that_runs_is_drilled_with_its_own_apps() {
    let server = Setup::new().named_app("a.test").named_app("*.b.test").start();
    let config = server.dir().join("config.toml");
    let config = config.to_str().expect("UTF-8");
    let actions = "--actions=reload,replace,remove+add,drain+resume";
    let account = drill(0, &["--running", "--config", config, actions]);
    assert_eq!(account["actions_planned"], 8);
    assert_eq!(account["address"], server.address().to_string());
    let status = server.admin().call("GET", "/status", "").json();
    let answered = account["statuses"]["200"].as_u64();
    assert!(status["requests_total"].as_u64() >= answered, "{status}: {answered:?}");
    assert_eq!(server.admin().call("GET", "/apps/a.test", "").json()["state"], "serving");
}

/// Starts a server that handles every connection in a thread of its own. Returns its URL.
pub(super) fn scripted(converse: impl Fn(TcpStream) + Copy + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || converse(stream));
        }
    });
    url
}

/// Reads the requests of a connection with their content. `answer` gets the number of each, and
/// returns whether the connection goes on.
pub(super) fn requests(
    mut stream: TcpStream,
    mut answer: impl FnMut(&mut TcpStream, usize) -> bool,
) {
    let (mut bytes, mut count) = (Vec::new(), 0);
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        bytes.extend_from_slice(&buffer[..read]);
        while let Some(length) = whole_request(&bytes) {
            bytes.drain(..length);
            count += 1;
            if !answer(&mut stream, count) {
                return;
            }
        }
    }
}

fn whole_request(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let length = end + length.map_or(0, |length| length.parse::<usize>().expect("a length"));
    (bytes.len() >= length).then_some(length)
}

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole";

fn write(stream: &mut TcpStream, bytes: &[u8]) -> bool {
    stream.write_all(bytes).is_ok()
}

/// Writes the last bytes of a connection.
fn write_last(stream: &mut TcpStream, bytes: &[u8]) -> bool {
    write(stream, bytes);
    false
}

/// Checks that all requests with this result have the same story. Returns the first.
#[track_caller]
fn one_story(account: &Value, result: &str) -> Value {
    let stories = account["stories"].as_array().expect("stories");
    assert!(account[result].as_u64() > Some(0), "{account}");
    assert_eq!(account[result].as_u64(), u64::try_from(stories.len()).ok(), "{account}");
    for story in stories {
        assert_eq!((&story["result"], &story["phase"]), (&result.into(), &stories[0]["phase"]));
    }
    assert_eq!(account["clean"], false);
    stories[0].clone()
}

#[test]
fn an_answer_that_never_begins_is_a_lost_request() {
    let url = scripted(|stream| requests(stream, |_, _| false));
    let account = drill(1, &["--url", &url]);
    let story = one_story(&account, "lost");
    assert_eq!((&story["phase"], &story["socket"]), (&"waiting".into(), &"closed".into()));
    assert_eq!((&story["bytes_received"], &account["answered"]), (&0.into(), &0.into()));
    assert!(story["bytes_sent"].as_u64() > Some(50) && story["local_port"].as_u64() > Some(0));
}

#[test]
fn a_reset_connection_is_a_lost_request() {
    let url = scripted(|stream| {
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("linger");
        requests(stream, |_, _| false);
    });
    let story = one_story(&drill(1, &["--url", &url]), "lost");
    assert!(story["socket"].as_str().is_some_and(|said| said.contains("reset")), "{story}");
}

#[test]
fn a_kept_connection_that_is_closed_at_the_next_request_is_a_lost_request() {
    let url = scripted(|stream| requests(stream, |stream, n| n == 1 && write(stream, ANSWER)));
    let account = drill(1, &["--url", &url]);
    let story = one_story(&account, "lost");
    assert_eq!((&story["answered_before"], &story["phase"]), (&1.into(), &"waiting".into()));
    assert!(account["answered"].as_u64() >= account["lost"].as_u64(), "{account}");
}

#[test]
fn a_kept_connection_that_was_closed_before_is_no_loss() {
    let url = scripted(|stream| {
        // The end of the connection is sent together with the answer.
        SockRef::from(&stream).set_tcp_cork(true).expect("cork");
        requests(stream, |stream, _| write_last(stream, ANSWER));
    });
    let account = drill(0, &["--url", &url]);
    assert_eq!(account["answered"], account["sent"]);
    assert!(account["idle_closes"].as_u64() > Some(0), "{account}");
}

#[test]
fn from_far_away_a_close_that_crosses_the_request_is_a_lost_request() {
    let url = scripted(|stream| {
        // Closes idle connections soon, without notice.
        stream.set_read_timeout(Some(Duration::from_millis(10))).expect("a time-out");
        requests(stream, |stream, _| write(stream, ANSWER));
    });
    let account = drill(1, &["--url", &url, "--distance=20ms"]);
    let stories = account["stories"].as_array().expect("stories");
    assert!(account["answered"].as_u64() > Some(0) && !stories.is_empty(), "{account}");
    assert_eq!((&stories[0]["result"], &stories[0]["bytes_received"]), (&"lost".into(), &0.into()));
    // A slow machine may lose others too.
    let was_kept = |story: &Value| story["answered_before"].as_u64() > Some(0);
    assert!(stories.iter().any(was_kept), "{account}");
}

#[test]
fn an_answer_that_ends_early_is_truncated() {
    let url = scripted(|stream| requests(stream, |stream, _| write_last(stream, &ANSWER[..41])));
    let story = one_story(&drill(1, &["--url", &url]), "truncated");
    assert_eq!((&story["phase"], &story["bytes_received"]), (&"reading".into(), &41.into()));
}

#[test]
fn a_malformed_answer_is_truncated() {
    let url = scripted(|stream| requests(stream, |stream, _| write(stream, b"SSH-2.0-x\r\n\r\n")));
    let story = one_story(&drill(1, &["--url", &url]), "truncated");
    assert!(story["socket"].as_str().is_some_and(|said| said.starts_with("not HTTP")), "{story}");
}

#[test]
fn a_silent_server_loses_its_requests() {
    let url = scripted(|stream| requests(stream, |_, _| true));
    let account = drill(1, &["--url", &url, "--rate=100", "--timeout=400ms"]);
    let story = one_story(&account, "lost");
    assert_eq!(
        (&story["phase"], &story["socket"]),
        (&"waiting".into(), &"nothing for 0.4 s".into())
    );
}

#[test]
fn a_refusal_is_no_loss() {
    let url = scripted(|stream| {
        requests(stream, |stream, _| {
            write(
                stream,
                b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
            )
        });
    });
    let account = drill(0, &["--url", &url, "--host=a.test", "--host=b.test", "--path=/x?y"]);
    assert_eq!(
        (&account["refused"], &account["statuses"]["503"]),
        (&account["sent"], &account["sent"])
    );
}

#[test]
fn without_a_listener_there_is_no_drill() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address").to_string();
    drop(listener);
    let dir = tempfile::tempdir().expect("a folder");
    let url = format!("http://{address}");
    let begun = Instant::now();
    let ran = run(tidegate(dir.path(), &["drill", "--count=100000", "--url", &url]));
    ran.expect_failure(1, &["no server answers at", &address, "refused"]);
    assert!(begun.elapsed() < PATIENCE / 2, "it goes on for hours");
}

/// The row of a kind of client.
fn client<'a>(account: &'a Value, name: &str) -> Option<&'a Value> {
    account["clients"].as_array().expect("rows").iter().find(|row| row["client"] == name)
}

#[test]
fn a_server_that_runs_is_asked_for_the_host_and_path_that_were_named_and_sent_no_post() {
    let counts = "headers = { X-Count = \"1\" }";
    let server = Setup::new()
        .app("a.test", &format!("aliases = [\"alias.test\"]\nrespond = {{ {counts} }}"))
        .named_app("b.test")
        .log("access = \"json\"\naccess_path = \"access.log\"")
        .start();
    let config = server.dir().join("config.toml");
    let config = config.to_str().expect("UTF-8");
    let running = ["--running", "--config", config];
    let account = drill(0, &[&running[..], &["--host=alias.test", "--path=/here?x=1"]].concat());
    assert_eq!(action(&account, "replace")["failed"], 0);
    let log = fs::read_to_string(server.dir().join("access.log")).expect("the log");
    let line = |line: &str| -> Value { serde_json::from_str(line).expect("JSON") };
    let lines: Vec<Value> = log.lines().map(line).collect();
    assert!(lines.len() > 50, "{}", lines.len());
    for line in lines {
        assert_eq!((&line["host"], &line["method"]), (&"alias.test".into(), &"GET".into()));
        assert!(line.to_string().contains("/here?x=1"), "{line}");
    }
    // The actions concern only that app.
    let id =
        |host: &str| server.admin().call("GET", &format!("/apps/{host}"), "").json()["id"].clone();
    assert!(id("a.test").as_u64() > id("b.test").as_u64(), "a.test was replaced, b.test was not");
    assert_eq!(client(&account, "POST"), None);

    let account = drill(0, &[&running[..], &["--post"]].concat());
    let posts = client(&account, "POST").expect("a row");
    assert!(posts["answered"].as_u64() > Some(0), "{account}");

    let dir = tempfile::tempdir().expect("a folder");
    let ran = run(tidegate(dir.path(), &[&["drill"][..], &running, &["--host=c.test"]].concat()));
    assert_eq!(ran.code, Some(1), "{ran:?}");
}

#[test]
fn an_app_that_a_reload_takes_away_is_a_row_of_its_own_and_no_loss() {
    let server = Setup::new().named_app("a.test").start();
    let put = server.admin().call("PUT", "/apps/added.test", r#"{"respond":{"body":"x"}}"#);
    assert_eq!(put.status, 201);
    let config = server.dir().join("config.toml");
    let config = config.to_str().expect("UTF-8");
    let account = drill(1, &["--running", "--config", config, "--actions=reload"]);
    let row = &account["changes"][0];
    assert_eq!((&row["host"], &row["before"]), (&"added.test".into(), &200.into()), "{account}");
    assert_eq!((&row["status"], &row["after"]), (&404.into(), &404.into()), "{account}");
    assert_eq!((&row["count"], &account["lost"]), (&account["changed"], &0.into()));
    assert!(account["changed"].as_u64() > Some(0) && account["clean"] == false, "{account}");

    // The text output announces it before the drill, and has it as a table after it.
    server.admin().call("PUT", "/apps/added.test", r#"{"respond":{"body":"x"}}"#);
    let dir = tempfile::tempdir().expect("a folder");
    let arguments =
        ["drill", "--running", "--config", config, "--actions=reload", "--count=1", "--rate=500"];
    let Ran { code, out, err } = run(tidegate(dir.path(), &arguments));
    assert_eq!(code, Some(1), "{out}{err}");
    for text in [
        "requests a.test/, which answers 200",
        "no POST without --post",
        "actions: 1 × reload",
        "removes apps that commands made, or resets them: added.test",
    ] {
        assert!(err.contains(text), "{text:?} isn't in {err}");
    }
    assert!(out.contains("\nCHANGED      BEFORE  THEN  ANSWERS  AT LAST\nadded.test/ "), "{out}");
    let verdict = "nothing was lost; some answers differ from before\n";
    assert!(out.ends_with(verdict), "{out}");
}

#[test]
fn who_pipelines_loses_what_a_close_leaves_unanswered() {
    let url = scripted(|stream| requests(stream, |stream, n| write(stream, ANSWER) && n % 8 != 3));
    let account = drill(1, &["--url", &url, "--clients=pipelined"]);
    let story = one_story(&account, "lost");
    assert_eq!((&story["client"], &story["answered_before"]), (&"pipelined".into(), &3.into()));
    let sent = account["sent"].as_u64().expect("a number");
    assert_eq!(account["lost"], sent / 8 * 5, "three of eight are answered");
    assert_eq!(account["answered"], sent / 8 * 3);

    let url = scripted(|stream| requests(stream, |stream, _| write(stream, ANSWER)));
    let account = drill(0, &["--url", &url, "--clients=pipelined"]);
    assert_eq!(account["answered"], account["sent"]);
    assert_eq!(account["idle_closes"], 0, "connections are kept");
}

#[test]
fn who_thinks_loses_what_is_closed_under_the_request() {
    let url = scripted(|stream| {
        stream.set_read_timeout(Some(Duration::from_millis(60))).expect("a time-out");
        requests(stream, |stream, _| write(stream, ANSWER));
    });
    let arguments =
        ["--clients=thinking", "--think=10ms..120ms", "--distance=20ms", "--connections=20"];
    let account = drill(1, &[&["--url", &url][..], &arguments].concat());
    let thinking = client(&account, "thinking").expect("a row");
    assert!(thinking["answered"].as_u64() > Some(0) && thinking["lost"].as_u64() > Some(0));
    assert_eq!(account["think_ms"], serde_json::json!([10, 120]));
    // Where the close is known before the request leaves, another connection takes it.
    assert!(account["idle_closes"].as_u64() > Some(0), "{account}");
}

#[test]
fn who_leaves_has_a_row_and_sees_what_is_lost_before_it_leaves() {
    let long = || {
        scripted(|stream| {
            requests(stream, |stream, _| {
                // Never a complete answer: a client that waits for more leaves.
                write(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart")
            });
        })
    };
    let account = drill(1, &["--url", &long(), "--clients=leaving"]);
    assert_eq!((&account["left"], &account["lost"]), (&account["sent"], &0.into()), "{account}");
    assert_eq!(account["answered"], 0, "so it is unknown whether it works");

    let url = scripted(|stream| requests(stream, |_, _| false));
    let account = drill(1, &["--url", &url, "--clients=leaving"]);
    assert!(account["lost"].as_u64() > Some(0), "{account}");
    assert!(account["left"].as_u64() > Some(0), "{account}");
}

#[test]
fn the_drills_own_server_loses_no_request_of_any_kind_of_client() {
    let actions = "--actions=reload,replace,remove+add,drain+resume,upgrade,stop+start";
    let account = drill(0, &[actions, "--think=50ms..300ms", "--connections=16"]);
    for name in [
        "keep-alive",
        "with pauses",
        "one request",
        "POST",
        "slow download",
        "pipelined",
        "thinking",
        "leaving",
    ] {
        let row = client(&account, name).unwrap_or_else(|| panic!("{name}: {account}"));
        assert!(name == "slow download" || row["sent"].as_u64() > Some(0), "{row}");
    }
}

#[test]
fn a_command_is_the_action_of_any_server() {
    let url = scripted(|stream| requests(stream, |stream, _| write(stream, ANSWER)));
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("done");
    let command = format!("echo x >> {}", file.display());
    let account = drill(0, &["--url", &url, "--command", &command, "--slow-path=/large"]);
    assert_eq!(action(&account, "command")["done"], 2);
    assert_eq!(fs::read_to_string(&file).expect("the file"), "x\nx\n");

    let account = drill(1, &["--url", &url, "--command", "echo why >&2; exit 4"]);
    assert_eq!(action(&account, "command")["failed"], 2);
    assert_eq!((&account["lost"], &account["truncated"]), (&0.into(), &0.into()));
    let error = account["runs"][0]["error"].as_str().expect("an error").to_owned();
    assert!(error.ends_with("exit status: 4: why"), "{error}");
}

#[test]
fn wrong_arguments_are_usage_errors() {
    let dir = tempfile::tempdir().expect("a folder");
    let url = "--url=http://127.0.0.1:1";
    for (arguments, says) in [
        (&["--actions=fly"][..], "fly"),
        (&["--count=0"], "--count"),
        (&["--rate=0"], "--rate"),
        (&["--every=5"], "5s"),
        (&["--command=true"], "--url"),
        (&["--path=/x"], "--running"),
        (&["--think=1s"], "write two times"),
        (&["--think=2s..1s"], "the longer one"),
        (&["--clients=cats"], "cats"),
        (&["--host=a.test"], "--url"),
        (&["--running", url], "--running"),
        (&["--actions=command"], "possible: reload"),
        (
            &["--running", "--actions=stop+start"],
            "is not possible with a server that is already running",
        ),
        (&[url, "--actions=reload"], "possible: nothing"),
        (&["--url=ftp://127.0.0.1"], "neither http:// nor https://"),
        (&[url, "--tls"], "is plain HTTP; write https://"),
        (&["--actions=renew"], "is not possible with a server of the drill, without --tls"),
        (&["--tls", "--running", "--actions=renew"], "that is already running"),
        (&["--tls", "--insecure"], "--running"),
        (&["--running", "--insecure"], "--insecure needs --tls"),
        (&[url, "--cacert=ca.pem"], "--cacert needs --tls"),
        (&["--running", "--tls", "--cacert=ca.pem", "--insecure"], "--insecure"),
        (&["--url=http://a b"], "no address"),
        (&[url, "--host=a\r\nb"], "not a host name"),
        (&[url, "--path=x"], "not a path"),
        (&[url, "--slow-path=/a b"], "not a path"),
    ] {
        let Ran { code, out, err } = run(tidegate(dir.path(), &[&["drill"], arguments].concat()));
        assert_eq!((code, out.as_str()), (Some(2), ""), "{arguments:?}: {err}");
        assert!(err.contains(says), "{arguments:?}: {err}");
    }
}

#[test]
fn without_a_server_that_runs_there_is_no_drill() {
    let dir = tempfile::tempdir().expect("a folder");
    let ran = run(tidegate(dir.path(), &["drill", "--running", "--admin=unix:none.sock"]));
    ran.expect_failure(1, &["no server is listening on unix:none.sock"]);
}

#[test]
fn an_interrupt_ends_it_with_the_account_so_far() {
    let (sender, begun) = mpsc::channel();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let sender = sender.clone();
            thread::spawn(move || {
                requests(stream, |stream, _| sender.send(()).is_ok() && write(stream, ANSWER));
            });
        }
    });
    let dir = tempfile::tempdir().expect("a folder");
    let arguments = [&LOAD[..], &["--count=100000", "--url", &url]].concat();
    let arguments: Vec<&str> = arguments.into_iter().filter(|it| *it != "--count=2").collect();
    let child = tidegate(dir.path(), &arguments).spawn().expect("it starts");
    // The first request is the drill's probe, before the load begins.
    for _ in 0..20 {
        begun.recv_timeout(PATIENCE).expect("a request");
    }
    let pid = Pid::from_raw(child.id().cast_signed()).expect("a process");
    kill_process(pid, Signal::INT).expect("SIGINT");
    // Keeps the answers coming.
    thread::spawn(move || while begun.recv().is_ok() {});
    let output = child.wait_with_output().expect("its output");
    let account: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    check_sums(&account);
    assert_eq!((&account["interrupted"], output.status.code()), (&true.into(), Some(0)));
}

#[test]
fn the_account_is_printed_for_people_with_a_line_for_each_loss() {
    let url = scripted(|stream| requests(stream, |stream, n| n == 1 && write(stream, ANSWER)));
    let dir = tempfile::tempdir().expect("a folder");
    let arguments =
        ["drill", "--rate=500", "--count=1", "--every=300ms", "--url", &url, "--svg=drill.svg"];
    let Ran { code, out, err } = run(tidegate(dir.path(), &arguments));
    assert_eq!(code, Some(1), "{out}");
    assert!(err.contains("\n  actions: 1 \u{d7} nothing\n"), "{err}");
    for text in [
        " lost + 0 truncated",
        "nothing  ",
        "keep-alive",
        "connection with 1 earlier answers",
        "bytes sent, 0 received, port ",
        ": closed\n",
        "… and ",
        " lost, 0 truncated\n",
    ] {
        assert!(out.contains(text), "{text:?} isn't in\n{out}");
    }
    check_well_formed(&dir.path().join("drill.svg"));
}

/// Every element that opens closes, in order, and attributes are quoted.
fn check_well_formed(path: &Path) {
    let text = fs::read_to_string(path).expect("the picture");
    assert!(text.contains("class=\"loss\"") && text.contains("class=\"run\""), "{text}");
    let mut open = Vec::new();
    for tag in text.split('<').skip(1) {
        let (tag, content) = tag.split_once('>').expect("a tag ends");
        assert!(!content.contains('&') && tag.matches('"').count() % 2 == 0, "{tag}");
        let name = tag.split(' ').next().expect("a name");
        if let Some(name) = name.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
        } else if !tag.ends_with('/') {
            open.push(name);
        }
    }
    assert_eq!(open, Vec::<&str>::new());
}
