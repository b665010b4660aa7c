//! What a connection still has to send: bytes in a buffer, and content from files.
//!
//! A [`Mark`] is a position in it. An exchange keeps the mark behind its last byte, and so sees
//! when the kernel has that byte.
//!
//! Owns the unsent bytes. A batch of answers goes out in one write. A file goes from the page cache
//! to the socket by sendfile(2); its head is held back (MSG_MORE) to travel with it.

use std::{
    collections::VecDeque,
    io,
    os::{fd::AsFd, unix::fs::FileExt as _},
};

use rustix::net::SendFlags;

use super::buffers::BufferPool;
use crate::{
    app::{COPIED_BYTES_MAX, Segment},
    http::Bytes,
};

/// The unsent part of the answers of one connection, in order.
#[derive(Default)]
pub(crate) struct Outbox {
    buffer: Vec<u8>,
    sent: usize,
    /// Content behind the buffer; boxed, because few connections have any at a time.
    segments: Option<Box<Segments>>,
    /// Bytes ever queued, and bytes ever taken by the kernel.
    queued_total: u64,
    sent_total: u64,
}

/// A position between two bytes of an outbox. It has passed when the kernel has all bytes before
/// it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mark(u64);

impl Mark {
    /// A position that isn't known yet: it never passes.
    pub(crate) const UNKNOWN: Self = Self(u64::MAX);

    /// Before the first byte ever queued.
    pub(crate) const START: Self = Self(0);

    /// Bytes from an earlier position to this one; 0 if the other isn't earlier.
    pub(crate) fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The position this many bytes later.
    pub(crate) fn after(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }

    /// The position this many bytes earlier.
    pub(crate) fn before(self, bytes: u64) -> Self {
        Self(self.0.saturating_sub(bytes))
    }
}

/// Content that is sent from where it is stored.
struct Segments {
    queue: VecDeque<Segment>,
    /// Bytes of the first segment that were sent, if it is in memory.
    first_sent: usize,
}

/// How a flush ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flushed {
    /// The kernel has everything.
    All,
    /// The kernel takes no more until the peer reads.
    Blocked,
    /// This turn's share was sent; there is more.
    TurnOver,
}

/// Bytes of file content that one connection sends before others get a turn.
pub(crate) const TURN_BYTES: u64 = 1024 * 1024;

