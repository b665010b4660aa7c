//! Sessions against rustls' buffered client: what may go wrong, by what should happen.

use std::sync::Arc;

use rustls::{
    AlertDescription, ClientConnection, Error, HandshakeKind, NamedGroup,
    crypto::CryptoProvider,
    version::{TLS12, TLS13},
};

use super::{
    MinVersion, Policy, TicketKeys,
    authorities::ClientAuth,
    error::TlsError,
    session::{SEALED_BYTES_MAX, Session},
    test_support::{Authority, Side, give, one_site, peer, run, take, write},
};

const BOTH: &[&rustls::SupportedProtocolVersion] = &[&TLS12, &TLS13];

fn keys() -> TicketKeys {
    TicketKeys::generate(0).unwrap()
}

/// A peer and a server that have finished their handshake.
fn joined(authority: &Authority) -> (ClientConnection, Side) {
    let mut side = Side::server(&one_site(authority, Policy::default(), &keys()));
    let mut peer = peer(authority.client(BOTH));
    run(&mut peer, &mut side, usize::MAX).unwrap();
    assert!(side.session.is_open() && side.holds_nothing());
    (peer, side)
}

#[test]
fn handshake_content_and_close_may_be_split_anywhere() {
    let authority = Authority::new();
    let site = one_site(&authority, Policy::default(), &keys());
    for version in [&TLS12, &TLS13] {
        for piece in [1, 2, 3, 7, 1000, usize::MAX] {
            for room in [1, 64 * 1024] {
                let mut side = Side::server(&site);
                side.room = room;
                let mut peer = peer(authority.client(&[version]));
                write(&mut peer, b"request");
                run(&mut peer, &mut side, piece).unwrap();
                assert_eq!(side.content, b"request", "{version:?} in pieces of {piece}");
                side.send(b"answer");
                assert_eq!(run(&mut peer, &mut side, piece).unwrap(), b"answer");
                peer.send_close_notify();
                run(&mut peer, &mut side, piece).unwrap();
                assert!(side.is_end && side.session.peer_has_closed());
                // Our own direction is still open.
                side.send(b"last");
                side.close();
                side.close();
                assert_eq!(run(&mut peer, &mut side, piece).unwrap(), b"last");
                assert!(side.holds_nothing());
            }
        }
    }
}

#[test]
fn many_records_in_one_read_are_taken_one_after_the_other() {
    let (mut peer, mut side) = joined(&Authority::new());
    side.room = 5;
    for number in 0..100_u8 {
        write(&mut peer, &[number; 7]);
    }
    let bytes = take(&mut peer);
    side.feed(&bytes).unwrap();
    let expected: Vec<u8> = (0..100_u8).flat_map(|number| [number; 7]).collect();
    assert_eq!(side.content, expected);
    assert!(side.holds_nothing());
}

#[test]
fn full_records_pass_both_ways_through_a_small_room() {
    let (mut peer, mut side) = joined(&Authority::new());
    side.room = 1000;
    let content: Vec<u8> = (0..200_000_u32).map(|at| at as u8).collect();
    peer.set_buffer_limit(None);
    write(&mut peer, &content);
    let mut answers = Vec::new();
    for bytes in take(&mut peer).chunks(1460) {
        side.feed(bytes).unwrap();
        let taken = std::mem::take(&mut side.content);
        for part in taken.chunks(SEALED_BYTES_MAX) {
            side.send(part);
        }
        answers.extend(give(&mut peer, &side.take_out()).unwrap());
    }
    assert!(answers == content, "the content came back");
    side.send(&content[..SEALED_BYTES_MAX]);
    assert!(side.out.unsent().len() < SEALED_BYTES_MAX + 256, "one record");
}

