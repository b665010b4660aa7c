//! A certificate chain with its private key, and what the certificate says.
//!
//! rustls-webpki shows neither validity nor addresses, so x509-cert reads them: pure Rust of the
//! RustCrypto project, with a third of the dependencies of x509-parser.
//!
//! The chain and key go to rustls unchecked by it ([`CertifiedKey::new`]): its own check refuses a
//! critical extension that it doesn't know, as in the certificates that answer ACME's tls-alpn-01.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{
    SignatureAlgorithm,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject as _},
    },
    sign::CertifiedKey,
};
use x509_cert::{
    der::Decode as _,
    ext::pkix::{SubjectAltName, name::GeneralName},
    spki::SubjectPublicKeyInfoOwned,
};

use super::{
    error::{CertificateError, Problem},
    names::Name,
    provider::{provider, sha256},
};

/// A certificate that sessions can use.
pub(crate) struct Certificate {
    names: Vec<Name>,
    issuer: String,
    not_before: SystemTime,
    not_after: SystemTime,
    fingerprint: [u8; 32],
    file: Option<PathBuf>,
    /// For a process that takes over.
    key: PrivateKeyDer<'static>,
    certified: Arc<CertifiedKey>,
}

/// A chain and its key as DER, for another process. Has no `Debug`: no key gets into a log.
pub(crate) struct ExportedCertificate {
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) key: Vec<u8>,
}

/// Whether a certificate is valid at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Validity {
    /// For this long.
    Valid(Duration),
    /// It begins in this long.
    NotYet(Duration),
    /// It has been over for this long.
    Expired(Duration),
}

impl Certificate {
    /// A chain, the server's certificate first, and its key.
    ///
    /// # Errors
    /// The chain is empty, can't be parsed, or doesn't fit the key.
    pub(super) fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, CertificateError> {
        let parsed: Vec<_> = chain
            .iter()
            .enumerate()
            .map(|(at, der)| parse(der).map_err(|error| Problem::Malformed(at + 1, error)))
            .collect::<Result<_, _>>()?;
        let leaf = parsed.first().ok_or(Problem::NoCertificate)?;
        let signing = provider().key_provider.load_private_key(key.clone_key());
        let signing = signing.map_err(|_| Problem::UnsupportedKey)?;
        if let Some(public) = signing.public_key()
            && let Ok(public) = SubjectPublicKeyInfoOwned::from_der(&public)
        {
            match parsed.iter().position(|certificate| certificate.public == public) {
                Some(0) => {}
                Some(at) => return Err(Problem::NotFirst(at + 1).into()),
                None => return Err(Problem::KeyMismatch.into()),
            }
        }
        Ok(Self {
            names: leaf.names.clone(),
            issuer: leaf.issuer.clone(),
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            fingerprint: sha256(&chain[0]),
            file: None,
            key,
            certified: Arc::new(CertifiedKey::new(chain, signing)),
        })
    }

    /// Its chain and its key.
    pub(crate) fn export(&self) -> ExportedCertificate {
        let chain = self.certified.cert.iter().map(|der| der.to_vec()).collect();
        ExportedCertificate { chain, key: self.key.secret_der().to_vec() }
    }

    /// The certificate of another process, which has read its chain from this file; `None` if this
    /// one can't use it.
    pub(crate) fn import(exported: ExportedCertificate, file: Option<&Path>) -> Option<Self> {
        let chain = exported.chain.into_iter().map(CertificateDer::from).collect();
        let key = PrivateKeyDer::try_from(exported.key).ok()?;
        let imported = Self::new(chain, key).ok()?;
        Some(Self { file: file.map(Path::to_owned), ..imported })
    }

    /// The same, read from this file.
    pub(super) fn in_file(self, file: &Path) -> Self {
        Self { file: Some(file.to_owned()), ..self }
    }

    /// The file that its chain was read from; none if it was made here.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// The names that it is for.
    pub(crate) fn names(&self) -> &[Name] {
        &self.names
    }

