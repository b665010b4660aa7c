//! The messages between control and the loops, and the values that these carry.
//!
//! Down: a channel, then the loop's waker ([`LoopHandle`]). Up: one channel, which the loops share
//! with all other threads that ask control for something. Nothing here decides or keeps anything.

use std::{
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::{Duration, Instant},
};

use crossbeam_channel::Sender;
use mio::{Token, Waker};

use crate::{
    acknowledgement::Acknowledgement,
    app::{Delivery, OneUpstream, Peer, UpstreamFailure},
    config::Limits,
    logging::AccessWriter,
    registry::AppId,
};

/// Which connections share a listener, places, limits, and what answers them.
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
    /// In the order of their numbers.
    pub(crate) const ALL: [Self; 3] = [Self::Public, Self::Admin, Self::Health];

    /// How logs call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Admin => "admin",
            Self::Health => "health",
        }
    }
}

/// Control to a loop. Obeyed between turns, so that nothing an event still names goes away.
pub(crate) enum LoopCommand {
    /// A stop begins: gate all public listeners, and end public connections by these rules.
    /// Answered by [`ControlEvent::Gated`].
    Gate(StopRules),
    /// Another process takes connections without a request: offer it them on these lines.
    Give(Vec<OwnedFd>),
    /// The process before this one offers its connections on this line.
    Take(OwnedFd),
    /// All listeners of all loops are gated: accept until no client waits and close them. Answered
    /// by [`ControlEvent::Emptied`] with the last public connection. The other classes go on.
    Finish,
    /// Ends the exchanges of one life.
    Cut(AppId),
    /// This upstream is drained. Answered by [`ControlEvent::UpstreamLeft`] when no exchange of the
    /// loop is with it, which may be at once.
    WatchUpstream(UpstreamDrainId, OneUpstream),
    /// Ends the exchanges that are with this upstream.
    CutUpstream(OneUpstream),
    /// Ends every public connection. Answered by [`ControlEvent::Emptied`].
    CutAll,
    /// Another process serves these public addresses now, and these classes beside them: let go of
    /// their listeners, which stay open there with their queues.
    /// With the last acknowledgement no connection comes here any more.
    LetGo(Arc<[SocketAddr]>, Vec<Class>, Acknowledgement),
    /// That process has ended, and the drain is cancelled: serve again, by these sockets of this
    /// loop's, and those of the classes beside. Answered by [`ControlEvent::TookUp`].
    TakeUp(Vec<PublicSocket>, Vec<(Class, OwnedFd)>),
    /// The server is over: close all other listeners, send what their peers are still owed, and end
    /// the thread. Answered by [`ControlEvent::Ended`].
    End,
    /// The routes changed: forget lives that ended.
    Refresh,
    /// Serve these public addresses too; each with this loop's own socket.
    Listen(Vec<PublicSocket>),
    /// Take admin connections on this socket instead of the one before.
    ListenForAdmin(OwnedFd),
    /// Gate the public listeners of these addresses. Answered by [`ControlEvent::ListenersGated`].
    GateListeners(Arc<[SocketAddr]>),
    /// All loops have gated these: accept until no client waits, and close them. Connections stay.
    CloseListeners(Arc<[SocketAddr]>),
    /// From here on these hold, also for connections that are open.
    /// With the last acknowledgement no request is judged by what held before.
    Configure(Box<LoopConfig>, Acknowledgement),
    /// Say which connections are busy for these lives, all lives if there are none named.
    ListBusy(Arc<[AppId]>, Sender<Vec<BusyConnection>>),
    /// Ends one connection, if it is there; says how many exchanges that cut.
    CutConnection(Token, Sender<Option<u64>>),
    /// An answer, or a part of one, for this exchange, if it still waits for it.
    Deliver(ExchangeId, Delivery),
}

impl LoopCommand {
    /// Whether it ends exchanges.
    pub(crate) fn cuts(&self) -> bool {
        matches!(self, Self::Cut(_) | Self::CutUpstream(_) | Self::CutAll)
    }
}

/// How public connections end from here on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StopRules {
    /// Another process serves. Connections without a request are offered to it, if it takes any,
    /// and keep their own time-outs. Else they are closed after `idle_grace`.
    pub(crate) has_successor: bool,
    /// From when on answers say `Connection: close` although connections are offered. Where none
    /// are, they say it at once.
    pub(crate) close_from: Instant,
    /// When a connection without a request is closed at the latest.
    pub(crate) idle_until: Instant,
}

