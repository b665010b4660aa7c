//! Request ids: in access lines and as `X-Request-Id`.

use std::{
    array, fmt,
    hash::{BuildHasher, RandomState},
    ops::Range,
    process,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// The id of a request, unique within a process; 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(u64);

/// One loop's source of ids: unique numbers, mixed with the process's seed. The mixing is a
/// bijection, so different numbers stay different.
#[derive(Debug)]
pub(crate) struct RequestIds {
    seed: u64,
    numbers: Range<u64>,
}

impl RequestId {
    /// The same digits as `Display`.
    pub(crate) fn digits(self) -> [u8; 16] {
        array::from_fn(|index| {
            let shift = 60 - 4 * index as u32;
            b"0123456789abcdef"[(self.0 >> shift) as usize & 0xf]
        })
    }

    pub(super) fn push_digits(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.digits());
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// How many numbers a source takes from the process at once.
const NUMBERS_AT_ONCE: u64 = 1 << 16;

/// Loops get new sources at reloads, so the numbers belong to the process and not to a log.
static NEXT_NUMBER: AtomicU64 = AtomicU64::new(0);

static SEED: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(process::id()));

impl RequestIds {
    pub(crate) fn new() -> Self {
        Self { seed: *SEED, numbers: 0..0 }
    }

    pub(crate) fn next(&mut self) -> RequestId {
        let number = self.numbers.next().unwrap_or_else(|| {
            let first = NEXT_NUMBER.fetch_add(NUMBERS_AT_ONCE, Relaxed);
            self.numbers = first + 1..first + NUMBERS_AT_ONCE;
            first
        });
        // The finalizer of SplitMix64.
        let mut mixed = number ^ self.seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        RequestId(mixed ^ (mixed >> 31))
    }
}
