//! TLS, from outside: rustls, curl and openssl as clients of the real server.

use std::{
    fs,
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned,
    pki_types::ServerName,
    version::{TLS12, TLS13},
};

use crate::support::{
    Client, End, PATIENCE, Pid, Server, Setup, Signal, free_port, pattern, run, wait_until,
};

pub(crate) const LISTEN: &str = "{ address = \"127.0.0.1:0\", tls = true }";
pub(crate) const PLAIN: &str = "127.0.0.2:0";

/// An authority, and the certificates that it issues.
pub(crate) struct Authority {
    pub(crate) certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "an authority of the tests");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// A certificate for these names and its key, as PEM.
    pub(crate) fn issue(&self, names: &[&str]) -> (String, String) {
        self.issue_with(names, |_| {})
    }

    pub(crate) fn issue_with(
        &self,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> (String, String) {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }

    /// The configuration of a client that trusts it.
    pub(crate) fn client(&self) -> ClientConfig {
        self.client_of(&[&TLS12, &TLS13])
    }

    pub(crate) fn client_of(
        &self,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).expect("an authority");
        ClientConfig::builder_with_protocol_versions(versions)
            .with_root_certificates(roots)
            .with_no_client_auth()
    }

    /// A setup with these apps and files of certificates `HOST.pem`, on a port with TLS and one
    /// without.
    pub(crate) fn setup(&self, hosts: &[&str]) -> Setup {
        let setup = Setup::new().listen(&[LISTEN, PLAIN]);
        hosts.iter().fold(setup, |setup, host| self.add(setup, host))
    }

    fn add(&self, setup: Setup, host: &str) -> Setup {
        let (certificate, key) = self.issue(&[host]);
        setup
            .file(&format!("{host}.pem"), certificate)
            .file(&format!("{host}.key"), key)
            .app(host, &app_lines(host))
    }
}

pub(crate) fn app_lines(host: &str) -> String {
    format!(
        "tls = {{ cert = \"{host}.pem\", key = \"{host}.key\" }}\nrespond = {{ body = \"{host}\" }}"
    )
}

/// A client of a server with TLS.
pub(crate) type Tls = StreamOwned<ClientConnection, TcpStream>;

/// Connects and finishes the handshake, naming this host; none if it is an address.
pub(crate) fn connect(address: SocketAddr, config: &ClientConfig, name: &str) -> io::Result<Tls> {
    over(TcpStream::connect(address)?, config, name)
}

fn over(mut socket: TcpStream, config: &ClientConfig, name: &str) -> io::Result<Tls> {
    socket.set_read_timeout(Some(PATIENCE))?;
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let mut session = ClientConnection::new(Arc::new(config.clone()), name).expect("a session");
    while session.is_handshaking() {
        session.complete_io(&mut socket)?;
    }
    Ok(StreamOwned::new(session, socket))
}

/// Sends a request, and reads the answer: its head and its content.
pub(crate) fn exchange(tls: &mut Tls, request: &str) -> io::Result<(String, Vec<u8>)> {
    tls.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    loop {
        let mut piece = [0; 16 * 1024];
        let len = tls.read(&mut piece)?;
        if len == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&piece[..len]);
        let Some(at) = bytes.windows(4).position(|found| found == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(bytes[..at + 2].to_vec()).expect("a head");
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let length: usize = length.expect("a length").parse().expect("a number");
        if bytes.len() == at + 4 + length {
            return Ok((head, bytes.split_off(at + 4)));
        }
    }
}

/// The status and the content of the answer to a GET.
pub(crate) fn get(tls: &mut Tls, host: &str) -> io::Result<(u16, String)> {
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let (head, content) = exchange(tls, &request)?;
    let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
    Ok((status, String::from_utf8(content).expect("text")))
}

/// The alert with which a handshake was refused.
pub(crate) fn alert(refused: io::Result<Tls>) -> AlertDescription {
    let error = refused.expect_err("a refused handshake");
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(alert)) => *alert,
        _ => panic!("{error}"),
    }
}

