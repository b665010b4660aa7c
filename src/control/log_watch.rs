//! The watch over the logs: which one loses lines, since when, and how many it lost.
//!
//! A log that loses lines can't report that itself, and the other log may not know. Control checks
//! the counts about once a second, and notifies operators when a loss begins and when it ends. A
//! loss ends when the log can be written again, and has reported it.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use log::Level;
use serde_json::{Value, json};

use super::notices::{Notices, notice};
use crate::{
    duration::milliseconds,
    logging::{Logging, Losses},
};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What is known of the logs.
pub(super) struct LogWatch {
    pub(super) logging: Option<Logging>,
    watched: HashMap<&'static str, WatchedLog>,
    due: Instant,
}

#[derive(Debug, Default)]
struct WatchedLog {
    /// Lost lines that were reported to operators.
    reported: u64,
    /// What the last look saw.
    lost: u64,
    losing_since: Option<Instant>,
}

/// What a look found.
#[derive(Debug, PartialEq, Eq)]
enum LogChange {
    /// The log loses lines, so many so far.
    Begun(u64),
    /// It has lost so many, within this time.
    Over(u64, Duration),
}

impl LogWatch {
    pub(super) fn new(epoch: Instant) -> Self {
        Self { logging: None, watched: HashMap::new(), due: epoch }
    }

    /// Looks at the logs, if it is time, and reports what has changed.
    pub(super) fn on_time(&mut self, notices: &Notices, now: Instant) {
        let Some(logging) = self.logging.as_ref().filter(|_| self.due <= now) else { return };
        self.due = now + LOOK_EVERY;
        for (log, losses) in logging.losses() {
            let watched = self.watched.entry(log).or_default();
            if let Some(change) = watched.look(&losses, now) {
                say(notices, log, &losses, &change);
            }
        }
    }
}

impl WatchedLog {
    fn look(&mut self, losses: &Losses, now: Instant) -> Option<LogChange> {
        if losses.lost < self.lost {
            // Another log has its place: what this one lost is all that it is going to lose.
            let lines = self.lost - self.reported;
            let since = self.losing_since.take();
            *self = Self::default();
            return since.map(|since| LogChange::Over(lines, now.duration_since(since)));
        }
        self.lost = losses.lost;
        let is_losing = losses.lost > losses.reported;
        let lines = losses.lost - self.reported;
        match self.losing_since {
            None if is_losing => {
                self.losing_since = Some(now);
                Some(LogChange::Begun(lines))
            }
            Some(_) if is_losing => None,
            None if lines == 0 => None,
            since => {
                (self.losing_since, self.reported) = (None, losses.lost);
                let time = since.map(|since| now.duration_since(since)).unwrap_or_default();
                Some(LogChange::Over(lines, time))
            }
        }
    }
}

/// Says it to operators; in the log of events only of the other one: its own losses stand there
/// already, and a line about lines that can't be written would be one more.
fn say(notices: &Notices, log: &'static str, losses: &Losses, change: &LogChange) {
    let (output, error) = (&*losses.output, losses.failure.as_deref());
    match *change {
        LogChange::Begun(lines) if log == "events" => {
            let fields = || fields(log, output, lines, ("error", json!(error)));
            notices.publish(Level::Error, "log_losing_lines", fields);
        }
        LogChange::Begun(lines) => notice!(
            notices,
            Error,
            "log_losing_lines",
            log = log,
            output = output,
            lines = lines,
            error = error,
        ),
        LogChange::Over(lines, time) if log == "events" => {
            let fields = || fields(log, output, lines, ("for_ms", json!(milliseconds(time))));
            notices.publish(Level::Warn, "log_lines_lost", fields);
        }
        LogChange::Over(lines, time) => notice!(
            notices,
            Warn,
            "log_lines_lost",
            log = log,
            output = output,
            lines = lines,
            for_ms = milliseconds(time),
        ),
    }
}

fn fields(log: &str, output: &str, lines: u64, (key, value): (&str, Value)) -> Value {
    json!({ "log": log, "output": output, "lines": lines, key: value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn losses(lost: u64, reported: u64) -> Losses {
        Losses { lost, reported, ..Losses::default() }
    }

    #[test]
    fn a_loss_is_told_when_it_begins_and_when_it_is_over() {
        let (mut log, start) = (WatchedLog::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(log.look(&losses(0, 0), at(0)), None);
        assert_eq!(log.look(&losses(3, 0), at(1)), Some(LogChange::Begun(3)));
        assert_eq!(log.look(&losses(9, 0), at(2)), None);
        assert_eq!(
            log.look(&losses(9, 9), at(4)),
            Some(LogChange::Over(9, Duration::from_secs(3)))
        );
        assert_eq!(log.look(&losses(9, 9), at(5)), None);
        // Begun and over between two looks.
        assert_eq!(log.look(&losses(11, 11), at(6)), Some(LogChange::Over(2, Duration::ZERO)));
    }

    #[test]
    fn a_log_that_is_replaced_while_it_loses_lines_loses_no_more() {
        let (mut log, now) = (WatchedLog::default(), Instant::now());
        assert_eq!(log.look(&losses(3, 0), now), Some(LogChange::Begun(3)));
        assert_eq!(log.look(&losses(5, 0), now), None);
        assert_eq!(log.look(&losses(0, 0), now), Some(LogChange::Over(5, Duration::ZERO)));
        assert_eq!(log.look(&losses(1, 0), now), Some(LogChange::Begun(1)));
    }
}
