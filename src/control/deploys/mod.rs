//! Deploys: a new life of an app takes the old one's place when it has proven ready (I13).
//!
//! ```text
//!            `needed` upstreams have each              the operator puts the
//!            passed `rise` checks in a row             new life in place
//! Checking ───────────────────────────────► Ready ───────────────────────────► Switched
//!  │    ▲                                    │ │                                   │
//!  │    └────────── one of them fails ───────┘ │ abort                             ▼
//!  │ abort                                     ▼               the old life's drain, its verdict
//!  ├────────────────────────────────────────► Aborted
//!  └─ timeout ─► NotReady
//! ```
//! - The operator loads the app; the thread `deploys` checks its upstreams, over connections of its
//!   own, until the operator has put it in place. No check waits for another, and a check that
//!   hangs ends after `CHECK_MAX`.
//! - `plan` holds the state, under one lock of its deploy. `Ready → Switched` and every `abort`
//!   happen under it, so that exactly one of them happens.
//! - Not until `Switched` is anything of the server changed: certificates, routes, the old life. If
//!   control then refuses the new life (the app was changed, the server stops), still nothing is.
//! - What aborts: its client leaves, `DELETE` of the deploy, an upgrade that begins, a stop, and
//!   any change of the app since the deploy began (`Base`), be it by a request or a
//!   reload. Changes of other apps do not matter.
//! - A host has at most one deploy at a time (`Board`).

mod board;
mod ending;
mod parts;
mod plan;
mod thread;

use std::{
    io,
    sync::{Mutex, PoisonError},
};

pub(crate) use board::{Board, Deploy, Loaded, Progress};
pub(crate) use ending::{Client, Ending, Outcome};
pub(crate) use parts::DeployParts;
pub(crate) use plan::UpstreamChecks;

use thread::{Handle, Thread};

/// A way to the thread, which begins with the first deploy, and ends when this is dropped.
pub(crate) struct Deploys {
    parts: DeployParts,
    thread: Mutex<Option<Handle>>,
}

impl Deploys {
    pub(crate) fn new(parts: DeployParts) -> Self {
        Self { parts, thread: Mutex::new(None) }
    }

    /// The deploys that are under way.
    pub(crate) fn board(&self) -> &Board {
        &self.parts.board
    }

    /// Begins the deploy of an app that is loaded, of whose upstreams `quorum` have to be ready, or
    /// all. The client gets the outcome.
    pub(crate) fn begin(&self, loaded: Loaded, quorum: Option<usize>, client: Client) {
        match self.handle() {
            Ok(handle) => handle.begin(loaded, quorum, client),
            Err(error) => client.refuse(loaded, &error),
        }
    }

    fn handle(&self) -> io::Result<Handle> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let handle = match thread.take().filter(Handle::is_alive) {
            Some(handle) => handle,
            None => Thread::spawn(self.parts.clone())?,
        };
        Ok(thread.insert(handle).clone())
    }
}

impl Drop for Deploys {
    fn drop(&mut self) {
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner);
        thread.iter().for_each(Handle::end);
    }
}
