//! The upgrade: a new process takes the place of this one, under full load.
//!
//! ```text
//!  old                                              new
//!  has the binary started, its stdin is the channel ► reads the config
//!  HandOver, listening sockets (SCM_RIGHTS) ──────► adopts them, loads apps, makes its loops
//!                                  ◄── Ready and its pid, or Failed
//!  Go, or Abort ──────────────────────────────────► starts its loops, accepts; or ends
//!                                  ◄── Serving
//!  Lines, descriptors ────────────────────────────► its loops take connections
//!  lets go of the listeners; drains as for a stop
//!  Report, Report, ... Gone ──────────────────────► shows both generations; one ledger
//!                                  ◄── Cut, Closed, Goodbye
//! ```
//! - Until `Serving` the old process serves as if nothing happened. Whatever fails, or takes too
//!   long, ends the new process and nothing else; so does a stop, and a change of an app that the
//!   new process does not know of. From `Go` to `Serving` control puts both off. After `Serving` a
//!   stop is the new process's ([`relay`]).
//! - A new process whose config has none of the apps, or none of the addresses, that the old one
//!   serves, fails: the config may have been cut off in a write. An operator can allow it.
//! - A listening socket is never closed by both: a client that waits on it is accepted by one or
//!   the other. An address that the new process does not serve is gated and emptied, as for a stop.
//! - The new process is no child of the old one: [`launcher`] starts it, and is gone before the
//!   service manager is told of it.
//! - Connections without a request move from loop to loop, on lines of their own: no report waits
//!   behind them. `event_loop::hand_over` has that part.
//! - The end of the channel is not the end of a process: each side follows the other by pidfd
//!   ([`process`]). A new process whose old one has died goes on alone; one whose old one is there,
//!   but has closed the channel or said `Abort`, ends. It waits for the old one's end, so that a
//!   supervisor of the newest process sees the end of all: until the old one's own deadline, and
//!   after a second signal not at all.
//!
//! The way back, in the old process:
//!
//! ```text
//! serving ──Serving──► draining, keeps the sockets ──all loops empty, or the deadline──► over
//! draining, keeps ──Goodbye, or a stop of this process──► draining, keeps none ──► over
//! draining, keeps ──Closed──► the same, without the sockets of those addresses
//! draining, keeps ──the new process has ended──► serving (taken up again; verdict `cancelled`)
//! draining, keeps none ──the new process has ended──► the same
//! ```
//! - While it keeps the sockets it accepts nothing from them; what is queued there survives the new
//!   process.
//! - `Goodbye` is said by a new process that stops, or that has a successor of its own: then its
//!   end is no loss. It is said when that begins, before any socket is gated or closed.
//! - In every draining state a reload, a change of an app and a further upgrade are refused
//!   (`HandedOver`), and a stop is passed on to the new process; a second one cuts. Taken up again,
//!   the process is in `serving` like any other: all of them work, and the loops' late reports of
//!   the cancelled drain are not taken for those of the next one. The apps are as they were at the
//!   hand-over; connections that the new process had taken are lost with it.
//! - A server that is over does not take up, nor does a server with a failed loop: it ends, and the
//!   service manager starts another one.

mod channel;
mod container;
mod inherited;
mod launcher;
mod lines;
mod new;
mod old;
mod predecessor;
mod process;
mod relay;
mod start;
mod successor;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) use inherited::{Inherited, InheritedSockets};
pub(crate) use launcher::{LAUNCH, launch};
pub(crate) use new::{NoTakeOver, TakeOver};
pub(crate) use old::{HandedAdmin, HandedHealth, UpgradeError, Upgraded, Upgrader};
pub(crate) use predecessor::Predecessor;
pub(crate) use relay::{PassedStop, StopRelay};

/// By this a process knows that it was started by an upgrade, and by which process
/// ([`process::Process::named`]).
const ENVIRONMENT: &str = "TIDEGATE_TAKE_OVER";

/// The version of the messages. Another one is refused, and the old process goes on.
const MESSAGES: u32 = 2;

/// How an upgrade is done.
#[derive(Clone, Debug)]
pub(crate) struct UpgradeOptions {
    /// Another program than this process is of.
    pub(crate) binary: Option<PathBuf>,
    /// How long the new process may take until it serves.
    pub(crate) timeout: Duration,
    /// Whether the new process may serve none of the apps or addresses that this one serves.
    pub(crate) allow_empty: bool,
}

