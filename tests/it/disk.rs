//! Disks that hang or are full, and files that are FIFOs: status, changes that need no disk,
//! signals, deadlines and requests have to work nevertheless.
//!
//! A lease (fcntl(2)) makes a file hang: open(2) waits until its holder gives the lease up.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};

use crate::support::{
    self, BINARY, PATIENCE, Pid, Server, Setup, Signal, get, get_and_close, run, wait_until,
};

/// Much longer than anything here takes without waiting for a disk, and shorter than a lease lasts.
const PROMPT: Duration = Duration::from_secs(10);

fn make_fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("mkfifo");
}

/// A file whose opening hangs until this is dropped.
struct Lease(Child);

impl Lease {
    fn on(path: &Path) -> Self {
        const CODE: &str = "$SIG{IO} = 'IGNORE'; $| = 1; open F, '+<', $ARGV[0] or die; \
                            fcntl F, 1024, 1 or die qq(no lease: $!); print qq(held\\n); <STDIN>";
        let mut perl = Command::new("perl");
        perl.args(["-e", CODE]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = perl.spawn().expect("perl");
        let mut line = String::new();
        let stdout = holder.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        assert_eq!(line, "held\n");
        Self(holder)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One app, and an access log.
fn setup() -> Setup {
    Setup::new()
        .server("threads = 1\nidle_grace = \"0s\"\ndrain_timeout = \"3s\"")
        .log("access = \"combined\"\naccess_path = \"access.log\"")
        .named_app("app.test")
}

fn ask(server: &Server) {
    assert_eq!(server.connect().exchange(get_and_close("app.test", "/")).status, 200);
}

/// The status, which has to come at once.
fn status(server: &Server) -> Value {
    let begun = Instant::now();
    let status = server.admin().get("/status");
    assert!(begun.elapsed() < PROMPT, "the status took {:?}", begun.elapsed());
    status
}

/// Waits until the operator thread is busy with this.
fn wait_busy(server: &Server, with: &str) {
    let mut operator = Value::Null;
    let is_busy = wait_until(PATIENCE, || {
        operator = status(server)["operator"].clone();
        operator["busy_with"].as_str().is_some_and(|busy| busy.contains(with))
    });
    assert!(is_busy, "{operator}");
    assert!(operator["since"].is_string() && operator["for_ms"].is_u64(), "{operator}");
}

fn stop(mut server: Server) {
    let begun = Instant::now();
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit().code(), Some(0));
    assert!(begun.elapsed() < PROMPT, "the stop took {:?}", begun.elapsed());
}

/// The configuration of a server with another `[log]`.
fn with_log(server: &Server, log: &str) -> String {
    let config = fs::read_to_string(server.dir().join("config.toml")).expect("config.toml");
    let (before, after) = config.split_once("[log]").expect("a [log]");
    let (_, after) = after.split_once("[admin]").expect("an [admin]");
    format!("{before}[log]\n{log}\n[admin]{after}")
}

#[test]
fn a_fifo_as_log_is_refused_by_a_reload_and_holds_nothing_up() {
    let server = setup().start();
    make_fifo(&server.dir().join("fifo"));
    for log in ["path = \"fifo\"", "access = \"json\"\naccess_path = \"fifo\""] {
        server.rewrite(&with_log(&server, log));
        let answer = server.admin().post("/reload");
        let errors = answer["log_errors"].to_string();
        assert!(errors.contains("fifo: no process reads this FIFO"), "{answer}");
        status(&server);
    }
    ask(&server);
    stop(server);
}

#[test]
fn a_fifo_as_log_ends_the_start_with_a_reason() {
    let setup = Setup::new().log("path = \"fifo\"").named_app("app.test");
    make_fifo(&setup.dir().join("fifo"));
    let config = setup.write();
    let (code, printed) = run(&["serve", "--config", config.to_str().expect("UTF-8")]);
    assert_eq!(code, Some(1), "{printed}");
    assert!(printed.contains("fifo: no process reads this FIFO"), "{printed}");
}

#[test]
fn a_reload_gives_up_a_log_whose_opening_hangs_and_holds_nothing_up() {
    let server = setup().start();
    let path = server.dir().join("leased.log");
    fs::write(&path, "").expect("leased.log");
    let _lease = Lease::on(&path);
    let log = "access = \"combined\"\naccess_path = \"leased.log\"";
    server.rewrite(&with_log(&server, log));
    server.signal(Signal::HUP);
    wait_busy(&server, "reload: opening the logs");
    // Signals are handled, and changes that need no disk are made.
    server.signal(Signal::USR1);
    assert_eq!(server.admin().post("/apps/app.test/drain")["cause"], "drain");
    let error = server.wait_event("log_not_changed");
    assert!(error.field("error").expect("a reason").contains("opening it hangs"), "{error:?}");
    server.wait_event("config_reload_complete");
    assert!(wait_until(PATIENCE, || status(&server)["operator"]["busy_with"].is_null()));
    stop(server);
}

#[test]
fn a_stop_does_not_wait_for_a_reload_that_hangs() {
    let server = setup().start();
    let _lease = Lease::on(&server.dir().join("config.toml"));
    server.signal(Signal::HUP);
    wait_busy(&server, "reload: reading ");
    ask(&server);
    stop(server);
}

#[test]
fn a_change_behind_a_hanging_change_is_refused_and_says_what_it_waited_for() {
    let server = setup().start();
    let lease = Lease::on(&server.dir().join("config.toml"));
    server.signal(Signal::HUP);
    wait_busy(&server, "reload: reading ");
    let table = json!({ "respond": { "body": "new" } });
    let refused = server.admin().put("/apps/new.test", &table);
    assert_eq!(refused.status, 503, "{refused:?}");
    let reason = refused.error();
    assert!(reason.contains("nothing changed") && reason.contains("reload: reading "), "{reason}");
    let busy = server.wait_event("operator_busy");
    assert!(busy.field("with").expect("a task").starts_with("reload: reading "), "{busy:?}");
    drop(lease);
    server.wait_event("config_reload_complete");
    assert_eq!(server.admin().call("GET", "/apps/new.test", "").status, 404, "it was done later");
    assert_eq!(server.admin().put("/apps/new.test", &table).status, 201);
    stop(server);
}

#[test]
fn a_log_that_hangs_at_a_rotation_goes_on_in_the_old_file_until_it_is_there() {
    let server = setup().start();
    let [path, old] = ["access.log", "access.log.1"].map(|name| server.dir().join(name));
    fs::rename(&path, &old).expect("rename");
    fs::write(&path, "").expect("access.log");
    let lease = Lease::on(&path);
    server.signal(Signal::USR1);
    let failed = server.wait_event("log_reopen_failed");
    assert!(failed.field("error").expect("a reason").contains("opening it hangs"), "{failed:?}");
    ask(&server);
    let has = |path: &Path, lines: usize| {
        wait_until(PATIENCE, || fs::read_to_string(path).expect("a log").lines().count() >= lines)
    };
    assert!(has(&old, 1), "the line is not in the old file");
    status(&server);
    drop(lease);
    // As soon as the file opens, lines go to it.
    let mut client = server.connect();
    let is_new = wait_until(PATIENCE, || {
        client.exchange(get("app.test", "/"));
        !fs::read_to_string(&path).expect("access.log").is_empty()
    });
    assert!(is_new, "the new file is not used");
    drop(client);
    assert_eq!(status(&server)["log_lines_lost"]["access"], 0);
    stop(server);
}

#[test]
fn a_fifo_at_a_rotation_keeps_the_old_log_and_the_next_rotation_works() {
    let server = setup().start();
    let [path, old] = ["access.log", "access.log.1"].map(|name| server.dir().join(name));
    fs::rename(&path, &old).expect("rename");
    make_fifo(&path);
    server.signal(Signal::USR1);
    let failed = server.wait_event("log_reopen_failed");
    assert_eq!(failed.field("error"), Some("no process reads this FIFO"));
    ask(&server);
    // A line that is still on its way would go to the next file.
    let lines = |path: &Path| fs::read_to_string(path).expect("a log").lines().count();
    assert!(wait_until(PATIENCE, || lines(&old) == 1), "the line is not in the old file");
    fs::remove_file(&path).expect("remove");
    server.signal(Signal::USR1);
    assert!(wait_until(PATIENCE, || path.exists()), "the log is not opened again");
    ask(&server);
    let (old, new) = (old.clone(), path.clone());
    stop_and(server, || assert_eq!([&old, &new].map(|path| lines(path)), [1, 1]));
}

/// Stops the server, and looks at its folder.
fn stop_and(mut server: Server, look: impl FnOnce()) {
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit().code(), Some(0));
    look();
}

#[test]
fn lines_that_a_hanging_log_holds_at_the_end_are_counted_as_lost() {
    let setup = setup().log("").file("unused", "");
    let path = setup.dir().join("access.log");
    make_fifo(&path);
    // A reader that reads nothing.
    let reader = File::options().read(true).write(true).open(&path).expect("the FIFO");
    let mut server = setup.start();
    let mut client = server.connect();
    for _ in 0..20 {
        client.send(get("app.test", "/").repeat(100));
        (0..100).for_each(|_| drop(client.response()));
    }
    drop(client);
    status(&server);
    let begun = Instant::now();
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit().code(), Some(0));
    assert!(begun.elapsed() < PROMPT, "the stop took {:?}", begun.elapsed());
    let lost = server.wait_event("log_lines_lost");
    assert_eq!(lost.field("log"), Some("access"));
    let lines = lost.count("lines");
    assert!((1000..=2000).contains(&lines), "{lost:?}");
    drop(reader);
}

