//! The cache of one loop: the files that were requested.
//!
//! The key is the request path as it was sent, so a hit decodes nothing. An entry has the file that
//! the path names, its precompressed neighbours, and what was loaded of them. A hit makes no system
//! call. An entry is valid for [`REVALIDATE_AFTER`]; then the path is resolved again. Answers
//! without a file are not cached.
//!
//! Memory, entries and descriptors are bounded. Eviction is the CLOCK algorithm: oldest first, but
//! an entry that was used since its last turn gets another one.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    directory::Stamp,
    encoding::{AcceptedCodings, Coding},
    representation::Representation,
};

/// How long an entry is valid without a look at the file system.
pub(super) const REVALIDATE_AFTER: Duration = Duration::from_secs(1);

/// An entry that was not checked for this long is idle and can be dropped.
pub(super) const IDLE_AFTER: Duration = Duration::from_secs(30);

/// Most memory, in bytes, for content, fields and keys, with [`ENTRY_BYTES`] for each entry.
const MEMORY_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Most entries.
const ENTRIES_MAX: usize = 2048;

/// Most open descriptors.
const OPEN_FILES_MAX: usize = 128;

/// The longest path that is cached, in bytes.
const KEY_BYTES_MAX: usize = 512;

/// The estimated memory of an entry beside its content, fields and key, in bytes.
const ENTRY_BYTES: usize = 512;

/// What a path names: a file and its precompressed neighbours.
#[derive(Debug)]
pub(super) struct Resource {
    /// The file itself, then the neighbours that may be sent for it.
    variants: Vec<Variant>,
}

/// A file in one coding. It is loaded when it is first sent.
#[derive(Debug)]
pub(super) struct Variant {
    /// The coding.
    pub(super) coding: Coding,
    /// The file's state when it was checked.
    pub(super) stamp: Stamp,
    /// What is sent, if it is loaded.
    pub(super) loaded: Option<Representation>,
}

impl Resource {
    /// A resource with these variants: first the file itself, then its neighbours.
    pub(super) fn new(variants: Vec<Variant>) -> Self {
        debug_assert_eq!(variants.first().map(|first| first.coding), Some(Coding::Identity));
        Self { variants }
    }

    /// The variant to send, if it is loaded. `accepted` is only called if there are neighbours.
    pub(super) fn select(
        &self,
        accepted: impl FnOnce() -> AcceptedCodings,
    ) -> Option<&Representation> {
        let [only] = &self.variants[..] else {
            let coding = accepted().choose(|coding| self.variant(coding).is_some());
            return self.variant(coding)?.loaded.as_ref();
        };
        only.loaded.as_ref()
    }

    /// The representation that was loaded from a file with this stamp, if it still has the file's
    /// content.
    pub(super) fn unchanged(&self, coding: Coding, stamp: &Stamp) -> Option<&Representation> {
        let variant = self.variant(coding).filter(|variant| variant.stamp == *stamp)?;
        variant.loaded.as_ref().filter(|loaded| loaded.is_settled())
    }

    fn variant(&self, coding: Coding) -> Option<&Variant> {
        self.variants.iter().find(|variant| variant.coding == coding)
    }

    fn cost(&self) -> Cost {
        let mut cost = Cost { memory_bytes: ENTRY_BYTES, open_files: 0 };
        for loaded in self.variants.iter().filter_map(|variant| variant.loaded.as_ref()) {
            cost.memory_bytes += loaded.memory_bytes();
            cost.open_files += usize::from(loaded.is_open_file());
        }
        cost
    }
}

/// The entries of one loop.
#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: HashMap<Arc<str>, CacheEntry>,
    /// The keys of all entries, each once. The first is the next candidate for eviction.
    round: VecDeque<Arc<str>>,
    held: Cost,
}