impl Outbox {
    /// The buffer to write to, taken from the pool when needed.
    pub(crate) fn buffer(&mut self, pool: &mut BufferPool) -> OutboxBuffer<'_> {
        debug_assert!(self.segments.is_none(), "an answer behind an incomplete one");
        if self.buffer.capacity() == 0 {
            self.buffer = pool.take_output();
        }
        if self.sent >= COPIED_BYTES_MAX {
            self.buffer.drain(..self.sent);
            self.sent = 0;
        }
        OutboxBuffer { len_before: self.buffer.len(), output: self }
    }

    /// Queues content from memory.
    // Inlined by force: almost all content is short.
    #[inline(always)]
    pub(crate) fn push_content(&mut self, content: Bytes<'_>) {
        let bytes = content.as_slice();
        self.queued_total += bytes.len() as u64;
        if bytes.len() < COPIED_BYTES_MAX {
            return self.buffer.extend_from_slice(bytes);
        }
        self.push_long(content);
    }

    fn push_long(&mut self, content: Bytes<'_>) {
        let queue = VecDeque::from([Segment::Bytes(content.into_owned())]);
        self.segments = Some(Box::new(Segments { queue, first_sent: 0 }));
    }

    /// Queues content from files.
    pub(crate) fn push_segments(&mut self, content: Vec<Segment>) {
        let queue: VecDeque<_> = content.into_iter().filter(|part| part.length() > 0).collect();
        self.queued_total += queue.iter().map(Segment::length).sum::<u64>();
        if !queue.is_empty() {
            self.segments = Some(Box::new(Segments { queue, first_sent: 0 }));
        }
    }

    /// Removes the bytes from this position on. All of them must be in the buffer and unsent.
    pub(crate) fn take_back(&mut self, from: Mark) {
        debug_assert!(self.sent() <= from && self.segments.is_none(), "some of the bytes are sent");
        let count = usize::try_from(self.end().bytes_since(from)).unwrap_or(usize::MAX);
        self.buffer.truncate(self.buffer.len().saturating_sub(count));
        self.queued_total = from.0;
        if self.sent == self.buffer.len() {
            self.buffer.clear();
            self.sent = 0;
        }
    }

    /// The position behind everything queued so far.
    pub(crate) fn end(&self) -> Mark {
        Mark(self.queued_total)
    }

    /// The position behind everything that the kernel has.
    pub(crate) fn sent(&self) -> Mark {
        Mark(self.sent_total)
    }

    /// Bytes that the kernel has ever taken.
    pub(crate) fn sent_total(&self) -> u64 {
        self.sent_total
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queued_total == self.sent_total
    }

    /// Whether content of the last answer is still outside the buffer.
    pub(crate) fn has_segments(&self) -> bool {
        self.segments.is_some()
    }

    /// Bytes that the kernel hasn't taken yet.
    pub(crate) fn unsent(&self) -> u64 {
        self.queued_total - self.sent_total
    }

    /// The unsent bytes in the buffer.
    pub(crate) fn waiting(&self) -> &[u8] {
        &self.buffer[self.sent..]
    }

    /// How many unsent bytes are in the buffer.
    pub(crate) fn buffered(&self) -> usize {
        self.buffer.len() - self.sent
    }

    /// Sends until everything is sent, or the kernel takes no more.
    ///
    /// # Errors
    /// The socket's; `UnexpectedEof` when a file is shorter than the announced length.
    pub(crate) fn flush(&mut self, socket: impl AsFd) -> io::Result<Flushed> {
        let mut turn_left = TURN_BYTES;
        loop {
            let sent = if self.sent < self.buffer.len() {
                self.send_buffer(&socket)
            } else if let Some(segments) = &mut self.segments {
                segments.send(&socket, &mut turn_left)
            } else {
                return Ok(Flushed::All);
            };
            match sent {
                Ok(0) => return Ok(Flushed::TurnOver),
                Ok(sent) => self.sent_total += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Flushed::Blocked);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if self.segments.as_ref().is_some_and(|segments| segments.queue.is_empty()) {
                self.segments = None;
            }
        }
    }

    fn send_buffer(&mut self, socket: impl AsFd) -> io::Result<u64> {
        let mut flags = SendFlags::NOSIGNAL;
        if self.segments.is_some() {
            flags |= SendFlags::MORE;
        }
        let sent = rustix::net::send(socket, &self.buffer[self.sent..], flags)?;
        self.sent += sent;
        if self.sent == self.buffer.len() {
            self.buffer.clear();
            self.sent = 0;
        }
        Ok(sent as u64)
    }

    /// The next bytes to be sent, as many as `scratch` has, without taking them. Content of files
    /// is read to `scratch`, together with what stands before it.
    ///
    /// # Errors
    /// The file's; `UnexpectedEof` when it is shorter than the announced length.
    pub(super) fn front<'a>(&'a self, scratch: &'a mut [u8]) -> io::Result<&'a [u8]> {
        let waiting = self.waiting();
        let Some(segments) = self.segments.as_ref().filter(|_| waiting.len() < scratch.len())
        else {
            return Ok(&waiting[..waiting.len().min(scratch.len())]);
        };
        scratch[..waiting.len()].copy_from_slice(waiting);
        let filled = segments.copy_front(scratch, waiting.len())?;
        Ok(&scratch[..filled])
    }

    /// The kernel has this many bytes from the front, in the form in which they are sent.
    pub(super) fn pass(&mut self, bytes: usize) {
        self.sent_total += bytes as u64;
        let from_buffer = bytes.min(self.buffered());
        self.sent += from_buffer;
        if self.sent == self.buffer.len() {
            self.buffer.clear();
            self.sent = 0;
        }
        if let Some(segments) = &mut self.segments {
            segments.pass(bytes - from_buffer);
            if segments.queue.is_empty() {
                self.segments = None;
            }
        }
    }

    /// Returns an empty buffer to the pool.
    pub(crate) fn release(&mut self, pool: &mut BufferPool) {
        if self.buffer.is_empty() && self.buffer.capacity() > 0 {
            pool.give_output(std::mem::take(&mut self.buffer));
        }
    }
}

/// The buffer while it is being written to. Dropping this counts the written bytes.
pub(crate) struct OutboxBuffer<'a> {
    output: &'a mut Outbox,
    len_before: usize,
}

impl std::ops::Deref for OutboxBuffer<'_> {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.output.buffer
    }
}

impl std::ops::DerefMut for OutboxBuffer<'_> {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.output.buffer
    }
}

impl Drop for OutboxBuffer<'_> {
    fn drop(&mut self) {
        self.output.queued_total += (self.output.buffer.len() - self.len_before) as u64;
    }
}

impl Segments {
    /// Fills `scratch` from `filled` on with the first content, as far as it goes. Returns where it
    /// ends.
    fn copy_front(&self, scratch: &mut [u8], filled: usize) -> io::Result<usize> {
        let (mut end, mut skip) = (filled, self.first_sent);
        for segment in &self.queue {
            let room = &mut scratch[end..];
            if room.is_empty() {
                break;
            }
            match segment {
                Segment::Bytes(bytes) => {
                    let bytes = &bytes.as_slice()[skip..];
                    let len = bytes.len().min(room.len());
                    room[..len].copy_from_slice(&bytes[..len]);
                    end += len;
                }
                Segment::File { file, offset, length } => {
                    let len = usize::try_from(*length).unwrap_or(usize::MAX).min(room.len());
                    file.read_exact_at(&mut room[..len], *offset)?;
                    end += len;
                }
            }
            skip = 0;
        }
        Ok(end)
    }