#[test]
fn a_second_signal_does_not_wait_for_a_log_that_hangs() {
    /// Less time than the logs get at the end, which no signal shortens.
    const SOON: Duration = Duration::from_millis(1500);
    let stop = || {
        let setup = setup().log("");
        let path = setup.dir().join("access.log");
        make_fifo(&path);
        let _reader = File::options().read(true).write(true).open(&path).expect("the FIFO");
        let mut server = setup.start();
        let mut client = server.connect();
        for _ in 0..20 {
            client.send(get("app.test", "/").repeat(100));
            (0..100).for_each(|_| drop(client.response()));
        }
        drop(client);
        server.signal(Signal::TERM);
        server.wait_event("server_stop");
        let begun = Instant::now();
        // Repeated, because a signal before the logs are closed only concerns the drain.
        let has_ended = wait_until(PATIENCE, || {
            server.signal(Signal::TERM);
            !server.is_running()
        });
        assert!(has_ended, "it does not end");
        begun.elapsed()
    };
    // A busy machine may be late, now and then.
    assert!((0..5).any(|_| stop() < SOON));
}

#[test]
fn a_limit_on_the_size_of_files_loses_log_lines_reports_them_and_ends_nothing() {
    let server = setup().start();
    let mut events = server.admin().events();
    server.limit_file_size(Some(4096));
    let path = format!("/{}", "a".repeat(1000));
    let mut client = server.connect();
    for _ in 0..20 {
        assert_eq!(client.exchange(get("app.test", &path)).status, 200);
    }
    let losing = events.wait("log_losing_lines");
    assert_eq!(losing["fields"]["log"], "access", "{losing}");
    assert!(losing["fields"]["error"].as_str().expect("why").contains("too large"), "{losing}");
    let is_counted = || status(&server)["log_lines_lost"]["access"].as_u64() > Some(0);
    assert!(wait_until(PATIENCE, is_counted));
    server.limit_file_size(None);
    let lost = events.wait("log_lines_lost");
    let counted = status(&server)["log_lines_lost"]["access"].clone();
    assert_eq!((&lost["fields"]["log"], &lost["fields"]["lines"]), (&json!("access"), &counted));
    assert_eq!(
        server.wait_event("log_lines_lost").count("lines") as u64,
        counted.as_u64().unwrap()
    );
    drop((client, events));
    stop(server);
}

