//! How the TLS handshakes of a loop's clients ended.
//!
//! One writer, the loop that owns them: a relaxed load and store each, no shared cache line.

use std::{
    array,
    ops::AddAssign,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// How a handshake ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HandshakeEnd {
    Finished {
        /// TLS 1.3, else 1.2.
        is_tls13: bool,
        is_resumed: bool,
    },
    Failed(HandshakeFailure),
}

/// Why a handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HandshakeFailure {
    /// No app with TLS has the name that the client asked for, or it named none.
    NoCertificateForName,
    /// The client spoke plain HTTP.
    PlainHttp,
    /// Client and server have no version, suite or other parameter in common.
    Unsupported,
    /// The client broke the protocol, or didn't speak TLS.
    Protocol,
    /// The client refused our certificate.
    CertificateRefused,
    /// The client's certificate is missing, or refused.
    ClientCertificate,
    /// The client left.
    ClientGone,
    /// The client was too slow.
    Timeout,
    /// The server ended it, because it stops.
    Closed,
}

/// Result, version and whether it was resumed, as metrics name them, in the order of the counters.
const ENDS: [(&str, &str, &str); 13] = [
    ("ok", "1.2", "false"),
    ("ok", "1.2", "true"),
    ("ok", "1.3", "false"),
    ("ok", "1.3", "true"),
    ("no_certificate_for_name", "", ""),
    ("plain_http", "", ""),
    ("unsupported", "", ""),
    ("protocol", "", ""),
    ("certificate_refused", "", ""),
    ("client_certificate", "", ""),
    ("client_gone", "", ""),
    ("timeout", "", ""),
    ("closed", "", ""),
];

const FINISHED: usize = 4;

/// Counts of handshakes.
#[derive(Debug, Default)]
pub(super) struct HandshakeCounters([AtomicU64; ENDS.len()]);

/// The counts of a loop, or the sum of several loops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HandshakeCounts([u64; ENDS.len()]);

impl HandshakeEnd {
    fn place(self) -> usize {
        match self {
            Self::Finished { is_tls13, is_resumed } => {
                2 * usize::from(is_tls13) + usize::from(is_resumed)
            }
            Self::Failed(failure) => FINISHED + failure as usize,
        }
    }
}

impl HandshakeFailure {
    /// Its name in metrics and logs.
    pub(crate) fn name(self) -> &'static str {
        ENDS[HandshakeEnd::Failed(self).place()].0
    }
}

impl HandshakeCounters {
    /// Counts one. Call only from the loop that owns the counters.
    pub(super) fn count(&self, end: HandshakeEnd) {
        let counter = &self.0[end.place()];
        counter.store(counter.load(Relaxed) + 1, Relaxed);
    }

    pub(super) fn snapshot(&self) -> HandshakeCounts {
        HandshakeCounts(array::from_fn(|place| self.0[place].load(Relaxed)))
    }
}

impl HandshakeCounts {
    /// Each result with its version, whether it was resumed, and its count.
    pub(super) fn samples(&self) -> impl Iterator<Item = ([(&'static str, &'static str); 3], u64)> {
        ENDS.iter().zip(self.0).map(|(&(result, version, resumed), count)| {
            ([("result", result), ("version", version), ("resumed", resumed)], count)
        })
    }
}

impl AddAssign for HandshakeCounts {
    fn add_assign(&mut self, other: Self) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, more)| *sum += more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_has_a_counter_of_its_own() {
        use HandshakeFailure::*;
        let failures = [
            NoCertificateForName,
            PlainHttp,
            Unsupported,
            Protocol,
            CertificateRefused,
            ClientCertificate,
            ClientGone,
            Timeout,
            Closed,
        ];
        let finished = [(false, false), (false, true), (true, false), (true, true)]
            .map(|(is_tls13, is_resumed)| HandshakeEnd::Finished { is_tls13, is_resumed });
        let ends = finished.into_iter().chain(failures.map(HandshakeEnd::Failed));
        let counters = HandshakeCounters::default();
        for (place, end) in ends.enumerate() {
            assert_eq!(end.place(), place, "{end:?}");
            (0..=place).for_each(|_| counters.count(end));
        }
        let mut counts = counters.snapshot();
        counts += counters.snapshot();
        let samples: Vec<_> = counts.samples().collect();
        assert_eq!(samples.len(), ENDS.len());
        assert!(samples.iter().enumerate().all(|(at, (_, count))| *count == 2 * (at as u64 + 1)));
        assert_eq!(samples[3].0, [("result", "ok"), ("version", "1.3"), ("resumed", "true")]);
        assert_eq!((ClientGone.name(), Closed.name()), ("client_gone", "closed"));
    }
}
