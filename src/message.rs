//! The messages between control and the loops, and the values that they carry.
//!
//! From control to a loop: a channel and the loop's waker ([`LoopHandle`]). From the loops to
//! control: one channel, which they share with all other threads that send requests to control.
//! This module decides nothing and keeps no state.

use std::{
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crossbeam_channel::Sender;
use crossbeam_utils::atomic::AtomicCell;
use mio::{Token, Waker};

use crate::{
    acknowledgement::Acknowledgement,
    app::{Delivery, OneUpstream, Peer, UpstreamFailure},
    config::{Limits, ListenOptions},
    logging::AccessWriter,
    registry::AppId,
};

/// A class of connections. Those of one class share listeners, limits and the app that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Answered by the registry's apps, until a stop.
    Public,
    /// Operators, answered by the admin app until the end.
    Admin,
    /// Probes of load balancers, answered by the health app until the end.
    Health,
}

impl Class {
    /// All classes, in the order of their numbers.
    pub(crate) const ALL: [Self; 3] = [Self::Public, Self::Admin, Self::Health];

    /// The name in logs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Admin => "admin",
            Self::Health => "health",
        }
    }
}

/// A command of control to a loop. It is obeyed between turns, so that it never removes what a
/// pending event refers to.
pub(crate) enum LoopCommand {
    /// A stop begins: gate all public listeners, and end public connections by these rules.
    /// Answered by [`ControlEvent::Gated`].
    Gate(StopRules),
    /// Another process takes connections without a request: offer it connections on these sockets.
    Give(Vec<OwnedFd>),
    /// The previous process offers its connections on this socket.
    Take(OwnedFd),
    /// All loops have gated all their listeners: accept until no client waits, and close them. The
    /// other classes go on. [`ControlEvent::Emptied`] follows when the last public connection ends.
    Finish,
    /// End the exchanges of one life.
    Cut(AppId),
    /// This upstream is drained. [`ControlEvent::UpstreamLeft`] follows when the loop has no
    /// exchange with it, which may be at once.
    WatchUpstream(UpstreamDrainId, OneUpstream),
    /// End the exchanges with this upstream.
    CutUpstream(OneUpstream),
    /// End every public connection. Answered by [`ControlEvent::Emptied`].
    CutAll,
    /// Another process now serves these public addresses and these other classes: drop their
    /// listeners. The other process keeps the sockets and their queues. After the last
    /// acknowledgement no connection arrives in this process.
    LetGo(Arc<[SocketAddr]>, Vec<Class>, Acknowledgement),
    /// That process has ended, and the drain is cancelled: serve again, with these public sockets
    /// of this loop and these sockets of the other classes. Answered by [`ControlEvent::TookUp`].
    TakeUp(Vec<PublicSocket>, Vec<(Class, OwnedFd)>),
    /// The server ends: close all remaining listeners, send what is owed to their peers, and end
    /// the thread. Answered by [`ControlEvent::Ended`].
    End,
    /// The routes changed: forget lives that ended.
    Refresh,
    /// Serve these public addresses too. Each socket belongs to this loop.
    Listen(Vec<PublicSocket>),
    /// Accept admin connections on this socket instead of the previous one.
    ListenForAdmin(OwnedFd),
    /// Gate the public listeners of these addresses. Answered by [`ControlEvent::ListenersGated`].
    GateListeners(Arc<[SocketAddr]>),
    /// All loops have gated these listeners: accept until no client waits, and close them. Their
    /// connections stay.
    CloseListeners(Arc<[SocketAddr]>),
    /// Use these settings from now on, also for open connections. After the last acknowledgement no
    /// request is judged by the old settings.
    Configure(Box<LoopConfig>, Acknowledgement),
    /// List the connections with an exchange for one of these lives; for any life if the list is
    /// empty.
    ListBusy(Arc<[AppId]>, Sender<Vec<BusyConnection>>),
    /// End one connection. Answers how many exchanges that cut; `None` if there is no such
    /// connection.
    CutConnection(Token, Sender<Option<u64>>),
    /// A part of an answer for this exchange, if it still waits.
    Deliver(ExchangeId, Delivery),
}

impl LoopCommand {
    /// Whether the command ends exchanges.
    pub(crate) fn cuts(&self) -> bool {
        matches!(self, Self::Cut(_) | Self::CutUpstream(_) | Self::CutAll)
    }
}

/// How public connections end after a stop began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StopRules {
    /// Whether another process serves. If so, connections without a request are offered to it, if
    /// it takes any, and keep their own time-outs. If not, they are closed after `idle_grace`.
    pub(crate) has_successor: bool,
    /// From when on answers say `Connection: close` although connections are offered to another
    /// process. If they are not offered, answers say so at once.
    pub(crate) close_from: Instant,
    /// The latest time at which a connection without a request is closed.
    pub(crate) idle_until: Instant,
}

/// A public listening socket of one loop.
#[derive(Debug)]
pub(crate) struct PublicSocket {
    /// Its address. If the config says port 0, this has the port that the kernel chose.
    pub(crate) address: SocketAddr,
    /// Shared only with control, which hands it over to another process.
    pub(crate) socket: Arc<OwnedFd>,
    /// Whether systemd also has the socket. Then it is never gated: clients that connect later wait
    /// for the next process.
    pub(crate) is_kept: bool,
    /// What it shares with the other sockets of its address.
    pub(crate) group: Arc<ListenGroup>,
    /// How its connections begin. The values at the time of the accept count. All loops and control
    /// share them.
    pub(crate) options: Arc<LiveListenOptions>,
}