impl Default for UpgradeOptions {
    fn default() -> Self {
        Self { binary: None, timeout: Duration::from_secs(30), allow_empty: false }
    }
}

/// What the old process has, and the new one needs.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct HandOver {
    messages: u32,
    pid: u32,
    listeners: Vec<HandedListener>,
    /// How the admin's socket is configured, if it is handed over; its descriptor comes last.
    admin: Option<String>,
    /// Device and inode of the file that this socket is bound to, if it is.
    admin_file: Option<(u64, u64)>,
    /// Ids of lives go on from here.
    next_app_id: u64,
    /// How many drains of upstreams have got a name. Servers of older versions do not say it.
    #[serde(default)]
    upstream_drains: u64,
    /// Apps that operators have put, as they wrote them.
    apps: Vec<(String, Value)>,
    /// Apps that are drained, or drain, until they are resumed.
    drained: Vec<String>,
    /// Upstreams that are drained: host and URL.
    drained_upstreams: Vec<(String, String)>,
    /// Apps that serve. Where one of them cannot be loaded any more, the upgrade fails.
    serving: Vec<String>,
    /// Whether all apps or all addresses may be missing in the new process.
    #[serde(default)]
    allow_empty: bool,
}

/// An address, and how many sockets it has.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct HandedListener {
    configured: SocketAddr,
    bound: SocketAddr,
    /// Systemd has them too.
    is_kept: bool,
    sockets: usize,
    /// It is the health listener, the last one. An older version takes it for a public one that its
    /// config does not name, and so leaves it here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_health: bool,
}

/// What the new process says.
#[derive(Debug, Serialize, Deserialize)]
enum FromNew {
    /// It can serve, on these of the listeners, which the health listener is one of, and on the
    /// admin's if so.
    Ready {
        listeners: Vec<usize>,
        admin: bool,
        pid: u32,
        /// So many loops take connections; an older version has none that do.
        #[serde(default)]
        taking_loops: usize,
        /// The ids before this one are used: it may have logged them. An older version does not say
        /// it.
        #[serde(default)]
        next_app_id: u64,
    },
    /// It cannot, and ends.
    Failed(String),
    /// It accepts connections.
    Serving,
    /// The old process is to cut what is in flight.
    Cut,
    /// It is closing these addresses.
    Closed(Vec<SocketAddr>),
    /// Its end will be no loss: it stops, or has a successor.
    Goodbye,
}

/// What the old process says after the hand-over.
#[derive(Debug, Serialize, Deserialize)]
enum FromOld {
    /// Serve.
    Go,
    /// The old process goes on without this one.
    Abort,
    /// It has connections to offer, on so many lines: their descriptors follow. Said only to a
    /// process with loops that take them.
    Lines(usize),
    /// How far its drain is.
    Report(Box<Generation>),
    /// It was asked to stop, but this process serves.
    Stop(PassedStop),
    /// Its last word.
    Gone(LastWord),
}

/// A process that drains, as it is seen at one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Generation {
    pub(crate) pid: u32,
    pub(crate) version: String,
    pub(crate) active_connections: u64,
    /// By state, as in its status.
    pub(crate) connections: Value,
    pub(crate) elapsed_ms: u64,
    pub(crate) remaining_ms: u64,
    /// How long it has said nothing, where that is suspicious.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) silent_ms: Option<u64>,
    #[serde(flatten)]
    pub(crate) totals: Totals,
    /// The rows of its apps that have something in flight.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) apps: Vec<Value>,
    /// Its own predecessors that are still there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) previous: Vec<Generation>,
}

impl Generation {
    /// A process that has not said anything yet.
    fn unheard(pid: u32) -> Self {
        Self {
            pid,
            version: "unknown".to_owned(),
            active_connections: 0,
            connections: Value::Null,
            elapsed_ms: 0,
            remaining_ms: 0,
            silent_ms: None,
            totals: Totals::default(),
            apps: Vec::new(),
            previous: Vec::new(),
        }
    }
}

/// What is counted over all generations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Totals {
    /// Exchanges admitted.
    pub(crate) requests_total: u64,
    /// Exchanges that a deadline ended.
    pub(crate) cut_total: u64,
}

impl std::ops::Add for Totals {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            requests_total: self.requests_total + other.requests_total,
            cut_total: self.cut_total + other.cut_total,
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct LastWord {
    verdict: String,
    cut: u64,
    totals: Totals,
}
