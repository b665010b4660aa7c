//! Deploys: no request goes to a life that has not proven ready, and a deploy that fails leaves the
//! old life as it was.

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    os::unix::net::UnixStream,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{
    Admin, Answer, BINARY, Gate, Load, LoadKind, PATIENCE, Pid, Server, Setup, Signal, Upstream,
    free_port, get, run, wait_until,
};

const HOST: &str = "d.test";

fn named(name: &'static str) -> Upstream {
    Upstream::tcp(move |_, line| line.answer(200, name))
}

/// A server whose app forwards to `old`.
fn start(old: &Upstream) -> Server {
    let app = format!("proxy = {{ upstreams = [{:?}] }}", old.url());
    Setup::new().listen(&[&free_port().to_string()]).app(HOST, &app).start()
}

/// An app's table that is ready when `/up` is answered well.
fn table(urls: &[&str], ready: &Value) -> Value {
    let mut all = json!({ "path": "/up", "interval": "50ms", "timeout": "20s" });
    for (key, value) in ready.as_object().expect("a table") {
        all[key] = value.clone();
    }
    json!({ "proxy": { "upstreams": urls, "ready": all } })
}

fn deploy(server: &Server, query: &str, table: &Value) -> Answer {
    server.admin().call("POST", &format!("/apps/{HOST}/deploy{query}"), &table.to_string())
}

/// Deploys in a thread of its own.
fn begin(server: &Server, query: &'static str, table: Value) -> JoinHandle<Answer> {
    let admin = server.admin();
    let begun = thread::spawn(move || {
        admin.call("POST", &format!("/apps/{HOST}/deploy{query}"), &table.to_string())
    });
    wait_begun(&server.admin());
    begun
}

fn progress(admin: &Admin) -> Answer {
    admin.call("GET", &format!("/apps/{HOST}/deploy"), "")
}

fn wait_begun(admin: &Admin) {
    assert!(wait_until(PATIENCE, || progress(admin).status == 200), "no deploy begins");
}

fn wait_over(admin: &Admin) {
    assert!(wait_until(PATIENCE, || progress(admin).status == 404), "the deploy goes on");
}

fn asks(server: &Server) -> String {
    server.connect().exchange(get(HOST, "/")).text().to_owned()
}

fn life(server: &Server) -> Value {
    server.admin().get(&format!("/apps/{HOST}"))["id"].clone()
}

/// Only checks have come: no request.
fn expect_checks_only(upstream: &Upstream) {
    let asked = upstream.asked();
    assert!(asked.iter().all(|asked| asked.target() == "/up"), "{asked:?}");
}

fn arguments(server: &Server) -> [String; 2] {
    ["--admin".to_owned(), format!("unix:{}", server.admin().path().display())]
}

fn cli(server: &Server, arguments: &[&str]) -> (Option<i32>, String) {
    let admin = self::arguments(server);
    let admin: Vec<_> = admin.iter().map(String::as_str).collect();
    run(&[arguments, &admin[..]].concat())
}

#[test]
fn an_app_that_becomes_ready_takes_over_without_a_lost_request() {
    let old = named("old");
    let server = start(&old);
    let kept = Load::start(LoadKind::KeepAlive, 2, server.address(), HOST, "");
    let new_connections = Load::start(LoadKind::NewConnections, 1, server.address(), HOST, "");
    kept.wait_answered(20);
    let address: SocketAddr = free_port();
    let url = format!("http://{address}");
    let deployed = begin(&server, "", table(&[&url], &json!({ "rise": 2 })));
    // Nothing listens there yet; then it starts, and is not ready yet.
    let refused = || progress(&server.admin()).text.contains("connect: Connection refused");
    assert!(wait_until(PATIENCE, refused), "{}", progress(&server.admin()).text);
    let status = Arc::new(AtomicU16::new(503));
    let own = Arc::clone(&status);
    let new = Upstream::at(address, move |asked, line| {
        let status = if asked.target() == "/up" { own.load(SeqCst) } else { 200 };
        line.answer(status, "new");
    });
    let starting = || progress(&server.admin()).text.contains("status 503");
    assert!(wait_until(PATIENCE, starting), "{}", progress(&server.admin()).text);
    expect_checks_only(&new);
    assert_eq!(asks(&server), "old");
    status.store(200, SeqCst);
    let answer = deployed.join().expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = answer.json();
    assert_eq!((&answer["result"], &answer["replaced"]), (&json!("deployed"), &json!(true)));
    assert!(answer["since_check_ms"].as_u64().is_some_and(|ms| ms <= 500), "{answer}");
    let check = &answer["checks"][0];
    assert_eq!((&check["ready"], &check["status"]), (&json!(true), &json!(200)), "{check}");
    assert!(check["good_in_row"].as_u64() >= Some(2), "{check}");
    assert_eq!(server.admin().wait_drain(&answer["drain"])["verdict"], "drained");
    assert_eq!(asks(&server), "new");
    let before = old.asked().len();
    for load in [kept, new_connections] {
        let tally = load.end();
        assert!(tally.lost.is_empty() && tally.turned_away == 0, "{tally:?}");
    }
    assert_eq!(old.asked().len(), before, "the old life is asked after its drain");
    // A check asks as a client would.
    assert_eq!(new.asked()[0].all("host"), [HOST]);
}

