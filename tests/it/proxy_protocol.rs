//! Listeners whose connections begin with a PROXY header: the client that it names counts
//! everywhere, and without a header there is no answer.

use std::{
    fs,
    net::{Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::{
    Client, End, PATIENCE, Server, Setup, Signal, Upstream, free_port, get, get_and_close,
    wait_until,
};

const HOST: &str = "a.test";
const LISTEN: &str = "{ address = \"127.0.0.1:0\", proxy_protocol = true }";
const SECOND: &str = "{ address = \"127.0.0.2:0\", proxy_protocol = true }";
const LINE: &str = "PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A header of version 2: command, family, and the bytes behind the length.
fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).expect("a length").to_be_bytes();
    [SIGNATURE, &[command, family], &length, rest].concat()
}

fn binary_v4() -> Vec<u8> {
    binary(0x21, 0x11, &[192, 0, 2, 8, 198, 51, 100, 1, 0xdc, 0x04, 0x01, 0xbb])
}

/// A header of version 2 for IPv6, with 100 bytes of extensions.
fn binary_v6() -> Vec<u8> {
    let source: Ipv6Addr = "2001:db8::8".parse().expect("an address");
    let ips = [source.octets(), Ipv6Addr::LOCALHOST.octets()].concat();
    binary(0x21, 0x21, &[&ips[..], &[0xdc, 0x04, 0x01, 0xbb, 4, 0, 97], &[0; 97]].concat())
}

