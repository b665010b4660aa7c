//! The access log: one line for every exchange, written when it ends.
//!
//! Owns, for each loop, the lines of its current turn and the free buffers of records. Once warm,
//! it allocates only for parts of a line that must be cut, makes no system call per line, and never
//! blocks a loop: full chunks, and the rest at the end of a turn, go to the log's thread.
//!
//! A line is shorter than [`LINE_BYTES_MAX`] whatever a peer sends, and a chunk is at most 64 KiB.

use std::{
    borrow::Cow,
    io::Write as _,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use super::{
    LogError, escape, event,
    output::Output,
    request_id::{RequestId, RequestIds},
    stamp::Stamp,
    tls_use::TlsUse,
    upstream_use::UpstreamUse,
    values::{push_address, push_json_value, push_number},
    worker::Note,
    writer::{LineOptions, LineWriter},
};
use crate::{
    config::{AccessFormat, LogConfig},
    duration::microseconds,
    http::{RequestHead, Version},
};

/// The access log of a process. Clones share one log, whose file stays open until the last clone
/// and the last writer are dropped.
#[derive(Clone, Debug)]
pub struct AccessLog {
    format: LineFormat,
    writer: LineWriter,
}

/// One loop's writer for the access log.
#[derive(Debug)]
pub struct AccessWriter {
    format: LineFormat,
    writer: LineWriter,
    ids: RequestIds,
    stamp: Stamp,
    lines: Vec<u8>,
    /// Buffers of finished records, for reuse.
    spare: Vec<Vec<u8>>,
}

/// What is kept of a request until its exchange ends. A dropped record leaves no line.
#[derive(Debug)]
#[must_use = "an exchange is logged when its record is finished"]
pub struct AccessRecord {
    id: RequestId,
    /// The request's part of the line, escaped.
    text: Vec<u8>,
    /// The offset of the time. A line is far shorter than 4 GiB.
    time_at: u32,
    /// The offset of the outcome.
    outcome_at: u32,
    /// The offset of what follows the outcome: TLS, and the upstream.
    tail_at: u32,
    /// The offset of the upstream's part.
    upstream_at: u32,
}

/// How an exchange went.
#[derive(Clone, Copy, Debug)]
pub struct AccessOutcome {
    /// The status of the answer; 0 if there was none.
    pub status: u16,
    /// Bytes of content that were sent.
    pub bytes: u64,
    /// From the complete request head to the end.
    pub duration: Duration,
    /// How it ended.
    pub end: End,
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The whole answer was sent.
    Complete,
    /// The peer left, or made no progress, or the answer's source failed.
    Aborted,
    /// The upstream did not give its whole answer.
    UpstreamBroke,
    /// The deadline of a drain came first.
    Cut,
}

/// No line is longer, including its line feed.
const LINE_BYTES_MAX: usize = 40 * 1024;

/// The lines of a turn are sent once they have this many bytes. With one more line a chunk has at
/// most 64 KiB.
const CHUNK_BYTES: usize = 24 * 1024;

/// The most bytes of access lines that wait for the disk: about 80,000 common lines.
const QUEUE_BYTES: usize = 16 * 1024 * 1024;

const _: () = assert!(CHUNK_BYTES + LINE_BYTES_MAX <= 64 * 1024);

/// How long the log's thread collects lines before a write.
const GATHER: Duration = Duration::from_millis(10);

/// How many record buffers a loop keeps, and how large a kept buffer may be.
const SPARE_RECORDS_MAX: usize = 256;
const SPARE_BYTES_MAX: usize = 1024;

/// The most bytes that are logged of each part of a request. A longer part is cut and ends in
/// `...`.
const METHOD_BYTES_MAX: usize = 32;
const TARGET_BYTES_MAX: usize = 4096;
const FIELD_BYTES_MAX: usize = 1024;
const CUT_MARK: &[u8] = b"...";

impl AccessLog {
    /// Opens the access log; none if it is off.
    ///
    /// # Errors
    /// If its file can't be opened.
    pub fn open(config: &LogConfig) -> Result<Option<Self>, LogError> {
        Self::open_after(None, config)
    }

    /// Like [`AccessLog::open`], but continues with the file of `old` if the path is the same.
    pub(super) fn open_after(
        old: Option<&Self>,
        config: &LogConfig,
    ) -> Result<Option<Self>, LogError> {
        let format = match config.access {
            AccessFormat::Off => return Ok(None),
            AccessFormat::Combined => LineFormat::Combined,
            AccessFormat::Json => LineFormat::Json,
        };
        let output = config.access_path.as_deref().map_or(Output::STDOUT, Output::of);
        let note = Box::new(move |out: &mut Vec<u8>, now, note: &Note<'_>| match note {
            Note::Lost { lines } => format.push_lost(out, now, *lines),
            Note::ReopenFailed { path, error } => {
                event!(Error, "log_reopen_failed", path:% = path.display(), error:% = error);
            }
        });
        let options =
            LineOptions { name: "log-access", queue_bytes: QUEUE_BYTES, gather: GATHER, note };
        let writer = LineWriter::open_after(old.map(Self::writer), output, options)?;
        Ok(Some(Self { format, writer }))
    }

    /// A writer for one more loop.
    pub fn for_loop(&self) -> AccessWriter {
        AccessWriter {
            format: self.format,
            writer: self.writer.clone(),
            ids: RequestIds::new(),
            stamp: Stamp::default(),
            lines: Vec::new(),
            spare: Vec::new(),
        }
    }

    pub(super) fn writer(&self) -> &LineWriter {
        &self.writer
    }
}