#[test]
fn one_that_never_is_ready_changes_nothing_and_says_why() {
    let old = named("old");
    let server = start(&old);
    let before = life(&server);
    let load = Load::start(LoadKind::KeepAlive, 2, server.address(), HOST, "old");
    load.wait_answered(10);
    let refusing = Upstream::refusing();
    let broken = Upstream::tcp(|_, line| line.answer(500, "no\ndatabase"));
    let moved = Upstream::tcp(|_, line| {
        line.send("HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n");
    });
    let silent = Upstream::tcp(|_, line| drop(line.read_to_end()));
    let alien = Upstream::tcp(|_, line| {
        line.send("SSH-2.0-OpenSSH_9.6\r\n");
        line.close();
    });
    for (url, reason) in [
        (&*refusing, "connect: Connection refused"),
        (broken.url(), "status 500"),
        (moved.url(), "status 302 to /login"),
        (silent.url(), "no answer yet"),
        (alien.url(), "no HTTP answer"),
        ("unix:/does/not/exist.sock", "connect: No such file"),
    ] {
        let answer = deploy(&server, "", &table(&[url], &json!({ "timeout": "300ms" })));
        assert_eq!(answer.status, 424, "{answer:?}");
        let answer = answer.json();
        assert_eq!(answer["result"], "not_ready");
        let check = &answer["checks"][0];
        assert_eq!(check["ready"], false);
        let error = check["error"].as_str().expect("a reason");
        assert!(error.contains(reason), "{url}: {error}");
        assert_eq!(life(&server), before, "{url}");
        if url == broken.url() {
            assert_eq!(check["first_bytes"], "no database");
        }
    }
    for other in [&broken, &moved, &silent, &alien] {
        expect_checks_only(other);
    }
    let tally = load.end();
    assert!(tally.lost.is_empty(), "{tally:?}");
    let failed = server.events().into_iter().filter(|event| event.name == "deploy_failed").count();
    assert_eq!(failed, 6);
}

#[test]
fn a_check_that_hangs_holds_up_no_other_deploy_and_no_quorum() {
    let old = named("old");
    let server = start(&old);
    let silent = Upstream::tcp(|_, line| drop(line.read_to_end()));
    let (one, two) = (named("one"), named("two"));
    let urls = [silent.url(), one.url(), two.url()];
    let wanted = table(&urls, &json!({}));
    let answer = deploy(&server, "?quorum=2", &wanted);
    assert_eq!(answer.status, 200, "{answer:?}");
    let error = answer.json()["checks"][0]["error"].as_str().expect("a reason").to_owned();
    assert!(error.starts_with("no answer yet"), "it waited for the upstream that hangs: {error}");
    for _ in 0..6 {
        assert_ne!(asks(&server), "old");
    }
    // Requests go to those that are ready.
    expect_checks_only(&silent);
    let answer = deploy(&server, "?quorum=4", &wanted);
    assert_eq!(answer.status, 422, "{answer:?}");
    assert_eq!(deploy(&server, "?quorum=0", &wanted).status, 400);
}

#[test]
fn one_that_dies_before_the_others_are_ready_does_not_count() {
    let old = named("old");
    let server = start(&old);
    let (first, second) = (named("first"), Arc::new(AtomicBool::new(false)));
    let own = Arc::clone(&second);
    let other = Upstream::tcp(move |_, line| {
        line.answer(if own.load(SeqCst) { 200 } else { 503 }, "other");
    });
    let wanted = table(&[first.url(), other.url()], &json!({ "timeout": "2s" }));
    let deployed = begin(&server, "", wanted);
    first.wait_asked(1);
    first.kill();
    let dead = || progress(&server.admin()).json()["checks"][0]["ready"] == false;
    assert!(wait_until(PATIENCE, dead));
    second.store(true, SeqCst);
    let answer = deployed.join().expect("an answer");
    assert_eq!(answer.status, 424, "{answer:?}");
    assert_eq!(asks(&server), "old");
    expect_checks_only(&other);
}