    /// Whether it is for this host: lower case, or a pattern `*.NAME`.
    pub(crate) fn covers(&self, host: &str) -> bool {
        self.names.iter().any(|name| name.covers(host))
    }

    /// The name of the authority that signed it.
    pub(crate) fn issuer(&self) -> &str {
        &self.issuer
    }

    /// How long it is valid in all.
    pub(crate) fn lifetime(&self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }

    /// When it ends.
    pub(crate) fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether it is valid at this time.
    pub(crate) fn validity(&self, now: SystemTime) -> Validity {
        if let Ok(left) = self.not_before.duration_since(now)
            && !left.is_zero()
        {
            return Validity::NotYet(left);
        }
        match self.not_after.duration_since(now) {
            Ok(left) => Validity::Valid(left),
            Err(past) => Validity::Expired(past.duration()),
        }
    }

    /// SHA-256 of the certificate.
    pub(crate) fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    /// The kind of its key.
    pub(crate) fn key_kind(&self) -> &'static str {
        match self.certified.key.algorithm() {
            SignatureAlgorithm::RSA => "RSA",
            SignatureAlgorithm::ECDSA => "ECDSA",
            SignatureAlgorithm::ED25519 => "Ed25519",
            _ => "other",
        }
    }

    pub(super) fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }
}

/// The same certificate with the same chain. Its key is the same, too: it fits.
impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.certified.cert == other.certified.cert
    }
}

/// Not derived: no key gets into a log.
impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("names", &self.names).finish_non_exhaustive()
    }
}

/// What a certificate says.
pub(super) struct Parsed {
    pub(super) names: Vec<Name>,
    issuer: String,
    not_before: SystemTime,
    not_after: SystemTime,
    public: SubjectPublicKeyInfoOwned,
}

/// # Errors
/// It is no X.509 certificate; why, in words.
pub(super) fn parse(der: &[u8]) -> Result<Parsed, String> {
    let certificate = x509_cert::Certificate::from_der(der).map_err(|error| error.to_string())?;
    let certificate = certificate.tbs_certificate();
    let names = certificate.get_extension::<SubjectAltName>().map_err(|error| error.to_string())?;
    let names = names.map(|(_, names)| names.0).unwrap_or_default();
    let validity = certificate.validity();
    Ok(Parsed {
        names: names.iter().filter_map(name).collect(),
        issuer: certificate.issuer().to_string(),
        not_before: UNIX_EPOCH + validity.not_before.to_unix_duration(),
        not_after: UNIX_EPOCH + validity.not_after.to_unix_duration(),
        public: certificate.subject_public_key_info().clone(),
    })
}

fn name(name: &GeneralName) -> Option<Name> {
    match name {
        GeneralName::DnsName(name) => Some(Name::dns(name.as_str())),
        GeneralName::IpAddress(address) => Name::ip(address.as_bytes()),
        _ => None,
    }
}

/// All certificates of a PEM text, in order; at least one.
pub(super) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(Problem::NoCertificate.into()),
        Ok(found) => Ok(found),
        Err(error) => Err(pem_problem(&error).into()),
    }
}

/// The first private key of a PEM text.
pub(super) fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, CertificateError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        pem::Error::NoItemsFound if is_encrypted(pem) => Problem::EncryptedKey.into(),
        pem::Error::NoItemsFound => Problem::NoKey.into(),
        error => pem_problem(&error).into(),
    })
}

fn is_encrypted(pem: &[u8]) -> bool {
    const BEGIN: &[u8] = b"-----BEGIN ENCRYPTED PRIVATE KEY-----";
    pem.windows(BEGIN.len()).any(|found| found == BEGIN)
}

/// Without what the file holds: it may be a key.
fn pem_problem(error: &pem::Error) -> Problem {
    Problem::Pem(match error {
        pem::Error::MissingSectionEnd { .. } => "a block has no END line".to_owned(),
        pem::Error::IllegalSectionStart { .. } => "a BEGIN line is malformed".to_owned(),
        pem::Error::Base64Decode(_) => "a block is not base64".to_owned(),
        _ => "a block cannot be read".to_owned(),
    })
}
