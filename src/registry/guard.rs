//! The guard that counts a connection as active for one life, on one loop.

use std::{fmt, rc::Rc};

use super::{AppEntry, AppId, Draining};
use crate::sync::Arc;

/// A life, as one loop uses it.
#[derive(Debug)]
pub struct LoopEntry<A> {
    entry: Arc<AppEntry<A>>,
    loop_index: usize,
}

impl<A> LoopEntry<A> {
    pub(super) fn new(entry: Arc<AppEntry<A>>, loop_index: usize) -> Self {
        Self { entry, loop_index }
    }

    /// The life.
    pub fn entry(&self) -> &AppEntry<A> {
        &self.entry
    }

    pub(super) fn life(&self) -> Arc<AppEntry<A>> {
        Arc::clone(&self.entry)
    }

    pub(super) fn loop_index(&self) -> usize {
        self.loop_index
    }
}

/// Counts one active connection of one life. It holds the life itself, not a host name (I4). Only
/// dropping it releases the count (I3).
#[must_use = "dropping the guard says that the exchange is over"]
pub struct InFlightGuard<A> {
    loop_entry: Rc<LoopEntry<A>>,
}

impl<A> InFlightGuard<A> {
    pub(super) fn enter(loop_entry: &Rc<LoopEntry<A>>) -> Result<Self, Draining> {
        loop_entry.entry().drain().enter(loop_entry.loop_index())?;
        Ok(Self { loop_entry: Rc::clone(loop_entry) })
    }

    /// Admits another exchange of the connection that this guard counts. The connection is still
    /// counted once, so the word is only read.
    ///
    /// # Errors
    /// [`Draining`] when a drain has begun since (I1).
    pub fn enter_again(&self) -> Result<(), Draining> {
        self.entry().drain().enter_again(self.loop_entry.loop_index())
    }

    /// The life.
    pub fn entry(&self) -> &AppEntry<A> {
        self.loop_entry.entry()
    }

    /// The life's id.
    pub fn id(&self) -> AppId {
        self.entry().id()
    }

    /// The life, for use beyond the guard: it keeps the app's memory, but counts nothing.
    pub fn loop_entry(&self) -> Rc<LoopEntry<A>> {
        Rc::clone(&self.loop_entry)
    }

    /// Counts the exchange as cut, and releases the guard.
    pub fn cut(self) {
        self.entry().drain().add_cut();
    }
}

impl<A> Drop for InFlightGuard<A> {
    fn drop(&mut self) {
        self.entry().drain().leave(self.loop_entry.loop_index());
    }
}

impl<A> fmt::Debug for InFlightGuard<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("InFlightGuard").field(&self.id()).finish()
    }
}
