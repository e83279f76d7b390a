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
const MAX_LINES: usize = 16_384;
const MAX_BYTES: usize = 2 << 20;

/// How long [`LogQueue::flush`] waits for lines to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(1_500);

/// The queue of this process, once it logs.
static QUEUE: OnceLock<LogQueue> = OnceLock::new();

/// A handle on the queue.
#[derive(Clone)]
pub(super) struct LogQueue {
    lines: NonBlocking,
    state: Arc<State>,
}

struct State {
    /// Bytes in the queue.
    queued: AtomicUsize,
    dropped: AtomicU64,
    /// The writing thread.
    worker: Mutex<Option<WorkerGuard>>,
}

/// Writes lines to the output, and subtracts them from the queue's size.
struct Writer<W> {
    output: W,
    state: Arc<State>,
}

impl LogQueue {
    /// Creates a queue, and starts the thread that writes to `output`.
    pub(super) fn start(output: impl Write + Send + 'static) -> Self {
        let state = Arc::new(State {
            queued: AtomicUsize::new(0),
            dropped: AtomicU64::new(0),
            worker: Mutex::new(None),
        });
        let writer = Writer {
            output,
            state: state.clone(),
        };
        let builder = NonBlockingBuilder::default().buffered_lines_limit(MAX_LINES);
        let (lines, worker) = builder.lossy(true).thread_name("log").finish(writer);
        *state.worker.lock().unwrap_or_else(PoisonError::into_inner) = Some(worker);
        Self { lines, state }
    }

    /// Makes this the queue of the process: see [`flush`] and [`dropped_lines`].
    pub(super) fn install(&self) {
        let _ = QUEUE.set(self.clone());
    }

    /// Returns the number of lines dropped so far.
    pub(super) fn dropped(&self) -> u64 {
        self.state.dropped.load(Ordering::Relaxed) + self.lines.error_counter().dropped_lines() as u64
    }

    /// Writes the queued lines within [`FLUSH_TIMEOUT`], and ends the writing thread.
    pub(super) fn flush(&self) {
        let worker = self.state.worker.lock().unwrap_or_else(PoisonError::into_inner).take();
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
            let _ = written.recv_timeout(FLUSH_TIMEOUT);
        }
    }
}

/// Writes the queued lines within a short time. Call it at the end of the process: later lines are lost.
pub fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush();
    }
}

/// Returns the number of log lines of this process that were dropped because the queue was full.
pub fn dropped_lines() -> u64 {
    QUEUE.get().map_or(0, LogQueue::dropped)
}

impl Write for LogQueue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let queued = self.state.queued.fetch_add(line.len(), Ordering::AcqRel);
        let lost_before = self.lines.error_counter().dropped_lines();
        if queued + line.len() > MAX_BYTES {
            self.state.queued.fetch_sub(line.len(), Ordering::AcqRel);
            self.state.dropped.fetch_add(1, Ordering::Relaxed);
            return Ok(line.len());
        }
        let written = self.lines.write(line);
        if self.lines.error_counter().dropped_lines() > lost_before {
            // The queue has too many lines. If several threads see the same drop, the size becomes slightly too low.
            self.state.subtract(line.len());
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

impl State {
    fn subtract(&self, bytes: usize) {
        let less = |queued: usize| Some(queued.saturating_sub(bytes));
        let _ = self.queued.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // Lines are not kept if the output is closed.
        let _ = self.output.write_all(line);
        self.state.subtract(line.len());
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
        let lines = 3 * MAX_BYTES / line.len();
        for _ in 0..lines {
            queue.write_all(&line).expect("never fails");
        }
        let queued = queue.state.queued.load(Ordering::Relaxed);
        assert!(queued <= MAX_BYTES, "{queued}");
        assert!(
            queue.dropped() >= (lines - MAX_BYTES / line.len()) as u64,
            "{}",
            queue.dropped()
        );
        // Once it is read again, all that was kept comes, and there is room for more.
        drop(release);
        let kept = lines as u64 - queue.dropped();
        assert_eq!(written.iter().take(kept as usize).count() as u64, kept);
        queue.write_all(b"more").expect("never fails");
        assert_eq!(written.recv().expect("written"), b"more");
        queue.flush();
        assert_eq!(queue.state.queued.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn short_lines_are_bounded_by_their_number() {
        let (mut queue, release, _written) = blocked();
        for _ in 0..2 * MAX_LINES {
            queue.write_all(b"x").expect("never fails");
        }
        // The one in the writer's hands is not in the queue.
        assert!(queue.dropped() >= MAX_LINES as u64 - 1, "{}", queue.dropped());
        assert!(queue.state.queued.load(Ordering::Relaxed) <= MAX_LINES + 1);
        drop(release);
    }

    #[test]
    fn the_last_lines_are_written_before_the_end() {
        let (mut queue, release, written) = blocked();
        drop(release);
        for _ in 0..100 {
            queue.write_all(b"line").expect("never fails");
        }
        queue.flush();
        assert_eq!(written.try_iter().count(), 100);
    }

    #[test]
    fn the_end_does_not_wait_for_a_reader() {
        let (mut queue, release, _written) = blocked();
        queue.write_all(b"line").expect("never fails");
        // Would wait for ever.
        queue.flush();
        drop(release);
    }
}
