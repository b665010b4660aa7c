//! The bytes of one socket, both ways: received and not read yet, or still to be sent.
//!
//! For clients, admin peers, upstreams and their health checks. Knows no protocol: the caller
//! decides what the bytes mean, and when enough of them were read or sent.

mod buffers;
mod connect;
mod outbox;
mod ready;
mod tls;
mod transport;
mod watch;

pub(crate) use buffers::{BufferPool, InputBuffer, Unread};
pub(crate) use connect::{OpenError, Opening};
pub(crate) use outbox::{Flushed, Mark, Outbox, TURN_BYTES};
pub(crate) use ready::{Ready, Received};
pub(crate) use transport::{Io, Outward};
pub(crate) use watch::{BOTH_WAYS, watch};
