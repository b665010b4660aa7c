//! The load: a closed loop of a fixed number of connections, in threads on cores of their own.
//!
//! Each connection sends its batch of requests in one write, and the next batch when every answer
//! is in. If fewer batches may be under way than there are connections, these take turns. Answers
//! are counted by the length of the first answer. Each must begin with the 200 line exactly where
//! the answer before it ended: a server that answers something else, loses an answer or closes a
//! connection fails the measurement.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::machine;
use crate::tls::{Secured, Stream};

const STATUS: &[u8] = b"HTTP/1.1 200";
const READ_BYTES: usize = 256 * 1024;
/// The measurement ends if no answer comes for this long.
pub(crate) const SILENCE: Duration = Duration::from_secs(3);

/// What to send, and what must come back.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) server: SocketAddr,
    pub(crate) connections: usize,
    /// Connections that have a batch under way at any moment.
    pub(crate) busy: usize,
    /// The batches of requests; if there are several, each is chosen at random.
    pub(crate) batches: Vec<Vec<u8>>,
    pub(crate) pipeline: usize,
    /// Length of every answer, head and body.
    pub(crate) answer_bytes: usize,
    pub(crate) close: bool,
    /// For TLS.
    pub(crate) secured: Option<Secured>,
}

impl Plan {
    pub(crate) fn batch(&self) -> &[u8] {
        match &self.batches[..] {
            [only] => only,
            several => &several[fastrand::usize(..several.len())],
        }
    }
}

/// Threads that load one server until stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<Thread>,
}

/// One thread of a load.
struct Thread {
    handle: JoinHandle<io::Result<()>>,
    /// Requests with a complete answer.
    done: Arc<CachePadded<AtomicU64>>,
}

impl Load {
    /// Opens the connections of `plan` from one thread on each of `cores`.
    pub(crate) fn start(plan: &Plan, cores: &[usize]) -> Load {
        let bodies = cores.iter().enumerate().map(|(index, &core)| {
            let share = |of: usize| of / cores.len() + usize::from(index < of % cores.len());
            let (connections, busy) = (share(plan.connections), share(plan.busy));
            let plan = Plan { connections, busy, ..plan.clone() };
            move |stop: &AtomicBool, done: &AtomicU64| {
                machine::pin(&[core])?;
                Client::new(plan, done)?.run(stop)
            }
        });
        Load::spawn(bodies)
    }

    /// Starts a thread for each of `bodies`. It runs until it is stopped, and counts answers.
    pub(crate) fn spawn<F>(bodies: impl IntoIterator<Item = F>) -> Load
    where
        F: FnOnce(&AtomicBool, &AtomicU64) -> io::Result<()> + Send + 'static,
    {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = bodies.into_iter().map(|body| {
            let done = Arc::new(CachePadded::new(AtomicU64::new(0)));
            let (stop, count) = (Arc::clone(&stop), Arc::clone(&done));
            Thread { handle: std::thread::spawn(move || body(&stop, &count)), done }
        });
        let threads = threads.collect();
        Load { stop, threads }
    }

    /// Requests with a complete answer until now.
    pub(crate) fn completed(&self) -> u64 {
        self.threads.iter().map(|thread| thread.done.load(Ordering::Relaxed)).sum()
    }

    /// Waits until every connection is open and had its first answer, or the load has failed.
    pub(crate) fn wait_until_open(&self, connections: usize) {
        let open = || self.completed() >= connections as u64;
        let failed = || self.threads.iter().any(|thread| thread.handle.is_finished());
        while !open() && !failed() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends the load. Returns the number of answered requests, or the first failure of a thread.
    pub(crate) fn finish(self) -> io::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut total = 0;
        let mut outcome = Ok(());
        for Thread { handle, done } in self.threads {
            let ended = handle.join().unwrap_or_else(|_| Err(io::Error::other("load panicked")));
            outcome = outcome.and(ended);
            total += done.load(Ordering::Relaxed);
        }
        outcome.map(|()| total)
    }
}

/// One connection's place in the stream of answers.
struct Connection {
    stream: Stream<TcpStream>,
    /// Bytes of the current answer that have come.
    position: usize,
    /// Answers of the current batch that have come.
    answered: usize,
    /// Whether the batch was sent.
    sent: bool,
}

/// What a connection needs after an event.
enum Next {
    Wait,
    /// Its batch is answered.
    Rest,
    Reconnect,
}

struct Client<'a> {
    plan: Plan,
    poll: Poll,
    input: Vec<u8>,
    connections: Vec<Connection>,
    /// Connections whose batch is answered, in the order in which they came to rest.
    resting: VecDeque<usize>,
    done: &'a AtomicU64,
}

