//! The certificates that an upgrade hands to the new process, which may not be able to read their
//! files: they are broken by now, or only root can read their keys, or they are in no file.
//!
//! In memory alone: over the channel between the two processes, never to a disk or a log.

use std::{
    collections::HashMap,
    fmt::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::{
    config::CertificateFiles,
    logging::event,
    tls::{Certificate, ClientCa, ExportedCertificate},
};

/// With more certificates than that, none is handed over: the message would be too long. These are
/// about 20,000.
const BYTES_MAX: usize = 24 << 20;

/// Certificates with their keys. Not shown: no key gets into a log.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct HandedCertificates {
    /// Certificates and keys, each once: DER in hexadecimal digits.
    parts: Vec<String>,
    certificates: Vec<Handed>,
    apps: Vec<HandedApp>,
    pairs: Vec<HandedPair>,
    /// Files of `client_ca`, and what was read from each, by the places in `parts`.
    #[serde(default)]
    client_cas: Vec<(String, Vec<usize>)>,
}

/// A chain and its key, by their places in `parts`.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Handed {
    chain: Vec<usize>,
    key: usize,
    file: Option<String>,
}

/// An app that is served over TLS. Certificates are named by their places.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct HandedApp {
    host: String,
    names: Vec<String>,
    is_self_signed: bool,
    certificate: usize,
    /// When it took its certificate, in seconds since 1970.
    since: u64,
}

/// What was read from a pair of files.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct HandedPair {
    cert: String,
    key: String,
    certificate: usize,
}

/// An app with its certificate, on its way.
pub(super) struct AppOnItsWay {
    pub(super) host: String,
    pub(super) names: Vec<String>,
    pub(super) is_self_signed: bool,
    pub(super) certificate: Arc<Certificate>,
    pub(super) since: SystemTime,
}

/// What was read from a pair of files, on its way.
pub(super) type PairOnItsWay = (CertificateFiles, Arc<Certificate>);

/// What was read from files, on its way.
#[derive(Default)]
pub(super) struct FilesOnTheirWay {
    pub(super) pairs: Vec<PairOnItsWay>,
    pub(super) client_cas: Vec<(PathBuf, Arc<ClientCa>)>,
}

impl HandedCertificates {
    pub(super) fn new(apps: impl Iterator<Item = AppOnItsWay>, files: FilesOnTheirWay) -> Self {
        let mut packer = Packer::default();
        for AppOnItsWay { host, names, is_self_signed, certificate, since } in apps {
            let certificate = packer.add(&certificate);
            let since = since.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            packer.handed.apps.push(HandedApp { host, names, is_self_signed, certificate, since });
        }
        for (file, ca) in files.client_cas {
            let Some(file) = file.to_str() else { continue };
            let parts = ca.export().into_iter().map(|part| packer.part(part)).collect();
            packer.handed.client_cas.push((file.to_owned(), parts));
        }
        for (files, certificate) in files.pairs {
            // Of the names in a folder some may be no text. Their apps have the certificate.
            let [cert, key] = [&files.cert, &files.key].map(|file| file.to_str());
            let (Some(cert), Some(key)) = (cert, key) else { continue };
            let (cert, key) = (cert.to_owned(), key.to_owned());
            let certificate = packer.add(&certificate);
            packer.handed.pairs.push(HandedPair { cert, key, certificate });
        }
        if packer.bytes > BYTES_MAX {
            let bytes = packer.bytes as u64;
            event!(Warn, "certificates_not_handed_over", bytes = bytes, max = BYTES_MAX as u64);
            return Self::default();
        }
        // Two that say the same are the same.
        packer.handed.client_cas.sort_unstable();
        packer
            .handed
            .pairs
            .sort_by(|one, other| (&one.cert, &one.key).cmp(&(&other.cert, &other.key)));
        packer.handed
    }

    /// What came; without what this process can't use.
    pub(super) fn unpack(&self) -> (Vec<AppOnItsWay>, FilesOnTheirWay) {
        let unpacked: Vec<_> =
            self.certificates.iter().map(|handed| self.certificate(handed).map(Arc::new)).collect();
        let at = |place: usize| unpacked.get(place)?.clone();
        let app = |app: &HandedApp| {
            Some(AppOnItsWay {
                host: app.host.clone(),
                names: app.names.clone(),
                is_self_signed: app.is_self_signed,
                certificate: at(app.certificate)?,
                since: UNIX_EPOCH.checked_add(Duration::from_secs(app.since))?,
            })
        };
        let pair = |HandedPair { cert, key, certificate }: &HandedPair| {
            let files = CertificateFiles { cert: cert.into(), key: key.into() };
            Some((files, at(*certificate)?))
        };
        let client_ca = |(file, places): &(String, Vec<usize>)| {
            let ca = places.iter().map(|place| self.part(*place)).collect::<Option<_>>();
            Some((file.into(), Arc::new(ClientCa::import(ca?)?)))
        };
        let files = FilesOnTheirWay {
            pairs: self.pairs.iter().filter_map(pair).collect(),
            client_cas: self.client_cas.iter().filter_map(client_ca).collect(),
        };
        (self.apps.iter().filter_map(app).collect(), files)
    }

