//! State that an app keeps once for every loop.
//!
//! Owns one value per loop, padded so that no two loops share a cache line. A value is locked only
//! by its own loop, so the lock is never waited for; it is there because the compiler can't know.
//! A value whose loop panicked while it held the lock starts over.

use std::sync::{Mutex, MutexGuard};

use crossbeam_utils::CachePadded;

/// One `T` for every loop.
pub(crate) struct PerLoop<T>(Box<[CachePadded<Mutex<T>>]>);

impl<T: Default> PerLoop<T> {
    /// A fresh value for each of `loops` loops.
    pub(crate) fn new(loops: usize) -> Self {
        Self((0..loops).map(|_| CachePadded::default()).collect())
    }

    /// The value of this loop.
    ///
    /// # Panics
    /// When there is no such loop: that is our own bug.
    pub(crate) fn lock(&self, loop_index: usize) -> MutexGuard<'_, T> {
        let mutex = &self.0[loop_index];
        mutex.lock().unwrap_or_else(|poisoned| {
            mutex.clear_poison();
            let mut value = poisoned.into_inner();
            *value = T::default();
            value
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_under_the_lock_begins_the_value_anew() {
        let values = PerLoop::<u32>::new(2);
        *values.lock(0) = 7;
        *values.lock(1) = 8;
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _value = values.lock(0);
            panic!("on purpose");
        }));
        assert!(caught.is_err());
        assert_eq!(*values.lock(0), 0);
        *values.lock(0) = 9;
        assert_eq!((*values.lock(0), *values.lock(1)), (9, 8));
    }
}
