//! A session whose peer's records are changed on the way, during the handshake or after it.
//!
//! Two sessions talk, one of them honest. What it sends passes through a pipe, where the input
//! changes, drops, repeats and adds bytes. Whatever it does, the other session never panics, gives
//! out nothing but what the honest one has sent, in order, takes no end for complete that is not,
//! holds and says a bounded number of bytes, and reads nothing more once it has failed.

use std::{sync::OnceLock, time::SystemTime};

use tidegate::tls_fuzzing::{CONTENT_BYTES_MAX, Certificates, Session, WIRE_BYTES};

/// Steps of one input: each may cost a handshake message.
const STEPS_MAX: usize = 64;

/// What the flights of a handshake may have, with one short certificate.
const FLIGHTS_BYTES_MAX: usize = 16 * 1024;

pub fn check(data: &[u8]) {
    let Some((&[choices, room], mut steps)) = data.split_first_chunk::<2>() else { return };
    let (is_server, is_tls12) = (choices & 1 != 0, choices & 2 != 0);
    let certificates = certificates();
    let (server, client) = (certificates.server(), certificates.client(is_tls12));
    let (honest, victim) = if is_server { (client, server) } else { (server, client) };
    let mut talk = Talk {
        honest: Side::new(honest, 64 * 1024),
        victim: Side::new(victim, 1 + 64 * usize::from(room)),
        pipe: Vec::new(),
        sent: Vec::new(),
        has_closed: false,
        is_changed: false,
    };
    // The first words of both sides; then so many flights that stay as they are.
    talk.exchange();
    for _ in 0..choices >> 2 & 3 {
        talk.deliver(usize::MAX);
    }
    for _ in 0..STEPS_MAX {
        let Some((&step, rest)) = steps.split_first() else { break };
        steps = talk.step(step, rest);
    }
    talk.deliver(usize::MAX);
    let is_whole = talk.victim.content == talk.sent;
    assert!(talk.is_changed || talk.victim.failed.is_none(), "{:?}", talk.victim.failed);
    assert!(talk.is_changed || is_whole, "content is missing, and no record was changed");
}

fn certificates() -> &'static Certificates {
    static CERTIFICATES: OnceLock<Certificates> = OnceLock::new();
    CERTIFICATES.get_or_init(|| Certificates::new(false, SystemTime::now()))
}

/// Two sessions, and the pipe from the honest one to the other.
struct Talk {
    honest: Side,
    victim: Side,
    pipe: Vec<u8>,
    /// Content that the honest side has sent.
    sent: Vec<u8>,
    has_closed: bool,
    /// The pipe is not as the honest side has filled it.
    is_changed: bool,
}

impl Talk {
    /// One step of the input. Returns the rest of it.
    fn step<'a>(&mut self, step: u8, rest: &'a [u8]) -> &'a [u8] {
        let Some((&[a, b], rest)) = rest.split_first_chunk::<2>() else { return &[] };
        let number = usize::from(u16::from_be_bytes([a, b]));
        let at = if self.pipe.is_empty() { 0 } else { number % self.pipe.len() };
        let count = usize::from(step >> 3);
        let len = self.pipe.len();
        match step & 7 {
            0 => self.send(number % (CONTENT_BYTES_MAX + 1)),
            1 => self.victim.send(&vec![b'v'; number % (CONTENT_BYTES_MAX + 1)]),
            2 => self.deliver(number),
            3 if len > 0 => {
                self.pipe[at] ^= 1 << (count & 7);
                self.is_changed = true;
            }
            4 if len > 0 => {
                self.pipe.drain(at..(at + count + 1).min(len));
                self.is_changed = true;
            }
            5 => {
                // A record of the input's own, at the front or at the end.
                let content = &rest[..count.min(rest.len())];
                let head = [20 + (a & 7), 3, b & 7, 0, content.len() as u8];
                let record = [&head, content].concat();
                let at = if a & 8 == 0 { 0 } else { len };
                self.pipe.splice(at..at, record);
                self.is_changed = true;
                self.exchange();
                return &rest[content.len()..];
            }
            6 if len > 0 => {
                // Bytes come twice.
                let again = self.pipe[at..(at + 32 * (count + 1)).min(len)].to_vec();
                self.pipe.extend_from_slice(&again);
                self.is_changed = true;
            }
            7 if self.honest.session.is_open() => {
                self.has_closed = true;
                self.honest.close();
            }
            _ => {}
        }
        self.exchange();
        rest
    }

    fn send(&mut self, len: usize) {
        let first = self.sent.len();
        let content: Vec<u8> = (first..first + len).map(|at| (at % 251) as u8).collect();
        if !self.has_closed && self.honest.session.is_open() {
            self.honest.send(&content);
            self.sent.extend_from_slice(&content);
        }
    }

    /// Delivers so many bytes of the pipe.
    fn deliver(&mut self, len: usize) {
        let bytes: Vec<u8> = self.pipe.drain(..len.min(self.pipe.len())).collect();
        let was_handshaking = self.victim.session.is_handshaking();
        self.victim.receive(&bytes);
        assert!(self.sent.starts_with(&self.victim.content), "content that was never sent");
        let is_complete = self.has_closed && self.victim.content == self.sent;
        // An end in the clear comes before any content.
        let is_early = was_handshaking && self.victim.content.is_empty();
        assert!(!self.victim.is_end || is_complete || is_early || self.victim.was_early);
        self.victim.was_early |= self.victim.is_end && is_early;
        self.exchange();
    }

    /// Lets the honest side read what the other has said, and fill the pipe.
    fn exchange(&mut self) {
        let said = std::mem::take(&mut self.victim.said);
        self.honest.receive(&said);
        self.victim.receive(&[]);
        self.pipe.append(&mut self.honest.said);
    }
}

