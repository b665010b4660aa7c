//! The sending side of a log: takes whole lines from any thread for the log's own thread.
//!
//! Owns the queue in front of that thread ([`super::worker`]).
//!
//! - A sender never blocks: a line that finds the queue full is lost, counted, and reported in the
//!   log.
//! - The queue is bounded by bytes, so a stalled disk costs a known amount of memory, and small
//!   chunks survive a stall as long as large ones.
//! - A write error never ends the thread: the lines are counted as lost, and reported once writing
//!   works again. After half a line, the next line starts on a line of its own.
//! - Chunks keep their order and are never interleaved.
//! - A replaced log writes everything it was sent before its file closes.
//! - Only [`LineWriter::open`] waits for a disk, with a time-out.

use std::{
    fmt,
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
    time::Duration,
};

use crossbeam_channel::{Receiver, Sender, TryRecvError, after, bounded, select_biased, unbounded};

use super::{
    LogError,
    output::{OPEN_TIMEOUT, Output, Sink},
    worker::{CHUNK_OVERHEAD_BYTES, Message, NoteFormat, Shared, count_lines},
};

/// The sending side of a log. Clones send to the same log. The thread ends after the last clone.
#[derive(Clone, Debug)]
pub(super) struct LineWriter {
    way: Arc<Way>,
}

/// Replaced logs. Each ends when its last writer is dropped.
#[derive(Clone, Debug, Default)]
pub(super) struct RetiredLogs {
    logs: Vec<Retired>,
    /// The losses of logs that have ended.
    lost: u64,
}

/// The settings of a log besides its output.
pub(super) struct LineOptions {
    /// The thread's name, at most 15 bytes.
    pub(super) name: &'static str,
    /// The most bytes that wait for the disk, including [`CHUNK_OVERHEAD_BYTES`] per chunk.
    pub(super) queue_bytes: usize,
    /// How long lines are collected before a write, to save wake-ups and writes.
    pub(super) gather: Duration,
    /// Formats the writer's notes in the log's own format.
    pub(super) note: NoteFormat,
}

/// The losses of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Losses {
    /// Lines lost since the start.
    pub(crate) lost: u64,
    /// How many of them the log itself has reported; fewer while lines are being lost.
    pub(crate) reported: u64,
    /// Where the log goes.
    pub(crate) output: String,
    /// Why writing fails; none if it hangs or is too slow.
    pub(crate) failure: Option<String>,
}

impl LineWriter {
    /// Opens the output and starts its thread.
    pub(super) fn open(output: Output, options: LineOptions) -> Result<Self, LogError> {
        let opened = output.open_within(OPEN_TIMEOUT);
        let sink = opened.map_err(|error| LogError::Open { output: output.to_string(), error })?;
        Self::start(sink, output, options)
    }

    /// Like [`LineWriter::open`], for any sink. A sink for a file can be reopened.
    fn start(sink: Sink, output: Output, options: LineOptions) -> Result<Self, LogError> {
        let LineOptions { name, queue_bytes, gather, note } = options;
        let (queue, messages) = unbounded();
        let (ends, ended) = bounded(0);
        let shared = Shared::new((name, output), (queue_bytes, messages), (gather, note), ends);
        let shared = Arc::new(shared);
        shared.begin(sink).map_err(LogError::Thread)?;
        Ok(Self { way: Arc::new(Way { queue, shared, ended }) })
    }

    /// The writer for new settings: `old` if the output is the same, otherwise a new one.
    pub(super) fn open_after(
        old: Option<&Self>,
        output: Output,
        options: LineOptions,
    ) -> Result<Self, LogError> {
        let Some(same) = old.filter(|old| old.way.shared.output == output) else {
            return Self::open(output, options);
        };
        // Fails only if the thread has ended; then there is nothing to format.
        let _ = same.way.queue.send(Message::Notes(options.note));
        Ok(same.clone())
    }