/// The certificate that a server shows, as it is on the wire.
pub(crate) fn shown(tls: &Tls) -> Vec<u8> {
    tls.conn.peer_certificates().expect("certificates")[0].to_vec()
}

/// Runs a foreign client; none if it isn't installed.
pub(crate) fn foreign(program: &str, arguments: &[&str], input: &str) -> Option<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut child) = command.spawn() else {
        println!("{program} is not installed: nothing is tested with it");
        return None;
    };
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("its input");
    let output = child.wait_with_output().expect("its output");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some(text(&output.stdout) + &text(&output.stderr))
}

#[test]
fn each_app_has_its_certificate_and_curl_is_content() {
    let authority = Authority::new();
    let server =
        authority.setup(&["a.test", "b.test"]).file("ca.pem", authority.certificate.pem()).start();
    let (ca, port) = (server.dir().join("ca.pem"), server.address().port());
    for host in ["a.test", "b.test"] {
        for version in [&TLS12, &TLS13] {
            let config = authority.client_of(&[version]);
            let mut tls = connect(server.address(), &config, host).expect("a handshake");
            for _ in 0..2 {
                assert_eq!(get(&mut tls, host).expect("an answer"), (200, host.to_owned()));
            }
        }
        for version in ["1.3", "1.2"] {
            let resolve = format!("{host}:{port}:127.0.0.1");
            let (url, ca) = (format!("https://{host}:{port}/"), ca.display().to_string());
            let arguments =
                ["-sS", "--cacert", &ca, "--resolve", &resolve, "--tls-max", version, &url, &url];
            let Some(said) = foreign("curl", &arguments, "") else { break };
            assert_eq!(said, host.repeat(2), "{version}");
        }
    }
    // The same apps without TLS.
    let mut plain = Client::connect(server.addresses()[1]);
    assert_eq!(plain.exchange(crate::support::get("a.test", "/")).text(), "a.test");
}

#[test]
fn a_self_signed_certificate_serves_localhost() {
    let lines = "tls = { self_signed = true }\nrespond = { body = \"hello\" }";
    let server = Setup::new().listen(&[LISTEN]).app("localhost", lines).start();
    let url = format!("https://localhost:{}/", server.address().port());
    let Some(said) = foreign("curl", &["-sSk", &url], "") else { return };
    assert_eq!(said, "hello");
}

#[test]
fn an_unknown_name_and_none_get_the_default_apps_certificate_or_an_alert() {
    let authority = Authority::new();
    let config = authority.client();
    let without = authority.setup(&["a.test"]).start();
    for name in ["b.test", "127.0.0.1"] {
        let refused = connect(without.address(), &config, name);
        assert_eq!(alert(refused), AlertDescription::UnrecognisedName, "{name}");
    }
    let mut tls = connect(without.address(), &config, "a.test").expect("the loop goes on");
    assert_eq!(get(&mut tls, "a.test").expect("an answer").0, 200);
    let (certificate, key) = authority.issue(&["a.test", "127.0.0.1"]);
    let with = authority
        .setup(&["a.test"])
        .file("a.test.pem", certificate)
        .file("a.test.key", key)
        .server("default_app = \"a.test\"")
        .named_app("plain.test")
        .start();
    let mut tls = connect(with.address(), &config, "127.0.0.1").expect("a handshake");
    assert_eq!(get(&mut tls, "127.0.0.1").expect("an answer"), (200, "a.test".to_owned()));
    assert_eq!(get(&mut tls, "other.test").expect("an answer").0, 200, "it has no other site");
    // An app without `tls` isn't served over TLS, not even by the default app's certificate.
    assert_eq!(get(&mut tls, "plain.test").expect("an answer").0, 421);
    let refused = connect(with.address(), &config, "plain.test");
    assert_eq!(alert(refused), AlertDescription::UnrecognisedName);
}

