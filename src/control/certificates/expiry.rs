//! Which certificates in use are about to expire: what is said of each, and when.
//!
//! ```text
//!  in use ──30 days left──► said ──7──► said ──1──► said ──expired──► said
//! ```
//! - Each step is said once. If several have passed since the last look (the server was just
//!   started, or the clock was set), only the last of them is said.
//! - A reload changes nothing of that, for it is kept by the certificate. A renewed certificate is
//!   another one, and begins again.
//! - A certificate that an upgrade has handed over was in use before this process began: what had
//!   passed by then, the process before has said.
//! - A step that is longer than half of the certificate's whole life is left out: certificates of
//!   six days would be complained of all the time.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::super::certificate_list::{CertificateList, UsedCertificate};
use crate::tls::Certificate;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Days before the end at which it is said, the longest first.
const STEPS: [u32; 3] = [30, 7, 1];

/// What was said of certificates.
#[derive(Clone)]
pub(super) struct Expiries {
    /// When this process began.
    begun: SystemTime,
    /// By fingerprint: how many steps have passed of those that are said.
    said: HashMap<[u8; 32], usize>,
}

/// A certificate that is about to expire, or has expired.
pub(crate) struct Expiry {
    pub(crate) certificate: Arc<Certificate>,
    /// The first hosts of its apps.
    pub(crate) apps: Vec<Arc<str>>,
    /// Whole days; below 0 if it has expired.
    pub(crate) days_left: i64,
    passed: usize,
}

impl Expiries {
    pub(super) fn new(begun: SystemTime) -> Self {
        Self { begun, said: HashMap::new() }
    }

    /// What has to be said now. Of what isn't then passed to [`Expiries::say`], this says it again.
    pub(super) fn due(&self, list: &CertificateList, now: SystemTime) -> Vec<Expiry> {
        let expiry = |used: &UsedCertificate| {
            let passed = passed(&used.certificate, now);
            (passed > self.said_of(used)).then(|| Expiry {
                certificate: Arc::clone(&used.certificate),
                apps: used.apps.clone(),
                days_left: used.days_left(now),
                passed,
            })
        };
        list.in_use.iter().filter_map(expiry).collect()
    }

    /// These are said now; certificates that aren't in use any more are forgotten.
    pub(super) fn say(&mut self, due: &[Expiry], list: &CertificateList) {
        let mut said: HashMap<_, _> = list
            .in_use
            .iter()
            .map(|used| (*used.certificate.fingerprint(), self.said_of(used)))
            .collect();
        said.extend(due.iter().map(|expiry| (*expiry.certificate.fingerprint(), expiry.passed)));
        self.said = said;
    }

    fn said_of(&self, used: &UsedCertificate) -> usize {
        let known = self.said.get(used.certificate.fingerprint()).copied();
        known.unwrap_or_else(|| match used.since < self.begun {
            true => passed(&used.certificate, self.begun),
            false => 0,
        })
    }
}

/// How many steps have passed; one more when it has expired.
fn passed(certificate: &Certificate, now: SystemTime) -> usize {
    let Ok(left) = certificate.not_after().duration_since(now) else { return STEPS.len() + 1 };
    let has_passed = |days: &u32| {
        let step = *days * DAY;
        left <= step && 2 * step <= certificate.lifetime()
    };
    STEPS.iter().rposition(has_passed).map_or(0, |last| last + 1)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::tls::self_signed;

    /// When certificates of these tests begin; each ends 396 days later.
    fn start() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn used(host: &str, since: SystemTime) -> CertificateList {
        let certificate = Arc::new(self_signed(&[host.to_owned()], start()).unwrap());
        CertificateList::new([(&Arc::from(host), &certificate, since)].into_iter(), Vec::new())
    }

    fn left(list: &CertificateList, time: Duration) -> SystemTime {
        list.in_use[0].certificate.not_after() - time
    }

    /// What is said at this time: the days left of each certificate.
    fn said(expiries: &mut Expiries, list: &CertificateList, now: SystemTime) -> Vec<i64> {
        let due = expiries.due(list, now);
        expiries.say(&due, list);
        due.iter().map(|expiry| expiry.days_left).collect()
    }

    #[test]
    fn each_step_before_an_expiry_is_said_once_and_a_renewal_begins_again() {
        let (list, mut expiries) = (used("a.test", start()), Expiries::new(start()));
        let hour = Duration::from_secs(60 * 60);
        for (time, expected) in [
            (31 * DAY, &[][..]),
            (30 * DAY, &[30]),
            (29 * DAY, &[]),
            (7 * DAY + hour, &[]),
            (7 * DAY - hour, &[6]),
            (2 * DAY, &[]),
            (DAY, &[1]),
            (hour, &[]),
            (Duration::ZERO, &[]),
        ] {
            assert_eq!(said(&mut expiries, &list, left(&list, time)), expected, "{time:?}");
        }
        let end = list.in_use[0].certificate.not_after();
        assert_eq!(said(&mut expiries, &list, end + hour), [-1]);
        assert_eq!(said(&mut expiries, &list, end + 9 * DAY), [0; 0]);
        let renewed = used("a.test", end);
        assert_eq!(said(&mut expiries, &renewed, left(&renewed, 29 * DAY)), [29]);
        assert!(expiries.said.len() == 1, "the one before is forgotten");
    }

    #[test]
    fn a_start_with_five_days_left_says_one_thing() {
        let list = used("a.test", start());
        let now = left(&list, 5 * DAY);
        let mut expiries = Expiries::new(now - DAY);
        let list = CertificateList {
            in_use: vec![UsedCertificate {
                since: now,
                apps: Vec::new(),
                certificate: Arc::clone(&list.in_use[0].certificate),
            }],
            rejected: Vec::new(),
        };
        assert_eq!(said(&mut expiries, &list, now), [5]);
        assert_eq!(said(&mut expiries, &list, now + DAY), [0; 0]);
        assert_eq!(said(&mut expiries, &list, now + 4 * DAY), [1]);
    }

    #[test]
    fn what_is_not_said_stays_due() {
        let (list, expiries) = (used("a.test", start()), Expiries::new(start()));
        let now = left(&list, DAY);
        assert_eq!(expiries.due(&list, now).len(), 1);
        assert_eq!(expiries.due(&list, now).len(), 1);
    }

    #[test]
    fn a_certificate_of_the_process_before_is_not_announced_again() {
        let list = used("a.test", start());
        let mut expiries = Expiries::new(left(&list, 5 * DAY));
        assert_eq!(said(&mut expiries, &list, left(&list, 4 * DAY)), [0; 0]);
        assert_eq!(said(&mut expiries, &list, left(&list, DAY)), [1]);
    }
}
