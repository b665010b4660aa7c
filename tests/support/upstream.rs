//! An upstream for tests: it records every request byte for byte, and answers as a closure says,
//! with any bytes, pauses and ends.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr},
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use rustls::ServerConfig;
use socket2::{Domain, SockAddr, Socket, Type};

use super::{
    response::find,
    tls::{Shaken, Wire},
    wait::{PATIENCE, wait_until},
};

/// A request as the upstream received it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The number of the connection that it came on, from 0.
    pub connection: usize,
    /// Its number among the connection's requests, from 0.
    pub nth: usize,
    /// The head as it was sent, with the blank line.
    pub head: String,
    pub fields: Vec<(String, String)>,
    /// The content without its framing.
    pub content: Vec<u8>,
    /// The trailer lines.
    pub trailers: String,
}

impl Asked {
    /// The target of the request line.
    pub fn target(&self) -> &str {
        self.head.split(' ').nth(1).expect("a target")
    }

    /// The values of all fields of this name.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let own = self.fields.iter().filter(|(own, _)| own.eq_ignore_ascii_case(name));
        own.map(|(_, value)| value.as_str()).collect()
    }

    fn parse(head: &[u8], connection: usize, nth: usize) -> Self {
        let head = String::from_utf8(head.to_vec()).expect("the head is text");
        let lines = head.strip_suffix("\r\n\r\n").expect("a head").split("\r\n").skip(1);
        let fields = lines.map(|line| {
            assert!(!line.contains(['\r', '\n']), "bare CR or LF: {head:?}");
            let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("{line:?}"));
            (name.to_owned(), value.to_owned())
        });
        let fields = fields.collect();
        assert!(head.lines().next().is_some_and(|line| line.ends_with(" HTTP/1.1")), "{head:?}");
        let (content, trailers) = (Vec::new(), String::new());
        Self { connection, nth, head, fields, content, trailers }
    }
}

/// What an upstream does with a request.
type Script = Arc<dyn Fn(&Asked, &mut Line) + Send + Sync>;

/// An upstream that runs in threads of the test until this is dropped.
pub struct Upstream {
    shared: Arc<Shared>,
    url: String,
    address: Option<SocketAddr>,
}

struct Shared {
    script: Script,
    /// Whether the script runs before the content is read.
    by_head: bool,
    tls: Option<Arc<ServerConfig>>,
    handshakes: Mutex<Vec<Shaken>>,
    listener: Mutex<Option<Socket>>,
    open: Mutex<Vec<(usize, Socket)>>,
    stopped: AtomicBool,
    connections: AtomicUsize,
    /// Connections that the server closed or reset.
    left: AtomicUsize,
    /// Those of them that ended without TLS's close_notify.
    torn: AtomicUsize,
    heads: AtomicUsize,
    asked: Mutex<Vec<Asked>>,
}

impl Upstream {
    /// An upstream on a free port. It reads the whole request before the script runs.
    pub fn tcp(script: impl Fn(&Asked, &mut Line) + Send + Sync + 'static) -> Self {
        Self::at("127.0.0.1:0".parse().expect("an address"), script)
    }

    /// Like [`Self::tcp`], on this address.
    pub fn at(
        address: SocketAddr,
        script: impl Fn(&Asked, &mut Line) + Send + Sync + 'static,
    ) -> Self {
        Self::start(Domain::for_address(address), &address.into(), Arc::new(script), false, None)
    }

    /// Like [`Self::tcp`], over TLS.
    pub fn tls(
        config: ServerConfig,
        script: impl Fn(&Asked, &mut Line) + Send + Sync + 'static,
    ) -> Self {
        Self::tls_at("127.0.0.1:0".parse().expect("an address"), config, script)
    }

    /// Like [`Self::tls`], on this address.
    pub fn tls_at(
        address: SocketAddr,
        config: ServerConfig,
        script: impl Fn(&Asked, &mut Line) + Send + Sync + 'static,
    ) -> Self {
        let (domain, tls) = (Domain::for_address(address), Some(Arc::new(config)));
        let mut upstream = Self::start(domain, &address.into(), Arc::new(script), false, tls);
        upstream.url = upstream.url.replace("http://", "https://");
        upstream
    }

