//! TLS over real sockets: bytes split anywhere, sockets that are full, and what an idle connection
//! holds.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::Arc,
    thread,
};

use rustix::net::sockopt::set_socket_send_buffer_size;
use rustls::{ClientConnection, version::TLS13};

use crate::{
    app::Segment,
    http::Bytes,
    io::{BufferPool, Flushed, InputBuffer, Io, Mark, Ready, Received, TURN_BYTES},
    tls::{
        Policy, Session, TicketKeys,
        test_support::{self, Authority},
    },
};

/// A server's end, its peer's end, and the peer's session.
struct Pair {
    io: Io,
    pool: BufferPool,
    socket: UnixStream,
    peer: ClientConnection,
}

impl Pair {
    /// Both ends before the handshake.
    fn new() -> Self {
        let authority = Authority::new();
        let keys = TicketKeys::generate(0).unwrap();
        let site = test_support::one_site(&authority, Policy::default(), &keys);
        let (own, socket) = UnixStream::pair().unwrap();
        own.set_nonblocking(true).unwrap();
        let ready = Ready { writable: true, ..Ready::default() };
        let (mut io, mut pool) = (Io::new(own.into(), ready), BufferPool::new(1000));
        io.begin_tls(Session::accept(&site).unwrap(), None, &mut pool);
        let peer = test_support::peer(authority.client(&[&TLS13]));
        Self { io, pool, socket, peer }
    }

    /// Both ends after the handshake.
    fn joined() -> Self {
        let mut pair = Self::new();
        for _ in 0..2 {
            pair.peer_sends();
            assert_eq!(pair.receive(), Received::Nothing);
            pair.peer_receives();
        }
        assert!(!pair.io.is_handshaking() && !pair.peer.is_handshaking());
        pair
    }

    fn receive(&mut self) -> Received {
        self.io.receive(&mut self.pool).unwrap()
    }

    /// Takes the content that was received.
    fn take_input(&mut self) -> Vec<u8> {
        let Some(input) = self.io.input.take() else { return Vec::new() };
        let content = input.unread().to_vec();
        self.pool.give_input(input);
        content
    }

    fn flush(&mut self) -> Flushed {
        self.io.flush(&mut self.pool).unwrap()
    }

    fn send(&mut self, content: &[u8]) {
        self.io.outbox.buffer(&mut self.pool).extend_from_slice(content);
    }

    /// Sends what the peer's session has to send.
    fn peer_sends(&mut self) {
        self.socket.write_all(&test_support::take(&mut self.peer)).unwrap();
    }

    /// Gives the peer's session what the socket has. Returns the content.
    fn peer_receives(&mut self) -> Vec<u8> {
        self.socket.set_nonblocking(true).unwrap();
        let mut bytes = Vec::new();
        // The end, or nothing more now.
        let _ = self.socket.read_to_end(&mut bytes);
        self.socket.set_nonblocking(false).unwrap();
        test_support::give(&mut self.peer, &bytes).unwrap()
    }

    fn has_passed(&self) -> bool {
        self.io.outbox.sent() == self.io.outbox.end()
    }
}

#[test]
fn content_split_at_every_byte_arrives_when_its_record_is_whole() {
    let mut pair = Pair::new();
    test_support::write(&mut pair.peer, b"request");
    let mut received = Vec::new();
    while received != b"request" {
        for byte in test_support::take(&mut pair.peer) {
            pair.socket.write_all(&[byte]).unwrap();
            if pair.receive() != Received::Nothing {
                received.extend(pair.take_input());
            }
            assert!(pair.io.input.as_ref().is_none_or(InputBuffer::is_empty));
        }
        pair.peer_receives();
    }
    assert_eq!(pair.io.received_total(), 7, "content is counted, not ciphertext");
    pair.send(b"answer");
    assert_eq!(pair.flush(), Flushed::All);
    assert_eq!(pair.peer_receives(), b"answer");
}

#[test]
fn content_that_finds_no_room_is_received_later_without_an_event() {
    let mut pair = Pair::joined();
    let content: Vec<u8> = (0..40_000_u32).map(|at| at as u8).collect();
    test_support::write(&mut pair.peer, &content);
    pair.peer_sends();
    let mut received = Vec::new();
    while received.len() < content.len() {
        let Received::Bytes(len) = pair.receive() else { panic!("{} bytes", received.len()) };
        assert!(len <= 1000);
        assert!(received.len() + len == content.len() || pair.io.ready.readable);
        received.extend(pair.take_input());
    }
    assert!(received == content);
    assert_eq!((pair.receive(), pair.io.ready.readable), (Received::Nothing, false));
}

