//! The state of an exchange with an upstream, and its connection.

use std::{io, time::Duration};

use super::{
    super::{
        super::{context::LoopContext, upstream::UpstreamConn},
        content::WAITING_BYTES_MAX,
    },
    activity::Activity,
    pace::Pace,
    sent_request::SentRequest,
    tries::Tries,
};
use crate::{
    app::{ChosenUpstream, FailureCause, Forward, OneUpstream, UpstreamFailure},
    config::DrainTunnels,
    duration::milliseconds,
    http::{RequestContent, h1},
    io::{BufferPool, Received},
};

/// A forwarded exchange.
pub(in super::super::super) struct Forwarding {
    pub(in super::super) forward: Forward,
    pub(in super::super) chosen: ChosenUpstream,
    pub(in super::super) tries: Tries,
    pub(in super::super) conn: UpstreamConn,
    pub(in super::super) client: h1::Client,
    pub(in super::super) content: RequestContent,
    pub(in super::super) request: SentRequest,
    pub(in super::super) stage: Stage,
    /// The client's content waits for the upstream's 100.
    pub(in super::super) awaits_continue: bool,
    pub(in super::super) activity: Activity,
    pub(in super::super) pace: Pace,
    /// When the current wait is over, in milliseconds of the loop's clock.
    pub(in super::super) due_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Stage {
    /// The client has no head of an answer yet.
    Asking,
    Answering,
    Tunnel {
        client_ended: bool,
        upstream_ended: bool,
    },
}

impl Stage {
    pub(super) fn is_tunnel(self) -> bool {
        matches!(self, Self::Tunnel { .. })
    }

    /// The failure of an upstream that closes before its answer is complete.
    pub(super) fn ended_early(self, client: &h1::Client) -> UpstreamFailure {
        let (cause, text) = match self {
            Self::Asking if client.answered() => {
                (FailureCause::ClosedBeforeAnswer, "closed within the head of the answer")
            }
            Self::Asking => (FailureCause::ClosedBeforeAnswer, "closed without an answer"),
            Self::Answering | Self::Tunnel { .. } => {
                (FailureCause::BodyBrokeOff, "closed within the content")
            }
        };
        UpstreamFailure::new(cause, text)
    }
}

/// How long an upstream may take to answer `Expect: 100-continue`. Then the content is sent without
/// a 100, as a client would do (RFC 9110 §10.1.1).
const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);

/// How often a tunnel is checked that a drain may cut.
const TUNNEL_CHECK_EVERY: Duration = Duration::from_millis(250);

/// Reads from an upstream before others get a turn.
pub(super) const READS_PER_TURN: usize = 8;

impl Forwarding {
    /// Whether the upstream takes more of the request's content.
    pub(in super::super::super) fn can_take_more(&self) -> bool {
        self.conn.is_open() && self.conn.io.outbox.buffered() <= WAITING_BYTES_MAX
    }

    /// Whether something came.
    pub(in super::super) fn has_more(&self) -> bool {
        self.conn.is_open() && self.conn.io.ready.readable
    }

    /// Makes epoll report the connection's state again.
    pub(in super::super::super) fn rewatch(&self, cx: &LoopContext) -> io::Result<()> {
        cx.upstreams.rewatch(self.conn.io.socket(), self.conn.token)
    }

    /// Method and target, as the upstream gets them.
    pub(in super::super::super) fn request(&self) -> Option<(&str, &str)> {
        self.forward.request()
    }

    /// Whether no byte of the request was sent, but can be.
    pub(in super::super::super) fn is_unsent(&self) -> bool {
        self.conn.is_open() && self.is_nothing_sent() && self.conn.io.ready.writable
    }

    /// Whether the kernel has no byte of the request.
    pub(in super::super) fn is_nothing_sent(&self) -> bool {
        self.request.is_unsent(&self.conn.io.outbox)
    }

    pub(in super::super::super) fn is_opening(&self) -> bool {
        !self.conn.is_open()
    }

