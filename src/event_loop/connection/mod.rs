//! One connection: what it is at, its exchanges, and what it waits for.
//!
//! ```text
//!  Opening ──PROXY header──► Http ──last answer sent──► Lingering ──peer closed──► gone
//!     └──refused, or silent──────────────────────────────────────────────────────► gone
//!
//!  while Http, a connection waits for:          each wait ends by its own limit:
//!  fresh ──bytes──► head ◄────────── idle       fresh, head   head_timeout       408 if begun
//!                    │ complete       ▲         content       body_timeout       408 if owed
//!                    ▼                │ sent    sending       write_timeout      gone
//!            content, app, sending ───┘         idle          keepalive_timeout  last read
//!                                               lingering     linger_timeout     gone
//! ```
//! A connection has one [`State`]; whether it is a tunnel is a matter of its exchange. While it
//! opens it is fresh: until a byte comes behind the PROXY header. An exchange is in flight from its
//! complete head until the kernel has its last byte; the exchanges are kept in the order of their
//! answers. Idle, a connection holds no buffer.
//! - I3, I6: every way out drops the guards; a cut is counted. I7: an idle connection is read once
//!   more before it is closed.
//! - Closing is half-close, then reading out: a close with unread bytes would reset the answer
//!   (RFC 9112 §9.6).
//!
//! `step` drives a connection. What it needs stands beside it: `opening` reads what comes before
//! the first request, `pipeline` takes requests out of the unread bytes, `admit` begins their
//! exchanges, `deadlines` says what is waited for, `moving` hands a connection to another process.

mod admit;
mod busy;
mod deadlines;
mod moving;
mod opening;
mod pipeline;
mod state;
mod step;
mod turn;
mod waits;

pub(super) use state::{Connection, Newcomer, Next};
