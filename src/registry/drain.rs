//! The drain protocol: counts what is in flight for one life of an app, and announces when that
//! reaches zero.
//!
//! Owns one word per loop: the top bit says *draining*, the other bits count that loop's active
//! connections. Flag and count must share a word. If they did not, a drain could end between the
//! check of the flag and the increment; and the announcement at zero could be lost or made twice.
//! Never blocks, never allocates, has no clock.
//!
//! ```text
//!            enter: n → n+1                    begin_drain: set the bit
//!   serving(n) ───────────────► serving(n+1)   serving(n) ──► draining(n)   n = 0: word done
//!            leave: n → n-1
//!   draining(n): enter refuses (I1), leave n → n-1; at draining(0) the word is done
//! ```
//! The count of a draining word never grows, so each word is done once; the last word announces
//! (I2). Loops write only their own word.

use std::fmt;

use crate::sync::{AtomicU64, AtomicUsize, CachePadded, Mutex, Ordering};

const DRAINING: u64 = 1 << 63;

/// A function that is called once, when the last word reaches zero. It must not block.
pub type Announce = Box<dyn FnOnce() + Send>;

/// The life is draining and admits nothing (I1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draining;

/// Which exchanges of one life are in flight, and whether the life is draining.
pub struct AppDrainState {
    words: Box<[CachePadded<Word>]>,
    /// Words that are not done; changes only while draining.
    open_words: AtomicUsize,
    /// When the drain began; 0 before it.
    start_ns: AtomicU64,
    deadline_ns: AtomicU64,
    cut: AtomicU64,
    announce: Mutex<Option<Announce>>,
}

/// What one loop counts for one life. Only that loop writes the counters.
struct Word {
    state: AtomicU64,
    requests: AtomicU64,
    refused: AtomicU64,
}

impl AppDrainState {
    pub(super) fn new(loops: usize) -> Self {
        let word = || Word {
            state: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        };
        Self {
            words: (0..loops).map(|_| CachePadded::new(word())).collect(),
            open_words: AtomicUsize::new(loops),
            start_ns: AtomicU64::new(0),
            deadline_ns: AtomicU64::new(0),
            cut: AtomicU64::new(0),
            announce: Mutex::new(None),
        }
    }

    /// Connections with an unfinished exchange for this life.
    pub fn active_connections(&self) -> u64 {
        self.words.iter().map(|word| word.state.load(Ordering::Acquire) & !DRAINING).sum()
    }

    /// Exchanges admitted so far.
    pub fn requests(&self) -> u64 {
        self.words.iter().map(|word| word.requests.load(Ordering::Relaxed)).sum()
    }

    /// Exchanges refused because the life was draining.
    pub fn refused(&self) -> u64 {
        self.words.iter().map(|word| word.refused.load(Ordering::Relaxed)).sum()
    }

    /// Exchanges that were cut.
    pub fn cut(&self) -> u64 {
        self.cut.load(Ordering::Relaxed)
    }

    /// Whether a drain has begun.
    pub fn draining(&self) -> bool {
        self.drain_start_ns().is_some()
    }

    /// When the drain began: the `now_ns` of [`Self::begin_drain`]; `None` before that.
    pub fn drain_start_ns(&self) -> Option<u64> {
        Some(self.start_ns.load(Ordering::Acquire)).filter(|&start| start != 0)
    }

    /// When the drain will cut, on the same clock; 0 before the drain begins.
    pub fn drain_deadline_ns(&self) -> u64 {
        self.deadline_ns.load(Ordering::Acquire)
    }

    /// Changes the deadline of a drain that has begun.
    pub fn set_drain_deadline_ns(&self, deadline_ns: u64) {
        self.deadline_ns.store(deadline_ns, Ordering::Release);
    }

    /// Begins the drain, once in a life. From now on nothing is admitted (I1). `announce` is called
    /// exactly once, when nothing is in flight any more (I2): by this call, if nothing is now.
    /// `now_ns` and `deadline_ns` are nanoseconds of a clock that the caller chooses.
    ///
    /// # Errors
    /// [`Draining`] if it has begun before.
    pub fn begin_drain(
        &self,
        now_ns: u64,
        deadline_ns: u64,
        announce: Announce,
    ) -> Result<(), Draining> {
        self.start_ns
            .compare_exchange(0, now_ns.max(1), Ordering::AcqRel, Ordering::Acquire)
            .map_err(|_| Draining)?;
        self.deadline_ns.store(deadline_ns, Ordering::Release);
        // Stored before the first bit is set: the bit publishes it to the guard that leaves last.
        *self.announce.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(announce);
        for word in &self.words {
            if word.state.fetch_or(DRAINING, Ordering::AcqRel) == 0 {
                self.word_done();
            }
        }
        Ok(())
    }

    pub(super) fn enter(&self, loop_index: usize) -> Result<(), Draining> {
        let word = &self.words[loop_index];
        // Acquire, also for a refusal: a loop that sees the bit also sees the routes that changed
        // before it, and looks again instead of refusing a request that the new life serves.
        let mut state = word.state.load(Ordering::Acquire);
        // Not add and undo: a connection that is not admitted must not delay the announcement.
        loop {
            if state & DRAINING != 0 {
                add_own(&word.refused);
                return Err(Draining);
            }
            match word.state.compare_exchange_weak(
                state,
                state + 1,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => break,
                Err(now) => state = now,
            }
        }
        add_own(&word.requests);
        Ok(())
    }

    pub(super) fn enter_again(&self, loop_index: usize) -> Result<(), Draining> {
        let word = &self.words[loop_index];
        if word.state.load(Ordering::Acquire) & DRAINING != 0 {
            add_own(&word.refused);
            return Err(Draining);
        }
        add_own(&word.requests);
        Ok(())
    }

    pub(super) fn leave(&self, loop_index: usize) {
        let before = self.words[loop_index].state.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before & !DRAINING > 0, "left without having entered");
        if before == DRAINING | 1 {
            self.word_done();
        }
    }

    /// Counts an exchange that was cut.
    pub(super) fn add_cut(&self) {
        self.cut.fetch_add(1, Ordering::Relaxed);
    }

    fn word_done(&self) {
        if self.open_words.fetch_sub(1, Ordering::AcqRel) == 1 {
            let announce =
                self.announce.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
            debug_assert!(announce.is_some(), "a drain was announced twice");
            if let Some(announce) = announce {
                announce();
            }
        }
    }
}

impl fmt::Debug for AppDrainState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppDrainState")
            .field("active_connections", &self.active_connections())
            .field("draining", &self.draining())
            .finish_non_exhaustive()
    }
}

/// Adds one to a counter that only the calling loop writes: a load and a store, without a locked
/// instruction.
fn add_own(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}