#[test]
fn a_config_that_became_a_fifo_is_refused_by_a_reload() {
    let server = setup().start();
    let path = server.dir().join("config.toml");
    fs::remove_file(&path).expect("remove");
    make_fifo(&path);
    let refused = server.admin().call("POST", "/reload", "");
    assert_eq!(refused.status, 422, "{refused:?}");
    assert!(refused.text.contains("not a regular file"), "{refused:?}");
    stop(server);
}

/// A server without the helpers of `support`: the test reads its output itself.
struct Bare(Child);

impl Bare {
    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.0), signal).expect("signal");
    }

    fn exit_code(mut self) -> Option<i32> {
        let mut ended = None;
        let has_ended = wait_until(PATIENCE, || {
            ended = self.0.try_wait().expect("wait");
            ended.is_some()
        });
        assert!(has_ended, "it does not end");
        ended.and_then(|status| status.code())
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends the lines of a stream as they come.
fn lines_of(stream: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let lines = BufReader::new(stream).lines().map_while(Result::ok);
        lines.for_each(|line| drop(sender.send(line)));
    });
    lines
}

/// The next line that contains `what`.
fn wait_line(lines: &mpsc::Receiver<String>, what: &str) -> String {
    let mut next = || lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no line {what}"));
    std::iter::repeat_with(&mut next).find(|line| line.contains(what)).expect("endless")
}

