//! Checks and look-ups against sockets of this machine.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixListener,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::Receiver;

use super::*;
use crate::{
    app::{App, EndpointState, Proxy},
    config::{HealthConfig, ProxyConfig, UpstreamAddress, UpstreamConfig},
};

const PATIENCE: Duration = Duration::from_secs(10);

fn tcp(host: &str, port: u16) -> UpstreamAddress {
    UpstreamAddress::Tcp { tls: false, host: host.to_owned(), port }
}

/// A proxy to these, whose checks come fast.
fn proxy(addresses: Vec<UpstreamAddress>) -> Proxy {
    proxy_with(addresses, Duration::from_millis(200))
}

fn proxy_with(addresses: Vec<UpstreamAddress>, timeout: Duration) -> Proxy {
    let upstream = |address| UpstreamConfig { address, weight: 1 };
    let health = HealthConfig {
        interval: Duration::from_millis(10),
        timeout,
        rise: 2,
        fall: 2,
        ..HealthConfig::new("/healthz?a".to_owned())
    };
    let config = ProxyConfig {
        health: Some(health),
        resolve_every: Duration::from_millis(20),
        ..ProxyConfig::new(addresses.into_iter().map(upstream).collect())
    };
    Proxy::open(config, 1).unwrap()
}

fn watch(proxy: &Proxy) -> UpstreamWatch {
    let mut watch = UpstreamWatch::new(Instant::now(), Arc::default());
    watch.watch("a.test", proxy.upstreams().expect("upstreams")).expect("threads");
    watch
}

/// Answers one request, and returns its head.
fn serve(stream: impl Read + Write, status: u16) -> String {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).is_ok_and(|read| read > 0) {}
    let answer = format!("HTTP/1.1 {status} x\r\nContent-Length: 2\r\n\r\nok");
    drop(reader.get_mut().write_all(answer.as_bytes()));
    head
}

/// A server that answers with this status, and tells each request.
fn server(status: &Arc<AtomicU16>) -> (SocketAddr, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let (sender, heads) = crossbeam_channel::unbounded();
    let status = Arc::clone(status);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if sender.send(serve(stream, status.load(Relaxed))).is_err() {
                return;
            }
        }
    });
    (address, heads)
}

/// Waits until each upstream has this state and reason.
fn wait_for(proxy: &Proxy, expected: &[(EndpointState, Option<&str>)]) {
    let deadline = Instant::now() + PATIENCE;
    let ticks = crossbeam_channel::tick(Duration::from_millis(5));
    loop {
        let rows = proxy.upstreams().expect("upstreams").rows(0);
        let found: Vec<_> = rows.iter().map(|row| (row.state, row.reason.as_deref())).collect();
        if found == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{found:?} is not {expected:?}");
        ticks.recv().expect("a tick");
    }
}

use EndpointState::{Down, Up};

#[test]
fn an_upstream_that_is_not_well_is_down_until_it_is() {
    let status = Arc::new(AtomicU16::new(204));
    let (address, heads) = server(&status);
    let proxy = proxy(vec![tcp("127.0.0.1", address.port())]);
    let _watch = watch(&proxy);
    let head = heads.recv_timeout(PATIENCE).expect("a check");
    let expected = format!(
        "GET /healthz?a HTTP/1.1\r\nHost: {address}\r\nUser-Agent: tidegate-health\r\n\
         Accept: */*\r\nConnection: close\r\n\r\n"
    );
    assert_eq!(head, expected);
    wait_for(&proxy, &[(Up, None)]);
    status.store(500, Relaxed);
    wait_for(&proxy, &[(Down, Some("status 500"))]);
    status.store(200, Relaxed);
    wait_for(&proxy, &[(Up, None)]);
}

#[test]
fn checks_end_with_the_life() {
    let (address, heads) = server(&Arc::new(AtomicU16::new(200)));
    let proxy = proxy(vec![tcp("127.0.0.1", address.port())]);
    let _watch = watch(&proxy);
    for _ in 0..3 {
        heads.recv_timeout(PATIENCE).expect("a check");
    }
    drop(proxy);
    let more = std::iter::from_fn(|| heads.recv_timeout(Duration::from_millis(200)).ok());
    assert!(more.take(10).count() < 5, "checks go on");
}

#[test]
fn one_that_does_not_answer_holds_up_no_other() {
    let silent: Vec<_> =
        (0..20).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    let (address, _heads) = server(&Arc::new(AtomicU16::new(200)));
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let ports = silent.iter().map(|listener| listener.local_addr().expect("an address").port());
    let mut addresses: Vec<_> = ports.map(|port| tcp("127.0.0.1", port)).collect();
    addresses.extend([tcp("127.0.0.1", address.port()), tcp("127.0.0.1", free.port())]);
    let proxy = proxy(addresses);
    let _watch = watch(&proxy);
    let mut expected = vec![(Down, Some("timeout")); silent.len()];
    let refused = "connect: Connection refused (os error 111)";
    expected.extend([(Up, None), (Down, Some(refused))]);
    wait_for(&proxy, &expected);
}

