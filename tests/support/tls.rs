//! TLS for upstreams of tests: authorities, certificates, and a socket with or without it.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::{
    HandshakeKind, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};
use socket2::Socket;

/// An authority of a test's own.
pub struct Authority {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key.
pub struct Identity {
    chain: CertificateDer<'static>,
    key: KeyPair,
    pem: String,
}

impl Authority {
    /// An authority of this name.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// Its certificate, in PEM.
    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// A certificate for these names, which may be addresses.
    pub fn issue(&self, names: &[&str]) -> Identity {
        self.sign(&params(names))
    }

    /// The same, expired a day ago.
    pub fn issue_expired(&self, names: &[&str]) -> Identity {
        let (mut params, day) = (params(names), Duration::from_secs(86_400));
        params.not_before = (SystemTime::now() - 9 * day).into();
        params.not_after = (SystemTime::now() - day).into();
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Identity::new(&certificate, key)
    }
}

impl Identity {
    fn new(certificate: &rcgen::Certificate, key: KeyPair) -> Self {
        Self { chain: certificate.der().clone(), pem: certificate.pem(), key }
    }

    /// A certificate that is signed by its own key.
    pub fn self_signed(names: &[&str]) -> Self {
        let key = KeyPair::generate().expect("a key");
        let certificate = params(names).self_signed(&key).expect("a certificate");
        Self::new(&certificate, key)
    }

    /// The certificate, in PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The key, in PEM.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// A server with this certificate.
    pub fn server(&self) -> ServerConfig {
        self.server_that_wants(None, rustls::DEFAULT_VERSIONS)
    }

    /// A server that speaks TLS 1.2 only.
    pub fn old_server(&self) -> ServerConfig {
        self.server_that_wants(None, &[&rustls::version::TLS12])
    }

    /// A server that demands certificates of this authority from its clients.
    pub fn server_for_clients_of(&self, authority: &Authority) -> ServerConfig {
        self.server_that_wants(Some(authority), rustls::DEFAULT_VERSIONS)
    }

    fn server_that_wants(
        &self,
        clients: Option<&Authority>,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> ServerConfig {
        let builder = ServerConfig::builder_with_provider(provider());
        let builder = builder.with_protocol_versions(versions).expect("versions");
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.certificate.der().clone()).expect("an authority");
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
                builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
            }
        };
        let key = PrivatePkcs8KeyDer::from(self.key.serialize_der());
        let chain = vec![self.chain.clone()];
        let config = builder.with_single_cert(chain, PrivateKeyDer::Pkcs8(key));
        let mut config = config.expect("a certificate with its key");
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config
    }
}

fn params(names: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    let san = |name: &&str| match name.parse() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) => SanType::DnsName((*name).try_into().expect("a name")),
    };
    params.subject_alt_names = names.iter().map(san).collect();
    params
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// An accepted connection, with or without TLS.
pub(super) enum Wire {
    Plain(Socket),
    Tls(Box<StreamOwned<ServerConnection, Socket>>),
}

/// What a handshake was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shaken {
    /// An earlier session went on.
    pub is_resumed: bool,
    /// The server name that was asked for (SNI).
    pub name: Option<String>,
    /// The protocol that was agreed on (ALPN).
    pub protocol: Option<String>,
}

impl Wire {
    pub(super) fn new(socket: Socket, tls: Option<&Arc<ServerConfig>>) -> Self {
        match tls {
            None => Self::Plain(socket),
            Some(config) => {
                let conn = ServerConnection::new(Arc::clone(config)).expect("a session");
                Self::Tls(Box::new(StreamOwned::new(conn, socket)))
            }
        }
    }

    pub(super) fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => &stream.sock,
        }
    }

    /// What the handshake was, once it is over.
    pub(super) fn shaken(&self) -> Option<Shaken> {
        let Self::Tls(stream) = self else { return None };
        let conn = &stream.conn;
        let kind = conn.handshake_kind().filter(|_| !conn.is_handshaking())?;
        let protocol = conn.alpn_protocol().map(|it| String::from_utf8_lossy(it).into_owned());
        let name = conn.server_name().map(str::to_owned);
        Some(Shaken { is_resumed: kind == HandshakeKind::Resumed, name, protocol })
    }

    /// Says that nothing more comes, in the words of TLS.
    pub(super) fn say_end(&mut self) {
        if let Self::Tls(stream) = self {
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    }

    /// Changes the keys, which the client is told by a record without content.
    pub(super) fn change_keys(&mut self) {
        if let Self::Tls(stream) = self {
            stream.conn.refresh_traffic_keys().expect("TLS 1.3");
            let _ = stream.flush();
        }
    }

    pub(super) fn half_close(&mut self) {
        self.say_end();
        let _ = self.socket().shutdown(Shutdown::Write);
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}
