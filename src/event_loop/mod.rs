//! The event loops: one thread each, sole owner of its sockets, buffers and timers.
//!
//! A turn handles I/O, then new connections, then timers, then commands: a command never frees what
//! an event still names, and no deadline or cut comes before what was in time. Requests for
//! upstreams go out together, behind the events: a send to a process that sleeps has to wake it,
//! and one that has work does not sleep. Nothing here waits but in epoll_wait(2), and no loop
//! touches what another one owns. It knows control only by [`crate::message`].
//!
//! ```text
//! serving ──Gate──► closing     gated; every answer says close; the idle end after the grace
//! closing ──Finish──► finishing accepts until nobody waits, closes the listeners
//! finishing ──last public connection──► emptied
//! any ──CutAll──► emptied       drops everything public
//! any of these ──TakeUp──► serving  the process that had the sockets has died
//! any ──End──► ended            with the last answer to an admin, or after END_GRACE
//! any ──fails──► the same       control begins a stop; or dead, in `failure`
//! ```
//! An upgrade is a stop before which `LetGo` takes the listeners away that another process serves.
//! Connections are of three classes ([`Class`]). All of this is about public ones. Those of
//! operators and of probes have a listener, an app, a budget and limits of their own ([`class`]),
//! and go on until the end: they tell of the stop.

mod accept;
mod bind;
mod class;
mod clock;
mod closing;
mod connection;
mod context;
mod exchange;
mod failure;
mod gate;
mod hand_over;
mod io;
mod listener;
mod obey;
mod queue;
mod running;
mod setup;
mod slots;
mod start;
#[cfg(test)]
mod test_support;
#[cfg(test)]
mod tests;
mod timers;
mod tokens;
mod turn;
mod upstream;

pub use bind::BindError;
pub(crate) use bind::{
    ListenerSet, UnixAccess, UnixSocketFile, adopt, bind_address, bind_one, bind_quietly, bind_unix,
};
pub(crate) use failure::DeadLoop;
pub(crate) use listener::ConnectionBudget;
pub(crate) use setup::{LoopSetup, SideSetup};
pub(crate) use start::EventLoop;
