//! The thread of a log: takes lines off the queue and writes them.
//!
//! A write can hang (the file system doesn't answer, or a FIFO's reader has stopped). Then the
//! thread hangs too, and the queue fills up. A reopen recovers the log: the thread that opened the
//! new file takes over the queue, and the hanging thread is left behind until its write returns.
//! The lines of that write count as lost, because their fate is unknown.
//!
//! ```text
//! reopen ──► opener: open(2), in a thread of its own
//!              │ offers the open file until it is taken
//!              ├── the worker takes it ────────────► the worker writes to it
//!              └── the worker is at the same write
//!                  for all of OPEN_PATIENCE ───────► the opener becomes the worker
//! ```
//! After a reopen, the worker waits up to OPEN_PATIENCE for the new file, so that the next lines go
//! there. Then it continues with the old file until the new one is open.

use std::{
    io, mem,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, SystemTime},
};

use crossbeam_channel::{
    Receiver, RecvTimeoutError, SendTimeoutError, Sender, after, bounded, never, select_biased,
};

use super::output::{Output, Sink, hangs};

/// A report by the writer itself.
#[derive(Debug)]
pub(super) enum Note<'a> {
    /// This many lines were lost since the last such note.
    Lost { lines: u64 },
    /// The old file stays in use.
    ReopenFailed { path: &'a Path, error: &'a io::Error },
}

