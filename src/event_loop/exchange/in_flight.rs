//! The account of one exchange, from its complete head until the kernel has its last byte.
//!
//! I3: the guard of an exchange sits here and leaves with it. However an exchange ends, it is
//! counted once: for its life, at its own end or with the exchange that its guard passed on to; or
//! for the loop, if it was refused before it had a life.
//!
//! An exchange lasts from the turn in which its head was complete until the kernel has its last
//! byte. The clock is read again once for all that ends together: in a pipeline many exchanges do.

use std::time::Duration;

use super::super::{context::LoopContext, io::Mark};
use crate::{
    app::Filters,
    hosted::AppGuard,
    logging::{AccessRecord, End, Outcome, RequestId, UpstreamUse},
    registry::AppId,
};

/// An exchange whose answer is not all with the kernel.
pub(in super::super) struct InFlight {
    /// Holds the app's life; none if no app serves this exchange, or a later one has it.
    pub(in super::super) guard: Option<AppGuard>,
    pub(in super::super) record: Option<AccessRecord>,
    /// Method and target, for who looks at what takes long. The one allocation that this costs is
    /// not made for short answers that are written at once: they are most of all, and are gone
    /// before anybody looks.
    pub(in super::super) request: Option<Box<str>>,
    /// Earlier exchanges of this turn that had the guard, and end with this one.
    uncounted: Uncounted,
    /// It was refused before any app's life was found for it.
    pub(in super::super) is_unrouted: bool,
    /// 0 as long as there is no answer.
    pub(in super::super) status: u16,
    /// The upstream broke its answer off.
    pub(in super::super) is_broken: bool,
    /// Bytes of the answer's head.
    pub(in super::super) head_bytes: u32,
    pub(in super::super) started_ns: u64,
    /// Where the answer's content begins in the connection's outbox, and where it ends; unknown as
    /// long as it is not written.
    pub(in super::super) begin: Mark,
    pub(in super::super) end: Mark,
}

/// Exchanges whose guard has passed on, and which are still to be counted.
#[derive(Clone, Copy, Default)]
pub(in super::super) struct Uncounted {
    status: u16,
    /// A turn begins fewer than this holds.
    count: u8,
}

/// What an exchange is counted as that ended without an answer, whoever ended it. It is no status
/// of HTTP; nginx has made it known for this.
const NO_ANSWER: u16 = 499;

impl InFlight {
    pub(in super::super) fn new(
        guard: Option<AppGuard>,
        record: Option<AccessRecord>,
        uncounted: Uncounted,
        started_ns: u64,
    ) -> Self {
        let (begin, end) = (Mark::UNKNOWN, Mark::UNKNOWN);
        Self {
            guard,
            record,
            request: None,
            uncounted,
            is_unrouted: false,
            status: 0,
            is_broken: false,
            head_bytes: 0,
            started_ns,
            begin,
            end,
        }
    }

    /// Its name in the access log, if it has a line there.
    pub(in super::super) fn id(&self) -> Option<RequestId> {
        self.record.as_ref().map(AccessRecord::id)
    }

    /// The life that the exchange holds.
    pub(in super::super) fn life(&self) -> Option<AppId> {
        self.guard.as_ref().map(AppGuard::id)
    }

    /// The host of the app that it belongs to.
    pub(super) fn host(&self) -> Option<&str> {
        self.guard.as_ref().map(|guard| guard.entry().host())
    }

    /// What stands around the app that it belongs to; none if that is nothing.
    #[inline]
    pub(super) fn filters(&self) -> Option<&Filters> {
        let filters = &self.guard.as_ref()?.entry().app().filters;
        (!filters.is_empty()).then_some(filters)
    }

    /// Has its access line tell of the upstream.
    pub(super) fn note_upstream(&mut self, used: &UpstreamUse<'_>, cx: &LoopContext) {
        if let (Some(access), Some(record)) = (&cx.access, &mut self.record) {
            access.note_upstream(record, used);
        }
    }

    /// Whether nothing is left to account for: the guard has passed on, and no line is owed.
    pub(in super::super) fn is_spent(&self) -> bool {
        self.guard.is_none() && self.record.is_none() && !self.is_unrouted
    }

    /// Whether the whole answer is in the connection's output.
    pub(in super::super) fn is_answered(&self) -> bool {
        self.end != Mark::UNKNOWN
    }

    pub(in super::super) fn remember_request(&mut self, method: &str, target: &str) {
        self.request = Some([method, target].join(" ").into());
    }

    /// Where the head of the answer begins in the connection's outbox.
    pub(in super::super) fn head_start(&self) -> Mark {
        self.begin.before(u64::from(self.head_bytes))
    }

    /// The answer was taken back: there is none again.
    pub(in super::super) fn take_back(&mut self) {
        (self.status, self.head_bytes, self.begin, self.end) = (0, 0, Mark::UNKNOWN, Mark::UNKNOWN);
    }

    /// Bytes of the answer that the kernel has taken, head included.
    pub(in super::super) fn bytes_sent(&self, sent: Mark) -> u64 {
        sent.min(self.end).bytes_since(self.head_start())
    }

    /// The guard has passed from this exchange to the next one of its connection. Returns what that
    /// one counts at its end. Only exchanges that began in one turn with one status end alike.
    pub(in super::super) fn pass_guard(&self, guard: &AppGuard, cx: &LoopContext) -> Uncounted {
        let Uncounted { status, count } = self.uncounted;
        if self.started_ns == cx.clock.now_ns() {
            if count == 0 {
                return Uncounted { status: self.status, count: 1 };
            }
            if status == self.status && count < u8::MAX {
                return Uncounted { status, count: count + 1 };
            }
        }
        self.count(guard, cx.clock.read_ns(), cx);
        Uncounted::default()
    }

    /// Counts this exchange, and those that it took over, for the life of a guard.
    fn count(&self, guard: &AppGuard, ended_ns: u64, cx: &LoopContext) {
        let counters = &guard.entry().app().counters;
        let nanos = ended_ns.saturating_sub(self.started_ns);
        let Uncounted { status, count } = self.uncounted;
        if count > 0 && status == self.status {
            return counters.record_all(cx.index, counted(status), nanos, u64::from(count) + 1);
        }
        if count > 0 {
            counters.record_all(cx.index, counted(status), nanos, u64::from(count));
        }
        counters.record(cx.index, counted(self.status), nanos);
    }

    /// The exchange is over at this time, with the connection's outbox sent up to this mark.
    /// Returns whether that cut an exchange of a life.
    pub(in super::super) fn end(
        mut self,
        sent: Mark,
        how: End,
        ended_ns: u64,
        cx: &mut LoopContext,
    ) -> bool {
        let how = if self.is_broken && how != End::Cut { End::UpstreamBroke } else { how };
        if let (Some(record), Some(access)) = (self.record.take(), &mut cx.access) {
            let outcome = Outcome {
                status: self.status,
                bytes: sent.min(self.end).bytes_since(self.begin),
                duration: Duration::from_nanos(ended_ns.saturating_sub(self.started_ns)),
                end: how,
            };
            access.finish(record, &outcome, cx.clock.wall());
        }
        if self.is_unrouted {
            let nanos = ended_ns.saturating_sub(self.started_ns);
            cx.gauges.count_unrouted(counted(self.status), nanos);
        }
        // Last, for it may announce the end of a drain.
        let Some(guard) = self.guard.take() else { return false };
        self.count(&guard, ended_ns, cx);
        if how == End::Cut {
            guard.cut();
        }
        how == End::Cut
    }
}

fn counted(status: u16) -> u16 {
    if status == 0 { NO_ANSWER } else { status }
}