impl AccessWriter {
    /// Keeps what the line needs of a request. Without a head (there was none, or it was invalid)
    /// the line has only the peer; without an app, no app was found for the host.
    pub fn begin(
        &mut self,
        peer: IpAddr,
        head: Option<&RequestHead<'_>>,
        app: Option<&str>,
    ) -> AccessRecord {
        let (id, mut text) = (self.ids.next(), self.spare.pop().unwrap_or_default());
        let parts = Parts::of(head, app);
        let (time_at, outcome_at) = match self.format {
            LineFormat::Combined => parts.push_combined(&mut text, peer.to_canonical()),
            LineFormat::Json => parts.push_json(&mut text, peer.to_canonical()),
        };
        let (time_at, outcome_at, tail_at) = (time_at as u32, outcome_at as u32, text.len() as u32);
        AccessRecord { id, text, time_at, outcome_at, tail_at, upstream_at: tail_at }
    }

    /// Adds the TLS of the connection, right after the record has begun.
    pub(crate) fn note_tls(&self, record: &mut AccessRecord, used: &TlsUse<'_>) {
        match self.format {
            LineFormat::Combined => used.push_combined(&mut record.text),
            LineFormat::Json => used.push_json(&mut record.text),
        }
        record.upstream_at = record.text.len() as u32;
    }

    /// Adds the upstream that a request was forwarded to. Replaces an earlier note.
    pub(crate) fn note_upstream(&self, record: &mut AccessRecord, used: &UpstreamUse<'_>) {
        record.text.truncate(record.upstream_at as usize);
        match self.format {
            LineFormat::Combined => used.push_combined(&mut record.text),
            LineFormat::Json => used.push_json(&mut record.text),
        }
    }

    /// Writes the line of an exchange that ended at `now`.
    pub fn finish(&mut self, mut record: AccessRecord, outcome: &AccessOutcome, now: SystemTime) {
        self.stamp.set(now);
        match self.format {
            LineFormat::Combined => {
                push_combined_line(&mut self.lines, &self.stamp, &record, outcome);
            }
            LineFormat::Json => push_json_line(&mut self.lines, &self.stamp, &record, outcome),
        }
        if self.lines.len() >= CHUNK_BYTES {
            self.flush();
        }
        if self.spare.len() < SPARE_RECORDS_MAX && record.text.capacity() <= SPARE_BYTES_MAX {
            record.text.clear();
            self.spare.push(record.text);
        }
    }

    /// Sends the lines to the log's thread. Called at the end of every turn, and by dropping.
    pub fn flush(&mut self) {
        if !self.lines.is_empty() {
            self.writer.send(&self.lines);
            self.lines.clear();
        }
    }
}

