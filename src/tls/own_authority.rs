//! An authority of the drill's own, and the certificates that it issues to the drill's server.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
};
use rustls::RootCertStore;

use super::{
    authorities::Roots,
    error::{CertificateError, Problem},
};

/// Certificates begin this long ago: clocks differ.
const BEFORE: Duration = Duration::from_secs(60 * 60);

/// No drill takes as long.
const AFTER: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// An authority with a P-256 key.
pub(crate) struct OwnAuthority {
    issuer: Issuer<'static, KeyPair>,
    roots: Roots,
}

/// A certificate that it has issued.
pub(crate) struct IssuedCertificate {
    /// The certificate and its private key.
    pub(crate) pem: String,
    /// The certificate, as a handshake shows it.
    pub(crate) der: Vec<u8>,
}

impl OwnAuthority {
    /// # Errors
    /// The system has no random bytes.
    pub(crate) fn new(now: SystemTime) -> Result<Self, CertificateError> {
        let mut params = params(Vec::new(), now)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.distinguished_name.push(DnType::CommonName, "Tidegate drill");
        let key = KeyPair::generate().map_err(|error| failed(&error))?;
        let certificate = params.self_signed(&key).map_err(|error| failed(&error))?;
        let mut roots = RootCertStore::empty();
        let unusable = |error: rustls::Error| Problem::UnusableAuthority(1, error.to_string());
        roots.add(certificate.der().clone()).map_err(unusable)?;
        Ok(Self { issuer: Issuer::new(params, key), roots: Roots::new(roots) })
    }

    /// Issues a certificate with a new key.
    ///
    /// # Errors
    /// The host can't be a name in a certificate.
    pub(crate) fn issue(
        &self,
        host: &str,
        now: SystemTime,
    ) -> Result<IssuedCertificate, CertificateError> {
        let params = params(vec![host.to_owned()], now)?;
        let key = KeyPair::generate().map_err(|error| failed(&error))?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(|error| failed(&error))?;
        let pem = certificate.pem() + &key.serialize_pem();
        Ok(IssuedCertificate { pem, der: certificate.der().to_vec() })
    }

    /// The authority for those who check its certificates.
    pub(crate) fn roots(&self) -> &Roots {
        &self.roots
    }
}

/// Not derived: no key gets into a log.
impl fmt::Debug for OwnAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnAuthority").finish_non_exhaustive()
    }
}

fn params(names: Vec<String>, now: SystemTime) -> Result<CertificateParams, CertificateError> {
    let mut params = CertificateParams::new(names).map_err(|error| failed(&error))?;
    params.distinguished_name = DistinguishedName::new();
    params.not_before = (now - BEFORE).into();
    params.not_after = (now + AFTER).into();
    Ok(params)
}

fn failed(error: &rcgen::Error) -> CertificateError {
    Problem::NotIssued(error.to_string()).into()
}
