//! A request in the outbox of its upstream's connection.

use std::time::Duration;

use crate::io::{Mark, Outbox};

/// Where a request is in the outbox, and when it was written there.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct SentRequest {
    begin: Mark,
    head_bytes: usize,
    written_ns: u64,
}

impl SentRequest {
    /// The head of a request was written from `begin` on. Nothing else waits in the outbox.
    pub(in super::super) fn new(outbox: &Outbox, begin: Mark, now_ns: u64) -> Self {
        Self { begin, head_bytes: outbox.buffered(), written_ns: now_ns }
    }

    /// Whether the kernel has no byte of it.
    pub(in super::super) fn is_unsent(&self, outbox: &Outbox) -> bool {
        outbox.sent() <= self.begin
    }

    /// The content that was written behind the head of a request that is unsent.
    pub(in super::super) fn unsent_content<'a>(&self, outbox: &'a Outbox) -> &'a [u8] {
        &outbox.waiting()[self.head_bytes..]
    }

    /// The time since it was written.
    pub(in super::super) fn age(&self, now_ns: u64) -> Duration {
        Duration::from_nanos(now_ns.saturating_sub(self.written_ns))
    }
}
