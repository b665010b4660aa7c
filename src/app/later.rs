//! Answers that other threads complete: one response, or a stream of bytes.
//!
//! The loop parks the exchange and hands out a [`Later`], with which any thread can answer. If the
//! `Later` is dropped instead, the answer is a 500: every admitted exchange is answered (I6).
//! Deliveries reach the loop as messages, so no thread waits for a socket.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use crate::http::Response;

/// A message to the loop for a parked exchange.
#[derive(Debug)]
pub(crate) enum Delivery {
    /// A complete response.
    Response(Response<'static>),
    /// The head of a response whose content follows in pieces.
    Begin(Response<'static>),
    /// A piece of that content.
    Piece(Vec<u8>),
    /// The content is complete.
    End,
}

/// The loop holds this value as long as the peer waits for the answer of a parked exchange.
pub(crate) type Waiting = Arc<()>;

/// Passes a delivery to the loop. Returns false if the loop has ended.
pub(crate) type Deliver = Box<dyn Fn(Delivery) -> bool + Send>;

/// An exchange that waits for its answer.
#[must_use = "an exchange whose `Later` is dropped is answered with 500"]
pub struct Later {
    line: Option<Line>,
}

/// The rest of an answer whose head is sent. Dropping it completes the answer.
pub struct Stream {
    line: Line,
}

struct Line {
    deliver: Deliver,
    waiting: Weak<()>,
}

impl Later {
    pub(crate) fn new(deliver: Deliver, waiting: &Waiting) -> Self {
        Self { line: Some(Line { deliver, waiting: Arc::downgrade(waiting) }) }
    }

    /// Answers with a complete response.
    pub fn respond(mut self, response: Response<'static>) {
        self.deliver(Delivery::Response(response));
    }

    /// Answers with a response whose content follows in pieces. The content of `head` is not sent.
    /// `None` if the loop has ended.
    pub fn stream(mut self, head: Response<'static>) -> Option<Stream> {
        let line = self.line.take()?;
        (line.deliver)(Delivery::Begin(head)).then_some(Stream { line })
    }

    /// Whether the peer still waits.
    pub fn is_awaited(&self) -> bool {
        self.line.as_ref().is_some_and(Line::is_awaited)
    }

    fn deliver(&mut self, delivery: Delivery) {
        if let Some(line) = self.line.take() {
            (line.deliver)(delivery);
        }
    }
}

impl Stream {
    /// Sends a piece of the content. Returns false if the peer is gone. The loop closes the
    /// connection of a peer that reads too slowly.
    pub fn send(&self, piece: Vec<u8>) -> bool {
        self.line.is_awaited() && (self.line.deliver)(Delivery::Piece(piece))
    }
}

impl Line {
    fn is_awaited(&self) -> bool {
        self.waiting.strong_count() > 0
    }
}

impl Drop for Later {
    fn drop(&mut self) {
        self.deliver(Delivery::Response(super::error_response(500)));
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        (self.line.deliver)(Delivery::End);
    }
}

impl fmt::Debug for Later {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Later").field("awaited", &self.is_awaited()).finish()
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("awaited", &self.line.is_awaited()).finish()
    }
}
