//! What operators see of TLS: certificates, status, metrics, events, logs, connections.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    time::{Duration, Instant, SystemTime},
};

use rustls::{
    ClientConfig, RootCertStore,
    version::{TLS12, TLS13},
};

use serde_json::{Value, json};

use crate::{
    cli_support::{Fake, run, tidegate},
    support::{Client, Event, PATIENCE, Server, Setup, free_port, pattern, wait_until},
    tls::{Authority, LISTEN, app_lines, connect, exchange, get},
};

/// The rows of certificates in use.
fn in_use(answer: &Value) -> &Vec<Value> {
    answer["certificates"].as_array().expect("a list")
}

#[test]
fn certificates_are_listed_with_their_apps_files_and_what_is_rejected() {
    let authority = Authority::new();
    let (both, key) = authority.issue_with(&["a.test", "b.test"], |params| {
        params.not_after = (SystemTime::now() + Duration::from_secs(40 * 86_400 + 60)).into();
    });
    let setup =
        ["a.test", "b.test"].into_iter().fold(authority.setup(&["c.test"]), |setup, host| {
            let lines = "tls = { cert = \"both.pem\", key = \"both.key\" }\nrespond = {}";
            setup.app(host, lines)
        });
    let setup = setup.file("both.pem", &both).file("both.key", &key);
    let setup = setup.app("localhost", "tls = { self_signed = true }\nrespond = {}");
    let setup = setup.app("none.test", "tls = {}\nrespond = {}").named_app("plain.test");
    let server = setup.start();
    let before = server.admin().get("/certificates");
    let [ab, localhost, c] = &in_use(&before)[..] else { panic!("{before}") };
    assert_eq!(ab["names"], json!(["a.test", "b.test"]));
    assert_eq!(ab["apps"], json!(["a.test", "b.test"]), "one certificate of two apps");
    assert_eq!(ab["file"], json!(server.dir().join("both.pem")));
    assert_eq!(
        (&ab["issuer"], &ab["key"]),
        (&json!("CN=an authority of the tests"), &json!("ECDSA"))
    );
    assert_eq!(ab["days_left"], 40);
    assert_eq!(c["apps"], json!(["c.test"]));
    assert_eq!((&localhost["file"], &localhost["names"]), (&Value::Null, &json!(["localhost"])));
    let rejected = &before["rejected"][0];
    assert_eq!((&rejected["host"], &rejected["kept"]), (&json!("none.test"), &json!(false)));
    let error = rejected["error"].as_str().expect("an error");
    assert!(
        error.starts_with("no certificate of `tls.certificates` is for none.test: "),
        "{error}"
    );

    // A reload: c.test is renewed, and the certificate of the other two is spoilt.
    let (renewed, renewed_key) = authority.issue(&["c.test"]);
    for (file, content) in
        [("c.test.pem", &*renewed), ("c.test.key", &renewed_key), ("both.pem", "spoilt")]
    {
        fs::write(server.dir().join(file), content).expect("a file");
    }
    server.admin().post("/reload");
    let after = server.admin().get("/certificates");
    let [ab_after, localhost_after, c_after] = &in_use(&after)[..] else { panic!("{after}") };
    assert_eq!((ab_after, localhost_after), (ab, localhost), "they stay in use");
    assert_ne!(c_after["fingerprint"], c["fingerprint"]);
    let rejected = after["rejected"].as_array().expect("a list");
    let kept: Vec<_> = rejected.iter().map(|it| (it["host"].as_str(), &it["kept"])).collect();
    let (yes, no) = (json!(true), json!(false));
    let expected = [(Some("a.test"), &yes), (Some("b.test"), &yes), (Some("none.test"), &no)];
    assert_eq!(kept, expected, "{after}");

    // A reload that is refused changes nothing of that.
    fs::write(server.dir().join("config.toml"), "nonsense").expect("a file");
    server.admin().call("POST", "/reload", "");
    assert_eq!(server.admin().get("/certificates"), after);
}

