//! Logs: events (what the server does) and access lines (what its peers request).
//!
//! Owns one thread for each log, behind a bounded queue. Never makes a caller wait for a disk, a
//! pipe or a terminal: a line that finds the queue full is lost, counted, and reported in the log
//! itself. Files are opened by threads of their own, which may hang, and without holding the lock:
//! it is held only while logs are swapped. Only [`init`] and [`Logging::reconfigure`] wait for
//! files to open, with a time-out.
//!
//! The settings can change at any time. When a log moves to another file, the old file still gets
//! all lines sent before, and no line is lost.
//!
//! Memory is bounded: at most 1 MiB of events and 16 MiB of access lines wait for the disk; a log's
//! thread holds less than 2 MiB more, and each loop less than 384 KiB. The worst case is 21 MiB
//! plus 384 KiB per loop, and twice as much while a reload moves a log.

mod access;
mod escape;
mod event_fields;
mod events;
mod log_error;
mod output;
mod request_id;
mod stamp;
mod tls_use;
mod upstream_use;
mod values;
mod worker;
mod writer;

use std::{
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

pub use access::{AccessLog, AccessOutcome, AccessRecord, AccessWriter, End};
pub(crate) use escape::is_deceptive;
pub(crate) use events::{EVENT_TARGET, NOTICE_TARGET, Tap, event, event_to, log_kept};
pub use log_error::LogError;
pub use request_id::RequestId;
pub(crate) use request_id::RequestIds;
pub(crate) use tls_use::TlsUse;
pub(crate) use upstream_use::UpstreamUse;

pub(crate) use stamp::rfc3339;

use crate::config::LogConfig;
use events::{EventLog, EventLogger, TAP_LEVEL};
use writer::{LineWriter, RetiredLogs, flush_all};

pub(crate) use writer::Losses;

/// How long reporting lost access lines in the log of events may take at the end.
const LAST_WORD_TIMEOUT: Duration = Duration::from_millis(200);

/// The process's logs. Clones share the same logs.
#[derive(Clone)]
pub struct Logging {
    logger: EventLogger,
    logs: Arc<Mutex<Logs>>,
    /// Locked while a change of settings is under way.
    change: Arc<Mutex<()>>,
}

/// Lines lost since the start, because a queue was full or a write failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LostLines {
    /// Of the log of events.
    pub events: u64,
    /// Of the access log.
    pub access: u64,
}

/// Opens the logs and installs them: from now on `event!` and the macros of `log` write to them.
/// Once per process.
///
/// # Errors
/// If a log can't be opened, or the process already has a logger.
pub fn init(config: &LogConfig) -> Result<Logging, LogError> {
    let logging = Logging::open(config)?;
    // Installed even with level `off`, because the level may change.
    let logger = Box::new(logging.logger.clone());
    log::set_boxed_logger(logger).map_err(|_| LogError::AlreadyInitialized)?;
    log::set_max_level(config.level.max(TAP_LEVEL));
    Ok(logging)
}

/// The current logs and the retired ones.
#[derive(Debug, Default)]
struct Logs {
    events: Option<EventLog>,
    access: Option<AccessLog>,
    retired_events: RetiredLogs,
    retired_access: RetiredLogs,
}

impl Logging {
    /// From now on, sends all events to `tap` too, regardless of the log's level. Can be called
    /// once.
    pub(crate) fn tap(&self, tap: Tap) {
        self.logger.tap(tap);
    }

    /// The access log, unless it is off.
    pub fn access(&self) -> Option<AccessLog> {
        self.logs().access.clone()
    }

    /// Applies new settings while the process logs. If a log's file can't be opened, that log keeps
    /// its file and only changes its level; the other log still changes. Lines that were sent
    /// earlier, and those of old [`AccessWriter`]s, go to the old file, which closes after the last
    /// of them. [`Logging::access`] then returns another log, from which each loop takes a new
    /// writer.
    ///
    /// Returns the errors of the logs that could not be opened.
    #[must_use = "a log may have failed"]
    pub fn reconfigure(&self, config: &LogConfig) -> Vec<LogError> {
        let _one_at_a_time = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let (events, access) = {
            let logs = self.logs();
            (logs.events.clone(), logs.access.clone())
        };
        // Without the lock, because opening a file can take long.
        let events = EventLog::open_after(events.as_ref(), config);
        let access = AccessLog::open_after(access.as_ref(), config);
        let mut logs = self.logs();
        let mut errors = Vec::new();
        match events {
            Ok(events) => logs.replace_events(events),
            Err(error) => errors.push(error),
        }
        match access {
            Ok(access) => logs.replace_access(access),
            Err(error) => errors.push(error),
        }
        self.logger.log_to(logs.events.as_ref(), config.level);
        log::set_max_level(config.level.max(TAP_LEVEL));
        errors
    }

