//! Bytes of one socket, both ways: what came and is not read yet, and what is to go out.
//!
//! For clients, the admin's peers and upstreams alike. Knows no protocol: what the bytes mean, and
//! when enough of them were read or sent, is the caller's.

mod buffers;
mod outbox;
mod transport;
mod watch;

pub(super) use buffers::{BufferPool, InputBuffer};
pub(super) use outbox::{Flushed, Mark, Outbox, TURN_BYTES};
pub(super) use transport::{Io, Ready, Received};
pub(super) use watch::{BOTH_WAYS, watch};
