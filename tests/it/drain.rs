//! The stop, by real signals: exchanges in flight finish, requests that were sent are answered, no
//! connection is reset; and the stop ends by its deadline.

use std::{
    fs,
    io::ErrorKind,
    net::TcpListener,
    time::{Duration, Instant},
};

use crate::support::{
    self, Client, End, Handshake, Load, LoadKind, Lost, PATIENCE, Server, Setup, Signal, get,
    get_and_close, pattern, wait_until,
};

const MIB: usize = 1024 * 1024;

/// How long a connect may take: at the gate it gets no answer.
const CONNECT_DEADLINE: Duration = Duration::from_millis(150);

/// Long enough that the signal comes before the answer, also on a busy machine.
const SLOW: &str = "2s";

/// A quick app, and an app that answers after `delay`.
fn setup(delay: &str) -> Setup {
    Setup::new()
        .app("app.test", "respond = { body = \"hello\" }")
        .app("slow.test", &format!("respond = {{ body = \"slow\", delay = \"{delay}\" }}"))
}

/// Connections whose slow request the server has read.
fn slow_clients(server: &Server, count: usize) -> Vec<Client> {
    let mut clients: Vec<Client> = (0..count).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send(get("slow.test", "/"));
    }
    server.wait_read(&clients);
    clients
}

