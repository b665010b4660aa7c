//! What an app's `tls` demands of clients: certificates, https, and that no way leads around it.

use std::{
    fs, io,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread,
};

use rcgen::DnType;
use rustls::{
    AlertDescription, ClientConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use crate::{
    support::{self, Client, Pid, Server, Setup, Upstream},
    tls::{Authority, LISTEN, PLAIN, Tls, alert, connect, exchange, foreign, get},
};

/// A client with a certificate of this authority, for a server of that one.
fn known(server: &Authority, (certificate, key): (String, String)) -> ClientConfig {
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM");
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(server.certificate.der().clone()).expect("an authority");
    let builder = ClientConfig::builder().with_root_certificates(roots);
    builder.with_client_auth_cert(vec![certificate], key).expect("a client")
}

/// Connects and asks once: TLS 1.3 refuses a client only after the client's handshake is over.
fn ask(address: SocketAddr, config: &ClientConfig, host: &str) -> io::Result<(u16, String)> {
    get(&mut connect(address, config, host)?, host)
}

fn lines(host: &str, more: &str, kind: &str) -> String {
    format!("tls = {{ cert = \"{host}.pem\", key = \"{host}.key\"{more} }}\n{kind}")
}

/// A setup with these apps, whose certificates are in files, and the authority of their clients.
fn setup(server: &Authority, clients: &Authority, apps: &[(&str, &str, &str)]) -> Setup {
    let setup = Setup::new().listen(&[LISTEN, PLAIN]).file("ca.pem", clients.certificate.pem());
    apps.iter().fold(setup, |setup, (host, more, kind)| {
        let (certificate, key) = server.issue(&[host]);
        setup
            .file(&format!("{host}.pem"), certificate)
            .file(&format!("{host}.key"), key)
            .app(host, &lines(host, more, kind))
    })
}

const REQUIRE: &str = ", client_ca = \"ca.pem\"";
const OPTIONAL: &str = ", client_ca = \"ca.pem\", client_auth = \"optional\"";

#[test]
fn a_client_certificate_is_verified_and_told_to_the_upstream() {
    let (server, clients) = (Authority::new(), Authority::new());
    let upstream = Upstream::tcp(|_, line| line.answer(200, "ok"));
    let proxy = format!("proxy = {{ upstreams = [\"{}\"] }}", upstream.url());
    let apps = [("a.test", REQUIRE, &*proxy), ("b.test", OPTIONAL, &*proxy)];
    let running = setup(&server, &clients, &apps).start();
    let address = running.address();
    let identity = clients.issue_with(&["client.test"], |params| {
        params.distinguished_name.push(DnType::CommonName, "the client, of tests");
    });
    let config = known(&server, identity);
    let forged = "X-Client-Cert-Subject: CN=admin\r\nX_Client_Cert_Subject: CN=admin\r\n\
                  Client-Cert: :YQ==:\r\nX-Client-Cert-Other: a\r\n";
    for host in ["a.test", "b.test"] {
        let mut tls = connect(address, &config, host).expect("a handshake");
        for forged in ["", forged] {
            let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n{forged}\r\n");
            let (head, _) = exchange(&mut tls, &request).expect("an answer");
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            let asked = upstream.last();
            assert_eq!(asked.all("X-Client-Cert-Subject"), ["CN=the client\\, of tests"]);
            assert_eq!(asked.all("X-Client-Cert-San"), ["DNS:client.test"]);
            let fingerprint = asked.all("X-Client-Cert-Fingerprint")[0];
            assert!(fingerprint.len() == 64 && !fingerprint.contains(':'), "{fingerprint}");
            assert_eq!(asked.all("X-Forwarded-Proto"), ["https"]);
            for cut in ["X_Client_Cert_Subject", "Client-Cert", "X-Client-Cert-Other"] {
                assert_eq!(asked.all(cut), [""; 0], "{cut}");
            }
        }
    }
    // Without one.
    let without = server.client();
    ask(address, &without, "a.test").expect_err("a certificate is required");
    let mut tls = connect(address, &without, "b.test").expect("it is optional");
    let request = format!("GET / HTTP/1.1\r\nHost: b.test\r\n{forged}\r\n");
    assert!(exchange(&mut tls, &request).expect("an answer").0.starts_with("HTTP/1.1 200 "));
    assert!(!upstream.last().head.contains("lient-Cert"), "{}", upstream.last().head);
    // One that isn't good is refused by both.
    let stranger = known(&server, Authority::new().issue(&["client.test"]));
    let expired = known(
        &server,
        clients.issue_with(&["client.test"], |params| {
            params.not_after = rcgen::date_time_ymd(2024, 1, 1);
        }),
    );
    for host in ["a.test", "b.test"] {
        ask(address, &stranger, host).expect_err("of an unknown authority");
        ask(address, &expired, host).expect_err("expired");
    }
}

#[test]
fn a_client_certificate_cannot_be_got_around() {
    let (server, clients) = (Authority::new(), Authority::new());
    let both = server.issue(&["a.test", "open.test"]);
    let apps = [
        ("a.test", REQUIRE, "respond = { body = \"secret\" }"),
        ("open.test", "", "respond = { body = \"open\" }"),
    ];
    let mut setup = setup(&server, &clients, &apps);
    for host in ["a.test", "open.test"] {
        setup = setup.file(&format!("{host}.pem"), &both.0).file(&format!("{host}.key"), &both.1);
    }
    let (text, running) = (setup.text(), setup.start());
    let (address, without) = (running.address(), server.client());
    // The connection of another app, whose certificate covers both.
    let mut tls = connect(address, &without, "open.test").expect("a handshake");
    assert_eq!(get(&mut tls, "open.test").expect("an answer"), (200, "open".to_owned()));
    assert_eq!(get(&mut tls, "a.test").expect("an answer").0, 421);
    // Plain HTTP.
    let mut plain = Client::connect(running.addresses()[1]);
    let answer = plain.exchange(support::get("a.test", "/"));
    assert_eq!(answer.status, 421, "{}", answer.text());
    assert_eq!(plain.exchange(support::get("open.test", "/")).text(), "open");
    // A reload that begins to require one holds for open connections, and for their tickets.
    assert!(ask(address, &known(&server, clients.issue(&["c"])), "a.test").is_ok());
    let mut open = connect(address, &without, "open.test").expect("a handshake");
    assert_eq!(get(&mut open, "open.test").expect("an answer").0, 200);
    let needs = text.replace("open.test.key\" }", &format!("open.test.key\"{REQUIRE} }}"));
    assert_ne!(needs, text);
    running.rewrite(&needs);
    running.admin().post("/reload");
    assert_eq!(get(&mut open, "open.test").expect("an answer").0, 421);
    ask(address, &without, "open.test").expect_err("a certificate is required now");
    ask(address, &known(&server, clients.issue(&["c"])), "open.test").expect("it has one");
}

#[test]
fn an_app_that_the_table_does_not_know_is_not_served_by_the_default_apps_tls() {
    let server = Authority::new();
    let running = setup(&server, &server, &[("a.test", "", "respond = { body = \"a\" }")])
        .server("default_app = \"a.test\"")
        .start();
    let app = serde_json::json!({ "respond": { "body": "b" } });
    running.admin().put("/apps/b.test", &app);
    let mut tls = connect(running.address(), &server.client(), "a.test").expect("a handshake");
    for (host, status) in [("a.test", 200), ("b.test", 421), ("unknown.test", 200)] {
        assert_eq!(get(&mut tls, host).expect("an answer").0, status, "{host}");
    }
    let (head, _) =
        exchange(&mut tls, "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").expect("an answer");
    assert!(head.contains(" 200 "), "the default app: {head}");
}

#[test]
fn an_app_of_the_admin_api_is_served_over_tls_also_after_an_upgrade() {
    let server = Authority::new();
    let (certificate, key) = server.issue(&["b.test"]);
    let mut running = setup(&server, &server, &[("a.test", "", "respond = { body = \"a\" }")])
        .file("b.pem", &certificate)
        .file("b.key", &key)
        .start();
    let app = |cert: &str| {
        serde_json::json!({
            "respond": { "body": "b" }, "tls": { "cert": cert, "key": "b.key", "hsts": "1d" },
        })
    };
    // What can't be used is refused, and changes nothing.
    let refused = running.admin().put("/apps/b.test", &app("none.pem"));
    assert_eq!(refused.status, 500, "{}", refused.text);
    assert!(refused.error().contains("none.pem: cannot be read"), "{}", refused.error());
    assert!(connect(running.address(), &server.client(), "b.test").is_err());
    assert_eq!(running.admin().put("/apps/b.test", &app("b.pem")).status, 201);
    let address = running.address();
    let ask = |host| {
        let mut tls = connect(address, &server.client(), host).expect("a handshake");
        head(&mut tls, host)
    };
    assert!(ask("b.test").contains("Strict-Transport-Security: max-age=86400\r\n"));
    assert!(ask("a.test").starts_with("HTTP/1.1 200 "));
    let listed = running.admin().get("/certificates").to_string();
    assert!(listed.contains("b.test") && listed.contains("a.test"), "{listed}");
    // In the place of an app of the config, without `tls`.
    let plain = serde_json::json!({ "respond": {} });
    assert_eq!(running.admin().put("/apps/a.test", &plain).status, 200);
    assert!(connect(running.address(), &server.client(), "a.test").is_err());
    Server::adopt_orphans();
    let done = running.admin().post("/upgrade");
    let pid = done["pid"].as_i64().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    running.follow(pid.unwrap_or_else(|| panic!("{done}")));
    assert!(ask("b.test").starts_with("HTTP/1.1 200 "));
    assert!(connect(running.address(), &server.client(), "a.test").is_err());
}

#[test]
fn an_app_that_is_refused_leaves_the_tls_of_the_app_that_has_its_host() {
    let server = Authority::new();
    let running = setup(&server, &server, &[("a.test", "", "respond = {}")]).start();
    let (address, config) = (running.address(), server.client());
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let handshakes = scope.spawn(|| {
            let mut count = 0;
            while !over.load(SeqCst) {
                connect(address, &config, "a.test").expect("it is served as before");
                count += 1;
            }
            count
        });
        let plain = serde_json::json!({ "respond": {} });
        for _ in 0..200 {
            assert_eq!(running.admin().put("/apps/a.test?only=add", &plain).status, 409);
        }
        over.store(true, SeqCst);
        assert!(handshakes.join().expect("every handshake") > 0);
    });
}

