//! Ciphertext on its way to the socket.

/// Sealed bytes that the socket hasn't taken yet: `start..end` of a block.
///
/// The block grows as needed and isn't zeroed again: sealing writes over what was sent.
#[derive(Default)]
pub(crate) struct Sealed {
    block: Vec<u8>,
    start: usize,
    end: usize,
}

impl Sealed {
    /// An empty buffer with room for this many bytes.
    pub(crate) fn with_room(bytes: usize) -> Self {
        Self { block: vec![0; bytes], start: 0, end: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The bytes that aren't sent yet.
    pub(crate) fn unsent(&self) -> &[u8] {
        &self.block[self.start..self.end]
    }

    /// Marks this many bytes as sent.
    pub(crate) fn consume(&mut self, len: usize) {
        self.start += len;
        debug_assert!(self.start <= self.end);
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
    }

    /// How many bytes the block has.
    pub(crate) fn capacity(&self) -> usize {
        self.block.len()
    }

    /// Room behind the unsent bytes, at least this much.
    pub(super) fn room(&mut self, len: usize) -> &mut [u8] {
        if self.block.len() - self.end < len && self.start > 0 {
            self.block.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.block.len() - self.end < len {
            self.block.resize(self.end + len, 0);
        }
        &mut self.block[self.end..]
    }

    /// Marks this many bytes of the room as written.
    pub(super) fn fill(&mut self, len: usize) {
        self.end += len;
        debug_assert!(self.end <= self.block.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsent_bytes_keep_their_order_while_the_block_is_compacted_and_grows() {
        let push = |sealed: &mut Sealed, bytes: &[u8]| {
            sealed.room(bytes.len())[..bytes.len()].copy_from_slice(bytes);
            sealed.fill(bytes.len());
        };
        let mut sealed = Sealed::with_room(4);
        push(&mut sealed, b"abcd");
        sealed.consume(3);
        push(&mut sealed, b"ef");
        assert_eq!((sealed.unsent(), sealed.capacity()), (b"def".as_slice(), 4));
        push(&mut sealed, b"ghij");
        assert_eq!((sealed.unsent(), sealed.capacity()), (b"defghij".as_slice(), 7));
        sealed.consume(7);
        assert!(sealed.is_empty() && sealed.unsent().is_empty());
    }
}