/// Appends a note as a line with a line feed, or nothing if it is reported elsewhere.
pub(super) type NoteFormat = Box<dyn Fn(&mut Vec<u8>, SystemTime, &Note<'_>) + Send>;

/// The cost of a chunk in the queue besides its bytes.
pub(super) const CHUNK_OVERHEAD_BYTES: usize = 64;

/// The worker takes up to this many bytes from the queue at once, plus one chunk.
const BATCH_BYTES: usize = 256 * 1024;

/// How long a loss may stay unreported if no more lines come.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// How long a worker waits for a file that is being opened, and how long a write may take before it
/// counts as hanging.
const OPEN_PATIENCE: Duration = Duration::from_secs(1);

/// How many threads of one log may hang at once: openers, and workers that were left behind.
const HANGING_MAX: usize = 4;

pub(super) enum Message {
    Lines(Vec<u8>),
    /// The file that is being opened.
    Reopen(Opening),
    Notes(NoteFormat),
    /// Dropped when done.
    Flush(Sender<()>),
}

/// Delivers the new file. Closes without a file if its opener has become the worker.
type Opening = Receiver<io::Result<Sink>>;

/// What the senders, the worker and the openers of a log share.
pub(super) struct Shared {
    /// The thread's name.
    pub(super) name: &'static str,
    pub(super) output: Output,
    pub(super) queue_bytes_max: usize,
    pub(super) queued_bytes: AtomicUsize,
    pub(super) lost: AtomicU64,
    /// Lost lines that the log itself has reported.
    pub(super) reported: AtomicU64,
    messages: Receiver<Message>,
    gather: Duration,
    note: Mutex<NoteFormat>,
    /// Why the last write failed, if it did.
    failure: Mutex<Option<String>>,
    /// Running openers, and workers that were left behind.
    hanging: AtomicUsize,
    turn: Mutex<Turn>,
}

/// Which thread is the worker, and what it is doing.
struct Turn {
    /// The number of the current worker; earlier ones were left behind.
    worker: u64,
    /// How many writes have begun.
    writes: u64,
    /// The number of lines in the current write.
    writing: Option<u64>,
    /// Closes when the worker has ended.
    _ends: Option<Sender<()>>,
}

impl Shared {
    pub(super) fn new(
        (name, output): (&'static str, Output),
        (queue_bytes_max, messages): (usize, Receiver<Message>),
        (gather, note): (Duration, NoteFormat),
        ends: Sender<()>,
    ) -> Self {
        Self {
            name,
            output,
            queue_bytes_max,
            queued_bytes: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
            reported: AtomicU64::new(0),
            messages,
            gather,
            note: Mutex::new(note),
            failure: Mutex::default(),
            hanging: AtomicUsize::new(0),
            turn: Mutex::new(Turn { worker: 0, writes: 0, writing: None, _ends: Some(ends) }),
        }
    }

    /// Starts the first worker.
    pub(super) fn begin(self: &Arc<Self>, sink: Sink) -> io::Result<()> {
        let worker = Worker::new(Arc::clone(self), 0, sink);
        thread::Builder::new().name(self.name.to_owned()).spawn(move || worker.run()).map(drop)
    }

    /// Starts to open the file again. Returns the message for the worker.
    pub(super) fn reopen(self: &Arc<Self>) -> Message {
        // With capacity 0, the file counts as delivered only once the worker takes it.
        let (offers, opening) = bounded(0);
        let failed = |error| {
            let (sender, opening) = bounded(1);
            drop(sender.send(Err(error)));
            Message::Reopen(opening)
        };
        if self.hanging.fetch_add(1, Relaxed) >= HANGING_MAX {
            self.hanging.fetch_sub(1, Relaxed);
            return failed(hangs());
        }
        let shared = Arc::clone(self);
        let opener = thread::Builder::new().name(self.name.to_owned());
        match opener.spawn(move || shared.open_and_offer(offers)) {
            Ok(_) => Message::Reopen(opening),
            Err(error) => {
                self.hanging.fetch_sub(1, Relaxed);
                failed(error)
            }
        }
    }

    fn open_and_offer(self: Arc<Self>, offers: Sender<io::Result<Sink>>) {
        let mut offered = self.output.open();
        self.hanging.fetch_sub(1, Relaxed);
        loop {
            let before = self.write_under_way();
            match offers.send_timeout(offered, OPEN_PATIENCE) {
                Ok(()) | Err(SendTimeoutError::Disconnected(_)) => return,
                Err(SendTimeoutError::Timeout(back)) => offered = back,
            }
            let stuck = before.filter(|before| self.write_under_way() == Some(*before));
            let Some(stuck) = stuck else { continue };
            match offered {
                Ok(sink) => match self.take_over(stuck) {
                    Some(worker) => {
                        drop(offers);
                        return Worker::new(self, worker, sink).run();
                    }
                    None => offered = Ok(sink),
                },
                Err(error) => offered = Err(error),
            }
        }
    }

    /// The number of the current write.
    fn write_under_way(&self) -> Option<u64> {
        let turn = self.turn();
        turn.writing.map(|_| turn.writes)
    }

    /// Leaves the worker behind if it is still at this write. Returns the number of the next
    /// worker.
    fn take_over(&self, stuck: u64) -> Option<u64> {
        let mut turn = self.turn();
        if turn.writes != stuck {
            return None;
        }
        let lines = turn.writing.take()?;
        self.lost.fetch_add(lines, Relaxed);
        Some(self.leave_behind(&mut turn))
    }

    fn leave_behind(&self, turn: &mut Turn) -> u64 {
        self.hanging.fetch_add(1, Relaxed);
        turn.worker += 1;
        turn.worker
    }

    /// For the end of the process: counts all waiting lines as lost, including those of a hanging
    /// write. Returns how many lines that were.
    pub(super) fn give_up(&self) -> u64 {
        let mut lines = 0;
        while let Ok(message) = self.messages.try_recv() {
            if let Message::Lines(chunk) = message {
                lines += count_lines(&chunk);
                self.queued_bytes.fetch_sub(chunk.len() + CHUNK_OVERHEAD_BYTES, Relaxed);
            }
        }
        let mut turn = self.turn();
        if let Some(writing) = turn.writing.take() {
            self.leave_behind(&mut turn);
            lines += writing;
        }
        self.lost.fetch_add(lines, Relaxed);
        lines
    }

    /// Why lines are being lost, if known.
    pub(super) fn failure(&self) -> Option<String> {
        lock(&self.failure).clone()
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        lock(&self.turn)
    }
}

/// The state of a worker.
struct Worker {
    shared: Arc<Shared>,
    number: u64,
    sink: Option<Sink>,
    /// A file that is still being opened.
    opening: Option<Opening>,
    /// The content of the next write: a note if there is one, then lines.
    batch: Vec<u8>,
    /// The offset of the lines in the batch.
    lines_at: usize,
    /// The losses that the batch's note covers.
    lost_noted: u64,
    /// Another worker has taken over.
    is_left_behind: bool,
}

impl Worker {
    fn new(shared: Arc<Shared>, number: u64, sink: Sink) -> Self {
        Self {
            shared,
            number,
            sink: Some(sink),
            opening: None,
            batch: Vec::new(),
            lines_at: 0,
            lost_noted: 0,
            is_left_behind: false,
        }
    }

    fn run(mut self) {
        while let Some(message) = self.next_message() {
            let queued_bytes = self.shared.queued_bytes.load(Relaxed);
            if matches!(message, Message::Lines(_)) && queued_bytes < BATCH_BYTES {
                thread::sleep(self.shared.gather);
            }
            self.take(message);
            while self.batch.len() < BATCH_BYTES
                && !self.is_left_behind
                && let Ok(message) = self.shared.messages.try_recv()
            {
                self.take(message);
            }
            self.write_batch();
            if self.is_left_behind {
                return;
            }
        }
        self.report_losses();
    }

    /// The next message; none when all senders are dropped. While waiting, reports losses and takes
    /// a file that took long to open.
    fn next_message(&mut self) -> Option<Message> {
        loop {
            let opening = self.opening.clone().unwrap_or_else(never);
            let tick = if self.has_unreported() { after(REPORT_INTERVAL) } else { never() };
            select_biased! {
                // First, or a busy log would never take the file.
                recv(opening) -> opened => {
                    self.opening = None;
                    // Closed: this worker opened the file itself.
                    if let Ok(opened) = opened {
                        self.use_file(opened);
                    }
                }
                recv(self.shared.messages) -> message => return message.ok(),
                recv(tick) -> _ => self.report_losses(),
            }
            if self.is_left_behind {
                return None;
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Lines(lines) => {
                if self.batch.is_empty() {
                    self.begin_batch();
                }
                self.batch.extend_from_slice(&lines);
                self.shared.queued_bytes.fetch_sub(lines.len() + CHUNK_OVERHEAD_BYTES, Relaxed);
            }
            Message::Reopen(opening) => {
                self.write_batch();
                if !self.is_left_behind {
                    self.reopen(opening);
                }
            }
            Message::Notes(note) => *lock(&self.shared.note) = note,
            Message::Flush(_done) => {
                self.write_batch();
                self.report_losses();
            }
        }
    }

    fn has_unreported(&self) -> bool {
        self.shared.lost.load(Relaxed) > self.shared.reported.load(Relaxed)
    }

    fn report_losses(&mut self) {
        if self.has_unreported() && !self.is_left_behind {
            self.begin_batch();
            self.write_batch();
        }
    }

    /// Starts a batch with the note that must precede the lines.
    fn begin_batch(&mut self) {
        self.lost_noted = self.shared.lost.load(Relaxed);
        let reported = self.shared.reported.load(Relaxed);
        if self.lost_noted > reported {
            self.push_note(&Note::Lost { lines: self.lost_noted - reported });
        }
        self.lines_at = self.batch.len();
    }

    fn push_note(&mut self, note: &Note<'_>) {
        lock(&self.shared.note)(&mut self.batch, SystemTime::now(), note);
    }

    /// Writes the batch as far as possible; the rest is lost.
    fn write_batch(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let batch = mem::take(&mut self.batch);
        {
            let mut turn = self.shared.turn();
            turn.writes += 1;
            turn.writing = Some(count_lines(&batch[self.lines_at..]));
        }
        let sink = self.sink.as_mut().expect("it is there until the worker ends");
        let (written, error) = sink.write(&batch);
        {
            let mut turn = self.shared.turn();
            if turn.worker != self.number {
                self.is_left_behind = true;
                return;
            }
            turn.writing = None;
        }
        *lock(&self.shared.failure) = error.map(|error| error.to_string());
        if written >= self.lines_at {
            self.shared.reported.store(self.lost_noted, Relaxed);
        }
        let lost = count_lines(&batch[written.max(self.lines_at)..]);
        self.shared.lost.fetch_add(lost, Relaxed);
        self.batch = batch;
        self.batch.clear();
    }

    fn reopen(&mut self, opening: Opening) {
        // A hanging open is waited for only once.
        let patience = if self.opening.take().is_some() { Duration::ZERO } else { OPEN_PATIENCE };
        match opening.recv_timeout(patience) {
            Ok(opened) => self.use_file(opened),
            Err(RecvTimeoutError::Timeout) => {
                self.opening = Some(opening);
                self.say_reopen_failed(&hangs());
            }
            // This worker opened the file itself.
            Err(RecvTimeoutError::Disconnected) => {}
        }
    }

    fn use_file(&mut self, opened: io::Result<Sink>) {
        match opened {
            Ok(sink) => self.sink = Some(sink),
            Err(error) => self.say_reopen_failed(&error),
        }
    }

    fn say_reopen_failed(&mut self, error: &io::Error) {
        let shared = Arc::clone(&self.shared);
        let Output::File(path) = &shared.output else { return };
        self.begin_batch();
        self.push_note(&Note::ReopenFailed { path, error });
        self.write_batch();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Closed first: a thread that waits for the end finds the file closed.
        self.sink = None;
        let mut turn = self.shared.turn();
        if turn.worker == self.number {
            turn._ends = None;
        } else {
            self.shared.hanging.fetch_sub(1, Relaxed);
        }
    }
}

pub(super) fn count_lines(lines: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', lines).count() as u64
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::unbounded;

    use super::*;

    #[test]
    fn a_busy_log_takes_a_file_that_was_slow_to_open() {
        let (queue, messages) = unbounded();
        let (ends, _ended) = bounded(0);
        let note: NoteFormat = Box::new(|_, _, _| {});
        let of_log = ("log-test", Output::STDERR);
        let shared = Shared::new(of_log, (1 << 20, messages), (Duration::ZERO, note), ends);
        let mut worker = Worker::new(Arc::new(shared), 0, Sink::alone(io::sink()));
        let (sender, opening) = bounded(1);
        assert!(sender.send(Ok(Sink::alone(io::sink()))).is_ok());
        worker.opening = Some(opening);
        assert!(queue.send(Message::Lines(b"line\n".to_vec())).is_ok());
        assert!(matches!(worker.next_message(), Some(Message::Lines(_))));
        assert!(worker.opening.is_none(), "the file is not used");
    }
}
