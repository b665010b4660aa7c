//! A loop's clock: read once a turn, and the Date field written once a second.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

use crate::{
    duration::{milliseconds, nanoseconds},
    http::h1::HeadTemplate,
};

/// The time of the current turn.
pub(super) struct Clock {
    epoch: Instant,
    /// The epoch as [`monotonic_ns`] counts. Arithmetic with `Instant` would take longer than the
    /// look at the clock, and each exchange needs both.
    epoch_ns: u64,
    now: Instant,
    now_ms: u64,
    now_ns: u64,
    wall: SystemTime,
    /// The wall clock when it was last read, and when that was, in nanoseconds since the epoch.
    wall_read: (SystemTime, u64),
    head_template: HeadTemplate,
    dateless: HeadTemplate,
    /// The idle time that answers announce, in seconds.
    idle_hint_s: u64,
}

/// How far the wall clock may lag, in nanoseconds: the Date field counts seconds.
const WALL_AGE_MAX_NS: u64 = 100_000_000;

impl Clock {
    /// A clock that counts milliseconds and nanoseconds from `epoch`.
    pub(super) fn new(epoch: Instant) -> Self {
        // Too early by what passes between the two looks: the latest of a few is the best.
        let looks = (0..4).map(|_| monotonic_ns() - nanoseconds(epoch.elapsed()));
        let wall = SystemTime::now();
        let head_template = HeadTemplate::at(wall);
        let mut clock = Self {
            epoch,
            epoch_ns: looks.max().unwrap_or_default(),
            now: epoch,
            now_ms: 0,
            now_ns: 0,
            wall,
            wall_read: (wall, nanoseconds(epoch.elapsed())),
            head_template,
            dateless: HeadTemplate::dateless(),
            idle_hint_s: 0,
        };
        clock.tick();
        clock
    }

    /// Begins a turn.
    pub(super) fn tick(&mut self) {
        self.now_ns = self.read_ns();
        self.now = self.epoch + Duration::from_nanos(self.now_ns);
        self.now_ms = self.now_ns / 1_000_000;
        let (read, read_ns) = self.wall_read;
        let age_ns = self.now_ns.saturating_sub(read_ns);
        self.wall = read + Duration::from_nanos(age_ns);
        if age_ns < WALL_AGE_MAX_NS {
            return;
        }
        self.wall = SystemTime::now();
        if seconds(self.wall) != seconds(read) {
            self.head_template = HeadTemplate::at(self.wall).with_idle_hint(self.idle_hint_s);
        }
        self.wall_read = (self.wall, self.now_ns);
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
        self.now_ns
    }

    /// Nanoseconds since the epoch, read again, to measure within a turn.
    pub(super) fn read_ns(&self) -> u64 {
        monotonic_ns() - self.epoch_ns
    }

    /// The first whole millisecond after this much time has passed, counted from the call, not from
    /// the turn's start. Always in a later turn, even for zero.
    pub(super) fn passed_ms(&self, time: Duration) -> u64 {
        milliseconds(Duration::from_nanos(self.read_ns()).saturating_add(time)).saturating_add(1)
    }

    /// An instant as milliseconds since the epoch.
    pub(super) fn ms_at(&self, at: Instant) -> u64 {
        milliseconds(at.saturating_duration_since(self.epoch))
    }

    /// The time of day.
    pub(super) fn wall(&self) -> SystemTime {
        self.wall
    }

    /// Sets the idle time that answers announce.
    pub(super) fn set_idle_hint(&mut self, seconds: u64) {
        self.idle_hint_s = seconds;
        self.head_template = HeadTemplate::at(self.wall).with_idle_hint(seconds);
        self.dateless = HeadTemplate::dateless().with_idle_hint(seconds);
    }

    /// The start of response heads in this second.
    pub(super) fn head_template(&self) -> &HeadTemplate {
        &self.head_template
    }

    /// The same for responses with a Date of their own.
    pub(super) fn dateless(&self) -> &HeadTemplate {
        &self.dateless
    }
}

/// Limits how often something is logged: peers must not fill the log.
#[derive(Default)]
pub(super) struct Throttle {
    again_ms: u64,
}

impl Throttle {
    /// Whether it may be logged now, at most once in this time.
    pub(super) fn passes(&mut self, now_ms: u64, every: Duration) -> bool {
        let passes = now_ms >= self.again_ms;
        if passes {
            self.again_ms = now_ms.saturating_add(milliseconds(every));
        }
        passes
    }
}

/// CLOCK_MONOTONIC (clock_gettime(2)), which `Instant` reads, too.
fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux has this clock");
    // Neither part is ever negative.
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

fn seconds(wall: SystemTime) -> u64 {
    wall.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_counts_from_its_epoch_as_instants_do() {
        let epoch = Instant::now() - Duration::from_secs(100);
        let mut clock = Clock::new(epoch);
        for _ in 0..100 {
            let before = nanoseconds(epoch.elapsed());
            clock.tick();
            // It may be ahead by what passed between two looks at its start.
            assert!(clock.now_ns() >= before, "{} < {before}", clock.now_ns());
            assert!(clock.now_ns() < nanoseconds(epoch.elapsed()) + 10_000_000);
            assert_eq!(clock.now().duration_since(epoch), Duration::from_nanos(clock.now_ns()));
        }
    }

    #[test]
    fn passed_ms_never_rounds_a_time_down() {
        let clock = Clock::new(Instant::now());
        for micros in 0..5000 {
            let time = Duration::from_micros(micros);
            let begun = Duration::from_nanos(clock.read_ns());
            let passed = Duration::from_millis(clock.passed_ms(time));
            assert!(passed >= begun + time, "{passed:?} for {time:?} from {begun:?}");
            assert!(clock.passed_ms(Duration::ZERO) > clock.now_ms());
        }
        assert_eq!(clock.passed_ms(Duration::MAX), u64::MAX);
    }
}
