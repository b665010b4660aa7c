//! Why a proxied request has no answer, or an incomplete one: the list of all causes.
//!
//! Every 502, 503 and 504 of a proxy has one of these causes. Logs, an app's row, access lines and
//! metrics use the same names. The client gets a status and a sentence that names no upstream.
//! [`FailureLog`] counts failures and keeps the last one.
//!
//! - Each loop writes its own counters. They are allocated at its first failure.
//! - A failure takes a lock, to store the last failure and to log at most one a second. A success
//!   takes no lock and writes nothing here.

use std::{
    fmt, io,
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use rustix::io::Errno;

use crate::{
    http::{Refused, Response},
    tls::TlsError,
};

/// Why an upstream gave no answer, or an incomplete one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureCause {
    /// No upstream that is not drained has an address: their names do not resolve.
    ResolveFailed,
    /// All upstreams are down, or some are down and the others drained.
    NoUpstreamUp,
    /// All upstreams are drained.
    AllDrained,
    /// This machine has no descriptor, memory or port for a connection.
    NoDescriptors,
    /// Nothing listens at the upstream's address.
    ConnectRefused,
    /// The handshake took longer than `connect_timeout`, or than the kernel waits.
    ConnectTimeout,
    /// connect(2) failed for another reason: no route, no such socket, no permission.
    ConnectFailed,
    /// The handshake of TLS failed: a certificate isn't accepted, or it isn't TLS.
    TlsHandshake,
    /// The upstream closed the connection before the head of its answer was complete.
    ClosedBeforeAnswer,
    /// The connection was reset or lost before the head of the answer was complete.
    ResetBeforeAnswer,
    /// The upstream was silent for `answer_timeout`.
    AnswerTimeout,
    /// The upstream sends its answer too slowly.
    AnswerTooSlow,
    /// The head of the answer exceeds a limit.
    HeadTooLarge,
    /// The head of the answer is malformed or ambiguous.
    BadHead,
    /// The framing of the answer's content is malformed.
    BadBody,
    /// The connection ended before the answer's content did.
    BodyBrokeOff,
    /// The upstream reset the connection of a tunnel.
    TunnelBrokeOff,
}

impl FailureCause {
    /// All causes.
    pub(crate) const ALL: [Self; 17] = [
        Self::ResolveFailed,
        Self::NoUpstreamUp,
        Self::AllDrained,
        Self::NoDescriptors,
        Self::ConnectRefused,
        Self::ConnectTimeout,
        Self::ConnectFailed,
        Self::TlsHandshake,
        Self::ClosedBeforeAnswer,
        Self::ResetBeforeAnswer,
        Self::AnswerTimeout,
        Self::AnswerTooSlow,
        Self::HeadTooLarge,
        Self::BadHead,
        Self::BadBody,
        Self::BodyBrokeOff,
        Self::TunnelBrokeOff,
    ];