impl<'a> Client<'a> {
    fn new(plan: Plan, done: &'a AtomicU64) -> io::Result<Self> {
        let (poll, input) = (Poll::new()?, vec![0; READ_BYTES]);
        let (connections, resting) = (Vec::new(), VecDeque::new());
        Ok(Client { plan, poll, input, connections, resting, done })
    }

    fn run(mut self, stop: &AtomicBool) -> io::Result<()> {
        for _ in 0..self.plan.busy {
            self.open()?;
        }
        let mut events = Events::with_capacity(self.plan.busy.max(1));
        let mut completed = 0;
        let mut last_answer = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            match self.poll.poll(&mut events, Some(Duration::from_millis(100))) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            let before = completed;
            for event in &events {
                let index = event.token().0;
                let (answers, next) = self.ready(index)?;
                completed += answers;
                match next {
                    Next::Wait => {}
                    Next::Rest => self.take_turns(index)?,
                    Next::Reconnect => self.connections[index] = self.connect(index)?,
                }
            }
            if completed > before {
                self.done.store(completed, Ordering::Relaxed);
                last_answer = Instant::now();
            } else if last_answer.elapsed() > SILENCE {
                return Err(io::Error::other("the server fell silent"));
            }
        }
        Ok(())
    }

    /// Opens another connection, which sends its batch when it is connected.
    fn open(&mut self) -> io::Result<()> {
        let connection = self.connect(self.connections.len())?;
        self.connections.push(connection);
        Ok(())
    }

    /// Connection `index` rests, and another one sends a batch. While there are too few connections
    /// it is a new one, so that not all connect at once.
    fn take_turns(&mut self, index: usize) -> io::Result<()> {
        self.resting.push_back(index);
        if self.connections.len() < self.plan.connections {
            return self.open();
        }
        let next = self.resting.pop_front().unwrap_or(index);
        send(&mut self.connections[next], self.plan.batch())
    }

    fn connect(&self, index: usize) -> io::Result<Connection> {
        let mut socket = TcpStream::connect(self.plan.server)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut socket, Token(index), interest)?;
        socket.set_nodelay(true)?;
        let stream = Stream::new(socket, self.plan.secured.as_ref())?;
        Ok(Connection { stream, position: 0, answered: 0, sent: false })
    }

    /// Handles an event of a connection. Returns how many answers came.
    fn ready(&mut self, index: usize) -> io::Result<(u64, Next)> {
        let connection = &mut self.connections[index];
        let plan = &self.plan;
        if !connection.sent {
            send(connection, plan.batch())?; // not connected yet: another event comes
            return Ok((0, Next::Wait));
        }
        let mut answers = 0;
        loop {
            let received = match connection.stream.read(&mut self.input) {
                Ok(0) if plan.close && connection.answered == 1 => {
                    return Ok((answers, Next::Reconnect));
                }
                Ok(0) => return Err(io::Error::other("the server closed a connection")),
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            let position = &mut connection.position;
            let whole = advance(position, plan.answer_bytes, &self.input[..received])?;
            connection.answered += whole;
            answers += whole as u64;
            if connection.answered > plan.pipeline {
                return Err(io::Error::other("more answers than requests"));
            }
            if connection.answered == plan.pipeline && !plan.close {
                connection.answered = 0;
                return Ok((answers, Next::Rest));
            }
            if received < READ_BYTES && !plan.close && connection.stream.is_plain() {
                break; // a short read emptied the socket
            }
        }
        Ok((answers, Next::Wait))
    }
}

/// Sends a batch in one write, if the connection is open.
fn send(connection: &mut Connection, batch: &[u8]) -> io::Result<()> {
    match connection.stream.write(batch) {
        Ok(sent) if sent == batch.len() => connection.sent = true,
        Ok(_) => return Err(io::Error::other("a batch did not fit the socket's buffer")),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Handles bytes that were received `position` bytes into an answer. Returns how many answers they
/// complete.
pub(crate) fn advance(
    position: &mut usize,
    answer_bytes: usize,
    input: &[u8],
) -> io::Result<usize> {
    let mut whole = 0;
    let mut rest = input;
    while !rest.is_empty() {
        if *position < STATUS.len() {
            let expected = &STATUS[*position..];
            let length = expected.len().min(rest.len());
            if rest[..length] != expected[..length] {
                let text = String::from_utf8_lossy(&rest[..rest.len().min(40)]).into_owned();
                return Err(io::Error::other(format!("not the 200 that was due: {text:?}")));
            }
        }
        let step = rest.len().min(answer_bytes - *position);
        *position += step;
        rest = &rest[step..];
        if *position == answer_bytes {
            *position = 0;
            whole += 1;
        }
    }
    Ok(whole)
}