#[test]
fn certs_is_a_table_of_certificates_and_one_of_what_is_rejected() {
    let row = |names: Value, days_left, file: Option<&str>| {
        json!({
            "names": names, "issuer": "CN=R3", "key": "RSA", "fingerprint": "00",
            "not_after": "2027-01-01T00:00:00.000Z", "days_left": days_left, "file": file,
            "apps": ["a.test", "b.test"], "in_use_since": "2026-11-29T12:00:00.000Z",
        })
    };
    let spoilt =
        |host: Option<&str>, kept| json!({ "host": host, "error": "spoilt", "kept": kept });
    let (named, unnamed) = (json!(["a.test", "*.b"]), json!([]));
    let answer = json!({
        "certificates": [row(named, 32, Some("/a.pem")), row(unnamed, -1, None)],
        "rejected": [spoilt(Some("a.test"), true), spoilt(Some("c"), false), spoilt(None, false)],
    });
    let fake = Fake::always(200, answer);
    let expected = "\
NAMES        ISSUER  DAYS LEFT  NOT AFTER                 FILE         APPS            IN USE SINCE
a.test, *.b  CN=R3          32  2027-01-01T00:00:00.000Z  /a.pem       a.test, b.test  \
2026-11-29T12:00:00.000Z
             CN=R3     expired  2027-01-01T00:00:00.000Z  self-signed  a.test, b.test  \
2026-11-29T12:00:00.000Z

REJECTED            SERVED WITH     ERROR
a.test              the one before  spoilt
c                   none            spoilt
[tls] certificates                  spoilt
";
    fake.run(&["certs"]).expect_output(0, expected);
    assert_eq!(fake.lines(), ["GET /certificates"]);
}

#[test]
fn status_says_where_tls_is_spoken_and_which_certificate_expires_first() {
    let authority = Authority::new();
    let (soon, key) = authority.issue_with(&["soon.test"], |params| {
        params.not_after = (SystemTime::now() + Duration::from_secs(5 * 86_400 + 60)).into();
    });
    let setup = authority.setup(&["a.test", "soon.test", "none.test"]).file("none.test.pem", "");
    let server = setup.file("soon.test.pem", soon).file("soon.test.key", key).start();
    let status = server.admin().get("/status");
    let [tls, plain] = server.addresses() else { panic!("two addresses") };
    let listeners = json!([
        { "address": tls, "tls": true, "proxy_protocol": false },
        { "address": plain, "tls": false, "proxy_protocol": false },
    ]);
    assert_eq!(status["listeners"], listeners);
    assert_eq!(status["listen"], json!([tls, plain]), "as before");
    let certificates = &status["certificates"];
    assert_eq!((&certificates["in_use"], &certificates["rejected"]), (&json!(2), &json!(1)));
    let next = &certificates["next_expiry"];
    assert_eq!((&next["names"], &next["days_left"]), (&json!(["soon.test"]), &json!(5)));
    let said = run(tidegate(&server.dir(), &["status"])).out;
    assert!(said.contains(&format!("{tls} (TLS), {plain}\n")), "{said}");
    let expected = "2 in use, 1 rejected; next expiry: soon.test, 5 days left\n";
    assert!(said.contains(expected), "{said}");
}

#[test]
fn status_follows_a_reload_that_turns_tls_on_and_off() {
    let authority = Authority::new();
    let address = free_port();
    let setup = authority.setup(&["a.test"]).listen(&[&address.to_string()]);
    let text = setup.text();
    let server = setup.start();
    let speaks_tls = || server.admin().get("/status")["listeners"][0]["tls"].clone();
    assert_eq!(speaks_tls(), false);
    let with = format!("{{ address = \"{address}\", tls = true }}");
    server.rewrite(&text.replace(&format!("\"{address}\""), &with));
    server.admin().post("/reload");
    assert_eq!(speaks_tls(), true);
    server.rewrite(&text);
    server.admin().post("/reload");
    assert_eq!(speaks_tls(), false);
}

#[test]
fn certs_shows_what_the_server_has() {
    let setup = Setup::new().listen(&[LISTEN]);
    let server = setup.app("localhost", "tls = { self_signed = true }\nrespond = {}").start();
    let ran = run(tidegate(&server.dir(), &["certs"]));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let row: Vec<_> = ran.out.lines().nth(1).expect("a row").split_whitespace().collect();
    let expected = ["localhost", "CN=Tidegate", "self-signed", "395"];
    assert_eq!(&row[..4], expected, "{ran:?}");
}

/// The handshakes of a server: `result version resumed`, and how many; without those of which there
/// are none.
fn handshakes(server: &Server) -> BTreeMap<String, u64> {
    let page = server.admin().call("GET", "/metrics", "").text;
    let lines = page.lines().filter_map(|line| {
        let (labels, count) =
            line.strip_prefix("tidegate_tls_handshakes_total{")?.split_once("} ")?;
        let values: Vec<_> = labels.split('"').skip(1).step_by(2).collect();
        Some((values.join(" ").trim_end().to_owned(), count.parse().expect("a number")))
    });
    lines.filter(|(_, count)| *count > 0).collect()
}

