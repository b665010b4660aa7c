//! What it takes to build a loop.

use std::{os::fd::OwnedFd, sync::Arc, time::Instant};

use super::{bind::ListenerSet, listener::ConnectionBudget};
use crate::{
    app::App,
    hosted::Apps,
    message::{Class, ControlEvent, LoopConfig},
    metrics::LoopGauges,
    tls::LiveTable,
};

/// What it takes to build a loop.
pub(crate) struct LoopSetup {
    /// The loop's number, from zero.
    pub(crate) index: usize,
    /// Where hosts are looked up.
    pub(crate) registry: Arc<Apps>,
    /// Which certificate a name gets.
    pub(crate) certificates: Arc<LiveTable>,
    /// This loop's public sockets.
    pub(crate) listeners: ListenerSet,
    /// The other classes that are enabled.
    pub(crate) beside: Vec<SideSetup>,
    /// The part that a reload changes.
    pub(crate) config: LoopConfig,
    /// Shared by all public connections of the process.
    pub(crate) budget: ConnectionBudget,
    /// Zero of the loop's clock; the same for everything that compares times.
    pub(crate) epoch: Instant,
    /// Where the loop publishes its counts.
    pub(crate) gauges: Arc<LoopGauges>,
    /// Sends an event to control.
    pub(crate) report: Box<dyn Fn(ControlEvent) + Send>,
}

/// How a loop serves a class other than the public one.
pub(crate) struct SideSetup {
    pub(crate) class: Class,
    /// This loop's dup of the shared socket.
    pub(crate) listener: OwnedFd,
    /// Answers every request on it.
    pub(crate) app: Arc<dyn App>,
    /// Shared by all connections of this class in the process.
    pub(crate) budget: ConnectionBudget,
}
