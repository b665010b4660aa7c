//! What the thread of deploys works with.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Instant,
};

use super::{
    super::{notices::Notices, tasks::TaskSender},
    board::Board,
};
use crate::hosted::Apps;

/// What the thread works with.
#[derive(Clone)]
pub(crate) struct DeployParts {
    pub(crate) registry: Arc<Apps>,
    pub(crate) tasks: TaskSender,
    pub(crate) notices: Arc<Notices>,
    pub(crate) board: Arc<Board>,
    /// True from the first moment of a stop.
    pub(crate) stopping: Arc<AtomicBool>,
    /// Where nanoseconds count from, as in the loops.
    pub(crate) epoch: Instant,
}
