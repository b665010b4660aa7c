//! The accounting of one exchange, from its complete head until the kernel has its last byte.
//!
//! I3: an exchange holds its guard here, and drops it when it ends. However it ends, it is counted
//! once: for its life, at its own end or with the exchange that took over its guard; or for the
//! loop, if it was refused before it had a life.
//!
//! An exchange begins in the turn in which its head was complete. The clock is read once for all
//! exchanges that end together: in a pipeline there are many.

use std::time::Duration;

use super::{super::context::LoopContext, content::Content};
use crate::{
    app::Filters,
    hosted::AppGuard,
    http::Response,
    io::Mark,
    logging::{AccessOutcome, AccessRecord, End, RequestId, UpstreamUse},
    registry::AppId,
};

/// An exchange in flight: the kernel doesn't have its last byte yet.
pub(in super::super) struct InFlight {
    /// Holds the app's life; `None` if no app serves this exchange, or a later one took the guard.
    pub(in super::super) guard: Option<AppGuard>,
    pub(in super::super) record: Option<AccessRecord>,
    /// Method and target, for lists of slow requests. Short answers that are written at once don't
    /// pay for this allocation: most answers are short, and end before a list can show them.
    pub(in super::super) request: Option<Box<str>>,
    /// Earlier exchanges of this turn: this one took over their guard, and counts them at its
    /// end.
    uncounted: Uncounted,
    /// It was refused before an app's life was found for it.
    pub(in super::super) is_unrouted: bool,
    /// 0 as long as there is no answer.
    pub(in super::super) status: u16,
    /// How it ends when the kernel has its last byte.
    pub(super) how: End,
    /// Bytes of the answer's head.
    pub(in super::super) head_bytes: u32,
    pub(in super::super) started_ns: u64,
    /// Where the answer's content begins and ends in the connection's outbox; unknown until it is
    /// written.
    pub(in super::super) begin: Mark,
    pub(in super::super) end: Mark,
    /// Content that doesn't go straight to the outbox, or the stage that waits for it.
    pub(super) content: Option<Box<Content>>,
}

/// Exchanges that have passed their guard on, and still have to be counted.
#[derive(Clone, Copy, Default)]
pub(in super::super) struct Uncounted {
    status: u16,
    /// A turn begins fewer exchanges than this type holds.
    count: u8,
}

/// The status that is counted for an exchange without an answer, whichever side ended it. It isn't
/// an HTTP status; nginx made it known for this.
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
            how: End::Complete,
            head_bytes: 0,
            started_ns,
            begin,
            end,
            content: None,
        }
    }

    /// Its request id in the access log, if it is logged.
    pub(in super::super) fn id(&self) -> Option<RequestId> {
        self.record.as_ref().map(AccessRecord::id)
    }

    /// The life that the exchange holds.
    pub(in super::super) fn life(&self) -> Option<AppId> {
        self.guard.as_ref().map(AppGuard::id)
    }

    /// The host of its app.
    pub(super) fn host(&self) -> Option<&str> {
        self.guard.as_ref().map(|guard| guard.entry().host())
    }

    /// The filters of its app; `None` if it has none.
    #[inline]
    pub(super) fn filters(&self) -> Option<&Filters> {
        let filters = &self.guard.as_ref()?.entry().app().filters;
        (!filters.is_empty()).then_some(filters)
    }

    /// Adds the upstream to its access log record.
    pub(super) fn note_upstream(&mut self, used: &UpstreamUse<'_>, cx: &LoopContext) {
        if let (Some(access), Some(record)) = (&cx.accounting.access, &mut self.record) {
            access.note_upstream(record, used);
        }
    }

    /// Whether nothing is left to count or log: the guard was passed on, and there is no record.
    pub(in super::super) fn is_spent(&self) -> bool {
        self.guard.is_none() && self.record.is_none() && !self.is_unrouted
    }

    /// Whether the whole answer is in the connection's outbox.
    pub(in super::super) fn is_answered(&self) -> bool {
        self.end != Mark::UNKNOWN
    }

    /// Whether the kernel has the whole answer, with the outbox sent up to this mark.
    pub(in super::super) fn is_sent(&self, sent: Mark) -> bool {
        self.end <= sent
    }

    pub(in super::super) fn remember_request(&mut self, method: &str, target: &str) {
        self.request = Some([method, target].join(" ").into());
    }

    /// Where the answer's head begins in the connection's outbox.
    pub(in super::super) fn head_start(&self) -> Mark {
        self.begin.before(u64::from(self.head_bytes))
    }

    /// The answer was removed from the outbox.
    pub(in super::super) fn take_back(&mut self) {
        (self.status, self.head_bytes, self.begin, self.end) = (0, 0, Mark::UNKNOWN, Mark::UNKNOWN);
        self.content = None;
    }

    /// Bytes of the answer that the kernel has taken, head included.
    pub(in super::super) fn bytes_sent(&self, sent: Mark) -> u64 {
        sent.min(self.end).bytes_since(self.head_start())
    }

    /// The next exchange of the connection has taken the guard. Returns what that one has to count
    /// at its end. Only exchanges that began in the same turn with the same status are counted
    /// together.
    pub(in super::super) fn pass_guard_on(&self, guard: &AppGuard, cx: &LoopContext) -> Uncounted {
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

    /// Counts this exchange, and those that passed it their guard, for the guard's life.
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

    /// Ends the exchange at this time, with the connection's outbox sent up to this mark. Returns
    /// whether that cut an exchange of a life.
    pub(in super::super) fn end(
        &mut self,
        sent: Mark,
        how: End,
        ended_ns: u64,
        cx: &mut LoopContext,
    ) -> bool {
        let how = if self.how != End::Complete && how != End::Cut { self.how } else { how };
        if let (Some(record), Some(access)) = (self.record.take(), &mut cx.accounting.access) {
            let outcome = AccessOutcome {
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
        // Last, because it may announce the end of a drain.
        let Some(guard) = self.guard.take() else { return false };
        self.count(&guard, ended_ns, cx);
        if how == End::Cut {
            guard.cut();
        }
        how == End::Cut
    }
}

impl InFlight {
    /// The head is about to be written. Returns whether a stage changes the content.
    #[cold]
    pub(super) fn begin_stage(&mut self, response: &mut Response<'_>) -> bool {
        let is_staged = self.content.as_mut().is_some_and(|content| content.begin(response));
        if !is_staged {
            self.content = None;
        }
        is_staged
    }

    /// Bytes in memory that are queued.
    pub(super) fn queued_bytes(&self) -> usize {
        self.content.as_ref().map_or(0, |content| content.buffered())
    }

    /// Whether something is queued for the protocol.
    pub(super) fn has_queued(&self) -> bool {
        self.content.as_ref().is_some_and(|content| content.has_more())
    }
}

fn counted(status: u16) -> u16 {
    if status == 0 { NO_ANSWER } else { status }
}