impl AccessRecord {
    /// The request's id.
    pub fn id(&self) -> RequestId {
        self.id
    }
}

impl End {
    fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Aborted => "aborted",
            Self::UpstreamBroke => "upstream_broke",
            Self::Cut => "cut",
        }
    }
}

impl Drop for AccessWriter {
    fn drop(&mut self) {
        self.flush();
    }
}

/// The formats of [`AccessFormat`], without `Off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LineFormat {
    Combined,
    Json,
}

impl LineFormat {
    fn push_lost(self, out: &mut Vec<u8>, now: SystemTime, lines: u64) {
        let stamp = Stamp::of(now);
        match self {
            Self::Combined => {
                let time = stamp.common();
                let _ = write!(out, "- - - [{time}] \"-\" 000 0 \"-\" \"-\" lines_lost={lines}");
            }
            Self::Json => {
                out.extend_from_slice(b"{\"ts\":\"");
                stamp.push_rfc3339(out);
                let _ = write!(out, "\",\"lines_lost\":{lines}}}");
            }
        }
        out.push(b'\n');
    }
}

/// The request's parts of a line; an empty part is missing.
struct Parts<'a> {
    method: Part<'a>,
    target: Part<'a>,
    version: Option<Version>,
    /// These two were validated earlier: a host name contains nothing to escape.
    host: &'a [u8],
    app: &'a [u8],
    referer: Part<'a>,
    user_agent: Part<'a>,
}

type Part<'a> = Cow<'a, [u8]>;

impl<'a> Parts<'a> {
    fn of(head: Option<&'a RequestHead<'_>>, app: Option<&'a str>) -> Self {
        let app = app.unwrap_or_default().as_bytes();
        let Some(head) = head else {
            let [method, target, referer, user_agent] =
                [const { Part::Borrowed(b"".as_slice()) }; 4];
            return Self { method, target, version: None, host: b"", app, referer, user_agent };
        };
        let field = |name| part(head.field(name).unwrap_or_default(), FIELD_BYTES_MAX);
        Self {
            method: part(head.method().as_str().as_bytes(), METHOD_BYTES_MAX),
            target: part(head.target().as_bytes(), TARGET_BYTES_MAX),
            version: Some(head.version()),
            host: head.host().map_or(b"", |host| host.as_bytes()),
            app,
            referer: field("referer"),
            user_agent: field("user-agent"),
        }
    }

    /// The Combined Log Format, followed by `key=value` pairs, which its parsers ignore. Returns
    /// the offsets of the time and the status.
    fn push_combined(&self, out: &mut Vec<u8>, peer: IpAddr) -> (usize, usize) {
        push_address(out, peer);
        out.extend_from_slice(b" - - [");
        let time_at = out.len();
        out.extend_from_slice(b"] \"");
        escape::push_combined(out, or_dash(&self.method));
        if let Some(version) = self.version {
            out.push(b' ');
            escape::push_combined(out, or_dash(&self.target));
            out.push(b' ');
            out.extend_from_slice(protocol(version).as_bytes());
        }
        out.extend_from_slice(b"\" ");
        let status_at = out.len();
        out.extend_from_slice(b" \"");
        escape::push_combined(out, or_dash(&self.referer));
        out.extend_from_slice(b"\" \"");
        escape::push_combined(out, or_dash(&self.user_agent));
        out.extend_from_slice(b"\" host=");
        out.extend_from_slice(or_dash(self.host));
        out.extend_from_slice(b" app=");
        out.extend_from_slice(or_dash(self.app));
        out.extend_from_slice(b" duration_us=");
        (time_at, status_at)
    }