    /// Drops this many bytes from the front.
    fn pass(&mut self, bytes: usize) {
        let mut left = bytes;
        while left > 0 {
            let Some(first) = self.queue.front_mut() else { return };
            let (taken, is_done) = match first {
                Segment::Bytes(bytes) => {
                    let taken = left.min(bytes.as_slice().len() - self.first_sent);
                    self.first_sent += taken;
                    (taken, self.first_sent == bytes.as_slice().len())
                }
                Segment::File { offset, length, .. } => {
                    let taken = left.min(usize::try_from(*length).unwrap_or(usize::MAX));
                    *offset += taken as u64;
                    *length -= taken as u64;
                    (taken, *length == 0)
                }
            };
            left -= taken;
            if is_done {
                self.queue.pop_front();
                self.first_sent = 0;
            }
        }
    }

    /// Sends from the first segment, and drops it when all of it is sent. 0 when the turn is over.
    fn send(&mut self, socket: impl AsFd, turn_left: &mut u64) -> io::Result<u64> {
        let more = self.queue.len() > 1;
        let (sent, done) = match self.queue.front_mut() {
            None => return Ok(0),
            Some(Segment::Bytes(bytes)) => {
                let bytes = bytes.as_slice();
                let flags = if more { SendFlags::MORE } else { SendFlags::empty() };
                let unsent = &bytes[self.first_sent..];
                let sent = rustix::net::send(socket, unsent, SendFlags::NOSIGNAL | flags)?;
                self.first_sent += sent;
                (sent as u64, self.first_sent == bytes.len())
            }
            Some(Segment::File { file, offset, length }) => {
                let count = (*length).min(*turn_left);
                if count == 0 {
                    return Ok(0);
                }
                let count = usize::try_from(count).unwrap_or(usize::MAX);
                let sent = rustix::fs::sendfile(socket, &**file, Some(offset), count)? as u64;
                if sent == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                // The kernel's buffer is full; what it frees meanwhile can wait for the next turn.
                *turn_left = if sent < count as u64 { 0 } else { *turn_left - sent };
                *length -= sent;
                (sent, *length == 0)
            }
        };
        if done {
            self.queue.pop_front();
            self.first_sent = 0;
        }
        Ok(sent)
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::net::UnixStream};

    use rustix::net::sockopt::set_socket_send_buffer_size;

    use super::*;

    #[test]
    fn a_partly_sent_file_ends_the_turn_and_then_waits_for_its_peer() {
        const LENGTH: u64 = 8 << 20;
        let (socket, mut peer) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(LENGTH).unwrap();
        let (mut output, mut read) = (Outbox::default(), 0);
        output.push_segments(vec![Segment::File { file: file.into(), offset: 0, length: LENGTH }]);
        let mut bytes = vec![0; 1 << 20];
        while !output.is_empty() {
            let flushed = output.flush(&socket).unwrap();
            assert!(output.sent_total > read, "a turn sent nothing");
            if !output.is_empty() {
                assert_eq!(flushed, Flushed::TurnOver);
                assert_eq!(output.flush(&socket).unwrap(), Flushed::Blocked);
            }
            while read < output.sent_total {
                read += peer.read(&mut bytes).unwrap() as u64;
            }
        }
        assert_eq!(read, LENGTH);
    }

    #[test]
    fn a_buffer_that_never_empties_does_not_grow() {
        const ANSWER_BYTES: usize = 16 * 1024;
        // More than the kernel takes at once.
        const UNSENT_BYTES_MIN: usize = 4 * ANSWER_BYTES;
        let (socket, mut peer) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        set_socket_send_buffer_size(&socket, ANSWER_BYTES).unwrap();
        let (mut output, mut pool) = (Outbox::default(), BufferPool::new(16));
        let (mut written, mut read) = (Vec::new(), Vec::new());
        let mut room = 0;
        for round in 0..1000_u32 {
            while output.buffered() < UNSENT_BYTES_MIN {
                let answer = round.to_le_bytes().repeat(ANSWER_BYTES / 4);
                output.buffer(&mut pool).extend_from_slice(&answer);
                written.extend_from_slice(&answer);
            }
            room = room.max(output.buffer.capacity());
            assert_eq!(output.flush(&socket).unwrap(), Flushed::Blocked);
            let mut bytes = [0; ANSWER_BYTES];
            let taken = peer.read(&mut bytes).unwrap();
            read.extend_from_slice(&bytes[..taken]);
        }
        assert!(room <= 4 * COPIED_BYTES_MAX, "{room} bytes");
        assert_eq!(output.queued_total, written.len() as u64);
        // Only sent bytes were dropped: none is missing, none is sent twice.
        assert_eq!(output.sent_total, (written.len() - output.buffered()) as u64);
        assert!(written.starts_with(&read));
        assert!(written.ends_with(&output.buffer[output.sent..]));
    }
}
