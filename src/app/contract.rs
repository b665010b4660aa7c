//! The interface of an app: what it gets with a request, and how it answers.

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
    tls::ClientCertificate,
};

/// An app: what a host name serves.
///
/// One value serves all loops at once. State that changes with requests (a cache) is best kept per
/// loop, by [`Context::loop_index`].
pub trait App: Send + Sync {
    /// Answers a request head. It runs on the loop's thread and must not block. After a panic the
    /// client gets a 500; other requests are not affected.
    fn handle<'a>(&'a self, request: &RequestHead<'_>, context: &Context<'_>) -> Reply<'a>;

    /// The name of the kind, as operators see it.
    fn kind(&self) -> &'static str {
        "custom"
    }

    /// The upstreams of a proxy, for health checks and for operators.
    fn upstreams(&self) -> Option<&Arc<Upstreams>> {
        None
    }

    /// A copy of this app for its next life, if the app counts something per life (I4); `None` lets
    /// the next life use this value too. Called when a drained app is resumed. It must not block.
    fn again(&self) -> Option<Arc<dyn App>> {
        None
    }

    /// Releases what the app holds for this loop and has not used for a while (open files, memory).
    /// Each loop calls it from time to time: an app without requests could not release it
    /// otherwise.
    fn release_idle(&self, _loop_index: usize, _now: Instant) {}
}

/// The loop and the connection that a request came from.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The index of the loop, from 0.
    pub loop_index: usize,
    /// The monotonic time at which this turn of the loop began.
    pub now: Instant,
    /// The time of day at which this turn of the loop began.
    pub wall: SystemTime,
    /// The peer of the connection.
    pub peer: Peer,
    /// The scheme of the request.
    pub scheme: Scheme,
    /// The client's certificate, if the app asks for one and the client has it.
    pub client_certificate: Option<&'a ClientCertificate>,
    /// The request's id in the access log, if there is one.
    pub request_id: Option<RequestId>,
}

/// The scheme of a request's URL: whether its connection is protected by TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
}

impl Scheme {
    /// `http` or `https`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The address of a TCP peer.
    Tcp(SocketAddr),
    /// A process of this machine that uses a unix socket.
    Unix,
}

/// An app's answer to a request head.
pub enum Reply<'a> {
    /// A complete response.
    Full(Response<'a>),
    /// A response whose content the loop reads from files. The content of `head` is not sent.
    Files {
        /// Status and fields.
        head: Response<'a>,
        /// The content, in order.
        content: Vec<Segment>,
    },
    /// A response that the loop sends after this delay. It does not block meanwhile.
    After(Duration, Response<'a>),
    /// The app needs the whole content of the request first. The loop collects it, up to
    /// `limits.body_bytes`, and calls the function.
    Collect(Box<OnContent>),
    /// The answer comes from another thread. The loop parks the exchange and calls the function on
    /// its own thread. The function passes the [`Later`] on and must not block.
    Later(Box<dyn FnOnce(Later) + Send>),
    /// The loop forwards the request to an upstream, and streams its content.
    Forward(Forward),
}

impl Reply<'_> {
    /// The status of the answer, if it is already known.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Full(response) | Self::After(_, response) => Some(response.status()),
            Self::Files { head, .. } => Some(head.status()),
            Self::Collect(_) | Self::Later(_) | Self::Forward(_) => None,
        }
    }

    /// The same reply, independent of the app's lifetime.
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

/// A function that gets the whole content of a request and returns the answer. Another `Collect` is
/// an error of the app: the client gets a 500.
pub type OnContent = dyn FnOnce(&[u8]) -> Reply<'static> + Send;

/// Content in memory that is at least this long, in bytes, is sent from where it is. Shorter
/// content is copied to the connection's buffer.
pub(crate) const COPIED_BYTES_MAX: usize = 64 * 1024;

/// A piece of a response's content.
#[derive(Clone, Debug)]
pub enum Segment {
    /// Bytes in memory.
    Bytes(Bytes<'static>),
    /// A part of a regular file.
    File {
        /// The open file.
        file: Arc<File>,
        /// Where the piece begins in the file, in bytes.
        offset: u64,
        /// Its length in bytes. If the file is shorter, the connection ends.
        length: u64,
    },
}

impl Segment {
    /// The length of this piece in bytes.
    pub fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.as_slice().len() as u64,
            Self::File { length, .. } => *length,
        }
    }
}
