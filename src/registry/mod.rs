//! Which app serves which host, and the drain of each life.
//!
//! A **life** is one loaded instance of an app ([`AppEntry`]). Its [`AppId`] is never used twice.
//! It begins when the app is loaded and ends when its drain is over. A reload, a replace or a
//! resume begins a new life under the same host; the old life finishes its exchanges, with counts
//! of its own (I4).
//!
//! Owns the map of host names, under one lock. Each loop has a [`RegistryView`] and takes that lock
//! only when something changed. Does not depend on sockets, messages or what an app is (`A`), so
//! that loom can check the whole folder: `tests/loom.rs`.

mod drain;
mod entry;
mod guard;
mod routes;
mod target;
mod view;

pub use drain::{Announce, AppDrainState, Draining};
pub use entry::{AppEntry, AppId, NewApp, NewLife};
pub use guard::{InFlightGuard, LoopEntry};
pub use routes::{AppRegistry, NameTaken};
pub use target::Target;
pub use view::{Refusal, RegistryView};
