//! Fields in both directions, and the choice of an upstream, as tables.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use super::{no_upstream::NoUpstream, *};
use crate::{
    app::{
        Scheme,
        test_support::{context, request},
    },
    config::{AppKind, Config},
    http::{FieldTable, Limits, RequestContent, ServerEvent, Version, h1},
};

const MS: u64 = 1_000_000;

/// A proxy with these lines of config, for two loops.
fn proxy(lines: &str) -> Proxy {
    let text = format!("[apps.a.proxy]\n{lines}");
    let config = Config::parse(&text, Path::new("config.toml"), Path::new("/"));
    let mut config = config.unwrap_or_else(|error| panic!("{error}"));
    let AppKind::Proxy(config) = config.apps.remove(0).kind else { panic!("another kind") };
    Proxy::open(*config, 2).unwrap()
}

/// A proxy to this many upstreams.
fn proxy_to(count: usize, lines: &str) -> Proxy {
    let urls: Vec<_> = (1..=count).map(|n| format!("'http://10.0.0.{n}:80'")).collect();
    proxy(&format!("upstreams = [{}]\n{lines}", urls.join(",")))
}

fn forward_from(proxy: &Proxy, peer: &str, request: &RequestHead<'_>) -> Forward {
    let peer = Peer::Tcp(SocketAddr::new(peer.parse().unwrap(), 40_000));
    match proxy.handle(request, &Context { peer, ..context() }) {
        Reply::Forward(forward) => forward,
        reply => panic!("not forwarded: {:?}", reply.status()),
    }
}

fn forward(proxy: &Proxy) -> Forward {
    forward_from(proxy, "192.0.2.1", &request("GET", "/", &[]))
}

/// The head that the first upstream gets.
fn head(forward: &Forward) -> Vec<String> {
    let chosen = forward.choose(0, &[]).expect("an upstream");
    let mut out = Vec::new();
    forward.write_head(&chosen, &mut out);
    let text = String::from_utf8(out).expect("ASCII");
    assert!(text.ends_with("\r\n") && !text.contains("\r\n\r\n"), "{text:?}");
    text.trim_end_matches("\r\n").split("\r\n").map(str::to_owned).collect()
}

/// The head that a proxy with these lines forwards, without the lines that are always the same.
fn passed_on(lines: &str, peer: &str, fields: &[(&str, &str)]) -> Vec<String> {
    let proxy = proxy_to(1, lines);
    let head = head(&forward_from(&proxy, peer, &request("GET", "/", fields)));
    let own = |line: &String| {
        ["GET / HTTP/1.1", "Host: www.example.com", "Via: 1.1 tidegate"].contains(&line.as_str())
    };
    assert_eq!(head.iter().filter(|line| own(line)).count(), 3, "{head:?}");
    head.into_iter().filter(|line| !own(line)).collect()
}

/// The forwarded fields, without those that identify the client.
fn end_to_end(fields: &[(&str, &str)]) -> Vec<String> {
    let lines = passed_on("", "192.0.2.1", fields);
    let is_origin = |line: &String| {
        ["X-Forwarded-", "Forwarded: ", "X-Request-Id: "].iter().any(|it| line.starts_with(it))
    };
    assert_eq!(lines.iter().filter(|line| is_origin(line)).count(), 5, "{lines:?}");
    lines.into_iter().filter(|line| !is_origin(line)).collect()
}

#[test]
fn end_to_end_fields_are_forwarded_in_order_and_hop_by_hop_fields_are_not() {
    type Fields = &'static [(&'static str, &'static str)];
    let table: &[(Fields, &[&str])] = &[
        (&[], &[]),
        (
            &[("Accept", "a"), ("Cookie", "b=c"), ("accept", "d"), ("Authorization", "e")],
            &["Accept: a", "Cookie: b=c", "accept: d", "Authorization: e"],
        ),
        (&[("X-Empty", ""), ("X-Bytes", "caf\u{e9}")], &["X-Empty: ", "X-Bytes: caf\u{e9}"]),
        (&[("Host", "evil.example"), ("host", "b")], &[]),
        (&[("Connection", "close, X-Secret"), ("X-Secret", "1"), ("x-secret", "2")], &[]),
        (&[("X-Secret", "1"), ("Connection", "close"), ("CONNECTION", " ,, x-SECRET,")], &[]),
        (&[("Connection", "host, via"), ("Via", "1.0 a")], &["Via: 1.0 a"]),
        (&[("Connection", "content-length"), ("Content-Length", "5")], &[]),
        (&[("Connection", "x"), ("X-Y", "1")], &["X-Y: 1"]),
        (&[("Connection", "x y"), ("X", "1")], &["X: 1"]),
        (&[("Transfer-Encoding", "chunked"), ("TE", "trailers"), ("Trailer", "X")], &[]),
        (&[("Keep-Alive", "timeout=5"), ("Proxy-Connection", "keep-alive")], &[]),
        (&[("Proxy-Authorization", "a"), ("PROXY-AUTHENTICATE", "b"), ("Proxy-X", "c")], &[]),
        (&[("Proxy", "http://evil.example"), ("Proxys", "fine")], &["Proxys: fine"]),
        (&[("Expect", "100-continue")], &[]),
        (
            &[
                ("Upgrade", "h2c"),
                ("Connection", "Upgrade, HTTP2-Settings"),
                ("HTTP2-Settings", "A"),
            ],
            &[],
        ),
        (&[("HTTP2-Settings", "AAMAAABk")], &[]),
        (&[("Upgrade", "websocket")], &[]),
        (&[("Upgrade", "websocket"), ("Connection", "close")], &[]),
        (&[("Upgrade", "websocket, h2c"), ("Connection", "upgrade")], &[]),
        (&[("Upgrade", "websocket"), ("Upgrade", "h2c"), ("Connection", "upgrade")], &[]),
        (&[("Upgrade", "websocket"), ("Connection", "upgrade"), ("Content-Length", "1")], &[]),
        (
            &[
                ("Upgrade", "WebSocket"),
                ("Connection", "keep-alive, Upgrade"),
                ("Sec-WebSocket-Key", "x"),
            ],
            &["Sec-WebSocket-Key: x", "Upgrade: websocket"],
        ),
        // CGI cannot tell these from the names with `-`.
        (&[("Content_Length", "5"), ("Transfer_Encoding", "chunked"), ("X_Request_Id", "a")], &[]),
        (&[("X_Forwarded_For", "a"), ("X-Forwarded_Port", "b"), ("x_real_ip", "c")], &[]),
        (&[("Proxy_Connection", "a"), ("My_Field", "fine")], &["My_Field: fine"]),
        (&[("X-Real-IP", "1.2.3.4"), ("X-Forwarded-Port", "1"), ("X-Forwarded-Prefix", "/")], &[]),
        (&[("Max-Forwards", "7"), ("Date", "x")], &["Max-Forwards: 7", "Date: x"]),
    ];
    for (fields, expected) in table {
        assert_eq!(end_to_end(fields), *expected, "{fields:?}");
    }
}