fn wait_handshakes(server: &Server, expected: &[(&str, u64)]) {
    let expected = expected.iter().map(|(end, count)| ((*end).to_owned(), *count)).collect();
    let mut seen = BTreeMap::new();
    let are_there = wait_until(PATIENCE, || {
        seen = handshakes(server);
        seen == expected
    });
    assert!(are_there, "{seen:?} instead of {expected:?}");
}

#[test]
fn each_handshake_is_counted_once_by_how_it_ended() {
    let authority = Authority::new();
    let strict = "tls = { cert = \"s.test.pem\", key = \"s.test.key\", min_version = \"1.3\" }\n\
                  respond = {}";
    let (certificate, key) = authority.issue(&["s.test"]);
    let setup = authority.setup(&["a.test"]).app("s.test", strict);
    let setup = setup.file("s.test.pem", certificate).file("s.test.key", key);
    let setup = setup.limits("head_timeout = \"400ms\"").log("level = \"debug\"");
    let server = setup.start();
    for version in [&TLS12, &TLS13] {
        let config = authority.client_of(&[version]);
        for _ in 0..3 {
            let mut tls = connect(server.address(), &config, "a.test").expect("a handshake");
            get(&mut tls, "a.test").expect("an answer");
        }
        // One that says nothing more.
        connect(server.address(), &authority.client_of(&[version]), "a.test").expect("a handshake");
    }
    let distrustful = ClientConfig::builder()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    for (config, name) in [
        (authority.client(), "unknown.test"),
        (distrustful, "a.test"),
        (authority.client_of(&[&TLS12]), "s.test"),
    ] {
        connect(server.address(), &config, name).expect_err("a refused handshake");
    }
    let half = [22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
    let mut plain = Client::connect(server.address());
    plain.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n");
    plain.read_to_end();
    let mut garbage = Client::connect(server.address());
    garbage.send([0; 100]);
    garbage.read_to_end();
    let mut gone = Client::connect(server.address());
    gone.send(half);
    drop(gone);
    let mut slow = Client::connect(server.address());
    slow.send(half);
    slow.read_to_end();
    // Neither of these has begun a handshake.
    drop(Client::connect(server.address()));
    Client::connect(server.address()).read_to_end();
    let expected = [
        ("ok 1.2 false", 2),
        ("ok 1.2 true", 2),
        ("ok 1.3 false", 2),
        ("ok 1.3 true", 2),
        ("no_certificate_for_name", 1),
        ("certificate_refused", 1),
        ("unsupported", 1),
        ("plain_http", 1),
        ("protocol", 1),
        ("client_gone", 1),
        ("timeout", 1),
    ];
    wait_handshakes(&server, &expected);
    // A failed one is logged, with the name if that is known.
    let logged = server.wait_event("tls_handshake_failed");
    assert!(logged.field("peer").is_some_and(|peer| peer.starts_with("127.0.0.1:")), "{logged:?}");
    assert_eq!(logged.field("result"), Some("no_certificate_for_name"));
    assert_eq!(logged.field("name"), Some("unknown.test"));
    assert_eq!(logged.field("reason"), Some("no app with TLS has this name"));
}

#[test]
fn a_flood_of_failed_handshakes_is_one_line_a_second_and_none_by_default() {
    let authority = Authority::new();
    for (level, most) in [("info", 0), ("debug", 30)] {
        let begun = Instant::now();
        let setup = authority.setup(&["a.test"]).log(&format!("level = {level:?}"));
        let server = setup.start();
        let fail = || {
            let mut client = Client::connect(server.address());
            client.send([0; 100]);
            client.read_to_end();
        };
        (0..300).for_each(|_| fail());
        wait_handshakes(&server, &[("protocol", 300)]);
        let failed = |events: Vec<Event>| {
            let is_failed = |event: &Event| event.name == "tls_handshake_failed";
            events.into_iter().filter(is_failed).collect::<Vec<_>>()
        };
        let logged = failed(server.events());
        // Two loops, and the seconds that the test took.
        let most = most.min(2 * (begun.elapsed().as_secs() as usize + 1));
        assert!(logged.len() <= most, "{} lines", logged.len());
        let suppressed: usize = logged.iter().map(|event| event.count("suppressed")).sum();
        assert!(suppressed + logged.len() <= 300);
        assert_eq!(level == "debug", !logged.is_empty());
    }
}

#[test]
fn metrics_say_when_the_certificate_of_a_name_expires() {
    let authority = Authority::new();
    let end = |params: &mut rcgen::CertificateParams| {
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
    };
    let (certificate, key) = authority.issue_with(&["a.test", "*.a.test"], end);
    let setup = authority.setup(&["a.test", "b.test"]);
    let server = setup.file("a.test.pem", certificate).file("a.test.key", key).start();
    let page = server.admin().call("GET", "/metrics", "").text;
    for name in ["a.test", "*.a.test"] {
        let line = format!("tidegate_certificate_expiry_seconds{{name=\"{name}\"}} 1893456000\n");
        assert!(page.contains(&line), "{page}");
    }
    assert!(page.contains("tidegate_certificate_expiry_seconds{name=\"b.test\"} "), "{page}");
}

#[test]
fn an_expiry_is_announced_once_also_over_a_reload_and_an_upgrade() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue_with(&["a.test"], |params| {
        params.not_after = (SystemTime::now() + Duration::from_secs(5 * 86_400 + 60)).into();
    });
    let setup = authority.setup(&["a.test", "b.test"]);
    let server = setup.file("a.test.pem", certificate).file("a.test.key", key).start();
    let announced = server.wait_event("certificate_expires");
    assert_eq!((announced.field("apps"), announced.count("days_left")), (Some("a.test"), 5));
    let file = server.dir().join("a.test.pem").display().to_string();
    assert_eq!(announced.field("file"), Some(&*file));
    let count = || {
        let events = server.events();
        events.iter().filter(|event| event.name.starts_with("certificate_expire")).count()
    };
    // After each task the operator looks again: the second reload is behind that look.
    (0..2).for_each(|_| drop(server.admin().post("/reload")));
    assert_eq!(count(), 1);
    server.admin().post("/upgrade");
    (0..2).for_each(|_| drop(server.admin().post("/reload")));
    assert_eq!(count(), 1);
    // A renewal that ends soon, too, is another certificate.
    let (certificate, key) = authority.issue_with(&["a.test"], |params| {
        params.not_after = (SystemTime::now() + Duration::from_secs(86_400 / 2)).into();
    });
    for (file, content) in [("a.test.pem", certificate), ("a.test.key", key)] {
        fs::write(server.dir().join(file), content).expect("a file");
    }
    server.admin().post("/reload");
    assert!(wait_until(PATIENCE, || count() == 2));
}

