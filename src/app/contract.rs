//! What an app is, what it may know, and how it answers.

use std::{
    fs::File,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use super::{Forward, Later, Upstreams};
use crate::{
    http::{Bytes, RequestHead, Response},
    logging::RequestId,
};

/// What a hostname serves.
///
/// One value serves all loops at once, so what it changes while handling (a cache) it keeps per
/// loop, by [`Context::loop_index`].
pub trait App: Send + Sync {
    /// Answers a request head. A panic here is answered with 500 and touches nobody else.
    fn handle<'a>(&'a self, request: &RequestHead<'_>, context: &Context) -> Reply<'a>;

    /// The kind as shown to operators.
    fn kind(&self) -> &'static str {
        "custom"
    }

    /// The servers that it passes requests on to, for who checks and shows them.
    fn upstreams(&self) -> Option<&Arc<Upstreams>> {
        None
    }

    /// The same app for a further life, if it counts something that is one life's (I4). Asked when
    /// a drained app is resumed; it must not block.
    fn again(&self) -> Option<Arc<dyn App>> {
        None
    }

    /// Lets go of what is held for this loop and was not used for a while (open files, memory).
    /// Each loop calls it now and then; an app that is never asked again would hold it for ever.
    fn release_idle(&self, _loop_index: usize, _now: Instant) {}
}

/// What an app may know of the loop and the connection it is called from.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// Which loop calls, from zero.
    pub loop_index: usize,
    /// The time of this turn of the loop.
    pub now: Instant,
    /// The time of day.
    pub wall: SystemTime,
    /// The peer of the connection.
    pub peer: Peer,
    /// The request's id in the access log, if there is one.
    pub request_id: Option<RequestId>,
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A peer on TCP.
    Tcp(SocketAddr),
    /// A process of this machine, on a unix socket.
    Unix,
}

/// An app's answer to a request head.
pub enum Reply<'a> {
    /// A whole response.
    Full(Response<'a>),
    /// A response whose content is read from files by the loop. The content of `head` is not sent.
    Files {
        /// Status and fields.
        head: Response<'a>,
        /// The content, in order.
        content: Vec<Segment>,
    },
    /// A response that is held back for this long without blocking the loop.
    After(Duration, Response<'a>),
    /// The app wants the request's content first, whole and within `limits.body_bytes`.
    Collect(Box<OnContent>),
    /// The answer comes from outside the loop. The function is called when the exchange is parked,
    /// on the loop's thread: it passes the [`Later`] on, and must not block.
    Later(Box<dyn FnOnce(Later) + Send>),
    /// The request is passed on by the loop, and its content with it as it comes.
    Forward(Forward),
}

impl Reply<'_> {
    /// The status of the answer, if it is known already.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Full(response) | Self::After(_, response) => Some(response.status()),
            Self::Files { head, .. } => Some(head.status()),
            Self::Collect(_) | Self::Later(_) | Self::Forward(_) => None,
        }
    }

    /// The same reply, free of the app's lifetime.
    pub fn into_owned(self) -> Reply<'static> {
        match self {
            Self::Full(response) => Reply::Full(response.into_owned()),
            Self::Files { head, content } => Reply::Files { head: head.into_owned(), content },
            Self::After(delay, response) => Reply::After(delay, response.into_owned()),
            Self::Collect(on_content) => Reply::Collect(on_content),
            Self::Later(start) => Reply::Later(start),
            Self::Forward(forward) => Reply::Forward(forward),
        }
    }
}

/// What an app does with the whole content of a request. A reply that is `Collect` again is an
/// error of the app, and answered with 500.
pub type OnContent = dyn FnOnce(&[u8]) -> Reply<'static> + Send;

/// Content in memory from this size on is sent from where it is, instead of copied to a
/// connection's buffer.
pub(crate) const COPIED_BYTES_MAX: usize = 64 * 1024;

/// One piece of a response's content.
#[derive(Clone, Debug)]
pub enum Segment {
    /// Bytes in memory.
    Bytes(Bytes<'static>),
    /// A part of a regular file.
    File {
        /// The open file.
        file: Arc<File>,
        /// Where to begin, in bytes.
        offset: u64,
        /// How many bytes. A file that turns out shorter ends the connection.
        length: u64,
    },
}

impl Segment {
    /// Bytes of this piece.
    pub fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.as_slice().len() as u64,
            Self::File { length, .. } => *length,
        }
    }
}
