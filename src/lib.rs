//! Tidegate: many apps on one machine, routed by hostname, in one process with one synchronous
//! event loop per core. Apps are added and removed, and the server stops, without one lost request.
//!
//! **Data** goes one way:
//!
//! ```text
//! listener ► connection ► exchange ► registry.admit(host) ► app.handle ► response ► write
//!            event_loop   http       route + guard          app                     guard drops
//! ```
//!
//! **Control** uses another path; loops and control share only `message`:
//!
//! ```text
//! signal thread ──┐                       ┌─► loop 0 ─ sockets, exchanges, timers
//! ServerHandle ───┼─► control thread ─────┼─► loop 1
//! admin thread ───┤   (registry writes,   └─► loop N     LoopCommand down: channel, then waker
//! operator thread ┘    drain plans)      ◄── ControlEvent up: channel
//! ```
//!
//! The admin thread answers the admin API. The operator thread does the work that waits for a disk:
//! reading the config and loading apps.
//!
//! The drain is in [`registry`], which loom checks; the protocol, sans-IO, in [`http`]; the
//! invariants I1 to I10 that comments cite are these:
//!
//! - **I1** After a drain of a life has begun, no exchange is admitted to that life.
//! - **I2** Every drain announces its end exactly once.
//! - **I3** Every count returns to zero: a guard holds it, and only its `Drop` releases it.
//! - **I4** Lives never mix: a guard holds its own life's state, never a hostname.
//! - **I5** Every drain ends by its deadline.
//! - **I6** An exchange that was admitted is answered whole, unless its own peer leaves or a
//!   deadline cuts it; a cut is counted and logged.
//! - **I7** An idle connection is closed only by its own loop, after a last read found nothing.
//! - **I8** A failure stays in its app.
//! - **I9** No byte from a peer can make the process panic, or hold memory beyond the limits.
//! - **I10** A removed or unknown host is never answered by another app, unless `default_app`
//!   names that app.
//!
#![doc = include_str!("../docs/embedding.md")]

#[cfg(not(loom))]
mod acknowledgement;
#[cfg(not(loom))]
pub mod app;
#[cfg(not(loom))]
pub mod cli;
#[cfg(not(loom))]
pub mod config;
#[cfg(not(loom))]
mod control;
#[cfg(not(loom))]
mod drill;
#[cfg(not(loom))]
mod duration;
#[cfg(not(loom))]
mod event_loop;
#[cfg(not(loom))]
mod hosted;
#[cfg(not(loom))]
pub mod http;
#[cfg(not(loom))]
mod io;
#[cfg(not(loom))]
pub mod logging;
#[cfg(not(loom))]
mod message;
#[cfg(not(loom))]
mod metrics;
pub mod registry;
#[cfg(not(loom))]
pub mod server;
mod sync;
#[cfg(not(loom))]
mod tls;

/// For the fuzz targets alone: no part of the API.
#[cfg(not(loom))]
#[doc(hidden)]
pub use tls::fuzzing as tls_fuzzing;