    /// Whether the two are clones of one writer.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.way, &other.way)
    }

    /// Sends whole lines, each with its line feed, as one chunk. Never blocks.
    pub(super) fn send(&self, lines: &[u8]) {
        let Way { queue, shared, .. } = &*self.way;
        let cost = lines.len() + CHUNK_OVERHEAD_BYTES;
        let queued = shared.queued_bytes.fetch_add(cost, Relaxed);
        let is_sent = queued + cost <= shared.queue_bytes_max
            && queue.send(Message::Lines(lines.to_vec())).is_ok();
        if !is_sent {
            shared.queued_bytes.fetch_sub(cost, Relaxed);
            shared.lost.fetch_add(count_lines(lines), Relaxed);
        }
    }

    /// Opens the file again by its path, after the lines sent so far. Returns at once. If opening
    /// fails or hangs, the old file stays in use and a note reports it. Streams stay open.
    pub(super) fn reopen(&self) {
        let Way { queue, shared, .. } = &*self.way;
        if let Output::File(_) = shared.output {
            // Fails only if the thread has ended; then there is nothing to reopen.
            let _ = queue.send(shared.reopen());
        }
    }

    /// Where the log goes.
    pub(super) fn output(&self) -> &Output {
        &self.way.shared.output
    }

    /// How many lines were lost so far, because the queue was full or a write failed.
    pub(super) fn lost(&self) -> u64 {
        self.way.shared.lost.load(Relaxed)
    }

    /// The losses with all details.
    pub(super) fn losses(&self) -> Losses {
        let shared = &self.way.shared;
        Losses {
            lost: shared.lost.load(Relaxed),
            reported: shared.reported.load(Relaxed),
            output: shared.output.to_string(),
            failure: shared.failure(),
        }
    }

    /// Counts all waiting lines as lost: see [`Shared::give_up`].
    pub(super) fn give_up(&self) -> u64 {
        self.way.shared.give_up()
    }
}

impl RetiredLogs {
    /// Adds `old`, unless `new` is the same log. It ends once its last writer is dropped and its
    /// lines are written.
    pub(super) fn add_unless_same(&mut self, old: Option<&LineWriter>, new: Option<&LineWriter>) {
        self.forget_ended();
        let Some(old) = old.filter(|old| !new.is_some_and(|new| new.is_same(old))) else { return };
        let Way { shared, ended, .. } = &*old.way;
        let (shared, ended) = (Arc::clone(shared), ended.clone());
        self.logs.push(Retired { way: Arc::downgrade(&old.way), shared, ended });
    }

    /// How many lines all of these logs lost.
    pub(super) fn lost(&self) -> u64 {
        self.lost + self.logs.iter().map(|log| log.shared.lost.load(Relaxed)).sum::<u64>()
    }

    /// Counts all waiting lines as lost: see [`Shared::give_up`].
    pub(super) fn give_up(&self) -> u64 {
        self.logs.iter().map(|log| log.shared.give_up()).sum()
    }

    fn forget_ended(&mut self) {
        let Self { logs, lost } = self;
        logs.retain(|log| {
            let has_ended = log.ended.try_recv() == Err(TryRecvError::Disconnected);
            if has_ended {
                *lost += log.shared.lost.load(Relaxed);
            }
            !has_ended
        });
    }
}

/// Waits until everything sent to these logs so far is written or counted as lost. Returns false on
/// time-out.
pub(super) fn flush_all<'a>(
    writers: impl IntoIterator<Item = &'a LineWriter>,
    retired: &[RetiredLogs],
    timeout: Duration,
) -> bool {
    let deadline = after(timeout);
    let (done, flushed) = bounded::<()>(0);
    for writer in writers {
        let _ = writer.way.queue.send(Message::Flush(done.clone()));
    }
    let mut waits = vec![&flushed];
    for log in retired.iter().flat_map(|retired| &retired.logs) {
        match log.way.upgrade() {
            Some(way) => drop(way.queue.send(Message::Flush(done.clone()))),
            None => waits.push(&log.ended),
        }
    }
    // Nothing is sent over these channels: each closes when its worker drops the other end.
    drop(done);
    waits.into_iter().all(|closed| {
        select_biased! {
            recv(closed) -> _ => true,
            recv(deadline) -> _ => false,
        }
    })
}

/// The state that clones of a writer share.
struct Way {
    queue: Sender<Message>,
    shared: Arc<Shared>,
    /// Closes when the thread has ended.
    ended: Receiver<()>,
}

/// A replaced log. It doesn't keep its file open; only its writers do.
#[derive(Clone)]
struct Retired {
    way: Weak<Way>,
    shared: Arc<Shared>,
    ended: Receiver<()>,
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Way({})", self.shared.output)
    }
}

