//! A whole connection of a server that runs: a PROXY header or none, requests in pieces, an end by
//! either side or by a deadline. The server never panics, what it writes are responses, and no
//! exchange stays in flight.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    panic,
    path::Path,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use tidegate::{
    app::{App, Context, Reply},
    config::Config,
    http::{RequestHead, Response},
    server::{HttpServer, ServerHandle, Verdict},
};

/// How long the server may take for what it does at once on a quiet machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Longer than all of the server's own times.
const LIMITS: &str = "
    [server]
    listen = [\"127.0.0.1:0\", { address = \"127.0.0.2:0\", proxy_protocol = true }]
    threads = 1
    drain_timeout = \"60s\"
    [limits]
    head_bytes = \"1KiB\"
    headers = 16
    body_bytes = \"4KiB\"
    head_timeout = \"20ms\"
    body_timeout = \"20ms\"
    write_timeout = \"50ms\"
    keepalive_timeout = \"20ms\"
    linger_timeout = \"20ms\"";

static LOOP_PANICKED: AtomicBool = AtomicBool::new(false);

pub fn check(data: &[u8]) {
    let Some((&[choices, a, b, c, d], wire)) = data.split_first_chunk::<5>() else { return };
    // The apps are one server's: a life of them is one input's.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let server = server();
    server.add_apps();
    let address = server.addresses[usize::from(choices & 1)];
    let mut cuts = [[a, b], [c, d]].map(|cut| super::place(cut, wire.len()));
    cuts.sort_unstable();
    let pieces = [&wire[..cuts[0]], &wire[cuts[0]..cuts[1]], &wire[cuts[1]..]];
    let output = talk(address, &pieces, choices >> 1);
    check_responses(&output);
    server.remove_apps();
    assert!(!LOOP_PANICKED.load(SeqCst), "the loop has panicked");
}

struct Server {
    handle: ServerHandle,
    addresses: Vec<SocketAddr>,
}

/// The one server of this process.
fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if thread::current().name().is_some_and(|name| name.starts_with("loop-")) {
                LOOP_PANICKED.store(true, SeqCst);
            }
            before(panic);
        }));
        let config = Config::parse(LIMITS, Path::new("fuzz"), Path::new("/")).expect("a config");
        let server = HttpServer::bind(&config).expect("two free ports");
        let (handle, addresses) = (server.handle(), server.addresses().to_vec());
        thread::spawn(|| server.run());
        Server { handle, addresses }
    })
}

impl Server {
    fn add_apps(&self) {
        self.handle.add_app("a", Echo).expect("the name is free");
        self.handle.add_app("b", Slow).expect("the name is free");
    }

    /// Their drains end only when nothing is in flight.
    fn remove_apps(&self) {
        for host in ["a", "b"] {
            let ticket = self.handle.remove_app(host).expect("an app");
            assert_eq!(ticket.wait(PATIENCE), Some(Verdict::Drained), "{host} stays in flight");
        }
    }
}

/// Answers with the content that came.
struct Echo;

impl App for Echo {
    fn handle<'a>(&'a self, request: &RequestHead<'_>, _: &Context<'_>) -> Reply<'a> {
        match request.path() {
            "/content" => Reply::Collect(Box::new(|content| {
                Reply::Full(Response::new(200).with_content(content.to_vec()))
            })),
            path => Reply::Full(Response::new(200).with_content(path.to_owned())),
        }
    }
}

/// Answers after a while.
struct Slow;

impl App for Slow {
    fn handle<'a>(&'a self, _: &RequestHead<'_>, _: &Context<'_>) -> Reply<'a> {
        Reply::After(Duration::from_millis(5), Response::new(200).with_content("slow"))
    }
}

/// Sends the pieces, ends as the choices say, and returns what came.
fn talk(address: SocketAddr, pieces: &[&[u8]], choices: u8) -> Vec<u8> {
    let mut socket = TcpStream::connect(address).expect("connect");
    socket.set_nodelay(true).expect("TCP_NODELAY");
    socket.set_read_timeout(Some(Duration::from_millis(1))).expect("SO_RCVTIMEO");
    let mut output = Vec::new();
    for (nth, piece) in pieces.iter().filter(|piece| !piece.is_empty()).enumerate() {
        if nth > 0 && choices & 1 == 0 {
            // The pieces are two reads for the server, too.
            read(&mut socket, &mut output);
        }
        // The server may have closed: then it reads no more.
        if socket.write_all(piece).is_err() {
            break;
        }
    }
    match choices >> 1 & 3 {
        // Right behind the last piece, so that both may come in one turn.
        0 => drop(socket.shutdown(Shutdown::Write)),
        // A close with unread bytes, or before all is sent, is a reset.
        1 => return output,
        // The server's deadlines are its end.
        _ => {}
    }
    let end = Instant::now() + PATIENCE;
    while read(&mut socket, &mut output) {
        assert!(Instant::now() < end, "the server does not end the connection");
    }
    output
}

/// Reads what is there; whether more may come.
fn read(socket: &mut TcpStream, output: &mut Vec<u8>) -> bool {
    let mut bytes = [0; 4096];
    match socket.read(&mut bytes) {
        Ok(0) => false,
        Ok(length) => {
            output.extend_from_slice(&bytes[..length]);
            true
        }
        Err(error) => {
            matches!(
                error.kind(),
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
            )
        }
    }
}

/// The output is responses, one behind the other; the last one may be cut off by the end.
fn check_responses(mut output: &[u8]) {
    while !output.is_empty() {
        let line = b"HTTP/1.1 ";
        let length = line.len().min(output.len());
        assert_eq!(output[..length], line[..length], "no status line: {}", output.escape_ascii());
        let Some(end) = output.windows(4).position(|four| four == b"\r\n\r\n") else { return };
        let head = str::from_utf8(&output[..end]).expect("a head in ASCII");
        let status: u16 = head[9..12].parse().expect("a status");
        let content = head.split("\r\n").find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>())
        });
        // Of an answer to HEAD the length is that of content which doesn't come, so the next status
        // line may stand right behind the head.
        let content = match content {
            Some(length) => length.expect("a length"),
            None => {
                assert!(matches!(status, 100..200 | 204 | 304), "without a length: {head}");
                0
            }
        };
        output = &output[end + 4..];
        if !output.starts_with(line) {
            output = &output[content.min(output.len())..];
        }
    }
}