#[test]
fn a_host_that_the_certificate_does_not_cover_is_misdirected() {
    let authority = Authority::new();
    let (both, key) = authority.issue(&["a.test", "b.test"]);
    let setup = authority.setup(&["a.test", "b.test", "c.test"]).named_app("plain.test");
    let server = ["a.test", "b.test"]
        .into_iter()
        .fold(setup, |setup, host| {
            setup.file(&format!("{host}.pem"), &both).file(&format!("{host}.key"), &key)
        })
        .start();
    let mut tls = connect(server.address(), &authority.client(), "a.test").expect("a handshake");
    for (host, status) in [
        ("a.test", 200),
        ("A.Test", 200),
        ("b.test", 200),
        ("c.test", 421),
        ("plain.test", 421),
        ("unknown.test", 421),
        ("a.test", 200),
    ] {
        assert_eq!(get(&mut tls, host).expect("an answer").0, status, "{host}");
    }
}

#[test]
fn plain_http_where_tls_is_spoken_is_told_so() {
    let server = Authority::new().setup(&["a.test"]).start();
    let mut client = Client::connect(server.address());
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n");
    let (bytes, end) = client.read_to_end();
    let text = String::from_utf8(bytes).expect("text");
    assert!(text.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{text}");
    assert!(text.ends_with("This port speaks TLS: use https:// instead of http:// .\n"), "{text}");
    assert_eq!(end, End::Eof);
    // What is neither gets no answer, or an alert.
    let mut client = Client::connect(server.address());
    client.send([0; 100]);
    let (bytes, _) = client.read_to_end();
    assert!(bytes.first().is_none_or(|kind| *kind == 21), "{bytes:?}");
}

#[test]
fn a_reload_swaps_a_certificate_and_touches_no_open_connection() {
    let authority = Authority::new();
    let mut setup = authority.setup(&["a.test", "b.test"]);
    let ports = [free_port(), free_port()];
    setup = setup.listen(&[&format!("{{ address = \"{}\", tls = true }}", ports[0])]);
    let server = setup.start();
    let config = authority.client();
    let mut open = connect(server.address(), &config, "a.test").expect("a handshake");
    let before = shown(&open);
    assert_eq!(get(&mut open, "a.test").expect("an answer").0, 200);
    let put = |host: &str, (certificate, key): (String, String)| {
        fs::write(server.dir().join(format!("{host}.pem")), certificate).expect("a file");
        fs::write(server.dir().join(format!("{host}.key")), key).expect("a file");
    };
    put("a.test", authority.issue(&["a.test"]));
    server.admin().post("/reload");
    // Both loops: each connection may go to either.
    let handshake = || connect(server.address(), &authority.client(), "a.test");
    for _ in 0..8 {
        let mut tls = handshake().expect("a handshake");
        assert_ne!(shown(&tls), before, "the new one");
        assert_eq!(get(&mut tls, "a.test").expect("an answer").0, 200);
    }
    let renewed = shown(&handshake().expect("a handshake"));
    assert_eq!(get(&mut open, "a.test").expect("an answer"), (200, "a.test".to_owned()));
    // A session goes on over the renewal.
    let again = connect(server.address(), &config, "a.test").expect("a handshake");
    assert_eq!(again.conn.handshake_kind(), Some(HandshakeKind::Resumed));

    // A key of another certificate: a.test keeps what it has, and b.test gets what is new (I8).
    let (certificate, _) = authority.issue(&["a.test"]);
    put("a.test", (certificate, authority.issue(&["a.test"]).1));
    let old_b = shown(&connect(server.address(), &config, "b.test").expect("a handshake"));
    put("b.test", authority.issue(&["b.test"]));
    let answer = server.admin().post("/reload");
    let errors = answer["certificate_errors"].to_string();
    assert!(errors.contains("a.test: ") && !errors.contains("b.test"), "{answer}");
    let rejected = server.wait_event("certificate_rejected");
    assert_eq!(rejected.field("host"), Some("a.test"));
    let error = rejected.field("error").expect("an error");
    assert!(error.contains("a.test.key: the private key belongs to another"), "{error}");
    let tls = handshake().expect("a handshake");
    assert_eq!(shown(&tls), renewed);
    let new_b = connect(server.address(), &authority.client(), "b.test").expect("a handshake");
    assert_ne!(shown(&new_b), old_b);
}

/// Puts other files in the place of an app's.
fn renew(server: &Server, host: &str, (certificate, key): &(String, String)) {
    for (kind, content) in [("pem", certificate), ("key", key)] {
        let new = server.dir().join("new");
        fs::write(&new, content).expect("a file");
        fs::rename(new, server.dir().join(format!("{host}.{kind}"))).expect("a rename");
    }
}

#[test]
fn a_renewed_certificate_is_taken_without_a_reload_and_touches_no_open_connection() {
    let authority = Authority::new();
    let server = authority.setup(&["a.test", "b.test"]).start();
    let config = authority.client();
    let mut open = connect(server.address(), &config, "a.test").expect("a handshake");
    let before = shown(&open);
    assert_eq!(get(&mut open, "a.test").expect("an answer").0, 200);
    let handshake =
        || connect(server.address(), &authority.client(), "a.test").expect("a handshake");
    let count = |name: &str| server.events().iter().filter(|event| event.name == name).count();
    assert_eq!(count("certificate_loaded"), 2);

    // Half of the new pair is there, and then a FIFO that has no writer.
    let (certificate, key) = authority.issue(&["a.test"]);
    fs::write(server.dir().join("a.test.pem"), &certificate).expect("a file");
    let rejected = server.wait_event("certificate_rejected");
    assert_eq!(rejected.field("host"), Some("a.test"));
    assert_eq!(shown(&handshake()), before);
    let path = server.dir().join("a.test.key");
    fs::remove_file(&path).expect("a removal");
    mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("mkfifo");
    assert!(wait_until(PATIENCE, || count("certificate_rejected") == 2));
    assert_eq!(shown(&handshake()), before);
    assert_eq!(server.admin().get("/status")["operator"]["busy_with"], serde_json::Value::Null);

    renew(&server, "a.test", &(certificate, key));
    assert!(wait_until(PATIENCE, || count("certificate_loaded") == 3));
    let loaded = server.events().into_iter().rfind(|event| event.name == "certificate_loaded");
    let loaded = loaded.expect("an event");
    assert_eq!(loaded.field("host"), Some("a.test"));
    assert!(loaded.field("file").is_some_and(|file| file.ends_with("a.test.pem")), "{loaded:?}");
    // Both loops: each connection may go to either.
    for _ in 0..8 {
        assert_ne!(shown(&handshake()), before, "the new one");
    }
    assert_eq!(get(&mut open, "a.test").expect("an answer"), (200, "a.test".to_owned()));
    let again = connect(server.address(), &config, "a.test").expect("a handshake");
    assert_eq!(again.conn.handshake_kind(), Some(HandshakeKind::Resumed));
    assert_eq!(count("certificate_rejected"), 2, "each change is reported once");
    assert_eq!(count("config_reload_start"), 0);
}

#[test]
fn a_certificate_that_cannot_be_used_fails_its_app_alone() {
    let authority = Authority::new();
    let expired = authority.issue_with(&["old.test"], |params| {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 2, 1);
    });
    let setup = authority.setup(&["a.test", "old.test", "none.test"]);
    let setup = setup.file("old.test.pem", expired.0).file("old.test.key", expired.1);
    let server = setup.file("none.test.pem", "").start();
    let config = authority.client();
    let mut tls = connect(server.address(), &config, "a.test").expect("a handshake");
    assert_eq!(get(&mut tls, "a.test").expect("an answer").0, 200);
    for host in ["old.test", "none.test"] {
        let refused = connect(server.address(), &config, host);
        assert_eq!(alert(refused), AlertDescription::UnrecognisedName);
        // Without TLS it serves.
        let mut plain = Client::connect(server.addresses()[1]);
        assert_eq!(plain.exchange(crate::support::get(host, "/")).text(), host);
    }
    let events = server.events();
    let errors: Vec<_> = events.iter().filter_map(|event| event.field("error")).collect();
    assert!(errors.iter().any(|error| error.contains("old.test.pem: expired ")), "{errors:?}");
    assert!(errors.iter().any(|error| error.contains("none.test.pem: holds no")), "{errors:?}");
}