/// Each kind of header, and the client that the server should log.
fn headers() -> [(Vec<u8>, &'static str); 8] {
    [
        (LINE.into(), "192.0.2.7"),
        ("PROXY TCP6 2001:db8::7 ::1 56324 443\r\n".into(), "2001:db8::7"),
        ("PROXY TCP6 ::ffff:192.0.2.9 ::1 56324 443\r\n".into(), "192.0.2.9"),
        ("PROXY UNKNOWN\r\n".into(), "127.0.0.1"),
        (binary_v4(), "192.0.2.8"),
        (binary_v6(), "2001:db8::8"),
        (binary(0x20, 0x00, &[]), "127.0.0.1"),
        (binary(0x21, 0x31, &[b'/'; 216]), "127.0.0.1"),
    ]
}

fn setup() -> Setup {
    Setup::new().listen(&[LISTEN]).server("idle_grace = \"0s\"").named_app(HOST)
}

/// The clients in the access log, as soon as it has this many lines.
fn wait_clients(server: &Server, count: usize) -> Vec<String> {
    let path = server.dir().join("access.log");
    let read = || fs::read_to_string(&path).unwrap_or_default();
    let came = wait_until(PATIENCE, || read().matches('\n').count() >= count);
    let text = read();
    assert!(came, "{count} lines: {text}");
    text.lines().map(|line| line.split(' ').next().expect("a client").to_owned()).collect()
}

fn metric(server: &Server, name: &str) -> u64 {
    let page = server.admin().call("GET", "/metrics", "").text;
    let mut lines = page.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    lines.next().expect("the metric").parse().expect("a number")
}

fn connections(server: &Server) -> Value {
    server.admin().get("/status")["connections"].clone()
}

/// The status of the answer to these bytes, on a connection of their own; `None` without an answer.
fn answer(address: SocketAddr, bytes: String) -> Option<u16> {
    let mut connection = Client::connect(address);
    connection.send(bytes);
    let (answer, end) = connection.read_to_end();
    assert_ne!(end, End::Open);
    Client::parse_all(&answer).first().map(|response| response.status)
}

#[test]
fn the_header_names_the_client() {
    let log = "access = \"combined\"\naccess_path = \"access.log\"";
    let upstream = Upstream::tcp(|_, line| line.answer(200, "up"));
    let proxy = format!("proxy = {{ upstreams = [\"{}\"] }}", upstream.url());
    let server = setup().log(log).app("p.test", &proxy).start();
    let mut expected = Vec::new();
    for (header, client) in headers() {
        let mut connection = server.connect();
        // Header and request in one segment, and a second request behind.
        let first = [&header, get(HOST, "/").as_bytes()].concat();
        assert_eq!(connection.exchange(&first).text(), HOST, "{header:?}");
        assert_eq!(connection.exchange(get_and_close("p.test", "/")).text(), "up", "{header:?}");
        connection.expect_end();
        assert_eq!(upstream.last().all("X-Forwarded-For"), [client], "{header:?}");
        expected.extend([client, client]);
        assert_eq!(wait_clients(&server, expected.len()), expected);
    }
}

#[test]
fn a_header_may_come_in_pieces() {
    let server = setup().start();
    for (header, _) in headers() {
        for size in [1, 7, header.len() - 1, header.len()] {
            let mut connection = server.connect();
            connection.send_in_pieces(&header, size).expect("send");
            let request = get_and_close(HOST, "/");
            connection.send_in_pieces(request.as_bytes(), request.len() / 2).expect("send");
            assert_eq!(connection.response().text(), HOST, "{header:?} by {size}");
            connection.expect_end();
        }
    }
    assert_eq!(metric(&server, "tidegate_proxy_headers_refused_total"), 0);
}

#[test]
fn a_connection_without_a_header_is_closed_without_an_answer() {
    let server = setup().start();
    let too_long = [&binary(0x21, 0x11, &[1; 12])[..14], &[0xff, 0xff], &[0; 100]].concat();
    let request = get(HOST, "/");
    let spaced = LINE.replace(' ', "  ") + &request;
    let wrong: [&[u8]; 8] = [
        request.as_bytes(),
        spaced.as_bytes(),
        b"PROXY TCP4 192.0.2.07 198.51.100.1 1 443\r\n",
        b"PROXY TCP6 192.0.2.7 198.51.100.1 1 443\r\n",
        &binary(0x22, 0x11, &[1; 12]),
        &binary(0x21, 0x11, &[1; 11]),
        &too_long,
        &[0xa5; 4096],
    ];
    for bytes in wrong {
        let mut connection = server.connect();
        connection.send(bytes);
        let (answer, end) = connection.read_to_end();
        assert!(answer.is_empty() && end != End::Open, "{bytes:?}: {answer:?} {end:?}");
    }
    let count = wrong.len() as u64;
    let counted =
        wait_until(PATIENCE, || metric(&server, "tidegate_proxy_headers_refused_total") == count);
    assert!(counted, "{}", metric(&server, "tidegate_proxy_headers_refused_total"));
    let event = server.wait_event("proxy_header_refused");
    let peer = event.field("peer").and_then(|peer| peer.parse::<SocketAddr>().ok());
    assert_eq!(peer.map(|peer| peer.ip().is_loopback()), Some(true), "{event:?}");
    // At most one for each of the two loops.
    let events = server.events();
    let reported = events.iter().filter(|event| event.name == "proxy_header_refused").count();
    assert!(reported <= 2, "{reported} lines for {count} connections");
}

#[test]
fn a_header_that_does_not_come_in_time_is_not_waited_for() {
    let server = setup().limits("head_timeout = \"300ms\"").start();
    for part in ["", "P", &LINE[..LINE.len() - 1], LINE] {
        let mut connection = server.connect();
        connection.send(part);
        connection.expect_end();
    }
    // Sending single bytes does not extend the time-out.
    let mut connection = server.connect();
    let mut bytes = LINE.as_bytes()[..LINE.len() - 1].iter();
    while !connection.is_readable() {
        let byte = bytes.next().expect("the server waits as long as bytes come");
        connection.send([*byte]);
        connection.stays_silent(Duration::from_millis(25));
    }
    connection.expect_end();
    assert_eq!(metric(&server, "tidegate_proxy_headers_refused_total"), 0);
}

#[test]
fn a_connection_with_half_a_header_is_fresh_and_a_stop_ends_it() {
    for part in ["", &LINE[..20], LINE] {
        let mut server = setup().limits("linger_timeout = \"50ms\"").start();
        let mut connection = server.connect();
        connection.send(part);
        if !part.is_empty() {
            server.wait_read([&connection]);
        }
        let is_fresh = || connections(&server)["fresh"] == json!(1);
        assert!(wait_until(PATIENCE, is_fresh), "{part:?}: {}", connections(&server));
        let begun = Instant::now();
        server.signal(Signal::TERM);
        connection.expect_eof();
        assert_eq!(server.wait_exit().code(), Some(0));
        assert!(begun.elapsed() < Duration::from_secs(8), "before head_timeout: {part:?}");
    }
}

#[test]
fn a_header_and_a_request_that_come_within_the_grace_of_a_stop_are_served() {
    let setup = Setup::new().listen(&[LISTEN]).server("idle_grace = \"10s\"").named_app(HOST);
    let mut server = setup.start();
    let mut connection = server.connect();
    connection.send(&LINE[..20]);
    server.wait_read([&connection]);
    server.signal(Signal::TERM);
    server.wait_event("shutdown_gated");
    connection.send(format!("{}{}", &LINE[20..], get(HOST, "/")));
    let response = connection.response();
    assert_eq!((response.text(), response.says_close()), (HOST, true));
    connection.expect_end();
    assert_eq!(server.wait_exit().code(), Some(0));
}

#[test]
fn a_busy_connection_is_listed_with_its_client() {
    let server = setup().app("slow.test", "respond = { delay = \"10s\" }").start();
    let mut connection = server.connect();
    connection.send(LINE.to_owned() + &get("slow.test", "/"));
    let row = || server.admin().get("/apps/slow.test/connections")["connections"][0].clone();
    assert!(wait_until(PATIENCE, || row().is_object()));
    assert_eq!(row()["peer"], "192.0.2.7:56324");
}

#[test]
fn other_listeners_of_the_server_take_no_header() {
    let server = Setup::new().listen(&["127.0.0.1:0", SECOND]).named_app(HOST).start();
    let [plain, proxied] = *server.addresses() else { panic!("{:?}", server.addresses()) };
    let request = get_and_close(HOST, "/");
    assert_eq!(answer(plain, request.clone()), Some(200));
    assert_eq!(answer(plain, format!("{LINE}{request}")), Some(400));
    assert_eq!(answer(proxied, request.clone()), None);
    assert_eq!(answer(proxied, format!("{LINE}{request}")), Some(200));
}

#[test]
fn a_reload_switches_the_header_on_and_off_for_new_connections() {
    let address = free_port().to_string();
    let entry = |is_on: bool| format!("{{ address = \"{address}\", proxy_protocol = {is_on} }}");
    let text = |is_on: bool| Setup::new().listen(&[&entry(is_on)]).named_app(HOST).text();
    let server = Setup::new().listen(&[&address]).named_app(HOST).start();
    let mut old = server.connect();
    assert_eq!(old.exchange(get(HOST, "/")).status, 200);
    let request = get_and_close(HOST, "/");
    for round in 0..20 {
        let is_on = round % 2 == 0;
        server.rewrite(&text(is_on));
        let done = server.admin().post("/reload");
        assert_eq!(done["listeners"], json!({ "added": [], "failed": [], "removed": [] }));
        assert_eq!(done["settings"], json!(["server.listen"]), "{done}");
        for header in ["", LINE] {
            let status = answer(server.address(), format!("{header}{request}"));
            let expected = match (is_on, header) {
                (true, "") => None,
                (false, LINE) => Some(400),
                _ => Some(200),
            };
            assert_eq!(status, expected, "round {round}, {header:?}");
        }
    }
    assert_eq!(old.exchange(get(HOST, "/")).status, 200, "it stays as it was");
}

#[test]
fn an_address_that_a_reload_adds_has_its_option_from_the_first_connection() {
    let server = Setup::new().named_app(HOST).start();
    server.rewrite(&Setup::new().listen(&["127.0.0.1:0", SECOND]).named_app(HOST).text());
    let done = server.admin().post("/reload");
    let added = done["listeners"]["added"][0].as_str().expect("an address");
    let added: SocketAddr = added.parse().expect("an address");
    assert_eq!(answer(added, get_and_close(HOST, "/")), None);
    assert_eq!(answer(added, LINE.to_owned() + &get_and_close(HOST, "/")), Some(200));
}
