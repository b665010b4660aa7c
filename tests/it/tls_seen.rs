//! What operators see of TLS: certificates, status, metrics, events, logs, connections.

use std::{
    fs,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};

use crate::{
    cli_support::{Fake, run, tidegate},
    support::{Setup, free_port},
    tls::{Authority, LISTEN},
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
    let rejected = json!([{
        "host": "none.test",
        "error": "no certificate of `tls.certificates` is for none.test: add one, or name its \
                  files in the app's `tls`",
        "kept": false,
    }]);
    assert_eq!(before["rejected"], rejected);

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