    /// The name in logs, admin answers and metrics. Names never change.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ResolveFailed => "resolve_failed",
            Self::NoUpstreamUp => "no_upstream_up",
            Self::AllDrained => "all_drained",
            Self::NoDescriptors => "no_descriptors",
            Self::ConnectRefused => "connect_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::ConnectFailed => "connect_failed",
            Self::TlsHandshake => "tls_handshake",
            Self::ClosedBeforeAnswer => "closed_before_answer",
            Self::ResetBeforeAnswer => "reset_before_answer",
            Self::AnswerTimeout => "answer_timeout",
            Self::AnswerTooSlow => "answer_too_slow",
            Self::HeadTooLarge => "head_too_large",
            Self::BadHead => "bad_head",
            Self::BadBody => "bad_body",
            Self::BodyBrokeOff => "body_broke_off",
            Self::TunnelBrokeOff => "tunnel_broke_off",
        }
    }

    /// Whether it is the upstream's fault. If not, it is this machine's, or no upstream was asked.
    pub(crate) fn is_upstreams(self) -> bool {
        !matches!(
            self,
            Self::ResolveFailed | Self::NoUpstreamUp | Self::AllDrained | Self::NoDescriptors
        )
    }

    /// Whether it counts towards an ejection of the upstream. A reset tunnel does not: it may have
    /// been open for hours, and says nothing about the next request.
    pub(super) fn ejects(self) -> bool {
        self.is_upstreams() && self != Self::TunnelBrokeOff
    }

    /// The answer to the client. It does not disclose upstreams or what they sent.
    pub(crate) fn response(self) -> Response<'static> {
        let (status, document) = match self {
            Self::ResolveFailed | Self::NoUpstreamUp => {
                (503, r#"{"error":"All upstreams are down"}"#)
            }
            Self::AllDrained => (503, r#"{"error":"All upstreams are drained"}"#),
            Self::NoDescriptors => (503, r#"{"error":"Out of connections"}"#),
            Self::ConnectRefused
            | Self::ConnectTimeout
            | Self::ConnectFailed
            | Self::TlsHandshake
            | Self::ClosedBeforeAnswer
            | Self::ResetBeforeAnswer => (502, r#"{"error":"No upstream answered"}"#),
            Self::AnswerTimeout | Self::AnswerTooSlow => {
                (504, r#"{"error":"The upstream did not answer in time"}"#)
            }
            Self::HeadTooLarge
            | Self::BadHead
            | Self::BadBody
            | Self::BodyBrokeOff
            | Self::TunnelBrokeOff => (502, r#"{"error":"The upstream's answer is not usable"}"#),
        };
        let response = Response::json(status, document);
        if self == Self::NoDescriptors { response.with_field("Retry-After", "1") } else { response }
    }
}

/// One failure: its cause and its details.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UpstreamFailure {
    pub(crate) cause: FailureCause,
    /// Whether the head of the answer had come.
    pub(super) is_behind_head: bool,
    detail: Detail,
}

/// The details of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Detail {
    Text(&'static str),
    Os(Errno),
}

/// Errors of this machine, not of an upstream (socket(2), connect(2), epoll_ctl(2)).
const OWN_ERRORS: &[Errno] =
    &[Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::NOSPC, Errno::ADDRNOTAVAIL];

impl UpstreamFailure {
    /// A failure with this text as details.
    pub(crate) const fn new(cause: FailureCause, text: &'static str) -> Self {
        Self { cause, is_behind_head: false, detail: Detail::Text(text) }
    }

    /// A connection could not be opened, with this error.
    pub(crate) fn connect(error: &io::Error) -> Self {
        let Some(errno) = Errno::from_io_error(error) else {
            return Self::new(FailureCause::ConnectFailed, "the address cannot be connected to");
        };
        let cause = match errno {
            Errno::CONNREFUSED => FailureCause::ConnectRefused,
            Errno::TIMEDOUT => FailureCause::ConnectTimeout,
            errno if OWN_ERRORS.contains(&errno) => FailureCause::NoDescriptors,
            _ => FailureCause::ConnectFailed,
        };
        Self { cause, is_behind_head: false, detail: Detail::Os(errno) }
    }

    /// The same failure, after the head of the answer.
    pub(crate) fn behind_head(self) -> Self {
        Self { is_behind_head: true, ..self }
    }

    /// The handshake of TLS failed, with this error.
    pub(crate) fn handshake(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Self::new(FailureCause::TlsHandshake, "closed within the TLS handshake");
        }
        Self::receive(FailureCause::TlsHandshake, error)
    }

    /// Whether an upstream refuses our certificate, or our lack of one. In TLS 1.3 that comes after
    /// the handshake is over for us.
    pub(crate) fn is_refused_certificate(error: &io::Error) -> bool {
        TlsError::behind(error).is_some_and(TlsError::is_about_certificates)
    }

    /// recv(2) failed, or the TLS session did.
    pub(crate) fn receive(cause: FailureCause, error: &io::Error) -> Self {
        if let Some(error) = TlsError::behind(error) {
            return Self::new(cause, error.reason());
        }
        let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
        Self { cause, is_behind_head: false, detail: Detail::Os(errno) }
    }

    /// The protocol refused what the upstream sent, in the head or after it.
    pub(crate) fn refused(refused: Refused, is_behind_head: bool) -> Self {
        let cause = match refused.status {
            _ if is_behind_head => FailureCause::BadBody,
            431 => FailureCause::HeadTooLarge,
            _ => FailureCause::BadHead,
        };
        Self::new(cause, refused.reason)
    }
}

impl fmt::Display for UpstreamFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.detail {
            Detail::Text(text) => f.write_str(text),
            Detail::Os(errno) => io::Error::from(errno).fmt(f),
        }
    }
}

/// The failures of one upstream, or those of an app that had no upstream to ask.
#[derive(Debug)]
pub(super) struct FailureLog {
    loops: Box<[OnceLock<Box<Counts>>]>,
    recent: Mutex<Recent>,
}

type Counts = [AtomicU64; FailureCause::ALL.len()];

#[derive(Clone, Copy, Debug, Default)]
struct Recent {
    last: Option<LastFailure>,
    /// When a failure was last logged.
    logged_ns: Option<u64>,
    /// How many were not logged since then.
    suppressed: u64,
}

/// The last failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LastFailure {
    pub(crate) failure: UpstreamFailure,
    /// When, in nanoseconds since the process's epoch.
    pub(crate) at_ns: u64,
}

