//! The open loop: requests at a fixed rate, whether those before them were answered or not.
//!
//! A request is due at a time that does not depend on the server, and its latency counts from then.
//! It goes out on the connection that has been idle longest; while none is idle it waits, and that
//! is part of its latency. One thread, which never sleeps, so its own wake-ups are not measured.
//! How late it sent what it could have sent is reported separately.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::fd::AsRawFd;

use crate::load::{Load, Plan, SILENCE, advance};
use crate::machine;

const READ_BYTES: usize = 256 * 1024;

/// One request with a complete answer.
pub(crate) struct Answer {
    pub(crate) due: Instant,
    /// From then until the last byte of its answer was read.
    pub(crate) latency: Duration,
    /// How late it was sent although a connection was idle: the load's own delay.
    pub(crate) late: Duration,
}

/// Sends `rate` requests a second from a thread on `core`; each answer comes out of the channel.
pub(crate) fn start(plan: &Plan, rate: u32, core: usize) -> (Load, Receiver<Answer>) {
    let (sender, answers) = mpsc::channel();
    let plan = plan.clone();
    let body = move |stop: &AtomicBool, done: &AtomicU64| {
        machine::pin(&[core])?;
        Client::open(plan)?.run(Duration::from_secs(1) / rate, stop, done, &sender)
    };
    (Load::spawn([body]), answers)
}

struct Connection {
    stream: TcpStream,
    /// Bytes of the current answer that have come.
    position: usize,
    idle_since: Instant,
    due: Instant,
    late: Duration,
}

struct Client {
    plan: Plan,
    poll: Poll,
    connections: Vec<Connection>,
    /// The longest idle connection first.
    idle: VecDeque<usize>,
}

impl Client {
    fn open(plan: Plan) -> io::Result<Client> {
        let poll = Poll::new()?;
        let open = |index| {
            let stream = TcpStream::connect(plan.server)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let socket = stream.as_raw_fd();
            poll.registry().register(&mut SourceFd(&socket), Token(index), Interest::READABLE)?;
            let (now, late) = (Instant::now(), Duration::ZERO);
            Ok(Connection { stream, position: 0, idle_since: now, due: now, late })
        };
        let connections = (0..plan.connections).map(open).collect::<io::Result<Vec<_>>>()?;
        let idle = (0..connections.len()).collect();
        Ok(Client { plan, poll, connections, idle })
    }

    fn run(
        mut self,
        interval: Duration,
        stop: &AtomicBool,
        done: &AtomicU64,
        answers: &Sender<Answer>,
    ) -> io::Result<()> {
        let mut events = Events::with_capacity(self.connections.len());
        let mut input = vec![0; READ_BYTES];
        let (mut due, mut last_answer) = (Instant::now(), Instant::now());
        while !stop.load(Ordering::Relaxed) {
            while due <= Instant::now() && self.send(due)? {
                due += interval;
            }
            match self.poll.poll(&mut events, Some(Duration::ZERO)) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for event in &events {
                if let Some(answer) = self.receive(event.token().0, &mut input)? {
                    last_answer = Instant::now();
                    done.fetch_add(1, Ordering::Relaxed);
                    let _ = answers.send(answer);
                }
            }
            if last_answer.elapsed() > SILENCE {
                return Err(io::Error::other("the server fell silent"));
            }
        }
        Ok(())
    }

    /// Sends the request that was due then; false while no connection is idle.
    fn send(&mut self, due: Instant) -> io::Result<bool> {
        let Some(index) = self.idle.pop_front() else { return Ok(false) };
        let connection = &mut self.connections[index];
        connection.due = due;
        connection.late = due.max(connection.idle_since).elapsed();
        connection.stream.write_all(self.plan.batch())?;
        Ok(true)
    }

    /// Reads from a connection. Returns the answer that is now complete.
    fn receive(&mut self, index: usize, input: &mut [u8]) -> io::Result<Option<Answer>> {
        let connection = &mut self.connections[index];
        loop {
            let received = match connection.stream.read(input) {
                Ok(0) => return Err(io::Error::other("the server closed a connection")),
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            };
            let position = &mut connection.position;
            if advance(position, self.plan.answer_bytes, &input[..received])? > 0 {
                connection.idle_since = Instant::now();
                self.idle.push_back(index);
                let Connection { due, late, idle_since, .. } = *connection;
                return Ok(Some(Answer { due, latency: idle_since - due, late }));
            }
        }
    }
}
