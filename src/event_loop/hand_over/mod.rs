//! Connections without a request, on their way from a loop of the old process to one of the new.
//!
//! ```text
//!  old loop                                               new loop
//!  ours ──at rest──► queued ──its turn──► offered
//!   ▲                  │ has a request     │ epoll forgets it; offer: facts and descriptors ───►
//!   └──────────────────┘                   │                 room for it?   a place, a descriptor,
//!  kept ◄──not taken, or the line is gone──┤ ◄── answer: one byte for each     its client's share
//!  gone ◄──taken───────────────────────────┘                 taken: watched, and ours there
//! ```
//! A *line* is one socket of a pair (SOCK_SEQPACKET), apart from the channel of the two processes,
//! so that no report waits behind an offer. Each line belongs to one loop at either end. It carries
//! one offer at a time: the next one goes out when the answer to the last is there. So its buffer
//! never fills, and no loop waits for the other process.
//!
//! A connection is at rest when no request has begun, no byte of one is in user space, and the
//! kernel has every byte of its answers. One that is answered while the old process drains is
//! offered likewise, and its answer does not say `Connection: close`. What arrives meanwhile waits
//! in the kernel, and wakes the new loop when that begins to watch. A connection that is not taken,
//! or for which no line is left, is the old process's until its client speaks (the answer says
//! `Connection: close`), its own time-out comes, or the drain's deadline is near. Admin connections
//! are not offered: they ask about this process.
//!
//! - One loop of one process watches a descriptor. The old loop's copy stays open until the answer,
//!   unwatched, so that no failure in between loses the connection; the new loop answers before it
//!   watches, and watches nothing that it could not answer.
//! - A connection counts in the old process until the answer is there, in the new one from then on.
//! - The new loop takes a place, and a share of the client's, for each connection, as accepting
//!   does. A deadline moves with its connection, and never gets later.
//! - A loop that stops without a successor takes nothing. One that has a successor takes, and
//!   offers again.

mod give;
mod lines;
mod offer;
mod take;
#[cfg(test)]
mod tests;

pub(super) use lines::{Giving, Taking};
pub(super) use offer::Handed;
