//! Metrics: what the loops count, what is kept of lives that ended, and the page that shows it.
//!
//! Counters on the request path have one writer, the loop that owns them: a relaxed load and store,
//! no locked instruction, no cache line of another loop. Readers add the loops up when somebody
//! asks. Everything else here is plain data that control owns. Never reads the time of day.

mod exchanges;
mod gauges;
mod histogram;
mod ledger;
mod process;
mod render;

pub(crate) use exchanges::{ExchangeCounters, ExchangeTotals};
pub(crate) use gauges::{LoopCounts, LoopGauges, Turn};
pub(crate) use histogram::{AnswerSeconds, DrainSeconds};
pub(crate) use ledger::{
    FailureCounts, HostLedger, HostReading, LifeReading, UpstreamNow, UpstreamReading,
    UpstreamTotals,
};
pub(crate) use process::ProcessUsage;
pub(crate) use render::{Exposition, Scrape, render};
