//! The files that certificates come from. The only place that lists and reads them.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use rustix::{
    fs::{Access, access},
    process::geteuid,
};

use super::{
    handed::FilesOnTheirWay,
    kept::{Kept, Loaded, Reading, Refused},
    wanted::{Place, Wanted},
};
use crate::{
    config::{AppCertificate, CertificateFiles, CertificateSource},
    logging::rfc3339,
    tls::{
        Certificate, CertificateError, ClientCa, Validity, is_chain_of, load_certificate,
        load_client_ca,
    },
};

/// The files that a config names, as they were when they were read last.
#[derive(Clone, Default)]
pub(super) struct Sources {
    pairs: HashMap<CertificateFiles, Arc<Kept<Certificate>>>,
    folders: HashMap<PathBuf, Arc<Kept<Vec<CertificateFiles>>>>,
    /// The pairs of `[tls]`, in its order.
    shared: Vec<CertificateFiles>,
    client_cas: HashMap<PathBuf, Arc<Kept<ClientCa>>>,
}

impl Sources {
    /// Reads what the config names. `at` is called with each file before it is looked at.
    pub(super) fn read(
        wanted: &Wanted,
        before: &Self,
        how: (Reading, SystemTime),
        at: &dyn Fn(&Path),
    ) -> Self {
        let mut sources = Self::default();
        for source in &wanted.tls.certificates {
            match source {
                CertificateSource::Files(files) => sources.shared.push(files.clone()),
                CertificateSource::Folder(folder) => {
                    at(folder);
                    let known = before.folders.get(folder);
                    let kept = Kept::read(&[folder], known, how, |_| pairs(folder));
                    sources.shared.extend(kept.good.iter().flat_map(|pairs| pairs.iter().cloned()));
                    sources.folders.insert(folder.clone(), kept);
                }
            }
        }
        let tls = wanted.apps.iter().filter_map(|app| app.tls.as_ref());
        let own = tls.filter_map(|tls| match &tls.certificate {
            AppCertificate::Files(files) => Some(files),
            AppCertificate::Shared | AppCertificate::SelfSigned => None,
        });
        for files in sources.shared.iter().chain(own) {
            if sources.pairs.contains_key(files) {
                continue;
            }
            at(&files.cert);
            let known = before.pairs.get(files);
            let both: [&Path; 2] = [&files.cert, &files.key];
            let kept = Kept::read(&both, known, how, |good| load_pair(files, good, how.1));
            sources.pairs.insert(files.clone(), kept);
        }
        for file in
            wanted.apps.iter().filter_map(|app| Some(&app.tls.as_ref()?.client.as_ref()?.ca))
        {
            at(file);
            let kept = Kept::read(&[file], before.client_cas.get(file), how, |_| {
                let ca = load_client_ca(file).map_err(|error| refused(&error))?;
                Ok(Some((ca, Vec::new())))
            });
            sources.client_cas.insert(file.clone(), kept);
        }
        sources
    }

    /// What was read from a file of `client_ca`.
    pub(super) fn client_ca(&self, file: &Path) -> Option<&Kept<ClientCa>> {
        self.client_cas.get(file).map(|kept| &**kept)
    }

    /// What another process has read.
    pub(super) fn handed(files: FilesOnTheirWay) -> Self {
        let FilesOnTheirWay { pairs, client_cas } = files;
        Self {
            pairs: pairs.into_iter().map(|(files, good)| (files, Kept::handed(good))).collect(),
            client_cas: client_cas.into_iter().map(|(ca, good)| (ca, Kept::handed(good))).collect(),
            ..Self::default()
        }
    }

    /// The certificates of pairs of files, for another process.
    pub(super) fn good(&self) -> FilesOnTheirWay {
        fn good<K: Clone, T>(read: &HashMap<K, Arc<Kept<T>>>) -> Vec<(K, Arc<T>)> {
            let good = |(key, kept): (&K, &Arc<Kept<T>>)| Some((key.clone(), kept.good.clone()?));
            read.iter().filter_map(good).collect()
        }
        FilesOnTheirWay { pairs: good(&self.pairs), client_cas: good(&self.client_cas) }
    }

    /// What was read from a pair of files.
    pub(super) fn pair(&self, files: &CertificateFiles) -> Option<&Kept<Certificate>> {
        self.pairs.get(files).map(|kept| &**kept)
    }

    /// What was read from the pairs of `[tls]`, in its order.
    pub(super) fn shared(&self) -> impl Iterator<Item = &Kept<Certificate>> {
        self.shared.iter().filter_map(|files| self.pair(files))
    }

    /// The certificate of `[tls]` that names a host exactly, or else the first that covers it.
    pub(super) fn find(&self, host: &str) -> Option<&Arc<Certificate>> {
        let names_it = |certificate: &&Arc<Certificate>| {
            certificate.names().iter().any(|name| name.to_string() == host)
        };
        let good = || self.shared().filter_map(|kept| kept.good.as_ref());
        let covering = || good().filter(|certificate| certificate.covers(host));
        covering().find(names_it).or_else(|| covering().next())
    }

