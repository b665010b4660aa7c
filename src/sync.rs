//! Synchronisation primitives: the standard library's, or loom's in a model run.
//!
//! For the drain protocol and the registry, which loom checks.

#[cfg(loom)]
pub(crate) use loom::sync::{
    Arc, Mutex, RwLock as ShardedLock,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};
#[cfg(not(loom))]
pub(crate) use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

#[cfg(not(loom))]
pub(crate) use crossbeam_utils::{CachePadded, sync::ShardedLock};

/// No padding in a model: loom has no cache lines.
#[cfg(loom)]
#[derive(Debug)]
pub(crate) struct CachePadded<T>(T);

#[cfg(loom)]
impl<T> CachePadded<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(value)
    }
}

#[cfg(loom)]
impl<T> std::ops::Deref for CachePadded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
