//! Reads certificates, keys and authorities from files.

use std::{
    fmt,
    fs::File,
    io::Read as _,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::fs::OFlags;
use rustls::RootCertStore;

use super::{
    authorities::{ClientCa, Roots, roots},
    certificate::{Certificate, certificates, private_key},
    error::{CertificateError, Problem},
};

/// A larger file is refused: the largest in use are bundles of all public authorities, 250 KiB.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Where systems keep the public authorities: Debian, Red Hat, SUSE, Alpine.
const SYSTEM_ROOTS: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Changes with a file: its device, inode, length, and time of change with nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileStamp {
    device: u64,
    inode: u64,
    length: u64,
    changed: (i64, i64),
}

impl FileStamp {
    /// The stamp of the file that a path leads to; none if it can't be found.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let found = std::fs::metadata(path).ok()?;
        Some(Self {
            device: found.dev(),
            inode: found.ino(),
            length: found.size(),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }

    /// When the file was changed last: its content, its name, or who may read it.
    pub(crate) fn changed(&self) -> SystemTime {
        let [seconds, nanos] = [self.changed.0, self.changed.1].map(|it| it.try_into().ok());
        let since = seconds.map(Duration::from_secs).unwrap_or_default();
        UNIX_EPOCH + since + nanos.map(Duration::from_nanos).unwrap_or_default()
    }
}

/// A certificate from files.
#[derive(Debug)]
pub(crate) struct LoadedCertificate {
    pub(crate) certificate: Certificate,
    pub(crate) warnings: Vec<KeyWarning>,
}

/// What an operator should change about a key file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyWarning {
    file: PathBuf,
    mode: u32,
}

impl fmt::Display for KeyWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (file, mode) = (self.file.display(), self.mode);
        write!(f, "{file}: every user can read this private key (mode {mode:04o}): chmod o= {file}")
    }
}

/// Loads a certificate chain and its private key; both may be in one file.
///
/// # Errors
/// A file can't be read, is not PEM, lacks what it should hold, or the two don't fit.
pub(crate) fn load_certificate(
    chain: &Path,
    key: &Path,
) -> Result<LoadedCertificate, CertificateError> {
    let (chain_pem, _) = read(chain)?;
    let (key_pem, mode) = read(key)?;
    let certificates = certificates(&chain_pem).map_err(|error| error.in_file(chain))?;
    let private_key = private_key(&key_pem).map_err(|error| error.in_file(key))?;
    let certificate = Certificate::new(certificates, private_key).map_err(|error| {
        let file = if error.is_about_key() { key } else { chain };
        error.in_file(file)
    })?;
    let certificate = certificate.in_file(chain);
    let is_open = mode & 0o007 != 0;
    let warnings = is_open.then(|| KeyWarning { file: key.to_owned(), mode });
    Ok(LoadedCertificate { certificate, warnings: warnings.into_iter().collect() })
}

/// Whether a file holds the chain of this certificate.
pub(crate) fn is_chain_of(file: &Path, certificate: &Certificate) -> bool {
    let chain = read(file).and_then(|(pem, _)| certificates(&pem));
    chain.is_ok_and(|chain| chain == certificate.certified().cert)
}

/// Loads the authorities that servers' certificates are checked against: those of a file, or the
/// system's.
///
/// # Errors
/// The file can't be read, or one of its certificates can't be an authority. Of the system's
/// authorities, those that can't be parsed are left out.
pub(crate) fn load_roots(file: Option<&Path>) -> Result<Roots, CertificateError> {
    if let Some(file) = file {
        let (pem, _) = read(file)?;
        let roots = roots(&pem).map_err(|error| error.in_file(file))?;
        return Ok(Roots::new(roots));
    }
    let existing = SYSTEM_ROOTS.iter().map(Path::new).find(|path| path.exists());
    let file = existing.unwrap_or(Path::new(SYSTEM_ROOTS[0]));
    let (pem, _) = read(file)?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(&pem).map_err(|error| error.in_file(file))?);
    Ok(Roots::new(roots))
}

/// Loads the authorities whose client certificates are accepted.
///
/// # Errors
/// The file can't be read, or one of its certificates can't be an authority.
pub(crate) fn load_client_ca(file: &Path) -> Result<ClientCa, CertificateError> {
    let (pem, _) = read(file)?;
    ClientCa::from_pem(&pem).map_err(|error| error.in_file(file))
}

