//! How long after the last byte of an app's last exchange the end of its drain is announced.
//!
//! From inside: the server as a library, an app that answers when it has its request's content, and
//! the ticket of its removal. The time begins when the app has made the answer. It includes the
//! sending of the answer, so it is an upper bound.
//!
//! From outside: the real binary, an app that answers after a delay, and a waiter for its drain by
//! the admin API. The time begins when the client has read the answer's last byte, and ends when
//! the waiter has read its own answer; it can be negative.

#[allow(dead_code)]
#[path = "throughput/load.rs"]
mod load;
#[allow(dead_code)]
#[path = "throughput/machine.rs"]
mod machine;
mod support;
#[allow(dead_code)]
#[path = "throughput/tls.rs"]
mod tls;

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::ExitCode,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::Instant,
};

use clap::Parser;
use load::{Load, Plan};
use support::{PATIENCE, Server, Sorted, answer, free_address, micros};
use tidegate::{
    app::{App, Context, Reply},
    config::Config,
    http::{RequestHead, Response},
    server::{HttpServer, Verdict},
};

/// From an app's last byte to the end of its drain, microseconds.
#[derive(Parser)]
#[command(name = "drain_latency")]
struct Options {
    /// Drains in each row
    #[arg(long, default_value = "200")]
    samples: usize,
    /// Connections of the load on another app
    #[arg(long, default_value = "32")]
    connections: usize,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// The drained app, and the app under load beside it.
const HOST: &str = "drained.localhost";
const OTHER: &str = "other.localhost";
const LOOPS: [usize; 2] = [1, 4];

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("drain_latency: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> io::Result<()> {
    println!("{}\n", machine::describe());
    println!(
        "From the last byte to the announced end, microseconds, {} drains:\n",
        options.samples
    );
    println!("| seen from | loops | load on another app | p50 | p90 | p99 | max |");
    println!("|---|---:|---|---:|---:|---:|---:|");
    // Before this thread is bound to some of them.
    let cores = machine::allowed_cores()?;
    for loops in LOOPS {
        let layout = Layout::of(loops, &cores);
        for connections in [0, options.connections] {
            let what = match connections {
                0 => "none".to_owned(),
                _ => format!("{connections} connections"),
            };
            let inside = inside(&layout, connections, options.samples)?;
            println!("| inside: ticket | {loops} | {what} | {} |", Sorted::cells(&[inside]));
            let outside = outside(&layout, connections, options.samples)?;
            println!("| outside: admin API | {loops} | {what} | {} |", Sorted::cells(&[outside]));
        }
    }
    Ok(())
}

/// The cores of each process.
struct Layout {
    loops: usize,
    server: Vec<usize>,
    load: Vec<usize>,
}

impl Layout {
    /// The server gets the last cores, one for each loop and one for control; the load gets the
    /// first. If there are too few, both use all.
    fn of(loops: usize, cores: &[usize]) -> Self {
        let (load, server) = match cores.len().checked_sub(loops + 1) {
            Some(load @ 1..) => cores.split_at(load),
            _ => (cores, cores),
        };
        Self { loops, server: server.to_vec(), load: load.to_vec() }
    }
}

fn config(loops: usize, address: SocketAddr) -> String {
    format!(
        "[server]\nlisten = [\"{address}\"]\nthreads = {loops}\nidle_grace = \"0s\"\n\
         [log]\naccess = \"off\"\n\
         [apps.\"{OTHER}\"]\nrespond.body = \"other\"\n"
    )
}

/// The ticket's view.
fn inside(layout: &Layout, connections: usize, samples: usize) -> io::Result<Sorted> {
    let text = config(layout.loops, free_address()?);
    let parsed = Config::parse(&text, Path::new("config.toml"), Path::new("/"));
    let config = parsed.map_err(io::Error::other)?;
    let mut server = HttpServer::bind(&config).map_err(io::Error::other)?;
    server.load_apps(&config.apps);
    let (address, handle) = (server.addresses()[0], server.handle());
    let cores = layout.server.clone();
    let running = thread::spawn(move || {
        machine::pin(&cores)?;
        server.run().map_err(io::Error::other)
    });
    machine::pin(&layout.load)?;
    let load = start_load(address, connections, &layout.load)?;
    let (app, signs) = Finisher::new();
    let mut times = Vec::new();
    let mut client = TcpStream::connect(address)?;
    client.set_nodelay(true)?;
    let request = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1\r\n\r\n");
    for _ in 0..samples {
        handle.add_app(HOST, app.clone()).map_err(io::Error::other)?;
        client.write_all(request.as_bytes())?;
        signs.recv_timeout(PATIENCE).map_err(io::Error::other)?;
        let ticket = handle.remove_app(HOST).map_err(io::Error::other)?;
        client.write_all(b"x")?;
        let verdict = ticket.wait(PATIENCE);
        let announced = Instant::now();
        let made = signs.recv_timeout(PATIENCE).map_err(io::Error::other)?;
        if verdict != Some(Verdict::Drained) {
            return Err(io::Error::other(format!("the drain came to {verdict:?}")));
        }
        times.push(micros(announced - made));
        read_answer(&mut client)?;
    }
    load.map(Load::finish).transpose()?;
    handle.stop("measured");
    running.join().map_err(|_| io::Error::other("the server panicked"))??;
    Ok(Sorted::new(times))
}

/// The waiter's view.
fn outside(layout: &Layout, connections: usize, samples: usize) -> io::Result<Sorted> {
    let folder = tempfile::Builder::new().prefix("tidegate-bench-").tempdir()?;
    let address = free_address()?;
    std::fs::write(folder.path().join("config.toml"), config(layout.loops, address))?;
    let server = Server::start(folder.path(), &layout.server, &layout.load)?;
    let load = start_load(address, connections, &layout.load)?;
    let app = r#"{"respond": {"body": "done", "delay": "20ms"}}"#;
    let mut times = Vec::new();
    let mut client = TcpStream::connect(address)?;
    while times.len() < samples {
        server.admin.call("PUT", &format!("/apps/{HOST}?only=add"), app)?;
        client.write_all(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes())?;
        while server.admin.call("GET", &format!("/apps/{HOST}"), "")?["requests_total"] == 0 {}
        let drain = server.admin.call("DELETE", &format!("/apps/{HOST}"), "")?;
        let wait = format!("/drains/{}?wait=30s", drain["id"]);
        let waiter = server.admin.send("GET", &wait, "")?;
        let waiter = thread::spawn(move || Ok::<_, io::Error>((answer(waiter)?, Instant::now())));
        read_answer(&mut client)?;
        let read = Instant::now();
        let waited = waiter.join().map_err(|_| io::Error::other("the waiter panicked"))?;
        let (document, announced) = waited?;
        if !document.contains(r#""verdict":"drained""#) {
            return Err(io::Error::other(format!("the drain came to {document}")));
        }
        // If not, the exchange was over before its app was removed.
        if drain["active_connections"] == 1 {
            let late = micros(announced.saturating_duration_since(read));
            times.push(late - micros(read.saturating_duration_since(announced)));
        }
    }
    load.map(Load::finish).transpose()?;
    Ok(Sorted::new(times))
}

fn start_load(
    address: SocketAddr,
    connections: usize,
    cores: &[usize],
) -> io::Result<Option<Load>> {
    if connections == 0 {
        return Ok(None);
    }
    let request = format!("GET / HTTP/1.1\r\nHost: {OTHER}\r\n\r\n");
    let mut client = TcpStream::connect(address)?;
    client.write_all(request.as_bytes())?;
    let answer_bytes = read_answer(&mut client)?;
    let (batches, close) = (vec![request.into_bytes()], false);
    let busy = connections;
    let plan = Plan {
        server: address,
        connections,
        busy,
        batches,
        pipeline: 1,
        answer_bytes,
        close,
        secured: None,
    };
    Ok(Some(Load::start(&plan, &cores[..1])))
}

/// Reads a short answer to its last byte. Returns its length.
fn read_answer(client: &mut TcpStream) -> io::Result<usize> {
    client.set_read_timeout(Some(PATIENCE))?;
    let (mut bytes, mut length) = ([0; 1024], 0);
    loop {
        length += match client.read(&mut bytes[length..])? {
            0 => return Err(io::Error::other("the answer was cut")),
            received => received,
        };
        let text = String::from_utf8_lossy(&bytes[..length]);
        let Some((head, content)) = text.split_once("\r\n\r\n") else { continue };
        if !head.starts_with("HTTP/1.1 200") {
            return Err(io::Error::other(format!("not the 200 that was due: {head}")));
        }
        let due = format!("Content-Length: {}", content.len());
        if head.lines().any(|line| line == due) {
            return Ok(length);
        }
    }
}

/// An app that answers when it has its request's content. It reports when it got the request, and
/// when it answered.
#[derive(Clone)]
struct Finisher {
    signs: Sender<Instant>,
}

impl Finisher {
    fn new() -> (Self, Receiver<Instant>) {
        let (signs, receiver) = channel();
        (Self { signs }, receiver)
    }
}

impl App for Finisher {
    fn handle<'a>(&'a self, _: &RequestHead<'_>, _: &Context<'_>) -> Reply<'a> {
        let signs = self.signs.clone();
        let _ = signs.send(Instant::now());
        Reply::Collect(Box::new(move |_| {
            let _ = signs.send(Instant::now());
            Reply::Full(Response::new(200).with_content("done"))
        }))
    }
}
