//! The connections and waiting requests of one kind of client, over TLS to one host.

use std::{collections::VecDeque, time::Duration};

use fastrand::Rng;

use super::{connection::DrillConnection, plan::ClientKind};

/// The connections of one kind of client.
pub(super) struct Pool {
    pub(super) idle: Vec<usize>,
    /// Idle and busy connections.
    pub(super) open: usize,
    pub(super) max: usize,
    pub(super) queue: VecDeque<Job>,
}

pub(super) struct PooledConnection {
    pub(super) connection: DrillConnection,
    pub(super) kind: ClientKind,
    /// The host that it serves, as [`LoadSettings::hosts`] numbers them.
    ///
    /// [`LoadSettings::hosts`]: super::settings::LoadSettings::hosts
    pub(super) host: usize,
    pub(super) work: Work,
}

pub(super) enum Work {
    Idle,
    Job(Job),
    /// Waiting for the server's EOF since then.
    Closing(Duration),
}

/// A request that was sent, or a pipelined batch of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub(super) due: Duration,
    /// When it was handled first; its wait for a connection counts from here.
    pub(super) started: Duration,
    /// When it got a connection; the server's time counts from here.
    pub(super) begun: Duration,
    pub(super) kind: ClientKind,
    pub(super) target: usize,
    /// How many requests of the batch are not answered yet.
    pub(super) left: usize,
    /// The connection of a thinking client.
    pub(super) own: Option<usize>,
}

impl Pool {
    pub(super) fn new(max: usize) -> Self {
        Self { idle: Vec::new(), open: 0, max, queue: VecDeque::new() }
    }

    /// Takes an idle connection out. A pausing client uses its connections in random order; a
    /// thinking client has one of its own.
    pub(super) fn pick(&mut self, job: &Job, rng: &mut Rng) -> Option<usize> {
        match job.kind {
            ClientKind::Paused => {}
            ClientKind::Thinking => {
                let own = self.idle.iter().position(|at| Some(*at) == job.own)?;
                return Some(self.idle.swap_remove(own));
            }
            _ => return self.idle.pop(),
        }
        let is_full = self.open == self.max && !self.idle.is_empty();
        is_full.then(|| self.idle.swap_remove(rng.usize(..self.idle.len())))
    }
}