#[test]
fn only_get_of_1_1_can_ask_for_an_upgrade() {
    let fields = [("Upgrade", "websocket"), ("Connection", "upgrade")];
    let proxy = proxy_to(1, "");
    for (method, version, asks) in [
        ("GET", Version::Http11, true),
        ("GET", Version::Http10, false),
        ("POST", Version::Http11, false),
        ("HEAD", Version::Http11, false),
    ] {
        let request = RequestHead { version, ..request(method, "/", &fields) };
        let forward = forward_from(&proxy, "::1", &request);
        assert_eq!(forward.asks_upgrade(), asks, "{method} {version:?}");
        let has_upgrade = head(&forward).iter().any(|line| line.starts_with("Upgrade"));
        assert_eq!(has_upgrade, asks);
    }
}

#[test]
fn client_fields_are_taken_from_a_trusted_proxy_only() {
    let sent = [
        ("X-Forwarded-For", "203.0.113.7"),
        ("X-Forwarded-For", "203.0.113.8, 10.9.9.9"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "front.example"),
        ("Forwarded", "for=203.0.113.7"),
        ("X-Request-Id", "abc-1"),
        ("X-Real-IP", "203.0.113.7"),
        ("Connection", "X-Forwarded-For, Forwarded, X-Request-Id"),
    ];
    let trusted = "trusted_proxies = ['10.0.0.0/8']";
    let lines = passed_on(trusted, "10.1.2.3", &sent);
    let expected = [
        "X-Real-IP: 203.0.113.7",
        "X-Forwarded-For: 203.0.113.7, 203.0.113.8, 10.9.9.9, 10.1.2.3",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: front.example",
        "Forwarded: for=203.0.113.7, for=10.1.2.3;host=\"www.example.com\";proto=http",
        "X-Request-Id: abc-1",
    ];
    assert_eq!(lines, expected);
    assert_eq!(passed_on(trusted, "::ffff:10.1.2.3", &sent), expected);

    let own = [
        "X-Forwarded-For: 11.1.2.3",
        "X-Forwarded-Proto: http",
        "X-Forwarded-Host: www.example.com",
        "Forwarded: for=11.1.2.3;host=\"www.example.com\";proto=http",
    ];
    for (lines, fields) in [(trusted, &sent[..]), ("", &sent[..]), ("", &[])] {
        let mut found = passed_on(lines, "11.1.2.3", fields);
        let id = found.pop().unwrap();
        assert_eq!(found, own);
        let id = id.strip_prefix("X-Request-Id: ").expect("an id");
        assert!(id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    }
    let v6 = passed_on("", "2001:db8::1", &[]);
    assert_eq!(v6[0], "X-Forwarded-For: 2001:db8::1");
    assert_eq!(v6[3], "Forwarded: for=\"[2001:db8::1]\";host=\"www.example.com\";proto=http");
}

#[test]
fn duplicate_or_malformed_fields_of_a_trusted_proxy_are_replaced() {
    let long = "x".repeat(129);
    let table: &[&[(&str, &str)]] = &[
        &[("X-Forwarded-Proto", "https"), ("X-Forwarded-Proto", "http")],
        &[("X-Forwarded-Host", "a"), ("x-forwarded-host", "b")],
        &[("X-Request-Id", "a"), ("X-Request-Id", "b")],
        &[("X-Request-Id", "a b"), ("X-Forwarded-Host", ""), ("X-Forwarded-For", "")],
        &[("X-Request-Id", &long), ("Forwarded", "")],
    ];
    for fields in table {
        let mut lines = passed_on("trusted_proxies = ['::1']", "::1", fields);
        assert_ne!(lines.pop().map(|id| id.len()), Some(15), "{fields:?}");
        let expected = [
            "X-Forwarded-For: ::1",
            "X-Forwarded-Proto: http",
            "X-Forwarded-Host: www.example.com",
            "Forwarded: for=\"[::1]\";host=\"www.example.com\";proto=http",
        ];
        assert_eq!(lines, expected, "{fields:?}");
    }
}

#[test]
fn what_says_who_the_client_is_is_cut_from_requests_of_clients() {
    let sent = [
        ("X-Client-Cert-Subject", "CN=admin"),
        ("x-client-cert-san", "DNS:admin"),
        ("X-Client-Cert-Anything", "a"),
        ("X_Client_Cert_Subject", "CN=admin"),
        ("X-Client_Cert-Fingerprint", "a"),
        ("Client-Cert", ":YQ==:"),
        ("Client_Cert", ":YQ==:"),
        ("Client-Cert-Chain", ":YQ==:"),
    ];
    let own = |lines: &str, peer| {
        let mut lines = passed_on(lines, peer, &sent);
        lines.retain(|line| !line.starts_with("X-Forwarded") && !line.starts_with("Forwarded"));
        lines.pop();
        lines
    };
    assert_eq!(own("", "10.1.2.3"), [""; 0]);
    let trusted = "trusted_proxies = ['10.0.0.0/8']";
    assert_eq!(own(trusted, "11.1.2.3"), [""; 0]);
    let kept = ["X-Client-Cert-Subject: CN=admin", "x-client-cert-san: DNS:admin"];
    assert_eq!(own(trusted, "10.1.2.3")[..2], kept, "a proxy before this one has seen it");
    assert_eq!(own(trusted, "10.1.2.3").len(), 5, "names with _ are cut");
}

#[test]
fn a_request_over_tls_is_forwarded_as_https() {
    let proxy = proxy_to(1, "");
    let context = Context { scheme: Scheme::Https, ..context() };
    let Reply::Forward(forward) = proxy.handle(&request("GET", "/", &[]), &context) else {
        panic!("not forwarded")
    };
    let head = head(&forward);
    assert!(head.contains(&"X-Forwarded-Proto: https".into()), "{head:?}");
    assert!(head.iter().any(|line| line.ends_with(";proto=https")), "{head:?}");
}

#[test]
fn a_peer_without_an_address_is_unknown() {
    let proxy = proxy_to(1, "");
    let context = Context { peer: Peer::Unix, ..context() };
    let Reply::Forward(forward) = proxy.handle(&request("GET", "/", &[]), &context) else {
        panic!("not forwarded")
    };
    let head = head(&forward);
    assert!(!head.iter().any(|line| line.starts_with("X-Forwarded-For")), "{head:?}");
    assert!(head.contains(&"Forwarded: for=unknown;host=\"www.example.com\";proto=http".into()));
}

#[test]
fn ids_differ_and_the_access_logs_id_is_used() {
    let proxy = proxy_to(1, "");
    let id = |context: &Context<'_>| {
        let Reply::Forward(forward) = proxy.handle(&request("GET", "/", &[]), context) else {
            panic!("not forwarded")
        };
        head(&forward).pop().unwrap()
    };
    assert_ne!(id(&context()), id(&context()));
    let request_id = crate::logging::RequestIds::new().next();
    let logged = Context { request_id: Some(request_id), ..context() };
    assert_eq!(id(&logged), format!("X-Request-Id: {request_id}"));
}

