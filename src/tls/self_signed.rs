//! Self-signed certificates, for `localhost` and first steps.

use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{
    certificate::Certificate,
    error::{CertificateError, Problem},
};

/// Begins this long ago: clocks differ.
const BEFORE: Duration = Duration::from_secs(24 * 60 * 60);

/// Some clients refuse certificates that are valid for more than 398 days.
const AFTER: Duration = Duration::from_secs(397 * 24 * 60 * 60 - BEFORE.as_secs());

/// Makes a certificate with a new P-256 key for these host names and addresses.
///
/// # Errors
/// One of them can't be a name in a certificate.
pub(crate) fn self_signed(
    names: &[String],
    now: SystemTime,
) -> Result<Certificate, CertificateError> {
    let failed = |error: rcgen::Error| Problem::SelfSigned(error.to_string());
    let bare = |name: &String| name.trim_matches(['[', ']']).to_owned();
    let mut params =
        CertificateParams::new(names.iter().map(bare).collect::<Vec<_>>()).map_err(failed)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Tidegate self-signed");
    params.not_before = (now - BEFORE).into();
    params.not_after = (now + AFTER).into();
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Certificate::new(vec![certificate.der().clone()], key)
}
