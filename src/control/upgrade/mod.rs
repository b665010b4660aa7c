//! The upgrade: a new process takes the place of this one, under full load.
//!
//! ```text
//!  old                                              new
//!  has the binary started, its stdin is the channel ► reads the config
//!  HandOver, listening sockets (SCM_RIGHTS) ──────► adopts them, loads apps, makes its loops
//!                                  ◄── Ready and its pid, or Failed
//!  Go, or Abort ──────────────────────────────────► goes on, or ends
//!                                  ◄── Serving      starts its loops, accepts
//!  Lines, descriptors ────────────────────────────► its loops take connections
//!  lets go of the listeners; drains as for a stop
//!  Report, Report, ... Gone ──────────────────────► shows both generations; one ledger
//!                                  ◄── Cut, Closed, Goodbye
//! ```
//! - Until `Serving` the old process serves as if nothing happened. Whatever fails, or takes too
//!   long, ends the new process and nothing else; so does a stop, and a change of an app that the
//!   new process does not know of. From `Go` to `Serving` control puts both off. After `Serving` a
//!   stop is the new process's ([`relay`]).
//! - A new process accepts nothing before it has said `Serving`. An old process that gives it up
//!   reads no such message afterwards. So no process that has accepted a connection is ended for
//!   being late.
//! - A new process whose config has none of the apps, or none of the addresses, that the old one
//!   serves, fails: the config may have been cut off in a write. An operator can allow it.
//! - A listening socket is never closed by both: a client that waits on it is accepted by one or
//!   the other. An address that the new process does not serve is gated and emptied, as for a stop.
//! - The new process is no child of the old one: [`launcher`] starts it, and is gone before the
//!   service manager learns of it.
//! - Connections without a request move from loop to loop, on lines of their own: no report waits
//!   behind them. `event_loop::hand_over` has that part.
//! - The end of the channel is not the end of a process: each side follows the other by pidfd
//!   ([`process`]). A new process whose old one has died goes on alone; one whose old one is there,
//!   but has closed the channel or said `Abort`, ends. It waits for the old one's end, so that a
//!   supervisor of the newest process sees the end of all: until the old one's own deadline, and
//!   after a second signal not at all.
//!
//! The way back, in the old process:
//!
//! ```text
//! serving ──Serving──► draining, keeps the sockets ──all loops empty, or the deadline──► over
//! draining, keeps ──Goodbye, or a stop of this process──► draining, keeps none ──► over
//! draining, keeps ──Closed──► the same, without the sockets of those addresses
//! draining, keeps ──the new process has ended──► serving (taken up again; verdict `cancelled`)
//! draining, keeps none ──the new process has ended──► the same
//! ```
//! - While it keeps the sockets it accepts nothing from them; what is queued there survives the new
//!   process.
//! - `Goodbye` is said by a new process that stops, or that has a successor of its own: then its
//!   end is no loss. It is said when that begins, before any socket is gated or closed.
//! - In every draining state a reload, a change of an app and a further upgrade are refused
//!   (`HandedOver`), and a stop is passed on to the new process; a second one cuts. Taken up again,
//!   the process is in `serving` like any other: all of them work, and the loops' late reports of
//!   the cancelled drain are not taken for those of the next one. The apps are as they were at the
//!   hand-over; connections that the new process had taken are lost with it.
//! - A server that is over does not take up, nor does a server with a failed loop: it ends, and the
//!   service manager starts another one.

mod channel;
mod container;
mod handed;
mod inherited;
mod launcher;
mod lines;
mod messages;
mod new;
mod old;
mod plan;
mod predecessor;
mod process;
mod relay;
mod start;
mod successor;
mod upgrader;

pub(crate) use handed::{HandedAdmin, HandedHealth};
pub(crate) use inherited::{Inherited, InheritedSockets};
pub(crate) use launcher::{LAUNCH, launch};
pub(crate) use messages::Generation;
#[cfg(test)]
pub(super) use messages::{FromNew, HandOver};
pub(crate) use new::{NoTakeOver, TakeOver};
#[cfg(test)]
pub(super) use plan::{HandOverPlan, HandOverStep};
pub(crate) use predecessor::Predecessor;
#[cfg(test)]
pub(super) use relay::OnItsWay;
pub(crate) use relay::{PassedStop, StopReceipt, StopRelay};
#[cfg(test)]
pub(super) use successor::input_of;
pub(crate) use upgrader::{UpgradeError, UpgradeOptions, Upgraded, Upgrader};
