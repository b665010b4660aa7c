//! Answers of every kind, through a whole loop.

use std::{
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    sync::Arc,
    thread,
    time::Duration,
};

use super::super::{test_support::hosted_app, tests::Rig};
use crate::{
    app::{self, App, Context, Reply, Segment, marks},
    config::AppConfig,
    hosted::HostedApp,
    http::{RequestHead, Response},
};

/// An app that answers each path with another kind of reply.
struct Kinds;

const CONTENT: &str = "some content";

fn head() -> Response<'static> {
    Response::new(200).with_field("Own", "1")
}

fn full() -> Response<'static> {
    head().with_content(CONTENT)
}

impl App for Kinds {
    fn handle<'a>(&'a self, request: &RequestHead<'_>, _context: &Context<'_>) -> Reply<'a> {
        match request.path() {
            "/files" => Reply::Files { head: head(), content: segments() },
            "/after" => Reply::After(Duration::from_millis(1), full()),
            "/collect" => Reply::Collect(Box::new(|_| Reply::Full(full()))),
            "/later" => Reply::Later(Box::new(|later| later.respond(full()))),
            "/stream" => Reply::Later(Box::new(|later| {
                let stream = later.stream(head()).expect("a peer");
                assert!(stream.send(CONTENT.into()));
            })),
            "/panic" => panic!("as asked"),
            _ => Reply::Full(full()),
        }
    }
}

/// The content, the first half from memory and the second from a file.
fn segments() -> Vec<Segment> {
    let (first, second) = CONTENT.split_at(6);
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(second.as_bytes()).expect("room");
    let length = second.len() as u64;
    vec![
        Segment::Bytes(first.as_bytes().to_vec().into()),
        Segment::File { file: Arc::new(file), offset: 0, length },
    ]
}

/// A proxy app with this one upstream.
fn proxy(upstream: &str) -> HostedApp {
    let table = serde_json::json!({ "proxy": { "upstreams": [upstream], "retries": 0 } });
    let config = AppConfig::from_json("p", &table, Path::new("/")).expect("a config");
    hosted_app(app::load(&config.kind, 1).expect("no file is read"))
}

/// The answer to a request, with everything up to the connection's end.
fn ask(rig: &Rig, host: &str, path: &str, fields: &str) -> String {
    let mut peer = rig.connect();
    let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{fields}\r\n");
    peer.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    peer.read_to_string(&mut answer).unwrap();
    answer
}

/// An upstream that answers its first client, with an interim response before the answer.
fn upstream() -> (String, thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serve = move || {
        let (mut socket, _) = listener.accept().unwrap();
        assert!(socket.read(&mut [0; 1024]).unwrap() > 0);
        let head = "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n\
                    HTTP/1.1 200 OK\r\nOwn: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
        let chunk = format!("{head}{:x}\r\n{CONTENT}\r\n0\r\n\r\n", CONTENT.len());
        socket.write_all(chunk.as_bytes()).unwrap();
    };
    (url, thread::spawn(serve))
}

#[test]
fn every_answer_of_an_app_passes_its_filters_once_and_no_other_answer_does() {
    let rig = Rig::start();
    let (url, upstream) = upstream();
    for (host, app) in [
        ("k", hosted_app(Arc::new(Kinds))),
        ("p", proxy(&url)),
        ("dead", proxy("http://127.0.0.1:1")),
    ] {
        rig.add(host, HostedApp { filters: marks(&["/tea", "/b"]), ..app });
    }
    let whole = |path| ("k", path, "", 200, format!("\r\n\r\n{CONTENT}"));
    let chunked = format!("\r\n\r\nc\r\n{CONTENT}\r\n0\r\n\r\n");
    for (host, path, fields, status, end) in [
        whole("/full"),
        whole("/files"),
        whole("/after"),
        whole("/collect"),
        whole("/later"),
        ("k", "/stream", "", 200, chunked.clone()),
        ("p", "/", "", 200, chunked),
        ("k", "/tea", "", 418, "\r\n\r\n/tea".to_owned()),
        ("k", "/", "Content-Length: 99999999999\r\n", 413, "}".to_owned()),
        ("k", "/panic", "", 500, "}".to_owned()),
        ("dead", "/", "", 502, "}".to_owned()),
    ] {
        let answer = ask(&rig, host, path, fields);
        let last = &answer[answer.rfind("HTTP/1.1 ").expect("a status line")..];
        assert!(last.starts_with(&format!("HTTP/1.1 {status} ")), "{host}{path}: {answer}");
        assert!(last.ends_with(&end), "{host}{path}: {answer}");
        let passed = format!("\r\nPassed: /b {status}\r\nPassed: /tea {status}\r\n");
        assert_eq!(answer.matches("Passed: ").count(), 2, "{host}{path}: {answer}");
        assert!(answer.contains(&passed), "{host}{path}: {answer}");
        assert_eq!(answer.contains("\r\nOwn: 1\r\n"), status == 200, "{host}{path}: {answer}");
    }
    for (host, path) in [("a", "/"), ("a", "/tea"), ("unknown", "/tea"), ("k", "*")] {
        let answer = ask(&rig, host, path, "");
        assert!(!answer.contains("Passed") && !answer.contains(" 418 "), "{host}{path}: {answer}");
    }
    upstream.join().unwrap();
    rig.end();
}
