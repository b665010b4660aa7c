//! Tidegate: many apps on one machine, routed by hostname.

#[cfg(not(loom))]
pub mod app;
#[cfg(not(loom))]
pub mod cli;
#[cfg(not(loom))]
pub mod config;
#[cfg(not(loom))]
mod control;
#[cfg(not(loom))]
mod event_loop;
#[cfg(not(loom))]
pub mod http;
#[cfg(not(loom))]
pub mod logging;
#[cfg(not(loom))]
pub mod message;
pub mod registry;
#[cfg(not(loom))]
pub mod server;
mod sync;
