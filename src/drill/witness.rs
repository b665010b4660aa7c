//! A client apart from the load, which sees what an action does to TLS. Blocks, with a time-out.
//!
//! Before the action it makes a session, and connections that stay open. After the action it
//! checks that the session is resumed, that the connections still answer, and which certificate
//! new handshakes show.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use super::{
    plan::{ClientKind, Target},
    request::{LIMITS, write_batch},
    trust::{ClientsTls, HostTls},
    wire::{Agreed, Wire, reason},
};
use crate::{
    http::{
        FieldTable,
        h1::{self, ClientEvent},
    },
    tls::ClientTls,
};

const BUFFER_BYTES: usize = 64 << 10;

/// A client of one host.
#[derive(Clone, Debug)]
pub(crate) struct Witness {
    address: SocketAddr,
    target: Target,
    tls: HostTls,
    /// How long one operation may take.
    patience: Duration,
}

/// What a witness has from before an action.
pub(crate) struct Kept {
    /// Keeps one session.
    session: ClientTls,
    connections: Vec<Wire<TcpStream>>,
}

impl Witness {
    /// A client of one target of `tls`.
    pub(crate) fn new(
        address: SocketAddr,
        tls: &ClientsTls,
        (at, target): (usize, &Target),
        patience: Duration,
    ) -> Self {
        Self { address, target: target.clone(), tls: tls.of(at).clone(), patience }
    }

    pub(crate) fn host(&self) -> &str {
        &self.target.host
    }

    /// Makes a session, and this many connections that stay open.
    ///
    /// # Errors
    /// A handshake or a request has failed.
    pub(crate) fn keep(&self, connections: usize) -> Result<Kept, String> {
        let session = self.tls.full.with_sessions();
        // With the answer comes the ticket.
        self.ask(&mut self.connect(&session)?.0)?;
        let connect = || -> Result<Wire<TcpStream>, String> {
            let (mut wire, _) = self.connect(&self.tls.full)?;
            self.ask(&mut wire)?;
            Ok(wire)
        };
        let connections = (0..connections).map(|_| connect()).collect::<Result<_, _>>()?;
        Ok(Kept { session, connections })
    }

    /// Whether a new connection resumes the kept session. It answers in any case.
    ///
    /// # Errors
    /// The handshake or the request has failed.
    pub(crate) fn resumes(&self, kept: &Kept) -> Result<bool, String> {
        let (mut wire, agreed) = self.connect(&kept.session)?;
        self.ask(&mut wire)?;
        Ok(agreed.is_resumed)
    }

    /// Sends a request on each connection that was kept.
    ///
    /// # Errors
    /// A connection doesn't answer any more, or says that it ends.
    pub(crate) fn ask_again(&self, kept: Kept) -> Result<(), String> {
        kept.connections.into_iter().try_for_each(|mut wire| self.ask(&mut wire))
    }

    /// The certificate that a new handshake shows.
    ///
    /// # Errors
    /// The handshake has failed.
    pub(crate) fn shown(&self) -> Result<Vec<u8>, String> {
        self.connect(&self.tls.full).map(|(_, agreed)| agreed.certificate)
    }

    fn connect(&self, tls: &ClientTls) -> Result<(Wire<TcpStream>, Agreed), String> {
        TcpStream::connect_timeout(&self.address, self.patience)
            .and_then(|socket| over(socket, Some(tls), self.patience))
            .and_then(|(wire, agreed)| Ok((wire, agreed.ok_or(ErrorKind::InvalidInput)?)))
            .map_err(|error| format!("{}: handshake: {}", self.target.host, said(&error)))
    }

    /// Sends a request and reads the answer; the connection has to be kept.
    fn ask(&self, wire: &mut Wire<TcpStream>) -> Result<(), String> {
        let failed = |why: &str| format!("{}: request: {why}", self.target.host);
        let mut out = Vec::new();
        let (mut exchange, _) = write_batch(ClientKind::Kept, &self.target, &mut out);
        wire.write_all(&out).map_err(|error| failed(&said(&error)))?;
        let (mut input, mut buffer) = (Vec::new(), vec![0; BUFFER_BYTES]);
        while !is_answered(&mut exchange, &mut input).map_err(|why| failed(&why))? {
            match wire.read(&mut buffer).map_err(|error| failed(&said(&error)))? {
                0 => return Err(failed("closed")),
                len => input.extend_from_slice(&buffer[..len]),
            }
        }
        if exchange.reusable() { Ok(()) } else { Err(failed("the server ends the connection")) }
    }
}

