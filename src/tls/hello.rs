//! A client's first message, read without being taken.
//!
//! The first byte shows whether it is TLS at all. Of an incomplete message only the record heads
//! are read; a complete message is parsed, once.

use rustls::server::{Acceptor, ClientHello};

use super::error::TlsError;

/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    /// The host that it names, lower case; an address is none (RFC 6066 §3).
    pub(crate) server_name: Option<Box<str>>,
}

/// How far the first bytes of a connection are a hello.
#[derive(Debug)]
pub(crate) enum HelloRead {
    /// It is incomplete.
    NeedMore,
    Hello(Hello),
    /// A letter comes first, as in a request of plain HTTP.
    PlainHttp,
    /// It is neither; the alert is to be sent as it is, if there is one.
    Refused {
        error: TlsError,
        alert: Vec<u8>,
    },
}

/// The alert for a host that no certificate is for: a fatal `unrecognized_name`, as a record.
pub(crate) const UNRECOGNIZED_NAME: &[u8] = &[ALERT, 3, 3, 0, 2, 2, 112];

/// Content types of records (RFC 8446 §5.1).
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;

const RECORD_HEAD_BYTES: usize = 5;
const MESSAGE_HEAD_BYTES: usize = 4;

impl Hello {
    /// Reads from the first bytes of a connection.
    pub(crate) fn read(bytes: &[u8]) -> HelloRead {
        match bytes.first() {
            None => return HelloRead::NeedMore,
            Some(first) if first.is_ascii_alphabetic() => return HelloRead::PlainHttp,
            Some(_) if !may_be_complete(bytes) => return HelloRead::NeedMore,
            Some(_) => {}
        }
        let (mut acceptor, mut rest) = (Acceptor::default(), bytes);
        loop {
            let read = acceptor.read_tls(&mut rest);
            match acceptor.accept() {
                Ok(Some(accepted)) => return HelloRead::Hello(Self::of(&accepted.client_hello())),
                Ok(None) if matches!(read, Ok(1..)) => {}
                Ok(None) => return HelloRead::NeedMore,
                Err((error, mut last)) => {
                    let mut alert = Vec::new();
                    last.write_all(&mut alert).expect("a Vec takes all bytes");
                    return HelloRead::Refused { error: error.into(), alert };
                }
            }
        }
    }

    fn of(hello: &ClientHello<'_>) -> Self {
        let server_name = hello.server_name().map(|name| name.to_ascii_lowercase().into());
        Self { server_name }
    }
}

/// Whether the first handshake message is here, or something else that the parser has to refuse.
fn may_be_complete(bytes: &[u8]) -> bool {
    let (mut rest, mut head, mut found) = (bytes, [0; MESSAGE_HEAD_BYTES], 0);
    loop {
        match rest.first() {
            None => return false,
            Some(&HANDSHAKE) => {}
            Some(_) => return true,
        }
        let Some((record, after)) = rest.split_at_checked(RECORD_HEAD_BYTES) else { return false };
        let len = usize::from(u16::from_be_bytes([record[3], record[4]]));
        if record[1] != 3 || len == 0 {
            return true;
        }
        let Some((payload, after)) = after.split_at_checked(len) else { return false };
        if found < MESSAGE_HEAD_BYTES {
            let taken = payload.len().min(MESSAGE_HEAD_BYTES - found);
            head[found..found + taken].copy_from_slice(&payload[..taken]);
        }
        found += len;
        let wanted = u32::from_be_bytes([0, head[1], head[2], head[3]]) as usize;
        if found >= MESSAGE_HEAD_BYTES && found >= MESSAGE_HEAD_BYTES + wanted {
            return true;
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use rustls::version::{TLS12, TLS13};

    use super::{
        super::test_support::{Authority, peer, take},
        *,
    };

    fn hello(name: &str) -> Vec<u8> {
        let config = std::sync::Arc::new(Authority::new().client(&[&TLS12, &TLS13]));
        let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
        take(&mut rustls::ClientConnection::new(config, name).unwrap())
    }

    fn named(bytes: &[u8]) -> Option<Box<str>> {
        match Hello::read(bytes) {
            HelloRead::Hello(hello) => hello.server_name,
            other => panic!("{other:?}"),
        }
    }

    /// The message of one record in records of this many bytes.
    fn in_pieces(hello: &[u8], len: usize) -> Vec<u8> {
        let pieces = hello[RECORD_HEAD_BYTES..].chunks(len);
        pieces.flat_map(|piece| [&[22, 3, 1, 0, piece.len() as u8], piece].concat()).collect()
    }

    #[test]
    fn a_hello_is_read_when_it_is_complete_and_not_before() {
        let hello = hello("A.Example");
        for cut in 0..hello.len() {
            assert!(matches!(Hello::read(&hello[..cut]), HelloRead::NeedMore), "{cut} bytes");
        }
        assert_eq!(named(&hello).as_deref(), Some("a.example"));
        assert_eq!(named(&[&hello[..], b"more"].concat()).as_deref(), Some("a.example"));
    }

    #[test]
    fn a_hello_may_come_in_many_records() {
        let hello = hello("a.example");
        for len in [1, 3, 100] {
            let bytes = in_pieces(&hello, len);
            assert!(matches!(Hello::read(&bytes[..bytes.len() - 1]), HelloRead::NeedMore));
            assert_eq!(named(&bytes).as_deref(), Some("a.example"), "records of {len}");
        }
    }

    #[test]
    fn an_address_is_no_name() {
        assert_eq!(named(&hello("127.0.0.1")), None);
        // In the place of a name, where RFC 6066 allows none.
        let (name, address) = (b"aaaaaa.example".as_slice(), b"127.127.127.12".as_slice());
        let mut hello = hello("aaaaaa.example");
        let at = hello.windows(name.len()).position(|found| found == name).unwrap();
        hello[at..at + name.len()].copy_from_slice(address);
        match Hello::read(&hello) {
            HelloRead::Hello(hello) => assert_eq!(hello.server_name, None),
            HelloRead::Refused { alert, .. } => assert_eq!(alert.first(), Some(&ALERT)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_no_hello_is_told_apart() {
        assert!(matches!(Hello::read(b"GET / HTTP/1.1\r\n"), HelloRead::PlainHttp));
        assert!(matches!(Hello::read(b""), HelloRead::NeedMore));
        let mut spoiled = hello("a.example");
        spoiled[RECORD_HEAD_BYTES] = 2;
        for bytes in [
            &spoiled[..],
            b"\x80\x2e\x01\x00\x02 SSLv2",
            &[0; 100],
            &[23, 3, 3, 0, 1, 0],
            &[22, 3, 1, 0, 0],
            &[22, 9, 9, 0, 1, 1],
            &[22, 3, 1, 0xff, 0xff, 1, 2, 3, 4],
        ] {
            match Hello::read(bytes) {
                HelloRead::Refused { alert, .. } => {
                    assert!(alert.first().is_none_or(|kind| *kind == ALERT), "{alert:?}");
                }
                HelloRead::NeedMore if bytes[3] == 0xff => {}
                other => panic!("{other:?} for {bytes:?}"),
            }
        }
    }

    #[test]
    fn the_peer_reads_why_its_name_is_refused() {
        let mut peer = peer(Authority::new().client(&[&TLS13]));
        take(&mut peer);
        let seen = super::super::test_support::give(&mut peer, UNRECOGNIZED_NAME).unwrap_err();
        let alert = rustls::AlertDescription::UnrecognisedName;
        assert_eq!(seen, rustls::Error::AlertReceived(alert));
    }
}