    fn certificate(&self, handed: &Handed) -> Option<Certificate> {
        let chain = handed.chain.iter().map(|place| self.part(*place)).collect::<Option<_>>()?;
        let exported = ExportedCertificate { chain, key: self.part(handed.key)? };
        Certificate::import(exported, handed.file.as_deref().map(Path::new))
    }

    fn part(&self, place: usize) -> Option<Vec<u8>> {
        bytes(self.parts.get(place)?)
    }
}

impl fmt::Debug for HandedCertificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HandedCertificates(..)")
    }
}

/// Puts certificates together, each part of them once.
#[derive(Default)]
struct Packer {
    handed: HandedCertificates,
    bytes: usize,
    parts: HashMap<Vec<u8>, usize>,
    /// By their addresses.
    certificates: HashMap<*const Certificate, usize>,
}

impl Packer {
    fn add(&mut self, certificate: &Arc<Certificate>) -> usize {
        let address = Arc::as_ptr(certificate);
        if let Some(place) = self.certificates.get(&address) {
            return *place;
        }
        let ExportedCertificate { chain, key } = certificate.export();
        let chain = chain.into_iter().map(|part| self.part(part)).collect();
        let (key, file) = (self.part(key), certificate.file().and_then(Path::to_str));
        let place = self.handed.certificates.len();
        self.handed.certificates.push(Handed { chain, key, file: file.map(str::to_owned) });
        self.certificates.insert(address, place);
        place
    }

    fn part(&mut self, part: Vec<u8>) -> usize {
        if let Some(place) = self.parts.get(&part) {
            return *place;
        }
        let place = self.handed.parts.len();
        self.bytes += part.len();
        self.handed.parts.push(digits(&part));
        self.parts.insert(part, place);
        place
    }
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // A string takes everything.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn bytes(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    pairs.map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{self_signed, test_support::Authority};

    #[test]
    fn certificates_arrive_as_they_were_and_show_no_key() {
        let authority = Authority::new();
        let shared = Arc::new(authority.certificate(&["a.example", "b.example"]));
        let own = Arc::new(self_signed(&["c.example".to_owned()], SystemTime::now()).unwrap());
        let app = |host: &str, certificate: &Arc<Certificate>| AppOnItsWay {
            host: host.to_owned(),
            names: vec![host.to_owned()],
            is_self_signed: false,
            certificate: Arc::clone(certificate),
            since: UNIX_EPOCH + Duration::from_secs(7),
        };
        let apps = [app("a.example", &shared), app("b.example", &shared), app("c.example", &own)];
        let files = CertificateFiles { cert: "/a.pem".into(), key: "/a.key".into() };
        let pairs = vec![(files.clone(), Arc::clone(&shared))];
        let ca = Arc::new(authority.client_ca());
        let client_cas = vec![("/ca.pem".into(), Arc::clone(&ca))];
        let on_their_way = FilesOnTheirWay { pairs, client_cas };
        let handed = HandedCertificates::new(apps.into_iter(), on_their_way);
        assert_eq!((handed.certificates.len(), handed.parts.len()), (2, 5), "each once");
        assert_eq!(format!("{handed:?}"), "HandedCertificates(..)");
        let text = serde_json::to_string(&handed).unwrap();
        let mut handed: HandedCertificates = serde_json::from_str(&text).unwrap();
        let (apps, came) = handed.unpack();
        let arrived: Vec<_> = apps.iter().map(|app| (&*app.host, &app.certificate)).collect();
        assert_eq!(arrived, [("a.example", &shared), ("b.example", &shared), ("c.example", &own)]);
        assert_eq!(came.pairs, [(files, shared)]);
        assert!(came.client_cas.len() == 1 && came.client_cas[0].1 == ca);
        // Of another version, or cut: what can't be used is left out.
        handed.parts[0].truncate(7);
        handed.certificates[1].key = 99;
        let (apps, came) = handed.unpack();
        assert_eq!((apps.len(), came.pairs.len()), (0, 0));
    }
}
