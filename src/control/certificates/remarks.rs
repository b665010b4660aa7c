//! What there is to say of certificates that were read: in the log, and in a reload's answer.

use std::{collections::HashSet, path::PathBuf, sync::Arc, time::SystemTime};

use super::{
    super::certificate_list::RejectedCertificate,
    sources::make_readable,
    wanted::{Place, Wanted},
};
use crate::{
    config::{CertificateFiles, Source},
    logging::event,
    tls::{Certificate, Validity},
};

/// The most errors that say where their files are named: that takes a look at all the config.
const LOCATED_MAX: usize = 100;

/// A certificate that ends within so many days is warned of.
const ENDS_SOON_DAYS: u64 = 14;

/// What there is to say of a reading. Not logged before the reading holds.
#[derive(Default)]
pub(crate) struct Remarks {
    pub(super) loaded: Vec<LoadedRemark>,
    pub(super) complaints: Vec<Complaint>,
}

/// An app has a certificate that it didn't have before.
pub(super) struct LoadedRemark {
    pub(super) host: String,
    pub(super) names: Vec<String>,
    pub(super) certificate: Arc<Certificate>,
}

/// What an operator should change.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Complaint {
    /// A certificate can't be used; where it is named.
    Rejected(RejectedCertificate, Place),
    /// Every user can read the key of this pair.
    OpenKey(CertificateFiles, String),
    /// This process can't read a file in use again.
    Unreadable(PathBuf),
}

impl Remarks {
    /// Without what was complained of before: a look says each change once.
    pub(super) fn without(mut self, before: &[Complaint]) -> Self {
        let before: HashSet<_> = before.iter().collect();
        self.complaints.retain(|complaint| !before.contains(complaint));
        self
    }

    /// Has errors say where in the config their files are named.
    pub(super) fn locate(&mut self, text: &Source) {
        let rejected = self.complaints.iter_mut().filter_map(|complaint| match complaint {
            Complaint::Rejected(rejected, place) if !place.is_empty() => Some((rejected, &*place)),
            Complaint::Rejected(..) | Complaint::OpenKey(..) | Complaint::Unreadable(_) => None,
        });
        let (mut rejected, places): (Vec<_>, Vec<_>) = rejected.take(LOCATED_MAX).unzip();
        if rejected.is_empty() {
            return;
        }
        let lines = text.lines(places.into_iter().map(Vec::as_slice));
        for (rejected, line) in rejected.iter_mut().zip(lines) {
            rejected.error += &format!(" ({}:{line})", text.name().display());
        }
    }

    /// What an operator should change, for a config that isn't served: where, and what.
    pub(super) fn warnings(&self, wanted: &Wanted, now: SystemTime) -> Vec<(Place, String)> {
        let complaint = |complaint: &Complaint| match complaint {
            Complaint::Rejected(RejectedCertificate { host: None, error, .. }, place) => {
                Some((place.clone(), error.clone()))
            }
            Complaint::Rejected(RejectedCertificate { host: Some(host), error, .. }, place) => {
                Some((place.clone(), format!("{error}; {host} would not be served over TLS")))
            }
            Complaint::OpenKey(files, reason) => {
                Some((wanted.place_of_pair(files), reason.clone()))
            }
            Complaint::Unreadable(_) => None,
        };
        let mut found: Vec<_> = self.complaints.iter().filter_map(complaint).collect();
        let mut ending = HashSet::new();
        for LoadedRemark { host, names, certificate } in &self.loaded {
            let place = || ["apps", host, "tls", "cert"].map(str::to_owned).to_vec();
            let file = certificate.file().map(|file| file.display().to_string());
            let file = file.unwrap_or_else(|| "the certificate".to_owned());
            for name in names.iter().filter(|name| !certificate.covers(name)) {
                found.push((place(), format!("{file} is not for {name}: clients will refuse it")));
            }
            let days = days_left(certificate, now);
            if days < ENDS_SOON_DAYS && ending.insert(certificate.fingerprint()) {
                found.push((place(), format!("{file} expires in {days} days: renew it")));
            }
        }
        found
    }

    /// What can't be used, and why.
    pub(crate) fn errors(&self) -> Vec<String> {
        self.complaints.iter().filter_map(Complaint::rejected).map(ToString::to_string).collect()
    }

    /// Why the certificate of this app can't be used, if so.
    pub(crate) fn error_of(&self, host: &str) -> Option<String> {
        let mut rejected = self.complaints.iter().filter_map(Complaint::rejected);
        let rejected = rejected.find(|rejected| rejected.host.as_deref() == Some(host));
        rejected.map(|rejected| rejected.error.clone())
    }

    /// Logs it: the reading holds.
    pub(crate) fn log(&self, now: SystemTime) {
        for complaint in &self.complaints {
            match complaint {
                Complaint::Rejected(RejectedCertificate { host, error, kept }, _) => event!(
                    Error,
                    "certificate_rejected",
                    host = host.as_deref(),
                    error = &**error,
                    kept = *kept,
                ),
                Complaint::OpenKey(_, reason) => {
                    event!(Warn, "certificate_key_is_open", reason = &**reason);
                }
                Complaint::Unreadable(file) => event!(
                    Warn,
                    "certificate_not_readable",
                    file:% = file.display(),
                    hint = &*format!("a renewal can't be read: {}", make_readable()),
                ),
            }
        }
        for LoadedRemark { host, names, certificate } in &self.loaded {
            for name in names.iter().filter(|name| !certificate.covers(name)) {
                event!(Warn, "certificate_without_name", host = &**host, name = &**name);
            }
            let file = certificate.file().map(|file| file.display().to_string());
            event!(
                Info,
                "certificate_loaded",
                host = &**host,
                file = file.as_deref(),
                issuer = certificate.issuer(),
                key = certificate.key_kind(),
                days_left = days_left(certificate, now),
            );
        }
    }
}

impl Complaint {
    pub(super) fn rejected(&self) -> Option<&RejectedCertificate> {
        match self {
            Self::Rejected(rejected, _) => Some(rejected),
            Self::OpenKey(..) | Self::Unreadable(_) => None,
        }
    }
}

fn days_left(certificate: &Certificate, now: SystemTime) -> u64 {
    match certificate.validity(now) {
        Validity::Valid(left) => left.as_secs() / 86_400,
        Validity::NotYet(_) | Validity::Expired(_) => 0,
    }
}
