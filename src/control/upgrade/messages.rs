//! What the two processes of an upgrade say to each other.

use std::{fmt, net::SocketAddr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    super::{certificates::HandedCertificates, totals::Totals},
    relay::PassedStop,
};

/// The version of the messages. Another one is refused, and the old process goes on.
pub(super) const MESSAGES: u32 = 2;

/// What the old process has, and the new one needs.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(in super::super) struct HandOver {
    pub(super) messages: u32,
    pub(super) pid: u32,
    pub(super) listeners: Vec<HandedListener>,
    /// How the admin's socket is configured, if it is handed over; its descriptor comes last.
    pub(super) admin: Option<String>,
    /// Device and inode of the file that this socket is bound to, if it is.
    pub(super) admin_file: Option<(u64, u64)>,
    /// Ids of lives go on from here.
    pub(super) next_app_id: u64,
    /// How many drains of upstreams have got a name. Servers of older versions do not say it.
    #[serde(default)]
    pub(super) upstream_drains: u64,
    /// Apps that operators have put, as they wrote them.
    pub(super) apps: Vec<(String, Value)>,
    /// Apps that are drained, or drain, until they are resumed.
    pub(super) drained: Vec<String>,
    /// Upstreams that are drained: host and URL.
    pub(super) drained_upstreams: Vec<(String, String)>,
    /// Apps that serve. Where one of them cannot be loaded any more, the upgrade fails.
    pub(super) serving: Vec<String>,
    /// Whether all apps or all addresses may be missing in the new process.
    #[serde(default)]
    pub(super) allow_empty: bool,
    /// The keys of TLS tickets. Servers of older versions have none.
    #[serde(default)]
    pub(super) ticket_keys: TicketSecret,
    /// The certificates in use. Servers of older versions hand none over.
    #[serde(default)]
    pub(super) certificates: HandedCertificates,
}

/// Exported keys of tickets. Not shown: no key gets into a log.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(in super::super) struct TicketSecret(pub(super) Vec<u8>);

impl fmt::Debug for TicketSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketSecret(..)")
    }
}

/// An address, and how many sockets it has.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(in super::super) struct HandedListener {
    pub(super) configured: SocketAddr,
    pub(super) bound: SocketAddr,
    /// Systemd has them too.
    pub(super) is_kept: bool,
    pub(super) sockets: usize,
    /// It is the health listener, and comes last. An older version takes it for a public listener
    /// that its config does not name, and leaves it to this process.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_health: bool,
}

/// What the new process says.
#[derive(Debug, Serialize, Deserialize)]
pub(in super::super) enum FromNew {
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
    /// It accepts connections from here on.
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
pub(in super::super) enum FromOld {
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
    pub(super) fn unheard(pid: u32) -> Self {
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

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in super::super) struct LastWord {
    pub(super) verdict: String,
    pub(super) cut: u64,
    pub(super) totals: Totals,
}