#[test]
fn content_behind_the_finished_handshake_can_be_answered_although_it_found_no_room() {
    let authority = Authority::new();
    let mut side = Side::server(&one_site(&authority, Policy::default(), &keys()));
    side.room = 1;
    let mut peer = peer(authority.client(&[&TLS13]));
    write(&mut peer, b"request");
    let hello = take(&mut peer);
    side.feed(&hello).unwrap();
    give(&mut peer, &side.take_out()).unwrap();
    // Finished and the request come in one read, and there is room for one byte of it.
    let mut bytes = take(&mut peer);
    let progress = side.session.receive(&mut bytes, &mut [0], &mut side.out).unwrap();
    assert!(progress.is_full && progress.produced == 1 && side.session.is_open());
    side.session.send(b"answer", &mut bytes[progress.consumed..], &mut side.out).unwrap();
    assert_eq!(give(&mut peer, &side.take_out()).unwrap(), b"answer");
}

#[test]
fn the_alert_reaches_the_peer_after_each_kind_of_failure() {
    let authority = Authority::new();
    let seen = |policy: Policy, client: rustls::ClientConfig| {
        let mut side = Side::server(&one_site(&authority, policy, &keys()));
        let mut peer = peer(client);
        let failed = run(&mut peer, &mut side, usize::MAX).unwrap_err();
        assert!(side.feed(b"more").is_err_and(|error| matches!(error, TlsError::Ended)));
        match failed.seen {
            Some(Error::AlertReceived(alert)) => alert,
            other => panic!("{other:?} after {}", failed.error),
        }
    };
    let required = || Policy {
        client: Some((authority.client_ca(), ClientAuth::Require)),
        ..Policy::default()
    };
    for version in [&TLS12, &TLS13] {
        let mut other_protocol = authority.client(&[version]);
        other_protocol.alpn_protocols = vec![b"spdy/1".to_vec()];
        assert_eq!(
            seen(Policy::default(), other_protocol),
            AlertDescription::NoApplicationProtocol
        );
        let stranger = Authority::new().known_client(&[version]);
        let mut stranger_here = authority.client(&[version]);
        stranger_here.client_auth_cert_resolver = stranger.client_auth_cert_resolver;
        assert_eq!(seen(required(), stranger_here), AlertDescription::UnknownCA);
        let without = authority.client(&[version]);
        assert_eq!(seen(required(), without), AlertDescription::CertificateRequired);
    }
    let from_13 = Policy { min_version: MinVersion::Tls13, ..Policy::default() };
    assert_eq!(seen(from_13, authority.client(&[&TLS12])), AlertDescription::ProtocolVersion);
}

#[test]
fn a_broken_record_fails_the_session_and_is_answered_by_an_alert() {
    for at in [0, 3, 4, 5, 20] {
        let (mut peer, mut side) = joined(&Authority::new());
        write(&mut peer, b"request");
        let mut bytes = take(&mut peer);
        bytes[at] ^= 0x40;
        // A length that got longer only waits for more.
        if (3..5).contains(&at) {
            bytes.resize(64 * 1024, 0);
        }
        side.feed(&bytes).unwrap_err();
        assert!(side.content.is_empty());
        let seen = give(&mut peer, &side.take_out()).unwrap_err();
        assert!(matches!(seen, Error::AlertReceived(_)), "{seen:?} at {at}");
        assert!(!side.session.peer_has_closed());
    }
}

#[test]
fn an_end_without_close_notify_is_not_taken_for_a_clean_one() {
    let (mut peer, mut side) = joined(&Authority::new());
    write(&mut peer, b"half of it");
    let bytes = take(&mut peer);
    side.feed(&bytes[..bytes.len() - 1]).unwrap();
    assert!(!side.is_end && !side.session.peer_has_closed() && side.content.is_empty());
    side.feed(&bytes[bytes.len() - 1..]).unwrap();
    assert!(!side.is_end && !side.session.peer_has_closed());
    peer.send_close_notify();
    let bytes = take(&mut peer);
    side.feed(&[&bytes[..], b"ignored"].concat()).unwrap();
    assert!(side.is_end && side.session.peer_has_closed() && side.holds_nothing());
}

