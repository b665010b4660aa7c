//! `tidegate drill --tls`: handshakes, sessions and certificates over all actions, and servers
//! whose handshakes fail.

use std::{fs, io::Read as _};

use serde_json::Value;

use crate::cli_support::{run, tidegate};
use crate::drill::{action, drill, scripted};
use crate::support::{Authority, Server, Setup};

const LISTEN: &str = "{ address = \"127.0.0.1:0\", tls = true }";
const PLAIN: &str = "127.0.0.2:0";

/// A small load: handshakes are slow in a debug build.
const SMALL: [&str; 2] = ["--rate=100", "--connections=4"];

/// A server of one app, with a certificate of this authority.
fn server_of(authority: &Authority) -> Server {
    let identity = authority.issue(&["a.test"]);
    let pem = format!("{}{}", identity.pem(), identity.key_pem());
    Setup::new()
        .listen(&[PLAIN, LISTEN])
        .file("a.pem", pem)
        .file("ca.pem", authority.pem())
        .file("other.pem", Authority::new("another").pem())
        .app("a.test", "tls = { cert = \"a.pem\", key = \"a.pem\" }\nrespond = {}")
        .named_app("plain.test")
        .start()
}

fn path(server: &Server, file: &str) -> String {
    server.dir().join(file).to_str().expect("UTF-8").to_owned()
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("{key}: {value}"))
}

/// Checks that no request was sent, because all handshakes failed for this reason.
#[track_caller]
fn check_all_failed(account: &Value, reason: &str) {
    assert_eq!(account["failed_handshake"], account["sent"], "{account}");
    let tls = &account["tls"];
    assert_eq!((&tls["full"], &tls["resumed"]), (&0.into(), &0.into()), "{tls}");
    assert!(number(tls, "failed") > 0, "{tls}");
    let because = &tls["failed_because"][0];
    assert_eq!((&because["reason"], &because["count"]), (&reason.into(), &tls["failed"]), "{tls}");
    for story in account["stories"].as_array().expect("stories") {
        assert_eq!(
            (&story["result"], &story["phase"], &story["socket"], &story["bytes_sent"]),
            (&"failed_handshake".into(), &"handshaking".into(), &reason.into(), &0.into())
        );
    }
    assert_eq!(account["clean"], false);
}

#[test]
fn no_action_fails_a_handshake_and_each_upgrade_resumes_a_session() {
    let actions = "--actions=reload,renew,replace,remove+add,drain+resume,upgrade,stop+start";
    let account = drill(0, &[&["--tls", actions, "--think=50ms..300ms"][..], &SMALL].concat());
    for name in ["reload", "renew", "replace", "remove+add", "drain+resume", "upgrade"] {
        let row = action(&account, name);
        assert_eq!((&row["done"], &row["not_accepted"]), (&2.into(), &0.into()), "{row}");
    }
    assert!(number(action(&account, "stop+start"), "not_accepted") > 0, "{account}");
    let tls = &account["tls"];
    assert!(number(tls, "full") > 0 && number(tls, "resumed") > 0, "{tls}");
    assert_eq!((&account["failed_handshake"], &tls["failed"]), (&0.into(), &0.into()), "{tls}");
    assert_eq!((&tls["upgrades"], &tls["resumed_after_upgrade"]), (&2.into(), &2.into()), "{tls}");
    let rows = tls["actions"].as_array().expect("rows").iter();
    let sum: u64 = rows.map(|row| number(row, "handshakes")).sum();
    assert_eq!(sum, number(tls, "full") + number(tls, "resumed"), "{tls}");
    assert_eq!(tls["suites"][0]["version"], "TLSv1.3", "{tls}");
}

#[test]
fn a_drill_without_tls_counts_no_handshakes() {
    let account = drill(0, &["--actions=nothing"]);
    assert_eq!((&account["failed_handshake"], &account["tls"]), (&0.into(), &Value::Null));
}