/// Failures of one upstream are logged at most this often.
const LOG_EVERY_NS: u64 = 1_000_000_000;

impl FailureLog {
    pub(super) fn new(loops: usize) -> Self {
        let loops = (0..loops).map(|_| OnceLock::new()).collect();
        Self { loops, recent: Mutex::default() }
    }

    /// Counts and stores a failure. If it should be logged, returns how many were not logged since
    /// the last logged one.
    pub(super) fn note(
        &self,
        loop_index: usize,
        failure: UpstreamFailure,
        now_ns: u64,
    ) -> Option<u64> {
        let counts = self.loops[loop_index].get_or_init(Box::default);
        let count = &counts[failure.cause as usize];
        count.store(count.load(Relaxed).wrapping_add(1), Relaxed);
        let mut recent = self.lock();
        recent.last = Some(LastFailure { failure, at_ns: now_ns });
        let is_new =
            recent.logged_ns.is_none_or(|at_ns| now_ns.saturating_sub(at_ns) >= LOG_EVERY_NS);
        if !is_new {
            recent.suppressed += 1;
            return None;
        }
        recent.logged_ns = Some(now_ns);
        Some(std::mem::take(&mut recent.suppressed))
    }

    /// The number of failures of each cause that occurred.
    pub(super) fn counts(&self) -> Vec<(FailureCause, u64)> {
        let seen = || self.loops.iter().filter_map(OnceLock::get);
        let sum = |cause: FailureCause| {
            seen().map(|counts| counts[cause as usize].load(Relaxed)).sum::<u64>()
        };
        let all = FailureCause::ALL.into_iter().map(|cause| (cause, sum(cause)));
        all.filter(|(_, count)| *count > 0).collect()
    }

    pub(super) fn last(&self) -> Option<LastFailure> {
        self.lock().last
    }

    /// Takes over the last failure from an earlier life. Counts are not taken over (I4).
    pub(super) fn take_over(&self, old: &Self) {
        let before = *old.lock();
        *self.lock() = before;
    }

    fn lock(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED: UpstreamFailure = UpstreamFailure::new(FailureCause::ConnectRefused, "refused");

    #[test]
    fn the_documents_name_every_cause() {
        let page = include_str!("../../../docs/proxying.md");
        for (index, cause) in FailureCause::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, index, "{cause:?}");
            assert!(page.contains(&format!("`{}`", cause.name())), "{}", cause.name());
        }
    }

    #[test]
    fn the_answer_to_the_client_does_not_disclose_the_upstream() {
        for cause in FailureCause::ALL {
            let response = cause.response();
            assert!((502..=504).contains(&response.status()), "{cause:?}");
            let text = String::from_utf8_lossy(response.content()).into_owned();
            assert!(text.starts_with("{\"error\":\"") && !text.contains(cause.name()), "{text}");
        }
    }

    #[test]
    fn the_cause_of_a_failed_connect_is_its_errno() {
        for (errno, cause) in [
            (Errno::CONNREFUSED, FailureCause::ConnectRefused),
            (Errno::TIMEDOUT, FailureCause::ConnectTimeout),
            (Errno::MFILE, FailureCause::NoDescriptors),
            (Errno::HOSTUNREACH, FailureCause::ConnectFailed),
            (Errno::NOENT, FailureCause::ConnectFailed),
        ] {
            let failure = UpstreamFailure::connect(&errno.into());
            assert_eq!(failure.cause, cause);
            assert_eq!(failure.to_string(), io::Error::from(errno).to_string());
        }
    }

    #[test]
    fn one_failure_a_second_is_logged_and_the_others_are_counted() {
        let log = FailureLog::new(2);
        let second = LOG_EVERY_NS;
        let logged = [5, 6, second, second + 4, second + 5, 4 * second, 4 * second + 1]
            .map(|now_ns| log.note((now_ns % 2) as usize, REFUSED, now_ns));
        assert_eq!(logged, [Some(0), None, None, None, Some(3), Some(0), None]);
        assert_eq!(log.counts(), [(FailureCause::ConnectRefused, 7)]);
        let last = LastFailure { failure: REFUSED, at_ns: 4 * second + 1 };
        assert_eq!(log.last(), Some(last));
        // The next life starts its counts at 0, but keeps the time of the last log line.
        let again = FailureLog::new(2);
        again.take_over(&log);
        assert_eq!((again.counts(), again.last()), (Vec::new(), Some(last)));
        assert_eq!(again.note(0, REFUSED, 5 * second - 1), None);
        assert_eq!(again.note(0, REFUSED, 5 * second), Some(2));
    }
}