    /// Opens the logs' files again by their paths, after the lines sent so far; for log rotation.
    /// Returns at once. If opening a file fails or hangs, its log keeps the old file, with an event
    /// `log_reopen_failed`. A log whose write hangs continues in the new file.
    pub fn reopen(&self) {
        self.logs().writers().for_each(LineWriter::reopen);
    }

    /// Waits until all lines sent so far are written or counted as lost, including those for files
    /// that [`Logging::reconfigure`] replaced. Access lines are sent by [`AccessWriter::flush`].
    /// Returns false on time-out.
    pub fn flush(&self, timeout: Duration) -> bool {
        let (writers, retired) = {
            let logs = self.logs();
            let writers: Vec<LineWriter> = logs.writers().cloned().collect();
            (writers, [logs.retired_events.clone(), logs.retired_access.clone()])
        };
        flush_all(&writers, &retired, timeout)
    }

    /// For the end of the process, after [`Logging::flush`] has failed: counts unwritten lines as
    /// lost, reports the number of lost access lines in the log of events, and returns both
    /// numbers.
    pub fn close(&self) -> LostLines {
        let (access, retired) = {
            let logs = self.logs();
            (logs.access.clone(), [logs.retired_events.clone(), logs.retired_access.clone()])
        };
        let lost = access.iter().map(|log| log.writer().give_up()).sum::<u64>();
        let access = lost + retired[1].give_up();
        if access > 0 {
            event!(Warn, "log_lines_lost", log = "access", lines = access);
        }
        let writers: Vec<_> = self.logs().events.iter().map(|log| log.writer().clone()).collect();
        let mut events = retired[0].give_up();
        if !flush_all(&writers, &[], LAST_WORD_TIMEOUT) {
            events += writers.iter().map(LineWriter::give_up).sum::<u64>();
        }
        LostLines { events, access }
    }

    /// The descriptors of the process that the logs name, such as `/dev/fd/3`. For the start, when
    /// each log has just been opened.
    pub(crate) fn descriptors(&self) -> Vec<i32> {
        self.logs().writers().filter_map(|writer| writer.output().descriptor()).collect()
    }

    /// The losses of each enabled log, by its name.
    pub(crate) fn losses(&self) -> Vec<(&'static str, Losses)> {
        let (events, access) = {
            let logs = self.logs();
            (logs.events.clone(), logs.access.clone())
        };
        let events = events.iter().map(|log| ("events", log.writer().losses()));
        events.chain(access.iter().map(|log| ("access", log.writer().losses()))).collect()
    }

    /// How many lines were lost.
    pub fn lost(&self) -> LostLines {
        let logs = self.logs();
        let events = logs.events.as_ref().map_or(0, |log| log.writer().lost());
        let access = logs.access.as_ref().map_or(0, |log| log.writer().lost());
        LostLines {
            events: events + logs.retired_events.lost(),
            access: access + logs.retired_access.lost(),
        }
    }

    /// Opens the logs without installing the logger.
    fn open(config: &LogConfig) -> Result<Self, LogError> {
        let access = AccessLog::open(config)?;
        let events = EventLog::open_after(None, config)?;
        let logger = EventLogger::default();
        logger.log_to(events.as_ref(), config.level);
        let logs = Logs { events, access, ..Logs::default() };
        Ok(Self { logger, logs: Arc::new(Mutex::new(logs)), change: Arc::default() })
    }

    fn logs(&self) -> MutexGuard<'_, Logs> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Logs {
    fn replace_events(&mut self, new: Option<EventLog>) {
        let old = mem::replace(&mut self.events, new);
        let [old, new] = [&old, &self.events].map(|log| log.as_ref().map(EventLog::writer));
        self.retired_events.add_unless_same(old, new);
    }

    /// Returns whether the log has changed.
    fn replace_access(&mut self, new: Option<AccessLog>) {
        let old = mem::replace(&mut self.access, new);
        let [old, new] = [&old, &self.access].map(|log| log.as_ref().map(AccessLog::writer));
        self.retired_access.add_unless_same(old, new);
    }

