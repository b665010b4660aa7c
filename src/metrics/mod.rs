//! Metrics: the counters of the loops, the totals of ended lives, and the page that shows them.
//!
//! A counter on the request path has one writer, the loop that owns it: a relaxed load and store,
//! no locked instruction, no shared cache line. Readers add up the loops on demand. Everything else
//! here is plain data that control owns. Never reads the time of day.

mod exchanges;
mod exposition;
mod families;
mod gauges;
mod handshakes;
mod histogram;
mod ledger;
mod process;
mod render;

pub(crate) use exchanges::{ExchangeCounters, ExchangeTotals};
pub(crate) use exposition::Exposition;
pub(crate) use gauges::{LoopCounts, LoopGauges, Turn};
pub(crate) use handshakes::{HandshakeCounts, HandshakeEnd, HandshakeFailure};
pub(crate) use histogram::{AnswerSeconds, DrainSeconds};
pub(crate) use ledger::{
    FailureCounts, HostLedger, HostReading, LifeReading, UpstreamNow, UpstreamReading,
    UpstreamTotals,
};
pub(crate) use process::ProcessUsage;
pub(crate) use render::{Scrape, render};