/// A head with a parsed host, as the loop has it.
fn with_host<'a>(method: &'a str, target: &'a str, host: Option<&'a str>) -> RequestHead<'a> {
    let host = host.map(|host| crate::http::Host::parse(host.as_bytes()).expect("a host"));
    let rest = target.strip_prefix("http://").unwrap_or(target);
    let rest = &rest[rest.find(['/', '?', '*']).unwrap_or(rest.len())..];
    let query = target.split_once('?').map(|(_, query)| query);
    let path = rest.split('?').next().unwrap_or_default();
    let path = if path.is_empty() { "/" } else { path };
    RequestHead { target, path, query, host, ..request(method, "/", &[]) }
}

#[test]
fn the_request_line_is_in_origin_form_and_host_is_by_policy() {
    let keep = "host = 'keep'";
    for (lines, method, target, host, line, host_line) in [
        (keep, "GET", "/a//b?c?d", Some("b.example"), "GET /a//b?c?d", "b.example"),
        (keep, "GET", "/?", Some("B.example:8080"), "GET /?", "B.example:8080"),
        (keep, "GET", "/", Some("b.example."), "GET /", "b.example"),
        (keep, "GET", "/", Some("[::1]:81"), "GET /", "[::1]:81"),
        (keep, "POST", "http://c.example/x?y", Some("c.example"), "POST /x?y", "c.example"),
        (keep, "GET", "http://c.example", Some("c.example"), "GET /", "c.example"),
        (keep, "GET", "http://c.example?q", Some("c.example"), "GET /?q", "c.example"),
        (keep, "GET", "/http://evil/", Some("c.example"), "GET /http://evil/", "c.example"),
        (keep, "OPTIONS", "*", Some("c.example"), "OPTIONS *", "c.example"),
        (keep, "OPTIONS", "http://c.example:8", Some("c.example:8"), "OPTIONS *", "c.example:8"),
        (keep, "OPTIONS", "http://c.example/", Some("c.example"), "OPTIONS /", "c.example"),
        (keep, "OPTIONS", "http://c.example?q", Some("c.example"), "OPTIONS /?q", "c.example"),
        (keep, "OPTIONS", "/", Some("c.example"), "OPTIONS /", "c.example"),
        (keep, "BREW", "/pot", Some("c.example"), "BREW /pot", "c.example"),
        // An HTTP/1.0 request may have no host.
        (keep, "GET", "/", None, "GET /", "10.0.0.1"),
        ("host = 'upstream'", "GET", "/", Some("b.example"), "GET /", "10.0.0.1"),
        ("host = 'app.internal:81'", "GET", "/", Some("b.example"), "GET /", "app.internal:81"),
    ] {
        let forward = forward_from(&proxy_to(1, lines), "::1", &with_host(method, target, host));
        let head = head(&forward);
        assert_eq!(head[..2], [format!("{line} HTTP/1.1"), format!("Host: {host_line}")]);
        assert_eq!(head.iter().filter(|line| line.starts_with("Host:")).count(), 1);
    }
    let unix = proxy("upstreams = ['unix:/run/app.sock']\nhost = 'upstream'");
    assert_eq!(head(&forward(&unix))[1], "Host: localhost");
    // The same request gets another Host at another upstream.
    let proxy = proxy_to(2, "host = 'upstream'");
    let forward = forward(&proxy);
    let hosts = [head(&forward)[1].clone(), head(&forward)[1].clone()];
    assert_eq!(hosts, ["Host: 10.0.0.1", "Host: 10.0.0.2"]);
}

#[test]
fn via_has_the_received_version_and_detects_loops() {
    let proxy = proxy_to(1, "");
    let old = RequestHead { version: Version::Http10, ..request("GET", "/", &[("Via", "1.1 x")]) };
    let lines = head(&forward_from(&proxy, "::1", &old));
    assert_eq!(lines[0], "GET / HTTP/1.1");
    let via: Vec<_> = lines.iter().filter(|line| line.starts_with("Via")).collect();
    assert_eq!(via, ["Via: 1.1 x", "Via: 1.0 tidegate"]);

    let status =
        |fields: &[(&str, &str)]| proxy.handle(&request("GET", "/", fields), &context()).status();
    let nine = ["1.1 tidegate"; 9].join(", ");
    assert_eq!(status(&[("Via", &nine)]), None);
    assert_eq!(status(&[("Via", &nine), ("via", "1.1 tidegate.example")]), None);
    assert_eq!(status(&[("Via", &nine), ("via", "1.0 tidegate (x)")]), Some(508));
}

#[test]
fn a_connection_that_names_very_many_fields_is_refused() {
    let proxy = proxy_to(1, "");
    let status = |lines: &[&str]| {
        let fields: Vec<_> = lines.iter().map(|line| ("Connection", *line)).collect();
        proxy.handle(&request("GET", "/", &fields), &context()).status()
    };
    let half = ["a"; 32].join(",");
    assert_eq!(status(&[&half, &half]), None);
    assert_eq!(status(&[&half, &half, "b"]), Some(400));
    assert_eq!(status(&[&",".repeat(64)]), Some(400));
}

