//! Idle connections on their way from a loop of the old process to a loop of the new one.
//!
//! ```text
//!  old loop                                               new loop
//!  local ──idle──► queued ──its turn──► offered
//!   ▲                │ a request began     │ unwatched; offer: facts and descriptors ───────────►
//!   └────────────────┘                     │            can it take it?   a place, a descriptor,
//!  declined ◄──not taken, or socket closed─┤ ◄── answer: one byte each    its client's share
//!  released ◄──taken───────────────────────┘                              taken: watched, local
//! ```
//! A *hand-over socket* is one end of a socketpair (SOCK_SEQPACKET), apart from the channel of the
//! two processes, so that no report waits behind an offer. Each belongs to one loop at either end.
//! It carries one offer at a time: the next one goes out after the answer to the last. So its
//! buffer never fills, and no loop waits for the other process.
//!
//! A connection can be offered when no request has begun, no byte of one is in user space, and the
//! kernel has every byte of its answers. A connection that is answered while the old process drains
//! is offered as well, so its answer doesn't say `Connection: close`. Bytes that arrive meanwhile
//! wait in the kernel, and wake the new loop when it begins to watch. A connection that isn't
//! taken, or for which no socket is left, stays in the old process until its client sends a request
//! (the answer says `Connection: close`), its own deadline passes, or the drain's deadline is near.
//! Admin connections aren't offered: they ask about this process.
//!
//! - At most one loop of one process watches a descriptor. The old loop's copy stays open,
//!   unwatched, until the answer, so that no failure in between loses the connection. The new loop
//!   answers before it watches, and watches nothing that it couldn't answer.
//! - A connection counts in the old process until the answer arrives, and in the new one from then
//!   on.
//! - The new loop takes a place, and a share of the client's, for each connection, as accepting
//!   does. A deadline moves with its connection, and never gets later.
//! - A loop that stops without a successor takes no connections. A loop with a successor takes
//!   them, and offers them on.

mod give;
mod offer;
mod sockets;
mod take;
#[cfg(test)]
mod tests;

pub(super) use offer::ConnectionFacts;
pub(super) use sockets::Offers;