/// A server with a file of 100,000 bytes, an access log, and limits; over TLS and without.
fn logged_server(authority: &Authority, format: &str) -> Server {
    let files = "tls = { cert = \"a.test.pem\", key = \"a.test.key\" }\nfiles = { root = \"www\" }";
    let (certificate, key) = authority.issue(&["a.test"]);
    authority
        .setup(&[])
        .server("threads = 1")
        .app("a.test", files)
        .file("a.test.pem", certificate)
        .file("a.test.key", key)
        .file("www/f.bin", pattern(100_000))
        .limits("body_bytes = \"1KiB\"\nhead_bytes = \"1KiB\"")
        .log(&format!("access = \"{format}\"\naccess_path = \"access.log\""))
        .start()
}

/// The access log, once it has this many lines.
fn access_lines(server: &Server, count: usize) -> Vec<String> {
    let read = || fs::read_to_string(server.dir().join("access.log")).unwrap_or_default();
    assert!(wait_until(PATIENCE, || read().lines().count() >= count), "{}", read());
    read().lines().map(str::to_owned).collect()
}

#[test]
fn access_lines_of_tls_connections_say_version_cipher_name_and_resumption() {
    let authority = Authority::new();
    let request = "GET /f.bin HTTP/1.1\r\nHost: a.test\r\n\r\n";
    let server = logged_server(&authority, "combined");
    for version in [&TLS13, &TLS12] {
        let config = authority.client_of(&[version]);
        for _ in 0..2 {
            let mut tls = connect(server.address(), &config, "a.test").expect("a handshake");
            exchange(&mut tls, request).expect("an answer");
        }
    }
    Client::connect(server.addresses()[1]).exchange(request);
    let lines = access_lines(&server, 5);
    for (line, version, cipher, resumed) in [
        (&lines[0], "TLSv1.3", "TLS_AES_", "false"),
        (&lines[1], "TLSv1.3", "TLS_AES_", "true"),
        (&lines[2], "TLSv1.2", "TLS_ECDHE_ECDSA_WITH_", "false"),
        (&lines[3], "TLSv1.2", "TLS_ECDHE_ECDSA_WITH_", "true"),
    ] {
        let start = format!(" end=complete tls={version} cipher={cipher}");
        assert!(line.contains(&start), "{line}");
        assert!(line.ends_with(&format!(" sni=a.test resumed={resumed}")), "{line}");
    }
    assert!(lines[4].ends_with(" end=complete"), "a plain line is as it was: {}", lines[4]);

    let server = logged_server(&authority, "json");
    let mut tls = connect(server.address(), &authority.client(), "a.test").expect("a handshake");
    exchange(&mut tls, request).expect("an answer");
    Client::connect(server.addresses()[1]).exchange(request);
    let lines = access_lines(&server, 2);
    let [line, plain] =
        [&lines[0], &lines[1]].map(|line| -> Value { serde_json::from_str(line).expect("JSON") });
    assert_eq!((&line["tls"], &line["sni"]), (&json!("TLSv1.3"), &json!("a.test")));
    assert_eq!(line["resumed"], false);
    assert!(line["cipher"].as_str().expect("a name").starts_with("TLS_AES_"), "{line}");
    assert!(lines[1].ends_with(",\"end\":\"complete\"}") && plain.get("tls").is_none(), "{plain}");
}

