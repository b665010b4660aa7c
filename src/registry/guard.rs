//! The guard that counts a connection as active for one life, on one loop.
//!
//! A connection counts once for each life, however many of its exchanges are in flight for that
//! life: they share one place in the count, and the last guard gives it back.

use std::{fmt, rc::Rc};

use super::{AppEntry, AppId, Draining};
use crate::sync::Arc;

/// A life, as one loop uses it.
#[derive(Debug)]
pub struct LoopEntry<A> {
    entry: Arc<AppEntry<A>>,
    loop_index: usize,
    /// It holds a connection's place in the count, for the guards that share it: dropped with the
    /// last of them, it gives the place back.
    is_place: bool,
}

impl<A> LoopEntry<A> {
    pub(super) fn new(entry: Arc<AppEntry<A>>, loop_index: usize) -> Self {
        Self { entry, loop_index, is_place: false }
    }

    /// The life.
    pub fn entry(&self) -> &AppEntry<A> {
        &self.entry
    }

    /// The same without a place in the count.
    fn copy(&self) -> Self {
        Self::new(self.life(), self.loop_index)
    }

    pub(super) fn life(&self) -> Arc<AppEntry<A>> {
        Arc::clone(&self.entry)
    }

    pub(super) fn loop_index(&self) -> usize {
        self.loop_index
    }
}

impl<A> Drop for LoopEntry<A> {
    #[inline]
    fn drop(&mut self) {
        if self.is_place {
            self.entry.drain().leave(self.loop_index);
        }
    }
}

/// Counts one active connection of one life, together with the guards that share its place. It
/// holds the life itself, not a host name (I4). Only dropping it releases the count (I3).
#[must_use = "dropping the guard says that the exchange is over"]
pub struct InFlightGuard<A> {
    /// That of the loop, or a place of its own once another exchange shares it: most connections
    /// have one exchange at a time, and pay no allocation.
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

    /// Admits another exchange beside this one. Both share the connection's place in the count.
    ///
    /// # Errors
    /// [`Draining`] when a drain has begun since (I1).
    pub fn share(&mut self) -> Result<Self, Draining> {
        self.enter_again()?;
        if !self.loop_entry.is_place {
            let mut place = self.loop_entry.copy();
            place.is_place = true;
            self.loop_entry = Rc::new(place);
        }
        Ok(Self { loop_entry: Rc::clone(&self.loop_entry) })
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
        if self.loop_entry.is_place {
            return Rc::new(self.loop_entry.copy());
        }
        Rc::clone(&self.loop_entry)
    }

    /// Counts the exchange as cut, and releases the guard.
    pub fn cut(self) {
        self.entry().drain().add_cut();
    }
}

impl<A> Drop for InFlightGuard<A> {
    #[inline]
    fn drop(&mut self) {
        if !self.loop_entry.is_place {
            self.entry().drain().leave(self.loop_entry.loop_index());
        }
    }
}

impl<A> fmt::Debug for InFlightGuard<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("InFlightGuard").field(&self.id()).finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::{AppRegistry, NewApp, RegistryView};
    use crate::sync::{Arc, AtomicU64, Ordering};

    #[test]
    fn exchanges_that_share_a_place_count_once_until_the_last_of_them_ends() {
        let registry = Arc::new(AppRegistry::new(1, None));
        let new = NewApp { host: "a.test".into(), aliases: Vec::new(), app: () };
        let life = registry.insert(new).unwrap();
        let mut view = RegistryView::new(registry, 0);
        let mut first = view.admit(Some("a.test")).unwrap();
        let mut second = first.share().unwrap();
        let mut third = second.share().unwrap();
        assert_eq!((life.drain().active_connections(), life.drain().requests()), (1, 3));
        drop(first);
        second.cut();
        assert_eq!((life.drain().active_connections(), life.drain().cut()), (1, 1));
        let announced = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&announced);
        let announce = move || {
            count.fetch_add(1, Ordering::Relaxed);
        };
        life.drain().begin_drain(1, 2, Box::new(announce)).unwrap();
        assert!(third.share().is_err(), "I1: a draining life admits nothing beside it either");
        assert_eq!(announced.load(Ordering::Relaxed), 0);
        drop(third);
        assert_eq!(life.drain().active_connections(), 0, "I3");
        assert_eq!(announced.load(Ordering::Relaxed), 1, "I2");
    }
}
