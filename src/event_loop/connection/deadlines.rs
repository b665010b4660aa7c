//! What a connection waits for, and the deadline of each wait.
//!
//! Each wait has its own limit; the loop's counts of connections follow the waits.
//!
//! A peer that has closed its side may have left, or may just have no more to send; nothing shows
//! which until we send. How a half-close is handled:
//!
//! | the peer closes its side | then |
//! |---|---|
//! | before, or within, a head | nothing is owed: the connection closes |
//! | within a request's content | 400 |
//! | while bytes wait for it | they are sent, within `write_timeout` |
//! | before an answer that is due at a known time | it gets the answer |
//! | before any other answer, or within a streamed answer | [`LEFT_AFTER`] of silence |
//! | in a tunnel | the upstream gets its last bytes, in [`LAST_BYTES_TIMEOUT`] of silence, and is |
//! | | half-closed; from then on [`LEFT_AFTER`] of silence |
//!
//! Every byte, either way, restarts the silence. When it is over, the peer has left: its exchange
//! ends as aborted, the connection to the upstream closes, and no drain waits. A reset is noticed
//! at once.

use std::time::Duration;

use super::{
    super::{
        context::LoopContext,
        exchange::{Awaits, Exchange},
        gate::RESEND_MAX,
    },
    state::{Connection, State},
    waits::Wait,
};
use crate::{app::Peer, duration::milliseconds, http::ServerPhase, io::Mark, message::Class};

/// How long an admin peer on TCP may take for a request's head. Any user of this machine can
/// connect there, and must not hold the places that an operator needs; a real head arrives at once.
const STRANGER_HEAD_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a peer that has closed its side may stay silent.
const LEFT_AFTER: Duration = Duration::from_secs(2);

/// How long the upstream of a tunnel may take none of the last bytes of a client that has closed
/// its side. Longer than [`LEFT_AFTER`], because the bytes may matter; shorter than a drain, which
/// must not wait for an upstream that is stuck.
const LAST_BYTES_TIMEOUT: Duration = Duration::from_secs(10);

impl Connection {
    /// A stop has begun: a connection without a request closes after the grace, unless another
    /// process serves.
    pub(in super::super) fn begin_closing(&mut self, cx: &mut LoopContext) {
        if self.class != Class::Public || !matches!(self.waits.current(), Wait::Fresh | Wait::Idle)
        {
            return;
        }
        if cx.closing.has_successor {
            return self.shorten_to(cx.closing.idle_until_ms, cx);
        }
        self.waits.end();
        self.set_deadline(cx);
    }

    pub(super) fn waits_for(&self) -> Wait {
        let phase = match &self.state {
            State::Opening(_) => return Wait::Fresh,
            State::Lingering { .. } => return Wait::Lingering,
            State::Http(protocol) => protocol.phase(),
        };
        if !self.io.outbox.is_empty() {
            return Wait::Sending;
        }
        if let Some(wait) = self.waits_for_exchanges() {
            return wait;
        }
        match phase {
            ServerPhase::Content => Wait::Content,
            ServerPhase::Head if self.io.has_input() => Wait::Head,
            ServerPhase::Head if self.io.received_total() == 0 => Wait::Fresh,
            ServerPhase::Head => Wait::Idle,
            ServerPhase::Answer | ServerPhase::Closed => Wait::Sending,
        }
    }

    /// The wait for what exchanges wait for, if any does.
    fn waits_for_exchanges(&self) -> Option<Wait> {
        let mut wait = None;
        for awaits in self.exchanges.iter().filter_map(Exchange::awaits) {
            if awaits == Awaits::Time || !self.io.ready.read_closed {
                return Some(Wait::Answer);
            }
            wait = Some(Wait::HalfClosed);
        }
        wait
    }

    /// How long a peer that has closed its side may stay silent.
    fn left_after(&self) -> Duration {
        let tunnels = self.forwardings().filter(|forwarding| !forwarding.has_forwarded_end());
        let timeouts = tunnels.map(|tunnel| tunnel.tunnel_idle_timeout().min(LAST_BYTES_TIMEOUT));
        timeouts.max().unwrap_or(LEFT_AFTER)
    }

    /// Whether its first request hasn't arrived, or hasn't been read.
    pub(in super::super) fn is_new(&self) -> bool {
        let is_first = self.io.outbox.end() == Mark::START;
        is_first && matches!(self.waits_for(), Wait::Fresh | Wait::Head)
    }

