//! The account of one exchange, from its complete head until the kernel has its last byte.
//!
//! I3: the guard of an exchange sits here and leaves with it. However an exchange ends, it is
//! counted once for its life: at its own end, or when its guard passes on to the next one.

use std::time::Duration;

use super::LoopContext;
use crate::{
    logging::{AccessRecord, End, Outcome, RequestId},
    message::AppGuard,
    registry::AppId,
};

/// An exchange whose answer is not all with the kernel.
pub(super) struct InFlight {
    /// Holds the app's life; none if no app serves this exchange, or a later one has it.
    pub(super) guard: Option<AppGuard>,
    pub(super) record: Option<AccessRecord>,
    /// Method and target, for who looks at what takes long. The one allocation that this costs is
    /// not made for short answers that are written at once: they are most of all, and are gone
    /// before anybody looks.
    pub(super) request: Option<Box<str>>,
    /// 0 as long as there is no answer.
    pub(super) status: u16,
    /// The upstream broke its answer off.
    pub(super) is_broken: bool,
    /// Bytes of the answer's head.
    pub(super) head_bytes: u32,
    pub(super) started_ns: u64,
    /// Where the answer's content begins in the connection's output, and where it ends: never, as
    /// long as it is not written.
    pub(super) begin: u64,
    pub(super) end: u64,
}

/// What an exchange is counted as that ended without an answer, whoever ended it. It is no status
/// of HTTP; nginx has made it known for this.
const NO_ANSWER: u16 = 499;

impl InFlight {
    pub(super) fn new(
        guard: Option<AppGuard>,
        record: Option<AccessRecord>,
        started_ns: u64,
    ) -> Self {
        let (begin, end) = (u64::MAX, u64::MAX);
        Self {
            guard,
            record,
            request: None,
            status: 0,
            is_broken: false,
            head_bytes: 0,
            started_ns,
            begin,
            end,
        }
    }

    /// Its name in the access log, if it has a line there.
    pub(super) fn id(&self) -> Option<RequestId> {
        self.record.as_ref().map(AccessRecord::id)
    }

    /// The life that the exchange holds.
    pub(super) fn life(&self) -> Option<AppId> {
        self.guard.as_ref().map(AppGuard::id)
    }

    /// Whether nothing is left to account for: the guard has passed on, and no line is owed.
    pub(super) fn is_spent(&self) -> bool {
        self.guard.is_none() && self.record.is_none()
    }

    /// Whether the whole answer is in the connection's output.
    pub(super) fn is_answered(&self) -> bool {
        self.end != u64::MAX
    }

    pub(super) fn remember_request(&mut self, method: &str, target: &str) {
        self.request = Some([method, target].join(" ").into());
    }

    /// Where the head of the answer begins in the connection's output.
    pub(super) fn head_start(&self) -> u64 {
        self.begin.saturating_sub(u64::from(self.head_bytes))
    }

    /// The answer was taken back: there is none again.
    pub(super) fn take_back(&mut self) {
        (self.status, self.head_bytes, self.begin, self.end) = (0, 0, u64::MAX, u64::MAX);
    }

    /// Bytes of the answer that the kernel has taken, head included.
    pub(super) fn bytes_sent(&self, sent_total: u64) -> u64 {
        sent_total.min(self.end).saturating_sub(self.head_start())
    }

    /// Counts this exchange for the life of a guard. The time is that of the turns: what begins and
    /// ends in one turn took none, and no clock is read for it.
    pub(super) fn count(&self, guard: &AppGuard, cx: &LoopContext) {
        let status = if self.status == 0 { NO_ANSWER } else { self.status };
        let nanos = cx.clock.now_ns().saturating_sub(self.started_ns);
        guard.entry().app().counters.record(cx.index, status, nanos);
    }

    /// The exchange is over, with so many bytes of the connection's output sent. Returns whether
    /// that cut an exchange of a life.
    pub(super) fn end(mut self, sent_total: u64, how: End, cx: &mut LoopContext) -> bool {
        let how = if self.is_broken && how != End::Cut { End::UpstreamBroke } else { how };
        if let (Some(record), Some(access)) = (self.record.take(), &mut cx.access) {
            let outcome = Outcome {
                status: self.status,
                bytes: sent_total.min(self.end).saturating_sub(self.begin),
                duration: Duration::from_nanos(cx.clock.read_ns().saturating_sub(self.started_ns)),
                end: how,
            };
            access.finish(record, &outcome, cx.clock.wall());
        }
        // Last, for it may announce the end of a drain.
        let Some(guard) = self.guard.take() else { return false };
        self.count(&guard, cx);
        if how == End::Cut {
            guard.cut();
        }
        how == End::Cut
    }
}