#[test]
fn bytes_in_the_access_log_and_limits_are_of_plaintext_under_tls() {
    let authority = Authority::new();
    let server = logged_server(&authority, "json");
    let post = |length: usize| {
        format!(
            "POST /f.bin HTTP/1.1\r\nHost: a.test\r\nContent-Length: {length}\r\n\r\n{}",
            "x".repeat(length)
        )
    };
    let long_head = |length: usize| {
        let head = "GET /f.bin HTTP/1.1\r\nHost: a.test\r\nX: ";
        format!("{head}{}\r\n\r\n", "x".repeat(length - head.len() - 4))
    };
    // What fits without TLS fits over TLS, to the byte.
    let requests = [
        ("GET /f.bin HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned(), 200),
        (post(1024), 405),
        (post(1025), 413),
        (long_head(1024), 200),
        (long_head(1025), 431),
    ];
    let mut expected = Vec::new();
    for (request, status) in requests {
        let mut tls = connect(server.address(), &authority.client(), "a.test").expect("TLS");
        let (head, content) = exchange(&mut tls, &request).expect("an answer");
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        let plain = Client::connect(server.addresses()[1]).exchange(&request);
        assert_eq!(plain.status, status);
        expected.extend([(status, content.len()); 2]);
    }
    assert_eq!(expected[0], (200, 100_000));
    let lines = access_lines(&server, expected.len());
    let logged: Vec<_> = lines
        .iter()
        .map(|line| {
            let line: Value = serde_json::from_str(line).expect("JSON");
            let number = |key: &str| line[key].as_u64().expect("a number");
            (number("status") as u16, number("bytes") as usize)
        })
        .collect();
    assert_eq!(logged, expected);
}

#[test]
fn busy_connections_show_their_tls() {
    let authority = Authority::new();
    let lines = app_lines("a.test").replace("body =", "delay = \"10s\", body =");
    let (certificate, key) = authority.issue(&["a.test"]);
    let setup = authority.setup(&[]).app("a.test", &lines);
    let server = setup.file("a.test.pem", certificate).file("a.test.key", key).start();
    let request = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
    let mut tls = connect(server.address(), &authority.client(), "a.test").expect("a handshake");
    tls.write_all(request).expect("send");
    let rows = || server.admin().get("/apps/a.test/connections")["connections"].clone();
    assert!(wait_until(PATIENCE, || rows()[0]["phase"] == "waiting for the app"));
    let row = &rows()[0]["tls"];
    assert_eq!((&row["version"], &row["server_name"]), (&json!("TLSv1.3"), &json!("a.test")));
    assert!(row["cipher"].as_str().expect("a name").starts_with("TLS_AES_"), "{row}");
    assert_eq!(row["resumed"], false);
    let said = run(tidegate(&server.dir(), &["app", "a.test", "--connections"])).out;
    let said: Vec<_> = said.lines().collect();
    assert!(said[0].trim_end().ends_with("TLS"), "{said:?}");
    assert!(said[1].contains("TLSv1.3 TLS_AES_") && said[1].ends_with(" a.test"), "{said:?}");
    let mut plain = Client::connect(server.addresses()[1]);
    plain.send(request);
    assert!(wait_until(PATIENCE, || rows().as_array().is_some_and(|rows| rows.len() == 2)));
    assert_eq!(rows()[1]["tls"], Value::Null);
}