#[test]
fn what_is_wrong_with_certificates_has_the_line_of_the_config_that_names_them() {
    let authority = Authority::new();
    let (soon, soon_key) = authority.issue_with(&["soon.test"], |params| {
        params.not_after = (SystemTime::now() + Duration::from_hours(10 * 24)).into();
    });
    let setup = authority.setup(&["good.test", "key.test", "soon.test", "name.test"]);
    let setup = setup
        .file("key.test.key", authority.issue(&["key.test"]).1)
        .file("soon.test.pem", soon)
        .file("soon.test.key", soon_key)
        .app("shared.test", "tls = {}\nrespond = {}\n[tls]\ncertificates = [\"gone\"]");
    let (other, other_key) = authority.issue(&["other.test"]);
    let setup = setup.file("name.test.pem", other).file("name.test.key", other_key);
    for host in ["good", "key", "soon"] {
        let key = setup.dir().join(format!("{host}.test.key"));
        fs::set_permissions(key, fs::Permissions::from_mode(0o600)).expect("a mode");
    }
    let line = |text: &str, needle: &str| {
        text.lines().position(|line| line.contains(needle)).expect("a line") + 1
    };
    let config = setup.write();
    let text = setup.text();
    let [key, shared, folder, name] =
        ["key.test.pem", "tls = {}", "gone", "name.test.pem"].map(|needle| line(&text, needle));
    let config = config.to_str().expect("text");
    let (code, printed) = run(&["check", "--config", config]);
    assert_eq!(code, Some(0), "{printed}");
    for (line, words) in [
        (key, "key.test.key: the private key belongs to another certificate"),
        (shared, "no certificate of `tls.certificates` is for shared.test"),
        (folder, "gone: cannot be read: No such file"),
        (name, "name.test.pem is not for name.test: clients will refuse it"),
        (name, "name.test.key: every user can read this private key"),
        (line(&text, "soon.test.pem"), "soon.test.pem expires in 9 days: renew it"),
    ] {
        let found = printed.split("\n\n").find(|warning| warning.contains(words));
        let found = found.unwrap_or_else(|| panic!("no {words} in\n{printed}"));
        assert!(found.contains(&format!("config.toml:{line}:")), "{line}: {found}");
    }
    assert!(!printed.contains("good.test"), "{printed}");
    assert_eq!(run(&["check", "--strict", "--config", config]).0, Some(2));

    let server = setup.start();
    let events = server.events();
    let rejected = || events.iter().filter(|event| event.name == "certificate_rejected");
    let place = |line: usize| format!("config.toml:{line})");
    for line in [key, shared, folder] {
        let is_there = |error: &str| error.ends_with(&place(line));
        let found = rejected().any(|event| event.field("error").is_some_and(is_there));
        assert!(found, "{line}: {:?}", rejected().collect::<Vec<_>>());
    }
    let answer = server.admin().post("/reload?dry_run=true");
    let errors = answer["certificate_errors"].as_array().expect("errors").clone();
    assert_eq!(errors.len(), 3, "{answer}");
    assert!(errors.iter().any(|error| error.as_str().is_some_and(|it| it.ends_with(&place(key)))));
    let count = server.events().iter().filter(|it| it.name == "certificate_rejected").count();
    assert_eq!(count, rejected().count(), "a dry run logs nothing");
}

