//! The bounded queue of log lines, and the thread that writes them to standard error.
//!
//! Logging never blocks (invariant 5). Lines are dropped and counted when the queue is full.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::MakeWriter;

/// Capacity in lines and bytes: enough for a start with debug output while the reader blocks for some seconds.
const MAX_QUEUED_LOG_LINES: usize = 16_384;
const MAX_QUEUED_LOG_BYTES: usize = 2 << 20;

/// How long [`LogQueue::flush_and_stop`] waits for lines to be written.
const LOG_FLUSH_TIMEOUT: Duration = Duration::from_millis(1_500);

/// The queue of this process, once it logs.
static LOG_QUEUE: OnceLock<LogQueue> = OnceLock::new();

/// A handle on the queue.
#[derive(Clone)]
pub(super) struct LogQueue {
    line_writer: NonBlocking,
    state: Arc<LogQueueCountersAndWriter>,
}

struct LogQueueCountersAndWriter {
    /// Bytes in the queue.
    queued_bytes: AtomicUsize,
    dropped_line_count: AtomicU64,
    /// The writing thread.
    writer_guard: Mutex<Option<WorkerGuard>>,
}

/// Writes lines to the output, and subtracts them from the queue's size.
struct DequeueCountingWriter<W> {
    output: W,
    state: Arc<LogQueueCountersAndWriter>,
}

impl LogQueue {
    /// Creates a queue, and starts the thread that writes to `output`.
    pub(super) fn start(output: impl Write + Send + 'static) -> Self {
        let state = Arc::new(LogQueueCountersAndWriter {
            queued_bytes: AtomicUsize::new(0),
            dropped_line_count: AtomicU64::new(0),
            writer_guard: Mutex::new(None),
        });
        let writer = DequeueCountingWriter {
            output,
            state: state.clone(),
        };
        let builder = NonBlockingBuilder::default().buffered_lines_limit(MAX_QUEUED_LOG_LINES);
        let (lines, worker) = builder.lossy(true).thread_name("log").finish(writer);
        *state.writer_guard.lock().unwrap_or_else(PoisonError::into_inner) = Some(worker);
        Self {
            line_writer: lines,
            state,
        }
    }

    /// Makes this the queue of the process: see [`flush_and_stop_logging`] and [`dropped_log_line_count`].
    pub(super) fn install(&self) {
        let _ = LOG_QUEUE.set(self.clone());
    }

    /// Returns the number of lines dropped so far.
    pub(super) fn dropped_line_count(&self) -> u64 {
        self.state.dropped_line_count.load(Ordering::Relaxed) + self.line_writer.error_counter().dropped_lines() as u64
    }

    /// Writes the queued lines within [`LOG_FLUSH_TIMEOUT`], and ends the writing thread.
    pub(super) fn flush_and_stop(&self) {
        let worker = self
            .state
            .writer_guard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(worker) = worker else { return };
        let (done, written) = mpsc::channel::<()>();
        // Dropping the worker blocks while nobody reads the output.
        let flush = move || {
            drop(worker);
            drop(done);
        };
        if std::thread::Builder::new()
            .name("log-flush".into())
            .spawn(flush)
            .is_ok()
        {
            let _ = written.recv_timeout(LOG_FLUSH_TIMEOUT);
        }
    }
}

/// Writes the queued lines within a short time. Call it at the end of the process: later lines are lost.
pub fn flush_and_stop_logging() {
    if let Some(queue) = LOG_QUEUE.get() {
        queue.flush_and_stop();
    }
}

/// Returns the number of log lines of this process that were dropped because the queue was full.
pub fn dropped_log_line_count() -> u64 {
    LOG_QUEUE.get().map_or(0, LogQueue::dropped_line_count)
}

