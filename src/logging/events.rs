//! Events: `time LEVEL event key=value …`, or one JSON object per line.
//!
//! An event is a record of the `log` facade, with the event's name as its message and its fields as
//! key-values; `event!` writes one. Other records (plain `log::warn!`) become the event `log` with
//! the fields `target` and `message`.
//!
//! Owns the logger behind the facade, whose settings can change while it logs. A value can never
//! end its line. Never formats or waits while it holds a lock.

use std::{
    borrow::Cow,
    env,
    io::{self, Write as _},
    sync::{Arc, OnceLock, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use anstyle::{AnsiColor, Style};
use log::{
    Level, LevelFilter, Log, Metadata, Record,
    kv::{self, Key, Value, VisitSource},
};
use simplelog::{ConfigBuilder, WriteLogger};

use super::{
    LogError, escape,
    event_fields::{Fields, JsonFields},
    output::Output,
    stamp::Stamp,
    worker::Note,
    writer::{LineOptions, LineWriter},
};
use crate::config::{LogConfig, LogFormat};

/// Logs an event: `event!(Info, "app_loaded", host = host, apps = 3)`.
///
/// Numbers, bools, strings and `Option`s of them are passed as they are; any other type with
/// `Display` as `key:% = value`. Durations are in milliseconds, with `_ms` in the key.
macro_rules! event {
    ($($event:tt)*) => { $crate::logging::event_to!($crate::logging::EVENT_TARGET, $($event)*) };
}
pub(crate) use event;

/// Like [`event!`], with an explicit target.
macro_rules! event_to {
    ($target:expr, $level:ident, $name:literal $(,)?) => {
        ::log::log!(target: $target, ::log::Level::$level, $name)
    };
    ($target:expr, $level:ident, $name:literal,
        $($key:ident $(:$how:tt)? = $value:expr),+ $(,)?) => {
        ::log::log!(
            target: $target,
            ::log::Level::$level,
            $($key $(:$how)? = $value),+;
            $name
        )
    };
}
pub(crate) use event_to;

/// Logs a stored event that operators have already received by other means: with this name, and the
/// members of a JSON object as fields.
pub(crate) fn log_kept(level: Level, name: &'static str, fields: &serde_json::Value) {
    let fields = KeptFields(fields);
    let mut record = Record::builder();
    record.target(NOTICE_TARGET).level(level).key_values(&fields);
    if level <= log::max_level() {
        log::logger().log(&record.args(format_args!("{name}")).build());
    }
}

/// The members of a JSON object as key-values of the facade.
struct KeptFields<'a>(&'a serde_json::Value);

impl kv::Source for KeptFields<'_> {
    fn visit<'kvs>(&'kvs self, visitor: &mut dyn VisitSource<'kvs>) -> Result<(), kv::Error> {
        use serde_json::Value as Json;
        for (key, value) in self.0.as_object().into_iter().flatten() {
            let value = match value {
                Json::Bool(value) => Value::from(*value),
                Json::String(value) => Value::from(&**value),
                Json::Number(value) => value.as_u64().map_or_else(
                    || value.as_i64().map_or_else(|| Value::from_display(value), Value::from),
                    Value::from,
                ),
                Json::Null => Value::null(),
                Json::Array(_) | Json::Object(_) => Value::from_display(value),
            };
            visitor.visit_pair(Key::from_str(key), value)?;
        }
        Ok(())
    }
}

/// The target of records that are events.
pub(crate) const EVENT_TARGET: &str = "tidegate::event";

/// The target of events that operators have already received: they bypass the [`Tap`].
pub(crate) const NOTICE_TARGET: &str = "tidegate::notice";

/// A receiver of events besides the log: level, name and fields. It must not log.
pub(crate) type Tap =
    Box<dyn Fn(Level, &str, serde_json::Map<String, serde_json::Value>) + Send + Sync>;

/// The lowest level that the tap receives, regardless of the log's level.
pub(super) const TAP_LEVEL: LevelFilter = LevelFilter::Info;

fn is_event(target: &str) -> bool {
    target == EVENT_TARGET || target == NOTICE_TARGET
}

/// The most bytes of events that wait for the disk.
const QUEUE_BYTES: usize = 1024 * 1024;

/// The log of events. Clones share one log.
#[derive(Clone, Debug)]
pub(super) struct EventLog {
    look: Look,
    writer: LineWriter,
}

/// How events are formatted.
#[derive(Clone, Copy, Debug)]
struct Look {
    format: LogFormat,
    /// Coloured text, for people at a terminal.
    is_coloured: bool,
}

