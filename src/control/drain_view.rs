//! A drain as others see it: its name, its cause, its counts at one moment, its verdict.

use std::{fmt, num::ParseIntError, str::FromStr, time::Duration};

use crossbeam_channel::Receiver;

use crate::{message::UpstreamDrainId, registry::AppId};

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every exchange that was admitted ended by itself.
    Drained,
    /// The deadline, or a request to cut, ended this many exchanges.
    Cut(u64),
    /// The app was resumed before the drain's end.
    Cancelled,
}

impl Verdict {
    pub(super) fn of(cut: u64) -> Self {
        if cut == 0 { Self::Drained } else { Self::Cut(cut) }
    }

    /// The word for answers.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Drained => "drained",
            Self::Cut(_) => "cut",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drained => f.write_str("drained"),
            Self::Cut(exchanges) => write!(f, "cut {exchanges}"),
            Self::Cancelled => f.write_str("cancelled"),
        }
    }
}

/// Why an app, or the server, drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Cause {
    /// The app is removed.
    Remove,
    /// A new life of it serves.
    Replace,
    /// The config no longer has the app, or has changed it.
    Reload,
    /// It serves no request until it is resumed.
    Drain,
    /// One of its upstreams gets no request until it is resumed.
    Upstream,
    /// The server stops.
    Stop,
    /// Another process takes the server's place.
    Upgrade,
    /// A loop has failed, and the server stops for that.
    LoopFailed,
}

impl Cause {
    /// The word for logs and answers.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Remove => "remove",
            Self::Replace => "replace",
            Self::Reload => "reload",
            Self::Drain => "drain",
            Self::Upstream => "upstream",
            Self::Stop => "stop",
            Self::Upgrade => "upgrade",
            Self::LoopFailed => "loop_failed",
        }
    }
}

/// What drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum DrainName {
    /// A life.
    App(AppId),
    /// An upstream of a life.
    Upstream(UpstreamDrainId),
    /// The server.
    Stop,
}

impl fmt::Display for DrainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::App(id) => id.fmt(f),
            Self::Upstream(UpstreamDrainId(number)) => write!(f, "u{number}"),
            Self::Stop => f.write_str("stop"),
        }
    }
}

impl FromStr for DrainName {
    type Err = ParseIntError;

    /// Reads a name back; there may be no such drain.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix('u') {
            Some(number) => Ok(Self::Upstream(UpstreamDrainId(number.parse()?))),
            None if text == "stop" => Ok(Self::Stop),
            None => text.parse().map(Self::App),
        }
    }
}

impl From<AppId> for DrainName {
    fn from(id: AppId) -> Self {
        Self::App(id)
    }
}

impl From<DrainTicket> for DrainName {
    fn from(ticket: DrainTicket) -> Self {
        Self::App(ticket.id)
    }
}

/// A drain as it is seen at one moment.
#[derive(Clone, Debug)]
pub(crate) struct DrainView {
    pub(crate) name: DrainName,
    /// The app's host; none for the server.
    pub(crate) host: Option<String>,
    /// The URL, if one upstream of the app drains.
    pub(crate) upstream: Option<String>,
    pub(crate) cause: Cause,
    /// How it ended, if it did.
    pub(crate) verdict: Option<Verdict>,
    pub(crate) active_connections: u64,
    pub(crate) refused: u64,
    pub(crate) cut: u64,
    pub(crate) elapsed: Duration,
    /// Until the deadline; zero after the end.
    pub(crate) remaining: Duration,
    /// Of a stop: how long its process may stay for older ones, which still drain after an upgrade.
    pub(crate) older: Option<Duration>,
}

/// A drain that is under way.
#[derive(Clone, Debug)]
#[must_use = "the ticket is how the drain's end is known"]
pub struct DrainTicket {
    pub(super) id: AppId,
    pub(super) verdict: Receiver<Verdict>,
}

impl DrainTicket {
    /// The life that drains.
    pub fn id(&self) -> AppId {
        self.id
    }

    /// Waits for the end of the drain, at most this long; `None` when it is not over by then. The
    /// verdict is given once.
    pub fn wait(&self, timeout: Duration) -> Option<Verdict> {
        self.verdict.recv_timeout(timeout).ok()
    }
}