impl Write for LogQueue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let queued = self.state.queued_bytes.fetch_add(line.len(), Ordering::AcqRel);
        let lost_before = self.line_writer.error_counter().dropped_lines();
        if queued + line.len() > MAX_QUEUED_LOG_BYTES {
            self.state.queued_bytes.fetch_sub(line.len(), Ordering::AcqRel);
            self.state.dropped_line_count.fetch_add(1, Ordering::Relaxed);
            return Ok(line.len());
        }
        let written = self.line_writer.write(line);
        if self.line_writer.error_counter().dropped_lines() > lost_before {
            // The queue has too many lines. If several threads see the same drop, the size becomes slightly too low.
            self.state.record_dequeued_bytes(line.len());
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogQueue {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl LogQueueCountersAndWriter {
    fn record_dequeued_bytes(&self, bytes: usize) {
        let less = |queued: usize| Some(queued.saturating_sub(bytes));
        let _ = self
            .queued_bytes
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }
}

impl<W: Write> Write for DequeueCountingWriter<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // Lines are not kept if the output is closed.
        let _ = self.output.write_all(line);
        self.state.record_dequeued_bytes(line.len());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Standard error of a process whose log nobody reads, until the other end is dropped.
    struct Blocked(mpsc::Receiver<()>, mpsc::Sender<Vec<u8>>);

    impl Write for Blocked {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            let _ = self.1.send(line.to_vec());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn blocked() -> (LogQueue, mpsc::Sender<()>, mpsc::Receiver<Vec<u8>>) {
        let ((release, held), (sender, written)) = (mpsc::channel(), mpsc::channel());
        (LogQueue::start(Blocked(held, sender)), release, written)
    }

    #[test]
    fn a_log_that_nobody_reads_keeps_a_bounded_number_of_bytes_and_counts_the_rest() {
        let (mut queue, release, written) = blocked();
        let line = [b'x'; 1_024];
        let lines = 3 * MAX_QUEUED_LOG_BYTES / line.len();
        for _ in 0..lines {
            queue.write_all(&line).expect("never fails");
        }
        let queued = queue.state.queued_bytes.load(Ordering::Relaxed);
        assert!(queued <= MAX_QUEUED_LOG_BYTES, "{queued}");
        assert!(
            queue.dropped_line_count() >= (lines - MAX_QUEUED_LOG_BYTES / line.len()) as u64,
            "{}",
            queue.dropped_line_count()
        );
        // Once it is read again, all that was kept comes, and there is room for more.
        drop(release);
        let kept = lines as u64 - queue.dropped_line_count();
        assert_eq!(written.iter().take(kept as usize).count() as u64, kept);
        queue.write_all(b"more").expect("never fails");
        assert_eq!(written.recv().expect("written"), b"more");
        queue.flush_and_stop();
        assert_eq!(queue.state.queued_bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn short_lines_are_bounded_by_their_number() {
        let (mut queue, release, _written) = blocked();
        for _ in 0..2 * MAX_QUEUED_LOG_LINES {
            queue.write_all(b"x").expect("never fails");
        }
        // The one in the writer's hands is not in the queue.
        assert!(
            queue.dropped_line_count() >= MAX_QUEUED_LOG_LINES as u64 - 1,
            "{}",
            queue.dropped_line_count()
        );
        assert!(queue.state.queued_bytes.load(Ordering::Relaxed) <= MAX_QUEUED_LOG_LINES + 1);
        drop(release);
    }

    #[test]
    fn the_last_lines_are_written_before_the_end() {
        let (mut queue, release, written) = blocked();
        drop(release);
        for _ in 0..100 {
            queue.write_all(b"line").expect("never fails");
        }
        queue.flush_and_stop();
        assert_eq!(written.try_iter().count(), 100);
    }

    #[test]
    fn the_end_does_not_wait_for_a_reader() {
        let (mut queue, release, _written) = blocked();
        queue.write_all(b"line").expect("never fails");
        // Would wait for ever.
        queue.flush_and_stop();
        drop(release);
    }
}
