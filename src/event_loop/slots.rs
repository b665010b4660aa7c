//! The table of a loop's connections.
//!
//! A slab reuses its keys, so a token carries the slot's generation: a late event or timer of a
//! removed connection finds nothing instead of the next one in its slot.

use mio::Token;
use slab::Slab;

/// Bits of a token for the slot; the upper half holds the generation.
pub(super) const KEY_BITS: u32 = 30;

/// Values by token.
pub(super) struct Slots<T> {
    slab: Slab<(u32, T)>,
    next_generation: u32,
}

impl<T> Slots<T> {
    pub(super) fn new() -> Self {
        Self { slab: Slab::new(), next_generation: 0 }
    }

    /// Inserts the value that `make` builds for its token; nothing if `make` fails.
    pub(super) fn insert<E>(
        &mut self,
        make: impl FnOnce(Token) -> Result<T, E>,
    ) -> Result<Token, E> {
        let generation = self.next_generation;
        let entry = self.slab.vacant_entry();
        let token = token(entry.key(), generation);
        entry.insert((generation, make(token)?));
        self.next_generation = generation.wrapping_add(1);
        Ok(token)
    }

    pub(super) fn find(&mut self, token: Token) -> Option<&mut T> {
        let (key, generation) = parts(token);
        self.slab.get_mut(key).filter(|slot| slot.0 == generation).map(|slot| &mut slot.1)
    }

    pub(super) fn get(&self, token: Token) -> Option<&T> {
        let (key, generation) = parts(token);
        self.slab.get(key).filter(|slot| slot.0 == generation).map(|slot| &slot.1)
    }

    pub(super) fn remove(&mut self, token: Token) -> Option<T> {
        self.find(token)?;
        Some(self.slab.remove(parts(token).0).1)
    }

    pub(super) fn tokens(&self) -> Vec<Token> {
        self.slab.iter().map(|(key, slot)| token(key, slot.0)).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }
}

fn token(key: usize, generation: u32) -> Token {
    debug_assert!(key < 1 << KEY_BITS);
    Token((generation as usize) << 32 | key)
}

fn parts(token: Token) -> (usize, u32) {
    (token.0 & 0xffff_ffff, (token.0 >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_of_a_removed_value_finds_nothing() {
        let mut slots = Slots::new();
        let first = slots.insert(|_| Ok::<_, ()>('a')).unwrap();
        assert_eq!(slots.remove(first), Some('a'));
        let second = slots.insert(|_| Ok::<_, ()>('b')).unwrap();
        assert_eq!(parts(first).0, parts(second).0, "the key is reused");
        assert_eq!(slots.find(first), None);
        assert_eq!(slots.remove(first), None);
        assert_eq!(slots.find(second), Some(&mut 'b'));
    }

    #[test]
    fn a_value_that_could_not_be_built_takes_no_slot() {
        let mut slots: Slots<char> = Slots::new();
        assert!(slots.insert(|_| Err(())).is_err());
        assert!(slots.is_empty());
    }
}
