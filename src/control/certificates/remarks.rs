//! What there is to say of certificates that were read: in the log, and in a reload's answer.

use std::{collections::HashSet, path::PathBuf, sync::Arc, time::SystemTime};

use super::{super::certificate_list::RejectedCertificate, sources::make_readable};
use crate::{
    logging::event,
    tls::{Certificate, Validity},
};

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
    Rejected(RejectedCertificate),
    /// Every user can read a key.
    OpenKey(String),
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

    /// What can't be used, and why.
    pub(crate) fn errors(&self) -> Vec<String> {
        self.complaints.iter().filter_map(Complaint::rejected).map(ToString::to_string).collect()
    }

    /// Logs it: the reading holds.
    pub(crate) fn log(&self, now: SystemTime) {
        for complaint in &self.complaints {
            match complaint {
                Complaint::Rejected(RejectedCertificate { host, error, kept }) => event!(
                    Error,
                    "certificate_rejected",
                    host = host.as_deref(),
                    error = &**error,
                    kept = *kept,
                ),
                Complaint::OpenKey(reason) => {
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
            Self::Rejected(rejected) => Some(rejected),
            Self::OpenKey(_) | Self::Unreadable(_) => None,
        }
    }
}

fn days_left(certificate: &Certificate, now: SystemTime) -> u64 {
    match certificate.validity(now) {
        Validity::Valid(left) => left.as_secs() / 86_400,
        Validity::NotYet(_) | Validity::Expired(_) => 0,
    }
}