    /// What can't be read of `[tls]`: where it is named, why, and whether what was read before is
    /// kept.
    pub(super) fn errors(&self, wanted: &Wanted) -> Vec<(Place, String, bool)> {
        let folders = self.folders.iter().filter_map(|(folder, kept)| {
            let error = kept.error.clone()?;
            Some((wanted.place_of_folder(folder), error, kept.good.is_some()))
        });
        let pairs = self.shared.iter().filter_map(|files| {
            let kept = self.pair(files)?;
            Some((wanted.place_of_pair(files), kept.error.clone()?, kept.good.is_some()))
        });
        folders.chain(pairs).collect()
    }

    /// What an operator should change about the files.
    pub(super) fn warnings(&self) -> impl Iterator<Item = (&CertificateFiles, &String)> {
        self.pairs.iter().flat_map(|(files, kept)| kept.warnings.iter().map(move |it| (files, it)))
    }

    /// The files in use that this process may not read: it was root when it read them, or another
    /// process has handed over what is in them.
    pub(super) fn unreadable(&self) -> Vec<PathBuf> {
        let in_use = self.pairs.iter().filter(|(_, kept)| kept.error.is_none());
        let files = in_use.flat_map(|(files, _)| [&files.cert, &files.key]);
        let files = files.chain(self.client_cas.keys());
        let mut found: Vec<_> =
            files.filter(|file| access(*file, Access::READ_OK).is_err()).cloned().collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Whether there is nothing to look at.
    pub(super) fn is_empty(&self) -> bool {
        self.pairs.is_empty() && self.folders.is_empty() && self.client_cas.is_empty()
    }

    /// Whether a look at the files would find the same.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        fn are_same<K: Eq + std::hash::Hash, T: PartialEq>(
            one: &HashMap<K, Arc<Kept<T>>>,
            other: &HashMap<K, Arc<Kept<T>>>,
        ) -> bool {
            let is_same = |(key, kept): (&K, &Arc<Kept<T>>)| {
                other.get(key).is_some_and(|it| Arc::ptr_eq(it, kept) || it.is_same(kept))
            };
            one.len() == other.len() && one.iter().all(is_same)
        }
        self.shared == other.shared
            && are_same(&self.pairs, &other.pairs)
            && are_same(&self.folders, &other.folders)
            && are_same(&self.client_cas, &other.client_cas)
    }
}

/// The pairs `NAME.pem` and `NAME.key` of a folder, in the order of their names.
fn pairs(folder: &Path) -> Loaded<Vec<CertificateFiles>> {
    let unreadable = |error: std::io::Error| Refused {
        reason: format!("{}: cannot be read: {error}", folder.display()),
        is_denied: error.kind() == std::io::ErrorKind::PermissionDenied,
    };
    let entries = std::fs::read_dir(folder).map_err(unreadable)?;
    let certs: std::io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut certs = certs.map_err(unreadable)?;
    certs.retain(|path| path.extension().is_some_and(|extension| extension == "pem"));
    certs.sort();
    let pair = |cert: PathBuf| CertificateFiles { key: cert.with_extension("key"), cert };
    Ok(Some((certs.into_iter().map(pair).collect(), Vec::new())))
}

/// Loads a certificate that is valid now. One whose key this process may not read is the same as
/// `before` if its chain is.
fn load_pair(
    files: &CertificateFiles,
    before: Option<&Certificate>,
    now: SystemTime,
) -> Loaded<Certificate> {
    let loaded = match load_certificate(&files.cert, &files.key) {
        Ok(loaded) => loaded,
        Err(error)
            if error.is_denied()
                && before.is_some_and(|before| is_chain_of(&files.cert, before)) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(refused(&error)),
    };
    let cert = files.cert.display();
    let not_now = |reason| Err(Refused { reason, is_denied: false });
    match loaded.certificate.validity(now) {
        Validity::Valid(_) => {}
        Validity::Expired(past) => {
            return not_now(format!("{cert}: expired at {}: renew it", rfc3339(now - past)));
        }
        Validity::NotYet(left) => {
            let from = rfc3339(now + left);
            return not_now(format!(
                "{cert}: is valid only from {from}: check this machine's clock"
            ));
        }
    }
    let warnings = loaded.warnings.iter().map(ToString::to_string).collect();
    Ok(Some((loaded.certificate, warnings)))
}

fn refused(error: &CertificateError) -> Refused {
    let is_denied = error.is_denied();
    let mut reason = error.to_string();
    if is_denied {
        reason = format!("{reason}: {}", make_readable());
    }
    Refused { reason, is_denied }
}

/// What to do about a file that this process may not read.
pub(super) fn make_readable() -> String {
    format!(
        "make it readable for uid {} (chgrp, chmod 640), or restart the server if it starts as \
         root",
        geteuid().as_raw()
    )
}
