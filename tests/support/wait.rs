//! The one place where a test waits without a descriptor to wait on.

use std::{
    thread,
    time::{Duration, Instant},
};

/// How long anything may take that should be quick; long, because a busy machine is no failure.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Waits until `condition` holds; whether it did before the deadline.
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

/// Lets the server look at what was sent so far, so that two sends are likely two reads. Nothing
/// depends on it but how sharp a test is.
pub fn give_way() {
    pause(Duration::from_micros(40));
}

fn pause(time: Duration) {
    thread::park_timeout(time);
}
