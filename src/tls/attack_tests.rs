//! What a hostile peer may send after the handshake, forged record by record; and what it makes a
//! session hold.

use std::{
    process::Command,
    sync::{Arc, Mutex},
};

use aws_lc_rs::{
    aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, KeyType, Prk},
};
use rustls::{
    ClientConfig, ClientConnection, KeyLog,
    crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256, version::TLS13,
};

use super::{
    Policy, TicketKeys,
    error::TlsError,
    session::{Session, WIRE_BYTES},
    test_support::{Authority, Side, give, one_site, peer, run, take, write},
};

const HANDSHAKE: u8 = 22;
const CONTENT: u8 = 23;

/// A KeyUpdate that asks for one in return (RFC 8446 §4.6.3).
const KEY_UPDATE: &[u8] = &[24, 0, 0, 1, 1];

/// Seals records as the client of a session does, with its keys.
struct Forger {
    secret: Vec<u8>,
    sequence: u64,
}

#[derive(Debug, Default)]
struct Secrets(Mutex<Vec<u8>>);

impl KeyLog for Secrets {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        if label == "CLIENT_TRAFFIC_SECRET_0" {
            *self.0.lock().unwrap() = secret.to_vec();
        }
    }
}

struct Len(usize);

impl KeyType for Len {
    fn len(&self) -> usize {
        self.0
    }
}

impl Forger {
    fn record(&mut self, kind: u8, payload: &[u8]) -> Vec<u8> {
        let key = UnboundKey::new(&AES_128_GCM, &self.derive("key", 16)).unwrap();
        let mut nonce: [u8; 12] = self.derive("iv", 12).try_into().unwrap();
        for (byte, sequence) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= sequence;
        }
        self.sequence += 1;
        let mut inner = [payload, &[kind]].concat();
        let len = u16::try_from(inner.len() + 16).unwrap().to_be_bytes();
        let head = [CONTENT, 3, 3, len[0], len[1]];
        let nonce = Nonce::assume_unique_for_key(nonce);
        let key = LessSafeKey::new(key);
        key.seal_in_place_append_tag(nonce, Aad::from(head), &mut inner).unwrap();
        [&head[..], &inner].concat()
    }

    fn key_update(&mut self) -> Vec<u8> {
        let record = self.record(HANDSHAKE, KEY_UPDATE);
        self.update();
        record
    }

    fn update(&mut self) {
        (self.secret, self.sequence) = (self.derive("traffic upd", 32), 0);
    }

    /// RFC 8446 §7.1
    fn derive(&self, label: &str, len: usize) -> Vec<u8> {
        let label = format!("tls13 {label}");
        let (head, label_len) = ((len as u16).to_be_bytes(), [label.len() as u8]);
        let info = [&head[..], &label_len, label.as_bytes(), &[0]];
        let secret = Prk::new_less_safe(HKDF_SHA256, &self.secret);
        let mut out = vec![0; len];
        secret.expand(&info, Len(len)).unwrap().fill(&mut out).unwrap();
        out
    }
}

/// A server with an open session, its peer, and what forges the peer's records.
fn attacked() -> (Side, ClientConnection, Forger) {
    let authority = Authority::new();
    let keys = TicketKeys::generate(0).unwrap();
    let mut side = Side::server(&one_site(&authority, Policy::default(), &keys));
    let mut config: ClientConfig = authority.client(&[&TLS13]);
    let mut provider = (**config.crypto_provider()).clone();
    provider.cipher_suites = vec![TLS13_AES_128_GCM_SHA256];
    let plain = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&TLS13])
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(super::test_support::der(&authority.certificate)).unwrap();
    config = plain.with_root_certificates(roots).with_no_client_auth();
    let secrets = Arc::new(Secrets::default());
    config.key_log = Arc::<Secrets>::clone(&secrets);
    let mut peer = peer(config);
    run(&mut peer, &mut side, usize::MAX).unwrap();
    assert!(side.session.is_open());
    let secret = secrets.0.lock().unwrap().clone();
    (side, peer, Forger { secret, sequence: 0 })
}

/// Feeds pieces until the session fails. Returns the error, the bytes fed and the most that waited
/// to be sent.
fn feed_until_refused(
    side: &mut Side,
    mut piece: impl FnMut() -> Vec<u8>,
) -> (TlsError, usize, usize) {
    let (mut fed, mut out) = (0, 0);
    loop {
        let bytes = piece();
        fed += bytes.len();
        let result = side.feed(&bytes);
        out = out.max(side.out.unsent().len());
        if let Err(error) = result {
            return (error, fed, out);
        }
        assert!(fed < 10 * WIRE_BYTES, "still not refused");
    }
}

