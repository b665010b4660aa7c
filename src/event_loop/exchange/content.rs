//! Content of an answer that passes a stage, on its way to the protocol.
//!
//! ```text
//!  memory, files, an upstream, an app ──► queue ──at most 16 KiB──► stage ──► staged ──► protocol
//! ```
//! Most content never gets here: without a stage an answer is written to the outbox at once, and
//! files are sent from where they are.
//!
//! - Bounded: nothing is taken from the queue while the client has much to read, and whatever fills
//!   the queue stops while it holds much (I9).
//! - Content of a file is read in pieces, never as a whole.

use std::{collections::VecDeque, io, os::unix::fs::FileExt as _};

use crate::{
    app::{Segment, Stage},
    http::{Bytes, Fields, Response},
    io::BufferPool,
};

/// Bytes that may wait for the client before nothing more is queued for it.
pub(super) const WAITING_BYTES_MAX: usize = 64 * 1024;

/// Content that a stage gets at a time.
const PIECE_BYTES: usize = 16 * 1024;

/// Where the body of an answer comes from.
pub(super) enum Body {
    /// The response's own content.
    Whole,
    /// Memory and files.
    Segments(Vec<Segment>),
    /// Later pieces.
    Pieces {
        /// The total, if it is known.
        length: Option<u64>,
        /// The response has a Date field of its own.
        has_date: bool,
    },
}

/// Content on its way through a stage. Boxed by its exchange: few exchanges have any.
pub(super) struct Content {
    stage: Box<dyn Stage>,
    queue: VecDeque<Segment>,
    /// Bytes in memory at the front of the queue that were taken.
    front_taken: usize,
    /// What the protocol gets next.
    staged: Vec<u8>,
    /// Nothing more is queued: these trailers end the content.
    pub(super) trailers: Option<Fields<'static>>,
    /// The stage has got all of the content.
    is_ended: bool,
}

impl Content {
    /// No content yet, and a stage that waits for the head.
    pub(super) fn behind(stage: Box<dyn Stage>) -> Self {
        let (queue, staged) = (VecDeque::new(), Vec::new());
        Self { stage, queue, front_taken: 0, staged, trailers: None, is_ended: false }
    }

    /// The head is about to be written. Returns whether the stage changes the content.
    pub(super) fn begin(&mut self, response: &mut Response<'_>) -> bool {
        self.stage.begin(response.status(), response.fields_mut())
    }

    fn push(&mut self, content: Segment) {
        if content.length() > 0 {
            self.queue.push_back(content);
        }
    }

    /// Nothing more follows but these trailers.
    pub(super) fn end(&mut self, trailers: &Fields<'_>) {
        self.trailers = Some(Fields::from_lines(trailers.lines().to_vec().into()));
    }

    /// Bytes in memory that the protocol hasn't taken.
    pub(super) fn buffered(&self) -> usize {
        let in_memory = |segment: &Segment| match segment {
            Segment::Bytes(bytes) => bytes.as_slice().len(),
            Segment::File { .. } => 0,
        };
        let queued: usize = self.queue.iter().map(in_memory).sum();
        queued - self.front_taken + self.staged.len()
    }

    /// Whether the protocol can get something.
    pub(super) fn has_more(&self) -> bool {
        !self.queue.is_empty() || !self.staged.is_empty() || self.trailers.is_some()
    }

    /// What the protocol gets next, as far as that is ready.
    pub(super) fn staged(&self) -> &[u8] {
        &self.staged
    }

    /// The protocol has it.
    pub(super) fn clear_staged(&mut self) {
        self.staged.clear();
    }

    /// Makes the next piece ready. Returns whether there is one.
    ///
    /// # Errors
    /// The file's; `UnexpectedEof` when it is shorter than announced.
    pub(super) fn stage_next(&mut self, pool: &mut BufferPool) -> io::Result<bool> {
        let Some(front) = self.queue.front_mut() else { return Ok(self.end_stage()) };
        let mut scratch = None;
        let (piece, is_done): (&[u8], bool) = match front {
            Segment::Bytes(bytes) => {
                let left = &bytes.as_slice()[self.front_taken..];
                let piece = &left[..left.len().min(PIECE_BYTES)];
                self.front_taken += piece.len();
                (piece, piece.len() == left.len())
            }
            Segment::File { file, offset, length } => {
                let len = usize::try_from(*length).unwrap_or(usize::MAX).min(PIECE_BYTES);
                let room = &mut scratch.insert(pool.take_wire()).room()[..len];
                file.read_exact_at(room, *offset)?;
                *offset += len as u64;
                *length -= len as u64;
                (room, *length == 0)
            }
        };
        self.stage.write(piece, &mut self.staged);
        if let Some(scratch) = scratch {
            pool.give_input(scratch);
        }
        if is_done {
            self.queue.pop_front();
            self.front_taken = 0;
        }
        Ok(true)
    }

    /// The queue is empty: ends the stage, if nothing follows. Returns whether it did so now.
    fn end_stage(&mut self) -> bool {
        let ends = self.trailers.is_some() && !self.is_ended;
        if ends {
            self.stage.end(&mut self.staged);
            self.is_ended = true;
        }
        ends
    }

    /// Queues a body whose head is written.
    pub(super) fn queue(&mut self, body: Body, response: Response<'_>) {
        match body {
            Body::Pieces { .. } => return,
            Body::Whole => self.push(Segment::Bytes(response.into_content().into_owned())),
            Body::Segments(segments) => segments.into_iter().for_each(|part| self.push(part)),
        }
        self.end(&Fields::NONE);
    }

    /// Queues a piece of a body in pieces.
    #[cold]
    pub(super) fn queue_piece(&mut self, piece: &[u8]) {
        self.push(Segment::Bytes(Bytes::Owned(piece.to_vec())));
    }
}