#[test]
fn a_host_has_one_deploy_at_a_time_and_others_go_on_beside_it() {
    let (old, new) = (named("old"), named("new"));
    let server = start(&old);
    let refusing = Upstream::refusing();
    let waiting = begin(&server, "", table(&[&refusing], &json!({})));
    let second = deploy(&server, "", &table(&[new.url()], &json!({})));
    assert_eq!(second.status, 409, "{second:?}");
    let since = second.json()["since"].as_str().expect("a time").to_owned();
    assert!(second.error().contains(&format!("under way since {since}")), "{second:?}");
    // Another host, which is new, and a reload that concerns neither.
    let other = table(&[new.url()], &json!({})).to_string();
    let other = server.admin().call("POST", "/apps/new.test/deploy", &other);
    assert_eq!(other.status, 200, "{other:?}");
    assert_eq!(other.json()["replaced"], false);
    assert_eq!(server.connect().exchange(get("new.test", "/")).text(), "new");
    assert_eq!(server.admin().call("POST", "/reload", "").status, 200);
    assert_eq!(progress(&server.admin()).status, 200, "the reload ended the deploy");
    let aborted = server.admin().call("DELETE", &format!("/apps/{HOST}/deploy"), "");
    assert_eq!(aborted.status, 200, "{aborted:?}");
    let answer = waiting.join().expect("an answer");
    assert_eq!((answer.status, &answer.json()["result"]), (409, &json!("aborted")));
    assert_eq!(asks(&server), "old");
    assert_eq!(server.admin().call("DELETE", &format!("/apps/{HOST}/deploy"), "").status, 404);
}

#[test]
fn a_change_of_the_app_in_the_middle_aborts_the_deploy() {
    let old = named("old");
    let server = start(&old);
    let refusing = Upstream::refusing();
    let wanted = || table(&[&refusing], &json!({}));
    let mut changes: Vec<Box<dyn Fn()>> = Vec::new();
    let reload = || {
        let text = std::fs::read_to_string(server.dir().join("config.toml")).expect("the config");
        let text = text.replace("upstreams", "answer_timeout = \"59s\", upstreams");
        std::fs::write(server.dir().join("config.toml"), text).expect("written");
        assert_eq!(server.admin().call("POST", "/reload", "").status, 200);
    };
    changes.push(Box::new(reload));
    changes.push(Box::new(|| {
        let put = json!({ "proxy": { "upstreams": [old.url()] } });
        assert_eq!(server.admin().put(&format!("/apps/{HOST}"), &put).status, 200);
    }));
    changes.push(Box::new(|| drop(server.admin().post(&format!("/apps/{HOST}/drain")))));
    changes.push(Box::new(|| drop(server.admin().post(&format!("/apps/{HOST}/resume")))));
    for (index, change) in changes.iter().enumerate() {
        let waiting = begin(&server, "", wanted());
        change();
        let answer = waiting.join().expect("an answer");
        assert_eq!(answer.status, 409, "{index}: {answer:?}");
        assert!(answer.error().ends_with("the app was changed meanwhile"), "{index}: {answer:?}");
    }
    assert_eq!(asks(&server), "old");
}

#[test]
fn an_upgrade_in_the_middle_aborts_the_deploy_and_the_old_life_stays() {
    let old = named("old");
    let mut server = start(&old);
    Server::adopt_orphans();
    let waiting = begin(&server, "", table(&[&Upstream::refusing()], &json!({})));
    let load = Load::start(LoadKind::KeepAlive, 2, server.address(), HOST, "old");
    load.wait_answered(10);
    let upgraded = server.admin().post("/upgrade");
    let answer = waiting.join().expect("an answer");
    assert_eq!(answer.status, 409, "{answer:?}");
    assert!(answer.error().contains("an upgrade has begun"), "{answer:?}");
    let pid = upgraded["pid"].as_i64().expect("a pid") as i32;
    server.follow(Pid::from_raw(pid).expect("a pid"));
    assert_eq!(asks(&server), "old");
    let tally = load.end();
    assert!(tally.lost.is_empty(), "{tally:?}");
}

#[test]
fn a_stop_in_the_middle_aborts_the_deploy() {
    let old = named("old");
    let mut server = start(&old);
    let waiting = begin(&server, "", table(&[&Upstream::refusing()], &json!({})));
    server.signal(Signal::TERM);
    let answer = waiting.join().expect("an answer");
    assert_eq!(answer.status, 409, "{answer:?}");
    assert!(answer.error().contains("the server is stopping"), "{answer:?}");
    assert!(server.wait_exit().success());
}

