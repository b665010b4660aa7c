//! What a loop counts of its connections, and what it logs of them and of their exchanges.

use std::time::Duration;

use super::clock::Throttle;
use crate::{
    app::{Client, Peer},
    logging::{AccessWriter, event},
    metrics::{LoopCounts, LoopGauges},
};

/// Shortest time between two log lines about clients at their connection limit.
const REFUSED_LOG_EVERY: Duration = Duration::from_secs(60);

/// Shortest time between two log lines about refused headers: any client that can connect can send
/// one.
const HEADER_LOG_EVERY: Duration = Duration::from_secs(60);

/// What a loop counts of its connections, and logs of them and of their exchanges.
pub(super) struct Accounting {
    loop_index: usize,
    /// Public connections by state. Plain numbers: a turn that changed them publishes them at its
    /// end.
    pub(super) counts: LoopCounts,
    published: LoopCounts,
    pub(super) access: Option<AccessWriter>,
    /// For refused PROXY headers.
    header_log: Throttle,
    /// For connections that were refused because their clients were at the limit.
    refused_log: Throttle,
}

impl Accounting {
    pub(super) fn new(loop_index: usize, access: Option<AccessWriter>) -> Self {
        Self {
            loop_index,
            counts: LoopCounts::default(),
            published: LoopCounts::default(),
            access,
            header_log: Throttle::default(),
            refused_log: Throttle::default(),
        }
    }

    pub(super) fn public_connections(&self) -> u64 {
        let counts = &self.counts;
        counts.fresh + counts.busy + counts.idle + counts.lingering
    }

    /// The connections in each state are counted again.
    pub(super) fn begin_recount(&mut self) {
        let counts = &mut self.counts;
        (counts.fresh, counts.busy, counts.idle, counts.lingering) = (0, 0, 0, 0);
    }

    /// The turn ends: what it counted and logged can be read.
    pub(super) fn publish(&mut self, gauges: &LoopGauges) {
        if let Some(access) = &mut self.access {
            access.flush();
        }
        if self.counts != self.published {
            self.published = self.counts;
            gauges.publish(&self.published);
        }
    }

    /// A connection is closed because its client is at the limit.
    pub(super) fn count_refused(&mut self, peer: Peer, now_ms: u64) {
        self.counts.connections_refused += 1;
        if self.refused_log.passes(now_ms, REFUSED_LOG_EVERY) {
            event!(
                Warn,
                "connection_refused",
                client:% = Client::from(peer),
                loop_index = self.loop_index,
                refused_total = self.counts.connections_refused,
            );
        }
    }

    /// A connection is closed because its PROXY header is refused.
    pub(super) fn count_refused_header(&mut self, peer: Peer, reason: &str, now_ms: u64) {
        self.counts.proxy_headers_refused += 1;
        if self.header_log.passes(now_ms, HEADER_LOG_EVERY) {
            let peer = match peer {
                Peer::Tcp(address) => Some(address.to_string()),
                Peer::Unix => None,
            };
            event!(
                Warn,
                "proxy_header_refused",
                peer = peer.as_deref(),
                reason = reason,
                loop_index = self.loop_index,
                refused_total = self.counts.proxy_headers_refused,
            );
        }
    }
}