impl fmt::Debug for Retired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Retired({})", self.shared.output)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{self, Read, Write},
        path::Path,
        slice,
        sync::{
            Mutex,
            atomic::{AtomicBool, Ordering::SeqCst},
        },
        thread,
        time::Instant,
    };

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::{super::worker::Note, *};

    const DEADLINE: Duration = Duration::from_secs(20);

    fn options(queue_bytes: usize) -> LineOptions {
        let note = |out: &mut Vec<u8>, _, note: &Note<'_>| match note {
            Note::Lost { lines } => writeln!(out, "lost {lines}").unwrap(),
            Note::ReopenFailed { .. } => out.extend_from_slice(b"reopen failed\n"),
        };
        LineOptions { name: "log-test", queue_bytes, gather: Duration::ZERO, note: Box::new(note) }
    }

    fn start(sink: impl Write + Send + 'static) -> LineWriter {
        LineWriter::start(Sink::alone(sink), Output::STDERR, options(1 << 20)).unwrap()
    }

    fn open(path: &Path) -> LineWriter {
        LineWriter::open(Output::File(path.to_owned()), options(1 << 20)).unwrap()
    }

    fn flush(writer: &LineWriter) {
        assert!(flush_all([writer], &[], DEADLINE));
    }

    /// What a sink received, shared with the test.
    #[derive(Clone, Default)]
    struct Taken(Arc<Mutex<Vec<u8>>>);

    impl Taken {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Taken {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A sink that reports the beginning of a write, and blocks every write until the gate's sender
    /// is dropped.
    struct Gated {
        entered: Sender<()>,
        gate: Receiver<()>,
        taken: Taken,
    }

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.entered.send(());
            let _ = self.gate.recv();
            self.taken.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A sink that accepts a few bytes and then fails, until it is repaired.
    struct Failing {
        is_ill: Arc<AtomicBool>,
        bytes_left: usize,
        taken: Taken,
    }

    impl Write for Failing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if !self.is_ill.load(SeqCst) {
                return self.taken.write(bytes);
            }
            let count = bytes.len().min(self.bytes_left);
            self.bytes_left -= count;
            match self.taken.write(&bytes[..count])? {
                0 => Err(io::ErrorKind::StorageFull.into()),
                count => Ok(count),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_queue_loses_lines_and_reports_how_many() {
        let (entered, has_entered) = unbounded();
        let (gate_keeper, gate) = bounded(0);
        let taken = Taken::default();
        let sink = Gated { entered, gate, taken: taken.clone() };
        let queue_bytes = 3 * (CHUNK_OVERHEAD_BYTES + 4);
        let writer =
            LineWriter::start(Sink::alone(sink), Output::STDERR, options(queue_bytes)).unwrap();
        writer.send(b"1st\n");
        has_entered.recv_timeout(DEADLINE).unwrap();
        for _ in 0..3 {
            writer.send(b"2nd\n");
        }
        writer.send(b"3\n3\n");
        writer.send(b"3rd\n");
        assert_eq!(writer.lost(), 3);
        assert!(!flush_all([&writer], &[], Duration::from_millis(1)));
        drop(gate_keeper);
        flush(&writer);
        writer.send(b"4th\n");
        flush(&writer);
        assert_eq!(taken.text(), "1st\nlost 3\n2nd\n2nd\n2nd\n4th\n");
        assert_eq!(writer.lost(), 3);
        assert_eq!(writer.way.shared.queued_bytes.load(SeqCst), 0);
    }

    #[test]
    fn a_failing_disk_loses_lines_until_it_works_again() {
        let is_ill = Arc::new(AtomicBool::new(true));
        let taken = Taken::default();
        let writer = start(Failing { is_ill: is_ill.clone(), bytes_left: 8, taken: taken.clone() });
        writer.send(b"whole\ntorn line\nlost\n");
        flush(&writer);
        assert_eq!((taken.text().as_str(), writer.lost()), ("whole\nto", 2));
        writer.send(b"lost too\n");
        flush(&writer);
        assert_eq!(writer.lost(), 3);
        is_ill.store(false, SeqCst);
        writer.send(b"well\n");
        flush(&writer);
        assert_eq!(taken.text(), "whole\nto\nlost 3\nwell\n");
        assert_eq!(writer.lost(), 3);
    }

    #[test]
    fn losses_are_reported_even_if_no_line_follows() {
        let is_ill = Arc::new(AtomicBool::new(true));
        let taken = Taken::default();
        let writer = start(Failing { is_ill: is_ill.clone(), bytes_left: 0, taken: taken.clone() });
        writer.send(b"lost\n");
        flush(&writer);
        is_ill.store(false, SeqCst);
        flush(&writer);
        assert_eq!(taken.text(), "lost 1\n");
    }

    #[test]
    fn a_full_disk_and_a_broken_pipe_only_lose_lines() {
        let (reader, broken) = io::pipe().unwrap();
        drop(reader);
        for writer in [open(Path::new("/dev/full")), start(broken)] {
            for sent in 1..=3 {
                writer.send(b"line\n");
                flush(&writer);
                assert_eq!(writer.lost(), sent);
            }
        }
    }

    #[test]
    fn a_pipe_without_a_reader_blocks_no_sender() {
        let (reader, pipe) = io::pipe().unwrap();
        let writer =
            LineWriter::start(Sink::alone(pipe), Output::STDERR, options(256 * 1024)).unwrap();
        let chunk = vec![b'\n'; 64 * 1024];
        for _ in 0..100 {
            writer.send(&chunk);
        }
        assert!(writer.lost() > 0);
        assert!(!flush_all([&writer], &[], Duration::from_millis(1)));
        drop(reader);
        flush(&writer);
    }

    #[test]
    fn reopen_continues_in_a_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let [path, rotated] = ["a.log", "a.log.1"].map(|name| dir.path().join(name));
        let writer = open(&path);
        writer.send(b"old\n");
        flush(&writer);
        fs::rename(&path, &rotated).unwrap();
        writer.send(b"still old\n");
        writer.reopen();
        writer.send(b"new\n");
        flush(&writer);
        assert_eq!(fs::read_to_string(&rotated).unwrap(), "old\nstill old\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "new\n");
    }

    #[test]
    fn a_failed_reopen_keeps_the_old_file_and_reports_it() {
        let dir = tempfile::tempdir().unwrap();
        let [path, rotated] = ["a.log", "a.log.1"].map(|name| dir.path().join(name));
        let writer = open(&path);
        fs::rename(&path, &rotated).unwrap();
        fs::create_dir(&path).unwrap();
        writer.reopen();
        writer.send(b"on\n");
        flush(&writer);
        assert_eq!(fs::read_to_string(&rotated).unwrap(), "reopen failed\non\n");
        assert_eq!(writer.lost(), 0);
    }

    #[test]
    fn a_file_is_appended_to_and_its_folder_must_exist() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        fs::write(&path, "before\n").unwrap();
        let writer = open(&path);
        writer.send(b"after\n");
        flush(&writer);
        assert_eq!(fs::read_to_string(&path).unwrap(), "before\nafter\n");

        let missing = dir.path().join("missing/a.log");
        let error = LineWriter::open(Output::File(missing.clone()), options(0)).unwrap_err();
        let reason = "No such file or directory (os error 2)";
        assert_eq!(error.to_string(), format!("cannot open log {}: {reason}", missing.display()));
    }

    #[test]
    fn chunks_of_two_threads_stay_whole_and_in_order() {
        let taken = Taken::default();
        let writer = start(taken.clone());
        thread::scope(|scope| {
            for name in ["a", "b"] {
                let writer = &writer;
                scope.spawn(move || {
                    for number in 0..2000 {
                        writer.send(format!("{name} {number}\n{name} {number} end\n").as_bytes());
                    }
                });
            }
        });
        flush(&writer);
        let text = taken.text();
        let mut next = [0, 0];
        for chunk in text.lines().collect::<Vec<_>>().chunks(2) {
            let index = usize::from(chunk[0].starts_with('b'));
            let expected = format!("{} {}", ["a", "b"][index], next[index]);
            assert_eq!(chunk, [expected.clone(), format!("{expected} end")]);
            next[index] += 1;
        }
        assert_eq!((next, writer.lost()), ([2000, 2000], 0));
    }

    #[test]
    fn everything_sent_is_written_even_after_the_last_sender() {
        let (reader, pipe) = io::pipe().unwrap();
        let writer = start(pipe);
        writer.send(b"last words\n");
        drop(writer);
        assert_eq!(io::read_to_string(reader).unwrap(), "last words\n");
    }

    #[test]
    fn flush_waits_for_a_retired_log_to_write_everything() {
        let (entered, has_entered) = unbounded();
        let (gate_keeper, gate) = bounded(0);
        let taken = Taken::default();
        let writer = start(Gated { entered, gate, taken: taken.clone() });
        writer.send(b"old\n");
        has_entered.recv_timeout(DEADLINE).unwrap();
        let mut retired = RetiredLogs::default();
        retired.add_unless_same(Some(&writer), None);
        writer.send(b"late\n");
        // First while a writer holds the log open, then without one.
        assert!(!flush_all([], slice::from_ref(&retired), Duration::from_millis(1)));
        drop(writer);
        assert!(!flush_all([], slice::from_ref(&retired), Duration::from_millis(1)));
        drop(gate_keeper);
        assert!(flush_all([], slice::from_ref(&retired), DEADLINE));
        assert_eq!(taken.text(), "old\nlate\n");
        assert!(flush_all([], slice::from_ref(&retired), Duration::ZERO), "it has ended");
    }

    #[test]
    fn losses_of_retired_logs_are_counted_even_after_their_end() {
        let mut retired = RetiredLogs::default();
        for round in 1..=3 {
            let writer = open(Path::new("/dev/full"));
            writer.send(b"lost\n");
            retired.add_unless_same(Some(&writer), None);
            drop(writer);
            assert!(flush_all([], slice::from_ref(&retired), DEADLINE));
            assert_eq!(retired.lost(), round);
            assert_eq!(retired.logs.len(), 1, "the ones before are forgotten");
        }
    }

    #[test]
    fn notes_change_their_format_after_the_earlier_lines() {
        let taken = Taken::default();
        let writer =
            LineWriter::start(Sink::alone(taken.clone()), Output::STDERR, options(0)).unwrap();
        writer.send(b"1\n");
        flush(&writer);
        let note: NoteFormat = Box::new(|out, _, _| out.extend_from_slice(b"another\n"));
        let again = LineOptions { note, ..options(0) };
        let same = LineWriter::open_after(Some(&writer), Output::STDERR, again).unwrap();
        assert!(same.is_same(&writer));
        writer.send(b"2\n");
        flush(&writer);
        assert_eq!(taken.text(), "lost 1\nanother\n");
    }

    fn make_fifo(path: &Path) {
        mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    }

    /// Waits until a write to a full pipe has begun and hangs.
    fn fill_up(writer: &LineWriter) {
        let until = Instant::now() + DEADLINE;
        writer.send(&b"hangs\n".repeat(50_000));
        while !flush_all([writer], &[], Duration::ZERO)
            && writer.way.shared.queued_bytes.load(SeqCst) > 0
        {
            assert!(Instant::now() < until);
            thread::yield_now();
        }
    }

    #[test]
    fn a_reopen_leaves_a_hanging_writer_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        make_fifo(&path);
        let reader = fs::File::options().read(true).write(true).open(&path).unwrap();
        let writer = open(&path);
        fill_up(&writer);
        writer.send(b"waits\n");
        assert!(!flush_all([&writer], &[], Duration::from_millis(50)), "it does not hang");
        fs::remove_file(&path).unwrap();
        writer.reopen();
        flush(&writer);
        assert_eq!(writer.lost(), 50_000, "what became of that write is unknown");
        assert_eq!(fs::read_to_string(&path).unwrap(), "lost 50000\nwaits\n");
        // The writer that was left behind ends and changes nothing.
        let mut reader = reader;
        reader.read_exact(&mut vec![0; 6 * 50_000]).unwrap();
        writer.send(b"on\n");
        flush(&writer);
        assert_eq!(writer.lost(), 50_000);
        assert!(fs::read_to_string(&path).unwrap().ends_with("on\n"));
    }

    #[test]
    fn a_fifo_at_a_rotation_keeps_the_old_file_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let [path, rotated] = ["a.log", "a.log.1"].map(|name| dir.path().join(name));
        let writer = open(&path);
        fs::rename(&path, &rotated).unwrap();
        make_fifo(&path);
        writer.reopen();
        writer.send(b"kept\n");
        flush(&writer);
        assert_eq!(fs::read_to_string(&rotated).unwrap(), "reopen failed\nkept\n");
        fs::remove_file(&path).unwrap();
        writer.reopen();
        writer.send(b"new\n");
        flush(&writer);
        assert_eq!(fs::read_to_string(&path).unwrap(), "new\n");
    }

    #[test]
    fn giving_up_counts_lines_of_a_hanging_writer_as_lost() {
        let (reader, pipe) = io::pipe().unwrap();
        let writer = start(pipe);
        fill_up(&writer);
        writer.send(b"waits\nwaits\n");
        assert!(!flush_all([&writer], &[], Duration::from_millis(1)));
        assert_eq!((writer.lost(), writer.give_up()), (0, 50_002));
        assert_eq!((writer.lost(), writer.give_up()), (50_002, 0));
        drop(reader);
    }

    #[test]
    fn two_logs_in_one_file_never_break_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("both.log");
        let writers = [open(&path), open(&path)];
        thread::scope(|scope| {
            for (writer, line) in writers.iter().zip(["aaaa\n", "bbbb\n"]) {
                scope.spawn(move || {
                    (0..200).for_each(|_| writer.send(line.repeat(100).as_bytes()));
                });
            }
        });
        writers.iter().for_each(flush);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 40_000);
        assert!(text.lines().all(|line| line == "aaaa" || line == "bbbb"));
    }
}