#[test]
fn an_app_whose_certificate_broke_meanwhile_is_refused_when_it_is_put_again() {
    let server = Authority::new();
    let (certificate, key) = server.issue(&["b.test"]);
    let running = setup(&server, &server, &[])
        .file("b.pem", &certificate)
        .file("b.key", &key)
        .named_app("a.test")
        .start();
    let tls = serde_json::json!({ "cert": "b.pem", "key": "b.key" });
    let app = serde_json::json!({ "respond": {}, "tls": tls });
    assert_eq!(running.admin().put("/apps/b.test", &app).status, 201);
    fs::write(running.dir().join("b.pem"), "").expect("a file");
    running.wait_event("certificate_rejected");
    let refused = running.admin().put("/apps/b.test", &app);
    assert!(refused.error().contains("b.pem: holds no certificate"), "{}", refused.text);
    assert_eq!(ask(running.address(), &server.client(), "b.test").expect("as before").0, 200);
}

#[test]
fn a_request_without_a_host_does_not_reach_a_default_app_of_another_policy() {
    let server = Authority::new();
    let strict = ", min_version = \"1.3\"";
    let apps = [("a.test", strict, "respond = {}"), ("b.test", "", "respond = {}")];
    let running = setup(&server, &server, &apps).server("default_app = \"a.test\"").start();
    let mut tls = connect(running.address(), &server.client(), "b.test").expect("a handshake");
    let (head, _) =
        exchange(&mut tls, "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").expect("an answer");
    assert!(head.contains(" 421 "), "{head}");
}