#[test]
fn certificates_of_a_folder_are_found_by_their_names() {
    let authority = Authority::new();
    let (exact, exact_key) = authority.issue(&["a.w.test"]);
    let (wild, wild_key) = authority.issue(&["*.w.test"]);
    let lines = |host: &str| format!("tls = {{}}\nrespond = {{ body = \"{host}\" }}");
    let server = Setup::new()
        .listen(&[LISTEN])
        .file("certs/0-wild.pem", wild)
        .file("certs/0-wild.key", wild_key)
        .file("certs/exact.pem", exact)
        .file("certs/exact.key", exact_key)
        .app("a.w.test", &lines("a.w.test"))
        .app("b.w.test", &lines("b.w.test"))
        .app("c.example", &(lines("c.example") + "\n[tls]\ncertificates = [\"certs\"]"))
        .start();
    let config = authority.client();
    let [a, b] = ["a.w.test", "b.w.test"].map(|host| {
        let mut tls = connect(server.address(), &config, host).expect("a handshake");
        assert_eq!(get(&mut tls, host).expect("an answer"), (200, host.to_owned()));
        shown(&tls)
    });
    assert_ne!(a, b);
    let refused = connect(server.address(), &config, "c.example");
    assert_eq!(alert(refused), AlertDescription::UnrecognisedName);
    let error = server.wait_event("certificate_rejected");
    assert!(error.field("error").expect("an error").contains("no certificate"));
}