/// A command that deploys to an upstream that never is ready.
fn waiting_command(server: &Server) -> Child {
    let url = Upstream::refusing();
    let child = Command::new(BINARY)
        .args(["deploy", HOST, "--proxy", &url, "--ready", "/up"])
        .args(arguments(server))
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    wait_begun(&server.admin());
    child
}

#[test]
fn interrupt_aborts_the_deploy() {
    let old = named("old");
    let server = start(&old);
    let mut child = waiting_command(&server);
    let pid = Pid::from_raw(child.id() as i32).expect("a pid");
    rustix::process::kill_process(pid, Signal::INT).expect("a signal");
    let mut error = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut error).expect("text");
    assert_eq!(child.wait().expect("an end").code(), Some(1), "{error}");
    assert!(error.contains("aborted, and nothing changed"), "{error}");
    assert!(error.contains("connect: Connection refused"), "{error}");
    assert_eq!(progress(&server.admin()).status, 404);
    assert_eq!(asks(&server), "old");
}

#[test]
fn a_client_that_is_gone_aborts_its_deploy() {
    let old = named("old");
    let server = start(&old);
    let mut child = waiting_command(&server);
    child.kill().expect("a signal");
    child.wait().expect("an end");
    wait_over(&server.admin());
    let wanted = table(&[&Upstream::refusing()], &json!({})).to_string();
    let mut socket: UnixStream = server.admin().connect();
    let length = wanted.len();
    let head = format!(
        "POST /apps/{HOST}/deploy HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
    );
    socket.write_all((head + &wanted).as_bytes()).expect("sent");
    wait_begun(&server.admin());
    drop(socket);
    wait_over(&server.admin());
    assert_eq!(asks(&server), "old");
}

#[test]
fn the_command_waits_for_the_verdict_of_the_old_life() {
    let gate = Gate::default();
    let passed = gate.clone();
    let old = Upstream::tcp(move |_, line| {
        passed.pass();
        line.answer(200, "old");
    });
    let new = named("new");
    let app = format!("proxy = {{ upstreams = [{:?}] }}\ndrain_timeout = \"300ms\"", old.url());
    let server = Setup::new().app(HOST, &app).start();
    let mut held = server.connect();
    held.send(get(HOST, "/"));
    old.wait_asked(1);
    let deployed = cli(&server, &["deploy", HOST, "--proxy", new.url()]);
    assert_eq!(deployed.0, Some(3), "{}", deployed.1);
    assert!(deployed.1.contains(&format!("{} is ready: connected", new.url())), "{}", deployed.1);
    assert!(deployed.1.contains("cut 1"), "{}", deployed.1);
    gate.open();
    let again = cli(&server, &["deploy", HOST, "--proxy", new.url(), "--ready", "/"]);
    assert_eq!(again.0, Some(0), "{}", again.1);
    assert!(again.1.contains("is ready: status 200"), "{}", again.1);
    assert!(again.1.contains("drained"), "{}", again.1);
    let refusing = Upstream::refusing();
    let all = ["deploy", HOST, "--proxy", new.url(), "--proxy", &refusing];
    let failed = cli(&server, &[&all[..], &["--ready-timeout", "200ms"]].concat());
    assert_eq!(failed.0, Some(1), "{}", failed.1);
    assert!(failed.1.contains("1 of 2 upstreams ready, 2 needed"), "{}", failed.1);
    assert!(failed.1.contains(&format!("{refusing} is not ready: connect:")), "{}", failed.1);
    let quorum = cli(&server, &[&all[..], &["--quorum", "1", "--no-wait"]].concat());
    assert_eq!(quorum.0, Some(0), "{}", quorum.1);
    let wrong = cli(&server, &["deploy", HOST, "--files", "/tmp", "--ready", "/up"]);
    assert_eq!(wrong.0, Some(2), "{}", wrong.1);
}

#[test]
fn files_are_deployed_if_the_root_and_its_index_are_there() {
    let old = named("old");
    let server = start(&old);
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().to_str().expect("UTF-8");
    let missing = cli(&server, &["deploy", HOST, "--files", &format!("{root}/none")]);
    assert_eq!(missing.0, Some(1), "{}", missing.1);
    let empty = cli(&server, &["deploy", HOST, "--files", root]);
    assert_eq!(empty.0, Some(1), "{}", empty.1);
    assert!(empty.1.contains("has no index.html"), "{}", empty.1);
    assert_eq!(asks(&server), "old");
    std::fs::write(folder.path().join("index.html"), "release 2").expect("written");
    let deployed = cli(&server, &["deploy", HOST, "--files", root]);
    assert_eq!(deployed.0, Some(0), "{}", deployed.1);
    assert_eq!(asks(&server), "release 2");
}

