//! A loop's time: read once a turn, and the Date field written once a second.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The time of this turn.
pub(super) struct Clock {
    epoch: Instant,
    now: Instant,
    now_ms: u64,
    wall: SystemTime,
    wall_read: Instant,
    date_line: Vec<u8>,
}

/// How far the wall clock may be behind: the Date field counts seconds.
const WALL_AGE_MAX: Duration = Duration::from_millis(100);

impl Clock {
    /// A clock that counts milliseconds and nanoseconds from `epoch`.
    pub(super) fn new(epoch: Instant) -> Self {
        let now = Instant::now();
        let wall = SystemTime::now();
        let now_ms = milliseconds(now.duration_since(epoch));
        Self { epoch, now, now_ms, wall, wall_read: now, date_line: date_line(wall) }
    }

    /// Begins a turn.
    pub(super) fn tick(&mut self) {
        self.now = Instant::now();
        self.now_ms = milliseconds(self.now.duration_since(self.epoch));
        if self.now.duration_since(self.wall_read) < WALL_AGE_MAX {
            return;
        }
        let wall = SystemTime::now();
        if seconds(wall) != seconds(self.wall) {
            self.date_line = date_line(wall);
        }
        (self.wall, self.wall_read) = (wall, self.now);
    }

    pub(super) fn now(&self) -> Instant {
        self.now
    }

    /// Milliseconds since the epoch.
    pub(super) fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Nanoseconds since the epoch.
    pub(super) fn now_ns(&self) -> u64 {
        self.now.duration_since(self.epoch).as_nanos() as u64
    }

    /// The time of day.
    pub(super) fn wall(&self) -> SystemTime {
        self.wall + self.now.duration_since(self.wall_read)
    }

    /// `Date: …` with its CRLF (RFC 9110 §6.6.1).
    pub(super) fn date_line(&self) -> &[u8] {
        &self.date_line
    }
}

/// In 64 bits, where `as_millis` computes in 128.
pub(super) fn milliseconds(duration: Duration) -> u64 {
    duration.as_secs() * 1000 + u64::from(duration.subsec_millis())
}

fn seconds(wall: SystemTime) -> u64 {
    wall.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn date_line(wall: SystemTime) -> Vec<u8> {
    // Before 1970 and after 9999 there is no such date; a clock that says so has no better one.
    let wall = if seconds(wall) < 253_402_300_800 { wall.max(UNIX_EPOCH) } else { UNIX_EPOCH };
    format!("Date: {}\r\n", httpdate::fmt_http_date(wall)).into_bytes()
}