#[test]
fn a_mark_passes_when_the_kernel_has_the_ciphertext_before_it() {
    let mut pair = Pair::joined();
    set_socket_send_buffer_size(&pair.socket, 4096).unwrap();
    set_socket_send_buffer_size(pair.io.socket(), 4096).unwrap();
    let content: Vec<u8> = (0..200_000_u32).map(|at| at as u8).collect();
    pair.send(&content);
    let mut read = Vec::new();
    loop {
        let flushed = pair.flush();
        let (sent, committed) = (pair.io.outbox.sent(), pair.io.split().1.committed());
        let ahead = committed.bytes_since(sent);
        assert!(ahead <= 16 * 1024, "{ahead} bytes are sealed and unsent");
        if flushed == Flushed::All {
            break;
        }
        assert_eq!(flushed, Flushed::Blocked);
        assert!(ahead > 0 && !pair.has_passed(), "what is sealed is not yet sent");
        read.extend(pair.peer_receives());
        // What has passed is with the kernel: the peer has read it.
        assert!(read.len() as u64 >= sent.bytes_since(Mark::START));
        pair.io.ready.writable = true;
    }
    assert!(pair.has_passed());
    read.extend(pair.peer_receives());
    assert!(read == content);
}

#[test]
fn what_is_sealed_can_not_be_taken_back() {
    let mut pair = Pair::joined();
    set_socket_send_buffer_size(pair.io.socket(), 4096).unwrap();
    let start = pair.io.outbox.end();
    assert_eq!(pair.io.split().1.committed(), start);
    pair.send(&[b'x'; 100_000]);
    assert_eq!(pair.flush(), Flushed::Blocked);
    assert!(pair.io.split().1.committed() > pair.io.outbox.sent());
    assert!(pair.io.split().1.committed() < pair.io.outbox.end());
    let kept = pair.io.split().1.committed();
    pair.io.outbox.take_back(kept);
    while !pair.has_passed() {
        pair.peer_receives();
        pair.io.ready.writable = true;
        pair.flush();
    }
    assert_eq!(pair.io.outbox.sent(), kept);
}

#[test]
fn files_go_out_with_what_stands_before_and_behind_them() {
    let mut pair = Pair::joined();
    let mut file = tempfile::tempfile().unwrap();
    let content: Vec<u8> = (0..300_000_u32).map(|at| (at / 7) as u8).collect();
    file.write_all(&content).unwrap();
    let file = Arc::new(file);
    let part = |offset, length| Segment::File { file: Arc::clone(&file), offset, length };
    pair.send(b"head");
    let bytes = || Segment::Bytes(Bytes::from(b"middle".to_vec()));
    pair.io.outbox.push_segments(vec![bytes(), part(10, 5), bytes(), part(1000, 290_000), bytes()]);
    let mut read = Vec::new();
    while pair.flush() != Flushed::All {
        read.extend(pair.peer_receives());
        pair.io.ready.writable = true;
    }
    read.extend(pair.peer_receives());
    let parts = [b"headmiddle", &content[10..15], b"middle", &content[1000..291_000], b"middle"];
    assert!(read == parts.concat(), "{} bytes", read.len());
    assert!(pair.has_passed() && !pair.io.outbox.has_segments());
    pair.io.outbox.push_segments(vec![part(299_990, 11)]);
    let error = pair.io.flush(&mut pair.pool).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "shorter than announced");
}

#[test]
fn a_turn_seals_a_limited_part_of_a_file() {
    const LENGTH: u64 = 5 << 20;
    let Pair { mut io, mut pool, mut socket, mut peer } = Pair::joined();
    let file = tempfile::tempfile().unwrap();
    file.set_len(LENGTH).unwrap();
    io.outbox.push_segments(vec![Segment::File { file: file.into(), offset: 0, length: LENGTH }]);
    let reader = thread::spawn(move || {
        let (mut read, mut bytes) = (0, vec![0; 64 * 1024]);
        while read < LENGTH {
            let len = socket.read(&mut bytes).unwrap();
            read += test_support::give(&mut peer, &bytes[..len]).unwrap().len() as u64;
        }
    });
    loop {
        // A record that the turn before has sealed may still have to be sent.
        let before = io.split().1.committed();
        let flushed = io.flush(&mut pool).unwrap();
        assert!(io.split().1.committed().bytes_since(before) <= TURN_BYTES);
        match flushed {
            Flushed::All => break,
            Flushed::TurnOver => {}
            Flushed::Blocked => io.ready.writable = true,
        }
    }
    reader.join().unwrap();
}

#[test]
fn an_idle_connection_gives_every_buffer_back() {
    let mut pair = Pair::joined();
    test_support::write(&mut pair.peer, b"request");
    pair.peer_sends();
    assert_eq!(pair.receive(), Received::Bytes(7));
    pair.take_input();
    pair.send(b"answer");
    assert_eq!(pair.flush(), Flushed::All);
    pair.io.release(&mut pair.pool);
    assert!(pair.io.input.is_none() && pair.io.holds_no_tls_buffer());
    // A half record has to be kept.
    test_support::write(&mut pair.peer, b"next");
    let bytes = test_support::take(&mut pair.peer);
    pair.socket.write_all(&bytes[..10]).unwrap();
    assert_eq!(pair.receive(), Received::Nothing);
    pair.io.release(&mut pair.pool);
    assert!(pair.io.input.is_none() && !pair.io.holds_no_tls_buffer());
    pair.socket.write_all(&bytes[10..]).unwrap();
    assert_eq!(pair.receive(), Received::Bytes(4));
    pair.take_input();
    pair.io.release(&mut pair.pool);
    assert!(pair.io.holds_no_tls_buffer());
}