    /// An upstream whose script gets a request's head, and can read the content itself.
    pub fn by_head(script: impl Fn(&Asked, &mut Line) + Send + Sync + 'static) -> Self {
        let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        Self::start(Domain::IPV4, &any.into(), Arc::new(script), true, None)
    }

    /// An upstream on a unix socket.
    pub fn unix(path: &Path, script: impl Fn(&Asked, &mut Line) + Send + Sync + 'static) -> Self {
        let address = SockAddr::unix(path).expect("a path");
        let mut upstream = Self::start(Domain::UNIX, &address, Arc::new(script), false, None);
        upstream.url = format!("unix:{}", path.display());
        upstream
    }

    /// An address that refuses connections.
    pub fn refusing() -> String {
        format!("http://{}", super::free_port())
    }

    fn start(
        domain: Domain,
        address: &SockAddr,
        script: Script,
        by_head: bool,
        tls: Option<Arc<ServerConfig>>,
    ) -> Self {
        let listener = Socket::new(domain, Type::STREAM, None).expect("socket");
        if domain != Domain::UNIX {
            listener.set_reuse_address(true).expect("SO_REUSEADDR");
        }
        let bound = wait_until(PATIENCE, || listener.bind(address).is_ok());
        assert!(bound, "{address:?} is not free");
        listener.listen(1024).expect("listen");
        let address = listener.local_addr().expect("an address").as_socket();
        let shared = Arc::new(Shared {
            script,
            by_head,
            tls,
            handshakes: Mutex::default(),
            listener: Mutex::new(Some(listener.try_clone().expect("a second descriptor"))),
            open: Mutex::default(),
            stopped: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            left: AtomicUsize::new(0),
            torn: AtomicUsize::new(0),
            heads: AtomicUsize::new(0),
            asked: Mutex::default(),
        });
        thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept(&listener)
        });
        let url = address.map_or(String::new(), |address| format!("http://{address}"));
        Self { shared, url, address }
    }

    /// Its URL, as in a configuration.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its TCP address.
    pub fn address(&self) -> SocketAddr {
        self.address.expect("a port")
    }

    /// How many connections were made to it.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(SeqCst)
    }

    /// The handshakes of TLS that are over.
    pub fn handshakes(&self) -> Vec<Shaken> {
        lock(&self.shared.handshakes).clone()
    }

    /// The complete requests, in the order in which they ended.
    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.shared.asked).clone()
    }

    /// The last complete request.
    pub fn last(&self) -> Asked {
        lock(&self.shared.asked).last().cloned().expect("a request")
    }

    /// Waits for this many complete requests.
    pub fn wait_asked(&self, count: usize) {
        let came = wait_until(PATIENCE, || lock(&self.shared.asked).len() >= count);
        assert!(came, "{} of {count} requests", lock(&self.shared.asked).len());
    }

    /// Waits for the heads of this many requests.
    pub fn wait_heads(&self, count: usize) {
        let came = wait_until(PATIENCE, || self.shared.heads.load(SeqCst) >= count);
        assert!(came, "{} of {count} heads", self.shared.heads.load(SeqCst));
    }

    /// How many connections the server has closed or reset.
    pub fn left(&self) -> usize {
        self.shared.left.load(SeqCst)
    }

    /// How many of them ended without TLS's close_notify.
    pub fn torn(&self) -> usize {
        self.shared.torn.load(SeqCst)
    }

    /// Waits until the server has closed or reset this many connections.
    pub fn wait_left(&self, count: usize) {
        let left = wait_until(PATIENCE, || self.left() >= count);
        assert!(left, "the server keeps {} connections open", self.connections() - self.left());
    }

    /// Closes the listener and every connection at once.
    pub fn kill(&self) {
        self.shared.stopped.store(true, SeqCst);
        if let Some(listener) = lock(&self.shared.listener).take() {
            let _ = listener.shutdown(Shutdown::Both);
        }
        for (_, socket) in lock(&self.shared.open).drain(..) {
            let _ = socket.set_linger(Some(Duration::ZERO));
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &Socket) {
        while let Ok((socket, _)) = listener.accept() {
            let connection = self.connections.fetch_add(1, SeqCst);
            let _ = socket.set_tcp_nodelay(true);
            socket.set_read_timeout(Some(2 * PATIENCE)).expect("a time-out");
            socket.set_write_timeout(Some(2 * PATIENCE)).expect("a time-out");
            let second = socket.try_clone().expect("a second descriptor");
            lock(&self.open).push((connection, second));
            if self.stopped.load(SeqCst) {
                break;
            }
            let shared = Arc::clone(self);
            let line = Line {
                wire: Wire::new(socket, self.tls.as_ref()),
                is_shaken: false,
                is_torn: false,
                buffer: Vec::new(),
                is_left: false,
                is_over: false,
                nth: 0,
                connection,
                shared,
            };
            thread::spawn(move || line.serve());
        }
    }
}

