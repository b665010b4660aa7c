//! The opening of a connection where TLS is spoken, behind a PROXY header or without one: any bytes
//! come to the same however they are cut, plain HTTP and unknown names get their answers, and a
//! session that has failed reads nothing more.

use std::{net::SocketAddr, sync::OnceLock, time::SystemTime};

use tidegate::{
    http::ProxyHeader,
    tls_fuzzing::{Certificates, Opened, Session, WIRE_BYTES},
};

use super::in_any_split;

/// A fatal `unrecognized_name` (RFC 6066 §3).
const UNRECOGNIZED_NAME: &[u8] = &[21, 3, 3, 0, 2, 2, 112];

/// What a server's flights may have, with one short certificate.
const SAID_BYTES_MAX: usize = 16 * 1024;

/// What an opening comes to.
#[derive(Debug, PartialEq)]
struct Outcome {
    /// The client that a PROXY header names.
    client: Option<SocketAddr>,
    /// Bytes of the PROXY header.
    header_bytes: usize,
    end: End,
}

#[derive(Debug, PartialEq)]
enum End {
    NeedMore,
    HeaderRefused(&'static str),
    /// More than a connection holds.
    TooLong,
    PlainHttp,
    Alert(Vec<u8>),
    /// A session, why it has failed if it has, and the types of the records that it has sent.
    Session(Option<&'static str>, Vec<u8>),
}

pub fn check(data: &[u8]) {
    let Some((&[choices, a, b, c, d], wire)) = data.split_first_chunk::<5>() else { return };
    let (has_default, is_proxied) = (choices & 1 != 0, choices & 2 != 0);
    let certificates = certificates(has_default);
    let outcome = in_any_split(wire, [a, b, c, d], |pieces| open(certificates, is_proxied, pieces));
    let opening = &wire[outcome.header_bytes..];
    let is_text = opening.first().is_some_and(u8::is_ascii_alphabetic);
    match &outcome.end {
        End::HeaderRefused(why) => assert!(is_proxied && !why.is_empty()),
        End::NeedMore => assert!(wire.len() < WIRE_BYTES),
        End::TooLong => assert!(wire.len() >= WIRE_BYTES),
        End::PlainHttp => assert!(is_text),
        End::Alert(alert) => {
            assert!(!is_text && (alert.is_empty() || is_alert(alert)), "{alert:?}");
            // Only a default app answers unknown names.
            let is_unknown = alert == UNRECOGNIZED_NAME;
            assert!(!(is_unknown && has_default) || names(opening, b"plain.example"), "{alert:?}");
        }
        End::Session(..) => assert_eq!(opening[0], 22, "no handshake"),
    }
}

fn certificates(has_default: bool) -> &'static Certificates {
    static WITH: OnceLock<Certificates> = OnceLock::new();
    static WITHOUT: OnceLock<Certificates> = OnceLock::new();
    let of = if has_default { &WITH } else { &WITHOUT };
    of.get_or_init(|| Certificates::new(has_default, SystemTime::now()))
}

/// Opens as a connection does, which keeps what isn't done with.
fn open(certificates: &Certificates, is_proxied: bool, pieces: &[&[u8]]) -> Outcome {
    let (mut held, mut session) = (Vec::new(), None);
    let mut outcome = Outcome { client: None, header_bytes: 0, end: End::NeedMore };
    let mut awaits_header = is_proxied;
    for piece in pieces {
        held.extend_from_slice(piece);
        if awaits_header {
            match ProxyHeader::read(&held) {
                ProxyHeader::NeedMore => continue,
                ProxyHeader::Refused(why) => {
                    return Outcome { end: End::HeaderRefused(why), ..outcome };
                }
                ProxyHeader::Header { source, used } => {
                    held.drain(..used);
                    (outcome.client, outcome.header_bytes) = (source, used);
                    awaits_header = false;
                }
            }
        }
        if session.is_none() {
            match certificates.open(&held) {
                Opened::NeedMore if held.len() < WIRE_BYTES => continue,
                Opened::NeedMore => return Outcome { end: End::TooLong, ..outcome },
                Opened::PlainHttp => return Outcome { end: End::PlainHttp, ..outcome },
                Opened::Alert(alert) => return Outcome { end: End::Alert(alert), ..outcome },
                Opened::Session(opened) => session = Some(Conversation::new(opened)),
            }
        }
        if let Some(session) = &mut session {
            session.receive(&mut held);
        }
    }
    if let Some(Conversation { failed, said, .. }) = session {
        outcome.end = End::Session(failed, record_types(&said));
    }
    outcome
}

/// A session, and what it has said.
struct Conversation {
    session: Box<Session>,
    failed: Option<&'static str>,
    said: Vec<u8>,
}

impl Conversation {
    fn new(session: Box<Session>) -> Self {
        Self { session, failed: None, said: Vec::new() }
    }

    fn receive(&mut self, held: &mut Vec<u8>) {
        let mut room = [0; 1024];
        loop {
            let window = held.len().min(WIRE_BYTES);
            let received = self.session.receive(&mut held[..window], &mut room);
            let said = self.session.take_out();
            if self.failed.is_some() {
                assert!(received.is_err() && said.is_empty(), "it goes on after it has failed");
                held.clear();
                return;
            }
            self.said.extend_from_slice(&said);
            assert!(self.said.len() <= SAID_BYTES_MAX, "{} bytes said", self.said.len());
            match received {
                Err(why) => {
                    assert!(self.session.has_failed() && !why.is_empty());
                    self.failed = Some(why);
                }
                Ok(progress) => {
                    assert!(progress.consumed <= window && progress.produced == 0, "{progress:?}");
                    held.drain(..progress.consumed);
                    assert!(held.len() < WIRE_BYTES, "it holds more than a record");
                    if progress.consumed == 0 || held.is_empty() {
                        return;
                    }
                }
            }
        }
    }
}

fn is_alert(record: &[u8]) -> bool {
    matches!(record, [21, 3, 1..=4, 0, 2, 1 | 2, _])
}

fn names(opening: &[u8], name: &[u8]) -> bool {
    opening.windows(name.len()).any(|found| found.eq_ignore_ascii_case(name))
}

/// The types of whole records.
fn record_types(mut bytes: &[u8]) -> Vec<u8> {
    let mut types = Vec::new();
    while let [kind, 3, _, high, low, rest @ ..] = bytes {
        types.push(*kind);
        bytes = &rest[usize::from(u16::from_be_bytes([*high, *low]))..];
    }
    assert!(bytes.is_empty(), "half a record was sent");
    types
}