impl Look {
    /// Colour is used on terminals only, and not if the user has disabled it (no-color.org).
    fn of(format: LogFormat, output: &Output) -> Self {
        let is_coloured = format == LogFormat::Text
            && output.is_terminal()
            && env::var_os("NO_COLOR").is_none_or(|set| set.is_empty())
            && env::var_os("TERM").is_none_or(|terminal| terminal != "dumb");
        Self { format, is_coloured }
    }

    fn style(self, style: Style) -> Style {
        if self.is_coloured { style } else { Style::new() }
    }
}

fn level_style(level: Level) -> Style {
    let colour = match level {
        Level::Error => AnsiColor::Red,
        Level::Warn => AnsiColor::Yellow,
        Level::Info => AnsiColor::Green,
        Level::Debug | Level::Trace => AnsiColor::Blue,
    };
    colour.on_default()
}

impl EventLog {
    /// Opens the log, or continues with `old` if it has the same file; none if the level is `off`.
    pub(super) fn open_after(
        old: Option<&Self>,
        config: &LogConfig,
    ) -> Result<Option<Self>, LogError> {
        if config.level == LevelFilter::Off {
            return Ok(None);
        }
        let output = config.path.as_deref().map_or(Output::STDERR, Output::of);
        let look = Look::of(config.format, &output);
        let note = Box::new(move |out: &mut Vec<u8>, now, note: &Note<'_>| {
            push_note(out, look, now, note);
        });
        let gather = Duration::ZERO;
        let options = LineOptions { name: "log-events", queue_bytes: QUEUE_BYTES, gather, note };
        let writer = LineWriter::open_after(old.map(Self::writer), output, options)?;
        Ok(Some(Self { look, writer }))
    }

    pub(super) fn writer(&self) -> &LineWriter {
        &self.writer
    }
}

/// Room for most lines without growing.
const LINE_BYTES: usize = 256;

/// The process's logger. Clones are the same logger.
#[derive(Clone, Default)]
pub(super) struct EventLogger {
    current: Arc<RwLock<Option<Arc<Lines>>>>,
    tap: Arc<OnceLock<Tap>>,
}

/// The current destination of lines, and their level.
///
/// The line is formatted outside; simplelog passes it on unchanged. Its lock is held only while the
/// line enters the queue.
struct Lines {
    look: Look,
    logger: Box<WriteLogger<LineSink>>,
}

impl EventLogger {
    /// From now on, sends records at or above `level` to `log`.
    pub(super) fn log_to(&self, log: Option<&EventLog>, level: LevelFilter) {
        let lines = log.map(|log| Arc::new(Lines::new(log, level)));
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = lines;
    }

    /// From now on, sends all events to `tap` too. Can be called once.
    pub(super) fn tap(&self, tap: Tap) {
        // With two servers in one process, the first gets the events that name no server.
        let _ = self.tap.set(tap);
    }

    fn tell(&self, record: &Record<'_>) {
        if record.target() == EVENT_TARGET
            && record.level() <= TAP_LEVEL
            && let Some(tap) = self.tap.get()
            && let Some(name) = record.args().as_str()
        {
            let mut fields = JsonFields::default();
            // Our visitor returns no errors.
            let _ = record.key_values().visit(&mut fields);
            tap(record.level(), name, fields.0);
        }
    }

    fn current(&self, metadata: &Metadata<'_>) -> Option<Arc<Lines>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().filter(|lines| lines.logger.enabled(metadata)).cloned()
    }
}

impl Lines {
    fn new(log: &EventLog, level: LevelFilter) -> Self {
        let message_only = ConfigBuilder::new()
            .set_time_level(LevelFilter::Off)
            .set_max_level(LevelFilter::Off)
            .set_thread_level(LevelFilter::Off)
            .set_target_level(LevelFilter::Off)
            .set_location_level(LevelFilter::Off)
            .build();
        let sink = LineSink { writer: log.writer.clone(), line: Vec::new() };
        Self { look: log.look, logger: WriteLogger::new(level, message_only, sink) }
    }
}

impl Log for EventLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.current(metadata).is_some()
    }

    fn log(&self, record: &Record<'_>) {
        self.tell(record);
        let Some(lines) = self.current(record.metadata()) else { return };
        let mut line = Vec::with_capacity(LINE_BYTES);
        push_record(&mut line, lines.look, SystemTime::now(), record);
        let (line, metadata) = (String::from_utf8_lossy(&line), record.metadata().clone());
        lines
            .logger
            .log(&Record::builder().metadata(metadata).args(format_args!("{line}")).build());
    }

    /// Does nothing, because it can't have a time-out: see [`super::Logging::flush`].
    fn flush(&self) {}
}

/// Collects what simplelog writes, and sends whole lines.
struct LineSink {
    writer: LineWriter,
    line: Vec<u8>,
}

