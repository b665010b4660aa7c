//! What a loop needs to be made.

use std::{os::fd::OwnedFd, sync::Arc, time::Instant};

use super::{bind::ListenerSet, listener::ConnectionBudget};
use crate::{
    app::App,
    hosted::Apps,
    message::{Class, ControlEvent, LoopConfig},
    metrics::LoopGauges,
};

/// What a loop needs to be made.
pub(crate) struct LoopSetup {
    /// The loop's number, from zero.
    pub(crate) index: usize,
    /// Where it looks hosts up.
    pub(crate) registry: Arc<Apps>,
    /// Its own public sockets.
    pub(crate) listeners: ListenerSet,
    /// The classes beside the public one, those that are on.
    pub(crate) beside: Vec<SideSetup>,
    /// What can change while it runs.
    pub(crate) config: LoopConfig,
    /// The process's public connections.
    pub(crate) budget: ConnectionBudget,
    /// Where its clock begins; the same for all that compare times.
    pub(crate) epoch: Instant,
    /// Where it shows what it is doing.
    pub(crate) gauges: Arc<LoopGauges>,
    /// Called with what control is to know.
    pub(crate) report: Box<dyn Fn(ControlEvent) + Send>,
}

/// How a loop serves a class of connections beside the public ones.
pub(crate) struct SideSetup {
    pub(crate) class: Class,
    /// This loop's dup of the one socket.
    pub(crate) listener: OwnedFd,
    /// What answers every request on it.
    pub(crate) app: Arc<dyn App>,
    /// The process's connections of this class.
    pub(crate) budget: ConnectionBudget,
}
