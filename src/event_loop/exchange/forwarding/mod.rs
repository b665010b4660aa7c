//! A request that is forwarded to an upstream, and its answer.
//!
//! ```text
//!  begin ──choose──► opening ──connected──► asking ──head──► answering ──end──► done
//!            ▲          │ fails                │ fails, no byte of an answer     │
//!            └──retry───┴──────────────────────┘ and safe to retry               └─► conn. kept
//!                       └─ else 502, 503, 504     fails later: broken off
//!  answering ──101──► tunnel ──both sides closed──► done
//! ```
//! The client's connection owns the connection to the upstream while the exchange lasts. So one
//! state machine sees both sockets, and no request changes threads or takes a lock.
//!
//! - Both directions are bounded: each side is read only while the other takes its bytes (I9).
//! - Like any exchange, it is over when the kernel has the last byte for the client (I6).
//! - `attempt` decides what is retried, and where; `ending` handles every other end.

mod activity;
mod pace;
mod pump;
mod sent_request;
mod state;
mod tries;
mod tunnel;

pub(super) use activity::Activity;
pub(super) use pace::Pace;
pub(super) use sent_request::SentRequest;
pub(in super::super) use state::Forwarding;
pub(super) use state::Stage;
pub(super) use tries::Tries;