#[test]
fn a_server_that_runs_is_drilled_over_tls_by_its_authority() {
    let authority = Authority::new("own");
    let server = server_of(&authority);
    let (config, ca) = (path(&server, "config.toml"), path(&server, "ca.pem"));
    let running = ["--tls", "--running", "--config", &config, "--cacert", &ca];
    let account = drill(0, &[&running[..], &SMALL].concat());
    assert_eq!(account["address"], server.addresses()[1].to_string(), "the address with TLS");
    let tls = &account["tls"];
    assert!(number(tls, "full") > 0 && number(tls, "resumed") > 0, "{tls}");
    assert_eq!(account["answered"], account["sent"], "only the app with TLS is requested");
    // Without --tls it is drilled on the other address.
    let account = drill(0, &["--running", "--config", &config, "--host=plain.test"]);
    assert_eq!(account["address"], server.addresses()[0].to_string());
}

#[test]
fn an_unknown_issuer_fails_each_handshake_and_loses_no_request() {
    let server = server_of(&Authority::new("own"));
    let (config, ca) = (path(&server, "config.toml"), path(&server, "other.pem"));
    let running = ["--tls", "--running", "--config", &config, "--cacert", &ca];
    let account = drill(1, &[&running[..], &SMALL].concat());
    check_all_failed(&account, "unknown issuer");
    assert_eq!((&account["lost"], &account["not_accepted"]), (&0.into(), &0.into()));

    // As text and as a picture, too.
    let dir = tempfile::tempdir().expect("a folder");
    let more = ["--count=1", "--every=150ms", "--actions=reload", "--svg=drill.svg"];
    let ran = run(tidegate(dir.path(), &[&["drill"], &running[..], &SMALL, &more].concat()));
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let told = format!("TLS; certificates are checked against the authorities in {ca}");
    for text in [told.as_str(), "a.test/, which does not answer: unknown issuer"] {
        assert!(ran.err.contains(text), "{text:?} isn't in {}", ran.err);
    }
    for text in [
        "handshakes failed: unknown issuer",
        "NO HANDSH.",
        "ACTION    HANDSHAKES  FULL  RESUMED  FAILED",
        "with a failed handshake",
    ] {
        assert!(ran.out.contains(text), "{text:?} isn't in\n{}", ran.out);
    }
    assert!(ran.out.ends_with(" handshakes failed\n"), "{}", ran.out);
    let picture = fs::read_to_string(dir.path().join("drill.svg")).expect("the picture");
    assert!(picture.contains(">handshakes: 0 full, 0 resumed, "), "{picture}");
}

#[test]
fn a_url_of_https_is_drilled_over_tls_and_verified_unless_it_must_not_be() {
    let server = server_of(&Authority::new("own"));
    let url = format!("https://{}", server.addresses()[1]);
    let at = ["--url", &url, "--host=a.test", "--rate=100"];
    let account = drill(0, &[&at[..], &["--insecure"]].concat());
    assert!(number(&account["tls"], "full") > 0, "{account}");
    check_all_failed(&drill(1, &at), "unknown issuer");
    let ca = path(&server, "ca.pem");
    let other = ["--url", &url, "--host=b.test", "--rate=100", "--cacert", &ca];
    check_all_failed(&drill(1, &other), "refused by the peer: unknown server name");
    let missing = ["drill", "--url", &url, "--cacert=none.pem"];
    run(tidegate(&server.dir(), &missing)).expect_failure(1, &["none.pem: cannot be read"]);
}

#[test]
fn a_handshake_that_the_server_cuts_is_no_lost_request() {
    let url = scripted(|mut stream| {
        // The server leaves when it has the hello.
        let _ = stream.read(&mut [0; 4096]);
    });
    let url = url.replace("http://", "https://");
    let account = drill(1, &["--url", &url, "--insecure"]);
    check_all_failed(&account, "closed without close_notify");
}

#[test]
fn plain_http_where_tls_is_expected_is_a_failed_handshake() {
    let url = scripted(|mut stream| {
        let _ = stream.read(&mut [0; 4096]);
        let _ = std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let url = url.replace("http://", "https://");
    let account = drill(1, &["--url", &url, "--insecure"]);
    check_all_failed(&account, "not TLS: the peer may speak plain HTTP");
}

#[test]
fn a_silent_server_fails_handshakes_in_time() {
    let url = scripted(|mut stream| while let Ok(1..) = stream.read(&mut [0; 4096]) {});
    let url = url.replace("http://", "https://");
    let account = drill(1, &["--url", &url, "--insecure", "--rate=100", "--timeout=400ms"]);
    check_all_failed(&account, "nothing for 0.4 s");
}
