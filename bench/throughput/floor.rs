//! The floor: the least any epoll server can do.
//!
//! `epoll_wait`, `recv`, find the blank lines, `send` the ready answers: nothing is parsed, looked
//! up, logged or timed. All answers to one read go out in one `send`, from a buffer that holds the
//! answer many times. Edge-triggered events with `recv` and `send` measured slightly cheaper than
//! the alternatives. What a real server costs above this is its own work.
//!
//! Runs as a process of its own (the benchmark starts itself again), with a single thread. Never
//! ends by itself: the kernel ends it with its parent.

use std::io;
use std::net::TcpListener;

use memchr::memmem::Finder;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};
use rustix::process::{Signal, set_parent_process_death_signal};

const LISTENER: u64 = u64::MAX;
const READ_BYTES: usize = 64 * 1024;
const READY_BYTES: usize = 64 * 1024;
const BLANK_LINE: &[u8] = b"\r\n\r\n";
/// The most bytes of a split blank line at the end of a read.
const CARRY_BYTES: usize = BLANK_LINE.len() - 1;

/// Serves `answer` to every request on `port` of 127.0.0.1; with `close`, one per connection.
pub(crate) fn run(port: u16, answer: &[u8], close: bool) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    listener.set_nonblocking(true)?;
    rustix::net::sockopt::set_tcp_nodelay(&listener, true)?; // accepted sockets inherit it
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;

    let mut floor = Floor::new(answer, close);
    let mut events = Vec::with_capacity(256);
    loop {
        match epoll::wait(&epoll, spare_capacity(&mut events), None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        for event in events.drain(..) {
            match event.data.u64() {
                LISTENER => floor.accept(&epoll, &listener)?,
                key => floor.serve(key as usize),
            }
        }
    }
}

/// One accepted connection.
struct Connection {
    socket: OwnedFd,
    /// The end of the last read, if it may be the beginning of a blank line.
    carry: [u8; CARRY_BYTES],
    carried: usize,
    /// Bytes of answers that the kernel has not taken yet.
    unsent: usize,
}

struct Floor {
    connections: slab::Slab<Connection>,
    input: Vec<u8>,
    /// Many copies of the answer.
    ready: Vec<u8>,
    answer_bytes: usize,
    blank_line: Finder<'static>,
    close: bool,
}

impl Floor {
    fn new(answer: &[u8], close: bool) -> Self {
        Floor {
            connections: slab::Slab::new(),
            input: vec![0; READ_BYTES],
            ready: answer.repeat((READY_BYTES / answer.len()).max(1)),
            answer_bytes: answer.len(),
            blank_line: Finder::new(BLANK_LINE),
            close,
        }
    }

    fn accept(&mut self, epoll: &OwnedFd, listener: &TcpListener) -> io::Result<()> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = match rustix::net::accept_with(listener, flags) {
            Ok(socket) => socket,
            Err(Errno::AGAIN | Errno::CONNABORTED) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let entry = self.connections.vacant_entry();
        let interest = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(epoll, &socket, EventData::new_u64(entry.key() as u64), interest)?;
        entry.insert(Connection { socket, carry: [0; CARRY_BYTES], carried: 0, unsent: 0 });
        Ok(())
    }

    /// Reads and answers one connection; a closed or finished one is dropped.
    fn serve(&mut self, key: usize) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let (answer, ready) = (self.answer_bytes, &self.ready);
        let stays = loop {
            if !flush(connection, ready, answer) {
                break false;
            }
            if connection.unsent > 0 {
                break true; // the next event comes when the peer has read
            }
            let begin = connection.carried;
            self.input[..begin].copy_from_slice(&connection.carry[..begin]);
            let room = READ_BYTES - begin;
            let input = &mut self.input[begin..];
            let received = match rustix::net::recv(&connection.socket, input, RecvFlags::empty()) {
                Ok((_, received)) => received,
                Err(Errno::AGAIN) => break true,
                Err(_) => break false,
            };
            if received == 0 {
                break false;
            }
            let requests = count(connection, &self.blank_line, &self.input[..begin + received]);
            connection.unsent = requests * answer;
            if received < room {
                // A short read emptied the socket: what comes later raises a new edge.
                break flush(connection, ready, answer) && !(self.close && requests > 0);
            }
        };
        if !stays {
            self.connections.remove(key);
        }
    }
}

/// Counts the request heads that end in `input` and keeps a split end for the next read.
fn count(connection: &mut Connection, blank_line: &Finder<'_>, input: &[u8]) -> usize {
    let mut requests = 0;
    let mut rest = input;
    while let Some(found) = blank_line.find(rest) {
        requests += 1;
        rest = &rest[found + BLANK_LINE.len()..];
    }
    connection.carried = rest.len().min(CARRY_BYTES);
    if connection.carried > 0 {
        let split = &rest[rest.len() - connection.carried..];
        connection.carry[..connection.carried].copy_from_slice(split);
    }
    requests
}

/// Sends the answers that the connection is owed; false if the peer is gone.
fn flush(connection: &mut Connection, ready: &[u8], answer_bytes: usize) -> bool {
    while connection.unsent > 0 {
        let begin = (answer_bytes - connection.unsent % answer_bytes) % answer_bytes;
        let chunk = connection.unsent.min(ready.len() - begin);
        let bytes = &ready[begin..begin + chunk];
        match rustix::net::send(&connection.socket, bytes, SendFlags::NOSIGNAL) {
            Ok(sent) => connection.unsent -= sent,
            Err(Errno::AGAIN) => return true,
            Err(_) => return false,
        }
    }
    true
}
