//! TLS as a loop needs it: which certificate a name gets, and how much of a turn handshakes take.

use std::{sync::Arc, time::Duration};

use super::clock::Throttle;
use crate::{
    app::Peer,
    logging::event,
    metrics::{HandshakeEnd, HandshakeFailure, LoopGauges},
    tls::{Fault, LiveTable, TableView, TlsError},
};

/// How long handshakes may take in one turn; the flight that is over it is the last. Those left
/// wait behind the connections that have requests. A flight takes 0.1 ms with P-256, 0.3 ms with
/// RSA-2048: a number of flights would be right for one kind of key only.
const TIME_PER_TURN: Duration = Duration::from_micros(250);

/// Shortest time between two log lines about failed handshakes: any client can make one fail.
const FAILED_LOG_EVERY: Duration = Duration::from_secs(1);

/// A handshake that has failed.
#[derive(Clone, Copy)]
pub(super) struct FailedHandshake<'a> {
    pub(super) failure: HandshakeFailure,
    /// In words.
    pub(super) reason: &'static str,
    /// The name that the client asked for.
    pub(super) name: Option<&'a str>,
}

impl FailedHandshake<'static> {
    pub(super) const UNKNOWN_NAME: Self =
        Self::new(HandshakeFailure::NoCertificateForName, "no app with TLS has this name");
    pub(super) const PLAIN_HTTP: Self =
        Self::new(HandshakeFailure::PlainHttp, "plain HTTP where TLS is spoken");
    pub(super) const CLIENT_GONE: Self =
        Self::new(HandshakeFailure::ClientGone, "the client has left");
    pub(super) const TIMEOUT: Self =
        Self::new(HandshakeFailure::Timeout, "not over within head_timeout");
    pub(super) const CLOSED: Self = Self::new(HandshakeFailure::Closed, "the server stops");

    const fn new(failure: HandshakeFailure, reason: &'static str) -> Self {
        Self { failure, reason, name: None }
    }

    /// A session ended it with an error.
    pub(super) fn of(error: &TlsError) -> Self {
        let failure = match error.fault() {
            Fault::Unsupported => HandshakeFailure::Unsupported,
            Fault::OurCertificate => HandshakeFailure::CertificateRefused,
            Fault::PeerCertificate => HandshakeFailure::ClientCertificate,
            Fault::Protocol => HandshakeFailure::Protocol,
        };
        Self::new(failure, error.reason())
    }
}

/// Certificates, and the handshakes of this turn.
pub(super) struct Handshakes {
    pub(super) view: TableView,
    /// How long flights have taken in this turn.
    spent: Duration,
    failed_log: Throttle,
    /// Failures since the last one that was logged.
    suppressed: u64,
}

impl Handshakes {
    pub(super) fn new(certificates: Arc<LiveTable>) -> Self {
        Self {
            view: TableView::new(certificates),
            spent: Duration::ZERO,
            failed_log: Throttle::default(),
            suppressed: 0,
        }
    }

    /// Counts a handshake that has failed, and logs it if none was logged in the last second.
    pub(super) fn on_failed(
        &mut self,
        failed: &FailedHandshake<'_>,
        peer: Peer,
        gauges: &LoopGauges,
        now_ms: u64,
    ) {
        gauges.count_handshake(HandshakeEnd::Failed(failed.failure));
        if !self.failed_log.passes(now_ms, FAILED_LOG_EVERY) {
            self.suppressed += 1;
            return;
        }
        let suppressed = std::mem::take(&mut self.suppressed);
        let Peer::Tcp(peer) = peer else { return };
        // Clients of the open internet fail all the time: not a line that a default log has.
        event!(
            Debug,
            "tls_handshake_failed",
            peer:% = peer,
            name = failed.name,
            result = failed.failure.name(),
            reason = failed.reason,
            suppressed = suppressed,
        );
    }

    /// A turn of the loop begins.
    pub(super) fn begin_turn(&mut self) {
        self.spent = Duration::ZERO;
    }

    /// Whether one more flight may be answered in this turn.
    pub(super) fn may_go_on(&self) -> bool {
        self.spent < TIME_PER_TURN
    }

    /// A flight has taken so long.
    pub(super) fn spend(&mut self, time: Duration) {
        self.spent += time;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_answers_cheap_flights_or_one_that_is_expensive() {
        let mut handshakes = Handshakes::new(Arc::default());
        let mut flights = |each_us| {
            handshakes.begin_turn();
            let mut flights = 0;
            while handshakes.may_go_on() {
                handshakes.spend(Duration::from_micros(each_us));
                flights += 1;
            }
            flights
        };
        assert_eq!([flights(80), flights(300), flights(5000)], [4, 1, 1]);
    }
}
