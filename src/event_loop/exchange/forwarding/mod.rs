//! A request that is passed on to an upstream, and its answer back.
//!
//! ```text
//!  begin ──choose──► opening ──connected──► asking ──head──► answering ──end──► done
//!            ▲          │ fails                │ fails, no byte of an answer     │
//!            └──retry───┴──────────────────────┘ and safe to ask again           └─► line kept
//!                       └─ else 502, 503, 504     fails later: broken off
//!  answering ──101──► tunnel ──both sides closed──► done
//! ```
//! The client's connection owns the line to the upstream while the exchange lasts, so one state
//! machine sees both sockets, and no request changes threads or takes a lock.
//!
//! - Both ways are bounded: a side is read only while the other takes what it sends (I9).
//! - An exchange is over when the kernel has the last byte for the client, as any other's (I6).
//! - What is asked again, and where, is in `attempt`; how an exchange ends otherwise in `ending`.

mod pace;
mod pump;
mod state;
mod tunnel;

pub(super) use pace::Pace;
pub(in super::super) use state::Forwarding;
pub(super) use state::Stage;