    pub(super) fn set_deadline(&mut self, cx: &mut LoopContext) {
        let wait = self.waits_for();
        if self.waits.is_current(wait) {
            return;
        }
        if self.class == Class::Public {
            *self.waits.current().count(&mut cx.accounting.counts) -= 1;
            *wait.count(&mut cx.accounting.counts) += 1;
        }
        let total = match wait {
            Wait::Sending => self.io.outbox.sent_total(),
            _ => self.io.received_total(),
        };
        let is_new = wait != self.waits.current();
        self.waits.begin(wait, total);
        let at = match wait {
            Wait::Answer => self.begin_exchange_waits(is_new, cx.clock.now_ms()),
            _ => self.due_ms(cx),
        };
        self.waits.set(at, self.token, &mut cx.timers);
    }

    /// Begins what exchanges wait for: all of it if the connection's wait is new, else what doesn't
    /// run already. Returns when the first is over. What an app does outside the loop has no end.
    fn begin_exchange_waits(&mut self, is_new: bool, now_ms: u64) -> u64 {
        let waiting = self.exchanges.iter_mut().filter(|exchange| exchange.awaits().is_some());
        let due = waiting.filter_map(|exchange| exchange.begin_wait(is_new, now_ms));
        due.min().unwrap_or(u64::MAX)
    }

    /// Whether this check means that the deadline has passed.
    pub(in super::super) fn is_due(
        &mut self,
        check_at: u64,
        now: u64,
        cx: &mut LoopContext,
    ) -> bool {
        cx.timers.is_due(&mut self.waits.deadline, self.token, check_at, now)
    }

    /// When the deadline passes.
    #[cfg(test)]
    pub(in super::super) fn due_at(&self) -> u64 {
        self.waits.deadline.at()
    }

    /// A stop's grace may be too short for the peer to retransmit what the gate dropped.
    pub(super) fn wait_for_resent(&mut self, cx: &mut LoopContext) {
        let at = cx.clock.passed_ms(RESEND_MAX).max(self.waits.deadline.at());
        self.waits.set(at, self.token, &mut cx.timers);
    }

    /// The deadline of a wait that begins now. Those of exchanges stay.
    fn due_ms(&self, cx: &LoopContext) -> u64 {
        let times = &cx.rules[self.class].times;
        let timeout = match self.waits.current() {
            Wait::Fresh | Wait::Idle
                if cx.closing.applies_to(self.class) && !cx.closing.has_successor =>
            {
                cx.closing.idle_grace
            }
            Wait::Fresh | Wait::Head if self.may_be_stranger() => {
                times.head_timeout.min(STRANGER_HEAD_TIMEOUT)
            }
            Wait::Fresh | Wait::Head => times.head_timeout,
            Wait::Idle => times.keepalive_timeout,
            Wait::Content => times.body_timeout,
            Wait::Sending => times.write_timeout,
            Wait::Lingering => times.linger_timeout,
            Wait::HalfClosed => self.left_after(),
            Wait::Answer => return self.waits.deadline.at(),
        };
        let at = cx.clock.now_ms().saturating_add(milliseconds(timeout));
        let is_bare = matches!(self.waits.current(), Wait::Fresh | Wait::Idle);
        if is_bare && cx.closing.applies_to(self.class) {
            at.min(cx.closing.idle_until_ms)
        } else {
            at
        }
    }

    /// Whether only an admin token can identify the peer.
    fn may_be_stranger(&self) -> bool {
        self.class == Class::Admin && self.peer != Peer::Unix
    }

    /// The time-outs have changed. A wait in progress keeps its deadline or gets an earlier one: a
    /// peer must not gain time with every reload.
    pub(in super::super) fn shorten_deadline(&mut self, cx: &mut LoopContext) {
        let at = self.due_ms(cx);
        self.shorten_to(at, cx);
    }

    /// Moves the deadline to this time, unless it is earlier already.
    pub(super) fn shorten_to(&mut self, at: u64, cx: &mut LoopContext) {
        if at < self.waits.deadline.at() {
            self.waits.set(at, self.token, &mut cx.timers);
        }
    }

    /// Counts the connection in its state.
    pub(in super::super) fn count(&self, cx: &mut LoopContext) {
        if self.class == Class::Public {
            *self.waits.current().count(&mut cx.accounting.counts) += 1;
        }
    }

    /// The connection ends: no longer counts it in its state.
    pub(in super::super) fn uncount(&self, cx: &mut LoopContext) {
        if self.class == Class::Public {
            *self.waits.current().count(&mut cx.accounting.counts) -= 1;
        }
    }
}