    /// One JSON object; a missing part is null. Returns the offsets of the time and the status.
    fn push_json(&self, out: &mut Vec<u8>, peer: IpAddr) -> (usize, usize) {
        out.extend_from_slice(b"{\"ts\":\"");
        let time_at = out.len();
        out.extend_from_slice(b"\",\"peer\":\"");
        push_address(out, peer);
        out.extend_from_slice(b"\",\"host\":");
        push_json_value(out, self.host);
        out.extend_from_slice(b",\"app\":");
        push_json_value(out, self.app);
        out.extend_from_slice(b",\"method\":");
        push_json_value(out, &self.method);
        out.extend_from_slice(b",\"target\":");
        push_json_value(out, &self.target);
        out.extend_from_slice(b",\"referer\":");
        push_json_value(out, &self.referer);
        out.extend_from_slice(b",\"user_agent\":");
        push_json_value(out, &self.user_agent);
        out.extend_from_slice(b",\"protocol\":");
        push_json_value(out, self.version.map_or("", protocol).as_bytes());
        out.extend_from_slice(b",\"status\":");
        (time_at, out.len())
    }
}

/// A part of a request, cut if it is too long.
fn part(bytes: &[u8], bytes_max: usize) -> Part<'_> {
    if bytes.len() <= bytes_max {
        return Part::Borrowed(bytes);
    }
    Part::Owned([&bytes[..bytes_max - CUT_MARK.len()], CUT_MARK].concat())
}

fn or_dash(part: &[u8]) -> &[u8] {
    if part.is_empty() { b"-" } else { part }
}

fn push_combined_line(
    out: &mut Vec<u8>,
    stamp: &Stamp,
    record: &AccessRecord,
    outcome: &AccessOutcome,
) {
    let (text, tail) = record.text.split_at(record.tail_at as usize);
    let (text, rest) = text.split_at(record.outcome_at as usize);
    let (before_time, before_status) = text.split_at(record.time_at as usize);
    out.extend_from_slice(before_time);
    out.extend_from_slice(stamp.common().as_bytes());
    out.extend_from_slice(before_status);
    if outcome.status == 0 {
        out.extend_from_slice(b"00");
    }
    push_number(out, outcome.status);
    out.push(b' ');
    push_number(out, outcome.bytes);
    out.extend_from_slice(rest);
    push_number(out, microseconds(outcome.duration));
    out.extend_from_slice(b" id=");
    record.id.push_digits(out);
    out.extend_from_slice(b" end=");
    out.extend_from_slice(outcome.end.as_str().as_bytes());
    out.extend_from_slice(tail);
    out.push(b'\n');
}