/// How the connections of a public address begin, as it is configured now. A read writes nothing,
/// so that accepting loops don't contend.
pub(crate) type LiveListenOptions = AtomicCell<ListenOptions>;

/// What the public sockets of one address share.
#[derive(Debug, Default)]
pub(crate) struct ListenGroup {
    /// Sockets among which the kernel chooses for a new connection.
    pub(crate) size: u32,
    /// The sockets of the gate. They close after all others of the address.
    pub(crate) sinks: Mutex<Vec<Arc<OwnedFd>>>,
    /// Whether the previous process had gated them. Then connections in their queues may be deaf.
    pub(crate) was_gated: bool,
}

/// The id of one drain of one upstream. Never used twice in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct UpstreamDrainId(pub(crate) u64);

/// The number of an exchange. A loop uses no number twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExchangeNumber(pub(crate) u64);

/// Identifies an exchange of a loop. A delivery that comes late must not go to the next exchange of
/// the same connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExchangeId {
    /// Its connection.
    pub(crate) connection: Token,
    /// Its number.
    pub(crate) number: ExchangeNumber,
}

/// The settings of a loop that can change while it runs.
pub(crate) struct LoopConfig {
    /// `[limits]`. A loop does not use the limits on the number of connections, which apply to the
    /// process.
    pub(crate) limits: Limits,
    /// `server.idle_grace`
    pub(crate) idle_grace: Duration,
    /// The access log, if there is one.
    pub(crate) access: Option<AccessWriter>,
}

/// A connection with an exchange.
#[derive(Clone, Debug)]
pub(crate) struct BusyConnection {
    pub(crate) loop_index: usize,
    pub(crate) token: Token,
    pub(crate) life: AppId,
    pub(crate) peer: Peer,
    /// Method and target; not stored for short answers that are written at once.
    pub(crate) request: Option<(String, String)>,
    /// The time since the request head was complete.
    pub(crate) age: Duration,
    pub(crate) phase: BusyPhase,
    /// Bytes of the response that were sent, including its head.
    pub(crate) bytes_sent: u64,
    /// Whether it is a tunnel.
    pub(crate) is_tunnel: bool,
    /// `None` without TLS.
    pub(crate) tls: Option<BusyTls>,
}

/// The TLS of a busy connection.
#[derive(Clone, Debug)]
pub(crate) struct BusyTls {
    pub(crate) version: &'static str,
    pub(crate) cipher: &'static str,
    /// The name that the client asked for (SNI).
    pub(crate) server_name: Option<String>,
    pub(crate) is_resumed: bool,
}

/// What a busy connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BusyPhase {
    /// For the request's content.
    ReadingBody,
    /// For the app.
    WaitingForApp,
    /// For the peer to read the response.
    Sending,
}

/// An event that a loop reports to control.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ControlEvent {
    /// All public listeners are gated: a stop has begun.
    Gated,
    /// An upstream gave no answer, or an incomplete one.
    UpstreamFailed(Box<FailureReport>),
    /// The loop has no exchange with the upstream of this drain.
    UpstreamLeft(UpstreamDrainId),
    /// The loop serves again. Its earlier events about a stop belong to the cancelled stop.
    TookUp,
    /// These listeners are gated.
    ListenersGated(Arc<[SocketAddr]>),
    /// The last public connection has ended.
    Emptied {
        /// Exchanges that `CutAll` cut.
        cut: u64,
    },
    /// The thread ends.
    Ended,
    /// A panic or a system error ended a turn of the loop. It goes on only to stop.
    Failed {
        /// The panic or error.
        error: String,
    },
    /// The thread has ended without a command. Its connections are gone.
    Died {
        /// Why.
        error: String,
        /// Exchanges that were cut by this or by an earlier `CutAll`.
        cut: u64,
    },
}

/// The failure of an upstream, as operators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FailureReport {
    /// The app's primary host.
    pub(crate) host: String,
    /// The upstream's URL; `None` if there was no upstream to ask.
    pub(crate) upstream: Option<String>,
    pub(crate) failure: UpstreamFailure,
    /// `Some` if it should be logged: how many were not logged since the last logged one.
    pub(crate) unlogged: Option<u64>,
    /// `Some` if the upstream was ejected: for how long.
    pub(crate) ejected_for: Option<Duration>,
}

/// Control's end of one loop.
#[derive(Clone, Debug)]
pub(crate) struct LoopHandle {
    commands: Sender<LoopCommand>,
    waker: Arc<Waker>,
}

impl LoopHandle {
    /// Joins a channel and the waker of the loop that reads it.
    pub(crate) fn new(commands: Sender<LoopCommand>, waker: Arc<Waker>) -> Self {
        Self { commands, waker }
    }

    /// Sends a command and wakes the loop. Returns false if the loop has ended.
    ///
    /// # Errors
    /// The waker's.
    pub(crate) fn send(&self, command: LoopCommand) -> io::Result<bool> {
        match self.commands.send(command) {
            Ok(()) => self.waker.wake().map(|()| true),
            Err(_) => Ok(false),
        }
    }
}