#[test]
fn what_the_checks_of_the_old_life_found_does_not_count_for_one_that_is_ready() {
    let address = free_port();
    let old = Upstream::at(address, |_, line| line.answer(503, "old"));
    let app = format!(
        "proxy = {{ upstreams = [{:?}], health = {{ path = \"/up\", interval = \"60s\" }} }}",
        old.url()
    );
    let server = Setup::new().app(HOST, &app).start();
    let is_down =
        || server.admin().get(&format!("/apps/{HOST}"))["upstreams"][0]["state"] == "down";
    assert!(wait_until(PATIENCE, is_down), "it is not checked");
    let url = old.url().to_owned();
    drop(old);
    let _new = Upstream::at(address, |_, line| line.answer(200, "new"));
    let mut wanted = table(&[&url], &json!({}));
    wanted["proxy"]["health"] = json!({ "path": "/up", "interval": "60s" });
    let answer = deploy(&server, "", &wanted);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(asks(&server), "new");
}

#[test]
fn upstreams_with_tls_are_ready_when_their_certificate_is_verified() {
    let authority = crate::support::Authority::new("an authority");
    let other = crate::support::Authority::new("another one");
    let old = named("old");
    let server = start(&old);
    for (name, from) in [("ca.pem", &authority), ("other.pem", &other)] {
        std::fs::write(server.dir().join(name), from.pem()).expect("written");
    }
    let identity = authority.issue(&["127.0.0.1"]).server();
    let new = Upstream::tls(identity, |_, line| line.answer(200, "new"));
    for ready in [json!({ "timeout": "1s" }), json!({ "timeout": "1s", "path": "/up" })] {
        let mut wanted = json!({ "proxy": { "upstreams": [new.url()], "ready": ready } });
        wanted["proxy"]["ca"] = json!("other.pem");
        let answer = deploy(&server, "", &wanted);
        assert_eq!(answer.status, 424, "{answer:?}");
        let error = answer.json()["checks"][0]["error"].as_str().expect("a reason").to_owned();
        assert!(error.starts_with("TLS: "), "{error}");
        assert!(new.asked().is_empty() || asks(&server) == "new");
        wanted["proxy"]["ca"] = json!("ca.pem");
        let answer = deploy(&server, "", &wanted);
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(asks(&server), "new");
    }
}

#[test]
fn the_certificate_of_an_app_comes_with_its_switch_and_not_before() {
    let authority = crate::tls::Authority::new();
    let server = authority.setup(&["a.test"]).start();
    let (certificate, key) = authority.issue(&[HOST]);
    std::fs::write(server.dir().join("d.pem"), certificate).expect("written");
    std::fs::write(server.dir().join("d.key"), key).expect("written");
    let client = authority.client();
    let connects = || crate::tls::connect(server.addresses()[0], &client, HOST);
    let ready = Arc::new(AtomicBool::new(false));
    let own = Arc::clone(&ready);
    let new = Upstream::tcp(move |asked, line| {
        let is_good = asked.target() != "/up" || own.load(SeqCst);
        line.answer(if is_good { 200 } else { 503 }, "new");
    });
    let mut wanted = table(&[new.url()], &json!({}));
    wanted["tls"] = json!({ "cert": "d.pem", "key": "missing.key" });
    let answer = deploy(&server, "", &wanted);
    assert_eq!(answer.status, 500, "{answer:?}");
    wanted["tls"]["key"] = json!("d.key");
    let waiting = begin(&server, "", wanted);
    new.wait_asked(2);
    assert!(connects().is_err(), "the certificate is there before its app");
    ready.store(true, SeqCst);
    let answer = waiting.join().expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    let mut tls = connects().expect("a handshake");
    assert_eq!(crate::tls::get(&mut tls, HOST).expect("an answer"), (200, "new".to_owned()));
}

#[test]
fn an_upstream_that_is_slow_is_ready_when_it_answers() {
    let old = named("old");
    let server = start(&old);
    let slow = Upstream::tcp(|asked, line| {
        if asked.target() == "/up" {
            Gate::default().passes_within(Duration::from_millis(400));
        }
        line.answer(200, "slow");
    });
    let answer = deploy(&server, "", &table(&[slow.url()], &json!({ "rise": 2 })));
    assert_eq!(answer.status, 200, "{answer:?}");
    let check = &answer.json()["checks"][0];
    assert!(check["time_ms"].as_u64() >= Some(400), "{check}");
    // Checks of an upstream follow one another.
    assert_eq!(check["checks"], 2, "{check}");
    assert_eq!(asks(&server), "slow");
}
