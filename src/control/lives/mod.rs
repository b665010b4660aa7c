//! The lives of apps: how they begin, drain and end. Every change of the registry is made here.
//!
//! ```text
//!            add                 remove, reload          count 0, or deadline
//!   (none) ──────► serving ───────────────────► draining ───────────────────► gone
//!                   │  ▲  drain                    ▲  count 0, or deadline
//!                   │  └───────── resume ──┐       │                 ┌─► drained ──remove──► gone
//!                   └──────────────────────┴─ draining (drain) ──────┘
//! ```
//! Replace, resume and reload begin a new life (I4); the old one drains outside the map. The new
//! life takes over the health of its upstreams, and which of them are drained, from the start. A
//! life that was drained keeps its names, and with them its 503, until it is resumed, replaced or
//! removed.

mod change;
mod drain;
mod reload;
mod state;
#[cfg(test)]
mod tests;
mod upstreams;

pub(super) use state::Lives;
