//! An authority of the tests' own, foreign peers, and both ends of a connection in memory.

use std::{
    io::{Read as _, Write as _},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType, SignatureAlgorithm,
};
use rustls::{
    ClientConfig, ClientConnection, Error, RootCertStore, SupportedProtocolVersion,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
};

use super::{
    authorities::ClientCa,
    certificate::Certificate,
    error::TlsError,
    policy::Policy,
    provider::provider,
    sealed::Sealed,
    session::{Session, WIRE_BYTES},
    table::{CertificateTable, Site, SiteTls},
    tickets::TicketKeys,
};

/// An authority.
pub(crate) struct Authority {
    pub(crate) certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// An authority with a name of its own.
    pub(crate) fn new() -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(1);
        let name = format!("authority {}", MADE.fetch_add(1, Ordering::Relaxed));
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// A certificate for these names, and its key.
    pub(crate) fn issue(&self, names: &[&str]) -> (rcgen::Certificate, KeyPair) {
        self.issue_with(&params(names), KeyPair::generate().unwrap())
    }

    pub(crate) fn issue_with(
        &self,
        params: &CertificateParams,
        key: KeyPair,
    ) -> (rcgen::Certificate, KeyPair) {
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    pub(crate) fn site(&self, host: &str, policy: Policy) -> Site {
        site(host, self.certificate(&[host]), policy)
    }

    pub(crate) fn certificate(&self, names: &[&str]) -> Certificate {
        let (certificate, key) = self.issue(names);
        usable(&certificate, &key)
    }

    pub(crate) fn client_ca(&self) -> ClientCa {
        ClientCa::from_pem(self.certificate.pem().as_bytes()).unwrap()
    }

    /// A foreign client's configuration that trusts this authority.
    pub(crate) fn client(&self, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
        self.builder(versions).with_no_client_auth()
    }

    /// The same with a client certificate of this authority.
    pub(crate) fn known_client(
        &self,
        versions: &[&'static SupportedProtocolVersion],
    ) -> ClientConfig {
        let (certificate, key) = self.issue(&["a client"]);
        let chain = vec![certificate.der().clone()];
        self.builder(versions).with_client_auth_cert(chain, key_der(&key)).unwrap()
    }

    /// A foreign client that can do only this.
    pub(crate) fn client_with(&self, provider: Arc<CryptoProvider>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).unwrap();
        ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    }

    fn builder(
        &self,
        versions: &[&'static SupportedProtocolVersion],
    ) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).unwrap();
        ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
    }
}

pub(crate) fn params(names: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    let san = |name: &&str| match name.parse() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) => SanType::DnsName((*name).try_into().unwrap()),
    };
    params.subject_alt_names = names.iter().map(san).collect();
    params
}

pub(crate) fn usable(certificate: &rcgen::Certificate, key: &KeyPair) -> Certificate {
    Certificate::new(vec![certificate.der().clone()], key_der(key)).unwrap()
}

pub(crate) fn key_der(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))
}

pub(crate) fn key_of(algorithm: &'static SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).unwrap()
}

pub(crate) fn site(host: &str, certificate: Certificate, policy: Policy) -> Site {
    let (app, hosts) = (Arc::from(host), vec![host.to_owned()]);
    Site { app, hosts, certificate: Arc::new(certificate), policy }
}

/// The TLS of one site `a.example`, which is also the default.
pub(crate) fn one_site(authority: &Authority, policy: Policy, keys: &TicketKeys) -> Arc<SiteTls> {
    let site = authority.site("a.example", policy);
    let table = CertificateTable::new(vec![site], &[], Some("a.example"), &[b"http/1.1"], keys);
    Arc::clone(table.choose(None).unwrap())
}

/// A foreign client of `a.example`.
pub(crate) fn peer(config: ClientConfig) -> ClientConnection {
    let name = ServerName::try_from("a.example").unwrap();
    ClientConnection::new(Arc::new(config), name).unwrap()
}