#[test]
fn the_next_address_is_tried_where_one_does_not_open() {
    let (address, heads) = server(&Arc::new(AtomicU16::new(200)));
    let proxy = proxy(vec![tcp("localhost", address.port())]);
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let upstreams = proxy.upstreams().expect("upstreams");
    upstreams.endpoints()[0].set_addresses(Ok(vec![free, address]));
    let mut watch = UpstreamWatch::new(Instant::now(), Arc::default());
    watch.watch("a.test", upstreams).expect("threads");
    for _ in 0..3 {
        heads.recv_timeout(PATIENCE).expect("a check");
    }
    wait_for(&proxy, &[(Up, None)]);
}

/// A server that answers so, and keeps every connection open; it tells of each. On another address
/// of this machine if `address` says so.
fn keeping(address: &str, answer: &'static str) -> (SocketAddr, Receiver<()>) {
    let listener = TcpListener::bind(address).expect("a port");
    let address = listener.local_addr().expect("an address");
    let (sender, asked) = crossbeam_channel::unbounded();
    thread::spawn(move || {
        let mut open = Vec::new();
        for mut stream in listener.incoming().flatten() {
            // In two pieces: none of them is known to be the last.
            for piece in [&answer[..answer.len() / 2], &answer[answer.len() / 2..]] {
                drop(stream.write_all(piece.as_bytes()));
            }
            open.push(stream);
            if sender.send(()).is_err() {
                return;
            }
        }
    });
    (address, asked)
}

#[test]
fn a_check_ends_with_the_end_of_the_answer_although_the_connection_stays_open() {
    for (answer, state) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", (Up, None)),
        ("HTTP/1.1 204 No Content\r\n\r\n", (Up, None)),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", (Up, None)),
        (
            "HTTP/1.1 103 x\r\n\r\nHTTP/1.0 503 x\r\nContent-Length: 0\r\n\r\n",
            (Down, Some("status 503")),
        ),
        (
            "HTTP/1.1 101 x\r\nUpgrade: x\r\n\r\n",
            (Down, Some("no HTTP answer: an unsolicited 101")),
        ),
        (
            "HTTP/2 200 OK\r\n\r\n",
            (Down, Some("no HTTP answer: only HTTP/1.1 and HTTP/1.0 are supported")),
        ),
    ] {
        let (address, asked) = keeping("127.0.0.1:0", answer);
        let proxy = proxy_with(vec![tcp("127.0.0.1", address.port())], 10 * PATIENCE);
        let _watch = watch(&proxy);
        for _ in 0..4 {
            asked.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no next check: {answer:?}"));
        }
        wait_for(&proxy, &[state]);
    }
}

#[test]
fn an_address_whose_answer_has_no_end_is_asked_again() {
    let endless = "HTTP/1.1 200 OK\r\n\r\nok";
    let (address, asked) = keeping("127.0.0.1:0", endless);
    let (other, others) = keeping("127.0.0.2:0", endless);
    let proxy = proxy_with(vec![tcp("localhost", address.port())], Duration::from_millis(50));
    let upstreams = proxy.upstreams().expect("upstreams");
    upstreams.endpoints()[0].set_addresses(Ok(vec![address, other]));
    let mut watch = UpstreamWatch::new(Instant::now(), Arc::default());
    watch.watch("a.test", upstreams).expect("threads");
    for _ in 0..4 {
        asked.recv_timeout(PATIENCE).expect("a check");
    }
    assert!(others.is_empty());
    wait_for(&proxy, &[(Up, None)]);
}

#[test]
fn a_socket_of_this_machine_is_checked_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("app.sock");
    let proxy = proxy(vec![UpstreamAddress::Unix(path.clone())]);
    let _watch = watch(&proxy);
    wait_for(&proxy, &[(Down, Some("connect: No such file or directory (os error 2)"))]);
    serve_unix(&path);
    wait_for(&proxy, &[(Up, None)]);
}

fn serve_unix(path: &Path) {
    let listener = UnixListener::bind(path).expect("a socket");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            serve(stream, 200);
        }
    });
}

#[test]
fn names_are_looked_up_again() {
    let proxy = proxy(vec![tcp("localhost", 7)]);
    let _watch = watch(&proxy);
    let endpoint = &proxy.upstreams().expect("upstreams").endpoints()[0];
    let stale: SocketAddr = "192.0.2.1:7".parse().expect("an address");
    endpoint.set_addresses(Ok(vec![stale]));
    let deadline = Instant::now() + PATIENCE;
    let ticks = crossbeam_channel::tick(Duration::from_millis(5));
    while endpoint.addresses() == [stale] {
        assert!(Instant::now() < deadline, "never looked up");
        ticks.recv().expect("a tick");
    }
    assert!(endpoint.addresses().iter().all(|address| address.ip().is_loopback()));
}
