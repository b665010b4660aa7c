//! TLS of the load and of the servers: their certificates, and connections that may be secured.
//!
//! All servers are asked for the same: TLS 1.3, AES-128-GCM, X25519. The load checks no
//! certificate: its core should not be the slower one.

use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, RsaKeySize};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, NamedGroup, SignatureScheme, StreamOwned};

/// The kind of a server's key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Key {
    P256,
    Rsa2048,
}

/// Every kind.
pub(crate) const KEYS: [Key; 2] = [Key::P256, Key::Rsa2048];

impl Key {
    fn name(self) -> &'static str {
        match self {
            Key::P256 => "p256",
            Key::Rsa2048 => "rsa2048",
        }
    }

    /// The certificate of this key in a folder.
    pub(crate) fn certificate(self, folder: &Path) -> PathBuf {
        folder.join(self.name()).with_extension("pem")
    }

    /// The key itself.
    pub(crate) fn key(self, folder: &Path) -> PathBuf {
        folder.join(self.name()).with_extension("key")
    }

    /// Both in one file, as HAProxy wants them.
    pub(crate) fn both(self, folder: &Path) -> PathBuf {
        folder.join(self.name()).with_extension("both")
    }

    /// Makes a key and its certificate for these hosts.
    pub(crate) fn write(self, folder: &Path, hosts: &[&str]) -> io::Result<()> {
        let key = match self {
            Key::P256 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
            Key::Rsa2048 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
        };
        let key = key.map_err(io::Error::other)?;
        let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let params = CertificateParams::new(hosts).map_err(io::Error::other)?;
        let certificate = params.self_signed(&key).map_err(io::Error::other)?.pem();
        fs::write(self.certificate(folder), &certificate)?;
        fs::write(self.key(folder), key.serialize_pem())?;
        fs::write(self.both(folder), certificate + &key.serialize_pem())
    }
}

/// Whether the connections of a load go on with earlier sessions.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Sessions {
    New,
    Resumed,
}

/// What the load's connections are made with.
#[derive(Clone, Debug)]
pub(crate) struct Secured {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Secured {
    pub(crate) fn new(host: &'static str, sessions: Sessions) -> io::Result<Secured> {
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
        provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
        let provider = Arc::new(provider);
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]);
        let mut config = builder
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Unchecked(provider)))
            .with_no_client_auth();
        config.resumption = match sessions {
            Sessions::New => Resumption::disabled(),
            Sessions::Resumed => Resumption::store(Arc::new(Tickets::default())),
        };
        let name = ServerName::try_from(host).map_err(io::Error::other)?;
        Ok(Secured { config: Arc::new(config), name })
    }
}

/// A connection of the load.
pub(crate) enum Stream<S: Read + Write> {
    Plain(S),
    Tls(Box<StreamOwned<ClientConnection, S>>),
}

impl<S: Read + Write> Stream<S> {
    pub(crate) fn new(socket: S, secured: Option<&Secured>) -> io::Result<Stream<S>> {
        let Some(Secured { config, name }) = secured else { return Ok(Stream::Plain(socket)) };
        let session = ClientConnection::new(Arc::clone(config), name.clone());
        let session = session.map_err(io::Error::other)?;
        Ok(Stream::Tls(Box::new(StreamOwned::new(session, socket))))
    }

    /// Whether a short read has emptied the socket. A record is at most 16 KiB.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self, Stream::Plain(_))
    }
}

impl<S: Read + Write> Read for Stream<S> {
    fn read(&mut self, input: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.read(input),
            Stream::Tls(stream) => stream.read(input),
        }
    }
}

impl<S: Read + Write> Write for Stream<S> {
    fn write(&mut self, output: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.write(output),
            Stream::Tls(stream) => stream.write(output),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Plain(socket) => socket.flush(),
            Stream::Tls(stream) => stream.flush(),
        }
    }
}

/// Tickets of TLS 1.3, each used once.
#[derive(Default)]
struct Tickets(Mutex<Vec<Tls13ClientSessionValue>>);

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tickets")
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(ticket);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

/// Checks nothing.
#[derive(Debug)]
struct Unchecked(Arc<CryptoProvider>);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
