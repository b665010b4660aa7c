//! TLS without a socket, as the fuzz targets and the replay of their corpora run it.
//!
//! No part of the crate's API: it shows the sessions as they are now.

use std::{sync::Arc, time::SystemTime};

use rustls::{
    ClientConfig,
    pki_types::ServerName,
    version::{TLS12, TLS13},
};

use super::{
    authorities::Roots,
    certificate::{Certificate, certificates, private_key},
    hello::{Hello, HelloRead, UNRECOGNIZED_NAME},
    own_authority::OwnAuthority,
    policy::Policy,
    provider::provider,
    sealed::Sealed,
    session,
    table::{CertificateTable, Site},
    tickets::TicketKeys,
};

/// The longest opening or record that a connection has room for.
pub const WIRE_BYTES: usize = session::WIRE_BYTES;

/// The most content that one record holds.
pub const CONTENT_BYTES_MAX: usize = session::SEALED_BYTES_MAX;

const PROTOCOLS: &[&[u8]] = &[b"http/1.1"];

/// A server's certificates: for `a.example`, for `*.b.example`, and none for `plain.example`.
pub struct Certificates {
    table: CertificateTable,
    roots: Roots,
}

/// How the first bytes of a connection are answered.
pub enum Opened {
    /// More of them are needed.
    NeedMore,
    /// A session reads them.
    Session(Box<Session>),
    /// By a 400 in plain HTTP.
    PlainHttp,
    /// By this alert, if there is one.
    Alert(Vec<u8>),
}

/// A session with what it has to send.
pub struct Session {
    session: session::Session,
    out: Sealed,
}

/// What a call of [`Session::receive`] has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the wire that are done with.
    pub consumed: usize,
    /// Bytes written to the plain room.
    pub produced: usize,
    /// There is more content than room.
    pub is_full: bool,
    /// The peer has said that nothing more comes.
    pub is_end: bool,
}

impl Certificates {
    /// New certificates. With a default, unknown names get that of `a.example`.
    ///
    /// # Panics
    /// If the system has no random bytes.
    #[must_use]
    pub fn new(has_default: bool, now: SystemTime) -> Self {
        let authority = OwnAuthority::new(now).expect("an authority");
        let site = |host: &str| {
            let pem = authority.issue(host, now).expect("a certificate").pem;
            let chain = certificates(pem.as_bytes()).expect("PEM");
            let key = private_key(pem.as_bytes()).expect("PEM");
            let certificate = Certificate::new(chain, key).expect("a pair");
            Site {
                app: host.into(),
                hosts: vec![host.to_owned()],
                certificate: Arc::new(certificate),
                policy: Policy::default(),
            }
        };
        let sites = vec![site("a.example"), site("*.b.example")];
        let default = has_default.then_some("a.example");
        let tickets = TicketKeys::generate(0).expect("random bytes");
        let plain = ["plain.example".to_owned()];
        let table = CertificateTable::new(sites, &plain, default, PROTOCOLS, &tickets);
        Self { table, roots: authority.roots().clone() }
    }

    /// How a connection that begins with these bytes is answered.
    #[must_use]
    pub fn open(&self, bytes: &[u8]) -> Opened {
        let hello = match Hello::read(bytes) {
            HelloRead::NeedMore => return Opened::NeedMore,
            HelloRead::PlainHttp => return Opened::PlainHttp,
            HelloRead::Refused { alert, .. } => return Opened::Alert(alert),
            HelloRead::Hello(hello) => hello,
        };
        match self.table.choose(hello.server_name.as_deref()) {
            None => Opened::Alert(UNRECOGNIZED_NAME.to_vec()),
            Some(site) => {
                let session = session::Session::accept(site).expect("a configuration");
                Opened::Session(Box::new(Session::new(session)))
            }
        }
    }

    /// The server's session for `a.example`.
    ///
    /// # Panics
    /// If the configuration of TLS is refused.
    #[must_use]
    pub fn server(&self) -> Session {
        let site = self.table.choose(Some("a.example")).expect("a site");
        Session::new(session::Session::accept(site).expect("a configuration"))
    }

    /// A client's session with `a.example`, which speaks TLS 1.2 alone or 1.3 alone.
    ///
    /// # Panics
    /// If the configuration of TLS is refused.
    #[must_use]
    pub fn client(&self, is_tls12: bool) -> Session {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[if is_tls12 { &TLS12 } else { &TLS13 }])
            .expect("the provider has suites for both versions")
            .with_root_certificates(Arc::clone(self.roots.store()))
            .with_no_client_auth();
        config.alpn_protocols = PROTOCOLS.iter().map(|name| name.to_vec()).collect();
        let name = ServerName::try_from("a.example").expect("a name");
        let session = session::Session::connect_with(config, name);
        Session::new(session.expect("a configuration"))
    }
}

impl Session {
    fn new(session: session::Session) -> Self {
        Self { session, out: Sealed::default() }
    }

    /// Reads records from `wire`, which begins where the call before stopped, into `plain`.
    ///
    /// # Errors
    /// Why the session has failed.
    pub fn receive(&mut self, wire: &mut [u8], plain: &mut [u8]) -> Result<Progress, &'static str> {
        let done = self.session.receive(wire, plain, &mut self.out);
        done.map_err(|error| error.reason()).map(|done| Progress {
            consumed: done.consumed,
            produced: done.produced,
            is_full: done.is_full,
            is_end: done.is_end,
        })
    }

    /// Seals content. `wire` is what [`Session::receive`] has left; returns how much of it is done
    /// with.
    ///
    /// # Errors
    /// Why nothing can be sent.
    pub fn send(&mut self, content: &[u8], wire: &mut [u8]) -> Result<usize, &'static str> {
        self.session.send(content, wire, &mut self.out).map_err(|error| error.reason())
    }

    /// Says that nothing more is sent; returns as [`Session::send`] does.
    ///
    /// # Errors
    /// Why the session has failed.
    pub fn close(&mut self, wire: &mut [u8]) -> Result<usize, &'static str> {
        self.session.close(wire, &mut self.out).map_err(|error| error.reason())
    }

    /// What is to be sent since the last call.
    pub fn take_out(&mut self) -> Vec<u8> {
        let bytes = self.out.unsent().to_vec();
        self.out.consume(bytes.len());
        bytes
    }

    /// Whether the handshake goes on.
    #[must_use]
    pub fn is_handshaking(&self) -> bool {
        self.session.is_handshaking()
    }

    /// Whether content can be sent.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.session.is_open()
    }

    /// Whether it reads and seals nothing more.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.session.has_failed()
    }
}