#[test]
fn key_updates_and_half_records_are_no_content() {
    let (mut peer, mut side) = joined(&Authority::new());
    peer.refresh_traffic_keys().unwrap();
    let bytes = take(&mut peer);
    side.feed(&bytes).unwrap();
    assert!(side.content.is_empty() && side.holds_nothing());
    write(&mut peer, b"request");
    let bytes = take(&mut peer);
    side.feed(&bytes[..10]).unwrap();
    assert!(side.content.is_empty() && !side.session.has_leftover());
    side.feed(&bytes[10..]).unwrap();
    side.send(b"answer");
    assert_eq!(give(&mut peer, &side.take_out()).unwrap(), b"answer", "with new keys");
}

/// Runs one connection. Returns whether it was resumed.
fn connect(config: &rustls::ClientConfig, site: &super::table::SiteTls) -> Result<bool, Error> {
    let (mut side, mut peer) = (Side::server(site), peer(config.clone()));
    run(&mut peer, &mut side, usize::MAX).map_err(|failed| failed.seen.unwrap())?;
    let is_resumed = peer.handshake_kind() == Some(HandshakeKind::Resumed);
    assert_eq!(side.session.negotiated().unwrap().is_resumed, is_resumed);
    Ok(is_resumed)
}

#[test]
fn a_session_is_resumed_by_the_keys_of_another_process_and_by_the_previous_key() {
    let authority = Authority::new();
    for version in [&TLS12, &TLS13] {
        let client = authority.client(&[version]);
        let first = keys();
        let site = one_site(&authority, Policy::default(), &first);
        assert!(!connect(&client, &site).unwrap() && connect(&client, &site).unwrap());
        // The process that takes over, with another certificate.
        let taken = TicketKeys::import(&first.export()).unwrap();
        let site = one_site(&authority, Policy::default(), &taken);
        assert!(connect(&client, &site).unwrap(), "{version:?} after an upgrade");
        let second = taken.rotated(taken.due_secs()).unwrap().unwrap();
        let site = one_site(&authority, Policy::default(), &second);
        assert!(connect(&client, &site).unwrap(), "{version:?} after a rotation");
        let site = one_site(&authority, Policy::default(), &keys());
        assert!(!connect(&client, &site).unwrap(), "{version:?} with foreign keys");
    }
}

#[test]
fn a_ticket_from_before_client_certificates_were_required_lets_nobody_in() {
    let authority = Authority::new();
    let keys = keys();
    let with = |auth| Policy { client: Some((authority.client_ca(), auth)), ..Policy::default() };
    for version in [&TLS12, &TLS13] {
        for before in [Policy::default(), with(ClientAuth::Optional)] {
            let client = authority.client(&[version]);
            let is_resumed = before.client.is_none();
            let site = one_site(&authority, before, &keys);
            assert!(!connect(&client, &site).unwrap());
            assert_eq!(connect(&client, &site).unwrap(), is_resumed);
            let site = one_site(&authority, with(ClientAuth::Require), &keys);
            let refused = connect(&client, &site).unwrap_err();
            assert!(matches!(refused, Error::AlertReceived(_)), "{refused:?}");
        }
        // With a certificate every handshake is a full one, which verifies it.
        let client = authority.known_client(&[version]);
        assert!(!connect(&client, &one_site(&authority, Policy::default(), &keys)).unwrap());
        let site = one_site(&authority, with(ClientAuth::Require), &keys);
        assert!(!connect(&client, &site).unwrap() && !connect(&client, &site).unwrap());
        // Another authority is another policy.
        let ca = Authority::new().client_ca();
        let other = Policy { client: Some((ca, ClientAuth::Require)), ..Policy::default() };
        assert!(connect(&client, &one_site(&authority, other, &keys)).is_err());
    }
}