#[test]
fn max_forwards_counts_for_options_alone() {
    let proxy = proxy_to(1, "");
    let passed = |method, value| {
        let request = request(method, "/", &[("Max-Forwards", value)]);
        match proxy.handle(&request, &context()) {
            Reply::Full(response) => response.status().to_string(),
            Reply::Forward(forward) => {
                let head = head(&forward);
                head.into_iter().find(|line| line.starts_with("Max-F")).unwrap_or_default()
            }
            _ => panic!("another reply"),
        }
    };
    for (method, value, expected) in [
        ("OPTIONS", "0", "204"),
        ("OPTIONS", "1", "Max-Forwards: 0"),
        ("OPTIONS", "10", "Max-Forwards: 9"),
        ("OPTIONS", "-1", "Max-Forwards: -1"),
        ("OPTIONS", "99999999999", "Max-Forwards: 99999999999"),
        ("GET", "0", "Max-Forwards: 0"),
    ] {
        assert_eq!(passed(method, value), expected, "{method} {value}");
    }
}

#[test]
fn a_forward_has_what_the_loop_needs_to_know() {
    let proxy = proxy_to(1, "");
    for (method, is_head, is_idempotent) in [
        ("GET", false, true),
        ("HEAD", true, true),
        ("OPTIONS", false, true),
        ("TRACE", false, true),
        ("PUT", false, true),
        ("DELETE", false, true),
        ("POST", false, false),
        ("PATCH", false, false),
        ("get", false, false),
        ("PROPFIND", false, false),
    ] {
        let forward = forward_from(&proxy, "::1", &request(method, "/", &[]));
        let known = (forward.is_head(), forward.is_idempotent());
        assert_eq!(known, (is_head, is_idempotent), "{method}");
    }
}

/// The field lines of a response that are forwarded, and whether there is a Date among them.
fn response(status: u16, fields: &[(&str, &str)]) -> (Vec<String>, bool) {
    let fields = fields.iter().map(|(name, value)| (*name, value.as_bytes()));
    let mut out = Vec::new();
    let has_date = write_response_fields(fields, Version::Http11, status, &mut out);
    let text = String::from_utf8(out).expect("text");
    let text = text.strip_suffix("\r\n").expect("a complete line");
    let mut lines: Vec<_> = text.split("\r\n").map(str::to_owned).collect();
    assert_eq!(lines.pop().as_deref(), Some("Via: 1.1 tidegate"));
    (lines, has_date)
}

#[test]
fn response_fields_are_forwarded_but_for_hop_by_hop_fields() {
    type Fields = &'static [(&'static str, &'static str)];
    let table: &[(u16, Fields, &[&str])] = &[
        (200, &[], &[]),
        (
            200,
            &[("Set-Cookie", "a=1"), ("Server", "x"), ("Set-Cookie", "b=2"), ("Via", "1.1 y")],
            &["Set-Cookie: a=1", "Server: x", "Set-Cookie: b=2", "Via: 1.1 y"],
        ),
        (200, &[("Content-Length", "5"), ("Transfer-Encoding", "chunked")], &[]),
        (200, &[("content_length", "5"), ("Content-Type", "a/b")], &["Content-Type: a/b"]),
        (
            200,
            &[("Connection", "close, X-Secret, Via"), ("X-SECRET", "1"), ("Via", "z")],
            &["Via: z"],
        ),
        (
            200,
            &[("Keep-Alive", "timeout=5"), ("Trailer", "X"), ("TE", "x"), ("Upgrade", "h2c")],
            &["Trailer: X"],
        ),
        (
            200,
            &[("Connection", "Trailer"), ("Trailer", "X"), ("trans_fer", "y")],
            &["trans_fer: y"],
        ),
        (
            426,
            &[("Upgrade", "h2c, WebSocket"), ("Connection", "Upgrade"), ("X", "y")],
            &["X: y", "Upgrade: websocket", "Connection: upgrade"],
        ),
        // A protocol that is not supported here is not offered.
        (426, &[("Upgrade", "h2c"), ("Connection", "Upgrade")], &[]),
        (
            401,
            &[
                ("Proxy-Authenticate", "Basic"),
                ("Proxy-Connection", "close"),
                ("proxy_connection", "close"),
                ("Proxy-Status", "x; error=y"),
                ("WWW-Authenticate", "Basic"),
            ],
            &["Proxy-Authenticate: Basic", "Proxy-Status: x; error=y", "WWW-Authenticate: Basic"],
        ),
        (
            200,
            &[("X-Request-Id", "a"), ("X-Forwarded-For", "b"), ("Forwarded", "c")],
            &["X-Request-Id: a", "X-Forwarded-For: b", "Forwarded: c"],
        ),
        (200, &[("Connection", "X-Request-Id"), ("X-Request-Id", "a")], &[]),
        (103, &[("Link", "</a>; rel=preload")], &["Link: </a>; rel=preload"]),
        (
            101,
            &[
                ("Upgrade", "websocket"),
                ("Connection", "Upgrade"),
                ("Sec-WebSocket-Accept", "x"),
                ("Content-Length", "0"),
            ],
            &["Upgrade: websocket", "Sec-WebSocket-Accept: x"],
        ),
    ];
    for (status, fields, expected) in table {
        let (lines, has_date) = response(*status, fields);
        assert_eq!(lines, *expected, "{status} {fields:?}");
        assert!(!has_date);
    }
}

#[test]
fn a_response_has_one_date_at_most() {
    let (lines, has_date) = response(200, &[("Date", "a"), ("X", "y"), ("date", "b")]);
    assert_eq!((lines, has_date), (vec!["Date: a".to_owned(), "X: y".to_owned()], true));
}

#[test]
fn fields_that_belong_in_the_head_are_dropped_from_trailers() {
    let fields = [
        ("X-Checksum", "a"),
        ("X-Forwarded-For", "b"),
        ("x_request_id", "c"),
        ("Via", "d"),
        ("Transfer-Encoding", "e"),
        ("Grpc-Status", "0"),
        ("Proxy-Status", "p"),
    ];
    let mut out = Vec::new();
    let fields = fields.iter().map(|(name, value)| (*name, value.as_bytes()));
    write_request_trailers(fields.clone(), &mut out);
    assert_eq!(out, b"X-Checksum: a\r\nGrpc-Status: 0\r\n");
    // In a response none of these identifies the client.
    out.clear();
    write_response_trailers(fields, &mut out);
    let expected = "X-Checksum: a\r\nX-Forwarded-For: b\r\nx_request_id: c\r\nGrpc-Status: 0\r\n\
                    Proxy-Status: p\r\n";
    assert_eq!(String::from_utf8_lossy(&out), expected);
}

