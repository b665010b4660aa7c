//! What can be wrong with certificate files, and why a session ends.

use std::{
    error::Error,
    fmt,
    path::{Path, PathBuf},
};

/// Why a certificate, a key or a list of authorities can't be used. `Display` names the file, what
/// is wrong, and what to do; never a byte of a key.
#[derive(Debug)]
pub(crate) struct CertificateError {
    file: Option<PathBuf>,
    problem: Problem,
}

/// What is wrong with a file.
#[derive(Debug)]
pub(super) enum Problem {
    Unreadable(std::io::Error),
    NotRegular,
    /// Larger than this many bytes.
    TooLarge(u64),
    NoCertificate,
    NoKey,
    EncryptedKey,
    /// It isn't PEM as it should be.
    Pem(String),
    /// A certificate that can't be parsed: the first is 1.
    Malformed(usize, String),
    UnsupportedKey,
    /// The private key belongs to another certificate.
    KeyMismatch,
    /// The key's certificate isn't the first of the chain: it is this one, from 1.
    NotFirst(usize),
    /// A certificate that can't be an authority: the first is 1.
    UnusableAuthority(usize, String),
    /// No self-signed certificate can be made for a name.
    SelfSigned(String),
    /// The drill's authority can't issue a certificate.
    NotIssued(String),
}

impl CertificateError {
    /// The file is this one, if none is named yet.
    pub(super) fn in_file(mut self, file: &Path) -> Self {
        self.file.get_or_insert_with(|| file.to_owned());
        self
    }

    /// The file that it is about, if it is about one.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Whether this process may not read the file.
    pub(crate) fn is_denied(&self) -> bool {
        matches!(&self.problem, Problem::Unreadable(error)
            if error.kind() == std::io::ErrorKind::PermissionDenied)
    }

    /// Whether it is about the private key alone.
    pub(super) fn is_about_key(&self) -> bool {
        matches!(self.problem, Problem::KeyMismatch | Problem::UnsupportedKey)
    }
}

impl From<Problem> for CertificateError {
    fn from(problem: Problem) -> Self {
        Self { file: None, problem }
    }
}

impl fmt::Display for CertificateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}: ", file.display())?;
        }
        self.problem.fmt(f)
    }
}

impl Error for CertificateError {}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) => write!(f, "cannot be read: {error}"),
            Self::NotRegular => f.write_str("is not a regular file"),
            Self::TooLarge(max) => write!(f, "is larger than {} KiB", max / 1024),
            Self::NoCertificate => f.write_str(
                "holds no certificate: it needs a PEM block \"-----BEGIN CERTIFICATE-----\"",
            ),
            Self::NoKey => f.write_str(
                "holds no private key: it needs a PEM block \"-----BEGIN PRIVATE KEY-----\", \
                 \"-----BEGIN RSA PRIVATE KEY-----\" or \"-----BEGIN EC PRIVATE KEY-----\"",
            ),
            Self::EncryptedKey => f.write_str(
                "holds a private key with a passphrase: decrypt it first, for example with \
                 `openssl pkey -in FILE -out NEW`",
            ),
            Self::Pem(error) => write!(f, "is not valid PEM: {error}"),
            Self::Malformed(number, error) => {
                write!(f, "certificate {number} cannot be parsed: {error}")
            }
            Self::UnsupportedKey => f.write_str(
                "holds a private key of an unsupported kind: use RSA (2048 to 8192 bits), P-256, \
                 P-384, P-521 or Ed25519",
            ),
            Self::KeyMismatch => f.write_str(
                "the private key belongs to another certificate: both have to come from one \
                 request",
            ),
            Self::NotFirst(number) => write!(
                f,
                "the private key belongs to certificate {number} of the file: put that first, and \
                 the certificates that issued it behind it"
            ),
            Self::UnusableAuthority(number, error) => {
                write!(f, "certificate {number} cannot be an authority: {error}")
            }
            Self::SelfSigned(error) => {
                write!(f, "cannot make a self-signed certificate: {error}")
            }
            Self::NotIssued(error) => write!(f, "cannot issue a certificate: {error}"),
        }
    }
}

/// Why a session has failed. The alert for the peer is in the session's output.
#[derive(Debug)]
pub(crate) enum TlsError {
    /// The library's error: the peer broke the protocol, or one side doesn't accept the other.
    Session(rustls::Error),
    /// A record or a handshake message doesn't fit the buffer.
    TooLong,
    /// The peer has sent too much without content.
    NoContent,
    /// The session has ended before.
    Ended,
}

impl TlsError {
    /// Whether the peer doesn't trust our certificate, or the other way round.
    pub(crate) fn is_about_certificates(&self) -> bool {
        use rustls::{AlertDescription as Alert, Error::*};
        match self {
            Self::Session(InvalidCertificate(_) | NoCertificatesPresented) => true,
            Self::Session(AlertReceived(alert)) => matches!(
                alert,
                Alert::BadCertificate
                    | Alert::CertificateExpired
                    | Alert::CertificateRequired
                    | Alert::CertificateRevoked
                    | Alert::CertificateUnknown
                    | Alert::UnknownCA
                    | Alert::UnsupportedCertificate
            ),
            _ => false,
        }
    }
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> Self {
        Self::Session(error)
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session(error) => error.fmt(f),
            Self::TooLong => f.write_str("a TLS message is too long"),
            Self::NoContent => f.write_str("too many TLS records without content"),
            Self::Ended => f.write_str("the TLS session has ended"),
        }
    }
}

impl Error for TlsError {}
