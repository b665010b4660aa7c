//! One loop's view of the registry.
//!
//! Owns copies of the routes that this loop has used, valid for one generation of the registry.
//! While nothing changes, an admission takes no lock and writes no cache line of another loop: the
//! reference counts belong to this loop. Not `Send`: it stays on the loop's thread.

use std::{collections::HashMap, rc::Rc};

use super::{AppEntry, AppId, AppRegistry, Draining, InFlightGuard, LoopEntry, Target};
use crate::sync::Arc;

/// Most copies. When there are as many, all are dropped, so that the hosts of a wildcard cannot
/// fill the memory: they take about 10 MiB with usual names, and less than 30 MiB with the longest.
const COPIES_MAX: usize = 65_536;

/// A loop's view of the registry.
#[derive(Debug)]
pub struct RegistryView<A> {
    registry: Arc<AppRegistry<A>>,
    loop_index: usize,
    generation: u64,
    /// By the host as it was sent, in any case.
    loop_entries: HashMap<Rc<[u8]>, Rc<LoopEntry<A>>>,
    /// The copy for the last host: most requests have the same host as the request before.
    last: Option<Known<A>>,
}

/// A host as it was sent, and the life that answers it.
type Known<A> = (Rc<[u8]>, Rc<LoopEntry<A>>);

/// Why a request is not admitted.
#[derive(Debug)]
pub enum Refusal<A> {
    /// No app names this host, and there is no default app (I10).
    UnknownHost,
    /// The app is draining (I1).
    Draining(Arc<AppEntry<A>>),
}

impl<A> RegistryView<A> {
    /// The view of loop `loop_index`. Each loop must have only one, because a word has one writer.
    pub fn new(registry: Arc<AppRegistry<A>>, loop_index: usize) -> Self {
        assert!(loop_index < registry.loops(), "there is no loop {loop_index}");
        let generation = registry.generation();
        Self { registry, loop_index, generation, loop_entries: HashMap::new(), last: None }
    }

    /// Admits an exchange. Routes and counts it in one step.
    ///
    /// # Errors
    /// [`Refusal`] when no life can take the exchange.
    pub fn admit<'a>(
        &mut self,
        target: impl Into<Target<'a>>,
    ) -> Result<InFlightGuard<A>, Refusal<A>> {
        self.admit_beside(target.into(), |_| None)
    }

    /// Like [`RegistryView::admit`], for a connection that may have exchanges in flight. `of_life`:
    /// admits with the guard that one of them has for this life, or `None` without such an
    /// exchange. So the connection is counted once.
    ///
    /// # Errors
    /// [`Refusal`] when no life can take the exchange.
    #[inline(always)]
    pub fn admit_beside(
        &mut self,
        target: Target<'_>,
        mut of_life: impl FnMut(AppId) -> Option<Result<InFlightGuard<A>, Draining>>,
    ) -> Result<InFlightGuard<A>, Refusal<A>> {
        self.refresh();
        loop {
            let loop_entry = self.loop_entry(target).ok_or(Refusal::UnknownHost)?;
            let held = of_life(loop_entry.entry().id());
            if let Ok(guard) = held.unwrap_or_else(|| InFlightGuard::enter(&loop_entry)) {
                return Ok(guard);
            }
            // The routes may have changed since this copy was made: look again if so.
            if self.registry.generation() == self.generation {
                return Err(Refusal::Draining(loop_entry.life()));
            }
            self.refresh();
        }
    }

    /// The registry itself.
    pub fn registry(&self) -> &AppRegistry<A> {
        &self.registry
    }

    /// Drops all copies if the registry has changed, and with them the memory of lives that ended.
    pub fn refresh(&mut self) {
        let generation = self.registry.generation();
        if generation != self.generation {
            self.generation = generation;
            self.loop_entries.clear();
            self.last = None;
        }
    }

    fn loop_entry(&mut self, target: Target<'_>) -> Option<Rc<LoopEntry<A>>> {
        let name = target.host().unwrap_or_default();
        if let Some((last, loop_entry)) = &self.last
            && **last == *name
        {
            return Some(Rc::clone(loop_entry));
        }
        let (name, loop_entry) = match self.loop_entries.get_key_value(name) {
            Some((name, loop_entry)) => (Rc::clone(name), Rc::clone(loop_entry)),
            None => self.look_up(target)?,
        };
        self.last = Some((name, Rc::clone(&loop_entry)));
        Some(loop_entry)
    }

    fn look_up(&mut self, target: Target<'_>) -> Option<Known<A>> {
        let entry = self.registry.resolve(target)?;
        let name = Rc::from(target.host().unwrap_or_default());
        let loop_entry = Rc::new(LoopEntry::new(entry, self.loop_index));
        if self.loop_entries.len() >= COPIES_MAX {
            self.loop_entries.clear();
        }
        self.loop_entries.insert(Rc::clone(&name), Rc::clone(&loop_entry));
        Some((name, loop_entry))
    }
}