/// A session with the buffers that a transport lends it.
pub(crate) struct Side {
    pub(crate) session: Session,
    wire: Vec<u8>,
    pub(crate) content: Vec<u8>,
    pub(crate) out: Sealed,
    /// Bytes of the plain buffer that each call is given.
    pub(crate) room: usize,
    pub(crate) is_end: bool,
}

impl Side {
    pub(crate) fn new(session: Session) -> Self {
        let (wire, content, out) = (Vec::new(), Vec::new(), Sealed::default());
        Self { session, wire, content, out, room: 64 * 1024, is_end: false }
    }

    pub(crate) fn server(site: &SiteTls) -> Self {
        Self::new(Session::accept(site).unwrap())
    }

    /// Receives these bytes in one piece.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<(), TlsError> {
        self.wire.extend_from_slice(bytes);
        loop {
            let mut plain = vec![0; self.room];
            let window = self.wire.len().min(WIRE_BYTES);
            let progress =
                self.session.receive(&mut self.wire[..window], &mut plain, &mut self.out)?;
            self.wire.drain(..progress.consumed);
            self.content.extend_from_slice(&plain[..progress.produced]);
            self.is_end |= progress.is_end;
            let is_idle = progress.consumed == 0 && !progress.is_full;
            if is_idle || (self.wire.is_empty() && !progress.is_full) {
                return Ok(());
            }
        }
    }

    pub(crate) fn send(&mut self, content: &[u8]) {
        let consumed = self.session.send(content, &mut self.wire, &mut self.out).unwrap();
        self.wire.drain(..consumed);
    }

    pub(crate) fn close(&mut self) {
        let consumed = self.session.close(&mut self.wire, &mut self.out).unwrap();
        self.wire.drain(..consumed);
    }

    pub(crate) fn take_out(&mut self) -> Vec<u8> {
        let bytes = self.out.unsent().to_vec();
        self.out.consume(bytes.len());
        bytes
    }

    /// Whether it holds no bytes.
    pub(crate) fn holds_nothing(&self) -> bool {
        self.wire.is_empty() && self.out.is_empty() && !self.session.has_leftover()
    }
}

/// What a foreign client has to send now.
pub(crate) fn take(peer: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while peer.wants_write() {
        peer.write_tls(&mut bytes).unwrap();
    }
    bytes
}

/// Gives bytes to a foreign client. Returns the content, and whether the end was clean.
pub(crate) fn give(peer: &mut ClientConnection, mut bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let mut content = Vec::new();
    while !bytes.is_empty() {
        peer.read_tls(&mut bytes).unwrap();
        peer.process_new_packets()?;
        // Nothing to read is an error of this interface.
        let _ = peer.reader().read_to_end(&mut content);
    }
    Ok(content)
}

/// Exchanges bytes in pieces of this size until both are silent. Returns what the peer has read.
pub(crate) fn run(
    peer: &mut ClientConnection,
    side: &mut Side,
    piece: usize,
) -> Result<Vec<u8>, Box<RunError>> {
    let mut content = Vec::new();
    loop {
        let (mut to_side, mut is_silent) = (take(peer), true);
        for bytes in to_side.chunks_mut(piece) {
            is_silent = false;
            let fed = side.feed(bytes);
            if let Err(error) = fed {
                let seen = give(peer, &side.take_out()).err();
                return Err(Box::new(RunError { error, seen }));
            }
        }
        for bytes in side.take_out().chunks(piece) {
            is_silent = false;
            let read = give(peer, bytes);
            content.extend(
                read.map_err(|seen| {
                    Box::new(RunError { error: TlsError::Ended, seen: Some(seen) })
                })?,
            );
        }
        if is_silent {
            return Ok(content);
        }
    }
}

/// Why [`run`] ended, and what the peer saw of it.
#[derive(Debug)]
pub(crate) struct RunError {
    pub(crate) error: TlsError,
    pub(crate) seen: Option<Error>,
}

/// The peer sends content.
pub(crate) fn write(peer: &mut ClientConnection, content: &[u8]) {
    peer.writer().write_all(content).unwrap();
}

pub(crate) fn der(certificate: &rcgen::Certificate) -> CertificateDer<'static> {
    certificate.der().clone()
}
