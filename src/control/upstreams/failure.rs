//! Failures of upstreams that loops report.

use super::super::notices::{Notices, notice};
use crate::{duration::milliseconds, message::FailureReport};

/// Tells operators of a failure that a loop reports.
pub(in super::super) fn tell_failure(notices: &Notices, report: &FailureReport) {
    let FailureReport { host, upstream, failure, unlogged, ejected_for } = report;
    let (host, upstream, reason) = (&**host, upstream.as_deref(), failure.cause.name());
    let error = &*failure.to_string();
    if let Some(suppressed) = *unlogged {
        notice!(
            notices,
            Warn,
            "upstream_failed",
            host = host,
            upstream = upstream,
            reason = reason,
            error = error,
            suppressed = suppressed,
        );
    }
    if let Some(ejected_for) = ejected_for {
        notice!(
            notices,
            Warn,
            "upstream_ejected",
            host = host,
            upstream = upstream,
            reason = reason,
            error = error,
            eject_for_ms = milliseconds(*ejected_for),
        );
    }
}