impl io::Write for LineSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        // Line feeds within a line are escaped.
        if self.line.ends_with(b"\n") {
            self.writer.send(&self.line);
            self.line.clear();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Appends a record's line, without a line feed.
fn push_record(out: &mut Vec<u8>, look: Look, now: SystemTime, record: &Record<'_>) {
    // The name is a literal, except for a stored event.
    let name =
        || record.args().as_str().map_or_else(|| record.args().to_string().into(), Cow::from);
    let event = is_event(record.target()).then(name);
    push_line(out, look, now, record.level(), event.as_deref().unwrap_or("log"), |fields| {
        if event.is_none() {
            fields.push_pair("target", record.target());
            fields.push_pair("message", &record.args().to_string());
        }
        // Our visitor returns no errors. If a foreign source fails, its fields end there.
        let _ = record.key_values().visit(fields);
    });
}

fn push_note(out: &mut Vec<u8>, look: Look, now: SystemTime, note: &Note<'_>) {
    match note {
        Note::Lost { lines } => {
            push_line(out, look, now, Level::Warn, "log_lines_lost", |fields| {
                fields.push_key("lines");
                let _ = fields.push_plain(lines);
            });
        }
        Note::ReopenFailed { path, error } => {
            push_line(out, look, now, Level::Error, "log_reopen_failed", |fields| {
                fields.push_pair("path", &path.display().to_string());
                fields.push_pair("error", &error.to_string());
            });
        }
    }
    out.push(b'\n');
}

fn push_line(
    out: &mut Vec<u8>,
    look: Look,
    now: SystemTime,
    level: Level,
    event: &str,
    push_fields: impl FnOnce(&mut Fields<'_>),
) {
    let format = look.format;
    match format {
        LogFormat::Text => {
            let time = look.style(Style::new().dimmed());
            let name = look.style(Style::new().bold());
            let style = look.style(level_style(level));
            let _ = write!(out, "{time}");
            Stamp::of(now).push_rfc3339(out);
            let _ = write!(out, "{time:#} {style}{level}{style:#} {name}{event}{name:#}");
            push_fields(&mut Fields { out, format, is_first: true });
        }
        LogFormat::Json => {
            out.extend_from_slice(b"{\"ts\":\"");
            Stamp::of(now).push_rfc3339(out);
            let pid = std::process::id();
            let _ = write!(out, "\",\"level\":\"{level}\",\"pid\":{pid},\"event\":");
            escape::push_json_string(out, event.as_bytes());
            out.extend_from_slice(b",\"fields\":{");
            push_fields(&mut Fields { out, format, is_first: true });
            out.extend_from_slice(b"}}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, time::UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;
    use crate::config::AccessFormat;

    const NOW_MS: u64 = 1_795_383_000_123;

    #[test]
    fn an_event_has_colour_only_on_a_terminal_that_wants_it() {
        let look = |is_coloured| Look { format: LogFormat::Text, is_coloured };
        let line = |look| {
            let mut out = Vec::new();
            push_note(&mut out, look, UNIX_EPOCH, &Note::Lost { lines: 3 });
            String::from_utf8(out).unwrap()
        };
        let coloured = line(look(true));
        assert!(coloured.contains("\x1b[33mWARN\x1b[0m \x1b[1mlog_lines_lost\x1b[0m lines=3"));
        let stripped = anstream::adapter::strip_str(&coloured).to_string();
        assert_eq!(stripped, line(look(false)));
        let file = Output::File("tidegate.log".into());
        assert!(!Look::of(LogFormat::Text, &file).is_coloured);
        assert!(!Look::of(LogFormat::Json, &Output::STDERR).is_coloured);
    }

    fn plain(format: LogFormat) -> Look {
        Look { format, is_coloured: false }
    }

    fn line(format: LogFormat, record: &Record<'_>) -> String {
        let mut out = Vec::new();
        push_record(&mut out, plain(format), UNIX_EPOCH + Duration::from_millis(NOW_MS), record);
        String::from_utf8(out).unwrap()
    }

    /// Both formats of an event with these fields.
    fn event_lines(fields: &[(&str, Value<'_>)]) -> [String; 2] {
        [LogFormat::Text, LogFormat::Json].map(|format| {
            let mut record = Record::builder();
            record.target(EVENT_TARGET).level(Level::Info).key_values(&fields);
            line(format, &record.args(format_args!("app_loaded")).build())
        })
    }

    fn config(path: &Path, level: LevelFilter) -> LogConfig {
        LogConfig {
            level,
            format: LogFormat::Text,
            path: Some(path.to_owned()),
            access: AccessFormat::Off,
            access_path: None,
        }
    }

    #[test]
    fn an_event_in_both_formats() {
        let address: std::net::SocketAddr = "[::1]:80".parse().unwrap();
        let [text, json] = event_lines(&[
            ("host", Value::from("shop.example")),
            ("active_connections", Value::from(5)),
            ("offset", Value::from(-1_i64)),
            ("share", Value::from(0.5)),
            ("none", Value::from(f64::NAN)),
            ("missing", Value::null()),
            ("wait", Value::from(true)),
            ("mark", Value::from('=')),
            ("listen", Value::from_display(&address)),
            ("error", Value::from("No such file (os error 2)\n")),
        ]);
        assert_eq!(
            text,
            "2026-11-22T21:30:00.123Z INFO app_loaded host=shop.example active_connections=5 \
             offset=-1 share=0.5 none=- missing=- wait=true mark=\"=\" listen=[::1]:80 \
             error=\"No such file (os error 2)\\n\""
        );
        assert_eq!(
            json,
            format!(
                "{{\"ts\":\"2026-11-22T21:30:00.123Z\",\"level\":\"INFO\",\"pid\":{},",
                std::process::id()
            ) + "\"event\":\"app_loaded\",\
             \"fields\":{\"host\":\"shop.example\",\"active_connections\":5,\"offset\":-1,\
             \"share\":0.5,\"none\":null,\"missing\":null,\"wait\":true,\"mark\":\"=\",\
             \"listen\":\"[::1]:80\",\"error\":\"No such file (os error 2)\\n\"}}"
        );
    }

    #[test]
    fn an_event_without_fields() {
        let [text, json] = event_lines(&[]);
        assert_eq!(text, "2026-11-22T21:30:00.123Z INFO app_loaded");
        assert!(json.ends_with("\"event\":\"app_loaded\",\"fields\":{}}"), "{json}");
    }

    #[test]
    fn a_plain_log_record() {
        let number = 7;
        let [text, json] = [LogFormat::Text, LogFormat::Json].map(|format| {
            let mut record = Record::builder();
            record.target("some::crate").level(Level::Warn).key_values(&[("a", 1)]);
            line(format, &record.args(format_args!("odd \"{number}\"\nINFO fake")).build())
        });
        assert_eq!(
            text,
            "2026-11-22T21:30:00.123Z WARN log target=some::crate \
             message=\"odd \\\"7\\\"\\nINFO fake\" a=1"
        );
        let read: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(read["event"], "log");
        assert_eq!(read["fields"]["message"], "odd \"7\"\nINFO fake");
        assert_eq!(read["fields"]["a"], 1);
    }

    #[test]
    fn notes_are_events() {
        let error = io::Error::other("gone");
        let notes = [
            Note::Lost { lines: 3 },
            Note::ReopenFailed { path: Path::new("/var/log/a b"), error: &error },
        ];
        let mut out = Vec::new();
        for note in &notes {
            push_note(&mut out, plain(LogFormat::Text), UNIX_EPOCH, note);
        }
        assert_eq!(
            String::from_utf8_lossy(&out),
            "1970-01-01T00:00:00.000Z WARN log_lines_lost lines=3\n\
             1970-01-01T00:00:00.000Z ERROR log_reopen_failed path=\"/var/log/a b\" error=gone\n"
        );
        out.clear();
        push_note(&mut out, plain(LogFormat::Json), UNIX_EPOCH, &notes[0]);
        let read: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(read["fields"], serde_json::json!({ "lines": 3 }));
    }

    #[test]
    fn the_logger_writes_records_at_its_level_or_above() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.log");
        let config = config(&path, LevelFilter::Info);
        let log = EventLog::open_after(None, &config).unwrap().unwrap();
        let logger = EventLogger::default();
        logger.log_to(Some(&log), config.level);
        for level in [Level::Error, Level::Info, Level::Debug] {
            let mut record = Record::builder();
            record.level(level).target(EVENT_TARGET);
            logger.log(&record.args(format_args!("server_start")).build());
        }
        assert!(super::super::writer::flush_all([log.writer()], &[], Duration::from_secs(20)));
        let written = fs::read_to_string(&path).unwrap();
        let ends: Vec<_> = written.lines().map(|line| &line[24..]).collect();
        assert_eq!(ends, [" ERROR server_start", " INFO server_start"]);
    }

    proptest! {
        #[test]
        fn values_come_back_from_json(value: String, number: u64, sign: i64, flag: bool) {
            let [text, json] = event_lines(&[
                ("value", Value::from(value.as_str())),
                ("number", Value::from(number)),
                ("sign", Value::from(sign)),
                ("flag", Value::from(flag)),
            ]);
            let read: serde_json::Value = serde_json::from_str(&json).unwrap();
            let fields = serde_json::json!({
                "value": value, "number": number, "sign": sign, "flag": flag
            });
            prop_assert_eq!(&read["fields"], &fields);
            prop_assert!(!text.chars().chain(json.chars()).any(char::is_control));
        }
    }
}
