//! Limits for one client: how many connections it has, and how many requests it makes.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use crate::support::{Client, End, PATIENCE, Response, Server, Setup, get, post, wait_until};

const HOST: &str = "a.test";

fn metric(server: &Server, name: &str) -> u64 {
    let page = server.admin().call("GET", "/metrics", "").text;
    let mut lines = page.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    lines.next().expect("the metric").parse().expect("a number")
}

/// Waits until this many connections were refused by the limit per client.
fn wait_refused(server: &Server, count: u64) {
    let refused = || metric(server, "tidegate_connections_refused_total");
    assert!(wait_until(PATIENCE, || refused() == count), "{} of {count}", refused());
}

/// A connection from this address, if its first request is answered. `header` is sent before the
/// request. A refused connection is closed without an answer.
fn served(address: SocketAddr, ip: &str, header: &str) -> Option<Client> {
    let ip: IpAddr = ip.parse().expect("an address");
    let mut client = Client::connect_from(ip, address);
    // A closed client may notice before it has sent.
    let _ = client.try_send(format!("{header}{}", get(HOST, "/")).as_bytes());
    match client.try_response(false) {
        Ok(response) => {
            assert_eq!((response.status, response.text()), (200, HOST));
            Some(client)
        }
        Err(_) => {
            let (answer, end) = client.read_to_end();
            assert!(answer.is_empty() && end != End::Open, "{answer:?}, {end:?}");
            None
        }
    }
}

/// Waits until a client at its limit gets another connection: the server first has to notice that
/// an old one is gone.
fn wait_served(mut connect: impl FnMut() -> Option<Client>) -> Client {
    let mut client = None;
    assert!(wait_until(PATIENCE, || {
        client = connect();
        client.is_some()
    }));
    client.expect("it is there")
}

#[test]
fn a_client_has_no_more_connections_than_it_may_and_others_have_theirs() {
    let setup = Setup::new().listen(&["127.0.0.1:0", "[::1]:0"]).named_app(HOST);
    let server = setup.limits("connections_per_ip = 3").start();
    let [v4, v6] = *server.addresses() else { panic!("{:?}", server.addresses()) };
    for (address, ip) in [(v4, "127.0.0.1"), (v4, "127.0.0.2"), (v6, "::1")] {
        let refused = metric(&server, "tidegate_connections_refused_total");
        let mut clients: Vec<Client> =
            (0..3).map(|_| served(address, ip, "").expect("within the limit")).collect();
        for _ in 0..8 {
            assert!(served(address, ip, "").is_none());
        }
        wait_refused(&server, refused + 8);
        clients.pop();
        clients.push(wait_served(|| served(address, ip, "")));
        for client in &mut clients {
            assert_eq!(client.exchange(get(HOST, "/")).status, 200, "{ip}");
        }
    }
    let event = server.wait_event("connection_refused");
    assert_eq!(event.field("client"), Some("127.0.0.1"), "{event:?}");
    let events = server.events();
    let reported = events.iter().filter(|event| event.name == "connection_refused").count();
    assert!(reported <= 2, "{reported} lines of two loops");
}

#[test]
fn behind_a_proxy_header_the_client_that_it_names_is_counted() {
    let listen = "{ address = \"127.0.0.1:0\", proxy_protocol = true }";
    let setup = Setup::new().listen(&[listen]).limits("connections_per_ip = 1").named_app(HOST);
    let server = setup.start();
    let connect = |source: &str| {
        let header = format!("PROXY TCP6 {source} ::1 56324 443\r\n");
        served(server.address(), "127.0.0.1", &header)
    };
    let first = connect("2001:db8::1").expect("the first");
    assert!(connect("2001:db8::2").is_none(), "another address of its network");
    let _other = connect("2001:db8:0:1::1").expect("another client");
    wait_refused(&server, 1);
    assert_eq!(metric(&server, "tidegate_proxy_headers_refused_total"), 0);
    drop(first);
    let _second = wait_served(|| connect("2001:db8::2"));
    // Without a client's address, the proxy's connections are not limited.
    for _ in 0..3 {
        let header = "PROXY UNKNOWN\r\n";
        assert!(served(server.address(), "127.0.0.1", header).is_some());
    }
}

#[test]
fn a_reload_changes_the_connections_of_a_client_and_those_that_are_open_stay() {
    let text = |line: &str| Setup::new().limits(line).named_app(HOST).text();
    let server = Setup::new().limits("connections_per_ip = 2").named_app(HOST).start();
    let connect = || served(server.address(), "127.0.0.1", "");
    let mut clients: Vec<Client> = (0..2).map(|_| connect().expect("within the limit")).collect();
    assert!(connect().is_none());
    for (line, more) in [("connections_per_ip = 1", 0), ("connections_per_ip = 4", 2), ("", 1)] {
        server.rewrite(&text(line));
        let done = server.admin().post("/reload");
        assert_eq!(done["settings"], json!(["limits.connections_per_ip"]), "{line}");
        clients.extend((0..more).map(|_| connect().expect("within the limit")));
        assert!(line.is_empty() || connect().is_none(), "{line}");
        for client in &mut clients {
            assert_eq!(client.exchange(get(HOST, "/")).status, 200, "{line}");
        }
    }
}

