//! What operators see of certificates.

use std::time::SystemTime;

use serde::Serialize;
use serde_json::{Value, json};

use super::{
    super::certificate_list::{RejectedCertificate, UsedCertificate},
    Admin,
    answers::{Answered, ok},
    show,
};

/// A certificate in use.
#[derive(Serialize)]
struct Row<'a> {
    names: Vec<String>,
    issuer: &'a str,
    key: &'static str,
    fingerprint: String,
    not_after: Value,
    days_left: i64,
    /// None if it was made here, and signed by itself.
    file: Option<String>,
    apps: Vec<&'a str>,
    in_use_since: Value,
}

impl Admin {
    pub(super) fn certificates(&self) -> Answered {
        let (list, now) = (self.certificates.list(), SystemTime::now());
        let in_use: Vec<_> = list.in_use.iter().map(|used| Row::new(used, now)).collect();
        let rejected: Vec<_> = list.rejected.iter().map(rejected).collect();
        ok(&json!({ "certificates": in_use, "rejected": rejected }))
    }

    /// The same in short, for the server's status.
    pub(super) fn certificate_summary(&self) -> Value {
        let (list, now) = (self.certificates.list(), SystemTime::now());
        let next = list.first_to_end().map(|used| {
            json!({
                "names": names(used),
                "not_after": show::time(used.certificate.not_after()),
                "days_left": used.days_left(now),
            })
        });
        json!({ "in_use": list.in_use.len(), "rejected": list.rejected.len(), "next_expiry": next })
    }
}

impl<'a> Row<'a> {
    fn new(used: &'a UsedCertificate, now: SystemTime) -> Self {
        let certificate = &used.certificate;
        Self {
            names: names(used),
            issuer: certificate.issuer(),
            key: certificate.key_kind(),
            fingerprint: certificate
                .fingerprint()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
            not_after: show::time(certificate.not_after()),
            days_left: used.days_left(now),
            file: certificate.file().map(|file| file.display().to_string()),
            apps: used.apps.iter().map(|app| &**app).collect(),
            in_use_since: show::time(used.since),
        }
    }
}

fn names(used: &UsedCertificate) -> Vec<String> {
    used.certificate.names().iter().map(ToString::to_string).collect()
}

fn rejected(rejected: &RejectedCertificate) -> Value {
    let RejectedCertificate { host, error, kept } = rejected;
    json!({ "host": host, "error": error, "kept": kept })
}
