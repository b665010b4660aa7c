//! Two loops in one process that hand connections over like the loops of two processes.

use std::{
    io::{IoSlice, Write},
    mem::MaybeUninit,
    net::{Shutdown, TcpStream},
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use proptest::{collection::vec, prelude::*, sample::Index};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
        SocketFlags, SocketType, socketpair,
    },
};

use super::{
    super::{
        connection::Connection,
        test_support,
        tests::{Rig, exchange, get, response},
    },
    offer::*,
};
use crate::{
    http::Response,
    message::{Class, ControlEvent, LoopCommand, StopRules},
};

const PATIENCE: Timespec = Timespec { tv_sec: 15, tv_nsec: 0 };

fn socket_pair() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

/// The rules of an upgrade with plenty of time.
fn rules() -> StopRules {
    let later = Instant::now() + Duration::from_secs(60);
    StopRules { has_successor: true, close_from: later, idle_until: later }
}

/// A loop with idle connections, and their peers.
fn with_idle(count: u64) -> (Rig, Vec<TcpStream>) {
    let old = Rig::start();
    let mut peers: Vec<_> = (0..count).map(|_| old.connect()).collect();
    peers.iter_mut().for_each(|peer| drop(exchange(peer, &get("/"))));
    old.wait_counts([0, 0, count, 0, count]);
    (old, peers)
}

/// Makes a loop offer its connections on this socket, as in an upgrade.
fn hand_over(old: &Rig, socket: OwnedFd) {
    old.send(LoopCommand::Give(vec![socket]));
    old.send(LoopCommand::Gate(rules()));
    old.expect(ControlEvent::Gated);
    old.send(LoopCommand::Finish);
}

/// The next offer on this socket.
fn offer(socket: &OwnedFd) -> (Vec<ConnectionFacts>, Vec<OwnedFd>) {
    let mut poll_fds = [PollFd::new(socket, PollFlags::IN)];
    assert_eq!(rustix::event::poll(&mut poll_fds, Some(&PATIENCE)), Ok(1), "no offer");
    receive_offer(socket).unwrap()
}

fn answer(socket: &OwnedFd, answer: &[u8]) {
    rustix::net::send(socket, answer, SendFlags::empty()).unwrap();
}

fn says_close(answer: &str) -> bool {
    answer.contains("Connection: close")
}

#[test]
fn every_idle_connection_moves_and_empties_its_loop() {
    let (old, new) = (Rig::start(), Rig::start());
    let mut idle: Vec<_> = (0..20).map(|_| old.connect()).collect();
    idle.iter_mut().for_each(|peer| drop(exchange(peer, &get("/"))));
    let mut fresh: Vec<_> = (0..20).map(|_| old.connect()).collect();
    old.wait_counts([20, 0, 20, 0, 40]);
    let (ours, theirs) = socket_pair();
    new.send(LoopCommand::Take(theirs));
    hand_over(&old, ours);
    old.expect(ControlEvent::Emptied { cut: 0 });
    new.wait_counts([20, 0, 20, 0, 0]);
    for peer in idle.iter_mut().chain(&mut fresh) {
        assert!(!says_close(&exchange(peer, &get("/"))));
    }
    assert_eq!(old.gauges.snapshot().handed_over, 40);
    assert_eq!(new.gauges.snapshot().taken_over, 40);
    drop((idle, fresh));
    new.wait_counts([0, 0, 0, 0, 0]);
    old.end();
    new.end();
}

#[test]
fn bytes_between_offer_and_answer_reach_the_loop_that_gets_the_connection() {
    for is_taken in [true, false] {
        let (old, new) = (Rig::start(), Rig::start());
        let mut peer = old.connect();
        exchange(&mut peer, &get("/"));
        old.wait_counts([0, 0, 1, 0, 1]);
        let (ours, theirs) = socket_pair();
        hand_over(&old, ours);
        let (facts, sockets) = offer(&theirs);
        // Unwatched at the old loop, and not yet taken by the new one: neither reads this.
        peer.write_all(get("/").as_bytes()).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        old.wait_counts([0, 0, 1, 0, 1]);
        if is_taken {
            let (ours, taking) = socket_pair();
            new.send(LoopCommand::Take(taking));
            let sockets: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
            send_offer(&ours, facts, &sockets).unwrap();
            let mut taken = [NOT_TAKEN];
            let mut poll_fds = [PollFd::new(&ours, PollFlags::IN)];
            assert_eq!(rustix::event::poll(&mut poll_fds, Some(&PATIENCE)), Ok(1));
            rustix::net::recv(&ours, &mut taken[..], RecvFlags::empty()).unwrap();
            assert_eq!(taken, [TAKEN]);
            answer(&theirs, &taken);
            old.expect(ControlEvent::Emptied { cut: 0 });
        } else {
            drop(sockets);
            answer(&theirs, &[NOT_TAKEN]);
        }
        assert_eq!(says_close(&response(&mut peer)), !is_taken);
        assert_eq!(new.gauges.snapshot().taken_over, u64::from(is_taken));
        drop(peer);
        drop(theirs);
        old.end();
        new.end();
    }
}

