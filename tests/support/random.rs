//! Pseudo-random numbers that repeat with the same seed.

use std::{env, time::Duration};

/// A generator of numbers (xorshift).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The generator of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// Another generator, for the thread of this number.
    pub fn of_thread(seed: u64, thread: u64) -> Self {
        Self::new(seed.wrapping_add(thread.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// A number below `most`.
    pub fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % most
    }

    /// One of these.
    pub fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }

    /// A number of milliseconds within these bounds.
    #[allow(dead_code, reason = "only `chaos` needs it")]
    pub fn milliseconds(&mut self, from: usize, to: usize) -> Duration {
        Duration::from_millis((from + self.below(to - from + 1)) as u64)
    }
}

/// The number in this environment variable, or `default`.
pub fn number_of_environment(variable: &str, default: u64) -> u64 {
    env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
