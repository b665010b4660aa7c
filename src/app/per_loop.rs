//! State that an app keeps per loop.
//!
//! Owns one value per loop, padded so that no two loops share a cache line. Only its own loop locks
//! a value, so no thread ever waits for the lock; the compiler needs it because the app is shared.
//! If a loop panics while it holds the lock, its value is replaced by the default.

use std::sync::{Mutex, MutexGuard};

use crossbeam_utils::CachePadded;

/// One `T` for every loop.
pub(crate) struct PerLoop<T>(Box<[CachePadded<Mutex<T>>]>);

impl<T: Default> PerLoop<T> {
    /// A default value for each of `loops` loops.
    pub(crate) fn new(loops: usize) -> Self {
        Self((0..loops).map(|_| CachePadded::default()).collect())
    }

    /// Locks the value of this loop.
    ///
    /// # Panics
    /// When there is no such loop, which is a bug of ours.
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
    fn a_panic_under_the_lock_resets_the_value() {
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
