//! One request and its answer, from the complete head until the kernel has the answer's last byte.
//!
//! ```text
//!             ┌─ the app answers ──────────────────────────────► written ──sent──► over
//!  begun ─────┼─ parked: for content, for a time, for `Later` ──────▲
//!             └─ forwarding: asked of an upstream ──────────────────┘
//! ```
//! An exchange acts through [`Outgoing`], to which it writes its own answer and nothing else. It
//! tells its connection what it wants by an [`Effect`]; it never calls the connection.
//!
//! - I3: its [`InFlight`] holds the guard of the app's life, and drops it with the exchange.
//! - I9: an app's panic becomes the exchange's 500.

mod attempt;
mod content;
mod ending;
mod forwarding;
mod in_flight;
mod later;
mod outgoing;
mod own_answers;
mod parked;
mod queued;
mod reply;
mod state;
#[cfg(test)]
mod tests;

pub(super) use ending::{Pumped, TimedOut};
pub(super) use forwarding::Forwarding;
pub(super) use in_flight::{InFlight, Uncounted};
pub(super) use later::Delivered;
pub(super) use outgoing::{Effect, Outgoing};
pub(super) use own_answers::{
    draining, is_server_options, misdirected, refused, server_options, trace, unknown_host,
};
pub(super) use state::{Awaits, Exchange};
