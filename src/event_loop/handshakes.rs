//! TLS as a loop needs it: which certificate a name gets, and how much of a turn handshakes take.

use std::{sync::Arc, time::Duration};

use super::clock::Throttle;
use crate::{
    app::Peer,
    logging::event,
    metrics::{HandshakeEnd, HandshakeFailure, LoopGauges},
    tls::{Fault, LiveTable, TableView, TlsError},
};

/// Flights of handshakes that are answered in one turn. With RSA one takes up to 1 ms: the others
/// wait behind the connections that have requests.
const FLIGHTS_PER_TURN: u32 = 4;

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
    flights_left: u32,
    failed_log: Throttle,
    /// Failures since the last one that was logged.
    suppressed: u64,
}

impl Handshakes {
    pub(super) fn new(certificates: Arc<LiveTable>) -> Self {
        Self {
            view: TableView::new(certificates),
            flights_left: FLIGHTS_PER_TURN,
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
        self.flights_left = FLIGHTS_PER_TURN;
    }

    /// Whether one more flight may be answered in this turn.
    pub(super) fn take_flight(&mut self) -> bool {
        let may = self.flights_left > 0;
        self.flights_left = self.flights_left.saturating_sub(1);
        may
    }
}