/// A regular file's bytes and mode. Opening or reading another kind of file could block.
fn read(path: &Path) -> Result<(Vec<u8>, u32), CertificateError> {
    let unreadable = |error| CertificateError::from(Problem::Unreadable(error)).in_file(path);
    let refused = |problem: Problem| CertificateError::from(problem).in_file(path);
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(refused(Problem::NotRegular));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(refused(Problem::TooLarge(FILE_BYTES_MAX)));
    }
    Ok((bytes, metadata.permissions().mode() & 0o7777))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        time::{Duration, UNIX_EPOCH},
    };

    use rcgen::{
        CustomExtension, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519,
        PKCS_RSA_SHA256, RsaKeySize,
    };
    use x509_cert::der::{Any, Decode as _};

    use super::{
        super::{
            Validity, self_signed,
            test_support::{Authority, key_of, params, usable},
        },
        *,
    };

    /// Puts both texts into files of their own, and loads them.
    fn load(chain: &str, key: &str) -> Result<LoadedCertificate, CertificateError> {
        let folder = tempfile::tempdir().unwrap();
        let [chain_file, key_file] = ["a.pem", "a.key"].map(|name| folder.path().join(name));
        fs::write(&chain_file, chain).unwrap();
        fs::write(&key_file, key).unwrap();
        fs::set_permissions(&key_file, Permissions::from_mode(0o640)).unwrap();
        load_certificate(&chain_file, &key_file)
    }

    fn refusal(chain: &str, key: &str) -> String {
        let message = load(chain, key).unwrap_err().to_string();
        let (folder, rest) = message.split_once("/a.").expect("the file's path");
        assert!(folder.starts_with('/'), "{message}");
        format!("a.{rest}")
    }

    fn pem(label: &str, der: &[u8]) -> String {
        const DIGITS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = String::new();
        for part in der.chunks(3) {
            let bits = part.iter().fold(0_usize, |bits, byte| bits << 8 | usize::from(*byte));
            let bits = bits << (8 * (3 - part.len()));
            for at in 0..4 {
                let digit = char::from(DIGITS[bits >> (18 - 6 * at) & 63]);
                text.push(if at <= part.len() { digit } else { '=' });
            }
        }
        format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
    }

    #[test]
    fn keys_of_all_kinds_and_encodings_are_loaded() {
        let authority = Authority::new();
        let rsa = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
        for (key, kind, old_label) in [
            (rsa, "RSA", Some("RSA PRIVATE KEY")),
            (key_of(&PKCS_ECDSA_P256_SHA256), "ECDSA", Some("EC PRIVATE KEY")),
            (key_of(&PKCS_ECDSA_P384_SHA384), "ECDSA", Some("EC PRIVATE KEY")),
            (key_of(&PKCS_ED25519), "Ed25519", None),
        ] {
            let (certificate, key) = authority.issue_with(&params(&["a.example"]), key);
            let chain = certificate.pem() + &authority.certificate.pem();
            let loaded = load(&chain, &key.serialize_pem()).unwrap();
            assert_eq!((loaded.certificate.key_kind(), loaded.warnings), (kind, vec![]));
            assert_eq!(loaded.certificate.certified().cert.len(), 2, "the chain");
            // PKCS#1 and SEC1 are what a PKCS#8 key wraps.
            let parts = Vec::<Any>::from_der(&key.serialize_der()).unwrap();
            if let Some(label) = old_label {
                load(&chain, &pem(label, parts[2].value())).unwrap();
            }
            // All in one file.
            load(&(key.serialize_pem() + &chain), &(chain.clone() + &key.serialize_pem())).unwrap();
        }
    }

    #[test]
    fn what_a_certificate_says_is_read() {
        let authority = Authority::new();
        let mut said = params(&["A.example", "*.b.example", "127.0.0.1", "::1"]);
        let at = |seconds| (UNIX_EPOCH + Duration::from_secs(seconds)).into();
        (said.not_before, said.not_after) = (at(1_000_000), at(2_000_000));
        let (certificate, key) = authority.issue_with(&said, key_of(&PKCS_ECDSA_P256_SHA256));
        let certificate = usable(&certificate, &key);
        let names: Vec<_> = certificate.names().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["a.example", "*.b.example", "127.0.0.1", "::1"]);
        assert!(certificate.covers("x.b.example") && certificate.covers("[::1]"));
        assert!(!certificate.covers("b.example"));
        assert!(certificate.issuer().starts_with("CN=authority "), "{}", certificate.issuer());
        let validity = |seconds| certificate.validity(UNIX_EPOCH + Duration::from_secs(seconds));
        let seconds = Duration::from_secs;
        assert_eq!(validity(999_990), Validity::NotYet(seconds(10)));
        assert_eq!(validity(1_000_000), Validity::Valid(seconds(1_000_000)));
        assert_eq!(validity(2_000_000), Validity::Valid(seconds(0)));
        assert_eq!(validity(2_000_007), Validity::Expired(seconds(7)));
    }

    #[test]
    fn files_that_do_not_fit_are_refused_with_the_file_and_what_to_do() {
        let authority = Authority::new();
        let (certificate, key) = authority.issue(&["a.example"]);
        let (other, other_key) = authority.issue(&["b.example"]);
        let [chain, key_pem] = [certificate.pem(), key.serialize_pem()];
        let refused = [
            (refusal("", &key_pem), "a.pem: holds no certificate"),
            (refusal(&key_pem, &key_pem), "a.pem: holds no certificate"),
            (refusal(&chain, ""), "a.key: holds no private key"),
            (refusal(&chain, &chain), "a.key: holds no private key"),
            (refusal(&chain, &other_key.serialize_pem()), "a.key: the private key belongs to an"),
            (refusal(&(other.pem() + &chain), &key_pem), "a.pem: the private key belongs to cert"),
            (refusal(&chain[..chain.len() / 2], &key_pem), "a.pem: is not valid PEM"),
            (refusal(&pem("CERTIFICATE", b"abc"), &key_pem), "a.pem: certificate 1 cannot be par"),
            (refusal(&chain, &pem("PRIVATE KEY", b"abc")), "a.key: holds a private key of an uns"),
            (
                refusal(&chain, &pem("ENCRYPTED PRIVATE KEY", b"abc")),
                "a.key: holds a private key wi",
            ),
            (refusal(&chain, &key_pem.replace('M', "!")), "a.key: is not valid PEM"),
        ];
        for (message, expected) in refused {
            assert!(message.starts_with(expected), "{message}");
            let secret = key_pem.lines().nth(1).unwrap();
            assert!(!message.contains(secret), "the key is in the message");
        }
        let folder = tempfile::tempdir().unwrap();
        let missing = load_certificate(&folder.path().join("none"), folder.path()).unwrap_err();
        assert!(missing.to_string().contains("none: cannot be read: No such file"), "{missing}");
        let folder = load_certificate(folder.path(), folder.path()).unwrap_err();
        assert!(folder.to_string().ends_with(": is not a regular file"), "{folder}");
    }

    #[test]
    fn a_key_that_every_user_can_read_is_warned_of() {
        let (certificate, key) = Authority::new().issue(&["a.example"]);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("both.pem");
        fs::write(&file, certificate.pem() + &key.serialize_pem()).unwrap();
        for (mode, count) in [(0o600, 0), (0o640, 0), (0o644, 1), (0o604, 1)] {
            fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            let warnings = load_certificate(&file, &file).unwrap().warnings;
            assert_eq!(warnings.len(), count, "{mode:o}");
            let path = file.display().to_string();
            assert!(warnings.iter().all(|warning| warning.to_string().contains(&path)));
        }
    }

    #[test]
    fn a_certificate_with_a_critical_extension_that_rustls_does_not_know_is_usable() {
        let mut params = params(&["a.example"]);
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(&[1; 32])];
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        load(&certificate.pem(), &key.serialize_pem()).unwrap();
    }

    #[test]
    fn a_self_signed_certificate_covers_its_names_for_a_year() {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let names = ["localhost", "*.localhost", "127.0.0.1", "[::1]"].map(str::to_owned);
        let certificate = self_signed(&names, now).unwrap();
        assert!(names.iter().all(|name| certificate.covers(name)), "{certificate:?}");
        let Validity::Valid(left) = certificate.validity(now) else { panic!("{certificate:?}") };
        assert_eq!(left.as_secs() / 86_400, 396, "and one day before now");
        let refused = self_signed(&["b\u{fc}cher".to_owned()], now).unwrap_err().to_string();
        assert!(refused.starts_with("cannot make a self-signed certificate: "), "{refused}");
    }

    #[test]
    fn no_debug_shows_a_key() {
        let (certificate, key) = Authority::new().issue(&["a.example"]);
        let shown = format!("{:?}", usable(&certificate, &key));
        assert_eq!(shown, "Certificate { names: [Dns(\"a.example\")], .. }");
    }

    #[test]
    fn the_systems_authorities_are_found_and_a_file_without_any_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        fs::write(&file, "nothing").unwrap();
        let refused = load_roots(Some(&file)).err().unwrap().to_string();
        assert!(refused.contains("ca.pem: holds no certificate"), "{refused}");
        fs::write(&file, Authority::new().certificate.pem()).unwrap();
        assert!(load_roots(Some(&file)).is_ok());
        if SYSTEM_ROOTS.iter().any(|path| Path::new(path).exists()) {
            load_roots(None).unwrap();
        }
    }
}
