//! The load: a closed loop of a fixed number of connections, in threads on cores of their own.
//!
//! Each connection sends its batch of requests in one write and sends the next when every answer
//! is in. Answers are counted by their length, which the first one tells, and each must begin with
//! the 200 line exactly where the one before it ended: a server that answers something else, loses
//! one or closes a connection fails the measurement instead of winning it.

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

const STATUS: &[u8] = b"HTTP/1.1 200";
const READ_BYTES: usize = 256 * 1024;
/// No answer for so long ends the measurement.
const SILENCE: Duration = Duration::from_secs(3);

/// What to send, and what must come back.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) server: SocketAddr,
    /// The requests of one batch.
    pub(crate) batch: Vec<u8>,
    pub(crate) pipeline: usize,
    /// Length of every answer, head and body.
    pub(crate) answer_bytes: usize,
    pub(crate) close: bool,
}

/// Threads that load one server until stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<Thread>,
}

/// One thread of a load.
struct Thread {
    handle: JoinHandle<io::Result<()>>,
    /// Requests answered whole.
    done: Arc<CachePadded<AtomicU64>>,
}

impl Load {
    /// Opens `connections` from one thread on each of `cores`.
    pub(crate) fn start(plan: &Plan, connections: usize, cores: &[usize]) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = cores.iter().enumerate().map(|(index, &core)| {
            let share = connections / cores.len() + usize::from(index < connections % cores.len());
            let done = Arc::new(CachePadded::new(AtomicU64::new(0)));
            let (plan, stop, count) = (plan.clone(), Arc::clone(&stop), Arc::clone(&done));
            let body = move || {
                machine::pin(&[core])?;
                Client::new(plan, &count)?.run(share, &stop)
            };
            Thread { handle: std::thread::spawn(body), done }
        });
        let threads = threads.collect();
        Load { stop, threads }
    }

    /// Requests answered whole until now.
    pub(crate) fn completed(&self) -> u64 {
        self.threads.iter().map(|thread| thread.done.load(Ordering::Relaxed)).sum()
    }

    /// Ends the load; the first failure of a thread, else all requests answered.
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
    stream: TcpStream,
    /// Bytes of the present answer that are in.
    position: usize,
    /// Answers of the present batch that are in.
    answered: usize,
    /// The batch is on its way.
    sent: bool,
}

/// What a connection needs after an event.
enum Next {
    Wait,
    Reconnect,
}

struct Client<'a> {
    plan: Plan,
    poll: Poll,
    input: Vec<u8>,
    connections: Vec<Connection>,
    done: &'a AtomicU64,
}

impl<'a> Client<'a> {
    fn new(plan: Plan, done: &'a AtomicU64) -> io::Result<Self> {
        let (poll, input) = (Poll::new()?, vec![0; READ_BYTES]);
        Ok(Client { plan, poll, input, connections: Vec::new(), done })
    }

    fn run(mut self, connections: usize, stop: &AtomicBool) -> io::Result<()> {
        for index in 0..connections {
            let connection = self.connect(index)?;
            self.connections.push(connection);
        }
        let mut events = Events::with_capacity(connections.max(1));
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
                if matches!(next, Next::Reconnect) {
                    self.connections[index] = self.connect(index)?;
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

    fn connect(&self, index: usize) -> io::Result<Connection> {
        let mut stream = TcpStream::connect(self.plan.server)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(index), interest)?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, position: 0, answered: 0, sent: false })
    }

    /// Moves one connection on; tells how many answers came in.
    fn ready(&mut self, index: usize) -> io::Result<(u64, Next)> {
        let connection = &mut self.connections[index];
        let plan = &self.plan;
        if !connection.sent {
            send(connection, &plan.batch)?; // not connected yet: another event comes
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
            let whole = advance(connection, plan.answer_bytes, &self.input[..received])?;
            connection.answered += whole;
            answers += whole as u64;
            if connection.answered > plan.pipeline {
                return Err(io::Error::other("more answers than requests"));
            }
            if connection.answered == plan.pipeline && !plan.close {
                connection.answered = 0;
                send(connection, &plan.batch)?;
            }
            if received < READ_BYTES && !plan.close {
                break; // a short read emptied the socket
            }
        }
        Ok((answers, Next::Wait))
    }
}

/// Sends a batch in one write, if the connection is there yet.
fn send(connection: &mut Connection, batch: &[u8]) -> io::Result<()> {
    match connection.stream.write(batch) {
        Ok(sent) if sent == batch.len() => connection.sent = true,
        Ok(_) => return Err(io::Error::other("a batch did not fit the socket's buffer")),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Takes in received bytes; tells how many answers they end.
fn advance(connection: &mut Connection, answer_bytes: usize, input: &[u8]) -> io::Result<usize> {
    let mut whole = 0;
    let mut rest = input;
    while !rest.is_empty() {
        if connection.position < STATUS.len() {
            let expected = &STATUS[connection.position..];
            let length = expected.len().min(rest.len());
            if rest[..length] != expected[..length] {
                let text = String::from_utf8_lossy(&rest[..rest.len().min(40)]).into_owned();
                return Err(io::Error::other(format!("not the 200 that was due: {text:?}")));
            }
        }
        let step = rest.len().min(answer_bytes - connection.position);
        connection.position += step;
        rest = &rest[step..];
        if connection.position == answer_bytes {
            connection.position = 0;
            whole += 1;
        }
    }
    Ok(whole)
}