#[test]
fn authorities_of_clients_that_cannot_be_used_leave_the_app_out_of_tls() {
    let (server, clients) = (Authority::new(), Authority::new());
    let respond = "respond = { body = \"secret\" }";
    let running = setup(&server, &clients, &[("a.test", REQUIRE, respond)])
        .file("ca.pem", "no certificate")
        .start();
    let rejected = running.wait_event("certificate_rejected");
    let error = rejected.field("error").expect("an error");
    assert!(error.contains("ca.pem: holds no certificate"), "{error}");
    let refused = connect(running.address(), &server.client(), "a.test");
    assert_eq!(alert(refused), AlertDescription::UnrecognisedName);
    let mut plain = Client::connect(running.addresses()[1]);
    assert_eq!(plain.exchange(support::get("a.test", "/")).status, 421);
}

#[test]
fn curl_and_openssl_show_their_certificates() {
    let (server, clients) = (Authority::new(), Authority::new());
    let respond = "respond = { body = \"hello\" }";
    let (certificate, key) = clients.issue(&["client.test"]);
    let running = setup(&server, &clients, &[("a.test", REQUIRE, respond)])
        .file("server-ca.pem", server.certificate.pem())
        .file("client.pem", certificate)
        .file("client.key", key)
        .start();
    let port = running.address().port();
    let path = |name: &str| running.dir().join(name).display().to_string();
    let (ca, cert, key) = (path("server-ca.pem"), path("client.pem"), path("client.key"));
    let (resolve, url) = (format!("a.test:{port}:127.0.0.1"), format!("https://a.test:{port}/"));
    for version in ["1.3", "1.2"] {
        let trusting = ["-sS", "--cacert", &ca, "--resolve", &resolve, "--tls-max", version];
        let shown = [&trusting[..], &["--cert", &cert, "--key", &key, &url]].concat();
        let Some(said) = foreign("curl", &shown, "") else { return };
        assert_eq!(said, "hello", "{version}");
    }
    let connect = format!("127.0.0.1:{port}");
    let arguments = [
        "s_client",
        "-connect",
        &connect,
        "-servername",
        "a.test",
        "-CAfile",
        &ca,
        "-cert",
        &cert,
        "-key",
        &key,
        "-ign_eof",
    ];
    let request = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
    let said = foreign("openssl", &arguments, request).expect("openssl");
    assert!(said.contains("hello") && said.contains("Acceptable client certificate CA names"));
}