    /// Whether it is a tunnel.
    pub(in super::super::super) fn is_tunnel(&self) -> bool {
        self.stage.is_tunnel()
    }

    /// Whether the client is next: its content was asked for.
    pub(in super::super::super) fn is_waiting_for_client(&self) -> bool {
        let is_asked_for = !self.awaits_continue && !self.client.request_done();
        self.stage == Stage::Asking && is_asked_for && self.conn.io.outbox.is_empty()
    }

    /// Whether the upstream got the client's end; true for anything but a tunnel.
    pub(in super::super::super) fn has_forwarded_end(&self) -> bool {
        !matches!(self.stage, Stage::Tunnel { client_ended: false, .. })
    }

    /// Whether it is forwarded to this upstream.
    pub(in super::super::super) fn is_forwarding_to(&self, upstream: &OneUpstream) -> bool {
        upstream.is_that_of(&self.chosen)
    }

    /// Sends the outbox to the upstream. An upstream that takes no more may have answered already,
    /// so the read reports the error.
    pub(super) fn flush(&mut self, pool: &mut BufferPool) {
        let io = &mut self.conn.io;
        if !io.has_unsent() || !io.ready.writable {
            return;
        }
        self.activity.note(true);
        if io.flush(pool).is_err() {
            (io.ready.writable, io.ready.readable) = (false, true);
        }
    }

    /// Returns the buffers of TLS that hold nothing: an answer may be long in coming.
    pub(in super::super) fn rest(&mut self, pool: &mut BufferPool) {
        if self.conn.io.is_tls() {
            self.conn.io.release(pool);
        }
    }

    /// Reads once from the upstream.
    pub(super) fn receive(&mut self, pool: &mut BufferPool) -> Result<Received, UpstreamFailure> {
        match self.conn.io.receive(pool) {
            // A head longer than the limit is refused before this.
            Ok(Received::Full) => {
                Err(UpstreamFailure::new(FailureCause::HeadTooLarge, "response head too long"))
            }
            Ok(received) => {
                self.activity.note(received != Received::Nothing);
                Ok(received)
            }
            Err(error) => Err(self.lost(&error)),
        }
    }

    pub(super) fn lost(&self, error: &io::Error) -> UpstreamFailure {
        let is_handshake = !self.conn.is_used && UpstreamFailure::is_refused_certificate(error);
        let cause = match self.stage {
            Stage::Asking if is_handshake => FailureCause::TlsHandshake,
            Stage::Asking => FailureCause::ResetBeforeAnswer,
            Stage::Answering => FailureCause::BodyBrokeOff,
            Stage::Tunnel { .. } => FailureCause::TunnelBrokeOff,
        };
        UpstreamFailure::receive(cause, error)
    }

    /// How long a tunnel may be silent.
    pub(in super::super::super) fn tunnel_idle_timeout(&self) -> Duration {
        self.forward.config().tunnel_idle_timeout
    }

    /// Begins the current wait, unless it runs already and isn't to begin again. Returns its end.
    pub(in super::super) fn begin_wait(&mut self, again: bool, now_ms: u64) -> u64 {
        if let Some(due_ms) = self.due_ms
            && !again
        {
            return due_ms;
        }
        let due_ms = now_ms.saturating_add(milliseconds(self.timeout()));
        self.due_ms = Some(due_ms);
        due_ms
    }

    /// How long the current wait may last.
    fn timeout(&self) -> Duration {
        let config = self.forward.config();
        match self.stage {
            _ if self.is_opening() => config.connect_timeout,
            // Checked regularly: its app may have begun to drain.
            Stage::Tunnel { .. } if config.drain_tunnels != DrainTunnels::Keep => {
                config.tunnel_idle_timeout.min(TUNNEL_CHECK_EVERY)
            }
            Stage::Tunnel { .. } => config.tunnel_idle_timeout,
            Stage::Asking if self.awaits_continue => config.answer_timeout.min(CONTINUE_TIMEOUT),
            Stage::Asking | Stage::Answering => config.answer_timeout,
        }
    }
}