/// The upstreams chosen for this many requests, each of which ends at once.
fn choices(proxy: &Proxy, now_ns: u64, count: usize) -> Vec<usize> {
    let forward = forward(proxy);
    let choose = |_| forward.choose(now_ns, &[]).expect("an upstream").index();
    (0..count).map(choose).collect()
}

#[test]
fn upstreams_take_turns_by_weight_in_each_loop_by_itself() {
    let weighted = proxy(
        "upstreams = [{ url = 'http://10.0.0.1', weight = 2 }, 'http://10.0.0.2', 'unix:/x']",
    );
    assert_eq!(choices(&weighted, 0, 8), [0, 1, 2, 0, 0, 1, 2, 0]);
    let other = Context { loop_index: 1, ..context() };
    let Reply::Forward(in_other) = weighted.handle(&request("GET", "/", &[]), &other) else {
        panic!("not forwarded")
    };
    let three: Vec<_> = (0..4).map(|_| in_other.choose(0, &[]).unwrap().index()).collect();
    assert_eq!(three, [0, 1, 2, 0]);
}

#[test]
fn the_least_active_is_chosen_and_counts_return_to_zero() {
    let proxy = proxy_to(3, "balance = 'least_active'");
    let forward = forward(&proxy);
    let mut held: Vec<_> = (0..6).map(|_| forward.choose(0, &[]).unwrap()).collect();
    let active = || proxy.upstreams.rows(0).iter().map(|row| row.active).collect::<Vec<_>>();
    assert_eq!(active(), [2, 2, 2]);
    held.retain(|chosen| chosen.index() != 1);
    assert_eq!(active(), [2, 0, 2]);
    assert_eq!(choices(&proxy, 0, 3), [1, 1, 1]);
    drop(held);
    assert_eq!(active(), [0, 0, 0]);
    assert_eq!(proxy.upstreams.rows(0).iter().map(|row| row.requests).sum::<u64>(), 9);
}

#[test]
fn the_same_key_gets_the_same_upstream_and_no_key_takes_turns() {
    let of = |proxy: &Proxy, peer: &str, fields: &[(&str, &str)]| {
        let forward = forward_from(proxy, peer, &request("GET", "/", fields));
        let chosen = [0, 1, 2].map(|_| forward.choose(0, &[]).unwrap().index());
        assert!(chosen[1..].iter().all(|index| *index == chosen[0]), "{peer} {fields:?}");
        chosen[0]
    };
    let client = proxy_to(5, "balance = 'hash'\ntrusted_proxies = ['10.0.0.0/8']");
    let first = of(&client, "203.0.113.7", &[]);
    for (peer, chain) in [
        ("10.0.0.1", "203.0.113.7"),
        ("10.0.0.1", "6.6.6.6, 203.0.113.7"),
        ("10.0.0.1", "6.6.6.6, 203.0.113.7:4711, 10.0.0.9"),
        ("::ffff:10.0.0.1", "nonsense, 203.0.113.7,10.0.0.9 "),
        ("203.0.113.7", "6.6.6.6"),
    ] {
        assert_eq!(of(&client, peer, &[("X-Forwarded-For", chain)]), first, "{peer} {chain}");
    }
    let header = proxy_to(5, "balance = 'hash'\nhash_by = 'header:X-User'");
    assert_eq!(of(&header, "::1", &[("x-user", "7")]), of(&header, "::2", &[("X-User", "7")]));
    let cookie = proxy_to(5, "balance = 'hash'\nhash_by = 'cookie:sid'");
    let lines = [("Cookie", "a=b; sid=7==; c"), ("Cookie", "sid=8")];
    assert_eq!(of(&cookie, "::1", &lines), of(&cookie, "::2", &[("cookie", "sid=7==")]));
    let users: std::collections::HashSet<_> =
        (0..50).map(|n| of(&header, "::1", &[("X-User", &n.to_string())])).collect();
    assert_eq!(users.len(), 5);
    assert_eq!(choices(&header, 0, 5), [0, 1, 2, 3, 4]);
    assert_eq!(choices(&cookie, 0, 5), [0, 1, 2, 3, 4]);
}

