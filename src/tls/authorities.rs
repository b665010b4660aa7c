//! Authorities: whose certificates are accepted, of clients and of servers.

use std::sync::Arc;

use rustls::{
    RootCertStore,
    pki_types::CertificateDer,
    server::{VerifierBuilderError, WebPkiClientVerifier, danger::ClientCertVerifier},
};

use super::{
    certificate::certificates,
    error::{CertificateError, Problem},
    provider::{Digest, provider, sha256},
};

/// The authorities whose client certificates are accepted.
#[derive(Clone)]
pub(crate) struct ClientCa {
    roots: Arc<RootCertStore>,
    certificates: Arc<[CertificateDer<'static>]>,
    /// SHA-256 of all the certificates, in order.
    digest: Digest,
}

impl PartialEq for ClientCa {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

/// Whether a client has to show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientAuth {
    Require,
    Optional,
}

/// Authorities that servers' certificates are checked against.
#[derive(Clone)]
pub(crate) struct Roots(Arc<RootCertStore>);

impl Roots {
    pub(super) fn new(roots: RootCertStore) -> Self {
        Self(Arc::new(roots))
    }

    pub(super) fn store(&self) -> &Arc<RootCertStore> {
        &self.0
    }
}

impl ClientCa {
    /// # Errors
    /// The text is no PEM of certificates, or one of them can't be an authority.
    pub(super) fn from_pem(pem: &[u8]) -> Result<Self, CertificateError> {
        Self::new(certificates(pem)?)
    }

    /// The authorities of another process; `None` if this one can't use them.
    pub(crate) fn import(certificates: Vec<Vec<u8>>) -> Option<Self> {
        Self::new(certificates.into_iter().map(CertificateDer::from).collect()).ok()
    }

    /// The certificates as DER, for another process.
    pub(crate) fn export(&self) -> Vec<Vec<u8>> {
        self.certificates.iter().map(|der| der.to_vec()).collect()
    }

    fn new(certificates: Vec<CertificateDer<'static>>) -> Result<Self, CertificateError> {
        let mut all = Vec::new();
        for certificate in &certificates {
            all.extend_from_slice(&(certificate.len() as u64).to_be_bytes());
            all.extend_from_slice(certificate);
        }
        let roots = Arc::new(store(&certificates)?);
        let ca = Self { roots, certificates: certificates.into(), digest: sha256(&all) };
        ca.verifier(ClientAuth::Require).map_err(|error| Problem::Pem(error.to_string()))?;
        Ok(ca)
    }

    /// SHA-256 of all the certificates, in order.
    pub(super) fn digest(&self) -> &Digest {
        &self.digest
    }

    pub(super) fn verifier(
        &self,
        auth: ClientAuth,
    ) -> Result<Arc<dyn ClientCertVerifier>, VerifierBuilderError> {
        let builder =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), provider());
        match auth {
            ClientAuth::Require => builder.build(),
            ClientAuth::Optional => builder.allow_unauthenticated().build(),
        }
    }
}

/// The certificates of a PEM text as authorities.
pub(super) fn roots(pem: &[u8]) -> Result<RootCertStore, CertificateError> {
    store(&certificates(pem)?)
}

fn store(certificates: &[CertificateDer<'static>]) -> Result<RootCertStore, CertificateError> {
    let mut roots = RootCertStore::empty();
    for (at, certificate) in certificates.iter().enumerate() {
        roots
            .add(certificate.clone())
            .map_err(|error| Problem::UnusableAuthority(at + 1, error.to_string()))?;
    }
    Ok(roots)
}
