//! Input and output memory: lent to connections with work, returned when they are idle.
//!
//! One pool per loop, last in first out, so that the memory in use stays in the cache.

use crate::tls::{SEALED_BYTES_MAX, Sealed, WIRE_BYTES};

/// Received bytes that aren't read yet: `start..end` of a fixed block.
#[derive(Debug)]
pub(crate) struct InputBuffer {
    block: Box<[u8]>,
    start: usize,
    end: usize,
}

impl InputBuffer {
    fn new(bytes: usize) -> Self {
        Self { block: vec![0; bytes].into_boxed_slice(), start: 0, end: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether there is no room left.
    pub(crate) fn is_full(&self) -> bool {
        self.end - self.start == self.block.len()
    }

    /// The bytes that aren't read yet.
    pub(crate) fn unread(&self) -> &[u8] {
        &self.block[self.start..self.end]
    }

    /// The same, to be opened in place.
    pub(super) fn unread_mut(&mut self) -> &mut [u8] {
        &mut self.block[self.start..self.end]
    }

    /// Marks this many bytes as read.
    pub(crate) fn consume(&mut self, len: usize) {
        self.start += len;
        debug_assert!(self.start <= self.end);
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Drops the unread bytes.
    pub(crate) fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// Room for more bytes. Compacts the block when little room is left.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        if self.start > 0 && self.end > self.block.len() / 2 {
            self.block.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.block[self.end..]
    }

    /// Marks this many bytes as received.
    pub(crate) fn fill(&mut self, len: usize) {
        self.end += len;
        debug_assert!(self.end <= self.block.len());
    }
}

/// The unread bytes of an input buffer, without the first of them.
#[derive(Clone, Copy)]
pub(crate) struct Unread<'a> {
    input: Option<&'a InputBuffer>,
    skipped: usize,
}

impl<'a> Unread<'a> {
    /// What is unread behind the first `skipped` bytes.
    pub(crate) fn behind(input: Option<&'a InputBuffer>, skipped: usize) -> Self {
        Self { input, skipped }
    }

    pub(crate) fn bytes(self) -> &'a [u8] {
        self.input.map_or(&[], |input| &input.unread()[self.skipped..])
    }
}

/// A loop's free buffers.
pub(crate) struct BufferPool {
    input_bytes: usize,
    inputs: Vec<InputBuffer>,
    outputs: Vec<Vec<u8>>,
    /// Input buffers that hold a whole TLS record, and buffers for one to be sent.
    wires: Vec<InputBuffer>,
    sealed: Vec<Sealed>,
}

/// Free buffers of each kind that are kept.
const FREE_MAX: usize = 256;

/// An output buffer with a larger capacity isn't kept.
const OUTPUT_KEPT_BYTES_MAX: usize = 64 * 1024;

/// Room for a sealed record, and a KeyUpdate before it.
const SEALED_ROOM_BYTES: usize = SEALED_BYTES_MAX + 512;

/// The capacity of a new output buffer.
const OUTPUT_BYTES: usize = 4 * 1024;

impl BufferPool {
    /// A pool of input buffers with this many bytes.
    pub(crate) fn new(input_bytes: usize) -> Self {
        Self {
            input_bytes,
            inputs: Vec::new(),
            outputs: Vec::new(),
            wires: Vec::new(),
            sealed: Vec::new(),
        }
    }

    pub(crate) fn take_input(&mut self) -> InputBuffer {
        self.inputs.pop().unwrap_or_else(|| InputBuffer::new(self.input_bytes))
    }

    /// Hands out input buffers of this size from now on.
    pub(crate) fn set_input_bytes(&mut self, input_bytes: usize) {
        if input_bytes != self.input_bytes {
            self.input_bytes = input_bytes;
            self.inputs.clear();
        }
    }

    /// Moves the unread bytes into a buffer of the current size, if that is larger: the limit may
    /// have been raised while a head was being received.
    pub(crate) fn enlarge(&mut self, buffer: &mut InputBuffer) {
        if buffer.block.len() < self.input_bytes {
            let mut larger = self.take_input();
            let unread = buffer.unread();
            larger.room()[..unread.len()].copy_from_slice(unread);
            larger.fill(unread.len());
            *buffer = larger;
        }
    }

