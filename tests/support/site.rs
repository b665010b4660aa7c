//! The server as a library: run in a thread of the test, with apps of the test's own.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use tidegate::{
    app::{App, Context, Reply},
    config::Config,
    http::{RequestHead, Response},
    server::{DrainTicket, HttpServer, ServerError, ServerHandle, Verdict},
};

use super::{
    client::Client,
    wait::{PATIENCE, wait_until},
};

type Ended = Result<Verdict, ServerError>;

/// Events that mean a bug in the server, whatever a test does.
const BUGS: &[&str] = &["connection_panicked", "loop_died", "loop_failed", "loop_not_woken"];

/// A server that runs in this process. It is stopped when this is dropped.
pub struct Site {
    pub handle: ServerHandle,
    address: SocketAddr,
    run: Option<JoinHandle<Ended>>,
    /// How many events there were before; other tests log at the same time.
    logged_before: usize,
}

impl Site {
    /// Binds a free port, lets `prepare` add apps, and runs. `config` has further lines of
    /// `[server]` and further sections. Without them there are two loops and no idle grace.
    pub fn start(config: &str, prepare: impl FnOnce(&mut HttpServer)) -> Self {
        log::set_logger(&EVENTS).map(|()| log::set_max_level(log::LevelFilter::Info)).unwrap_or(());
        let logged_before = EVENTS.lines().len();
        let config = parse(config);
        let mut server = HttpServer::bind(&config).expect("a free port");
        server.load_apps(&config.apps);
        prepare(&mut server);
        let (handle, address) = (server.handle(), server.addresses()[0]);
        let run = Some(thread::spawn(move || server.run()));
        Self { handle, address, run, logged_before }
    }

    /// Like [`Self::start`], with stages under these hosts.
    pub fn with_stages(config: &str, stages: &[(&str, &Stage)]) -> Self {
        Self::start(config, |server| {
            for (host, stage) in stages {
                server.add_app(host, Stage::clone(stage)).expect("the name is free");
            }
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A new connection to it.
    pub fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    /// Begins to remove an app.
    pub fn remove(&self, host: &str) -> DrainTicket {
        self.handle.remove_app(host).expect("the app is there")
    }

    /// Removes an app whose exchanges, if any, will end by themselves.
    pub fn remove_drained(&self, host: &str) {
        assert_eq!(self.remove(host).wait(PATIENCE), Some(Verdict::Drained), "{host}");
    }

    /// Waits for the end of a stop that was asked for.
    pub fn ended(&mut self) -> Verdict {
        let run = self.run.take().expect("not ended before");
        assert!(wait_until(PATIENCE, || run.is_finished()), "the server runs on");
        run.join().expect("no panic").expect("no error")
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(run) = self.run.take() {
            self.handle.stop("the test is over");
            self.handle.stop("the test does not wait");
            let ended = wait_until(PATIENCE, || run.is_finished());
            assert!(ended || thread::panicking(), "the server doesn't stop");
        }
        let events = EVENTS.lines()[self.logged_before..].to_vec();
        let sane = events.iter().all(|event| !BUGS.contains(&&*event.name));
        assert!(sane || thread::panicking(), "here, or in a test beside: {events:?}");
    }
}

fn parse(lines: &str) -> Config {
    let default = |key: &str, line| if lines.contains(key) { "" } else { line };
    let threads = default("threads", "threads = 2\n");
    let idle_grace = default("idle_grace", "idle_grace = \"0s\"\n");
    let text = format!("[server]\nlisten = [\"127.0.0.1:0\"]\n{threads}{idle_grace}{lines}\n");
    Config::parse(&text, Path::new("test.toml"), Path::new("/"))
        .unwrap_or_else(|error| panic!("{error}"))
}

/// An app from a closure.
pub struct Act<F>(pub F);

impl<F> App for Act<F>
where
    F: Fn(&RequestHead<'_>, &Context<'_>) -> Reply<'static> + Send + Sync,
{
    fn handle<'a>(&'a self, request: &RequestHead<'_>, context: &Context<'_>) -> Reply<'a> {
        (self.0)(request, context)
    }
}

/// An app that does what the path says, answers with its own name, and counts its requests.
///
/// `/content` is answered when the client has sent all content, with the name and that content;
/// `/after/N` after N milliseconds; `/large` with [`Stage::LARGE`] bytes of the name; `/bulk` with
/// [`Stage::BULK`]; `/panic` and `/panic-late` panic, the latter once the content is there;
/// everything else at once.
#[derive(Clone)]
pub struct Stage {
    name: &'static str,
    asked: Arc<AtomicUsize>,
}

impl Stage {
    /// More than all buffers between the server and a client that doesn't read.
    pub const LARGE: usize = 16 * 1024 * 1024;