/// The first line and the fields of the answer to a GET.
fn head(tls: &mut Tls, host: &str) -> String {
    exchange(tls, &format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).expect("an answer").0
}

#[test]
fn plain_http_is_redirected_and_browsers_are_asked_to_stay_with_https() {
    let server = Authority::new();
    let more = ", redirect_http = true, hsts = \"180d\"";
    let apps = [("a.test", more, "respond = { body = \"hello\" }")];
    let setup = setup(&server, &server, &apps);
    let (text, running) = (setup.text(), setup.start());
    let port = running.address().port();
    let mut plain = Client::connect(running.addresses()[1]);
    for path in ["/", "/a/b?c=d"] {
        let answer = plain.exchange(support::get("a.test", path));
        let there = format!("https://a.test:{port}{path}");
        assert_eq!((answer.status, answer.field("Location")), (308, Some(&*there)));
        assert_eq!(answer.field("Strict-Transport-Security"), None, "not over plain HTTP");
    }
    let challenge = support::get("a.test", "/.well-known/acme-challenge/token");
    assert_eq!(plain.exchange(challenge).status, 200, "authorities ask over plain HTTP");
    let mut tls = connect(running.address(), &server.client(), "a.test").expect("a handshake");
    let said = head(&mut tls, "a.test");
    assert!(said.contains("\r\nStrict-Transport-Security: max-age=15552000\r\n"), "{said}");
    // Redirects go where TLS is spoken after a reload.
    let other = support::free_port();
    let moved = text.replacen(LISTEN, &format!("{{ address = \"{other}\", tls = true }}"), 1);
    assert_ne!(moved, text);
    running.rewrite(&moved);
    running.admin().post("/reload");
    let answer = plain.exchange(support::get("a.test", "/"));
    let there = format!("https://a.test:{}/", other.port());
    assert_eq!(answer.field("Location"), Some(&*there));
}