    #[inline]
    pub(crate) fn give_input(&mut self, mut buffer: InputBuffer) {
        buffer.clear();
        let len = buffer.block.len();
        if self.inputs.len() < FREE_MAX && len == self.input_bytes {
            self.inputs.push(buffer);
        } else if self.wires.len() < FREE_MAX && len == WIRE_BYTES {
            self.wires.push(buffer);
        }
    }

    /// A buffer for what is received of TLS: it has room for a whole record.
    pub(crate) fn take_wire(&mut self) -> InputBuffer {
        self.wires.pop().unwrap_or_else(|| InputBuffer::new(WIRE_BYTES))
    }

    /// The unread bytes in a buffer that has room for a whole record of TLS.
    pub(super) fn wire_of(&mut self, buffer: InputBuffer) -> InputBuffer {
        if buffer.block.len() >= WIRE_BYTES {
            return buffer;
        }
        let (mut wire, unread) = (self.take_wire(), buffer.unread());
        wire.room()[..unread.len()].copy_from_slice(unread);
        wire.fill(unread.len());
        self.give_input(buffer);
        wire
    }

    pub(super) fn take_sealed(&mut self) -> Sealed {
        self.sealed.pop().unwrap_or_else(|| Sealed::with_room(SEALED_ROOM_BYTES))
    }

    pub(super) fn give_sealed(&mut self, buffer: Sealed) {
        if self.sealed.len() < FREE_MAX && buffer.capacity() <= OUTPUT_KEPT_BYTES_MAX {
            self.sealed.push(buffer);
        }
    }

    pub(crate) fn take_output(&mut self) -> Vec<u8> {
        self.outputs.pop().unwrap_or_else(|| Vec::with_capacity(OUTPUT_BYTES))
    }

    pub(crate) fn give_output(&mut self, mut buffer: Vec<u8>) {
        buffer.clear();
        if self.outputs.len() < FREE_MAX && buffer.capacity() <= OUTPUT_KEPT_BYTES_MAX {
            self.outputs.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unread_bytes_survive_compaction() {
        let mut buffer = InputBuffer::new(8);
        buffer.room()[..6].copy_from_slice(b"abcdef");
        buffer.fill(6);
        buffer.consume(4);
        let room = buffer.room();
        assert_eq!(room.len(), 6);
        room[..2].copy_from_slice(b"gh");
        buffer.fill(2);
        assert_eq!(buffer.unread(), b"efgh");
        buffer.consume(4);
        assert!(buffer.is_empty());
        assert_eq!(buffer.room().len(), 8);
    }

    #[test]
    fn buffers_of_another_size_are_not_kept_and_what_is_unread_moves() {
        let mut pool = BufferPool::new(4);
        let (mut full, empty, kept) = (pool.take_input(), pool.take_input(), pool.take_input());
        pool.give_input(kept);
        full.room().copy_from_slice(b"abcd");
        full.fill(4);
        full.consume(1);
        assert!(!full.is_full());
        pool.set_input_bytes(8);
        assert_eq!(pool.take_input().room().len(), 8);
        pool.give_input(empty);
        assert_eq!(pool.take_input().room().len(), 8);
        pool.enlarge(&mut full);
        assert_eq!(full.unread(), b"bcd");
        assert_eq!(full.room().len(), 5);
        pool.set_input_bytes(4);
        pool.enlarge(&mut full);
        assert_eq!(full.room().len(), 5, "never smaller");
    }

    #[test]
    fn a_returned_buffer_is_empty_when_it_is_taken() {
        let mut pool = BufferPool::new(8);
        let mut input = pool.take_input();
        input.fill(3);
        pool.give_input(input);
        assert!(pool.take_input().is_empty());
        let mut output = pool.take_output();
        output.extend_from_slice(b"x");
        pool.give_output(output);
        assert!(pool.take_output().is_empty());
    }
}