#[test]
fn the_key_exchange_is_safe_from_quantum_computers_where_the_client_can_do_that() {
    let authority = Authority::new();
    let site = one_site(&authority, Policy::default(), &keys());
    let group = |groups: Option<&[NamedGroup]>| {
        let mut client = authority.client(BOTH);
        if let Some(groups) = groups {
            let mut provider = CryptoProvider::clone(client.crypto_provider());
            provider.kx_groups.retain(|group| groups.contains(&group.name()));
            client = authority.client_with(Arc::new(provider));
        }
        let (mut side, mut peer) = (Side::server(&site), peer(client));
        run(&mut peer, &mut side, usize::MAX).unwrap();
        peer.negotiated_key_exchange_group().unwrap().name()
    };
    assert_eq!(group(None), NamedGroup::X25519MLKEM768);
    assert_eq!(group(Some(&[NamedGroup::X25519])), NamedGroup::X25519);
    assert_eq!(group(Some(&[NamedGroup::secp256r1])), NamedGroup::secp256r1);
}

#[test]
fn what_was_agreed_on_is_known() {
    let authority = Authority::new();
    let policy =
        Policy { client: Some((authority.client_ca(), ClientAuth::Optional)), ..Policy::default() };
    let site = one_site(&authority, policy, &keys());
    let mut client = authority.known_client(&[&TLS12]);
    client.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let (mut side, mut peer) = (Side::server(&site), peer(client));
    assert_eq!(side.session.negotiated(), None);
    run(&mut peer, &mut side, usize::MAX).unwrap();
    let negotiated = side.session.negotiated().unwrap();
    assert_eq!((negotiated.version, negotiated.is_resumed), ("TLSv1.2", false));
    assert!(negotiated.cipher.starts_with("TLS_ECDHE_ECDSA_WITH_"), "{}", negotiated.cipher);
    assert_eq!(negotiated.protocol, Some(b"http/1.1".as_slice()));
    assert!(negotiated.peer_certificate.is_some());
    let (_, side) = joined(&authority);
    let negotiated = side.session.negotiated().unwrap();
    assert_eq!((negotiated.version, negotiated.protocol), ("TLSv1.3", None));
    assert!(negotiated.cipher.starts_with("TLS_AES_"), "{}", negotiated.cipher);
    assert_eq!(negotiated.peer_certificate, None);
}

#[test]
fn an_open_session_is_undisturbed_by_a_new_certificate() {
    let authority = Authority::new();
    let (mut peer, mut side) = joined(&authority);
    // A new table takes the place of the old one, which is dropped.
    let renewed = one_site(&authority, Policy::default(), &keys());
    assert!(!connect(&authority.client(BOTH), &renewed).unwrap());
    write(&mut peer, b"request");
    run(&mut peer, &mut side, usize::MAX).unwrap();
    side.send(b"answer");
    assert_eq!(run(&mut peer, &mut side, 1).unwrap(), b"answer");
}

#[test]
fn both_sides_of_our_own_understand_each_other() {
    let authority = Authority::new();
    let site = one_site(&authority, Policy::default(), &keys());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(super::test_support::der(&authority.certificate)).unwrap();
    let roots = super::Roots::new(roots);
    let check = super::ServerCheck::Roots(&roots);
    let tls = super::ClientTls::new("a.example", &check, None, &[]).unwrap().unwrap();
    let (mut client, mut server) =
        (Side::new(Session::connect(&tls).unwrap()), Side::server(&site));
    client.feed(&[]).unwrap();
    for _ in 0..4 {
        server.feed(&client.take_out()).unwrap();
        client.feed(&server.take_out()).unwrap();
    }
    client.send(b"request");
    server.feed(&client.take_out()).unwrap();
    server.send(b"answer");
    server.close();
    client.feed(&server.take_out()).unwrap();
    assert_eq!((&server.content[..], &client.content[..]), (&b"request"[..], &b"answer"[..]));
    assert!(client.is_end && !server.is_end);
}
