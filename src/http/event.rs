//! What the server side of a protocol reports to its connection, whatever the version.
//!
//! A stream carries one exchange at a time. An HTTP/1 connection has one stream, whose exchanges
//! follow one another.

use super::message::{Refused, RequestHead};

/// Identifies a stream within its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamId(u32);

impl StreamId {
    /// The only stream of an HTTP/1 connection.
    pub const H1: Self = Self(0);
}

/// What was read from the input, and on which stream.
#[derive(Debug)]
pub enum ServerEvent<'a> {
    /// More bytes are needed, or the response has to be written first.
    NeedMore,
    /// A request whose head is complete and valid. It has to be answered; if there is a refusal,
    /// with its status.
    Request(StreamId, RequestHead<'a>, Option<Refused>),
    /// A piece of the request's content.
    Content(StreamId, &'a [u8]),
    /// The request's content is complete.
    ContentEnd(StreamId),
    /// A request that cannot be served; it has to be answered with this status.
    Refused(StreamId, Refused),
    /// Nothing more is read on this connection.
    Closed,
}

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerPhase {
    /// Waiting for a request, or reading its head.
    Head,
    /// Reading the request's content, before or after the answer.
    Content,
    /// The request is read, and its response is not complete.
    Answer,
    /// Nothing more is read, and nothing is owed.
    Closed,
}