#[test]
fn a_key_update_alone_is_nothing_to_read() {
    let mut pair = Pair::joined();
    pair.peer.refresh_traffic_keys().unwrap();
    pair.peer_sends();
    assert_eq!((pair.receive(), pair.io.received_total()), (Received::Nothing, 0));
    pair.send(b"answer");
    assert_eq!(pair.flush(), Flushed::All);
    assert_eq!(pair.peer_receives(), b"answer");
}

#[test]
fn close_notify_comes_before_the_end() {
    let mut pair = Pair::joined();
    pair.send(b"answer");
    assert_eq!(pair.flush(), Flushed::All);
    pair.io.shutdown_write(&mut pair.pool).unwrap();
    assert_eq!(pair.peer_receives(), b"answer");
    assert_eq!(pair.socket.read(&mut [0]).unwrap(), 0);
    // The peer's reader reports an end without close_notify as an error.
    assert_eq!(pair.peer.reader().read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_full_socket_delays_close_notify_and_the_end() {
    let mut pair = Pair::joined();
    // Fills the socket as another record would.
    let filler = vec![0; 1 << 20];
    let filled = rustix::net::send(pair.io.socket(), &filler, rustix::net::SendFlags::NOSIGNAL);
    let filled = filled.unwrap();
    assert!(rustix::net::send(pair.io.socket(), b"x", rustix::net::SendFlags::NOSIGNAL).is_err());
    pair.io.shutdown_write(&mut pair.pool).unwrap();
    assert_eq!(pair.flush(), Flushed::Blocked);
    pair.socket.read_exact(&mut vec![0; filled]).unwrap();
    pair.io.ready.writable = true;
    assert_eq!(pair.flush(), Flushed::All);
    assert_eq!(pair.peer_receives(), b"");
    assert_eq!(pair.socket.read(&mut [0]).unwrap(), 0);
    assert_eq!(pair.peer.reader().read(&mut [0]).unwrap(), 0);
}

#[test]
fn an_end_without_close_notify_is_visible_and_one_with_it_is_clean() {
    for is_clean in [true, false] {
        let mut pair = Pair::joined();
        test_support::write(&mut pair.peer, b"all of it");
        if is_clean {
            pair.peer.send_close_notify();
        }
        pair.peer_sends();
        pair.socket.shutdown(Shutdown::Write).unwrap();
        pair.io.ready.read_closed = true;
        assert_eq!(pair.receive(), Received::Bytes(9));
        assert!(pair.io.ready.readable && !pair.io.has_ended(), "the end is still to be read");
        assert_eq!(pair.receive(), Received::End);
        assert_eq!((pair.io.has_ended(), pair.io.is_truncated()), (true, !is_clean));
        // Our side is still open.
        pair.send(b"answer");
        assert_eq!(pair.flush(), Flushed::All);
        assert_eq!(pair.peer_receives(), b"answer");
    }
}

#[test]
fn the_alert_is_sent_although_reading_has_failed() {
    let mut pair = Pair::joined();
    pair.socket.write_all(&[23, 3, 3, 0, 30]).unwrap();
    pair.socket.write_all(&[0; 30]).unwrap();
    let error = pair.io.receive(&mut pair.pool).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    let mut bytes = [0; 1000];
    let len = pair.socket.read(&mut bytes).unwrap();
    let seen = test_support::give(&mut pair.peer, &bytes[..len]).unwrap_err();
    assert!(matches!(seen, rustls::Error::AlertReceived(_)), "{seen:?}");
    assert!(pair.io.shutdown_write(&mut pair.pool).is_ok());
    pair.socket.write_all(b"what is still on its way").unwrap();
    assert_eq!(pair.receive(), Received::Bytes(24), "dropped");
    assert_eq!(pair.receive(), Received::Nothing);
}

#[test]
fn an_end_in_one_read_with_content_is_received_while_the_socket_stays_open() {
    let mut pair = Pair::joined();
    test_support::write(&mut pair.peer, b"all of it");
    pair.peer.send_close_notify();
    pair.peer_sends();
    assert_eq!(pair.receive(), Received::Bytes(9));
    assert!(pair.io.ready.readable, "no event will report the end");
    assert_eq!((pair.receive(), pair.io.is_truncated()), (Received::End, false));
}

#[test]
fn an_idle_connection_stays_silent_until_content_or_the_end_comes() {
    let mut pair = Pair::joined();
    for _ in 0..3 {
        pair.peer.refresh_traffic_keys().unwrap();
        pair.peer_sends();
        assert!(pair.io.is_silent(&mut pair.pool));
        assert!(pair.io.holds_no_tls_buffer() && pair.io.input.is_none());
    }
    test_support::write(&mut pair.peer, b"x");
    pair.peer_sends();
    assert!(!pair.io.is_silent(&mut pair.pool));
    let mut pair = Pair::joined();
    pair.peer.send_close_notify();
    pair.peer_sends();
    assert!(!pair.io.is_silent(&mut pair.pool));
}
