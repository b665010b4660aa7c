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
    app::{self, App, Context, Reply, Segment, marks, upper_case},
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
            "/large" => Reply::Files { head: head(), content: large() },
            "/short" => Reply::Files { head: head(), content: vec![hole(7, 8)] },
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

/// A file of this many zero bytes, of which so many are announced.
fn hole(bytes: u64, length: u64) -> Segment {
    let file = tempfile::tempfile().expect("a file");
    file.set_len(bytes).expect("room");
    Segment::File { file: Arc::new(file), offset: 0, length }
}

/// More than a socket takes at once.
const LARGE_BYTES: u64 = 20 << 20;

/// Memory, a file, memory.
fn large() -> Vec<Segment> {
    let bytes = || Segment::Bytes(vec![b'a'; 100_000].into());
    vec![bytes(), hole(LARGE_BYTES, LARGE_BYTES), bytes()]
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

/// The content of an answer in chunks, and what follows the last chunk.
fn unchunked(mut chunked: &[u8]) -> (Vec<u8>, &[u8]) {
    let mut content = Vec::new();
    loop {
        let end = chunked.windows(2).position(|it| it == b"\r\n").expect("a chunk size");
        let size = std::str::from_utf8(&chunked[..end]).unwrap();
        let size = usize::from_str_radix(size, 16).expect(size);
        let chunk = &chunked[end + 2..];
        assert_eq!(&chunk[size..size + 2], b"\r\n");
        content.extend_from_slice(&chunk[..size]);
        chunked = &chunk[size + 2..];
        if size == 0 {
            return (content, chunked);
        }
    }
}

/// Head and rest of an answer.
fn parts(answer: &[u8]) -> (String, &[u8]) {
    let end = answer.windows(4).position(|it| it == b"\r\n\r\n").expect("a head") + 4;
    (String::from_utf8(answer[..end].to_vec()).unwrap(), &answer[end..])
}

#[test]
fn a_stage_changes_content_of_every_kind_and_its_framing() {
    let rig = Rig::start();
    let (url, upstream) = upstream();
    for (host, app) in [("k", hosted_app(Arc::new(Kinds))), ("p", proxy(&url))] {
        rig.add(host, HostedApp { filters: upper_case(), ..app });
    }
    let changed = format!("<{}>", CONTENT.to_uppercase());
    for (host, path) in [
        ("k", "/full"),
        ("k", "/files"),
        ("k", "/after"),
        ("k", "/collect"),
        ("k", "/later"),
        ("k", "/stream"),
        ("p", "/"),
    ] {
        let answer = ask(&rig, host, path, "");
        let last = &answer.as_bytes()[answer.rfind("HTTP/1.1 ").expect("a status line")..];
        let (head, rest) = parts(last);
        assert!(head.contains("\r\nTransfer-Encoding: chunked\r\n"), "{host}{path}: {head}");
        assert!(head.contains("\r\nCase: upper\r\n"), "{host}{path}: {head}");
        assert!(!head.contains("Content-Length"), "{host}{path}: {head}");
        let (content, behind) = unchunked(rest);
        let content = String::from_utf8(content).unwrap();
        let whole = content.replace('<', "").replacen(&CONTENT.to_uppercase(), "x", 1);
        assert!(
            content == changed || (path == "/files" && whole == "x>"),
            "{host}{path}: {content}"
        );
        assert!(behind.is_empty(), "{host}{path}");
    }
    // What the stage leaves alone goes the direct way.
    let answer = ask(&rig, "k", "/panic", "");
    assert!(answer.starts_with("HTTP/1.1 500 ") && answer.contains("Content-Length"), "{answer}");
    upstream.join().unwrap();
    rig.end();
}

#[test]
fn requests_behind_a_staged_answer_are_answered_when_it_is_complete() {
    let rig = Rig::start();
    rig.add("k", HostedApp { filters: upper_case(), ..hosted_app(Arc::new(Kinds)) });
    let mut peer = rig.connect();
    let request = |method, path, version, end| {
        format!("{method} {path} HTTP/1.{version}\r\nHost: k\r\n{end}\r\n")
    };
    let pipeline = [
        request("GET", "/full", 1, ""),
        request("HEAD", "/large", 1, ""),
        request("GET", "/large", 1, ""),
        request("HEAD", "/stream", 1, ""),
        request("GET", "/files", 0, ""),
    ];
    peer.write_all(pipeline.concat().as_bytes()).unwrap();
    let mut answers = Vec::new();
    peer.read_to_end(&mut answers).unwrap();
    let (_, rest) = parts(&answers);
    let (content, rest) = unchunked(rest);
    assert_eq!(content, format!("<{}>", CONTENT.to_uppercase()).as_bytes());
    let (head, rest) = parts(rest);
    assert!(head.contains("\r\nTransfer-Encoding: chunked\r\n"), "{head}");
    let (_, rest) = parts(rest);
    let (mut content, rest) = unchunked(rest);
    content.retain(|byte| *byte != b'<');
    assert_eq!(content.len() as u64, LARGE_BYTES + 200_000 + 1);
    assert!(content.starts_with(b"AAA") && content.ends_with(b"AAA>"));
    let (_, rest) = parts(rest);
    let (head, rest) = parts(rest);
    assert!(!head.contains("Transfer-Encoding") && !head.contains("Content-Length"), "{head}");
    assert_eq!(rest, b"<SOME C<ONTENT>");
    rig.end();
}

#[test]
fn a_staged_answer_whose_file_is_too_short_is_never_ended_as_if_it_were_complete() {
    let rig = Rig::start();
    rig.add("k", HostedApp { filters: upper_case(), ..hosted_app(Arc::new(Kinds)) });
    let mut peer = rig.connect();
    peer.write_all(b"GET /short HTTP/1.1\r\nHost: k\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    // The end may be a reset.
    let _ = peer.read_to_end(&mut answer);
    assert!(!answer.ends_with(b"0\r\n\r\n"), "{}", answer.escape_ascii());
    rig.end();
}
