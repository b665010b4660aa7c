//! One loop's way into the registry.
//!
//! Owns copies of the routes that this loop asked for, valid for one generation of the registry.
//! While nothing changes an admission takes no lock and writes no cache line of another loop: the
//! reference counts are this loop's own. Not `Send`: made on the loop's thread, and stays there.

use std::{collections::HashMap, rc::Rc};

use super::{AppEntry, AppRegistry, InFlightGuard, LoopEntry};
use crate::sync::Arc;

/// More copies than this are dropped at once, so that a wildcard's hosts cannot fill the memory:
/// they take some 10 MiB with common names, and less than 30 with the longest.
const SEATS_MAX: usize = 65_536;

/// A loop's view of the registry.
#[derive(Debug)]
pub struct RegistryView<A> {
    registry: Arc<AppRegistry<A>>,
    loop_index: usize,
    generation: u64,
    /// By the host as it was sent, in any case.
    loop_entries: HashMap<Rc<[u8]>, Rc<LoopEntry<A>>>,
    /// The loop_entry of the last host: most requests follow one for the same host.
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
    /// The view of loop `loop_index`. There must be one view per loop and life of the process:
    /// a word has one writer.
    pub fn new(registry: Arc<AppRegistry<A>>, loop_index: usize) -> Self {
        assert!(loop_index < registry.loops(), "there is no loop {loop_index}");
        let generation = registry.generation();
        Self { registry, loop_index, generation, loop_entries: HashMap::new(), last: None }
    }

    /// Admits an exchange for a host, as the request names it in any case: route and count in one
    /// step.
    ///
    /// # Errors
    /// [`Refusal`] when no life may take the exchange.
    pub fn admit(&mut self, host: Option<&str>) -> Result<InFlightGuard<A>, Refusal<A>> {
        let mut none = None;
        self.admit_after(host.map(str::as_bytes), &mut none)
    }

    /// As [`RegistryView::admit`], for a connection whose exchange before this one is not over. If
    /// that one was for the same life its guard passes on: the connection is counted once.
    ///
    /// # Errors
    /// [`Refusal`]; `before` keeps its guard then.
    pub fn admit_after(
        &mut self,
        host: Option<&[u8]>,
        before: &mut Option<InFlightGuard<A>>,
    ) -> Result<InFlightGuard<A>, Refusal<A>> {
        self.refresh();
        loop {
            let loop_entry = self.loop_entry(host).ok_or(Refusal::UnknownHost)?;
            match before.as_ref().filter(|guard| guard.id() == loop_entry.entry().id()) {
                Some(guard) if guard.enter_again().is_ok() => {
                    if let Some(guard) = before.take() {
                        return Ok(guard);
                    }
                }
                Some(_) => {}
                None => {
                    if let Ok(guard) = InFlightGuard::enter(&loop_entry) {
                        return Ok(guard);
                    }
                }
            }
            // The loop_entry may be older than a change made since: look at the map again.
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

    /// Drops every copy that the registry has moved on from, and with it the memory of lives that
    /// ended.
    pub fn refresh(&mut self) {
        let generation = self.registry.generation();
        if generation != self.generation {
            self.generation = generation;
            self.loop_entries.clear();
            self.last = None;
        }
    }

    fn loop_entry(&mut self, host: Option<&[u8]>) -> Option<Rc<LoopEntry<A>>> {
        let name = host.unwrap_or_default();
        if let Some((last, loop_entry)) = &self.last
            && **last == *name
        {
            return Some(Rc::clone(loop_entry));
        }
        let (name, loop_entry) = match self.loop_entries.get_key_value(name) {
            Some((name, loop_entry)) => (Rc::clone(name), Rc::clone(loop_entry)),
            None => self.look_up(host)?,
        };
        self.last = Some((name, Rc::clone(&loop_entry)));
        Some(loop_entry)
    }

    fn look_up(&mut self, host: Option<&[u8]>) -> Option<Known<A>> {
        let text = host.map(|host| std::str::from_utf8(host).unwrap_or_default());
        let entry = self.registry.resolve(text)?;
        let name = Rc::from(host.unwrap_or_default());
        let loop_entry = Rc::new(LoopEntry::new(entry, self.loop_index));
        if self.loop_entries.len() >= SEATS_MAX {
            self.loop_entries.clear();
        }
        self.loop_entries.insert(Rc::clone(&name), Rc::clone(&loop_entry));
        Some((name, loop_entry))
    }
}
