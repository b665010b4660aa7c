//! The certificates in use, as operators see them: a snapshot that is published with the table that
//! the loops look at, so that nothing has to wait for the operator thread.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use crate::tls::Certificate;

/// The list that holds now.
#[derive(Default)]
pub(crate) struct LiveList(RwLock<Arc<CertificateList>>);

/// The certificates of all apps at one time. Never changes: a new list takes its place.
#[derive(Default)]
pub(crate) struct CertificateList {
    /// The certificate that expires first comes first.
    pub(crate) in_use: Vec<UsedCertificate>,
    pub(crate) rejected: Vec<RejectedCertificate>,
}

/// A certificate that at least one app is served with.
pub(crate) struct UsedCertificate {
    pub(crate) certificate: Arc<Certificate>,
    /// The first hosts of the apps.
    pub(crate) apps: Vec<Arc<str>>,
    /// When the first of them took it.
    pub(crate) since: SystemTime,
}

/// A certificate that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RejectedCertificate {
    /// The first host of its app; none if it is a certificate of `[tls]`.
    pub(crate) host: Option<String>,
    /// Why, and what to do.
    pub(crate) error: String,
    /// The app goes on with the certificate that it had before.
    pub(crate) kept: bool,
}

impl LiveList {
    /// Puts a list in the place of the one before.
    pub(super) fn publish(&self, list: CertificateList) {
        // A list is replaced whole: a panic elsewhere leaves none half made.
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(list);
    }

    /// The list that holds now.
    pub(crate) fn list(&self) -> Arc<CertificateList> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl CertificateList {
    /// A list of what apps use, each with its app and since when.
    pub(super) fn new<'a>(
        served: impl Iterator<Item = (&'a Arc<str>, &'a Arc<Certificate>, SystemTime)>,
        rejected: Vec<RejectedCertificate>,
    ) -> Self {
        let (mut in_use, mut places) = (Vec::<UsedCertificate>::new(), HashMap::new());
        for (app, certificate, since) in served {
            let place = *places.entry(certificate.fingerprint()).or_insert(in_use.len());
            if place == in_use.len() {
                let (certificate, apps) = (Arc::clone(certificate), Vec::new());
                in_use.push(UsedCertificate { certificate, apps, since });
            }
            let used = &mut in_use[place];
            used.apps.push(Arc::clone(app));
            used.since = used.since.min(since);
        }
        in_use.sort_by_key(|used| used.certificate.not_after());
        Self { in_use, rejected }
    }

    /// When the certificate for a name ends; of several for one name, the first to end.
    pub(crate) fn ends_by_name(&self) -> BTreeMap<String, SystemTime> {
        let mut ends = BTreeMap::new();
        for used in &self.in_use {
            for name in used.certificate.names() {
                ends.entry(name.to_string()).or_insert(used.certificate.not_after());
            }
        }
        ends
    }

    /// The certificate that ends first.
    pub(crate) fn first_to_end(&self) -> Option<&UsedCertificate> {
        self.in_use.first()
    }
}

impl fmt::Display for RejectedCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Some(host) => write!(f, "{host}: {}", self.error),
            None => f.write_str(&self.error),
        }
    }
}

impl UsedCertificate {
    /// Whole days until it ends; below 0 if it has ended.
    pub(crate) fn days_left(&self, now: SystemTime) -> i64 {
        let days = |time: Duration| time.as_secs().div_euclid(86_400).cast_signed();
        match self.certificate.not_after().duration_since(now) {
            Ok(left) => days(left),
            Err(past) => -1 - days(past.duration()),
        }
    }
}