/// A public listening socket of one loop.
#[derive(Debug)]
pub(crate) struct PublicSocket {
    /// What it is called by; port 0 is the real one here.
    pub(crate) address: SocketAddr,
    /// Shared only with the operator, which hands it over to another process.
    pub(crate) socket: Arc<OwnedFd>,
    /// Systemd has it too: it is never gated, for clients that come later wait for the next
    /// process.
    pub(crate) is_kept: bool,
    /// What it shares with the other sockets of its address.
    pub(crate) group: Arc<ListenGroup>,
    /// Whether its connections begin with a PROXY header: of each as it is when it is accepted. All
    /// loops and the operator share it.
    pub(crate) proxy_protocol: Arc<AtomicBool>,
}

/// What the public sockets of one address share.
#[derive(Debug, Default)]
pub(crate) struct ListenGroup {
    /// Sockets among which the kernel chooses for a new connection.
    pub(crate) size: u32,
    /// The gate's sockets; they close behind all others of the address.
    pub(crate) sinks: Mutex<Vec<Arc<OwnedFd>>>,
    /// The process before this one had gated them: connections that wait there since may be deaf.
    pub(crate) was_gated: bool,
}

/// Names one drain of one upstream. Never used twice in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct UpstreamDrainId(pub(crate) u64);

/// Names an exchange within its loop, which uses no number twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExchangeNumber(pub(crate) u64);

/// Names an exchange of a loop for all that is outside of its connection. What comes late for it
/// must not go to the next exchange of that connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExchangeId {
    /// Its connection.
    pub(crate) connection: Token,
    /// Its number.
    pub(crate) number: ExchangeNumber,
}

/// What of a loop's settings can change while it runs.
pub(crate) struct LoopConfig {
    /// `[limits]`, without the counts of connections: those are the process's.
    pub(crate) limits: Limits,
    /// `server.idle_grace`
    pub(crate) idle_grace: Duration,
    /// Where requests are written, if they are.
    pub(crate) access: Option<AccessWriter>,
}

/// A connection within an exchange.
#[derive(Clone, Debug)]
pub(crate) struct BusyConnection {
    pub(crate) loop_index: usize,
    pub(crate) token: Token,
    pub(crate) life: AppId,
    pub(crate) peer: Peer,
    /// Method and target; not kept for short answers that are written at once.
    pub(crate) request: Option<(String, String)>,
    /// Since the complete request head.
    pub(crate) age: Duration,
    pub(crate) phase: BusyPhase,
    /// Of the response, head included.
    pub(crate) bytes_sent: u64,
    /// Bytes go both ways as they come.
    pub(crate) is_tunnel: bool,
}

/// What a busy connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BusyPhase {
    /// The request's content.
    ReadingBody,
    /// The app.
    WaitingForApp,
    /// The peer, to take the response.
    Sending,
}

/// A loop to control.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ControlEvent {
    /// All public listeners are gated: a stop has begun.
    Gated,
    /// An upstream gave no answer, or not a whole one.
    UpstreamFailed(Box<FailureReport>),
    /// No exchange of the loop is with the upstream that drains so.
    UpstreamLeft(UpstreamDrainId),
    /// The loop serves again. What it has said of a stop before this is of the cancelled one.
    TookUp,
    /// These listeners are gated.
    ListenersGated(Arc<[SocketAddr]>),
    /// The last public connection is gone; so many exchanges were cut by `CutAll`.
    Emptied {
        /// Exchanges that were cut.
        cut: u64,
    },
    /// The thread ends.
    Ended,
    /// A bug, or the kernel, has thrown the loop out of a turn. It goes on, but for a stop alone.
    Failed {
        /// What was thrown.
        error: String,
    },
    /// The thread has ended without a command. Its connections are gone.
    Died {
        /// Why.
        error: String,
        /// Exchanges that were cut, also before.
        cut: u64,
    },
}

/// The failure of an upstream, as it is reported to operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FailureReport {
    /// The app's.
    pub(crate) host: String,
    /// None if there was no upstream to ask.
    pub(crate) upstream: Option<String>,
    pub(crate) failure: UpstreamFailure,
    /// It is to be logged, and so many before it were not.
    pub(crate) unlogged: Option<u64>,
    /// The upstream is taken out for so long.
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

    /// Sends a command and wakes the loop. A loop that has ended needs none: false then.
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
