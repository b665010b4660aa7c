//! Small loads that count exactly what became of each request.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{
    client::{Client, End},
    get, get_and_close,
    wait::{PATIENCE, wait_until},
};

/// How long a connect may wait at the gate before it is tried again.
const CONNECT_DEADLINE: Duration = Duration::from_millis(250);

/// What a load does with its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadKind {
    /// Request after request on a connection, until the server says close.
    KeepAlive,
    /// A new connection for each request.
    NewConnections,
}

/// What became of the requests.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Requests with a complete answer.
    pub answered: usize,
    /// Requests without a complete answer that were sent on a connection that seemed open.
    pub lost: Vec<String>,
    /// Connects that were refused or got no answer: nothing was sent on them.
    pub turned_away: usize,
    /// Connections that the server closed in order before anything was sent.
    pub closed_idle: usize,
    /// Connections that were made.
    pub connects: usize,
}

/// Threads that put a server under load.
pub struct Load {
    threads: Vec<JoinHandle<Tally>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    answered: AtomicUsize,
    stopping: AtomicBool,
    ending: AtomicBool,
}

impl Load {
    /// Starts `count` threads that ask `host` for its page, which begins with `body`.
    pub fn start(
        kind: LoadKind,
        count: usize,
        address: SocketAddr,
        host: &'static str,
        body: &'static str,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        let threads = (0..count).map(|_| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || Worker { kind, address, host, body, shared }.run())
        });
        Self { threads: threads.collect(), shared }
    }

    /// Waits until this many requests were answered.
    pub fn wait_answered(&self, count: usize) {
        let reached = wait_until(PATIENCE, || self.shared.answered.load(SeqCst) >= count);
        assert!(reached, "the load is not answered");
    }

    /// From now on a refused connect ends a thread instead of failing the test.
    pub fn expect_stop(&self) {
        self.shared.stopping.store(true, SeqCst);
    }

    /// Ends every thread after its current request, and adds up their counts.
    pub fn end(self) -> Tally {
        self.shared.ending.store(true, SeqCst);
        self.join()
    }

    /// Waits for all threads and adds up their counts.
    pub fn join(self) -> Tally {
        let mut sum = Tally::default();
        for thread in self.threads {
            let tally = thread.join().expect("a load thread");
            sum.answered += tally.answered;
            sum.lost.extend(tally.lost);
            sum.turned_away += tally.turned_away;
            sum.closed_idle += tally.closed_idle;
            sum.connects += tally.connects;
        }
        sum
    }
}

struct Worker {
    kind: LoadKind,
    address: SocketAddr,
    host: &'static str,
    body: &'static str,
    shared: Arc<Shared>,
}

impl Worker {
    fn run(self) -> Tally {
        let mut tally = Tally::default();
        while !self.shared.ending.load(SeqCst) {
            let error = match Client::try_connect(self.address, CONNECT_DEADLINE) {
                Ok(client) => {
                    tally.connects += 1;
                    self.use_up(client, &mut tally);
                    continue;
                }
                Err(error) => error,
            };
            // The flag is set before the signal, so it is seen after what the signal caused.
            let stopping = self.shared.stopping.load(SeqCst);
            tally.turned_away += 1;
            match error.kind() {
                // The gate dropped it, or the machine was busy.
                ErrorKind::TimedOut => {}
                ErrorKind::ConnectionRefused if stopping => return tally,
                _ => {
                    tally.lost.push(format!("connect: {error}"));
                    return tally;
                }
            }
        }
        tally
    }

    /// Sends requests on one connection until it ends.
    fn use_up(&self, mut client: Client, tally: &mut Tally) {
        let request = match self.kind {
            LoadKind::KeepAlive => get(self.host, "/"),
            LoadKind::NewConnections => get_and_close(self.host, "/"),
        };
        for nth in 0.. {
            if self.shared.ending.load(SeqCst) {
                return;
            }
            match client.peek_end() {
                End::Open => {}
                End::Eof => {
                    tally.closed_idle += 1;
                    return;
                }
                End::Reset => {
                    tally.lost.push(format!("reset before request {nth} of a connection"));
                    return;
                }
            }
            if let Err(error) = client.try_send(request.as_bytes()) {
                tally.lost.push(format!("send of request {nth}: {error}"));
                return;
            }
            match client.try_response(false) {
                Ok(response)
                    if response.status == 200 && response.text().starts_with(self.body) =>
                {
                    tally.answered += 1;
                    self.shared.answered.fetch_add(1, SeqCst);
                    if response.says_close() {
                        self.finish(client, tally);
                        return;
                    }
                }
                Ok(response) => {
                    tally.lost.push(format!("request {nth}: {} {response:?}", response.status));
                    return;
                }
                Err(lost) => {
                    tally.lost.push(format!("request {nth}: {lost:?}"));
                    return;
                }
            }
        }
    }

    /// After the last response the connection ends in order.
    fn finish(&self, mut client: Client, tally: &mut Tally) {
        let (rest, end) = client.read_to_end();
        if !rest.is_empty() || end != End::Eof {
            tally.lost.push(format!("after the last response: {} bytes, {end:?}", rest.len()));
        }
    }
}