/// Makes the handshake on a socket that is connected, if there is one.
pub(super) fn over(
    socket: TcpStream,
    tls: Option<&ClientTls>,
    patience: Duration,
) -> io::Result<(Wire<TcpStream>, Option<Agreed>)> {
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(patience))?;
    socket.set_write_timeout(Some(patience))?;
    let mut wire = Wire::new(socket, tls)?;
    let agreed = wire.shake_hands()?;
    Ok((wire, agreed))
}

/// What an error of a blocking socket says.
pub(super) fn said(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => "it does not answer in time".to_owned(),
        _ => reason(error),
    }
}

/// Whether the answer is complete.
fn is_answered(exchange: &mut h1::Client, input: &mut Vec<u8>) -> Result<bool, String> {
    let mut at = 0;
    loop {
        let mut fields = FieldTable::new();
        let (used, event) = exchange.next_event(&input[at..], &mut fields, &LIMITS);
        at += used;
        match event {
            ClientEvent::End => return Ok(true),
            ClientEvent::NeedMore => {
                input.drain(..at);
                return Ok(false);
            }
            ClientEvent::Closed | ClientEvent::Truncated => return Err("closed".to_owned()),
            ClientEvent::Refused(refused) => return Err(refused.reason.to_string()),
            ClientEvent::Response(_) | ClientEvent::Interim(_) | ClientEvent::Content(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, sync::Arc, thread};

    use super::{super::trust::Trust, *};
    use crate::tls::{
        Policy, SiteTls, TicketKeys,
        test_support::{Authority, one_site},
    };

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    const LAST: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

    fn site(keys: &TicketKeys) -> Arc<SiteTls> {
        one_site(&Authority::new(), Policy::default(), keys)
    }

    /// Serves one connection with each site: these answers, then the end.
    fn served(sites: Vec<Arc<SiteTls>>, answers: &'static [&'static [u8]]) -> Witness {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let host = "a.example".to_owned();
        let target = Target { host, path: "/".to_owned(), is_large: false, delay: Duration::ZERO };
        let tls = ClientsTls::new(std::slice::from_ref(&target), &Trust::Insecure).unwrap();
        thread::spawn(move || {
            for site in sites {
                let mut wire = Wire::accept(listener.accept().unwrap().0, &site);
                wire.shake_hands().unwrap();
                for answer in answers {
                    if !matches!(wire.read(&mut [0; 1024]), Ok(1..)) {
                        break;
                    }
                    wire.write_all(answer).unwrap();
                }
            }
        });
        Witness::new(address, &tls, (0, &target), Duration::from_secs(20))
    }

    #[test]
    fn a_session_is_resumed_by_a_server_that_has_the_keys_of_its_ticket() {
        let keys = || TicketKeys::generate(0).unwrap();
        let (one, other) = (keys(), keys());
        let witness = served(vec![site(&one), site(&one), site(&other)], &[ANSWER]);
        let kept = witness.keep(0).unwrap();
        assert_eq!(witness.resumes(&kept), Ok(true));
        assert_eq!(witness.resumes(&kept), Ok(false), "a process with keys of its own");
    }

    #[test]
    fn a_new_handshake_shows_the_certificate_of_now() {
        let keys = TicketKeys::generate(0).unwrap();
        let (before, after) = (site(&keys), site(&keys));
        let witness = served(vec![Arc::clone(&before), Arc::clone(&after)], &[]);
        assert_eq!(witness.shown(), Ok(before.chain()));
        assert_eq!(witness.shown(), Ok(after.chain()));
        assert_ne!(before.chain(), after.chain());
    }

    #[test]
    fn a_connection_that_was_touched_is_noticed() {
        let keys = TicketKeys::generate(0).unwrap();
        let sites = || vec![site(&keys), site(&keys)];
        let witness = served(sites(), &[ANSWER, ANSWER]);
        let kept = witness.keep(1).unwrap();
        assert_eq!(witness.ask_again(kept), Ok(()));
        let witness = served(sites(), &[ANSWER]);
        let kept = witness.keep(1).unwrap();
        let gone = witness.ask_again(kept).unwrap_err();
        assert!(gone.starts_with("a.example: request: "), "{gone}");
        let witness = served(sites(), &[ANSWER, LAST]);
        let kept = witness.keep(1).unwrap();
        let ends = witness.ask_again(kept);
        assert_eq!(ends, Err("a.example: request: the server ends the connection".to_owned()));
    }
}