#[test]
fn forged_content_is_read() {
    let (mut side, mut peer, mut forger) = attacked();
    side.feed(&forger.record(CONTENT, b"one")).unwrap();
    side.feed(&forger.key_update()).unwrap();
    side.feed(&[forger.record(CONTENT, b""), forger.record(CONTENT, b"two")].concat()).unwrap();
    assert_eq!(side.content, b"onetwo");
    side.send(b"answer");
    assert_eq!(give(&mut peer, &side.take_out()).unwrap(), b"answer");
}

#[test]
fn a_flood_of_empty_records_is_refused() {
    let (mut side, _, mut forger) = attacked();
    let (error, fed, out) = feed_until_refused(&mut side, || forger.record(CONTENT, b""));
    assert!(fed < WIRE_BYTES && out < 100, "{error} after {fed} bytes, with {out} to send");
}

#[test]
fn a_flood_of_key_updates_is_refused_and_answered_by_one_at_most() {
    let (mut side, _, mut forger) = attacked();
    let (error, fed, out) = feed_until_refused(&mut side, || forger.key_update());
    assert!(fed < WIRE_BYTES && out < 100, "{error} after {fed} bytes, with {out} to send");
}

#[test]
fn key_updates_between_empty_records_are_bounded_too() {
    let (mut side, _, mut forger) = attacked();
    let both = || [forger.key_update(), forger.record(CONTENT, b"")].concat();
    let (error, fed, out) = feed_until_refused(&mut side, both);
    assert!(matches!(error, TlsError::NoContent), "{error}");
    assert!(fed < 2 * WIRE_BYTES && out < 100, "{fed} bytes, with {out} to send");
}

#[test]
fn content_may_be_sent_while_half_a_handshake_message_is_here() {
    let (mut side, mut peer, mut forger) = attacked();
    side.feed(&forger.record(HANDSHAKE, &KEY_UPDATE[..2])).unwrap();
    side.send(b"in between");
    side.feed(&forger.record(HANDSHAKE, &KEY_UPDATE[2..])).unwrap();
    forger.update();
    side.send(b", behind");
    assert_eq!(give(&mut peer, &side.take_out()).unwrap(), b"in between, behind");
    side.feed(&forger.record(HANDSHAKE, &KEY_UPDATE[..2])).unwrap();
    side.feed(&forger.record(CONTENT, b"interleaved")).unwrap_err();
    assert!(side.content.is_empty());
}

#[test]
fn a_handshake_message_that_does_not_fit_the_buffer_is_refused() {
    let (mut side, _, mut forger) = attacked();
    side.feed(&forger.record(HANDSHAKE, &[24, 0, 0xff, 0xff])).unwrap();
    let part = [0; 8 * 1024];
    let (error, fed, _) = feed_until_refused(&mut side, || forger.record(HANDSHAKE, &part));
    assert!(fed <= 2 * WIRE_BYTES, "{error} after {fed} bytes");
}

#[test]
fn no_ticket_offers_early_data() {
    let authority = Authority::new();
    let site = one_site(&authority, Policy::default(), &TicketKeys::generate(0).unwrap());
    let mut config = authority.client(&[&TLS13]);
    config.enable_early_data = true;
    for _ in 0..2 {
        let (mut side, mut peer) = (Side::server(&site), peer(config.clone()));
        assert!(peer.early_data().is_none());
        run(&mut peer, &mut side, usize::MAX).unwrap();
    }
}

/// Resident memory in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Runs as a process of its own, for no other test may allocate meanwhile.
#[test]
#[ignore = "a part of the test below"]
fn idle_sessions_in_a_process_of_their_own() {
    const SESSIONS: u64 = 4000;
    let authority = Authority::new();
    let site = one_site(&authority, Policy::default(), &TicketKeys::generate(0).unwrap());
    let config = authority.client(&[&TLS13]);
    let idle = || {
        let (mut side, mut peer) = (Side::server(&site), peer(config.clone()));
        write(&mut peer, b"request");
        run(&mut peer, &mut side, usize::MAX).unwrap();
        side.send(b"answer");
        take(&mut peer);
        let Side { session, .. } = side;
        Box::new(session)
    };
    // What is allocated once, and what a handshake leaves to be used again.
    let first: Vec<_> = (0..1000).map(|_| idle()).collect();
    let before = resident();
    let sessions: Vec<_> = (0..SESSIONS).map(|_| idle()).collect();
    println!("size {}", size_of::<Session>());
    println!("bytes {}", (resident() - before) / SESSIONS);
    drop((first, sessions));
}

#[test]
fn an_idle_session_takes_less_than_four_kibibytes() {
    let name = "tls::attack_tests::idle_sessions_in_a_process_of_their_own";
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args([name, "--exact", "--ignored", "--nocapture"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let bytes = text.lines().find_map(|line| line.split("bytes ").nth(1));
    let bytes: u64 = bytes.expect(&text).trim().parse().unwrap();
    assert!(bytes < 4 * 1024, "{bytes} bytes");
    assert!(bytes > 500, "{bytes} bytes: nothing was measured");
}