/// A connection from the server, for a script to use.
pub struct Line {
    wire: Wire,
    /// Whether the handshake of TLS was counted.
    is_shaken: bool,
    /// Whether TLS's end is left out.
    is_torn: bool,
    buffer: Vec<u8>,
    /// Whether the server has closed or reset it.
    is_left: bool,
    is_over: bool,
    nth: usize,
    connection: usize,
    shared: Arc<Shared>,
}

impl Line {
    /// Sends bytes. Returns false if the peer is gone.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.wire.write_all(bytes.as_ref()).and_then(|()| self.wire.flush()).is_ok()
    }

    /// Sends a response of this status and content, with its length.
    pub fn answer(&mut self, status: u16, content: impl AsRef<[u8]>) {
        let content = content.as_ref();
        let length = content.len();
        let head = format!("HTTP/1.1 {status} Status\r\nContent-Length: {length}\r\n\r\n");
        self.send([head.as_bytes(), content].concat());
    }

    /// Closes the connection when the script returns.
    pub fn close(&mut self) {
        self.is_over = true;
    }

    /// The same, without TLS's close_notify.
    pub fn tear(&mut self) {
        (self.is_torn, self.is_over) = (true, true);
    }

    /// Changes the keys of TLS.
    pub fn change_keys(&mut self) {
        self.wire.change_keys();
    }

    /// Says in the words of TLS that nothing more comes, and leaves the connection open.
    pub fn say_end(&mut self) {
        self.wire.say_end();
    }

    /// Resets it when the script returns.
    pub fn reset(&mut self) {
        let _ = self.wire.socket().set_linger(Some(Duration::ZERO));
        self.tear();
    }

    /// Resets it now; the script goes on without it.
    pub fn reset_now(&mut self) {
        self.reset();
        lock(&self.shared.open).retain(|(connection, _)| *connection != self.connection);
        let other = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
        drop(std::mem::replace(&mut self.wire, Wire::Plain(other)));
    }

    /// Closes the sending side.
    pub fn half_close(&mut self) {
        self.wire.half_close();
    }

    /// Reads this many bytes; fewer if the connection ends.
    pub fn read(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count && self.fill() {}
        let count = count.min(self.buffer.len());
        self.buffer.drain(..count).collect()
    }

    /// A number that grows with each request of each connection.
    #[allow(dead_code, reason = "only `chaos` needs it")]
    pub fn turn(&self) -> usize {
        self.connection + self.nth
    }

    /// Reads available bytes, at least one; none at the end.
    #[allow(dead_code, reason = "only `chaos` needs it")]
    pub fn read_some(&mut self) -> Vec<u8> {
        if self.buffer.is_empty() {
            self.fill();
        }
        std::mem::take(&mut self.buffer)
    }

    /// Reads until the server closes its side.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        while self.fill() {}
        std::mem::take(&mut self.buffer)
    }

    /// Reads the content of a request whose head was read. Returns false if it breaks off or is
    /// malformed.
    pub fn read_content(&mut self, asked: &mut Asked) -> bool {
        let (lengths, codings) = (asked.all("content-length"), asked.all("transfer-encoding"));
        match (&lengths[..], &codings[..]) {
            ([], []) => true,
            ([length], []) => {
                let length = length.parse().expect("a length");
                asked.content = self.read(length);
                asked.content.len() == length
            }
            ([], ["chunked"]) => self.read_chunks(asked),
            _ => panic!("framed twice: {:?}", asked.head),
        }
    }

    fn read_chunks(&mut self, asked: &mut Asked) -> bool {
        loop {
            let Some(line) = self.read_line() else { return false };
            let size = usize::from_str_radix(line.trim_end(), 16).expect("a chunk size");
            if size == 0 {
                break;
            }
            let chunk = self.read(size + 2);
            if chunk.len() < size + 2 {
                return false;
            }
            assert!(chunk.ends_with(b"\r\n"), "a chunk without its CRLF");
            asked.content.extend_from_slice(&chunk[..size]);
        }
        loop {
            match self.read_line().as_deref() {
                None => return false,
                Some("\r\n") => return true,
                Some(line) => asked.trailers += line,
            }
        }
    }

    fn read_line(&mut self) -> Option<String> {
        loop {
            if let Some(at) = find(&self.buffer, b"\r\n") {
                let line = self.buffer.drain(..at + 2).collect();
                return Some(String::from_utf8(line).expect("text"));
            }
            if !self.fill() {
                return None;
            }
        }
    }

    fn serve(mut self) {
        while !self.is_over {
            let Some(head) = self.read_head() else { break };
            let mut asked = Asked::parse(&head, self.connection, self.nth);
            self.nth += 1;
            self.shared.heads.fetch_add(1, SeqCst);
            let shared = Arc::clone(&self.shared);
            if !shared.by_head {
                if !self.read_content(&mut asked) {
                    break;
                }
                lock(&shared.asked).push(asked.clone());
            }
            (shared.script)(&asked, &mut self);
        }
        if !self.is_torn {
            self.wire.say_end();
        }
        if self.is_left {
            self.shared.left.fetch_add(1, SeqCst);
        }
        // The descriptor in the list would keep the connection open.
        lock(&self.shared.open).retain(|(connection, _)| *connection != self.connection);
    }

    fn read_head(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                return Some(self.buffer.drain(..at + 4).collect());
            }
            if !self.fill() {
                return None;
            }
        }
    }

    /// Reads once. Returns whether bytes came.
    fn fill(&mut self) -> bool {
        if self.is_left {
            return false;
        }
        let start = self.buffer.len();
        self.buffer.resize(start + 64 * 1024, 0);
        let read = loop {
            match self.wire.read(&mut self.buffer[start..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        if !self.is_shaken
            && let Some(shaken) = self.wire.shaken()
        {
            self.is_shaken = true;
            lock(&self.shared.handshakes).push(shaken);
        }
        self.buffer.truncate(start + read.as_ref().map_or(0, |read| *read));
        if read.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::UnexpectedEof) {
            self.shared.torn.fetch_add(1, SeqCst);
        }
        self.is_left = !matches!(read, Ok(1..));
        !self.is_left
    }
}

/// A gate that a script waits at.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    /// Opens the gate for good.
    pub fn open(&self) {
        *lock(&self.0.0) = true;
        self.0.1.notify_all();
    }

    /// Waits until it is open; not longer than a test may take.
    pub fn pass(&self) {
        let _ = self.passes_within(2 * PATIENCE);
    }

    /// Whether it opens within this time.
    pub fn passes_within(&self, time: Duration) -> bool {
        let waited = self.0.1.wait_timeout_while(lock(&self.0.0), time, |is_open| !*is_open);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