    /// Small enough that an answer is copied, large enough to fill a buffer soon.
    pub const BULK: usize = 8 * 1024;

    /// A stage whose answers are `name`.
    pub fn new(name: &'static str) -> Self {
        Self { name, asked: Arc::default() }
    }

    /// How many requests it got.
    pub fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }

    /// Waits until it got this many requests. Fails if it got more.
    pub fn wait_asked(&self, times: usize) {
        wait_until(PATIENCE, || self.asked() >= times);
        assert_eq!(self.asked(), times, "requests to {}", self.name);
    }

    fn filled(&self, length: usize) -> Reply<'static> {
        let mut content = self.name.repeat(length / self.name.len() + 1);
        content.truncate(length);
        Reply::Full(Response::new(200).with_content(content))
    }
}

impl App for Stage {
    fn handle<'a>(&'a self, request: &RequestHead<'_>, _context: &Context<'_>) -> Reply<'a> {
        self.asked.fetch_add(1, SeqCst);
        let name = self.name;
        let response = Response::new(200).with_content(name);
        match request.path() {
            "/content" => Reply::Collect(Box::new(move |content| {
                Reply::Full(Response::new(200).with_content([name.as_bytes(), content].concat()))
            })),
            "/large" => self.filled(Self::LARGE),
            "/bulk" => self.filled(Self::BULK),
            "/panic" => panic!("the app panics, as asked"),
            "/panic-late" => Reply::Collect(Box::new(|_| panic!("the closure panics, as asked"))),
            path => match path.strip_prefix("/after/").map(str::parse) {
                Some(Ok(ms)) => Reply::After(Duration::from_millis(ms), response),
                _ => Reply::Full(response),
            },
        }
    }
}

/// An app that blocks its loop, until the sender is dropped.
pub struct Stuck {
    gate: Mutex<mpsc::Receiver<()>>,
    entered: Arc<AtomicUsize>,
}

impl Stuck {
    /// The app, a sender that frees its loops when it is dropped, and the number of its requests.
    pub fn new() -> (Self, mpsc::Sender<()>, Arc<AtomicUsize>) {
        let ((sender, gate), entered) = (mpsc::channel(), Arc::default());
        (Self { gate: Mutex::new(gate), entered: Arc::clone(&entered) }, sender, entered)
    }
}

impl App for Stuck {
    fn handle<'a>(&'a self, _request: &RequestHead<'_>, _context: &Context<'_>) -> Reply<'a> {
        self.entered.fetch_add(1, SeqCst);
        // Nothing is ever sent: this returns when the sender is dropped.
        let _ = self.gate.lock().expect("no panic").recv();
        Reply::Full(Response::new(200).with_content("freed"))
    }
}

/// The head of a request whose content has this length.
pub fn post(host: &str, path: &str, length: usize) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n")
}

/// A client with an exchange that runs until it sends the last byte of its content.
pub struct Held(pub Client);

impl Held {
    /// Begins the exchange with a stage.
    pub fn begin(mut client: Client, host: &str) -> Self {
        client.send(post(host, "/content", 2) + "<");
        Self(client)
    }

    /// Begins this many exchanges, each on its own connection. On return they are in flight.
    pub fn begin_all(site: &Site, host: &str, stage: &Stage, count: usize) -> Vec<Self> {
        let before = stage.asked();
        let held = (0..count).map(|_| Self::begin(site.connect(), host)).collect();
        stage.wait_asked(before + count);
        held
    }

    /// Lets the exchange end, and checks that the stage with this name answered it completely.
    pub fn end(mut self, name: &str) -> Client {
        self.0.send(">");
        let response = self.0.response();
        assert_eq!((response.status, response.text()), (200, &*format!("{name}<>")));
        self.0
    }
}

/// One event of a server of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    pub name: String,
    pub host: Option<String>,
}

/// All events about a host so far; other tests log at the same time.
pub fn logged(host: &str) -> Vec<String> {
    let lines = EVENTS.lines();
    let own = lines.iter().filter(|event| event.host.as_deref() == Some(host));
    own.map(|event| event.name.clone()).collect()
}

struct Events(Mutex<Vec<Logged>>);

static EVENTS: Events = Events(Mutex::new(Vec::new()));

impl Events {
    fn lines(&self) -> MutexGuard<'_, Vec<Logged>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl log::Log for Events {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let host = record.key_values().get(log::kv::Key::from("host"));
        let host = host.map(|host| host.to_string());
        self.lines().push(Logged { name: record.args().to_string(), host });
    }

    fn flush(&self) {}
}