#[test]
fn a_hand_over_socket_that_closes_leaves_all_connections_to_the_old_loop() {
    for garbage in [None, Some(&[TAKEN; 3][..])] {
        let (old, mut peers) = with_idle(70);
        let (ours, theirs) = socket_pair();
        hand_over(&old, ours);
        assert_eq!(offer(&theirs).1.len(), OFFERED_MAX);
        if let Some(garbage) = garbage {
            answer(&theirs, garbage);
        }
        drop(theirs);
        assert!(peers.iter_mut().all(|peer| says_close(&exchange(peer, &get("/")))));
        drop(peers);
        old.expect(ControlEvent::Emptied { cut: 0 });
        old.end();
    }
}

#[test]
fn a_new_loop_takes_connections_up_to_its_limits_and_the_rest_stay() {
    for limit in [
        |new: &Rig| new.budget.set_max(3),
        |new: &Rig| {
            new.budget.set_max_per_ip(Some(3));
        },
    ] {
        let ((old, mut peers), new) = (with_idle(10), Rig::start());
        limit(&new);
        let (ours, theirs) = socket_pair();
        new.send(LoopCommand::Take(theirs));
        hand_over(&old, ours);
        new.wait_counts([0, 0, 3, 0, 0]);
        old.wait_counts([0, 0, 7, 0, 10]);
        let closed = peers
            .iter_mut()
            .filter_map(|peer| says_close(&exchange(peer, &get("/"))).then_some(()));
        assert_eq!(closed.count(), 7);
        drop(peers);
        old.expect(ControlEvent::Emptied { cut: 0 });
        old.end();
        new.end();
    }
}

#[test]
fn a_connection_answered_during_a_hand_over_moves_and_its_answer_says_no_close() {
    let (old, new) = (Rig::start(), Rig::start());
    let mut peer = old.connect();
    peer.write_all(get("/later").as_bytes()).unwrap();
    let later = old.later();
    let (ours, theirs) = socket_pair();
    new.send(LoopCommand::Take(theirs));
    hand_over(&old, ours);
    later.respond(Response::new(200));
    assert!(!says_close(&response(&mut peer)));
    old.expect(ControlEvent::Emptied { cut: 0 });
    assert!(!says_close(&exchange(&mut peer, &get("/"))));
    new.wait_counts([0, 0, 1, 0, 0]);
    old.end();
    new.end();
}

#[test]
fn a_stopping_loop_takes_no_connections_and_the_next_successor_gets_the_offer() {
    let ((old, mut peers), stopping, newest) = (with_idle(5), Rig::start(), Rig::start());
    stopping.send(LoopCommand::Gate(test_support::stop_rules()));
    stopping.expect(ControlEvent::Gated);
    let (ours, theirs) = socket_pair();
    stopping.send(LoopCommand::Take(theirs));
    hand_over(&old, ours);
    assert!(says_close(&exchange(&mut peers[0], &get("/"))), "it stays");
    stopping.end();
    let (ours, theirs) = socket_pair();
    newest.send(LoopCommand::Take(theirs));
    old.send(LoopCommand::Give(vec![ours]));
    old.expect(ControlEvent::Emptied { cut: 0 });
    newest.wait_counts([0, 0, 4, 0, 0]);
    assert!(!peers[1..].iter_mut().any(|peer| says_close(&exchange(peer, &get("/")))));
    old.end();
    newest.end();
}

#[test]
fn a_loop_with_a_successor_takes_connections_and_offers_them_on() {
    let ((old, mut peers), between, newest) = (with_idle(5), Rig::start(), Rig::start());
    // It has an exchange in flight, so it is still there when the connections come.
    let mut busy = between.connect();
    busy.write_all(get("/later").as_bytes()).unwrap();
    let later = between.later();
    let (ours, theirs) = socket_pair();
    newest.send(LoopCommand::Take(theirs));
    hand_over(&between, ours);
    let (ours, theirs) = socket_pair();
    between.send(LoopCommand::Take(theirs));
    hand_over(&old, ours);
    old.expect(ControlEvent::Emptied { cut: 0 });
    newest.wait_counts([0, 0, 5, 0, 0]);
    later.respond(Response::new(200));
    assert!(!says_close(&response(&mut busy)));
    between.expect(ControlEvent::Emptied { cut: 0 });
    newest.wait_counts([0, 0, 6, 0, 0]);
    assert!(!peers.iter_mut().any(|peer| says_close(&exchange(peer, &get("/")))));
    [old, between, newest].into_iter().for_each(Rig::end);
}