/// A session with the buffers that a connection lends it.
struct Side {
    session: Session,
    held: Vec<u8>,
    content: Vec<u8>,
    said: Vec<u8>,
    /// Bytes of the plain buffer.
    room: usize,
    received: usize,
    said_total: usize,
    sealed: usize,
    failed: Option<&'static str>,
    is_end: bool,
    /// The end came before the handshake was over.
    was_early: bool,
}

impl Side {
    fn new(session: Session, room: usize) -> Self {
        Self {
            session,
            held: Vec::new(),
            content: Vec::new(),
            said: Vec::new(),
            room,
            received: 0,
            said_total: 0,
            sealed: 0,
            failed: None,
            is_end: false,
            was_early: false,
        }
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.received += bytes.len();
        self.held.extend_from_slice(bytes);
        let mut room = vec![0; self.room];
        loop {
            let window = self.held.len().min(WIRE_BYTES);
            let received = self.session.receive(&mut self.held[..window], &mut room);
            self.take_out();
            let progress = match received {
                Ok(progress) => progress,
                Err(why) => return self.fail(why),
            };
            assert!(progress.consumed <= window && progress.produced <= self.room, "{progress:?}");
            self.held.drain(..progress.consumed);
            self.content.extend_from_slice(&room[..progress.produced]);
            self.is_end |= progress.is_end;
            let is_idle = progress.consumed == 0 && !progress.is_full;
            if is_idle || (self.held.is_empty() && !progress.is_full) {
                assert!(self.is_end || self.held.len() < WIRE_BYTES, "it holds more than a record");
                return;
            }
        }
    }

    fn send(&mut self, content: &[u8]) {
        let is_open = self.session.is_open();
        match self.session.send(content, &mut self.held) {
            Ok(consumed) => {
                assert!(is_open, "content before the handshake is over");
                self.sealed += content.len();
                self.held.drain(..consumed);
            }
            Err(why) if self.session.has_failed() => self.failed = Some(why),
            Err(_) => {}
        }
        self.take_out();
    }

    fn close(&mut self) {
        match self.session.close(&mut self.held) {
            Ok(consumed) => drop(self.held.drain(..consumed)),
            Err(why) => self.failed = Some(why),
        }
        self.take_out();
    }

    fn fail(&mut self, why: &'static str) {
        assert!(self.session.has_failed() && !why.is_empty());
        self.failed.get_or_insert(why);
        self.held.clear();
        // It says its last word once, and reads nothing more.
        let again = self.session.receive(&mut [22, 3, 3, 0, 1, 0], &mut [0; 16]);
        assert!(again.is_err() && self.session.take_out().is_empty(), "it goes on");
        assert!(self.session.send(b"more", &mut []).is_err() && !self.session.is_open());
    }

    fn take_out(&mut self) {
        let out = self.session.take_out();
        self.said_total += out.len();
        self.said.extend_from_slice(&out);
        // An answer to a KeyUpdate is as long as it is; sealing adds less than a hundredth.
        let most = FLIGHTS_BYTES_MAX + 2 * self.received + 2 * self.sealed + 512;
        assert!(self.said_total <= most, "{} bytes said", self.said_total);
    }
}