    fn writers(&self) -> impl Iterator<Item = &LineWriter> {
        let events = self.events.iter().map(EventLog::writer);
        events.chain(self.access.iter().map(AccessLog::writer))
    }
}

impl fmt::Debug for Logging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logging").field("logs", &self.logs).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        env, fs, io,
        path::Path,
        process::{Command, Stdio},
        thread,
    };

    use super::*;
    use crate::config::{AccessFormat, LogFormat};

    const DEADLINE: Duration = Duration::from_secs(20);

    /// The log folder of the test process below. The test runs only if it is set.
    const DIR_VARIABLE: &str = "TIDEGATE_TEST_LOG_DIR";

    fn config(dir: &Path) -> LogConfig {
        LogConfig {
            level: log::LevelFilter::Info,
            format: LogFormat::Json,
            path: Some(dir.join("events.log")),
            access: AccessFormat::Json,
            access_path: Some(dir.join("access.log")),
        }
    }

    fn log_one(logging: &Logging, message: &str) {
        let mut record = log::Record::builder();
        log::Log::log(&logging.logger, &record.args(format_args!("{message}")).build());
    }

    fn finish_one(logging: &Logging) {
        finish_with(&mut logging.access().unwrap().for_loop());
    }

    fn finish_with(writer: &mut AccessWriter) {
        let record = writer.begin("192.0.2.7".parse().unwrap(), None, None);
        let outcome =
            AccessOutcome { status: 400, bytes: 9, duration: Duration::ZERO, end: End::Complete };
        writer.finish(record, &outcome, std::time::UNIX_EPOCH);
        writer.flush();
    }

    #[test]
    fn all_logs_are_flushed_and_reopened() {
        let dir = tempfile::tempdir().unwrap();
        let logging = Logging::open(&config(dir.path())).unwrap();
        let write = || {
            log_one(&logging, "line");
            finish_one(&logging);
            assert!(logging.flush(DEADLINE));
        };
        let names = ["events.log", "access.log"];
        write();
        for name in names {
            fs::rename(dir.path().join(name), dir.path().join(format!("{name}.1"))).unwrap();
        }
        logging.reopen();
        write();
        for name in names {
            for name in [name.to_owned(), format!("{name}.1")] {
                let text = fs::read_to_string(dir.path().join(&name)).unwrap();
                assert_eq!(text.lines().count(), 1, "{name}");
            }
        }
        assert_eq!(logging.lost(), LostLines::default());
    }

    #[test]
    fn off_is_off() {
        let dir = tempfile::tempdir().unwrap();
        let level = log::LevelFilter::Off;
        let config = LogConfig { level, access: AccessFormat::Off, ..config(dir.path()) };
        let logging = Logging::open(&config).unwrap();
        log_one(&logging, "nowhere");
        assert!(logging.access().is_none());
        assert!(logging.flush(Duration::ZERO));
        logging.reopen();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    fn text(path: impl AsRef<Path>) -> String {
        fs::read_to_string(path).unwrap()
    }

    fn reconfigure(logging: &Logging, config: &LogConfig) {
        let errors = logging.reconfigure(config);
        assert!(errors.is_empty(), "{errors:?}");
    }

    #[test]
    fn the_level_can_change_from_and_to_off() {
        use log::LevelFilter::{Debug, Error, Info, Off};
        let dir = tempfile::tempdir().unwrap();
        let at = |level| LogConfig { level, ..config(dir.path()) };
        let logging = Logging::open(&at(Off)).unwrap();
        log_one(&logging, "1st");
        for (level, message) in [(Info, "2nd"), (Error, "3rd"), (Off, "4th"), (Debug, "5th")] {
            reconfigure(&logging, &at(level));
            log_one(&logging, message);
            assert!(logging.flush(DEADLINE));
        }
        let text = text(dir.path().join("events.log"));
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("2nd") && text.contains("5th"), "{text}");
    }

    #[test]
    fn a_new_format_continues_in_the_same_file_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let logging = Logging::open(&config(dir.path())).unwrap();
        let mut old = logging.access().unwrap().for_loop();
        log_one(&logging, "json");
        let plain = LogConfig {
            format: LogFormat::Text,
            access: AccessFormat::Combined,
            ..config(dir.path())
        };
        reconfigure(&logging, &config(dir.path()));
        reconfigure(&logging, &plain);
        reconfigure(&logging, &plain);
        log_one(&logging, "text");
        finish_with(&mut old);
        finish_one(&logging);
        assert!(logging.flush(DEADLINE));
        for name in ["events.log", "access.log"] {
            let text = text(dir.path().join(name));
            let lines: Vec<_> = text.lines().map(|line| line.starts_with('{')).collect();
            assert_eq!(lines, [true, false], "{text}");
        }
    }

    #[test]
    fn lines_of_an_old_writer_go_to_the_old_file_and_flush_waits_for_them() {
        let dir = tempfile::tempdir().unwrap();
        let moved = |name: &str| LogConfig {
            path: Some(dir.path().join(format!("events.{name}"))),
            access_path: Some(dir.path().join(format!("access.{name}"))),
            ..config(dir.path())
        };
        let logging = Logging::open(&moved("old")).unwrap();
        let mut old = logging.access().unwrap().for_loop();
        finish_with(&mut old);
        log_one(&logging, "old");
        reconfigure(&logging, &moved("new"));
        finish_with(&mut old);
        finish_one(&logging);
        log_one(&logging, "new");
        assert!(logging.flush(DEADLINE), "while the loop still has its old writer");
        assert_eq!(text(dir.path().join("access.old")).lines().count(), 2);
        finish_with(&mut old);
        drop(old);
        assert!(logging.flush(DEADLINE), "when it has ended");
        assert_eq!(text(dir.path().join("access.old")).lines().count(), 3);
        for name in ["access.new", "events.old", "events.new"] {
            assert_eq!(text(dir.path().join(name)).lines().count(), 1, "{name}");
        }
        let closed = |name: &str| {
            let path = dir.path().join(name);
            let files = fs::read_dir("/proc/self/fd").unwrap().flatten();
            !files.filter_map(|file| fs::read_link(file.path()).ok()).any(|file| file == path)
        };
        assert!(closed("access.old") && closed("events.old") && !closed("access.new"));
        assert_eq!(logging.lost(), LostLines::default());
    }

    #[test]
    fn a_log_that_cannot_be_opened_keeps_its_file_and_the_other_changes() {
        let dir = tempfile::tempdir().unwrap();
        let logging = Logging::open(&config(dir.path())).unwrap();
        let missing = Some(dir.path().join("missing/x.log"));
        let new = LogConfig {
            level: log::LevelFilter::Error,
            path: missing.clone(),
            access: AccessFormat::Combined,
            ..config(dir.path())
        };
        let errors = logging.reconfigure(&new);
        assert!(matches!(errors[..], [LogError::Open { .. }]), "{errors:?}");
        log_one(&logging, "below the new level");
        let new = LogConfig { access_path: missing, ..config(dir.path()) };
        let errors = logging.reconfigure(&new);
        assert!(matches!(errors[..], [LogError::Open { .. }]), "{errors:?}");
        log_one(&logging, "on");
        finish_one(&logging);
        assert!(logging.flush(DEADLINE));
        let events = text(dir.path().join("events.log"));
        assert!(events.lines().count() == 1 && events.contains("on"), "{events}");
        assert!(!text(dir.path().join("access.log")).starts_with('{'));
    }

    #[test]
    fn turning_the_access_log_off_and_on_keeps_the_count_of_losses() {
        let dir = tempfile::tempdir().unwrap();
        let full = LogConfig { access_path: Some("/dev/full".into()), ..config(dir.path()) };
        let off = LogConfig { access: AccessFormat::Off, ..full.clone() };
        let logging = Logging::open(&full).unwrap();
        finish_one(&logging);
        assert!(logging.flush(DEADLINE));
        reconfigure(&logging, &off);
        assert!(logging.access().is_none());
        assert_eq!(logging.lost().access, 1);
        reconfigure(&logging, &full);
        finish_one(&logging);
        assert!(logging.flush(DEADLINE));
        assert_eq!(logging.lost(), LostLines { events: 0, access: 2 });
    }

    #[test]
    fn rotation_after_a_change_opens_the_current_files() {
        let dir = tempfile::tempdir().unwrap();
        let logging = Logging::open(&config(dir.path())).unwrap();
        let path = dir.path().join("moved.log");
        let moved = LogConfig { path: Some(path.clone()), ..config(dir.path()) };
        reconfigure(&logging, &moved);
        fs::remove_file(dir.path().join("events.log")).unwrap();
        fs::rename(&path, dir.path().join("moved.log.1")).unwrap();
        logging.reopen();
        log_one(&logging, "line");
        assert!(logging.flush(DEADLINE));
        assert_eq!(text(&path).lines().count(), 1);
        assert!(!dir.path().join("events.log").exists());
    }

    #[test]
    fn no_event_is_lost_or_torn_while_settings_change() {
        const EVENTS: usize = 2000;
        let dir = tempfile::tempdir().unwrap();
        let names = ["a.log", "b.log"];
        let to = |index: usize| LogConfig {
            path: Some(dir.path().join(names[index % 2])),
            format: if index.is_multiple_of(3) { LogFormat::Text } else { LogFormat::Json },
            access: AccessFormat::Off,
            ..config(dir.path())
        };
        let logging = Logging::open(&to(0)).unwrap();
        thread::scope(|scope| {
            for thread in 0..2 {
                let logging = &logging;
                scope.spawn(move || {
                    (0..EVENTS).for_each(|event| log_one(logging, &format!("<{thread}-{event}>")));
                });
            }
            (0..100).for_each(|round| reconfigure(&logging, &to(round)));
        });
        assert!(logging.flush(DEADLINE));
        assert_eq!(logging.lost(), LostLines::default());
        let all = names.map(|name| text(dir.path().join(name))).concat();
        let mut found: Vec<&str> = all
            .lines()
            .map(|line| &line[line.find('<').unwrap()..=line.find('>').unwrap()])
            .collect();
        found.sort_unstable();
        found.dedup();
        assert_eq!((found.len(), all.lines().count()), (2 * EVENTS, 2 * EVENTS));
    }

    #[test]
    fn a_process_logs_by_macros_even_without_standard_streams() {
        let dir = tempfile::tempdir().unwrap();
        let (reader, broken) = io::pipe().unwrap();
        drop(reader);
        let status = Command::new(env::current_exe().unwrap())
            .args(["--exact", "logging::tests::process_that_logs", "--ignored", "--nocapture"])
            .env(DIR_VARIABLE, dir.path())
            .stdout(Stdio::null())
            .stderr(broken)
            .status()
            .unwrap();
        assert!(status.success(), "{status}");
        let text = fs::read_to_string(dir.path().join("events.log")).unwrap();
        let read: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read.len(), 4, "{text}");
        let expected = serde_json::json!({ "host": "a.example", "apps": 3, "listen": "[::1]:80" });
        assert_eq!((&read[0]["event"], &read[0]["fields"]), (&"app_loaded".into(), &expected));
        assert_eq!(
            (&read[1]["level"], &read[1]["event"]),
            (&"ERROR".into(), &"server_stop".into())
        );
        assert_eq!(read[2]["fields"]["message"], "plain 1");
        assert_eq!(read[3]["event"], "log_reopen_failed");
    }

    #[test]
    #[ignore = "needs a process of its own; the test above starts it"]
    fn process_that_logs() {
        let Some(dir) = env::var_os(DIR_VARIABLE) else { return };
        let config = config(Path::new(&dir));
        let access_path = config.access_path.clone().unwrap();
        let off = LogConfig { level: log::LevelFilter::Off, ..config.clone() };
        let logging = init(&off).unwrap();
        log::error!("not heard");
        assert!(logging.reconfigure(&config).is_empty());
        assert_eq!(log::max_level(), log::LevelFilter::Info);
        let listen: std::net::SocketAddr = "[::1]:80".parse().unwrap();
        event!(Info, "app_loaded", host = "a.example", apps = 3, listen:% = listen);
        event!(Debug, "not_seen");
        event!(Error, "server_stop");
        log::warn!("plain {}", 1);
        assert!(logging.flush(DEADLINE));
        fs::remove_file(&access_path).unwrap();
        fs::create_dir(&access_path).unwrap();
        logging.reopen();
        // The access log's thread reports its failure in the other log.
        let access = logging.access().unwrap();
        assert!(writer::flush_all([access.writer()], &[], DEADLINE));
        assert!(logging.flush(DEADLINE));
        assert!(matches!(init(&config), Err(LogError::Open { .. })));
        let again = LogConfig { access: AccessFormat::Off, path: None, ..config };
        assert!(matches!(init(&again), Err(LogError::AlreadyInitialized)));

        let to_stderr = Logging::open(&again).unwrap();
        log_one(&to_stderr, "unread");
        assert!(to_stderr.flush(DEADLINE));
        assert_eq!(to_stderr.lost(), LostLines { events: 1, access: 0 });
    }
}
