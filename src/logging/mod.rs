//! Logs: events (what the server does) and access lines (what its peers asked for).
//!
//! Owns one thread for each log; what is logged goes there through a bounded queue. Never makes
//! who logs wait for a disk, a pipe or a terminal: what finds a queue full is lost, counted, and
//! reported in the log itself.
//!
//! Memory is bounded: at most 1 MiB of events and 16 MiB of access lines wait for the disk; a log's
//! thread holds less than 2 MiB more, and each loop less than 384 KiB. At worst that is 21 MiB and
//! 384 KiB for every loop.

mod access;
mod escape;
mod events;
mod stamp;
mod writer;

use std::{error, fmt, io, time::Duration};

pub use access::{AccessLog, AccessRecord, AccessWriter, End, Outcome, RequestId};
pub(crate) use events::{EVENT_TARGET, event};

use crate::config::LogConfig;
use events::EventLogger;
use writer::LineWriter;

/// The process's logs. Clones stand for the same logs.
#[derive(Clone, Debug)]
pub struct Logging {
    events: Option<LineWriter>,
    access: Option<AccessLog>,
}

/// Lines that were lost since the start, to a full queue or to write errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LostLines {
    /// Of the log of events.
    pub events: u64,
    /// Of the access log.
    pub access: u64,
}

/// Why logging can't begin.
#[derive(Debug)]
pub enum LogError {
    /// The output can't be opened.
    Open {
        /// The path, or the name of a standard stream.
        output: String,
        /// The reason.
        error: io::Error,
    },
    /// A log's thread can't be started.
    Thread(io::Error),
    /// The process has a logger already.
    AlreadyInitialized,
}

/// Opens the logs and makes them the process's own: from here on `event!` and the macros of `log`
/// write to them. Once per process.
///
/// # Errors
/// If a log can't be opened, or the process has a logger.
pub fn init(config: &LogConfig) -> Result<Logging, LogError> {
    let (logging, logger) = Logging::open(config)?;
    if let Some(logger) = logger {
        log::set_boxed_logger(Box::new(logger)).map_err(|_| LogError::AlreadyInitialized)?;
    }
    log::set_max_level(config.level);
    Ok(logging)
}

impl Logging {
    /// The access log, unless it is off.
    pub fn access(&self) -> Option<&AccessLog> {
        self.access.as_ref()
    }

    /// Has the logs' files opened anew by their paths, after the lines sent so far; for log
    /// rotation. Returns at once. A log whose file can't be opened keeps its old one, with an event
    /// `log_reopen_failed`.
    pub fn reopen(&self) {
        self.writers().for_each(LineWriter::reopen);
    }

    /// Waits until the lines that were sent so far are written, or counted as lost. Access lines
    /// are sent by [`AccessWriter::flush`]. False if the timeout came first.
    pub fn flush(&self, timeout: Duration) -> bool {
        writer::flush_all(self.writers(), timeout)
    }

    /// How many lines were lost.
    pub fn lost(&self) -> LostLines {
        LostLines {
            events: self.events.as_ref().map_or(0, LineWriter::lost),
            access: self.access.as_ref().map_or(0, AccessLog::lost),
        }
    }

    /// Opens the logs, without installing the logger; with level `off` there is none.
    fn open(config: &LogConfig) -> Result<(Self, Option<EventLogger>), LogError> {
        let access = AccessLog::open(config)?;
        if config.level == log::LevelFilter::Off {
            return Ok((Self { events: None, access }, None));
        }
        let events = events::open(config)?;
        let logger = EventLogger::new(config, events.clone());
        Ok((Self { events: Some(events), access }, Some(logger)))
    }

    fn writers(&self) -> impl Iterator<Item = &LineWriter> {
        self.events.iter().chain(self.access.as_ref().map(AccessLog::writer))
    }
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { output, error } => write!(f, "cannot open log {output}: {error}"),
            Self::Thread(error) => write!(f, "cannot start a log's thread: {error}"),
            Self::AlreadyInitialized => f.write_str("logging is already initialized"),
        }
    }
}

impl error::Error for LogError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Open { error, .. } | Self::Thread(error) => Some(error),
            Self::AlreadyInitialized => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        env, fs,
        path::Path,
        process::{Command, Stdio},
    };

    use super::*;
    use crate::config::{AccessFormat, LogFormat};

    const DEADLINE: Duration = Duration::from_secs(20);

    /// Where the test process below logs to; the test runs only there.
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

    fn finish_one(logging: &Logging) {
        let mut writer = logging.access().unwrap().for_loop();
        let record = writer.begin("192.0.2.7".parse().unwrap(), None, None);
        let outcome =
            Outcome { status: 400, bytes: 9, duration: Duration::ZERO, end: End::Complete };
        writer.finish(record, &outcome, std::time::UNIX_EPOCH);
        writer.flush();
    }

    #[test]
    fn all_logs_are_flushed_and_reopened() {
        let dir = tempfile::tempdir().unwrap();
        let (logging, logger) = Logging::open(&config(dir.path())).unwrap();
        let logger = logger.unwrap();
        let write = || {
            let record = log::Record::builder().args(format_args!("line")).build();
            log::Log::log(&logger, &record);
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
        let (logging, logger) = Logging::open(&config).unwrap();
        assert!(logger.is_none() && logging.access().is_none());
        assert!(logging.flush(Duration::ZERO));
        logging.reopen();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_process_logs_by_macros_also_when_its_standard_streams_are_gone() {
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
        let logging = init(&config).unwrap();
        let listen: std::net::SocketAddr = "[::1]:80".parse().unwrap();
        event!(Info, "app_loaded", host = "a.example", apps = 3, listen:% = listen);
        event!(Debug, "not_seen");
        event!(Error, "server_stop");
        log::warn!("plain {}", 1);
        assert!(logging.flush(DEADLINE));
        fs::remove_file(&access_path).unwrap();
        fs::create_dir(&access_path).unwrap();
        logging.reopen();
        // The access log's thread says in the other log that it could not.
        let access = logging.access().unwrap().writer();
        assert!(writer::flush_all([access], DEADLINE));
        assert!(logging.flush(DEADLINE));
        assert!(matches!(init(&config), Err(LogError::Open { .. })));
        let again = LogConfig { access: AccessFormat::Off, path: None, ..config };
        assert!(matches!(init(&again), Err(LogError::AlreadyInitialized)));

        let (to_stderr, _logger) = Logging::open(&again).unwrap();
        to_stderr.events.as_ref().unwrap().send(b"nobody hears\n");
        assert!(to_stderr.flush(DEADLINE));
        assert_eq!(to_stderr.lost(), LostLines { events: 1, access: 0 });
    }
}
