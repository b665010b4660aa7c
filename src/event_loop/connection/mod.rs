//! One connection: its state, its exchanges, and what it waits for.
//!
//! ```text
//!  Opening ──PROXY header──► Http ──last answer sent──► Lingering ──peer closed──► closed
//!     └──refused, or silent──────────────────────────────────────────────────────► closed
//!
//!  while Http, a connection waits for:          each wait has its own limit:
//!  fresh ──bytes──► head ◄────────── idle       fresh, head   head_timeout       408 if begun
//!                    │ complete       ▲         content       body_timeout       408 if owed
//!                    ▼                │ sent    sending       write_timeout      closed
//!            content, answer, sending ┘         idle          keepalive_timeout  last read
//!                                               answer        that of each exchange
//!                                               lingering     linger_timeout     closed
//! ```
//! A connection has one [`State`]; whether it is a tunnel depends on its exchange. While opening it
//! is fresh, until a byte follows the PROXY header. An exchange is in flight from its complete head
//! until the kernel has its last byte; exchanges are kept in the order of their answers. An idle
//! connection holds no buffer.
//! - I3, I6: every exit drops the guards, and a cut is counted. I7: an idle connection is read once
//!   more before it closes.
//! - A close is a half-close, then reading to the end: closing with unread bytes would reset the
//!   answer (RFC 9112 §9.6).
//!
//! `step` drives a connection. Around it, `opening` reads what precedes the first request,
//! `pipeline` parses requests from the unread bytes, `dispatcher` runs exchanges meanwhile, `admit`
//! begins them, `deadlines` says what is waited for, and `moving` hands a connection to another
//! process.

mod admit;
mod busy;
mod deadlines;
mod dispatcher;
mod moving;
mod opening;
mod pipeline;
mod state;
mod step;
mod turn;
mod waits;

pub(super) use state::{Connection, NewConnection, Next};