#[test]
fn five_slow_answers_survive_sigterm() {
    let mut server = setup(SLOW).start();
    let clients = slow_clients(&server, 5);
    server.signal(Signal::TERM);
    for mut client in clients {
        let response = client.response();
        assert_eq!((response.status, response.text()), (200, "slow"));
        assert!(response.says_close());
        client.expect_end();
    }
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn slow_answers_survive_sigint() {
    let mut server = setup(SLOW).start();
    let clients = slow_clients(&server, 2);
    server.signal(Signal::INT);
    for mut client in clients {
        assert_eq!(client.response().text(), "slow");
        client.expect_end();
    }
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn the_events_of_a_stop_come_in_order_with_counts() {
    let mut server = setup(SLOW).start();
    let mut idle = server.connect();
    idle.exchange(get("app.test", "/"));
    let clients = slow_clients(&server, 3);
    server.signal(Signal::TERM);
    for mut client in clients {
        client.response();
        client.expect_end();
    }
    idle.expect_end();
    assert_eq!(server.wait_exit().code(), Some(0));
    let began = server.wait_event("shutdown_graceful");
    assert!(began.field("reason").is_some_and(|signal| signal.contains("TERM")), "{began:?}");
    assert_eq!(began.count("active_connections"), 3);
    let wanted = ["multi_app_ready", "shutdown_graceful", "shutdown_drained", "server_stop"];
    let events = server.events();
    let order: Vec<&str> = events
        .iter()
        .map(|event| event.name.as_str())
        .filter(|name| wanted.contains(name) || *name == "shutdown_timeout_reached")
        .collect();
    assert_eq!(order, wanted);
    assert_eq!(events.last().map(|event| event.name.as_str()), Some("server_stop"));
}

#[test]
fn an_idle_connection_that_speaks_during_idle_grace_is_answered() {
    let mut server = setup("0s").server("idle_grace = \"10s\"").start();
    let mut client = server.connect();
    assert!(!client.exchange(get("app.test", "/")).says_close());
    server.signal(Signal::TERM);
    server.wait_event("shutdown_gated");
    let response = client.exchange(get("app.test", "/"));
    assert_eq!((response.text(), response.says_close()), ("hello", true));
    client.expect_end();
    assert_eq!(server.wait_exit_within(Duration::from_secs(8)).code(), Some(0));
}

#[test]
fn an_idle_connection_that_stays_silent_is_closed_in_order_after_idle_grace() {
    let mut server = setup("0s").server("idle_grace = \"300ms\"").start();
    let mut idle = server.connect();
    idle.exchange(get("app.test", "/"));
    let fresh = server.connect();
    server.wait_read([&fresh]);
    let signalled = Instant::now();
    server.signal(Signal::TERM);
    idle.expect_end();
    assert!(signalled.elapsed() >= Duration::from_millis(290), "{:?}", signalled.elapsed());
    fresh.expect_end();
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn a_peer_that_keeps_its_side_open_does_not_hold_the_process() {
    let mut server = setup("0s")
        .server("idle_grace = \"100ms\"")
        .server("drain_timeout = \"2s\"")
        .limits("linger_timeout = \"300ms\"")
        .start();
    let mut idle = server.connect();
    idle.exchange(get("app.test", "/"));
    server.signal(Signal::TERM);
    idle.expect_eof();
    // Nothing is cut: the exchange was over.
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn a_fresh_connection_in_the_accept_queue_is_answered() {
    let mut server = setup("0s").start();
    // While the process is stopped, connections and the signal wait.
    server.pause();
    let mut clients: Vec<Client> = (0..20).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send(get("app.test", "/"));
    }
    server.signal(Signal::TERM);
    server.resume();
    for mut client in clients {
        assert_eq!(client.response().text(), "hello");
        client.expect_end();
    }
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn a_long_queue_outlives_the_listeners_that_close_before_it() {
    let mut listen = vec!["127.0.0.1:0", "127.0.0.2:0"];
    if TcpListener::bind("[::1]:0").is_ok() {
        listen.push("[::1]:0");
    }
    // One loop has all addresses, and room for few connections at a time: the queue lasts many
    // turns.
    let mut server =
        setup("0s").listen(&listen).server("threads = 1").limits("connections = 8").start();
    server.pause();
    let last = *server.addresses().last().expect("an address");
    let mut clients: Vec<Client> = (0..100).map(|_| Client::connect(last)).collect();
    for client in &mut clients {
        client.send(get("app.test", "/"));
    }
    server.signal(Signal::TERM);
    server.resume();
    for mut client in clients {
        assert_eq!(client.response().text(), "hello");
        client.expect_end();
    }
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn an_idle_server_that_is_out_of_descriptors_stops_at_once() {
    let mut server = setup("0s").server("threads = 1").start();
    server.lower_descriptor_limit(5);
    server.signal(Signal::TERM);
    // Far below the drain_timeout of 30 s.
    assert_eq!(server.wait_exit_within(Duration::from_secs(10)).code(), Some(0));
    server.wait_event("shutdown_drained");
}

#[test]
fn handshakes_under_way_when_the_gate_falls_are_not_reset() {
    let mut server = setup("0s").server("idle_grace = \"10s\"").start();
    let mut clients = Vec::new();
    // On a busy machine they may end before the check.
    let under_way = wait_until(PATIENCE, || {
        clients = (0..10).map(|_| Client::connect_late(server.address())).collect();
        server.handshakes() > 0
    });
    assert!(under_way, "no handshake is under way");
    server.signal(Signal::TERM);
    // From now on the listeners close. For these clients, their connections are open.
    server.wait_event("shutdown_gated");
    for mut client in clients {
        assert_eq!(client.exchange(get("app.test", "/")).text(), "hello");
        client.expect_end();
    }
    assert_eq!(server.wait_exit().code(), Some(0));
}

/// Waits until no address takes new connections, while a handshake keeps the listeners open.
fn wait_gated(server: &Server) {
    for address in server.addresses() {
        let is_gated = || Handshake::is_swallowed(*address, CONNECT_DEADLINE);
        assert!(wait_until(PATIENCE, is_gated), "{address} has no gate");
    }
}

/// The kernel has what came while the loops stood still: the gate did not drop it.
#[test]
fn a_handshake_that_ends_behind_the_gate_brings_its_request_at_once() {
    let mut listen = vec!["127.0.0.1:0"];
    if TcpListener::bind("[::1]:0").is_ok() {
        listen.push("[::1]:0");
    }
    for threads in ["threads = 1", "threads = 3"] {
        let mut server = setup("0s").listen(&listen).server(threads).start();
        let handshakes: Vec<Handshake> =
            server.addresses().iter().map(|address| Handshake::begin(*address)).collect();
        server.signal(Signal::TERM);
        wait_gated(&server);
        server.pause();
        let mut clients: Vec<Client> = handshakes.into_iter().map(Handshake::end).collect();
        for client in &mut clients {
            client.send(get("app.test", "/"));
            let unread = server.unread_bytes(client);
            assert_eq!(unread, get("app.test", "/").len() as u64, "it is deaf");
        }
        server.resume();
        for mut client in clients {
            assert_eq!(client.response().text(), "hello");
            client.expect_end();
        }
        assert_eq!(server.wait_exit().code(), Some(0));
    }
}

#[test]
fn a_peer_that_passes_the_gate_is_answered() {
    let mut server = setup("0s").server("threads = 3").start();
    let handshake = Handshake::begin(server.address());
    server.signal(Signal::TERM);
    wait_gated(&server);
    let mut neighbour = Handshake::of_neighbour(server.address());
    assert_eq!(neighbour.exchange(get("app.test", "/")).text(), "hello");
    neighbour.expect_end();
    assert_eq!(handshake.end().exchange(get("app.test", "/")).text(), "hello");
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn a_fresh_connection_that_speaks_late_is_answered() {
    let mut server = setup("0s").server("idle_grace = \"10s\"").start();
    server.pause();
    let clients: Vec<Client> = (0..8).map(|_| server.connect()).collect();
    server.signal(Signal::TERM);
    server.resume();
    server.wait_event("shutdown_gated");
    for mut client in clients {
        let response = client.exchange(get("app.test", "/"));
        assert_eq!((response.text(), response.says_close()), ("hello", true));
        client.expect_end();
    }
    assert_eq!(server.wait_exit_within(Duration::from_secs(8)).code(), Some(0));
}

#[test]
fn a_request_that_is_half_sent_at_sigterm_is_answered() {
    let mut server = setup("0s").start();
    let mut client = server.connect();
    let request = get("app.test", "/");
    let (front, back) = request.split_at(20);
    client.send(front);
    server.wait_read([&client]);
    server.signal(Signal::TERM);
    server.wait_event("shutdown_gated");
    client.send(back);
    let response = client.response();
    assert_eq!((response.text(), response.says_close()), ("hello", true));
    client.expect_end();
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn pipelined_requests_behind_a_slow_one_are_answered() {
    let mut server = setup(SLOW).start();
    let mut client = server.connect();
    client.send(get("slow.test", "/") + &get("app.test", "/").repeat(3));
    server.wait_read([&client]);
    server.signal(Signal::TERM);
    let mut answers = vec![client.response()];
    while !answers[answers.len() - 1].says_close() {
        answers.push(client.response());
    }
    assert_eq!(answers[0].text(), "slow");
    // Requests that the server read before it said close are answered: no answer may be missing,
    // and after the last one the connection ends in order.
    assert!(answers[1..].iter().all(|answer| answer.text() == "hello"));
    client.expect_end();
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn new_connections_after_sigterm_are_not_reset() {
    let mut server = setup(SLOW).start();
    let mut slow = slow_clients(&server, 1);
    server.signal(Signal::TERM);
    let (mut answered, mut turned_away) = (0, 0);
    // The slow answer keeps the process alive. A refusal means that nothing listens any more.
    let mut refused = false;
    while !slow[0].is_readable() && !refused {
        match Client::try_connect(server.address(), CONNECT_DEADLINE) {
            Ok(mut client) => {
                assert_eq!(client.exchange(get_and_close("app.test", "/")).text(), "hello");
                client.expect_end();
                answered += 1;
            }
            Err(error) => {
                let gated = [ErrorKind::TimedOut, ErrorKind::ConnectionRefused];
                assert!(gated.contains(&error.kind()), "after {answered} answers: {error}");
                turned_away += 1;
                refused = error.kind() == ErrorKind::ConnectionRefused;
            }
        }
    }
    assert!(turned_away > 0, "the gate stays open: {answered} answers");
    let mut slow = slow.remove(0);
    assert_eq!(slow.response().text(), "slow");
    slow.expect_end();
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn a_second_signal_cuts() {
    for second in [Signal::TERM, Signal::INT] {
        let mut server = setup("60s").start();
        let mut clients = slow_clients(&server, 2);
        server.signal(Signal::TERM);
        server.wait_event("shutdown_graceful");
        server.signal(second);
        assert_eq!(server.wait_exit_within(Duration::from_secs(5)).code(), Some(3));
        assert_cut(&mut clients);
        let names: Vec<String> = server.events().into_iter().map(|event| event.name).collect();
        assert!(!names.contains(&"shutdown_drained".to_owned()), "{names:?}");
        assert_eq!(names.last().map(String::as_str), Some("server_stop"));
    }
}

#[test]
fn the_deadline_cuts_and_exits_3() {
    let mut server = setup("60s").server("drain_timeout = \"400ms\"").start();
    let mut clients = slow_clients(&server, 3);
    let signalled = Instant::now();
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit_within(Duration::from_secs(5)).code(), Some(3));
    assert!(signalled.elapsed() >= Duration::from_millis(390), "{:?}", signalled.elapsed());
    assert_cut(&mut clients);
    assert_eq!(server.wait_event("shutdown_timeout_reached").count("cut"), 3);
    server.wait_event("server_stop");
}

#[test]
fn a_deadline_that_finds_only_idle_connections_cuts_nothing() {
    let mut server =
        setup("0s").server("drain_timeout = \"300ms\"").server("idle_grace = \"60s\"").start();
    let mut idle = server.connect();
    idle.exchange(get("app.test", "/"));
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit_within(Duration::from_secs(5)).code(), Some(0));
    let (rest, _) = idle.read_to_end();
    assert!(rest.is_empty());
}

fn assert_cut(clients: &mut [Client]) {
    for client in clients {
        let lost = client.try_response(false).expect_err("it was cut");
        assert!(matches!(lost, Lost::Ended(_, 0)), "{lost:?}");
    }
}

#[test]
fn with_no_connection_open_the_process_is_gone_at_once() {
    let mut server = setup("0s").server("idle_grace = \"30s\"").start();
    // A connection that came and went leaves nothing to wait for.
    assert_eq!(server.connect().exchange(get_and_close("app.test", "/")).text(), "hello");
    server.signal(Signal::TERM);
    // It takes milliseconds; the test checks that the stop waits for no timer.
    assert_eq!(server.wait_exit_within(Duration::from_secs(5)).code(), Some(0));
}

#[test]
fn shutdown_delay_keeps_serving() {
    let delay = Duration::from_millis(800);
    let mut server =
        setup("0s").server("shutdown_delay = \"800ms\"").server("idle_grace = \"10s\"").start();
    let mut kept = server.connect();
    kept.exchange(get("app.test", "/"));
    let signalled = Instant::now();
    server.signal(Signal::TERM);
    let mut last_new = None;
    while signalled.elapsed() < delay {
        let began = Instant::now();
        let Ok(mut client) = Client::try_connect(server.address(), delay * 2) else { break };
        assert_eq!(client.exchange(get_and_close("app.test", "/")).text(), "hello");
        // Only an exchange that ended early enough was certainly within the delay.
        let response = kept.exchange(get("app.test", "/"));
        if signalled.elapsed() < delay {
            assert!(!response.says_close(), "after {:?}", signalled.elapsed());
        }
        last_new = Some(began);
        if response.says_close() {
            break;
        }
    }
    let last_new = last_new.expect("a new connection is answered") - signalled;
    assert!(last_new > delay / 2, "the last new connection was answered {last_new:?} after");
    drop(kept);
    assert_eq!(server.wait_exit().code(), Some(0));
    assert!(signalled.elapsed() >= delay, "gone after {:?}", signalled.elapsed());
}

#[test]
fn a_second_signal_ends_the_shutdown_delay() {
    let mut server = setup("0s").server("shutdown_delay = \"60s\"").start();
    server.signal(Signal::TERM);
    server.wait_event("shutdown_graceful");
    server.signal(Signal::TERM);
    // Nothing was open, so nothing was cut.
    assert_eq!(server.wait_exit_within(Duration::from_secs(5)).code(), Some(0));
}

#[test]
fn sigterm_under_keep_alive_load_loses_nothing() {
    for _ in 0..3 {
        stop_under_load(LoadKind::KeepAlive);
    }
}

#[test]
fn sigterm_under_new_connections_loses_nothing() {
    for _ in 0..3 {
        stop_under_load(LoadKind::NewConnections);
    }
}

fn stop_under_load(kind: LoadKind) {
    // The grace is long, so that every load thread sends a request in time, even on a busy machine.
    // It does not delay the stop, because all of them do.
    let mut server = setup("0s").server("idle_grace = \"10s\"").start();
    let load = Load::start(kind, 4, server.address(), "app.test", "hello");
    load.wait_answered(300);
    load.expect_stop();
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit().code(), Some(0), "{kind:?}");
    let tally = load.join();
    assert!(tally.lost.is_empty(), "{kind:?}: {tally:?}");
    assert!(tally.answered >= 300 && tally.turned_away >= 4, "{kind:?}: {tally:?}");
    server.wait_event("shutdown_drained");
}

#[test]
fn a_large_download_during_sigterm_finishes_whole() {
    let content = pattern(20 * MIB);
    let mut server = setup("0s")
        .app("files.test", "files = { root = \"site\" }")
        .file("site/large.bin", &content)
        .start();
    let mut client = Client::connect_narrow(server.address());
    client.send(get("files.test", "/large.bin"));
    client.buffer_at_least(1);
    server.signal(Signal::TERM);
    assert_eq!(server.wait_event("shutdown_graceful").count("active_connections"), 1);
    let response = client.response();
    assert!(response.body == content, "{} bytes, not the file's", response.body.len());
    client.expect_end();
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn content_that_is_still_sent_at_sigterm_is_read() {
    let mut server = setup("0s").start();
    let mut client = server.connect();
    client.send("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 200000\r\n\r\n");
    client.send(vec![b'x'; 100_000]);
    server.wait_read([&client]);
    server.signal(Signal::TERM);
    server.wait_event("shutdown_gated");
    client.send(vec![b'x'; 100_000]);
    assert_eq!(client.response().text(), "hello");
    let (rest, end) = client.read_to_end();
    assert_eq!((rest.len(), end), (0, End::Eof));
    drop(client);
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn an_app_that_cannot_be_loaded_is_503_while_others_serve() {
    let server = setup("0s").app("broken.test", "files = { root = \"no-such-folder\" }").start();
    let failed = server.wait_event("app_load_failed");
    assert_eq!(failed.field("host"), Some("broken.test"));
    assert!(failed.field("error").is_some_and(|error| !error.is_empty()), "{failed:?}");
    let mut client = server.connect();
    assert_eq!(client.exchange(get("broken.test", "/")).status, 503);
    assert_eq!(client.exchange(get("app.test", "/")).text(), "hello");
}

#[test]
fn the_process_is_ready_again_on_the_same_port_after_a_stop() {
    let mut first = setup("0s").start();
    assert_eq!(first.connect().exchange(get_and_close("app.test", "/")).text(), "hello");
    let address = first.address().to_string();
    first.signal(Signal::TERM);
    assert_eq!(first.wait_exit().code(), Some(0));
    // Connections of the first process may still be in TIME_WAIT.
    let second = setup("0s").listen(&[&address]).start();
    assert_eq!(second.connect().exchange(get("app.test", "/")).text(), "hello");
}

#[test]
fn a_bad_configuration_exits_2_and_names_the_place() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("config.toml");
    let path = path.to_str().expect("text");
    fs::write(path, "[server]\nlisten = [\"127.0.0.1:0\"]\nlisten_typo = 1\n").expect("write");
    for command in ["check", "serve"] {
        let (code, errors) = support::run(&[command, "--config", path]);
        assert_eq!(code, Some(2), "{command}: {errors}");
        assert!(errors.contains("config.toml:3:1"), "{command}: {errors}");
        assert!(errors.contains("listen_typo"), "{command}: {errors}");
    }
    let good = setup("1s").text();
    fs::write(path, good).expect("write");
    let (code, errors) = support::run(&["check", "--config", path]);
    assert_eq!(code, Some(0), "{errors}");
    assert_eq!(support::run(&["check", "--config", "/no/such/config.toml"]).0, Some(2));
}

#[test]
fn the_version_is_that_of_the_package() {
    let (code, output) = support::run(&["version"]);
    assert_eq!(code, Some(0));
    assert!(output.contains(env!("CARGO_PKG_VERSION")), "{output}");
    assert_eq!(support::run(&["no-such-command"]).0, Some(2));
}

#[test]
fn an_address_in_use_is_a_failure_that_is_reported() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = holder.local_addr().expect("address");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("config.toml");
    fs::write(&path, setup("0s").listen(&[&address.to_string()]).text()).expect("write");
    let (code, errors) = support::run(&["serve", "--config", path.to_str().expect("text")]);
    assert!(code.is_some_and(|code| code == 1 || code == 2), "{code:?}: {errors}");
    assert!(errors.contains(&address.port().to_string()), "{errors}");
    assert!(errors.contains("Address already in use"), "{errors}");
}

#[test]
fn a_second_server_on_the_same_address_fails_instead_of_taking_half_of_the_connections() {
    let first = setup("0s").start();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("config.toml");
    let address = first.address().to_string();
    fs::write(&path, setup("0s").listen(&[&address]).text()).expect("write");
    let (code, errors) = support::run(&["serve", "--config", path.to_str().expect("text")]);
    assert_eq!(code, Some(1), "{errors}");
    let named = errors.contains(&format!("cannot listen on {address}: Address already in use"));
    assert!(named, "{errors}");
    assert_eq!(first.connect().exchange(get("app.test", "/")).text(), "hello");
}
