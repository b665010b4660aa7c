//! How a request of a drill ended, and how many ended in each way.

use std::time::Duration;

use super::plan::{Action, ClientKind};

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RequestOutcome {
    /// A complete answer with this status, except 503.
    Answered(u16),
    /// A complete 503.
    Refused,
    /// The connection was not established.
    NotAccepted(FailureDetails),
    /// Connected, but the TLS handshake was not completed.
    FailedHandshake(FailureDetails),
    /// Connected, but no byte of an answer arrived.
    Lost(FailureDetails),
    /// An answer began but did not arrive in full.
    Truncated(FailureDetails),
    /// The client closed before the end of the answer, as planned.
    Left,
}

/// The details of a failed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FailureDetails {
    pub(crate) phase: RequestPhase,
    /// Bytes of the request that the kernel accepted.
    pub(crate) sent: u64,
    /// Bytes of the answer that arrived.
    pub(crate) received: u64,
    /// Requests that were answered earlier on the connection.
    pub(crate) served: u64,
    /// How long connecting took, if it succeeded.
    pub(crate) connecting: Option<Duration>,
    /// The socket's error.
    pub(crate) said: String,
    /// The client's port; 0 if there was none.
    pub(crate) port: u16,
}

/// How far a request got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RequestPhase {
    /// Waited for a connection: all connections for its kind of client were in use.
    Queued,
    Connecting,
    Handshaking,
    Sending,
    Waiting,
    Reading,
}

impl RequestPhase {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Queued => "waiting for a connection",
            Self::Connecting => "connecting",
            Self::Handshaking => "handshaking",
            Self::Sending => "sending",
            Self::Waiting => "waiting",
            Self::Reading => "reading",
        }
    }
}

/// The action that a request is booked under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Booking {
    /// Before any action.
    Before,
    Under(Action),
    /// The request was not answered, and several different actions may be the cause.
    Several,
}

/// A request that has ended.
#[derive(Clone, Debug)]
pub(crate) struct EndedRequest {
    pub(crate) due: Duration,
    /// When it was sent, or would have been sent.
    pub(crate) begun: Duration,
    pub(crate) ended: Duration,
    /// The client's own pauses.
    pub(crate) pause: Duration,
    pub(crate) kind: ClientKind,
    pub(crate) target: usize,
    pub(crate) outcome: RequestOutcome,
}

/// A lost or truncated request, or one whose handshake failed.
#[derive(Clone, Debug)]
pub(crate) struct FailedRequest {
    pub(crate) result: &'static str,
    pub(crate) due: Duration,
    pub(crate) begun: Duration,
    pub(crate) ended: Duration,
    pub(crate) kind: ClientKind,
    pub(crate) target: usize,
    /// The index of the action in the list of runs.
    pub(crate) run: Option<usize>,
    pub(crate) details: FailureDetails,
}

/// How many requests ended in each way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) sent: u64,
    pub(crate) answered: u64,
    /// Answered with a different status than before the actions.
    pub(crate) changed: u64,
    pub(crate) left: u64,
    pub(crate) refused: u64,
    pub(crate) not_accepted: u64,
    /// The handshake of their connection failed.
    pub(crate) failed_handshake: u64,
    pub(crate) lost: u64,
    pub(crate) truncated: u64,
}

impl Tally {
    /// All requests that have ended.
    pub(crate) fn ended(&self) -> u64 {
        let Self { answered, changed, left, refused, not_accepted, .. } = self;
        answered + changed + left + refused + not_accepted + self.failed()
    }

    /// Requests lost or truncated, or without a handshake.
    pub(crate) fn failed(&self) -> u64 {
        self.failed_handshake + self.lost + self.truncated
    }

    pub(super) fn count(&mut self, outcome: &RequestOutcome, is_changed: bool) {
        *match outcome {
            RequestOutcome::Answered(_) if is_changed => &mut self.changed,
            RequestOutcome::Answered(_) => &mut self.answered,
            RequestOutcome::Left => &mut self.left,
            RequestOutcome::Refused => &mut self.refused,
            RequestOutcome::NotAccepted(_) => &mut self.not_accepted,
            RequestOutcome::FailedHandshake(_) => &mut self.failed_handshake,
            RequestOutcome::Lost(_) => &mut self.lost,
            RequestOutcome::Truncated(_) => &mut self.truncated,
        } += 1;
    }
}