#[test]
fn a_proxy_header_comes_before_the_hello() {
    let authority = Authority::new();
    let listen = "{ address = \"127.0.0.1:0\", tls = true, proxy_protocol = true }";
    let server = authority.setup(&["a.test"]).listen(&[listen]).start();
    let mut socket = TcpStream::connect(server.address()).expect("connect");
    socket.write_all(b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n").expect("send");
    let mut tls = over(socket, &authority.client(), "a.test").expect("a handshake");
    assert_eq!(get(&mut tls, "a.test").expect("an answer").0, 200);
}

#[test]
fn files_of_all_sizes_arrive_whole() {
    let authority = Authority::new();
    let lengths = [0, 1, 1000, 16 * 1024, 16 * 1024 + 1, 100_000, 5_000_000];
    let (certificate, key) = authority.issue(&["f.test"]);
    let mut setup =
        Setup::new().listen(&[LISTEN]).file("f.test.pem", certificate).file("f.test.key", key).app(
            "f.test",
            "tls = { cert = \"f.test.pem\", key = \"f.test.key\" }\nfiles = { root = \"www\" }",
        );
    for length in lengths {
        setup = setup.file(&format!("www/{length}.bin"), pattern(length));
    }
    let server = setup.start();
    let mut tls = connect(server.address(), &authority.client(), "f.test").expect("a handshake");
    for length in lengths {
        let request = format!("GET /{length}.bin HTTP/1.1\r\nHost: f.test\r\n\r\n");
        let (head, content) = exchange(&mut tls, &request).expect("an answer");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(content == pattern(length), "{length} bytes");
    }
}

#[test]
fn a_stop_finishes_an_answer_and_says_close_notify() {
    let authority = Authority::new();
    let lines = app_lines("slow.test").replace("body =", "delay = \"300ms\", body =");
    let (certificate, key) = authority.issue(&["slow.test"]);
    let mut server = authority
        .setup(&["a.test"])
        .file("slow.test.pem", certificate)
        .file("slow.test.key", key)
        .app("slow.test", &lines)
        .server("idle_grace = \"0s\"")
        .start();
    let config = authority.client();
    let mut slow = connect(server.address(), &config, "slow.test").expect("a handshake");
    let mut idle = connect(server.address(), &config, "a.test").expect("a handshake");
    assert_eq!(get(&mut idle, "a.test").expect("an answer").0, 200);
    slow.write_all(b"GET / HTTP/1.1\r\nHost: slow.test\r\n\r\n").expect("send");
    let active = || server.admin().get("/apps/slow.test")["active_connections"].as_u64() == Some(1);
    assert!(wait_until(PATIENCE, active));
    server.signal(Signal::TERM);
    let mut text = String::new();
    // An end without close_notify would be an error.
    slow.read_to_string(&mut text).expect("an answer and a clean end");
    assert!(text.contains("Connection: close\r\n") && text.ends_with("slow.test"), "{text}");
    assert_eq!(idle.read(&mut [0]).expect("a clean end"), 0);
    assert!(server.wait_exit().success());
}

#[test]
fn a_connection_that_either_side_ends_gets_close_notify() {
    let authority = Authority::new();
    let server = authority.setup(&["a.test"]).start();
    for fields in ["Connection: close\r\n", ""] {
        for version in [&TLS12, &TLS13] {
            let config = authority.client_of(&[version]);
            let mut tls = connect(server.address(), &config, "a.test").expect("a handshake");
            let request = format!("GET / HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n");
            let (_, content) = exchange(&mut tls, &request).expect("an answer");
            assert_eq!(content, b"a.test");
            if fields.is_empty() {
                tls.conn.send_close_notify();
                tls.conn.complete_io(&mut tls.sock).expect("it is sent");
            }
            // Without close_notify this is an error: `UnexpectedEof`.
            assert_eq!(tls.read(&mut [0]).expect("the end"), 0, "{version:?} {fields:?}");
        }
    }
}

#[test]
fn half_a_hello_ends_at_the_head_timeout_and_other_connections_do_not_wait_for_it() {
    let authority = Authority::new();
    let server = authority.setup(&["a.test"]).limits("head_timeout = \"500ms\"").start();
    let half: Vec<_> = (0..50)
        .map(|_| {
            let mut client = Client::connect(server.address());
            client.send([22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]);
            client
        })
        .collect();
    let mut tls = connect(server.address(), &authority.client(), "a.test").expect("a handshake");
    assert_eq!(get(&mut tls, "a.test").expect("an answer").0, 200);
    for mut client in half {
        let (bytes, end) = client.read_to_end();
        assert_eq!((bytes.len(), end), (0, End::Eof));
    }
}

#[test]
fn openssl_resumes_and_is_refused_a_renegotiation() {
    let authority = Authority::new();
    let server = authority.setup(&["a.test"]).start();
    let (address, session) = (server.address().to_string(), server.dir().join("session"));
    let session = session.display().to_string();
    let request = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
    for version in ["-tls1_2", "-tls1_3"] {
        let common =
            ["s_client", "-connect", &address, "-servername", "a.test", version, "-ign_eof"];
        let first = [&common[..], &["-sess_out", &session]].concat();
        let Some(said) = foreign("openssl", &first, request) else { return };
        assert!(said.contains("New, TLSv1") && said.contains("200 OK"), "{said}");
        let again = [&common[..], &["-sess_in", &session]].concat();
        let said = foreign("openssl", &again, request).expect("openssl");
        assert!(said.contains("Reused, TLSv1") && said.contains("200 OK"), "{said}");
        let without = [&common[..], &["-no_ticket"]].concat();
        let said = foreign("openssl", &without, request).expect("openssl");
        assert!(said.contains("200 OK"), "{said}");
    }
    let renegotiation = ["s_client", "-connect", &address, "-servername", "a.test", "-tls1_2"];
    let said = foreign("openssl", &renegotiation, "R\nR\n").expect("openssl");
    assert!(said.contains("no renegotiation") || said.contains("handshake failure"), "{said}");
    let old = ["s_client", "-connect", &address, "-servername", "a.test", "-tls1_1"];
    let said = foreign("openssl", &old, "").expect("openssl");
    assert!(!said.contains("New, TLSv1.1"), "{said}");
}

#[test]
fn an_upgrade_leaves_tls_connections_until_they_speak_and_resumes_their_sessions() {
    let authority = Authority::new();
    let server = authority.setup(&["a.test"]).start();
    let config = authority.client();
    let mut idle = connect(server.address(), &config, "a.test").expect("a handshake");
    assert_eq!(get(&mut idle, "a.test").expect("an answer").0, 200);
    server.admin().post("/upgrade");
    let request = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
    let (head, content) = exchange(&mut idle, request).expect("an answer");
    assert!(head.contains("Connection: close\r\n") && content == b"a.test", "{head}");
    assert_eq!(idle.read(&mut [0]).expect("a clean end"), 0);
    // The new process opens the tickets of the old one.
    let mut tls = connect(server.address(), &config, "a.test").expect("a handshake");
    assert_eq!(tls.conn.handshake_kind(), Some(HandshakeKind::Resumed));
    assert_eq!(get(&mut tls, "a.test").expect("an answer").0, 200);
}

#[test]
fn an_upgrade_keeps_certificates_that_are_broken_on_disk_by_then_and_self_signed_ones() {
    let authority = Authority::new();
    let (exact, exact_key) = authority.issue(&["c.w.test"]);
    let (wild, wild_key) = authority.issue(&["*.w.test"]);
    let setup = authority.setup(&["a.test", "b.test"]);
    let setup = setup.file("certs/0.pem", wild).file("certs/0.key", wild_key);
    let setup = setup.file("certs/c.pem", exact).file("certs/c.key", exact_key);
    let shared = "tls = {}\nrespond = { body = \"c.w.test\" }";
    let own = "tls = { self_signed = true }\nrespond = { body = \"self.test\" }";
    let mut server = setup
        .app("c.w.test", shared)
        .app("self.test", &format!("{own}\n[tls]\ncertificates = [\"certs\"]"))
        .start();
    let key = fs::read_to_string(server.dir().join("a.test.key")).expect("a key");
    let hosts = ["a.test", "b.test", "c.w.test", "self.test"];
    let address = server.address();
    let served = |host: &str| {
        let arguments = ["s_client", "-connect", &address.to_string(), "-servername", host];
        let said = foreign("openssl", &arguments, "").unwrap_or_default();
        let begin = said.find("-----BEGIN CERTIFICATE-----");
        begin.map(|begin| said[begin..].split("-----END").next().unwrap_or_default().to_owned())
    };
    let before = hosts.map(served);
    assert!(before.iter().all(Option::is_some), "{before:?}");
    fs::write(server.dir().join("a.test.pem"), "").expect("a file");
    fs::remove_file(server.dir().join("b.test.key")).expect("a removal");
    fs::write(server.dir().join("certs/c.key"), &key).expect("a file");
    Server::adopt_orphans();
    for _ in 0..2 {
        let done = server.admin().post("/upgrade");
        let pid = done["pid"].as_i64().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        server.follow(pid.unwrap_or_else(|| panic!("{done}")));
        assert_eq!(hosts.map(served), before);
    }
    let events = server.events();
    let rejected = events.iter().filter(|event| event.name == "certificate_rejected");
    let kept = rejected.filter(|event| event.field("kept") == Some("true")).count();
    assert!(kept >= 6, "three of each upgrade: {kept}");
    // A renewal afterwards is noticed.
    renew(&server, "a.test", &authority.issue(&["a.test"]));
    assert!(wait_until(PATIENCE, || served("a.test") != before[0]));
    let secret = key.lines().nth(1).expect("a line");
    assert!(server.log_lines().iter().all(|line| !line.contains(secret)));
}

#[test]
fn an_idle_tls_connection_costs_little_memory() {
    const CONNECTIONS: usize = 600;
    let authority = Authority::new();
    let server = authority.setup(&["a.test"]).start();
    let config = authority.client_of(&[&TLS13]);
    let idle = |count: usize| -> Vec<Tls> {
        let one = |_| {
            let mut tls = connect(server.address(), &config, "a.test").expect("a handshake");
            assert_eq!(get(&mut tls, "a.test").expect("an answer").0, 200);
            tls
        };
        (0..count).map(one).collect()
    };
    let first = idle(CONNECTIONS / 3);
    let before = server.resident_kib();
    let more = idle(CONNECTIONS);
    let bytes = server.resident_kib().saturating_sub(before) * 1024 / CONNECTIONS;
    println!("{bytes} bytes per idle TLS connection");
    assert!(bytes <= 4608, "{bytes} bytes");
    drop((first, more));
}