/// Three requests, and then one an hour.
const RARELY: &str = "rate_limit = { requests = 1, per = \"1h\", burst = 3 }";

/// An app with a rate limit.
fn limited(body: &str, limit: &str) -> String {
    format!("respond = {{ body = \"{body}\" }}\n{limit}")
}

/// The answer to a request from this address; its connection stays open.
fn ask(server: &Server, ip: &str) -> Response {
    let ip: IpAddr = ip.parse().expect("an address");
    let mut client = Client::connect_from(ip, server.address());
    let response = client.exchange(get(HOST, "/"));
    assert!(!response.says_close());
    response
}

fn row(server: &Server, host: &str) -> Value {
    server.admin().get(&format!("/apps/{host}"))
}

#[test]
fn a_client_has_its_burst_over_all_loops_and_then_429() {
    let server = Setup::new().app(HOST, &limited("a", RARELY)).named_app("b.test").start();
    for ip in ["127.0.0.1", "127.0.0.2"] {
        let (mut answered, mut refused) = (0, 0);
        for _ in 0..20 {
            let response = ask(&server, ip);
            if response.status == 200 {
                answered += 1;
                continue;
            }
            refused += 1;
            let after = response.field("Retry-After").expect("Retry-After").to_owned();
            assert!((3_540..=3_600).contains(&after.parse().expect("whole seconds")), "{after}");
            let document = format!("{{\"error\":\"Too many requests\",\"retry_after_s\":{after}}}");
            assert_eq!((response.status, response.text()), (429, &*document));
        }
        assert_eq!((answered, refused), (3, 17), "{ip}");
    }
    // The last answer is counted when the kernel has it.
    for (status, count) in [(200, 6), (429, 34)] {
        let name = format!("tidegate_requests_total{{app=\"a.test\",status=\"{status}\"}}");
        assert!(wait_until(PATIENCE, || metric(&server, &name) == count), "{name}");
    }
    let row_of_it = row(&server, HOST);
    assert_eq!([&row_of_it["limited"], &row_of_it["requests_total"]], [34, 40]);
    // Another app is not affected.
    let mut client = server.connect();
    for _ in 0..20 {
        assert_eq!(client.exchange(get("b.test", "/")).status, 200);
    }
    assert!(row(&server, "b.test").get("limited").is_none());
}

#[test]
fn a_connection_continues_after_429_and_the_bucket_fills() {
    let limit = "rate_limit = { requests = 1, per = \"300ms\" }";
    let dead = "proxy = { upstreams = [\"http://127.0.0.1:1\"] }";
    let setup = Setup::new().app(HOST, &limited("a", limit)).app("p.test", dead);
    let server = setup.app("q.test", &format!("{dead}\n{RARELY}")).start();
    let mut client = server.connect();
    assert_eq!(client.exchange(get(HOST, "/")).status, 200);
    let refused = client.exchange(post(HOST, "/", 3) + "abc" + &get("b.test", "/"));
    assert_eq!((refused.status, refused.field("Retry-After")), (429, Some("1")));
    assert_eq!(client.response().status, 404, "the request behind it");
    let filled = || client.exchange(get(HOST, "/")).status == 200;
    assert!(wait_until(PATIENCE, filled));
    // The app is not called above the limit: it would answer 502.
    let statuses: Vec<u16> = (0..4).map(|_| client.exchange(get("q.test", "/")).status).collect();
    assert_eq!(statuses, [502, 502, 502, 429]);
}

#[test]
fn a_new_life_of_the_same_rate_goes_on_with_what_its_clients_have_left() {
    let text = |body: &str, limit| Setup::new().app(HOST, &limited(body, limit)).text();
    let server = Setup::new().app(HOST, &limited("a", RARELY)).start();
    let admin = server.admin();
    let statuses = || [(); 2].map(|()| ask(&server, "127.0.0.1").status);
    assert_eq!([statuses(), statuses()], [[200, 200], [200, 429]]);
    server.rewrite(&text("b", RARELY));
    assert_eq!(admin.post("/reload")["changed"], json!([HOST]));
    assert_eq!((statuses(), &row(&server, HOST)["limited"]), ([429, 429], &json!(2)));
    let drain = admin.post(&format!("/apps/{HOST}/drain"));
    admin.wait_drain(&drain["id"]);
    admin.post(&format!("/apps/{HOST}/resume"));
    assert_eq!(statuses(), [429, 429]);
    let put = |limit: Value| {
        let table = json!({ "respond": { "body": "c" }, "rate_limit": limit });
        assert_eq!(admin.put(&format!("/apps/{HOST}?only=replace"), &table).status, 200);
    };
    put(json!({ "requests": 1, "per": "1h", "burst": 3 }));
    assert_eq!(statuses(), [429, 429]);
    put(json!({ "requests": 1, "per": "1h" }));
    assert_eq!(statuses(), [200, 429], "another burst");
}
