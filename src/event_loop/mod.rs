//! The event loops: one thread each, sole owner of its sockets, buffers and timers.
//!
//! A turn handles I/O, then new connections, then timers, then commands: a command never frees what
//! an event still names, and no deadline or cut runs before events that were ready in time.
//! Requests for upstreams are sent together, after the events: a send to a sleeping process has to
//! wake it, and a process with work doesn't sleep. A loop blocks only in epoll_wait(2), and touches
//! nothing that another loop owns. It knows control only through [`crate::message`].
//!
//! ```text
//! serving ──Gate──► closing     gated; every answer says close; idle ones end after the grace
//! closing ──Finish──► finishing accepts until the queues are empty, closes the listeners
//! finishing ──last public connection──► emptied
//! any ──CutAll──► emptied       drops everything public
//! any of these ──TakeUp──► serving  the process that had taken the sockets has died
//! any ──End──► ended            with the last answer to an admin, or after END_GRACE
//! any ──fails──► the same       control begins a stop; or dead, in `failure`
//! ```
//! An upgrade is a stop; before it, `LetGo` closes the listeners that another process serves.
//! Connections have one of three classes ([`Class`]). All of this is about public ones. Admin
//! connections and health probes have their own listener, app, budget and limits ([`class`]), and
//! are served until the end: they report on the stop.

mod accept;
mod accounting;
mod bind;
mod class;
mod clock;
mod closing;
mod commands;
mod connection;
mod context;
mod deliveries;
mod exchange;
mod failure;
mod gate;
mod hand_over;
mod handshakes;
mod listener;
mod obey;
mod poll;
mod queue;
mod reports;
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