#[test]
fn the_clients_address_is_the_last_hop_that_trusted_peers_report() {
    let trusted = &proxy_to(1, "trusted_proxies = ['10.0.0.0/8', '::1']");
    let trusted = &trusted.upstreams.config().trusted_proxies;
    for (peer, lines, client) in [
        ("192.0.2.1", &["6.6.6.6"][..], "192.0.2.1"),
        ("10.0.0.1", &[], "10.0.0.1"),
        ("10.0.0.1", &["6.6.6.6, 192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", &["192.0.2.1", "10.0.0.2, 10.0.0.3"], "192.0.2.1"),
        ("10.0.0.1", &["192.0.2.1, unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", &["[2001:db8::1]:4711"], "2001:db8::1"),
        ("10.0.0.1", &["[2001:db8::1]"], "2001:db8::1"),
        ("::1", &["10.0.0.1, ::ffff:192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", &["10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", &[""], "10.0.0.1"),
    ] {
        let fields: Vec<_> = lines.iter().map(|line| ("X-Forwarded-For", *line)).collect();
        let request = request("GET", "/", &fields);
        let found = fields::client_address(&request, Some(peer.parse().unwrap()), trusted);
        assert_eq!(found, Some(client.parse::<IpAddr>().unwrap()), "{peer} {lines:?}");
    }
}

#[test]
fn an_upstream_that_failed_for_a_request_is_not_chosen_again_for_it() {
    let proxy = proxy_to(2, "");
    let forward = forward(&proxy);
    for _ in 0..3 {
        assert_eq!(forward.choose(0, &[0]).unwrap().index(), 1);
    }
    let none = forward.choose(0, &[0, 1]).unwrap_err();
    assert_eq!(none, NoUpstream::Tried);
}

const FAILURE: UpstreamFailure = UpstreamFailure::new(FailureCause::ClosedBeforeAnswer, "closed");

fn fail(proxy: &Proxy, index: usize, now_ns: u64, times: usize) -> Vec<bool> {
    let others: Vec<_> =
        (0..proxy.upstreams.endpoints().len()).filter(|other| *other != index).collect();
    let forward = forward(proxy);
    let fail = |_| forward.choose(now_ns, &others).unwrap().failed(FAILURE, now_ns).ejected;
    (0..times).map(fail).collect()
}

#[test]
fn failures_in_a_row_eject_for_a_while_but_never_the_last_one() {
    let proxy = proxy_to(2, "eject_after = 3\neject_for = '10s'");
    let state =
        |now_ns| proxy.upstreams.rows(now_ns).iter().map(|row| row.state).collect::<Vec<_>>();
    use EndpointState::{Ejected, Up};
    assert_eq!(fail(&proxy, 0, 5, 2), [false, false]);
    forward(&proxy).choose(5, &[1]).unwrap().succeeded(Duration::ZERO);
    assert_eq!(fail(&proxy, 0, 5, 3), [false, false, true]);
    assert_eq!(state(5), [Ejected, Up]);
    assert_eq!(choices(&proxy, 5, 3), [1, 1, 1]);
    // The last upstream stays, however often it fails.
    assert_eq!(fail(&proxy, 1, 6, 5), [false; 5]);
    assert_eq!(state(6), [Ejected, Up]);
    // An ejected upstream is better than none.
    assert_eq!(forward(&proxy).choose(6, &[1]).unwrap().index(), 0);
    let end = 5 + 10_000 * MS;
    assert_eq!(state(end - 1)[0], Ejected);
    assert_eq!(state(end), [Up, Up]);
    let mut both = choices(&proxy, end, 2);
    both.sort_unstable();
    assert_eq!(both, [0, 1]);
    let rows = proxy.upstreams.rows(end);
    assert_eq!([rows[0].failures, rows[1].failures], [5, 5]);

    let never = proxy_to(2, "eject_after = 0");
    assert_eq!(fail(&never, 0, 0, 9), [false; 9]);
}

#[test]
fn ejected_upstreams_are_used_if_all_are_ejected() {
    let proxy = proxy_to(2, "eject_after = 1");
    for endpoint in proxy.upstreams.endpoints() {
        endpoint.eject(1000);
    }
    let mut both = choices(&proxy, 1, 2);
    both.sort_unstable();
    assert_eq!(both, [0, 1]);
}

#[test]
fn an_upstream_that_is_down_or_drained_is_never_chosen_and_the_answer_says_why() {
    let proxy = proxy_to(3, "");
    let upstreams = &proxy.upstreams;
    upstreams.set_health(0, Some("status 500".to_owned()), 0);
    assert_eq!(choices(&proxy, 0, 2), [1, 2]);
    let second = OneUpstream::find(upstreams, "http://10.0.0.2:80").expect("an upstream");
    second.drain(0);
    for (written, found) in [
        ("http://10.0.0.2", true),
        ("HTTP://10.0.0.2:80/", true),
        ("http://10.0.0.2:81", false),
        ("10.0.0.2:80", false),
        ("unix:10.0.0.2", false),
        ("", false),
    ] {
        assert_eq!(
            OneUpstream::find(upstreams, written).map(|it| it.index()),
            found.then_some(1),
            "{written}"
        );
    }
    assert_eq!(choices(&proxy, 0, 2), [2, 2]);
    upstreams.set_health(2, Some("timeout".to_owned()), 0);
    let none = forward(&proxy).choose(0, &[]).unwrap_err();
    assert_eq!(none, NoUpstream::Down);
    let answer = none.failure().cause.response();
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.content(), br#"{"error":"All upstreams are down"}"#);
    let shown: Vec<_> =
        upstreams.rows(0).into_iter().map(|row| (row.url, row.state, row.reason)).collect();
    let row =
        |n, state, reason: &str| (format!("http://10.0.0.{n}:80"), state, Some(reason.to_owned()));
    let expected = [
        row(1, EndpointState::Down, "status 500"),
        row(2, EndpointState::Drained, "drained by an operator"),
        row(3, EndpointState::Down, "timeout"),
    ];
    assert_eq!(shown, expected);
    for n in [1, 3] {
        OneUpstream::find(upstreams, &format!("http://10.0.0.{n}:80"))
            .expect("an upstream")
            .drain(0);
    }
    assert_eq!(forward(&proxy).choose(0, &[]).unwrap_err(), NoUpstream::Drained);
    second.resume(0);
    assert_eq!(choices(&proxy, 0, 2), [1, 1]);
}

#[test]
fn an_upstream_that_came_back_starts_slowly() {
    let proxy = proxy_to(2, "slow_start = '100s'");
    let second = 1000 * MS;
    let share = |now_ns| choices(&proxy, now_ns, 1000).iter().filter(|index| **index == 0).count();
    assert_eq!(share(second), 500);
    proxy.upstreams.set_health(0, Some("x".to_owned()), second);
    assert_eq!(share(second), 0);
    proxy.upstreams.set_health(0, None, 10 * second);
    assert!(share(10 * second) <= 10, "{}", share(10 * second));
    assert!((190..=210).contains(&share(35 * second)), "a quarter beside a whole one");
    assert!((325..=340).contains(&share(60 * second)), "a half beside a whole one");
    assert!((499..=501).contains(&share(110 * second)));
    // The time of another loop may be a little earlier.
    assert!(share(9 * second) <= 10);
}

#[test]
fn a_name_without_an_address_is_down_and_keeps_the_addresses_it_had() {
    let config = ProxyConfig::new(vec![crate::config::UpstreamConfig {
        address: crate::config::UpstreamAddress::Tcp {
            tls: false,
            host: "localhost".to_owned(),
            port: 7,
        },
        weight: 1,
    }]);
    let endpoint = Endpoint::new(&config.upstreams[0], None, 1);
    assert!(endpoint.has_name() && endpoint.is_down());
    assert_eq!(endpoint.row(0).reason.as_deref(), Some("no address: not yet looked up"));
    endpoint.set_addresses(Err(io::Error::other("no such name")));
    assert_eq!(endpoint.row(0).reason.as_deref(), Some("no address: no such name"));
    endpoint.set_addresses(Ok(Vec::new()));
    assert_eq!(endpoint.row(0).reason.as_deref(), Some("no address: no address"));
    let address: SocketAddr = "10.0.0.1:7".parse().unwrap();
    endpoint.set_addresses(Ok(vec![address, address]));
    assert_eq!(endpoint.addresses(), [address]);
    endpoint.set_addresses(Err(io::Error::other("no such name")));
    assert_eq!((endpoint.row(0).state, endpoint.addresses()), (EndpointState::Up, vec![address]));
    endpoint.resolve();
    assert!(endpoint.addresses().iter().all(|address| address.ip().is_loopback()));
}

#[test]
fn addresses_take_turns_and_an_address_that_fails_is_avoided() {
    let proxy = proxy("upstreams = ['http://localhost:7']\neject_for = '1s'");
    let endpoint = &proxy.upstreams.endpoints()[0];
    let address = |n: u8| SocketAddr::from(([10, 0, 0, n], 7));
    endpoint.set_addresses(Ok(vec![address(1), address(2), address(3)]));
    let forward = forward(&proxy);
    let next = |now_ns| match forward.choose(now_ns, &[]).unwrap().address() {
        ConnectAddress::Tcp(address) => address,
        ConnectAddress::Unix(path) => panic!("{path:?}"),
    };
    assert_eq!([0; 4].map(next), [1, 2, 3, 1].map(address));
    let mut chosen = forward.choose(0, &[]).unwrap();
    assert_eq!(chosen.address(), ConnectAddress::Tcp(address(2)));
    assert!(chosen.next_address(0));
    assert_eq!(chosen.address(), ConnectAddress::Tcp(address(3)));
    assert_eq!([0; 3].map(next), [1, 3, 1].map(address));
    assert!(chosen.next_address(0));
    assert_eq!(chosen.address(), ConnectAddress::Tcp(address(1)));
    assert!(!chosen.next_address(0), "all three were tried");
    assert_eq!(proxy.upstreams.rows(0)[0].failures, 0);
    // All failed: one of them is still used, and after a while each.
    next(0);
    let later = [1001 * MS; 3].map(next).map(|address| address.ip());
    assert_eq!(later.iter().collect::<std::collections::HashSet<_>>().len(), 3);
    // New addresses are used at the next choice.
    endpoint.set_addresses(Ok(vec![address(9)]));
    assert_eq!(next(0), address(9));
    assert!(!forward.choose(0, &[]).unwrap().next_address(0));
}

#[test]
fn a_kept_connection_counts_as_idle_and_has_no_use_when_its_upstream_is_drained() {
    let proxy = proxy_to(1, "");
    let idle = || proxy.upstreams.rows(0)[0].idle;
    let upstream = OneUpstream::find(&proxy.upstreams, "http://10.0.0.1:80").expect("an upstream");
    let chosen = forward(&proxy).choose(0, &[]).unwrap();
    let kept = chosen.keep_conn().expect("a connection");
    let other = chosen.keep_conn().expect("a connection");
    assert_eq!((idle(), kept.has_use()), (2, true));
    drop(other);
    upstream.drain(0);
    assert!(!kept.has_use() && chosen.keep_conn().is_none());
    upstream.resume(0);
    assert_eq!((idle(), kept.has_use()), (1, true));
    // It does not keep the life alive, and may outlive it.
    drop((chosen, proxy));
    assert!(!kept.has_use());
    drop(kept);
}

#[test]
fn the_next_life_has_the_state_of_its_upstreams_and_starts_its_counts_at_0() {
    let proxy = proxy_to(2, "health = { path = '/' }");
    let upstreams = &proxy.upstreams;
    let chosen = forward(&proxy).choose(0, &[]).unwrap();
    chosen.count_cut();
    chosen.failed(FAILURE, 0);
    OneUpstream::find(upstreams, "http://10.0.0.1:80").expect("an upstream").drain(0);
    upstreams.set_health(1, Some("timeout".to_owned()), 0);
    assert_eq!(upstreams.rows(0)[0].state, EndpointState::Draining);
    let again = App::again(&proxy).expect("another app");
    let rows = again.upstreams().expect("upstreams").rows(0);
    for (row, state) in rows.iter().zip([EndpointState::Drained, EndpointState::Down]) {
        assert_eq!((row.state, row.active, row.requests, row.failures), (state, 0, 0, 0));
    }
    drop(chosen);
    assert_eq!(upstreams.rows(0)[0].state, EndpointState::Drained);
    assert_eq!(OneUpstream::find(upstreams, "http://10.0.0.1:80").map(|it| it.cut()), Some(1));
}

#[test]
fn a_new_life_takes_over_the_state_of_upstreams_by_url_as_its_config_wants() {
    let old = proxy_to(3, "eject_for = '1s'\nhealth = { path = '/' }");
    old.upstreams.set_health(0, Some("timeout".to_owned()), 0);
    fail(&old, 1, 0, 3);
    OneUpstream::find(&old.upstreams, "http://10.0.0.3").expect("an upstream").drain(0);
    let urls = "upstreams = ['http://10.0.0.4', 'http://10.0.0.3', 'http://10.0.0.2', \
                'http://10.0.0.1']\n";
    let states = |lines: &str, now_ns| {
        let new = proxy(&format!("{urls}{lines}"));
        new.upstreams.take_over(&old.upstreams);
        let rows = new.upstreams.rows(now_ns).into_iter();
        rows.map(|row| (row.state.name(), row.reason)).collect::<Vec<_>>()
    };
    let up = ("up", None);
    let is = |state, reason: &str| (state, Some(reason.to_owned()));
    let drained = is("drained", "drained by an operator");
    let ejected = is("ejected", "failures in a row");
    let down = is("down", "timeout");
    let health = "health = { path = '/other' }";
    let all = [up.clone(), drained.clone(), ejected.clone(), down.clone()];
    assert_eq!(states(health, 0), all);
    let later = [up.clone(), drained.clone(), up.clone(), down.clone()];
    assert_eq!(states(health, 1001 * MS), later);
    assert_eq!(states("", 0), [up.clone(), drained.clone(), ejected, up.clone()]);
    assert_eq!(states("eject_after = 0", 0), [up.clone(), drained, up.clone(), up]);
    // An app whose next life has the same upstreams.
    old.upstreams.take_over(&old.upstreams);
    assert_eq!(old.upstreams.rows(0)[0].state, EndpointState::Down);
}

#[test]
fn a_name_that_is_not_found_any_more_keeps_its_addresses_in_the_next_life() {
    let [old, new] = [0; 2].map(|_| proxy("upstreams = ['http://nobody.invalid']"));
    let address: SocketAddr = "10.0.0.1:80".parse().unwrap();
    old.upstreams.endpoints()[0].set_addresses(Ok(vec![address]));
    new.upstreams.take_over(&old.upstreams);
    assert_eq!(new.upstreams.endpoints()[0].addresses(), [address]);
}

#[test]
fn rows_have_the_mean_latency_of_answers() {
    let proxy = proxy_to(1, "");
    assert_eq!(proxy.upstreams.rows(0)[0].latency_mean(), None);
    for millis in [10, 20] {
        forward(&proxy).choose(0, &[]).unwrap().succeeded(Duration::from_millis(millis));
    }
    let row = &proxy.upstreams.rows(0)[0];
    assert_eq!(row.latency_mean(), Some(Duration::from_millis(15)));
    assert_eq!((row.weight, row.state, row.reason.clone()), (1, EndpointState::Up, None));
}

#[test]
fn the_app_shows_its_upstreams_and_they_end_with_its_last_request() {
    let proxy = proxy_to(1, "");
    assert_eq!(proxy.kind(), "proxy");
    let upstreams = Arc::downgrade(App::upstreams(&proxy).unwrap());
    let chosen = forward(&proxy).choose(0, &[]).unwrap();
    drop(proxy);
    assert!(upstreams.upgrade().is_some());
    drop(chosen);
    assert!(upstreams.upgrade().is_none());
}

/// Parses a head as the server does; `None` if it is refused.
fn parsed<T>(bytes: &[u8], then: impl FnOnce(&RequestHead<'_>) -> T) -> Option<T> {
    let (mut exchange, mut table) = (h1::Server::new(), FieldTable::new());
    let limits = Limits { head_bytes: 1 << 16, fields: 256, content_bytes: 1 << 16 };
    match exchange.next_event(bytes, &mut table, &limits) {
        (used, ServerEvent::Request(_, head, None)) => {
            assert_eq!(used, bytes.len(), "one request and no more");
            Some(then(&head))
        }
        _ => None,
    }
}

const NAMES: [&str; 24] = [
    "Host",
    "Connection",
    "Content-Length",
    "Content_Length",
    "Transfer-Encoding",
    "TE",
    "Trailer",
    "Upgrade",
    "Keep-Alive",
    "Proxy-Connection",
    "Proxy",
    "Expect",
    "Via",
    "Forwarded",
    "X-Forwarded-For",
    "X_Forwarded_For",
    "X-Forwarded-Proto",
    "x-forwarded-host",
    "X-Request-Id",
    "Max-Forwards",
    "Cookie",
    "X-Secret",
    "x-secret",
    "HTTP2-Settings",
];

const VALUES: [&str; 16] = [
    "",
    "a",
    "close",
    "upgrade, x-secret",
    "Host, Via, X-Forwarded-For",
    "websocket",
    "chunked",
    "identity, chunked",
    "0",
    "5",
    "5, 5",
    "b.example",
    "100-continue",
    "for=\"[::1]\";host=\"a, b\"",
    "1.1 tidegate, 1.0 x",
    "\u{fc}\t\"\\;",
];

const TARGETS: [&str; 8] = [
    "/",
    "/a?b",
    "//x/../y%00",
    "*",
    "http://b.example",
    "https://[::1]:8?q",
    "/ HTTP/1.1",
    "http://b.example:80/\\\"<>?a?b",
];

proptest::proptest! {
    /// Each accepted request is forwarded as one request, with the same target and without framing.
    /// Chunked content may keep its `Trailer`.
    #[test]
    fn what_goes_on_is_one_request_for_the_same_thing(
        method in proptest::sample::select(&["GET", "POST", "OPTIONS", "HEAD", "M"][..]),
        target in proptest::sample::select(&TARGETS[..]),
        fields in proptest::collection::vec(
            (proptest::sample::select(&NAMES[..]), proptest::sample::select(&VALUES[..])), 0..8),
        is_trusted: bool,
    ) {
        let mut bytes = format!("{method} {target} HTTP/1.1\r\nHost: a.example\r\n");
        fields.iter().for_each(|(name, value)| bytes += &format!("{name}: {value}\r\n"));
        bytes += "\r\n";
        let proxy = proxy_to(1, "trusted_proxies = ['10.0.0.0/8']");
        let peer = Peer::Tcp(([if is_trusted { 10 } else { 11 }, 0, 0, 1], 1).into());
        let written = parsed(bytes.as_bytes(), |head| {
            let Reply::Forward(forward) = proxy.handle(head, &Context { peer, ..context() }) else {
                return None;
            };
            let mut out = Vec::new();
            forward.write_head(&forward.choose(0, &[]).expect("an upstream"), &mut out);
            out.extend_from_slice(b"\r\n");
            let thing = (head.path().to_owned(), head.query().map(str::to_owned));
            let host = head.host().map(|host| (host.name().to_owned(), host.port()));
            let is_chunked = head.content() == RequestContent::Chunked;
            Some((out, thing, host, forward.asks_upgrade(), is_chunked))
        });
        let Some(Some(written)) = written else { return Ok(()) };
        let (out, (path, query), host, asks_upgrade, is_chunked) = written;
        let found = parsed(&out, |head| {
            let count = |name: &str| head.fields_named(name).count();
            assert_eq!(head.method().as_str(), method);
            assert!(head.path() == path || (head.path() == "*" && target.starts_with("http")));
            assert_eq!(head.query(), query.as_deref());
            assert_eq!(head.host().map(|host| (host.name().to_owned(), host.port())), host);
            assert!(count("trailer") == 0 || is_chunked, "{out:?}");
            let absent = ["content-length", "transfer-encoding", "expect", "te"];
            let absent = absent.iter().chain(&["keep-alive", "proxy", "proxy-connection"]);
            assert!(absent.clone().all(|name| count(name) == 0), "{out:?}");
            assert_eq!([count("connection"), count("upgrade")], [0, usize::from(asks_upgrade)]);
            let once = ["host", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"];
            assert!(once.iter().all(|name| count(name) == 1));
            assert_eq!([count("forwarded"), count("x-request-id")], [1, 1]);
            assert!(head.fields().all(|(name, _)| !name.contains('_')));
            let last = head.fields_named("via").last();
            assert_eq!(last, Some(&b"1.1 tidegate"[..]));
            let chain = head.field("x-forwarded-for").unwrap_or_default();
            assert!(is_trusted || chain == b"11.0.0.1");
        });
        assert!(found.is_some(), "{}", String::from_utf8_lossy(&out));
    }
}
