//! Waits of tests that have no descriptor to wait on.

use std::{
    thread,
    time::{Duration, Instant},
};

/// The deadline for everything that should be quick. It is long because a busy machine is no
/// failure.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Waits until `condition` holds. Returns whether it did before the deadline.
pub fn wait_until(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        pause(Duration::from_millis(1));
    }
}

/// Lets the server read what was sent so far, so that two sends are probably two reads. A test is
/// also correct if they are one.
pub fn give_way() {
    pause(Duration::from_micros(40));
}

fn pause(time: Duration) {
    thread::park_timeout(time);
}
