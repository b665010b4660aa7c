//! TLS to servers: whom to trust, and what to show them.

use std::{fmt, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    version::{TLS12, TLS13},
};

use super::{
    authorities::Roots,
    certificate::Certificate,
    error::{CertificateError, Problem},
    provider::provider,
};

/// How to speak TLS to one server.
#[derive(Clone)]
pub(crate) struct ClientTls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

/// Sessions that a store keeps: the tickets of one server.
const SESSIONS_MAX: usize = 8;

/// How a server's certificate is checked.
pub(crate) enum ServerCheck<'a> {
    /// It has to be valid, for the server's name, and signed by one of these authorities.
    Roots(&'a Roots),
    /// It isn't: any server is taken for the right one.
    Insecure,
}

impl ClientTls {
    /// TLS to the server of this name (a host name or an address, an IPv6 address in brackets or
    /// not), with a certificate of our own if it is given one. `None` when the name is neither.
    ///
    /// Sessions aren't kept, unless [`ClientTls::with_sessions`] adds a store.
    ///
    /// # Errors
    /// There are no authorities to check against, or our certificate can't be used.
    pub(crate) fn new(
        name: &str,
        check: &ServerCheck<'_>,
        own: Option<&Certificate>,
        protocols: &[&[u8]],
    ) -> Result<Option<Self>, CertificateError> {
        let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
        let Ok(name) = ServerName::try_from(bare.to_owned()) else { return Ok(None) };
        let verifier: Arc<dyn ServerCertVerifier> = match check {
            ServerCheck::Insecure => Arc::new(NoVerifier),
            ServerCheck::Roots(roots) => {
                WebPkiServerVerifier::builder_with_provider(Arc::clone(roots.store()), provider())
                    .build()
                    .map_err(|_| Problem::NoCertificate)?
            }
        };
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13, &TLS12])
            .expect("the provider has suites for both versions")
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match own {
            None => config.with_no_client_auth(),
            Some(own) => {
                let certified = Arc::clone(own.certified());
                let resolver = rustls::sign::SingleCertAndKey::from(certified);
                config.with_client_cert_resolver(Arc::new(resolver))
            }
        };
        config.resumption = Resumption::disabled();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Ok(Some(Self { config: Arc::new(config), name }))
    }

    /// The same with a store of sessions of its own, so that a later handshake can resume an
    /// earlier one. The store has a lock: one thread alone should use it.
    pub(crate) fn with_sessions(&self) -> Self {
        let mut config = ClientConfig::clone(&self.config);
        config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
        Self { config: Arc::new(config), name: self.name.clone() }
    }

    pub(super) fn config(&self) -> (&Arc<ClientConfig>, &ServerName<'static>) {
        (&self.config, &self.name)
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nothing of the configuration: it holds a private key.
        f.debug_tuple("ClientTls").field(&self.name).finish()
    }
}

/// Takes every certificate, whose key has to sign the handshake all the same.
#[derive(Debug)]
struct NoVerifier;

impl ServerCertVerifier for NoVerifier {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