#[test]
fn a_config_that_is_a_pipe_is_read_at_the_start_alone() {
    let setup = Setup::new().server("threads = 1").named_app("app.test");
    // Paths in it begin at /dev.
    let socket = setup.dir().join("a.sock");
    let setup = setup.admin(&format!("listen = \"unix:{}\"", socket.display()));
    let text = setup.text();
    let mut command = Command::new(BINARY);
    command.args(["serve", "--config", "/dev/stdin"]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut server = Bare(command.spawn().expect("it starts"));
    let mut stdin = server.0.stdin.take().expect("a pipe");
    stdin.write_all(text.as_bytes()).expect("send");
    drop(stdin);
    let log = lines_of(server.0.stderr.take().expect("a pipe"));
    wait_line(&log, "multi_app_ready");
    server.signal(Signal::HUP);
    assert!(wait_line(&log, "config_reload_failed").contains("not a regular file"));
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn logs_go_to_standard_streams_that_are_sockets() {
    let setup = Setup::new()
        .server("threads = 1\nidle_grace = \"0s\"")
        .log("path = \"/dev/stderr\"\naccess = \"combined\"\naccess_path = \"/dev/stdout\"")
        .named_app("app.test");
    let config = setup.write();
    let [(events, stderr), (access, stdout)] =
        [(); 2].map(|()| UnixStream::pair().expect("sockets"));
    let mut command = Command::new(BINARY);
    command.args(["serve", "--config"]).arg(&config).stdin(Stdio::null());
    command.stdout(OwnedFd::from(stdout)).stderr(OwnedFd::from(stderr));
    let server = Bare(command.spawn().expect("it starts"));
    drop(command);
    let events = lines_of(events);
    let ready = wait_line(&events, "multi_app_ready");
    let address = ready.split("listen=").nth(1).and_then(|rest| rest.split(' ').next());
    let address = address.expect("an address").parse().expect("an address");
    support::Client::connect(address).exchange(get_and_close("app.test", "/socket"));
    let access = lines_of(access);
    assert!(wait_line(&access, "/socket").contains("host=app.test"));
    // Streams are no files that could be rotated.
    server.signal(Signal::USR1);
    server.signal(Signal::TERM);
    wait_line(&events, "server_stop");
    assert_eq!(server.exit_code(), Some(0));
    let rest: Vec<String> = events.iter().collect();
    assert!(rest.is_empty(), "{rest:?}");
}