#[test]
fn without_a_hand_over_socket_connections_outlast_the_grace_until_their_next_request() {
    let (old, mut peers) = with_idle(2);
    old.send(LoopCommand::Gate(rules()));
    old.expect(ControlEvent::Gated);
    old.send(LoopCommand::Finish);
    // The rig's grace is zero, and a loop obeys before it answers.
    assert!(says_close(&exchange(&mut peers[0], &get("/"))));
    assert!(says_close(&exchange(&mut peers[1], &get("/"))));
    drop(peers);
    old.expect(ControlEvent::Emptied { cut: 0 });
    old.end();
}

#[test]
fn a_deadline_moves_with_its_connection() {
    let mut running = test_support::running(Vec::new(), None);
    let (connection, _peer) = test_support::connection(&mut running.cx);
    let (mut facts, _) = connection.facts(&running.cx);
    assert!((9_000..=10_000).contains(&facts.left_ms), "{facts:?}: head_timeout");
    facts.left_ms = 1234;
    let socket = connection.socket().try_clone().unwrap();
    let permit = running.acceptors[Class::Public].take_permit().unwrap();
    let now_ms = running.cx.clock.now_ms();
    let taken = Connection::from_offer(connection.token, &facts, socket, permit, &mut running.cx);
    assert_eq!(taken.due_at(), now_ms + 1234);
    assert_ne!(taken.due_at(), connection.due_at());
}

/// Facts as the old process sends them, or impossible ones.
fn facts() -> impl Strategy<Value = ConnectionFacts> {
    let number = || prop_oneof![3 => 0..100_000_u64, 1 => any::<u64>(), 1 => Just(u64::MAX)];
    let peer = prop_oneof![
        Just(None),
        Just(Some("192.0.2.1:80".parse().unwrap())),
        Just(Some("[2001:db8::1]:0".parse().unwrap())),
    ];
    (peer, any::<bool>(), number(), number()).prop_map(
        |(peer, awaits_proxy_header, received, left_ms)| ConnectionFacts {
            peer,
            awaits_proxy_header,
            received,
            left_ms,
        },
    )
}

/// A datagram that is an offer, a broken offer, or garbage.
fn datagram() -> impl Strategy<Value = Vec<u8>> {
    let offer = |most: usize| {
        vec(facts(), 0..most)
            .prop_map(|connections| serde_json::to_vec(&Offer { connections }).unwrap())
    };
    let broken = (offer(4), any::<Index>(), any::<u8>(), any::<bool>()).prop_map(
        |(mut text, at, byte, is_cut)| {
            let at = at.index(text.len());
            text[at] = byte;
            text.truncate(if is_cut { at.max(1) } else { text.len() });
            text
        },
    );
    prop_oneof![
        4 => offer(6),
        1 => offer(OFFERED_MAX + 3),
        3 => broken,
        1 => vec(any::<u8>(), 1..64),
        1 => Just(vec![b' '; OFFER_BYTES_MAX + 1]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_datagram_with_any_descriptors_is_answered_or_closes_the_socket(
        text in datagram(),
        count in 0..8_usize,
        is_file in any::<bool>(),
    ) {
        let mut running = test_support::running(Vec::new(), None);
        let (ours, theirs) = socket_pair();
        running.begin_taking_over(theirs);
        let (file, socket) = (std::fs::File::open("/dev/null").unwrap(), socket_pair().0);
        let sent = if is_file { file.as_fd() } else { socket.as_fd() };
        let sent = vec![sent; count];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(OFFERED_MAX))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        prop_assert!(count == 0 || rights.push(SendAncillaryMessage::ScmRights(&sent)));
        rustix::net::sendmsg(&ours, &[IoSlice::new(&text)], &mut rights, SendFlags::NOSIGNAL)
            .unwrap();
        running.take_offers();
        let offered = serde_json::from_slice::<Offer>(&text).ok().map(|it| it.connections);
        let is_right = |all: &Vec<ConnectionFacts>| {
            (1..=OFFERED_MAX).contains(&all.len())
                && count <= all.len()
                && all.iter().all(|facts| facts.received <= RECEIVED_MAX)
        };
        let mut answer = [0; OFFERED_MAX + 1];
        let heard = rustix::net::recv(&ours, &mut answer[..], RecvFlags::DONTWAIT);
        match offered.filter(is_right) {
            Some(all) => {
                prop_assert_eq!(heard, Ok((all.len(), all.len())));
                // Each connection with a descriptor gets a place; without one it isn't taken.
                prop_assert!(answer[..count].iter().all(|&byte| byte == TAKEN));
                prop_assert!(answer[count..].iter().all(|&byte| byte == NOT_TAKEN));
                let taken = if is_file { 0 } else { count as u64 };
                prop_assert_eq!(running.cx.accounting.counts.taken_over, taken);
            }
            // The socket has closed.
            None => prop_assert_eq!(heard, Ok((0, 0))),
        }
    }
}