fn push_json_line(
    out: &mut Vec<u8>,
    stamp: &Stamp,
    record: &AccessRecord,
    outcome: &AccessOutcome,
) {
    let (text, tail) = record.text.split_at(record.tail_at as usize);
    let (before_time, before_status) = text.split_at(record.time_at as usize);
    out.extend_from_slice(before_time);
    stamp.push_rfc3339(out);
    out.extend_from_slice(before_status);
    push_number(out, outcome.status);
    out.extend_from_slice(b",\"bytes\":");
    push_number(out, outcome.bytes);
    out.extend_from_slice(b",\"duration_us\":");
    push_number(out, microseconds(outcome.duration));
    out.extend_from_slice(b",\"id\":\"");
    record.id.push_digits(out);
    out.extend_from_slice(b"\",\"end\":\"");
    out.extend_from_slice(outcome.end.as_str().as_bytes());
    out.push(b'"');
    out.extend_from_slice(tail);
    out.extend_from_slice(b"}\n");
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::Http10 => "HTTP/1.0",
        Version::Http11 => "HTTP/1.1",
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, fs, path::Path, time::UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;
    use crate::{
        config::LogFormat,
        http::{Host, Method, RequestContent},
        logging::writer::flush_all,
    };

    const OUTCOME: AccessOutcome = AccessOutcome {
        status: 200,
        bytes: 1234,
        duration: Duration::from_micros(1500),
        end: End::Complete,
    };

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(1_795_383_000_123)
    }

    fn config(path: &Path, access: AccessFormat) -> LogConfig {
        LogConfig {
            level: log::LevelFilter::Info,
            format: LogFormat::Text,
            path: None,
            access,
            access_path: Some(path.to_owned()),
        }
    }

    fn head<'a>(
        method: &'a str,
        target: &'a str,
        fields: &'a [httparse::Header<'a>],
    ) -> RequestHead<'a> {
        RequestHead {
            method: Method::from_token(method),
            target,
            path: target,
            query: None,
            version: Version::Http11,
            host: Host::parse(b"Shop.example:8080"),
            content: RequestContent::None,
            expects_continue: false,
            fields,
        }
    }

    /// The lines that `write` leaves in a new log.
    fn lines(access: AccessFormat, write: impl FnOnce(&mut AccessWriter)) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let log = AccessLog::open(&config(&path, access)).unwrap().unwrap();
        let mut writer = log.for_loop();
        write(&mut writer);
        drop(writer);
        assert!(flush_all([log.writer()], &[], Duration::from_secs(20)));
        assert_eq!(log.writer().lost(), 0);
        fs::read_to_string(&path).unwrap()
    }

    fn agent(value: &[u8]) -> [httparse::Header<'_>; 2] {
        [
            httparse::Header { name: "Referer", value: b"https://a.example/" },
            httparse::Header { name: "USER-AGENT", value },
        ]
    }

    #[test]
    fn a_combined_line() {
        let mut id = None;
        let written = lines(AccessFormat::Combined, |writer| {
            let fields = agent(b"curl \"8\" \xff");
            let head = head("GET", "/x?y=z", &fields);
            let peer = "::ffff:192.0.2.7".parse().unwrap();
            let record = writer.begin(peer, Some(&head), Some("shop.example"));
            id = Some(record.id());
            writer.finish(record, &OUTCOME, now());
        });
        let id = id.unwrap();
        assert_eq!(
            written,
            format!(
                "192.0.2.7 - - [22/Nov/2026:21:30:00 +0000] \"GET /x?y=z HTTP/1.1\" 200 1234 \
                 \"https://a.example/\" \"curl \\x228\\x22 \\xFF\" host=Shop.example \
                 app=shop.example duration_us=1500 id={id} end=complete\n"
            )
        );
        assert_eq!(id.to_string(), String::from_utf8_lossy(&id.digits()));
    }

    #[test]
    fn a_json_line() {
        let written = lines(AccessFormat::Json, |writer| {
            let fields = agent(b"curl \"8\" \xff");
            let head = head("GET", "/x?y=z", &fields);
            let peer = "2001:db8::1".parse().unwrap();
            let record = writer.begin(peer, Some(&head), Some("*.example"));
            writer.finish(record, &OUTCOME, now());
        });
        let mut read: serde_json::Value = serde_json::from_str(&written).unwrap();
        assert_eq!(read["id"].take().as_str().unwrap().len(), 16);
        assert_eq!(
            read,
            serde_json::json!({
                "ts": "2026-11-22T21:30:00.123Z", "peer": "2001:db8::1", "host": "Shop.example",
                "app": "*.example", "method": "GET", "target": "/x?y=z",
                "referer": "https://a.example/", "user_agent": "curl \"8\" \u{fffd}",
                "protocol": "HTTP/1.1", "status": 200, "bytes": 1234, "duration_us": 1500,
                "id": null, "end": "complete",
            })
        );
    }

    #[test]
    fn a_request_without_a_valid_head() {
        let write = |writer: &mut AccessWriter| {
            let record = writer.begin("192.0.2.7".parse().unwrap(), None, None);
            let outcome = AccessOutcome { status: 0, bytes: 0, end: End::Aborted, ..OUTCOME };
            writer.finish(record, &outcome, now());
        };
        let combined = lines(AccessFormat::Combined, write);
        let start = "192.0.2.7 - - [22/Nov/2026:21:30:00 +0000] \"-\" 000 0 \"-\" \"-\" \
                     host=- app=- duration_us=1500 id=";
        assert!(combined.starts_with(start) && combined.ends_with(" end=aborted\n"), "{combined}");
        let json = lines(AccessFormat::Json, write);
        let read: serde_json::Value = serde_json::from_str(&json).unwrap();
        for missing in ["host", "app", "method", "target", "protocol", "referer", "user_agent"] {
            assert!(read[missing].is_null(), "{missing}");
        }
    }

    #[test]
    fn a_reused_buffer_keeps_nothing_of_the_earlier_record() {
        let written = lines(AccessFormat::Combined, |writer| {
            let peer = "192.0.2.7".parse().unwrap();
            let fields = agent(b"first");
            let first = writer.begin(peer, Some(&head("PUT", "/first", &fields)), Some("first"));
            let buffer = first.text.as_ptr();
            writer.finish(first, &OUTCOME, now());
            let second = writer.begin(peer, Some(&head("GET", "/", &[])), None);
            assert_eq!(second.text.as_ptr(), buffer);
            writer.finish(second, &OUTCOME, now());
        });
        let second = written.lines().nth(1).unwrap();
        assert!(!second.contains("first"), "{second}");
        assert!(second.contains("\"GET / HTTP/1.1\" 200 1234 \"-\" \"-\" host=Shop.example app=-"));
    }

    #[test]
    fn the_longest_line_fits_whatever_a_peer_sends() {
        let long = vec![b'\x01'; 20_000];
        let text = str::from_utf8(&long).unwrap();
        for access in [AccessFormat::Combined, AccessFormat::Json] {
            let written = lines(access, |writer| {
                let fields = agent(&long);
                let fields = [fields[1], httparse::Header { name: "referer", value: &long }];
                let head = head(text, text, &fields);
                for _ in 0..10 {
                    let peer = "2001:db8::1".parse().unwrap();
                    let record = writer.begin(peer, Some(&head), Some("long.test"));
                    writer.finish(record, &OUTCOME, now());
                    assert!(writer.lines.len() < CHUNK_BYTES);
                    assert!(writer.spare.is_empty(), "a large buffer was kept");
                }
            });
            assert_eq!(written.lines().count(), 10);
            assert!(written.lines().all(|line| line.len() < LINE_BYTES_MAX));
            assert!(written.contains("..."));
        }
    }

    #[test]
    fn lost_lines_are_reported_in_the_format_of_the_log() {
        let mut out = Vec::new();
        LineFormat::Combined.push_lost(&mut out, now(), 17);
        assert_eq!(
            String::from_utf8_lossy(&out),
            "- - - [22/Nov/2026:21:30:00 +0000] \"-\" 000 0 \"-\" \"-\" lines_lost=17\n"
        );
        out.clear();
        LineFormat::Json.push_lost(&mut out, now(), 17);
        assert_eq!(
            String::from_utf8_lossy(&out),
            "{\"ts\":\"2026-11-22T21:30:00.123Z\",\"lines_lost\":17}\n"
        );
    }

    #[test]
    fn ids_differ_within_and_between_any_number_of_writers() {
        let mut long = [RequestIds::new(), RequestIds::new()];
        let of_two = (0..150_000).map(|request| long[request % 2].next());
        let mut ids: HashSet<RequestId> = of_two.collect();
        // As many writers as some years of reloads create.
        ids.extend((0..70_000).map(|_| RequestIds::new().next()));
        assert_eq!(ids.len(), 220_000);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn any_value_stays_on_its_line_and_in_its_place(value: Vec<u8>, target: String) {
            let write = |writer: &mut AccessWriter| {
                let fields = agent(&value);
                let head = head("GET", &target, &fields);
                let record = writer.begin("192.0.2.7".parse().unwrap(), Some(&head), None);
                writer.finish(record, &OUTCOME, now());
            };
            let json = lines(AccessFormat::Json, write);
            let read: serde_json::Value = serde_json::from_str(&json).unwrap();
            let lossy = String::from_utf8_lossy(&value);
            let expected = (!value.is_empty()).then_some(&*lossy);
            prop_assert_eq!(read["user_agent"].as_str(), expected);
            prop_assert_eq!(read["target"].as_str().unwrap_or_default(), &target);
            let combined = lines(AccessFormat::Combined, write);
            prop_assert_eq!(combined.matches('"').count(), 6);
            let (line, end) = combined.split_at(combined.len() - 1);
            prop_assert!(end == "\n" && line.bytes().all(|byte| matches!(byte, b' '..=b'~')));
        }
    }
}
