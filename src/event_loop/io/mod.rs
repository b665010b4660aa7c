//! The bytes of one socket, both ways: received and not read yet, or still to be sent.
//!
//! For clients, admin peers and upstreams alike. Knows no protocol: the caller decides what the
//! bytes mean, and when enough of them were read or sent.

mod buffers;
mod outbox;
mod transport;
mod watch;

pub(super) use buffers::{BufferPool, InputBuffer};
pub(super) use outbox::{Flushed, Mark, Outbox, TURN_BYTES};
pub(super) use transport::{Io, Ready, Received};
pub(super) use watch::{BOTH_WAYS, watch};
