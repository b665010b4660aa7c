//! Tidegate: many apps on one machine, routed by hostname.

#[cfg(not(loom))]
pub mod app;
#[cfg(not(loom))]
pub mod config;
#[cfg(not(loom))]
pub mod http;
pub mod registry;
mod sync;