#[derive(Debug)]
struct CacheEntry {
    resource: Resource,
    cost: Cost,
    checked: Instant,
    is_used: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cost {
    memory_bytes: usize,
    open_files: usize,
}

impl Cache {
    /// What to send for a path, if its entry is valid and has it loaded.
    pub(super) fn find(
        &mut self,
        key: &str,
        accepted: impl FnOnce() -> AcceptedCodings,
        now: Instant,
    ) -> Option<&Representation> {
        let entry = self.entries.get_mut(key)?;
        if now.saturating_duration_since(entry.checked) >= REVALIDATE_AFTER {
            return None;
        }
        entry.is_used = true;
        entry.resource.select(accepted)
    }

    /// The entry of a path, valid or not.
    pub(super) fn last_known(&self, key: &str) -> Option<&Resource> {
        self.entries.get(key).map(|entry| &entry.resource)
    }

    /// Makes the entry of a path valid for another [`REVALIDATE_AFTER`].
    pub(super) fn believe(&mut self, key: &str, now: Instant) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.checked = now;
        }
    }

    /// Stores what a path names now.
    pub(super) fn store(&mut self, key: &str, resource: Resource, now: Instant) {
        if key.len() > KEY_BYTES_MAX {
            return;
        }
        let mut cost = resource.cost();
        cost.memory_bytes += key.len();
        self.held.add(cost);
        if let Some(entry) = self.entries.get_mut(key) {
            self.held.subtract(entry.cost);
            *entry = CacheEntry { resource, cost, checked: now, is_used: true };
        } else {
            let key: Arc<str> = key.into();
            let entry = CacheEntry { resource, cost, checked: now, is_used: false };
            self.entries.insert(Arc::clone(&key), entry);
            self.round.push_back(key);
        }
        self.evict();
    }

    /// Drops the entry of a path.
    pub(super) fn forget(&mut self, key: &str) {
        if let Some(entry) = self.entries.remove(key) {
            self.held.subtract(entry.cost);
            self.round.retain(|own| **own != *key);
        }
    }

    /// Drops all entries that hold a descriptor. Answers that are being sent keep theirs.
    pub(super) fn forget_open_files(&mut self) {
        self.retain(|entry| entry.cost.open_files == 0);
    }

    /// Drops idle entries, so that a deleted file is not kept open for ever.
    pub(super) fn forget_idle(&mut self, now: Instant) {
        self.retain(|entry| now.saturating_duration_since(entry.checked) < IDLE_AFTER);
    }

    /// Bytes of memory, descriptors and entries that are held.
    #[cfg(test)]
    pub(super) fn held(&self) -> (usize, usize, usize) {
        assert_eq!(self.entries.len(), self.round.len());
        (self.held.memory_bytes, self.held.open_files, self.entries.len())
    }

    fn retain(&mut self, keeps: impl Fn(&CacheEntry) -> bool) {
        let held = &mut self.held;
        self.entries.retain(|_, entry| {
            let is_kept = keeps(entry);
            if !is_kept {
                held.subtract(entry.cost);
            }
            is_kept
        });
        self.round.retain(|key| self.entries.contains_key(key));
    }

    fn evict(&mut self) {
        loop {
            let wants_any =
                self.held.memory_bytes > MEMORY_BYTES_MAX || self.entries.len() > ENTRIES_MAX;
            if !wants_any && self.held.open_files <= OPEN_FILES_MAX {
                return;
            }
            let Some(key) = self.round.pop_front() else { return };
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            let is_of_use = wants_any || entry.cost.open_files > 0;
            if is_of_use && !entry.is_used {
                self.held.subtract(entry.cost);
                self.entries.remove(&key);
            } else {
                // An entry whose eviction would not help keeps its mark.
                entry.is_used &= !is_of_use;
                self.round.push_back(key);
            }
        }
    }
}

impl Cost {
    fn add(&mut self, other: Self) {
        self.memory_bytes += other.memory_bytes;
        self.open_files += other.open_files;
    }

    fn subtract(&mut self, other: Self) {
        self.memory_bytes -= other.memory_bytes;
        self.open_files -= other.open_files;
    }
}
